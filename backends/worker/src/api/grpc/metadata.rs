//! Metadata of the worker and its models, and the calls that change them: the same as over REST, in other
//! messages.

use super::call::{Call, no_method};
use crate::api::{metadata, repository_api};
use crate::refusal::Refusal;
use crate::state::App;
use bytes::Bytes;
use forebay_protocol::grpc::pb;
use forebay_protocol::oip::{
    BatchStatistics, DurationStatistic, MemoryUsage, ModelIndex, ModelStatistics, TensorMetadata,
};
use pb::model_metadata_response::TensorMetadata as PbTensor;
use pb::model_version_policy::{All, Latest, PolicyChoice, Specific};
use serde_json::Value;
use std::sync::Arc;

/// Answers every unary method of the inference service but `ModelInfer`.
///
/// # Errors
/// There is no such method, or what REST would refuse.
pub(crate) async fn answer(method: &str, call: Call) -> Result<Bytes, Refusal> {
    match method {
        "ServerLive" => call.answer(server_live).await,
        "ServerReady" => call.answer(server_ready).await,
        "ServerMetadata" => call.answer(server_metadata).await,
        "ModelReady" => call.answer(model_ready).await,
        "ModelMetadata" => call.answer(model_metadata).await,
        "ModelConfig" => call.answer(model_config).await,
        "ModelStatistics" => call.answer(model_statistics).await,
        "RepositoryIndex" => call.answer(index).await,
        "RepositoryModelLoad" => call.answer(load).await,
        "RepositoryModelUnload" => call.answer(unload).await,
        method => Err(no_method(method)),
    }
}

async fn server_live(
    _: Arc<App>,
    _: pb::ServerLiveRequest,
) -> Result<pb::ServerLiveResponse, Refusal> {
    Ok(pb::ServerLiveResponse { live: true })
}

async fn server_ready(
    app: Arc<App>,
    _: pb::ServerReadyRequest,
) -> Result<pb::ServerReadyResponse, Refusal> {
    Ok(pb::ServerReadyResponse { ready: metadata::readiness(&app).is_ok() })
}

async fn server_metadata(
    _: Arc<App>,
    _: pb::ServerMetadataRequest,
) -> Result<pb::ServerMetadataResponse, Refusal> {
    let metadata = metadata::server_metadata();
    Ok(pb::ServerMetadataResponse {
        name: metadata.name,
        version: metadata.version,
        extensions: metadata.extensions,
    })
}

async fn model_ready(
    app: Arc<App>,
    request: pb::ModelReadyRequest,
) -> Result<pb::ModelReadyResponse, Refusal> {
    let ready = app.repository.ready(&request.name, named(&request.version)).is_ok();
    Ok(pb::ModelReadyResponse { ready })
}

async fn model_metadata(
    app: Arc<App>,
    request: pb::ModelMetadataRequest,
) -> Result<pb::ModelMetadataResponse, Refusal> {
    let metadata = metadata::metadata(&app, &request.name, named(&request.version)).await?;
    let tensor = |tensor: TensorMetadata| PbTensor {
        name: tensor.name,
        datatype: tensor.datatype.as_str().to_owned(),
        shape: tensor.shape,
    };
    Ok(pb::ModelMetadataResponse {
        name: metadata.name,
        versions: metadata.versions,
        platform: metadata.platform,
        inputs: metadata.inputs.into_iter().map(tensor).collect(),
        outputs: metadata.outputs.into_iter().map(tensor).collect(),
    })
}

async fn model_config(
    app: Arc<App>,
    request: pb::ModelConfigRequest,
) -> Result<pb::ModelConfigResponse, Refusal> {
    let config = metadata::config(&app, &request.name, named(&request.version)).await?;
    Ok(pb::ModelConfigResponse { config: Some(config_message(&config)) })
}

async fn model_statistics(
    app: Arc<App>,
    request: pb::ModelStatisticsRequest,
) -> Result<pb::ModelStatisticsResponse, Refusal> {
    let statistics = match named(&request.name) {
        Some(name) => metadata::statistics(&app, name, named(&request.version))?,
        None => metadata::all_statistics(&app),
    };
    let model_stats = statistics.model_stats.into_iter().map(statistics_message).collect();
    Ok(pb::ModelStatisticsResponse { model_stats })
}

async fn index(
    app: Arc<App>,
    request: pb::RepositoryIndexRequest,
) -> Result<pb::RepositoryIndexResponse, Refusal> {
    let entry = |entry: ModelIndex| pb::repository_index_response::ModelIndex {
        name: entry.name,
        version: entry.version.unwrap_or_default(),
        state: entry.state,
        reason: entry.reason,
    };
    let models = repository_api::index(&app, request.ready).into_iter().map(entry).collect();
    Ok(pb::RepositoryIndexResponse { models })
}

async fn load(
    app: Arc<App>,
    request: pb::RepositoryModelLoadRequest,
) -> Result<pb::RepositoryModelLoadResponse, Refusal> {
    repository_api::refuse_parameters(request.parameters.keys())?;
    repository_api::load(&app, &request.model_name).await?;
    Ok(pb::RepositoryModelLoadResponse {})
}

async fn unload(
    app: Arc<App>,
    request: pb::RepositoryModelUnloadRequest,
) -> Result<pb::RepositoryModelUnloadResponse, Refusal> {
    repository_api::unload(&app, &request.model_name).await?;
    Ok(pb::RepositoryModelUnloadResponse {})
}

/// An empty name is none.
fn named(name: &str) -> Option<&str> {
    Some(name).filter(|name| !name.is_empty())
}

fn statistics_message(model: ModelStatistics) -> pb::ModelStatistics {
    let time =
        |time: DurationStatistic| Some(pb::StatisticDuration { count: time.count, ns: time.ns });
    let batch = |batch: BatchStatistics| pb::InferBatchStatistics {
        batch_size: batch.batch_size,
        compute_input: time(batch.compute_input),
        compute_infer: time(batch.compute_infer),
        compute_output: time(batch.compute_output),
    };
    let memory = |memory: MemoryUsage| pb::MemoryUsage {
        r#type: memory.kind,
        id: memory.id,
        byte_size: memory.byte_size,
    };
    let times = model.inference_stats;
    pb::ModelStatistics {
        name: model.name,
        version: model.version,
        last_inference: model.last_inference,
        inference_count: model.inference_count,
        execution_count: model.execution_count,
        inference_stats: Some(pb::InferStatistics {
            success: time(times.success),
            fail: time(times.fail),
            queue: time(times.queue),
            compute_input: time(times.compute_input),
            compute_infer: time(times.compute_infer),
            compute_output: time(times.compute_output),
            cache_hit: time(times.cache_hit),
            cache_miss: time(times.cache_miss),
        }),
        batch_stats: model.batch_stats.into_iter().map(batch).collect(),
        memory_usage: model.memory_usage.into_iter().map(memory).collect(),
    }
}

/// The configuration's JSON document as a message: Triton's JSON has the names of its messages.
fn config_message(config: &Value) -> pb::ModelConfig {
    let list = |key: &str| config[key].as_array().into_iter().flatten();
    let group = |group: &Value| pb::ModelInstanceGroup {
        name: text(&group["name"]),
        count: number(&group["count"]),
        kind: pb::model_instance_group::Kind::from_str_name(&text(&group["kind"]))
            .unwrap_or_default()
            .into(),
    };
    let parameters = config["parameters"].as_object().into_iter().flatten();
    let parameter = |(key, value): (&String, &Value)| {
        (key.clone(), pb::ModelParameter { string_value: text(&value["string_value"]) })
    };
    let batching = config.get("dynamic_batching").map(|batching| {
        pb::model_config::SchedulingChoice::DynamicBatching(pb::ModelDynamicBatching {
            preferred_batch_size: numbers(&batching["preferred_batch_size"]),
            max_queue_delay_microseconds: number(&batching["max_queue_delay_microseconds"]),
        })
    });
    pb::ModelConfig {
        name: text(&config["name"]),
        platform: text(&config["platform"]),
        version_policy: Some(version_policy(&config["version_policy"])),
        max_batch_size: number(&config["max_batch_size"]),
        input: list("input")
            .map(|input| pb::ModelInput {
                name: text(&input["name"]),
                data_type: data_type(&input["data_type"]),
                dims: numbers(&input["dims"]),
            })
            .collect(),
        output: list("output")
            .map(|output| pb::ModelOutput {
                name: text(&output["name"]),
                data_type: data_type(&output["data_type"]),
                dims: numbers(&output["dims"]),
                label_filename: text(&output["label_filename"]),
            })
            .collect(),
        instance_group: list("instance_group").map(group).collect(),
        default_model_filename: text(&config["default_model_filename"]),
        scheduling_choice: batching,
        parameters: parameters.map(parameter).collect(),
        backend: text(&config["backend"]),
    }
}

fn version_policy(policy: &Value) -> pb::ModelVersionPolicy {
    let choice = if let Some(latest) = policy.get("latest") {
        PolicyChoice::Latest(Latest { num_versions: number(&latest["num_versions"]) })
    } else if let Some(specific) = policy.get("specific") {
        PolicyChoice::Specific(Specific { versions: numbers(&specific["versions"]) })
    } else {
        PolicyChoice::All(All {})
    };
    pb::ModelVersionPolicy { policy_choice: Some(choice) }
}

fn data_type(name: &Value) -> i32 {
    pb::DataType::from_str_name(name.as_str().unwrap_or_default()).unwrap_or_default().into()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number<T: TryFrom<i64> + Default>(value: &Value) -> T {
    value.as_i64().and_then(|number| number.try_into().ok()).unwrap_or_default()
}

fn numbers<T: TryFrom<i64> + Default>(value: &Value) -> Vec<T> {
    value.as_array().into_iter().flatten().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_says_the_same_as_over_rest() {
        let message = config_message(&serde_json::json!({
            "name": "m", "platform": "onnx", "backend": "tract",
            "version_policy": {"specific": {"versions": [1, 3]}},
            "max_batch_size": 8,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3]}],
            "output": [{"name": "y", "data_type": "TYPE_STRING", "dims": [1]}],
            "instance_group": [{"kind": "KIND_CPU", "count": 2}],
            "dynamic_batching": {"max_queue_delay_microseconds": 100},
            "parameters": {"description": {"string_value": "text"}},
        }));
        assert_eq!((message.name.as_str(), message.max_batch_size), ("m", 8));
        assert_eq!(message.input[0].data_type(), pb::DataType::TypeFp32);
        assert_eq!(message.input[0].dims, [-1, 3]);
        assert_eq!(message.output[0].data_type(), pb::DataType::TypeString);
        assert_eq!(message.instance_group[0].kind(), pb::model_instance_group::Kind::Cpu);
        assert_eq!(message.parameters["description"].string_value, "text");
        let versions = Specific { versions: vec![1, 3] };
        let policy = message.version_policy.and_then(|policy| policy.policy_choice);
        assert_eq!(policy, Some(PolicyChoice::Specific(versions)));
        assert!(message.scheduling_choice.is_some());
    }
}
