//! The line that moves while a run goes on: how far, how fast, how slow, how broken.
//!
//! It goes to standard error and only to a terminal, so that pipes and logs stay clean.

use crate::report::record::Interval;
use crate::units::{self, Rate, seconds};
use std::io::Write as _;
use std::time::Duration;

/// Interval at which the line is updated.
pub(super) const PERIOD: Duration = Duration::from_millis(500);
const BAR: usize = 24;

/// Draws the progress line.
#[derive(Debug)]
pub(super) struct Progress {
    warm_up: Duration,
    length: Duration,
    errors: u64,
}

impl Progress {
    /// For a run of this length, warm-up included.
    pub(super) fn new(warm_up: Duration, length: Duration) -> Self {
        Self { warm_up, length, errors: 0 }
    }

    /// Shows what has been done since the last time.
    pub(super) fn show(&mut self, elapsed: Duration, since_last: &Interval, period: Duration) {
        self.errors += since_last.errors;
        let text = self.line(elapsed, since_last, period);
        // A terminal that is gone is no reason to end the measurement.
        let _ = write!(std::io::stderr(), "\r{text}\x1b[K");
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }

    fn line(&self, elapsed: Duration, last: &Interval, period: Duration) -> String {
        let share = elapsed.as_secs_f64() / self.length.as_secs_f64().max(1e-9);
        let filled = units::whole(share.clamp(0.0, 1.0) * units::float(BAR as u64));
        let filled = usize::try_from(filled).unwrap_or(BAR).min(BAR);
        let bar = format!("{}{}", "━".repeat(filled), "─".repeat(BAR - filled));
        let at = elapsed.min(self.length).as_secs();
        let phase = match elapsed {
            elapsed if elapsed < self.warm_up => " warm-up",
            elapsed if elapsed > self.length => " waiting for the last answers",
            _ => "",
        };
        let rate = units::float(last.ok + last.errors) / period.as_secs_f64().max(1e-9);
        let (p50, p99) = (seconds(last.quantile(0.5)), seconds(last.quantile(0.99)));
        let errors = units::count(self.errors);
        format!(
            "{bar} {at}/{} s{phase}  {}  p50 {p50}  p99 {p99}  errors {errors}",
            self.length.as_secs(),
            Rate(rate)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_and_how_fast() {
        let mut progress = Progress::new(Duration::from_secs(2), Duration::from_secs(10));
        progress.errors = 3;
        let interval = Interval { ok: 240, errors: 10, ..Interval::default() };
        let line = progress.line(Duration::from_secs(5), &interval, Duration::from_millis(500));
        assert!(line.starts_with("━━━━━━━━━━━━────────────"), "{line}");
        assert!(line.contains("5/10 s  500/s"), "{line}");
        assert!(line.ends_with("errors 3"), "{line}");
        let line = progress.line(Duration::from_secs(1), &interval, Duration::from_millis(500));
        assert!(line.contains("warm-up"), "{line}");
        let line = progress.line(Duration::from_secs(11), &interval, Duration::from_millis(500));
        assert!(line.contains("waiting for the last answers"), "{line}");
    }
}
