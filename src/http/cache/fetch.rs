//! Answers that are in the shared store: kept there as well, and looked for where memory has none.

use super::answers::Cache;
use super::time::instants;
use crate::http::variant::Target;
use forebay_cache::{Content, Entry, Question};
use forebay_protocol::metric::proxy as metric;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of a batch that are looked for beyond memory: more would hold up other requests.
const MAX_ROWS: usize = 512;

impl Cache {
    /// Keeps an answer in memory, and in the shared store soon.
    pub(super) fn insert(&self, question: Question, content: Content, entry: Arc<Entry>) {
        if let Some(tier) = &self.shared {
            tier.put((question, content), Arc::clone(&entry));
        }
        self.store.insert(question, content, entry);
    }

    /// The answer to a question that the shared store has, a fresh one, at most `max_age` old. From then on, memory
    /// has it as well.
    pub(super) async fn find_shared(
        &self,
        target: &Target,
        (question, model): (Question, u64),
        max_age: Option<Duration>,
    ) -> Option<Arc<Entry>> {
        self.shared.as_ref()?;
        let facts = self.facts(target, model);
        let keys: Vec<_> = facts.iter().map(|fact| (question, fact.content)).collect();
        let found = self.fetch(&keys).await;
        let now = instants().steady;
        let is_young = |entry: &Arc<Entry>| max_age.is_none_or(|most| entry.age(now) <= most);
        found.into_iter().filter(is_young).max_by_key(|entry| entry.expires)
    }

    /// Takes the answers to these questions from the shared store into memory, as far as it has them.
    pub(super) async fn fetch(&self, keys: &[(Question, Content)]) -> Vec<Arc<Entry>> {
        let Some(tier) = self.shared.as_ref().filter(|_| !keys.is_empty()) else {
            return Vec::new();
        };
        let keys = &keys[..keys.len().min(MAX_ROWS)];
        let began = Instant::now();
        let found = tier.get(keys, instants()).await;
        metric::CACHE_SHARED_SECONDS.with([]).record(began.elapsed());
        let mut entries = Vec::new();
        for ((question, content), entry) in keys.iter().zip(found) {
            if let Some(entry) = entry.map(Arc::new) {
                self.store.insert(*question, *content, Arc::clone(&entry));
                entries.push(entry);
            }
        }
        entries
    }
}
