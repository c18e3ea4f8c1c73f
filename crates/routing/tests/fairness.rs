//! Bounds how long a greedy client can make another one wait.
//!
//! A request that runs is not interrupted, and no slot is kept idle while requests wait. Under these two rules a
//! request that finds all slots busy waits at least until the first of them is free, whatever the order of the
//! queue is. The fair queue makes a client that stays below its share wait exactly so long, however many requests a
//! greedy one has queued: its latency is at most its own service plus the rest of one that runs already. Where
//! all services take equally long and the greedy client keeps the slots in step, that rest is a whole service, so
//! the p99 of the other client can double; only quotas, which keep slots idle, can do better.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use forebay_routing::{Enqueued, Entry, FairQueue, RelativeCost, Rng, Time};
use std::time::Duration;

const SLOTS: usize = 12;
const GREEDY: u64 = 1;
const MODEST: u64 = 2;
/// Requests that the greedy client keeps in the system.
const FLOOD: usize = 24;

/// The request that runs in a slot.
#[derive(Debug, Clone, Copy)]
struct Running {
    client: u64,
    ends: u64,
}

/// A pool of slots behind the queue of a proxy, in nanoseconds of its own time.
struct Pool {
    now: u64,
    queue: FairQueue<u64>,
    slots: [Option<Running>; SLOTS],
    rng: Rng,
    service: fn(&mut Rng) -> u64,
}

impl Pool {
    fn join(&mut self, client: u64) {
        let now = Time::new(Duration::from_nanos(self.now));
        let deadline = Time::new(Duration::from_nanos(self.now + 3_600_000_000_000));
        let relative_cost = RelativeCost::default();
        let entry = Entry { class: 1, since: now, deadline, client, key: None, relative_cost };
        assert!(matches!(self.queue.enqueue(&entry, client), Enqueued::Queued(_)));
    }

    /// Starts what is next as long as a slot is free; whether the modest client's request started.
    fn start(&mut self) -> bool {
        let mut is_modest = false;
        while let Some(slot) = self.slots.iter().position(Option::is_none)
            && let Some((position, _)) = self.queue.first()
        {
            let client = self.queue.serve(&position).unwrap();
            let ends = self.now + (self.service)(&mut self.rng);
            self.slots[slot] = Some(Running { client, ends });
            is_modest |= client == MODEST;
        }
        is_modest
    }

    /// When the first slot becomes free.
    fn next_end(&self) -> u64 {
        self.slots.iter().flatten().map(|running| running.ends).min().unwrap_or(u64::MAX)
    }

    /// Takes out what has ended; the greedy client asks again at once.
    fn end(&mut self) {
        for slot in 0..SLOTS {
            if self.slots[slot].is_some_and(|running| running.ends <= self.now)
                && self.slots[slot].take().is_some_and(|running| running.client == GREEDY)
            {
                self.join(GREEDY);
            }
        }
    }
}

/// Lets a modest client ask again and again, after pauses of up to a service, and checks that each of its requests
/// starts with the first slot that becomes free after it has come. Returns the longest wait.
fn longest_wait(seed: u64, service: fn(&mut Rng) -> u64) -> u64 {
    let slots = [None; SLOTS];
    let mut pool =
        Pool { now: 0, queue: FairQueue::new(1000), slots, rng: Rng::new(seed), service };
    (0..FLOOD).for_each(|_| pool.join(GREEDY));
    pool.start();
    let (mut longest, mut asked) = (0, 0);
    while asked < 500 {
        let arrives = pool.now + pool.rng.below(60_000_000) as u64;
        while pool.next_end() <= arrives {
            pool.now = pool.next_end();
            pool.end();
            pool.start();
        }
        pool.now = arrives;
        pool.join(MODEST);
        asked += 1;
        let earliest =
            if pool.slots.iter().any(Option::is_none) { arrives } else { pool.next_end() };
        while !pool.start() {
            pool.now = pool.next_end();
            assert_eq!(pool.now, earliest, "seed {seed}: others went before it");
            pool.end();
        }
        longest = longest.max(pool.now - arrives);
        // It asks again when it is answered.
        while pool.slots.iter().flatten().any(|running| running.client == MODEST) {
            pool.now = pool.next_end();
            pool.end();
            pool.start();
        }
    }
    longest
}

#[test]
fn a_greedy_client_costs_another_one_the_rest_of_one_service_at_most() {
    for seed in 0..20 {
        let constant = longest_wait(seed, |_| 50_000_000);
        assert!(constant <= 50_000_000, "{constant}");
        assert!(constant > 40_000_000, "slots in step leave a whole service to wait: {constant}");
        let spread = longest_wait(seed, |rng| 1_000_000 + rng.below(99_000_000) as u64);
        assert!(spread <= 50_000_000, "slots out of step become free often: {spread}");
    }
}
