//! Balancers: the policies that the simulator compares.
//!
//! [`Forebay`](forebay::Forebay) is the code that the proxy runs. The others exist here only, as a
//! yardstick: the policies of other proxies, after their sources, and oracles, which
//! know more than a proxy can.

pub(super) mod build;
mod forebay;
mod informed;
mod oracles;
mod peers;
pub mod policy;
mod prequal;

use super::fleet::{Fleet, Probed};
use super::keys::RequestKey;
use forebay_protocol::Reason;
use forebay_routing::{Blame, Report, StandInTime, Time};
use std::time::Duration;

/// A request as its balancer sees it.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// Its name.
    pub request: RequestKey,
    /// Nanoseconds on the virtual clock.
    pub now: u64,
    /// Requests with equal keys should go to the same endpoint.
    pub key: u64,
    /// Its client, for the fairness of queues.
    pub client: u32,
    /// Its class: 0 is the most urgent.
    pub class: u8,
    /// The number of the model that it asks for.
    pub model: u64,
    /// Time at which it is given up, in nanoseconds on the virtual clock.
    pub deadline: u64,
    /// Service time at speed 1, in nanoseconds. For oracles only.
    pub demand: u64,
    /// By endpoint: whether its proxy takes it for ready.
    pub ready: &'a [bool],
    /// Endpoints that it was sent to already.
    pub tried: &'a [u32],
    /// The time of the variant that stands in, if one does and that is known.
    pub stand_in: Option<StandInTime>,
}

/// An attempt that is over.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Its request.
    pub request: RequestKey,
    /// The endpoint that it was sent to.
    pub endpoint: usize,
    /// Nanoseconds on the virtual clock.
    pub now: u64,
    /// Nanoseconds since it was sent.
    pub took: u64,
    /// Its end, as evidence about the endpoint.
    pub blame: Blame,
}

/// A balancer's decision.
#[derive(Debug, Clone, Copy)]
pub enum Decision {
    /// The request goes to this endpoint now.
    Bind {
        /// The request.
        request: RequestKey,
        /// The endpoint.
        endpoint: usize,
    },
    /// The request is refused.
    Refuse {
        /// The request.
        request: RequestKey,
        /// Why.
        reason: Reason,
    },
    /// Ask again about this request at that time, if it is not over by then.
    Wake {
        /// The request.
        request: RequestKey,
        /// Nanoseconds on the virtual clock.
        at: u64,
    },
    /// Ask this endpoint how it is.
    Probe {
        /// The endpoint.
        endpoint: usize,
    },
}

/// The balancer of one proxy, or one for all proxies.
///
/// Every call may bind requests: also those that came long before.
pub trait Balancer {
    /// A request is to be sent, for the first time or again.
    fn arrive(&mut self, ask: &RequestView<'_>, fleet: &Fleet, out: &mut Vec<Decision>);

    /// An attempt is over.
    fn finished(&mut self, done: &Done, fleet: &Fleet, out: &mut Vec<Decision>);

    /// The time has come at which the balancer wanted to look at this request again.
    fn wake(&mut self, _ask: &RequestView<'_>, _fleet: &Fleet, _out: &mut Vec<Decision>) {}

    /// Time that an attempt of this request, just bound, may take until a second one is worth its cost.
    fn hedge_after(&self, _request: RequestKey) -> Option<Duration> {
        None
    }

    /// How long the work of this request is expected to take at an endpoint that it was sent to; zero if nothing
    /// is known.
    fn expected(&self, _request: RequestKey, _endpoint: usize) -> Duration {
        Duration::ZERO
    }

    /// The time that a request for this model needs which comes now because its own variant does not answer it.
    fn stand_in_time(&mut self, _model: u64, _now: u64) -> Option<StandInTime> {
        None
    }

    /// The time at which an attempt of this request, just bound, gives way to the variant that stands in.
    fn runs_until(&self, _ask: &RequestView<'_>) -> Option<Time> {
        None
    }

    /// An endpoint for a second attempt that has room for it at once.
    fn room(&mut self, _ask: &RequestView<'_>) -> Option<usize> {
        None
    }

    /// A second attempt goes to the endpoint that was found to have room.
    fn hedged(&mut self, _ask: &RequestView<'_>, _endpoint: usize) {}

    /// The first attempt of this request took so long, or was waited for.
    fn first_took(&mut self, _ask: &RequestView<'_>, _took: Duration) {}

    /// The client gave a request up that is not bound.
    fn abandoned(&mut self, _request: RequestKey, _out: &mut Vec<Decision>) {}

    /// The proxy takes an endpoint in or out of rotation.
    fn health_changed(
        &mut self,
        _endpoint: usize,
        _ready: bool,
        _fleet: &Fleet,
        _out: &mut Vec<Decision>,
    ) {
    }

    /// An endpoint is ready again, maybe as another process.
    fn rejoined(&mut self, _endpoint: usize, _now: u64) {}

    /// An endpoint has said something of its load.
    fn reported(&mut self, _endpoint: usize, _report: &Report, _now: u64) {}

    /// A probe that was asked for is back.
    fn probed(&mut self, _probed: &Probed, _now: u64) {}
}

/// Position of the least value among `values`; ties are broken by chance.
fn least<T: PartialOrd + Copy>(
    values: impl Iterator<Item = (usize, T)>,
    rng: &mut fastrand::Rng,
) -> Option<usize> {
    let mut best: Option<(usize, T)> = None;
    let mut ties = 1;
    for (at, value) in values {
        match best {
            Some((_, least)) if value > least => {}
            Some((_, least)) if value == least => {
                ties += 1;
                if rng.usize(..ties) == 0 {
                    best = Some((at, value));
                }
            }
            _ => {
                best = Some((at, value));
                ties = 1;
            }
        }
    }
    best.map(|(at, _)| at)
}

/// Binds `request` to `endpoint`, or refuses it if there is none.
fn bind(request: RequestKey, endpoint: Option<usize>, out: &mut Vec<Decision>) {
    out.push(match endpoint {
        Some(endpoint) => Decision::Bind { request, endpoint },
        None => Decision::Refuse { request, reason: Reason::NoEndpoint },
    });
}

fn usable(ask: &RequestView<'_>, endpoint: usize) -> bool {
    ask.ready[endpoint] && !ask.tried.iter().any(|tried| *tried as usize == endpoint)
}
