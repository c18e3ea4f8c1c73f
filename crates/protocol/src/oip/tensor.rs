//! A tensor in memory, and its binary form.

use super::elements::Owned;
use super::{Datatype, Elements, MAX_RANK, TensorProblem};
use bytes::Bytes;
use std::ops::Range;

/// A named tensor: shape and row-major data, whose lengths agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name of the input or output.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Elements in row-major order; as many as the product of the dimensions.
    pub data: Data,
}

impl Tensor {
    /// A tensor of these parts.
    ///
    /// # Errors
    /// The rank is beyond [`MAX_RANK`], or the data has another count than the shape.
    pub fn new(
        name: impl Into<String>,
        shape: Vec<usize>,
        data: Data,
    ) -> Result<Self, TensorProblem> {
        if shape.len() > MAX_RANK {
            return Err(TensorProblem::Rank(shape.len()));
        }
        let expected = element_count(&shape).ok_or_else(|| overflow(&shape))?;
        if expected != data.len() {
            let found = super::error::Found::Exactly(data.len());
            return Err(TensorProblem::Count { expected, found });
        }
        Ok(Self { name: name.into(), shape, data })
    }

    /// Reads the binary form: little-endian, row-major, BYTES with a `u32` length each.
    ///
    /// # Errors
    /// `bytes` is not exactly what shape and datatype call for.
    pub fn from_binary(
        name: impl Into<String>,
        datatype: Datatype,
        shape: Vec<usize>,
        bytes: &[u8],
    ) -> Result<Self, TensorProblem> {
        let count = element_count(&shape).ok_or_else(|| overflow(&shape))?;
        Self::new(name, shape, Data::from_binary(datatype, count, bytes)?)
    }
}

/// Product of the dimensions; `None` if it does not fit, even as 8-byte elements.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    let count = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim))?;
    count.checked_mul(8)?;
    Some(count)
}

pub(crate) fn overflow(shape: &[usize]) -> TensorProblem {
    let clamp = |&dim: &usize| i64::try_from(dim).unwrap_or(i64::MAX);
    TensorProblem::ShapeOverflow(shape.iter().map(clamp).collect())
}

/// Byte strings in one buffer: a million empty strings cost 4 MB, not a million allocations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BytesData {
    bytes: Vec<u8>,
    /// End of each element in `bytes`.
    ends: Vec<u32>,
}

impl BytesData {
    /// Adds an element. `false`: the whole would exceed 4 GiB, and nothing was added.
    #[must_use]
    pub fn push(&mut self, element: &[u8]) -> bool {
        let Ok(end) = u32::try_from(self.bytes.len() + element.len()) else { return false };
        self.bytes.extend_from_slice(element);
        self.ends.push(end);
        true
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let end = end as usize;
            let element = &self.bytes[start..end];
            start = end;
            element
        })
    }

    pub(super) fn reserve(&mut self, elements: usize, bytes: usize) {
        self.ends.reserve_exact(elements);
        self.bytes.reserve_exact(bytes);
    }

    fn from_binary(count: usize, mut bytes: &[u8]) -> Result<Self, TensorProblem> {
        // Each element takes at least its length prefix, so a lying count is refused unallocated.
        let least = count.saturating_mul(4);
        if least > bytes.len() {
            return Err(TensorProblem::BinaryLength { expected: least, found: bytes.len() });
        }
        let mut data = Self::default();
        data.reserve(count, bytes.len() - least);
        for index in 0..count {
            let lie = TensorProblem::BytesElement { index, left: bytes.len() };
            let Some((prefix, rest)) = bytes.split_first_chunk::<4>() else { return Err(lie) };
            let Some((element, rest)) = rest.split_at_checked(u32::from_le_bytes(*prefix) as usize)
            else {
                return Err(lie);
            };
            if !data.push(element) {
                return Err(lie);
            }
            bytes = rest;
        }
        if !bytes.is_empty() {
            let used = data.bytes.len() + least;
            return Err(TensorProblem::BinaryLength { expected: used, found: used + bytes.len() });
        }
        Ok(data)
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for BytesData {
    /// Collects elements; those beyond 4 GiB in all are left out.
    fn from_iter<I: IntoIterator<Item = T>>(iter: I) -> Self {
        let mut data = Self::default();
        for element in iter {
            if !data.push(element.as_ref()) {
                break;
            }
        }
        data
    }
}

/// Whether numbers lie in memory as the binary form has them.
const IS_LITTLE: bool = cfg!(target_endian = "little");

macro_rules! data {
    ($($variant:ident: $type:ty,)*) => {
        /// Elements of a tensor, as a sequence of the datatype's own type.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "named as the datatypes")]
        pub enum Data {
            Bool(Vec<bool>),
            $($variant(Elements<$type>),)*
            /// Bit patterns: this crate does no arithmetic on them.
            Fp16(Elements<u16>),
            Bytes(BytesData),
        }

        impl Data {
            /// Element type.
            pub fn datatype(&self) -> Datatype {
                match self {
                    Self::Bool(_) => Datatype::Bool,
                    $(Self::$variant(_) => Datatype::$variant,)*
                    Self::Fp16(_) => Datatype::Fp16,
                    Self::Bytes(_) => Datatype::Bytes,
                }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    Self::Bool(data) => data.len(),
                    $(Self::$variant(data) => data.len(),)*
                    Self::Fp16(data) => data.len(),
                    Self::Bytes(data) => data.len(),
                }
            }

            /// Reads `count` elements of the binary form.
            ///
            /// # Errors
            /// `bytes` has another length than `count` elements have.
            pub fn from_binary(
                datatype: Datatype,
                count: usize,
                bytes: &[u8],
            ) -> Result<Self, TensorProblem> {
                let Some(size) = datatype.size() else {
                    return BytesData::from_binary(count, bytes).map(Self::Bytes);
                };
                let expected = count.saturating_mul(size);
                if expected != bytes.len() {
                    return Err(TensorProblem::BinaryLength { expected, found: bytes.len() });
                }
                Ok(match datatype {
                    Datatype::Bool => Self::Bool(booleans(bytes)?),
                    $(Datatype::$variant => {
                        let (chunks, _) = bytes.as_chunks();
                        Self::$variant(chunks.iter().map(|c| <$type>::from_le_bytes(*c)).collect())
                    })*
                    Datatype::Fp16 => {
                        let (chunks, _) = bytes.as_chunks();
                        Self::Fp16(chunks.iter().map(|c| u16::from_le_bytes(*c)).collect())
                    }
                    Datatype::Bytes => Self::Bytes(BytesData::from_binary(count, bytes)?),
                })
            }

            /// The same of bytes that may be shared: elements stay where they are, unless they do not lie
            /// there as they would in memory.
            ///
            /// # Errors
            /// As of [`from_binary`](Self::from_binary).
            pub fn from_shared(
                datatype: Datatype,
                count: usize,
                bytes: Bytes,
            ) -> Result<Self, TensorProblem> {
                let is_whole = datatype.size().and_then(|size| count.checked_mul(size));
                if !IS_LITTLE || is_whole != Some(bytes.len()) {
                    return Self::from_binary(datatype, count, &bytes);
                }
                let shared = match datatype {
                    $(Datatype::$variant => Elements::shared(bytes.clone()).map(Self::$variant),)*
                    Datatype::Fp16 => Elements::shared(bytes.clone()).map(Self::Fp16),
                    Datatype::Bool | Datatype::Bytes => None,
                };
                shared.map_or_else(|| Self::from_binary(datatype, count, &bytes), Ok)
            }

            /// Appends the binary form.
            pub fn write_binary(&self, out: &mut Vec<u8>) {
                out.reserve(self.binary_len());
                match self {
                    Self::Bool(data) => out.extend(data.iter().map(|&b| u8::from(b))),
                    $(Self::$variant(data) => write(out, data, |v| v.to_le_bytes()),)*
                    Self::Fp16(data) => write(out, data, |v| v.to_le_bytes()),
                    Self::Bytes(data) => data.iter().for_each(|element| {
                        // `BytesData` holds less than 4 GiB in all.
                        let len = u32::try_from(element.len()).unwrap_or(u32::MAX);
                        out.extend_from_slice(&len.to_le_bytes());
                        out.extend_from_slice(element);
                    }),
                }
            }

            /// The binary form, without a copy where it is the one in memory.
            pub fn into_binary(self) -> Bytes {
                match self {
                    Self::Bool(data) => Bytes::from_owner(Owned(data)),
                    $(Self::$variant(data) if IS_LITTLE => data.into_bytes(),)*
                    Self::Fp16(data) if IS_LITTLE => data.into_bytes(),
                    data => {
                        let mut bytes = Vec::new();
                        data.write_binary(&mut bytes);
                        bytes.into()
                    }
                }
            }

            /// The elements of `range`; `None` if there are not so many.
            pub fn slice(&self, range: Range<usize>) -> Option<Self> {
                Some(match self {
                    Self::Bool(data) => Self::Bool(data.get(range)?.to_vec()),
                    $(Self::$variant(data) => Self::$variant(data.get(range)?.to_vec().into()),)*
                    Self::Fp16(data) => Self::Fp16(data.get(range)?.to_vec().into()),
                    Self::Bytes(data) if range.start <= range.end && range.end <= data.len() => {
                        let count = range.len();
                        Self::Bytes(data.iter().skip(range.start).take(count).collect())
                    }
                    Self::Bytes(_) => return None,
                })
            }

            /// Appends the elements of `other`. `false`: it is of another datatype (or BYTES would
            /// exceed 4 GiB), and the data is of no more use.
            #[must_use]
            pub fn append(&mut self, other: Self) -> bool {
                match (self, other) {
                    (Self::Bool(data), Self::Bool(mut other)) => data.append(&mut other),
                    $((Self::$variant(data), Self::$variant(other)) => data.append(&other),)*
                    (Self::Fp16(data), Self::Fp16(other)) => data.append(&other),
                    (Self::Bytes(data), Self::Bytes(other)) => {
                        return other.iter().all(|element| data.push(element));
                    }
                    _ => return false,
                }
                true
            }
        }
    };
}

data! {
    Uint8: u8,
    Uint16: u16,
    Uint32: u32,
    Uint64: u64,
    Int8: i8,
    Int16: i16,
    Int32: i32,
    Int64: i64,
    Fp32: f32,
    Fp64: f64,
}

impl Data {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the binary form.
    pub fn binary_len(&self) -> usize {
        match (self, self.datatype().size()) {
            (Self::Bytes(data), _) => data.bytes.len() + 4 * data.len(),
            (_, size) => self.len() * size.unwrap_or(0),
        }
    }

    /// Largest difference between elements, relative where they are larger than 1; infinite where
    /// elements that are not numbers differ. `None`: other counts or datatypes.
    pub fn max_difference(&self, other: &Self) -> Option<f64> {
        fn most<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> Option<f64> {
            let pairs = a.iter().zip(b).map(|(&a, &b)| difference(a.into(), b.into()));
            (a.len() == b.len()).then(|| pairs.fold(0.0, f64::max))
        }
        match (self, other) {
            (Self::Fp32(a), Self::Fp32(b)) => most(a, b),
            (Self::Fp64(a), Self::Fp64(b)) => most(a, b),
            _ if self.datatype() != other.datatype() || self.len() != other.len() => None,
            _ => Some(if self == other { 0.0 } else { f64::INFINITY }),
        }
    }

    /// Position of the first NaN or infinity.
    pub fn first_non_finite(&self) -> Option<usize> {
        /// All bits of the exponent of a half.
        const EXPONENT: u16 = 0x7c00;
        match self {
            Self::Fp16(data) => first(data, |v| v & EXPONENT == EXPONENT),
            Self::Fp32(data) => first(data, |v| !v.is_finite()),
            Self::Fp64(data) => first(data, |v| !v.is_finite()),
            _ => None,
        }
    }
}

/// The first element that is so. Whole blocks are asked without a branch for each element, which compiles
/// to a few vector instructions: there is usually none.
fn first<T: Copy>(data: &[T], is_so: impl Fn(T) -> bool) -> Option<usize> {
    const BLOCK: usize = 256;
    let mut blocks = data.chunks(BLOCK);
    let is_in = |block: &[T]| block.iter().fold(false, |any, &value| any | is_so(value));
    let block = blocks.position(is_in)?;
    let start = block * BLOCK;
    data[start..].iter().position(|&value| is_so(value)).map(|place| start + place)
}

fn difference(a: f64, b: f64) -> f64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0.0;
    }
    let difference = (a - b).abs() / a.abs().max(1.0);
    if difference.is_nan() { f64::INFINITY } else { difference }
}

/// Over whole slices, so that it compiles to a copy.
fn write<T: Copy, const N: usize>(out: &mut Vec<u8>, data: &[T], bytes: impl Fn(T) -> [u8; N]) {
    let start = out.len();
    out.resize(start + data.len() * N, 0);
    let (chunks, _) = out[start..].as_chunks_mut::<N>();
    chunks.iter_mut().zip(data).for_each(|(chunk, &value)| *chunk = bytes(value));
}

fn booleans(bytes: &[u8]) -> Result<Vec<bool>, TensorProblem> {
    let boolean = |(index, &byte): (usize, &u8)| match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(TensorProblem::Element {
            datatype: Datatype::Bool,
            found: format!("byte {byte}"),
            index,
        }),
    };
    bytes.iter().enumerate().map(boolean).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn one_of_each() -> Vec<Data> {
        vec![
            Data::Bool(vec![true, false]),
            Data::Uint8(vec![0, 255].into()),
            Data::Uint16(vec![1, 65535].into()),
            Data::Uint32(vec![1, u32::MAX].into()),
            Data::Uint64(vec![1, u64::MAX].into()),
            Data::Int8(vec![-128, 127].into()),
            Data::Int16(vec![-1, 300].into()),
            Data::Int32(vec![i32::MIN, 7].into()),
            Data::Int64(vec![i64::MIN, 7].into()),
            Data::Fp16(vec![0x3c00, 0xfbff].into()),
            Data::Fp32(vec![0.1, -1e30].into()),
            Data::Fp64(vec![0.1, -1e300].into()),
            Data::Bytes(["", "ab\0c"].into_iter().collect()),
        ]
    }

    #[test]
    fn every_datatype_survives_its_binary_form() {
        for data in one_of_each() {
            let mut bytes = Vec::new();
            data.write_binary(&mut bytes);
            assert_eq!(bytes.len(), data.binary_len(), "{:?}", data.datatype());
            assert_eq!(data.clone().into_binary(), bytes);
            assert_eq!(Data::from_binary(data.datatype(), 2, &bytes), Ok(data));
        }
    }

    #[test]
    fn data_is_cut_anywhere_and_joined_again_without_loss() {
        for data in one_of_each() {
            for at in 0..=2 {
                let mut joined = data.slice(0..at).unwrap();
                assert!(joined.append(data.slice(at..2).unwrap()));
                assert_eq!(joined, data);
            }
            assert_eq!(data.slice(1..3), None, "{:?}", data.datatype());
        }
    }

    #[test]
    fn binary_data_that_is_shorter_or_longer_than_its_count_is_refused() {
        for data in one_of_each() {
            let mut bytes = Vec::new();
            data.write_binary(&mut bytes);
            for count in [0, 1, 3, usize::MAX] {
                assert!(Data::from_binary(data.datatype(), count, &bytes).is_err(), "{count}");
            }
            bytes.push(0);
            assert!(Data::from_binary(data.datatype(), 2, &bytes).is_err());
        }
    }

    #[test]
    fn a_bytes_element_cannot_reach_beyond_its_tensor() {
        for lie in [&[5, 0, 0, 0, b'a'][..], &[255; 8], &[1, 0, 0]] {
            assert!(Data::from_binary(Datatype::Bytes, 1, lie).is_err(), "{lie:?}");
        }
    }

    #[test]
    fn a_shape_that_overflows_has_no_count() {
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[2, 0, 3]), Some(0));
        assert_eq!(element_count(&[1 << 40, 1 << 40]), None);
        assert_eq!(element_count(&[usize::MAX]), None);
        assert!(Tensor::new("t", vec![1; 17], Data::Bool(vec![true])).is_err());
        assert!(Tensor::new("t", vec![2], Data::Bool(vec![true])).is_err());
    }

    #[test]
    fn nan_and_infinities_are_found_in_all_widths() {
        assert_eq!(Data::Fp32(vec![1.0, f32::NAN].into()).first_non_finite(), Some(1));
        assert_eq!(Data::Fp64(vec![f64::INFINITY].into()).first_non_finite(), Some(0));
        assert_eq!(Data::Fp16(vec![0x3c00, 0x7e00].into()).first_non_finite(), Some(1));
        assert_eq!(Data::Fp16(vec![0xfbff].into()).first_non_finite(), None);
        let mut many = vec![0.5_f32; 1000];
        assert_eq!(Data::Fp32(many.clone().into()).first_non_finite(), None);
        for place in [999, 700, 256, 255] {
            many[place] = f32::INFINITY;
            assert_eq!(Data::Fp32(many.clone().into()).first_non_finite(), Some(place));
        }
    }
}
