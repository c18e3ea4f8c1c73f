//! Seeds of a run's parts, all from the run's own.
//!
//! Two sequences of chance must not depend on each other: otherwise a policy that draws once more would
//! be given other requests.

use forebay_routing::Rng;

/// The seed of part `number` of what has this `seed`: neighbouring numbers have unrelated seeds.
pub(crate) fn derive(seed: u64, number: u64) -> u64 {
    Rng::new(seed ^ Rng::new(number).next_u64()).next_u64()
}
