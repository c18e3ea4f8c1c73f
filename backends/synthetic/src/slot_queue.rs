//! A queue with `k` slots, first come first served, in exact time.
//!
//! The clock decides when a service ends, not the scheduler: the next service starts at the moment
//! the last one was due to end, even if the process noticed it a little later. So lateness does not
//! add up, and a queue that is busy for a minute has served a minute's worth of demand.

use crate::timer::Timer;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Weight of the newest service time in the mean that is reported.
const MEAN_WEIGHT: f64 = 0.05;

/// The queue of one backend. It belongs to one thread.
#[derive(Debug)]
pub struct SlotQueue {
    slots: usize,
    bound: usize,
    state: RefCell<State>,
    /// The next end has changed.
    changed: Notify,
}

/// Why a request was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The queue was as long as it may be.
    Full,
    /// The deadline passed before a slot was free; the request was taken out of the queue.
    Late,
}

/// The length of the queue at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Being served.
    pub running: usize,
    /// Waiting.
    pub queued: usize,
    /// Mean service time of the last ones in seconds, 0 before the first.
    pub mean: f64,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    /// Earliest end first.
    running: BinaryHeap<Reverse<Service>>,
    /// In the order of arrival.
    queue: BTreeMap<u64, Waiting>,
    mean: Option<f64>,
}

#[derive(Debug)]
struct Waiting {
    demand: Duration,
    done: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Service {
    end: Instant,
    id: u64,
    done: oneshot::Sender<()>,
}

impl PartialEq for Service {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Service {}

impl PartialOrd for Service {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Service {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.end, self.id).cmp(&(other.end, other.id))
    }
}

impl SlotQueue {
    /// A queue with `slots` (at least one) before which at most `bound` may wait.
    pub fn new(slots: usize, bound: usize) -> Self {
        Self { slots: slots.max(1), bound, state: RefCell::default(), changed: Notify::new() }
    }

    /// Waits in the queue and is served for `demand`. Dropped while it waits, it leaves the queue; dropped
    /// later, it still takes its slot's time, as real work does.
    ///
    /// # Errors
    /// The queue is full, or the deadline passed while it waited.
    pub async fn serve(&self, demand: Duration, deadline: Option<Instant>) -> Result<(), Refused> {
        let (done, mut served) = oneshot::channel();
        let id = self.enter(demand, done)?;
        let _leave = Leave { queue: self, id };
        let Some(deadline) = deadline else {
            let _ = served.await;
            return Ok(());
        };
        tokio::select! {
            biased;
            _ = &mut served => return Ok(()),
            () = tokio::time::sleep_until(deadline.into()) => {}
        }
        if self.state.borrow_mut().queue.remove(&id).is_some() {
            return Err(Refused::Late);
        }
        let _ = served.await;
        Ok(())
    }

    /// The current length of the queue.
    pub fn load(&self) -> Load {
        let state = self.state.borrow();
        Load {
            running: state.running.len(),
            queued: state.queue.len(),
            mean: state.mean.unwrap_or(0.0),
        }
    }

    /// Ends services when they are due; runs as long as the queue is used.
    ///
    /// # Errors
    /// The timer can't be made.
    pub async fn run(&self) -> io::Result<()> {
        let mut timer = Timer::new()?;
        loop {
            let next = self.end_what_is_due();
            let changed = self.changed.notified();
            match next {
                None => changed.await,
                Some(end) => tokio::select! {
                    biased;
                    waited = timer.wait_until(end) => waited?,
                    () = changed => {}
                },
            }
        }
    }

    fn enter(&self, demand: Duration, done: oneshot::Sender<()>) -> Result<u64, Refused> {
        let state = &mut *self.state.borrow_mut();
        let id = state.next_id;
        state.next_id += 1;
        state.learn(demand);
        if state.running.len() < self.slots {
            state.start(Instant::now(), demand, id, done);
            self.changed.notify_one();
        } else if state.queue.len() < self.bound {
            state.queue.insert(id, Waiting { demand, done });
        } else {
            return Err(Refused::Full);
        }
        Ok(id)
    }

    /// Returns the end of the service that ends next.
    fn end_what_is_due(&self) -> Option<Instant> {
        let state = &mut *self.state.borrow_mut();
        loop {
            let end = state.running.peek()?.0.end;
            if end > Instant::now() {
                return Some(end);
            }
            if let Some(Reverse(service)) = state.running.pop() {
                // The waiting request may be gone already.
                let _ = service.done.send(());
            }
            if let Some((id, waiting)) = state.queue.pop_first() {
                state.start(end, waiting.demand, id, waiting.done);
            }
        }
    }
}

impl State {
    fn start(&mut self, now: Instant, demand: Duration, id: u64, done: oneshot::Sender<()>) {
        self.running.push(Reverse(Service { end: now + demand, id, done }));
    }

    fn learn(&mut self, demand: Duration) {
        let value = demand.as_secs_f64();
        let mean = self.mean.get_or_insert(value);
        *mean += (value - *mean) * MEAN_WEIGHT;
    }
}

/// Removes a request from the queue once its client has gone.
struct Leave<'a> {
    queue: &'a SlotQueue,
    id: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.queue.state.borrow_mut().queue.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    const MS: Duration = Duration::from_millis(1);

    /// A runtime with a queue at work.
    fn with_queue<F: Future>(slots: usize, bound: usize, test: impl FnOnce(Rc<SlotQueue>) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        let Ok(runtime) = runtime else { unreachable!("a runtime can be made") };
        runtime.block_on(async {
            let queue = Rc::new(SlotQueue::new(slots, bound));
            let clock = Rc::clone(&queue);
            let clock = tokio::task::spawn_local(async move { clock.run().await });
            test(queue).await;
            clock.abort();
        });
    }

    fn send(queue: &Rc<SlotQueue>, demand: Duration) -> tokio::task::JoinHandle<Instant> {
        let queue = Rc::clone(queue);
        tokio::task::spawn_local(async move {
            let _ = queue.serve(demand, None).await;
            Instant::now()
        })
    }

    #[test]
    fn services_follow_each_other_in_order_and_take_their_time() {
        with_queue(2, 100, |queue| async move {
            let start = Instant::now();
            let served: Vec<_> = (0..6).map(|_| send(&queue, 5 * MS)).collect();
            let mut ends = Vec::new();
            for served in served {
                ends.push(served.await.map(|end| end - start).unwrap_or_default());
            }
            assert!(ends.is_sorted(), "{ends:?}");
            for (i, end) in (0..).zip(&ends) {
                assert!(*end >= 5 * MS * (i / 2 + 1), "{ends:?}");
            }
        });
    }

    #[test]
    fn a_full_queue_refuses_and_one_that_leaves_makes_room() {
        with_queue(1, 1, |queue| async move {
            let _running = send(&queue, 1000 * MS);
            let waiting = send(&queue, MS);
            tokio::task::yield_now().await;
            assert_eq!(queue.load(), Load { running: 1, queued: 1, ..queue.load() });
            assert_eq!(queue.serve(MS, None).await, Err(Refused::Full));
            waiting.abort();
            let _ = waiting.await;
            assert_eq!(queue.load().queued, 0);
        });
    }

    #[test]
    fn a_deadline_that_passes_in_the_queue_is_refused_and_one_in_service_is_not() {
        with_queue(1, 10, |queue| async move {
            let _running = send(&queue, 10_000 * MS);
            tokio::task::yield_now().await;
            let deadline = Some(Instant::now() + 5 * MS);
            assert_eq!(queue.serve(MS, deadline).await, Err(Refused::Late));
            assert_eq!(queue.load().queued, 0);
        });
        with_queue(1, 10, |queue| async move {
            let deadline = Some(Instant::now() + MS);
            assert_eq!(queue.serve(10 * MS, deadline).await, Ok(()));
        });
    }
}
