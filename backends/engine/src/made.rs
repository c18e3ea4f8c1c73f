//! Inputs that are made up, to warm a model up and to measure it.
//!
//! Nothing is known of a model's inputs but their shapes. So the values are harmless ones: a model must run
//! with them, and rows must differ, so that rows that see each other are found out.

use crate::Random;
use forebay_protocol::oip::{Data, Datatype, Tensor, TensorMetadata};

/// An input of this shape with harmless values that differ between rows: zeros and ones where they may be
/// indices, a wave else, and of `words` where it takes texts. Its first row is that of the number `first_row`.
#[allow(clippy::cast_precision_loss, reason = "values of a wave need no precision")]
pub fn tensor(
    input: &TensorMetadata,
    shape: Vec<usize>,
    first_row: usize,
    words: &[String],
) -> Tensor {
    let count: usize = shape.iter().product();
    let row = count / shape.first().copied().unwrap_or(1).max(1);
    let bit = |i: usize| (i / row.max(1) + first_row + i % row.max(1) * 7 / 3) % 2;
    let phase = |i: usize| (i + first_row * row) as f64;
    let wave = |i: usize| (phase(i) * 0.37).sin() * 0.5 + (phase(i) * 0.011).cos() * 0.5;
    let data = match input.datatype {
        Datatype::Fp32 =>
        {
            #[allow(clippy::cast_possible_truncation, reason = "values of a wave")]
            Data::Fp32((0..count).map(|i| wave(i) as f32).collect())
        }
        Datatype::Fp64 => Data::Fp64((0..count).map(wave).collect()),
        Datatype::Bytes => {
            let word = |i: usize| words.get((i + first_row * row) % words.len().max(1));
            Data::Bytes((0..count).map(|i| word(i).map_or("a", String::as_str)).collect())
        }
        Datatype::Fp16 => Data::Fp16((0..count).map(|i| half(wave(i))).collect()),
        datatype => {
            let bytes: Vec<u8> = (0..count)
                .flat_map(|i| {
                    let mut element = vec![0; datatype.size().unwrap_or(1)];
                    element[0] = u8::from(bit(i) == 1);
                    element
                })
                .collect();
            Data::from_binary(datatype, count, &bytes).unwrap_or(Data::Bool(Vec::new()))
        }
    };
    Tensor { name: input.name.clone(), shape, data }
}

/// An input of this shape with values that are drawn: floats from -1 to 1, and else what [`tensor`] takes.
#[allow(clippy::cast_possible_truncation, reason = "numbers from -1 to 1")]
pub fn drawn(
    input: &TensorMetadata,
    shape: Vec<usize>,
    words: &[String],
    random: &mut Random,
) -> Tensor {
    let count = shape.iter().product();
    let mut number = || random.number().mul_add(2.0, -1.0);
    let data = match input.datatype {
        Datatype::Fp32 => Data::Fp32((0..count).map(|_| number() as f32).collect()),
        Datatype::Fp64 => Data::Fp64((0..count).map(|_| number()).collect()),
        Datatype::Fp16 => Data::Fp16((0..count).map(|_| half(number())).collect()),
        Datatype::Bool => Data::Bool((0..count).map(|_| number() < 0.0).collect()),
        _ => return tensor(input, shape, usize::from(number() < 0.0), words),
    };
    Tensor { name: input.name.clone(), shape, data }
}

/// Ones for the zeros of integers.
pub fn without_zeros(data: Data) -> Data {
    let datatype = data.datatype();
    let is_integer = !matches!(
        datatype,
        Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes | Datatype::Bool
    );
    let size = datatype.size().filter(|_| is_integer);
    let Some(size) = size else { return data };
    let one: Vec<u8> = (0..size).map(|place| u8::from(place == 0)).collect();
    let count = data.len();
    Data::from_binary(datatype, count, &one.repeat(count)).unwrap_or(data)
}

/// The bits of the half that is nearest to a number of at most 1; those below its least normal become 0.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within a half's bits")]
fn half(value: f64) -> u16 {
    const LEAST: f64 = 6.103_515_625e-5;
    let size = value.abs();
    let sign = u16::from(value.is_sign_negative()) << 15;
    if size.is_nan() || size < LEAST {
        return sign;
    }
    let exponent = size.log2().floor();
    let mantissa = ((size / exponent.exp2() - 1.0) * 1024.0).round() as u16;
    // A mantissa that is rounded up to the next power of two carries into the exponent.
    sign | ((((exponent as i16 + 15) as u16) << 10) + mantissa)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_the_nearest() {
        for (value, bits) in
            [(0.0, 0), (1.0, 0x3c00), (-0.5, 0xb800), (0.1, 0x2e66), (0.999_99, 0x3c00), (1e-9, 0)]
        {
            assert_eq!(half(value), bits, "{value}");
        }
    }

    #[test]
    fn rows_differ_and_come_again() {
        for &datatype in Datatype::ALL {
            let input = TensorMetadata { name: "x".to_owned(), datatype, shape: vec![-1, 3] };
            let words = ["a".to_owned(), "b".to_owned(), "c".to_owned(), "d".to_owned()];
            let both = tensor(&input, vec![2, 3], 0, &words);
            let second = tensor(&input, vec![1, 3], 1, &words);
            assert_eq!(both.data.slice(3..6), Some(second.data.clone()), "{datatype:?}");
            assert_ne!(both.data.slice(0..3), Some(second.data), "{datatype:?}");
        }
    }

    #[test]
    fn integers_can_be_without_zeros() {
        let data = without_zeros(Data::Int64(vec![0, 1, 0].into()));
        assert_eq!(data, Data::Int64(vec![1, 1, 1].into()));
        let floats = Data::Fp32(vec![0.0, 2.0].into());
        assert_eq!(without_zeros(floats.clone()), floats);
    }
}
