//! One declaration for each key of a section: its name, type, default, bounds and documentation.
//!
//! A key that is declared in one place, read in another, defaulted in a third and documented in a fourth
//! is a key whose documentation is wrong. [`section!`](crate::section) turns one declaration into the structure
//! that the program uses, its defaults, its reader and the text of the reference file.

use crate::table::Table;

/// The form of a value in a file, and its allowed values.
pub trait Form<T> {
    /// The value of `key`, or `default` if it is absent or wrong, which is noted.
    fn read(&self, table: &Table<'_, '_>, key: &str, default: T) -> T;

    /// The value as it stands in a file; `None` if it is said by leaving the key out.
    fn show(&self, value: &T) -> Option<String>;

    /// A description of such values: the text between "expected" and "found" in an error.
    fn expected(&self) -> String;

    /// A word for such values in the help of a flag, such as `TIME`.
    fn kind(&self) -> &'static str;

    /// Whether it is an array, whose values a flag takes one by one.
    fn is_list(&self) -> bool {
        false
    }

    /// Whether there must be a value.
    fn is_required(&self) -> bool {
        false
    }
}

/// A key as the reference file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Its documentation, a line each.
    pub doc: &'static [&'static str],
    /// A word for its values in the help of a flag.
    pub kind: &'static str,
    /// A description of its values.
    pub expected: String,
    /// Whether it is an array.
    pub is_list: bool,
    /// Whether it must be there.
    pub is_required: bool,
    /// Its default as it stands in a file; `None` if that is to leave it out, or depends on the machine.
    pub default: Option<String>,
    /// Its default, or an example where there is none to show.
    pub shown: String,
}

impl Key {
    /// A key of this form, whose default is shown, or `example` in its place.
    pub fn of<T, F: Form<T>>(
        name: &'static str,
        doc: &'static [&'static str],
        form: &F,
        default: &T,
        example: Option<&'static str>,
    ) -> Self {
        let default = form.show(default);
        let shown = example.map(str::to_owned).or(default.clone()).unwrap_or_default();
        let default = default.filter(|_| example.is_none());
        let (kind, is_list, is_required) = (form.kind(), form.is_list(), form.is_required());
        Self { name, doc, kind, expected: form.expected(), is_list, is_required, default, shown }
    }
}

/// A section of a configuration file, as [`section!`](crate::section) declares it.
pub trait Section: Sized + Default {
    /// Its documentation, a line each.
    const ABOUT: &'static [&'static str];

    /// Reads the section; keys that are absent have their defaults.
    fn read(table: &Table<'_, '_>) -> Self {
        Self::read_over(table, Self::default())
    }

    /// Reads the section; keys that are absent have the values of `default`.
    fn read_over(table: &Table<'_, '_>, default: Self) -> Self;

    /// Its keys, in the order of their declaration.
    fn keys() -> Vec<Key>;

    /// Notes each of its keys that the table has: they mean something only with `beside`, another key and its
    /// value, and that is not there.
    fn refuse(table: &Table<'_, '_>, beside: &str) {
        for key in Self::keys() {
            table.refuse(key.name, beside);
        }
    }

    /// The section as the reference file has it, under `header` such as `[limits]`.
    fn reference(header: &str) -> String {
        let mut text = comment(Self::ABOUT);
        text.push_str(header);
        text.push('\n');
        text.push_str(&listed(&Self::keys()));
        text
    }
}

/// Keys as a reference file has them.
pub fn listed(keys: &[Key]) -> String {
    let text = |key: &Key| format!("{}{} = {}\n", comment(key.doc), key.name, key.shown);
    keys.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// Lines of documentation as a file has them.
pub fn comment(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("#{line}\n")).collect()
}

/// The name of a key in a file: that of its field, unless another is given.
#[doc(hidden)]
#[macro_export]
macro_rules! key_name {
    ($key:ident) => {
        stringify!($key)
    };
    ($key:ident $name:literal) => {
        $name
    };
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
/// The structure gets `Default` and [`Section`]. `shown` gives the example for a key whose
/// default is to leave it out, or depends on the machine. A key whose name is a word of Rust has another
/// field (`length as "for": Duration = …`). Fields of a block `beside { field: Type = value; }`
/// behind the structure are no keys: the program sets them.
#[macro_export]
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $key:ident $(as $called:literal)?: $type:ty = $default:expr, $form:expr $(, shown $shown:literal)?;
            )*
        }
        $(beside {
            $($(#[doc = $said:literal])* $field:ident: $kind:ty = $value:expr;)*
        })?
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $($(#[doc = $doc])* $vis $key: $type,)*
            $($($(#[doc = $said])* $vis $field: $kind,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* $($($field: $value,)*)? }
            }
        }

        impl $crate::Section for $name {
            const ABOUT: &'static [&'static str] = &[$($about),*];

            fn read_over(table: &$crate::Table<'_, '_>, default: Self) -> Self {
                Self {
                    $($key: $crate::Form::<$type>::read(
                        &$form, table, $crate::key_name!($key $($called)?), default.$key,
                    ),)*
                    $($($field: default.$field,)*)?
                }
            }

            fn keys() -> Vec<$crate::Key> {
                let default = Self::default();
                vec![$($crate::Key::of::<$type, _>(
                    $crate::key_name!($key $($called)?),
                    &[$($doc),*],
                    &$form,
                    &default.$key,
                    [$($shown)?].into_iter().next(),
                )),*]
            }
        }
    };
}
