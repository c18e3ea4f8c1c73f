//! The operator's view of the cache, and purges.

use super::answers::Cache;
use super::persist::{self, Persistence};
use super::time::instants;
use crate::http::identify;
use forebay_cache::Entry;
use forebay_cache::shared::{State, Tier};
use forebay_protocol::metric::proxy as metric;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

/// The size of the cache, and what became of its answers.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Kept answers.
    entries: usize,
    /// Bytes that they take.
    bytes: u64,
    /// The bound.
    memory: u64,
    /// Answers that were removed to make room.
    removed_for_size: u64,
    /// Answers that were removed since they were too old.
    removed_for_age: u64,
    /// Answers that were removed because an operator said so.
    purged: u64,
    /// Questions that the model is being asked.
    under_way: usize,
    /// Requests that wait for the answer of an equal one.
    waiting: usize,
    /// The store that is shared with other proxies.
    shared: Option<SharedStatus>,
    /// The file that outlives the process.
    file: Option<persist::State>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, bytes, memory, .. } = self;
        write!(f, "cache: {entries} answers, {bytes} of {memory} bytes")?;
        let Some(SharedStatus { state, .. }) = &self.shared else { return Ok(()) };
        match (state.asked, &state.trouble) {
            (true, _) => f.write_str("; the shared store is asked"),
            (false, Some(why)) => write!(f, "; the shared store is not asked: {why}"),
            (false, None) => f.write_str("; the shared store is not asked: it is too slow"),
        }
    }
}

/// The shared store, and what became of look-ups and writes, by outcome.
#[derive(Debug, Serialize)]
struct SharedStatus {
    #[serde(flatten)]
    state: State,
    gets: BTreeMap<&'static str, u64>,
    puts: BTreeMap<&'static str, u64>,
}

impl SharedStatus {
    fn of(tier: &Tier) -> Self {
        Self {
            state: tier.state(),
            gets: tier.gets().map(|(got, count)| (got.as_str(), count)).collect(),
            puts: tier.puts().map(|(put, count)| (put.as_str(), count)).collect(),
        }
    }

    fn set_gauges(&self) {
        metric::CACHE_SHARED_ASKED.with([]).set(f64::from(u8::from(self.state.asked)));
        metric::CACHE_SHARED_GIVEN_UP.with([]).absolute(self.state.given_up);
        metric::CACHE_SHARED_QUEUED.with([]).set(float(self.state.queued_bytes));
        for (outcome, count) in &self.gets {
            metric::CACHE_SHARED_GETS.with([outcome]).absolute(*count);
        }
        for (outcome, count) in &self.puts {
            metric::CACHE_SHARED_PUTS.with([outcome]).absolute(*count);
        }
    }
}

/// The result of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Answers that memory had.
    pub purged: usize,
    /// Whether the shared store has noted that all in it is worthless; if not, that is tried until it has.
    pub shared: Option<bool>,
}

/// The answers that are to be forgotten: those that match all that is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Purge {
    route: Option<String>,
    model: Option<String>,
    version: Option<String>,
}

impl Purge {
    /// Reads the query of a path.
    ///
    /// # Errors
    /// A key that is unknown or stands there twice, in words for the operator.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut purge = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let field = match key {
                "route" => &mut purge.route,
                "model" => &mut purge.model,
                "version" => &mut purge.version,
                _ => return Err(format!("expected route, model or version, found {key:?}")),
            };
            if field.replace(identify::decode(key, value)?).is_some() {
                return Err(format!("expected {key} once"));
            }
        }
        Ok(purge)
    }

    fn means(&self, entry: &Entry) -> bool {
        let matches = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        matches(&self.route, Some(&entry.route))
            && matches(&self.model, Some(&entry.model))
            && matches(&self.version, entry.version.as_deref())
    }
}

impl Cache {
    /// Forgets answers. The shared store can't be searched, so all in it is made worthless, whatever is meant.
    pub async fn purge(&self, purge: &Purge) -> Purged {
        self.absences.clear();
        // First, or an answer that is meant would come back from there.
        let shared = match &self.shared {
            Some(tier) => Some(tier.purge(instants().day).await),
            None => None,
        };
        // Before, so that nothing is taken from the file any more; and after, since one that was begun meanwhile may hold
        // what is meant.
        let delete_file = || self.persistence.as_ref().map(Persistence::purge);
        delete_file();
        let purged = self.store.purge(|entry| purge.means(entry));
        delete_file();
        self.purged.fetch_add(purged as u64, Relaxed);
        Purged { purged, shared }
    }

    /// Its size, and what became of its answers.
    pub fn status(&self) -> Status {
        Status {
            entries: self.store.len(),
            bytes: self.store.bytes() + self.memo.bytes(),
            memory: self.store.capacity() + self.memo.capacity(),
            removed_for_size: self.store.evicted(),
            removed_for_age: self.store.expired(),
            purged: self.purged.load(Relaxed),
            under_way: self.flights.len(),
            waiting: self.flights.waiting(),
            shared: self.shared.as_deref().map(SharedStatus::of),
            file: self.persistence.as_ref().map(Persistence::state),
        }
    }

    /// Publishes the same.
    pub fn set_gauges(&self) {
        let status = self.status();
        metric::CACHE_ENTRIES.with([]).set(float(status.entries as u64));
        metric::CACHE_BYTES.with([]).set(float(status.bytes));
        for (cause, count) in [
            ("size", status.removed_for_size),
            ("age", status.removed_for_age),
            ("purge", status.purged),
        ] {
            metric::CACHE_REMOVED.with([cause]).absolute(count);
        }
        if let Some(shared) = &status.shared {
            shared.set_gauges();
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_purge_means_what_matches_all_that_is_said() {
        let parse = |query: &str| Purge::parse(query).unwrap();
        assert_eq!(parse(""), Purge::default());
        let purge = parse("model=a%20b&version=3");
        assert_eq!((purge.model.as_deref(), purge.version.as_deref()), (Some("a b"), Some("3")));
        for wrong in ["pool=x", "model=a&model=b", "model=%zz"] {
            assert!(Purge::parse(wrong).is_err(), "{wrong}");
        }
    }
}
