//! What the simulator compares: things that say where a request goes.
//!
//! [`Ours`](ours::Ours) is the code that the proxy runs. The others exist here only, as a
//! yardstick: what the proxies of others do, by their sources, and what could be done by someone who
//! knew more than anybody can.

mod all_knowing;
mod ours;
mod peers;
mod prequal;

use super::fleet::Fleet;
use super::setting::Setting;
use super::slab::Key;
use forebay_protocol::Reason;
use forebay_routing::{Policy, Report};

/// A request that is to be sent somewhere.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Its name.
    pub request: Key,
    /// Nanoseconds on the virtual clock.
    pub now: u64,
    /// What is to go to the same endpoint, as a number.
    pub key: u64,
    /// Whose it is, for the fairness of queues.
    pub caller: u32,
    /// How urgent it is: 0 is the most urgent class.
    pub class: u8,
    /// When it is given up, in nanoseconds on the virtual clock.
    pub deadline: u64,
    /// Service time at speed 1, in nanoseconds. Only the all-knowing may look.
    pub demand: u64,
    /// By endpoint: whether its proxy takes it for ready.
    pub ready: &'a [bool],
    /// Endpoints that it was sent to already, without success.
    pub tried: &'a [u32],
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With an answer.
    Answered,
    /// With one that says to ask elsewhere, or with an error.
    Failed,
    /// Without an answer, so that the endpoint may not be there any more.
    Lost,
    /// The caller gave up.
    Abandoned,
    /// It was given up because the request's other attempt was answered.
    Beaten,
}

/// An attempt that is over.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Whose it was.
    pub request: Key,
    /// Where it was sent.
    pub endpoint: usize,
    /// Nanoseconds on the virtual clock.
    pub now: u64,
    /// Nanoseconds since it was sent.
    pub took: u64,
    /// How it ended.
    pub ending: Ending,
}

/// What a balancer wants.
#[derive(Debug, Clone, Copy)]
pub enum Decision {
    /// The request goes to this endpoint now.
    Bind {
        /// Which request.
        request: Key,
        /// Which endpoint.
        endpoint: usize,
    },
    /// The request is refused.
    Refuse {
        /// Which request.
        request: Key,
        /// Why.
        reason: Reason,
    },
    /// Ask again about this request at that time, if it is not over by then.
    Wake {
        /// Which request.
        request: Key,
        /// Nanoseconds on the virtual clock.
        at: u64,
    },
    /// Ask this endpoint how it is.
    Probe {
        /// Which endpoint.
        endpoint: usize,
    },
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probed {
    /// Which endpoint.
    pub endpoint: usize,
    /// Requests there.
    pub in_flight: usize,
    /// What requests took lately that found about as many others there, in nanoseconds.
    pub latency: u64,
}

/// The balancer of one proxy, or one for all proxies.
///
/// Every call may bind requests: also those that came long before.
pub trait Balancer {
    /// A request is to be sent, for the first time or again.
    fn arrive(&mut self, ask: &Ask<'_>, fleet: &Fleet, out: &mut Vec<Decision>);

    /// An attempt is over.
    fn finished(&mut self, done: &Done, fleet: &Fleet, out: &mut Vec<Decision>);

    /// A request is under way for which this had asked to be woken.
    fn woken(&mut self, _ask: &Ask<'_>, _out: &mut Vec<Decision>) {}

    /// The caller gave a request up that is not bound.
    fn left(&mut self, _request: Key, _out: &mut Vec<Decision>) {}

    /// The proxy takes an endpoint in or out of rotation.
    fn health(&mut self, _endpoint: usize, _ready: bool, _fleet: &Fleet, _out: &mut Vec<Decision>) {
    }

    /// An endpoint has said something of its load.
    fn reported(&mut self, _endpoint: usize, _report: &Report, _now: u64) {}

    /// A probe that was asked for is back.
    fn probed(&mut self, _probed: &Probed, _now: u64) {}
}

/// Who can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A policy of the routing core.
    Ours(Policy),
    /// See [`peers::LeastConn`].
    NginxLeastConn,
    /// See [`peers::LeastConn`].
    HaproxyMaxconn,
    /// See [`peers::LeastRequest`].
    EnvoyLeastRequest,
    /// See [`peers::LeastRequest`].
    NginxRandomTwo,
    /// See [`peers::LeastTime`].
    TraefikLeastTime,
    /// See [`prequal::Prequal`].
    Prequal,
    /// See [`all_knowing::Central`].
    Central,
    /// See [`all_knowing::Expected`].
    Expected,
    /// See [`all_knowing::Oracle`].
    Oracle,
}

const BASELINES: [(&str, Kind); 9] = [
    ("nginx_least_conn", Kind::NginxLeastConn),
    ("haproxy_maxconn", Kind::HaproxyMaxconn),
    ("nginx_random_two", Kind::NginxRandomTwo),
    ("envoy_least_request", Kind::EnvoyLeastRequest),
    ("traefik_least_time", Kind::TraefikLeastTime),
    ("prequal", Kind::Prequal),
    ("central_queue", Kind::Central),
    ("known_means", Kind::Expected),
    ("oracle", Kind::Oracle),
];

impl Kind {
    /// All by name: the routing core's first, then the yardsticks, the oracle last.
    pub fn all() -> impl Iterator<Item = (&'static str, Self)> {
        let ours = Policy::NAMES.iter().map(|(name, policy)| (*name, Self::Ours(*policy)));
        ours.chain(BASELINES)
    }

    /// The one with this name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self, UnknownPolicy> {
        let found = Self::all().find(|(known, _)| *known == name);
        found.map(|(_, kind)| kind).ok_or_else(|| UnknownPolicy(name.to_owned()))
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::all().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Whether it is in the proxy, and not only here.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// Whether it knows what nobody can know.
    pub fn is_all_knowing(self) -> bool {
        matches!(self, Self::Central | Self::Expected | Self::Oracle)
    }

    /// Makes what `setting` needs: one for each proxy, or one for all.
    pub(super) fn make(self, setting: &Setting) -> Vec<Box<dyn Balancer>> {
        let proxies = if self == Self::Central { 1 } else { u64::from(setting.sim.proxies) };
        (0..proxies).map(|proxy| self.one(setting, proxy)).collect()
    }

    fn one(self, setting: &Setting, proxy: u64) -> Box<dyn Balancer> {
        let (n, seed) = (setting.endpoints(), setting.seed_of(proxy));
        match self {
            Self::Ours(policy) => Box::new(ours::Ours::new(policy, setting, seed)),
            Self::NginxLeastConn => Box::new(peers::LeastConn::new(vec![u32::MAX; n])),
            Self::HaproxyMaxconn => Box::new(peers::LeastConn::new(setting.slots())),
            Self::NginxRandomTwo => Box::new(peers::LeastRequest::new(n, false, seed)),
            Self::EnvoyLeastRequest => Box::new(peers::LeastRequest::new(n, true, seed)),
            Self::TraefikLeastTime => Box::new(peers::LeastTime::new(n)),
            Self::Prequal => Box::new(prequal::Prequal::new(n, seed)),
            Self::Central => Box::new(all_knowing::Central::new(n)),
            Self::Expected => Box::new(all_knowing::Expected::new(n, setting.mean_demand, seed)),
            Self::Oracle => Box::new(all_knowing::Oracle::new(setting.half_trip, seed)),
        }
    }
}

/// A name that no policy has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy: expected one of {known}, found \"{0}\"", known = names())]
pub struct UnknownPolicy(String);

fn names() -> String {
    let names: Vec<&str> = Kind::all().map(|(name, _)| name).collect();
    names.join(", ")
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
fn bind(request: Key, endpoint: Option<usize>, out: &mut Vec<Decision>) {
    out.push(match endpoint {
        Some(endpoint) => Decision::Bind { request, endpoint },
        None => Decision::Refuse { request, reason: Reason::NoEndpoint },
    });
}

fn usable(ask: &Ask<'_>, endpoint: usize) -> bool {
    ask.ready[endpoint] && !ask.tried.iter().any(|tried| *tried as usize == endpoint)
}
