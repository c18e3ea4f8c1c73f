//! Requests whose very bytes came before.
//!
//! Reading a request, hashing its tensors and writing its answer take most of the time of a hit, and clients that ask the
//! same mostly do so in the same bytes. So for those that had a hit it is kept which question they ask, and the answer as it
//! was written. Only bytes and places that are equal are taken for the same, under a key of their own; whether there
//! is a kept answer, the [store](crate::store) alone says, so nothing here can be out of date.

use crate::question::{Question, Seen};
use crate::store::Entry;
use bytes::Bytes;
use forebay_protocol::oip::{InferRequest, Parameter, Parameters};
use http::HeaderValue;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// Bytes that a request takes here beside its answer and the names in it.
const OVERHEAD: u64 = 512;
/// Bytes of an output or a parameter beside its name and its text.
const PLACE: usize = 128;
/// A request with longer names and texts is not remembered: the texts of usual ones are short, and a client could send
/// others each time.
const MAX_TEXTS: usize = 1024;
/// The size of a usual one, from which the number of places in the table follows.
const USUAL: u64 = 2048;
/// Longer answers are written again: beside their bytes, writing costs little.
pub const MAX_ANSWER: usize = 64 * 1024;

/// A request that had a hit.
#[derive(Debug)]
pub struct Known {
    /// Its question.
    pub question: Question,
    /// The request without its inputs.
    pub request: InferRequest,
    /// The answer as it was written.
    pub written: Option<Written>,
}

/// An answer as it was written.
#[derive(Debug)]
pub struct Written {
    /// The entry that it was written from, which it does not keep.
    entry: Weak<Entry>,
    /// Its type.
    pub content_type: HeaderValue,
    /// Bytes of JSON before the tensors.
    pub json_len: Option<HeaderValue>,
    /// Its body.
    pub body: Bytes,
}

impl Written {
    /// The answer from this entry, in memory of its own.
    pub fn new(
        entry: &Arc<Entry>,
        (content_type, json_len): (HeaderValue, Option<HeaderValue>),
        body: &[u8],
    ) -> Self {
        let entry = Arc::downgrade(entry);
        Self { entry, content_type, json_len, body: Bytes::copy_from_slice(body) }
    }

    /// Whether it was written from this entry.
    pub fn is_of(&self, entry: &Entry) -> bool {
        // The place of an entry is not used again while there is a reference to it.
        std::ptr::eq(self.entry.as_ptr(), entry)
    }
}

impl Known {
    /// Bytes that it takes.
    fn size(&self) -> u64 {
        let body = self.written.as_ref().map_or(0, |written| written.body.len());
        let places: usize = self.parameters().map(|it| it.iter().count()).sum();
        let places = PLACE * (places + self.request.outputs.len());
        (body + self.texts() + places) as u64 + OVERHEAD
    }

    /// Bytes of all names and texts in its request.
    fn texts(&self) -> usize {
        let parameters = self.parameters().flat_map(Parameters::iter).map(|(name, value)| {
            let text = if let Parameter::String(text) = value { text.len() } else { 0 };
            name.len() + text
        });
        let names = self.request.outputs.iter().map(|it| it.name.len());
        parameters.sum::<usize>() + names.sum::<usize>()
    }

    /// The parameters of the request, and of each output.
    fn parameters(&self) -> impl Iterator<Item = &Parameters> {
        let of_outputs = self.request.outputs.iter().map(|it| &it.parameters);
        std::iter::once(&self.request.parameters).chain(of_outputs)
    }
}

#[derive(Clone)]
struct Size;

impl Weighter<Seen, Arc<Known>> for Size {
    fn weight(&self, _: &Seen, known: &Arc<Known>) -> u64 {
        known.size()
    }
}

/// Requests that had a hit.
pub struct Memo {
    cache: Cache<Seen, Arc<Known>, Size>,
    bytes: AtomicU64,
}

impl Memo {
    /// Of at most so many bytes.
    pub fn new(bytes: u64) -> Self {
        let usual = usize::try_from(bytes / USUAL).unwrap_or(usize::MAX);
        Self { cache: Cache::with_weighter(usual, bytes, Size), bytes: AtomicU64::new(bytes) }
    }

    /// Changes the bound.
    pub fn resize(&self, bytes: u64) {
        if self.bytes.load(Relaxed) != bytes && self.bytes.swap(bytes, Relaxed) != bytes {
            self.cache.set_capacity(bytes);
        }
    }

    /// The request with these bytes.
    pub fn get(&self, seen: Seen) -> Option<Arc<Known>> {
        self.cache.get(&seen)
    }

    /// Keeps a request, unless its names and texts are long.
    pub fn insert(&self, seen: Seen, known: Known) {
        if known.texts() <= MAX_TEXTS {
            self.cache.insert(seen, Arc::new(known));
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// The bound.
    pub fn capacity(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::answer::Answer;
    use forebay_protocol::oip::RequestedOutput;
    use std::time::Duration;

    fn entry() -> Arc<Entry> {
        Arc::new(Entry {
            answer: Answer::of_bytes(Vec::new()),
            route: "".into(),
            model: "".into(),
            version: None,
            born: Duration::ZERO,
            expires: Duration::ZERO,
            gone: Duration::ZERO,
            took: Duration::ZERO,
        })
    }

    fn known(entry: &Arc<Entry>, bytes: usize) -> Known {
        let kind = HeaderValue::from_static("application/json");
        let written = Written::new(entry, (kind, None), &vec![1; bytes]);
        let question = Question::from_bytes([1; 32]);
        Known { question, request: InferRequest::default(), written: Some(written) }
    }

    #[test]
    fn a_written_answer_is_one_of_its_entry_alone() {
        let (one, two) = (entry(), entry());
        let known = known(&one, 10);
        let written = known.written.as_ref().unwrap();
        assert!(written.is_of(&one) && !written.is_of(&two));
        assert_eq!(Arc::strong_count(&one), 1, "it does not keep the entry");
        drop(one);
        assert!((0..100).all(|_| !written.is_of(&entry())));
    }

    #[test]
    fn names_and_texts_count_wherever_they_stand() {
        let text = |bytes: usize| Parameter::String("x".repeat(bytes));
        let parameters = |count: usize, bytes: usize| -> Parameters {
            // Of one name that stands there often, all are held.
            (0..count).map(|_| ("binary_data".to_owned(), text(bytes))).collect()
        };
        let of = |request: InferRequest| Known { request, ..known(&entry(), 10) };
        let with = |parameters| InferRequest { parameters, ..InferRequest::default() };
        let output = |name: usize, parameters| InferRequest {
            outputs: vec![RequestedOutput { name: "y".repeat(name), parameters }],
            ..InferRequest::default()
        };
        let plain = of(InferRequest::default()).size();
        for (request, bytes) in [
            (with(parameters(1, 60_000)), 60_000),
            (with(parameters(6, 200)), 1_200 + 6 * PLACE),
            (with([("z".repeat(2_000), Parameter::Int(1))].into_iter().collect()), 2_000),
            (output(1, parameters(1, 60_000)), 60_000),
            (output(2_000, Parameters::default()), 2_000),
        ] {
            let known = of(request);
            assert!(known.size() >= plain + bytes as u64, "{bytes}");
            let memo = Memo::new(1_000_000);
            memo.insert(Seen::from_bytes([1; 32]), known);
            assert_eq!(memo.bytes(), 0, "it is too long to be remembered");
        }
        let memo = Memo::new(1_000_000);
        memo.insert(Seen::from_bytes([1; 32]), of(output(10, parameters(2, 300))));
        assert!(memo.bytes() >= plain + 610 + 3 * PLACE as u64);
    }

    #[test]
    fn it_stays_within_its_bound() {
        let memo = Memo::new(100_000);
        let entry = entry();
        for number in 0..1000_u16 {
            let mut seen = [0; 32];
            seen[..2].copy_from_slice(&number.to_le_bytes());
            memo.insert(Seen::from_bytes(seen), known(&entry, usize::from(number)));
            assert!(memo.bytes() <= 100_000);
        }
        assert!(memo.bytes() > 50_000);
        memo.resize(10_000);
        assert_eq!(memo.capacity(), 10_000);
        assert!(memo.bytes() <= 10_000);
    }
}
