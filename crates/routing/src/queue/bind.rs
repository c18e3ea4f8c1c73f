//! Bind a request to an endpoint now, or hold it back?
//!
//! An endpoint that runs as much as it can gains nothing from one more request, and the request
//! loses: it can't go anywhere else any more. So an endpoint has a limit of requests at once, from
//! the slots that it reports, and a request is bound when a slot frees. In a mixed fleet not even a
//! free slot must always be taken: a slow endpoint may be free because it is slow. [`PoolView::bind`]
//! holds a request back exactly as long as waiting for a better endpoint is expected to end sooner.

use super::capacity::CapacityEstimate;
use super::odds::TimeBudget;
use crate::decision::{Decision, Picked};
use crate::pick::candidates::Sample;
use crate::pick::{self, Candidate, Context, Policy};
use crate::{InFlight, Load, Rng};
use std::sync::Arc;
use std::time::Duration;

/// Share of a slot's time that may pass idle until the next request is there. If it would be more,
/// an endpoint gets requests beyond its slots, so that it can go on at once.
pub(super) const MAX_IDLE_SHARE: f64 = 0.05;

/// Divisor of learnt slots that gives the number of requests beyond them, and one more; or as many as the
/// endpoint does in MAX_EXTRA_SECONDS, for which no request need wait in the proxy.
const LEARNED_SLOTS_PER_EXTRA: u32 = 8;
const MAX_EXTRA_SECONDS: f64 = 0.002;

/// The decision on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// It goes to the endpoint with this index.
    Bind(usize),
    /// It waits until an endpoint is free, or a better one.
    Wait,
    /// There is no endpoint that it may go to.
    NoEndpoint,
}

/// Whether a request may be used to explore an endpoint that has been avoided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exploration {
    Allowed,
    Forbidden,
}

/// A pool as a decision sees it.
#[derive(Debug)]
pub struct PoolView<'a, C> {
    /// The policy among free endpoints.
    pub policy: Policy,
    /// Those that may be used at all: ready, not draining.
    pub endpoints: &'a [C],
    /// One that has just become free, if that is why the question is asked: it is looked at however
    /// many there are.
    pub freed: Option<usize>,
    /// From the moment when an endpoint is done with a request until the next one is there.
    pub handoff_delay: Duration,
    /// Time and beliefs.
    pub context: Context<'a>,
    /// The time that the request has, if it is judged by that.
    pub time_budget: Option<TimeBudget>,
}

impl<C: Candidate> PoolView<'_, C> {
    /// Binds a request that must not be sent to endpoints that are `excluded`, and before which `ahead`
    /// others wait in the proxy.
    pub fn bind(&self, excluded: impl Fn(&C) -> bool, ahead: usize, rng: &mut Rng) -> Binding {
        let full = |endpoint: &C| !self.is_free(endpoint.load());
        let binding = match self.policy {
            Policy::Adaptive | Policy::LeastCost => {
                self.compare(&excluded, ahead, Exploration::Allowed, rng)
            }
            policy => {
                let shut = |endpoint: &C| excluded(endpoint) || full(endpoint);
                let picked = pick::pick(policy, self.endpoints, shut, &self.context, rng);
                if let Some(trace) = self.context.trace {
                    let chosen = picked.map(|index| &self.endpoints[index]);
                    let chosen = chosen.map(|it| (it.name(), it.load().in_flight()));
                    let n = self.endpoints.len();
                    let named = Policy::NAMES.iter().find(|(_, named)| *named == policy);
                    let name = named.map_or("", |(name, _)| name);
                    trace.add(Decision::Pick(Picked::new(name, n, chosen)));
                }
                match picked {
                    Some(index) => Binding::Bind(index),
                    None if self.endpoints.iter().all(excluded) => Binding::NoEndpoint,
                    None => Binding::Wait,
                }
            }
        };
        if let Binding::Bind(index) = binding {
            let load = self.endpoints[index].load();
            load.serves(self.context.memory);
            load.bound(self.context.now);
        }
        binding
    }

    /// The same pool with another policy.
    pub(crate) fn with(&self, policy: Policy) -> Self {
        Self { policy, ..*self }
    }

    /// The same for a request that is to go where others with this `key` go.
    #[must_use = "the view itself is for requests without a key"]
    pub fn with_key(&self, key: Option<u64>) -> Self {
        Self { context: Context { key, ..self.context }, ..*self }
    }

    /// Whether this request may be sent there.
    pub fn is_free(&self, load: &Load) -> bool {
        self.has_room(load) && self.suits(load)
    }

    /// Whether one more request may be sent there. An endpoint without requests of this proxy may always get
    /// one: the knowledge of others' requests may be out of date.
    pub(super) fn has_room(&self, load: &Load) -> bool {
        let Some(limit) = self.limit(load) else { return true };
        let (now, ttl) = (self.context.now, self.context.report_ttl);
        let ours = load.in_flight().saturating_add(load.abandoned(now));
        ours == 0 || load.occupancy(now, ttl) < limit || ours < load.own_share(limit)
    }

    /// Has waiting cost requests their chance of late? Then who goes next is more than whether a slot idles.
    pub(super) fn is_strained(&self, load: &Load) -> bool {
        let service = load.service_seconds().unwrap_or_default();
        self.context.memory.odds.is_strained(self.context.now, service)
    }

    /// How many requests an endpoint may have without waiting there, or nearly so.
    pub(super) fn limit(&self, load: &Load) -> Option<u32> {
        match self.policy {
            // Whether more than that is sent is decided in `ahead`, which knows the queue.
            Policy::Adaptive if !self.is_strained(load) => limit(load, Duration::ZERO),
            _ => limit(load, self.handoff_delay),
        }
    }

    /// Counts a request in at an endpoint that was found free, unless others were faster and took what
    /// was free there. Of several that meet, all may go away with nothing, but never too many stay.
    pub fn enter(&self, load: &Arc<Load>) -> Option<InFlight> {
        self.enter_within(load, limit(load, self.handoff_delay))
    }

    /// The same for one that goes [ahead](crate::Dispatch::BindAhead).
    pub fn enter_ahead(&self, load: &Arc<Load>) -> Option<InFlight> {
        let limit = limit(load, Duration::ZERO);
        self.enter_within(load, limit.map(|limit| limit.saturating_add(self.places_ahead(load))))
    }

    fn enter_within(&self, load: &Arc<Load>, limit: Option<u32>) -> Option<InFlight> {
        let guard = load.enter();
        let (now, ttl) = (self.context.now, self.context.report_ttl);
        let fits = |limit| {
            guard.others() == 0
                || load.occupancy(now, ttl) <= limit
                || guard.others().saturating_add(load.abandoned(now)) < load.own_share(limit)
        };
        limit.is_none_or(fits).then_some(guard)
    }

    /// The speed of the pool, estimated from some or all of its endpoints.
    pub fn capacity(&self, rng: &mut Rng) -> CapacityEstimate {
        self.capacity_for(None, rng)
    }

    /// The same by those endpoints alone that may be done within so many seconds.
    pub(crate) fn capacity_for(&self, seconds: Option<f64>, rng: &mut Rng) -> CapacityEstimate {
        let sampled = Sample::at(self.endpoints, &|_| false, self.freed, &self.context, rng);
        let sample = sampled.indices();
        let best = sampled.new_endpoint_service(self.endpoints, &self.context);
        let odds = &self.context.memory.odds;
        let service = |index: &usize| {
            let load = self.endpoints[*index].load();
            load.expected_service(self.context.now, best).max(f64::MIN_POSITIVE)
        };
        let fastest = sample.iter().map(service).fold(f64::INFINITY, f64::min);
        // One of which nothing can be expected in time does not make others wait less.
        let least = seconds.map_or(0.0, |seconds| odds.within(seconds / fastest) / 2.0);
        let (mut slots, mut per_second, mut deviation) = (0.0, 0.0, 0.0);
        for index in sample {
            let load = self.endpoints[*index].load();
            let (own, service) = (f64::from(load.speedup().unwrap_or(1)), service(index));
            if seconds.is_some_and(|seconds| odds.within(seconds / service) < least) {
                continue;
            }
            let speed = own / service;
            slots += own;
            per_second += speed;
            deviation += speed * load.deviation_seconds();
        }
        if per_second == 0.0 {
            return CapacityEstimate {
                per_second: 0.0,
                service: best,
                deviation: 0.0,
                fastest: best,
            };
        }
        let part = sample.len() as f64 / self.endpoints.len() as f64;
        let (service, deviation) = (slots / per_second, deviation / per_second);
        CapacityEstimate { per_second: per_second / part, service, deviation, fastest }
    }
}

/// Maximum number of requests that an endpoint may have at once; `None`: unknown.
pub fn limit(load: &Load, handoff_delay: Duration) -> Option<u32> {
    let stated = load.stated_slots();
    let slots = stated.or_else(|| load.learnt_slots())?;
    // The next batch forms there while one runs; held back here, its requests would come one by one.
    let slots = if load.joins() { slots.saturating_mul(2) } else { slots };
    let Some(service) = load.service_seconds() else { return Some(slots.saturating_add(1)) };
    let services = |seconds: f64| seconds / service.max(1e-9);
    let idle = services(handoff_delay.as_secs_f64());
    let beyond = if stated.is_none() {
        // Learnt slots are not exact, and the endpoint may be able to do more by now.
        (f64::from(slots) * services(MAX_EXTRA_SECONDS))
            .max(f64::from(slots / LEARNED_SLOTS_PER_EXTRA + 1))
    } else if idle < MAX_IDLE_SHARE {
        0.0
    } else {
        f64::from(slots) * idle.min(1.0)
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    Some(slots.saturating_add(beyond.ceil() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PickMemory, RelativeCost, Report, Time};

    struct Endpoint(Arc<Load>);
    impl Candidate for Endpoint {
        fn load(&self) -> &Load {
            &self.0
        }
    }

    const TTL: Duration = Duration::from_secs(60);

    /// Endpoints with 4 slots that serve in exactly so many milliseconds.
    fn fleet(millis: &[u64]) -> Vec<Endpoint> {
        let endpoint = |millis: &u64| {
            let load = Arc::new(Load::new(4));
            load.enter().answered(Duration::from_millis(*millis), Time::default());
            Endpoint(load)
        };
        millis.iter().map(endpoint).collect()
    }

    /// The same after so many answers that the speeds are certain.
    fn known_fleet(millis: &[u64]) -> Vec<Endpoint> {
        let fleet = fleet(millis);
        for (endpoint, millis) in fleet.iter().zip(millis) {
            for _ in 0..20 {
                endpoint.0.enter().answered(Duration::from_millis(*millis), Time::default());
            }
        }
        fleet
    }

    fn fill(endpoint: &Endpoint) -> Vec<InFlight> {
        (0..4).map(|_| endpoint.0.enter()).collect()
    }

    fn view<'a>(
        policy: Policy,
        fleet: &'a [Endpoint],
        memory: &'a Arc<PickMemory>,
    ) -> PoolView<'a, Endpoint> {
        let context = Context {
            now: Time::default(),
            report_ttl: TTL,
            memory,
            key: None,
            ring: None,
            trace: None,
        };
        let handoff_delay = Duration::from_micros(100);
        PoolView {
            policy,
            endpoints: fleet,
            freed: None,
            handoff_delay,
            context,
            time_budget: None,
        }
    }

    #[test]
    fn a_request_waits_for_a_fast_endpoint_as_long_as_that_is_sooner() {
        let (fleet, memory, mut rng) = (known_fleet(&[20, 20, 60]), Arc::default(), Rng::new(1));
        let view = view(Policy::Adaptive, &fleet, &memory);
        let _full = [fill(&fleet[0]), fill(&fleet[1])];
        // Eight slots of 20 ms free every 2.5 ms: 28 ms, of the 40 that they save, pass behind 10.
        for (ahead, expected) in [(0, Binding::Wait), (9, Binding::Wait), (11, Binding::Bind(2))] {
            assert_eq!(view.bind(|_| false, ahead, &mut rng), expected, "{ahead}");
        }
        let least_cost = PoolView { policy: Policy::LeastCost, ..view };
        assert_eq!(least_cost.bind(|_| false, 0, &mut rng), Binding::Bind(2));
    }

    #[test]
    fn nothing_waits_for_others_because_of_an_endpoint_that_is_hardly_known() {
        let (fleet, memory, mut rng) = (fleet(&[20, 20, 60]), Arc::default(), Rng::new(1));
        let view = view(Policy::Adaptive, &fleet, &memory);
        let _full = [fill(&fleet[0]), fill(&fleet[1])];
        // Its one answer may have been bad luck.
        assert_eq!(view.bind(|_| false, 0, &mut rng), Binding::Bind(2));
        let _finds_out = fleet[2].0.enter();
        assert_eq!(view.bind(|_| false, 0, &mut rng), Binding::Wait, "one is enough");
    }

    #[test]
    fn a_place_that_frees_behind_another_request_is_no_slot() {
        let (fleet, memory, mut rng) = (known_fleet(&[20, 60]), Arc::default(), Rng::new(1));
        let view = view(Policy::Adaptive, &fleet, &memory);
        let _full = fill(&fleet[0]);
        assert_eq!(view.bind(|_| false, 0, &mut rng), Binding::Wait);
        // Four more stand there already: the next slot for this one frees after 25 ms, of the 40 that it saves.
        let _ahead = fill(&fleet[0]);
        assert_eq!(view.bind(|_| false, 0, &mut rng), Binding::Wait);
        let _more = fill(&fleet[0]);
        assert_eq!(view.bind(|_| false, 0, &mut rng), Binding::Bind(1));
    }

    #[test]
    fn no_policy_binds_to_what_is_full_or_excluded() {
        for &(name, policy) in Policy::NAMES {
            let (fleet, memory, mut rng) = (fleet(&[20, 20, 20]), Arc::default(), Rng::new(2));
            let view = view(policy, &fleet, &memory);
            let full = fill(&fleet[0]);
            let not_1 = |endpoint: &Endpoint| Arc::ptr_eq(&endpoint.0, &fleet[1].0);
            for _ in 0..50 {
                assert_eq!(view.bind(not_1, 0, &mut rng), Binding::Bind(2), "{name}");
            }
            assert_eq!(view.bind(|_| true, 0, &mut rng), Binding::NoEndpoint, "{name}");
            let _all = [fill(&fleet[1]), fill(&fleet[2])];
            assert_eq!(view.bind(|_| false, 0, &mut rng), Binding::Wait, "{name}");
            drop(full);
            assert_eq!(view.bind(|_| false, 0, &mut rng), Binding::Bind(0), "{name}");
        }
    }

    #[test]
    fn an_endpoint_of_unknown_size_takes_what_comes() {
        let (fleet, memory) = ([Endpoint(Arc::new(Load::new(0)))], Arc::default());
        let view = view(Policy::Adaptive, &fleet, &memory);
        let _held: Vec<_> = (0..1000).map(|_| fleet[0].0.enter()).collect();
        assert_eq!(view.bind(|_| false, 0, &mut Rng::new(3)), Binding::Bind(0));
    }

    #[test]
    fn one_that_just_became_free_is_found_among_thousands() {
        let millis = vec![20; 5000];
        let (fleet, memory, mut rng) = (fleet(&millis), Arc::default(), Rng::new(4));
        let mut full: Vec<_> = fleet.iter().map(fill).collect();
        full[4321].pop();
        let view = PoolView { freed: Some(4321), ..view(Policy::Adaptive, &fleet, &memory) };
        assert_eq!(view.bind(|_| false, 0, &mut rng), Binding::Bind(4321));
    }

    #[test]
    fn others_requests_count_but_never_keep_an_endpoint_from_us_altogether() {
        let (fleet, memory) = (fleet(&[20]), Arc::default());
        let view = view(Policy::Adaptive, &fleet, &memory);
        fleet[0].0.report(&Report { in_flight: Some(9), ..Report::default() }, Time::default());
        let bind = || view.bind(|_| false, 0, &mut Rng::new(5));
        assert_eq!(bind(), Binding::Bind(0));
        let _one = fleet[0].0.enter();
        assert_eq!(bind(), Binding::Wait);
    }

    #[test]
    fn a_proxys_own_share_of_the_slots_is_its_to_use_whatever_late_reports_say() {
        let (fleet, memory) = (fleet(&[20]), Arc::default());
        let view = view(Policy::Adaptive, &fleet, &memory);
        let report = Report { in_flight: Some(4), ..Report::default() };
        // Of four requests two are ours, again and again.
        let both = [fleet[0].0.enter(), fleet[0].0.enter()];
        (0..20).for_each(|_| fleet[0].0.report(&report, Time::default()));
        drop(both);
        let bind = || view.bind(|_| false, 0, &mut Rng::new(5));
        // Another one was sent there meanwhile, as the next report says too late.
        let late = Report { in_flight: Some(9), ..Report::default() };
        let _one = fleet[0].0.enter();
        fleet[0].0.report(&late, Time::default());
        assert_eq!(bind(), Binding::Bind(0));
        let two = view.enter(&fleet[0].0);
        assert!(two.is_some());
        assert_eq!(bind(), Binding::Wait, "half of the slots are ours");
    }

    #[test]
    fn work_that_a_proxy_has_abandoned_takes_its_own_share() {
        let (fleet, memory) = (fleet(&[20]), Arc::default());
        let load = &fleet[0].0;
        load.serves(&memory);
        (0..200).for_each(|_| load.enter().answered(Duration::from_millis(20), Time::default()));
        let both = [load.enter(), load.enter()];
        let report = Report { in_flight: Some(3), ..Report::default() };
        (0..20).for_each(|_| load.report(&report, Time::default()));
        drop(both);
        for _ in 0..3 {
            load.enter().cut_short(Duration::from_millis(1), Time::default());
        }
        assert_eq!(load.abandoned(Time::default()), 3);
        let view = view(Policy::Adaptive, &fleet, &memory);
        let bound = view.bind(|_| false, 0, &mut Rng::new(5));
        assert_eq!(bound, Binding::Wait, "the abandoned work has our three slots");
    }

    #[test]
    fn of_those_that_meet_at_the_last_slot_no_two_stay() {
        let (fleet, memory) = (fleet(&[20]), Arc::default());
        let view = view(Policy::Adaptive, &fleet, &memory);
        let mut held: Vec<_> = (0..4).filter_map(|_| view.enter(&fleet[0].0)).collect();
        assert_eq!((held.len(), view.enter(&fleet[0].0).is_some()), (4, false));
        held.pop();
        assert!(view.enter(&fleet[0].0).is_some());
        assert_eq!(fleet[0].0.in_flight(), 3);
    }

    #[test]
    fn the_limit_leaves_room_for_the_way_where_services_are_short() {
        let handoff_delay = Duration::from_millis(1);
        for (millis, expected) in [(100, 4), (10, 5), (2, 6), (1, 8)] {
            assert_eq!(limit(&fleet(&[millis])[0].0, handoff_delay), Some(expected), "{millis}");
        }
    }

    #[test]
    fn where_requests_are_joined_the_next_batch_may_wait() {
        let load = Load::new(1);
        load.report(
            &Report { slots: Some(8), batch: Some(8), ..Report::default() },
            Time::default(),
        );
        load.observe(Duration::from_millis(50), 0, Time::default());
        assert_eq!(limit(&load, Duration::from_micros(500)), Some(16));
    }

    #[test]
    fn the_outlook_tells_what_can_be_done_in_time() {
        let (fleet, memory, mut rng) = (fleet(&[20, 40]), Arc::default(), Rng::new(6));
        let capacity = view(Policy::Adaptive, &fleet, &memory).capacity(&mut rng);
        assert_eq!(capacity.per_second.round(), 300.0);
        assert_eq!((capacity.service * 1e5).round(), 2667.0);
        let at = |millis| Time::new(Duration::from_millis(millis));
        assert_eq!((capacity.wait(29).as_secs_f64() * 1e3).round(), 100.0);
        assert!(capacity.can_meet(at(127), at(0), 29));
        let free = Duration::from_millis(30);
        assert!(capacity.may_serve(14, free), "of 9 that are to be expected, 15 come at times");
        assert!(!capacity.may_serve(15, free));
        assert!(!capacity.may_serve(0, Duration::from_micros(500)));
        assert!(!capacity.can_meet(at(126), at(0), 29));
        assert!(capacity.for_relative_cost(RelativeCost::new(0.1)).can_meet(at(103), at(0), 29));
        assert!(!capacity.for_relative_cost(RelativeCost::new(3.0)).can_meet(at(150), at(0), 29));
        assert!(capacity.is_too_late(at(0), at(126), at(100)));
        assert!(!capacity.is_too_late(at(0), at(127), at(100)));
        assert!(!capacity.is_too_late(at(0), at(60), at(30)), "half of its time must do");
        assert!(
            !capacity.is_too_late(at(0), at(20), at(2)),
            "what has no time at all must be fresh"
        );
        assert!(capacity.is_too_late(at(0), at(20), at(3)));
    }
}
