//! One declaration for each key of a section: its name, type, default, bounds and documentation.
//!
//! A key that is declared in one place, read in another, defaulted in a third and documented in a fourth
//! is a key whose documentation is wrong. [`section!`](crate::section) turns one declaration into the structure
//! that the program uses, its defaults, its reader and the text of the reference file.

use crate::table::Table;

/// How a value is written in a file, and which values are allowed.
pub trait Form<T> {
    /// The value of `key`, or `default` if it is absent or wrong, which is noted.
    fn read(&self, table: &Table<'_, '_>, key: &str, default: T) -> T;

    /// The value as it stands in a file; `None` if it is said by leaving the key out.
    fn show(&self, value: &T) -> Option<String>;
}

/// A key as the reference file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Its documentation, a line each.
    pub doc: &'static [&'static str],
    /// Its default, or an example where the default is to leave it out.
    pub shown: String,
}

/// A section of a configuration file, as [`section!`](crate::section) declares it.
pub trait Section: Sized {
    /// Its documentation, a line each.
    const ABOUT: &'static [&'static str];

    /// Reads the section; keys that are absent have the values of `default`.
    fn read_over(table: &Table<'_, '_>, default: Self) -> Self;

    /// Its keys, in the order of their declaration.
    fn keys() -> Vec<Key>;

    /// The section as the reference file has it, under `header` such as `[limits]`.
    fn reference(header: &str) -> String {
        let mut text = comment(Self::ABOUT);
        text.push_str(header);
        text.push('\n');
        for (place, key) in Self::keys().into_iter().enumerate() {
            if place > 0 {
                text.push('\n');
            }
            text.push_str(&comment(key.doc));
            text.push_str(&format!("{} = {}\n", key.name, key.shown));
        }
        text
    }
}

fn comment(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("#{line}\n")).collect()
}

/// Declares a section: a structure whose fields are keys of the same names.
///
/// ```
/// use forebay_config::form::{any, within};
/// use std::time::Duration;
///
/// forebay_config::section! {
///     /// Requests that wait.
///     pub struct Queue {
///         /// How many may wait.
///         size: usize = 1024, within(0..=1_000_000);
///         /// How long one may wait. Default: as long as its deadline allows.
///         most: Option<Duration> = None, forebay_config::form::optional(any()), shown "\"1s\"";
///     }
/// }
/// assert_eq!(Queue::default().size, 1024);
/// ```
///
/// The structure gets `Default`, `read(&Table)`, and [`Section`]. `shown` gives the example for a key whose
/// default is to leave it out.
#[macro_export]
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $key:ident: $type:ty = $default:expr, $form:expr $(, shown $shown:literal)?;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $($(#[doc = $doc])* $vis $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $name {
            /// Reads the section; keys that are absent have their defaults.
            $vis fn read(table: &$crate::Table<'_, '_>) -> Self {
                $crate::Section::read_over(table, Self::default())
            }
        }

        impl $crate::Section for $name {
            const ABOUT: &'static [&'static str] = &[$($about),*];

            fn read_over(table: &$crate::Table<'_, '_>, default: Self) -> Self {
                Self {
                    $($key: $crate::Form::<$type>::read(
                        &$form, table, stringify!($key), default.$key,
                    ),)*
                }
            }

            fn keys() -> Vec<$crate::Key> {
                let default = Self::default();
                vec![$($crate::Key {
                    name: stringify!($key),
                    doc: &[$($doc),*],
                    shown: [
                        $(Some($shown.to_owned()),)?
                        $crate::Form::<$type>::show(&$form, &default.$key),
                    ].into_iter().flatten().next().unwrap_or_default(),
                }),*]
            }
        }
    };
}
