//! The metadata of a model, asked of the target: its inputs, their types and shapes.

use crate::connection::ask::{ask, code_of, frame};
use crate::plan::target::Target;
use crate::scenario::{Infer, Protocol};
use bytes::Bytes;
use forebay_protocol::grpc::{self, Code, INFERENCE_SERVICE, pb};
use forebay_protocol::oip::{Datatype, MAX_TENSORS, ModelMetadata, TensorMetadata, encoded};
use prost::Message;

/// Maximum length of metadata, in bytes.
const MAX_METADATA: usize = 1 << 20;

/// No answer to the question what a model is like.
#[derive(Debug, thiserror::Error)]
#[error("no metadata from {url}: {problem}")]
pub struct MetadataError {
    /// The URL that was asked.
    pub url: String,
    /// The answer that came instead, in words.
    pub problem: String,
}

/// `base/v2/models/{model}[/versions/{version}]`, names percent-encoded.
pub(super) fn path(base: &str, model: &str, version: Option<&str>) -> String {
    let path = format!("{base}/v2/models/{}", encoded(model));
    match version {
        Some(version) => format!("{path}/versions/{}", encoded(version)),
        None => path,
    }
}

/// Asks the target what a model is like.
pub(super) async fn metadata(
    target: &Target,
    infer: &Infer,
) -> Result<ModelMetadata, MetadataError> {
    let grpc = target.protocol == Protocol::Grpc;
    let path = if grpc {
        format!("{}/{INFERENCE_SERVICE}/ModelMetadata", target.base())
    } else {
        path(target.base(), &infer.model, infer.version.as_deref())
    };
    let fail = |problem: String| MetadataError {
        url: format!("{}://{}{path}", target.scheme(), target.authority),
        problem,
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

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn names_are_encoded_in_paths() {
        assert_eq!(path("", "a b/c", Some("1")), "/v2/models/a%20b%2Fc/versions/1");
    }
}
