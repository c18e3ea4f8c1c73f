//! Answers in memory, bounded in bytes.
//!
//! Entries that are asked for again stay; a flood of questions that are asked once passes through without
//! driving them out. `quick_cache` does that (its policy is a variant of S3-FIFO). Each entry counts with
//! everything that it takes, its place in the table included, so that the bound is the memory that is used.
//!
//! Time is that of a clock that only goes forward: a clock that is set makes no answer younger.

use crate::answer::Answer;
use crate::contents::Content;
use crate::question::Question;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Bytes that an entry takes beside its answer: the entry itself, the counters of its reference, the
/// allocator's own, and its places in the tables.
const OVERHEAD: u64 = 304;
/// The size of a usual entry, from which the number of places in the tables follows that are there from the
/// start.
const USUAL: u64 = 4096;
/// Bytes of such a place.
const PLACE: u64 = 120;
/// An entry needs a shard in which it is a small part.
const SHARDS: usize = 8;
/// Share of the time to live by which entries differ, so that those that came together do not go together.
const JITTER: f64 = 0.1;

/// An answer that is kept, and what is known of it.
#[derive(Debug)]
pub struct Entry {
    /// The answer.
    pub answer: Answer,
    /// Name of the route at which it was given.
    pub route: Arc<str>,
    /// The model that gave it.
    pub model: Arc<str>,
    /// The version that gave it, if it says so.
    pub version: Option<Arc<str>>,
    /// Time at which it was given.
    pub born: Duration,
    /// Time after which it is stale: given only while it is renewed, or where no other answer can be had.
    pub expires: Duration,
    /// Time after which it is not given at all.
    pub gone: Duration,
    /// Time that the inference took.
    pub took: Duration,
}

impl Entry {
    /// Its age.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.born)
    }

    /// Whether its time to live is not over.
    pub fn is_fresh(&self, now: Duration) -> bool {
        now < self.expires
    }

    /// Time since it has become stale.
    pub fn stale_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.expires)
    }

    /// Bytes that it takes in memory.
    pub fn size(&self) -> u64 {
        self.answer.len() as u64 + OVERHEAD
    }
}

/// Number and bytes of the entries that were driven out.
#[derive(Debug, Default)]
struct Evicted {
    entries: AtomicU64,
}

/// A question to a content of the model.
pub type Key = (Question, Content);

#[derive(Clone)]
struct Size;

impl Weighter<Key, Arc<Entry>> for Size {
    fn weight(&self, _: &Key, entry: &Arc<Entry>) -> u64 {
        entry.size()
    }
}

/// Counts what is driven out.
#[derive(Clone)]
struct Counting(Arc<Evicted>);

impl Lifecycle<Key, Arc<Entry>> for Counting {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: Key, _: Arc<Entry>) {
        self.0.entries.fetch_add(1, Relaxed);
    }
}

/// The answers that are kept.
pub struct Store {
    cache: Cache<Key, Arc<Entry>, Size, DefaultHashBuilder, Counting>,
    bytes: AtomicU64,
    evicted: Arc<Evicted>,
    expired: AtomicU64,
}

impl Store {
    /// Of at most so many bytes.
    pub fn new(bytes: u64) -> Self {
        let evicted = Arc::<Evicted>::default();
        let usual = usize::try_from(bytes / USUAL).unwrap_or(usize::MAX).max(64);
        let weight = entries_bytes(bytes);
        let counting = Counting(Arc::clone(&evicted));
        let mut options = OptionsBuilder::new();
        let options =
            options.shards(SHARDS).estimated_items_capacity(usual).weight_capacity(weight);
        let cache = match options.build() {
            Ok(options) => {
                Cache::with_options(options, Size, DefaultHashBuilder::default(), counting)
            }
            // Only options that are missing are an error.
            Err(_) => Cache::with(usual, weight, Size, DefaultHashBuilder::default(), counting),
        };
        Self { cache, bytes: AtomicU64::new(bytes), evicted, expired: AtomicU64::new(0) }
    }

    /// Changes the bound; what is too much then is driven out.
    pub fn resize(&self, bytes: u64) {
        if self.bytes.load(Relaxed) != bytes && self.bytes.swap(bytes, Relaxed) != bytes {
            self.cache.set_capacity(entries_bytes(bytes));
        }
    }

    /// The answer of this content to the question, fresh or stale, unless its time is over.
    pub fn get(&self, question: Question, content: Content, now: Duration) -> Option<Arc<Entry>> {
        let key = (question, content);
        let entry = self.cache.get(&key)?;
        if entry.gone > now {
            return Some(entry);
        }
        let is_same = |found: &Arc<Entry>| Arc::ptr_eq(found, &entry);
        if self.cache.remove_if(&key, is_same).is_some() {
            self.expired.fetch_add(1, Relaxed);
        }
        None
    }

    /// Keeps an answer.
    pub fn insert(&self, question: Question, content: Content, entry: Arc<Entry>) {
        self.cache.insert((question, content), entry);
    }

    /// Keeps an answer, unless there is one already.
    pub fn insert_if_new(&self, question: Question, content: Content, entry: Arc<Entry>) {
        if !self.cache.contains_key(&(question, content)) {
            self.insert(question, content, entry);
        }
    }

    /// All entries, while others come and go.
    pub fn entries(&self) -> impl Iterator<Item = (Key, Arc<Entry>)> {
        self.cache.iter()
    }

    /// Forgets the entries that are `meant`; returns their number.
    pub fn purge(&self, meant: impl Fn(&Entry) -> bool) -> usize {
        let purged = AtomicU64::new(0);
        self.cache.retain(|_, entry| {
            let goes = meant(entry);
            purged.fetch_add(u64::from(goes), Relaxed);
            !goes
        });
        usize::try_from(purged.into_inner()).unwrap_or(usize::MAX)
    }

    /// Number of entries, those included that are too old but have not been asked for since.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Bytes that it takes: the entries and the tables.
    pub fn bytes(&self) -> u64 {
        let bound = self.capacity();
        self.cache.weight() + (bound - entries_bytes(bound))
    }

    /// The bound.
    pub fn capacity(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Number of entries that were driven out to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted.entries.load(Relaxed)
    }

    /// Number of entries that were found too old.
    pub fn expired(&self) -> u64 {
        self.expired.load(Relaxed)
    }
}

/// Bytes that entries may take, so that with the tables all is within the bound.
fn entries_bytes(bound: u64) -> u64 {
    bound - bound / USUAL * PLACE
}

/// The time for which the answer to this question is kept: `ttl`, or a little less, which is the same for
/// the same question.
pub fn lifetime(ttl: Duration, question: Question) -> Duration {
    #[allow(clippy::cast_precision_loss, reason = "a share need not be exact")]
    let share = (question.number() >> 11) as f64 / (1_u64 << 53) as f64;
    ttl.mul_f64(1.0 - JITTER * share)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::question::{Asked, Hasher};
    use forebay_protocol::oip::{Data, InferRequest, InferResponse, Tensor};

    fn question(number: usize) -> Question {
        let asked = Asked {
            route: "r",
            variant: "v",
            model: &number.to_string(),
            version: None,
            epoch: "",
            client: None,
            vary: &[],
        };
        Hasher::new([0; 32]).question(&asked, &InferRequest::default()).unwrap()
    }

    fn entry(model: &str, bytes: usize, seconds: u64) -> Arc<Entry> {
        let tensor = Tensor::new("y", vec![bytes], Data::Uint8(vec![1; bytes].into())).unwrap();
        let response = InferResponse { outputs: vec![tensor], ..InferResponse::default() };
        Arc::new(Entry {
            answer: Answer::new(response),
            route: "r".into(),
            model: model.into(),
            version: None,
            born: Duration::ZERO,
            expires: Duration::from_secs(seconds),
            gone: Duration::from_secs(2 * seconds),
            took: Duration::ZERO,
        })
    }

    const NOW: Duration = Duration::from_secs(1);
    const CONTENT: Content = Content(1);

    #[test]
    fn an_answer_is_given_until_its_time_is_up_and_only_for_its_content() {
        let store = Store::new(1 << 20);
        store.insert(question(1), CONTENT, entry("m", 10, 60));
        assert!(store.get(question(1), CONTENT, NOW).is_some());
        assert!(store.get(question(2), CONTENT, NOW).is_none());
        assert!(store.get(question(1), Content(2), NOW).is_none());
        let found = store.get(question(1), CONTENT, Duration::from_secs(60)).unwrap();
        assert!(found.is_fresh(NOW) && !found.is_fresh(Duration::from_secs(60)));
        assert_eq!(found.stale_for(Duration::from_secs(70)), Duration::from_secs(10));
        assert!(store.get(question(1), CONTENT, Duration::from_secs(120)).is_none());
        assert_eq!((store.len(), store.expired()), (0, 1));
        assert!(store.get(question(1), CONTENT, NOW).is_none());
    }

    #[test]
    fn all_entries_can_be_had_and_none_is_replaced_by_an_older_one() {
        let store = Store::new(1 << 20);
        for number in 0..100 {
            store.insert(question(number), CONTENT, entry("new", 10, 60));
            store.insert_if_new(question(number + 50), CONTENT, entry("old", 10, 60));
        }
        let all: Vec<_> = store.entries().collect();
        assert_eq!(all.len(), 150);
        assert_eq!(all.iter().filter(|(_, entry)| &*entry.model == "old").count(), 50);
    }

    #[test]
    fn purges_take_what_is_meant() {
        let store = Store::new(1 << 20);
        for number in 0..10 {
            store.insert(question(number), CONTENT, entry(&(number % 2).to_string(), 10, 60));
        }
        assert_eq!(store.purge(|entry| &*entry.model == "1"), 5);
        assert_eq!(store.len(), 5);
        assert!(store.get(question(1), CONTENT, NOW).is_none());
        assert!(store.get(question(2), CONTENT, NOW).is_some());
        assert_eq!(store.purge(|_| true), 5);
        assert!(store.is_empty() && store.bytes() < 1 << 15);
    }

    #[test]
    fn bytes_stay_within_the_bound_also_where_it_changes() {
        let bound = 1 << 20;
        let store = Store::new(bound);
        for number in 0..5_000 {
            store.insert(question(number), CONTENT, entry("m", number % 3_000, 60));
            assert!(store.bytes() <= bound);
        }
        assert!(store.bytes() > bound * 8 / 10, "{}", store.bytes());
        assert!(store.evicted() > 1_000);
        store.resize(bound / 4);
        assert!(store.bytes() <= bound / 4 && store.capacity() == bound / 4);
        store.insert(question(9_999), CONTENT, entry("m", 1 << 20, 60));
        assert!(store.bytes() <= bound / 4, "one that is too long is not kept");
    }

    #[test]
    fn answers_that_are_asked_for_again_survive_a_flood_of_others() {
        let store = Store::new(1 << 20);
        let hot = 200;
        for number in 0..hot {
            store.insert(question(number), CONTENT, entry("m", 500, 60));
        }
        for number in 0..20_000 {
            let asked = question(number % hot);
            if store.get(asked, CONTENT, NOW).is_none() {
                store.insert(asked, CONTENT, entry("m", 500, 60));
            }
            store.insert(question(hot + number), CONTENT, entry("m", 500, 60));
        }
        let kept = (0..hot).filter(|&n| store.get(question(n), CONTENT, NOW).is_some()).count();
        assert!(kept * 10 >= hot * 9, "{kept} of {hot}");
    }

    #[test]
    fn lifetimes_differ_a_little_and_are_never_longer() {
        let ttl = Duration::from_secs(100);
        let times: Vec<_> = (0..100).map(|number| lifetime(ttl, question(number))).collect();
        assert!(times.iter().all(|&time| time <= ttl && time >= Duration::from_secs(90)));
        assert!(times.iter().max() > times.iter().min());
        assert_eq!(lifetime(ttl, question(7)), times[7]);
    }
}
