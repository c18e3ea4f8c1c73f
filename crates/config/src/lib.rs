//! A TOML reader that reports every error at once.
//!
//! An operator who edits a file by hand wants to see all that is wrong with it, where, and what would have
//! been right. A reader that stops at the first error makes them run it ten times, and one that loses
//! positions makes them search. Here a [`Document`] is parsed into a tree that keeps positions; the program
//! asks [`Table`]s for the keys that it needs; every error is noted and reading goes on with a default.
//! Unknown keys are errors too, with a suggestion.
//!
//! Because the program asks for each key by name, the reader also knows every key that there is
//! ([`Document::keys_asked`]): that is how a test proves that the reference file is complete.

mod diagnostic;
mod document;
mod excerpt;
pub mod file;
#[cfg(feature = "flags")]
pub mod flags;
pub mod form;
mod kinds;
pub mod pool;
mod section;
mod table;
pub mod units;
mod value;

#[doc(hidden)]
pub use toml::de::DeValue;

pub use diagnostic::{Diagnostic, Diagnostics, Span};
pub use document::Document;
pub use kinds::{Kind, Kinds};
pub use section::{Form, Key, Section, comment, listed};
pub use table::{NameOrTable, Table};
pub use units::{ByteRate, ByteSize, Rate, Ratio};
pub use value::FromToml;
