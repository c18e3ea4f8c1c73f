//! The forms in which values are written: units, bounds and choices.

mod choice;
mod list;
mod place;
mod shown;
mod text;

pub use choice::{OneOf, SomeOf, one_of, some_of};
pub use list::{Each, above_zero, each, list, list_within, required};
pub use place::{Nested, PathInFile, SectionName, nested, path_in_file, section_name};
pub use shown::Shown;
pub use text::{AddressOrOff, Text, address_or_off, text};

use crate::section::Form;
use crate::table::Table;
use crate::units::{ByteRate, ByteSize, Ratio};
use crate::value::FromToml;
use std::fmt::Display;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Any value of the type.
pub struct Any<T>(PhantomData<T>);

/// Any value of the type.
pub const fn any<T>() -> Any<T> {
    Any(PhantomData)
}

impl<T: FromToml + Shown> Form<T> for Any<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: T) -> T {
        table.or(key, default)
    }

    fn show(&self, value: &T) -> Option<String> {
        Some(value.shown())
    }

    fn expected(&self) -> String {
        T::EXPECTED.to_owned()
    }

    fn kind(&self) -> &'static str {
        T::KIND
    }
}

/// A number within bounds.
pub struct Within<T>(RangeInclusive<T>);

/// A number within bounds.
pub const fn within<T>(range: RangeInclusive<T>) -> Within<T> {
    Within(range)
}

impl<T: FromToml + PartialOrd + Display + Clone + Shown> Form<T> for Within<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: T) -> T {
        table.within(key, self.0.clone(), default)
    }

    fn show(&self, value: &T) -> Option<String> {
        Some(value.shown())
    }

    fn expected(&self) -> String {
        format!("{} to {}", self.0.start(), self.0.end())
    }

    fn kind(&self) -> &'static str {
        T::KIND
    }
}

/// A number of another form than the program's: `ByteSize` for bytes, `Ratio` for a share.
pub struct As<W>(PhantomData<W>);

/// A number of bytes, written with a unit.
pub const fn bytes() -> As<ByteSize> {
    As(PhantomData)
}

/// A number of bytes per second, written with a unit.
pub const fn byte_rate() -> As<ByteRate> {
    As(PhantomData)
}

/// A multiple of a whole, written in per cent; it may be more than all.
pub const fn ratio() -> As<Ratio> {
    As(PhantomData)
}

impl Form<u64> for As<ByteSize> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: u64) -> u64 {
        table.or(key, ByteSize(default)).0
    }

    fn show(&self, value: &u64) -> Option<String> {
        Some(ByteSize(*value).shown())
    }

    fn expected(&self) -> String {
        ByteSize::EXPECTED.to_owned()
    }

    fn kind(&self) -> &'static str {
        ByteSize::KIND
    }
}

impl Form<usize> for As<ByteSize> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: usize) -> usize {
        let size = table.or(key, ByteSize(default as u64)).0;
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    fn show(&self, value: &usize) -> Option<String> {
        Some(ByteSize(*value as u64).shown())
    }

    fn expected(&self) -> String {
        ByteSize::EXPECTED.to_owned()
    }

    fn kind(&self) -> &'static str {
        ByteSize::KIND
    }
}

impl Form<f64> for As<ByteRate> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: f64) -> f64 {
        table.or(key, ByteRate(default)).0
    }

    fn show(&self, value: &f64) -> Option<String> {
        Some(ByteRate(*value).shown())
    }

    fn expected(&self) -> String {
        ByteRate::EXPECTED.to_owned()
    }

    fn kind(&self) -> &'static str {
        ByteRate::KIND
    }
}

impl Form<f64> for As<Ratio> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: f64) -> f64 {
        table.or(key, Ratio(default)).0
    }

    fn show(&self, value: &f64) -> Option<String> {
        Some(Ratio(*value).shown())
    }

    fn expected(&self) -> String {
        Ratio::EXPECTED.to_owned()
    }

    fn kind(&self) -> &'static str {
        Ratio::KIND
    }
}

/// A part of a whole, written in per cent.
pub struct Share;

/// A part of a whole, written in per cent.
pub const fn share() -> Share {
    Share
}

impl Form<f64> for Share {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: f64) -> f64 {
        let Some((Ratio(share), span)) = table.spanned::<Ratio>(key) else { return default };
        if share > 1.0 {
            table.note(span, key, format!("expected at most 100%, found {}%", share * 100.0));
        }
        share
    }

    fn show(&self, value: &f64) -> Option<String> {
        Some(Ratio(*value).shown())
    }

    fn expected(&self) -> String {
        format!("{}, at most 100%", Ratio::EXPECTED)
    }

    fn kind(&self) -> &'static str {
        Ratio::KIND
    }
}

/// A duration of more than nothing.
pub struct Positive;

/// A duration of more than nothing.
pub const fn positive() -> Positive {
    Positive
}

impl Form<Duration> for Positive {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Duration) -> Duration {
        match table.spanned::<Duration>(key) {
            Some((Duration::ZERO, span)) => {
                table.note(span, key, "expected more than 0, found 0");
                default
            }
            Some((value, _)) => value,
            None => default,
        }
    }

    fn show(&self, value: &Duration) -> Option<String> {
        Some(value.shown())
    }

    fn expected(&self) -> String {
        format!("{}, more than 0", Duration::EXPECTED)
    }

    fn kind(&self) -> &'static str {
        Duration::KIND
    }
}

/// Time between two of something that goes on; less than a millisecond is a flood.
pub struct Interval;

/// Time between two of something that goes on; less than a millisecond is a flood.
pub const fn interval() -> Interval {
    Interval
}

impl Form<Duration> for Interval {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Duration) -> Duration {
        let Some((value, span)) = table.spanned::<Duration>(key) else { return default };
        if value < Duration::from_millis(1) {
            table.note(span, key, format!("expected 1ms or more, found {value:?}"));
            return default;
        }
        value
    }

    fn show(&self, value: &Duration) -> Option<String> {
        Some(value.shown())
    }

    fn expected(&self) -> String {
        format!("{}, 1ms or more", Duration::EXPECTED)
    }

    fn kind(&self) -> &'static str {
        Duration::KIND
    }
}

/// A duration of no less than another.
pub struct AtLeast(Duration);

/// A duration of no less than `least`.
pub const fn at_least(least: Duration) -> AtLeast {
    AtLeast(least)
}

impl Form<Duration> for AtLeast {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Duration) -> Duration {
        let Some((value, span)) = table.spanned::<Duration>(key) else { return default };
        if value < self.0 {
            table.note(span, key, format!("expected {:?} or more, found {value:?}", self.0));
        }
        value.max(self.0)
    }

    fn show(&self, value: &Duration) -> Option<String> {
        Some(value.shown())
    }

    fn expected(&self) -> String {
        format!("{}, {:?} or more", Duration::EXPECTED, self.0)
    }

    fn kind(&self) -> &'static str {
        Duration::KIND
    }
}

/// A number of bytes within bounds.
pub struct BytesWithin(RangeInclusive<u32>);

/// A number of bytes, written with a unit, within bounds.
pub const fn bytes_within(range: RangeInclusive<u32>) -> BytesWithin {
    BytesWithin(range)
}

impl Form<u32> for BytesWithin {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: u32) -> u32 {
        let Some((size, span)) = table.spanned::<ByteSize>(key) else { return default };
        let value = u32::try_from(size.0).ok().filter(|value| self.0.contains(value));
        if value.is_none() {
            table.note(span, key, format!("expected {}, found {size}", self.expected()));
        }
        value.unwrap_or(default)
    }

    fn show(&self, value: &u32) -> Option<String> {
        Some(ByteSize((*value).into()).shown())
    }

    fn expected(&self) -> String {
        let [least, most] = [self.0.start(), self.0.end()].map(|bound| ByteSize((*bound).into()));
        format!("{least} to {most}")
    }

    fn kind(&self) -> &'static str {
        ByteSize::KIND
    }
}

/// A value that may be left out.
pub struct Optional<F>(F);

/// A value of the form `form`, or none.
pub const fn optional<F>(form: F) -> Optional<F> {
    Optional(form)
}

impl<T: Default, F: Form<T>> Form<Option<T>> for Optional<F> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Option<T>) -> Option<T> {
        if !table.has(key) {
            // So that the key is known to be one.
            let _ = self.0.read(table, key, T::default());
            return default;
        }
        Some(self.0.read(table, key, T::default()))
    }

    fn show(&self, value: &Option<T>) -> Option<String> {
        value.as_ref().and_then(|value| self.0.show(value))
    }

    fn expected(&self) -> String {
        self.0.expected()
    }

    fn is_list(&self) -> bool {
        self.0.is_list()
    }

    fn kind(&self) -> &'static str {
        self.0.kind()
    }
}

/// A form whose values have a word of their own in the help of a flag.
pub struct Called<F>(&'static str, F);

/// The form `form`, whose values the help of a flag calls `word`.
pub const fn called<F>(word: &'static str, form: F) -> Called<F> {
    Called(word, form)
}

impl<T, F: Form<T>> Form<T> for Called<F> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: T) -> T {
        self.1.read(table, key, default)
    }

    fn show(&self, value: &T) -> Option<String> {
        self.1.show(value)
    }

    fn expected(&self) -> String {
        self.1.expected()
    }

    fn is_list(&self) -> bool {
        self.1.is_list()
    }

    fn is_required(&self) -> bool {
        self.1.is_required()
    }

    fn kind(&self) -> &'static str {
        self.0
    }
}

#[cfg(test)]
mod tests;
