//! One request on its way through the stages: what each stage found out, and when.
//!
//! Each stage writes its own part and reads those before it. Nothing here decides anything.

use crate::body_memory::{Held, StreamMemory};
use crate::http::cache::outcome::Outcome;
use crate::http::decisions::Decisions;
use crate::http::forward::wire::Wire;
use crate::http::identify::Identity;
use crate::http::variant::Target;
use crate::lifecycle::InFlightRequest;
use crate::pool::Snapshot;
use crate::pool::attempt::EndpointAttempt;
use crate::pool::connector::PipeSocket;
use crate::pool::liveness::CutAt;
use crate::pool::steps::Steps;
use crate::refusal::Refusal;
use forebay_process::places::Place;
use forebay_protocol::oip::{Call, SchedulingParameters};
use forebay_protocol::{Priority, Reason};
use forebay_routing::attempt::event::{Hedged, Next, SilencePolicy};
use http::Method;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The state of one request.
pub struct Request {
    /// Arrival of its header.
    pub arrived: Instant,
    /// Counts as in flight until dropped.
    pub in_flight: Option<InFlightRequest>,
    /// Room for its body, if it is held in memory.
    pub body_memory: Option<Held>,
    /// Memory for what its client has not taken of a stream of gRPC.
    pub stream_memory: Option<StreamMemory>,
    /// Counts as an open stream of gRPC until dropped, if it is one.
    pub stream: Option<Place>,
    /// Its place among the requests in flight, where many are.
    pub place: Option<Place>,
    /// Configuration and fleet as they were when it came: its limits don't change under way.
    pub snapshot: Arc<Snapshot>,
    /// The properties that the request states.
    pub identity: Identity,
    /// Its priority, by its own word or its route's.
    pub priority: Priority,
    /// The key of a sticky pool, as a number.
    pub key: Option<u64>,
    /// Whether its answer is held as that of an inference is: it is to be compared, or put together.
    pub holds_answer: bool,
    /// The cookie that its answer sets, if its client had none.
    pub set_cookie: Option<http::HeaderValue>,
    /// Its destination; `None` until routed, and for requests that the proxy answers itself.
    pub target: Option<Target>,
    /// The forwarding mode, once admitted.
    pub mode: Option<ForwardMode>,
    /// Time by which the answer must be there.
    pub deadline: Option<Instant>,
    /// Ends the exchange of the pipe at the deadline.
    pub cut: Option<CutAt>,
    /// The socket of the pipe's connection, where Pingora does not know it.
    pub pipe_socket: Option<PipeSocket>,
    /// Endpoints that were tried, the present one last.
    pub attempts: Vec<EndpointAttempt>,
    /// The decisions on its attempts, once there are any.
    pub decisions: Option<Box<Decisions>>,
    /// Place among the attempts of the one that answered, if it is not the last.
    pub answering_attempt: Option<usize>,
    /// The decisions on its way to endpoints, if they are kept.
    pub steps: Option<Steps>,
    /// The outcome of a hedge.
    pub hedged: Option<Hedged>,
    /// Why a cheaper variant answers: what was wrong with the one that was chosen first.
    pub degraded: Option<Reason>,
    /// The part that the cache had in it, if the route has one.
    pub cache: Option<Outcome>,
    /// Why it was refused, if it was.
    pub refusal: Option<Refusal>,
    /// The status of a gRPC call, as a number.
    pub grpc_status: Option<u8>,
    /// Why, in our words.
    pub endpoint_reason: Option<Reason>,
    /// Time that the endpoint took, if its answer was complete before its end.
    pub answered_after: Option<Duration>,
    /// Times of the stages.
    pub times: Times,
    /// Bytes of the body that came in.
    pub bytes_in: u64,
    /// The next step in the pipe, until Pingora asks for it.
    pub outstanding: Option<Next<Refusal>>,
    /// Time for which the current attempt in the pipe is left at an endpoint that goes silent.
    pub on_silence: SilencePolicy,
    /// The present exchange of the pipe, if it is in HTTP/1.
    pub wire: Option<Wire>,
}

/// The way in which an admitted request is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardMode {
    /// Its body is received before an endpoint is picked.
    Buffered,
    /// Passed through as it comes: streams of gRPC, other protocols, and bodies that are longer than may
    /// be held.
    Streamed,
}

impl ForwardMode {
    /// The word in the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::Streamed => "streamed",
        }
    }
}

/// Times of the stages of a request; zero for a stage that it did not pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Receiving the body.
    pub receive: Duration,
    /// Until it was bound to an endpoint, the wait in the queue included, all attempts.
    pub balance: Duration,
    /// From sending to the first byte of the answer, all attempts.
    pub forward: Duration,
}

impl Request {
    /// A request of which nothing is known but that it is here.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            arrived: Instant::now(),
            snapshot,
            in_flight: None,
            body_memory: None,
            stream_memory: None,
            stream: None,
            place: None,
            identity: Identity::default(),
            priority: Priority::default(),
            key: None,
            holds_answer: false,
            set_cookie: None,
            target: None,
            mode: None,
            deadline: None,
            steps: None,
            cut: None,
            pipe_socket: None,
            attempts: Vec::new(),
            decisions: None,
            answering_attempt: None,
            hedged: None,
            degraded: None,
            cache: None,
            refusal: None,
            grpc_status: None,
            endpoint_reason: None,
            answered_after: None,
            times: Times::default(),
            bytes_in: 0,
            outstanding: None,
            on_silence: SilencePolicy::Never,
            wire: None,
        }
    }

    /// Whether it asks a model for an inference of the protocol.
    pub fn is_inference(&self, method: &Method) -> bool {
        self.identity.call == Some(Call::Infer)
            && (method == Method::POST || self.identity.asks_by_get)
    }

    /// Takes in what its body says of its urgency, as far as its headers say nothing.
    pub fn apply_parameters(&mut self, parameters: SchedulingParameters) {
        let identity = &mut self.identity;
        identity.priority = identity.priority.or(parameters.priority);
        identity.deadline = identity.deadline.or(parameters.timeout);
    }

    /// From its arrival to the end of its answer, or until now.
    pub fn took(&self) -> Duration {
        self.answered_after.unwrap_or_else(|| self.arrived.elapsed())
    }

    /// The attempt that answered, or the last one.
    pub fn answering(&self) -> Option<&EndpointAttempt> {
        self.answering_attempt.and_then(|place| self.attempts.get(place)).or(self.attempts.last())
    }

    /// The model and the version that the present variant is asked for, as far as they are known.
    pub fn model(&self) -> (Option<&str>, Option<&str>) {
        self.identity.model_of(self.target.as_ref().map(|target| &*target.variant))
    }

    /// Time until the deadline; `None` without one, zero if it has passed.
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
