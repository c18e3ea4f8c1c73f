//! The status of a route: its variants, and their fallbacks.

use super::format::{millis, short};
use crate::config::{Route, Variant};
use crate::http::shadow::{ShadowCounts, Shadows};
use crate::pool::{Snapshot, readiness};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// A route.
#[derive(Debug, Serialize)]
pub(super) struct RouteStatus<'a> {
    pub(super) name: &'a str,
    /// Whether its requests can be answered.
    pub(super) ready: bool,
    /// Those of its pools that have no endpoint.
    pub(super) missing: Vec<&'a str>,
    pub(super) variants: Vec<VariantStatus<'a>>,
    pub(super) fallback: Vec<VariantStatus<'a>>,
    pub(super) shadow: Option<ShadowStatus<'a>>,
    pub(super) deadline_ms: f64,
}

/// Its copies whose answers are compared.
#[derive(Debug, Serialize)]
pub(super) struct ShadowStatus<'a> {
    pub(super) variant: &'a str,
    /// Share of the requests that are copied.
    pub(super) share: f64,
    #[serde(flatten)]
    pub(super) counts: ShadowCounts,
}

/// A variant of it.
#[derive(Debug, Serialize)]
pub(super) struct VariantStatus<'a> {
    pub(super) name: &'a str,
    pub(super) pool: &'a str,
    pub(super) model: Option<&'a str>,
    pub(super) version: Option<&'a str>,
    /// Thousandths of the route's requests, as they are now; none of a fallback.
    pub(super) weight: Option<u32>,
}

impl<'a> RouteStatus<'a> {
    /// The status of `route`.
    pub(super) fn of(snapshot: &'a Snapshot, route: &'a Arc<Route>, shadows: &Shadows) -> Self {
        let of = |variant: &'a Variant, weight| VariantStatus {
            name: &variant.name,
            pool: snapshot.pools.get(variant.pool).map_or("", |pool| &pool.config.name),
            model: variant.model.as_deref(),
            version: variant.version.as_deref(),
            weight,
        };
        let weights = snapshot.splits.weights(route);
        let variants = route.variants.iter().zip(weights).map(|(it, weight)| of(it, Some(weight)));
        let fallback = route.fallback.iter().map(|it| of(it, None));
        let shadow = route.shadow.as_ref().map(|settings| ShadowStatus {
            variant: &settings.variant,
            share: settings.share,
            counts: shadows.of(&route.name).map(|it| it.counts()).unwrap_or_default(),
        });
        Self {
            name: &route.name,
            ready: readiness::is_answered(snapshot, route),
            missing: readiness::missing(snapshot, route),
            variants: variants.collect(),
            fallback: fallback.collect(),
            shadow,
            deadline_ms: millis(route.deadline),
        }
    }
}

impl fmt::Display for RouteStatus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {} -> ", self.name)?;
        for (place, variant) in self.variants.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{variant}")?;
        }
        for (place, variant) in self.fallback.iter().enumerate() {
            let separator = if place == 0 { ", else " } else { ", then " };
            write!(f, "{separator}{variant}")?;
        }
        write!(f, ", deadline {}", short(self.deadline_ms))?;
        if let Some(shadow) = &self.shadow {
            write!(f, ", {shadow}")?;
        }
        if !self.ready {
            return f.write_str(", not ready");
        }
        for (place, pool) in self.missing.iter().enumerate() {
            let separator = if place == 0 { ", ready without pool" } else { " and" };
            write!(f, "{separator} {pool}")?;
        }
        Ok(())
    }
}

/// `10% copied to canary: 12 equal, 3 differs, 5 dropped`, without what there is none of.
impl fmt::Display for ShadowStatus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}% copied to {}", self.share * 100.0, self.variant)?;
        let dropped = self.counts.dropped.values().sum();
        let outcomes = self.counts.outcomes.iter().map(|(word, count)| (*word, *count));
        let counts = outcomes.chain([("dropped", dropped)]).filter(|(_, count)| *count > 0);
        for (place, (word, count)) in counts.enumerate() {
            write!(f, "{} {count} {word}", if place == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for VariantStatus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(weight) = self.weight.filter(|weight| *weight != Variant::WHOLE) {
            write!(f, "{}% ", f64::from(weight) / 10.0)?;
        }
        if self.name != self.pool {
            write!(f, "{} at ", self.name)?;
        }
        write!(f, "pool {}", self.pool)?;
        if let Some(model) = self.model {
            write!(f, " model {model}")?;
        }
        match self.version {
            Some(version) => write!(f, " version {version}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_told_in_one_line() {
        let plain = |name, weight| VariantStatus {
            name,
            pool: name,
            model: None,
            version: None,
            weight: Some(weight),
        };
        let only = RouteStatus {
            name: "all",
            ready: true,
            missing: Vec::new(),
            variants: vec![plain("models", 1000)],
            fallback: Vec::new(),
            shadow: None,
            deadline_ms: 1500.0,
        };
        assert_eq!(only.to_string(), "route all -> pool models, deadline 1.5 s");
        let canary = VariantStatus {
            name: "canary",
            pool: "models",
            model: Some("bert"),
            version: Some("7"),
            weight: Some(25),
        };
        let small = VariantStatus { weight: None, model: Some("tiny"), ..plain("small", 0) };
        let split = RouteStatus {
            variants: vec![plain("models", 975), canary],
            missing: vec!["canary"],
            fallback: vec![small, VariantStatus { weight: None, ..plain("last", 0) }],
            ..only
        };
        assert_eq!(
            split.to_string(),
            "route all -> 97.5% pool models, 2.5% canary at pool models model bert version 7, \
             else pool small model tiny, then pool last, deadline 1.5 s, ready without pool canary"
        );
        let counts = ShadowCounts {
            outcomes: [("differs", 3), ("equal", 12), ("failed", 0)].into(),
            noise: [("equal", 1)].into(),
            dropped: [("busy", 4), ("memory", 1)].into(),
        };
        let shadow = ShadowStatus { variant: "canary", share: 0.1, counts };
        let told = "10% copied to canary: 3 differs, 12 equal, 5 dropped";
        assert_eq!(shadow.to_string(), told);
        let none = RouteStatus { ready: false, ..split };
        assert!(none.to_string().ends_with("1.5 s, not ready"), "{none}");
    }
}
