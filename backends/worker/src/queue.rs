//! A bounded line per model, served in turn.
//!
//! One line for all would let a heavy model's callers fill it and starve a light model's; a line
//! without a bound turns overload into latency for everyone. Executors take one job from each line
//! that has any, round and round. A job that nobody waits for is withdrawn from the line at once, so
//! that it neither takes a place nor an executor. Lines come and go with their models.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Which line: see [`OpenLine::id`].
pub(crate) type LineId = usize;

/// A line for as long as someone may put jobs in it. What a job holds keeps its line open, so a line
/// that is closed is empty.
#[derive(Debug)]
pub(crate) struct OpenLine<T> {
    queue: Arc<Queue<T>>,
    id: LineId,
}

impl<T> OpenLine<T> {
    /// What the queue calls it.
    pub(crate) fn id(&self) -> LineId {
        self.id
    }
}

impl<T> Drop for OpenLine<T> {
    fn drop(&mut self) {
        self.queue.close_line(self.id);
    }
}

/// Lines of jobs.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// Open ones, and closed ones whose places are taken first when another opens.
    lines: Vec<Line<T>>,
    free: Vec<LineId>,
    /// The line that is asked first.
    turn: LineId,
    waiting: usize,
    next_id: u64,
    closed: bool,
}

#[derive(Debug)]
struct Line<T> {
    jobs: VecDeque<(u64, T)>,
    bound: usize,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PushError {
    #[error("the queue is full with {0} requests")]
    Full(usize),
    #[error("the worker is ending")]
    Closed,
}

impl<T> Queue<T> {
    /// A queue without lines.
    pub(crate) fn new() -> Arc<Self> {
        let (lines, free) = (Vec::new(), Vec::new());
        let state = State { lines, free, turn: 0, waiting: 0, next_id: 0, closed: false };
        Arc::new(Self { state: Mutex::new(state), arrived: Condvar::new() })
    }

    /// A new line for at most `bound` jobs.
    pub(crate) fn open(self: &Arc<Self>, bound: usize) -> OpenLine<T> {
        let mut state = self.lock();
        let line = Line { jobs: VecDeque::new(), bound };
        let id = match state.free.pop() {
            Some(id) => {
                state.lines[id] = line;
                id
            }
            None => {
                state.lines.push(line);
                state.lines.len() - 1
            }
        };
        drop(state);
        OpenLine { queue: Arc::clone(self), id }
    }

    /// Puts a job at the end of its line; gives its number, to withdraw it by.
    pub(crate) fn push(&self, line: LineId, job: T) -> Result<u64, PushError> {
        let mut state = self.lock();
        if state.closed {
            return Err(PushError::Closed);
        }
        let id = state.next_id;
        let line = &mut state.lines[line];
        if line.jobs.len() >= line.bound {
            return Err(PushError::Full(line.bound));
        }
        line.jobs.push_back((id, job));
        state.next_id += 1;
        state.waiting += 1;
        drop(state);
        self.arrived.notify_one();
        Ok(id)
    }

    /// Takes the next job, waiting for one; `None` once the queue is closed and empty. `started` runs
    /// before anyone can see the queue without the job, so that it is always counted somewhere.
    pub(crate) fn pop(&self, started: impl Fn()) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.take() {
                started();
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a job out of its line. `None`: it has been started.
    pub(crate) fn withdraw(&self, line: LineId, id: u64) -> Option<T> {
        let mut state = self.lock();
        let jobs = &mut state.lines[line].jobs;
        // Numbers grow along the line.
        let index = jobs.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let (_, job) = jobs.remove(index)?;
        state.waiting -= 1;
        Some(job)
    }

    /// Is the line at its bound?
    pub(crate) fn is_full(&self, line: LineId) -> bool {
        let state = self.lock();
        state.lines[line].jobs.len() >= state.lines[line].bound
    }

    /// Jobs that wait in one line.
    pub(crate) fn depth(&self, line: LineId) -> usize {
        self.lock().lines[line].jobs.len()
    }

    /// Jobs that wait in all lines; `read` runs while none can move.
    pub(crate) fn waiting<R>(&self, read: impl FnOnce() -> R) -> (usize, R) {
        let state = self.lock();
        (state.waiting, read())
    }

    /// Takes no more jobs; those in line are still given out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    fn close_line(&self, id: LineId) {
        let mut state = self.lock();
        debug_assert!(state.lines[id].jobs.is_empty(), "jobs keep their line open");
        state.lines[id].bound = 0;
        state.free.push(id);
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code of a job runs under the lock, so what a panic leaves is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn take(&mut self) -> Option<T> {
        let count = self.lines.len();
        for step in 0..count {
            let line = (self.turn + step) % count;
            if let Some((_, job)) = self.lines[line].jobs.pop_front() {
                self.turn = (line + 1) % count;
                self.waiting -= 1;
                return Some(job);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn pop(queue: &Queue<u32>) -> Option<u32> {
        queue.pop(|| ())
    }

    /// A queue whose lines are numbered from 0, with these bounds.
    fn queue<const N: usize>(bounds: [usize; N]) -> (Arc<Queue<u32>>, [OpenLine<u32>; N]) {
        let queue = Queue::new();
        let lines = bounds.map(|bound| queue.open(bound));
        (queue, lines)
    }

    #[test]
    fn the_place_of_a_closed_line_is_taken_by_the_next() {
        let (queue, [first, second]) = queue([1, 1]);
        assert_eq!((first.id(), second.id()), (0, 1));
        drop(first);
        assert_eq!(queue.push(0, 7), Err(PushError::Full(0)), "nothing enters a closed line");
        let third = queue.open(2);
        assert_eq!(third.id(), 0);
        queue.push(third.id(), 7).unwrap();
        assert_eq!(pop(&queue), Some(7));
    }

    #[test]
    fn lines_are_served_in_turn_and_each_in_order() {
        let (queue, _lines) = queue([9, 9, 9]);
        for (line, job) in [(0, 1), (0, 2), (0, 3), (2, 10), (2, 11)] {
            queue.push(line, job).unwrap();
        }
        let taken: Vec<_> = (0..5).filter_map(|_| pop(&queue)).collect();
        assert_eq!(taken, [1, 10, 2, 11, 3]);
    }

    #[test]
    fn a_line_at_its_bound_refuses_and_the_others_do_not() {
        let (queue, _lines) = queue([1, 2]);
        queue.push(0, 1).unwrap();
        assert!(queue.is_full(0) && !queue.is_full(1));
        assert_eq!(queue.push(0, 2), Err(PushError::Full(1)));
        queue.push(1, 3).unwrap();
        assert_eq!((queue.depth(0), queue.depth(1), queue.waiting(|| ()).0), (1, 1, 2));
    }

    #[test]
    fn a_withdrawn_job_frees_its_place_and_is_never_given_out() {
        let (queue, _lines) = queue([2]);
        let first = queue.push(0, 1).unwrap();
        queue.push(0, 2).unwrap();
        assert_eq!(queue.withdraw(0, first), Some(1));
        assert_eq!(queue.withdraw(0, first), None);
        queue.push(0, 3).unwrap();
        assert_eq!((pop(&queue), pop(&queue)), (Some(2), Some(3)));
        assert_eq!(queue.waiting(|| ()).0, 0);
    }

    #[test]
    fn a_closed_queue_gives_out_what_it_has_and_then_nothing() {
        let (queue, _lines) = queue([2]);
        queue.push(0, 1).unwrap();
        queue.close();
        assert_eq!(queue.push(0, 2), Err(PushError::Closed));
        assert_eq!((pop(&queue), pop(&queue)), (Some(1), None));
    }

    #[test]
    fn many_threads_take_every_job_once() {
        let (queue, _lines) = queue([10_000, 10_000]);
        let taken = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(job) = pop(&queue) {
                        taken.fetch_add(job, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
            for job in 0..2_000 {
                queue.push(job as usize % 2, job).unwrap();
            }
            queue.close();
        });
        assert_eq!(taken.into_inner(), 1_999_000);
    }
}
