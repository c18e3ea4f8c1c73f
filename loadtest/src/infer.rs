//! Inference requests made up from a model's metadata.

use crate::link::{Answer, Links, Outgoing};
use crate::mix::mix;
use crate::plan::Plan;
use crate::request::{Body, RequestError, Size, take_room};
use crate::scenario::{Encoding, Infer, Shape};
use crate::target::{Protocol, Target};
use crate::tensor::{self, MAX_ELEMENTS, Range};
use bytes::Bytes;
use forebay_protocol::grpc::{self, Code, INFERENCE_SERVICE, pb};
use forebay_protocol::header::{GRPC_STATUS, INFERENCE_HEADER_CONTENT_LENGTH};
use forebay_protocol::oip::{
    Datatype, EncodeError, InferRequest, MAX_TENSORS, ModelMetadata, Parameter, Tensor,
    TensorMetadata, TensorProblem,
};
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::Full;
use prost::Message;
use std::cell::Cell;
use std::fmt::Write as _;
use std::time::Duration;

/// Different inputs where nothing is said.
pub const DEFAULT_DISTINCT: usize = 16;
/// Longest metadata that is read, in bytes.
const MAX_METADATA: usize = 1 << 20;
/// How long the target may take to describe a model.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes random requests for one model.
#[derive(Debug)]
pub struct Random {
    inputs: Vec<Input>,
    writer: Writer,
    range: Option<Range>,
    seed: u64,
}

/// How requests are written down.
#[derive(Debug, Clone)]
pub struct Writer {
    model: String,
    version: Option<String>,
    encoding: Encoding,
    protocol: Protocol,
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
    /// A shape that no tensor can have.
    #[error("input \"{0}\": {1}")]
    Tensor(String, TensorProblem),
    /// Has no JSON form.
    #[error("{0}: expected the encoding binary")]
    NoJson(#[from] EncodeError),
    /// The bodies would not fit.
    #[error(transparent)]
    Room(Box<RequestError>),
}

#[derive(Debug)]
struct Input {
    name: String,
    datatype: Datatype,
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

/// Sends `body` to the target's own path.
///
/// # Errors
/// In words, what went wrong.
pub async fn post(target: &Target, body: Bytes) -> Result<Answer, String> {
    let mut request = Outgoing::new(Full::new(body));
    *request.method_mut() = Method::POST;
    send(target, target.path.as_str(), request, 0).await
}

/// One request outside of any measurement: a `GET`, or with gRPC a call with this message.
async fn ask(target: &Target, path: &str, message: Bytes, keep: usize) -> Result<Answer, String> {
    let mut request = Outgoing::new(Full::new(message));
    if target.protocol == Protocol::Grpc {
        *request.method_mut() = Method::POST;
        call_headers(request.headers_mut());
    }
    send(target, path, request, keep).await
}

async fn send(
    target: &Target,
    path: &str,
    mut request: Outgoing,
    keep: usize,
) -> Result<Answer, String> {
    *request.uri_mut() = target.uri(path).map_err(|error| error.to_string())?;
    if target.protocol == Protocol::Http1 {
        let host = HeaderValue::from_str(&target.authority).map_err(|error| error.to_string())?;
        request.headers_mut().insert(header::HOST, host);
    }
    let mut link = Links::new(target.protocol, 1).make();
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

/// What every gRPC call begins with.
pub(crate) fn call_headers(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(grpc::CONTENT_TYPE));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
}

/// How a gRPC call ended; `None`: the answer does not say.
pub(crate) fn code_of(answer: &Answer) -> Option<Code> {
    answer.headers.get(GRPC_STATUS).and_then(Code::parse)
}

/// Does the target answer anything that is not a failure of its own?
///
/// # Errors
/// In words, what came instead.
pub async fn answers(target: &Target) -> Result<(), String> {
    if target.protocol == Protocol::Grpc {
        let path = format!("{}/{INFERENCE_SERVICE}/ServerReady", target.base());
        let answer = ask(target, &path, frame(&pb::ServerReadyRequest {}), 0).await?;
        return match code_of(&answer) {
            None | Some(Code::Unavailable) => Err("not ready".to_owned()),
            Some(_) => Ok(()),
        };
    }
    let answer = ask(target, target.path.as_str(), Bytes::new(), 0).await?;
    if answer.status < 500 { Ok(()) } else { Err(format!("status {}", answer.status)) }
}

/// Asks the target what a model is like.
async fn metadata(target: &Target, infer: &Infer) -> Result<ModelMetadata, InferError> {
    let grpc = target.protocol == Protocol::Grpc;
    let path = if grpc {
        format!("{}/{INFERENCE_SERVICE}/ModelMetadata", target.base())
    } else {
        path(target.base(), &infer.model, infer.version.as_deref())
    };
    let fail = |what: String| InferError::Metadata {
        url: format!("{}://{}{path}", target.scheme(), target.authority),
        what,
    };
    let message = pb::ModelMetadataRequest {
        name: infer.model.clone(),
        version: infer.version.clone().unwrap_or_default(),
    };
    let message = if grpc { frame(&message) } else { Bytes::new() };
    let answer = ask(target, &path, message, MAX_METADATA).await.map_err(fail)?;
    if answer.status != 200 {
        return Err(fail(format!("expected status 200, found {}", answer.status)));
    }
    let code = code_of(&answer);
    if grpc && code != Some(Code::Ok) {
        return Err(fail(format!("expected the gRPC status Ok, found {code:?}")));
    }
    let body = answer.body.ok_or_else(|| fail("the answer is too long".to_owned()))?;
    let metadata: ModelMetadata = match grpc {
        true => from_message(&body).map_err(fail)?,
        false => serde_json::from_slice(&body).map_err(|error| fail(error.to_string()))?,
    };
    if metadata.inputs.len() > MAX_TENSORS {
        return Err(fail(format!("expected at most {MAX_TENSORS} inputs")));
    }
    Ok(metadata)
}

fn from_message(body: &Bytes) -> Result<ModelMetadata, String> {
    let (_, message) = grpc::only_message(body).map_err(|error| error.to_string())?;
    let of = pb::ModelMetadataResponse::decode(message).map_err(|error| error.to_string())?;
    let tensor = |of: pb::model_metadata_response::TensorMetadata| {
        let datatype = Datatype::from_name(&of.datatype)
            .ok_or_else(|| format!("expected a datatype such as FP32, found {:?}", of.datatype))?;
        Ok::<_, String>(TensorMetadata { name: of.name, datatype, shape: of.shape })
    };
    Ok(ModelMetadata {
        name: of.name,
        versions: of.versions,
        platform: of.platform,
        inputs: of.inputs.into_iter().map(tensor).collect::<Result<_, _>>()?,
        outputs: of.outputs.into_iter().map(tensor).collect::<Result<_, _>>()?,
        properties: Default::default(),
    })
}

fn frame(message: &impl Message) -> Bytes {
    // Fails only without room, and the buffer grows.
    grpc::frame(message.encoded_len(), |out| message.encode(out).unwrap_or_default())
}

impl Writer {
    /// For inferences like this one.
    pub fn new(plan: &Plan, infer: &Infer) -> Self {
        Self {
            model: infer.model.clone(),
            version: infer.version.clone(),
            encoding: infer.encoding,
            protocol: plan.target.protocol,
        }
    }

    /// Whether a JSON request can be sent as it is.
    pub fn is_json(&self) -> bool {
        self.protocol != Protocol::Grpc && self.encoding == Encoding::Json
    }

    /// Writes a request, and the headers that go with all that are as long as it.
    ///
    /// # Errors
    /// A tensor has no JSON form and is to have one.
    pub fn write(
        &self,
        request: InferRequest,
        headers: &mut HeaderMap,
    ) -> Result<Body, EncodeError> {
        let mut request = request;
        let id = request.id.clone().unwrap_or_default();
        if self.protocol == Protocol::Grpc {
            let message =
                grpc::infer::write_request(&self.model, self.version.as_deref(), &request);
            return Ok(Body { bytes: frame(&message), id });
        }
        let binary = self.encoding == Encoding::Binary;
        if binary {
            request.parameters.insert("binary_data_output", Parameter::Bool(true));
        }
        let encoded = request.encode(|_| binary)?;
        if let Some(length) = encoded.json_len {
            headers.insert(INFERENCE_HEADER_CONTENT_LENGTH, HeaderValue::from(length));
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(encoded.content_type()));
        Ok(Body { bytes: encoded.body.into(), id })
    }
}

impl Random {
    /// Asks the target what the model's inputs are.
    ///
    /// # Errors
    /// No usable answer, or dimensions that nobody has given.
    pub async fn new(plan: &Plan, infer: &Infer) -> Result<Self, InferError> {
        let metadata = metadata(&plan.target, infer).await?;
        Ok(Self {
            inputs: inputs(metadata, &infer.shape)?,
            writer: Writer::new(plan, infer),
            range: infer.range,
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
            let request = self.request(batch, index, &mut rng)?;
            let body = self.writer.write(request, &mut headers)?;
            take_room(body.bytes.len() as u64, room)
                .map_err(|error| InferError::Room(Box::new(error)))?;
            bodies.push(body);
        }
        Ok(Size { headers, bodies })
    }

    fn request(
        &self,
        batch: u64,
        index: u64,
        rng: &mut fastrand::Rng,
    ) -> Result<InferRequest, InferError> {
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let too_large = || InferError::TooLarge(input.name.clone());
            let sizes = input.shape.iter().map(|size| size.unwrap_or(batch));
            let shape: Option<Vec<usize>> = sizes.map(|size| usize::try_from(size).ok()).collect();
            let shape = shape.ok_or_else(too_large)?;
            let count = shape
                .iter()
                .try_fold(1_usize, |product, size| product.checked_mul(*size))
                .filter(|count| *count as u64 <= MAX_ELEMENTS)
                .ok_or_else(too_large)?;
            let data = tensor::random(input.datatype, count, self.range, rng);
            let tensor = Tensor::new(&*input.name, shape, data);
            tensors
                .push(tensor.map_err(|problem| InferError::Tensor(input.name.clone(), problem))?);
        }
        // Always the same length, so that one header serves all bodies of a size.
        let id = format!("{batch:06x}-{index:08x}");
        Ok(InferRequest { id: Some(id), inputs: tensors, ..InferRequest::default() })
    }
}

fn inputs(metadata: ModelMetadata, given: &[Shape]) -> Result<Vec<Input>, InferError> {
    let is_unknown = |shape: &&Shape| metadata.inputs.iter().all(|input| input.name != shape.input);
    if let Some(Shape { input: found, .. }) = given.iter().find(is_unknown) {
        let known: Vec<&str> = metadata.inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(InferError::NoInput { found: found.clone(), known: known.join(", ") });
    }
    let mut inputs = Vec::with_capacity(metadata.inputs.len());
    for TensorMetadata { name, datatype, shape } in metadata.inputs {
        let shape = match given.iter().find(|given| given.input == name) {
            Some(given) => given.sizes.iter().copied().map(Some).collect(),
            None => dimensions(&name, &shape)?,
        };
        inputs.push(Input { name, datatype, shape });
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
        let protocol = Protocol::Http1;
        let writer = Writer { model: "m".to_owned(), version: None, encoding, protocol };
        Random { inputs: inputs(metadata, &given).unwrap(), writer, range: None, seed: 1 }
    }

    const TWO: &str = r#"{"name":"m","inputs":[
        {"name":"a","datatype":"FP32","shape":[-1,3]},{"name":"b","datatype":"INT64","shape":[1]}],
        "platform":"p","outputs":[]}"#;

    #[test]
    fn json_bodies_have_the_batch_and_the_right_number_of_elements() {
        let mut room = 1 << 20;
        let size = random(Encoding::Json, TWO, &[]).make(2, 3, &HeaderMap::new(), &mut room);
        let size = size.unwrap();
        assert_eq!(size.bodies.len(), 3);
        assert_ne!(size.bodies[0].bytes, size.bodies[1].bytes);
        assert_ne!(size.bodies[0].id, size.bodies[1].id);
        assert!(room < 1 << 20);
        let body: serde_json::Value = serde_json::from_slice(&size.bodies[0].bytes).unwrap();
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
        for body in size.bodies.iter().map(|body| &body.bytes) {
            assert_eq!(body.len() - split, 2 * 3 * 4 + 8);
            let json: serde_json::Value = serde_json::from_slice(&body[..split]).unwrap();
            assert_eq!(json["inputs"][0]["parameters"]["binary_data_size"], 24);
            assert_eq!(json["parameters"]["binary_data_output"], true);
        }
    }

    #[test]
    fn a_dynamic_dimension_is_asked_for_and_can_be_given() {
        let metadata = r#"{"name":"m","platform":"p","outputs":[],
            "inputs":[{"name":"ids","datatype":"INT64","shape":[-1,-1]}]}"#;
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
        let huge = r#"{"name":"m","platform":"p","outputs":[],"inputs":[{"name":"a","datatype":"FP32","shape":[-1,4294967296,4294967296]}]}"#;
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
