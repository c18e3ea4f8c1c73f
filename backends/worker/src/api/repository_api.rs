//! The model repository extension: index, load, unload, for every transport.
//!
//! A client that may load and unload models can stop the service, so it is off unless the operator says
//! `models_control = true`. A signal (SIGHUP) or polling serve those who would rather not.

use crate::api::body::{self, Encoding, ReadTimeout};
use crate::api::cross_site;
use crate::api::model_path::ModelPath;
use crate::memory::OfConnection;
use crate::memory::Share;
use crate::refusal::{Refusal, json};
use crate::repository::command::Command;
use crate::repository::{Entry, State};
use crate::state::App;
use axum::extract::{Request, State as Shared};
use axum::response::Response;
use forebay_protocol::Reason;
use forebay_protocol::oip::ModelIndex;
use http::StatusCode;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Longest body of these calls, in bytes.
const MAX_BODY: usize = 64 << 10;

/// Loads a model, or its changes, and waits until it answers. The served versions stay until then, and also
/// if the load fails.
///
/// # Errors
/// Not allowed; no such model; or it can't be loaded, and why.
pub(crate) async fn load(app: &App, model: &str) -> Result<(), Refusal> {
    ask(app, |reply| Command::Load { model: model.to_owned(), reply }).await
}

/// Takes a model out of service. Requests that have begun are finished.
///
/// # Errors
/// Not allowed; no such model.
pub(crate) async fn unload(app: &App, model: &str) -> Result<(), Refusal> {
    ask(app, |reply| Command::Unload { model: model.to_owned(), reply }).await
}

/// All models and versions with their states; `only_ready`: those that can answer.
pub(crate) fn index(app: &App, only_ready: bool) -> Vec<ModelIndex> {
    let mut list = Vec::new();
    for (name, model) in app.repository.served().iter() {
        let line = |version: Option<u64>, state: &str, reason: &str| ModelIndex {
            name: name.clone(),
            version: version.map(|number| number.to_string()),
            state: state.to_owned(),
            reason: reason.to_owned(),
        };
        if let Some(failure) = &model.failure
            && !only_ready
        {
            list.push(line(None, "UNAVAILABLE", failure));
        }
        for (number, entry) in &model.versions {
            if entry.state.can_answer() || !only_ready {
                let (state, reason) = state_of(entry);
                list.push(line(Some(*number), state, reason));
            }
        }
    }
    list
}

/// In the protocol's words.
fn state_of(entry: &Entry) -> (&'static str, &str) {
    let failure = entry.failure.as_deref();
    match &entry.state {
        // It serves; if it has a failure, then because something newer could not be loaded.
        State::Ready(_) => ("READY", failure.unwrap_or_default()),
        State::OnDemand => ("READY", failure.unwrap_or("not in memory, loaded on demand")),
        State::Loading => ("LOADING", "loading and warming up"),
        State::Failed => ("UNAVAILABLE", failure.unwrap_or("it can't be loaded")),
        State::Unloaded(version) if version.strong_count() > 0 => {
            ("UNLOADING", "requests that had begun are being finished")
        }
        State::Unloaded(_) => ("UNAVAILABLE", "unloaded"),
    }
}

/// Refuses configurations and files in a request: they would be models that no operator has reviewed.
///
/// # Errors
/// There is a parameter.
pub(crate) fn refuse_parameters<'a>(
    mut names: impl Iterator<Item = &'a String>,
) -> Result<(), Refusal> {
    let Some(name) = names.next() else { return Ok(()) };
    let name: String = name.chars().take(100).collect();
    let name = name.escape_debug();
    let text = format!("expected no parameters: models come from disk alone, found \"{name}\"");
    Err(Refusal::request(text))
}

async fn ask(
    app: &App,
    command: impl FnOnce(oneshot::Sender<Result<(), Refusal>>) -> Command,
) -> Result<(), Refusal> {
    if !app.options.models_control {
        let text = "models are not loaded and unloaded on request here (models_control is off)";
        return Err(Refusal::new(Reason::Forbidden, text));
    }
    let (reply, answer) = oneshot::channel();
    app.repository.ask(command(reply))?;
    let ending = || Err(Refusal::new(Reason::Draining, "the worker is shutting down"));
    answer.await.unwrap_or_else(|_| ending())
}

/// Body of the calls, as Triton's clients send it.
#[derive(Debug, Default, serde::Deserialize)]
struct CallBody {
    #[serde(default)]
    ready: bool,
    #[serde(default)]
    parameters: BTreeMap<String, serde_json::Value>,
}

/// `POST /v2/repository/index`.
pub(crate) async fn index_call(
    Shared(app): Shared<Arc<App>>,
    request: Request,
) -> Result<Response, Refusal> {
    let body = read(&app, request).await?;
    Ok(json(StatusCode::OK, &index(&app, body.ready)))
}

/// `POST /v2/repository/models/{model}/load`.
pub(crate) async fn load_call(
    Shared(app): Shared<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Refusal> {
    let body = read(&app, request).await?;
    refuse_parameters(body.parameters.keys())?;
    load(&app, &path.model).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

/// `POST /v2/repository/models/{model}/unload`.
pub(crate) async fn unload_call(
    Shared(app): Shared<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Refusal> {
    // `unload_dependents` may stand there: no model depends on another here.
    read(&app, request).await?;
    unload(&app, &path.model).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn read(app: &App, request: Request) -> Result<CallBody, Refusal> {
    let (parts, body) = request.into_parts();
    cross_site::refuse(&parts.headers, &parts.uri)?;
    let mut share = Share::of(&app.memory, parts.extensions.get::<OfConnection>().cloned());
    let encoding = Encoding::of(&parts.headers)?;
    let body = body::read(body, (MAX_BODY, 0), ReadTimeout::of(&app.options), &mut share).await?;
    let body = body::inflate(body, encoding, MAX_BODY, &mut share)?;
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(CallBody::default());
    }
    serde_json::from_slice(&body)
        .map_err(|error| Refusal::request(format!("invalid JSON: {error}")))
}
