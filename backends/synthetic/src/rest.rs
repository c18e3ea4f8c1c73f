//! The Open Inference Protocol over REST, as far as a synthetic model needs it.

use crate::call::{NAME, Open, Refusal, number};
use crate::reply::{Answer, Reply};
use crate::{Backend, grpc};
use bytes::Bytes;
use forebay_protocol::Reason;
use forebay_protocol::header::{
    INFERENCE_HEADER_CONTENT_LENGTH, LOAD_REPORT, REASON, REQUEST_DEADLINE,
};
use forebay_protocol::oip::{Call, ErrorBody, Path, Ready, ServerMetadata, TensorMetadata};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Length of the fixed answer.
const FAST_LENGTH: usize = 300;
/// `POST` here a number, and services take so many times as long as they did at the start.
const SLOW: &str = "/slow";
/// Most and least that they may take.
const SLOW_RANGE: std::ops::RangeInclusive<f64> = 1e-3..=1e3;

static FAST_ANSWER: LazyLock<Bytes> = LazyLock::new(|| {
    let head = r#"{"model_name":"synthetic","model_version":"1","outputs":[{"name":"digest","datatype":"INT64","shape":[1],"data":[0]}],"parameters":{"padding":""#;
    let tail = r#""}}"#;
    let padding = FAST_LENGTH.saturating_sub(head.len() + tail.len());
    Bytes::from([head, &"x".repeat(padding), tail].concat())
});

impl Backend {
    pub(crate) async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> Result<Answer, Infallible> {
        let open = Open::new(&self);
        let (head, body) = request.into_parts();
        let answer = if forebay_protocol::grpc::is_grpc(&head.headers) {
            grpc::answer(&self, &head, body).await
        } else {
            self.respond(&head, body).await
        };
        Ok(answer.map(|reply| reply.until_written(open)))
    }

    async fn respond(&self, head: &Parts, body: Incoming) -> Answer {
        let result = match Path::parse(head.uri.path()) {
            Some(path) if path.call == Call::Infer && head.method == Method::POST => {
                match self.known(path.model) {
                    Ok(()) => self.infer(&head.headers, body).await,
                    Err(refusal) => Err(refusal),
                }
            }
            Some(path) if path.call == Call::Infer => {
                Err((Reason::MethodNotAllowed, format!("expected POST, found {}", head.method)))
            }
            Some(path) if head.method == Method::GET => self.describe(path, head.uri.path()),
            _ if self.options.service.is_none() => self.infer(&head.headers, body).await,
            _ if head.uri.path() == SLOW && head.method == Method::POST => self.slow(body).await,
            _ => Err((Reason::NotFound, format!("nothing is served at {}", head.uri.path()))),
        };
        let mut response = result.unwrap_or_else(|(reason, text)| refuse(reason, text));
        let report =
            self.report().and_then(|report| HeaderValue::try_from(report.to_string()).ok());
        if let Some(report) = report {
            response.headers_mut().insert(LOAD_REPORT, report);
        }
        if self.draining.get() && head.version < Version::HTTP_2 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn describe(&self, path: Path<'_>, whole: &str) -> Result<Answer, Refusal> {
        let ready = || match self.draining.get() {
            true => Err((Reason::Draining, "on its way out".to_owned())),
            false => Ok(respond(&Ready { ready: Some(true), live: None })),
        };
        match path.call {
            Call::ServerLive => Ok(respond(&Ready { live: Some(true), ready: None })),
            Call::ServerReady => ready(),
            Call::ServerMetadata => Ok(respond(&ServerMetadata {
                name: NAME.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                extensions: Vec::new(),
            })),
            Call::ModelReady => self.known(path.model).and_then(|()| ready()),
            Call::ModelMetadata => self.known(path.model).map(|()| respond(&self.metadata())),
            Call::ModelOther if whole.ends_with("/config") => {
                self.known(path.model).map(|()| respond(&self.config()))
            }
            _ => Err((Reason::NotFound, "nothing is served at this path".to_owned())),
        }
    }

    /// Triton's form of the metadata, without which its load generator does nothing.
    fn config(&self) -> serde_json::Value {
        let of = self.metadata();
        let tensor = |tensor: &TensorMetadata| {
            let datatype = format!("TYPE_{}", tensor.datatype);
            serde_json::json!({ "name": tensor.name, "data_type": datatype, "dims": tensor.shape })
        };
        serde_json::json!({
            "name": of.name,
            "platform": of.platform,
            "backend": "synthetic",
            "max_batch_size": 0,
            "input": of.inputs.iter().map(tensor).collect::<Vec<_>>(),
            "output": of.outputs.iter().map(tensor).collect::<Vec<_>>(),
        })
    }

    async fn infer(&self, headers: &HeaderMap, body: Incoming) -> Result<Answer, Refusal> {
        let arrived = Instant::now();
        self.takes()?;
        let body = self.body(body).await?;
        let Some(service) = self.options.service else {
            return Ok(with_type(Response::new(Reply::new(FAST_ANSWER.clone()))));
        };
        let patience = number(headers, &REQUEST_DEADLINE)?.map(Duration::from_millis);
        self.served(service, headers, arrived, patience).await?;
        let json_len = number(headers, &INFERENCE_HEADER_CONTENT_LENGTH)?;
        let response = self.response(id(&body, json_len), &body);
        // Integers always have a JSON form.
        let encoded = response.encode(|_| false);
        let text = encoded.map_err(|error| (Reason::Internal, error.to_string()))?.body;
        Ok(with_type(Response::new(Reply::new(text.into()))))
    }

    async fn slow(&self, body: Incoming) -> Result<Answer, Refusal> {
        let body = self.body(body).await?;
        let factor = std::str::from_utf8(&body).ok().and_then(|text| text.trim().parse().ok());
        let Some(factor) = factor.filter(|factor| SLOW_RANGE.contains(factor)) else {
            return Err((Reason::InvalidRequest, format!("expected a number of {SLOW_RANGE:?}")));
        };
        self.slow.set(factor);
        Ok(respond(&serde_json::json!({ "slow": factor })))
    }
}

/// The name that the client gave to its request; any body will do, also one that has none.
fn id(body: &[u8], json_len: Option<u64>) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        id: Option<String>,
    }
    let end = json_len.and_then(|length| usize::try_from(length).ok()).unwrap_or(body.len());
    let named: Named = serde_json::from_slice(body.get(..end)?).ok()?;
    named.id.filter(|id| !id.is_empty())
}

fn respond(value: &impl Serialize) -> Answer {
    // These are small structures of strings and numbers: they always have a JSON form.
    with_type(Response::new(Reply::new(serde_json::to_vec(value).unwrap_or_default().into())))
}

fn with_type(mut response: Answer) -> Answer {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(reason: Reason, error: String) -> Answer {
    let mut response = respond(&ErrorBody { error });
    *response.status_mut() = reason.status();
    response.headers_mut().insert(REASON, HeaderValue::from_static(reason.code()));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_answer_is_an_inference_of_300_bytes() {
        assert_eq!(FAST_ANSWER.len(), FAST_LENGTH);
        let answer: serde_json::Value = serde_json::from_slice(&FAST_ANSWER).unwrap_or_default();
        assert_eq!(answer["outputs"][0]["name"], "digest");
    }

    #[test]
    fn a_request_keeps_its_name_where_it_has_one() {
        assert_eq!(id(br#"{"id":"7","inputs":[]}xxxx"#, Some(22)), Some("7".to_owned()));
        for (body, json_len) in
            [(&b"{}"[..], None), (b"", None), (b"{\"id\":\"\"}", None), (b"{}", Some(9))]
        {
            assert_eq!(id(body, json_len), None);
        }
    }
}
