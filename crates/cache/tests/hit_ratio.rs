//! The share of requests that the store answers, beside the best that is possible without knowing the future.
#![allow(clippy::unwrap_used, reason = "tests")]

use forebay_cache::{Answer, Asked, Content, Entry, Hasher, Question, Store};
use forebay_protocol::oip::{Data, InferRequest, InferResponse, Tensor};
use std::sync::Arc;
use std::time::Duration;

/// Different questions.
const KEYS: usize = 100_000;
/// Answers that there is room for: one in a hundred.
const KEPT: usize = KEYS / 100;
const REQUESTS: usize = 400_000;
const LENGTH: usize = 3_000;
const NOW: Duration = Duration::ZERO;

/// Zipf's law with exponent 0.9: the share of the requests up to each key.
fn law() -> Vec<f64> {
    let mut sum = 0.0;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let shares = (1..=KEYS).map(|rank| {
        sum += (rank as f64).powf(-0.9);
        sum
    });
    let mut shares: Vec<_> = shares.collect();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

struct Tried {
    store: Store,
    hasher: Hasher,
    answer: Answer,
    hits: usize,
}

impl Tried {
    fn new() -> Self {
        let tensor = Tensor::new("y", vec![LENGTH], Data::Uint8(vec![1; LENGTH].into())).unwrap();
        let response = InferResponse { outputs: vec![tensor], ..InferResponse::default() };
        let answer = Answer::new(response);
        let entry = entry(&answer).size();
        // The tables take their part of the bound.
        let bound = (KEPT as u64 * entry) * 4096 / (4096 - 120);
        Self { store: Store::new(bound), hasher: Hasher::new([0; 32]), answer, hits: 0 }
    }

    fn ask(&mut self, key: usize) {
        let question = question(&self.hasher, key);
        if self.store.get(question, Content(1), NOW).is_some() {
            self.hits += 1;
        } else {
            self.store.insert(question, Content(1), Arc::new(entry(&self.answer)));
        }
    }
}

fn question(hasher: &Hasher, key: usize) -> Question {
    let asked = Asked {
        route: "",
        variant: "",
        model: &key.to_string(),
        version: None,
        epoch: "",
        client: None,
        vary: &[],
    };
    hasher.question(&asked, &InferRequest::default()).unwrap()
}

fn entry(answer: &Answer) -> Entry {
    let long = Duration::from_secs(3600);
    Entry {
        answer: answer.clone(),
        route: "".into(),
        model: "".into(),
        version: None,
        born: NOW,
        expires: long,
        gone: long,
        took: NOW,
    }
}

/// The share of hits, once the store is full. `scans`: the share of requests that are asked once and never again.
fn hit_ratio(scans: f64, seed: u64) -> f64 {
    let (law, mut tried, mut random) = (law(), Tried::new(), fastrand::Rng::with_seed(seed));
    let mut asked_once = KEYS;
    let warm_up = REQUESTS / 4;
    let mut counted = 0;
    for number in 0..REQUESTS {
        if number == warm_up {
            tried.hits = 0;
        }
        if random.f64() < scans {
            asked_once += 1;
            let before = tried.hits;
            tried.ask(asked_once);
            tried.hits = before;
            continue;
        }
        counted += usize::from(number >= warm_up);
        let draw = random.f64();
        tried.ask(law.partition_point(|&share| share < draw).min(KEYS - 1));
    }
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let ratio = tried.hits as f64 / counted as f64;
    ratio
}

#[test]
fn popular_answers_stay_also_while_others_pass_through() {
    // Each request is drawn by itself, so no store that does not know the future has more hits than one that keeps
    // the most popular answers.
    let best = law()[KEPT - 1];
    for seed in [1, 2] {
        let (plain, scanned) = (hit_ratio(0.0, seed), hit_ratio(0.5, seed));
        eprintln!("best {best:.3}, without scans {plain:.3}, with scans {scanned:.3}");
        assert!(plain > best - 0.06 && plain <= best + 0.01, "{plain} of {best}");
        assert!(scanned > best - 0.08 && scanned <= best + 0.01, "{scanned} of {best}");
    }
}
