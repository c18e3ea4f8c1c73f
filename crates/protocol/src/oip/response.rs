//! The answer to `POST …/infer`.

use super::message::{
    Bounded, Encoded, OnlyTensor, Pieces, RawTensor, assemble, join, only, split, write_tensors,
    write_value,
};
use super::{EncodeError, MAX_TENSORS, Parameters, ParseError, Tensor};

/// The answer to one inference.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InferResponse {
    /// The model that ran.
    pub model_name: String,
    /// The version of it that ran.
    pub model_version: Option<String>,
    /// The request's id, repeated.
    pub id: Option<String>,
    /// Parameters of the whole response.
    pub parameters: Parameters,
    /// Outputs, in the order in which they were asked for.
    pub outputs: Vec<Tensor>,
}

macro_rules! raw {
    ($(#[$attribute:meta])* $name:ident of $tensor:ident) => {
        #[derive(serde::Deserialize)]
        $(#[$attribute])*
        struct $name<'a> {
            #[serde(default)]
            model_name: String,
            model_version: Option<String>,
            id: Option<String>,
            #[serde(default)]
            parameters: Parameters,
            #[serde(borrow)]
            outputs: Bounded<$tensor<'a>, MAX_TENSORS>,
        }
    };
}

raw! { Raw of RawTensor }
raw! {
    #[serde(deny_unknown_fields)]
    Only of OnlyTensor
}

impl InferResponse {
    /// Reads a body whose first `json_len` bytes are JSON; all of it if `None`.
    ///
    /// # Errors
    /// The body does not follow the protocol, or a tensor's parts contradict each other.
    pub fn parse(body: &[u8], json_len: Option<usize>) -> Result<Self, ParseError> {
        let (json, binary) = split(body, json_len)?;
        let raw: Raw<'_> = serde_json::from_slice(json)?;
        Ok(Self {
            model_name: raw.model_name,
            model_version: raw.model_version,
            id: raw.id,
            parameters: raw.parameters,
            outputs: assemble(raw.outputs, binary, None)?,
        })
    }

    /// Like [`parse`](Self::parse), but only of a message that says nothing beyond what this type holds.
    ///
    /// # Errors
    /// As of [`parse`](Self::parse); or it has other keys, or tensors with parameters of their own.
    pub fn parse_only(body: &[u8], json_len: Option<usize>) -> Result<Self, ParseError> {
        let (json, binary) = split(body, json_len)?;
        let raw: Only<'_> = serde_json::from_slice(json)?;
        Ok(Self {
            model_name: raw.model_name,
            model_version: raw.model_version,
            id: raw.id,
            parameters: raw.parameters,
            outputs: assemble(only(raw.outputs)?, binary, None)?,
        })
    }

    /// Writes the response; `binary` says which outputs go as bytes.
    ///
    /// # Errors
    /// An output that is to go as JSON has no JSON form.
    pub fn encode(&self, binary: impl Fn(&Tensor) -> bool) -> Result<Encoded, EncodeError> {
        Ok(join(self.json(&binary)?, &self.outputs, binary))
    }

    /// The same in pieces, without a copy of large outputs that go as bytes.
    ///
    /// # Errors
    /// As of [`InferResponse::encode`].
    pub fn into_pieces(self, binary: impl Fn(&Tensor) -> bool) -> Result<Pieces, EncodeError> {
        Ok(Pieces::new(self.json(&binary)?, self.outputs, binary))
    }

    fn json(&self, binary: impl Fn(&Tensor) -> bool) -> Result<Vec<u8>, EncodeError> {
        let mut json = b"{\"model_name\":".to_vec();
        write_value(&mut json, &self.model_name);
        for (key, value) in [("model_version", &self.model_version), ("id", &self.id)] {
            if let Some(value) = value {
                json.extend_from_slice(format!(",\"{key}\":").as_bytes());
                write_value(&mut json, value);
            }
        }
        if !self.parameters.is_empty() {
            json.extend_from_slice(b",\"parameters\":");
            write_value(&mut json, &self.parameters);
        }
        write_tensors(&mut json, "outputs", &self.outputs, binary)?;
        json.push(b'}');
        Ok(json)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::Data;
    use super::*;

    #[test]
    fn a_response_is_read_back_in_both_forms() {
        let response = InferResponse {
            model_name: "m".into(),
            model_version: Some("1".into()),
            id: Some("a\"b".into()),
            outputs: vec![
                Tensor::new("y", vec![1, 2], Data::Fp32(vec![0.25, 1e-7].into())).unwrap(),
                Tensor::new("z", vec![1], Data::Bool(vec![true])).unwrap(),
            ],
            ..InferResponse::default()
        };
        for binary in [true, false] {
            let encoded = response.encode(|_| binary).unwrap();
            let parsed = InferResponse::parse(&encoded.body, encoded.json_len).unwrap();
            assert_eq!(parsed, response);
            let parsed = InferResponse::parse_only(&encoded.body, encoded.json_len).unwrap();
            assert_eq!(parsed, response);
        }
        let more = br#"{"model_name":"m","outputs":[],"trace":"x"}"#;
        assert!(InferResponse::parse(more, None).is_ok());
        assert!(InferResponse::parse_only(more, None).is_err());
    }

    #[test]
    fn pieces_are_the_same_body() {
        let large = |first: f32| Data::Fp32((0..5000_u16).map(|i| first + f32::from(i)).collect());
        let outputs = vec![
            Tensor::new("a", vec![1], Data::Int64(vec![7].into())).unwrap(),
            Tensor::new("b", vec![5000], large(0.5)).unwrap(),
            Tensor::new("c", vec![50, 100], large(1.5)).unwrap(),
            Tensor::new("d", vec![2], Data::Bytes(["x", "yz"].into_iter().collect())).unwrap(),
            Tensor::new("e", vec![2], Data::Bool(vec![true, false])).unwrap(),
        ];
        let response = InferResponse { outputs, ..InferResponse::default() };
        for names in ["", "b", "c", "abcde", "ae", "bcd"] {
            let binary = |tensor: &Tensor| names.contains(&tensor.name);
            let whole = response.encode(binary).unwrap();
            let pieces = response.clone().into_pieces(binary).unwrap();
            assert_eq!(pieces.body.concat(), whole.body, "{names}");
            assert_eq!(pieces.json_len, whole.json_len);
            assert_eq!(pieces.content_type(), whole.content_type());
            let large = names.chars().filter(|name| "bc".contains(*name)).count();
            assert!(pieces.body.len() > large, "{names}: {}", pieces.body.len());
        }
    }

    #[test]
    fn what_json_cannot_carry_is_named() {
        let outputs =
            vec![Tensor::new("y", vec![1], Data::Fp32(vec![f32::INFINITY].into())).unwrap()];
        let response = InferResponse { outputs, ..InferResponse::default() };
        let error = response.encode(|_| false).unwrap_err();
        assert!(error.to_string().contains("binary_data"), "{error}");
        assert!(response.encode(|_| true).is_ok());
    }
}
