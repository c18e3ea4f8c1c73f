//! Inferences over gRPC: one to a call, or one after the other in a stream.

use super::answer;
use super::call::{self, Call};
use crate::api::body::Encoding;
use crate::inference::blocking;
use crate::inference::{self, Answer, Terms};
use crate::refusal::Refusal;
use crate::state::App;
use crate::telemetry::metrics::NO_MODEL;
use axum::response::Response;
use forebay_protocol::grpc::pb::{self, infer_parameter::ParameterChoice};
use forebay_protocol::grpc::{infer as wire, text_field};
use forebay_protocol::{ModelContent, header as names};
use futures_util::{StreamExt, stream};
use prost::Message;
use std::sync::Arc;
use std::time::Instant;

/// Requests of one stream that run or wait at once; what comes then waits in the connection, so that
/// its window closes and the client slows down.
const AHEAD: usize = 32;

/// `ModelInfer`.
pub(crate) async fn unary(app: &Arc<App>, call: Result<Call, Refusal>) -> Response {
    let encoding = call.as_ref().map_or(Encoding::Identity, |call| call.answers);
    let answered = async {
        let received = async {
            let call = call?;
            let terms = call.terms;
            Ok((terms, call.message(app.options.max_body).await?))
        };
        let (terms, received) = received.await.inspect_err(|refusal| unread(app, refusal))?;
        let (response, content) = run(app, terms, received).await?;
        let size = response.encoded_len();
        let framed = call::work(size, move || Ok(answer::frame_as(&response, encoding))).await?;
        Ok((framed, content))
    };
    let (answered, content) = answered.await.map_or_else(
        |refusal| (Err(refusal), None),
        |(framed, content)| (Ok(framed), Some(content)),
    );
    let mut response = answer::unary_as(app, answered, encoding);
    if let Some(content) = content {
        Answer::state_content(content, response.headers_mut());
    }
    response
}

/// `ModelStreamInfer`: answers in the order of the requests, though they run at once.
pub(crate) fn stream(call: Call) -> Response {
    let (app, terms, encoding) = (Arc::clone(&call.app), call.terms, call.answers);
    let messages = call.messages(app.options.max_body);
    let messages = stream::try_unfold(messages, async |mut messages: call::Messages| {
        Ok(messages.next().await?.map(|received| (received, messages)))
    });
    let runs = Arc::clone(&app);
    let answers = messages.map(move |received| {
        let app = Arc::clone(&runs);
        async move {
            let received = received.inspect_err(|refusal| unread(&app, refusal))?;
            let message = received.message.clone();
            let terms = Terms { arrived: Instant::now(), ..terms };
            let response = match run(&app, terms, received).await {
                Ok((response, _)) => pb::ModelStreamInferResponse {
                    infer_response: Some(response),
                    ..Default::default()
                },
                Err(refusal) => refused(&message, refusal),
            };
            let size = response.encoded_len();
            call::work(size, move || Ok(answer::frame_as(&response, encoding))).await
        }
    });
    answer::streamed(app, answers.buffered(AHEAD), encoding)
}

/// Runs one request, however it came. The content is that of the model that answered.
async fn run(
    app: &Arc<App>,
    terms: Terms,
    received: call::Received,
) -> Result<(pb::ModelInferResponse, ModelContent), Refusal> {
    let call::Received { message, share } = received;
    let name = name(&message).inspect_err(|refusal| unread(app, refusal))?;
    let read = async |_| {
        let size = message.len();
        let read = move || {
            let begun = Instant::now();
            let request = wire::read_request(&message)?;
            Ok(inference::Received { request, share, took: begun.elapsed() })
        };
        call::work(size, read).await
    };
    let write = async |Answer { response, content, .. }| {
        let size = response.outputs.iter().map(|output| output.data.binary_len()).sum();
        call::work(size, move || Ok((wire::write_response(&response), content))).await
    };
    let (model, version) = (name.0.as_str(), Some(name.1.as_str()).filter(|v| !v.is_empty()));
    blocking::bounded(
        terms.deadline,
        inference::infer(app, (model, version), Ok(terms), read, write),
    )
    .await
}

/// Model and version; empty if the message names none.
fn name(message: &[u8]) -> Result<(String, String), Refusal> {
    let text = |field| Ok::<_, Refusal>(text_field(message, field)?.unwrap_or_default().to_owned());
    Ok((text(1)?, text(2)?))
}

/// The answer in a stream to a request that is refused: its id, so that the client knows which.
fn refused(message: &[u8], refusal: Refusal) -> pb::ModelStreamInferResponse {
    refusal.log();
    let id = text_field(message, 3).ok().flatten().unwrap_or_default().to_owned();
    let reason = ParameterChoice::StringParam(refusal.reason.code().to_owned());
    let reason = pb::InferParameter { parameter_choice: Some(reason) };
    let parameters = [(names::REASON.to_string(), reason)].into();
    pb::ModelStreamInferResponse {
        error_message: refusal.message,
        infer_response: Some(pb::ModelInferResponse { id, parameters, ..Default::default() }),
    }
}

/// Counts a request whose model is unknown.
fn unread(app: &App, refusal: &Refusal) {
    app.metrics.inference(NO_MODEL, NO_MODEL, refusal.reason.code());
}
