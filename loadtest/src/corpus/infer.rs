//! Inference requests made up from a model's metadata.

use super::body::{Body, Size, TooLarge, take_room};
use super::metadata::{MetadataError, metadata};
use super::tensor::{self, MAX_ELEMENTS};
use crate::connection::ask::frame;
use crate::plan::Plan;
use crate::plan::seed::derive;
use crate::scenario::{Encoding, Infer, Protocol, Range, Shape};
use forebay_protocol::grpc;
use forebay_protocol::header::INFERENCE_HEADER_CONTENT_LENGTH;
use forebay_protocol::oip::{
    Datatype, EncodeError, InferRequest, ModelMetadata, Parameter, Tensor, TensorMetadata,
    TensorProblem,
};
use http::{HeaderMap, HeaderValue, header};

/// Makes random requests for one model.
#[derive(Debug)]
pub(super) struct Random {
    inputs: Vec<Input>,
    writer: Writer,
    range: Option<Range>,
    seed: u64,
}

/// The encoder of requests.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    model: String,
    version: Option<String>,
    encoding: Encoding,
    protocol: Protocol,
}

/// Why no request can be made up.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// No answer to the question what the model is like.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
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
    /// A tensor without a JSON form.
    #[error("{0}: expected the encoding binary")]
    NoJson(#[from] EncodeError),
    /// The bodies would not fit.
    #[error(transparent)]
    Room(#[from] TooLarge),
}

#[derive(Debug)]
struct Input {
    name: String,
    datatype: Datatype,
    /// Without a given shape, `None` stands for the batch.
    shape: Vec<Option<u64>>,
}

impl Writer {
    /// For inferences like this one.
    pub(super) fn new(plan: &Plan, infer: &Infer) -> Self {
        Self {
            model: infer.model.clone(),
            version: infer.version.clone(),
            encoding: infer.encoding,
            protocol: plan.target.protocol,
        }
    }

    /// Whether a JSON request can be sent as it is.
    pub(super) fn is_json(&self) -> bool {
        self.protocol != Protocol::Grpc && self.encoding == Encoding::Json
    }

    /// Writes a request, and the headers that go with all that are as long as it.
    ///
    /// # Errors
    /// A tensor has no JSON form and is to have one.
    pub(super) fn write(
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
    /// No usable answer, or dynamic dimensions without a shape in the scenario.
    pub(super) async fn new(plan: &Plan, infer: &Infer) -> Result<Self, InferError> {
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
    pub(super) fn make(
        &self,
        batch: u64,
        distinct: usize,
        base: &HeaderMap,
        room: &mut u64,
    ) -> Result<Size, InferError> {
        let mut headers = base.clone();
        let mut bodies = Vec::with_capacity(distinct.min(1024));
        for index in 0..distinct as u64 {
            let mut rng = fastrand::Rng::with_seed(derive(self.seed ^ index, batch));
            let request = self.request(batch, index, &mut rng)?;
            let body = self.writer.write(request, &mut headers)?;
            take_room(body.bytes.len() as u64, room)?;
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
    fn bodies_that_would_not_fit_are_refused_before_they_are_made() {
        let huge = r#"{"name":"m","platform":"p","outputs":[],"inputs":[{"name":"a","datatype":"FP32","shape":[-1,4294967296,4294967296]}]}"#;
        let mut room = 1 << 20;
        let made = random(Encoding::Json, huge, &[]).make(1, 1, &HeaderMap::new(), &mut room);
        assert!(matches!(made, Err(InferError::TooLarge(_))));
        let mut room = 10;
        let made = random(Encoding::Json, TWO, &[]).make(1, 1, &HeaderMap::new(), &mut room);
        assert!(matches!(made, Err(InferError::Room(_))));
    }
}
