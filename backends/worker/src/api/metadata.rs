//! Metadata of the worker and its models: health, index, configuration, statistics, metrics.

use crate::api::model_path::ModelPath;
use crate::api::repository_api;
use crate::config::model::Versions;
use crate::lifecycle::Phase;
use crate::refusal::{Refusal, json};
use crate::repository::version::Version;
use crate::repository::{Entry, State};
use crate::state::App;
use crate::telemetry::stats::Stats;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use forebay_protocol::Reason;
use forebay_protocol::family::GaugeFamily;
use forebay_protocol::metric::worker as metric;
use forebay_protocol::oip::{
    Datatype, ModelMetadata, ModelStatistics, Ready, ServerMetadata, Statistics, TensorMetadata,
};
use http::{StatusCode, header};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// `GET /`: for the person who opens it in a browser.
pub(crate) async fn welcome(Shared(app): Shared<Arc<App>>) -> String {
    let mut text = format!(
        "forebay-worker {}: Open Inference Protocol v2\n\n\
         GET  /v2                              this server\n\
         GET  /v2/health/live, /v2/health/ready\n\
         GET  /v2/models/MODEL                 inputs and outputs\n\
         GET  /v2/models/MODEL/ready, /config, /stats\n\
         POST /v2/models/MODEL/infer           run it\n\
         POST /v2/repository/index             all models and their states\n\
         POST /v2/repository/models/MODEL/load, /unload\n\
         POST /v1/embeddings, GET /v1/models   as OpenAI's clients ask\n\
         GET  /metrics                         for Prometheus\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for entry in repository_api::index(&app, false) {
        let version = entry.version.unwrap_or_default();
        // Writing to a string can't fail.
        let _ = writeln!(text, "{:12} {} {version}  {}", entry.state, entry.name, entry.reason);
    }
    text
}

/// `GET /v2`.
pub(crate) async fn server() -> Response {
    json(StatusCode::OK, &server_metadata())
}

/// Name, version and what is spoken beside the protocol itself.
pub(crate) fn server_metadata() -> ServerMetadata {
    let extensions = [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "statistics",
    ];
    ServerMetadata {
        name: "forebay-worker".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: extensions.map(str::to_owned).to_vec(),
    }
}

/// `GET /v2/health/live`.
pub(crate) async fn live() -> Response {
    json(StatusCode::OK, &Ready { live: Some(true), ready: None })
}

/// `GET /v2/health/ready`: 200 once every model has settled and one is ready, until draining.
pub(crate) async fn ready(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    readiness(&app)?;
    Ok(json(StatusCode::OK, &Ready { live: None, ready: Some(true) }))
}

/// Whether models can be used, and the worker is not shutting down.
///
/// # Errors
/// The reason why not.
pub(crate) fn readiness(app: &App) -> Result<(), Refusal> {
    if app.lifecycle.phase() >= Phase::Draining {
        return Err(Refusal::new(Reason::Draining, "the worker is shutting down"));
    }
    if !app.tasks.all_up() {
        return Err(Refusal::new(
            Reason::Internal,
            "a task of the worker has failed and is being restarted",
        ));
    }
    if !app.repository.is_ready() {
        return Err(Refusal::new(Reason::ModelNotReady, not_ready(app)));
    }
    Ok(())
}

fn not_ready(app: &App) -> String {
    let served = app.repository.served();
    let entries = || served.values().flat_map(|model| model.versions.values());
    let loading = entries().filter(|entry| matches!(entry.state, State::Loading)).count();
    match (loading, entries().count()) {
        (_, 0) => "no model in the repository can be served".to_owned(),
        (1.., all) => format!("{} of {all} models have loaded", all - loading),
        _ => "no model could be loaded, see POST /v2/repository/index".to_owned(),
    }
}

/// `GET /v2/models/{model}[/versions/{version}]`.
pub(crate) async fn model(
    Shared(app): Shared<Arc<App>>,
    path: ModelPath,
) -> Result<Response, Refusal> {
    Ok(json(StatusCode::OK, &metadata(&app, &path.model, path.version.as_deref()).await?))
}

/// Inputs and outputs of a version, which is loaded for it if need be.
pub(crate) async fn metadata(
    app: &App,
    model: &str,
    version: Option<&str>,
) -> Result<ModelMetadata, Refusal> {
    let version = app.repository.acquire(model, version).await?;
    let served = app.repository.served();
    let versions = served.get(model).map(|model| {
        let answering = model.versions.iter().filter(|(_, entry)| entry.state.can_answer());
        answering.map(|(number, _)| number.to_string()).collect()
    });
    Ok(ModelMetadata {
        name: version.model.clone(),
        versions: versions.unwrap_or_default(),
        platform: version.engine.platform().to_owned(),
        inputs: version.loaded.inputs().to_vec(),
        outputs: version.loaded.outputs().to_vec(),
        properties: properties(&version),
    })
}

fn properties(version: &Version) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::new();
    let mut put = |key: &str, value: &str| properties.insert(key.to_owned(), value.to_owned());
    put("version", &version.number);
    put("digest", &format!("blake3:{}", version.digest));
    match (version.loaded.max_batch(), version.loaded.unbatched()) {
        (Some(_), _) => put("batching", "rows of several requests run together"),
        (None, Some(why)) => put("batching", &format!("each request runs alone: {why}")),
        (None, None) => None,
    };
    // Replicas of one model are to show the same.
    put("engine", version.engine.name());
    put("build", version.loaded.build());
    for (label, number) in &version.config.labels {
        put(&format!("label.{label}"), &number.to_string());
    }
    properties
}

/// `GET /v2/models/{model}[/versions/{version}]/ready`: what is loaded on demand is ready.
pub(crate) async fn model_ready(
    Shared(app): Shared<Arc<App>>,
    path: ModelPath,
) -> Result<Response, Refusal> {
    app.repository.ready(&path.model, path.version.as_deref())?;
    Ok(json(StatusCode::OK, &Ready { live: None, ready: Some(true) }))
}

/// `GET /v2/models/{model}[/versions/{version}]/config`, in Triton's form as far as it applies.
pub(crate) async fn model_config(
    Shared(app): Shared<Arc<App>>,
    path: ModelPath,
) -> Result<Response, Refusal> {
    Ok(json(StatusCode::OK, &config(&app, &path.model, path.version.as_deref()).await?))
}

/// The configuration of a version, which is loaded for it if need be.
pub(crate) async fn config(
    app: &App,
    model: &str,
    version: Option<&str>,
) -> Result<serde_json::Value, Refusal> {
    let version = app.repository.acquire(model, version).await?;
    let (engine, loaded) = (&version.engine, &version.loaded);
    let batched = loaded.max_batch().is_some();
    let tensors = |tensors: &[TensorMetadata]| -> Vec<_> {
        tensors.iter().map(|tensor| tensor_config(tensor, &version, batched)).collect()
    };
    let policy = match &version.config.versions {
        Versions::Latest(count) => serde_json::json!({"latest": {"num_versions": count}}),
        Versions::All => serde_json::json!({"all": {}}),
        Versions::Specific(versions) => serde_json::json!({"specific": {"versions": versions}}),
    };
    Ok(serde_json::json!({
        "name": version.model,
        "platform": engine.platform(),
        "backend": engine.name(),
        "version_policy": policy,
        "max_batch_size": loaded.max_batch().unwrap_or(0),
        "input": tensors(loaded.inputs()),
        "output": tensors(loaded.outputs()),
        "instance_group": [{"kind": engine.device().kind(), "count": app.options.executors}],
        "parameters": {"description": {"string_value": version.config.description}},
    }))
}

/// Triton leaves the batch out of `dims` where it has a maximal size.
fn tensor_config(tensor: &TensorMetadata, version: &Version, batched: bool) -> serde_json::Value {
    let datatype = match tensor.datatype {
        Datatype::Bytes => "STRING",
        datatype => datatype.as_str(),
    };
    let described = version.config.tensors.iter().find(|t| t.name == tensor.name);
    serde_json::json!({
        "name": tensor.name,
        "data_type": format!("TYPE_{datatype}"),
        "dims": tensor.shape[usize::from(batched)..],
        "description": described.map(|t| t.description.as_str()).unwrap_or_default(),
        "label_filename": described.and_then(|t| t.label_file.as_deref()).unwrap_or_default(),
    })
}

/// `GET /v2/models/stats`.
pub(crate) async fn models_statistics(Shared(app): Shared<Arc<App>>) -> Response {
    json(StatusCode::OK, &all_statistics(&app))
}

/// Statistics of all models.
pub(crate) fn all_statistics(app: &App) -> Statistics {
    let served = app.repository.served();
    let model_stats = served.iter().flat_map(|(name, model)| numbers(name, &model.versions));
    Statistics { model_stats: model_stats.collect() }
}

/// `GET /v2/models/{model}[/versions/{version}]/stats`.
pub(crate) async fn model_statistics(
    Shared(app): Shared<Arc<App>>,
    path: ModelPath,
) -> Result<Response, Refusal> {
    Ok(json(StatusCode::OK, &statistics(&app, &path.model, path.version.as_deref())?))
}

/// Statistics of a model: of all its versions unless one is named. No version is loaded for that.
///
/// # Errors
/// It is not there, or can't be loaded.
pub(crate) fn statistics(
    app: &App,
    name: &str,
    version: Option<&str>,
) -> Result<Statistics, Refusal> {
    // Refuses in the words that an inference would be refused in.
    app.repository.ready(name, version)?;
    let served = app.repository.served();
    let model_stats = match (served.get(name), version) {
        (None, _) => Vec::new(),
        (Some(model), None) => numbers(name, &model.versions).collect(),
        (Some(model), Some(wanted)) => numbers(name, model.named(wanted)).collect(),
    };
    Ok(Statistics { model_stats })
}

/// Of those versions that can answer; one that never was in memory has done nothing yet.
fn numbers<'a>(
    name: &'a str,
    versions: impl IntoIterator<Item = (&'a u64, &'a Entry)>,
) -> impl Iterator<Item = ModelStatistics> {
    let answering = versions.into_iter().filter(|(_, entry)| entry.state.can_answer());
    answering.map(move |(number, entry)| {
        let memory = entry.version().map(|v| (v.engine.device(), v.memory.bytes()));
        let number = number.to_string();
        match &entry.known {
            Some(known) => known.stats.statistics(name, &number, memory),
            None => {
                ModelStatistics { name: name.to_owned(), version: number, ..Default::default() }
            }
        }
    })
}

/// `GET /metrics`. Gauges are read off their sources now, so that they can't be out of date.
pub(crate) async fn metrics(Shared(app): Shared<Arc<App>>) -> Response {
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let set = |gauge: metrics::Gauge, value: usize| gauge.set(value as f64);
    let plain = |family: &GaugeFamily<0>| app.metrics.gauge(family, []);
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let set_bytes = |gauge: metrics::Gauge, bytes: u64| gauge.set(bytes as f64);
    let counts = app.queue.counts();
    set(plain(&metric::IN_FLIGHT), counts.waiting + counts.executing);
    set(plain(&metric::SLOTS), app.load.slots());
    for (task, count) in app.tasks.restarts() {
        app.metrics.counter(&metric::TASK_RESTARTS, [task]).absolute(count);
    }
    set(plain(&metric::CONNECTIONS), app.connections.count());
    set(plain(&metric::EXECUTORS_LOST), app.watchdog.lost());
    set_bytes(plain(&metric::MODELS_MEMORY), app.repository.memory());
    let facts: Vec<_> = app.options.engines.iter().flat_map(|engine| engine.facts()).collect();
    app.metrics.info(env!("CARGO_PKG_VERSION"), &facts);
    for (name, model) in app.repository.served().iter() {
        set(app.metrics.gauge(&metric::QUEUE_DEPTH, [name]), app.queue.depth(model.line.id()));
        for (number, entry) in &model.versions {
            let number = number.to_string();
            let labels = (name.as_str(), number.as_str());
            let version = entry.version();
            let gauge = |family| app.metrics.by_version.gauge(family, labels);
            gauge(&metric::MODEL_READY).set(f64::from(u8::from(version.is_some())));
            set_bytes(gauge(&metric::MODEL_MEMORY), version.map_or(0, |v| v.memory.bytes()));
            if let Some(version) = version {
                Stats::show_model(&app.metrics, labels, &*version.loaded);
            }
        }
    }
    let text = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], app.metrics.render()).into_response()
}

/// The refusal of an unknown path.
pub(crate) fn nothing(uri: &http::Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    let path = path.escape_debug();
    Refusal::new(
        Reason::NotFound,
        format!("nothing is served at \"{path}\"; GET / lists the paths"),
    )
}

/// The refusal of a known path with another method.
pub(crate) async fn not_so(method: http::Method) -> Refusal {
    let text = format!("not with {method} here, see GET /");
    Refusal::new(Reason::MethodNotAllowed, text)
}
