//! The messages that carry tensors, between their bytes and the types of [`oip`](crate::oip).
//!
//! Reading is bounded as it is for JSON: tensors, dimensions and parameters by the constants of
//! [`oip`](crate::oip), elements by the shape, memory by the bytes that arrived. A generated decoder
//! would take some hundred bytes for each two-byte entry of a list before anyone could count them.

use super::parameters::{bounded, push_parameter};
use super::pb;
use super::protobuf::{Fields, ProtobufError, Value, varint};
use crate::oip::{
    BytesData, Data, Datatype, Elements, Found, InferRequest, InferResponse, MAX_RANK, MAX_TENSORS,
    Parameter, Parameters, ParseError, RequestedOutput, Tensor, TensorProblem, dimensions,
    element_count, overflow, unknown_datatype,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Numbers of the fields that both messages have, but not in the same places.
struct Layout {
    raw: u32,
    requested: Option<u32>,
}

const REQUEST: Layout = Layout { raw: 7, requested: Some(6) };
const RESPONSE: Layout = Layout { raw: 6, requested: None };

/// Reads a `ModelInferRequest`; [`text_field`](super::text_field) knows which model it names.
///
/// # Errors
/// The bytes are no such message, or a tensor's parts contradict each other.
pub fn read_request(message: &[u8]) -> Result<InferRequest, ParseError> {
    Parts::read(message, &REQUEST)?.request()
}

/// Like [`read_request`], but only of a message that says nothing beyond what the type holds: two such
/// requests that are equal ask the same of any server.
///
/// # Errors
/// As of [`read_request`]; or it has other fields, or tensors with parameters of their own.
pub fn read_only_request(message: &[u8]) -> Result<InferRequest, ParseError> {
    Parts::read(message, &REQUEST)?.only()?.request()
}

/// Reads a `ModelInferResponse`.
///
/// # Errors
/// The bytes are no such message, or a tensor's parts contradict each other.
pub fn read_response(message: &[u8]) -> Result<InferResponse, ParseError> {
    Parts::read(message, &RESPONSE)?.response()
}

/// Like [`read_response`], but only of a message that says nothing beyond what the type holds.
///
/// # Errors
/// As of [`read_response`]; or it has other fields, or tensors with parameters of their own.
pub fn read_only_response(message: &[u8]) -> Result<InferResponse, ParseError> {
    Parts::read(message, &RESPONSE)?.only()?.response()
}

/// A request with raw contents.
pub fn write_request(
    model: &str,
    version: Option<&str>,
    request: &InferRequest,
) -> pb::ModelInferRequest {
    let requested =
        |output: &RequestedOutput| pb::model_infer_request::InferRequestedOutputTensor {
            name: output.name.clone(),
            parameters: write_parameters(&output.parameters),
        };
    let input = |tensor: &Tensor| pb::model_infer_request::InferInputTensor {
        name: tensor.name.clone(),
        datatype: tensor.data.datatype().as_str().to_owned(),
        shape: write_shape(&tensor.shape),
        ..Default::default()
    };
    pb::ModelInferRequest {
        model_name: model.to_owned(),
        model_version: version.unwrap_or_default().to_owned(),
        id: request.id.clone().unwrap_or_default(),
        parameters: write_parameters(&request.parameters),
        inputs: request.inputs.iter().map(input).collect(),
        outputs: request.outputs.iter().map(requested).collect(),
        raw_input_contents: request.inputs.iter().map(write_raw).collect(),
    }
}

/// A response with raw contents.
pub fn write_response(response: &InferResponse) -> pb::ModelInferResponse {
    let output = |tensor: &Tensor| pb::model_infer_response::InferOutputTensor {
        name: tensor.name.clone(),
        datatype: tensor.data.datatype().as_str().to_owned(),
        shape: write_shape(&tensor.shape),
        ..Default::default()
    };
    pb::ModelInferResponse {
        model_name: response.model_name.clone(),
        model_version: response.model_version.clone().unwrap_or_default(),
        id: response.id.clone().unwrap_or_default(),
        parameters: write_parameters(&response.parameters),
        outputs: response.outputs.iter().map(output).collect(),
        raw_output_contents: response.outputs.iter().map(write_raw).collect(),
    }
}

fn write_shape(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect()
}

fn write_raw(tensor: &Tensor) -> Bytes {
    let mut bytes = Vec::new();
    tensor.data.write_binary(&mut bytes);
    bytes.into()
}

fn write_parameters(parameters: &Parameters) -> BTreeMap<String, pb::InferParameter> {
    use pb::infer_parameter::ParameterChoice as Choice;
    let choice = |value: &Parameter| match value {
        Parameter::Bool(value) => Choice::BoolParam(*value),
        Parameter::Int(value) => Choice::Int64Param(*value),
        Parameter::Float(value) => Choice::DoubleParam(*value),
        Parameter::String(value) => Choice::StringParam(value.clone()),
    };
    let entry = |(key, value): (&String, &Parameter)| {
        (key.clone(), pb::InferParameter { parameter_choice: Some(choice(value)) })
    };
    parameters.iter().map(entry).collect()
}

/// The parts of a message, before its tensors have their data.
#[derive(Default)]
struct Parts<'a> {
    model: String,
    version: String,
    id: Option<String>,
    parameters: Vec<(String, Parameter)>,
    tensors: Vec<RawTensor<'a>>,
    requested: Vec<RequestedOutput>,
    raw: Vec<&'a [u8]>,
    /// Whether the message, a tensor or an output has fields that are passed over.
    says_more: bool,
}

impl<'a> Parts<'a> {
    fn read(message: &'a [u8], layout: &Layout) -> Result<Self, ParseError> {
        let mut parts = Self::default();
        for field in Fields::of(message) {
            match field? {
                (1, value) => parts.model = value.text()?.to_owned(),
                (2, value) => parts.version = value.text()?.to_owned(),
                (3, value) => {
                    parts.id = Some(value.text()?.to_owned()).filter(|id| !id.is_empty());
                }
                (4, value) => push_parameter(&mut parts.parameters, value)?,
                (5, value) => {
                    bounded(&parts.tensors, MAX_TENSORS, "tensors")?;
                    parts.tensors.push(RawTensor::read(value.bytes()?)?);
                }
                (field, value) if Some(field) == layout.requested => {
                    bounded(&parts.requested, MAX_TENSORS, "outputs")?;
                    let (output, says_more) = requested_output(value.bytes()?)?;
                    parts.requested.push(output);
                    parts.says_more |= says_more;
                }
                (field, value) if field == layout.raw => {
                    bounded(&parts.raw, MAX_TENSORS, "raw contents")?;
                    parts.raw.push(value.bytes()?);
                }
                _ => parts.says_more = true,
            }
        }
        Ok(parts)
    }

    fn only(self) -> Result<Self, ParseError> {
        if self.says_more || self.tensors.iter().any(|tensor| tensor.says_more) {
            return Err(ParseError::SaysMore { place: "the message's fields" });
        }
        Ok(self)
    }

    fn request(self) -> Result<InferRequest, ParseError> {
        Ok(InferRequest {
            id: self.id,
            parameters: self.parameters.into_iter().collect(),
            inputs: assemble(self.tensors, &self.raw)?,
            outputs: self.requested,
        })
    }

    fn response(self) -> Result<InferResponse, ParseError> {
        Ok(InferResponse {
            model_name: self.model,
            model_version: Some(self.version).filter(|version| !version.is_empty()),
            id: self.id,
            parameters: self.parameters.into_iter().collect(),
            outputs: assemble(self.tensors, &self.raw)?,
        })
    }
}

/// An output, and whether it has fields that are passed over.
fn requested_output(message: &[u8]) -> Result<(RequestedOutput, bool), ParseError> {
    let (mut name, mut parameters, mut says_more) = (String::new(), Vec::new(), false);
    for field in Fields::of(message) {
        match field? {
            (1, value) => name = value.text()?.to_owned(),
            (2, value) => push_parameter(&mut parameters, value)?,
            _ => says_more = true,
        }
    }
    let parameters = parameters.into_iter().collect();
    Ok((RequestedOutput { name, parameters }, says_more))
}

/// A tensor whose data may stand elsewhere in the message.
#[derive(Default)]
struct RawTensor<'a> {
    name: String,
    datatype: &'a str,
    shape: Vec<i64>,
    contents: Option<&'a [u8]>,
    /// Whether it has fields that are passed over, such as parameters.
    says_more: bool,
}

impl<'a> RawTensor<'a> {
    fn read(message: &'a [u8]) -> Result<Self, ParseError> {
        let mut tensor = Self::default();
        for field in Fields::of(message) {
            match field? {
                (1, value) => tensor.name = value.text()?.to_owned(),
                (2, value) => tensor.datatype = value.text()?,
                (3, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        tensor.push_dimension(varint(&mut packed)?)?;
                    }
                }
                (3, value) => tensor.push_dimension(value.varint()?)?,
                (5, value) => tensor.contents = Some(value.bytes()?),
                _ => tensor.says_more = true,
            }
        }
        Ok(tensor)
    }

    fn push_dimension(&mut self, dim: u64) -> Result<(), ParseError> {
        bounded(&self.shape, MAX_RANK, "dimensions")?;
        self.shape.push(dim.cast_signed());
        Ok(())
    }

    fn data(&self, raw: Option<&[u8]>) -> Result<(Data, Vec<usize>), TensorProblem> {
        let shape = dimensions(&self.shape)?;
        let count = element_count(&shape).ok_or_else(|| overflow(&shape))?;
        let datatype = Datatype::from_name(self.datatype)
            .ok_or_else(|| TensorProblem::UnknownDatatype(unknown_datatype(self.datatype)))?;
        // Some servers send an empty message of contents beside the raw ones.
        let contents = self.contents.filter(|contents| raw.is_none() || !contents.is_empty());
        let data = match (raw, contents) {
            (Some(_), Some(_)) => return Err(TensorProblem::TwoContents),
            (Some(raw), None) => Data::from_binary(datatype, count, raw)?,
            (None, contents) => typed(datatype, count, contents.unwrap_or_default())?,
        };
        Ok((data, shape))
    }
}

/// Gives each tensor its data: its own contents, or its entry among the raw ones.
fn assemble(tensors: Vec<RawTensor<'_>>, raw: &[&[u8]]) -> Result<Vec<Tensor>, ParseError> {
    if !raw.is_empty() && raw.len() != tensors.len() {
        return Err(ParseError::RawContents { expected: tensors.len(), found: raw.len() });
    }
    let assemble = |(index, tensor): (usize, RawTensor<'_>)| {
        let (data, shape) = tensor
            .data(raw.get(index).copied())
            .map_err(|problem| ParseError::Tensor { name: tensor.name.clone(), problem })?;
        Ok(Tensor { name: tensor.name, shape, data })
    };
    tensors.into_iter().enumerate().map(assemble).collect()
}

/// Reads `InferTensorContents`: the one list that belongs to the datatype.
fn typed(datatype: Datatype, count: usize, contents: &[u8]) -> Result<Data, TensorProblem> {
    let list = |number, name, form| List { datatype, count, contents, number, name, form };
    let ints = || list(2, "int_contents", Form::Varint);
    let uints = || list(4, "uint_contents", Form::Varint);
    // A varint of 32 bits is written with the sign of 64.
    let signed = u64::cast_signed;
    Ok(match datatype {
        Datatype::Bool => {
            Data::Bool(list(1, "bool_contents", Form::Varint).read(|bits| Some(bits != 0))?)
        }
        Datatype::Int8 => Data::Int8(ints().numbers(|bits| signed(bits).try_into().ok())?),
        Datatype::Int16 => Data::Int16(ints().numbers(|bits| signed(bits).try_into().ok())?),
        Datatype::Int32 => Data::Int32(ints().numbers(|bits| signed(bits).try_into().ok())?),
        Datatype::Int64 => {
            Data::Int64(list(3, "int64_contents", Form::Varint).numbers(|bits| Some(signed(bits)))?)
        }
        Datatype::Uint8 => Data::Uint8(uints().numbers(|bits| bits.try_into().ok())?),
        Datatype::Uint16 => Data::Uint16(uints().numbers(|bits| bits.try_into().ok())?),
        Datatype::Uint32 => Data::Uint32(uints().numbers(|bits| bits.try_into().ok())?),
        Datatype::Uint64 => Data::Uint64(list(5, "uint64_contents", Form::Varint).numbers(Some)?),
        Datatype::Fp32 => Data::Fp32(
            list(6, "fp32_contents", Form::Fixed32)
                .numbers(|bits| bits.try_into().ok().map(f32::from_bits))?,
        ),
        Datatype::Fp64 => Data::Fp64(
            list(7, "fp64_contents", Form::Fixed64).numbers(|bits| Some(f64::from_bits(bits)))?,
        ),
        Datatype::Bytes => Data::Bytes(list(8, "bytes_contents", Form::Bytes).read_bytes()?),
        // Triton's protocol has no list for halves.
        Datatype::Fp16 => return Err(TensorProblem::Contents("raw contents")),
    })
}

/// The wire form of a list's elements.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Varint,
    Fixed32,
    Fixed64,
    Bytes,
}

/// One list of `InferTensorContents`.
struct List<'a> {
    datatype: Datatype,
    count: usize,
    contents: &'a [u8],
    number: u32,
    name: &'static str,
    form: Form,
}

impl<'a> List<'a> {
    fn numbers<T>(&self, number: impl Fn(u64) -> Option<T>) -> Result<Elements<T>, TensorProblem> {
        Ok(self.read(number)?.into())
    }

    /// Reads numbers, packed or one by one; `number` takes their bits.
    fn read<T>(&self, number: impl Fn(u64) -> Option<T>) -> Result<Vec<T>, TensorProblem> {
        // Each element takes at least a byte.
        let mut numbers = Vec::with_capacity(self.count.min(self.contents.len()));
        let mut push = |bits: u64| {
            let index = numbers.len();
            self.room(index)?;
            let found = || format!("{bits}");
            let datatype = self.datatype;
            numbers.push(number(bits).ok_or_else(|| TensorProblem::Element {
                datatype,
                found: found(),
                index,
            })?);
            Ok::<_, TensorProblem>(())
        };
        self.for_each(|value| {
            match (self.form, value) {
                (Form::Varint, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        push(varint(&mut packed)?)?;
                    }
                }
                (Form::Fixed32, Value::Bytes(packed)) => {
                    let (chunks, []) = packed.as_chunks() else { return cut_short() };
                    chunks.iter().try_for_each(|c| push(u32::from_le_bytes(*c).into()))?;
                }
                (Form::Fixed64, Value::Bytes(packed)) => {
                    let (chunks, []) = packed.as_chunks() else { return cut_short() };
                    chunks.iter().try_for_each(|c| push(u64::from_le_bytes(*c)))?;
                }
                (Form::Varint, Value::Varint(bits)) => push(bits)?,
                (Form::Fixed32, Value::Fixed32(bytes)) => push(u32::from_le_bytes(bytes).into())?,
                (Form::Fixed64, Value::Fixed64(bytes)) => push(u64::from_le_bytes(bytes))?,
                _ => return Err(ProtobufError::Form.into()),
            }
            Ok(())
        })?;
        self.complete(numbers.len())?;
        Ok(numbers)
    }

    fn read_bytes(&self) -> Result<BytesData, TensorProblem> {
        let mut data = BytesData::default();
        self.for_each(|value| {
            self.room(data.len())?;
            let element = value.bytes()?;
            let index = data.len();
            let left = element.len();
            if data.push(element) {
                Ok(())
            } else {
                Err(TensorProblem::BytesElement { index, left })
            }
        })?;
        self.complete(data.len())?;
        Ok(data)
    }

    /// Calls `take` with what stands in this list; another list that is not empty is a mistake.
    fn for_each(
        &self,
        mut take: impl FnMut(Value<'a>) -> Result<(), TensorProblem>,
    ) -> Result<(), TensorProblem> {
        for field in Fields::of(self.contents) {
            let (number, value) = field?;
            if number == self.number {
                take(value)?;
            } else if value != Value::Bytes(&[]) {
                return Err(TensorProblem::Contents(self.name));
            }
        }
        Ok(())
    }

    fn room(&self, found: usize) -> Result<(), TensorProblem> {
        let expected = self.count;
        if found < expected {
            return Ok(());
        }
        Err(TensorProblem::Count { expected, found: Found::MoreThan(expected) })
    }

    fn complete(&self, found: usize) -> Result<(), TensorProblem> {
        let expected = self.count;
        if found == expected {
            return Ok(());
        }
        Err(TensorProblem::Count { expected, found: Found::Exactly(found) })
    }
}

fn cut_short() -> Result<(), TensorProblem> {
    Err(ProtobufError::Truncated.into())
}

#[cfg(test)]
#[path = "infer_tests.rs"]
mod tests;
