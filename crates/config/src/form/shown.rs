//! Values as they stand in a file.

use crate::units::{ByteRate, ByteSize, Rate, Ratio};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A value that can be written into a file.
pub trait Shown {
    /// A word for such values in the help of a flag.
    const KIND: &'static str;

    /// As it stands there.
    fn shown(&self) -> String;
}

impl Shown for Duration {
    const KIND: &'static str = "TIME";

    fn shown(&self) -> String {
        /// Nanoseconds of each unit.
        const UNITS: [(&str, u128); 5] = [
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1_000),
        ];
        let nanos = self.as_nanos();
        if nanos == 0 {
            return "\"0s\"".to_owned();
        }
        match UNITS.iter().find(|(_, unit)| nanos.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("\"{}{name}\"", nanos / unit),
            None => format!("\"{nanos}ns\""),
        }
    }
}

impl Shown for ByteSize {
    const KIND: &'static str = "SIZE";

    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for ByteRate {
    const KIND: &'static str = "RATE";

    fn shown(&self) -> String {
        let units = [(1024.0 * 1024.0, "MiB"), (1024.0, "KiB")];
        match units.iter().find(|(size, _)| self.0 >= *size && self.0 % size == 0.0) {
            Some((size, unit)) => format!("\"{}{unit}/s\"", self.0 / size),
            None => format!("\"{}B/s\"", self.0),
        }
    }
}

impl Shown for Ratio {
    const KIND: &'static str = "SHARE";

    fn shown(&self) -> String {
        // Without the digits that a binary fraction adds.
        format!("\"{}%\"", (self.0 * 1e6).round() / 1e4)
    }
}

impl Shown for Rate {
    const KIND: &'static str = "RATE";

    fn shown(&self) -> String {
        format!("\"{}/s\"", self.0)
    }
}

impl Shown for String {
    const KIND: &'static str = "NAME";

    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

macro_rules! shown_as_it_is {
    ($($type:ty = $kind:literal),*) => {$(
        impl Shown for $type {
            const KIND: &'static str = $kind;

            fn shown(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
shown_as_it_is!(bool = "BOOL", u16 = "N", u32 = "N", u64 = "N", usize = "N", f64 = "X");

impl Shown for SocketAddr {
    const KIND: &'static str = "ADDR";

    fn shown(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Shown for PathBuf {
    const KIND: &'static str = "PATH";

    fn shown(&self) -> String {
        format!("{:?}", self.display().to_string())
    }
}
