//! One inference, whichever protocol it came by.
//!
//! An answer carries a digest of the request, so that mixed-up answers can be told and the same
//! question always gets the same answer.

use crate::{Backend, Refused, Service};
use bytes::Bytes;
use forebay_protocol::header::SERVICE_DEMAND;
use forebay_protocol::oip::{Data, Datatype, InferResponse, ModelMetadata, Tensor, TensorMetadata};
use forebay_protocol::{LoadReport, Reason};
use http::{HeaderMap, HeaderName};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Longest request that is read, in bytes.
const MAX_BODY: usize = 64 << 20;
/// Longest service time that a request may ask for.
const MAX_DEMAND: Duration = Duration::from_secs(3600);
/// Name of the server in its metadata.
pub(crate) const NAME: &str = "forebay-synthetic";
/// The only version of the model.
pub(crate) const VERSION: &str = "1";

/// A refusal: why, and in words.
pub(crate) type Refusal = (Reason, String);

/// A request that is being answered, as long as this lives.
#[derive(Debug)]
pub(crate) struct Open(Rc<Backend>);

impl Open {
    pub(crate) fn new(backend: &Rc<Backend>) -> Self {
        backend.open.set(backend.open.get() + 1);
        Self(Rc::clone(backend))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.ended.notify_waiters();
    }
}

impl Backend {
    /// Reads a body to its end.
    pub(crate) async fn body(&self, body: Incoming) -> Result<Bytes, Refusal> {
        let whole = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                (Reason::BodyTooLarge, format!("expected a body of at most {MAX_BODY} bytes"))
            } else {
                (Reason::InvalidRequest, "the body did not arrive completely".to_owned())
            }
        })?;
        Ok(whole.to_bytes())
    }

    /// Refuses what comes too late.
    pub(crate) fn takes(&self) -> Result<(), Refusal> {
        match self.closed.get() {
            true => Err((Reason::Draining, "on its way out".to_owned())),
            false => Ok(()),
        }
    }

    /// Serves a request that arrived at `arrived` and whose client waits for `patience`.
    pub(crate) async fn served(
        &self,
        service: Service,
        headers: &HeaderMap,
        arrived: Instant,
        patience: Option<Duration>,
    ) -> Result<(), Refusal> {
        let demand = self.demand(service, headers)?;
        let deadline = patience.and_then(|patience| arrived.checked_add(patience));
        self.slot_queue.serve(demand, deadline).await.map_err(|refused| match refused {
            Refused::Full => {
                (Reason::QueueFull, format!("the queue is full with {} requests", service.queue))
            }
            Refused::Late => {
                (Reason::DeadlineExceeded, "the deadline passed in the queue".to_owned())
            }
        })
    }

    /// The answer to a request of these bytes.
    pub(crate) fn response(&self, id: Option<String>, request: &[u8]) -> InferResponse {
        let digest = Data::Int64(vec![digest(request)].into());
        InferResponse {
            model_name: self.options.model.clone(),
            model_version: Some(VERSION.to_owned()),
            id,
            outputs: Vec::from_iter(Tensor::new("digest", vec![1], digest)),
            ..InferResponse::default()
        }
    }

    /// Metadata of the model: any number of rows of 64 numbers in, one digest out.
    pub(crate) fn metadata(&self) -> ModelMetadata {
        let tensor =
            |name: &str, datatype, shape| TensorMetadata { name: name.to_owned(), datatype, shape };
        ModelMetadata {
            name: self.options.model.clone(),
            versions: vec![VERSION.to_owned()],
            platform: "synthetic".to_owned(),
            inputs: vec![tensor("input", Datatype::Fp32, vec![-1, 64])],
            outputs: vec![tensor("digest", Datatype::Int64, vec![1])],
            properties: Default::default(),
        }
    }

    pub(crate) fn known(&self, model: Option<&str>) -> Result<(), Refusal> {
        match model {
            Some(model) if model == self.options.model => Ok(()),
            _ => Err((
                Reason::ModelNotFound,
                format!("expected the model \"{}\"", self.options.model),
            )),
        }
    }

    /// Current numbers of running and waiting requests.
    pub(crate) fn report(&self) -> Option<LoadReport> {
        let service = self.options.service?;
        let load = self.slot_queue.load();
        let sequence = self.reports.get() + 1;
        self.reports.set(sequence);
        let count = |n: usize| u32::try_from(n).ok();
        Some(LoadReport {
            rif: count(load.running + load.queued),
            queue: count(load.queued),
            slots: Some(service.slots),
            lat_at_rif_ms: Some(load.mean * 1e3),
            seq: Some(sequence),
            ..LoadReport::default()
        })
    }

    fn demand(&self, service: Service, headers: &HeaderMap) -> Result<Duration, Refusal> {
        let asked = number(headers, &SERVICE_DEMAND)?.map(Duration::from_micros);
        let demand = match asked {
            Some(demand) => demand.min(MAX_DEMAND),
            None => service.time.draw(&mut self.rng.borrow_mut()),
        };
        Ok(Duration::from_secs_f64(
            (demand.as_secs_f64() * service.slow * self.slow.get()).min(1e6),
        ))
    }
}

/// A header with a whole number.
pub(crate) fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, Refusal> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_differ_with_the_body() {
        assert_eq!(digest(b"hello world"), digest(b"hello world"));
        assert_ne!(digest(b"hello world"), digest(b"hello worle"));
        assert_ne!(digest(b""), digest(b"a"));
    }
}
