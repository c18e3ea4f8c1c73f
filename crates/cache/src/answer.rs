//! An answer in the one form in which it is kept, and the forms in which clients get it.
//!
//! It is kept as a `ModelInferResponse` with raw contents and without the request's id: compact, in one piece
//! of memory, exact for every datatype, and for a gRPC client already what it gets.

use bytes::Bytes;
use forebay_protocol::grpc::{self, infer};
use forebay_protocol::oip::{Encoded, InferRequest, InferResponse, ParseError};
use prost::Message;
use std::sync::Arc;

/// Number of the field of a `ModelInferResponse` that holds the request's id.
const ID: u32 = 3;

/// The answer to a question.
/// Clones share its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer(Arc<[u8]>);

/// The form in which a client gets an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Form {
    /// The body of an HTTP answer: JSON, or JSON and binary tensors.
    Http(Encoded),
    /// The message of a gRPC answer in its frame.
    Grpc(Bytes),
}

/// Why an answer can't be given in the form that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchForm;

impl Answer {
    /// Of what a server has answered.
    pub fn new(response: InferResponse) -> Self {
        let response = InferResponse { id: None, ..response };
        Self(infer::write_response(&response).encode_to_vec().into())
    }

    /// Of another form than that of an inference, as its own writer has it.
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The bytes in which it is kept.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Number of its bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The message for the gRPC client that asked with `id`, in its frame.
    pub fn grpc(&self, id: Option<&str>) -> Bytes {
        let mut id_field = Vec::new();
        if let Some(id) = id {
            prost::encoding::string::encode(ID, &id.to_owned(), &mut id_field);
        }
        grpc::frame(self.0.len() + id_field.len(), |frame| {
            frame.extend_from_slice(&self.0);
            frame.extend_from_slice(&id_field);
        })
    }

    /// The body for the HTTP client that asked so.
    ///
    /// # Errors
    /// It has no such form, as infinite numbers have none in JSON.
    pub fn http(&self, request: &InferRequest) -> Result<Encoded, NoSuchForm> {
        let mut response = self.response().map_err(|_| NoSuchForm)?;
        response.id.clone_from(&request.id);
        let mut binary = Vec::with_capacity(response.outputs.len());
        for output in &response.outputs {
            if request.wants_binary(&output.name).map_err(|_| NoSuchForm)? {
                binary.push(output.name.clone());
            }
        }
        response.encode(|output| binary.contains(&output.name)).map_err(|_| NoSuchForm)
    }

    /// The answer as it was given, but for the id.
    ///
    /// # Errors
    /// The bytes are no answer; those of this process always are.
    pub fn response(&self) -> Result<InferResponse, ParseError> {
        infer::read_response(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use forebay_protocol::oip::{Data, Parameter, RequestedOutput, Tensor};

    fn response(value: f32) -> InferResponse {
        InferResponse {
            model_name: "m".to_owned(),
            model_version: Some("3".to_owned()),
            id: Some("of another client".to_owned()),
            parameters: [("k".to_owned(), Parameter::Bool(true))].into_iter().collect(),
            outputs: vec![
                Tensor::new("y", vec![1, 2], Data::Fp32(vec![0.1, value].into())).unwrap(),
                Tensor::new("z", vec![1], Data::Bytes(["text"].into_iter().collect())).unwrap(),
            ],
        }
    }

    fn asks(id: Option<&str>, binary: &[&str]) -> InferRequest {
        let parameters =
            || [("binary_data".to_owned(), Parameter::Bool(true))].into_iter().collect();
        let output =
            |name: &&str| RequestedOutput { name: (*name).to_owned(), parameters: parameters() };
        InferRequest {
            id: id.map(str::to_owned),
            outputs: binary.iter().map(output).collect(),
            ..InferRequest::default()
        }
    }

    #[test]
    fn each_client_gets_the_answer_in_its_form_and_with_its_id() {
        let given = response(-0.0);
        let answer = Answer::new(given.clone());
        for id in [None, Some("mine")] {
            let expected = InferResponse { id: id.map(str::to_owned), ..given.clone() };
            for binary in [&[][..], &["y"], &["y", "z"]] {
                let encoded = answer.http(&asks(id, binary)).unwrap();
                assert_eq!(encoded.json_len.is_some(), !binary.is_empty());
                let found = InferResponse::parse(&encoded.body, encoded.json_len).unwrap();
                assert_eq!(found, expected);
            }
            let framed = answer.grpc(id);
            let (compressed, message) = grpc::only_message(&framed).unwrap();
            assert!(!compressed);
            assert_eq!(infer::read_response(&message).unwrap(), expected);
        }
    }

    #[test]
    fn what_json_can_not_carry_has_no_such_form() {
        let answer = Answer::new(response(f32::INFINITY));
        assert_eq!(answer.http(&asks(None, &[])), Err(NoSuchForm));
        assert!(answer.http(&asks(None, &["y"])).is_ok());
    }
}
