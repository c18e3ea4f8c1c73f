//! Invariants of a request's attempts in any order of events: attempts that end late, never
//! or twice, hedges that both fail, an empty budget, a client that leaves and a deadline that passes at any
//! step. Each failure names the seed that brings it back.

use crate::cause::{Why, millis};
use forebay_routing::attempt::event::{
    Answer, Context, Effect, End, Ending, Event, Next, Sending, StandIn, Step, Terms,
};
use forebay_routing::{Attempts, Blame, RetryBudget, RetryOn, RetryPolicy, Rng, Time};
use std::collections::BTreeSet;
use std::time::Duration;

/// More steps than any request can take: as many events as there are attempts, hedges and variants.
const MAX_STEPS: usize = 400;
/// Retries that a budget of a quiet pool holds in the beginning.
const RESERVE: f64 = 10.0;

/// A pool, and what was taken from its budgets.
struct Pool {
    endpoints: usize,
    policy: RetryPolicy,
    budget: RetryBudget,
    budget_share: f64,
    hedges: Option<RetryBudget>,
    earned: f64,
    paid: f64,
    hedge_share: f64,
    hedges_earned: f64,
    hedges_paid: f64,
}

impl Pool {
    fn new(rng: &mut Rng) -> Self {
        let mut on = RetryOn::DEFAULT.to_vec();
        on.retain(|_| rng.below(5) > 0);
        let attempt_timeout = (rng.below(2) > 0).then(|| millis(1) + up_to(40, rng));
        let budget = [0.0, 0.1, 0.5, 1.0][rng.below(4)];
        let attempts = u32::try_from(1 + rng.below(5)).unwrap();
        let policy = RetryPolicy { attempts, attempt_timeout, on };
        let hedge_share = [0.05, 1.0][rng.below(2)];
        Self {
            endpoints: rng.below(6),
            budget: RetryBudget::new(budget, 0.0),
            hedges: (rng.below(3) > 0).then(|| RetryBudget::for_hedges(hedge_share)),
            policy,
            budget_share: budget,
            earned: 0.0,
            paid: 0.0,
            hedge_share,
            hedges_earned: 0.0,
            hedges_paid: 0.0,
        }
    }

    /// The budget held every retry before it was paid.
    fn check(&self, seed: u64) {
        let reserve = if self.budget_share > 0.0 { RESERVE } else { 0.0 };
        let had = reserve + self.earned * self.budget_share;
        assert!(self.paid <= had + 1e-6, "seed {seed}: {} retries of {had}", self.paid);
        let had = self.hedges_earned * self.hedge_share;
        assert!(self.hedges_paid <= had + 1e-6, "seed {seed}: {} hedges", self.hedges_paid);
    }
}

struct World {
    rng: Rng,
    seed: u64,
    now: Time,
    pools: Vec<Pool>,
    /// Counts of events, since a test that never reaches a case says nothing about it.
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let pools = (0..1 + rng.below(3)).map(|_| Pool::new(&mut rng)).collect();
        Self { rng, seed, now: Time::default(), pools, seen: BTreeSet::new() }
    }
}

/// A mishap that is added to the events drawn by chance.
#[derive(Clone, Copy, PartialEq)]
enum Mishap {
    None,
    /// The client leaves at this step.
    Cancel(usize),
    /// The deadline is at this time.
    Deadline(Time),
}

/// An attempt as the test remembers it.
struct Begun {
    variant: usize,
    until: Option<Time>,
    runs: bool,
    answered: bool,
    verdicts: usize,
}

/// A request on its way.
struct Run<'a> {
    world: &'a mut World,
    machine: Attempts<Why>,
    terms: Terms,
    is_repeatable: bool,
    /// The pool of each variant.
    variants: Vec<usize>,
    variant: usize,
    tried: Vec<(usize, usize)>,
    begun: Vec<Begun>,
    hedge_at: Option<Time>,
    /// When each step was.
    times: Vec<Time>,
}

impl<'a> Run<'a> {
    fn new(world: &'a mut World, mishap: Mishap) -> Self {
        let deadline = (world.rng.below(3) == 0).then(|| up_to(100, &mut world.rng));
        let deadline = match mishap {
            Mishap::Deadline(at) => Some(at),
            _ => deadline.map(|in_time| world.now + in_time),
        };
        let terms = Terms {
            deadline,
            usual_time: up_to(100, &mut world.rng),
            is_hurried: world.rng.below(2) > 0,
            is_replayable: world.rng.below(4) > 0,
        };
        let variants = (0..1 + world.rng.below(3)).map(|_| world.rng.below(world.pools.len()));
        Self {
            machine: Attempts::new(terms),
            terms,
            is_repeatable: false,
            variants: variants.collect(),
            variant: 0,
            tried: Vec::new(),
            begun: Vec::new(),
            hedge_at: None,
            times: Vec::new(),
            world,
        }
    }

    fn pool(&self) -> &Pool {
        &self.world.pools[self.variants[self.variant]]
    }

    fn untried(&self) -> Option<usize> {
        let pool = self.variants[self.variant];
        (0..self.pool().endpoints).find(|endpoint| !self.tried.contains(&(pool, *endpoint)))
    }

    /// Gives the machine an event, and checks what it has to say.
    fn feed(&mut self, event: Event<Why>) -> Step<Why> {
        self.times.push(self.world.now);
        let place = self.variants[self.variant];
        let stand_in = self.variants.get(self.variant + 1);
        let has_untried = self.untried().is_some();
        let pool = &self.world.pools[place];
        let context = Context {
            now: self.world.now,
            policy: &pool.policy,
            budget: &pool.budget,
            hedge_budget: pool.hedges.as_ref(),
            has_untried,
            is_repeatable: self.is_repeatable,
            stand_in: stand_in
                .map(|next| if *next == place { StandIn::SamePool } else { StandIn::OtherPool }),
        };
        let enters = matches!(event, Event::Began | Event::StandsIn);
        let is_hedge = matches!(event, Event::HedgeDue { .. });
        let was_over = self.machine.is_over();
        let paid_before = context.stand_in == Some(StandIn::SamePool) && !self.begun.is_empty();
        let step = self.machine.on(event, &context);
        let seed = self.world.seed;
        if was_over {
            assert_eq!(step.effects.iter().count(), 0, "seed {seed}: an effect after the end");
            assert_eq!(step.next, Next::Wait, "seed {seed}: an action after the end");
        }
        let pool = &mut self.world.pools[place];
        if enters && !was_over {
            pool.hedges_earned += 1.0;
        }
        if let (Next::Send(_), true) = (&step.next, is_hedge) {
            pool.hedges_paid += 1.0;
        }
        if matches!(step.next, Next::FallBack(_)) && paid_before {
            pool.paid += 1.0;
        }
        let next = match &step.next {
            Next::Finish(Ending::Answer(_)) => "answered",
            Next::Finish(Ending::PassOn(_)) => "passed on",
            Next::Finish(Ending::Refuse(_)) => "refused",
            Next::Finish(Ending::Left) => "left",
            Next::FallBack(_) => "fallback",
            _ => "goes on",
        };
        self.world.seen.insert(next);
        for effect in step.effects.iter() {
            self.world.seen.insert(match effect {
                Effect::Hedged(hedged) => hedged.as_str(),
                Effect::HedgeRefused(why) => why.as_str(),
                Effect::Retry(false) => "retry refused",
                Effect::Retry(true) => "retry",
                Effect::Settle(_, Blame::GivenUp) => "given up",
                Effect::Settle(_, Blame::Late { cut_short: true }) => "cut short",
                Effect::Settle(_, Blame::Late { cut_short: false }) => "late",
                _ => "noted",
            });
            match effect {
                Effect::Settle(attempt, blame) => {
                    let begun = &mut self.begun[attempt];
                    assert!(begun.runs, "seed {seed}: a verdict on what does not run");
                    begun.verdicts += 1;
                    begun.runs = false;
                    begun.answered = matches!(
                        blame,
                        Blame::Answered { .. } | Blame::Refused | Blame::HandedOver
                    );
                }
                Effect::Retry(true) => pool.paid += 1.0,
                // Errors that are taken for an answer earn nothing; this is a bound from above.
                Effect::Took(_) => pool.earned += 1.0,
                _ => {}
            }
        }
        pool.check(seed);
        step
    }

    fn sent(&mut self, sending: Sending) {
        let seed = self.world.seed;
        assert_eq!(sending.attempt, self.begun.len(), "seed {seed}: attempts are numbered");
        let (now, deadline) = (self.world.now, self.terms.deadline);
        assert!(deadline.is_none_or(|it| now < it), "seed {seed}: sent after the deadline");
        assert!(sending.until.is_none_or(|it| deadline.is_none_or(|end| it <= end)), "seed {seed}");
        let (variant, until) = (self.variant, sending.until);
        self.begun.push(Begun { variant, until, runs: true, answered: false, verdicts: 0 });
        self.hedge_at = sending.hedge_at.or(self.hedge_at);
        let here = self.begun.iter().filter(|begun| begun.variant == variant).count();
        let running = self.begun.iter().filter(|begun| begun.runs).count();
        let hedged = usize::from(self.pool().hedges.is_some());
        let allowed = self.pool().policy.attempts as usize + hedged;
        assert!(here <= allowed, "seed {seed}: {here} attempts of {allowed}");
        assert!(running <= 1 + hedged, "seed {seed}: {running} at once");
    }

    /// Binds, if there is an endpoint and chance allows it.
    fn bind(&mut self) -> Event<Why> {
        let (seed, now) = (self.world.seed, self.world.now);
        assert!(self.terms.deadline.is_none_or(|it| now < it), "seed {seed}: bound too late");
        let variant = self.variant;
        let retries = self.begun.iter().any(|begun| begun.variant == variant);
        let Some(endpoint) = self.untried() else {
            assert!(!retries, "seed {seed}: a retry without an endpoint for it");
            return Event::Rejected(Why::Full);
        };
        match self.world.rng.below(8) {
            0 => Event::Rejected([Why::Full, Why::Invalid, Why::Deadline][self.world.rng.below(3)]),
            _ => {
                self.tried.push((self.variants[variant], endpoint));
                let hedge_after = (self.world.rng.below(3) > 0).then(|| millis(1));
                let gives_way = self.world.rng.below(4) == 0;
                let gives_way_at = gives_way.then(|| now + up_to(8, &mut self.world.rng));
                Event::Bound { hedge_after, gives_way_at }
            }
        }
    }

    fn end(&mut self) -> End<Why> {
        let rng = &mut self.world.rng;
        let status = [200, 200, 302, 404, 429, 500, 500, 501, 502, 503, 504][rng.below(11)];
        let answer = Answer {
            status,
            is_success: status == 200,
            is_busy: rng.below(2) > 0,
            states_reason: rng.below(2) > 0,
            is_whole: rng.below(2) > 0,
        };
        let why = [Why::Full, Why::Broken, Why::Invalid][rng.below(3)];
        match rng.below(9) {
            0..=3 => End::Answered(answer, (status >= 400).then_some(why)),
            4 => End::Broke(RetryOn::Connect, why),
            5 => End::Broke([RetryOn::Reset, RetryOn::Invalid][rng.below(2)], why),
            6 => End::Silent(why),
            7 => End::Unsent(why),
            _ => End::Connected,
        }
    }

    /// Something that happens by itself: time passes, and mostly an attempt ends.
    fn happens(&mut self) -> Event<Why> {
        self.world.now = self.world.now + up_to(8, &mut self.world.rng);
        let (now, hedge_at) = (self.world.now, self.hedge_at);
        let late = self.begun.iter().position(|it| it.runs && it.until.is_some_and(|at| at <= now));
        // Another end may come just when its time is up.
        if let Some(late) = late.filter(|_| self.world.rng.below(4) > 0) {
            let unheard = self.world.rng.below(2) > 0;
            return Event::Ended(late, End::TimedOut { unheard });
        }
        if hedge_at.is_some_and(|at| at <= now) && self.world.rng.below(4) > 0 {
            self.hedge_at = None;
            let room = self.untried().filter(|_| self.world.rng.below(4) > 0);
            return Event::HedgeDue { has_room: room.is_some() };
        }
        match self.world.rng.below(4) {
            // An event that is impossible now, or is repeated.
            0 => match self.world.rng.below(7) {
                0 => Event::Began,
                1 => Event::Bound { hedge_after: None, gives_way_at: None },
                2 => Event::Rejected(Why::Full),
                3 => Event::StandsIn,
                4 => Event::CannotStandIn,
                _ => {
                    let over = self.begun.iter().position(|begun| !begun.runs);
                    Event::Ended(over.unwrap_or(usize::MAX), self.end())
                }
            },
            1 => Event::Ended(self.world.rng.below(self.begun.len().max(1)), self.end()),
            _ => {
                let running = self.begun.iter().position(|begun| begun.runs).unwrap_or(0);
                Event::Ended(running, self.end())
            }
        }
    }

    /// Until the machine has finished.
    fn go(mut self, mishap: Mishap) -> Vec<Time> {
        let seed = self.world.seed;
        let mut step = self.feed(Event::Began);
        for number in 0.. {
            assert!(number < MAX_STEPS, "seed {seed}: it does not end");
            self.is_repeatable = self.world.rng.below(3) > 0;
            if let Next::Send(sending) = step.next {
                self.sent(sending);
            }
            let event = match step.next {
                Next::Finish(ending) => {
                    self.finished(&ending, mishap);
                    return self.times;
                }
                _ if mishap == Mishap::Cancel(number) => Event::ClientLeft,
                Next::Bind => self.bind(),
                Next::FallBack(_) => {
                    self.variant += 1;
                    if self.world.rng.below(4) > 0 { Event::StandsIn } else { Event::CannotStandIn }
                }
                Next::Send(_) | Next::Wait => self.happens(),
            };
            let hedge =
                self.untried().filter(|_| matches!(event, Event::HedgeDue { has_room: true }));
            // An endpoint that a hedge was bound to is one that the request was sent to.
            let place = self.variants[self.variant];
            self.tried.extend(hedge.map(|endpoint| (place, endpoint)));
            step = self.feed(event);
            if hedge.is_some() && !matches!(step.next, Next::Send(_)) {
                self.tried.pop();
            }
        }
        unreachable!()
    }

    /// Checks what the request came to, and that nothing more comes of it.
    fn finished(&mut self, ending: &Ending<Why>, mishap: Mishap) {
        let seed = self.world.seed;
        for (attempt, begun) in self.begun.iter().enumerate() {
            assert_eq!(begun.verdicts, 1, "seed {seed}: verdicts on attempt {attempt}");
        }
        match ending {
            Ending::Answer(attempt) | Ending::PassOn(attempt) => {
                assert!(self.begun[*attempt].answered, "seed {seed}: no answer of {attempt}");
            }
            Ending::Left => assert!(matches!(mishap, Mishap::Cancel(_)), "seed {seed}"),
            Ending::Refuse(_) => {}
        }
        for _ in 0..5 {
            let event = self.happens();
            self.feed(event);
        }
        self.feed(Event::ClientLeft);
    }
}

fn up_to(end: usize, rng: &mut Rng) -> Duration {
    millis(rng.below(end) as u64)
}

fn run(world: &mut World, mishap: Mishap) -> Vec<Time> {
    Run::new(world, mishap).go(mishap)
}

#[test]
fn whatever_happens_each_attempt_gets_one_verdict_and_the_request_one_ending() {
    let mut seen = BTreeSet::new();
    for seed in 0..1000 {
        let mut world = World::new(seed);
        for _ in 0..30 {
            run(&mut world, Mishap::None);
        }
        seen.append(&mut world.seen);
    }
    for expected in [
        "answered",
        "passed on",
        "refused",
        "fallback",
        "won",
        "lost",
        "failed",
        "busy",
        "budget",
        "retry",
        "retry refused",
        "given up",
        "cut short",
        "late",
    ] {
        assert!(seen.contains(expected), "{expected} never happened");
    }
}

#[test]
fn a_client_may_leave_at_any_step() {
    for seed in 0..1500 {
        let steps = run(&mut World::new(seed), Mishap::None).len();
        for step in 0..steps {
            run(&mut World::new(seed), Mishap::Cancel(step));
        }
    }
}

#[test]
fn the_deadline_may_pass_at_any_step() {
    for seed in 0..1500 {
        for at in run(&mut World::new(seed), Mishap::None) {
            run(&mut World::new(seed), Mishap::Deadline(at));
        }
    }
}
