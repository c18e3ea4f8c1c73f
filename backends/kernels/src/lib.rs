//! The arithmetic of the CPU engine: convolutions and products for the vector unit at hand.
//!
//! tract spends most of its time in a few loops that leave a factor of two to seven on the table
//! beside ONNX Runtime: it copies the input of a convolution into columns, runs depthwise ones
//! channel by channel, and writes each activation as a tensor of its own. Here the same numbers are
//! computed in channels-last order, straight from the input, and everything that is done to a value
//! afterwards is done while it is in a register.
//!
//! Plain slices in, plain slices out; no graph, no tensor type, no thread. Which vector unit there
//! is (AVX-512, AVX2 with FMA, or none) is asked once at run time, through `pulp`, so that one
//! binary runs everywhere and nothing here is `unsafe`.
//!
//! Modules: [`dense`] (products and convolutions over all channels), [`depthwise`] (convolutions of
//! each channel with itself), [`steps`] (what is done to a value before it is stored), [`rows`]
//! (softmax, sums and maxima), `math` (elementary functions on a vector).

pub mod dense;
pub mod depthwise;
mod math;
pub mod rows;
pub mod steps;

use std::sync::OnceLock;

/// The best vector unit of this machine.
pub(crate) fn arch() -> pulp::Arch {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    *ARCH.get_or_init(pulp::Arch::new)
}

/// Name of the vector unit in use, for logs and reports.
#[must_use]
pub fn vector_unit() -> &'static str {
    struct Lanes;
    impl pulp::WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    match arch().dispatch(Lanes) {
        16 => "avx512",
        8 => "avx2",
        4 => "neon",
        _ => "scalar",
    }
}
