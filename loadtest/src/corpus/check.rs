//! Checks that an answer is right. A proxy that mixes up answers is fast, too.
//!
//! A load generator that only counts status codes calls a truncated or foreign answer a success.
//! The check is cheap enough to be made on every answer: the JSON must parse, have outputs, and
//! with the binary tensor extension the lengths must add up.

use crate::connection::Answer;
use bytes::Bytes;
use forebay_protocol::grpc;
use forebay_protocol::header::INFERENCE_HEADER_CONTENT_LENGTH;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Maximum length of a body that is checked, in bytes; of a longer one only the status counts.
pub const MAX_CHECKED: usize = 256 * 1024;

/// The conditions on which an answer counts as a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Any answer with a status of 200 to 299.
    Status,
    /// Also an inference response of the Open Inference Protocol.
    Inference,
    /// The same over gRPC.
    Grpc,
}

impl Check {
    /// Maximum length of a body that the check wants to see, in bytes.
    pub fn keep(self) -> usize {
        match self {
            Self::Status => 0,
            Self::Inference | Self::Grpc => MAX_CHECKED,
        }
    }

    /// Says what is wrong with a successful answer to the request `id`, in a few fixed words.
    ///
    /// # Errors
    /// The words, which serve as the class of the error.
    pub fn answer(self, answer: &Answer, id: &str) -> Result<(), &'static str> {
        match (self, &answer.body) {
            (Self::Status, _) | (_, None) => Ok(()),
            (Self::Grpc, Some(body)) => message(body, id),
            (Self::Inference, Some(body)) => {
                let split = answer.headers.get(INFERENCE_HEADER_CONTENT_LENGTH);
                match split {
                    None => inference(body, 0, id),
                    Some(length) => {
                        let length: usize = length
                            .to_str()
                            .ok()
                            .and_then(|text| text.parse().ok())
                            .filter(|length| *length <= body.len())
                            .ok_or("wrong_answer_header_length")?;
                        inference(&body[..length], body.len() - length, id)
                    }
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    outputs: Vec<Output<'a>>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow, rename = "name")]
    _name: std::borrow::Cow<'a, str>,
    #[serde(rename = "shape")]
    _shape: Vec<u64>,
    #[serde(default)]
    data: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Parameters {
    binary_data_size: Option<u64>,
}

fn inference(json: &[u8], binary: usize, id: &str) -> Result<(), &'static str> {
    let response: Response = serde_json::from_slice(json).map_err(|error| {
        if error.is_data() { "wrong_answer_not_an_inference" } else { "wrong_answer_not_json" }
    })?;
    if response.outputs.is_empty() {
        return Err("wrong_answer_no_outputs");
    }
    repeats(response.id.as_deref(), id)?;
    let mut expected = 0_u64;
    for output in &response.outputs {
        let size = output.parameters.as_ref().and_then(|parameters| parameters.binary_data_size);
        if size.is_none() && output.data.is_none() {
            return Err("wrong_answer_no_data");
        }
        expected = expected.saturating_add(size.unwrap_or(0));
    }
    if expected == binary as u64 { Ok(()) } else { Err("wrong_answer_binary_length") }
}

fn message(body: &Bytes, id: &str) -> Result<(), &'static str> {
    let message = grpc::only_message(body).ok().filter(|(is_compressed, _)| !is_compressed);
    let (_, message) = message.ok_or("wrong_answer_not_a_message")?;
    let response = grpc::infer::read_response(&message);
    let response = response.map_err(|_| "wrong_answer_not_an_inference")?;
    if response.outputs.is_empty() {
        return Err("wrong_answer_no_outputs");
    }
    repeats(response.id.as_deref(), id)
}

/// The protocol has an answer repeat its request's id. A server that leaves it out can't be told to
/// mix answers up; one that gives another's is.
fn repeats(found: Option<&str>, expected: &str) -> Result<(), &'static str> {
    match found {
        Some(found) if !found.is_empty() && !expected.is_empty() && found != expected => {
            Err("wrong_answer_of_another_request")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};

    fn verdict(header: Option<&'static str>, body: &'static str) -> Result<(), &'static str> {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(INFERENCE_HEADER_CONTENT_LENGTH, HeaderValue::from_static(value));
        }
        let body = Bytes::from_static(body.as_bytes());
        let length = body.len() as u64;
        let answer = Answer { status: 200, headers, length, body: Some(body) };
        Check::Inference.answer(&answer, "7")
    }

    const ANOTHER: &str = "wrong_answer_of_another_request";

    #[test]
    fn right_answers_pass() {
        for id in ["", r#""id":"7","#, r#""id":"","#] {
            let json: &'static str = Box::leak(
                format!(r#"{{{id}"outputs":[{{"name":"o","shape":[1],"data":[1]}}]}}"#).into(),
            );
            assert_eq!(verdict(None, json), Ok(()), "{id}");
        }
        let json = r#"{"model_name":"m","outputs":[{"name":"o","shape":[1],"datatype":"FP32","data":[[1.5]]}]}"#;
        assert_eq!(verdict(None, json), Ok(()));
        let binary = concat!(
            r#"{"outputs":[{"name":"o","shape":[1],"datatype":"FP32","#,
            r#""parameters":{"binary_data_size":4}}]}abcd"#
        );
        let header: &'static str = Box::leak((binary.len() - 4).to_string().into_boxed_str());
        assert_eq!(verdict(Some(header), binary), Ok(()));
    }

    #[test]
    fn each_wrong_answer_has_its_class() {
        let output =
            r#"{"outputs":[{"name":"o","shape":[1],"parameters":{"binary_data_size":4}}]}"#;
        for (header, body, class) in [
            (None, r#"{"id":"8","outputs":[{"name":"o","shape":[1],"data":[1]}]}"#, ANOTHER),
            (None, "", "wrong_answer_not_json"),
            (None, "{\"outputs\":[", "wrong_answer_not_json"),
            (None, "<html>", "wrong_answer_not_json"),
            (None, "{}", "wrong_answer_not_an_inference"),
            (None, "{\"outputs\":1}", "wrong_answer_not_an_inference"),
            (None, "{\"outputs\":[]}", "wrong_answer_no_outputs"),
            (None, r#"{"outputs":[{"name":"o","shape":[1]}]}"#, "wrong_answer_no_data"),
            (None, output, "wrong_answer_binary_length"),
            (Some("5000"), "{}", "wrong_answer_header_length"),
            (Some("-1"), "{}", "wrong_answer_header_length"),
        ] {
            assert_eq!(verdict(header, body), Err(class), "{header:?} {body}");
        }
    }
}
