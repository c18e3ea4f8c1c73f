//! Memory for what requests and answers hold while they pass: bounded in total and for each client.
//!
//! Memory is taken as bytes arrive, never for a length that is only stated: 64 headers that state
//! 16 MiB each cost nothing until their bodies come. And no client gets more than its share, so that
//! one that sends slowly, or does not read what it is sent, can't take the memory of all others.

use crate::config::Limits;
use forebay_process::memory::Taken;
use forebay_protocol::metric;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clients are spread over this many locks.
const SHARDS: usize = 16;

/// Memory that a piece of an answer takes beside its bytes, wherever it waits: its place in a queue, and the
/// reference to its bytes. Without it, a megabyte of events of ten bytes each would take ten.
const PIECE: usize = 128;

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
}

impl Account {
    /// The account of `client`, which is a number that is equal for requests of one client.
    pub fn new(memory: &Arc<Memory>, client: u64, limits: &Limits) -> Self {
        let (total, share) = (limits.memory, limits.client_share());
        Self { memory: Arc::clone(memory), client, total, share }
    }

    /// Memory of this client, none yet.
    pub fn hold(&self) -> Held {
        Held { account: self.clone(), bytes: AtomicUsize::new(0) }
    }

    /// The same account for answers, which take memory for as long as their clients do not read them:
    /// they find no more where half of either bound is held, so that there is memory for requests.
    pub fn for_answers(&self) -> Self {
        Self { total: self.total / 2, share: self.share / 2, ..self.clone() }
    }

    /// The same account without bounds, for what must always find memory and bounds itself.
    pub fn without_bounds(&self) -> Self {
        Self { total: u64::MAX, share: u64::MAX, ..self.clone() }
    }

    /// Whether the client holds its whole share.
    pub fn is_full(&self) -> bool {
        self.memory.shard(self.client).get(&self.client).is_some_and(|held| *held >= self.share)
    }

    fn take(&self, count: usize) -> Result<(), MemoryFull> {
        let bytes = count as u64;
        if self.memory.held.add(count) as u64 > self.total {
            self.memory.held.remove(count);
            return Err(MemoryFull::Total);
        }
        let mut clients = self.memory.shard(self.client);
        let held = clients.entry(self.client).or_default();
        if held.saturating_add(bytes) > self.share {
            if *held == 0 {
                clients.remove(&self.client);
            }
            drop(clients);
            self.memory.held.remove(count);
            return Err(MemoryFull::Client);
        }
        *held += bytes;
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
        self.memory.held.remove(count);
    }
}

/// Bytes that one request holds; given back when dropped.
#[derive(Debug)]
pub struct Held {
    account: Account,
    bytes: AtomicUsize,
}

impl Held {
    /// Takes `bytes` more.
    ///
    /// # Errors
    /// The bound that does not allow it; nothing is taken then, and it is counted.
    pub fn grow(&self, bytes: usize) -> Result<(), MemoryFull> {
        if bytes == 0 {
            return Ok(());
        }
        match self.account.take(bytes) {
            Ok(()) => {
                self.bytes.fetch_add(bytes, Relaxed);
                Ok(())
            }
            Err(full) => {
                metric::proxy::MEMORY_FULL.with([full.as_str()]).increment(1);
                Err(full)
            }
        }
    }

    /// Gives `bytes` back.
    pub fn shrink(&self, bytes: usize) {
        let bytes = bytes.min(self.bytes.load(Relaxed));
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Relaxed);
            self.account.give_back(bytes);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.account.give_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(memory: &Arc<Memory>, client: u64) -> Account {
        Account { memory: Arc::clone(memory), client, total: 100, share: 60 }
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
        let answer = account(&memory, 1).for_answers().hold();
        assert_eq!(answer.grow(1), Err(MemoryFull::Total), "half of all is held");
        assert_eq!(second.grow(20), Ok(()));
        drop((first, second));
        assert_eq!(memory.held(), 0);
        assert!(memory.clients.iter().all(|shard| shard.lock().is_ok_and(|map| map.is_empty())));
    }
}
