//! Text of which only some is allowed.

use crate::form::Shown;
use crate::section::Form;
use crate::table::Table;
use std::net::SocketAddr;

/// Text that a check lets pass.
pub struct Text {
    kind: &'static str,
    expected: &'static str,
    problem: fn(&str) -> Option<&'static str>,
}

/// Text that `problem` finds nothing wrong with: it says what it expected in place of what it is given. `kind`
/// is the word for such values in the help of a flag, `expected` says in words what they are.
pub const fn text(
    kind: &'static str,
    expected: &'static str,
    problem: fn(&str) -> Option<&'static str>,
) -> Text {
    Text { kind, expected, problem }
}

impl Form<String> for Text {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: String) -> String {
        let Some((value, span)) = table.spanned::<String>(key) else { return default };
        if let Some(expected) = (self.problem)(&value) {
            table.note(span, key, format!("expected {expected}, found {value:?}"));
        }
        value
    }

    fn show(&self, value: &String) -> Option<String> {
        Some(format!("{value:?}"))
    }

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn kind(&self) -> &'static str {
        self.kind
    }
}

/// An address and a port, or "off".
pub struct AddressOrOff(&'static str);

/// An address and a port, such as `example`, or "off".
pub const fn address_or_off(example: &'static str) -> AddressOrOff {
    AddressOrOff(example)
}

impl Form<Option<SocketAddr>> for AddressOrOff {
    fn read(
        &self,
        table: &Table<'_, '_>,
        key: &str,
        default: Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        let Some((text, span)) = table.spanned::<String>(key) else { return default };
        if text == "off" {
            return None;
        }
        let address = text.parse().ok();
        if address.is_none() {
            table.note(span, key, format!("expected {}, found {text:?}", self.expected()));
        }
        address
    }

    fn show(&self, value: &Option<SocketAddr>) -> Option<String> {
        Some(value.map_or("\"off\"".to_owned(), |address| format!("\"{address}\"")))
    }

    fn expected(&self) -> String {
        format!("an address and a port such as {:?}, or \"off\"", self.0)
    }

    fn kind(&self) -> &'static str {
        SocketAddr::KIND
    }
}
