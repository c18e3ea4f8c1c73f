//! The parts common to requests and responses: a JSON head that lists tensors, and optionally the tensors'
//! bytes after it.

use super::error::Found;
use super::tensor::overflow;
use super::{
    Data, Datatype, EncodeError, MAX_RANK, MAX_TENSORS, Parameter, Parameters, ParseError, Tensor,
    TensorProblem, element_count, json,
};
use bytes::Bytes;
use serde::de::{Error, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::marker::PhantomData;

/// Bytes from which on a tensor is a piece of its own: a copy of fewer costs less than another piece, and does
/// not keep a whole body.
const PIECE: usize = 16 << 10;

/// A message ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The whole body.
    pub body: Vec<u8>,
    /// Bytes of JSON before the binary data, for the header `inference-header-content-length`;
    /// `None` if all of it is JSON.
    pub json_len: Option<usize>,
}

impl Encoded {
    /// The value of `content-type`.
    pub fn content_type(&self) -> &'static str {
        content_type(self.json_len)
    }
}

fn content_type(json_len: Option<usize>) -> &'static str {
    if json_len.is_some() { "application/octet-stream" } else { "application/json" }
}

/// Splits a body into its JSON and its binary data.
pub(super) fn split(body: &[u8], json_len: Option<usize>) -> Result<(&[u8], &[u8]), ParseError> {
    let expected = json_len.unwrap_or(body.len());
    let found = body.len();
    body.split_at_checked(expected).ok_or(ParseError::JsonLength { expected, found })
}

macro_rules! raw_tensor {
    ($(#[$attribute:meta])* $name:ident) => {
        #[derive(serde::Deserialize)]
        $(#[$attribute])*
        pub(super) struct $name<'a> {
            name: String,
            shape: Bounded<i64, MAX_RANK>,
            datatype: Datatype,
            #[serde(default)]
            parameters: Parameters,
            #[serde(borrow)]
            data: Option<&'a RawValue>,
        }
    };
}

raw_tensor! {
    /// A tensor as it stands in the JSON.
    RawTensor
}
raw_tensor! {
    /// The same, if it says nothing else.
    #[serde(deny_unknown_fields)]
    OnlyTensor
}

impl<'a> OnlyTensor<'a> {
    /// The tensor, unless it has parameters that [`Tensor`] does not hold.
    pub(super) fn only(self) -> Result<RawTensor<'a>, ParseError> {
        let Self { name, shape, datatype, parameters, data } = self;
        if parameters.iter().any(|(key, _)| key != "binary_data_size") {
            return Err(ParseError::SaysMore { place: "a tensor's parameters" });
        }
        Ok(RawTensor { name, shape, datatype, parameters, data })
    }
}

/// The tensors, if none of them says more than [`Tensor`] holds.
pub(super) fn only<'a>(
    tensors: Bounded<OnlyTensor<'a>, MAX_TENSORS>,
) -> Result<Bounded<RawTensor<'a>, MAX_TENSORS>, ParseError> {
    tensors.0.into_iter().map(OnlyTensor::only).collect::<Result<_, _>>().map(Bounded)
}

/// Gives each tensor its data: from the JSON, or its share of `binary`, which may stay in the `body` that it is
/// a part of.
pub(super) fn assemble(
    raw: Bounded<RawTensor<'_>, MAX_TENSORS>,
    binary: &[u8],
    body: Option<&Bytes>,
) -> Result<Vec<Tensor>, ParseError> {
    let mut rest = binary;
    let mut tensors = Vec::with_capacity(raw.0.len());
    for tensor in raw.0 {
        let (data, shape) = tensor
            .read(&mut rest, body)
            .map_err(|problem| ParseError::Tensor { name: tensor.name.clone(), problem })?;
        tensors.push(Tensor { name: tensor.name, shape, data });
    }
    if !rest.is_empty() {
        let expected = binary.len() - rest.len();
        return Err(ParseError::BinaryLength { expected, found: binary.len() });
    }
    Ok(tensors)
}

impl RawTensor<'_> {
    fn read(
        &self,
        rest: &mut &[u8],
        body: Option<&Bytes>,
    ) -> Result<(Data, Vec<usize>), TensorProblem> {
        let shape = dimensions(&self.shape.0)?;
        let count = element_count(&shape).ok_or_else(|| overflow(&shape))?;
        let data = match (self.data, self.parameters.get("binary_data_size")) {
            (None, None) => return Err(TensorProblem::NoData),
            (Some(_), Some(_)) => return Err(TensorProblem::TwoData),
            (Some(data), None) => json::read(self.datatype, &shape, count, data.get())?,
            (None, Some(size)) => {
                let (bytes, tail) = take(rest, size)?;
                *rest = tail;
                match body.filter(|_| bytes.len() >= PIECE) {
                    Some(body) => Data::from_shared(self.datatype, count, body.slice_ref(bytes))?,
                    None => Data::from_binary(self.datatype, count, bytes)?,
                }
            }
        };
        Ok((data, shape))
    }
}

pub(crate) fn dimensions(shape: &[i64]) -> Result<Vec<usize>, TensorProblem> {
    let dimension = |&dim: &i64| match usize::try_from(dim) {
        Ok(dim) => Ok(dim),
        Err(_) => Err(TensorProblem::NegativeDimension(dim)),
    };
    shape.iter().map(dimension).collect()
}

fn take<'a>(rest: &'a [u8], size: &Parameter) -> Result<(&'a [u8], &'a [u8]), TensorProblem> {
    let expected = match size {
        Parameter::Int(size) => usize::try_from(*size).ok(),
        _ => None,
    };
    let expected = expected.ok_or_else(|| TensorProblem::BinarySize(show(size)))?;
    let found = rest.len();
    rest.split_at_checked(expected).ok_or(TensorProblem::BinaryLength { expected, found })
}

fn show(parameter: &Parameter) -> String {
    match parameter {
        Parameter::Int(value) => value.to_string(),
        Parameter::Float(value) => value.to_string(),
        Parameter::Bool(value) => value.to_string(),
        Parameter::String(_) => "a string".to_owned(),
    }
}

/// Writes `,"<key>":[{…},…]` with the tensors' data, or their sizes for those in `binary` form, whose data
/// follow the JSON in this order.
pub(super) fn write_tensors(
    json: &mut Vec<u8>,
    key: &str,
    tensors: &[Tensor],
    binary: impl Fn(&Tensor) -> bool,
) -> Result<(), EncodeError> {
    json.extend_from_slice(format!(",\"{key}\":[").as_bytes());
    for (index, tensor) in tensors.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend_from_slice(b"{\"name\":");
        write_value(json, &tensor.name);
        json.extend_from_slice(b",\"datatype\":");
        write_value(json, tensor.data.datatype().as_str());
        json.extend_from_slice(b",\"shape\":");
        write_value(json, &tensor.shape);
        if binary(tensor) {
            let size = tensor.data.binary_len();
            json.extend_from_slice(
                format!(",\"parameters\":{{\"binary_data_size\":{size}}}}}").as_bytes(),
            );
        } else {
            json.extend_from_slice(b",\"data\":");
            json::write(&tensor.data, json)
                .map_err(|found| EncodeError { name: tensor.name.clone(), found })?;
            json.push(b'}');
        }
    }
    json.push(b']');
    Ok(())
}

/// Text, numbers and maps of them always have a JSON form, and a vector takes all of it.
pub(super) fn write_value<T: serde::Serialize + ?Sized>(json: &mut Vec<u8>, value: &T) {
    if serde_json::to_writer(&mut *json, value).is_err() {
        json.extend_from_slice(b"null");
    }
}

/// Puts the JSON and the data of those tensors together that are in `binary` form.
pub(super) fn join(
    mut json: Vec<u8>,
    tensors: &[Tensor],
    binary: impl Fn(&Tensor) -> bool,
) -> Encoded {
    let json_len = tensors.iter().any(&binary).then_some(json.len());
    tensors.iter().filter(|&tensor| binary(tensor)).for_each(|tensor| {
        tensor.data.write_binary(&mut json);
    });
    Encoded { body: json, json_len }
}

/// A message ready to be sent, in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// The body, one after the other: tensors of more than a few KiB are pieces of their own, where they
    /// lie in memory.
    pub body: Vec<Bytes>,
    /// As of [`Encoded`].
    pub json_len: Option<usize>,
}

impl Pieces {
    /// The same as [`join`], without a copy of what is large.
    pub(super) fn new(
        json: Vec<u8>,
        tensors: Vec<Tensor>,
        binary: impl Fn(&Tensor) -> bool,
    ) -> Self {
        let json_len = tensors.iter().any(&binary).then_some(json.len());
        let (mut body, mut open) = (Vec::new(), json);
        for tensor in tensors.into_iter().filter(binary) {
            if tensor.data.binary_len() < PIECE {
                tensor.data.write_binary(&mut open);
                continue;
            }
            if !open.is_empty() {
                body.push(std::mem::take(&mut open).into());
            }
            body.push(tensor.data.into_binary());
        }
        if !open.is_empty() {
            body.push(open.into());
        }
        Self { body, json_len }
    }

    /// The value of `content-type`.
    pub fn content_type(&self) -> &'static str {
        content_type(self.json_len)
    }
}

/// A list that stops being read at `MAX` entries.
#[derive(Debug)]
pub(super) struct Bounded<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: serde::Deserialize<'de>, const MAX: usize> serde::Deserialize<'de>
    for Bounded<T, MAX>
{
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: serde::Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = Bounded<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MAX} entries")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    if entries.len() == MAX {
                        let found = Found::MoreThan(MAX);
                        return Err(A::Error::custom(format_args!(
                            "expected at most {MAX} entries, found {found}"
                        )));
                    }
                    entries.push(entry);
                }
                Ok(Bounded(entries))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}
