//! Numbers that look like chance and are the same in every run.
//!
//! Inputs to compare two ways of running a model are drawn, and so are the cases of tests: a failure must come
//! back with its seed.

/// Numbers from 0 to 1, the same ones for the same seed (xorshift).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Begins at this seed, which must not be 0: all that follows would be 0, too.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number: at least 0, less than 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits")]
    pub fn number(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}
