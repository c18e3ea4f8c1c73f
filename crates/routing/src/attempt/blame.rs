//! The blame for the end of an attempt, and its effect on the estimates for its endpoint.
//!
//! Each end is different evidence: an answer shows how fast the endpoint is, a failure that it had better be
//! avoided, and an attempt that was given up only how long it took at least. A penalty for an end that the
//! client caused would drive traffic away from healthy endpoints; none for an endpoint that fails fast would
//! draw all traffic to it.

use std::time::Duration;

/// An endpoint that did not answer for this long had time to, if it usually takes no longer: a probe is worth
/// its cost.
const FAIR_WAIT: Duration = Duration::from_millis(50);

/// The end of an attempt, as evidence about its endpoint. Each attempt gets exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// It ended without an answer, by the endpoint's fault.
    Failed,
    /// It was answered, with the word to ask elsewhere.
    Refused,
    /// There was no answer in time. `cut_short`: in the time of one attempt, not in all that there was.
    Late {
        /// Whether another attempt could still be made.
        cut_short: bool,
    },
    /// Its client no longer waits, which is no fault of the endpoint's.
    Abandoned,
    /// It was dropped since another attempt was answered.
    GivenUp,
    /// It was answered. `counts`: with what was asked for, so that its time says how fast the endpoint is.
    Answered {
        /// Whether its time is a measure.
        counts: bool,
    },
    /// Its answer has begun, and is passed on as it comes. It is in flight until its end was read, and the
    /// reader says how that went.
    HandedOver,
}

/// The consequences of the end of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consequences {
    /// Whether the endpoint has failed, and is avoided for a while. To be said before it is counted out:
    /// the next request that is bound must know.
    pub penalty: bool,
    /// Whether a probe should find out now how the endpoint is.
    pub probe: bool,
    /// The evidence of its time.
    pub sample: Sample,
}

/// The evidence of an attempt's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Nothing.
    Nothing,
    /// Shows how fast the endpoint and the model are.
    Answered,
    /// An answer takes at least this long.
    AtLeast,
    /// An answer takes longer, although there was a fair time for it.
    Late,
    /// An answer takes longer; the time was too short to show how much the endpoint can take.
    CutShort,
    /// Nothing yet: it still counts as in flight.
    Open,
}

impl Blame {
    /// The consequences of an end after this time. `usual`: what such work takes there, zero if unknown; an
    /// endpoint is not to blame where the client has less time to give. `is_timed`: a model worked for it, so
    /// that its time can be compared with others'.
    pub fn consequences(self, waited: Duration, usual: Duration, is_timed: bool) -> Consequences {
        let was_fair = waited >= FAIR_WAIT.max(usual);
        let no_answer = match (was_fair, is_timed) {
            (true, _) => Sample::Late,
            (false, true) => Sample::CutShort,
            (false, false) => Sample::Nothing,
        };
        let (penalty, probe, sample) = match self {
            Self::Failed => (true, true, Sample::Nothing),
            Self::Refused => (true, false, Sample::Nothing),
            Self::Late { .. } => (was_fair, was_fair, no_answer),
            Self::Abandoned => (false, false, no_answer),
            Self::GivenUp => (false, false, Sample::AtLeast),
            Self::Answered { counts: true } if is_timed => (false, false, Sample::Answered),
            Self::Answered { .. } => (false, false, Sample::Nothing),
            Self::HandedOver => (false, false, Sample::Open),
        };
        Consequences { penalty, probe, sample }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_blamed_for_silence_only_after_a_fair_time() {
        for cut_short in [true, false] {
            let ms = Duration::from_millis;
            let late = |millis, usual| {
                let late = Blame::Late { cut_short };
                late.consequences(Duration::from_millis(millis), usual, true)
            };
            let fair = Consequences { penalty: true, probe: true, sample: Sample::Late };
            let unfair = Consequences { penalty: false, probe: false, sample: Sample::CutShort };
            assert_eq!((late(49, ms(0)), late(50, ms(0))), (unfair, fair));
            assert_eq!((late(50, ms(7)), late(299, ms(300))), (fair, unfair), "it takes so long");
            assert_eq!(late(300, ms(300)), fair);
        }
    }

    #[test]
    fn no_client_and_no_other_attempt_brings_blame_on_an_endpoint() {
        for blame in [
            Blame::Abandoned,
            Blame::GivenUp,
            Blame::Answered { counts: true },
            Blame::Answered { counts: false },
            Blame::HandedOver,
        ] {
            for (millis, is_timed) in [(0, false), (0, true), (60_000, false), (60_000, true)] {
                let waited = Duration::from_millis(millis);
                let found = blame.consequences(waited, Duration::ZERO, is_timed);
                assert!(!found.penalty && !found.probe, "{blame:?} {millis} {is_timed}");
            }
        }
    }

    #[test]
    fn time_is_a_measure_only_where_a_model_worked() {
        let sample = |blame: Blame, is_timed| {
            blame.consequences(Duration::from_millis(1), Duration::ZERO, is_timed).sample
        };
        assert_eq!(sample(Blame::Answered { counts: true }, true), Sample::Answered);
        assert_eq!(sample(Blame::Answered { counts: true }, false), Sample::Nothing);
        assert_eq!(sample(Blame::Answered { counts: false }, true), Sample::Nothing);
        assert_eq!(sample(Blame::Abandoned, false), Sample::Nothing);
    }
}
