//! Numbers for the content of models, so that caches know when it changes.
//!
//! A cache in front of several workers has to know whether two of them answer alike, and when one of them
//! begins to answer otherwise. So the content of a version is a number that follows from its files and its
//! configuration alone, and all that a worker serves has one number, the generation. Workers that serve the
//! same have the same numbers. Whether a version is in memory makes no difference.

use crate::config::model::ModelConfig;
use crate::inference::embedding::Embedder;
use crate::repository::version::Labels;
use std::collections::BTreeMap;

/// Bits of a generation: it is stated as a double, which holds so many exactly.
const GENERATION_BITS: u32 = 53;

/// The content of a version: its file, its configuration, and what is beside it. Never 0.
pub(crate) fn content(
    digest: &str,
    config: &ModelConfig,
    (labels, embedding): (&Labels, Option<&Embedder>),
) -> u64 {
    let tokenizer = embedding.map(|embedding| embedding.digest);
    number(&format!("{digest} {config:?} {labels:?} {tokenizer:?}"))
}

/// The number of all that is served, and under which names: of each model its name, its labels, and its
/// versions with their contents, in their order. Never 0.
pub(crate) fn generation<'a>(
    models: impl Iterator<Item = (&'a str, &'a BTreeMap<String, u64>, Vec<(u64, u64)>)>,
) -> u64 {
    let text: String = models
        .map(|(name, labels, versions)| format!("{name:?} {labels:?} {versions:?}\n"))
        .collect();
    (number(&text) >> (u64::BITS - GENERATION_BITS)).max(1)
}

fn number(text: &str) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    u64::from_be_bytes(bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_generation_fits_a_double_and_follows_from_what_is_served() {
        let (none, label) = (BTreeMap::new(), BTreeMap::from([("stable".to_owned(), 1)]));
        let cases = [
            generation(std::iter::empty()),
            generation([("m", &none, vec![(1, 7)])].into_iter()),
            generation([("m", &label, vec![(1, 7)])].into_iter()),
            generation([("m", &none, vec![(1, 8)])].into_iter()),
            generation([("m", &none, vec![(1, 7), (2, 7)])].into_iter()),
            generation([("n", &none, vec![(1, 7)])].into_iter()),
        ];
        assert!(cases.iter().all(|&number| number > 0 && number < 1 << GENERATION_BITS));
        assert_eq!(cases.iter().collect::<BTreeSet<_>>().len(), cases.len());
        assert_eq!(cases[1], generation([("m", &none, vec![(1, 7)])].into_iter()));
    }
}
