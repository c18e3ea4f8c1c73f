use crate::excerpt::brief;
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::de::DeValue;

/// A type that one TOML value can be read into.
///
/// Units live in the value: a bare number where a unit is due is refused.
pub trait FromToml: Sized {
    /// A description of the expected value, with an example where there is a unit.
    const EXPECTED: &'static str;

    /// Reads the value.
    ///
    /// # Errors
    /// A description of the value that was found instead, or `None` if the value's own description says it.
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

impl<T: FromToml> FromToml for Vec<T> {
    const EXPECTED: &'static str = "an array";
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Option<String>> {
        let items = value.as_array().ok_or(None)?;
        let read = |item: &toml::Spanned<DeValue<'_>>| {
            T::from_toml(item.get_ref()).map_err(|found| {
                let found = found.unwrap_or_else(|| describe(item.get_ref()));
                Some(format!("{found} where {} is due", T::EXPECTED))
            })
        };
        items.iter().map(read).collect()
    }
}

/// A description of a value, for "found …".
pub(crate) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("{:?}", brief(s)),
        DeValue::Integer(i) => format!("the number {}", brief(&i.to_string())),
        DeValue::Float(f) => format!("the number {}", brief(f.as_str())),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(d) => format!("the date {d}"),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
