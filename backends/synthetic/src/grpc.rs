//! The same over gRPC: inferences, metadata and health.

use crate::call::{NAME, Refusal, VERSION};
use crate::reply::{Answer, Reply};
use crate::{Backend, Options};
use bytes::Bytes;
use forebay_protocol::Reason;
use forebay_protocol::grpc::{self, Code, Method, infer, pb};
use forebay_protocol::header::{GRPC_MESSAGE, GRPC_STATUS, GRPC_TIMEOUT, LOAD_REPORT_BIN, REASON};
use forebay_protocol::oip::{Datatype, TensorMetadata};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Response};
use hyper::body::Incoming;
use prost::Message;
use std::time::Instant;

const SERVER_METADATA: &str = "/inference.GRPCInferenceService/ServerMetadata";
const MODEL_CONFIG: &str = "/inference.GRPCInferenceService/ModelConfig";
const MODEL_METADATA: &str = "/inference.GRPCInferenceService/ModelMetadata";

/// Answers a call; a refusal has no message, only trailers, which then stand in the header.
pub(crate) async fn answer(backend: &Backend, head: &Parts, body: Incoming) -> Answer {
    let result = call(backend, head, body).await;
    let status = trailers(backend, result.as_ref().err());
    let mut response = match result {
        Ok(message) => Response::new(Reply::with_trailers(message, status)),
        Err(_) => {
            let mut response = Response::new(Reply::default());
            *response.headers_mut() = status;
            response
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(grpc::CONTENT_TYPE));
    response
}

async fn call(backend: &Backend, head: &Parts, body: Incoming) -> Result<Bytes, Refusal> {
    let arrived = Instant::now();
    let body = backend.body(body).await?;
    let wrong = |error: &dyn std::fmt::Display| (Reason::InvalidRequest, error.to_string());
    let (_, message) = grpc::only_message(&body).map_err(|error| wrong(&error))?;
    let named = || {
        let model = grpc::text_field(&message, 1).map_err(|error| wrong(&error))?;
        backend.known(model)
    };
    let ready = !backend.draining.get();
    Ok(match Method::of(head.uri.path()) {
        Method::Infer => {
            named()?;
            backend.takes()?;
            let patience = head.headers.get(GRPC_TIMEOUT).and_then(|value| value.to_str().ok());
            let patience = patience.and_then(grpc::parse_timeout);
            if let Some(service) = backend.options.service {
                backend.served(service, &head.headers, arrived, patience).await?;
            }
            let id = grpc::text_field(&message, 3).map_err(|error| wrong(&error))?;
            let response = backend.response(id.map(str::to_owned), &message);
            frame(&infer::write_response(&response))
        }
        Method::ServerLive => frame(&pb::ServerLiveResponse { live: true }),
        Method::ServerReady => frame(&pb::ServerReadyResponse { ready }),
        Method::OtherUnary if head.uri.path() == SERVER_METADATA => {
            frame(&pb::ServerMetadataResponse {
                name: NAME.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                extensions: Vec::new(),
            })
        }
        Method::OtherUnary if head.uri.path() == MODEL_METADATA => {
            named()?;
            frame(&metadata(&backend.options, backend))
        }
        Method::OtherUnary if head.uri.path() == MODEL_CONFIG => {
            named()?;
            frame(&pb::ModelConfigResponse { config: Some(config(backend)) })
        }
        _ => return Err((Reason::NotFound, format!("no method at {}", head.uri.path()))),
    })
}

fn metadata(options: &Options, backend: &Backend) -> pb::ModelMetadataResponse {
    let of = backend.metadata();
    let tensor = |tensor: TensorMetadata| pb::model_metadata_response::TensorMetadata {
        name: tensor.name,
        datatype: tensor.datatype.as_str().to_owned(),
        shape: tensor.shape,
    };
    pb::ModelMetadataResponse {
        name: options.model.clone(),
        versions: vec![VERSION.to_owned()],
        platform: of.platform,
        inputs: of.inputs.into_iter().map(tensor).collect(),
        outputs: of.outputs.into_iter().map(tensor).collect(),
    }
}

/// Triton's form of the metadata, without which its load generator does nothing.
fn config(backend: &Backend) -> pb::ModelConfig {
    let of = backend.metadata();
    let data_type = |datatype: Datatype| {
        let name = format!("TYPE_{datatype}");
        pb::DataType::from_str_name(&name).unwrap_or_default().into()
    };
    let input = |tensor: TensorMetadata| pb::ModelInput {
        name: tensor.name,
        data_type: data_type(tensor.datatype),
        dims: tensor.shape,
    };
    let output = |tensor: TensorMetadata| pb::ModelOutput {
        name: tensor.name,
        data_type: data_type(tensor.datatype),
        dims: tensor.shape,
        ..Default::default()
    };
    pb::ModelConfig {
        name: of.name,
        platform: of.platform,
        backend: "synthetic".to_owned(),
        input: of.inputs.into_iter().map(input).collect(),
        output: of.outputs.into_iter().map(output).collect(),
        ..Default::default()
    }
}

fn frame(message: &impl Message) -> Bytes {
    // Fails only without room, and the buffer grows.
    grpc::frame(message.encoded_len(), |out| message.encode(out).unwrap_or_default())
}

fn trailers(backend: &Backend, refusal: Option<&Refusal>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    let code = refusal.map_or(Code::Ok, |(reason, _)| reason.grpc());
    trailers.insert(GRPC_STATUS, code.value());
    if let Some((reason, text)) = refusal {
        trailers.insert(GRPC_MESSAGE, grpc::encode_message(text));
        trailers.insert(REASON, HeaderValue::from_static(reason.code()));
    }
    let report = backend.report().and_then(|report| HeaderValue::try_from(report.to_base64()).ok());
    if let Some(report) = report {
        trailers.insert(LOAD_REPORT_BIN, report);
    }
    trailers
}
