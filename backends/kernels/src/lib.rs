//! The arithmetic of the CPU engine: convolutions and products for the vector unit at hand.
//!
//! tract spends most of its time in a few loops that leave a factor of two to seven on the table
//! beside ONNX Runtime: it copies the input of a convolution into columns, runs depthwise ones
//! channel by channel, and writes each activation as a tensor of its own. Here the same numbers are
//! computed in channels-last order, straight from the input, and everything that is done to a value
//! afterwards is done while it is in a register.
//!
//! Plain slices in, plain slices out; no graph, no tensor type, no thread. Which vector unit there
//! is ([`Unit`]: AVX-512, AVX2 with FMA, NEON or none) is asked once at run time, through `pulp`, so
//! that one binary runs everywhere and nothing here is `unsafe`.
//!
//! Modules: [`dense`] (products and convolutions over all channels), [`depthwise`] (convolutions of
//! each channel with itself), [`packed`] (their weights), [`epilogue`] (what is done to a value before it
//! is stored), [`reduce`] (softmax, sums and maxima), [`trees`] (decision trees), `math` (elementary
//! functions on a vector), `cache` (its size).

mod cache;
pub mod dense;
pub mod depthwise;
pub mod epilogue;
mod math;
pub mod packed;
pub mod reduce;
pub mod trees;
mod vector;

use std::fmt;
use std::sync::OnceLock;

static ARCH: OnceLock<pulp::Arch> = OnceLock::new();

/// The vector unit that everything here runs on, for as long as the process lives: weights are laid
/// out for its width.
pub(crate) fn arch() -> pulp::Arch {
    *ARCH.get_or_init(pulp::Arch::new)
}

/// Values that it takes at once.
pub(crate) fn lanes() -> usize {
    lanes_of(arch())
}

fn lanes_of(arch: pulp::Arch) -> usize {
    struct Lanes;
    impl pulp::WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    arch.dispatch(Lanes)
}

/// A vector unit that there is code for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 16 values at once.
    Avx512,
    /// 8 values at once, with fused products.
    Avx2,
    /// 4 values at once, on ARM.
    Neon,
    /// One value after the other: everywhere.
    Scalar,
}

impl Unit {
    /// Those of every machine, the widest first.
    pub const ALL: [Self; 4] = [Self::Avx512, Self::Avx2, Self::Neon, Self::Scalar];

    /// The unit in use: the widest of this machine, unless [`Unit::choose`] came first.
    #[must_use]
    pub fn in_use() -> Self {
        Self::of(arch())
    }

    /// Whether this machine has such a unit.
    #[must_use]
    pub fn is_here(self) -> bool {
        self.arch().is_some()
    }

    /// Makes this the unit in use, if no kernel was made or run yet; `false` if another is in use
    /// already, or if it is not here.
    #[must_use]
    pub fn choose(self) -> bool {
        self.arch().is_some_and(|arch| Self::of(*ARCH.get_or_init(|| arch)) == self)
    }

    fn of(arch: pulp::Arch) -> Self {
        match lanes_of(arch) {
            16 => Self::Avx512,
            8 => Self::Avx2,
            4 => Self::Neon,
            _ => Self::Scalar,
        }
    }

    fn arch(self) -> Option<pulp::Arch> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => pulp::x86::V4::try_new().map(pulp::Arch::V4),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().map(pulp::Arch::V3),
            Self::Scalar => Some(pulp::Arch::Scalar),
            other => Some(pulp::Arch::new()).filter(|&arch| Self::of(arch) == other),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Scalar => "scalar",
        })
    }
}
