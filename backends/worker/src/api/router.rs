//! The routes, and the headers that every answer carries.

use crate::api::body::Encoding;
use crate::api::{ambiguous_framing, compress, grpc, metadata, openai, repository_api, rest};
use crate::lifecycle::Phase;
use crate::state::App;
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use forebay_protocol::grpc::is_grpc;
use forebay_protocol::header as names;
use http::{HeaderMap, HeaderValue, Version as HttpVersion, header};
use std::sync::Arc;
use tracing::Instrument;

/// Longest identity of a request that is logged, in bytes.
const MAX_LOGGED_ID: usize = 128;

/// Everything that the worker answers.
pub(crate) fn router(app: Arc<App>) -> Router {
    let model = Router::new()
        .route("/", get(metadata::model))
        .route("/ready", get(metadata::model_ready))
        .route("/config", get(metadata::model_config))
        .route("/stats", get(metadata::model_statistics))
        .route("/infer", post(rest::infer));
    Router::new()
        .route("/", get(metadata::welcome))
        .route("/metrics", get(metadata::metrics))
        .route("/v2", get(metadata::server))
        .route("/v2/", get(metadata::server))
        .route("/v2/health/live", get(metadata::live))
        .route("/v2/health/ready", get(metadata::ready))
        .route("/v2/repository/index", post(repository_api::index_call))
        .route("/v2/repository/models/{model}/load", post(repository_api::load_call))
        .route("/v2/repository/models/{model}/unload", post(repository_api::unload_call))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{model}", get(openai::model))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v2/models/stats", get(metadata::models_statistics))
        .nest("/v2/models/{model}", model.clone())
        .nest("/v2/models/{model}/versions/{version}", model)
        .merge(grpc::routes())
        .fallback(grpc::or_nothing)
        .method_not_allowed_fallback(metadata::not_so)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), every_answer))
        .with_state(app)
}

/// Load report, request id, and the word that a connection will be closed.
async fn every_answer(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let as_json = headers.get(names::LOAD_REPORT_FORMAT).is_some_and(|form| form == "json");
    let id = headers.get(names::REQUEST_ID).cloned();
    let is_http1 = request.version() <= HttpVersion::HTTP_11;
    let span = tracing::info_span!(
        "request",
        id = text(headers, &names::REQUEST_ID),
        trace = text(headers, &names::TRACEPARENT),
    );
    let encoding = compress::accepted(headers, &header::ACCEPT_ENCODING);
    let (mut response, last) = match ambiguous_framing::check(&request) {
        Ok(()) => (next.run(request).instrument(span).await, false),
        Err(refusal) => (refusal.into_response(), true),
    };
    if encoding != Encoding::Identity && !is_grpc(response.headers()) {
        response = compress::answer(response, encoding).await;
    }
    let headers = response.headers_mut();
    // gRPC has it in the trailers.
    if !is_grpc(headers) {
        let report = app.load_report();
        let report = if as_json { report.to_json() } else { report.to_string() };
        // Digits, letters and punctuation: always a header value.
        if let Ok(report) = HeaderValue::try_from(report) {
            headers.insert(names::LOAD_REPORT, report);
        }
    }
    if let Some(id) = id {
        headers.insert(names::REQUEST_ID, id);
    }
    if last || (is_http1 && app.lifecycle.phase() >= Phase::Draining) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    (value.len() <= MAX_LOGGED_ID).then_some(value)
}
