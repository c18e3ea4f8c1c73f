//! The evidence that a finished request is for or against its variant.
//!
//! An outcome is the variant's that was drawn: a canary whose requests were saved by a second attempt, by a
//! fallback or by another variant has failed them all the same. Requests that chose their variant say nothing.

use crate::split::{Assignment, Comparison, Evidence, Sample};
use forebay_protocol::Reason;
use forebay_rollout::Arm;
use forebay_rollout::evidence::Observation;

/// One piece of evidence.
pub(super) enum Seen {
    /// A request that was assigned by chance.
    Request(Observation),
    /// The difference of the canary's answer from stable's to the same request.
    Pair(f64),
    /// The difference of two answers of stable.
    Noise(f64),
}

/// Tells a rollout of the requests of its two variants.
pub(super) struct Listener<F> {
    stable: String,
    canary: String,
    tell: F,
}

impl<F: Fn(Seen) + Send + Sync> Listener<F> {
    pub(super) fn new(stable: String, canary: String, tell: F) -> Self {
        Self { stable, canary, tell }
    }
}

impl<F: Fn(Seen) + Send + Sync> Evidence for Listener<F> {
    fn finished(&self, sample: &Sample<'_>) {
        if let Some(seen) = observation(sample, &self.stable, &self.canary) {
            (self.tell)(Seen::Request(seen));
        }
    }

    fn compared(&self, comparison: &Comparison<'_>) {
        // A copy without a comparison says nothing here: failures are counted with the requests.
        let Some(score) = comparison.score.filter(|_| comparison.given_by == self.stable) else {
            return;
        };
        if comparison.is_noise {
            (self.tell)(Seen::Noise(score));
        } else if comparison.variant == self.canary {
            (self.tell)(Seen::Pair(score));
        }
    }
}

/// The observation of a request; `None`: it says nothing.
///
/// A request must not be left out because of its outcome: the variants would lose different ones. Clients' own
/// mistakes are divided by chance, so an error status counts at both variants alike, and so does a client that
/// leaves.
fn observation(sample: &Sample<'_>, stable: &str, canary: &str) -> Option<Observation> {
    let weight = f64::from(sample.assignment.weight()?) / 1000.0;
    let is_moved = matches!(sample.assignment, Assignment::Moved(_));
    // Refused before an endpoint was asked by what the request was, not by its variant.
    if sample.attempts == 0 && !sample.is_from_cache && !is_moved && !is_the_pools(sample) {
        return None;
    }
    let (arm, weight) = if sample.drawn == canary {
        (Arm::Canary, weight)
    } else if sample.drawn == stable {
        (Arm::Stable, 1.0 - weight)
    } else {
        return None;
    };
    let was_repeated = sample.attempts > 1 && !sample.is_hedged;
    // An old answer was given in place of one that failed.
    let was_covered = sample.is_from_cache && sample.attempts > 0;
    let group = match sample.assignment {
        Assignment::Sticky(_) => sample.place.and_then(|place| u16::try_from(place).ok()),
        _ => None,
    };
    Some(Observation {
        arm,
        weight,
        group,
        failed: is_moved
            || was_repeated
            || was_covered
            || sample.is_degraded
            || !is_answered(sample),
        took: (!sample.is_from_cache).then_some(sample.took.as_secs_f64()),
    })
}

/// Whether the variant's pool, which is part of it, refused the request or had it wait until its client left.
fn is_the_pools(sample: &Sample<'_>) -> bool {
    sample.reason.is_some_and(|reason| {
        matches!(
            reason,
            Reason::NoEndpoint
                | Reason::QueueFull
                | Reason::DeadlineExceeded
                | Reason::DeadlineUnreachable
                | Reason::ClientClosed
        )
    })
}

fn is_answered(sample: &Sample<'_>) -> bool {
    sample.reason.is_none() && (200..400).contains(&sample.status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const GOOD: Sample<'static> = Sample {
        variant: "canary",
        drawn: "canary",
        instead_of: None,
        assignment: Assignment::Drawn(50),
        place: None,
        client: 0,
        status: 200,
        reason: None,
        took: Duration::from_millis(10),
        attempts: 1,
        is_hedged: false,
        is_from_cache: false,
        is_degraded: false,
    };

    #[test]
    fn a_request_is_its_variants_with_the_weight_of_the_canary() {
        let seen = observation(&GOOD, "stable", "canary");
        assert!(seen.is_some_and(|it| it.arm == Arm::Canary && !it.failed && it.weight == 0.05));
        let stable = Sample { drawn: "stable", assignment: Assignment::Drawn(950), ..GOOD };
        let seen = observation(&stable, "stable", "canary");
        assert!(seen.is_some_and(|it| it.arm == Arm::Stable && (it.weight - 0.05).abs() < 1e-9));
        let sticky = Sample { assignment: Assignment::Sticky(50), place: Some(7), ..GOOD };
        assert_eq!(observation(&sticky, "stable", "canary").and_then(|it| it.group), Some(7));
    }

    #[test]
    fn a_request_that_others_saved_has_failed_at_its_variant() {
        for saved in [
            Sample { attempts: 2, ..GOOD },
            Sample { variant: "small", is_degraded: true, ..GOOD },
            Sample { variant: "stable", assignment: Assignment::Moved(50), ..GOOD },
            Sample { status: 503, reason: Some(Reason::QueueFull), ..GOOD },
            Sample { status: 500, ..GOOD },
            Sample { status: 404, ..GOOD },
            Sample { status: 400, reason: Some(Reason::InvalidInput), ..GOOD },
            Sample { status: 0, reason: Some(Reason::ClientClosed), ..GOOD },
            Sample { status: 503, reason: Some(Reason::NoEndpoint), attempts: 0, ..GOOD },
            Sample { is_from_cache: true, ..GOOD },
        ] {
            let seen = observation(&saved, "stable", "canary");
            assert!(seen.is_some_and(|it| it.failed && it.arm == Arm::Canary), "{saved:?}");
        }
        let known = Sample { is_from_cache: true, attempts: 0, ..GOOD };
        let seen = observation(&known, "stable", "canary");
        assert!(seen.is_some_and(|it| !it.failed && it.took.is_none()), "it has no time");
        let hedged = Sample { attempts: 2, is_hedged: true, ..GOOD };
        assert!(observation(&hedged, "stable", "canary").is_some_and(|it| !it.failed));
    }

    #[test]
    fn a_request_that_says_nothing_of_a_variant_is_left_out() {
        for silent in [
            Sample { assignment: Assignment::Asked, ..GOOD },
            Sample { assignment: Assignment::Restricted, ..GOOD },
            Sample { status: 400, reason: Some(Reason::InvalidRequest), attempts: 0, ..GOOD },
            Sample { drawn: "third", ..GOOD },
        ] {
            assert_eq!(observation(&silent, "stable", "canary"), None, "{silent:?}");
        }
    }
}
