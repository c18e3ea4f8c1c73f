//! Shadows: a copy of a request is sent to another variant after its client has the answer, and the two answers
//! are compared.
//!
//! Copies tell how a new model would answer without any client getting its answers. They are worth that only if no
//! client notices them. So a copy begins when the client's answer is away, with places and memory of its own; it
//! never waits for an endpoint, is sent once, ends at the deadline, and teaches the proxy nothing: no retry budget,
//! no ejection, no estimate of a model's time knows of it. It gives way first: where requests wait, no endpoint is
//! free or memory is short, it is dropped and counted.
//!
//! [`begin`] takes the copy while the body is there, [`Shadow::answered`] adds the client's answer, and
//! [`Shadow::send`] does the rest beside all requests. [`compare`] tells answers apart, [`state`] has the bounds and
//! the counts, [`worst`] the report.

mod compare;
mod state;
mod worst;

pub use state::{RouteShadows, ShadowCounts, Shadows};

use crate::body_memory::{Held, cost};
use crate::config;
use crate::http::cache::outcome::Outcome as CacheOutcome;
use crate::http::cache::{Wire, is_embeddings, is_success, joined, off_io};
use crate::http::forward::send::{NotAnswered, send_once};
use crate::http::identify::Identity;
use crate::http::receive::Received;
use crate::http::request::{ForwardMode, Request};
use crate::http::response::BufferedResponse;
use crate::http::services::Services;
use crate::http::variant::{self, Target};
use crate::pool::queue::Bound;
use crate::refusal::Refusal;
use crate::telemetry::access_log::{self, ShadowEntry};
use bytes::Bytes;
use compare::Difference;
use forebay_protocol::{Priority, header};
use pingora::http::RequestHeader;
use state::{Dropped, Outcome};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::OwnedSemaphorePermit;
use worst::Case;

/// The share of copies that go to the variant that has answered, so that its difference from itself is known.
const NOISE: f64 = 0.01;
/// Share of the slots of a pool up to which it takes copies.
const MAX_UTILISATION: f64 = 0.8;

/// A copy of a request that is still to be answered.
pub struct Shadow {
    /// The variant that answers the client, and the copy's destination.
    given_by: Arc<config::Variant>,
    target: Target,
    is_noise: bool,
    head: RequestHeader,
    body: Bytes,
    held: Held,
    /// The client's answer.
    given: Option<(http::HeaderMap, Bytes)>,
    route: Arc<RouteShadows>,
}

/// Copies a request, if it is one of those whose copies are sent. `None` for all others.
pub fn begin(
    services: &Services,
    head: &RequestHeader,
    request: &Request,
    received: &Received,
) -> Option<Box<Shadow>> {
    let target = request.target.as_ref()?;
    let settings = target.route.shadow.as_ref()?;
    let is_comparable =
        request.is_inference(&head.method) || is_embeddings(head, &request.identity);
    if !is_comparable
        || target.variant.name == settings.variant
        || fastrand::f64() >= settings.share
    {
        return None;
    }
    let route = services.shadows.route(&target.route.name);
    let taken = take(services, (head, request, received), (target, settings), &route);
    taken.inspect_err(|why| route.dropped(&target.route.name, *why)).ok().map(Box::new)
}

fn take(
    services: &Services,
    (head, request, received): (&RequestHeader, &Request, &Received),
    (target, settings): (&Target, &config::Shadow),
    route: &Arc<RouteShadows>,
) -> Result<Shadow, Dropped> {
    if services.lifecycle.is_draining() {
        return Err(Dropped::Draining);
    }
    let Received::Whole(body) = received else { return Err(Dropped::Long) };
    let is_noise = fastrand::f64() < NOISE;
    let name = if is_noise { &target.variant.name } else { &settings.variant };
    let to = variant::asked(&request.snapshot, &target.route, &request.identity, name);
    let copied = to.map_err(|_| Dropped::Form)?;
    let limits = &request.snapshot.config.limits;
    let held = Shadows::account(services.lifecycle.memory(), limits).hold();
    held.try_grow(cost(body.len())).map_err(|_| Dropped::Memory)?;
    let mut head = head.clone();
    // Both answers are to be read, and the copy is known as one.
    head.insert_header(header::REQUEST_PRIORITY, Priority::Batch.as_str())
        .and_then(|()| head.insert_header(header::SHADOW, "1"))
        .map_err(|_| Dropped::Form)?;
    Ok(Shadow {
        given_by: Arc::clone(&target.variant),
        target: copied,
        is_noise,
        head,
        body: body.clone(),
        held,
        given: None,
        route: Arc::clone(route),
    })
}

impl Shadow {
    /// Keeps the client's answer, which is to be compared. `None`: there is nothing to compare, or it can't be
    /// kept.
    pub fn answered(
        mut self: Box<Self>,
        request: &Request,
        response: &BufferedResponse,
        is_whole: bool,
    ) -> Option<Box<Self>> {
        let is_grpc = request.identity.grpc.is_some();
        let is_own =
            request.degraded.is_none() && request.cache.is_none_or(|cache| !cache.is_from_memory());
        // The failure of another variant or an older answer says nothing about this model.
        if !is_own || !is_success(response, is_grpc) {
            return None;
        }
        let length = response.body.iter().map(Bytes::len).sum();
        let why = match () {
            () if !is_whole => Dropped::Long,
            () if self.held.try_grow(cost(length)).is_err() => Dropped::Memory,
            () => {
                self.given = Some((response.head.headers.clone(), joined(&response.body)));
                return Some(self);
            }
        };
        self.route.dropped(&self.target.route.name, why);
        None
    }

    /// Sends the copy and compares the answers, beside all requests; drops it where it would be in their way.
    pub fn send(self: Box<Self>, services: &Services, request: &Request) {
        let bound = match self.bind(services, request) {
            Ok(bound) => bound,
            Err(why) => return self.route.dropped(&self.target.route.name, why),
        };
        let copy = Request {
            identity: Identity {
                deadline: None,
                priority: Some(Priority::Batch),
                ..request.identity.clone()
            },
            priority: Priority::Batch,
            mode: Some(ForwardMode::Buffered),
            deadline: Some(Instant::now() + self.target.route.deadline),
            cache: Some(CacheOutcome::Missed { kept_for: None }),
            target: Some(self.target.clone()),
            ..Request::new(Arc::clone(&request.snapshot))
        };
        let services = services.clone();
        tokio::spawn(async move { self.run(&services, copy, bound).await });
    }

    /// A place and an endpoint, if nothing speaks against it.
    fn bind(
        &self,
        services: &Services,
        request: &Request,
    ) -> Result<(OwnedSemaphorePermit, Bound), Dropped> {
        if services.lifecycle.is_draining() {
            return Err(Dropped::Draining);
        }
        let own = request.target.as_ref().map(|target| &target.pool);
        let pools = own.into_iter().chain([&self.target.pool]);
        if pools.into_iter().any(|pool| pool.state.queue.count() > 0) {
            return Err(Dropped::Queued);
        }
        let place = services.shadows.place().ok_or(Dropped::InFlight)?;
        let pool = &self.target.pool;
        let utilisation = pool.waits().and_then(|waits| waits.utilisation);
        if utilisation.is_some_and(|taken| taken > MAX_UTILISATION) {
            return Err(Dropped::Busy);
        }
        let bound = pool.bind_free(|_| false).ok_or(Dropped::Busy)?;
        Ok((place, bound))
    }

    async fn run(
        self: Box<Self>,
        services: &Services,
        copy: Request,
        (place, bound): (OwnedSemaphorePermit, Bound),
    ) {
        let started = Instant::now();
        let endpoint = Arc::clone(&bound.endpoint.state.name);
        let memory = services.lifecycle.memory();
        let account = Shadows::account(memory, &copy.snapshot.config.limits);
        let message = (&self.head, self.body.clone());
        let sent = send_once(message, &copy, bound, (&*services.connector, &account)).await;
        let took = started.elapsed();
        let found = self.found(&copy, sent).await;
        drop(place);
        self.tell(services, &copy, &found, (&endpoint, took));
    }

    /// The result of comparing with the copy's answer.
    async fn found(&self, copy: &Request, sent: Result<BufferedResponse, NotAnswered>) -> Found {
        let is_grpc = copy.identity.grpc.is_some();
        let response = match sent {
            Ok(response) => response,
            Err(NotAnswered::Long) => return Found::of(Outcome::Unread, 200),
            Err(NotAnswered::Failed(refusal)) => {
                let status = refusal.reason.status().as_u16();
                return Found { failure: Some(refusal), ..Found::of(Outcome::Failed, status) };
            }
        };
        let status = response.head.status.as_u16();
        if !is_success(&response, is_grpc) {
            return Found::of(Outcome::Failed, status);
        }
        let Some((headers, given)) = self.given.clone() else {
            return Found::of(Outcome::Unread, status);
        };
        let body = joined(&response.body);
        let most = copy.snapshot.config.limits.body;
        let wires =
            (Wire::of(&headers, is_grpc, most), Wire::of(&response.head.headers, is_grpc, most));
        let (Ok(first), Ok(second)) = wires else { return Found::of(Outcome::Unread, status) };
        let for_embeddings = is_embeddings(&self.head, &copy.identity);
        let (mine, theirs) = (given.clone(), body.clone());
        let read = move || match for_embeddings {
            true => {
                let bodies = (first.inflated(&mine).ok()?, second.inflated(&theirs).ok()?);
                compare::of_embeddings(&bodies.0, &bodies.1).map(|it| vec![it])
            }
            false => {
                let answers = (first.response(&mine).ok()?, second.response(&theirs).ok()?);
                Some(compare::responses(&answers.0, &answers.1))
            }
        };
        let length = if first.is_compressed() { usize::MAX } else { given.len() + body.len() };
        let differences = off_io(length, read).await.flatten();
        let Some(differences) = differences else { return Found::of(Outcome::Unread, status) };
        Found { bodies: Some((given, body)), ..Found::compared(differences, status) }
    }

    /// Counts, logs and reports what was found.
    fn tell(
        &self,
        services: &Services,
        copy: &Request,
        found: &Found,
        (endpoint, took): (&str, Duration),
    ) {
        let (route, variant) = (&self.target.route.name, &self.target.variant.name);
        self.route.ended((route, variant), found.outcome, self.is_noise);
        let model = model_of(copy, &self.body);
        let differences = (&found.differences[..], self.is_noise);
        services.shadows.record((route, &model), differences);
        if let Some(split) = copy.snapshot.splits.of(&self.target.route) {
            let score = found.has_score().then(|| found.score());
            let (given_by, is_noise) = (&*self.given_by.name, self.is_noise);
            split.compared(&crate::split::Comparison { variant, given_by, score, is_noise });
        }
        let time = access_log::timestamp(SystemTime::now());
        if let (Some((given, answer)), Some(settings), false) =
            (&found.bodies, &self.target.route.shadow, self.is_noise)
        {
            let case = Case {
                time: time.clone(),
                request_id: &copy.identity.request_id,
                method: self.head.method.as_str(),
                path: self.head.uri.path(),
                variants: (&self.given_by.name, variant),
                differences: &found.differences,
                bodies: [&self.body, given, answer],
            };
            self.route.report(settings, found.score(), &case);
        }
        self.log(services, copy, found, (time, endpoint, took));
    }

    fn log(
        &self,
        services: &Services,
        copy: &Request,
        found: &Found,
        (time, endpoint, took): (String, &str, Duration),
    ) {
        let log = services.shadows.observer.log();
        if !log.is_on() {
            return;
        }
        let reason = found.failure.as_ref().map_or("ok", |refusal| refusal.reason.code());
        log.write(&access_log::Entry {
            time,
            request_id: &copy.identity.request_id,
            trace_id: copy.identity.trace_id(),
            method: self.head.method.as_str(),
            path: access_log::shortened(self.head.uri.path()),
            status: found.status,
            reason,
            route: Some(&self.target.route.name),
            variant: Some(&self.target.variant.name),
            pool: Some(&self.target.pool.config.name),
            model: copy.identity.model.as_deref().map(access_log::shortened),
            version: copy.identity.version.as_deref().map(access_log::shortened),
            priority: Priority::Batch.as_str(),
            mode: Some(ForwardMode::Buffered.as_str()),
            endpoint: Some(endpoint),
            attempts: 1,
            bytes_in: self.body.len() as u64,
            bytes_out: found.bodies.as_ref().map_or(0, |(_, answer)| answer.len() as u64),
            total_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            error: found.failure.as_ref().map(|refusal| &*refusal.message),
            shadow: Some(ShadowEntry {
                of: &self.given_by.name,
                outcome: found.outcome.as_str(),
                score: found.has_score().then(|| found.score()),
            }),
            ..Default::default()
        });
    }
}

/// The model that a request is for, by the path or, of embeddings, by the body.
fn model_of(copy: &Request, body: &Bytes) -> String {
    if let Some(model) = copy.model().0 {
        return model.to_owned();
    }
    let asked = forebay_cache::embeddings::EmbeddingsRequest::parse(body);
    asked.map(|asked| asked.model).unwrap_or_default()
}

/// The end of a copy.
struct Found {
    outcome: Outcome,
    status: u16,
    differences: Vec<Difference>,
    /// The client's answer, and the copy's.
    bodies: Option<(Bytes, Bytes)>,
    failure: Option<Refusal>,
}

impl Found {
    fn of(outcome: Outcome, status: u16) -> Self {
        Self { outcome, status, differences: Vec::new(), bodies: None, failure: None }
    }

    fn compared(differences: Vec<Difference>, status: u16) -> Self {
        let outcome = match () {
            () if differences.iter().any(|it| it.mismatch.is_some()) => Outcome::Mismatch,
            () if differences.iter().any(|it| it.score > 0.0) => Outcome::Differs,
            () => Outcome::Equal,
        };
        Self { differences, ..Self::of(outcome, status) }
    }

    /// The largest score of an output.
    fn score(&self) -> f64 {
        self.differences.iter().map(|it| it.score).fold(0.0, f64::max)
    }

    /// Whether answers were compared.
    fn has_score(&self) -> bool {
        self.bodies.is_some()
    }
}
