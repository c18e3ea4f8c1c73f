//! A timer that keeps its word to a few ten microseconds.
//!
//! tokio's timers tick at 1 ms and round up: at 10,000 requests a second the generator itself would
//! add more latency than the proxy that it measures. A timerfd in the same epoll set has the
//! kernel's own resolution, needs no thread of its own, and wakes the task that dispatches directly.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One precise timer; it belongs to the tokio runtime in which it was made.
#[derive(Debug)]
pub struct Timer {
    fd: AsyncFd<OwnedFd>,
}

impl Timer {
    /// A timer that is not running.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Deprecated because a type could hand out another descriptor later; `OwnedFd` never does.
        // The replacement is `unsafe` for that reason alone.
        #[allow(deprecated, reason = "sound for OwnedFd, and without unsafe code")]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self { fd })
    }

    /// Waits until `due`; returns at once, without a turn of the event loop, if that is past.
    ///
    /// # Errors
    /// Those of the kernel's timer calls; none is known for a valid descriptor.
    pub async fn wait_until(&mut self, due: Instant) -> io::Result<()> {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.arm(left)?;
            // The expiry need not be read: arming again resets the count, and every expiry is an
            // edge of its own.
            self.fd.readable().await?.clear_ready();
        }
    }

    #[allow(clippy::cast_possible_wrap, reason = "a span has far less than 2^63 seconds")]
    fn arm(&self, left: Duration) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    #[tokio::test]
    async fn it_never_fires_early_and_waits_for_nothing_that_is_past() {
        let mut timer = Timer::new().unwrap();
        let start = Instant::now();
        timer.wait_until(start).await.unwrap();
        for step in 1..=20 {
            let due = start + Duration::from_micros(300) * step;
            timer.wait_until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_does_not_cut_the_next_one_short() {
        let mut timer = Timer::new().unwrap();
        for _ in 0..20 {
            let soon = Instant::now() + Duration::from_micros(200);
            let given_up = tokio::select! {
                biased;
                () = tokio::task::yield_now() => true,
                _ = timer.wait_until(soon) => false,
            };
            let due = Instant::now() + Duration::from_millis(1);
            timer.wait_until(due).await.unwrap();
            assert!(Instant::now() >= due, "given up: {given_up}");
        }
    }
}
