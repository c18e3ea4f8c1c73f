//! Times as an operator reads them.

use std::time::Duration;

pub(super) fn millis(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1e3)
}

/// To microseconds: what is beyond that is noise on a page for people.
pub(super) fn round(millis: f64) -> f64 {
    (millis * 1e3).round() / 1e3
}

/// Three digits and a unit.
pub(super) fn short(millis: f64) -> String {
    match millis {
        ms if ms >= 100_000.0 || (ms >= 1000.0 && ms % 1000.0 == 0.0) => {
            format!("{:.0} s", ms / 1e3)
        }
        ms if ms >= 1000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

/// The two largest units.
pub(super) fn long(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let shown: Vec<_> = [0.0, 9.999, 45.67, 999.4, 1000.0, 250_000.0].map(short).into();
        assert_eq!(shown, ["0.00 ms", "10.00 ms", "45.7 ms", "999 ms", "1 s", "250 s"]);
        let shown: Vec<_> = [59, 61, 7320, 180_000].map(long).into();
        assert_eq!(shown, ["59 s", "1 min 1 s", "2 h 2 min", "2 d 2 h"]);
    }
}
