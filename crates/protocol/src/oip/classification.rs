//! The classification extension: instead of all numbers of an output, the largest of each row, as text.
//!
//! Source: <https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md>.

use super::{BytesData, Data, Datatype, Tensor};
use std::cmp::Ordering;
use std::fmt::Display;

/// Whether the elements of this datatype can be ordered and written as text.
pub const fn can_classify(datatype: Datatype) -> bool {
    !matches!(datatype, Datatype::Bool | Datatype::Fp16 | Datatype::Bytes)
}

/// The `most` largest elements of each of `rows` rows, largest first, each as `VALUE:INDEX` or
/// `VALUE:INDEX:LABEL`; all dimensions of a row are flattened. With `is_batch` the result has the shape
/// `[rows, most]`, without it `[most]`, and there must be one row.
///
/// `None`: the datatype has no order (see [`can_classify`]), or the elements do not divide into that many
/// rows.
pub fn classify(tensor: &Tensor, is_batch: bool, most: usize, labels: &[String]) -> Option<Tensor> {
    let rows = if is_batch { *tensor.shape.first()? } else { 1 };
    let length = tensor.data.len().checked_div(rows)?;
    if length == 0 || length * rows != tensor.data.len() {
        return None;
    }
    let most = most.min(length);
    let mut found = BytesData::default();
    macro_rules! by_type {
        ($($variant:ident),*) => {
            match &tensor.data {
                $(Data::$variant(data) => data
                    .chunks_exact(length)
                    .all(|row| row_into(&mut found, row, most, labels)),)*
                Data::Bool(_) | Data::Fp16(_) | Data::Bytes(_) => false,
            }
        };
    }
    let all = by_type!(Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp32, Fp64);
    let shape = if is_batch { vec![rows, most] } else { vec![most] };
    all.then(|| Tensor { name: tensor.name.clone(), shape, data: Data::Bytes(found) })
}

fn row_into<T: PartialOrd + Copy + Display>(
    found: &mut BytesData,
    row: &[T],
    most: usize,
    labels: &[String],
) -> bool {
    // Of equal ones the first; what has no order (NaN) comes last.
    let order = |&a: &usize, &b: &usize| {
        let is_number = |value: T| value.partial_cmp(&value).is_some();
        let larger = row[b].partial_cmp(&row[a]);
        let larger = larger.unwrap_or_else(|| is_number(row[b]).cmp(&is_number(row[a])));
        larger.then_with(|| a.cmp(&b))
    };
    largest(row.len(), most, order).into_iter().all(|index| {
        let value = row[index];
        found.push(
            match labels.get(index) {
                Some(label) => format!("{value}:{index}:{label}"),
                None => format!("{value}:{index}"),
            }
            .as_bytes(),
        )
    })
}

/// The first `most` of `0..count` in this order.
fn largest(count: usize, most: usize, order: impl Fn(&usize, &usize) -> Ordering) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..count).collect();
    if most > 0 && most < count {
        indices.select_nth_unstable_by(most - 1, &order);
    }
    indices.truncate(most);
    indices.sort_unstable_by(&order);
    indices
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn texts(tensor: &Tensor) -> Vec<&str> {
        let Data::Bytes(data) = &tensor.data else { return Vec::new() };
        data.iter().map(|text| std::str::from_utf8(text).unwrap()).collect()
    }

    #[test]
    fn each_row_gives_its_largest_with_their_labels() {
        let tensor =
            Tensor::new("y", vec![2, 3], Data::Fp32(vec![0.25, 0.5, 0.25, -1.0, 1e-7, 3.0].into()));
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let found = classify(tensor.as_ref().unwrap(), true, 2, &labels).unwrap();
        assert_eq!(found.shape, [2, 2]);
        assert_eq!(texts(&found), ["0.5:1:dog", "0.25:0:cat", "3:2", "0.0000001:1:dog"]);
    }

    #[test]
    fn more_than_there_are_is_all_of_them_and_nan_comes_last() {
        let data = Data::Fp32(vec![f32::NAN, 1.0, f32::NEG_INFINITY].into());
        let tensor = Tensor::new("y", vec![3], data).unwrap();
        let found = classify(&tensor, false, usize::MAX, &[]).unwrap();
        assert_eq!(
            (found.shape.as_slice(), texts(&found)),
            (&[3][..], vec!["1:1", "-inf:2", "NaN:0"])
        );
    }

    #[test]
    fn what_has_no_order_or_no_elements_is_not_classified() {
        for data in [
            Data::Bool(vec![true]),
            Data::Fp16(vec![0].into()),
            Data::Bytes(["a"].into_iter().collect()),
        ] {
            assert!(!can_classify(data.datatype()));
            let tensor = Tensor::new("y", vec![1], data).unwrap();
            assert_eq!(classify(&tensor, false, 1, &[]), None);
        }
        let empty = Tensor::new("y", vec![0], Data::Int8(vec![].into())).unwrap();
        assert_eq!(classify(&empty, true, 1, &[]), None);
        assert_eq!(classify(&empty, false, 1, &[]), None);
    }
}
