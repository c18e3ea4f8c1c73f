//! The metrics of each variant, resolved when a configuration is taken over.
//!
//! Finding a metric by its labels costs more than counting it, and every request is counted.

use crate::config::{Config, Variant};
use crate::split::Assignment;
use forebay_protocol::metric::proxy as metric;
use metrics::{Counter, Histogram};
use std::collections::HashMap;
use std::sync::Arc;

/// The metrics of all variants of a configuration.
pub struct VariantMetrics(HashMap<usize, Handles>);

/// The metrics of one variant.
pub struct Handles {
    /// Requests that were answered with 200.
    pub answered: Counter,
    /// Duration of requests, with any outcome.
    pub seconds: Histogram,
    /// Requests by the position of their [`Assignment`], if the route is split.
    assigned: Option<[Counter; Assignment::WORDS.len()]>,
}

impl Handles {
    /// Counts how a request came to the variant.
    pub fn assigned(&self, assignment: Assignment) {
        if let Some(counters) = &self.assigned {
            counters[assignment.position()].increment(1);
        }
    }
}

impl VariantMetrics {
    /// Those of the variants of `config`.
    pub fn new(config: &Config) -> Self {
        let variants = config.routes.iter().flat_map(|route| {
            let all = route.variants.iter().chain(&route.fallback);
            let is_split = route.variants.len() > 1;
            all.map(move |variant| (key(variant), handles(&route.name, &variant.name, is_split)))
        });
        Self(variants.collect())
    }

    /// Those of a variant of this configuration.
    pub fn of(&self, variant: &Arc<Variant>) -> Option<&Handles> {
        self.0.get(&key(variant))
    }
}

/// The variant's address in the configuration, which is unique while the configuration lives.
fn key(variant: &Arc<Variant>) -> usize {
    Arc::as_ptr(variant).addr()
}

fn handles(route: &str, variant: &str, is_split: bool) -> Handles {
    Handles {
        answered: metric::REQUESTS.with([route, variant, "200", "ok"]),
        seconds: metric::REQUEST_SECONDS.with([route, variant]),
        assigned: is_split.then(|| {
            Assignment::WORDS.map(|word| metric::ASSIGNMENTS.with([route, variant, word]))
        }),
    }
}

impl std::fmt::Debug for VariantMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VariantMetrics").finish_non_exhaustive()
    }
}
