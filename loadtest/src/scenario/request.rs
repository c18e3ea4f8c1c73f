//! The kinds of requests in the mix.

use crate::distribution::Distribution;
use forebay_config::form::{
    Shown, above_zero, any, called, list, list_within, one_of, optional, required, within,
};
use forebay_config::from_text;
use forebay_protocol::Priority;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Largest batch that is asked for, and most inputs that are made for one kind of request: more do not fit
/// into the memory for bodies, however small each is.
const MAX_INPUTS: usize = 1_000_000;

forebay_config::section! {
    /// One kind of request in the mix.
    pub struct Request {
        /// Its share in the mix, relative to the others.
        weight: f64 = 1.0, above_zero();
        /// Sent as x-request-deadline, over gRPC as grpc-timeout. Default: none.
        deadline: Option<Duration> = None, optional(any()), shown "\"100ms\"";
        /// Sent as x-request-priority: "high", "normal" or "batch". Default: none.
        priority: Option<Priority> = None, called("PRIORITY", optional(one_of(PRIORITIES))), shown "\"high\"";
        /// Distribution of service times to ask a synthetic backend for, drawn for every request
        /// (exponential:20ms); the same seed draws the same times for every balancer. Default: the backend's
        /// choice.
        demand: Option<Distribution> = None, optional(any()), shown "\"exponential:20ms\"";
        /// Other headers of every request. A header that names the client stays as it is.
        headers: Vec<Header> = Vec::new(), list(), shown "[\"x-team: search\"]";
    }
    beside {
        /// An inference, or anything else.
        kind: RequestKind = RequestKind::Infer(Infer::default());
    }
}

const PRIORITIES: &[(&str, Priority)] = &[
    (Priority::High.as_str(), Priority::High),
    (Priority::Normal.as_str(), Priority::Normal),
    (Priority::Batch.as_str(), Priority::Batch),
];

forebay_config::kinds! {
    /// An inference, or anything else.
    pub enum RequestKind {
        "infer" => Infer(Infer),
        "http" => Http(Http),
    }
}

forebay_config::section! {
    /// An inference: random tensors after the model's own metadata, or files.
    pub struct Infer {
        /// Name of the model.
        model: String = String::new(), required(any()), shown "\"magika\"";
        /// Version of the model. Default: the server's choice.
        version: Option<String> = None, called("VERSION", optional(any())), shown "\"1\"";
        /// Encoding of tensors: "json", as JSON numbers, or "binary", with the binary tensor extension in
        /// both directions.
        encoding: Encoding = Encoding::Json, called("ENCODING", one_of(Encoding::NAMES));
        /// Batch sizes, chosen at random ([1, 1, 8]: two thirds have one item). None is one of 1.
        batch: Vec<u64> = Vec::new(), called("N,…", list_within(1..=MAX_INPUTS as u64)), shown "[1, 1, 8]";
        /// Number of different inputs.
        distinct: usize = 16, within(1..=MAX_INPUTS);
        /// Popularity of the inputs: 0 all alike, 1 Zipf's law.
        zipf: f64 = 0.0, called("EXPONENT", within(0.0..=10.0));
        /// Shapes of inputs whose dimensions are not all fixed, the batch included (ids:1,128).
        shape: Vec<Shape> = Vec::new(), list(), shown "[\"ids:1,128\"]";
        /// Random values lie from LOW up to, not including, HIGH. Default: 0..1, integers 0..100.
        range: Option<Range> = None, optional(any()), shown "\"0..256\"";
        /// Files with whole JSON inference requests, sent instead of random tensors.
        input: Vec<PathBuf> = Vec::new(), called("FILE", list()), shown "[]";
    }
}

forebay_config::section! {
    /// Any other request.
    pub struct Http {
        /// Path and query.
        path: String = String::new(), called("PATH", required(any())), shown "\"/v2\"";
        /// The method. Default: GET, with a body POST.
        method: Option<String> = None, called("METHOD", optional(any())), shown "\"POST\"";
        /// File with the body. Default: none.
        body: Option<PathBuf> = None, called("FILE", optional(any())), shown "\"request.json\"";
    }
}

/// The encoding of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// As JSON numbers.
    #[default]
    Json,
    /// With the binary tensor extension, in both directions.
    Binary,
}

impl Encoding {
    const NAMES: &'static [(&'static str, Self)] =
        &[("json", Self::Json), ("binary", Self::Binary)];
}

/// A header, written `name: value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Before the colon.
    pub name: String,
    /// Behind it.
    pub value: String,
}

/// The shape of one input, written `input:1,128`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The input's name.
    pub input: String,
    /// Its dimensions.
    pub sizes: Vec<u64>,
}

/// The range of random numbers: from `low` up to, not including, `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Least value.
    pub low: f64,
    /// Bound above.
    pub high: f64,
}

impl Default for Range {
    fn default() -> Self {
        Self { low: 0.0, high: 1.0 }
    }
}

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found \"{found}\"")]
pub struct Wrong {
    /// In words, with an example.
    pub expected: &'static str,
    /// The text.
    pub found: String,
}

impl Header {
    /// Description of a header, for errors.
    pub const EXPECTED: &'static str = "a header such as \"x-client: search\"";
}

impl Shape {
    /// Description of a shape, for errors.
    pub const EXPECTED: &'static str = "a shape such as \"ids:1,128\"";
}

impl Range {
    /// Description of a range, for errors.
    pub const EXPECTED: &'static str = "a range such as \"0..256\", its low end below the high one";
}

impl FromStr for Header {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong { expected: Self::EXPECTED, found: text.to_owned() };
        let (name, value) = text.split_once(':').ok_or_else(wrong)?;
        http::HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
        http::HeaderValue::try_from(value.trim()).map_err(|_| wrong())?;
        Ok(Self { name: name.trim().to_owned(), value: value.trim().to_owned() })
    }
}

impl FromStr for Shape {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong { expected: Self::EXPECTED, found: text.to_owned() };
        let (input, sizes) = text.rsplit_once(':').ok_or_else(wrong)?;
        let sizes: Result<Vec<u64>, _> = sizes.split(',').map(|size| size.trim().parse()).collect();
        Ok(Self { input: input.to_owned(), sizes: sizes.map_err(|_| wrong())? })
    }
}

impl FromStr for Range {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        text.split_once("..")
            .and_then(|(low, high)| Some(Self { low: number(low)?, high: number(high)? }))
            .filter(|range| range.low < range.high)
            .ok_or_else(|| Wrong { expected: Self::EXPECTED, found: text.to_owned() })
    }
}

from_text! {
    Header = Header::EXPECTED;
    Shape = Shape::EXPECTED;
    Range = Range::EXPECTED;
}

impl Shown for Header {
    const KIND: &'static str = "NAME: VALUE";

    fn shown(&self) -> String {
        format!("\"{}: {}\"", self.name, self.value)
    }
}

impl Shown for Shape {
    const KIND: &'static str = "INPUT:N,…";

    fn shown(&self) -> String {
        let sizes: Vec<String> = self.sizes.iter().map(ToString::to_string).collect();
        format!("\"{}:{}\"", self.input, sizes.join(","))
    }
}

impl Shown for Range {
    const KIND: &'static str = "LOW..HIGH";

    fn shown(&self) -> String {
        format!("\"{}..{}\"", self.low, self.high)
    }
}
