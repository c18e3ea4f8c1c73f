//! The body of `POST …/infer`.

use super::message::{
    Bounded, Encoded, OnlyTensor, RawTensor, assemble, join, only, split, write_tensors,
    write_value,
};
use super::{EncodeError, MAX_TENSORS, Parameters, ParseError, Tensor};
use bytes::Bytes;

/// A request for one inference.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InferRequest {
    /// The client's name for it; the response repeats it.
    pub id: Option<String>,
    /// Parameters of the whole request: `binary_data_output`, `timeout`, `priority`, …
    pub parameters: Parameters,
    /// Inputs in the client's order.
    pub inputs: Vec<Tensor>,
    /// Outputs that are asked for; empty: all.
    pub outputs: Vec<RequestedOutput>,
}

/// One output that is asked for.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct RequestedOutput {
    /// Name of the output.
    pub name: String,
    /// `binary_data`, `classification`, …
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

macro_rules! raw {
    ($(#[$attribute:meta])* $name:ident of $tensor:ident, $output:ident) => {
        #[derive(serde::Deserialize)]
        $(#[$attribute])*
        struct $name<'a> {
            id: Option<String>,
            #[serde(default)]
            parameters: Parameters,
            #[serde(borrow)]
            inputs: Bounded<$tensor<'a>, MAX_TENSORS>,
            #[serde(default)]
            outputs: Option<Bounded<$output, MAX_TENSORS>>,
        }
    };
}

/// A [`RequestedOutput`] that says nothing else.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OnlyOutput {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

impl From<OnlyOutput> for RequestedOutput {
    fn from(OnlyOutput { name, parameters }: OnlyOutput) -> Self {
        Self { name, parameters }
    }
}

raw! { Raw of RawTensor, RequestedOutput }
raw! {
    #[serde(deny_unknown_fields)]
    Only of OnlyTensor, OnlyOutput
}

impl InferRequest {
    /// Reads a body whose first `json_len` bytes are JSON; all of it if `None`.
    ///
    /// The raw form (`json_len` of 0) has no JSON to read: build it with [`Tensor::from_binary`].
    ///
    /// # Errors
    /// The body does not follow the protocol, or a tensor's parts contradict each other.
    pub fn parse(body: &[u8], json_len: Option<usize>) -> Result<Self, ParseError> {
        Self::read(body, json_len, None)
    }

    /// Like [`parse`](Self::parse), but large inputs stay in the body if they lie aligned there.
    ///
    /// # Errors
    /// As of [`parse`](Self::parse).
    pub fn parse_shared(body: &Bytes, json_len: Option<usize>) -> Result<Self, ParseError> {
        Self::read(body, json_len, Some(body))
    }

    fn read(
        body: &[u8],
        json_len: Option<usize>,
        shared: Option<&Bytes>,
    ) -> Result<Self, ParseError> {
        let (json, binary) = split(body, json_len)?;
        let raw: Raw<'_> = serde_json::from_slice(json)?;
        Ok(Self {
            id: raw.id,
            parameters: raw.parameters,
            inputs: assemble(raw.inputs, binary, shared)?,
            outputs: raw.outputs.unwrap_or_default().0,
        })
    }

    /// Like [`parse`](Self::parse), but only of a message that says nothing beyond what this type holds: two
    /// such requests that are equal ask the same of any server.
    ///
    /// # Errors
    /// As of [`parse`](Self::parse); or it has other keys, or tensors with parameters of their own.
    pub fn parse_only(body: &[u8], json_len: Option<usize>) -> Result<Self, ParseError> {
        let (json, binary) = split(body, json_len)?;
        let raw: Only<'_> = serde_json::from_slice(json)?;
        Ok(Self {
            id: raw.id,
            parameters: raw.parameters,
            inputs: assemble(only(raw.inputs)?, binary, None)?,
            outputs: raw.outputs.unwrap_or_default().0.into_iter().map(OnlyOutput::into).collect(),
        })
    }

    /// Writes the request; `binary` says which inputs go as bytes.
    ///
    /// # Errors
    /// An input that is to go as JSON has no JSON form.
    pub fn encode(&self, binary: impl Fn(&Tensor) -> bool) -> Result<Encoded, EncodeError> {
        let mut json = b"{\"id\":".to_vec();
        write_value(&mut json, self.id.as_deref().unwrap_or_default());
        if !self.parameters.is_empty() {
            json.extend_from_slice(b",\"parameters\":");
            write_value(&mut json, &self.parameters);
        }
        write_tensors(&mut json, "inputs", &self.inputs, &binary)?;
        if !self.outputs.is_empty() {
            json.extend_from_slice(b",\"outputs\":");
            write_value(&mut json, &self.outputs);
        }
        json.push(b'}');
        Ok(join(json, &self.inputs, binary))
    }

    /// Whether the client wants this output as bytes. The output's own parameter overrules the request's,
    /// and JSON is the protocol's default.
    ///
    /// # Errors
    /// One of the parameters is neither true nor false.
    pub fn wants_binary(&self, output: &str) -> Result<bool, ParseError> {
        let own = self.outputs.iter().find(|o| o.name == output);
        let own = own.map(|o| o.parameters.bool("binary_data")).transpose()?.flatten();
        let all = self.parameters.bool("binary_data_output")?;
        Ok(own.or(all).unwrap_or(false))
    }
}

impl InferRequest {
    /// Number of the largest elements that the client wants of this output, instead of all.
    ///
    /// # Errors
    /// The parameter `classification` is not a count.
    pub fn classes(&self, output: &str) -> Result<Option<usize>, ParseError> {
        let own = self.outputs.iter().find(|o| o.name == output);
        let count = own.map(|o| o.parameters.count("classification")).transpose()?.flatten();
        let count = count.filter(|&count| count > 0);
        Ok(count.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::{Data, Parameter};
    use super::*;

    fn sample() -> InferRequest {
        let tensor = |name: &str, shape, data| Tensor::new(name, shape, data).unwrap();
        InferRequest {
            id: Some("42".into()),
            parameters: [("binary_data_output".to_owned(), Parameter::Bool(true))]
                .into_iter()
                .collect(),
            inputs: vec![
                tensor("a", vec![2, 2], Data::Fp32(vec![1.0, 2.5, -3.0, 0.1].into())),
                tensor("b", vec![1], Data::Bytes(["text"].into_iter().collect())),
                tensor("c", vec![0], Data::Int64(vec![].into())),
            ],
            outputs: vec![RequestedOutput { name: "y".into(), ..RequestedOutput::default() }],
        }
    }

    #[test]
    fn a_request_is_read_back_whatever_is_binary_in_it() {
        let request = sample();
        for binary in [&[][..], &["a"], &["b"], &["a", "b", "c"]] {
            let encoded = request.encode(|t| binary.contains(&t.name.as_str())).unwrap();
            assert_eq!(encoded.json_len.is_some(), !binary.is_empty());
            let parsed = InferRequest::parse(&encoded.body, encoded.json_len).unwrap();
            assert_eq!(parsed, request, "{binary:?}");
        }
    }

    #[test]
    fn keys_may_come_in_any_order_and_unknown_ones_are_passed_over() {
        let json = br#"{"extra": {"deep": [[]]}, "inputs": [{"data": [1, 2], "more": null,
            "datatype": "INT32", "shape": [2], "name": "x"}]}"#;
        let request = InferRequest::parse(json, None).unwrap();
        assert_eq!(
            request.inputs,
            [Tensor::new("x", vec![2], Data::Int32(vec![1, 2].into())).unwrap()]
        );
    }

    #[test]
    fn what_a_request_says_beyond_its_type_is_noticed_where_it_matters() {
        let tensor = |more: &str| {
            format!(r#"{{"name":"x","datatype":"INT32","shape":[1],"data":[1]{more}}}"#)
        };
        let body = |tensor: &str, more: &str| format!(r#"{{"inputs":[{tensor}]{more}}}"#);
        for (json, is_only) in [
            (body(&tensor(""), r#","id":"1","parameters":{"a":1},"outputs":[{"name":"y"}]"#), true),
            (body(&tensor(r#","parameters":{}"#), ""), true),
            (body(&tensor(""), r#","extra":1"#), false),
            (body(&tensor(r#","extra":1"#), ""), false),
            (body(&tensor(r#","parameters":{"content_type":"str"}"#), ""), false),
            (body(&tensor(""), r#","outputs":[{"name":"y","extra":1}]"#), false),
        ] {
            assert!(InferRequest::parse(json.as_bytes(), None).is_ok(), "{json}");
            assert_eq!(InferRequest::parse_only(json.as_bytes(), None).is_ok(), is_only, "{json}");
        }
        let encoded = sample().encode(|_| true).unwrap();
        let parsed = InferRequest::parse_only(&encoded.body, encoded.json_len).unwrap();
        assert_eq!(parsed, sample());
    }

    #[test]
    fn an_outputs_own_wish_for_binary_data_overrules_the_requests() {
        let mut request = sample();
        assert!(request.wants_binary("y").unwrap() && request.wants_binary("z").unwrap());
        request.outputs[0].parameters.insert("binary_data", Parameter::Bool(false));
        assert!(!request.wants_binary("y").unwrap());
        request.outputs[0].parameters.insert("binary_data", Parameter::Int(1));
        assert!(request.wants_binary("y").is_err());
    }

    #[test]
    fn a_message_that_contradicts_itself_is_refused_with_the_place() {
        let tensor =
            |rest: &str| format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32",{rest}}}]}}"#);
        for (json, part) in [
            ("{".to_owned(), "invalid JSON"),
            ("{}".to_owned(), "inputs"),
            (tensor(r#""shape":[1]"#), "found neither"),
            (tensor(r#""shape":[1],"data":[1],"parameters":{"binary_data_size":4}"#), "found both"),
            (tensor(r#""shape":[-1],"data":[1]"#), "found -1"),
            (tensor(r#""shape":[1099511627776,1099511627776],"data":[1]"#), "address space"),
            (
                tensor(r#""shape":[1099511627776],"data":[1,2,3]"#),
                "expected 1099511627776 elements",
            ),
            (tensor(r#""shape":[2],"data":[1]"#), "expected 2 elements for its shape, found 1"),
            (tensor(r#""shape":[1],"data":[1,2]"#), "expected 1 elements"),
            (tensor(r#""shape":[1],"parameters":{"binary_data_size":-4}"#), "found -4"),
            (tensor(r#""shape":[1],"parameters":{"binary_data_size":"4"}"#), "a string"),
            (tensor(r#""shape":[1],"parameters":{"binary_data_size":1e30}"#), "binary_data_size"),
            (tensor(r#""shape":[1],"parameters":{"binary_data_size":4}"#), "found 0"),
            (tensor(&format!(r#""shape":[{}1],"data":[1]"#, "1,".repeat(16))), "at most 16"),
        ] {
            let error = InferRequest::parse(json.as_bytes(), None).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn binary_lengths_that_lie_are_refused() {
        let head = |size: i64| {
            format!(
                r#"{{"inputs":[{{"name":"x","shape":[2],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}]}}"#
            )
        };
        let parse = |size: i64, bytes: usize| {
            let head = head(size);
            let body = [head.as_bytes(), &vec![0; bytes]].concat();
            InferRequest::parse(&body, Some(head.len()))
        };
        assert!(parse(8, 8).is_ok());
        for (size, bytes) in [(8, 7), (8, 9), (4, 4), (12, 12), (-8, 8), (i64::MAX, 8), (0, 8)] {
            let error = parse(size, bytes).unwrap_err();
            assert_eq!(error.reason(), crate::Reason::InvalidInput, "{size} {bytes}");
        }
        assert!(InferRequest::parse(b"{}", Some(3)).is_err(), "more JSON than body");
    }
}
