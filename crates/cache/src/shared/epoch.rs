//! The epoch under which answers lie in a shared store.
//!
//! A store may come back with what it had some time ago: from a backup, or as a replica that missed the last writes. If that
//! is the epoch from before a purge, all that was purged would be given again. So epochs rise: they begin with the time at
//! which they were made, in milliseconds, and of two that a proxy has seen, the higher one counts. Random bits below
//! tell apart those that several proxies make at once.
//!
//! The value is not sealed. One that can't be an epoch, or is of the far future, so that none would ever be higher, is
//! replaced as by a purge.

use std::time::Duration;

/// Random bits of an epoch.
const RANDOM: u32 = 20;
/// Time by which an epoch may be ahead of this proxy's clock. Proxies whose clocks differ by more share no answers.
const AHEAD: Duration = Duration::from_secs(3600);

/// A new epoch at this time of day, above the highest that is known.
pub(super) fn new(highest: u64, day: Duration, random: u64) -> u64 {
    let known = if is_plausible(highest, day) { highest } else { 0 };
    let random = random & ((1 << RANDOM) - 1);
    at(day).max(known.saturating_add(1)).saturating_add(random)
}

/// Whether an epoch may have been made until this time of day.
pub(super) fn is_plausible(epoch: u64, day: Duration) -> bool {
    (1..=at(day.saturating_add(AHEAD))).contains(&epoch)
}

/// The lowest epoch of a time of day.
fn at(day: Duration) -> u64 {
    let millis = u64::try_from(day.as_millis()).unwrap_or(u64::MAX);
    millis.min(u64::MAX >> RANDOM) << RANDOM
}

/// The epoch as the store has it.
pub(super) fn write(epoch: u64) -> String {
    format!("{epoch:016x}")
}

/// The epoch that a value of the store states, if it states one.
pub(super) fn parse(value: &[u8], day: Duration) -> Option<u64> {
    let is_digit = |byte: &u8| byte.is_ascii_hexdigit();
    let digits = std::str::from_utf8(value).ok();
    let digits = digits.filter(|digits| digits.len() == 16 && value.iter().all(is_digit))?;
    u64::from_str_radix(digits, 16).ok().filter(|epoch| is_plausible(*epoch, day))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(1_700_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn epochs_rise_with_time_and_above_what_is_known() {
        let one = new(0, DAY, 7);
        assert_eq!(one, (1_700_000_000_000 << 20) + 7);
        // At the same time, by a clock that was set back, and by one that is behind.
        for day in [DAY, DAY - SECOND, DAY - 3000 * SECOND] {
            for random in [0, 1, u64::MAX] {
                let next = new(one, day, random);
                assert!(next > one && is_plausible(next, day), "{next:x}");
            }
        }
        assert!(new(0, DAY + SECOND, 0) > new(0, DAY, u64::MAX));
        assert!(new(0, Duration::ZERO, 0) > 0 && new(0, Duration::MAX, u64::MAX) > 0);
    }

    #[test]
    fn one_from_the_far_future_stops_no_purge() {
        for known in [u64::MAX, new(0, DAY + 4000 * SECOND, 0)] {
            assert!(!is_plausible(known, DAY));
            assert_eq!(new(known, DAY, 0), new(0, DAY, 0));
        }
    }

    #[test]
    fn a_value_is_an_epoch_or_none() {
        let epoch = new(0, DAY, 12345);
        assert_eq!(parse(write(epoch).as_bytes(), DAY), Some(epoch));
        let text = write(epoch);
        for wrong in
            ["", "0", "0000000000000000", "ffffffffffffffff", "+123456789012345", &text[1..]]
        {
            assert_eq!(parse(wrong.as_bytes(), DAY), None, "{wrong}");
        }
        assert_eq!(parse(&[0xff; 16], DAY), None);
    }
}
