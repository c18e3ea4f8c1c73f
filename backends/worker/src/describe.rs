//! What the worker says of itself and its models: metadata, health, index, configuration, metrics.

use crate::app::{App, ModelPath};
use crate::lifecycle::Phase;
use crate::model_config::Versions;
use crate::refusal::{Refusal, json};
use crate::repository::Version;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use forebay_protocol::Reason;
use forebay_protocol::metric::worker as metric;
use forebay_protocol::oip::{
    Datatype, ModelIndex, ModelMetadata, Ready, ServerMetadata, TensorMetadata,
};
use http::{StatusCode, header};
use std::fmt::Write;
use std::sync::Arc;

/// `GET /`: for the person who opens it in a browser.
pub(crate) async fn welcome(State(app): State<Arc<App>>) -> String {
    let mut text = format!(
        "forebay-worker {}: Open Inference Protocol v2\n\n\
         GET  /v2                              this server\n\
         GET  /v2/health/live, /v2/health/ready\n\
         GET  /v2/models/MODEL                 inputs and outputs\n\
         GET  /v2/models/MODEL/ready, /config\n\
         POST /v2/models/MODEL/infer           run it\n\
         POST /v2/repository/index             all models and their states\n\
         GET  /metrics                         for Prometheus\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for entry in index_entries(&app) {
        let version = entry.version.unwrap_or_default();
        // Writing to a string can't fail.
        let _ = writeln!(text, "{:12} {} {version}  {}", entry.state, entry.name, entry.reason);
    }
    text
}

/// `GET /v2`.
pub(crate) async fn server() -> Response {
    let extensions = ["binary_tensor_data", "model_repository(index)", "model_configuration"];
    let metadata = ServerMetadata {
        name: "forebay-worker".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: extensions.map(str::to_owned).to_vec(),
    };
    json(StatusCode::OK, &metadata)
}

/// `GET /v2/health/live`.
pub(crate) async fn live() -> Response {
    json(StatusCode::OK, &Ready { live: Some(true), ready: None })
}

/// `GET /v2/health/ready`: 200 once every model has settled and one is ready, until draining.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    if app.lifecycle.phase() >= Phase::Draining {
        return Err(Refusal::new(Reason::Draining, "the worker is on its way out"));
    }
    if !app.repository.is_ready() {
        return Err(Refusal::new(Reason::ModelNotReady, not_ready(&app)));
    }
    Ok(json(StatusCode::OK, &Ready { live: None, ready: Some(true) }))
}

fn not_ready(app: &App) -> String {
    let settled = app.repository.versions().filter(|v| v.settled.get().is_some()).count();
    let all = app.repository.versions().count();
    match (settled, all) {
        (_, 0) => "no model in the repository can be served".to_owned(),
        (settled, all) if settled < all => format!("{settled} of {all} models have loaded"),
        _ => "no model could be loaded, see POST /v2/repository/index".to_owned(),
    }
}

/// `GET /v2/models/{model}[/versions/{version}]`.
pub(crate) async fn model(
    State(app): State<Arc<App>>,
    path: ModelPath,
) -> Result<Response, Refusal> {
    let version = find(&app, &path)?;
    let engine = version.ready()?;
    let versions = app.repository.model(&path.model)?.versions.values();
    let metadata = ModelMetadata {
        name: version.model.clone(),
        versions: versions.map(|version| version.number.clone()).collect(),
        platform: "onnx".to_owned(),
        inputs: engine.inputs().to_vec(),
        outputs: engine.outputs().to_vec(),
    };
    Ok(json(StatusCode::OK, &metadata))
}

/// `GET /v2/models/{model}[/versions/{version}]/ready`.
pub(crate) async fn model_ready(
    State(app): State<Arc<App>>,
    path: ModelPath,
) -> Result<Response, Refusal> {
    find(&app, &path)?.ready()?;
    Ok(json(StatusCode::OK, &Ready { live: None, ready: Some(true) }))
}

/// `GET /v2/models/{model}[/versions/{version}]/config`, in Triton's form as far as it applies.
pub(crate) async fn model_config(
    State(app): State<Arc<App>>,
    path: ModelPath,
) -> Result<Response, Refusal> {
    let version = find(&app, &path)?;
    let engine = version.ready()?;
    let batched = engine.max_batch().is_some();
    let tensors = |tensors: &[TensorMetadata]| -> Vec<_> {
        tensors.iter().map(|tensor| tensor_config(tensor, version, batched)).collect()
    };
    let policy = match &version.config.versions {
        Versions::Latest => serde_json::json!({"latest": {"num_versions": 1}}),
        Versions::All => serde_json::json!({"all": {}}),
        Versions::Only(versions) => serde_json::json!({"specific": {"versions": versions}}),
    };
    let config = serde_json::json!({
        "name": version.model,
        "platform": "onnx",
        "backend": "tract",
        "version_policy": policy,
        "max_batch_size": engine.max_batch().unwrap_or(0),
        "input": tensors(engine.inputs()),
        "output": tensors(engine.outputs()),
        "instance_group": [{"kind": "KIND_CPU", "count": app.options.executors}],
        "parameters": {"description": {"string_value": version.config.description}},
    });
    Ok(json(StatusCode::OK, &config))
}

/// Triton leaves the batch out of `dims` where it has a maximal size.
fn tensor_config(tensor: &TensorMetadata, version: &Version, batched: bool) -> serde_json::Value {
    let datatype = match tensor.datatype {
        Datatype::Bytes => "STRING",
        datatype => datatype.as_str(),
    };
    let mut described = version.config.tensors.iter();
    let description = described.find(|t| t.name == tensor.name).map(|t| t.description.as_str());
    serde_json::json!({
        "name": tensor.name,
        "data_type": format!("TYPE_{datatype}"),
        "dims": tensor.shape[usize::from(batched)..],
        "description": description.unwrap_or_default(),
    })
}

/// `POST /v2/repository/index`.
pub(crate) async fn index(State(app): State<Arc<App>>) -> Response {
    json(StatusCode::OK, &index_entries(&app))
}

fn index_entries(app: &App) -> Vec<ModelIndex> {
    let mut entries = Vec::new();
    for (name, model) in app.repository.models() {
        let entry = |version: Option<&str>, state: &str, reason: &str| ModelIndex {
            name: name.to_owned(),
            version: version.map(str::to_owned),
            state: state.to_owned(),
            reason: reason.to_owned(),
        };
        if let Some(failure) = &model.failure {
            entries.push(entry(None, "UNAVAILABLE", failure));
        }
        for version in model.versions.values() {
            let number = Some(version.number.as_str());
            entries.push(match version.settled.get() {
                Some(Ok(_)) => entry(number, "READY", ""),
                Some(Err(failure)) => entry(number, "UNAVAILABLE", failure),
                None => entry(number, "LOADING", "loading and warming up"),
            });
        }
    }
    entries
}

/// `GET /metrics`. Gauges are read off their sources now, so that they can't be out of date.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let set = |name, labels: &[(&'static str, &str)], value: usize| {
        app.metrics.gauge(name, labels).set(value as f64);
    };
    let (waiting, executing) = app.queue.waiting(|| app.load.executing());
    set(metric::IN_FLIGHT, &[], waiting + executing as usize);
    set(metric::SLOTS, &[], app.options.executors);
    for (name, model) in app.repository.models() {
        set(metric::QUEUE_DEPTH, &[("model", name)], app.queue.depth(model.line));
    }
    for version in app.repository.versions() {
        let labels = [("model", version.model.as_str()), ("version", version.number.as_str())];
        set(metric::MODEL_READY, &labels, usize::from(version.ready().is_ok()));
    }
    let text = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], app.metrics.render()).into_response()
}

/// What is not there.
pub(crate) async fn nothing(uri: http::Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    let path = path.escape_debug();
    Refusal::new(Reason::NotFound, format!("nothing at \"{path}\", see GET /"))
}

/// What is there, but not with this method.
pub(crate) async fn not_so(method: http::Method) -> Refusal {
    let text = format!("not with {method} here, see GET /");
    Refusal::new(Reason::MethodNotAllowed, text)
}

fn find<'a>(app: &'a App, path: &ModelPath) -> Result<&'a Arc<Version>, Refusal> {
    app.repository.version(&path.model, path.version.as_deref())
}
