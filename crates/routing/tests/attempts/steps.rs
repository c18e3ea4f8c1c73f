//! One rule of attempts after the other, each by the shortest way of events to it.

use crate::cause::{Why, millis};
use forebay_routing::attempt::event::*;
use forebay_routing::{Attempts, Blame, Outcome, RetryBudget, RetryOn, RetryPolicy, Time};

/// A request at a pool that has as many endpoints as are wanted.
struct Case {
    machine: Attempts<Why>,
    policy: RetryPolicy,
    budget: RetryBudget,
    hedges: Option<RetryBudget>,
    has_untried: bool,
    is_repeatable: bool,
    stand_in: Option<StandIn>,
    gives_way_at: Option<Time>,
    now: Time,
    effects: Vec<Effect>,
}

const OK: Answer =
    Answer { status: 200, is_success: true, is_busy: false, states_reason: false, is_whole: true };

fn policy() -> RetryPolicy {
    RetryPolicy { attempts: 3, attempt_timeout: None, on: RetryOn::DEFAULT.to_vec() }
}

fn terms() -> Terms {
    Terms {
        deadline: Some(Time::new(millis(1000))),
        usual_time: millis(1000),
        is_hurried: false,
        is_replayable: true,
    }
}

impl Case {
    fn new(terms: Terms) -> Self {
        Self {
            machine: Attempts::new(terms),
            policy: policy(),
            budget: RetryBudget::new(0.1, 0.0),
            hedges: None,
            has_untried: true,
            is_repeatable: true,
            stand_in: None,
            gives_way_at: None,
            now: Time::default(),
            effects: Vec::new(),
        }
    }

    fn hedged(terms: Terms) -> Self {
        let hedges = RetryBudget::for_hedges(1.0);
        Self { hedges: Some(hedges), ..Self::new(terms) }
    }

    fn on(&mut self, event: Event<Why>) -> Next<Why> {
        let context = Context {
            now: self.now,
            policy: &self.policy,
            budget: &self.budget,
            hedge_budget: self.hedges.as_ref(),
            has_untried: self.has_untried,
            is_repeatable: self.is_repeatable,
            stand_in: self.stand_in,
        };
        let step = self.machine.on(event, &context);
        self.effects.extend(step.effects.iter());
        step.next
    }

    /// Has the next attempt bound and sent.
    fn sent(&mut self) -> Sending {
        match self
            .on(Event::Bound { hedge_after: Some(millis(10)), gives_way_at: self.gives_way_at })
        {
            Next::Send(sending) => sending,
            other => panic!("expected an attempt, found {other:?}"),
        }
    }

    fn begun(mut self) -> Self {
        assert_eq!(self.on(Event::Began), Next::Bind);
        self.sent();
        self
    }

    fn answered(&mut self, attempt: usize, status: u16) -> Next<Why> {
        let answer = Answer { status, is_success: status == 200, ..OK };
        self.on(Event::Ended(
            attempt,
            End::Answered(answer, (status >= 400).then_some(Why::Broken)),
        ))
    }

    fn broke(&mut self, attempt: usize, trouble: RetryOn) -> Next<Why> {
        self.on(Event::Ended(attempt, End::Broke(trouble, Why::Broken)))
    }

    fn notes(&self) -> Vec<(usize, Outcome)> {
        let note = |effect: &Effect| match effect {
            Effect::Note(attempt, outcome) => Some((*attempt, *outcome)),
            _ => None,
        };
        self.effects.iter().filter_map(note).collect()
    }
}

fn answer(attempt: usize) -> Next<Why> {
    Next::Finish(Ending::Answer(attempt))
}

fn error(attempt: usize) -> Next<Why> {
    Next::Finish(Ending::PassOn(attempt))
}

#[test]
fn an_endpoint_that_fails_is_replaced_until_no_more_attempts_are_allowed() {
    let mut case = Case::new(terms()).begun();
    for attempt in 0..2 {
        assert_eq!(case.broke(attempt, RetryOn::Reset), Next::Bind);
        case.sent();
    }
    assert_eq!(case.broke(2, RetryOn::Reset), Next::Finish(Ending::Refuse(Why::Broken)));
    assert_eq!(case.notes(), (0..3).map(|it| (it, Outcome::Failed)).collect::<Vec<_>>());
}

#[test]
fn what_may_have_had_its_effect_is_not_sent_again() {
    for (trouble, next) in [
        (RetryOn::Connect, Next::Bind),
        (RetryOn::Reset, Next::Finish(Ending::Refuse(Why::Broken))),
    ] {
        let mut case = Case { is_repeatable: false, ..Case::new(terms()) }.begun();
        assert_eq!(case.broke(0, trouble), next);
    }
}

#[test]
fn what_the_policy_does_not_name_is_not_worth_another_attempt() {
    let policy = RetryPolicy { on: vec![RetryOn::Reset], ..policy() };
    let mut case = Case { policy, ..Case::new(terms()) }.begun();
    assert_eq!(case.broke(0, RetryOn::Connect), Next::Finish(Ending::Refuse(Why::Broken)));
}

#[test]
fn an_error_that_two_endpoints_state_is_the_requests_fault() {
    let mut case = Case::new(terms()).begun();
    assert_eq!(case.answered(0, 500), Next::Bind);
    case.sent();
    assert_eq!(case.answered(1, 500), error(1), "the third endpoint is not asked");
    assert_eq!(case.notes(), [(0, Outcome::Understood), (1, Outcome::Understood)]);
}

#[test]
fn an_error_where_another_endpoint_answers_is_the_endpoints_fault() {
    let mut case = Case::new(terms()).begun();
    case.answered(0, 500);
    case.sent();
    case.now = Time::new(millis(7));
    assert_eq!(case.answered(1, 200), answer(1));
    assert_eq!(case.notes(), [(1, Outcome::Answered(millis(7))), (0, Outcome::Failed)]);
}

#[test]
fn an_error_that_nobody_else_may_be_asked_about_accuses_no_endpoint_where_the_budget_is_empty() {
    let mut case = Case { budget: RetryBudget::new(0.0, 0.0), ..Case::new(terms()) }.begun();
    assert_eq!(case.answered(0, 500), error(0));
    assert_eq!(case.notes(), []);
    assert!(case.effects.contains(&Effect::Retry(false)));
    let mut case = Case { has_untried: false, ..Case::new(terms()) }.begun();
    assert_eq!(case.answered(0, 500), error(0));
    assert_eq!(case.notes(), [(0, Outcome::Failed)], "there is no other to ask");
}

#[test]
fn an_answer_is_worth_more_than_that_another_endpoint_was_gone() {
    let mut case = Case::new(terms()).begun();
    assert_eq!(case.answered(0, 503), Next::Bind);
    assert!(case.machine.keeps(0));
    case.sent();
    assert_eq!(case.broke(1, RetryOn::Connect), Next::Bind);
    assert_eq!(case.on(Event::Rejected(Why::Full)), error(0));
}

#[test]
fn the_earlier_answer_of_two_is_taken_and_the_other_attempt_is_given_up() {
    for (first_wins, outcome) in [(true, Hedged::Lost), (false, Hedged::Won)] {
        let mut case = Case::hedged(terms()).begun();
        case.now = Time::new(millis(10));
        let Next::Send(second) = case.on(Event::HedgeDue { has_room: true }) else {
            panic!("no hedge");
        };
        let (winner, loser) = if first_wins { (0, second.attempt) } else { (second.attempt, 0) };
        assert_eq!(case.answered(winner, 200), answer(winner));
        assert!(case.effects.contains(&Effect::Settle(loser, Blame::GivenUp)));
        assert!(case.effects.contains(&Effect::Hedged(outcome)));
        assert!(case.effects.contains(&Effect::FirstTook(0)));
        assert_eq!(case.effects.contains(&Effect::Probe(0)), !first_wins);
        assert_eq!(case.answered(loser, 200), Next::Wait, "too late");
    }
}

#[test]
fn a_request_fails_only_when_both_of_its_attempts_have() {
    let mut case = Case::hedged(terms()).begun();
    case.now = Time::new(millis(10));
    assert!(matches!(case.on(Event::HedgeDue { has_room: true }), Next::Send(_)));
    assert_eq!(case.broke(0, RetryOn::Reset), Next::Wait);
    assert_eq!(case.answered(1, 503), Next::Bind);
    assert!(case.effects.contains(&Effect::Hedged(Hedged::Failed)));
    assert!(case.machine.keeps(1));
}

#[test]
fn a_hedge_is_made_at_its_time_where_there_is_room_and_it_is_paid_for() {
    let mut case = Case::hedged(terms()).begun();
    case.now = Time::new(millis(9));
    assert_eq!(case.on(Event::HedgeDue { has_room: true }), Next::Wait);
    assert_eq!(case.effects, [], "too early, and still to come");
    case.now = Time::new(millis(10));
    assert_eq!(case.on(Event::HedgeDue { has_room: false }), Next::Wait);
    assert_eq!(case.effects, [Effect::HedgeRefused(HedgeRefusal::Busy)]);
    assert_eq!(case.on(Event::HedgeDue { has_room: true }), Next::Wait, "it was due once");
    let poor = RetryBudget::for_hedges(0.1);
    let mut case = Case { hedges: Some(poor), ..Case::new(terms()) }.begun();
    case.now = Time::new(millis(10));
    assert_eq!(case.on(Event::HedgeDue { has_room: true }), Next::Wait);
    assert_eq!(case.effects, [Effect::HedgeRefused(HedgeRefusal::Budget)]);
}

#[test]
fn an_attempt_is_cut_short_only_if_another_can_follow() {
    let policy = RetryPolicy { attempt_timeout: Some(millis(100)), ..policy() };
    for (has_untried, until) in [(true, 100), (false, 1000)] {
        let policy = policy.clone();
        let mut case = Case { has_untried, policy, ..Case::new(terms()) };
        case.on(Event::Began);
        assert_eq!(case.sent().until, Some(Time::new(millis(until))));
        case.now = Time::new(millis(until));
        let next = case.on(Event::Ended(0, End::TimedOut { unheard: false }));
        let expected =
            if has_untried { Next::Bind } else { Next::Finish(Ending::Refuse(Why::Deadline)) };
        assert_eq!(next, expected);
        assert!(case.effects.contains(&Effect::Settle(0, Blame::Late { cut_short: has_untried })));
        assert_eq!(case.notes(), [(0, Outcome::Late)]);
    }
}

#[test]
fn little_time_says_nothing_against_an_endpoint() {
    let late = |terms: Terms| {
        let mut case = Case::new(terms);
        case.now = Time::new(millis(100));
        let mut case = case.begun();
        case.now = Time::new(millis(1000));
        case.on(Event::Ended(0, End::TimedOut { unheard: true }));
        case.notes()
    };
    assert_eq!(late(terms()), [(0, Outcome::Failed)]);
    assert_eq!(late(Terms { is_hurried: true, ..terms() }), []);
    assert_eq!(late(Terms { usual_time: millis(2000), ..terms() }), [], "most was spent queued");
}

#[test]
fn a_request_moves_once_for_an_endpoints_silence() {
    let mut case = Case::new(terms());
    case.on(Event::Began);
    assert_eq!(case.sent().on_silence, SilencePolicy::WhenOverdue);
    assert_eq!(case.on(Event::Ended(0, End::Silent(Why::Broken))), Next::Bind);
    assert_eq!(case.sent().on_silence, SilencePolicy::Never);
    let mut case = Case { is_repeatable: false, ..Case::new(terms()) };
    case.on(Event::Began);
    assert_eq!(case.sent().on_silence, SilencePolicy::WhenSilentAlone);
    let gone = case.on(Event::Ended(0, End::Silent(Why::Broken)));
    assert_eq!(gone, Next::Finish(Ending::Refuse(Why::Broken)));
}

#[test]
fn a_variant_stands_in_and_the_client_is_told_of_the_one_it_asked_for() {
    let mut case = Case { stand_in: Some(StandIn::OtherPool), ..Case::new(terms()) };
    case.on(Event::Began);
    assert_eq!(case.on(Event::Rejected(Why::Full)), Next::FallBack(Why::Full));
    assert_eq!(case.on(Event::CannotStandIn), Next::FallBack(Why::Full), "the one after it may");
    case.stand_in = None;
    assert_eq!(case.on(Event::StandsIn), Next::Bind);
    case.sent();
    assert_eq!(case.broke(0, RetryOn::Reset), Next::Bind);
    let ended = case.on(Event::Rejected(Why::Broken));
    assert_eq!(ended, Next::Finish(Ending::Refuse(Why::Full)));
}

#[test]
fn an_attempt_gives_way_to_a_variant_at_other_endpoints_while_there_is_time_for_it() {
    let at = |millis_| Time::new(millis(millis_));
    let until = |stand_in, is_repeatable, is_replayable, now| {
        let terms = Terms { is_replayable, ..terms() };
        let mut case = Case {
            stand_in,
            is_repeatable,
            gives_way_at: Some(at(900)),
            now: at(now),
            ..Case::new(terms)
        };
        case.on(Event::Began);
        let until = case.sent().until;
        (case, until)
    };
    let other = Some(StandIn::OtherPool);
    let (mut case, given) = until(other, true, true, 0);
    assert_eq!(given, Some(at(900)));
    case.now = at(900);
    let next = case.on(Event::Ended(0, End::TimedOut { unheard: false }));
    assert_eq!(next, Next::FallBack(Why::Deadline));
    case.gives_way_at = None;
    assert_eq!(case.on(Event::StandsIn), Next::Bind);
    assert_eq!(case.sent().until, Some(at(1000)));
    assert_eq!(until(other, true, true, 900).1, Some(at(1000)), "it is too late for that");
    assert_eq!(until(other, false, true, 0).1, Some(at(1000)), "it can't be sent again");
    assert_eq!(until(other, true, false, 0).1, Some(at(1000)), "its answer may have begun");
    assert_eq!(until(Some(StandIn::SamePool), true, true, 0).1, Some(at(1000)));
    assert_eq!(until(None, true, true, 0).1, Some(at(1000)));
}

#[test]
fn no_variant_stands_in_for_a_mistake_or_after_the_deadline_or_unpaid() {
    let refused = |why, now, stand_in, budget| {
        let mut case = Case { stand_in: Some(stand_in), ..Case::new(terms()) };
        case.budget = RetryBudget::new(budget, 0.0);
        let mut case = case.begun();
        case.now = Time::new(millis(now));
        case.policy.on.clear();
        case.on(Event::Ended(0, End::Broke(RetryOn::Connect, why)))
    };
    let no = |why| Next::Finish(Ending::Refuse(why));
    let other = StandIn::OtherPool;
    assert_eq!(refused(Why::Full, 5, other, 0.0), Next::FallBack(Why::Full));
    assert_eq!(refused(Why::Invalid, 5, other, 0.0), no(Why::Invalid));
    assert_eq!(refused(Why::Full, 1000, other, 0.0), no(Why::Full));
    assert_eq!(refused(Why::Full, 5, StandIn::SamePool, 0.1), Next::FallBack(Why::Full));
    assert_eq!(refused(Why::Full, 5, StandIn::SamePool, 0.0), no(Why::Full));
}

#[test]
fn what_the_proxy_lacks_is_no_endpoints_fault() {
    let mut case = Case::new(terms()).begun();
    let next = case.on(Event::Ended(0, End::Unsent(Why::Full)));
    assert_eq!(next, Next::Finish(Ending::Refuse(Why::Full)));
    assert_eq!(case.effects, [Effect::Settle(0, Blame::Answered { counts: false })]);
}

#[test]
fn an_answer_that_is_not_held_is_taken_as_it_is() {
    for (status, outcome) in [
        (200, Outcome::Understood),
        (500, Outcome::Failed),
        (503, Outcome::Failed),
        (429, Outcome::Busy),
    ] {
        let mut case = Case::new(Terms { is_replayable: false, ..terms() }).begun();
        let answer = Answer { status, is_whole: false, ..OK };
        let next = case.on(Event::Ended(0, End::Answered(answer, Some(Why::Broken))));
        assert_eq!(next, Next::Finish(Ending::Answer(0)), "{status}");
        assert_eq!(case.notes(), [(0, outcome)], "{status}");
        assert!(case.effects.contains(&Effect::Settle(0, Blame::HandedOver)));
    }
}

#[test]
fn a_client_that_leaves_takes_all_of_its_attempts_with_it() {
    let mut case = Case::hedged(terms()).begun();
    case.now = Time::new(millis(10));
    case.on(Event::HedgeDue { has_room: true });
    case.effects.clear();
    assert_eq!(case.on(Event::ClientLeft), Next::Finish(Ending::Left));
    let both = [0, 1].map(|attempt| Effect::Settle(attempt, Blame::Abandoned));
    assert_eq!(case.effects, both);
}
