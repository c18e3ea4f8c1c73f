//! A question: everything that an inference's answer depends on, as one number.
//!
//! Each part is written with its length before it, so that no two questions have the same bytes, and all of
//! it is hashed with a key of this process, so that two questions with the same number can't be prepared.
//! Parameters that change only the form of the answer, or its time, are left out: the JSON and the binary form of
//! one request ask the same.

use crate::contents::Content;
use crate::embeddings::EmbeddingsRequest;
use forebay_protocol::oip::{InferRequest, Parameter, Parameters};
use forebay_protocol::openai::Input;
use std::fmt;

/// Parameters of a request that change the time or the form of its answer, and nothing else.
const WITHOUT_EFFECT: [&str; 4] = ["binary_data_output", "priority", "timeout", "binary_data"];

/// Parameters that tie a request to others before it: its answer depends on more than it says.
const STATEFUL: [&str; 3] = ["sequence_id", "sequence_start", "sequence_end"];

/// The place at which a question is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Name of the route.
    pub route: &'a str,
    /// Name of the variant.
    pub variant: &'a str,
    /// The model that is asked there.
    pub model: &'a str,
    /// Its version, if one is named.
    pub version: Option<&'a str>,
    /// The operator's word for the content of models that do not state it themselves.
    pub epoch: &'a str,
    /// The client, if answers are not shared among clients.
    pub client: Option<&'a [u8]>,
    /// The headers that the answer depends on, by name, and their values; `None` for a missing one.
    pub vary: &'a [(&'a str, Option<Vec<u8>>)],
}

/// Why a request is no question that can be answered from a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unkeyed {
    /// It is part of a sequence, so that its answer depends on requests before it.
    Stateful,
}

impl Unkeyed {
    /// The word in metrics and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stateful => "stateful",
        }
    }
}

/// A question, as the hash of all its parts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question([u8; 32]);

impl Question {
    /// A number that spreads evenly.
    pub(crate) fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The question of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The question to a certain content of the model.
    pub fn to(self, content: Content) -> (Self, Content) {
        (self, content)
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Question({:016x})", self.number())
    }
}

/// A request in its very bytes, as the hash of them and of the place at which it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen([u8; 32]);

impl Seen {
    /// The request of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Makes questions.
pub struct Hasher {
    key: [u8; 32],
    /// For requests in their bytes, none of which is a question.
    seen_key: [u8; 32],
    /// For embeddings, so that none of their questions is one of an inference.
    embeddings_key: [u8; 32],
}

impl Hasher {
    /// With a key that should be secret: with it one could look for two questions that have one hash.
    pub fn new(key: [u8; 32]) -> Self {
        let embeddings_key = *blake3::keyed_hash(&key, b"embeddings").as_bytes();
        let seen_key = *blake3::keyed_hash(&key, b"bytes").as_bytes();
        Self { key, seen_key, embeddings_key }
    }

    /// The question that `request` asks.
    ///
    /// # Errors
    /// Its answer depends on more than is in it.
    pub fn question(&self, asked: &Asked<'_>, request: &InferRequest) -> Result<Question, Unkeyed> {
        if STATEFUL.iter().any(|name| request.parameters.get(name).is_some()) {
            return Err(Unkeyed::Stateful);
        }
        let mut writer = Writer(blake3::Hasher::new_keyed(&self.key));
        writer.asked(asked);
        writer.parameters(&request.parameters);
        writer.inputs(request);
        writer.count(request.outputs.len());
        for output in &request.outputs {
            writer.bytes(output.name.as_bytes());
            writer.parameters(&output.parameters);
        }
        Ok(writer.question())
    }

    /// The request with this body, which is asked there. `form` says how the body is to be read.
    pub fn seen(&self, asked: &Asked<'_>, form: u64, body: &[u8]) -> Seen {
        let mut writer = Writer(blake3::Hasher::new_keyed(&self.seen_key));
        writer.asked(asked);
        writer.0.update(&form.to_le_bytes());
        writer.bytes(body);
        Seen(writer.question().0)
    }

    /// The question for the embedding of each input of `request`.
    pub fn embeddings(&self, asked: &Asked<'_>, request: &EmbeddingsRequest) -> Vec<Question> {
        let mut writer = Writer(blake3::Hasher::new_keyed(&self.embeddings_key));
        writer.asked(asked);
        let terms = request.terms();
        writer.count(terms.len());
        for (key, value) in terms {
            writer.bytes(key.as_bytes());
            writer.bytes(value.as_bytes());
        }
        let one = |input: &Input| {
            let mut writer = Writer(writer.0.clone());
            match input {
                Input::Text(text) => writer.value(0, text.as_bytes()),
                Input::Tokens(tokens) => {
                    let bytes: Vec<u8> =
                        tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
                    writer.value(1, &bytes);
                }
            }
            writer.question()
        };
        request.inputs.iter().map(one).collect()
    }

    /// One question that stands for all of these, in their order.
    pub fn together(&self, questions: &[Question]) -> Question {
        let mut hasher = blake3::Hasher::new_keyed(&self.embeddings_key);
        for question in questions {
            hasher.update(&question.0);
        }
        Question(*hasher.finalize().as_bytes())
    }
}

/// Writes parts so that they can be told apart.
struct Writer(blake3::Hasher);

impl Writer {
    fn asked(&mut self, asked: &Asked<'_>) {
        for name in [asked.route, asked.variant, asked.model, asked.epoch] {
            self.bytes(name.as_bytes());
        }
        self.optional(asked.version.map(str::as_bytes));
        self.optional(asked.client);
        self.count(asked.vary.len());
        for (name, value) in asked.vary {
            // Or a value of one header would be that of another, which an operator names in its place.
            self.bytes(name.as_bytes());
            self.optional(value.as_deref());
        }
    }

    fn question(&self) -> Question {
        Question(*self.0.finalize().as_bytes())
    }

    fn count(&mut self, count: usize) {
        self.0.update(&(count as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.0.update(&[u8::from(bytes.is_some())]);
        self.bytes(bytes.unwrap_or_default());
    }

    /// Parameters by name; of one that stands there twice, the last.
    fn parameters(&mut self, parameters: &Parameters) {
        let mut names: Vec<_> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        names.retain(|name| !WITHOUT_EFFECT.contains(name));
        names.sort_unstable();
        names.dedup();
        self.count(names.len());
        for name in names {
            self.bytes(name.as_bytes());
            match parameters.get(name) {
                Some(Parameter::Bool(value)) => self.value(1, &[u8::from(*value)]),
                Some(Parameter::Int(value)) => self.value(2, &value.to_le_bytes()),
                Some(Parameter::Float(value)) => self.value(3, &value.to_bits().to_le_bytes()),
                Some(Parameter::String(value)) => self.value(4, value.as_bytes()),
                None => self.value(0, &[]),
            }
        }
    }

    fn value(&mut self, kind: u8, bytes: &[u8]) {
        self.0.update(&[kind]);
        self.bytes(bytes);
    }

    /// Inputs by name: their order says nothing.
    fn inputs(&mut self, request: &InferRequest) {
        let mut inputs: Vec<_> = request.inputs.iter().collect();
        inputs.sort_by_key(|input| input.name.as_str());
        self.count(inputs.len());
        let mut data = Vec::new();
        for input in inputs {
            self.bytes(input.name.as_bytes());
            self.bytes(input.data.datatype().as_str().as_bytes());
            self.count(input.shape.len());
            input.shape.iter().for_each(|dimension| self.count(*dimension));
            data.clear();
            input.data.write_binary(&mut data);
            self.bytes(&data);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use forebay_protocol::oip::{Data, RequestedOutput, Tensor};

    const ASKED: Asked<'static> = Asked {
        route: "r",
        variant: "v",
        model: "m",
        version: None,
        epoch: "",
        client: None,
        vary: &[],
    };

    fn hash(asked: &Asked<'_>, request: &InferRequest) -> Question {
        Hasher::new([7; 32]).question(asked, request).unwrap()
    }

    fn request(inputs: Vec<Tensor>) -> InferRequest {
        InferRequest { inputs, ..InferRequest::default() }
    }

    fn tensor(name: &str, shape: &[usize], data: Data) -> Tensor {
        Tensor::new(name, shape.to_vec(), data).unwrap()
    }

    fn floats(shape: &[usize], data: &[f32]) -> InferRequest {
        request(vec![tensor("x", shape, Data::Fp32(data.to_vec().into()))])
    }

    fn texts(texts: &[&str]) -> InferRequest {
        let data = Data::Bytes(texts.iter().collect());
        request(vec![tensor("x", &[texts.len()], data)])
    }

    fn output(name: &str, parameters: &[(&str, Parameter)]) -> RequestedOutput {
        let entry = |(name, value): &(&str, Parameter)| ((*name).to_owned(), value.clone());
        RequestedOutput {
            name: name.to_owned(),
            parameters: parameters.iter().map(entry).collect(),
        }
    }

    fn asking(outputs: Vec<RequestedOutput>) -> InferRequest {
        InferRequest { outputs, ..floats(&[1], &[1.0]) }
    }

    fn with(name: &str, value: Parameter) -> InferRequest {
        let parameters = [(name.to_owned(), value)].into_iter().collect();
        InferRequest { parameters, ..floats(&[1], &[1.0]) }
    }

    #[test]
    fn everything_that_changes_the_answer_changes_the_question() {
        let ones = [1.0; 6];
        let classes = |count| output("y", &[("classification", Parameter::Int(count))]);
        let questions = [
            floats(&[2, 3], &ones),
            floats(&[3, 2], &ones),
            floats(&[6], &ones),
            request(vec![tensor("x", &[2, 3], Data::Int32(vec![0x3f80_0000; 6].into()))]),
            request(vec![tensor("y", &[2, 3], Data::Fp32(ones.to_vec().into()))]),
            floats(&[1], &[0.0]),
            floats(&[1], &[-0.0]),
            floats(&[1], &[f32::NAN]),
            floats(&[0], &[]),
            request(vec![]),
            texts(&["ab", "c"]),
            texts(&["a", "bc"]),
            texts(&["abc"]),
            request(vec![tensor("x", &[1], Data::Fp16(vec![0x3c00].into()))]),
            request(vec![tensor("x", &[1], Data::Int16(vec![0x3c00].into()))]),
            asking(vec![]),
            asking(vec![output("y", &[])]),
            asking(vec![output("y", &[]), output("z", &[])]),
            asking(vec![classes(3)]),
            asking(vec![classes(4)]),
            with("top_k", Parameter::Int(1)),
            with("top_k", Parameter::Float(1.0)),
            with("top_k", Parameter::Bool(true)),
            with("top_k", Parameter::String("1".to_owned())),
            with("top_p", Parameter::Int(1)),
        ];
        let hashes: Vec<_> = questions.iter().map(|request| hash(&ASKED, request)).collect();
        for (index, one) in hashes.iter().enumerate() {
            for (other, two) in hashes.iter().enumerate().skip(index + 1) {
                assert_ne!(one, two, "{index} {other}");
            }
        }
    }

    #[test]
    fn where_it_is_asked_and_by_whom_is_part_of_it() {
        let request = floats(&[1], &[1.0]);
        let value = |name, text: &str| (name, Some(text.as_bytes().to_vec()));
        let (none, a, ab) = ([("x", None)], [value("x", "a")], [value("x", ""), value("y", "b")]);
        let (other, turned) = ([value("y", "a")], [value("y", ""), value("x", "b")]);
        let places = [
            ASKED,
            Asked { route: "rv", variant: "", ..ASKED },
            Asked { variant: "w", ..ASKED },
            Asked { model: "n", ..ASKED },
            Asked { version: Some(""), ..ASKED },
            Asked { version: Some("1"), ..ASKED },
            Asked { epoch: "1", ..ASKED },
            Asked { client: Some(b"one"), ..ASKED },
            Asked { client: Some(b"two"), ..ASKED },
            Asked { vary: &none, ..ASKED },
            Asked { vary: &a, ..ASKED },
            Asked { vary: &ab, ..ASKED },
            Asked { vary: &other, ..ASKED },
            Asked { vary: &turned, ..ASKED },
        ];
        let hashes: std::collections::HashSet<_> =
            places.iter().map(|place| hash(place, &request)).collect();
        assert_eq!(hashes.len(), places.len());
        let other = Hasher::new([8; 32]).question(&ASKED, &request).unwrap();
        assert_ne!(other, hash(&ASKED, &request), "the key of the process counts");
    }

    #[test]
    fn each_input_and_each_term_of_embeddings_changes_the_question() {
        let hasher = Hasher::new([7; 32]);
        let of = |body: &str| {
            hasher.embeddings(&ASKED, &EmbeddingsRequest::parse(body.as_bytes()).unwrap())
        };
        let different = [
            of(r#"{"model":"m","input":"a"}"#),
            of(r#"{"model":"n","input":"a"}"#),
            of(r#"{"model":"m","input":"b"}"#),
            of(r#"{"model":"m","input":""}"#),
            of(r#"{"model":"m","input":[97]}"#),
            of(r#"{"model":"m","input":"a","dimensions":8}"#),
            of(r#"{"model":"m","input":"a","encoding_format":"base64"}"#),
            hasher.embeddings(
                &Asked { client: Some(b"c"), ..ASKED },
                &EmbeddingsRequest::parse(br#"{"model":"m","input":"a"}"#).unwrap(),
            ),
        ];
        let all: std::collections::HashSet<_> = different.iter().flatten().collect();
        assert_eq!(all.len(), different.len());
        let list = of(r#"{"input":["b","a","a"],"user":"u","model":"m"}"#);
        assert_eq!((list[0], list[1]), (different[2][0], different[0][0]));
        assert_eq!(list[1], list[2]);
        let turned = [list[1], list[0], list[2]];
        assert_ne!(hasher.together(&list), hasher.together(&turned));
    }

    #[test]
    fn bytes_are_the_same_at_one_place_in_one_form_only() {
        let hasher = Hasher::new([7; 32]);
        let other = Asked { model: "n", ..ASKED };
        let all = [
            hasher.seen(&ASKED, 0, b"body"),
            hasher.seen(&ASKED, 1, b"body"),
            hasher.seen(&ASKED, 0, b"bodi"),
            hasher.seen(&other, 0, b"body"),
            Hasher::new([8; 32]).seen(&ASKED, 0, b"body"),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(hasher.seen(&ASKED, 0, b"body"), all[0]);
    }

    #[test]
    fn form_time_and_order_are_not_part_of_it() {
        let inputs = vec![
            tensor("a", &[1], Data::Int32(vec![1].into())),
            tensor("b", &[1], Data::Int32(vec![2].into())),
        ];
        let one = request(inputs.clone());
        let turned = InferRequest {
            id: Some("7".to_owned()),
            inputs: inputs.into_iter().rev().collect(),
            parameters: [
                ("binary_data_output".to_owned(), Parameter::Bool(true)),
                ("priority".to_owned(), Parameter::Int(1)),
                ("timeout".to_owned(), Parameter::Int(1000)),
            ]
            .into_iter()
            .collect(),
            outputs: vec![],
        };
        assert_eq!(hash(&ASKED, &one), hash(&ASKED, &turned));
        let (plain, binary) = (
            asking(vec![output("y", &[])]),
            asking(vec![output("y", &[("binary_data", Parameter::Bool(true))])]),
        );
        assert_eq!(hash(&ASKED, &plain), hash(&ASKED, &binary));
        let twice = |first, last| {
            let parameters = [("k".to_owned(), first), ("k".to_owned(), last)];
            InferRequest { parameters: parameters.into_iter().collect(), ..floats(&[1], &[1.0]) }
        };
        let last = twice(Parameter::Int(1), Parameter::Int(2));
        assert_eq!(hash(&ASKED, &last), hash(&ASKED, &with("k", Parameter::Int(2))));
    }

    #[test]
    fn a_part_of_a_sequence_is_no_question() {
        let request = with("sequence_id", Parameter::Int(3));
        let found = Hasher::new([7; 32]).question(&ASKED, &request);
        assert_eq!(found, Err(Unkeyed::Stateful));
    }
}
