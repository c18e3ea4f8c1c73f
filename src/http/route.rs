//! Which pool a request belongs to: the first route that matches its model and its path.

use crate::config;
use crate::http::identify::Identity;
use crate::pool::{Pool, Snapshot};
use std::sync::Arc;

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The route that matched.
    pub route: Arc<config::Route>,
    /// Its pool, as it was when the request was routed.
    pub pool: Arc<Pool>,
    /// The pools of the route's fallbacks, in their order.
    pub fallbacks: Vec<Arc<Pool>>,
}

impl Target {
    /// The variant that answers: a route has one until it is split, named as its pool.
    pub fn variant(&self) -> &str {
        &self.pool.config.name
    }
}

/// The first route that matches.
pub fn route(snapshot: &Snapshot, identity: &Identity, path: &str) -> Option<Target> {
    let route = snapshot.config.routes.iter().find(|route| matches(route, identity, path))?;
    let pool = Arc::clone(snapshot.pools.get(route.pool)?);
    let fallbacks = route.fallback.iter().filter_map(|it| snapshot.pools.get(it.pool)).cloned();
    Some(Target { route: Arc::clone(route), pool, fallbacks: fallbacks.collect() })
}

fn matches(route: &config::Route, identity: &Identity, path: &str) -> bool {
    let model = |name: &str| route.models.iter().any(|pattern| pattern.matches(name));
    (route.models.is_empty() || identity.model.as_deref().is_some_and(model))
        && (route.paths.is_empty()
            || route.paths.iter().any(|prefix| path.starts_with(prefix.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Pattern;
    use std::time::Duration;

    #[test]
    fn a_route_takes_the_models_and_the_paths_that_it_names() {
        let route = |models: &[Pattern], paths: &[&str]| config::Route {
            name: String::new(),
            models: models.to_vec(),
            paths: paths.iter().map(|p| (*p).to_owned()).collect(),
            pool: 0,
            fallback: Vec::new(),
            deadline: Duration::from_secs(1),
            priority: forebay_protocol::Priority::default(),
            expose_endpoint: false,
        };
        let asks =
            |name: Option<&str>| Identity { model: name.map(str::to_owned), ..Identity::default() };
        let bert = [Pattern::Prefix("bert-".to_owned()), Pattern::Exact("gpt".to_owned())];
        for (route, model, path, expected) in [
            (route(&[], &[]), None, "/anything", true),
            (route(&bert, &[]), Some("bert-base"), "/v2/models/bert-base/infer", true),
            (route(&bert, &[]), Some("gpt"), "/", true),
            (route(&bert, &[]), Some("gpt2"), "/", false),
            (route(&bert, &[]), None, "/v2", false),
            (route(&[], &["/v1/"]), None, "/v1/models", true),
            (route(&[], &["/v1/"]), None, "/v2", false),
            (route(&bert, &["/v1/"]), Some("gpt"), "/v2", false),
        ] {
            assert_eq!(matches(&route, &asks(model), path), expected, "{model:?} {path}");
        }
    }
}
