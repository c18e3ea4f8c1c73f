use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

/// A type that one TOML value can be read into.
///
/// Units live in the value: a bare number where a unit is due is refused.
pub trait FromToml: Sized {
    /// What is expected, in words, with an example where there is a unit.
    const EXPECTED: &'static str;

    /// Reads the value.
    ///
    /// # Errors
    /// What was found instead, or `None` if the value's own description says it.
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>>;
}

/// Reads types from TOML that have a form as text: strings in a file, as in a flag.
///
/// `from_text! { Type = "what is expected, in words"; … }`
#[macro_export]
macro_rules! from_text {
    ($($type:ty = $expected:expr;)*) => {$(
        impl $crate::FromToml for $type {
            const EXPECTED: &'static str = $expected;
            fn from_toml(value: &$crate::DeValue<'_>) -> Result<Self, Option<String>> {
                value.as_str().and_then(|text| text.parse().ok()).ok_or(None)
            }
        }
    )*};
}

impl FromToml for String {
    const EXPECTED: &'static str = "a string";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        value.as_str().map(str::to_owned).ok_or(None)
    }
}

impl FromToml for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        value.as_bool().ok_or(None)
    }
}

impl FromToml for u64 {
    const EXPECTED: &'static str = "a whole number of 0 or more";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let integer = value.as_integer().ok_or(None)?;
        Self::from_str_radix(integer.as_str(), integer.radix()).map_err(|_| None)
    }
}

macro_rules! narrower {
    ($($t:ty),*) => {$(
        impl FromToml for $t {
            const EXPECTED: &'static str = u64::EXPECTED;
            fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
                u64::from_toml(value)?.try_into().map_err(|_| None)
            }
        }
    )*};
}
narrower!(u16, u32, usize);

impl FromToml for f64 {
    const EXPECTED: &'static str = "a number";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let text = match value {
            DeValue::Float(float) => float.as_str(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
            _ => return Err(None),
        };
        text.parse().ok().filter(|n: &Self| n.is_finite()).ok_or(None)
    }
}

impl FromToml for PathBuf {
    const EXPECTED: &'static str = "a path";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        value.as_str().filter(|s| !s.is_empty()).map(Self::from).ok_or(None)
    }
}

impl FromToml for SocketAddr {
    const EXPECTED: &'static str = "an address and a port such as \"127.0.0.1:8080\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        value.as_str().and_then(|s| s.parse().ok()).ok_or(None)
    }
}

/// Most that a duration may be: longer ones are typing errors, and overflow clocks.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl FromToml for Duration {
    const EXPECTED: &'static str = "a duration such as \"250ms\", \"10s\" or \"5m\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let text = value.as_str().ok_or(None)?;
        let seconds = with_unit(
            text,
            &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)],
        )
        .ok_or(None)?;
        Self::try_from_secs_f64(seconds).ok().filter(|d| *d <= LONGEST).ok_or(None)
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromToml for ByteSize {
    const EXPECTED: &'static str = "a size such as \"64KiB\" or \"16MiB\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        const UNITS: &[(&str, f64)] = &[
            ("KiB", 1024.0),
            ("MiB", 1024.0 * 1024.0),
            ("GiB", 1024.0 * 1024.0 * 1024.0),
            ("kB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("B", 1.0),
        ];
        /// A tebibyte: exact as a float, and beyond any body, queue or cache.
        const MOST: f64 = 1_099_511_627_776.0;
        let text = value.as_str().ok_or(None)?;
        let bytes = with_unit(text, UNITS).filter(|bytes| *bytes <= MOST).ok_or(None)?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(size, _)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((size, unit)) => write!(f, "\"{}{unit}\"", self.0 / size),
            None => write!(f, "\"{}B\"", self.0),
        }
    }
}

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct ByteRate(pub f64);

impl FromToml for ByteRate {
    const EXPECTED: &'static str = "a rate such as \"16KiB/s\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        const UNITS: &[(&str, f64)] = &[
            ("KiB/s", 1024.0),
            ("MiB/s", 1024.0 * 1024.0),
            ("kB/s", 1e3),
            ("MB/s", 1e6),
            ("B/s", 1.0),
        ];
        with_unit(value.as_str().ok_or(None)?, UNITS).map(Self).ok_or(None)
    }
}

/// Events per second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

impl FromToml for Rate {
    const EXPECTED: &'static str = "a rate such as \"500/s\" or \"30/m\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let text = value.as_str().ok_or(None)?;
        with_unit(text, &[("/s", 1.0), ("/m", 1.0 / 60.0), ("/h", 1.0 / 3600.0)])
            .map(Self)
            .ok_or(None)
    }
}

/// A share of a whole, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

impl FromToml for Ratio {
    const EXPECTED: &'static str = "a share from \"0%\" to \"100%\"";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let percent = with_unit(value.as_str().ok_or(None)?, &[("%", 1.0)]).ok_or(None)?;
        if percent <= 100.0 { Ok(Self(percent / 100.0)) } else { Err(None) }
    }
}

impl<T: FromToml> FromToml for Vec<T> {
    const EXPECTED: &'static str = "an array";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let items = value.as_array().ok_or(None)?;
        let read = |item: &toml::Spanned<DeValue<'_>>| {
            T::from_toml(item.get_ref()).map_err(|found| {
                let found = found.unwrap_or_else(|| crate::document::describe(item.get_ref()));
                Some(format!("{found} where {} is due", T::EXPECTED))
            })
        };
        items.iter().map(read).collect()
    }
}

/// `"12.5ms"` -> 12.5 x the factor of `ms`. The unit is due; the number is finite and not negative.
fn with_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    let number: f64 = number.parse().ok()?;
    Some(number * factor).filter(|n| n.is_finite())
}
