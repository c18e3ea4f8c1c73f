//! `[route.shadow]`: copies of requests whose answers are compared.

use forebay_config::form::{any, bytes, optional, path_in_file, required, share, within};
use forebay_config::{Section, Table};
use std::path::PathBuf;

const MIB: u64 = 1024 * 1024;

forebay_config::section! {
    /// Sends copies of this route's inferences and requests for embeddings to another of its variants, once their
    /// clients have their answers, and compares the answers. A copy has the lowest priority. It is sent only where
    /// an endpoint is free, no request waits and at most four fifths of the pool's slots were taken over the last
    /// half minute; otherwise it is dropped and counted. It is never sent again, and counts in none of
    /// the figures of clients' requests. Default: no copies.
    pub struct Shadow {
        /// Required. The name of the variant that gets the copies: one of this route's, mostly with weight 0.
        variant: String = String::new(), required(any()), shown "\"canary\"";
        /// Share of the requests that are copied. Of the copies, one in a hundred goes to the variant that has
        /// answered: the difference of a model from itself, below which no other can be seen.
        share: f64 = 0.1, share();
        /// A file for the requests whose answers lie furthest apart, with both answers, as one line of JSON
        /// each. It is written again as further ones are found; those of the day before (UTC) are in the same
        /// file with ".1" behind its name. They hold what clients have sent: keep the file where only those
        /// may read it who may see that. Default: none.
        report: Option<PathBuf> = None, optional(path_in_file()), shown "\"differences.jsonl\"";
        /// Number of requests in the report.
        worst: u32 = 20, within(1..=1000);
        /// Longest report, in bytes.
        report_size: u64 = 16 * MIB, bytes();
    }
}

impl Shadow {
    /// Reads the table, and checks that it names one of the `variants`.
    pub(super) fn read_checked(table: &Table<'_, '_>, variants: &[&str]) -> Self {
        let shadow = Self::read(table);
        let is_known = variants.contains(&shadow.variant.as_str());
        if let Some(span) = table.place_of("variant").filter(|_| !is_known) {
            let found = format!("found {:?}", shadow.variant);
            table.note(span, "variant", format!("expected one of the route's variants, {found}"));
        }
        shadow
    }
}
