//! The kept answers of the process, and what is known of the models that give them.

use crate::clock;
use crate::config::CacheMemory;
use crate::http::variant::Target;
use anyhow::anyhow;
use forebay_cache::flight::Flights;
use forebay_cache::{Contents, Entry, Fact, Hasher, Store};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Endpoints of a pool whose generation is looked at: equal workers have the same one.
const MAX_ENDPOINTS: usize = 64;

/// The response cache of the process.
pub struct Cache {
    pub(super) hasher: Hasher,
    pub(super) store: Store,
    pub(super) flights: Flights<Arc<Entry>>,
    pub(super) contents: Contents,
    /// Answers that operators had forgotten.
    pub(super) purged: AtomicU64,
}

impl Cache {
    /// An empty one.
    ///
    /// # Errors
    /// The system has no random numbers for its key.
    pub fn new(settings: &CacheMemory) -> anyhow::Result<Self> {
        let mut key = [0; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut key).map_err(|_| anyhow!("no random numbers for the key of the cache"))?;
        Ok(Self {
            hasher: Hasher::new(key),
            store: Store::new(settings.memory),
            flights: Flights::default(),
            contents: Contents::default(),
            purged: AtomicU64::new(0),
        })
    }

    /// Facts about the model at the endpoints that would be asked, each content once.
    pub(super) fn facts(&self, target: &Target, model: u64) -> Vec<Fact> {
        let pool = &target.pool;
        // An answer may be given although no endpoint is there to be asked.
        let ready = &pool.rotation.ready;
        let endpoints = if ready.is_empty() { &pool.endpoints } else { ready };
        let mut facts = Vec::with_capacity(1);
        for endpoint in endpoints.iter().take(MAX_ENDPOINTS) {
            let generation = endpoint.state.reports.generation();
            let fact = self.contents.of(model, generation);
            facts.extend(fact.filter(|fact| !facts.contains(fact)));
        }
        facts
    }
}

/// The time on a clock that only goes forward.
pub(super) fn now() -> Duration {
    Duration::from_nanos(clock::now().nanos())
}
