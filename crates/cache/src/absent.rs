//! Models that are not there.
//!
//! A client that asks for a model under a wrong name asks again and again, and each time an endpoint says so.
//! For a while that can be known. It is known for each generation of what is served, so that a model which is
//! loaded is found with the next load report, however long its absence would have been remembered.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Absences that are kept. Names are free to choose, so a flood of them must not fill the memory: beyond it
/// all are forgotten, and each costs one question more.
const MAX_ABSENCES: usize = 16 * 1024;

/// The place at which a model was not found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Name of the pool.
    pub pool: Arc<str>,
    /// The model and the version that is asked for, as a number.
    pub model: u64,
    /// The generation of what was served there; 0 where none is stated.
    pub generation: u64,
}

/// Models that are known not to be there.
#[derive(Debug, Default)]
pub struct Absences {
    until: RwLock<HashMap<Place, Duration>>,
}

impl Absences {
    /// Notes that a model is not there, which is believed until this time.
    pub fn note(&self, place: Place, until: Duration) {
        let mut all = self.until.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_ABSENCES && !all.contains_key(&place) {
            all.clear();
        }
        all.insert(place, until);
    }

    /// Time for which a model is still believed not to be there; `None`: it may be.
    pub fn left(&self, place: &Place, now: Duration) -> Option<Duration> {
        let all = self.until.read().unwrap_or_else(PoisonError::into_inner);
        all.get(place)?.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        self.until.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(model: u64, generation: u64) -> Place {
        Place { pool: "p".into(), model, generation }
    }

    #[test]
    fn an_absence_is_one_of_its_generation_and_ends() {
        let absences = Absences::default();
        let seconds = Duration::from_secs;
        absences.note(place(1, 7), seconds(10));
        assert_eq!(absences.left(&place(1, 7), seconds(4)), Some(seconds(6)));
        assert_eq!(absences.left(&place(1, 8), seconds(4)), None);
        assert_eq!(absences.left(&place(2, 7), seconds(4)), None);
        assert_eq!(absences.left(&place(1, 7), seconds(10)), None);
        absences.clear();
        assert_eq!(absences.left(&place(1, 7), seconds(4)), None);
    }

    #[test]
    fn a_flood_of_names_takes_bounded_memory() {
        let absences = Absences::default();
        for model in 0..3 * MAX_ABSENCES as u64 {
            absences.note(place(model, 1), Duration::from_secs(1));
        }
        let kept = absences.until.read().unwrap_or_else(PoisonError::into_inner).len();
        assert!(kept <= MAX_ABSENCES);
    }
}
