//! Memory for what requests and answers hold while they pass: bounded in total and for each client.
//!
//! Memory is taken as bytes arrive, never for a length that is only stated: 64 headers that state
//! 16 MiB each cost nothing until their bodies come. And no client gets more than its share, so that
//! one that sends slowly, or does not read what it is sent, can't take the memory of all others.
//!
//! Over HTTP/2, what has been written is not yet away: the library keeps it until the client's socket takes it,
//! or drops it when the stream is reset. A piece that is given to the library takes its memory along
//! ([`Held::charge`]), and gives it back when the library lets go of its bytes, whyever that is.

use crate::config::Limits;
use bytes::Bytes;
use forebay_process::memory::Taken;
use forebay_protocol::metric;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::sleep;

/// Clients are spread over this many locks.
const SHARDS: usize = 16;

/// Memory that a piece of an answer takes beside its bytes, wherever it waits: its place in a queue, and the
/// reference to its bytes. Without it, a megabyte of events of ten bytes each would take ten.
const PIECE: usize = 128;

/// Bytes of answers that a connection may hold whatever the bounds say: one or two pieces, so that every client
/// that reads is served, if slowly.
const MIN_SHARE: usize = 128 * 1024;
/// Most bytes that are read of an answer at once, more or less.
const ROOM: u64 = 64 * 1024;
/// Time between two looks whether there is memory. Only where there was none.
const LOOK: Duration = Duration::from_millis(20);

/// Memory that a piece of an answer of this many bytes takes.
pub const fn cost(bytes: usize) -> usize {
    bytes + PIECE
}

/// The memory of the process for bodies.
#[derive(Debug, Default)]
pub struct Memory {
    held: Taken,
    clients: [Mutex<HashMap<u64, u64>>; SHARDS],
}

/// The bound that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryFull {
    /// The client's share.
    Client,
    /// The memory of all.
    Total,
}

impl MemoryFull {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Total => "total",
        }
    }
}

impl Memory {
    /// Bytes that are held now.
    pub fn held(&self) -> u64 {
        self.held.now() as u64
    }

    /// The same, for who gives back what was held.
    pub fn taken(&self) -> &Taken {
        &self.held
    }

    fn shard(&self, client: u64) -> MutexGuard<'_, HashMap<u64, u64>> {
        let place = usize::try_from(client % SHARDS as u64).unwrap_or_default();
        self.clients[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's account, with the bounds that hold for it.
#[derive(Debug, Clone)]
pub struct Account {
    memory: Arc<Memory>,
    client: u64,
    total: u64,
    share: u64,
    /// Of answers: those of their connection.
    connection: Option<Unread>,
}

/// Bytes of answers that a connection's client has not taken.
#[derive(Debug, Clone, Default)]
pub struct Unread(Arc<AtomicUsize>);

tokio::task_local! {
    /// Those of the connection that the task's request came on, if others may come on it meanwhile.
    static CONNECTION: Unread;
}

impl Unread {
    /// Has the requests of one connection count theirs together.
    pub fn together<F: Future>(&self, request: F) -> impl Future<Output = F::Output> + use<F> {
        CONNECTION.scope(self.clone(), request)
    }

    /// Those of the connection of this task's request. One that comes alone begins with nothing.
    fn of_this_request() -> Self {
        CONNECTION.try_with(Self::clone).unwrap_or_default()
    }

    /// Counts more of them; whether they are so few that they find memory in any case.
    fn add(&self, count: usize) -> bool {
        let before = self.0.fetch_add(count, Relaxed);
        // A piece may be longer than the least.
        before == 0 || before + count <= MIN_SHARE
    }

    fn remove(&self, count: usize) {
        self.0.fetch_sub(count, Relaxed);
    }
}

impl Account {
    /// The account of `client`, which is a number that is equal for requests of one client.
    pub fn new(memory: &Arc<Memory>, client: u64, limits: &Limits) -> Self {
        let (total, share) = (limits.memory, limits.client_share());
        Self { memory: Arc::clone(memory), client, total, share, connection: None }
    }

    /// An account that is no client's, with a number and bounds of its own: the most that all may hold, and the
    /// most that this one may.
    pub fn apart(memory: &Arc<Memory>, number: u64, (total, share): (u64, u64)) -> Self {
        Self { memory: Arc::clone(memory), client: number, total, share, connection: None }
    }

    /// Memory of this client, none yet.
    pub fn hold(&self) -> Held {
        Held { account: self.clone(), bytes: AtomicUsize::new(0), spare: AtomicUsize::new(0) }
    }

    /// The same account for answers, which take memory for as long as their clients do not read them:
    /// they find no more where half of either bound is held, so that there is memory for requests. One or
    /// two pieces on a connection find memory all the same.
    pub fn for_answers(&self) -> Self {
        let connection = Some(Unread::of_this_request());
        Self { total: self.total / 2, share: self.share / 2, connection, ..self.clone() }
    }

    /// The same account without bounds, for what must always find memory and bounds itself.
    pub fn without_bounds(&self) -> Self {
        Self { total: u64::MAX, share: u64::MAX, ..self.clone() }
    }

    /// Whether the client holds its whole share.
    pub fn is_full(&self) -> bool {
        self.memory.shard(self.client).get(&self.client).is_some_and(|held| *held >= self.share)
    }

    /// Whether a piece of an answer finds memory now: before it is read, so that none has to wait in hand.
    fn has_room(&self) -> bool {
        let all = self.memory.held();
        let clients = self.memory.shard(self.client);
        let held = clients.get(&self.client).copied().unwrap_or_default();
        let is_little = |unread: &Unread| unread.0.load(Relaxed) < MIN_SHARE;
        self.connection.as_ref().is_some_and(is_little)
            || (all + ROOM <= self.total && held + ROOM <= self.share)
    }

    /// Memory for an answer, before its request is sent. Where memory is short, a piece of it is taken already:
    /// an answer that comes and finds none keeps a slot of its endpoint until there is some. `None`: the answers
    /// that the client has not read leave none.
    pub fn hold_for_answer(&self) -> Option<Held> {
        let held = self.hold();
        let is_short = self.memory.held() > self.total / 2;
        (!is_short || held.reserve()).then_some(held)
    }

    fn take(&self, count: usize) -> Result<(), MemoryFull> {
        let bytes = count as u64;
        let all = self.memory.held.add(count) as u64;
        let mut clients = self.memory.shard(self.client);
        let held = clients.get(&self.client).copied().unwrap_or_default();
        let wanted = held.saturating_add(bytes);
        let always = self.connection.as_ref().is_some_and(|unread| unread.add(count));
        let full = match () {
            () if always => None,
            () if all > self.total => Some(MemoryFull::Total),
            () if wanted > self.share => Some(MemoryFull::Client),
            () => None,
        };
        if let Some(full) = full {
            drop(clients);
            self.forget(count);
            return Err(full);
        }
        clients.insert(self.client, wanted);
        Ok(())
    }

    fn give_back(&self, count: usize) {
        let bytes = count as u64;
        let mut clients = self.memory.shard(self.client);
        if let Entry::Occupied(mut held) = clients.entry(self.client) {
            *held.get_mut() = held.get().saturating_sub(bytes);
            if *held.get() == 0 {
                held.remove();
            }
        }
        drop(clients);
        self.forget(count);
    }

    fn forget(&self, count: usize) {
        self.memory.held.remove(count);
        if let Some(unread) = &self.connection {
            unread.remove(count);
        }
    }
}

/// Bytes that one request holds; given back when dropped.
#[derive(Debug)]
pub struct Held {
    account: Account,
    bytes: AtomicUsize,
    /// Those of them that wait for their use.
    spare: AtomicUsize,
}

impl Held {
    /// Takes `bytes` more.
    ///
    /// # Errors
    /// The bound that does not allow it; nothing is taken then, and it is counted.
    pub fn grow(&self, bytes: usize) -> Result<(), MemoryFull> {
        self.try_grow(bytes).inspect_err(|full| {
            metric::proxy::MEMORY_FULL.with([full.as_str()]).increment(1);
        })
    }

    /// The same for what may as well be left out: it is not counted if there is none.
    ///
    /// # Errors
    /// The bound that does not allow it; nothing is taken then.
    pub fn try_grow(&self, bytes: usize) -> Result<(), MemoryFull> {
        let at_hand = less(&self.spare, bytes);
        let bytes = bytes - at_hand;
        if bytes == 0 {
            return Ok(());
        }
        match self.account.take(bytes) {
            Ok(()) => {
                self.bytes.fetch_add(bytes, Relaxed);
                Ok(())
            }
            Err(full) => {
                self.spare.fetch_add(at_hand, Relaxed);
                Err(full)
            }
        }
    }

    /// Whether a further piece may find memory now.
    pub fn has_room(&self) -> bool {
        self.spare.load(Relaxed) > 0 || self.account.has_room()
    }

    /// Takes memory for a piece that is to come.
    fn reserve(&self) -> bool {
        let piece = usize::try_from(ROOM).unwrap_or_default();
        let is_there = self.grow(piece).is_ok();
        if is_there {
            self.spare.fetch_add(piece, Relaxed);
        }
        is_there
    }

    /// Until a further piece may find memory.
    pub async fn room(&self) {
        while !self.has_room() {
            sleep(LOOK).await;
        }
    }

    /// Gives a piece of an answer the memory that was taken for it along. Waits until there is some if there is
    /// not, however long that takes.
    pub async fn charge(&self, bytes: Bytes) -> Bytes {
        let taken = self.lend(cost(bytes.len()));
        let missing = cost(bytes.len()) - taken.bytes.load(Relaxed);
        if missing > 0 && taken.grow(missing).is_err() {
            loop {
                sleep(LOOK).await;
                if taken.account.take(missing).is_ok() {
                    taken.bytes.fetch_add(missing, Relaxed);
                    break;
                }
            }
        }
        Bytes::from_owner(Charged { bytes, _taken: taken, _unsent: None })
    }

    /// Splits off up to so many bytes of what is held and in use.
    fn lend(&self, most: usize) -> Self {
        let lent = self.account.hold();
        lent.bytes.store(self.put_down(most), Relaxed);
        lent
    }

    /// Gives `bytes` back.
    pub fn shrink(&self, bytes: usize) {
        let bytes = self.put_down(bytes);
        if bytes > 0 {
            self.account.give_back(bytes);
        }
    }

    /// Counts up to so many bytes in use as held no more; how many.
    fn put_down(&self, most: usize) -> usize {
        let in_use = self.bytes.load(Relaxed).saturating_sub(self.spare.load(Relaxed));
        less(&self.bytes, most.min(in_use))
    }
}

/// Takes up to `most` off a number; how much.
fn less(number: &AtomicUsize, most: usize) -> usize {
    let before = number.fetch_update(Relaxed, Relaxed, |value| Some(value - most.min(value)));
    before.map_or(0, |before| most.min(before))
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.account.give_back(bytes);
        }
    }
}

/// A piece of an answer with the memory that it takes.
struct Charged {
    bytes: Bytes,
    _taken: Held,
    _unsent: Option<Arc<()>>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The pieces of a stream of messages that its client has not taken yet, where nothing can wait for memory.
#[derive(Debug)]
pub struct StreamMemory {
    account: Account,
    /// Every piece that has not left has a copy.
    unsent: Arc<()>,
}

/// There is no memory for a piece, and its client has not taken the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoMemory;

impl StreamMemory {
    /// Of a stream to the client of this account.
    pub fn new(account: &Account) -> Self {
        Self { account: account.for_answers(), unsent: Arc::new(()) }
    }

    /// Takes the memory for a piece; it gives it back when it has left.
    ///
    /// # Errors
    /// There is none, because the client does not read.
    pub fn charge(&self, bytes: Bytes) -> Result<Bytes, NoMemory> {
        let taken = self.account.hold();
        // One piece must pass wherever the memory is.
        if taken.grow(cost(bytes.len())).is_err() && Arc::strong_count(&self.unsent) > 1 {
            return Err(NoMemory);
        }
        let unsent = Some(Arc::clone(&self.unsent));
        Ok(Bytes::from_owner(Charged { bytes, _taken: taken, _unsent: unsent }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(memory: &Arc<Memory>, client: u64) -> Account {
        Account { memory: Arc::clone(memory), client, total: 100, share: 60, connection: None }
    }

    #[test]
    fn a_client_gets_its_share_and_all_together_the_total() {
        let memory = Arc::new(Memory::default());
        let (first, second) = (account(&memory, 1).hold(), account(&memory, 17).hold());
        assert_eq!(first.grow(61), Err(MemoryFull::Client));
        assert_eq!(first.grow(60), Ok(()));
        assert!(account(&memory, 1).is_full());
        assert_eq!(first.grow(1), Err(MemoryFull::Client));
        assert_eq!(account(&memory, 1).hold().grow(1), Err(MemoryFull::Client));
        assert_eq!(second.grow(41), Err(MemoryFull::Total));
        assert_eq!(second.grow(40), Ok(()));
        assert_eq!(memory.held(), 100);
        first.shrink(50);
        assert_eq!(first.grow(0), Ok(()));
        let answer = Account { connection: None, ..account(&memory, 1).for_answers() }.hold();
        assert_eq!(answer.grow(1), Err(MemoryFull::Total), "half of all is held");
        assert_eq!(second.grow(20), Ok(()));
        drop((first, second));
        assert_eq!(memory.held(), 0);
        assert!(memory.clients.iter().all(|shard| shard.lock().is_ok_and(|map| map.is_empty())));
    }

    #[test]
    fn a_connection_gets_a_piece_of_its_answer_however_much_others_hold() {
        let memory = Arc::new(Memory::default());
        let others = account(&memory, 1).without_bounds().hold();
        assert_eq!(others.grow(1 << 20), Ok(()));
        let answers = account(&memory, 2).for_answers();
        assert!(answers.hold_for_answer().is_some(), "it holds nothing yet");
        let (first, second) = (answers.hold(), answers.hold());
        assert!(answers.has_room());
        // A piece of any length if there is no other one, and others up to the least.
        assert_eq!(first.grow(1 << 20), Ok(()));
        assert!(!answers.has_room() && answers.hold_for_answer().is_none());
        assert_eq!(second.grow(1), Err(MemoryFull::Total));
        first.shrink((1 << 20) - 5);
        assert_eq!(second.grow(MIN_SHARE - 5), Ok(()));
        assert_eq!(second.grow(1), Err(MemoryFull::Total));
        // Another connection of the same client has its own.
        let elsewhere = account(&memory, 2).for_answers().hold_for_answer();
        assert!(elsewhere.is_some());
        drop((first, second, others, elsewhere));
        assert_eq!(memory.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_takes_its_memory_along_until_its_last_byte_is_let_go() {
        let memory = Arc::new(Memory::default());
        let bounds = Account { total: 1000, share: 1000, ..account(&memory, 1) };
        let held = bounds.hold();
        assert_eq!(held.grow(cost(100) + 7), Ok(()));
        let mut piece = held.charge(vec![7; 100].into()).await;
        assert_eq!(piece, vec![7; 100]);
        assert_eq!(memory.held(), cost(100) as u64 + 7);
        drop(held);
        assert_eq!(memory.held(), cost(100) as u64);
        let part = piece.split_to(10);
        drop(piece);
        assert_eq!(memory.held(), cost(100) as u64, "a part is still there");
        drop(part);
        assert_eq!(memory.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_without_memory_waits_for_some() {
        let memory = Arc::new(Memory::default());
        let bounds = Account { total: 1000, share: 1000, ..account(&memory, 1) };
        let (held, other) = (bounds.hold(), bounds.hold());
        assert_eq!(other.grow(990), Ok(()));
        assert_eq!(held.grow(10), Ok(()));
        let waiting = held.charge(vec![7; 100].into());
        tokio::pin!(waiting);
        let in_vain = tokio::time::timeout(Duration::from_secs(60), &mut waiting).await;
        assert!(in_vain.is_err());
        assert_eq!(memory.held(), 1000);
        drop(other);
        let piece = waiting.await;
        assert_eq!(memory.held(), cost(100) as u64);
        drop(piece);
        assert_eq!(memory.held(), 0);
    }

    #[tokio::test]
    async fn requests_of_one_connection_count_together() {
        let memory = Arc::new(Memory::default());
        let others = account(&memory, 1).without_bounds().hold();
        assert_eq!(others.grow(1 << 20), Ok(()));
        let connection = Unread::default();
        let first = connection.together(async { account(&memory, 2).for_answers().hold() }).await;
        let second = connection.together(async { account(&memory, 2).for_answers().hold() }).await;
        assert_eq!(first.grow(MIN_SHARE), Ok(()));
        assert_eq!(second.grow(1), Err(MemoryFull::Total));
        drop(first);
        assert_eq!(second.grow(1), Ok(()));
    }

    #[test]
    fn an_answer_uses_what_was_reserved_for_it_first() {
        let memory = Arc::new(Memory::default());
        let bounds = Account { total: 200_000, share: 200_000, ..account(&memory, 1) };
        let plenty = bounds.hold_for_answer();
        assert_eq!(memory.held(), 0, "nothing is taken where there is enough");
        let other = bounds.hold();
        assert_eq!(other.grow(110_000), Ok(()));
        let held = bounds.hold_for_answer();
        assert_eq!(memory.held(), 110_000 + ROOM);
        assert!(held.is_some());
        if let Some(held) = &held {
            assert!(held.has_room());
            assert_eq!(held.grow(60_000), Ok(()));
            assert_eq!(memory.held(), 110_000 + ROOM);
            held.shrink(100_000);
            assert_eq!(memory.held(), 110_000 + ROOM - 60_000, "only what was in use");
            assert_eq!(held.grow(20_000), Ok(()));
            assert_eq!(memory.held(), 130_000);
        }
        drop((plenty, other, held));
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn a_stream_whose_client_does_not_read_gets_no_piece_beyond_the_memory() {
        let memory = Arc::new(Memory::default());
        let stream = StreamMemory {
            account: Account { total: 500, share: 500, ..account(&memory, 1) },
            unsent: Arc::default(),
        };
        let long = Bytes::from(vec![7; 1000]);
        let first = stream.charge(long.clone());
        assert_eq!(first, Ok(long.clone()), "one passes always");
        assert_eq!(stream.charge(long.clone()), Err(NoMemory));
        let short = stream.charge(Bytes::from_static(b"x"));
        assert!(short.is_ok());
        assert_eq!(memory.held(), cost(1) as u64);
        drop((first, short));
        assert_eq!(memory.held(), 0);
        assert!(stream.charge(long).is_ok());
    }
}
