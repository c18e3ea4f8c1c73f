//! Elementary functions on a vector of numbers, accurate to a few units in the last place.

use pulp::Simd;

/// The greater of two; the second where either is no number.
#[inline(always)]
pub(crate) fn max<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
    if S::F32_LANES > 1 {
        // The hardware does the same (x86), or returns NaN where either is NaN (ARM).
        simd.max_f32s(a, b)
    } else {
        // `f32::max`, the fallback otherwise, would lose NaN.
        simd.select_f32s(simd.greater_than_f32s(a, b), a, b)
    }
}

/// The lesser of two, in the same way.
#[inline(always)]
pub(crate) fn min<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
    if S::F32_LANES > 1 {
        simd.min_f32s(a, b)
    } else {
        simd.select_f32s(simd.less_than_f32s(a, b), a, b)
    }
}

/// `clamp`, that lets a NaN through as ONNX Runtime does.
#[inline(always)]
pub(crate) fn clip<S: Simd>(simd: S, x: S::f32s, low: S::f32s, high: S::f32s) -> S::f32s {
    min(simd, high, max(simd, low, x))
}

/// A polynomial, the highest power first.
#[inline(always)]
fn horner<S: Simd, const N: usize>(simd: S, x: S::f32s, factors: &[f32; N]) -> S::f32s {
    let mut sum = simd.splat_f32s(factors[0]);
    for &factor in &factors[1..] {
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(factor));
    }
    sum
}

/// e^x: reduction to a power of two, then a polynomial (Cephes).
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value| simd.splat_f32s(value);
    // Below, the result would be subnormal: it becomes 0 by the scale. Above it would be infinite.
    let x = clip(simd, x, splat(-87.336_54), splat(88.376_26));
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits.
    let magic = splat(12_582_912.0);
    let shifted = simd.mul_add_e_f32s(x, splat(std::f32::consts::LOG2_E), magic);
    let whole = simd.sub_f32s(shifted, magic);
    let rest = simd.mul_add_e_f32s(whole, splat(-0.693_359_4), x);
    let rest = simd.mul_add_e_f32s(whole, splat(2.121_944_4e-4), rest);
    let polynomial =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let sum = horner(simd, rest, &polynomial);
    let square = simd.mul_f32s(rest, rest);
    let sum = simd.mul_add_e_f32s(sum, square, simd.add_f32s(rest, splat(1.0)));
    let bits = simd.transmute_u32s_f32s(shifted);
    let exponent = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    let scaled = simd.add_u32s(simd.transmute_u32s_f32s(sum), exponent);
    simd.transmute_f32s_u32s(scaled)
}

/// e^x over the whole range: infinite above it, subnormal at its lower end.
#[inline(always)]
pub(crate) fn whole_exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let root = exp(simd, simd.mul_f32s(x, simd.splat_f32s(0.5)));
    simd.mul_f32s(root, root)
}

/// 1 / (1 + e^-x); 0 where e^-x would be infinite, and not the least number that a sum with it leaves.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let value = simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))));
    let is_end = simd.less_than_f32s(x, simd.splat_f32s(-88.722_84));
    simd.select_f32s(is_end, simd.splat_f32s(0.0), value)
}

/// Hyperbolic tangent: a rational function, odd (as in Eigen).
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value| simd.splat_f32s(value);
    let (size, sign) = (simd.abs_f32s(x), simd.and_f32s(x, splat(-0.0)));
    let x = clip(simd, x, splat(-7.905_311), splat(7.905_311));
    let square = simd.mul_f32s(x, x);
    let above = horner(
        simd,
        square,
        &[
            -2.760_768_5e-16,
            2.000_188e-13,
            -8.604_672e-11,
            5.122_297e-8,
            1.485_722_4e-5,
            6.372_619_3e-4,
            4.893_525e-3,
        ],
    );
    let below =
        horner(simd, square, &[1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3]);
    let value = simd.div_f32s(simd.mul_f32s(x, above), below);
    // The least number whose tangent is 1 when it is rounded: a step behind it may ask for that.
    let is_end = simd.greater_than_or_equal_f32s(size, splat(9.010_914));
    simd.select_f32s(is_end, simd.or_f32s(splat(1.0), sign), value)
}

/// Error function: a rational function, odd, as in Eigen, so that what is small keeps its digits.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value| simd.splat_f32s(value);
    let size = simd.abs_f32s(x);
    let sign = simd.and_f32s(x, splat(-0.0));
    let x = clip(simd, x, splat(-4.0), splat(4.0));
    let square = simd.mul_f32s(x, x);
    let above = horner(
        simd,
        square,
        &[
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let below = horner(
        simd,
        square,
        &[-1.456_607_2e-5, -2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2],
    );
    let value = simd.div_f32s(simd.mul_f32s(x, above), below);
    // From there on it is 1 or -1 to the last place, which a step behind it may ask for.
    let is_end = simd.greater_than_f32s(size, splat(3.925));
    simd.select_f32s(is_end, simd.or_f32s(splat(1.0), sign), value)
}
