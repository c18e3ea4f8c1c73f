//! The Open Inference Protocol, as far as a synthetic model needs it.
//!
//! An answer carries a digest of the request's body, so that mixed-up answers can be told and the
//! same question always gets the same answer.

use super::{Backend, Refused, Service};
use crate::request::SERVICE_DEMAND;
use bytes::Bytes;
use forebay_protocol::header::{LOAD_REPORT, REASON, REQUEST_DEADLINE};
use forebay_protocol::oip::{Call, Path};
use forebay_protocol::{LoadReport, Reason};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::json;
use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Longest request that is read, in bytes.
const MAX_BODY: usize = 64 << 20;
/// Longest service time that a request may ask for.
const MAX_DEMAND: Duration = Duration::from_secs(3600);
/// Length of the fixed answer.
const FAST_LENGTH: usize = 300;

static FAST_ANSWER: LazyLock<Bytes> = LazyLock::new(|| {
    let head = r#"{"model_name":"synthetic","model_version":"1","outputs":[{"name":"digest","datatype":"INT64","shape":[1],"data":[0]}],"parameters":{"padding":""#;
    let tail = r#""}}"#;
    let padding = FAST_LENGTH.saturating_sub(head.len() + tail.len());
    Bytes::from([head, &"x".repeat(padding), tail].concat())
});

type Answer = Response<Full<Bytes>>;

/// A refusal: why, and in words.
type Refusal = (Reason, String);

impl Backend {
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let (head, body) = request.into_parts();
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
            Some(path) if head.method == Method::GET => self.describe(path),
            _ if self.options.service.is_none() => self.infer(&head.headers, body).await,
            _ => Err((Reason::NotFound, format!("nothing is served at {}", head.uri.path()))),
        };
        let mut response = result.unwrap_or_else(|(reason, text)| refuse(reason, &text));
        if let Some(report) = self.report() {
            response.headers_mut().insert(LOAD_REPORT, report);
        }
        Ok(response)
    }

    fn describe(&self, path: Path<'_>) -> Result<Answer, Refusal> {
        let model = self.options.model.as_str();
        Ok(match path.call {
            Call::ServerLive | Call::ServerReady => respond(&json!({ "live": true })),
            Call::ServerMetadata => respond(&json!({
                "name": "forebay-load backend", "version": env!("CARGO_PKG_VERSION"),
                "extensions": [],
            })),
            Call::ModelReady => {
                self.known(path.model)?;
                respond(&json!({ "name": model, "ready": true }))
            }
            Call::ModelMetadata => {
                self.known(path.model)?;
                respond(&json!({
                    "name": model, "versions": ["1"], "platform": "synthetic",
                    "inputs": [{ "name": "input", "datatype": "FP32", "shape": [-1, 64] }],
                    "outputs": [{ "name": "digest", "datatype": "INT64", "shape": [1] }],
                }))
            }
            _ => return Err((Reason::NotFound, "nothing is served at this path".to_owned())),
        })
    }

    fn known(&self, model: Option<&str>) -> Result<(), Refusal> {
        match model {
            Some(model) if model == self.options.model => Ok(()),
            _ => Err((
                Reason::ModelNotFound,
                format!("expected the model \"{}\"", self.options.model),
            )),
        }
    }

    async fn infer(&self, headers: &HeaderMap, body: Incoming) -> Result<Answer, Refusal> {
        let arrived = Instant::now();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                (Reason::BodyTooLarge, format!("expected a body of at most {MAX_BODY} bytes"))
            } else {
                (Reason::InvalidRequest, "the body did not arrive whole".to_owned())
            }
        })?;
        let Some(service) = self.options.service else {
            return Ok(with_type(Response::new(Full::new(FAST_ANSWER.clone()))));
        };
        let demand = self.demand(service, headers)?;
        let deadline = number(headers, &REQUEST_DEADLINE)?
            .and_then(|millis| arrived.checked_add(Duration::from_millis(millis)));
        self.line.serve(demand, deadline).await.map_err(|refused| match refused {
            Refused::Full => {
                (Reason::QueueFull, format!("{} requests wait already", service.queue))
            }
            Refused::Late => {
                (Reason::DeadlineExceeded, "the deadline passed in the queue".to_owned())
            }
        })?;
        Ok(respond(&json!({
            "model_name": self.options.model, "model_version": "1",
            "outputs": [{
                "name": "digest", "datatype": "INT64", "shape": [1],
                "data": [digest(&body.to_bytes())],
            }],
        })))
    }

    fn demand(&self, service: Service, headers: &HeaderMap) -> Result<Duration, Refusal> {
        let asked = number(headers, &SERVICE_DEMAND)?.map(Duration::from_micros);
        let demand = match asked {
            Some(demand) => demand.min(MAX_DEMAND),
            None => service.time.draw(&mut self.rng.borrow_mut()),
        };
        Ok(Duration::from_secs_f64((demand.as_secs_f64() * service.slow).min(1e6)))
    }

    fn report(&self) -> Option<HeaderValue> {
        let service = self.options.service?;
        let load = self.line.load();
        let sequence = self.reports.get() + 1;
        self.reports.set(sequence);
        let count = |n: usize| u32::try_from(n).ok();
        let report = LoadReport {
            rif: count(load.running + load.queued),
            queue: count(load.queued),
            slots: Some(service.slots),
            lat_at_rif_ms: Some(load.mean * 1e3),
            seq: Some(sequence),
            ..LoadReport::default()
        };
        HeaderValue::try_from(report.to_string()).ok()
    }
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || (Reason::InvalidRequest, format!("{name}: expected a whole number"));
    parsed.map(Some).ok_or_else(wrong)
}

/// FNV-1a over words of 8 bytes: fast enough for megabytes, and stable.
fn digest(body: &[u8]) -> i64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in body.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
    }
    hash.cast_signed()
}

fn respond(value: &serde_json::Value) -> Answer {
    with_type(Response::new(Full::new(value.to_string().into())))
}

fn with_type(mut response: Answer) -> Answer {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(reason: Reason, text: &str) -> Answer {
    let mut response = respond(&json!({ "error": text }));
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
    fn digests_differ_with_the_body() {
        assert_eq!(digest(b"hello world"), digest(b"hello world"));
        assert_ne!(digest(b"hello world"), digest(b"hello worle"));
        assert_ne!(digest(b""), digest(b"a"));
    }
}
