//! Joins requests of similar lengths by padding, so that they can share a batch.
//!
//! Texts differ in length, so rows of one shape are rare. A model with an attention mask answers a text in
//! the same way for any values behind it that the mask covers. Where the operator states a padding value for
//! inputs, requests whose lengths are near to each other are joined at the greatest of their lengths, and
//! each gets its own length of the outputs back. A check at load shows that this changes no answer.

use crate::RunError;
use crate::graph::Interface;
use forebay_protocol::oip::{Data, Datatype, Tensor};
use std::collections::BTreeMap;

/// Lengths that are joined differ by at most a part of this many.
const PARTS: usize = 4;

/// The padding of inputs, and the cutting of outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Padding {
    /// Name of the size that is made equal.
    pub(crate) name: String,
    /// Of each input in the model's order: where it has that size, and what it is filled up with.
    inputs: Vec<Option<(usize, i64)>>,
    /// Its position in each output.
    outputs: Vec<Option<usize>>,
}

impl Padding {
    /// From what inputs are filled up with, by name; `None` if nothing is.
    ///
    /// # Errors
    /// Names of no inputs, inputs without exactly one open size behind the first, several such sizes, or
    /// an input of that size that is not filled up; the text begins with what was expected.
    pub(crate) fn new(
        interface: &Interface,
        values: &BTreeMap<String, i64>,
    ) -> Result<Option<Self>, String> {
        let mut name: Option<&str> = None;
        for input in values.keys() {
            let index = interface.inputs.iter().position(|known| known.name == *input);
            let index =
                index.ok_or_else(|| format!("expected the name of an input: \"{input}\""))?;
            let tensor = &interface.inputs[index];
            if tensor.datatype == Datatype::Bytes {
                return Err(format!("expected numbers to fill up: \"{input}\""));
            }
            let names = &interface.names[index];
            let open: Vec<&str> = (1..tensor.shape.len())
                .filter(|&axis| tensor.shape[axis] == -1)
                .map(|axis| names.get(axis).map_or("", String::as_str))
                .collect();
            match open[..] {
                [found] if !found.is_empty() && name.is_none_or(|name| name == found) => {
                    name = Some(found);
                }
                _ => {
                    return Err(format!(
                        "expected one open size with a name, the same for all: \"{input}\""
                    ));
                }
            }
        }
        let Some(name) = name else { return Ok(None) };
        let axis =
            |names: &Vec<String>| names.iter().skip(1).position(|n| n == name).map(|at| at + 1);
        let mut inputs = Vec::new();
        for (input, names) in interface.inputs.iter().zip(&interface.names) {
            let value = values.get(&input.name).copied();
            inputs.push(match (axis(names), value) {
                (Some(axis), Some(value)) => Some((axis, value)),
                (None, _) => None,
                (Some(_), None) => {
                    let input = &input.name;
                    return Err(format!("expected pad for all inputs of that size: \"{input}\""));
                }
            });
        }
        let outputs = interface.output_names.iter().map(axis).collect();
        Ok(Some(Self { name: name.to_owned(), inputs, outputs }))
    }

    /// The length that shapes of the inputs count as when it is asked which requests can be joined.
    pub(crate) fn round(&self, shapes: &mut [Vec<usize>], skip: usize) {
        for (shape, padded) in shapes.iter_mut().zip(&self.inputs) {
            if let Some((axis, _)) = padded
                && let Some(size) = shape.get_mut(axis - skip)
            {
                *size = bucket(*size);
            }
        }
    }

    /// Length of a request.
    pub(crate) fn length(&self, inputs: &[&Tensor]) -> usize {
        let mut lengths = inputs.iter().zip(&self.inputs).filter_map(|(input, padded)| {
            padded.and_then(|(axis, _)| input.shape.get(axis).copied())
        });
        lengths.next().unwrap_or(0)
    }

    /// The inputs of a request, filled up to a length.
    ///
    /// # Errors
    /// They are longer, or their shapes and values contradict each other.
    pub(crate) fn fill(&self, inputs: &[&Tensor], length: usize) -> Result<Vec<Tensor>, RunError> {
        let one = |(input, padded): (&&Tensor, &Option<(usize, i64)>)| match *padded {
            Some((axis, value)) => resize(input, axis, length, Some(value)),
            None => Ok(Tensor::clone(input)),
        };
        inputs.iter().zip(&self.inputs).map(one).collect()
    }

    /// The outputs of a request, cut to its length.
    ///
    /// # Errors
    /// They are shorter.
    pub(crate) fn cut(&self, outputs: Vec<Tensor>, length: usize) -> Result<Vec<Tensor>, RunError> {
        let one = |(output, axis): (Tensor, &Option<usize>)| match *axis {
            Some(axis) => resize(&output, axis, length, None),
            None => Ok(output),
        };
        outputs.into_iter().zip(&self.outputs).map(one).collect()
    }
}

/// The least length of its bucket: buckets are parts of the doubling that a length lies in.
fn bucket(length: usize) -> usize {
    if length <= PARTS {
        return length;
    }
    let step = (1 << (length - 1).ilog2()) / PARTS;
    length.div_ceil(step.max(1)) * step.max(1)
}

/// A tensor with another size on an axis: cut, or filled up with a value.
fn resize(
    tensor: &Tensor,
    axis: usize,
    size: usize,
    value: Option<i64>,
) -> Result<Tensor, RunError> {
    let misfit = || RunError::Input(format!("expected \"{}\" to fit its length", tensor.name));
    let before = *tensor.shape.get(axis).ok_or_else(misfit)?;
    if before == size {
        return Ok(tensor.clone());
    }
    let inner: usize = tensor.shape[axis + 1..].iter().product();
    let outer: usize = tensor.shape[..axis].iter().product();
    let (row, kept) = (before * inner, before.min(size) * inner);
    let filling = match (size.checked_sub(before), value) {
        (Some(more), Some(value)) => Some(filled(tensor.data.datatype(), more * inner, value)),
        (None, None) => None,
        _ => return Err(misfit()),
    };
    let mut data = tensor.data.slice(0..0).ok_or_else(misfit)?;
    for first in (0..outer).map(|index| index * row) {
        let part = tensor.data.slice(first..first + kept).ok_or_else(misfit)?;
        let is_whole = data.append(part) && filling.clone().is_none_or(|more| data.append(more));
        if !is_whole {
            return Err(misfit());
        }
    }
    let mut shape = tensor.shape.clone();
    shape[axis] = size;
    Ok(Tensor { name: tensor.name.clone(), shape, data })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a value that the operator has given for this datatype"
)]
fn filled(datatype: Datatype, count: usize, value: i64) -> Data {
    match datatype {
        Datatype::Bool => Data::Bool(vec![value != 0; count]),
        Datatype::Uint8 => Data::Uint8(vec![value as u8; count].into()),
        Datatype::Uint16 => Data::Uint16(vec![value as u16; count].into()),
        Datatype::Uint32 => Data::Uint32(vec![value as u32; count].into()),
        Datatype::Uint64 => Data::Uint64(vec![value as u64; count].into()),
        Datatype::Int8 => Data::Int8(vec![value as i8; count].into()),
        Datatype::Int16 => Data::Int16(vec![value as i16; count].into()),
        Datatype::Int32 => Data::Int32(vec![value as i32; count].into()),
        Datatype::Int64 => Data::Int64(vec![value; count].into()),
        Datatype::Fp16 => {
            let bits = tract_onnx::prelude::f16::from_f64(value as f64).to_bits();
            Data::Fp16(vec![bits; count].into())
        }
        Datatype::Fp64 => Data::Fp64(vec![value as f64; count].into()),
        // Strings are not filled up.
        Datatype::Fp32 | Datatype::Bytes => Data::Fp32(vec![value as f32; count].into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn near_lengths_count_as_one_and_never_as_a_shorter_one() {
        let found: Vec<usize> =
            [1, 4, 5, 8, 9, 10, 11, 17, 20, 21, 64, 65, 80, 81, 128].map(bucket).into();
        assert_eq!(found, [1, 4, 5, 8, 10, 10, 12, 20, 20, 24, 64, 80, 80, 96, 128]);
        for length in 1..5000 {
            let bucket = bucket(length);
            assert!(bucket >= length && 4 * bucket <= 5 * length + 4, "{length}: {bucket}");
        }
    }

    #[test]
    fn rows_are_filled_up_and_cut_back() {
        let data = Data::Int64((1..=8).collect());
        let tensor = Tensor::new("x", vec![2, 2, 2], data).unwrap();
        let long = resize(&tensor, 1, 3, Some(9)).unwrap();
        let expected = Data::Int64(vec![1, 2, 3, 4, 9, 9, 5, 6, 7, 8, 9, 9].into());
        assert_eq!((&long.shape, &long.data), (&vec![2, 3, 2], &expected));
        assert_eq!(resize(&long, 1, 2, None).unwrap(), tensor);
        assert!(resize(&tensor, 1, 1, Some(9)).is_err(), "inputs are not cut");
        assert!(resize(&tensor, 1, 3, None).is_err(), "outputs are not filled up");
        assert!(resize(&tensor, 3, 3, Some(9)).is_err(), "no such axis");
    }
}
