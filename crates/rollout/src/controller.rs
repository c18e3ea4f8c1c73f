//! The steps of a rollout: advance, hold, promote, roll back.
//!
//! The canary's weight grows step by step. A step is left for the next if the canary is certainly not so bad that
//! the next weight would cost more than the margin of all requests: at 5 % of the requests an increase of 10
//! points costs half a point of all. So little evidence is enough for small weights, and all requests go to the
//! canary only when it is certainly within the margin itself. Evidence of harm ends the rollout at any moment.

use crate::evidence::{Evidence, Finding, Metric, Observation, Terms};

/// Weight of a variant that gets all requests, in thousandths.
pub const WHOLE: u16 = 1000;
/// Requests of the canary before any step is left.
const MIN_REQUESTS: f64 = 50.0;
/// The longest time between two looks that counts as time of the rollout, in seconds: a process that was
/// stopped has seen nothing meanwhile.
const LONGEST_LOOK: f64 = 60.0;

/// The action when the time is over without a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum OnInconclusive {
    /// The weights stay as they are.
    Hold,
    /// All requests go to stable.
    RollBack,
}

/// The plan of a rollout. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Plan {
    /// Weights of the canary in thousandths, growing; after the last come all requests.
    pub steps: Vec<u16>,
    /// The shortest time at a step.
    pub step_min: f64,
    /// The longest time until all requests go to the canary.
    pub max_duration: f64,
    /// Time for which a canary that has all requests is watched.
    pub watch: f64,
    /// The action when the time is over without a verdict.
    pub on_inconclusive: OnInconclusive,
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Outcome {
    /// All requests go to the canary.
    Promoted,
    /// All requests go to stable.
    RolledBack,
    /// The time was over without a verdict.
    Inconclusive,
    /// The operator ended it.
    Aborted,
}

impl Outcome {
    /// The word in logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
            Self::Inconclusive => "inconclusive",
            Self::Aborted => "aborted",
        }
    }
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Phase {
    /// At the step of this number.
    Step(usize),
    /// The canary has all requests and is watched.
    Watching,
    /// It has ended.
    Ended(Outcome),
}

/// Why a step is not left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The operator paused it.
    Paused,
    /// The canary has had no request, or too few to say anything.
    Requests,
    /// The step has not lasted long enough.
    Time,
    /// This metric is not certain enough.
    Evidence(Metric),
    /// Nothing, the canary is watched after its promotion.
    Watching,
    /// The share of requests contradicts the weights: no verdict can be trusted.
    BrokenSplit,
}

impl Wait {
    /// The words in logs and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Requests => "waits for requests",
            Self::Time => "waits for the end of the step",
            Self::Evidence(Metric::Errors) => "waits for evidence on errors",
            Self::Evidence(Metric::Slow) => "waits for evidence on slow answers",
            Self::Evidence(Metric::Outputs) => "waits for evidence on outputs",
            Self::Watching => "watches the promoted variant",
            Self::BrokenSplit => "the split is broken: requests are not divided by the weights",
        }
    }
}

/// Why a canary is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It is certainly worse in this metric.
    Harm(Metric),
    /// Its requests fail one after the other.
    FailsOutright,
}

impl Cause {
    /// The words in logs and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Harm(Metric::Errors) => "more requests fail than at stable",
            Self::Harm(Metric::Slow) => "more answers are slow than at stable",
            Self::Harm(Metric::Outputs) => "the outputs differ from stable's",
            Self::FailsOutright => "requests fail one after the other",
        }
    }
}

/// The consequence of the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The weights stay.
    Hold(Wait),
    /// The canary gets this weight.
    Advance(u16),
    /// The canary gets all requests.
    Promote,
    /// Stable gets all requests.
    RollBack(Cause),
    /// The time is over.
    Inconclusive,
    /// The promoted variant has been watched long enough.
    Complete,
    /// The rollout has ended before.
    Ended,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rollout {
    plan: Plan,
    evidence: Evidence,
    phase: Phase,
    paused: bool,
    /// The canary's weight in thousandths.
    weight: u16,
    /// Seconds that have passed, without those in which it was paused.
    elapsed: f64,
    /// The same at the beginning of the phase.
    phase_since: f64,
    /// Time of the last look, by the clock of this process.
    #[cfg_attr(feature = "serde", serde(skip))]
    looked: Option<f64>,
}

impl Rollout {
    /// A rollout at its first step.
    pub fn new(plan: Plan, terms: Terms) -> Self {
        let weight = plan.steps.first().copied().unwrap_or(WHOLE / 2);
        let mut evidence = Evidence::new(terms);
        evidence.at_weight(f64::from(weight) / f64::from(WHOLE));
        Self {
            plan,
            evidence,
            phase: Phase::Step(0),
            paused: false,
            weight,
            elapsed: 0.0,
            phase_since: 0.0,
            looked: None,
        }
    }

    /// The same evidence under another plan. A step that there is not any more is the last one.
    #[must_use]
    pub fn with_plan(mut self, plan: Plan) -> Self {
        if let Phase::Step(step) = self.phase {
            self.phase = Phase::Step(step.min(plan.steps.len().saturating_sub(1)));
        }
        self.plan = plan;
        self.weight = self.weight.min(WHOLE);
        self
    }

    /// The same step with these terms: without the evidence so far, if they are others.
    #[must_use]
    pub fn with_terms(mut self, terms: Terms) -> Self {
        if *self.evidence.terms() != terms {
            self.evidence = Evidence::new(terms);
            self.evidence.at_weight(f64::from(self.weight) / f64::from(WHOLE));
        }
        self
    }

    /// The canary's weight, in thousandths.
    pub const fn weight(&self) -> u16 {
        self.weight
    }

    /// Where it stands.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether it is paused.
    pub const fn is_paused(&self) -> bool {
        self.paused
    }

    /// The plan.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The evidence.
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Seconds that have passed, without those in which it was paused.
    pub const fn elapsed(&self) -> f64 {
        self.elapsed
    }

    /// How it ended, if it did.
    pub const fn outcome(&self) -> Option<Outcome> {
        match self.phase {
            Phase::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Pauses it, or goes on. The weights stay, and evidence is still taken in.
    pub const fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Ends it by the operator's word, with all requests at the canary or at stable.
    pub const fn end(&mut self, promote: bool) {
        self.weight = if promote { WHOLE } else { 0 };
        self.phase = Phase::Ended(if promote { Outcome::Promoted } else { Outcome::Aborted });
    }

    /// Takes in a request. `now`: seconds by the clock of [`Self::look`].
    pub fn add(&mut self, now: f64, seen: &Observation) {
        self.evidence.add(self.elapsed + self.since_look(now), seen);
    }

    /// Takes in the difference between the outputs of both variants for one request, from 0 to 1.
    pub fn add_pair(&mut self, difference: f64) {
        self.evidence.add_pair(difference);
    }

    /// Takes in the difference between two outputs of stable for one request.
    pub fn add_noise(&mut self, difference: f64) {
        self.evidence.add_noise(difference);
    }

    /// Decides what to do, and takes note of it. `now`: seconds by a clock of this process that never goes
    /// back. To be called every second or so.
    pub fn look(&mut self, now: f64) -> Decision {
        let passed = self.since_look(now);
        self.looked = Some(now);
        self.elapsed += passed;
        if self.paused {
            // The time of a pause is none of the rollout's, but blocks go on.
            self.phase_since += passed;
        }
        self.evidence.advance(self.elapsed);
        let decision = self.decide();
        match decision {
            Decision::Advance(weight) => {
                if let Phase::Step(step) = self.phase {
                    self.enter(Phase::Step(step + 1), weight);
                }
            }
            Decision::Promote => self.enter(Phase::Watching, WHOLE),
            Decision::RollBack(_) => self.enter(Phase::Ended(Outcome::RolledBack), 0),
            Decision::Inconclusive => {
                let weight = match self.plan.on_inconclusive {
                    OnInconclusive::Hold => self.weight,
                    OnInconclusive::RollBack => 0,
                };
                self.enter(Phase::Ended(Outcome::Inconclusive), weight);
            }
            Decision::Complete => self.enter(Phase::Ended(Outcome::Promoted), WHOLE),
            Decision::Hold(_) | Decision::Ended => {}
        }
        decision
    }

    /// Seconds since the last look; none by a clock that has gone mad.
    fn since_look(&self, now: f64) -> f64 {
        let passed = self.looked.map_or(0.0, |looked| now - looked);
        if passed > 0.0 { passed.min(LONGEST_LOOK) } else { 0.0 }
    }

    fn enter(&mut self, phase: Phase, weight: u16) {
        self.phase = phase;
        self.weight = weight;
        self.evidence.at_weight(f64::from(weight) / f64::from(WHOLE));
        self.phase_since = self.elapsed;
    }

    fn decide(&self) -> Decision {
        let step = match self.phase {
            Phase::Ended(_) => return Decision::Ended,
            _ if self.evidence.fails_outright() => {
                return Decision::RollBack(Cause::FailsOutright);
            }
            Phase::Watching if self.elapsed - self.phase_since >= self.plan.watch => {
                return Decision::Complete;
            }
            Phase::Watching => return Decision::Hold(Wait::Watching),
            Phase::Step(step) => step,
        };
        if self.evidence.split_is_broken() {
            return self.until_time_is_over(Wait::BrokenSplit);
        }
        let findings = self.evidence.findings();
        if let Some(harm) = findings.iter().find(|finding| finding.is_harm) {
            return Decision::RollBack(Cause::Harm(harm.metric));
        }
        let next = self.plan.steps.get(step + 1).copied().filter(|weight| *weight < WHOLE);
        if self.paused {
            return Decision::Hold(Wait::Paused);
        }
        if self.evidence.canary_requests() < MIN_REQUESTS {
            return self.until_time_is_over(Wait::Requests);
        }
        if let Some(finding) = findings.iter().find(|finding| !self.may_grow(finding, next)) {
            return self.until_time_is_over(Wait::Evidence(finding.metric));
        }
        if self.elapsed - self.phase_since < self.plan.step_min {
            return self.until_time_is_over(Wait::Time);
        }
        next.map_or(Decision::Promote, Decision::Advance)
    }

    /// Whether this metric allows the next weight; `None`: all requests.
    fn may_grow(&self, finding: &Finding, next: Option<u16>) -> bool {
        let margins = &self.evidence.terms().margins;
        let margin = match finding.metric {
            Metric::Errors => margins.errors,
            Metric::Slow => margins.slow,
            Metric::Outputs => margins.outputs,
        };
        let share = next.map_or(1.0, |weight| f64::from(weight) / f64::from(WHOLE));
        match (finding.is_fine, next, finding.metric) {
            (true, ..) => true,
            // Outputs are compared in shadows, which the canary's weight does not change.
            (false, Some(_), Metric::Outputs) => true,
            // A bound of 1 is none.
            (false, Some(_), _) => finding.upper < 1.0 && finding.upper * share <= margin,
            (false, None, _) => false,
        }
    }

    fn until_time_is_over(&self, wait: Wait) -> Decision {
        if self.elapsed >= self.plan.max_duration {
            return Decision::Inconclusive;
        }
        Decision::Hold(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arm;

    fn plan() -> Plan {
        Plan {
            steps: vec![100, 500],
            step_min: 30.0,
            max_duration: 3600.0,
            watch: 60.0,
            on_inconclusive: OnInconclusive::RollBack,
        }
    }

    /// Sends a hundred requests a second to both variants by weight until something is decided that is no
    /// waiting. `failures`: of so many requests of stable and of the canary, one fails.
    fn decided(rollout: &mut Rollout, from: u32, failures: (u32, u32)) -> (Decision, u32) {
        let (mut turn, mut seen) = (0_u32, [0_u32; 2]);
        for second in from..from + 4000 {
            for part in 0..100_u32 {
                turn = (turn + u32::from(rollout.weight())) % u32::from(WHOLE);
                let is_canarys = turn < u32::from(rollout.weight());
                let (arm, every) = match is_canarys {
                    true => (Arm::Canary, failures.1),
                    false => (Arm::Stable, failures.0),
                };
                let count = &mut seen[usize::from(is_canarys)];
                *count += 1;
                let observed = Observation {
                    arm,
                    weight: f64::from(rollout.weight()) / f64::from(WHOLE),
                    group: None,
                    failed: every > 0 && count.is_multiple_of(every),
                    took: Some(0.01 + f64::from((*count * 7919) % 1009) * 1e-5),
                };
                rollout.add(f64::from(second) + f64::from(part) * 0.01, &observed);
            }
            match rollout.look(f64::from(second + 1)) {
                Decision::Hold(_) => {}
                decision => return (decision, second + 1),
            }
        }
        (Decision::Ended, from + 4000)
    }

    #[test]
    fn an_equal_canary_goes_through_all_steps_and_is_watched() {
        let mut rollout = Rollout::new(plan(), Terms::default());
        let (decision, at) = decided(&mut rollout, 0, (100, 100));
        assert_eq!((decision, rollout.weight()), (Decision::Advance(500), 500));
        assert!(at >= 30, "the shortest time of a step");
        let (decision, at) = decided(&mut rollout, at, (100, 100));
        assert_eq!((decision, rollout.weight()), (Decision::Promote, WHOLE));
        let (decision, _) = decided(&mut rollout, at, (100, 100));
        assert_eq!((decision, rollout.outcome()), (Decision::Complete, Some(Outcome::Promoted)));
        assert_eq!(rollout.look(1e6), Decision::Ended);
    }

    #[test]
    fn a_worse_one_is_rolled_back_and_one_that_fails_outright_at_once() {
        let mut rollout = Rollout::new(plan(), Terms::default());
        let (decision, _) = decided(&mut rollout, 0, (100, 10));
        assert_eq!(decision, Decision::RollBack(Cause::Harm(Metric::Errors)));
        assert_eq!((rollout.weight(), rollout.outcome()), (0, Some(Outcome::RolledBack)));
        let mut rollout = Rollout::new(plan(), Terms::default());
        let (decision, at) = decided(&mut rollout, 0, (100, 1));
        assert!(matches!(decision, Decision::RollBack(_)) && at <= 3, "{decision:?} at {at}");
    }

    #[test]
    fn a_promoted_one_that_fails_outright_is_rolled_back_while_it_is_watched() {
        let mut rollout = Rollout::new(plan(), Terms::default());
        let (_, at) = decided(&mut rollout, 0, (100, 100));
        let (_, at) = decided(&mut rollout, at, (100, 100));
        let (decision, _) = decided(&mut rollout, at, (100, 1));
        assert_eq!(decision, Decision::RollBack(Cause::FailsOutright));
    }

    #[test]
    fn without_requests_there_is_no_verdict_and_the_time_ends() {
        let mut rollout = Rollout::new(plan(), Terms::default());
        for look in 0..60 {
            let decision = rollout.look(f64::from(look) * 59.0);
            assert_eq!(decision, Decision::Hold(Wait::Requests));
        }
        let over = (60..80).map(|look| rollout.look(f64::from(look) * 59.0));
        assert!(over.into_iter().any(|decision| decision == Decision::Inconclusive));
        assert_eq!((rollout.weight(), rollout.outcome()), (0, Some(Outcome::Inconclusive)));
    }

    #[test]
    fn a_clock_that_jumps_moves_the_rollout_by_a_minute_at_most() {
        let mut rollout = Rollout::new(plan(), Terms::default());
        for now in [100.0, 1e9, -1e9, f64::NAN, 1e9, 1e9] {
            rollout.look(now);
        }
        assert!(rollout.elapsed() <= 3.0 * LONGEST_LOOK, "{}", rollout.elapsed());
    }

    #[test]
    fn a_pause_holds_the_step_but_not_a_rollback() {
        let mut rollout = Rollout::new(plan(), Terms::default());
        rollout.pause(true);
        let (decision, at) = decided(&mut rollout, 0, (100, 100));
        assert_eq!((decision, rollout.weight()), (Decision::Ended, 100), "it was never left");
        let (decision, _) = decided(&mut rollout, at, (100, 2));
        assert!(matches!(decision, Decision::RollBack(_)), "{decision:?}");
    }

    #[test]
    fn the_operator_ends_it_either_way() {
        for (promote, weight, outcome) in
            [(true, 1000, Outcome::Promoted), (false, 0, Outcome::Aborted)]
        {
            let mut rollout = Rollout::new(plan(), Terms::default());
            rollout.end(promote);
            assert_eq!((rollout.weight(), rollout.outcome()), (weight, Some(outcome)));
            assert_eq!(rollout.look(1.0), Decision::Ended);
        }
    }

    #[test]
    fn a_split_that_ignores_its_weights_gives_no_verdict() {
        let mut rollout = Rollout::new(plan(), Terms::default());
        for request in 0..5000_u32 {
            let arm = if request % 2 == 0 { Arm::Canary } else { Arm::Stable };
            let seen =
                Observation { arm, weight: 0.1, group: None, failed: false, took: Some(0.01) };
            rollout.add(f64::from(request) * 0.01, &seen);
        }
        assert_eq!(rollout.look(50.0), Decision::Hold(Wait::BrokenSplit));
    }
}
