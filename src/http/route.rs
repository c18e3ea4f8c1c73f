//! Finds the route of a request: the first that matches its model and its path.

use crate::config;
use crate::http::identify::Identity;
use crate::refusal::Refusal;
use forebay_protocol::Reason;
use std::sync::Arc;

/// The first route that matches.
///
/// # Errors
/// None does.
pub fn route<'a>(
    config: &'a config::Config,
    identity: &Identity,
    path: &str,
) -> Result<&'a Arc<config::Route>, Refusal> {
    let found = config.routes.iter().find(|route| matches(route, identity, path));
    found.ok_or_else(|| no_route(identity, path))
}

fn no_route(identity: &Identity, path: &str) -> Refusal {
    /// The client knows its own path; a long one need not come back whole.
    const MAX_SHOWN: usize = 200;
    let path: String = path.chars().take(MAX_SHOWN).collect();
    let message = match &identity.model {
        Some(model) => format!("no route for model {model:?} at {path:?}"),
        None => format!("no route for {path:?}"),
    };
    Refusal::new(Reason::NoRoute, message)
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
