//! The forms in which values are written: units, bounds and choices.

mod list;
mod shown;

pub use list::{above_zero, list, list_within, required};
pub use shown::Shown;

use crate::diagnostic::Span;
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

    fn kind(&self) -> &'static str {
        Duration::KIND
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

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn is_list(&self) -> bool {
        self.0.is_list()
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

    fn kind(&self) -> &'static str {
        self.0
    }

    fn is_list(&self) -> bool {
        self.1.is_list()
    }

    fn is_required(&self) -> bool {
        self.1.is_required()
    }
}

/// One of these, by its name.
pub struct OneOf<T: 'static>(&'static [(&'static str, T)]);

/// One of `names`.
pub const fn one_of<T>(names: &'static [(&'static str, T)]) -> OneOf<T> {
    OneOf(names)
}

impl<T: Copy + PartialEq> Form<T> for OneOf<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: T) -> T {
        table.choice(key, self.0, default)
    }

    fn show(&self, value: &T) -> Option<String> {
        let found = self.0.iter().find(|(_, known)| known == value);
        found.map(|(name, _)| format!("{name:?}"))
    }

    fn kind(&self) -> &'static str {
        "NAME"
    }
}

/// A list of some of these, each by its name.
pub struct SomeOf<T: 'static>(&'static [(&'static str, T)]);

/// A list of some of `names`.
pub const fn some_of<T>(names: &'static [(&'static str, T)]) -> SomeOf<T> {
    SomeOf(names)
}

impl<T: Copy + PartialEq> Form<Vec<T>> for SomeOf<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Vec<T>) -> Vec<T> {
        let Some((names, _)) = table.items::<String>(key) else { return default };
        let known = |(name, span): (String, Span)| {
            let found = self.0.iter().find(|(known, _)| *known == name);
            if found.is_none() {
                let names: Vec<_> = self.0.iter().map(|(name, _)| format!("{name:?}")).collect();
                let expected = format!("expected some of {}", names.join(", "));
                table.note(span, key, format!("{expected}, found {name:?}"));
            }
            found.map(|(_, value)| *value)
        };
        names.into_iter().flatten().filter_map(known).collect()
    }

    fn show(&self, value: &Vec<T>) -> Option<String> {
        let name = |value: &T| {
            let found = self.0.iter().find(|(_, known)| known == value);
            found.map(|(name, _)| format!("{name:?}"))
        };
        let names: Vec<_> = value.iter().filter_map(name).collect();
        Some(format!("[{}]", names.join(", ")))
    }

    fn kind(&self) -> &'static str {
        "NAME"
    }

    fn is_list(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::document::Document;
    use crate::section::Section;

    crate::section! {
        /// What is tested.
        struct Tested {
            /// A number.
            number: usize = 7, within(1..=9);
            /// A share,
            /// of two lines.
            part: f64 = 0.1, share();
            /// A time. Default: none.
            time: Option<Duration> = None, optional(interval()), shown "\"5s\"";
            /// Bytes.
            size: u64 = 3 << 20, bytes();
            /// Some.
            some: Vec<u8> = vec![1, 3], some_of(&[("one", 1), ("two", 2), ("three", 3)]);
        }
    }

    fn read(text: &str) -> Result<Tested, String> {
        let document = Document::parse(text);
        let tested = Tested::read(&document.root());
        document.finish().map(|()| tested).map_err(|found| found.render("f"))
    }

    #[test]
    fn a_section_is_read_with_its_bounds_and_defaults() {
        assert_eq!(read("").unwrap(), Tested::default());
        let stated =
            read("number = 9\npart = \"50%\"\ntime = \"1s\"\nsize = \"1KiB\"\nsome = [\"two\"]\n");
        let time = Some(Duration::from_secs(1));
        let expected = Tested { number: 9, part: 0.5, time, size: 1024, some: vec![2] };
        assert_eq!(stated.unwrap(), expected);
        for (text, expected) in [
            ("number = 10", "number: expected 1 to 9, found 10"),
            ("part = \"101%\"", "part: expected a share"),
            ("time = \"1us\"", "time: expected 1ms or more"),
            ("some = [\"four\"]", "some: expected some of \"one\", \"two\", \"three\""),
            ("numbers = 1", "did you mean \"number\""),
            ("tim = \"1s\"", "did you mean \"time\""),
        ] {
            let words = read(text).unwrap_err();
            assert!(words.contains(expected), "{expected}\n--- not in\n{words}");
        }
    }

    #[test]
    fn the_reference_of_a_section_is_its_declaration_and_can_be_read() {
        let text = Tested::reference("[tested]");
        let expected = "\
# What is tested.
[tested]
# A number.
number = 7

# A share,
# of two lines.
part = \"10%\"

# A time. Default: none.
time = \"5s\"

# Bytes.
size = \"3MiB\"

# Some.
some = [\"one\", \"three\"]
";
        assert_eq!(text, expected);
        let body = text.split_once("[tested]\n").unwrap().1;
        let stated = read(body).unwrap();
        assert_eq!(Tested { time: None, ..stated }, Tested::default());
    }

    #[test]
    fn durations_are_shown_in_their_largest_unit() {
        let shown = |nanos| Duration::from_nanos(nanos).shown();
        let all = [0, 1500, 500_000, 1_000_000, 90_000_000_000, 7_200_000_000_000].map(shown);
        assert_eq!(all, ["\"0s\"", "\"1500ns\"", "\"500us\"", "\"1ms\"", "\"90s\"", "\"2h\""]);
    }
}
