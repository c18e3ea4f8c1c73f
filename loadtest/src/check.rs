//! Is an answer right? A proxy that mixes up answers is fast, too.
//!
//! A load generator that only counts status codes calls a truncated or foreign answer a success.
//! The check is cheap enough to be made on every answer: the JSON must parse, have outputs, and
//! with the binary tensor extension the lengths must add up.

use crate::link::Answer;
use forebay_protocol::header::INFERENCE_HEADER_CONTENT_LENGTH;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Longest body that is checked; of a longer one only the status counts.
pub const MAX_CHECKED: usize = 256 * 1024;

/// What an answer must be to count as a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Any answer with a status of 200 to 299.
    Status,
    /// Also an inference response of the Open Inference Protocol.
    Inference,
}

impl Check {
    /// Longest body that the check wants to see.
    pub fn keep(self) -> usize {
        match self {
            Self::Status => 0,
            Self::Inference => MAX_CHECKED,
        }
    }

    /// Says what is wrong with a successful answer, in a few fixed words.
    ///
    /// # Errors
    /// The words, which serve as the class of the error.
    pub fn answer(self, answer: &Answer) -> Result<(), &'static str> {
        match (self, &answer.body) {
            (Self::Status, _) | (_, None) => Ok(()),
            (Self::Inference, Some(body)) => {
                let split = answer.headers.get(INFERENCE_HEADER_CONTENT_LENGTH);
                match split {
                    None => inference(body, 0),
                    Some(length) => {
                        let length: usize = length
                            .to_str()
                            .ok()
                            .and_then(|text| text.parse().ok())
                            .filter(|length| *length <= body.len())
                            .ok_or("wrong_answer_header_length")?;
                        inference(&body[..length], body.len() - length)
                    }
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Response<'a> {
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

fn inference(json: &[u8], binary: usize) -> Result<(), &'static str> {
    let response: Response = serde_json::from_slice(json).map_err(|error| {
        if error.is_data() { "wrong_answer_not_an_inference" } else { "wrong_answer_not_json" }
    })?;
    if response.outputs.is_empty() {
        return Err("wrong_answer_no_outputs");
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};

    fn verdict(header: Option<&'static str>, body: &'static str) -> Result<(), &'static str> {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(INFERENCE_HEADER_CONTENT_LENGTH, HeaderValue::from_static(value));
        }
        let body = Bytes::from_static(body.as_bytes());
        let length = body.len() as u64;
        Check::Inference.answer(&Answer { status: 200, headers, length, body: Some(body) })
    }

    #[test]
    fn right_answers_pass() {
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
