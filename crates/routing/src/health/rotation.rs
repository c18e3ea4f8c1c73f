//! The endpoints of a pool that are used.
//!
//! Mostly the ready ones. But half of a sick fleet is worth more than none: if so many are ejected that too
//! few are left, the ejected ones are used all the same. And a probe that has no answer in time is weak
//! evidence, since the endpoint may have much to do: it is enough to prefer others, but not to refuse every
//! request where there is no other. An endpoint that refuses connections, or reports that it is not ready,
//! is not used.

use super::outlier::panics;
use crate::Health;

/// The endpoints of a pool that are used at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Whether so few are ready that those that are ejected are used too.
    pub panics: bool,
    /// Whether none is ready, so that those are used that are down for their silence alone.
    pub last_resort: bool,
}

impl Rotation {
    /// Of endpoints with these states of health, where this share of them in rotation is too few.
    pub fn of(endpoints: impl Iterator<Item = Health>, panic_below: f64) -> Self {
        let (mut ready, mut ejected, mut all) = (0, 0, 0);
        for health in endpoints {
            ready += usize::from(health == Health::Ready);
            ejected += usize::from(health == Health::Ejected);
            all += usize::from(health != Health::Draining);
        }
        let panics = ejected > 0 && panics(ready, all, panic_below);
        Self { panics, last_resort: ready == 0 && !panics }
    }

    /// Whether an endpoint is used. `is_silent`: it is down only because probes got no answer in time.
    pub fn uses(self, health: Health, is_silent: bool) -> bool {
        match health {
            Health::Ready => true,
            Health::Ejected => self.panics,
            Health::Down => self.last_resort && is_silent,
            Health::Probing | Health::Draining => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::{Down, Draining, Ejected, Probing, Ready};

    fn used(endpoints: &[Health], is_silent: bool) -> Vec<usize> {
        let rotation = Rotation::of(endpoints.iter().copied(), 0.5);
        let is_used = |at: &usize| rotation.uses(endpoints[*at], is_silent);
        (0..endpoints.len()).filter(is_used).collect()
    }

    #[test]
    fn ejected_endpoints_are_used_only_where_too_few_are_left() {
        assert_eq!(used(&[Ready, Ejected, Ready], false), [0, 2]);
        assert_eq!(used(&[Ready, Ejected, Ejected], false), [0, 1, 2]);
        assert_eq!(used(&[Ready, Ejected, Draining], false), [0], "what drains does not count");
    }

    #[test]
    fn silent_endpoints_are_used_only_where_no_other_is_left() {
        assert_eq!(used(&[Down, Ready], true), [1]);
        assert_eq!(used(&[Down, Probing], true), [0]);
        assert_eq!(used(&[Down, Probing], false), [0; 0]);
        assert_eq!(used(&[Down, Ejected], true), [1], "an ejected one is there");
    }
}
