//! Inference requests made up from a model's metadata.

use crate::link::{Answer, Outgoing};
use crate::mix::mix;
use crate::plan::Plan;
use crate::request::{RequestError, Size, take_room};
use crate::scenario::{Encoding, Infer, Shape};
use crate::target::{Protocol, Target};
use crate::tensor::{Data, Datatype, MAX_ELEMENTS, Range};
use bytes::Bytes;
use forebay_protocol::header::INFERENCE_HEADER_CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Different inputs where nothing is said.
pub const DEFAULT_DISTINCT: usize = 16;
/// Longest metadata that is read, in bytes.
const MAX_METADATA: usize = 1 << 20;
/// How long the target may take to describe a model.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// Most inputs of a model.
const MAX_INPUTS: usize = 256;

/// Makes random requests for one model.
#[derive(Debug)]
pub struct Random {
    inputs: Vec<Input>,
    encoding: Encoding,
    range: Option<Range>,
    seed: u64,
}

/// Why no request can be made up.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// No answer to the question what the model is like.
    #[error("no metadata from {url}: {what}")]
    Metadata {
        /// What was asked.
        url: String,
        /// What came instead.
        what: String,
    },
    /// A datatype that is not known.
    #[error("input \"{input}\": {what}")]
    Datatype {
        /// The input.
        input: String,
        /// What was expected and found.
        what: String,
    },
    /// A dynamic dimension that is not the batch.
    #[error(
        "input \"{input}\" has the shape {found:?}: expected its dynamic dimensions to be given, \
         --shape {input}:1,… or shape = [\"{input}:1,…\"]"
    )]
    Dynamic {
        /// The input.
        input: String,
        /// The shape from the metadata.
        found: Vec<i64>,
    },
    /// A shape for an input that the model does not have.
    #[error("expected a shape for one of the inputs {known}, found \"{found}\"")]
    NoInput {
        /// The input that was named.
        found: String,
        /// Those that there are.
        known: String,
    },
    /// More elements than a tensor may have.
    #[error("input \"{0}\": expected at most {MAX_ELEMENTS} elements, found more")]
    TooLarge(String),
    /// FP16 as JSON.
    #[error("input \"{0}\" is FP16, which has no JSON form: expected the encoding binary")]
    NoJson(String),
    /// The bodies would not fit.
    #[error(transparent)]
    Room(Box<RequestError>),
    /// Could not be written down.
    #[error("could not be encoded: {0}")]
    Encode(#[from] serde_json::Error),
}

#[derive(Debug, Deserialize)]
struct Metadata {
    inputs: Vec<Description>,
}

#[derive(Debug, Deserialize)]
struct Description {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

#[derive(Debug)]
struct Input {
    name: String,
    datatype: Datatype,
    word: String,
    /// Without a given shape, `None` stands for the batch.
    shape: Vec<Option<u64>>,
}

/// `base/v2/models/{model}[/versions/{version}]`, names percent-encoded.
pub fn path(base: &str, model: &str, version: Option<&str>) -> String {
    let mut path = format!("{base}/v2/models/");
    encode(&mut path, model);
    if let Some(version) = version {
        path.push_str("/versions/");
        encode(&mut path, version);
    }
    path
}

/// One `GET`, outside of any measurement.
///
/// # Errors
/// In words, what went wrong.
pub async fn get(
    target: &Target,
    protocol: Protocol,
    path: &str,
    keep: usize,
) -> Result<Answer, String> {
    let mut request = Outgoing::new(Full::new(Bytes::new()));
    *request.uri_mut() = target.uri(protocol, path).map_err(|error| error.to_string())?;
    if protocol == Protocol::Http1 {
        let host = HeaderValue::from_str(&target.authority).map_err(|error| error.to_string())?;
        request.headers_mut().insert(header::HOST, host);
    }
    let mut link = crate::link::Links::new(protocol, 1).make();
    let opened = Cell::new(0);
    let exchange = async {
        link.connect(target, &opened).await?;
        link.exchange(target, &opened, request, keep).await
    };
    match tokio::time::timeout(METADATA_TIMEOUT, exchange).await {
        Ok(answer) => answer.map_err(|failure| failure.to_string()),
        Err(_) => Err("timeout".to_owned()),
    }
}

impl Random {
    /// Asks the target what the model's inputs are.
    ///
    /// # Errors
    /// No usable answer, or dimensions that nobody has given.
    pub async fn new(plan: &Plan, infer: &Infer) -> Result<Self, InferError> {
        let Infer { model, version, encoding, range, shape, .. } = infer;
        let path = path(plan.target.base(), model, version.as_deref());
        let fail = |what: String| InferError::Metadata {
            url: format!("http://{}{path}", plan.target.authority),
            what,
        };
        let answer = get(&plan.target, plan.protocol, &path, MAX_METADATA).await.map_err(fail)?;
        if answer.status != 200 {
            return Err(fail(format!("expected status 200, found {}", answer.status)));
        }
        let body = answer.body.ok_or_else(|| fail("the answer is too long".to_owned()))?;
        let metadata: Metadata =
            serde_json::from_slice(&body).map_err(|error| fail(error.to_string()))?;
        if metadata.inputs.len() > MAX_INPUTS {
            return Err(fail(format!("expected at most {MAX_INPUTS} inputs")));
        }
        Ok(Self {
            inputs: inputs(metadata, shape)?,
            encoding: *encoding,
            range: *range,
            seed: plan.seed,
        })
    }

    /// Makes `distinct` requests with a batch of `batch`; takes their size from `room`.
    ///
    /// # Errors
    /// Tensors or bodies that are too large, or that can't be written as JSON.
    pub fn make(
        &self,
        batch: u64,
        distinct: usize,
        base: &HeaderMap,
        room: &mut u64,
    ) -> Result<Size, InferError> {
        let mut headers = base.clone();
        let mut bodies = Vec::with_capacity(distinct.min(1024));
        for index in 0..distinct as u64 {
            let mut rng = fastrand::Rng::with_seed(mix(self.seed ^ mix(batch) ^ index));
            let (json, binary) = self.body(batch, &mut rng)?;
            take_room((json.len() + binary.len()) as u64, room)
                .map_err(|error| InferError::Room(Box::new(error)))?;
            if self.encoding == Encoding::Binary {
                headers.insert(INFERENCE_HEADER_CONTENT_LENGTH, HeaderValue::from(json.len()));
            }
            let mut body = json;
            body.extend(binary);
            bodies.push(Bytes::from(body));
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(match self.encoding {
                Encoding::Json => "application/json",
                Encoding::Binary => "application/octet-stream",
            }),
        );
        Ok(Size { headers, bodies })
    }

    fn body(&self, batch: u64, rng: &mut fastrand::Rng) -> Result<(Vec<u8>, Vec<u8>), InferError> {
        let mut binary = Vec::new();
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let shape: Vec<u64> = input.shape.iter().map(|size| size.unwrap_or(batch)).collect();
            let count = shape
                .iter()
                .try_fold(1_u64, |product, size| product.checked_mul(*size))
                .filter(|count| *count <= MAX_ELEMENTS)
                .and_then(|count| usize::try_from(count).ok())
                .ok_or_else(|| InferError::TooLarge(input.name.clone()))?;
            let data = Data::random(input.datatype, count, self.range, rng);
            let (name, datatype) = (&*input.name, &*input.word);
            let (data, parameters) = match self.encoding {
                Encoding::Json if matches!(data, Data::Fp16(_)) => {
                    return Err(InferError::NoJson(input.name.clone()));
                }
                Encoding::Json => (Some(data), None),
                Encoding::Binary => {
                    let before = binary.len();
                    data.write_binary(input.datatype, &mut binary);
                    (None, Some(Parameters { binary_data_size: binary.len() - before }))
                }
            };
            tensors.push(Tensor { name, shape, datatype, parameters, data });
        }
        let parameters = match self.encoding {
            Encoding::Json => None,
            // Always the same length, so that one header serves all bodies of a size.
            Encoding::Binary => Some(BTreeMap::from([("binary_data_output", true)])),
        };
        let json = serde_json::to_vec(&Body { parameters, inputs: tensors })?;
        Ok((json, binary))
    }
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BTreeMap<&'static str, bool>>,
    inputs: Vec<Tensor<'a>>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    shape: Vec<u64>,
    datatype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data>,
}

#[derive(Serialize)]
struct Parameters {
    binary_data_size: usize,
}

fn inputs(metadata: Metadata, given: &[Shape]) -> Result<Vec<Input>, InferError> {
    let is_unknown = |shape: &&Shape| metadata.inputs.iter().all(|input| input.name != shape.input);
    if let Some(Shape { input: found, .. }) = given.iter().find(is_unknown) {
        let known: Vec<&str> = metadata.inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(InferError::NoInput { found: found.clone(), known: known.join(", ") });
    }
    let mut inputs = Vec::with_capacity(metadata.inputs.len());
    for Description { name, datatype: word, shape } in metadata.inputs {
        let datatype =
            word.parse().map_err(|what| InferError::Datatype { input: name.clone(), what })?;
        let shape = match given.iter().find(|given| given.input == name) {
            Some(given) => given.sizes.iter().copied().map(Some).collect(),
            None => dimensions(&name, &shape)?,
        };
        inputs.push(Input { name, datatype, word, shape });
    }
    Ok(inputs)
}

/// The first dimension may be the batch; any other must be fixed.
fn dimensions(name: &str, shape: &[i64]) -> Result<Vec<Option<u64>>, InferError> {
    let dynamic = || InferError::Dynamic { input: name.to_owned(), found: shape.to_vec() };
    let size = |(i, size): (usize, &i64)| match u64::try_from(*size) {
        Ok(size) => Ok(Some(size)),
        Err(_) if i == 0 => Ok(None),
        Err(_) => Err(dynamic()),
    };
    shape.iter().enumerate().map(size).collect()
}

fn encode(path: &mut String, name: &str) {
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    fn random(encoding: Encoding, metadata: &str, given: &[(&str, &[u64])]) -> Random {
        let metadata = serde_json::from_str(metadata).unwrap();
        let given: Vec<Shape> = given
            .iter()
            .map(|(input, sizes)| Shape { input: (*input).to_owned(), sizes: sizes.to_vec() })
            .collect();
        Random { inputs: inputs(metadata, &given).unwrap(), encoding, range: None, seed: 1 }
    }

    const TWO: &str = r#"{"name":"m","inputs":[
        {"name":"a","datatype":"FP32","shape":[-1,3]},{"name":"b","datatype":"INT64","shape":[1]}]}"#;

    #[test]
    fn json_bodies_have_the_batch_and_the_right_number_of_elements() {
        let mut room = 1 << 20;
        let size = random(Encoding::Json, TWO, &[]).make(2, 3, &HeaderMap::new(), &mut room);
        let size = size.unwrap();
        assert_eq!(size.bodies.len(), 3);
        assert_ne!(size.bodies[0], size.bodies[1]);
        assert!(room < 1 << 20);
        let body: serde_json::Value = serde_json::from_slice(&size.bodies[0]).unwrap();
        assert_eq!(body["inputs"][0]["shape"], serde_json::json!([2, 3]));
        assert_eq!(body["inputs"][0]["data"].as_array().unwrap().len(), 6);
        assert_eq!(body["inputs"][1]["shape"], serde_json::json!([1]));
        assert_eq!(size.headers[header::CONTENT_TYPE], "application/json");
    }

    #[test]
    fn binary_bodies_say_where_the_json_ends_and_how_long_each_tensor_is() {
        let mut room = 1 << 20;
        let size = random(Encoding::Binary, TWO, &[]).make(2, 20, &HeaderMap::new(), &mut room);
        let size = size.unwrap();
        let header = size.headers[INFERENCE_HEADER_CONTENT_LENGTH].to_str().unwrap();
        let split: usize = header.parse().unwrap();
        for body in &size.bodies {
            assert_eq!(body.len() - split, 2 * 3 * 4 + 8);
            let json: serde_json::Value = serde_json::from_slice(&body[..split]).unwrap();
            assert_eq!(json["inputs"][0]["parameters"]["binary_data_size"], 24);
            assert_eq!(json["parameters"]["binary_data_output"], true);
        }
    }

    #[test]
    fn a_dynamic_dimension_is_asked_for_and_can_be_given() {
        let metadata = r#"{"inputs":[{"name":"ids","datatype":"INT64","shape":[-1,-1]}]}"#;
        let error = inputs(serde_json::from_str(metadata).unwrap(), &[]).unwrap_err();
        assert!(error.to_string().contains("--shape ids:"), "{error}");
        let mut room = 1 << 20;
        let size = random(Encoding::Json, metadata, &[("ids", &[1, 7])]);
        assert!(size.make(1, 1, &HeaderMap::new(), &mut room).is_ok());
        let given = ["idz:1".parse().unwrap()];
        let error = inputs(serde_json::from_str(metadata).unwrap(), &given).unwrap_err();
        assert_eq!(error.to_string(), "expected a shape for one of the inputs ids, found \"idz\"");
    }

    #[test]
    fn what_would_not_fit_is_refused_before_it_is_made() {
        let huge =
            r#"{"inputs":[{"name":"a","datatype":"FP32","shape":[-1,4294967296,4294967296]}]}"#;
        let mut room = 1 << 20;
        let made = random(Encoding::Json, huge, &[]).make(1, 1, &HeaderMap::new(), &mut room);
        assert!(matches!(made, Err(InferError::TooLarge(_))));
        let mut room = 10;
        let made = random(Encoding::Json, TWO, &[]).make(1, 1, &HeaderMap::new(), &mut room);
        assert!(matches!(made, Err(InferError::Room(_))));
    }

    #[test]
    fn names_are_encoded_in_paths() {
        assert_eq!(path("", "a b/c", Some("1")), "/v2/models/a%20b%2Fc/versions/1");
    }
}
