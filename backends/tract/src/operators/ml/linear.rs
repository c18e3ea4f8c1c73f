//! Linear models.

use super::super::built::Built;
use super::super::native::{
    Attributes, Function, Kind, RowRule, bad, matrix, native, numbers, rows_of,
};
use super::scores::{Labels, Transform, both, greatest};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

#[derive(Debug)]
struct Linear {
    name: &'static str,
    /// [targets, features]
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    targets: usize,
    transform: Transform,
    /// Of a classifier.
    labels: Option<Labels>,
}

pub(super) fn classifier(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let labels = Labels::of(&attributes, "classlabels_ints")?;
    let intercepts = attributes.floats("intercepts").to_vec();
    let coefficients = attributes.floats("coefficients").to_vec();
    let targets = if intercepts.is_empty() { labels.len() } else { intercepts.len() };
    ensure!(
        targets == labels.len() || (targets == 1 && labels.len() <= 2),
        "expected {} intercepts, one for each class, found {targets}",
        labels.len()
    );
    let transform = Transform::of(&attributes)?;
    let name = "LinearClassifier";
    let labels = Some(labels);
    native(Linear { name, coefficients, intercepts, targets, transform, labels }.checked()?, 2)
}

pub(super) fn regressor(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let intercepts = attributes.floats("intercepts").to_vec();
    let coefficients = attributes.floats("coefficients").to_vec();
    let targets = usize::try_from(attributes.int("targets").unwrap_or(1))?;
    ensure!(
        intercepts.is_empty() || intercepts.len() == targets,
        "expected {targets} intercepts, found {}",
        intercepts.len()
    );
    let transform = Transform::of(&attributes)?;
    let (name, labels) = ("LinearRegressor", None);
    native(Linear { name, coefficients, intercepts, targets, transform, labels }.checked()?, 1)
}

impl Linear {
    fn checked(self) -> TractResult<Self> {
        ensure!(
            self.targets > 0
                && !self.coefficients.is_empty()
                && self.coefficients.len().is_multiple_of(self.targets),
            "expected coefficients for {} targets, found {}",
            self.targets,
            self.coefficients.len()
        );
        Ok(self)
    }

    /// Scores of a row.
    fn scores(&self, row: &[f32]) -> Vec<f32> {
        let lines = self.coefficients.chunks_exact(row.len());
        let score = |(target, line): (usize, &[f32])| {
            let product: f32 = line.iter().zip(row).map(|(a, b)| a * b).sum();
            product + self.intercepts.get(target).copied().unwrap_or(0.0)
        };
        lines.enumerate().map(score).collect()
    }

    fn is_double(&self) -> bool {
        self.targets == 1 && self.labels.as_ref().is_some_and(|labels| labels.len() == 2)
    }

    /// The class of a row; scores go where they belong.
    fn classify(&self, mut scores: Vec<f32>, to: &mut Vec<f32>) -> usize {
        if self.targets == 1 {
            let class = usize::from(scores[0] > 0.0);
            if self.is_double() {
                to.extend(both(self.transform, scores[0], true));
            } else {
                self.transform.apply(&mut scores);
                to.append(&mut scores);
            }
            return class;
        }
        let class = greatest(&scores);
        self.transform.apply(&mut scores);
        to.append(&mut scores);
        class
    }
}

impl Function for Linear {
    fn name(&self) -> &'static str {
        self.name
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let rows = rows_of(self.name, &inputs[0].shape)?;
        let wide = if self.is_double() { 2 } else { self.targets };
        let scores = Kind::new(f32::datum_type(), [rows.clone(), wide.to_dim()]);
        Ok(match &self.labels {
            None => tvec!(scores),
            Some(labels) => tvec!(Kind::new(labels.datum_type(), [rows]), scores),
        })
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let (rows, columns) = matrix(self.name, inputs[0].shape())?;
        let features = self.coefficients.len() / self.targets;
        if columns != features {
            return Err(bad(self.name, format!("{features} features"), &columns));
        }
        let x = numbers::<f32>(inputs[0])?;
        let (mut made, mut classes) = (Vec::new(), Vec::new());
        for row in x.chunks_exact(columns) {
            let mut scores = self.scores(row);
            if self.labels.is_some() {
                classes.push(self.classify(scores, &mut made));
            } else {
                if self.targets > 1 || self.transform == Transform::Probit {
                    self.transform.apply(&mut scores);
                }
                made.append(&mut scores);
            }
        }
        let wide = if self.is_double() { 2 } else { self.targets };
        let scores = Tensor::from_shape(&[rows, wide], &made)?;
        Ok(match &self.labels {
            None => tvec!(scores),
            Some(labels) if labels.len() == 1 => {
                let one = Labels::Numbers(vec![0, 1]);
                tvec!(one.tensor(&classes)?, scores)
            }
            Some(labels) => tvec!(labels.tensor(&classes)?, scores),
        })
    }

    fn rows(&self) -> RowRule {
        RowRule::First
    }

    fn bytes(&self) -> usize {
        4 * self.coefficients.len()
    }
}
