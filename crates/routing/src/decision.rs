//! Records of decisions: all that one knew, so that it can be explained, and made again.
//!
//! "Why did this request go there?" can't be answered later: the loads that were compared have changed since, and so
//! have the estimates. So where a request is traced, the decision gathers all that it needs of each candidate first,
//! decides on that alone, and keeps it. The same function decides on a record and, for requests that are not traced,
//! on the loads themselves, which are read only as far as they matter.

use crate::Rng;
use std::cell::RefCell;

/// An endpoint must be so many times as fast as the best that is free to be worth waiting for: what is
/// known of their speeds is not more exact than that.
const MIN_SPEEDUP: f64 = 2.0;
/// Share of the time that a faster endpoint is expected to save for which a request waits at most.
/// Less gives up some of the tail of a lightly loaded fleet, more that of a busy one.
const MAX_WAIT_SHARE: f64 = 0.7;
/// One pick in so many goes to an endpoint that has been avoided for a while, if there is one, and one
/// in so many to one of which hardly anything is known or that seems to have got faster: what is
/// avoided would never be found to have recovered. Seldom enough not to be seen in a p99 where all
/// others take a third of the time.
const EXPLORATION_PERIOD: usize = 500;
const UNSURE_PERIOD: usize = 100;

/// Collects the decisions that are made in its view.
#[derive(Debug, Default)]
pub struct Trace(RefCell<Vec<Decision>>);

impl Trace {
    pub(crate) fn add(&self, decision: Decision) {
        // A decision adds nothing while another one does.
        if let Ok(mut decisions) = self.0.try_borrow_mut() {
            decisions.push(decision);
        }
    }

    /// Takes the decisions out, in order.
    pub fn take(&self) -> Vec<Decision> {
        self.0.take()
    }
}

/// A decision and all that it knew.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(tag = "kind", rename_all = "snake_case"))]
pub enum Decision {
    /// By the expected finish: to a free endpoint, or not yet.
    Bind(Comparison),
    /// To an endpoint whose slots are all taken, so that it need not idle.
    Ahead(AheadComparison),
    /// By a policy that does not compare costs. It can't be made again from the record.
    Pick(Picked),
}

/// The comparison of candidates for one request. Times in seconds.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Comparison {
    /// Endpoints in rotation, of which the candidates are all or a sample.
    pub endpoints: usize,
    /// Requests before it in the queue.
    pub before: usize,
    /// Whether it may wait for a better endpoint than the best that is free.
    pub may_wait: bool,
    /// Whether it may explore an endpoint that has been avoided.
    pub may_explore: bool,
    /// The state of the source of chance, in hexadecimal digits.
    pub chance: String,
    /// The candidates.
    pub candidates: Vec<Known>,
    /// The position of the chosen one among them.
    pub chosen: Option<usize>,
    /// Why.
    pub why: Why,
}

/// The knowledge of a candidate. Times in seconds.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Known {
    /// Its name.
    pub endpoint: String,
    /// Requests of this proxy there.
    pub in_flight: u32,
    /// Requests that are believed to be there, from everyone.
    pub there: u32,
    /// Requests that it can run at once, as far as is known.
    pub slots: u32,
    /// Requests that it may have at once; absent: any number.
    pub limit: Option<u32>,
    /// Age of its last report.
    pub report_age: Option<f64>,
    /// Whether it may have one more, and whether this request has enough time for it.
    pub has_room: bool,
    /// See above.
    pub suits: bool,
    /// The number that is compared: the time until the request is finished, and what it costs others to wait.
    pub cost: f64,
    /// Until the request would be finished there.
    pub done: f64,
    /// The time of a service.
    pub service: f64,
    /// Added for failures.
    pub penalty: f64,
    /// Until a slot frees, if all are taken.
    pub frees: f64,
    /// Whether it may be explored: at all, because it has been avoided for long, and because little is known of it.
    pub may_explore: bool,
    /// See above.
    pub is_due: bool,
    /// See above.
    pub is_unsure: bool,
    /// Nanoseconds since its last answer; absent: there was none.
    pub silence: Option<u64>,
    /// Whether so little is known of it that one request may find out instead of waiting for another endpoint.
    pub finds_out: bool,
}

/// The reason of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Why {
    /// It costs least of those that are free.
    LeastCost,
    /// It has been avoided, and may be better by now.
    Explored,
    /// A better one is worth waiting for, but hardly anything is known of this one.
    FindsOut,
    /// The request waits: a busy endpoint is expected to finish it sooner than the best free one.
    BetterIsBusy,
    /// The request waits: none is free.
    NoneFree,
}

/// The comparison of endpoints to which a request may go although their slots are taken. Times in seconds.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AheadComparison {
    /// Requests that wait, as far as they concern the candidates.
    pub waiting: f64,
    /// From the end of a service until the next request is there.
    pub handoff_delay: f64,
    /// The share of the pool's time that is asked for.
    pub utilisation: f64,
    /// Services that end in a second at all endpoints that were looked at.
    pub per_second: f64,
    /// Their slots.
    pub slots: f64,
    /// Requests there beyond these.
    pub ahead: f64,
    /// Those that may get one more.
    pub candidates: Vec<Gap>,
    /// The position of the chosen one among them.
    pub chosen: Option<usize>,
    /// Requests that go before it to slots that free sooner.
    pub before: usize,
}

/// An endpoint that will soon have a free slot. Times in seconds.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gap {
    /// Its name.
    pub endpoint: String,
    /// Its facts.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub facts: GapFacts,
}

/// The facts of an endpoint that will soon have a free slot. Times in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GapFacts {
    /// Requests that it may run at once.
    pub slots: u32,
    /// Requests there beyond these.
    pub ahead: u32,
    /// The time of a service.
    pub service: f64,
    /// Until a slot frees, and the standard deviation of that.
    pub frees: f64,
    /// See above.
    pub deviation: f64,
}

/// A pick of another policy.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Picked {
    /// The policy's name.
    pub policy: String,
    /// Endpoints in rotation.
    pub endpoints: usize,
    /// The endpoint; absent: all that it may go to are full, and the request waits.
    pub chosen: Option<String>,
    /// Requests of this proxy that were there.
    pub in_flight: Option<u32>,
}

impl Picked {
    pub(crate) fn new(policy: &str, endpoints: usize, chosen: Option<(&str, u32)>) -> Self {
        Self {
            policy: policy.to_owned(),
            endpoints,
            chosen: chosen.map(|(endpoint, _)| endpoint.to_owned()),
            in_flight: chosen.map(|(_, in_flight)| in_flight),
        }
    }
}

/// The choice that a decision comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The position of the chosen candidate.
    pub chosen: Option<usize>,
    /// Requests that go before it.
    pub before: usize,
    /// Why, where candidates for a free slot were compared.
    pub why: Option<Why>,
}

impl Decision {
    /// The recorded choice.
    pub fn recorded(&self) -> Choice {
        match self {
            Self::Bind(it) => Choice { chosen: it.chosen, before: 0, why: Some(it.why) },
            Self::Ahead(it) => Choice { chosen: it.chosen, before: it.before, why: None },
            Self::Pick(_) => Choice { chosen: None, before: 0, why: None },
        }
    }

    /// The choice that follows from the record now; `None`: it can't be made from what is there.
    pub fn replay(&self) -> Option<Choice> {
        match self {
            Self::Bind(it) => it.replay(),
            Self::Ahead(it) => {
                let found = it.choose();
                let (chosen, before) = found.map_or((None, 0), |(at, before)| (Some(at), before));
                Some(Choice { chosen, before, why: None })
            }
            Self::Pick(_) => None,
        }
    }

    /// The name of the endpoint that was chosen.
    pub fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Bind(it) => it.candidates.get(it.chosen?).map(|known| &*known.endpoint),
            Self::Ahead(it) => it.candidates.get(it.chosen?).map(|gap| &*gap.endpoint),
            Self::Pick(it) => it.chosen.as_deref(),
        }
    }
}

impl Comparison {
    fn replay(&self) -> Option<Choice> {
        let mut rng = Rng::new(u64::from_str_radix(&self.chance, 16).ok()?);
        let costs: Vec<f64> = self.candidates.iter().map(Known::compared).collect();
        let terms = self.terms();
        let (chosen, why) = decide(&self.candidates[..], &costs, terms, &mut rng);
        Some(Choice { chosen, before: 0, why: Some(why) })
    }

    fn terms(&self) -> Terms {
        // The sample is a part of the pool, and so is the queue for that part.
        let part = self.candidates.len() as f64 / self.endpoints.max(1) as f64;
        let (may_wait, may_explore) = (self.may_wait, self.may_explore);
        Terms { may_wait, may_explore, before: self.before as f64 * part }
    }
}

impl Known {
    /// Its cost, if it is free.
    pub(crate) fn compared(&self) -> f64 {
        if self.has_room && self.suits { self.cost } else { f64::INFINITY }
    }
}

/// The conditions of a comparison.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) may_wait: bool,
    pub(crate) may_explore: bool,
    /// Requests that wait before it, as far as they concern the candidates.
    pub(crate) before: f64,
}

/// A reason to explore an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It has not been used for long.
    IsDue,
    /// Hardly anything is known of it.
    IsUnsure,
}

/// The candidates of a comparison, by position: loads, or a record of what was known of them.
pub(crate) trait Field {
    fn len(&self) -> usize;
    /// Whether it may have one more, and suits the request.
    fn is_free(&self, at: usize) -> bool;
    /// Seconds until the request would be finished there.
    fn done(&self, at: usize) -> f64;
    /// Seconds of a service, and seconds that are added for failures.
    fn service(&self, at: usize) -> (f64, f64);
    fn slots(&self, at: usize) -> u32;
    /// Requests there beyond its slots.
    fn beyond(&self, at: usize) -> u32;
    /// Seconds until a slot frees, where a service takes so many.
    fn frees(&self, at: usize, service: f64) -> f64;
    /// Nanoseconds since its last answer, if it may be explored for this reason.
    fn explorable(&self, at: usize, wish: Wish) -> Option<u64>;
    fn finds_out(&self, at: usize) -> bool;
}

impl Field for [Known] {
    fn len(&self) -> usize {
        self.len()
    }

    fn is_free(&self, at: usize) -> bool {
        self[at].has_room && self[at].suits
    }

    fn done(&self, at: usize) -> f64 {
        self[at].done
    }

    fn service(&self, at: usize) -> (f64, f64) {
        (self[at].service, self[at].penalty)
    }

    fn slots(&self, at: usize) -> u32 {
        self[at].slots
    }

    fn beyond(&self, at: usize) -> u32 {
        self[at].there.saturating_sub(self[at].slots)
    }

    fn frees(&self, at: usize, _: f64) -> f64 {
        self[at].frees
    }

    fn explorable(&self, at: usize, wish: Wish) -> Option<u64> {
        let known = &self[at];
        let wanted = match wish {
            Wish::IsDue => known.is_due,
            Wish::IsUnsure => known.is_unsure,
        };
        (known.has_room && known.may_explore && wanted).then(|| known.silence.unwrap_or(u64::MAX))
    }

    fn finds_out(&self, at: usize) -> bool {
        self[at].finds_out
    }
}

/// The free candidate that is expected to be done first, against the best that is not free. `costs` are infinite
/// for those that are not.
#[inline]
pub(crate) fn decide<F: Field + ?Sized>(
    field: &F,
    costs: &[f64],
    terms: Terms,
    rng: &mut Rng,
) -> (Option<usize>, Why) {
    // It is explored to be known better, so what is known does not count.
    if terms.may_explore
        && let Some(wish) = best_wish(rng)
        && let Some(at) = explored(field, wish)
    {
        return (Some(at), Why::Explored);
    }
    let best = least(costs.iter().copied(), rng).filter(|at| costs[*at] < f64::INFINITY);
    let Some(best) = best else { return (None, Why::NoneFree) };
    if !terms.may_wait || !is_worth_waiting(field, field.done(best), terms.before) {
        return (Some(best), Why::LeastCost);
    }
    // No request waits for others because of an endpoint that is hardly known.
    let is_free = |at: &usize| costs[*at] < f64::INFINITY;
    match (0..costs.len()).filter(is_free).find(|at| field.finds_out(*at)) {
        Some(at) => (Some(at), Why::FindsOut),
        None => (None, Why::BetterIsBusy),
    }
}

/// The reason for which a pick explores, if it is one that does.
pub(crate) fn best_wish(rng: &mut Rng) -> Option<Wish> {
    match rng.below(EXPLORATION_PERIOD) {
        0 => Some(Wish::IsDue),
        chance if chance < EXPLORATION_PERIOD / UNSURE_PERIOD => Some(Wish::IsUnsure),
        _ => None,
    }
}

/// Position of the least of `costs`; among equal ones chance decides.
pub(crate) fn least(costs: impl Iterator<Item = f64>, rng: &mut Rng) -> Option<usize> {
    let (mut best, mut least, mut ties) = (None, f64::INFINITY, 0);
    for (at, cost) in costs.enumerate() {
        if cost < least || best.is_none() {
            (best, least, ties) = (Some(at), cost, 1);
        } else if cost == least {
            ties += 1;
            if rng.below(ties) == 0 {
                best = Some(at);
            }
        }
    }
    best
}

/// Of those that are to be explored the one that has not answered for the longest.
pub(crate) fn explored<F: Field + ?Sized>(field: &F, wish: Wish) -> Option<usize> {
    let due = |at: usize| Some((at, field.explorable(at, wish)?));
    (0..field.len()).filter_map(due).max_by_key(|(_, silence)| *silence).map(|(at, _)| at)
}

/// Would a request be done before `cost` seconds have passed if it waited for one of the endpoints that are better
/// and not free? The requests `before` it wait for the same.
fn is_worth_waiting<F: Field + ?Sized>(field: &F, cost: f64, before: f64) -> bool {
    let (mut per_second, mut first_per_second) = (0.0, 0.0);
    let (mut least, mut there) = (f64::INFINITY, 0.0);
    for at in 0..field.len() {
        if field.is_free(at) {
            continue;
        }
        let (service, penalty) = field.service(at);
        let done = service + penalty;
        if done * MIN_SPEEDUP < cost {
            per_second += f64::from(field.slots(at)) / service.max(f64::MIN_POSITIVE);
            first_per_second += 1.0 / field.frees(at, service);
            least = least.min(done);
            // Requests there beyond its slots take the next slot that frees: a free place is not a free slot.
            there += f64::from(field.beyond(at));
        }
    }
    let wait = (before + there) / per_second + 1.0 / first_per_second;
    wait < (cost - least) * MAX_WAIT_SHARE
}
