//! Lists, and keys that must be there.

use super::Shown;
use crate::section::Form;
use crate::table::Table;
use crate::value::FromToml;
use std::fmt::Display;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

/// Any number of values, in their order.
pub struct List<T>(PhantomData<T>);

/// Any number of values, in their order.
pub const fn list<T>() -> List<T> {
    List(PhantomData)
}

impl<T: FromToml + Shown> Form<Vec<T>> for List<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Vec<T>) -> Vec<T> {
        let Some((items, _)) = table.items::<T>(key) else { return default };
        items.into_iter().flatten().map(|(item, _)| item).collect()
    }

    fn show(&self, values: &Vec<T>) -> Option<String> {
        let shown: Vec<_> = values.iter().map(Shown::shown).collect();
        Some(format!("[{}]", shown.join(", ")))
    }

    fn expected(&self) -> String {
        format!("a list, each {}", T::EXPECTED)
    }

    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn is_list(&self) -> bool {
        true
    }
}

/// Any number of numbers within bounds.
pub struct ListWithin<T>(RangeInclusive<T>);

/// Any number of numbers within bounds.
pub const fn list_within<T>(range: RangeInclusive<T>) -> ListWithin<T> {
    ListWithin(range)
}

impl<T: FromToml + Shown + PartialOrd + Display> Form<Vec<T>> for ListWithin<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Vec<T>) -> Vec<T> {
        let Some((items, _)) = table.items::<T>(key) else { return default };
        let checked = items.into_iter().flatten().filter_map(|(item, span)| {
            if self.0.contains(&item) {
                return Some(item);
            }
            let (min, max) = (self.0.start(), self.0.end());
            table.note(span, key, format!("expected {min} to {max}, found {item}"));
            None
        });
        checked.collect()
    }

    fn show(&self, values: &Vec<T>) -> Option<String> {
        list().show(values)
    }

    fn expected(&self) -> String {
        format!("a list, each {} to {}", self.0.start(), self.0.end())
    }

    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn is_list(&self) -> bool {
        true
    }
}

/// Any number of values that a check lets pass.
pub struct Each<T> {
    expected: &'static str,
    fits: fn(&T) -> bool,
}

/// Any number of values for which `fits` is true; `expected` says in words what each is.
pub const fn each<T>(expected: &'static str, fits: fn(&T) -> bool) -> Each<T> {
    Each { expected, fits }
}

impl<T: FromToml + Shown> Form<Vec<T>> for Each<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Vec<T>) -> Vec<T> {
        let Some((items, _)) = table.items::<T>(key) else { return default };
        for (item, span) in items.iter().flatten().filter(|(item, _)| !(self.fits)(item)) {
            let message = format!("expected {}, found {}", self.expected, item.shown());
            table.note(span.clone(), key, message);
        }
        items.into_iter().flatten().map(|(item, _)| item).collect()
    }

    fn show(&self, values: &Vec<T>) -> Option<String> {
        list().show(values)
    }

    fn expected(&self) -> String {
        format!("a list, each {}", self.expected)
    }

    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn is_list(&self) -> bool {
        true
    }
}

/// A value that must be there.
pub struct Required<F>(F);

/// A value of the form `form` that must be there: the default of its key only stands for one that is missing,
/// which is noted. The key needs an example (`shown`).
pub const fn required<F>(form: F) -> Required<F> {
    Required(form)
}

impl<T, F: Form<T>> Form<T> for Required<F> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: T) -> T {
        if !table.has(key) {
            let message = format!("expected {}, found nothing", self.0.expected());
            table.note(table.span(), key, message);
        }
        self.0.read(table, key, default)
    }

    fn show(&self, _: &T) -> Option<String> {
        None
    }

    fn expected(&self) -> String {
        self.0.expected()
    }

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn is_list(&self) -> bool {
        self.0.is_list()
    }

    fn is_required(&self) -> bool {
        true
    }
}

/// A number above 0.
pub struct AboveZero;

/// A number above 0.
pub const fn above_zero() -> AboveZero {
    AboveZero
}

impl Form<f64> for AboveZero {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: f64) -> f64 {
        let Some((value, span)) = table.spanned::<f64>(key) else { return default };
        if value > 0.0 {
            return value;
        }
        table.note(span, key, format!("expected a number above 0, found {value}"));
        default
    }

    fn show(&self, value: &f64) -> Option<String> {
        Some(value.shown())
    }

    fn expected(&self) -> String {
        "a number above 0".to_owned()
    }

    fn kind(&self) -> &'static str {
        f64::KIND
    }
}
