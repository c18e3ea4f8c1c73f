//! When a request gives way to the variant that stands in for its own.
//!
//! A request that may be answered by a cheaper variant has a moment before its deadline from which on not even that
//! variant would be done in time. If it still waits then, for a slot or for an answer, it gets neither: a queue in
//! which others go first, or one service that takes longer than nearly all, would cost it both answers. So at that
//! moment it gives way to the variant, unless its own chance is as good.

use super::prospects::MIN_CHANCE_SHARE;
use crate::{Candidate, Load, PoolView, RelativeCost, Rng, Time};
use std::time::Duration;

/// The chance to be done in time with which a request stays where it is: an answer of its own variant is worth more.
const OWN_CHANCE: f64 = 0.9;

/// The times that a request would find at the variant that stands in, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StandInTime {
    /// The wait of one that comes now.
    pub wait: f64,
    /// The mean service of such a request.
    pub mean: f64,
    /// The time that nearly all services take at most.
    pub nearly_all: f64,
}

impl StandInTime {
    /// Seconds that nearly every request needs of which nothing else is known.
    fn needed(self) -> f64 {
        self.wait + self.nearly_all
    }

    /// The same for a request that has so many seconds `left`, runs for its own variant until the rest of them is
    /// just needed, and would be done there after `service` seconds in the mean. One that has taken long is long for
    /// the other variant as well: what it has taken, in means, comes on top.
    fn needed_after(self, left: f64, service: f64) -> f64 {
        (self.needed() + self.mean * left / service) / (1.0 + self.mean / service)
    }
}

impl<C: Candidate> PoolView<'_, C> {
    /// The times that a request would find here that comes now behind `waiting` others. `None`: too little is known.
    pub fn stand_in_time(
        &self,
        waiting: usize,
        relative_cost: RelativeCost,
        rng: &mut Rng,
    ) -> Option<StandInTime> {
        let (capacity, odds) = (self.capacity(rng), &self.context.memory.odds);
        if !odds.is_known() || capacity.per_second <= 0.0 {
            return None;
        }
        let mean = capacity.service * relative_cost.get();
        let nearly_all = odds.quantile(MIN_CHANCE_SHARE) * mean;
        Some(StandInTime { wait: capacity.wait(waiting).as_secs_f64(), mean, nearly_all })
    }

    /// The time at which a request that waits here gives way, if it is not bound before. `None`: it had better wait,
    /// since the variant is no faster, or has too little time itself.
    pub fn waits_until(
        &self,
        (deadline, relative_cost): (Time, RelativeCost),
        stand_in: StandInTime,
        rng: &mut Rng,
    ) -> Option<Time> {
        let needed = stand_in.needed();
        let fastest = self.capacity(rng).fastest * relative_cost.get();
        let odds = &self.context.memory.odds;
        if odds.is_known() && odds.within(ratio(needed, fastest)) >= MIN_CHANCE_SHARE {
            return None;
        }
        self.before(deadline, needed)
    }

    /// The time at which a request that begins now at the endpoint of this `load` gives way, if it is not answered
    /// before. `None`: then it would be nearly done, or the variant would need most of the time.
    pub fn runs_until(
        &self,
        (deadline, relative_cost): (Time, RelativeCost),
        stand_in: StandInTime,
        load: &Load,
    ) -> Option<Time> {
        let odds = &self.context.memory.odds;
        let service = load.service_seconds()? * relative_cost.get();
        let left = deadline.since(self.context.now).as_secs_f64();
        let needed = stand_in.needed_after(left, service);
        // Most of the time: its endpoints are as busy, and more requests would only make them busier.
        if !odds.is_known() || needed > left / 2.0 {
            return None;
        }
        let own = odds.ends_within(ratio(left - needed, service), ratio(left, service));
        if own >= OWN_CHANCE {
            return None;
        }
        self.before(deadline, needed)
    }

    /// So many seconds before the deadline, if that is still to come.
    fn before(&self, deadline: Time, seconds: f64) -> Option<Time> {
        let seconds = Duration::try_from_secs_f64(seconds).ok()?;
        let left = deadline.since(self.context.now).checked_sub(seconds)?;
        (!left.is_zero()).then(|| self.context.now + left)
    }
}

/// So many seconds in means of a service.
fn ratio(seconds: f64, service: f64) -> f64 {
    seconds / service.max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pick::Context;
    use crate::{PickMemory, Policy};
    use std::sync::Arc;

    struct Endpoint(Arc<Load>);
    impl Candidate for Endpoint {
        fn load(&self) -> &Load {
            &self.0
        }
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(millis: u64) -> Time {
        Time::new(ms(millis))
    }

    /// A pool of one endpoint with 4 slots that answers in 20 ms, of which services take so many.
    fn pool(ratios: &[f32]) -> ([Endpoint; 1], Arc<PickMemory>) {
        let (load, memory) = (Arc::new(Load::new(4)), Arc::<PickMemory>::default());
        load.enter().answered(ms(20), Time::default());
        for ratio in ratios.iter().cycle().take(400 * ratios.len().min(1)) {
            memory.odds.learn(*ratio);
        }
        ([Endpoint(load)], memory)
    }

    fn view<'a>(fleet: &'a [Endpoint], memory: &'a Arc<PickMemory>) -> PoolView<'a, Endpoint> {
        let context = Context {
            now: at(1000),
            report_ttl: ms(60_000),
            memory,
            key: None,
            ring: None,
            trace: None,
        };
        let (policy, handoff_delay) = (Policy::Adaptive, ms(0));
        PoolView {
            policy,
            endpoints: fleet,
            freed: None,
            handoff_delay,
            context,
            time_budget: None,
        }
    }

    /// Milliseconds until a moment, and 0 for none.
    fn millis_until(moment: Option<Time>) -> u128 {
        moment.map_or(0, |moment| moment.since(at(1000)).as_millis())
    }

    #[test]
    fn the_stand_in_needs_its_wait_and_what_nearly_all_services_take() {
        let (mut rng, known) = (Rng::new(1), pool(&[1.0, 1.0, 1.0, 2.0]));
        let needed = |waiting, cost| {
            let cost = RelativeCost::new(cost);
            let found = view(&known.0, &known.1).stand_in_time(waiting, cost, &mut Rng::new(2));
            found.map_or(0.0, |it| (it.needed() * 1e3).floor())
        };
        // Twice 20 ms, and a slot frees every 5 ms.
        assert!((45.0..=47.0).contains(&needed(0, 1.0)), "{}", needed(0, 1.0));
        assert!((65.0..=67.0).contains(&needed(4, 1.0)), "{}", needed(4, 1.0));
        assert!((25.0..=26.0).contains(&needed(0, 0.5)), "{}", needed(0, 0.5));
        let unknown = pool(&[]);
        let unknown = view(&unknown.0, &unknown.1);
        assert_eq!(unknown.stand_in_time(0, RelativeCost::default(), &mut rng), None);
    }

    #[test]
    fn a_request_waits_until_the_stand_in_has_just_enough_time() {
        let (mut rng, known) = (Rng::new(1), pool(&[1.0, 1.0, 1.0, 2.0]));
        let view = view(&known.0, &known.1);
        let mut until = |deadline, nearly_all| {
            let stand_in = StandInTime { wait: 0.01, mean: 0.01, nearly_all };
            millis_until(view.waits_until(
                (at(deadline), RelativeCost::default()),
                stand_in,
                &mut rng,
            ))
        };
        assert_eq!(until(1100, 0.02), 70);
        assert_eq!(until(1100, 0.035), 0, "in that time its own would be done as well");
        assert_eq!(until(1020, 0.02), 0, "there is too little time for it");
    }

    #[test]
    fn a_request_runs_until_the_stand_in_has_more_of_a_chance() {
        let (constant, tailed) = (pool(&[1.0]), pool(&[1.0, 1.0, 1.0, 4.0]));
        let until = |(fleet, memory): &([Endpoint; 1], Arc<PickMemory>), deadline, wait| {
            let stand_in = StandInTime { wait, mean: 0.005, nearly_all: 0.01 };
            let terms = (at(deadline), RelativeCost::default());
            millis_until(view(fleet, memory).runs_until(terms, stand_in, &fleet[0].0))
        };
        // Of 60 ms, 20 are needed: 10 as usual, and after 40 ms, or two services, 10 more.
        assert_eq!(until(&tailed, 1060, 0.0), 40);
        assert_eq!(until(&tailed, 1060, 0.02), 0, "others wait for most of that time");
        assert_eq!(until(&constant, 1030, 0.0), 0, "it will just be done");
        assert_eq!(until(&constant, 1005, 0.0), 0, "there is too little time");
        assert_eq!(until(&pool(&[]), 1060, 0.0), 0);
    }
}
