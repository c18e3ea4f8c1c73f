//! How a route spreads clients over its variants.

use super::check::header_name;
use forebay_config::{Form, NameOrTable, Table};
use http::HeaderName;
use std::time::Duration;

/// Time for which a browser keeps the cookie unless the configuration says otherwise: longer than a rollout.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The key by which a client stays with a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitKey {
    /// The client, by its address or by `limits.client_header`.
    Client,
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie, which the proxy sets.
    Cookie {
        /// Its name.
        name: String,
        /// Time for which the client keeps it.
        max_age: Duration,
    },
}

/// The form of such a key in the configuration.
pub(super) struct SplitKeyForm;

const FORM: &str = "\"client\", { header = \"NAME\" }, or { cookie = \"NAME\", max_age = TIME }";

impl Form<Option<SplitKey>> for SplitKeyForm {
    fn read(
        &self,
        table: &Table<'_, '_>,
        key: &str,
        default: Option<SplitKey>,
    ) -> Option<SplitKey> {
        match table.name_or_table(key)? {
            NameOrTable::Name(name, _) if name == "client" => Some(SplitKey::Client),
            NameOrTable::Name(name, span) => {
                table.note(span, key, format!("expected {FORM}, found {name:?}"));
                default
            }
            NameOrTable::Table(inner) => read_table(&inner).or(default),
        }
    }

    fn show(&self, key: &Option<SplitKey>) -> Option<String> {
        key.as_ref().map(|key| match key {
            SplitKey::Client => "\"client\"".to_owned(),
            SplitKey::Header(name) => format!("{{ header = {:?} }}", name.as_str()),
            SplitKey::Cookie { name, .. } => format!("{{ cookie = {name:?} }}"),
        })
    }

    fn expected(&self) -> String {
        FORM.to_owned()
    }

    fn kind(&self) -> &'static str {
        "KEY"
    }
}

fn read_table(table: &Table<'_, '_>) -> Option<SplitKey> {
    match (table.has("header"), table.has("cookie")) {
        (true, false) => {
            table.refuse("max_age", "cookie = \"NAME\"");
            header_name(table, "header").map(SplitKey::Header)
        }
        (false, true) => cookie(table),
        _ => {
            // Both are known keys, however many of them there are.
            let _ = (table.get::<String>("header"), table.get::<String>("cookie"));
            let _ = table.get::<Duration>("max_age");
            table.note(table.span(), "header", "expected either a header or a cookie");
            None
        }
    }
}

fn cookie(table: &Table<'_, '_>) -> Option<SplitKey> {
    let (name, span) = table.spanned::<String>("cookie")?;
    let max_age = table.or("max_age", MAX_AGE);
    if !is_token(&name) {
        let expected = "expected the name of a cookie (letters, digits and -_.)";
        table.note(span, "cookie", format!("{expected}, found {name:?}"));
        return None;
    }
    if max_age < Duration::from_secs(1) {
        let span = table.place_of("max_age").unwrap_or(table.span());
        table.note(span, "max_age", format!("expected at least 1s, found {max_age:?}"));
    }
    Some(SplitKey::Cookie { name, max_age })
}

fn is_token(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= 64 && name.bytes().all(is_plain)
}
