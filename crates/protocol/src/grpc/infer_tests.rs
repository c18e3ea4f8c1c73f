//! Reads the messages that prost writes, and refuses malformed ones.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::grpc::text_field;
use prost::Message;

fn one_of_each() -> Vec<Tensor> {
    let tensor = |name: &str, data| Tensor::new(name, vec![2], data).unwrap();
    vec![
        tensor("bool", Data::Bool(vec![true, false])),
        tensor("u8", Data::Uint8(vec![0, 255].into())),
        tensor("u16", Data::Uint16(vec![1, 65535].into())),
        tensor("u32", Data::Uint32(vec![1, u32::MAX].into())),
        tensor("u64", Data::Uint64(vec![1, u64::MAX].into())),
        tensor("i8", Data::Int8(vec![-128, 127].into())),
        tensor("i16", Data::Int16(vec![-1, 300].into())),
        tensor("i32", Data::Int32(vec![i32::MIN, 7].into())),
        tensor("i64", Data::Int64(vec![i64::MIN, 7].into())),
        tensor("f32", Data::Fp32(vec![0.1, -1e30].into())),
        tensor("f64", Data::Fp64(vec![0.1, -1e300].into())),
        tensor("bytes", Data::Bytes(["", "ab\0c"].into_iter().collect())),
    ]
}

fn sample() -> InferRequest {
    let parameters = [
        ("flag".to_owned(), Parameter::Bool(true)),
        ("number".to_owned(), Parameter::Int(-3)),
        ("ratio".to_owned(), Parameter::Float(0.5)),
        ("text".to_owned(), Parameter::String("x".into())),
    ];
    let mut inputs = one_of_each();
    inputs.push(Tensor::new("f16", vec![1, 2], Data::Fp16(vec![0x3c00, 0xfbff].into())).unwrap());
    inputs.push(Tensor::new("none", vec![0, 3], Data::Fp32(vec![].into())).unwrap());
    InferRequest {
        id: Some("42".into()),
        parameters: parameters.into_iter().collect(),
        inputs,
        outputs: vec![RequestedOutput {
            name: "y".into(),
            parameters: [("classification".to_owned(), Parameter::Int(3))].into_iter().collect(),
        }],
    }
}

/// The same data as typed contents, through prost's own encoder.
fn contents(data: &Data) -> pb::InferTensorContents {
    let mut contents = pb::InferTensorContents::default();
    match data.clone() {
        Data::Bool(data) => contents.bool_contents = data,
        Data::Uint8(data) => {
            contents.uint_contents = data.iter().copied().map(Into::into).collect();
        }
        Data::Uint16(data) => {
            contents.uint_contents = data.iter().copied().map(Into::into).collect();
        }
        Data::Uint32(data) => contents.uint_contents = data.into_vec(),
        Data::Uint64(data) => contents.uint64_contents = data.into_vec(),
        Data::Int8(data) => contents.int_contents = data.iter().copied().map(Into::into).collect(),
        Data::Int16(data) => contents.int_contents = data.iter().copied().map(Into::into).collect(),
        Data::Int32(data) => contents.int_contents = data.into_vec(),
        Data::Int64(data) => contents.int64_contents = data.into_vec(),
        Data::Fp32(data) => contents.fp32_contents = data.into_vec(),
        Data::Fp64(data) => contents.fp64_contents = data.into_vec(),
        Data::Bytes(data) => contents.bytes_contents = data.iter().map(<[u8]>::to_vec).collect(),
        Data::Fp16(_) => {}
    }
    contents
}

#[test]
fn a_request_with_raw_contents_is_read_back() {
    let bytes = write_request("m", Some("3"), &sample()).encode_to_vec();
    assert_eq!(read_request(&bytes).unwrap(), sample());
    assert_eq!((text_field(&bytes, 1), text_field(&bytes, 2)), (Ok(Some("m")), Ok(Some("3"))));
}

#[test]
fn a_response_is_read_back() {
    let response = InferResponse {
        model_name: "m".into(),
        model_version: Some("1".into()),
        id: Some("a".into()),
        outputs: one_of_each(),
        ..InferResponse::default()
    };
    assert_eq!(read_response(&write_response(&response).encode_to_vec()).unwrap(), response);
}

#[test]
fn typed_contents_of_every_datatype_are_read() {
    for tensor in one_of_each() {
        let request = InferRequest { inputs: vec![tensor.clone()], ..InferRequest::default() };
        let mut message = write_request("m", None, &request);
        message.raw_input_contents.clear();
        message.inputs[0].contents = Some(contents(&tensor.data));
        let read = read_request(&message.encode_to_vec()).unwrap();
        assert_eq!(read.inputs, [tensor]);
    }
}

#[test]
fn an_empty_message_of_contents_beside_raw_ones_is_passed_over() {
    // As MLServer answers.
    let mut message = write_request("m", None, &sample());
    message.inputs.iter_mut().for_each(|input| input.contents = Some(Default::default()));
    assert_eq!(read_request(&message.encode_to_vec()).unwrap(), sample());
}

#[test]
fn lists_that_are_not_packed_are_read_too() {
    use crate::grpc::protobuf::{put_bytes, put_varint};
    let (mut contents, mut tensor, mut message) = (Vec::new(), Vec::new(), Vec::new());
    for number in [7_u8, 8] {
        contents.extend([2 << 3, number]);
    }
    put_bytes(&mut tensor, 1, b"x");
    put_bytes(&mut tensor, 2, b"INT32");
    put_varint(&mut tensor, 3 << 3);
    put_varint(&mut tensor, 2);
    put_bytes(&mut tensor, 5, &contents);
    put_bytes(&mut message, 5, &tensor);
    let read = read_request(&message).unwrap();
    assert_eq!(read.inputs, [Tensor::new("x", vec![2], Data::Int32(vec![7, 8].into())).unwrap()]);
}

/// A request with one FP32 tensor of two elements, changed by `change`.
fn changed(change: impl FnOnce(&mut pb::ModelInferRequest)) -> String {
    let inputs = vec![Tensor::new("x", vec![2], Data::Fp32(vec![1.0, 2.0].into())).unwrap()];
    let mut message = write_request("m", None, &InferRequest { inputs, ..InferRequest::default() });
    change(&mut message);
    match read_request(&message.encode_to_vec()) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_message_that_contradicts_itself_is_refused_with_the_place() {
    type Change = fn(&mut pb::ModelInferRequest);
    let typed: Change = |m| {
        m.raw_input_contents.clear();
        m.inputs[0].contents =
            Some(pb::InferTensorContents { fp32_contents: vec![1.0], ..Default::default() });
    };
    let many_parameters: Change = |m| {
        let choice = pb::infer_parameter::ParameterChoice::BoolParam(true);
        let parameter = || pb::InferParameter { parameter_choice: Some(choice.clone()) };
        m.parameters = (0..65).map(|n| (n.to_string(), parameter())).collect();
    };
    let cases: [(Change, &str); 12] = [
        (|m| m.raw_input_contents[0] = Bytes::from_static(&[0; 7]), "expected 8 bytes of binary"),
        (
            |m| m.raw_input_contents.push(Bytes::new()),
            "expected raw contents for 1 tensors, found 2",
        ),
        (|m| m.raw_input_contents.clear(), "expected 2 elements for its shape, found 0"),
        (
            |m| m.inputs[0].contents = Some(contents(&Data::Bool(vec![true, false]))),
            "typed or raw contents, found both",
        ),
        (typed, "expected 2 elements for its shape, found 1"),
        (|m| m.inputs[0].datatype = "FP128".into(), "found \"FP128\""),
        (|m| m.inputs[0].shape = vec![-1], "found -1"),
        (|m| m.inputs[0].shape = vec![1; 17], "at most 16 dimensions"),
        (|m| m.inputs[0].shape = vec![1 << 40, 1 << 40], "address space"),
        (|m| m.inputs = vec![Default::default(); 257], "at most 256 tensors"),
        (|m| m.raw_input_contents = vec![Bytes::new(); 257], "at most 256 raw contents"),
        (many_parameters, "at most 64 parameters"),
    ];
    for (change, part) in cases {
        let error = changed(change);
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn contents_in_the_wrong_list_or_out_of_range_are_refused() {
    for (datatype, contents, part) in [
        (
            "INT8",
            pb::InferTensorContents { int_contents: vec![1, 128], ..Default::default() },
            "128",
        ),
        (
            "UINT8",
            pb::InferTensorContents { uint_contents: vec![1, 256], ..Default::default() },
            "256",
        ),
        (
            "INT8",
            pb::InferTensorContents { int64_contents: vec![1, 2], ..Default::default() },
            "int_contents",
        ),
        (
            "FP16",
            pb::InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() },
            "raw contents",
        ),
        (
            "INT32",
            pb::InferTensorContents { int_contents: vec![1; 3], ..Default::default() },
            "found more than 2",
        ),
    ] {
        let error = changed(|m| {
            m.raw_input_contents.clear();
            m.inputs[0].datatype = datatype.to_owned();
            m.inputs[0].contents = Some(contents);
        });
        assert!(error.contains(part), "{datatype}: {error}");
    }
}

#[test]
fn bytes_from_anywhere_never_panic_and_never_take_more_memory_than_they_are() {
    let whole = write_request("m", None, &sample()).encode_to_vec();
    for end in 0..whole.len() {
        drop(read_request(&whole[..end]));
        drop(read_response(&whole[..end]));
    }
    // xorshift64 of a fixed seed: the same bytes in every run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..20_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut bytes = whole.clone();
        let [at, value, ..] = state.to_le_bytes();
        let index = (usize::from(at) * 37 + (state >> 32) as usize) % bytes.len();
        bytes[index] = value;
        drop(read_request(&bytes));
        drop(read_response(&bytes));
    }
}
