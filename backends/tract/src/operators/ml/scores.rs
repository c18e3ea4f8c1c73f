//! From the scores of classifiers to probabilities and labels.

use super::super::native::{Attributes, texts};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// The last step on the scores of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transform {
    None,
    Logistic,
    Softmax,
    SoftmaxZero,
    Probit,
}

impl Transform {
    pub(super) fn of(attributes: &Attributes<'_>) -> TractResult<Self> {
        Ok(match attributes.text("post_transform").as_deref() {
            None | Some("NONE") => Self::None,
            Some("LOGISTIC") => Self::Logistic,
            Some("SOFTMAX") => Self::Softmax,
            Some("SOFTMAX_ZERO") => Self::SoftmaxZero,
            Some("PROBIT") => Self::Probit,
            Some(other) => bail!(
                "expected post_transform NONE, LOGISTIC, SOFTMAX, SOFTMAX_ZERO or PROBIT, found {other}"
            ),
        })
    }

    /// Of the scores of one row.
    pub(super) fn apply(self, scores: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Logistic => scores.iter_mut().for_each(|score| *score = logistic(*score)),
            Self::Probit => scores.iter_mut().for_each(|score| *score = probit(*score)),
            Self::Softmax => softmax(scores),
            Self::SoftmaxZero => softmax_zero(scores),
        }
    }
}

pub(super) fn logistic(x: f32) -> f32 {
    let v = 1.0 / (1.0 + (-x.abs()).exp());
    if x < 0.0 { 1.0 - v } else { v }
}

/// The inverse of the normal distribution, by the approximation that ONNX Runtime has.
#[allow(clippy::approx_constant, reason = "so many digits has ONNX Runtime")]
pub(super) fn probit(x: f32) -> f32 {
    let y = 2.0 * x - 1.0;
    let sign = if y < 0.0 { -1.0 } else { 1.0 };
    let log = ((1.0 - y) * (1.0 + y)).ln();
    let v = 2.0 / (3.14159 * 0.147) + 0.5 * log;
    let inner = -v + (v * v - log / 0.147).sqrt();
    std::f32::consts::SQRT_2 * sign * inner.sqrt()
}

fn softmax(scores: &mut [f32]) {
    let greatest = scores.iter().copied().fold(f32::MIN, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - greatest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// A softmax that leaves scores of zero out.
fn softmax_zero(scores: &mut [f32]) {
    const NOTHING: f32 = 1e-7;
    let greatest = scores.iter().copied().fold(f32::MIN, f32::max);
    let small = (-greatest).exp();
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        if score.abs() > NOTHING {
            *score = (*score - greatest).exp();
            sum += *score;
        } else {
            *score *= small;
        }
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// The scores of two classes where a model gives one.
pub(super) fn both(transform: Transform, score: f32, is_share: bool) -> [f32; 2] {
    match transform {
        Transform::Logistic => [logistic(-score), logistic(score)],
        _ if is_share => [1.0 - score, score],
        _ => [-score, score],
    }
}

/// The place of the greatest, and the first of those.
pub(super) fn greatest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (place, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = place;
        }
    }
    best
}

/// Names of classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Labels {
    Numbers(Vec<i64>),
    Texts(Vec<String>),
}

impl Labels {
    /// Those in the attribute of numbers, or in that of texts.
    pub(super) fn of(attributes: &Attributes<'_>, numbers: &str) -> TractResult<Self> {
        let found = attributes.texts("classlabels_strings")?;
        if !found.is_empty() {
            return Ok(Self::Texts(found));
        }
        let found = attributes.ints(numbers);
        ensure!(!found.is_empty(), "expected {numbers} or classlabels_strings");
        Ok(Self::Numbers(found.to_vec()))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Numbers(labels) => labels.len(),
            Self::Texts(labels) => labels.len(),
        }
    }

    pub(super) fn datum_type(&self) -> DatumType {
        match self {
            Self::Numbers(_) => i64::datum_type(),
            Self::Texts(_) => String::datum_type(),
        }
    }

    /// The labels of classes, one for each row.
    pub(super) fn tensor(&self, classes: &[usize]) -> TractResult<Tensor> {
        match self {
            Self::Numbers(labels) => {
                let found: Vec<i64> = classes.iter().map(|&class| labels[class]).collect();
                Tensor::from_shape(&[found.len()], &found)
            }
            Self::Texts(labels) => {
                let found = classes.iter().map(|&class| labels[class].clone()).collect();
                texts(&[classes.len()], found)
            }
        }
    }
}
