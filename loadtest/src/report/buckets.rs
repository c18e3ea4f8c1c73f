//! A histogram in a report, from which its reader can compute any quantile again.
//!
//! Quantiles of two runs can't be averaged, nor can their uncertainty be had from them; the counts
//! below can do both. The form is text that one can read, `lowest:count` in nanoseconds, because the
//! binary form of `HdrHistogram` lets a damaged file ask its reader for gigabytes.

use hdrhistogram::{Counter, Histogram};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::Write as _;

/// Maximum number of buckets of one histogram: what three digits need from a nanosecond to beyond an hour.
pub const MAX_BUCKETS: usize = 64 * 1024;
/// Maximum value: a day, in nanoseconds.
const MAX_VALUE: u64 = 86_400_000_000_000;

/// The filled buckets of a histogram: lowest value in nanoseconds and count, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buckets(Vec<(u64, u64)>);

/// Why a text is no list of buckets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected buckets such as \"204800:12 206848:3\", ascending, found \"{0}\"")]
pub struct BucketsError(String);

impl Buckets {
    /// The filled buckets of `histogram`, whose values are nanoseconds.
    pub fn of<C: Counter>(histogram: &Histogram<C>) -> Self {
        let bucket = |value: u64, count: C| (histogram.lowest_equivalent(value), count.as_u64());
        let recorded = histogram.iter_recorded();
        Self(recorded.map(|at| bucket(at.value_iterated_to(), at.count_at_value())).collect())
    }

    /// The filled buckets, ascending: lowest value in nanoseconds and count.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The histogram again, with so many significant digits (1 to 5; more count as 5).
    pub fn histogram(&self, digits: u8) -> Histogram<u64> {
        let made = Histogram::new(digits.clamp(1, 5));
        let mut histogram = made.unwrap_or_else(|_| unreachable!("1 to 5 digits are allowed"));
        for (value, count) in self.iter() {
            // It grows to any value up to the greatest one.
            let _ = histogram.record_n(value, count);
        }
        histogram
    }

    fn parse(text: &str) -> Option<Result<Self, &str>> {
        let mut buckets: Vec<(u64, u64)> = Vec::new();
        for word in text.split_ascii_whitespace() {
            let number = |text: &str| text.parse::<u64>().ok();
            let pair = word.split_once(':').and_then(|(a, b)| Some((number(a)?, number(b)?)));
            let fits = |(value, count): &(u64, u64)| {
                *value <= MAX_VALUE
                    && (1..=u64::from(u32::MAX) * 1024).contains(count)
                    && buckets.last().is_none_or(|(last, _)| last < value)
            };
            match pair.filter(fits) {
                Some(pair) if buckets.len() < MAX_BUCKETS => buckets.push(pair),
                Some(_) => return None,
                None => return Some(Err(word)),
            }
        }
        Some(Ok(Self(buckets)))
    }
}

impl std::str::FromStr for Buckets {
    type Err = BucketsError;

    fn from_str(text: &str) -> Result<Self, BucketsError> {
        match Self::parse(text) {
            Some(Ok(buckets)) => Ok(buckets),
            Some(Err(word)) => Err(BucketsError(word.chars().take(40).collect())),
            None => Err(BucketsError(format!("more than {MAX_BUCKETS}"))),
        }
    }
}

impl Serialize for Buckets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(self.0.len() * 12);
        for (i, (value, count)) in self.iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            // Writing to a string does not fail.
            let _ = write!(text, "{gap}{value}:{count}");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Buckets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    #[test]
    fn a_histogram_comes_back_from_paper() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut histogram = Histogram::<u32>::new(2).unwrap();
        for _ in 0..10_000 {
            histogram.record(rng.u64(1..3_600_000_000_000)).unwrap();
        }
        let buckets = Buckets::of(&histogram);
        let json = serde_json::to_string(&buckets).unwrap();
        let again: Buckets = serde_json::from_str(&json).unwrap();
        assert_eq!(again, buckets);
        let back = again.histogram(2);
        for quantile in [0.0, 0.5, 0.99, 1.0] {
            let (a, b) = (histogram.value_at_quantile(quantile), back.value_at_quantile(quantile));
            assert_eq!(a, b, "{quantile}, seed 11");
        }
        assert_eq!(back.len(), 10_000);
    }

    #[test]
    fn a_damaged_list_is_refused() {
        for text in
            ["5", "5:", "5:0", "5:1 5:1", "6:1 5:1", "-5:1", "5:1,6:1", "99999999999999999:1"]
        {
            assert!(text.parse::<Buckets>().is_err(), "{text}");
        }
        assert!("".parse::<Buckets>().unwrap().is_empty());
    }
}
