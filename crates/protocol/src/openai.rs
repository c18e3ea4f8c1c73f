//! OpenAI's embeddings API, as far as it is supported.
//!
//! `input` may be a text, a list of texts, a list of tokens or a list of those. A generic reader would take
//! thirty bytes for each two-byte token before the tokens could be counted; here the lists are bounded while
//! they are read, and a token takes four bytes.
//!
//! Source: <https://platform.openai.com/docs/api-reference/embeddings>.

use crate::Reason;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most inputs of one request, as OpenAI has it.
pub const MAX_INPUTS: usize = 2048;
/// Most tokens of one input.
pub const MAX_TOKENS: usize = 1 << 16;

/// Body of `POST /v1/embeddings`. Other keys (`user`, …) are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EmbeddingsRequest {
    /// Name of the model.
    pub model: String,
    /// The inputs to embed.
    pub input: Inputs,
    /// The requested encoding of numbers.
    #[serde(default)]
    pub encoding_format: Option<EncodingFormat>,
    /// Numbers that are wanted of each embedding.
    #[serde(default)]
    pub dimensions: Option<usize>,
}

/// The encoding of an embedding's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// An array of numbers.
    #[default]
    Float,
    /// Little-endian `f32`s in Base64.
    Base64,
}

/// At most [`MAX_INPUTS`] inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs(pub Vec<Input>);

/// One input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Text.
    Text(String),
    /// Tokens of the model's own tokenizer; at most [`MAX_TOKENS`].
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Inputs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of texts, a list of tokens or a list of such lists")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Inputs, E> {
                Ok(Inputs(vec![Input::Text(text.to_owned())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Inputs, A::Error> {
                let first = match seq.next_element()? {
                    None => return Ok(Inputs(Vec::new())),
                    Some(Element::Token(token)) => {
                        let rest = tokens(token, seq)?;
                        return Ok(Inputs(vec![Input::Tokens(rest)]));
                    }
                    Some(Element::Input(input)) => input,
                };
                let mut inputs = vec![first];
                while let Some(element) = seq.next_element()? {
                    let Element::Input(input) = element else {
                        return Err(A::Error::custom("expected one kind of input, found several"));
                    };
                    bounded::<_, A::Error>(&inputs, MAX_INPUTS, "inputs")?;
                    inputs.push(input);
                }
                Ok(Inputs(inputs))
            }
        }
        deserializer.deserialize_any(Whole)
    }
}

/// An element of the list: an input, or one token of the only input.
enum Element {
    Input(Input),
    Token(u32),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Element;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token or a list of tokens")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Input(Input::Text(text.to_owned())))
            }
            fn visit_u64<E: Error>(self, token: u64) -> Result<Element, E> {
                let token = u32::try_from(token);
                token.map(Element::Token).map_err(|_| E::custom("expected a token below 2^32"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                let list = match seq.next_element()? {
                    Some(first) => tokens(first, seq)?,
                    None => Vec::new(),
                };
                Ok(Element::Input(Input::Tokens(list)))
            }
        }
        deserializer.deserialize_any(One)
    }
}

fn tokens<'de, A: SeqAccess<'de>>(first: u32, mut rest: A) -> Result<Vec<u32>, A::Error> {
    let mut tokens = vec![first];
    while let Some(token) = rest.next_element()? {
        bounded::<_, A::Error>(&tokens, MAX_TOKENS, "tokens")?;
        tokens.push(token);
    }
    Ok(tokens)
}

fn bounded<T, E: Error>(list: &[T], most: usize, what: &str) -> Result<(), E> {
    if list.len() < most {
        return Ok(());
    }
    Err(E::custom(format_args!("expected at most {most} {what}, found more")))
}

/// Answer to `POST /v1/embeddings`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: String,
    /// One entry an input, in their order.
    pub data: Vec<Embedding>,
    /// Name of the model.
    pub model: String,
    /// The tokens that it took.
    pub usage: Usage,
}

/// The embedding of one input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// Index of the input.
    pub index: usize,
    /// Its numbers.
    pub embedding: Numbers,
}

/// Numbers as the client wants them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Numbers {
    /// As JSON.
    Float(Vec<f32>),
    /// In Base64.
    Base64(String),
}

/// Tokens that were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Of all inputs.
    pub prompt_tokens: usize,
    /// The same: nothing is generated.
    pub total_tokens: usize,
}

/// Answer to `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// All models.
    pub data: Vec<ModelObject>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelObject {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Creation time in seconds since 1970; 0 if unknown.
    pub created: u64,
    /// The owner.
    pub owned_by: String,
}

/// Body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The refusal.
    pub error: ErrorObject,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// The expected and the found value.
    pub message: String,
    /// `invalid_request_error` if the client has to act, else `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The key that is wrong, where that is known.
    pub param: Option<String>,
    /// Our own stable code.
    pub code: Option<String>,
}

impl ErrorBody {
    /// A refusal for this reason.
    pub fn new(reason: Reason, message: String) -> Self {
        let is_clients = reason.status().is_client_error();
        let kind = if is_clients { "invalid_request_error" } else { "server_error" };
        let code = Some(reason.code().to_owned());
        Self { error: ErrorObject { message, kind: kind.to_owned(), param: None, code } }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn inputs(json: &str) -> Result<Vec<Input>, String> {
        let body = format!(r#"{{"model":"m","input":{json},"user":"u"}}"#);
        serde_json::from_str::<EmbeddingsRequest>(&body)
            .map(|request| request.input.0)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_of_input_is_read() {
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(inputs(r#""a\"b""#).unwrap(), [text("a\"b")]);
        assert_eq!(inputs(r#"["a", ""]"#).unwrap(), [text("a"), text("")]);
        assert_eq!(inputs("[1, 2]").unwrap(), [Input::Tokens(vec![1, 2])]);
        let lists = [Input::Tokens(vec![1]), Input::Tokens(vec![])];
        assert_eq!(inputs("[[1], []]").unwrap(), lists);
        assert_eq!(inputs("[]").unwrap(), []);
    }

    #[test]
    fn other_inputs_and_too_many_are_refused_in_words() {
        for (json, part) in [
            ("5", "a text, a list of texts"),
            ("null", "a text, a list of texts"),
            ("[1, \"a\"]", "expected u32"),
            ("[\"a\", 1]", "one kind of input"),
            ("[-1]", "a text, a token or a list of tokens"),
            ("[4294967296]", "below 2^32"),
            ("[[[1]]]", "expected u32"),
        ] {
            let error = inputs(json).unwrap_err();
            assert!(error.contains(part), "{json}: {error}");
        }
        let list = |entry: &str, count: usize| format!("[{}]", vec![entry; count].join(","));
        assert_eq!(inputs(&list("\"a\"", MAX_INPUTS)).unwrap().len(), MAX_INPUTS);
        for (json, part) in [
            (list("\"a\"", MAX_INPUTS + 1), "at most 2048 inputs"),
            (list("1", MAX_TOKENS + 1), "at most 65536 tokens"),
            (format!("[{}]", list("1", MAX_TOKENS + 1)), "at most 65536 tokens"),
        ] {
            assert!(inputs(&json).unwrap_err().contains(part), "{part}");
        }
    }
}
