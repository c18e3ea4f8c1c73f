//! Tables of several kinds: the key `kind` says which keys the rest has.

use crate::section::Key;
use crate::table::Table;

/// One kind of a table, as the reference file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Its documentation, a line each.
    pub about: Vec<&'static str>,
    /// The keys that it has beside `kind`.
    pub keys: Vec<Key>,
}

/// A table of one of several kinds, as [`kinds!`](crate::kinds) declares it.
pub trait Kinds: Sized {
    /// The names of the kinds.
    const NAMES: &'static [&'static str];

    /// Reads the table; one without a kind, or with an unknown one, is noted, and read as the first kind.
    fn read(table: &Table<'_, '_>) -> Self;

    /// All kinds, in the order of their declaration.
    fn all() -> Vec<Kind>;

    /// The name of this one's kind.
    fn name(&self) -> &'static str;
}

/// Declares the kinds of a table, each a [`Section`](crate::Section) of its own, or without further keys.
///
/// ```
/// use forebay_config::form::any;
/// use forebay_config::{Document, Kinds};
///
/// forebay_config::section! {
///     /// Slowed down.
///     pub struct Slow {
///         /// So many times.
///         factor: f64 = 2.0, any();
///     }
/// }
/// forebay_config::kinds! {
///     /// A fault.
///     pub enum Fault {
///         /// Killed.
///         "kill" => Kill,
///         "slow" => Slow(Slow),
///     }
/// }
/// let document = Document::parse("kind = \"slow\"\nfactor = 3");
/// assert_eq!(Fault::read(&document.root()), Fault::Slow(Slow { factor: 3.0 }));
/// ```
#[macro_export]
macro_rules! kinds {
    (
        $(#[doc = $about:literal])*
        $vis:vis enum $enum:ident {
            $(#[doc = $first_doc:literal])*
            $first:literal => $first_variant:ident $(($first_section:ty))?
            $(,
                $(#[doc = $doc:literal])*
                $name:literal => $variant:ident $(($section:ty))?
            )* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        $vis enum $enum {
            #[doc = concat!("`", $first, "`:")]
            $(#[doc = $first_doc])*
            $first_variant $(($first_section))?,
            $(
                #[doc = concat!("`", $name, "`:")]
                $(#[doc = $doc])*
                $variant $(($section))?,
            )*
        }

        impl $crate::Kinds for $enum {
            const NAMES: &'static [&'static str] = &[$first $(, $name)*];

            fn read(table: &$crate::Table<'_, '_>) -> Self {
                let kind = table.kind(Self::NAMES);
                $(if kind == Some($name) {
                    return Self::$variant $((<$section as $crate::Section>::read(table)))?;
                })*
                let _ = kind;
                Self::$first_variant $((<$first_section as $crate::Section>::read(table)))?
            }

            fn all() -> Vec<$crate::Kind> {
                vec![
                    $crate::Kind {
                        name: $first,
                        about: [&[$($first_doc),*] as &[&str] $(, <$first_section as $crate::Section>::ABOUT)?]
                            .concat(),
                        keys: [Vec::new() $(, <$first_section as $crate::Section>::keys())?].concat(),
                    },
                    $($crate::Kind {
                        name: $name,
                        about: [&[$($doc),*] as &[&str] $(, <$section as $crate::Section>::ABOUT)?].concat(),
                        keys: [Vec::new() $(, <$section as $crate::Section>::keys())?].concat(),
                    },)*
                ]
            }

            fn name(&self) -> &'static str {
                match self {
                    Self::$first_variant { .. } => $first,
                    $(Self::$variant { .. } => $name,)*
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::form::{any, list_within, required};
    use crate::{Document, Section as _};
    use std::time::Duration;

    crate::section! {
        /// At one rate.
        struct Steady {
            /// How long.
            length as "for": Duration = Duration::from_secs(1), required(any()), shown "\"10s\"";
            /// Sizes.
            sizes: Vec<u64> = vec![1], list_within(1..=9);
        }
    }

    crate::kinds! {
        /// A load.
        enum Load {
            "steady" => Steady(Steady),
            /// None at all.
            "none" => Nothing,
        }
    }

    fn read(text: &str) -> Result<Load, String> {
        let document = Document::parse(text);
        let load = Load::read(&document.root());
        document.finish().map(|()| load).map_err(|found| found.render("f"))
    }

    #[test]
    fn a_table_is_read_as_the_kind_that_it_names() {
        assert_eq!(read("kind = \"none\"").unwrap(), Load::Nothing);
        let steady = Steady { length: Duration::from_secs(3), sizes: vec![2, 3] };
        let found = read("kind = \"steady\"\nfor = \"3s\"\nsizes = [2, 3]").unwrap();
        assert_eq!((found.name(), &found), ("steady", &Load::Steady(steady)));
        for (text, expected) in [
            ("", "kind: expected a string, found nothing"),
            ("kind = \"nome\"", "kind: expected \"steady\" or \"none\", found \"nome\""),
            ("kind = \"steady\"", "for: expected a duration such as"),
            (
                "kind = \"steady\"\nfor = \"3s\"\nsizes = [2, 10]",
                "sizes: expected 1 to 9, found 10",
            ),
            ("kind = \"none\"\nfor = \"3s\"", "for: unknown key"),
        ] {
            let words = read(text).unwrap_err();
            assert!(words.contains(expected), "{expected}\n--- not in\n{words}");
        }
    }

    #[test]
    fn each_kind_is_told_with_its_keys() {
        let all = Load::all();
        assert_eq!(Load::NAMES, ["steady", "none"]);
        assert_eq!((all[0].name, &all[0].about[..]), ("steady", &[" At one rate."][..]));
        assert_eq!((all[1].about[0], all[1].keys.len()), (" None at all.", 0));
        let keys: Vec<_> = all[0].keys.iter().map(|key| (key.name, key.shown.as_str())).collect();
        assert_eq!(keys, [("for", "\"10s\""), ("sizes", "[1]")]);
        assert!(
            Steady::reference("[steady]")
                .ends_with("# How long.\nfor = \"10s\"\n\n# Sizes.\nsizes = [1]\n")
        );
    }
}
