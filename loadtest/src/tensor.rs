//! Random tensors of the right type and shape, as JSON and as bytes.

use crate::scenario::Wrong;
use serde::Serialize;
use std::str::FromStr;

/// Most elements in one tensor: 64 Mi, 256 MiB of FP32.
pub const MAX_ELEMENTS: u64 = 64 << 20;
/// Length of a random BYTES element.
const WORD: usize = 8;

/// A data type of the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datatype {
    /// `BOOL`
    Bool,
    /// `INT8`, `INT16`, `INT32`, `INT64`: bytes of an element.
    Int(usize),
    /// `UINT8`, `UINT16`, `UINT32`, `UINT64`: bytes of an element.
    Uint(usize),
    /// `FP16`, which has no JSON form.
    Fp16,
    /// `FP32`
    Fp32,
    /// `FP64`
    Fp64,
    /// `BYTES`
    Bytes,
}

impl FromStr for Datatype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "BOOL" => Self::Bool,
            "INT8" => Self::Int(1),
            "INT16" => Self::Int(2),
            "INT32" => Self::Int(4),
            "INT64" => Self::Int(8),
            "UINT8" => Self::Uint(1),
            "UINT16" => Self::Uint(2),
            "UINT32" => Self::Uint(4),
            "UINT64" => Self::Uint(8),
            "FP16" => Self::Fp16,
            "FP32" => Self::Fp32,
            "FP64" => Self::Fp64,
            "BYTES" => Self::Bytes,
            other => return Err(format!("expected a datatype such as FP32, found \"{other}\"")),
        })
    }
}

impl Datatype {
    /// Bytes of an element in the binary form.
    pub fn width(self) -> usize {
        match self {
            Self::Bool => 1,
            Self::Int(width) | Self::Uint(width) => width,
            Self::Fp16 => 2,
            Self::Fp32 => 4,
            Self::Fp64 => 8,
            Self::Bytes => 4 + WORD,
        }
    }
}

/// Where random numbers lie: from `low` up to, not including, `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Least value.
    pub low: f64,
    /// Bound above.
    pub high: f64,
}

impl Range {
    /// What a range looks like.
    pub const EXPECTED: &'static str = "a range such as \"0..256\", its low end below the high one";
}

impl FromStr for Range {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        text.split_once("..")
            .and_then(|(low, high)| Some(Self { low: number(low)?, high: number(high)? }))
            .filter(|range| range.low < range.high)
            .ok_or_else(|| Wrong { expected: Self::EXPECTED, found: text.to_owned() })
    }
}

/// The elements of a tensor in row-major order.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Data {
    /// Truth values.
    Bool(Vec<bool>),
    /// Whole numbers; the datatype says how wide they are.
    Int(Vec<i64>),
    /// Half precision, as its bits.
    #[serde(skip)]
    Fp16(Vec<u16>),
    /// Single precision.
    Fp32(Vec<f32>),
    /// Double precision.
    Fp64(Vec<f64>),
    /// Byte strings, which are ASCII words here.
    Bytes(Vec<String>),
}

impl Data {
    /// Draws `count` elements. Without a range, whole numbers are 0 to 99 (so that they are valid
    /// indices of nearly any table) and the others 0 to 1.
    #[allow(clippy::cast_possible_truncation, reason = "the values fit, or are meant to be cut")]
    pub fn random(
        datatype: Datatype,
        count: usize,
        range: Option<Range>,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let whole = range.unwrap_or(Range { low: 0.0, high: 100.0 });
        let real = range.unwrap_or(Range { low: 0.0, high: 1.0 });
        let mut between = |range: Range| range.low + rng.f64() * (range.high - range.low);
        match datatype {
            Datatype::Int(_) | Datatype::Uint(_) => {
                Self::Int((0..count).map(|_| between(whole).floor() as i64).collect())
            }
            Datatype::Fp32 => Self::Fp32((0..count).map(|_| between(real) as f32).collect()),
            Datatype::Fp64 => Self::Fp64((0..count).map(|_| between(real)).collect()),
            Datatype::Bool => Self::Bool((0..count).map(|_| rng.bool()).collect()),
            // Exponent of 1 and ten random bits behind it: evenly from 1 to 2.
            Datatype::Fp16 => Self::Fp16((0..count).map(|_| 0x3c00 | rng.u16(..0x400)).collect()),
            Datatype::Bytes => Self::Bytes(
                (0..count).map(|_| (0..WORD).map(|_| rng.lowercase()).collect()).collect(),
            ),
        }
    }

    /// Appends the elements in the protocol's binary form: little-endian, strings behind their
    /// length.
    pub fn write_binary(&self, datatype: Datatype, out: &mut Vec<u8>) {
        match self {
            Self::Bool(values) => out.extend(values.iter().map(|value| u8::from(*value))),
            Self::Int(values) => {
                let width = datatype.width();
                values.iter().for_each(|value| out.extend(&value.to_le_bytes()[..width]));
            }
            Self::Fp16(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::Fp32(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::Fp64(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::Bytes(values) => values.iter().for_each(|value| {
                let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
                out.extend(length.to_le_bytes());
                out.extend(value.as_bytes());
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    const ALL: [&str; 13] = [
        "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16",
        "FP32", "FP64", "BYTES",
    ];

    #[test]
    fn every_datatype_has_as_many_bytes_as_it_should() {
        let mut rng = fastrand::Rng::with_seed(1);
        for name in ALL {
            let datatype: Datatype = name.parse().unwrap();
            let data = Data::random(datatype, 10, None, &mut rng);
            let mut bytes = Vec::new();
            data.write_binary(datatype, &mut bytes);
            assert_eq!(bytes.len(), 10 * datatype.width(), "{name}");
        }
        assert!("FLOAT".parse::<Datatype>().is_err());
    }

    #[test]
    fn json_and_bytes_say_the_same() {
        let data = Data::Int(vec![-2, 300]);
        assert_eq!(serde_json::to_string(&data).unwrap(), "[-2,300]");
        let mut bytes = Vec::new();
        data.write_binary(Datatype::Int(4), &mut bytes);
        assert_eq!(bytes, [0xfe, 0xff, 0xff, 0xff, 0x2c, 1, 0, 0]);
    }

    #[test]
    fn a_range_bounds_what_is_drawn() {
        let mut rng = fastrand::Rng::with_seed(2);
        let range = Some(Range { low: 5.0, high: 8.0 });
        let Data::Int(values) = Data::random(Datatype::Int(4), 1000, range, &mut rng) else {
            unreachable!("an integer type gives integers")
        };
        assert_eq!((values.iter().min(), values.iter().max()), (Some(&5), Some(&7)));
    }
}
