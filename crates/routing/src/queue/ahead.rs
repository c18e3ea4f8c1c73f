//! One request more than an endpoint has slots, so that it need not idle until the next one is there.
//!
//! From the moment when an endpoint is done with a request until the next one has come from the proxy its
//! slot stands idle: at 95% of the capacity and services of twenty such ways that is more than there is to
//! spare. A request that is sent ahead fills the gap, but it can't go elsewhere any more, and stands behind
//! one whose end is not known yet. Both have a price in seconds of waiting. A gap keeps all
//! waiting that wait now and all that will until the queue is empty for once; a request that was sent ahead
//! loses what is left of the service before it from the moment on when the queue is empty, since it could have
//! had another slot then. The more wait, the more the first weighs and the less the second.
//!
//! The comparison is of the sum of squares of waits, not of waits, since long waits are the ones that hurt.
//! So it counts as well how uncertain the end of the service before is. Of a long queue the cause is often
//! that long services hold all slots, and a request that goes behind one of those waits longest of all. How
//! much is left of it follows from the time that it has taken so far and from the distribution of services.

use super::bind::limit;
use crate::decision::{AheadComparison, Decision, Gap, GapFacts};
use crate::pick::candidates::Sample;
use crate::{Candidate, Load, PoolView, Rng};
use std::time::Duration;

/// Share of a slot's time below which it may idle: to send ahead what a gap of that is would gain nothing that
/// can be told from chance, and take away the choice of the most urgent one.
const MIN_IDLE_SHARE: f64 = 0.002;

/// The least part of a service that is expected to be left: when it began is not known exactly.
const MIN_RESIDUAL: f64 = 0.001;

/// A request that may go ahead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ahead {
    /// To this endpoint.
    pub(super) index: usize,
    /// As many as this go before it to slots that free sooner.
    pub(super) before: usize,
}

/// The state of the part of a pool that is looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    /// Services that end in a second.
    per_second: f64,
    slots: f64,
    /// Requests that were sent ahead.
    ahead: f64,
}

impl<C: Candidate> PoolView<'_, C> {
    /// Requests that may go ahead to an endpoint at most: as many slots as are expected to free on the way.
    pub(super) fn places_ahead(&self, load: &Load) -> u32 {
        let (Some(slots), Some(service)) = (load.stated_slots(), load.service_seconds()) else {
            return 0;
        };
        let idle = self.handoff_delay.as_secs_f64() / service.max(f64::MIN_POSITIVE);
        if load.joins() || idle < MIN_IDLE_SHARE || self.is_strained(load) {
            return 0;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most slots")]
        let places = (f64::from(slots) * idle.min(1.0)).ceil() as u32;
        places
    }

    /// Where one of so many that wait had better go ahead, if anywhere.
    pub(super) fn ahead(&self, indices: &[usize], waiting: usize) -> Option<Ahead> {
        let waiting = waiting as f64 * indices.len() as f64 / self.endpoints.len().max(1) as f64;
        let question = Question {
            waiting,
            handoff_delay: self.handoff_delay.as_secs_f64(),
            utilisation: self.context.memory.utilisation(),
            flow: self.flow(indices),
        };
        if let Some(trace) = self.context.trace {
            let (known, indices): (Vec<Gap>, Vec<usize>) =
                indices.iter().filter_map(|index| Some((self.gap(*index)?, *index))).unzip();
            let mut comparison = question.about(known);
            let (at, before) = comparison.choose()?;
            (comparison.chosen, comparison.before) = (Some(at), before);
            trace.add(Decision::Ahead(comparison));
            return Some(Ahead { index: indices[at], before });
        }
        let facts = |index: &usize| {
            let (gain, until) = question.gain(&self.facts(self.endpoints[*index].load())?);
            (gain > 0.0).then_some((*index, gain, until))
        };
        let (index, _, until) =
            indices.iter().filter_map(facts).max_by(|one, other| one.1.total_cmp(&other.1))?;
        Some(Ahead { index, before: question.before(until) })
    }

    /// How many were sent ahead and have not begun yet.
    pub(super) fn sent_ahead(&self, rng: &mut Rng) -> f64 {
        let sample = Sample::at(self.endpoints, &|_| false, self.freed, &self.context, rng);
        let part = sample.indices().len() as f64 / self.endpoints.len().max(1) as f64;
        self.flow(sample.indices()).ahead / part.max(f64::MIN_POSITIVE)
    }

    /// Seconds until a slot frees at an endpoint that is full, and their standard deviation, by what is known of
    /// the services there: each has lasted at least since the last one ended there.
    pub(super) fn frees_in(&self, load: &Load, service: f64) -> (f64, f64) {
        let elapsed = load.full_for(self.context.now).as_secs_f64();
        let left = self.context.memory.odds.residual(elapsed / service.max(f64::MIN_POSITIVE));
        let slots = f64::from(load.slots());
        let mean = left.mean.max(MIN_RESIDUAL);
        // The first end of many services is as hard to foretell as that of an exponential one.
        let variation = 1.0 + (left.square / mean / mean - 2.0).max(-1.0) / slots;
        let frees = service * mean / slots;
        (frees, frees * variation.sqrt())
    }

    fn flow(&self, indices: &[usize]) -> Flow {
        let mut flow = Flow::default();
        for index in indices {
            let load = self.endpoints[*index].load();
            let (Some(service), Some(slots)) = (load.service_seconds(), load.known_slots()) else {
                continue;
            };
            let occupied = load.occupancy(self.context.now, self.context.report_ttl);
            flow.slots += f64::from(slots);
            flow.per_second += f64::from(slots) / service.max(f64::MIN_POSITIVE);
            flow.ahead += f64::from(occupied.saturating_sub(slots));
        }
        flow
    }

    fn gap(&self, index: usize) -> Option<Gap> {
        let endpoint = &self.endpoints[index];
        let facts = self.facts(endpoint.load())?;
        Some(Gap { endpoint: endpoint.name().to_owned(), facts })
    }

    /// The facts of an endpoint that may get one more than it has slots.
    fn facts(&self, load: &Load) -> Option<GapFacts> {
        let places = self.places_ahead(load);
        let service = load.service_seconds()?;
        let occupied = load.occupancy(self.context.now, self.context.report_ttl);
        let slots = limit(load, Duration::ZERO)?;
        let ahead = occupied.checked_sub(slots).filter(|ahead| *ahead < places)?;
        let (frees, deviation) = self.frees_in(load, service);
        Some(GapFacts { slots, ahead, service, frees, deviation })
    }
}

/// The state of a pool in which one may go ahead.
#[derive(Debug, Clone, Copy)]
struct Question {
    waiting: f64,
    handoff_delay: f64,
    utilisation: f64,
    flow: Flow,
}

impl Question {
    fn about(&self, candidates: Vec<Gap>) -> AheadComparison {
        let Self { waiting, handoff_delay, utilisation, flow } = *self;
        let Flow { per_second, slots, ahead } = flow;
        AheadComparison {
            waiting,
            handoff_delay,
            utilisation,
            per_second,
            slots,
            ahead,
            candidates,
            chosen: None,
            before: 0,
        }
    }

    /// As many as this go before one that begins after so many seconds.
    fn before(&self, until: f64) -> usize {
        let before = (self.flow.per_second * until - self.flow.ahead - 1.0).round().max(0.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
        let before = before as usize;
        before
    }

    /// Seconds of waiting that are saved if one goes ahead to this endpoint, and after how many it begins there.
    fn gain(&self, facts: &GapFacts) -> (f64, f64) {
        let Self { waiting, handoff_delay: gap, utilisation: used, flow } = *self;
        let GapFacts { slots, ahead, service, frees, deviation } = *facts;
        let own = f64::from(slots) / service;
        let until = frees + f64::from(ahead) / own;
        let variance = deviation * deviation + f64::from(ahead) / own / own;
        // The slot idles on the way unless one that was sent before is still there by then.
        let idles = (own * gap).min(1.0).powi(i32::try_from(ahead).unwrap_or(i32::MAX));
        let saved = idles * gap / service / flow.per_second * waiting / (1.0 - used);
        let others = flow.per_second - own;
        let emptied = emptied_within(others, used, 1.0 / until, waiting);
        // A wait `w` that becomes longer by `x` has a square that is larger by `2wx + x²`; what all of `2wx` are worth
        // is counted above. If the queue is never empty before, it is sooner as often as later.
        let twice = 2.0 * waiting / flow.per_second;
        let lost = emptied * (until + (until * until + variance) / twice)
            + (1.0 - emptied) * variance / twice;
        let slower = (service - flow.slots / flow.per_second).max(0.0);
        (saved - lost - slower, until)
    }
}

impl AheadComparison {
    /// The position of the candidate to which one goes, and the number that goes before it.
    pub(crate) fn choose(&self) -> Option<(usize, usize)> {
        let question = Question {
            waiting: self.waiting,
            handoff_delay: self.handoff_delay,
            utilisation: self.utilisation,
            flow: Flow { per_second: self.per_second, slots: self.slots, ahead: self.ahead },
        };
        let gain = |(at, candidate): (usize, &Gap)| {
            let (gain, until) = question.gain(&candidate.facts);
            (gain > 0.0).then_some((at, gain, until))
        };
        let all = self.candidates.iter().enumerate().filter_map(gain);
        let (at, _, until) = all.max_by(|one, other| one.1.total_cmp(&other.1))?;
        Some((at, question.before(until)))
    }
}

/// How likely a queue of so many is empty before a time of the exponential distribution with this rate is over:
/// the Laplace transform of the busy period of a queue that is served so often in a second, and to which come
/// that times `used`.
fn emptied_within(per_second: f64, used: f64, rate: f64, waiting: f64) -> f64 {
    if per_second <= 0.0 {
        return 0.0;
    }
    let sum = per_second * (1.0 + used) + rate;
    let root = (sum * sum - 4.0 * used * per_second * per_second).max(0.0).sqrt();
    ((sum - root) / (2.0 * used * per_second)).clamp(0.0, 1.0).powf(waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pick::Context;
    use crate::{PickMemory, Policy, Time};
    use std::sync::Arc;

    struct Endpoint(Arc<Load>);
    impl Candidate for Endpoint {
        fn load(&self) -> &Load {
            &self.0
        }
    }

    #[test]
    fn one_goes_ahead_if_so_many_wait_that_a_gap_costs_more_than_its_choice() {
        let endpoint = |_| {
            let load = Arc::new(Load::new(1));
            for _ in 0..20 {
                load.enter().answered(Duration::from_millis(5), Time::default());
            }
            Endpoint(load)
        };
        let (fleet, memory): ([Endpoint; 4], _) =
            (std::array::from_fn(endpoint), Arc::<PickMemory>::default());
        let context = Context {
            now: Time::default(),
            report_ttl: Duration::from_secs(1),
            memory: &memory,
            key: None,
            ring: None,
            trace: None,
        };
        let view = PoolView {
            policy: Policy::Adaptive,
            endpoints: &fleet,
            freed: None,
            handoff_delay: Duration::from_micros(500),
            context,
            time_budget: None,
        };
        let full: Vec<_> = fleet.iter().map(|endpoint| endpoint.0.enter()).collect();
        let ahead = |waiting| view.ahead(&[0, 1, 2, 3], waiting);
        assert_eq!(ahead(1), None, "another slot frees sooner");
        let found = ahead(20);
        assert_eq!(found.map(|it| it.before), Some(3), "three slots free as soon");
        // In a pool that is nearly full fewer are enough, since the gap delays all that will come.
        (0..1000).for_each(|_| memory.waits(20.0));
        assert!(ahead(4).is_some() && ahead(1).is_none());
        let index = found.map_or(0, |it| it.index);
        let _taken = fleet[index].0.enter();
        assert_ne!(ahead(20).map(|it| it.index), Some(index), "one at each is enough");
        let strict = PoolView { handoff_delay: Duration::from_micros(1), ..view };
        assert_eq!(strict.ahead(&[0, 1, 2, 3], 20), None, "there is no gap");
        drop(full);
    }

    #[test]
    fn a_queue_is_empty_the_sooner_the_shorter_it_is_and_the_less_is_asked_for() {
        let odds = |used, waiting| emptied_within(8.0, used, 1.0, waiting);
        assert!((odds(0.95, 1.0) - 0.718).abs() < 0.001, "{}", odds(0.95, 1.0));
        assert!((odds(0.6, 1.0) - 0.806).abs() < 0.001, "{}", odds(0.6, 1.0));
        assert!(odds(0.95, 5.0) < odds(0.95, 2.0) && odds(0.95, 2.0) < odds(0.6, 2.0));
        assert_eq!(emptied_within(0.0, 0.9, 1.0, 3.0), 0.0, "there is no other slot");
    }
}
