//! Whether what the configuration promises can be served by the endpoints that are there.
//!
//! A load balancer in front takes out a proxy that is not ready, and all proxies see the same endpoints. So a
//! pool that is not needed must not take the service down with it: the canary that has no endpoint while the
//! stable variant answers, the small model that only stands in, a pool that no route names. But a proxy that
//! refuses every request of a route must report it. Hence a route is ready if its requests can be answered,
//! by a variant or by a fallback; a listener at Layer 4 if its pool has an endpoint; the proxy if all of them
//! are. A pool that is missing although all are ready is named: the service is one failure away from refusing.

use super::{Pool, Snapshot};
use crate::config::{Pattern, Protocol, Route, Variant};
use std::fmt;
use std::sync::Arc;

/// The routes and listeners that can't be answered, and the missing pools of those that can.
#[derive(Debug)]
pub struct Readiness<'a> {
    /// Routes whose requests no pool can answer.
    pub routes: Vec<&'a Arc<Route>>,
    /// Names of the pools without an endpoint that listeners at Layer 4 hand their connections to.
    pub layer4: Vec<&'a str>,
    /// Pools that routes name, and that have no endpoint.
    pub missing: Vec<&'a Arc<Pool>>,
}

impl<'a> Readiness<'a> {
    /// Of this snapshot.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let routes = reached(snapshot).filter(|route| !is_answered(snapshot, route));
        let layer4 = layer4(snapshot).filter(|name| !has_endpoint(snapshot, name));
        let is_named = |place: usize, pool: &Pool| {
            let name = pool.config.name.as_str();
            reached(snapshot)
                .any(|route| used(snapshot, route).any(|variant| variant.pool == place))
                || self::layer4(snapshot).any(|named| named == name)
        };
        let pools = snapshot.pools.iter().enumerate();
        let missing =
            pools.filter(|(place, pool)| pool.ready_count() == 0 && is_named(*place, pool));
        Self {
            routes: routes.collect(),
            layer4: layer4.collect(),
            missing: missing.map(|(_, pool)| pool).collect(),
        }
    }

    /// Is everything answered?
    pub fn is_ready(&self) -> bool {
        self.routes.is_empty() && self.layer4.is_empty()
    }
}

/// Can all that comes in be answered? The same answer as that of [`Readiness`], cheap enough to ask often.
pub fn is_ready(snapshot: &Snapshot) -> bool {
    reached(snapshot).all(|route| is_answered(snapshot, route))
        && layer4(snapshot).all(|name| has_endpoint(snapshot, name))
}

/// Is there a pool that is missed and may yet come, as its endpoints were not asked so far?
pub fn may_become_fuller(snapshot: &Snapshot) -> bool {
    let is_untried = |pool: &Arc<Pool>| {
        pool.endpoints.iter().any(|it| it.state.health() == forebay_routing::Health::Probing)
    };
    Readiness::of(snapshot).missing.into_iter().any(is_untried)
}

/// Can requests of the route be answered by one of its variants, or by what stands in?
pub fn is_answered(snapshot: &Snapshot, route: &Arc<Route>) -> bool {
    used(snapshot, route).any(|variant| is_there(snapshot, variant))
}

/// The pools of a route that have no endpoint.
pub fn missing<'a>(snapshot: &'a Snapshot, route: &Arc<Route>) -> Vec<&'a str> {
    let of = |variant: &Arc<Variant>| snapshot.pools.get(variant.pool);
    let empty = used(snapshot, route).filter_map(of).filter(|pool| pool.ready_count() == 0);
    let mut names: Vec<_> = empty.map(|pool| pool.config.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The variants that get requests, and those that stand in for them.
fn used<'r>(
    snapshot: &Snapshot,
    route: &'r Arc<Route>,
) -> impl Iterator<Item = &'r Arc<Variant>> + use<'r> {
    let weights = snapshot.splits.weights(route).into_iter();
    let drawn = route.variants.iter().zip(weights).filter(|(_, weight)| *weight > 0);
    drawn.map(|(variant, _)| variant).chain(&route.fallback)
}

fn is_there(snapshot: &Snapshot, variant: &Variant) -> bool {
    snapshot.pools.get(variant.pool).is_some_and(|pool| pool.ready_count() > 0)
}

fn has_endpoint(snapshot: &Snapshot, name: &str) -> bool {
    let mut pools = snapshot.pools.iter();
    pools.any(|pool| pool.config.name == name && pool.ready_count() > 0)
}

/// Names of the pools of listeners at Layer 4.
fn layer4(snapshot: &Snapshot) -> impl Iterator<Item = &str> {
    snapshot.config.listeners.iter().filter_map(|listener| match &listener.protocol {
        Protocol::Tcp(tcp) => Some(tcp.pool.as_str()),
        Protocol::Http { .. } => None,
    })
}

/// The routes that a request can come to: there is a listener, and none before takes all that they would.
fn reached(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Route>> {
    let listeners = &snapshot.config.listeners;
    let is_http = |it: &crate::config::Listener| matches!(it.protocol, Protocol::Http { .. });
    let routes: &[_] =
        if listeners.iter().any(is_http) { &snapshot.config.routes } else { Default::default() };
    let is_reached = |(place, route): &(usize, &Arc<Route>)| {
        !routes[..*place].iter().any(|earlier| takes_all_of(earlier, route))
    };
    routes.iter().enumerate().filter(is_reached).map(|(_, route)| route)
}

/// Does `earlier` match whatever `later` matches?
fn takes_all_of(earlier: &Route, later: &Route) -> bool {
    let model = |it: &Pattern| earlier.models.iter().any(|pattern| includes(pattern, it));
    let path = |it: &String| earlier.paths.iter().any(|prefix| it.starts_with(prefix.as_str()));
    let all_models =
        earlier.models.is_empty() || (!later.models.is_empty() && later.models.iter().all(model));
    let all_paths =
        earlier.paths.is_empty() || (!later.paths.is_empty() && later.paths.iter().all(path));
    all_models && all_paths
}

fn includes(pattern: &Pattern, other: &Pattern) -> bool {
    match (pattern, other) {
        (pattern, Pattern::Exact(name)) => pattern.matches(name),
        (Pattern::Prefix(prefix), Pattern::Prefix(longer)) => longer.starts_with(prefix.as_str()),
        (Pattern::Exact(_), Pattern::Prefix(_)) => false,
    }
}

const LAST_RESORT: &str =
    "no endpoint answers probes; as a last resort requests are sent to those that are silent";

/// A line for each thing that is missed.
impl fmt::Display for Readiness<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for route in &self.routes {
            writeln!(f, "route {}: no pool that could answer has an endpoint ready", route.name)?;
        }
        for pool in &self.layer4 {
            writeln!(f, "tcp listener: its pool {pool} has no endpoint ready")?;
        }
        for pool in &self.missing {
            let (name, all) = (&pool.config.name, pool.endpoints.len());
            let otherwise = if self.is_ready() { ": others answer its requests" } else { "" };
            if pool.rotation.last_resort {
                writeln!(f, "pool {name}: {LAST_RESORT}{otherwise}")?;
            } else {
                writeln!(f, "pool {name}: 0 of {all} endpoints ready{otherwise}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn route(models: &[&str], paths: &[&str]) -> Route {
        let pattern = |text: &&str| match text.strip_suffix('*') {
            Some(prefix) => Pattern::Prefix(prefix.to_owned()),
            None => Pattern::Exact((*text).to_owned()),
        };
        Route {
            name: String::new(),
            models: models.iter().map(pattern).collect(),
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            variants: Vec::new(),
            sticky: None,
            allow_override: false,
            shadow: None,
            fallback: Vec::new(),
            deadline: Duration::from_secs(1),
            priority: forebay_protocol::Priority::default(),
            expose_endpoint: false,
            cache: None,
            rollout: None,
        }
    }

    #[test]
    fn a_route_is_out_of_reach_only_where_one_before_takes_all_that_it_would() {
        for (earlier, later, expected) in [
            (route(&[], &[]), route(&["a"], &["/v1/"]), true),
            (route(&["a*"], &[]), route(&["a", "ab*"], &["/v1/"]), true),
            (route(&["a*"], &[]), route(&["a", "b"], &[]), false),
            (route(&["a*"], &[]), route(&["*"], &[]), false),
            (route(&["a*"], &[]), route(&[], &[]), false),
            (route(&["a"], &[]), route(&["a*"], &[]), false),
            (route(&[], &["/v1/"]), route(&[], &["/v1/models"]), true),
            (route(&[], &["/v1/"]), route(&[], &["/v1/", "/v2/"]), false),
            (route(&[], &["/v1/"]), route(&["a"], &[]), false),
        ] {
            assert_eq!(takes_all_of(&earlier, &later), expected, "{earlier:?} {later:?}");
        }
    }
}
