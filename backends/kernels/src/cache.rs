//! The size of the cache in which a kernel keeps what it reads again.
//!
//! All weights of a product are read once for each block of rows. Rows that fit in the cache of a core come from
//! there; more rows in a block mean that the weights, which mostly do not fit, come less often from further away.

use std::sync::OnceLock;

/// Bytes of a small second-level cache, where the system does not say.
const SMALL: usize = 256 << 10;
/// Bytes beyond which a cache is not one core's.
const MAX: usize = 4 << 20;
/// Where Linux states the size of a core's second-level cache, such as `1024K`.
const STATED: &str = "/sys/devices/system/cpu/cpu0/cache/index2/size";

/// Values of 32 bits that half of a core's second-level cache holds.
pub(crate) fn values() -> usize {
    static VALUES: OnceLock<usize> = OnceLock::new();
    *VALUES.get_or_init(|| {
        let stated = std::fs::read_to_string(STATED).ok().and_then(|text| bytes(&text));
        stated.unwrap_or(SMALL).clamp(SMALL, MAX) / 2 / size_of::<f32>()
    })
}

fn bytes(text: &str) -> Option<usize> {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => (text.strip_suffix('M')?, 1 << 20),
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_system_writes_them() {
        assert_eq!(bytes("1024K\n"), Some(1 << 20));
        assert_eq!(bytes("2M"), Some(2 << 20));
        for other in ["", "K", "12", "-1K", "99999999999999999999K", "18446744073709551615K"] {
            assert_eq!(bytes(other), None, "{other}");
        }
        assert!((SMALL / 8..=MAX / 8).contains(&values()));
    }
}
