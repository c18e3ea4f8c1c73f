//! Rise and fall of one endpoint, from the outcomes of its probes.
//!
//! One lost probe must not empty a pool, and one lucky answer must not bring a sick endpoint back: an
//! endpoint falls after `fall` failures in a row and rises after `rise` successes in a row. A new endpoint
//! that answers but is not ready stays `Probing`, not `Down`: it gets no requests, and a worker that is
//! still loading its models raises no alarm.

/// Whether an endpoint may be picked, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not known yet: no probe has decided.
    Probing,
    /// In rotation.
    Ready,
    /// Taken out for a while by what its answers were like.
    Ejected,
    /// Gets nothing new, finishes what it has.
    Draining,
    /// Probes fail.
    Down,
}

impl Health {
    /// Every state, in the order of an endpoint's life.
    pub const ALL: [Self; 5] =
        [Self::Probing, Self::Ready, Self::Ejected, Self::Draining, Self::Down];

    /// The word in `/status`, logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Probing => "probing",
            Self::Ready => "ready",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

/// The result of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The endpoint says that it is ready.
    Ready,
    /// It answers, and says that it is not ready: loading, or draining.
    NotReady,
    /// No connection, or not an answer: an explicit statement.
    Failed,
    /// No answer in time.
    Silent,
    /// No answer in time, but answers to requests came or went on meanwhile: the endpoint is busy, and that
    /// is better evidence than a probe.
    Working,
}

/// The state machine of one endpoint.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    rise: u32,
    fall: u32,
    health: Health,
    streak: u32,
    silent: bool,
}

impl HealthCheck {
    /// `Probing`; `rise` and `fall` are probes in a row, at least 1.
    pub fn new(rise: u32, fall: u32) -> Self {
        Self {
            rise: rise.max(1),
            fall: fall.max(1),
            health: Health::Probing,
            streak: 0,
            silent: false,
        }
    }

    /// Goes on from `health`, as after a reload that changed the thresholds. `silent`: it is down only for its
    /// silence.
    pub fn resume(rise: u32, fall: u32, health: Health, silent: bool) -> Self {
        Self { health, silent, ..Self::new(rise, fall) }
    }

    /// Is it down only for having given no answer in time? That is weak evidence, since it may be at work on
    /// just the requests that wait for it.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// The present state.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Whether a change is under way, so that the next probe should come sooner than usual.
    pub fn unsettled(&self) -> bool {
        self.streak > 0
    }

    /// Takes in a probe's outcome. `Some(health)` if it changed the state.
    ///
    /// The first success brings a `Probing` endpoint in: nothing is known against it.
    pub fn probed(&mut self, outcome: ProbeOutcome) -> Option<Health> {
        let changed = self.counted(outcome);
        self.silent = match outcome {
            _ if self.health != Health::Down => false,
            ProbeOutcome::Silent => true,
            // One lucky answer does not bring it back, and says nothing against it either.
            ProbeOutcome::Working | ProbeOutcome::Ready => self.silent,
            ProbeOutcome::NotReady | ProbeOutcome::Failed => false,
        };
        changed
    }

    fn counted(&mut self, outcome: ProbeOutcome) -> Option<Health> {
        use Health::{Down, Probing, Ready};
        let (needed, next) = match (self.health, outcome) {
            (Ready, ProbeOutcome::Ready | ProbeOutcome::Working)
            | (
                Down,
                ProbeOutcome::Failed
                | ProbeOutcome::Silent
                | ProbeOutcome::NotReady
                | ProbeOutcome::Working,
            ) => {
                self.streak = 0;
                return None;
            }
            (Probing, ProbeOutcome::Ready) => (1, Ready),
            // It answers: it is loading. Only one that does not answer is down.
            (Probing, ProbeOutcome::NotReady | ProbeOutcome::Working) => {
                self.streak = 0;
                return None;
            }
            (_, ProbeOutcome::Ready) => (self.rise, Ready),
            (_, ProbeOutcome::NotReady | ProbeOutcome::Failed | ProbeOutcome::Silent) => {
                (self.fall, Down)
            }
            (_, ProbeOutcome::Working) => return None,
        };
        self.streak += 1;
        if self.streak < needed {
            return None;
        }
        self.streak = 0;
        self.health = next;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::{Health, HealthCheck, ProbeOutcome::*};

    #[test]
    fn an_endpoint_falls_and_rises_by_probes_in_a_row() {
        let mut check = HealthCheck::new(2, 3);
        assert_eq!(check.probed(NotReady), None);
        assert_eq!(check.health(), Health::Probing, "loading is not down");
        assert_eq!(check.probed(Ready), Some(Health::Ready));
        for outcome in [Failed, Failed, Ready, Failed, Failed] {
            assert_eq!(check.probed(outcome), None);
        }
        assert!(check.unsettled());
        assert_eq!(check.probed(NotReady), Some(Health::Down));
        assert_eq!(check.probed(Ready), None);
        assert_eq!(check.probed(Failed), None);
        assert_eq!(check.probed(Ready), None);
        assert_eq!(check.probed(Ready), Some(Health::Ready));
    }

    #[test]
    fn an_endpoint_that_works_does_not_fall_for_its_silence_nor_rise_by_it() {
        let mut check = HealthCheck::new(1, 2);
        assert_eq!(check.probed(Working), None);
        assert_eq!(check.health(), Health::Probing, "a cold one is not warm because it works");
        assert_eq!(check.probed(Ready), Some(Health::Ready));
        for outcome in [Silent, Working, Silent, Working, Silent] {
            assert_eq!(check.probed(outcome), None);
        }
        assert_eq!(check.probed(Failed), Some(Health::Down), "a word counts as much as silence");
        assert_eq!(check.probed(Working), None);
        assert_eq!(check.health(), Health::Down);
    }

    #[test]
    fn silence_alone_is_known_as_such_until_the_endpoint_says_something_else() {
        let mut check = HealthCheck::resume(2, 2, Health::Ready, false);
        check.probed(Silent);
        assert!(!check.is_silent(), "it is not down yet");
        check.probed(Silent);
        assert_eq!((check.health(), check.is_silent()), (Health::Down, true));
        check.probed(Working);
        check.probed(Ready);
        assert!(check.is_silent(), "one answer does not bring it back");
        check.probed(Failed);
        assert!(!check.is_silent(), "it refuses connections");
        check.probed(Silent);
        assert!(check.is_silent());
        check.probed(Ready);
        check.probed(Ready);
        assert_eq!((check.health(), check.is_silent()), (Health::Ready, false));
    }

    #[test]
    fn an_endpoint_that_never_answers_goes_down() {
        let mut check = HealthCheck::new(1, 2);
        assert_eq!(check.probed(Failed), None);
        assert_eq!(check.probed(Failed), Some(Health::Down));
        assert_eq!(check.probed(Failed), None);
    }
}
