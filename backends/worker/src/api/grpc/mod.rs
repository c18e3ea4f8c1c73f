//! gRPC on the same port as REST: inferences, metadata, repository, health and load reports.
//!
//! | file | does |
//! |---|---|
//! | `call` | what comes in: headers, framed messages, bounded in bytes, time and memory |
//! | `infer` | inferences, one by one or in a stream |
//! | `metadata` | what the worker says of itself, and the repository calls |
//! | `health` | the standard health service, and load reports out of band |
//! | `answer` | what goes out: messages, and trailers with status, reason and load report |
//!
//! Everything between reading and writing is what REST calls too. The messages are public; see
//! `crates/protocol/proto`.

mod answer;
mod call;
mod health;
mod infer;
mod metadata;

use crate::api::metadata as rest;
use crate::refusal::Refusal;
use crate::state::App;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use call::{Call, no_method};
use forebay_protocol::Reason;
use forebay_protocol::grpc::{self, HEALTH_SERVICE, INFERENCE_SERVICE, LOAD_SERVICE};
use http::{Version, header};
use std::sync::Arc;

/// The services.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(&format!("/{INFERENCE_SERVICE}/{{method}}"), post(inference_service))
        .route(&format!("/{HEALTH_SERVICE}/{{method}}"), post(health_service))
        .route(&format!("/{LOAD_SERVICE}/{{method}}"), post(load_service))
        .layer(middleware::from_fn(only_grpc))
}

/// Refuses anything but gRPC in plain HTTP: another client would not read trailers.
async fn only_grpc(request: Request, next: Next) -> Result<Response, Refusal> {
    let version = request.version();
    if version < Version::HTTP_2 {
        return Err(Refusal::request(format!("expected gRPC over HTTP/2, found {version:?}")));
    }
    if !grpc::is_grpc(request.headers()) {
        let found = request.headers().get(header::CONTENT_TYPE);
        let text = format!("expected content-type application/grpc, found {found:?}");
        return Err(Refusal::new(Reason::UnsupportedEncoding, text));
    }
    Ok(next.run(request).await)
}

/// Says so in the client's protocol if there is nothing at a path.
pub(crate) async fn or_nothing(State(app): State<Arc<App>>, request: Request) -> Response {
    let refusal = rest::nothing(request.uri());
    refuse(&app, grpc::is_grpc(request.headers()), refusal)
}

/// A refusal in the protocol of the request.
pub(crate) fn refuse(app: &App, is_grpc: bool, refusal: Refusal) -> Response {
    if is_grpc { answer::unary(app, Err(refusal)) } else { refusal.into_response() }
}

async fn inference_service(
    State(app): State<Arc<App>>,
    Path(method): Path<String>,
    request: Request,
) -> Response {
    let call = Call::begin(&app, request);
    match (method.as_str(), call) {
        ("ModelInfer", call) => infer::unary(&app, call).await,
        ("ModelStreamInfer", Ok(call)) => infer::stream(call),
        (method, Ok(call)) => answer::unary(&app, metadata::answer(method, call).await),
        (_, Err(refusal)) => answer::unary(&app, Err(refusal)),
    }
}

async fn health_service(
    State(app): State<Arc<App>>,
    Path(method): Path<String>,
    request: Request,
) -> Response {
    match (method.as_str(), Call::begin(&app, request)) {
        ("Check", Ok(call)) => answer::unary(&app, health::check(call).await),
        ("Watch", Ok(call)) => health::watch(call).await,
        (method, Ok(_)) => answer::unary(&app, Err(no_method(method))),
        (_, Err(refusal)) => answer::unary(&app, Err(refusal)),
    }
}

async fn load_service(
    State(app): State<Arc<App>>,
    Path(method): Path<String>,
    request: Request,
) -> Response {
    match (method.as_str(), Call::begin(&app, request)) {
        ("StreamCoreMetrics", Ok(call)) => health::load_reports(call).await,
        (method, Ok(_)) => answer::unary(&app, Err(no_method(method))),
        (_, Err(refusal)) => answer::unary(&app, Err(refusal)),
    }
}
