//! A slot: one request at a time, and what others may tell it meanwhile.
//!
//! Everything that waits in a generating thread waits in a slot, for a job or for an answer. Both
//! are cells and one waker, because a channel and a timer for every request would cost more than
//! the request.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

/// A request to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) index: u64,
    pub(crate) intended: Duration,
    /// Time at which the generator took it up, if it then had to wait for a slot.
    pub(crate) taken: Option<Duration>,
}

/// The cells by which the rest of a thread talks to a slot that waits.
#[derive(Default)]
pub(crate) struct ConnectionSlot {
    /// The job to do.
    job: Cell<Option<Job>>,
    /// There will be nothing to do any more.
    closing: Cell<bool>,
    /// Time at which the request under way is given up.
    deadline: Cell<Option<Duration>>,
    /// Give it up.
    overdue: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl ConnectionSlot {
    /// Waits for `event`, but not beyond `deadline`.
    pub(crate) async fn until<T>(
        &self,
        deadline: Duration,
        event: impl Future<Output = T>,
    ) -> Option<T> {
        self.overdue.set(false);
        self.deadline.set(Some(deadline));
        let mut event = pin!(event);
        let result = poll_fn(|cx| {
            if let Poll::Ready(value) = event.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            if self.overdue.get() {
                return Poll::Ready(None);
            }
            self.listen(cx.waker());
            Poll::Pending
        })
        .await;
        self.deadline.set(None);
        result
    }

    /// Gives the job to the slot, which waits for one.
    pub(crate) fn assign(&self, job: Job) {
        self.job.set(Some(job));
        self.wake();
    }

    /// Sends the slot home, if it waits for a job.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.wake();
    }

    /// Ends the wait for an answer that is overdue.
    pub(crate) fn check(&self, now: Duration) {
        if self.deadline.get().is_some_and(|deadline| deadline <= now) {
            self.overdue.set(true);
            self.wake();
        }
    }

    fn listen(&self, waker: &Waker) {
        let mut mine = self.waker.borrow_mut();
        if !mine.as_ref().is_some_and(|mine| mine.will_wake(waker)) {
            *mine = Some(waker.clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The job that is put here, or `None` when there will be none.
    pub(crate) fn next(&self) -> impl Future<Output = Option<Job>> {
        poll_fn(|cx| {
            if let Some(job) = self.job.take() {
                return Poll::Ready(Some(job));
            }
            if self.closing.get() {
                return Poll::Ready(None);
            }
            self.listen(cx.waker());
            Poll::Pending
        })
    }
}
