//! Tensors of the protocol to tract's and back.

use crate::error::text;
use bytes::Bytes;
use forebay_protocol::oip::{BytesData, Data, Datatype, Tensor};
use std::ops::Range;
use std::sync::Arc;
use tract_onnx::prelude as tract;
use tract_onnx::prelude::IntoArcTensor;
use tract_onnx::prelude::{DatumType, f16};

/// tract's element type for ours: of BYTES, text.
pub(crate) fn datum_type(datatype: Datatype) -> DatumType {
    match datatype {
        Datatype::Bool => DatumType::Bool,
        Datatype::Uint8 => DatumType::U8,
        Datatype::Uint16 => DatumType::U16,
        Datatype::Uint32 => DatumType::U32,
        Datatype::Uint64 => DatumType::U64,
        Datatype::Int8 => DatumType::I8,
        Datatype::Int16 => DatumType::I16,
        Datatype::Int32 => DatumType::I32,
        Datatype::Int64 => DatumType::I64,
        Datatype::Fp16 => DatumType::F16,
        Datatype::Fp32 => DatumType::F32,
        Datatype::Fp64 => DatumType::F64,
        Datatype::Bytes => DatumType::String,
    }
}

/// Ours for tract's; `None` for those that only tract has, such as sizes that are symbols.
pub(crate) fn datatype(datum_type: DatumType) -> Option<Datatype> {
    Some(match datum_type {
        DatumType::Bool => Datatype::Bool,
        DatumType::U8 => Datatype::Uint8,
        DatumType::U16 => Datatype::Uint16,
        DatumType::U32 => Datatype::Uint32,
        DatumType::U64 => Datatype::Uint64,
        DatumType::I8 => Datatype::Int8,
        DatumType::I16 => Datatype::Int16,
        DatumType::I32 => Datatype::Int32,
        DatumType::I64 => Datatype::Int64,
        DatumType::F16 => Datatype::Fp16,
        DatumType::F32 => Datatype::Fp32,
        DatumType::F64 => Datatype::Fp64,
        DatumType::String => Datatype::Bytes,
        _ => return None,
    })
}

/// Copies elements `range` of `data` into a tensor of `shape`.
pub(crate) fn to_tract(
    data: &Data,
    range: Range<usize>,
    shape: &[usize],
) -> Result<tract::Tensor, String> {
    let made = match data {
        Data::Bool(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Uint8(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Uint16(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Uint32(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Uint64(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Int8(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Int16(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Int32(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Int64(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Fp32(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Fp64(data) => tract::Tensor::from_shape(shape, &data[range]),
        Data::Fp16(data) => {
            let halves: Vec<_> = data[range].iter().map(|&bits| f16::from_bits(bits)).collect();
            tract::Tensor::from_shape(shape, &halves)
        }
        Data::Bytes(data) => return texts(data, range, shape),
    };
    made.map_err(|error| text(&error))
}

/// Texts, which are UTF-8 in every model.
fn texts(data: &BytesData, range: Range<usize>, shape: &[usize]) -> Result<tract::Tensor, String> {
    let text = |(place, bytes): (usize, &[u8])| {
        let text = std::str::from_utf8(bytes).map(str::to_owned);
        text.map_err(|error| format!("expected text in UTF-8 in element {place}, found {error}"))
    };
    let elements = data.iter().enumerate().skip(range.start).take(range.len());
    let texts = elements.map(text).collect::<Result<Vec<String>, _>>()?;
    let array = tract::tract_ndarray::ArrayD::from_shape_vec(shape, texts);
    Ok(tract::IntoTensor::into_tensor(array.map_err(|error| self::text(&error))?))
}

/// An output, where it lies; symbolic dimensions, which tract computes as a type of its own, become INT64.
pub(crate) fn from_tract(
    name: &str,
    datatype: Datatype,
    value: &tract::TValue,
) -> Result<Tensor, String> {
    let wanted = datum_type(datatype);
    if value.datum_type() == wanted && wanted.is_copy() && value.is_plain_ram() {
        let (shape, count) = (value.shape().to_vec(), value.len());
        let data = held(datatype, count, value.clone())?;
        return Tensor::new(name, shape, data).map_err(|problem| problem.to_string());
    }
    let tensor = value.cast_to_dt(wanted).map_err(|error| text(&error))?;
    let view = tensor.try_as_plain_ram().map_err(|error| text(&error))?;
    if datatype == Datatype::Bytes {
        let texts = view.as_slice::<String>().map_err(|error| text(&error))?;
        let data: BytesData = texts.iter().collect();
        if data.len() != texts.len() {
            return Err(format!("output \"{name}\": expected less than 4 GiB of text"));
        }
        let shape = tensor.shape().to_vec();
        return Tensor::new(name, shape, Data::Bytes(data)).map_err(|problem| problem.to_string());
    }
    let data = elements(datatype, view.as_bytes(), tensor.len())?;
    Tensor::new(name, tensor.shape().to_vec(), data).map_err(|problem| problem.to_string())
}

/// A tensor of the engine's whose elements are read where they lie.
struct Held(Arc<tract::Tensor>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Elements of a value; those of a small one are copied, which costs less than to share them.
fn held(datatype: Datatype, count: usize, value: tract::TValue) -> Result<Data, String> {
    const SMALL: usize = 4 << 10;
    let bytes = value.as_bytes();
    if bytes.len() < SMALL {
        return elements(datatype, bytes, count);
    }
    let bytes = Bytes::from_owner(Held(value.into_arc_tensor()));
    Data::from_shared(datatype, count, bytes).map_err(|problem| problem.to_string())
}

/// tract keeps its elements in the machine's own byte order; the protocol's is little-endian, as is
/// every machine that tract has kernels for.
fn elements(datatype: Datatype, bytes: &[u8], count: usize) -> Result<Data, String> {
    const { assert!(cfg!(target_endian = "little"), "expected a little-endian machine") };
    Data::from_binary(datatype, count, bytes).map_err(|problem| problem.to_string())
}
