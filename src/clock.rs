//! The one clock of the process, in the form that the routing core takes.

use forebay_routing::Time;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time since the process first asked.
pub fn now() -> Time {
    at(Instant::now())
}

/// `instant` on this clock; the origin for an instant before it.
pub fn at(instant: Instant) -> Time {
    Time::new(instant.saturating_duration_since(*ORIGIN))
}

/// The instant at this time.
pub fn instant(time: Time) -> Instant {
    let since_origin = time.since(Time::default());
    ORIGIN.checked_add(since_origin).unwrap_or_else(|| Instant::now() + FAR)
}

/// Later than anything is waited for.
const FAR: Duration = Duration::from_secs(24 * 3600);
