//! How far two answers to one request lie apart, output by output.
//!
//! A status of 200 says nothing of what a model answers. Here the tensors of two answers are compared: first their
//! datatype and shape, then their elements. Every figure is finite, whatever the models have answered, since one
//! infinity would spoil every mean that it goes into.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use forebay_protocol::oip::{Data, InferResponse, Tensor};
use serde::{Deserialize, Serialize};

/// Stands for a difference that is not finite: between a number and none, or an infinity.
const MAX_ABSOLUTE: f64 = 1e30;
/// The largest relative difference: of two numbers with opposite signs.
const MAX_RELATIVE: f64 = 2.0;
/// The output of a request for embeddings.
pub(super) const EMBEDDING: &str = "embedding";

/// The reason for which an output of one answer can't be compared with that of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mismatch {
    /// One of the answers has no such output.
    Missing,
    /// The elements are of another type.
    Datatype,
    /// The dimensions are others.
    Shape,
}

/// The difference between two outputs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Difference {
    /// The name of the output.
    pub(super) output: String,
    /// Why nothing else could be compared.
    pub(super) mismatch: Option<Mismatch>,
    /// From 0 (equal) to 1: the distance of two outputs of numbers as vectors, in relation to the longer one;
    /// the share of elements that differ, of texts and truth values; 1 for a mismatch.
    pub(super) score: f64,
    /// The largest difference of two elements, and the mean.
    pub(super) absolute: Option<(f64, f64)>,
    /// The same in relation to the larger element, from 0 to 2.
    pub(super) relative: Option<(f64, f64)>,
    /// The share of rows whose largest element stands elsewhere, where a row has several.
    pub(super) disagreement: Option<f64>,
    /// The largest cosine distance of two embeddings, from 0 to 2.
    pub(super) cosine: Option<f64>,
}

impl Difference {
    fn mismatch(output: &str, mismatch: Mismatch) -> Self {
        Self { mismatch: Some(mismatch), score: 1.0, ..Self::none(output) }
    }

    fn none(output: &str) -> Self {
        Self {
            output: output.to_owned(),
            mismatch: None,
            score: 0.0,
            absolute: None,
            relative: None,
            disagreement: None,
            cosine: None,
        }
    }

    /// Its figures, each with its word in metrics.
    pub(super) fn measures(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let score = Some(("score", self.score));
        let absolute =
            self.absolute.map(|(max, mean)| [("max_absolute", max), ("mean_absolute", mean)]);
        let relative =
            self.relative.map(|(max, mean)| [("max_relative", max), ("mean_relative", mean)]);
        let disagreement = self.disagreement.map(|it| ("argmax_disagreement", it));
        let cosine = self.cosine.map(|it| ("cosine_distance", it));
        let pairs = absolute.into_iter().chain(relative).flatten();
        score.into_iter().chain(pairs).chain(disagreement).chain(cosine)
    }
}

/// The differences of all outputs that one of the answers has.
pub(super) fn responses(given: &InferResponse, other: &InferResponse) -> Vec<Difference> {
    let of = |response: &InferResponse, name: &str| {
        response.outputs.iter().position(|output| output.name == name)
    };
    let compared = given.outputs.iter().map(|output| match of(other, &output.name) {
        Some(place) => tensors(output, &other.outputs[place]),
        None => Difference::mismatch(&output.name, Mismatch::Missing),
    });
    let added = other.outputs.iter().filter(|output| of(given, &output.name).is_none());
    let added = added.map(|output| Difference::mismatch(&output.name, Mismatch::Missing));
    compared.chain(added).collect()
}

fn tensors(given: &Tensor, other: &Tensor) -> Difference {
    let name = &given.name;
    if given.data.datatype() != other.data.datatype() {
        return Difference::mismatch(name, Mismatch::Datatype);
    }
    if given.shape != other.shape {
        return Difference::mismatch(name, Mismatch::Shape);
    }
    match (&given.data, &other.data) {
        (Data::Bytes(given), Data::Bytes(other)) => {
            Difference { score: unequal(given.iter(), other.iter()), ..Difference::none(name) }
        }
        (Data::Bool(given), Data::Bool(other)) => {
            Difference { score: unequal(given.iter(), other.iter()), ..Difference::none(name) }
        }
        (given_data, other) => {
            let (mine, theirs) = (numbers(given_data), numbers(other));
            let row = given.shape.last().copied().unwrap_or(1);
            let disagreement = (row > 1).then(|| disagreement(&mine, &theirs, row));
            Difference { disagreement, ..of_numbers(name, &mine, &theirs) }
        }
    }
}

/// The share of elements that differ.
fn unequal<T: PartialEq>(given: impl Iterator<Item = T>, other: impl Iterator<Item = T>) -> f64 {
    let (mut all, mut unequal) = (0_u32, 0_u32);
    for (given, other) in given.zip(other) {
        all = all.saturating_add(1);
        unequal = unequal.saturating_add(u32::from(given != other));
    }
    f64::from(unequal) / f64::from(all.max(1))
}

fn of_numbers(name: &str, given: &[f64], other: &[f64]) -> Difference {
    let (mut absolute, mut relative) = ((0.0_f64, 0.0), (0.0_f64, 0.0));
    let (mut apart, mut of_given, mut of_other) = (0.0, 0.0, 0.0);
    let mut is_finite = true;
    for (&a, &b) in given.iter().zip(other) {
        let (by, ratio) = element(a, b);
        absolute = (absolute.0.max(by), absolute.1 + by);
        relative = (relative.0.max(ratio), relative.1 + ratio);
        if a.is_finite() && b.is_finite() {
            // Far within the range of numbers, whatever is squared.
            let (a, b) = (bounded(a), bounded(b));
            apart += (a - b).powi(2);
            of_given += a.powi(2);
            of_other += b.powi(2);
        } else {
            is_finite &= ratio == 0.0;
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let count = given.len().max(1) as f64;
    let longer = of_given.max(of_other).sqrt();
    let distance = if longer > 0.0 { (apart.sqrt() / longer).min(1.0) } else { 0.0 };
    Difference {
        score: if is_finite { distance } else { 1.0 },
        absolute: Some((absolute.0, absolute.1 / count)),
        relative: Some((relative.0, relative.1 / count)),
        ..Difference::none(name)
    }
}

/// The absolute and the relative difference of two elements.
fn element(a: f64, b: f64) -> (f64, f64) {
    // Also two infinities; two that are no numbers are as good as equal.
    #[allow(clippy::float_cmp, reason = "equal to the last bit is no difference")]
    if a == b || (a.is_nan() && b.is_nan()) {
        return (0.0, 0.0);
    }
    if !a.is_finite() || !b.is_finite() {
        return (MAX_ABSOLUTE, MAX_RELATIVE);
    }
    let (a, b) = (bounded(a), bounded(b));
    let by = (a - b).abs();
    (by.min(MAX_ABSOLUTE), (by / a.abs().max(b.abs())).min(MAX_RELATIVE))
}

fn bounded(number: f64) -> f64 {
    number.clamp(-1e100, 1e100)
}

/// The share of rows whose largest element stands elsewhere.
fn disagreement(given: &[f64], other: &[f64], row: usize) -> f64 {
    let places = |numbers: &[f64]| numbers.chunks(row).map(largest).collect::<Vec<_>>();
    unequal(places(given).into_iter(), places(other).into_iter())
}

/// The place of the largest element; the first of equal ones.
fn largest(row: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (place, &number) in row.iter().enumerate() {
        if !number.is_nan() && best.is_none_or(|(_, most)| number > most) {
            best = Some((place, number));
        }
    }
    best.map(|(place, _)| place)
}

/// The elements as numbers; integers beyond 2^53 lose their last digits.
#[allow(
    clippy::cast_precision_loss,
    reason = "a difference of the last digit of 2^53 says nothing"
)]
fn numbers(data: &Data) -> Vec<f64> {
    match data {
        Data::Uint8(data) => data.iter().map(|it| f64::from(*it)).collect(),
        Data::Uint16(data) => data.iter().map(|it| f64::from(*it)).collect(),
        Data::Uint32(data) => data.iter().map(|it| f64::from(*it)).collect(),
        Data::Uint64(data) => data.iter().map(|it| *it as f64).collect(),
        Data::Int8(data) => data.iter().map(|it| f64::from(*it)).collect(),
        Data::Int16(data) => data.iter().map(|it| f64::from(*it)).collect(),
        Data::Int32(data) => data.iter().map(|it| f64::from(*it)).collect(),
        Data::Int64(data) => data.iter().map(|it| *it as f64).collect(),
        Data::Fp32(data) => data.iter().map(|it| f64::from(*it)).collect(),
        Data::Fp64(data) => data.to_vec(),
        Data::Fp16(data) => data.iter().map(|it| half(*it)).collect(),
        Data::Bool(data) => data.iter().map(|it| f64::from(u8::from(*it))).collect(),
        Data::Bytes(_) => Vec::new(),
    }
}

/// A number of half precision (IEEE 754 binary16).
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    sign * match exponent {
        0 => fraction * 2_f64.powi(-14),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction) * 2_f64.powi(exponent - 15),
    }
}

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    #[serde(default)]
    index: usize,
    embedding: Numbers,
}

/// Numbers, or base64 of numbers of single precision, little-endian.
#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    Plain(Vec<f64>),
    Encoded(String),
}

/// The vectors of an answer with embeddings, in the order of their inputs. `None`: it is no such answer.
fn embeddings(body: &[u8]) -> Option<Vec<Vec<f64>>> {
    let Embeddings { mut data } = serde_json::from_slice(body).ok()?;
    data.sort_by_key(|one| one.index);
    let vector = |one: Embedding| match one.embedding {
        Numbers::Plain(numbers) => Some(numbers),
        Numbers::Encoded(text) => {
            let bytes = BASE64_STANDARD.decode(text).ok()?;
            let (numbers, rest) = bytes.as_chunks();
            let numbers = numbers.iter().map(|it| f64::from(f32::from_le_bytes(*it)));
            rest.is_empty().then(|| numbers.collect())
        }
    };
    data.into_iter().map(vector).collect()
}

/// The difference of two answers with embeddings. `None`: one of them is no such answer.
pub(super) fn of_embeddings(given: &[u8], other: &[u8]) -> Option<Difference> {
    let (given, other) = (embeddings(given)?, embeddings(other)?);
    let lengths = |all: &[Vec<f64>]| all.iter().map(Vec::len).collect::<Vec<_>>();
    if lengths(&given) != lengths(&other) {
        return Some(Difference::mismatch(EMBEDDING, Mismatch::Shape));
    }
    let cosine = given.iter().zip(&other).map(|(given, other)| cosine(given, other));
    let cosine = cosine.fold(0.0, f64::max);
    let whole = of_numbers(EMBEDDING, &given.concat(), &other.concat());
    Some(Difference { cosine: Some(cosine), ..whole })
}

/// One less the cosine of the angle between two vectors.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let product =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| bounded(*a) * bounded(*b)).sum::<f64>();
    let lengths = product(a, a).sqrt() * product(b, b).sqrt();
    // A vector of nothing has no direction, and is like another one of nothing.
    let cosine = if lengths > 0.0 { product(a, b) / lengths } else { f64::from(a == b) };
    if cosine.is_finite() { (1.0 - cosine).clamp(0.0, 2.0) } else { 2.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use forebay_protocol::oip::BytesData;

    fn fp32(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new("y", shape.to_vec(), Data::Fp32(data.to_vec().into())).unwrap()
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }

    #[test]
    fn numbers_differ_by_their_elements_their_rows_and_their_distance() {
        let given = fp32(&[2, 2], &[0.9, 0.1, 0.0, 4.0]);
        let equal = tensors(&given, &given);
        assert_eq!(
            (equal.score, equal.absolute, equal.disagreement),
            (0.0, Some((0.0, 0.0)), Some(0.0))
        );
        let other = tensors(&given, &fp32(&[2, 2], &[0.1, 0.9, 0.0, 5.0]));
        let (max, mean) = other.absolute.unwrap();
        near(max, 1.0);
        near(mean, (0.8 + 0.8 + 1.0) / 4.0);
        near(other.relative.unwrap().0, 0.8 / 0.9);
        near(other.disagreement.unwrap(), 0.5);
        near(other.score, (0.64_f64 * 2.0 + 1.0).sqrt() / (0.01_f64 + 0.81 + 25.0).sqrt());
        let single = tensors(&fp32(&[2], &[1.0, 2.0]), &fp32(&[2], &[1.01, 2.02]));
        near(single.score, 0.01 / 1.01);
        assert_eq!(tensors(&fp32(&[1], &[1.0]), &fp32(&[1], &[3.0])).disagreement, None);
    }

    #[test]
    fn every_figure_is_finite_whatever_is_compared() {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, 1e-45];
        for a in odd {
            for b in odd {
                let found = tensors(&fp32(&[1, 2], &[a, 1.0]), &fp32(&[1, 2], &[b, 1.0]));
                for (measure, value) in found.measures() {
                    assert!(value.is_finite() && value >= 0.0, "{a} and {b}: {measure} {value}");
                }
                let same = a == b || (a.is_nan() && b.is_nan());
                assert_eq!(found.score < 1e-20, same || (a - b).abs() < 1e-30, "{a} and {b}");
            }
        }
        let big = Tensor::new("y", vec![1], Data::Fp64(vec![f64::MAX].into())).unwrap();
        let small = Tensor::new("y", vec![1], Data::Fp64(vec![f64::MIN].into())).unwrap();
        assert_eq!(tensors(&big, &small).absolute, Some((MAX_ABSOLUTE, MAX_ABSOLUTE)));
        let none = tensors(&fp32(&[0, 3], &[]), &fp32(&[0, 3], &[]));
        assert_eq!((none.score, none.disagreement), (0.0, Some(0.0)));
    }

    #[test]
    fn outputs_that_are_not_alike_are_named() {
        let response = |outputs: Vec<Tensor>| InferResponse { outputs, ..InferResponse::default() };
        let int = Tensor::new("i", vec![1], Data::Int32(vec![1].into())).unwrap();
        let long = Tensor::new("i", vec![1], Data::Int64(vec![1].into())).unwrap();
        let given = response(vec![fp32(&[2], &[1.0, 2.0]), int]);
        let other = response(vec![long, fp32(&[1, 2], &[1.0, 2.0])]);
        let found: Vec<_> =
            responses(&given, &other).into_iter().map(|it| (it.output, it.mismatch)).collect();
        let expected = [("y", Some(Mismatch::Shape)), ("i", Some(Mismatch::Datatype))]
            .map(|(a, b)| (a.to_owned(), b));
        assert_eq!(found, expected);
        let nothing = response(Vec::new());
        assert_eq!(responses(&given, &nothing).len(), 2);
        assert!(
            responses(&nothing, &given).iter().all(|it| it.mismatch == Some(Mismatch::Missing))
        );
    }

    #[test]
    fn texts_are_equal_or_not() {
        let texts = |all: &[&str]| {
            let data: BytesData = all.iter().collect();
            Tensor::new("t", vec![all.len()], Data::Bytes(data)).unwrap()
        };
        let found = tensors(&texts(&["a", "b", "c", "d"]), &texts(&["a", "x", "c", ""]));
        assert_eq!((found.score, found.absolute), (0.5, None));
    }

    #[test]
    fn embeddings_are_compared_by_their_angle_in_either_form() {
        let plain = |a: &str, b: &str| {
            format!(r#"{{"data":[{{"index":1,"embedding":{b}}},{{"index":0,"embedding":{a}}}]}}"#)
        };
        let encoded: Vec<u8> = [1.0_f32, 0.0].iter().flat_map(|it| it.to_le_bytes()).collect();
        let encoded = format!("\"{}\"", BASE64_STANDARD.encode(encoded));
        let given = plain("[1.0, 0.0]", "[2.0, 0.0]");
        let same =
            of_embeddings(given.as_bytes(), plain(&encoded, "[2.0, 0.0]").as_bytes()).unwrap();
        assert_eq!((same.score, same.cosine), (0.0, Some(0.0)));
        let turned = of_embeddings(given.as_bytes(), plain("[0.0, 1.0]", "[2.0, 0.0]").as_bytes());
        near(turned.unwrap().cosine.unwrap(), 1.0);
        let opposite =
            of_embeddings(given.as_bytes(), plain("[1.0, 0.0]", "[-1.0, 0.0]").as_bytes());
        near(opposite.unwrap().cosine.unwrap(), 2.0);
        let longer = of_embeddings(given.as_bytes(), plain("[1.0]", "[2.0, 0.0]").as_bytes());
        assert_eq!(longer.unwrap().mismatch, Some(Mismatch::Shape));
        assert!(of_embeddings(given.as_bytes(), b"{\"error\":{}}").is_none());
        assert!(of_embeddings(given.as_bytes(), plain("\"?\"", "[]").as_bytes()).is_none());
    }

    #[test]
    fn half_precision_is_read_as_it_is_written() {
        for (bits, expected) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 2_f64.powi(-24)),
            (0x3555, 0.333_251_953_125),
            (0x7c00, f64::INFINITY),
        ] {
            assert_eq!(half(bits).to_bits(), f64::to_bits(expected), "{bits:#06x}");
        }
        assert!(half(0x7e00).is_nan());
    }
}
