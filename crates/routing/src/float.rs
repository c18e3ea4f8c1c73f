//! Numbers with six digits, shared without locks: all that is known of a load needs no more, and half as
//! much of the cache holds it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A number that many read and write, each alone.
#[derive(Debug, Default)]
pub(crate) struct Float(AtomicU32);

impl Float {
    #[inline]
    pub(crate) fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set(&self, value: f32) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Draws it towards `value` with this weight.
    pub(crate) fn draw(&self, value: f32, weight: f32) {
        let old = self.get();
        self.set(old + weight * (value - old));
    }
}

/// Seconds with six digits, which is more than anybody knows of a service time.
#[allow(clippy::cast_possible_truncation, reason = "a service time needs no more than six digits")]
pub(crate) fn narrow(seconds: f64) -> f32 {
    seconds as f32
}
