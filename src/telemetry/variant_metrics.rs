//! The metrics of each variant, resolved when a configuration is taken over.
//!
//! Finding a metric by its labels costs more than counting it, and every request is counted.

use crate::config::{Config, Variant};
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
}

impl VariantMetrics {
    /// Those of the variants of `config`.
    pub fn new(config: &Config) -> Self {
        let variants = config.routes.iter().flat_map(|route| {
            let all = route.variants.iter().chain(&route.fallback);
            all.map(move |variant| (key(variant), handles(&route.name, &variant.name)))
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

fn handles(route: &str, variant: &str) -> Handles {
    Handles {
        answered: metric::REQUESTS.with([route, variant, "200", "ok"]),
        seconds: metric::REQUEST_SECONDS.with([route, variant]),
    }
}

impl std::fmt::Debug for VariantMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VariantMetrics").finish_non_exhaustive()
    }
}
