//! Requests that wait in the proxy until an endpoint can take them.
//!
//! A request that is bound to an endpoint too early waits there behind whatever is slow, however
//! soon another endpoint frees; one that waits here can still go to whichever frees first. The line
//! is ordered: the more urgent class first, then the earlier deadline. Two things must not happen in
//! it. It must not grow without bound, so it has a size, and what is least urgent makes way for what
//! is more urgent when it is full. And one client that sends a flood must not keep the others out: among
//! requests of one class the client goes next that has had least (start-time fair queueing, Goyal,
//! Vin and Cheng, 1996), by the work that its requests are, and a full line drops from the client that
//! has the most in it. So a client that asks for little waits for one slot to become free, however many
//! requests others have in line; and what was not used while nobody waited can't be saved up.
//!
//! Every operation costs O(log n) for n waiting; those that look at callers one by one do so for at
//! most [`CALLERS_SEEN`] of them.

use crate::{Time, Weight};
use std::collections::{BTreeMap, BTreeSet};

/// How many classes there are; 0 is the most urgent.
pub const CLASSES: usize = 3;
/// Work of a mean request, in the unit that accounts are kept in.
const MEAN_WORK: u64 = 1000;
/// Clients without requests in line whose accounts are kept, at most.
const IDLE_ACCOUNTS: usize = 1024;
/// Callers that are looked at one by one, to bound the cost of a decision.
const CALLERS_SEEN: usize = 64;

/// A place in the line. Ordered: what is less goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    class: u8,
    deadline: Time,
    number: u64,
    caller: u64,
    since: Time,
    key: Option<u64>,
    weight: Weight,
}

impl Place {
    /// What is to go to the same endpoint, if anything is.
    pub fn key(&self) -> Option<u64> {
        self.key
    }

    /// The work that it is.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// When it came.
    pub fn since(&self) -> Time {
        self.since
    }

    /// When it must be finished.
    pub fn deadline(&self) -> Time {
        self.deadline
    }
}

/// Who waits for what.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// 0 is the most urgent; anything beyond the last class is of the last class.
    pub class: u8,
    /// When it came.
    pub since: Time,
    /// When it must be finished.
    pub deadline: Time,
    /// Whose it is, as a number: equal for requests of one caller.
    pub caller: u64,
    /// What is to go to the same endpoint, as a number, if anything is.
    pub key: Option<u64>,
    /// The work that it is.
    pub weight: Weight,
}

/// How a claim was taken.
#[derive(Debug)]
pub enum Joined<T> {
    /// It waits in this place.
    Waits(Place),
    /// It waits in this place, and another had to make way for it.
    Displaced(Place, T),
    /// The line is full of what is at least as urgent.
    Full(T),
}

/// A bounded line of requests; `T` is what the owner keeps of each.
#[derive(Debug)]
pub struct Line<T> {
    size: usize,
    joined: u64,
    waiting: BTreeMap<Place, T>,
    classes: [Class; CLASSES],
}

/// What waits in one class, by caller.
#[derive(Debug, Default)]
struct Class {
    len: usize,
    callers: BTreeMap<u64, Caller>,
    /// Account and first place of those that wait: the one that has had least first, of equals the
    /// earliest deadline.
    turns: BTreeSet<(u64, Place)>,
    /// Accounts of callers that have nothing in line, but have had more than others that wait.
    idle: BTreeMap<u64, u64>,
    /// Virtual time: the account of the caller that was served last.
    now: u64,
}

#[derive(Debug, Default)]
struct Caller {
    /// Work that it has had, in virtual time.
    had: u64,
    places: BTreeSet<Place>,
}

impl<T> Line<T> {
    /// An empty line for at most `size` requests.
    pub fn new(size: usize) -> Self {
        let classes = std::array::from_fn(|_| Class::default());
        Self { size, joined: 0, waiting: BTreeMap::new(), classes }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Does nobody wait?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many of a class wait.
    pub fn len_of(&self, class: u8) -> usize {
        self.classes[index(class)].len
    }

    /// Changes the size; those beyond it stay until their turn comes.
    pub fn resize(&mut self, size: usize) {
        self.size = size;
    }

    /// How many would be served before `claim` if it joined now.
    pub fn ahead_of(&self, claim: &Claim) -> usize {
        let at = index(claim.class);
        let more_urgent: usize = self.classes[..at].iter().map(|class| class.len).sum();
        let class = &self.classes[at];
        let behind = Place { deadline: claim.deadline, number: u64::MAX, ..first_of(at) };
        let several = !class.callers.keys().eq([&claim.caller]);
        if several && class.callers.len() <= CALLERS_SEEN {
            return more_urgent + class.fair_share_ahead_of(claim.caller, &behind);
        }
        // The common case first: equal patience, so whoever comes last is last.
        let class_at = class_of(at);
        let last = self.waiting.range(..=last_of(at)).next_back();
        let earlier = match last {
            Some((last, _)) if last.class == class_at && *last > behind => {
                self.waiting.range(first_of(at)..behind).count()
            }
            _ => class.len,
        };
        more_urgent + earlier
    }

    /// Takes a claim in.
    pub fn join(&mut self, claim: &Claim, item: T) -> Joined<T> {
        let at = index(claim.class);
        let place = Place {
            class: class_of(at),
            deadline: claim.deadline,
            number: self.joined,
            caller: claim.caller,
            since: claim.since,
            key: claim.key,
            weight: claim.weight,
        };
        let displaced = if self.waiting.len() < self.size {
            None
        } else {
            let Some(victim) = self.victim_for(at, claim.caller) else { return Joined::Full(item) };
            self.leave(&victim)
        };
        self.joined += 1;
        self.classes[at].join(place);
        self.waiting.insert(place, item);
        match displaced {
            Some(other) => Joined::Displaced(place, other),
            None => Joined::Waits(place),
        }
    }

    /// Who is next: of the most urgent class the earliest deadline of the caller that has had least.
    pub fn first(&self) -> Option<(Place, &T)> {
        let class = self.classes.iter().find(|class| class.len > 0)?;
        self.get(&class.turns.first()?.1)
    }

    /// Who would wait longest.
    pub fn last(&self) -> Option<(Place, &T)> {
        self.waiting.last_key_value().map(|(place, item)| (*place, item))
    }

    /// All in order of class and deadline.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        self.waiting.iter().map(|(place, item)| (*place, item))
    }

    /// Those of the same class and client, in order of deadline.
    pub(crate) fn alike(&self, place: &Place) -> impl DoubleEndedIterator<Item = Place> {
        let class = &self.classes[index(place.class)];
        class
            .callers
            .get(&place.caller)
            .into_iter()
            .flat_map(|caller| caller.places.iter().copied())
    }

    /// What waits in this place.
    pub(crate) fn get(&self, place: &Place) -> Option<(Place, &T)> {
        self.waiting.get_key_value(place).map(|(place, item)| (*place, item))
    }

    /// Takes one out because its turn has come: its caller has had one more.
    pub fn serve(&mut self, place: &Place) -> Option<T> {
        let item = self.waiting.remove(place)?;
        self.classes[index(place.class)].leave(place, true);
        Some(item)
    }

    /// Takes one out that does not wait any more.
    pub fn leave(&mut self, place: &Place) -> Option<T> {
        let item = self.waiting.remove(place)?;
        self.classes[index(place.class)].leave(place, false);
        Some(item)
    }

    /// Who makes way for a request of `caller` in class `at` when the line is full: the last of the
    /// least urgent class, of whoever has the most there. In its own class a caller that has as much
    /// as anybody gets nothing.
    fn victim_for(&self, at: usize, caller: u64) -> Option<Place> {
        let least = (at..CLASSES).rev().find(|other| self.classes[*other].len > 0)?;
        let class = &self.classes[least];
        let of = |caller: &u64| class.callers.get(caller).map_or(0, |caller| caller.places.len());
        let last = self.waiting.range(first_of(least)..=last_of(least)).next_back()?.0.caller;
        // The last one's caller always counts, however many callers there are.
        let greedy =
            class.callers.keys().take(CALLERS_SEEN).chain([&last]).max_by_key(|it| of(it))?;
        if least == at && of(greedy) <= of(&caller) + 1 {
            return None;
        }
        class.callers.get(greedy)?.places.last().copied()
    }
}

impl Class {
    fn join(&mut self, place: Place) {
        self.len += 1;
        let had = self.account_of(place.caller);
        self.idle.remove(&place.caller);
        let caller = self.callers.entry(place.caller).or_default();
        match caller.turn() {
            Some(turn) => drop(self.turns.remove(&turn)),
            None => caller.had = had,
        }
        caller.places.insert(place);
        self.turns.extend(caller.turn());
    }

    fn leave(&mut self, place: &Place, served: bool) {
        let Some(caller) = self.callers.get_mut(&place.caller) else { return };
        let turn = caller.turn();
        if !caller.places.remove(place) {
            return;
        }
        self.len -= 1;
        if let Some(turn) = turn {
            self.turns.remove(&turn);
        }
        if served {
            self.now = self.now.max(caller.had);
            caller.had = caller.had.saturating_add(work_of(place));
        }
        self.turns.extend(caller.turn());
        if caller.places.is_empty() {
            let had = caller.had;
            self.callers.remove(&place.caller);
            self.retire(place.caller, had);
        }
    }

    /// Keeps the account of a caller that has nothing in line as long as it has had more than others.
    fn retire(&mut self, caller: u64, had: u64) {
        if self.len == 0 {
            // The next one that waits competes with nobody.
            self.idle.clear();
            self.now = self.now.max(had);
            return;
        }
        if self.idle.len() >= IDLE_ACCOUNTS {
            let now = self.now;
            self.idle.retain(|_, had| *had > now);
        }
        if had > self.now && self.idle.len() < IDLE_ACCOUNTS {
            self.idle.insert(caller, had);
        }
    }

    /// What a caller has had, as far as it counts.
    fn account_of(&self, caller: u64) -> u64 {
        match self.callers.get(&caller) {
            Some(caller) => caller.had,
            None => self.idle.get(&caller).copied().unwrap_or_default().max(self.now),
        }
    }

    /// So many of this class go before a request of `caller` that would stand before `behind` among its
    /// own, whatever the deadlines of the others.
    fn fair_share_ahead_of(&self, caller: u64, behind: &Place) -> usize {
        let own = self.callers.get(&caller).map_or(0, |it| it.places.range(..behind).count());
        // When its turn comes, if all requests are alike.
        let turn = self.account_of(caller).saturating_add(own as u64 * MEAN_WORK);
        let before = |(name, other): (&u64, &Caller)| match *name == caller {
            true => own,
            false if other.had > turn => 0,
            false => {
                let turns = (turn - other.had) / MEAN_WORK + 1;
                other.places.len().min(usize::try_from(turns).unwrap_or(usize::MAX))
            }
        };
        self.callers.iter().map(before).sum()
    }
}

impl Caller {
    /// Its place among the turns, if it waits.
    fn turn(&self) -> Option<(u64, Place)> {
        self.places.first().map(|first| (self.had, *first))
    }
}

/// The work that a request is; a flood of light ones has a cost too.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "weights are bounded on both sides"
)]
fn work_of(place: &Place) -> u64 {
    ((place.weight.get() * MEAN_WORK as f64) as u64).max(1)
}

fn index(class: u8) -> usize {
    usize::from(class).min(CLASSES - 1)
}

#[allow(clippy::cast_possible_truncation, reason = "there are three classes")]
const fn class_of(index: usize) -> u8 {
    index as u8
}

fn first_of(at: usize) -> Place {
    let zero = Time::default();
    Place {
        class: class_of(at),
        deadline: zero,
        number: 0,
        caller: 0,
        since: zero,
        key: None,
        weight: Weight::default(),
    }
}

fn last_of(at: usize) -> Place {
    let ever = Time::new(std::time::Duration::MAX);
    Place { deadline: ever, number: u64::MAX, caller: u64::MAX, since: ever, ..first_of(at) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;
    use std::time::Duration;

    fn claim(class: u8, deadline_ms: u64, caller: u64) -> Claim {
        let deadline = Time::new(Duration::from_millis(deadline_ms));
        let (since, weight) = (Time::default(), Weight::default());
        Claim { class, since, deadline, caller, key: None, weight }
    }

    fn drain<T>(line: &mut Line<T>) -> Vec<T> {
        let next = |line: &mut Line<T>| {
            let place = line.first()?.0;
            line.serve(&place)
        };
        std::iter::from_fn(|| next(line)).collect()
    }

    #[test]
    fn the_urgent_go_first_and_then_the_earlier_deadline() {
        let mut line = Line::new(10);
        for (name, class, deadline) in
            [("c", 1, 50), ("e", 2, 1), ("a", 0, 90), ("b", 1, 20), ("d", 1, 50)]
        {
            assert!(matches!(line.join(&claim(class, deadline, 7), name), Joined::Waits(_)));
        }
        assert_eq!(line.last().map(|(_, name)| *name), Some("e"));
        assert_eq!((line.len_of(0), line.len_of(1), line.len_of(9)), (1, 3, 1));
        assert_eq!(drain(&mut line), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_full_line_makes_way_for_what_is_more_urgent_and_for_nothing_else() {
        let mut line = Line::new(2);
        line.join(&claim(2, 10, 1), "early batch");
        line.join(&claim(2, 99, 1), "late batch");
        assert!(matches!(line.join(&claim(2, 5, 1), "more"), Joined::Full("more")));
        assert!(matches!(
            line.join(&claim(1, 500, 1), "normal"),
            Joined::Displaced(_, "late batch")
        ));
        assert!(matches!(
            line.join(&claim(0, 500, 1), "high"),
            Joined::Displaced(_, "early batch")
        ));
        assert!(matches!(line.join(&claim(1, 1, 1), "more"), Joined::Full("more")));
        assert!(matches!(line.join(&claim(0, 1, 1), "higher"), Joined::Displaced(_, "normal")));
        assert!(matches!(line.join(&claim(0, 1, 1), "more"), Joined::Full("more")));
        assert_eq!(line.len(), 2);
    }

    #[test]
    fn a_full_line_drops_from_the_caller_that_has_the_most_in_it() {
        let mut line = Line::new(10);
        for n in 0..10 {
            line.join(&claim(1, n, 1), 1);
        }
        let mut displaced = 0;
        for n in 0..10 {
            displaced +=
                usize::from(matches!(line.join(&claim(1, 100 + n, 2), 2), Joined::Displaced(_, 1)));
        }
        assert_eq!(displaced, 5, "half of the room is the most that it can claim");
    }

    #[test]
    fn who_has_had_least_goes_next_whatever_the_deadlines() {
        let mut line = Line::new(1000);
        for n in 0..500 {
            line.join(&claim(1, n, 1), 1);
        }
        for _ in 0..100 {
            let place = line.first().unwrap_or_else(|| unreachable!()).0;
            line.serve(&place);
        }
        line.join(&claim(1, 10_000, 2), 2);
        assert_eq!(line.first().map(|(_, name)| *name), Some(2), "it does not wait for the flood");
        for n in 0..100 {
            line.join(&claim(1, 10_001 + n, 2), 2);
        }
        let mut lead = 0_i64;
        for served in drain(&mut line).into_iter().take(200) {
            lead += if served == 1 { 1 } else { -1 };
            assert!(lead.abs() <= 1, "{lead}");
        }
    }

    #[test]
    fn shares_are_of_work_and_not_of_requests() {
        let mut line = Line::new(1000);
        for n in 0..300 {
            line.join(&Claim { weight: Weight::new(5.0), ..claim(1, n, 1) }, 1);
            line.join(&claim(1, n, 2), 2);
        }
        let heavy = drain(&mut line).into_iter().take(120).filter(|name| *name == 1).count();
        assert!((19..=21).contains(&heavy), "{heavy} of 120");
    }

    #[test]
    fn a_caller_with_one_request_at_a_time_has_no_more_than_its_share() {
        let mut line = Line::new(1000);
        for n in 0..300 {
            line.join(&claim(1, 100 + n, 1), 1);
        }
        // It comes again with an early deadline as soon as it was served.
        let mut served = [0, 0];
        for _ in 0..100 {
            line.join(&claim(1, 0, 2), 2);
            for _ in 0..2 {
                let place = line.first().unwrap_or_else(|| unreachable!()).0;
                let name = line.serve(&place).unwrap_or_default();
                served[name - 1] += 1;
            }
        }
        assert!((99..=101).contains(&served[0]), "{served:?}");
    }

    #[test]
    fn who_is_ahead_is_counted_by_class_deadline_and_fair_share() {
        let mut line = Line::new(1000);
        for n in 0..100 {
            line.join(&claim(1, n, 1), n);
        }
        line.join(&claim(2, 0, 1), 0);
        assert_eq!(line.ahead_of(&claim(0, 1, 1)), 0);
        assert_eq!(line.ahead_of(&claim(1, 30, 1)), 31);
        assert_eq!(line.ahead_of(&claim(1, 500, 1)), 100);
        assert_eq!(line.ahead_of(&claim(1, 500, 2)), 1, "another caller gets its turn");
        assert_eq!(line.ahead_of(&claim(2, 500, 1)), 101);
    }

    #[test]
    fn nothing_is_lost_or_doubled_under_any_order_of_calls() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut line = Line::new(1 + rng.below(20));
            let (mut places, mut inside) = (Vec::new(), BTreeSet::new());
            for number in 0..400_u32 {
                match rng.below(4) {
                    0 if !places.is_empty() => {
                        let place: Place = places.swap_remove(rng.below(places.len()));
                        if let Some(item) = line.leave(&place) {
                            assert!(inside.remove(&item), "seed {seed}");
                        }
                    }
                    1 => {
                        if let Some((place, _)) = line.first() {
                            let served = line.serve(&place);
                            assert!(served.is_some_and(|it| inside.remove(&it)), "seed {seed}");
                            assert_eq!(line.leave(&place), None, "seed {seed}");
                        }
                    }
                    _ => {
                        #[allow(clippy::cast_possible_truncation, reason = "below 4")]
                        let class = rng.below(4) as u8;
                        let claim = claim(class, rng.below(50) as u64, rng.below(4) as u64);
                        let _ = line.ahead_of(&claim);
                        match line.join(&claim, number) {
                            Joined::Waits(place) => places.push(place),
                            Joined::Displaced(place, other) => {
                                assert!(inside.remove(&other), "seed {seed}");
                                places.push(place);
                            }
                            Joined::Full(item) => {
                                assert_eq!(item, number, "seed {seed}");
                                continue;
                            }
                        }
                        inside.insert(number);
                    }
                }
                assert_eq!(line.len(), inside.len(), "seed {seed}");
                let classes: usize = (0..3).map(|class| line.len_of(class)).sum();
                assert_eq!(classes, line.len(), "seed {seed}");
                assert_eq!(line.first().is_none(), line.is_empty(), "seed {seed}");
            }
            assert_eq!(drain(&mut line).len(), inside.len(), "seed {seed}");
        }
    }
}
