//! Tensor data in JSON: numbers go straight from the text into the typed vector.
//!
//! A tree of generic values would take 16 to 30 times the memory of what arrived, before a single
//! check. Here the shape decides first: an array that can't hold as many elements as the shape
//! promises is refused by its length in bytes, and reading stops at the first element too many.

use super::error::Found;
use super::{BytesData, Data, Datatype, Elements, TensorProblem};
use serde::de::{DeserializeSeed, Error, SeqAccess, Visitor};
use std::fmt;

/// Reads `json`, an array that is flat or nested as `shape`, of `count` elements.
pub(super) fn read(
    datatype: Datatype,
    shape: &[usize],
    count: usize,
    json: &str,
) -> Result<Data, TensorProblem> {
    // The densest array has one digit and one comma an element.
    let most = json.len() / 2 + 1;
    if count > most {
        return Err(TensorProblem::Count { expected: count, found: Found::AtMost(most) });
    }
    let array = Array { datatype, shape, count, json };
    Ok(match datatype {
        Datatype::Bool => Data::Bool(array.read()?),
        Datatype::Uint8 => Data::Uint8(array.numbers()?),
        Datatype::Uint16 => Data::Uint16(array.numbers()?),
        Datatype::Uint32 => Data::Uint32(array.numbers()?),
        Datatype::Uint64 => Data::Uint64(array.numbers()?),
        Datatype::Int8 => Data::Int8(array.numbers()?),
        Datatype::Int16 => Data::Int16(array.numbers()?),
        Datatype::Int32 => Data::Int32(array.numbers()?),
        Datatype::Int64 => Data::Int64(array.numbers()?),
        Datatype::Fp32 => Data::Fp32(array.numbers()?),
        Datatype::Fp64 => Data::Fp64(array.numbers()?),
        Datatype::Bytes => Data::Bytes(array.read()?),
        Datatype::Fp16 => return Err(TensorProblem::NoJsonForm),
    })
}

/// Appends `data` as a flat JSON array. `Err` says what JSON can't carry.
pub(super) fn write(data: &Data, out: &mut Vec<u8>) -> Result<(), &'static str> {
    if data.first_non_finite().is_some() {
        return Err("a number that is not finite");
    }
    match data {
        Data::Bool(data) => array(data, out),
        Data::Uint8(data) => array(data, out),
        Data::Uint16(data) => array(data, out),
        Data::Uint32(data) => array(data, out),
        Data::Uint64(data) => array(data, out),
        Data::Int8(data) => array(data, out),
        Data::Int16(data) => array(data, out),
        Data::Int32(data) => array(data, out),
        Data::Int64(data) => array(data, out),
        Data::Fp32(data) => array(data, out),
        Data::Fp64(data) => array(data, out),
        Data::Fp16(_) => Err("FP16 data"),
        Data::Bytes(data) => {
            let text: Result<Vec<_>, _> = data.iter().map(std::str::from_utf8).collect();
            array(&text.map_err(|_| "bytes that are not UTF-8")?, out)
        }
    }
}

fn array<T: serde::Serialize>(data: &[T], out: &mut Vec<u8>) -> Result<(), &'static str> {
    serde_json::to_writer(out, data).map_err(|_| "a value that is not JSON")
}

/// One array to read.
struct Array<'a> {
    datatype: Datatype,
    shape: &'a [usize],
    count: usize,
    json: &'a str,
}

impl Array<'_> {
    fn numbers<T: Element>(&self) -> Result<Elements<T>, TensorProblem> {
        Ok(self.read::<Vec<T>>()?.into())
    }

    fn read<V: Scalars>(&self) -> Result<V, TensorProblem> {
        let mut sink = Sink {
            array: self,
            elements: V::with_capacity(self.count, self.json.len()),
            leaf_depth: None,
            problem: None,
        };
        let mut deserializer = serde_json::Deserializer::from_str(self.json);
        let result = Level { sink: &mut sink, depth: 0 }.deserialize(&mut deserializer);
        if let Some(problem) = sink.problem {
            return Err(problem);
        }
        result.map_err(|_| TensorProblem::Data(self.datatype))?;
        let found = sink.elements.len();
        if found != self.count {
            let found = Found::Exactly(found);
            return Err(TensorProblem::Count { expected: self.count, found });
        }
        Ok(sink.elements)
    }
}

/// The destination of elements, and the first error.
struct Sink<'a, V> {
    array: &'a Array<'a>,
    elements: V,
    /// Depth of the arrays that hold the elements: 1 if flat.
    leaf_depth: Option<usize>,
    problem: Option<TensorProblem>,
}

impl<V: Scalars> Sink<'_, V> {
    fn fail<E: Error>(&mut self, problem: TensorProblem) -> E {
        self.problem.get_or_insert(problem);
        // Never shown: `Array::read` takes the problem instead.
        E::custom("")
    }

    fn push<E: Error>(&mut self, depth: usize, value: Scalar<'_>) -> Result<(), E> {
        let flat_or_full = depth == 1 || depth == self.array.shape.len();
        if !flat_or_full || *self.leaf_depth.get_or_insert(depth) != depth {
            return Err(self.fail(TensorProblem::Depth));
        }
        let (index, expected) = (self.elements.len(), self.array.count);
        if index == expected {
            let found = Found::MoreThan(expected);
            return Err(self.fail(TensorProblem::Count { expected, found }));
        }
        if !self.elements.push(value) {
            let (datatype, found) = (self.array.datatype, value.to_string());
            return Err(self.fail(TensorProblem::Element { datatype, found, index }));
        }
        Ok(())
    }

    /// A nested array at `depth` has ended with `found` entries.
    fn close<E: Error>(&mut self, depth: usize, found: usize) -> Result<(), E> {
        let flat = depth == 0 && self.leaf_depth.unwrap_or(1) == 1;
        match self.array.shape.get(depth) {
            Some(&expected) if !flat && expected != found => {
                let found = Found::Exactly(found);
                Err(self.fail(TensorProblem::Nesting { dimension: depth, expected, found }))
            }
            _ => Ok(()),
        }
    }
}

/// The value at `depth` nested arrays: an element or one more array.
struct Level<'s, 'a, V> {
    sink: &'s mut Sink<'a, V>,
    depth: usize,
}

impl<'de, V: Scalars> DeserializeSeed<'de> for Level<'_, '_, V> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, V: Scalars> Visitor<'de> for Level<'_, '_, V> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor data")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { sink, depth } = self;
        // Bounds the recursion: the rank is at most `MAX_RANK`.
        if depth >= sink.array.shape.len().max(1) {
            return Err(sink.fail(TensorProblem::Depth));
        }
        let mut entries = 0;
        while seq.next_element_seed(Level { sink, depth: depth + 1 })?.is_some() {
            entries += 1;
        }
        sink.close(depth, entries)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.sink.push(self.depth, Scalar::Unsigned(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.sink.push(self.depth, Scalar::Signed(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.sink.push(self.depth, Scalar::Float(value))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.sink.push(self.depth, Scalar::Bool(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.sink.push(self.depth, Scalar::Text(value))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.sink.push(self.depth, Scalar::Null)
    }
}

/// A JSON scalar, as the text has it.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    Null,
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(_) => f.write_str("a string"),
            Self::Null => f.write_str("null"),
        }
    }
}

/// A typed collection that scalars are pushed into.
trait Scalars {
    fn with_capacity(count: usize, bytes: usize) -> Self;
    fn len(&self) -> usize;
    /// `false`: the scalar is not of this type, or out of its range.
    fn push(&mut self, value: Scalar<'_>) -> bool;
}

impl<T: Element> Scalars for Vec<T> {
    fn with_capacity(count: usize, _: usize) -> Self {
        Self::with_capacity(count)
    }
    fn len(&self) -> usize {
        self.len()
    }
    fn push(&mut self, value: Scalar<'_>) -> bool {
        T::from_scalar(value).map(|value| self.push(value)).is_some()
    }
}

impl Scalars for BytesData {
    fn with_capacity(count: usize, bytes: usize) -> Self {
        let mut data = Self::default();
        data.reserve(count, bytes.saturating_sub(3 * count));
        data
    }
    fn len(&self) -> usize {
        self.len()
    }
    fn push(&mut self, value: Scalar<'_>) -> bool {
        matches!(value, Scalar::Text(text) if self.push(text.as_bytes()))
    }
}

trait Element: Sized {
    fn from_scalar(value: Scalar<'_>) -> Option<Self>;
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl Element for $type {
            fn from_scalar(value: Scalar<'_>) -> Option<Self> {
                match value {
                    Scalar::Unsigned(value) => value.try_into().ok(),
                    Scalar::Signed(value) => value.try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}

integers! { u8 u16 u32 u64 i8 i16 i32 i64 }

impl Element for f64 {
    #[allow(clippy::cast_precision_loss, reason = "a float tensor holds floats")]
    fn from_scalar(value: Scalar<'_>) -> Option<Self> {
        match value {
            Scalar::Unsigned(value) => Some(value as Self),
            Scalar::Signed(value) => Some(value as Self),
            Scalar::Float(value) => Some(value),
            _ => None,
        }
    }
}

impl Element for f32 {
    #[allow(clippy::cast_possible_truncation, reason = "rounds; what overflows is refused")]
    fn from_scalar(value: Scalar<'_>) -> Option<Self> {
        f64::from_scalar(value).map(|value| value as Self).filter(|value| value.is_finite())
    }
}

impl Element for bool {
    /// Some clients write 0 and 1.
    fn from_scalar(value: Scalar<'_>) -> Option<Self> {
        match value {
            Scalar::Bool(value) => Some(value),
            Scalar::Unsigned(0) => Some(false),
            Scalar::Unsigned(1) => Some(true),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read_as(datatype: Datatype, shape: &[usize], json: &str) -> Result<Data, TensorProblem> {
        read(datatype, shape, super::super::element_count(shape).unwrap(), json)
    }

    #[test]
    fn flat_and_nested_arrays_give_the_same_data() {
        let expected = Data::Int32(vec![1, 2, 3, 4, 5, 6].into());
        for json in ["[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]", " [ [1, 2,3] ,[4,5,6] ]\n"] {
            assert_eq!(read_as(Datatype::Int32, &[2, 3], json).unwrap(), expected, "{json}");
        }
        assert_eq!(
            read_as(Datatype::Fp32, &[], "[0.5]").unwrap(),
            Data::Fp32(vec![0.5].into()),
            "a scalar is an array of one"
        );
    }

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        // Found by the fuzz target `inference`.
        let mut values = vec![18_446_744_073_709_665_511.0, 5e-324, f64::MAX, 0.1];
        let random =
            std::iter::repeat_with(|| f64::from_bits(rng.u64(..))).filter(|v| v.is_finite());
        values.extend(random.take(20_000));
        let json = serde_json::to_string(&values).unwrap();
        let found = read_as(Datatype::Fp64, &[values.len()], &json).unwrap();
        assert_eq!(found, Data::Fp64(values.into()), "seed {seed}");
    }

    #[test]
    fn arrays_that_do_not_follow_the_shape_are_refused() {
        use TensorProblem::*;
        let refused = |json| read_as(Datatype::Int32, &[2, 3], json).unwrap_err();
        assert!(matches!(refused("[1,2,3,4,5]"), Count { expected: 6, .. }));
        assert!(matches!(refused("[1,2,3,4,5,6,7]"), Count { expected: 6, .. }));
        assert!(matches!(refused("[]          "), Count { .. } | Nesting { .. }));
        assert!(matches!(
            refused("[[1,2],[3,4],[5,6]]"),
            Nesting { dimension: 1, expected: 3, .. }
        ));
        assert!(matches!(refused("[[1,2,3],[4,5,6],[]]"), Nesting { .. }));
        assert!(matches!(refused("[[1,2,3],4,5,6]"), Depth));
        assert!(matches!(refused("[1,[2,3],4,5,6]"), Depth));
        assert!(matches!(refused("[[[1],[2],[3]],[4,5,6]]"), Depth));
        assert!(matches!(refused("{\"a\":1,\"b\":2,\"c\":3}"), Data(_)));
        assert!(matches!(refused("123456789012"), Depth));
    }

    #[test]
    fn values_that_are_not_of_the_datatype_are_refused_with_their_position() {
        for (datatype, json, found) in [
            (Datatype::Int32, "[1,1.5]", "1.5"),
            (Datatype::Int32, "[1,2147483648]", "2147483648"),
            (Datatype::Uint8, "[1,-1]", "-1"),
            (Datatype::Uint8, "[1,256]", "256"),
            (Datatype::Fp32, "[1,1e39]", "1000000000000000000000000000000000000000"),
            (Datatype::Fp32, "[1,\"x\"]", "a string"),
            (Datatype::Fp32, "[1,null]", "null"),
            (Datatype::Bytes, "[\"a\",1]", "1"),
            (Datatype::Bool, "[true,2]", "2"),
        ] {
            let problem = read_as(datatype, &[2], json).unwrap_err();
            let expected = TensorProblem::Element { datatype, found: found.into(), index: 1 };
            assert_eq!(problem, expected, "{json}");
        }
        assert!(read_as(Datatype::Fp64, &[2], "[1,1e999]").is_err());
        assert!(read_as(Datatype::Fp32, &[2], "[1,NaN]").is_err());
        assert!(read_as(Datatype::Fp16, &[2], "[1,2]").is_err());
    }

    #[test]
    fn a_shape_far_larger_than_the_text_is_refused_before_anything_is_allocated() {
        let problem = read(Datatype::Fp32, &[1 << 40], 1 << 40, "[1,2,3]").unwrap_err();
        assert!(matches!(problem, TensorProblem::Count { .. }), "{problem}");
    }

    #[test]
    fn ten_thousand_levels_of_nesting_end_at_the_rank() {
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        assert_eq!(read_as(Datatype::Fp32, &[1, 1], &deep).unwrap_err(), TensorProblem::Depth);
    }

    #[test]
    fn numbers_are_read_back_as_they_were_written() {
        for data in [
            Data::Fp32(vec![0.1, -1.5e-30, f32::MAX, 3.0].into()),
            Data::Fp64(vec![0.1, -1e300].into()),
            Data::Int64(vec![i64::MIN, i64::MAX].into()),
            Data::Uint64(vec![u64::MAX, 0].into()),
            Data::Bool(vec![true, false]),
            Data::Bytes(["", "a\"b", "ü"].into_iter().collect()),
        ] {
            let mut out = Vec::new();
            write(&data, &mut out).unwrap();
            let json = String::from_utf8(out).unwrap();
            assert_eq!(read_as(data.datatype(), &[data.len()], &json).unwrap(), data, "{json}");
        }
        assert!(write(&Data::Fp32(vec![f32::NAN].into()), &mut Vec::new()).is_err());
        assert!(write(&Data::Bytes([[0xff]].into_iter().collect()), &mut Vec::new()).is_err());
    }
}
