//! The content of the models that are served now.
//!
//! A version number says little: it may be loaded again from other files, and a request that names no version
//! gets whichever is served by default. So an answer is kept under the content that gave it, which the
//! worker states with the answer, and is looked up under the content that is served now. That one must be
//! known without asking for each request: the worker states with its load a number, its generation, that
//! changes whenever anything that it serves does. While the generation stays, so does the content of each
//! model in it; when it changes, nothing is known until the next answer says it.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// Facts that are kept. Far more than there are models and generations; beyond it all are forgotten, and
/// each costs one miss.
const MAX_FACTS: usize = 16 * 1024;

/// The content of a model: what it consists of, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Content(pub u64);

impl Content {
    /// Of models about which nothing is stated. Only time, and the operator's epoch, tell one from another.
    pub const UNSTATED: Self = Self(0);
}

/// The content of each model in each generation, as far as it is known.
#[derive(Debug, Default)]
pub struct Contents {
    facts: RwLock<HashMap<(u64, u64), Fact>>,
}

/// A fact about a model in a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    /// Its content.
    pub content: Content,
    /// Whether its rows are independent, so that a batch may be taken apart; `None`: nothing is stated.
    pub has_rows: Option<bool>,
}

impl Fact {
    /// The fact about models whose server states nothing.
    pub const UNSTATED: Self = Self { content: Content::UNSTATED, has_rows: None };
}

impl Contents {
    /// The fact about a model in this generation, if it is known. `model` stands for its name and the
    /// version that is asked for.
    pub fn of(&self, model: u64, generation: u64) -> Option<Fact> {
        if generation == 0 {
            return Some(Fact::UNSTATED);
        }
        let facts = self.facts.read().unwrap_or_else(PoisonError::into_inner);
        facts.get(&(model, generation)).copied()
    }

    /// All facts, each with the model and the generation that it is about.
    pub fn all(&self) -> Vec<((u64, u64), Fact)> {
        let facts = self.facts.read().unwrap_or_else(PoisonError::into_inner);
        facts.iter().map(|(about, fact)| (*about, *fact)).collect()
    }

    /// Notes what an answer has stated.
    pub fn learn(&self, model: u64, generation: u64, fact: Fact) {
        if generation == 0 || self.of(model, generation) == Some(fact) {
            return;
        }
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        if facts.len() >= MAX_FACTS {
            facts.clear();
        }
        facts.insert((model, generation), fact);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_generation_is_unknown_until_an_answer_states_its_content() {
        let contents = Contents::default();
        let fact = |content| Fact { content: Content(content), has_rows: Some(true) };
        assert_eq!(contents.of(1, 0), Some(Fact::UNSTATED));
        assert_eq!(contents.of(1, 5), None);
        contents.learn(1, 5, fact(77));
        contents.learn(1, 0, fact(78));
        assert_eq!(contents.all(), [((1, 5), fact(77))]);
        assert_eq!(contents.of(1, 5), Some(fact(77)));
        assert_eq!(contents.of(1, 0), Some(Fact::UNSTATED));
        assert_eq!((contents.of(2, 5), contents.of(1, 6)), (None, None));
        for generation in 1..=(2 * MAX_FACTS as u64) {
            contents.learn(1, generation, fact(1));
        }
        let facts = contents.facts.read().unwrap_or_else(PoisonError::into_inner);
        assert!(facts.len() <= MAX_FACTS);
    }
}
