//! Passive ejection: an endpoint whose answers are bad is taken out of rotation for a while.
//!
//! Probes ask an endpoint whether it is well; requests find out. One that fails fast looks idle and
//! would draw all traffic, one that fails now and then passes every probe. So what requests meet is
//! tallied, without locks, and judged by one task: failures in a row at once, shares and latencies at
//! the end of each window, against what the rest of the pool does in the same time.
//!
//! The cure must not be worse. Only what is an endpoint's own fault counts: a caller's mistake (4xx)
//! never does, and being busy (429, 503) only while the endpoint has to prove itself. At most a share of
//! the pool is out at once, one endpoint always stays, and if too few are left all are used again
//! ([`panics`]): half of a sick fleet is worth more than none. An endpoint that comes back is on trial,
//! where one failure sends it out again, for twice as long; good behaviour shortens that again as
//! slowly. One that falls and rises by its probes is held back in the same way from its second fall on,
//! so that what flaps changes rotation no more than once in a back-off.

use crate::{Health, Time};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// When an endpoint is taken out, and for how long.
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
    /// How long the first time lasts.
    pub base_time: Duration,
    /// How long the longest lasts.
    pub max_time: Duration,
    /// Share of the pool that may be out at once; 0: nothing is ever ejected.
    pub max_share: f64,
    /// Share of the pool in rotation below which those that are out are used all the same.
    pub panic_below: f64,
}

impl Ejection {
    /// May anything be ejected at all?
    pub fn is_on(&self) -> bool {
        self.max_share > 0.0
    }

    /// Time out after so many strikes.
    fn back_off(&self, strikes: u32) -> Duration {
        let doublings = strikes.saturating_sub(1).min(30);
        self.base_time.saturating_mul(1 << doublings).min(self.max_time)
    }
}

/// How a request ended at an endpoint, as far as that speaks of the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With what was asked for, after this time.
    Answered(Duration),
    /// With an answer that says nothing against it: a caller's mistake, or one whose time is no
    /// measure.
    Understood,
    /// With the word that it has too much to do.
    Busy,
    /// By its fault: no connection, no answer, half an answer, or the word that it failed.
    Failed,
}

/// What requests met at one endpoint since the last look. Shared and never locked.
#[derive(Debug, Default)]
pub struct Tally {
    in_a_row: AtomicU32,
    /// So many in a row have the endpoint looked at; 0: nobody looks.
    limit: AtomicU32,
    /// Whether it has to prove itself: 1 if so.
    on_trial: AtomicU32,
    answered: AtomicU32,
    timed: AtomicU32,
    failed: AtomicU32,
    nanos: AtomicU64,
}

/// What a window held.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    answered: u32,
    failed: u32,
    /// Mean seconds of those that were timed.
    seconds: Option<f64>,
}

impl Tally {
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
            Outcome::Busy => self.on_trial.load(Relaxed) > 0 && self.one_more(),
            Outcome::Failed => {
                self.failed.fetch_add(1, Relaxed);
                self.one_more()
            }
        }
    }

    fn well(&self) {
        self.answered.fetch_add(1, Relaxed);
        // Mostly there is nothing to forget, and a write would take the line from other threads.
        if self.in_a_row.load(Relaxed) > 0 {
            self.in_a_row.store(0, Relaxed);
        }
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
        let [answered, timed, failed] =
            [&self.answered, &self.timed, &self.failed].map(|count| count.swap(0, Relaxed));
        let nanos = self.nanos.swap(0, Relaxed);
        #[allow(clippy::cast_precision_loss, reason = "a mean need not be exact to 53 bits")]
        let seconds = (timed > 0).then(|| nanos as f64 / 1e9 / f64::from(timed));
        Window { answered, failed, seconds }
    }
}

/// Why an endpoint was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// So many failures in a row.
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

/// Where an endpoint stands.
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

/// What is held against one endpoint.
#[derive(Debug, Clone, Default)]
pub struct Record {
    standing: Standing,
    /// How often it was taken out, less what it has made good.
    strikes: u32,
    /// Since when nothing was to be said against it, nor made good by it.
    good_since: Time,
}

impl Record {
    /// Is it out, why, and until when?
    pub fn out(&self) -> Option<(Cause, Time)> {
        match self.standing {
            Standing::Out(cause, until) => Some((cause, until)),
            Standing::Good | Standing::Trial => None,
        }
    }

    /// How often it was taken out, less what it has made good since.
    pub fn strikes(&self) -> u32 {
        self.strikes
    }

    /// Its probes took it out of rotation. One fall is a restart; from the second on it is held back.
    pub fn fell(&mut self, rules: &Ejection, now: Time) -> Option<Cause> {
        if !rules.is_on() || self.out().is_some() {
            return None;
        }
        self.strikes = self.strikes.saturating_add(1);
        self.good_since = now;
        let held = rules.back_off(self.strikes.saturating_sub(1));
        (self.strikes > 1).then(|| {
            self.standing = Standing::Out(Cause::Flapping, now + held);
            Cause::Flapping
        })
    }

    fn eject(&mut self, cause: Cause, rules: &Ejection, now: Time) {
        self.strikes = self.strikes.saturating_add(1);
        self.standing = Standing::Out(cause, now + rules.back_off(self.strikes));
    }

    /// Forgets a strike for each back-off that passes without another.
    fn forgive(&mut self, rules: &Ejection, now: Time) {
        if self.strikes > 0 && now.since(self.good_since) >= rules.back_off(self.strikes) {
            self.strikes -= 1;
            self.good_since = now;
        }
    }
}

/// An endpoint as it is judged.
#[derive(Debug)]
pub struct Member<'a> {
    /// What requests met there.
    pub tally: &'a Tally,
    /// What is held against it.
    pub record: &'a mut Record,
    /// What its probes say.
    pub probed: Health,
    /// Whether it is kept out by hand.
    pub draining: bool,
}

impl Member<'_> {
    fn is_in(&self) -> bool {
        self.probed == Health::Ready && !self.draining && self.record.out().is_none()
    }
}

/// What a look at a pool came to, for one of its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is out from now on.
    Ejected(Cause),
    /// It would be, were not too many out already.
    Spared(Cause),
    /// It is back, on trial.
    Returned,
}

/// Judges the endpoints of one pool.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    window_began: Time,
}

impl Judge {
    /// Looks at all of them at `now`; what changed, each with its place among `members`.
    pub fn look(
        &mut self,
        rules: &Ejection,
        members: &mut [Member<'_>],
        now: Time,
    ) -> Vec<(usize, Verdict)> {
        let mut verdicts = Vec::new();
        if !rules.is_on() {
            // As after a reload that switched it off.
            let out = |record: &Record| record.standing != Standing::Good || record.strikes > 0;
            for (place, member) in members.iter_mut().enumerate().filter(|(_, m)| out(m.record)) {
                *member.record = Record::default();
                verdicts.push((place, Verdict::Returned));
            }
            return verdicts;
        }
        for (place, member) in members.iter_mut().enumerate() {
            if member.record.out().is_some_and(|(_, until)| until <= now) {
                member.record.standing = Standing::Trial;
                member.record.good_since = now;
                member.tally.in_a_row.store(0, Relaxed);
                verdicts.push((place, Verdict::Returned));
            }
            let on_trial = member.record.standing == Standing::Trial;
            let limit = if on_trial { 1 } else { rules.consecutive_failures };
            member.tally.watch_for(limit, on_trial);
        }
        for place in 0..members.len() {
            if members[place].is_in() && members[place].tally.is_over() {
                members[place].tally.in_a_row.store(0, Relaxed);
                let on_trial = members[place].record.standing == Standing::Trial;
                let cause = if on_trial { Cause::Recovery } else { Cause::ConsecutiveFailures };
                verdicts.push((place, eject(rules, members, place, cause, now)));
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
    let windows: Vec<_> = members.iter().map(|member| member.tally.take()).collect();
    let enough = |window: &&Window| {
        window.answered.saturating_add(window.failed) >= rules.min_requests.max(1)
    };
    let shares = windows.iter().filter(enough).map(Window::share);
    let others_do_well = better_median(shares.map(|share| -share).collect())
        .is_some_and(|median| -median >= rules.success_rate);
    let typical = better_median(windows.iter().filter(enough).filter_map(|w| w.seconds).collect());
    for (place, window) in windows.iter().enumerate() {
        if !members[place].is_in() {
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
            verdicts.push((place, eject(rules, members, place, cause, now)));
            continue;
        }
        let record = &mut *members[place].record;
        if record.standing == Standing::Trial && window.answered > 0 && window.failed == 0 {
            record.standing = Standing::Good;
            members[place].tally.watch_for(rules.consecutive_failures, false);
        }
        members[place].record.forgive(rules, now);
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
    place: usize,
    cause: Cause,
    now: Time,
) -> Verdict {
    let all = members.iter().filter(|member| !member.draining).count();
    let out = members.iter().filter(|member| !member.draining && member.record.out().is_some());
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
    members[place].record.eject(cause, rules, now);
    Verdict::Ejected(cause)
}

/// Are so few of `all` in rotation that those which are out should be used all the same?
pub fn panics(ready: usize, all: usize, below: f64) -> bool {
    #[allow(clippy::cast_precision_loss, reason = "counts of endpoints")]
    let share = ready as f64 / all.max(1) as f64;
    share < below
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Ejection = Ejection {
        consecutive_failures: 5,
        interval: Duration::from_secs(2),
        min_requests: 20,
        success_rate: 0.8,
        latency_factor: Some(3.0),
        base_time: Duration::from_secs(3),
        max_time: Duration::from_secs(60),
        max_share: 0.5,
        panic_below: 0.5,
    };

    fn at(millis: u64) -> Time {
        Time::new(Duration::from_millis(millis))
    }

    struct Fleet {
        rules: Ejection,
        judge: Judge,
        tallies: Vec<Tally>,
        records: Vec<Record>,
        probed: Vec<Health>,
        draining: Vec<bool>,
    }

    impl Fleet {
        fn new(n: usize) -> Self {
            let mut fleet = Self {
                rules: RULES,
                judge: Judge::default(),
                tallies: (0..n).map(|_| Tally::default()).collect(),
                records: vec![Record::default(); n],
                probed: vec![Health::Ready; n],
                draining: vec![false; n],
            };
            assert_eq!(fleet.look(0), []);
            fleet
        }

        fn look(&mut self, millis: u64) -> Vec<(usize, Verdict)> {
            let records = self.records.iter_mut().zip(&self.tallies);
            let mut members: Vec<_> = records
                .zip(self.probed.iter().zip(&self.draining))
                .map(|((record, tally), (&probed, &draining))| Member {
                    tally,
                    record,
                    probed,
                    draining,
                })
                .collect();
            self.judge.look(&self.rules, &mut members, at(millis))
        }

        /// Whether any of them had the endpoint looked at.
        fn ends(&self, place: usize, outcome: Outcome, times: usize) -> bool {
            (0..times).filter(|_| self.tallies[place].note(outcome)).count() > 0
        }

        fn answers(&self, place: usize, millis: u64, times: usize) {
            self.ends(place, Outcome::Answered(Duration::from_millis(millis)), times);
        }
    }

    const OUT: Verdict = Verdict::Ejected(Cause::ConsecutiveFailures);

    #[test]
    fn failures_in_a_row_take_an_endpoint_out_at_once() {
        let mut fleet = Fleet::new(3);
        assert!(!fleet.ends(1, Outcome::Failed, 4));
        fleet.answers(1, 1, 1);
        assert!(!fleet.ends(1, Outcome::Failed, 4), "an answer between begins anew");
        assert_eq!(fleet.look(10), []);
        assert!(fleet.ends(1, Outcome::Failed, 1), "whoever judges is woken");
        assert_eq!(fleet.look(11), [(1, OUT)]);
        assert_eq!(fleet.records[1].out(), Some((Cause::ConsecutiveFailures, at(3011))));
        assert_eq!(fleet.look(3010), []);
        assert_eq!(fleet.look(3011), [(1, Verdict::Returned)]);
    }

    #[test]
    fn what_is_not_the_endpoints_fault_never_counts() {
        let mut fleet = Fleet::new(2);
        assert!(!fleet.ends(0, Outcome::Understood, 100));
        assert!(!fleet.ends(0, Outcome::Busy, 100));
        fleet.answers(1, 1, 100);
        assert_eq!(fleet.look(2500), []);
    }

    #[test]
    fn who_comes_back_is_on_trial_and_goes_for_longer_each_time() {
        let mut fleet = Fleet::new(2);
        fleet.ends(0, Outcome::Failed, 5);
        assert_eq!(fleet.look(0), [(0, OUT)]);
        let mut now = 0;
        for (time, sign) in
            [(3000, Outcome::Busy), (6000, Outcome::Failed), (12_000, Outcome::Busy)]
        {
            now += time;
            assert_eq!(fleet.look(now), [(0, Verdict::Returned)]);
            assert!(fleet.ends(0, sign, 1), "one is enough, even the word that it is busy");
            assert_eq!(fleet.look(now), [(0, Verdict::Ejected(Cause::Recovery))]);
        }
        assert_eq!(fleet.records[0].out(), Some((Cause::Recovery, at(now + 24_000))));
        for _ in 0..20 {
            fleet.records[0].eject(Cause::Recovery, &RULES, at(now));
        }
        assert_eq!(fleet.records[0].out(), Some((Cause::Recovery, at(now + 60_000))), "at most");
    }

    #[test]
    fn good_behaviour_shortens_the_next_time_out() {
        let mut fleet = Fleet::new(2);
        fleet.records[0].strikes = 2;
        let strikes = |fleet: &mut Fleet, millis| {
            fleet.answers(0, 1, 30);
            fleet.answers(1, 1, 30);
            assert_eq!(fleet.look(millis), []);
            fleet.records[0].strikes
        };
        assert_eq!(strikes(&mut fleet, 4000), 2, "the next time would be 6 s");
        assert_eq!(strikes(&mut fleet, 6000), 1);
        assert_eq!(strikes(&mut fleet, 8000), 1);
        assert_eq!(strikes(&mut fleet, 10_000), 0);
    }

    #[test]
    fn the_trial_ends_with_a_window_without_failures() {
        let mut fleet = Fleet::new(2);
        fleet.ends(0, Outcome::Failed, 5);
        fleet.look(0);
        fleet.look(3000);
        fleet.answers(0, 1, 1);
        fleet.look(5000);
        assert!(!fleet.ends(0, Outcome::Busy, 9) && !fleet.ends(0, Outcome::Failed, 4));
        assert_eq!(fleet.look(5001), []);
    }

    #[test]
    fn at_most_a_share_of_the_pool_is_out_and_one_always_stays() {
        for (n, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)] {
            let mut fleet = Fleet::new(n);
            for place in 0..n {
                fleet.ends(place, Outcome::Failed, 5);
            }
            let verdicts = fleet.look(1);
            let out = verdicts.iter().filter(|(_, verdict)| *verdict == OUT).count();
            let spared = Verdict::Spared(Cause::ConsecutiveFailures);
            assert_eq!(out, most, "{n}");
            assert_eq!(verdicts.iter().filter(|(_, v)| *v == spared).count(), n - most, "{n}");
        }
        let mut fleet = Fleet::new(4);
        fleet.probed[1..].fill(Health::Down);
        fleet.ends(0, Outcome::Failed, 5);
        let spared = [(0, Verdict::Spared(Cause::ConsecutiveFailures))];
        assert_eq!(fleet.look(1), spared, "the last one in rotation");
        fleet.probed[1] = Health::Ready;
        fleet.draining[1] = true;
        fleet.ends(0, Outcome::Failed, 5);
        assert_eq!(fleet.look(2), spared, "one that drains is no help");
    }

    #[test]
    fn a_low_share_of_answers_counts_only_against_the_rest_of_the_pool() {
        let window = |shares: &[usize]| {
            let mut fleet = Fleet::new(shares.len());
            for (place, &well) in shares.iter().enumerate() {
                for number in 0..30 {
                    // Spread, so that no run of failures is long enough by itself.
                    let good = number * well / 30 != (number + 1) * well / 30;
                    let outcome = if good { Outcome::Understood } else { Outcome::Failed };
                    fleet.ends(place, outcome, 1);
                }
            }
            fleet.look(2000)
        };
        let bad = Verdict::Ejected(Cause::SuccessRate);
        assert_eq!(window(&[30, 20, 30]), [(1, bad)]);
        assert_eq!(window(&[30, 20]), [(1, bad)], "of two, the better one is the measure");
        assert_eq!(window(&[20, 20, 20]), [], "requests that fail everywhere are to blame");
        assert_eq!(window(&[30, 25, 30]), []);
    }

    #[test]
    fn too_few_requests_say_nothing() {
        let mut fleet = Fleet::new(2);
        fleet.answers(0, 1, 30);
        fleet.answers(1, 100, 19);
        assert_eq!(fleet.look(2000), []);
    }

    #[test]
    fn one_that_answers_much_later_than_the_others_is_out() {
        let mut fleet = Fleet::new(3);
        for (place, millis) in [(0, 10), (1, 31), (2, 10)] {
            fleet.answers(place, millis, 20);
        }
        assert_eq!(fleet.look(2000), [(1, Verdict::Ejected(Cause::Latency))]);
    }

    #[test]
    fn one_that_flaps_changes_rotation_once_in_a_back_off() {
        // Its probes fail for a second and succeed for a second, for ten minutes.
        let mut fleet = Fleet::new(3);
        let mut changes = Vec::new();
        let mut was_in = true;
        for tick in 0..6000 {
            let now = tick * 100;
            let well = (now / 1000) % 2 == 0;
            if !well && fleet.probed[0] == Health::Ready && was_in {
                fleet.records[0].fell(&RULES, at(now));
            }
            fleet.probed[0] = if well { Health::Ready } else { Health::Down };
            fleet.look(now);
            let is_in = well && fleet.records[0].out().is_none();
            if is_in != was_in {
                changes.push((now, is_in));
            }
            was_in = is_in;
        }
        let returns: Vec<_> = changes.iter().filter(|(_, is_in)| *is_in).collect();
        for pair in returns.windows(2).skip(1) {
            assert!(pair[1].0 - pair[0].0 >= 3000, "{returns:?}");
        }
        assert!(returns.len() <= 18, "{} returns in ten minutes", returns.len());
        let gap = |pair: &[&(u64, bool)]| pair[1].0 - pair[0].0;
        assert!(returns.windows(2).last().is_some_and(|pair| gap(pair) >= 60_000), "{returns:?}");
    }

    #[test]
    fn one_restart_holds_nobody_back() {
        let mut record = Record::default();
        assert_eq!(record.fell(&RULES, at(0)), None);
        assert_eq!(record.out(), None);
        assert_eq!(record.fell(&RULES, at(2000)), Some(Cause::Flapping));
        assert_eq!(record.out(), Some((Cause::Flapping, at(5000))));
    }

    #[test]
    fn whoever_switches_ejection_off_has_all_of_them_back() {
        let mut fleet = Fleet::new(2);
        fleet.ends(0, Outcome::Failed, 5);
        assert_eq!(fleet.look(0), [(0, OUT)]);
        fleet.rules.max_share = 0.0;
        assert_eq!(fleet.look(1), [(0, Verdict::Returned)]);
        fleet.ends(0, Outcome::Failed, 50);
        assert_eq!(fleet.look(2), []);
    }

    #[test]
    fn with_fewer_than_half_in_rotation_all_are_used() {
        let cases = [(2, 4, false), (1, 4, true), (0, 2, true), (1, 1, false), (0, 1, true)];
        for (ready, all, expected) in cases {
            assert_eq!(panics(ready, all, 0.5), expected, "{ready} of {all}");
        }
        assert!(!panics(0, 4, 0.0), "0 switches it off");
    }
}
