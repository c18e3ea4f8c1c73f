//! The header `grpc-timeout`: at most eight digits and a unit.

use std::time::Duration;

/// Largest number that eight digits have.
const MAX_AMOUNT: u128 = 99_999_999;

/// Reads `grpc-timeout`. `None`: not of its form.
pub fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Writes `grpc-timeout`: in the finest unit that has room for it, rounded up.
pub fn format_timeout(timeout: Duration) -> String {
    let nanos = timeout.as_nanos();
    for (unit, size) in [
        ("n", 1),
        ("u", 1_000),
        ("m", 1_000_000),
        ("S", 1_000_000_000),
        ("M", 60_000_000_000),
        ("H", 3_600_000_000_000),
    ] {
        let number = nanos.div_ceil(size);
        if number <= MAX_AMOUNT {
            return format!("{number}{unit}");
        }
    }
    format!("{MAX_AMOUNT}H")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("250m", Duration::from_millis(250)),
            ("99999999u", Duration::from_micros(99_999_999)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(parse_timeout(text), Some(expected), "{text}");
        }
        for bad in ["", "S", "1", "1s", "123456789m", "-1S", "1.5S", " 1S", "1é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_never_less_and_reads_back() {
        for (timeout, expected) in [
            (Duration::from_nanos(1), "1n"),
            (Duration::from_millis(100), "100000u"),
            (Duration::from_nanos(100_000_001), "100001u"),
            (Duration::from_secs(30), "30000000u"),
            (Duration::from_secs(24 * 3600), "86400000m"),
            (Duration::MAX, "99999999H"),
        ] {
            let text = format_timeout(timeout);
            assert_eq!(text, expected);
            assert!(timeout == Duration::MAX || parse_timeout(&text) >= Some(timeout));
        }
    }
}
