//! Requests that wait in the proxy until an endpoint can take them.
//!
//! A request that is bound to an endpoint too early waits there behind slow work, however soon another
//! endpoint frees; a request that waits here can still go to whichever frees first. The queue is ordered:
//! the more urgent class first, then the earlier deadline. Two things must not happen in it. It must not
//! grow without bound, so it has a size, and the least urgent request makes way for a more urgent one when
//! it is full. And one client that sends a flood must not keep the others out: among requests of one class
//! the client goes next that has been served least (start-time fair queueing, Goyal, Vin and Cheng, 1996),
//! by the work that its requests are, and a full queue drops from the client that has the most in it. So a
//! client that asks for little waits for one slot to become free, however many requests others have queued;
//! and service that was not used while the queue was empty can't be saved up.
//!
//! Every operation costs O(log n) for n waiting; those that look at clients one by one do so for at
//! most [`MAX_CLIENTS_SCANNED`] of them.

use crate::{RelativeCost, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Number of classes; 0 is the most urgent.
pub const CLASSES: usize = 3;
/// Work of a mean request, in the unit that accounts are kept in.
const MEAN_WORK: u64 = 1000;
/// Clients without requests in line whose accounts are kept, at most.
const MAX_IDLE_ACCOUNTS: usize = 1024;
/// Clients that are looked at one by one, to bound the cost of a decision.
const MAX_CLIENTS_SCANNED: usize = 64;

/// A position in the queue. Ordered: what is less goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    class: u8,
    deadline: Time,
    number: u64,
    client: u64,
    since: Time,
    key: Option<u64>,
    relative_cost: RelativeCost,
}

impl Position {
    /// The key of a sticky pool, if there is one.
    pub fn key(&self) -> Option<u64> {
        self.key
    }

    /// The work that it is.
    pub fn relative_cost(&self) -> RelativeCost {
        self.relative_cost
    }

    /// Arrival.
    pub fn since(&self) -> Time {
        self.since
    }

    /// Time by which it must be finished.
    pub fn deadline(&self) -> Time {
        self.deadline
    }
}

/// A request as it enters the queue.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// 0 is the most urgent; anything beyond the last class is of the last class.
    pub class: u8,
    /// Arrival.
    pub since: Time,
    /// Time by which it must be finished.
    pub deadline: Time,
    /// The client, as a number.
    pub client: u64,
    /// The key of a sticky pool, as a number, if there is one.
    pub key: Option<u64>,
    /// The work that it is.
    pub relative_cost: RelativeCost,
}

/// The outcome of [`FairQueue::enqueue`].
#[derive(Debug)]
pub enum Enqueued<T> {
    /// It waits in this position.
    Queued(Position),
    /// It waits in this position, and another had to make way for it.
    Displaced(Position, T),
    /// The queue is full of requests that are at least as urgent.
    Full(T),
}

/// A bounded queue of requests; `T` is what the owner keeps of each.
#[derive(Debug)]
pub struct FairQueue<T> {
    size: usize,
    joined: u64,
    waiting: BTreeMap<Position, T>,
    classes: [Class; CLASSES],
}

/// The requests that wait in one class, by client.
#[derive(Debug, Default)]
struct Class {
    len: usize,
    clients: BTreeMap<u64, Client>,
    /// Account and first position of those that wait: the one that has had least first, of equals the
    /// earliest deadline.
    turns: BTreeSet<(u64, Position)>,
    /// Accounts of clients that have nothing in the queue, but have had more than others that wait.
    idle: BTreeMap<u64, u64>,
    /// Virtual time: the account of the client that was served last.
    now: u64,
}

#[derive(Debug, Default)]
struct Client {
    /// Work that it has had, in virtual time.
    had: u64,
    positions: BTreeSet<Position>,
}

impl<T> FairQueue<T> {
    /// An empty queue for at most `size` requests.
    pub fn new(size: usize) -> Self {
        let classes = std::array::from_fn(|_| Class::default());
        Self { size, joined: 0, waiting: BTreeMap::new(), classes }
    }

    /// Number of waiting requests.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Number of waiting requests of a class.
    pub fn len_of(&self, class: u8) -> usize {
        self.classes[index(class)].len
    }

    /// Changes the size; those beyond it stay until their turn comes.
    pub fn resize(&mut self, size: usize) {
        self.size = size;
    }

    /// Number of requests that would be served before `entry` if it joined now.
    pub fn ahead_of(&self, entry: &Entry) -> usize {
        let at = index(entry.class);
        let more_urgent: usize = self.classes[..at].iter().map(|class| class.len).sum();
        let class = &self.classes[at];
        let behind = Position { deadline: entry.deadline, number: u64::MAX, ..first_of(at) };
        let several = !class.clients.keys().eq([&entry.client]);
        if several && class.clients.len() <= MAX_CLIENTS_SCANNED {
            return more_urgent + class.fair_share_ahead_of(entry.client, &behind);
        }
        // The common case first: with equal patience, the last to come is the last in order.
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

    /// Takes a request in.
    pub fn enqueue(&mut self, entry: &Entry, item: T) -> Enqueued<T> {
        let at = index(entry.class);
        let position = Position {
            class: class_of(at),
            deadline: entry.deadline,
            number: self.joined,
            client: entry.client,
            since: entry.since,
            key: entry.key,
            relative_cost: entry.relative_cost,
        };
        let displaced = if self.waiting.len() < self.size {
            None
        } else {
            let Some(victim) = self.victim_for(at, entry.client) else {
                return Enqueued::Full(item);
            };
            self.remove(&victim)
        };
        self.joined += 1;
        self.classes[at].enqueue(position);
        self.waiting.insert(position, item);
        match displaced {
            Some(other) => Enqueued::Displaced(position, other),
            None => Enqueued::Queued(position),
        }
    }

    /// The next request: of the most urgent class the earliest deadline of the client that has been served
    /// least.
    pub fn first(&self) -> Option<(Position, &T)> {
        let class = self.classes.iter().find(|class| class.len > 0)?;
        self.get(&class.turns.first()?.1)
    }

    /// The request that would wait longest.
    pub fn last(&self) -> Option<(Position, &T)> {
        self.waiting.last_key_value().map(|(position, item)| (*position, item))
    }

    /// All in order of class and deadline.
    pub fn iter(&self) -> impl Iterator<Item = (Position, &T)> {
        self.waiting.iter().map(|(position, item)| (*position, item))
    }

    /// Those of the same class and client, in order of deadline.
    pub(crate) fn same_client(
        &self,
        position: &Position,
    ) -> impl DoubleEndedIterator<Item = Position> {
        let class = &self.classes[index(position.class)];
        class
            .clients
            .get(&position.client)
            .into_iter()
            .flat_map(|client| client.positions.iter().copied())
    }

    /// The request in this position.
    pub(crate) fn get(&self, position: &Position) -> Option<(Position, &T)> {
        self.waiting.get_key_value(position).map(|(position, item)| (*position, item))
    }

    /// Takes one out because its turn has come: its client has had one more.
    pub fn serve(&mut self, position: &Position) -> Option<T> {
        let item = self.waiting.remove(position)?;
        self.classes[index(position.class)].remove(position, true);
        Some(item)
    }

    /// Takes one out that does not wait any more.
    pub fn remove(&mut self, position: &Position) -> Option<T> {
        let item = self.waiting.remove(position)?;
        self.classes[index(position.class)].remove(position, false);
        Some(item)
    }

    /// The request that makes way for one of `client` in class `at` when the queue is full: the last of the
    /// least urgent class, of the client that has the most there. In its own class a client that has as much
    /// as any other gets nothing.
    fn victim_for(&self, at: usize, client: u64) -> Option<Position> {
        let least = (at..CLASSES).rev().find(|other| self.classes[*other].len > 0)?;
        let class = &self.classes[least];
        let of =
            |client: &u64| class.clients.get(client).map_or(0, |client| client.positions.len());
        let last = self.waiting.range(first_of(least)..=last_of(least)).next_back()?.0.client;
        // The last one's client always counts, however many clients there are.
        let greedy = class
            .clients
            .keys()
            .take(MAX_CLIENTS_SCANNED)
            .chain([&last])
            .max_by_key(|it| of(it))?;
        if least == at && of(greedy) <= of(&client) + 1 {
            return None;
        }
        class.clients.get(greedy)?.positions.last().copied()
    }
}

impl Class {
    fn enqueue(&mut self, position: Position) {
        self.len += 1;
        let had = self.account_of(position.client);
        self.idle.remove(&position.client);
        let client = self.clients.entry(position.client).or_default();
        match client.turn() {
            Some(turn) => drop(self.turns.remove(&turn)),
            None => client.had = had,
        }
        client.positions.insert(position);
        self.turns.extend(client.turn());
    }

    fn remove(&mut self, position: &Position, served: bool) {
        let Some(client) = self.clients.get_mut(&position.client) else { return };
        let turn = client.turn();
        if !client.positions.remove(position) {
            return;
        }
        self.len -= 1;
        if let Some(turn) = turn {
            self.turns.remove(&turn);
        }
        if served {
            self.now = self.now.max(client.had);
            client.had = client.had.saturating_add(work_of(position));
        }
        self.turns.extend(client.turn());
        if client.positions.is_empty() {
            let had = client.had;
            self.clients.remove(&position.client);
            self.retire(position.client, had);
        }
    }

    /// Keeps the account of a client that has nothing in the queue as long as it has had more than others.
    fn retire(&mut self, client: u64, had: u64) {
        if self.len == 0 {
            // The next request that waits has no competitor.
            self.idle.clear();
            self.now = self.now.max(had);
            return;
        }
        if self.idle.len() >= MAX_IDLE_ACCOUNTS {
            let now = self.now;
            self.idle.retain(|_, had| *had > now);
        }
        if had > self.now && self.idle.len() < MAX_IDLE_ACCOUNTS {
            self.idle.insert(client, had);
        }
    }

    /// The work that a client has had, as far as it counts.
    fn account_of(&self, client: u64) -> u64 {
        match self.clients.get(&client) {
            Some(client) => client.had,
            None => self.idle.get(&client).copied().unwrap_or_default().max(self.now),
        }
    }

    /// Number of requests of this class that go before a request of `client` that would stand before
    /// `behind` among its own, whatever the deadlines of the others.
    fn fair_share_ahead_of(&self, client: u64, behind: &Position) -> usize {
        let own = self.clients.get(&client).map_or(0, |it| it.positions.range(..behind).count());
        // When its turn comes, if all requests are alike.
        let turn = self.account_of(client).saturating_add(own as u64 * MEAN_WORK);
        let before = |(name, other): (&u64, &Client)| match *name == client {
            true => own,
            false if other.had > turn => 0,
            false => {
                let turns = (turn - other.had) / MEAN_WORK + 1;
                other.positions.len().min(usize::try_from(turns).unwrap_or(usize::MAX))
            }
        };
        self.clients.iter().map(before).sum()
    }
}

impl Client {
    /// Its position among the turns, if it waits.
    fn turn(&self) -> Option<(u64, Position)> {
        self.positions.first().map(|first| (self.had, *first))
    }
}

/// The work that a request is; a flood of light ones has a cost too.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "weights are bounded on both sides"
)]
fn work_of(position: &Position) -> u64 {
    ((position.relative_cost.get() * MEAN_WORK as f64) as u64).max(1)
}

fn index(class: u8) -> usize {
    usize::from(class).min(CLASSES - 1)
}

#[allow(clippy::cast_possible_truncation, reason = "there are three classes")]
const fn class_of(index: usize) -> u8 {
    index as u8
}

fn first_of(at: usize) -> Position {
    let zero = Time::default();
    Position {
        class: class_of(at),
        deadline: zero,
        number: 0,
        client: 0,
        since: zero,
        key: None,
        relative_cost: RelativeCost::default(),
    }
}

fn last_of(at: usize) -> Position {
    let ever = Time::new(std::time::Duration::MAX);
    Position { deadline: ever, number: u64::MAX, client: u64::MAX, since: ever, ..first_of(at) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;
    use std::time::Duration;

    fn entry(class: u8, deadline_ms: u64, client: u64) -> Entry {
        let deadline = Time::new(Duration::from_millis(deadline_ms));
        let (since, relative_cost) = (Time::default(), RelativeCost::default());
        Entry { class, since, deadline, client, key: None, relative_cost }
    }

    fn drain<T>(queue: &mut FairQueue<T>) -> Vec<T> {
        let next = |queue: &mut FairQueue<T>| {
            let position = queue.first()?.0;
            queue.serve(&position)
        };
        std::iter::from_fn(|| next(queue)).collect()
    }

    #[test]
    fn the_urgent_go_first_and_then_the_earlier_deadline() {
        let mut queue = FairQueue::new(10);
        for (name, class, deadline) in
            [("c", 1, 50), ("e", 2, 1), ("a", 0, 90), ("b", 1, 20), ("d", 1, 50)]
        {
            assert!(matches!(queue.enqueue(&entry(class, deadline, 7), name), Enqueued::Queued(_)));
        }
        assert_eq!(queue.last().map(|(_, name)| *name), Some("e"));
        assert_eq!((queue.len_of(0), queue.len_of(1), queue.len_of(9)), (1, 3, 1));
        assert_eq!(drain(&mut queue), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_full_line_makes_way_for_what_is_more_urgent_and_for_nothing_else() {
        let mut queue = FairQueue::new(2);
        queue.enqueue(&entry(2, 10, 1), "early batch");
        queue.enqueue(&entry(2, 99, 1), "late batch");
        assert!(matches!(queue.enqueue(&entry(2, 5, 1), "more"), Enqueued::Full("more")));
        assert!(matches!(
            queue.enqueue(&entry(1, 500, 1), "normal"),
            Enqueued::Displaced(_, "late batch")
        ));
        assert!(matches!(
            queue.enqueue(&entry(0, 500, 1), "high"),
            Enqueued::Displaced(_, "early batch")
        ));
        assert!(matches!(queue.enqueue(&entry(1, 1, 1), "more"), Enqueued::Full("more")));
        assert!(matches!(
            queue.enqueue(&entry(0, 1, 1), "higher"),
            Enqueued::Displaced(_, "normal")
        ));
        assert!(matches!(queue.enqueue(&entry(0, 1, 1), "more"), Enqueued::Full("more")));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_full_line_drops_from_the_client_that_has_the_most_in_it() {
        let mut queue = FairQueue::new(10);
        for n in 0..10 {
            queue.enqueue(&entry(1, n, 1), 1);
        }
        let mut displaced = 0;
        for n in 0..10 {
            displaced += usize::from(matches!(
                queue.enqueue(&entry(1, 100 + n, 2), 2),
                Enqueued::Displaced(_, 1)
            ));
        }
        assert_eq!(displaced, 5, "half of the room is the most that it can claim");
    }

    #[test]
    fn who_has_had_least_goes_next_whatever_the_deadlines() {
        let mut queue = FairQueue::new(1000);
        for n in 0..500 {
            queue.enqueue(&entry(1, n, 1), 1);
        }
        for _ in 0..100 {
            let position = queue.first().unwrap_or_else(|| unreachable!()).0;
            queue.serve(&position);
        }
        queue.enqueue(&entry(1, 10_000, 2), 2);
        assert_eq!(queue.first().map(|(_, name)| *name), Some(2), "it does not wait for the flood");
        for n in 0..100 {
            queue.enqueue(&entry(1, 10_001 + n, 2), 2);
        }
        let mut lead = 0_i64;
        for served in drain(&mut queue).into_iter().take(200) {
            lead += if served == 1 { 1 } else { -1 };
            assert!(lead.abs() <= 1, "{lead}");
        }
    }

    #[test]
    fn shares_are_of_work_and_not_of_requests() {
        let mut queue = FairQueue::new(1000);
        for n in 0..300 {
            queue.enqueue(&Entry { relative_cost: RelativeCost::new(5.0), ..entry(1, n, 1) }, 1);
            queue.enqueue(&entry(1, n, 2), 2);
        }
        let heavy = drain(&mut queue).into_iter().take(120).filter(|name| *name == 1).count();
        assert!((19..=21).contains(&heavy), "{heavy} of 120");
    }

    #[test]
    fn a_client_with_one_request_at_a_time_has_no_more_than_its_share() {
        let mut queue = FairQueue::new(1000);
        for n in 0..300 {
            queue.enqueue(&entry(1, 100 + n, 1), 1);
        }
        // It comes again with an early deadline as soon as it was served.
        let mut served = [0, 0];
        for _ in 0..100 {
            queue.enqueue(&entry(1, 0, 2), 2);
            for _ in 0..2 {
                let position = queue.first().unwrap_or_else(|| unreachable!()).0;
                let name = queue.serve(&position).unwrap_or_default();
                served[name - 1] += 1;
            }
        }
        assert!((99..=101).contains(&served[0]), "{served:?}");
    }

    #[test]
    fn who_is_ahead_is_counted_by_class_deadline_and_fair_share() {
        let mut queue = FairQueue::new(1000);
        for n in 0..100 {
            queue.enqueue(&entry(1, n, 1), n);
        }
        queue.enqueue(&entry(2, 0, 1), 0);
        assert_eq!(queue.ahead_of(&entry(0, 1, 1)), 0);
        assert_eq!(queue.ahead_of(&entry(1, 30, 1)), 31);
        assert_eq!(queue.ahead_of(&entry(1, 500, 1)), 100);
        assert_eq!(queue.ahead_of(&entry(1, 500, 2)), 1, "another client gets its turn");
        assert_eq!(queue.ahead_of(&entry(2, 500, 1)), 101);
    }

    #[test]
    fn nothing_is_lost_or_doubled_under_any_order_of_calls() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut queue = FairQueue::new(1 + rng.below(20));
            let (mut positions, mut inside) = (Vec::new(), BTreeSet::new());
            for number in 0..400_u32 {
                match rng.below(4) {
                    0 if !positions.is_empty() => {
                        let position: Position = positions.swap_remove(rng.below(positions.len()));
                        if let Some(item) = queue.remove(&position) {
                            assert!(inside.remove(&item), "seed {seed}");
                        }
                    }
                    1 => {
                        if let Some((position, _)) = queue.first() {
                            let served = queue.serve(&position);
                            assert!(served.is_some_and(|it| inside.remove(&it)), "seed {seed}");
                            assert_eq!(queue.remove(&position), None, "seed {seed}");
                        }
                    }
                    _ => {
                        #[allow(clippy::cast_possible_truncation, reason = "below 4")]
                        let class = rng.below(4) as u8;
                        let entry = entry(class, rng.below(50) as u64, rng.below(4) as u64);
                        let _ = queue.ahead_of(&entry);
                        match queue.enqueue(&entry, number) {
                            Enqueued::Queued(position) => positions.push(position),
                            Enqueued::Displaced(position, other) => {
                                assert!(inside.remove(&other), "seed {seed}");
                                positions.push(position);
                            }
                            Enqueued::Full(item) => {
                                assert_eq!(item, number, "seed {seed}");
                                continue;
                            }
                        }
                        inside.insert(number);
                    }
                }
                assert_eq!(queue.len(), inside.len(), "seed {seed}");
                let classes: usize = (0..3).map(|class| queue.len_of(class)).sum();
                assert_eq!(classes, queue.len(), "seed {seed}");
                assert_eq!(queue.first().is_none(), queue.is_empty(), "seed {seed}");
            }
            assert_eq!(drain(&mut queue).len(), inside.len(), "seed {seed}");
        }
    }
}
