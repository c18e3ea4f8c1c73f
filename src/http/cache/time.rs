//! The clocks of the cache.

use crate::clock;
use forebay_cache::record::Instants;
use std::time::{Duration, SystemTime};

/// Time on the cache's clock at the start of the process: answers may be older than that.
const BEFORE_START: Duration = Duration::from_secs(400 * 24 * 3600);

/// The time on a clock that only goes forward.
pub(super) fn now() -> Duration {
    BEFORE_START + Duration::from_nanos(clock::now().nanos())
}

/// The time on this clock, and the time of day.
pub(super) fn instants() -> Instants {
    let day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Instants { steady: now(), day }
}
