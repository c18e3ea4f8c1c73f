//! The policies that can be compared, by name.

use forebay_routing::Policy;

/// A policy that can be simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimPolicy {
    /// A policy of the routing core.
    Forebay(Policy),
    /// The endpoint with the fewest requests in flight.
    NginxLeastConn,
    /// The same, with a queue in the proxy once all slots are taken.
    HaproxyMaxconn,
    /// Two endpoints drawn at random, the one with fewer requests in flight; as Envoy does it.
    EnvoyLeastRequest,
    /// The same as nginx does it.
    NginxRandomTwo,
    /// The least product of latency and requests in flight.
    TraefikLeastTime,
    /// Probes of in-flight requests and latency, by Google's paper.
    Prequal,
    /// One queue before all endpoints.
    Central,
    /// Picks with the true mean of service times.
    Expected,
    /// Picks with the true service time of each request.
    Oracle,
    /// One queue before all endpoints, the true state of slots and the true distribution of service times;
    /// in percent of a fresh request's chance, the least with which one is begun, and the least with which
    /// the earliest deadline goes before the best chance.
    Informed {
        /// With less than that a request is not begun.
        floor: u8,
        /// Requests with equal values go in order of deadlines.
        in_time: u8,
    },
}

const BASELINES: [(&str, SimPolicy); 10] = [
    ("nginx_least_conn", SimPolicy::NginxLeastConn),
    ("haproxy_maxconn", SimPolicy::HaproxyMaxconn),
    ("nginx_random_two", SimPolicy::NginxRandomTwo),
    ("envoy_least_request", SimPolicy::EnvoyLeastRequest),
    ("traefik_least_time", SimPolicy::TraefikLeastTime),
    ("prequal", SimPolicy::Prequal),
    ("central_queue", SimPolicy::Central),
    ("known_means", SimPolicy::Expected),
    ("informed", SimPolicy::Informed { floor: 50, in_time: 95 }),
    ("oracle", SimPolicy::Oracle),
];

impl SimPolicy {
    /// All by name: the routing core's first, then the yardsticks, the oracle last.
    pub fn all() -> impl Iterator<Item = (&'static str, Self)> {
        let forebay = Policy::NAMES.iter().map(|(name, policy)| (*name, Self::Forebay(*policy)));
        forebay.chain(BASELINES)
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
    pub fn is_forebay(self) -> bool {
        matches!(self, Self::Forebay(_))
    }

    /// Whether it knows more than a proxy can know.
    pub fn is_oracle(self) -> bool {
        matches!(self, Self::Central | Self::Expected | Self::Oracle | Self::Informed { .. })
    }
}

/// A name that no policy has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy: expected one of {known}, found \"{0}\"", known = names())]
pub struct UnknownPolicy(String);

fn names() -> String {
    let names: Vec<&str> = SimPolicy::all().map(|(name, _)| name).collect();
    names.join(", ")
}
