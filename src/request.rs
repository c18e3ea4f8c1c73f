//! One request on its way through the stages: what each stage found out, and when.
//!
//! Each stage writes its own part and reads those before it. Nothing here decides anything.

use crate::error::Refusal;
use crate::flow::admit::Way;
use crate::flow::balance::Picked;
use crate::flow::identify::Identity;
use crate::flow::route::Target;
use crate::server::{HeldBytes, InFlightRequest};
use forebay_protocol::{Priority, Reason};
use std::time::{Duration, Instant};

/// The state of one request.
pub struct Request {
    /// When its header had arrived.
    pub arrived: Instant,
    /// Counts as in flight until dropped.
    pub counted: Option<InFlightRequest>,
    /// Room for its body, if it is held in memory.
    pub held: Option<HeldBytes>,
    /// What the caller asks for.
    pub identity: Identity,
    /// How urgent it is, by its own word or its route's.
    pub priority: Priority,
    /// Where it goes; `None` until routed, and for what the proxy answers itself.
    pub target: Option<Target>,
    /// How it is sent on, once admitted.
    pub way: Option<Way>,
    /// When an answer must be there.
    pub deadline: Option<Instant>,
    /// Endpoints that were tried, the present one last.
    pub attempts: Vec<Picked>,
    /// Why it was refused, if it was.
    pub refusal: Option<Refusal>,
    /// How the endpoint ended it, if it is a gRPC call: a number.
    pub grpc_status: Option<u8>,
    /// Why, in our words.
    pub stated: Option<Reason>,
    /// How long the stages took.
    pub times: Times,
    /// Bytes of the body that came in.
    pub bytes_in: u64,
}

/// How long the stages of a request took; zero for a stage that it did not pass.
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
    pub fn new() -> Self {
        Self {
            arrived: Instant::now(),
            counted: None,
            held: None,
            identity: Identity::default(),
            priority: Priority::default(),
            target: None,
            way: None,
            deadline: None,
            attempts: Vec::new(),
            refusal: None,
            grpc_status: None,
            stated: None,
            times: Times::default(),
            bytes_in: 0,
        }
    }

    /// Time until the deadline; `None` without one, zero if it has passed.
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

impl Default for Request {
    fn default() -> Self {
        Self::new()
    }
}
