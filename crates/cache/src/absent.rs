//! Models that are not there.
//!
//! A client that asks for a model under a wrong name asks again and again, and each time a worker says so. For a
//! while that can be known. It is known for each generation of what is served, so that a model which is loaded is
//! found with the next load report, however long its absence would have been remembered. Servers that state no
//! generation are asked each time: one may lack a model that the next one has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// Absences that are kept. Names are free to choose, so a flood of them must not fill the memory: beyond it
/// all are forgotten, and each costs one question more.
const MAX_ABSENCES: usize = 16 * 1024;

/// Models that are known not to be there, as numbers that stand for a name and a version, each in a generation.
#[derive(Debug, Default)]
pub struct Absences {
    until: RwLock<HashMap<(u64, u64), Duration>>,
    any: AtomicBool,
}

impl Absences {
    /// Notes that a model is not in this generation, which is believed until this time.
    pub fn note(&self, model: u64, generation: u64, until: Duration) {
        if generation == 0 {
            return;
        }
        let mut all = self.until.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_ABSENCES && !all.contains_key(&(model, generation)) {
            all.clear();
        }
        all.insert((model, generation), until);
        self.any.store(true, Relaxed);
    }

    /// Time for which a model is still believed not to be there; `None`: it may be.
    pub fn left(&self, model: u64, generation: u64, now: Duration) -> Option<Duration> {
        if !self.any.load(Relaxed) {
            return None;
        }
        let all = self.until.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&(model, generation))?.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        self.until.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_one_of_its_generation_and_ends() {
        let absences = Absences::default();
        let seconds = Duration::from_secs;
        assert_eq!(absences.left(1, 7, seconds(4)), None);
        absences.note(1, 7, seconds(10));
        absences.note(1, 0, seconds(10));
        assert_eq!(absences.left(1, 7, seconds(4)), Some(seconds(6)));
        for (model, generation, now) in [(1, 8, 4), (2, 7, 4), (1, 7, 10), (1, 0, 4)] {
            assert_eq!(absences.left(model, generation, seconds(now)), None);
        }
        absences.clear();
        assert_eq!(absences.left(1, 7, seconds(4)), None);
    }

    #[test]
    fn a_flood_of_names_takes_bounded_memory() {
        let absences = Absences::default();
        for model in 0..3 * MAX_ABSENCES as u64 {
            absences.note(model, 1, Duration::from_secs(1));
        }
        let kept = absences.until.read().unwrap_or_else(PoisonError::into_inner).len();
        assert!(kept <= MAX_ABSENCES);
    }
}
