//! Passive ejection: an endpoint whose answers are bad is taken out of rotation for a while.
//!
//! Probes ask an endpoint whether it is well; requests find out. One that fails fast looks idle and would
//! draw all traffic, one that fails now and then passes every probe. So the outcomes of requests are
//! counted, without locks, and judged by one task: failures in a row at once, shares and latencies at the
//! end of each window, against the rest of the pool in the same time.
//!
//! The cure must not be worse than the disease. Only an endpoint's own fault counts: a client's mistake
//! (4xx) never does, and being busy (429, 503) only while the endpoint is on trial. A timeout counts as a
//! failure in a row only where no other request was answered meanwhile (Envoy counts all of them, as 504s,
//! and so takes out healthy endpoints that are overloaded). At most a share of the pool is out at once, one
//! endpoint always stays, and if too few are left all are used again ([`panics`]): half of a sick fleet is
//! worth more than none. An endpoint that comes back is on trial, where one failure ejects it again, for
//! twice as long. Good behaviour for the length of the first ejection takes one doubling back, as in Envoy,
//! so that an endpoint that failed for a while is soon as good as new: if each step took as long as the
//! ejection that it takes back, one failure in five minutes would keep an endpoint out forever. An endpoint
//! that falls and rises by its probes is held back in the same way from its second fall on, so that a
//! flapping one changes rotation no more than once in a back-off.

use crate::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};
use crate::{Health, Time};
use std::time::Duration;

/// Doublings of the first time out, at most.
const MAX_DOUBLINGS: u32 = 30;

/// The conditions and durations of ejections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ejection {
    /// Failures in a row; 0: they are not judged.
    pub consecutive_failures: u32,
    /// A window, at whose end shares and latencies are judged.
    pub interval: Duration,
    /// Requests in a window below which an endpoint is not judged by it.
    pub min_requests: u32,
    /// Share of answers below which it is out, if the pool's median is not below it too; 0: not judged.
    pub success_rate: f64,
    /// Multiple of the pool's median latency above which it is out; `None`: not judged.
    pub latency_factor: Option<f64>,
    /// Duration of the first ejection.
    pub base_time: Duration,
    /// Maximum duration of an ejection.
    pub max_time: Duration,
    /// Share of the pool that may be out at once; 0: nothing is ever ejected.
    pub max_share: f64,
    /// Share of the pool in rotation below which those that are out are used all the same.
    pub panic_below: f64,
}

impl Ejection {
    /// Whether anything may be ejected at all.
    pub fn is_on(&self) -> bool {
        self.max_share > 0.0
    }

    /// The multiplier beyond which no time out grows, that of a fall by probes neither, which is one behind.
    fn max_multiplier(&self) -> u32 {
        let longest = (1..=MAX_DOUBLINGS).find(|it| self.back_off(*it) >= self.max_time);
        longest.unwrap_or(MAX_DOUBLINGS) + 1
    }

    /// Time out at this multiplier.
    fn back_off(&self, multiplier: u32) -> Duration {
        let doublings = multiplier.saturating_sub(1).min(MAX_DOUBLINGS);
        self.base_time.saturating_mul(1 << doublings).min(self.max_time)
    }
}

/// The outcome of a request at an endpoint, as evidence about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With what was asked for, after this time.
    Answered(Duration),
    /// With an answer that says nothing against it: a client's mistake, or one whose time is no
    /// measure.
    Understood,
    /// With the word that it has too much to do.
    Busy,
    /// Not in the time that it had, in which others were answered: the endpoint is slow, not gone. That
    /// counts against its share of answers, which is compared with the others', but not as a failure in a
    /// row: where all are overloaded, none is at fault.
    Late,
    /// By its fault: no connection, no answer, half an answer, or the word that it failed.
    Failed,
}

/// Outcomes of requests at one endpoint since the last evaluation. Shared and never locked.
#[derive(Debug, Default)]
pub struct OutcomeCounts {
    in_a_row: AtomicU32,
    /// This many in a row have the endpoint checked; 0: never.
    limit: AtomicU32,
    /// Whether it has to prove itself: 1 if so.
    on_trial: AtomicU32,
    /// Of all times, modulo 2^32; what of them was in windows that are over.
    answered: AtomicU32,
    judged: AtomicU32,
    timed: AtomicU32,
    failed: AtomicU32,
    nanos: AtomicU64,
}

/// The counts of a window.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    answered: u32,
    failed: u32,
    /// Mean seconds of those that were timed.
    seconds: Option<f64>,
}

impl OutcomeCounts {
    /// Takes in how a request ended. `true`: the endpoint should be looked at now.
    #[must_use = "an endpoint that fails should be looked at"]
    pub fn note(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Answered(took) => {
                let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / 2);
                self.nanos.fetch_add(nanos, Relaxed);
                self.timed.fetch_add(1, Relaxed);
                self.well();
                false
            }
            Outcome::Understood => {
                self.well();
                false
            }
            Outcome::Busy => self.fails_its_trial(),
            Outcome::Late => {
                self.failed.fetch_add(1, Relaxed);
                self.fails_its_trial()
            }
            Outcome::Failed => {
                self.failed.fetch_add(1, Relaxed);
                self.one_more()
            }
        }
    }

    /// Number of its answers, modulo 2^32: with the same number later it has been silent.
    pub fn answers(&self) -> u32 {
        self.answered.load(Relaxed)
    }

    fn well(&self) {
        self.answered.fetch_add(1, Relaxed);
        // Mostly there is nothing to forget, and a write would take the line from other threads.
        if self.in_a_row.load(Relaxed) > 0 {
            self.in_a_row.store(0, Relaxed);
        }
    }

    fn fails_its_trial(&self) -> bool {
        self.on_trial.load(Relaxed) > 0 && self.one_more()
    }

    fn one_more(&self) -> bool {
        let in_a_row = self.in_a_row.fetch_add(1, Relaxed).saturating_add(1);
        let limit = self.limit.load(Relaxed);
        // Once for each time that the limit is reached, not for every failure beyond.
        limit > 0 && in_a_row.is_multiple_of(limit)
    }

    fn is_over(&self) -> bool {
        let limit = self.limit.load(Relaxed);
        limit > 0 && self.in_a_row.load(Relaxed) >= limit
    }

    fn watch_for(&self, limit: u32, on_trial: bool) {
        self.limit.store(limit, Relaxed);
        self.on_trial.store(u32::from(on_trial), Relaxed);
    }

    fn take(&self) -> Window {
        let [timed, failed] = [&self.timed, &self.failed].map(|count| count.swap(0, Relaxed));
        let answers = self.answers();
        let answered = answers.wrapping_sub(self.judged.swap(answers, Relaxed));
        let nanos = self.nanos.swap(0, Relaxed);
        #[allow(clippy::cast_precision_loss, reason = "a mean need not be exact to 53 bits")]
        let seconds = (timed > 0).then(|| nanos as f64 / 1e9 / f64::from(timed));
        Window { answered, failed, seconds }
    }
}

/// Why an endpoint was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Consecutive failures.
    ConsecutiveFailures,
    /// It answers less often than it should, and than the others.
    SuccessRate,
    /// It answers much later than the others.
    Latency,
    /// It failed when it had come back to prove itself.
    Recovery,
    /// Its probes failed again so soon after it had come back.
    Flapping,
}

impl Cause {
    /// The word in status, logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::SuccessRate => "success_rate",
            Self::Latency => "latency",
            Self::Recovery => "recovery",
            Self::Flapping => "flapping",
        }
    }
}

/// The state of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Standing {
    /// Nothing is held against it.
    #[default]
    Good,
    /// Back, and has to prove itself.
    Trial,
    /// Out.
    Out(Cause, Time),
}

/// The ejection history of one endpoint.
#[derive(Debug, Clone, Default)]
pub struct EjectionHistory {
    standing: Standing,
    /// Number of ejections, less those that good behaviour has cancelled: it multiplies the duration.
    multiplier: u32,
    /// Since when nothing was to be said against it, nor made good by it.
    good_since: Time,
}

impl EjectionHistory {
    /// The cause and the end of the current ejection, if it is out.
    pub fn out(&self) -> Option<(Cause, Time)> {
        match self.standing {
            Standing::Out(cause, until) => Some((cause, until)),
            Standing::Good | Standing::Trial => None,
        }
    }

    /// Number of ejections, less those that good behaviour has cancelled since.
    pub fn multiplier(&self) -> u32 {
        self.multiplier
    }

    /// Its probes took it out of rotation. One fall is a restart; from the second on it is held back.
    pub fn probe_failed(&mut self, rules: &Ejection, now: Time) -> Option<Cause> {
        if !rules.is_on() || self.out().is_some() {
            return None;
        }
        self.worse(rules);
        self.good_since = now;
        let held = rules.back_off(self.multiplier.saturating_sub(1));
        (self.multiplier > 1).then(|| {
            self.standing = Standing::Out(Cause::Flapping, now + held);
            Cause::Flapping
        })
    }

    fn eject(&mut self, cause: Cause, rules: &Ejection, now: Time) {
        self.worse(rules);
        self.standing = Standing::Out(cause, now + rules.back_off(self.multiplier));
    }

    /// The next time out is longer, unless it is the longest: what lies beyond that would have to be made good
    /// without having counted.
    fn worse(&mut self, rules: &Ejection) {
        self.multiplier = self.multiplier.saturating_add(1).min(rules.max_multiplier());
    }

    /// Lowers the multiplier by one for each first time out that passes without another.
    fn forgive(&mut self, rules: &Ejection, now: Time) {
        let step = rules.base_time.max(Duration::from_millis(1));
        while self.multiplier > 0 && now.since(self.good_since) >= step {
            self.multiplier -= 1;
            self.good_since = self.good_since + step;
        }
    }
}

/// An endpoint as it is judged.
#[derive(Debug)]
pub struct Member<'a> {
    /// The outcomes of requests there.
    pub counts: &'a OutcomeCounts,
    /// Its ejection history.
    pub history: &'a mut EjectionHistory,
    /// The health by its probes.
    pub probed: Health,
    /// Whether it is kept out by hand.
    pub draining: bool,
}

impl Member<'_> {
    fn is_in(&self) -> bool {
        self.probed == Health::Ready && !self.draining && self.history.out().is_none()
    }
}

/// The verdict of a check of the pool, for one of its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is out from now on.
    Ejected(Cause),
    /// It would be, were not too many out already.
    Spared(Cause),
    /// It is back, on trial.
    Returned,
}

/// Detects the outliers among the endpoints of one pool.
#[derive(Debug, Clone, Default)]
pub struct OutlierDetector {
    window_began: Time,
}

impl OutlierDetector {
    /// Looks at all of them at `now`; what changed, each with its index among `members`.
    pub fn evaluate(
        &mut self,
        rules: &Ejection,
        members: &mut [Member<'_>],
        now: Time,
    ) -> Vec<(usize, Verdict)> {
        let mut verdicts = Vec::new();
        if !rules.is_on() {
            // As after a reload that switched it off.
            let out = |history: &EjectionHistory| {
                history.standing != Standing::Good || history.multiplier > 0
            };
            for (index, member) in members.iter_mut().enumerate().filter(|(_, m)| out(m.history)) {
                *member.history = EjectionHistory::default();
                verdicts.push((index, Verdict::Returned));
            }
            return verdicts;
        }
        for (index, member) in members.iter_mut().enumerate() {
            if member.history.out().is_some_and(|(_, until)| until <= now) {
                member.history.standing = Standing::Trial;
                member.history.good_since = now;
                member.counts.in_a_row.store(0, Relaxed);
                verdicts.push((index, Verdict::Returned));
            }
            let on_trial = member.history.standing == Standing::Trial;
            let limit = if on_trial { 1 } else { rules.consecutive_failures };
            member.counts.watch_for(limit, on_trial);
        }
        for index in 0..members.len() {
            if members[index].is_in() && members[index].counts.is_over() {
                members[index].counts.in_a_row.store(0, Relaxed);
                let on_trial = members[index].history.standing == Standing::Trial;
                let cause = if on_trial { Cause::Recovery } else { Cause::ConsecutiveFailures };
                verdicts.push((index, eject(rules, members, index, cause, now)));
            }
        }
        if now.since(self.window_began) >= rules.interval {
            self.window_began = now;
            end_of_window(rules, members, now, &mut verdicts);
        }
        verdicts
    }
}

/// Judges by what the window held.
fn end_of_window(
    rules: &Ejection,
    members: &mut [Member<'_>],
    now: Time,
    verdicts: &mut Vec<(usize, Verdict)>,
) {
    let windows: Vec<_> = members.iter().map(|member| member.counts.take()).collect();
    let enough = |window: &&Window| {
        window.answered.saturating_add(window.failed) >= rules.min_requests.max(1)
    };
    let shares = windows.iter().filter(enough).map(Window::share);
    let others_do_well = better_median(shares.map(|share| -share).collect())
        .is_some_and(|median| -median >= rules.success_rate);
    let typical = better_median(windows.iter().filter(enough).filter_map(|w| w.seconds).collect());
    for (index, window) in windows.iter().enumerate() {
        if !members[index].is_in() {
            continue;
        }
        let late = rules.latency_factor.zip(typical).zip(window.seconds);
        let late = late.is_some_and(|((factor, typical), own)| own > factor * typical);
        let cause = if others_do_well && window.share() < rules.success_rate {
            Some(Cause::SuccessRate)
        } else {
            late.then_some(Cause::Latency)
        };
        if let Some(cause) = cause.filter(|_| enough(&window)) {
            verdicts.push((index, eject(rules, members, index, cause, now)));
            continue;
        }
        let history = &mut *members[index].history;
        if history.standing == Standing::Trial && window.answered > 0 && window.failed == 0 {
            history.standing = Standing::Good;
            members[index].counts.watch_for(rules.consecutive_failures, false);
        }
        members[index].history.forgive(rules, now);
    }
}

impl Window {
    /// Of all that ended, what was answered.
    fn share(&self) -> f64 {
        let all = f64::from(self.answered) + f64::from(self.failed);
        if all > 0.0 { f64::from(self.answered) / all } else { 1.0 }
    }
}

/// The median; between two, the lesser. Less is better here: of two endpoints, the bad one must not
/// set the measure.
fn better_median(mut values: Vec<f64>) -> Option<f64> {
    let middle = values.len().checked_sub(1)? / 2;
    let (_, median, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*median)
}

/// Takes one out, unless too many are out already.
fn eject(
    rules: &Ejection,
    members: &mut [Member<'_>],
    index: usize,
    cause: Cause,
    now: Time,
) -> Verdict {
    let all = members.iter().filter(|member| !member.draining).count();
    let out = members.iter().filter(|member| !member.draining && member.history.out().is_some());
    let left = members.iter().filter(|member| member.is_in()).count();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a count"
    )]
    let most = ((all as f64 * rules.max_share) as usize).max(1);
    if out.count() >= most || left < 2 {
        return Verdict::Spared(cause);
    }
    members[index].history.eject(cause, rules, now);
    Verdict::Ejected(cause)
}

/// Whether so few of `all` are in rotation that ejected ones should be used all the same.
pub fn panics(ready: usize, all: usize, below: f64) -> bool {
    #[allow(clippy::cast_precision_loss, reason = "counts of endpoints")]
    let share = ready as f64 / all.max(1) as f64;
    share < below
}

#[cfg(test)]
mod tests;
