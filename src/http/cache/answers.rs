//! The kept answers of the process, and what is known of the models that give them.

use super::persist::Persistence;
use super::shared;
use super::time::now;
use crate::clock;
use crate::config::CacheMemory;
use crate::http::variant::Target;
use crate::pool::{Endpoint, report};
use anyhow::anyhow;
use forebay_cache::flight::Flights;
use forebay_cache::memo::Memo;
use forebay_cache::shared::Tier;
use forebay_cache::{Absences, Contents, Entry, Fact, Hasher, Question, Store};
use forebay_process::supervise::Supervisor;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Endpoints of a pool whose generation is looked at: equal workers have the same one.
const MAX_ENDPOINTS: usize = 64;
/// Kept answers that are renewed at once, of all routes. More are renewed when they are asked for next.
const MAX_RENEWALS: usize = 256;
/// One part in so many of the memory is for requests that had a hit.
const MEMO: u64 = 16;

/// The response cache of the process.
pub struct Cache {
    pub(super) hasher: Hasher,
    pub(super) store: Store,
    /// Answers that other proxies have as well.
    pub(super) shared: Option<Arc<Tier>>,
    /// A file that outlives the process.
    pub(super) persistence: Option<Persistence>,
    pub(super) flights: Flights<Arc<Entry>>,
    /// Requests that had a hit, by their bytes.
    pub(super) memo: Memo,
    pub(super) contents: Contents,
    pub(super) absences: Absences,
    /// Room for requests that renew a kept answer while it is still given.
    pub(super) renewals: Arc<Semaphore>,
    /// Answers that operators had forgotten.
    pub(super) purged: AtomicU64,
}

impl Cache {
    /// An empty one, whose tasks are among `tasks`.
    ///
    /// # Errors
    /// The system has no random numbers for its key.
    pub fn new(settings: &CacheMemory, tasks: &Supervisor) -> anyhow::Result<Self> {
        let persistence = Persistence::open(settings);
        let secret = settings.secret.as_ref().map(|secret| &secret.0);
        let key = match secret.or(persistence.as_ref().map(Persistence::secret)) {
            // With the same secret, other processes ask the same questions.
            Some(secret) => secret.key("questions"),
            None => random_key()?,
        };
        Ok(Self {
            hasher: Hasher::new(key),
            store: Store::new(of_answers(settings.memory)),
            memo: Memo::new(settings.memory / MEMO),
            shared: shared::start(settings, tasks),
            persistence,
            flights: Flights::default(),
            contents: Contents::default(),
            absences: Absences::default(),
            renewals: Arc::new(Semaphore::new(MAX_RENEWALS)),
            purged: AtomicU64::new(0),
        })
    }

    /// Changes the bound of all memory.
    pub(super) fn resize(&self, memory: u64) {
        self.store.resize(of_answers(memory));
        self.memo.resize(memory / MEMO);
    }

    /// Time for which the model is believed not to be at any endpoint that would be asked.
    pub(super) fn is_absent(&self, target: &Target, model: u64) -> Option<Duration> {
        let (pool, now) = (&target.pool, now());
        let left = |endpoint: &Arc<Endpoint>| {
            let generation = endpoint.state.reports.generation();
            self.absences.left(model, generation, now)
        };
        // Without an endpoint the refusal says more.
        pool.rotation.ready.iter().map(left).min().flatten()
    }

    /// Notes that the model is not there, as an endpoint has said.
    pub(super) fn note_absence(&self, model: u64, endpoint: &Endpoint, ttl: Duration) {
        self.absences.note(model, endpoint.state.reports.generation(), now() + ttl);
    }

    /// The kept answer to a question, a fresh one if there is any. `model` is the one that is asked, as a number.
    /// With a `max_age`, none that is older or stale.
    pub(super) fn find(
        &self,
        target: &Target,
        (question, model): (Question, u64),
        max_age: Option<Duration>,
    ) -> Option<Arc<Entry>> {
        let now = now();
        let is_young = |entry: &Arc<Entry>| {
            max_age.is_none_or(|most| entry.is_fresh(now) && entry.age(now) <= most)
        };
        let found = self
            .facts(target, model)
            .into_iter()
            .filter_map(|fact| self.store.get(question, fact.content, now).filter(is_young))
            .max_by_key(|entry| entry.expires);
        if found.is_some() {
            // Where requests need no endpoint, nothing else would show that one serves otherwise now.
            report::refresh_stale(&target.pool, clock::now());
        }
        found
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

/// The part of the memory that is for answers.
fn of_answers(memory: u64) -> u64 {
    memory - memory / MEMO
}

fn random_key() -> anyhow::Result<[u8; 32]> {
    let mut key = [0; 32];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut key).map_err(|_| anyhow!("no random numbers for the key of the cache"))?;
    Ok(key)
}
