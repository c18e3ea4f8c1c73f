//! Random tensors of the right type and shape.

use crate::scenario::Range;
use forebay_protocol::oip::{Data, Datatype};

/// Maximum number of elements in one tensor: 64 Mi, 256 MiB of FP32.
pub(super) const MAX_ELEMENTS: u64 = 64 << 20;
/// Length of a random BYTES element.
const WORD: usize = 8;

/// Whole numbers where nothing is said: valid indices of nearly any table.
const WHOLE: Range = Range { low: 0.0, high: 100.0 };
/// Other numbers where nothing is said.
const REAL: Range = Range { low: 0.0, high: 1.0 };

/// Draws `count` elements. Without a range, whole numbers are 0 to 99 and the others 0 to 1.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and a range beyond a type is cut to it"
)]
pub(super) fn random(
    datatype: Datatype,
    count: usize,
    range: Option<Range>,
    rng: &mut fastrand::Rng,
) -> Data {
    macro_rules! draw {
        ($kind:ident, $default:expr, $value:ident => $as:expr) => {{
            let Range { low, high } = range.unwrap_or($default);
            let one = |_| {
                let $value = low + rng.f64() * (high - low);
                $as
            };
            Data::$kind((0..count).map(one).collect())
        }};
    }
    match datatype {
        Datatype::Uint8 => draw!(Uint8, WHOLE, v => v.floor() as u8),
        Datatype::Uint16 => draw!(Uint16, WHOLE, v => v.floor() as u16),
        Datatype::Uint32 => draw!(Uint32, WHOLE, v => v.floor() as u32),
        Datatype::Uint64 => draw!(Uint64, WHOLE, v => v.floor() as u64),
        Datatype::Int8 => draw!(Int8, WHOLE, v => v.floor() as i8),
        Datatype::Int16 => draw!(Int16, WHOLE, v => v.floor() as i16),
        Datatype::Int32 => draw!(Int32, WHOLE, v => v.floor() as i32),
        Datatype::Int64 => draw!(Int64, WHOLE, v => v.floor() as i64),
        Datatype::Fp32 => draw!(Fp32, REAL, v => v as f32),
        Datatype::Fp64 => draw!(Fp64, REAL, v => v),
        Datatype::Bool => Data::Bool((0..count).map(|_| rng.bool()).collect()),
        // Exponent of 1 and ten random bits behind it: evenly from 1 to 2.
        Datatype::Fp16 => Data::Fp16((0..count).map(|_| 0x3c00 | rng.u16(..0x400)).collect()),
        Datatype::Bytes => {
            let word = |_| (0..WORD).map(|_| rng.lowercase()).collect::<String>();
            Data::Bytes((0..count).map(word).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_can_be_drawn_and_has_as_many_elements_as_it_should() {
        let mut rng = fastrand::Rng::with_seed(1);
        for &datatype in Datatype::ALL {
            let data = random(datatype, 10, None, &mut rng);
            assert_eq!((data.datatype(), data.len()), (datatype, 10));
            assert_eq!(data.first_non_finite(), None, "{datatype}");
        }
    }

    #[test]
    fn values_are_drawn_within_the_range() {
        let mut rng = fastrand::Rng::with_seed(2);
        let range = Some(Range { low: 5.0, high: 8.0 });
        let Data::Int32(values) = random(Datatype::Int32, 1000, range, &mut rng) else {
            unreachable!("an integer type gives integers")
        };
        assert_eq!((values.iter().min(), values.iter().max()), (Some(&5), Some(&7)));
    }
}
