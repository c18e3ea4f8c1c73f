//! The parts of a load, and their times: a load that takes long should say by itself what it waits for.

use std::time::{Duration, Instant};

/// A clock that is read at the end of each part.
#[derive(Debug)]
pub(crate) struct Phases {
    since: Instant,
    ended: Vec<(&'static str, Duration)>,
}

impl Phases {
    pub(crate) fn start() -> Self {
        Self { since: Instant::now(), ended: Vec::new() }
    }

    /// A part has ended, and the next begins.
    pub(crate) fn end(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.ended.push((phase, now - self.since));
        self.since = now;
    }

    /// Each part and its time.
    pub(crate) fn ended(&self) -> &[(&'static str, Duration)] {
        &self.ended
    }
}
