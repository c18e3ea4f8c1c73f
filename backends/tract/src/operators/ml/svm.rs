//! Support vector machines.
//!
//! Labels of two classes follow ONNX Runtime: they depend on whether there are probabilities, and on
//! whether all coefficients are positive. Probabilities of more classes come from those of pairs by the
//! iteration of LIBSVM (Wu, Lin and Weng, "Probability estimates for multi-class classification by
//! pairwise coupling").

use super::super::built::Built;
use super::super::native::{
    Attributes, Function, Kind, RowRule, bad, matrix, native, numbers, rows_of,
};
use super::scores::{Labels, Transform, both, greatest, logistic};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Linear,
    Polynomial,
    Radial,
    Sigmoid,
}

/// Of two vectors.
#[derive(Debug)]
struct Kernel {
    shape: Shape,
    gamma: f32,
    offset: f32,
    degree: f32,
}

impl Kernel {
    fn of(attributes: &Attributes<'_>) -> TractResult<Self> {
        let shape = match attributes.text("kernel_type").as_deref() {
            None | Some("LINEAR") => Shape::Linear,
            Some("POLY") => Shape::Polynomial,
            Some("RBF") => Shape::Radial,
            Some("SIGMOID") => Shape::Sigmoid,
            Some(other) => bail!("expected a kernel_type such as RBF, found {other}"),
        };
        let given = attributes.floats("kernel_params");
        let given = |place: usize| given.get(place).copied().unwrap_or(0.0);
        Ok(Self { shape, gamma: given(0), offset: given(1), degree: given(2) })
    }

    fn at(&self, a: &[f32], b: &[f32]) -> f32 {
        let pairs = || a.iter().zip(b);
        let product = || pairs().map(|(a, b)| a * b).sum::<f32>();
        match self.shape {
            Shape::Linear => product(),
            Shape::Polynomial => (self.gamma * product() + self.offset).powf(self.degree),
            Shape::Sigmoid => (self.gamma * product() + self.offset).tanh(),
            Shape::Radial => {
                let off: f32 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
                (-self.gamma * off).exp()
            }
        }
    }
}

#[derive(Debug)]
struct Vectors {
    kernel: Kernel,
    /// [vectors, features]; none where the coefficients are the vectors.
    vectors: Vec<f32>,
    coefficients: Vec<f32>,
    rho: Vec<f32>,
    features: usize,
}

impl Vectors {
    /// The kernel of a row with each vector.
    fn near(&self, row: &[f32]) -> Vec<f32> {
        self.vectors.chunks_exact(self.features).map(|vector| self.kernel.at(row, vector)).collect()
    }

    /// The products of a row with the coefficients, of a machine without vectors.
    fn linear(&self, row: &[f32]) -> Vec<f32> {
        let lines = self.coefficients.chunks_exact(self.features);
        lines.map(|line| self.kernel.at(row, line) + self.rho[0]).collect()
    }

    fn bytes(&self) -> usize {
        4 * (self.vectors.len() + self.coefficients.len())
    }

    fn run(&self, name: &str, input: &Tensor, mut take: impl FnMut(&[f32])) -> TractResult<usize> {
        let (rows, columns) = matrix(name, input.shape())?;
        if columns != self.features {
            return Err(bad(name, format!("{} features", self.features), &columns));
        }
        numbers::<f32>(input)?.chunks_exact(columns).for_each(&mut take);
        Ok(rows)
    }
}

#[derive(Debug)]
struct Regressor {
    vectors: Vectors,
    is_one_class: bool,
}

pub(super) fn regressor(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let mut kernel = Kernel::of(&attributes)?;
    let count = usize::try_from(attributes.int("n_supports").unwrap_or(0))?;
    let coefficients = attributes.floats("coefficients").to_vec();
    let rho = attributes.floats("rho").to_vec();
    ensure!(!coefficients.is_empty() && !rho.is_empty(), "expected coefficients and rho");
    let mut vectors = attributes.floats("support_vectors").to_vec();
    let features = match count {
        0 => {
            kernel.shape = Shape::Linear;
            vectors.clear();
            coefficients.len()
        }
        count => {
            ensure!(
                !vectors.is_empty()
                    && vectors.len().is_multiple_of(count)
                    && coefficients.len() == count,
                "expected {count} support_vectors and coefficients"
            );
            vectors.len() / count
        }
    };
    let vectors = Vectors { kernel, vectors, coefficients, rho, features };
    native(Regressor { vectors, is_one_class: attributes.int("one_class") == Some(1) }, 1)
}

impl Function for Regressor {
    fn name(&self) -> &'static str {
        "SVMRegressor"
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let rows = rows_of(self.name(), &inputs[0].shape)?;
        Ok(tvec!(Kind::new(f32::datum_type(), [rows, 1.to_dim()])))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let vectors = &self.vectors;
        let mut made = Vec::new();
        let rows = vectors.run(self.name(), inputs[0], |row| {
            let y = if vectors.vectors.is_empty() {
                vectors.linear(row)[0]
            } else {
                let near = vectors.near(row);
                let sum: f32 = near.iter().zip(&vectors.coefficients).map(|(a, b)| a * b).sum();
                sum + vectors.rho[0]
            };
            let sign = if y > 0.0 { 1.0 } else { -1.0 };
            made.push(if self.is_one_class { sign } else { y });
        })?;
        Ok(tvec!(Tensor::from_shape(&[rows, 1], &made)?))
    }

    fn rows(&self) -> RowRule {
        RowRule::First
    }

    fn bytes(&self) -> usize {
        self.vectors.bytes()
    }
}

#[derive(Debug)]
struct Classifier {
    vectors: Vectors,
    labels: Labels,
    /// Vectors of each class; none of a linear machine.
    of_class: Vec<usize>,
    /// For probabilities, of each pair of classes.
    sigmoids: Vec<(f32, f32)>,
    transform: Transform,
    all_positive: bool,
}

pub(super) fn classifier(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let mut kernel = Kernel::of(&attributes)?;
    let labels = Labels::of(&attributes, "classlabels_ints")?;
    let classes = labels.len();
    let coefficients = attributes.floats("coefficients").to_vec();
    let rho = attributes.floats("rho").to_vec();
    let (a, b) = (attributes.floats("prob_a"), attributes.floats("prob_b"));
    ensure!(a.len() == b.len(), "expected as many prob_b as prob_a");
    let of_class = attributes.ints("vectors_per_class").iter().map(|&count| usize::try_from(count));
    let mut of_class: Vec<usize> = of_class.collect::<Result<_, _>>()?;
    let count = of_class.iter().fold(0_usize, |sum, &count| sum.saturating_add(count));
    let mut vectors = attributes.floats("support_vectors").to_vec();
    ensure!(!coefficients.is_empty() && !rho.is_empty(), "expected coefficients and rho");
    ensure!(classes > 1, "expected two classes or more, found {classes}");
    let pairs = classes * (classes - 1) / 2;
    let features = if count > 0 {
        ensure!(
            of_class.len() == classes
                && !vectors.is_empty()
                && vectors.len().is_multiple_of(count)
                && coefficients.len() >= (classes - 1).saturating_mul(count)
                && rho.len() >= pairs
                && (a.is_empty() || a.len() >= pairs),
            "expected vectors_per_class, support_vectors, coefficients, rho, prob_a and prob_b for \
             {classes} classes"
        );
        vectors.len() / count
    } else {
        kernel.shape = Shape::Linear;
        of_class.clear();
        vectors.clear();
        ensure!(coefficients.len().is_multiple_of(classes), "expected {classes} coefficients");
        coefficients.len() / classes
    };
    let all_positive = coefficients.iter().all(|&value| value >= 0.0);
    let sigmoids = a.iter().copied().zip(b.iter().copied()).collect();
    let vectors = Vectors { kernel, vectors, coefficients, rho, features };
    let transform = Transform::of(&attributes)?;
    native(Classifier { vectors, labels, of_class, sigmoids, transform, all_positive }, 2)
}

impl Classifier {
    /// Scores of a row in the file.
    fn width(&self) -> usize {
        let classes = self.labels.len();
        let has_pairs = !self.of_class.is_empty() && self.sigmoids.is_empty() && classes > 2;
        if has_pairs { classes * (classes - 1) / 2 } else { classes }
    }

    /// Of each pair of classes, and the votes of each class.
    fn pairs(&self, row: &[f32]) -> (Vec<f32>, Vec<usize>) {
        let (near, count) = (self.vectors.near(row), self.vectors.vectors.len());
        let count = count / self.vectors.features;
        let classes = self.labels.len();
        let start = |class: usize| self.of_class[..class].iter().sum::<usize>();
        let (mut pairs, mut votes) = (Vec::new(), vec![0; classes]);
        let sum = |line: usize, class: usize| -> f64 {
            let range = start(class)..start(class) + self.of_class[class];
            let coefficients = &self.vectors.coefficients[line * count..][range.clone()];
            let terms = coefficients.iter().zip(&near[range]);
            terms.map(|(a, b)| f64::from(a * b)).sum()
        };
        for i in 0..classes {
            for j in i + 1..classes {
                let rho = f64::from(self.vectors.rho[pairs.len()]);
                let score = sum(j - 1, i) + sum(i, j) + rho;
                #[allow(clippy::cast_possible_truncation, reason = "scores are FP32")]
                pairs.push(score as f32);
                votes[if score > 0.0 { i } else { j }] += 1;
            }
        }
        (pairs, votes)
    }

    /// Class and scores of a row.
    fn classify(&self, row: &[f32], to: &mut Vec<f32>) -> usize {
        let classes = self.labels.len();
        if self.of_class.is_empty() {
            let mut scores = self.vectors.linear(row);
            let class = self.choose(greatest(&scores), scores[greatest(&scores)]);
            self.transform.apply(&mut scores);
            to.append(&mut scores);
            return class;
        }
        let (mut pairs, votes) = self.pairs(row);
        let first = |a: usize, b: usize| if votes[b] > votes[a] { b } else { a };
        let most = (1..classes).fold(0, first);
        let class = if classes == 2 { self.choose(most, 0.0) } else { most };
        if !self.sigmoids.is_empty() {
            let mut shares = coupled(&self.shares(&pairs), classes);
            self.transform.apply(&mut shares);
            to.append(&mut shares);
        } else if classes == 2 {
            let is_share = self.transform != Transform::None;
            to.extend(both(self.transform, pairs[0], is_share));
        } else {
            self.transform.apply(&mut pairs);
            to.append(&mut pairs);
        }
        class
    }

    /// Of two classes.
    fn choose(&self, most: usize, weight: f32) -> usize {
        if self.labels.len() != 2 || !self.sigmoids.is_empty() {
            return most;
        }
        let is_second = if self.all_positive { weight >= 0.5 } else { weight > 0.0 };
        if is_second { 1 } else { most }
    }

    /// Of each class against each other, as a matrix.
    fn shares(&self, pairs: &[f32]) -> Vec<f32> {
        const LEAST: f32 = 1e-7;
        let classes = self.labels.len();
        let mut shares = vec![0.0; classes * classes];
        let mut place = 0;
        for i in 0..classes {
            for j in i + 1..classes {
                let (a, b) = self.sigmoids[place];
                let share = 1.0 - logistic(pairs[place] * a + b);
                let share = share.clamp(LEAST, 1.0 - LEAST);
                shares[i * classes + j] = share;
                shares[j * classes + i] = 1.0 - share;
                place += 1;
            }
        }
        shares
    }
}

/// Probabilities of classes from those of pairs.
fn coupled(r: &[f32], classes: usize) -> Vec<f32> {
    const ROUNDS: usize = 100;
    #[allow(clippy::cast_precision_loss, reason = "classes are few")]
    let count = classes as f32;
    let at = |i: usize, j: usize| i * classes + j;
    let mut q = vec![0.0; classes * classes];
    for i in 0..classes {
        for j in (0..classes).filter(|&j| j != i) {
            q[at(i, i)] += r[at(j, i)] * r[at(j, i)];
            q[at(i, j)] = if j < i { q[at(j, i)] } else { -r[at(j, i)] * r[at(i, j)] };
        }
    }
    let mut p = vec![1.0 / count; classes];
    for _ in 0..ROUNDS {
        let line = |i: usize| (0..classes).map(|j| q[at(i, j)] * p[j]).sum::<f32>();
        let mut qp: Vec<f32> = (0..classes).map(line).collect();
        let mut pqp: f32 = p.iter().zip(&qp).map(|(p, qp)| p * qp).sum();
        if qp.iter().all(|qp| (qp - pqp).abs() < 0.005 / count) {
            break;
        }
        for i in 0..classes {
            let step = (pqp - qp[i]) / q[at(i, i)];
            p[i] += step;
            let whole = 1.0 + step;
            pqp = (pqp + step * (step * q[at(i, i)] + 2.0 * qp[i])) / whole / whole;
            for j in 0..classes {
                qp[j] = (qp[j] + step * q[at(i, j)]) / whole;
                p[j] /= whole;
            }
        }
    }
    p
}

impl Function for Classifier {
    fn name(&self) -> &'static str {
        "SVMClassifier"
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let rows = rows_of(self.name(), &inputs[0].shape)?;
        let scores = Kind::new(f32::datum_type(), [rows.clone(), self.width().to_dim()]);
        Ok(tvec!(Kind::new(self.labels.datum_type(), [rows]), scores))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let (mut made, mut classes) = (Vec::new(), Vec::new());
        let rows = self.vectors.run(self.name(), inputs[0], |row| {
            classes.push(self.classify(row, &mut made));
        })?;
        let scores = Tensor::from_shape(&[rows, self.width()], &made)?;
        Ok(tvec!(self.labels.tensor(&classes)?, scores))
    }

    fn rows(&self) -> RowRule {
        RowRule::First
    }

    fn bytes(&self) -> usize {
        self.vectors.bytes()
    }
}
