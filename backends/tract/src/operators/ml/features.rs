//! Operators that prepare features: numbers in, numbers out.

use super::super::built::Built;
use super::super::native::{
    Attributes, Function, Kind, RowRule, bad, native, numbers, rows_of, strings, texts,
};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// A function of numbers, element by element along the last axis.
#[derive(Debug)]
enum Each {
    /// (x - offset) * scale
    Scaler { offset: Vec<f32>, scale: Vec<f32> },
    /// 1 above the threshold, else 0.
    Binarizer { threshold: f32 },
    /// Divided by the norm of the row.
    Normalizer { norm: Norm },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Norm {
    Max,
    L1,
    L2,
}

pub(super) fn scaler(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let of = |name: &str, usual: f32| match attributes.floats(name) {
        [] => vec![usual],
        given => given.to_vec(),
    };
    native(Each::Scaler { offset: of("offset", 0.0), scale: of("scale", 1.0) }, 1)
}

pub(super) fn binarizer(_: &ParsingContext, node: &NodeProto) -> Built {
    native(Each::Binarizer { threshold: Attributes(node).float("threshold").unwrap_or(0.0) }, 1)
}

pub(super) fn normalizer(_: &ParsingContext, node: &NodeProto) -> Built {
    let norm = match Attributes(node).text("norm").as_deref() {
        None | Some("MAX") => Norm::Max,
        Some("L1") => Norm::L1,
        Some("L2") => Norm::L2,
        Some(other) => bail!("expected norm MAX, L1 or L2, found {other}"),
    };
    native(Each::Normalizer { norm }, 1)
}

impl Norm {
    fn apply(self, row: &mut [f32]) {
        let norm: f32 = match self {
            Self::Max => row.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            Self::L1 => row.iter().map(|x| x.abs()).sum(),
            Self::L2 => row.iter().map(|x| x * x).sum::<f32>().sqrt(),
        };
        if norm != 0.0 {
            row.iter_mut().for_each(|x| *x /= norm);
        }
    }
}

impl Function for Each {
    fn name(&self) -> &'static str {
        match self {
            Self::Scaler { .. } => "Scaler",
            Self::Binarizer { .. } => "Binarizer",
            Self::Normalizer { .. } => "Normalizer",
        }
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        ensure!(!inputs[0].shape.is_empty(), "{}: expected an axis or more", self.name());
        if matches!(self, Self::Normalizer { .. }) {
            rows_of(self.name(), &inputs[0].shape)?;
        }
        Ok(tvec!(Kind::new(f32::datum_type(), inputs[0].shape.iter().cloned())))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let shape = inputs[0].shape();
        let columns = shape.last().copied().unwrap_or(1);
        let mut x = numbers::<f32>(inputs[0])?;
        match self {
            Self::Scaler { offset, scale } => {
                for given in [offset, scale] {
                    if given.len() != 1 && given.len() != columns {
                        return Err(bad("Scaler", format!("{} features", given.len()), &columns));
                    }
                }
                let at =
                    |given: &[f32], place: usize| given[if given.len() == 1 { 0 } else { place }];
                for row in x.chunks_exact_mut(columns.max(1)) {
                    for (place, x) in row.iter_mut().enumerate() {
                        *x = (*x - at(offset, place)) * at(scale, place);
                    }
                }
            }
            Self::Binarizer { threshold } => {
                if let Some(place) = x.iter().position(|x| x.is_nan()) {
                    return Err(bad("Binarizer", "numbers", &format!("NaN at {place}")));
                }
                x.iter_mut().for_each(|x| *x = if *x > *threshold { 1.0 } else { 0.0 });
            }
            Self::Normalizer { norm } => {
                x.chunks_exact_mut(columns.max(1)).for_each(|row| norm.apply(row));
            }
        }
        Ok(tvec!(Tensor::from_shape(shape, &x)?))
    }

    fn rows(&self) -> RowRule {
        RowRule::BeforeLast
    }
}

/// Puts values in the place of one that stands for none.
#[derive(Debug)]
enum Imputer {
    Floats { replaced: f32, with: Vec<f32> },
    Integers { replaced: i64, with: Vec<i64> },
}

pub(super) fn imputer(_: &ParsingContext, node: &NodeProto) -> Built {
    let attributes = Attributes(node);
    let (floats, ints) =
        (attributes.floats("imputed_value_floats"), attributes.ints("imputed_value_int64s"));
    ensure!(
        floats.is_empty() != ints.is_empty(),
        "expected imputed_value_floats or imputed_value_int64s"
    );
    let op = if ints.is_empty() {
        let replaced = attributes.float("replaced_value_float").unwrap_or(0.0);
        Imputer::Floats { replaced, with: floats.to_vec() }
    } else {
        let replaced = attributes.int("replaced_value_int64").unwrap_or(0);
        Imputer::Integers { replaced, with: ints.to_vec() }
    };
    native(op, 1)
}

impl Imputer {
    fn put<T: Datum + Copy>(
        &self,
        input: &Tensor,
        with: &[T],
        is_none: impl Fn(T) -> bool,
    ) -> TractResult<Tensor> {
        let columns = input.shape().last().copied().unwrap_or(1);
        if with.len() != 1 && with.len() != columns {
            return Err(bad("Imputer", format!("{} features", with.len()), &columns));
        }
        let mut x = numbers::<T>(input)?;
        for row in x.chunks_exact_mut(columns.max(1)) {
            for (place, x) in row.iter_mut().enumerate().filter(|(_, x)| is_none(**x)) {
                *x = with[if with.len() == 1 { 0 } else { place }];
            }
        }
        Tensor::from_shape(input.shape(), &x)
    }
}

impl Function for Imputer {
    fn name(&self) -> &'static str {
        "Imputer"
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        ensure!(!inputs[0].shape.is_empty(), "Imputer: expected an axis or more");
        Ok(tvec!(inputs[0].clone()))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let kind = inputs[0].datum_type();
        let made = match self {
            Self::Floats { replaced, with } if kind == f64::datum_type() => {
                let with: Vec<f64> = with.iter().map(|&x| f64::from(x)).collect();
                let wide = f64::from(*replaced);
                let is_nan = replaced.is_nan();
                self.put(inputs[0], &with, |x: f64| x == wide || (is_nan && x.is_nan()))?
            }
            Self::Floats { replaced, with } => {
                let is_nan = replaced.is_nan();
                self.put(inputs[0], with, |x: f32| x == *replaced || (is_nan && x.is_nan()))?
            }
            Self::Integers { replaced, with } => {
                self.put(inputs[0], with, |x: i64| x == *replaced)?
            }
        };
        Ok(tvec!(made.cast_to_dt(kind)?.into_owned()))
    }

    fn rows(&self) -> RowRule {
        RowRule::BeforeLast
    }
}

/// Several inputs side by side, each cut or filled to its width.
#[derive(Debug)]
struct FeatureVectorizer {
    widths: Vec<usize>,
}

pub(super) fn vectorizer(_: &ParsingContext, node: &NodeProto) -> Built {
    let widths =
        Attributes(node).ints("inputdimensions").iter().map(|&width| usize::try_from(width));
    let widths: Vec<usize> = widths.collect::<Result<_, _>>()?;
    ensure!(widths.len() == node.input.len(), "expected inputdimensions for each input");
    native(FeatureVectorizer { widths }, 1)
}

impl Function for FeatureVectorizer {
    fn name(&self) -> &'static str {
        "FeatureVectorizer"
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let rows = rows_of(self.name(), &inputs[0].shape)?;
        let wide: usize = self.widths.iter().sum();
        Ok(tvec!(Kind::new(f32::datum_type(), [rows, wide.to_dim()])))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let wide: usize = self.widths.iter().sum();
        let (rows, _) = super::super::native::matrix(self.name(), inputs[0].shape())?;
        let mut made = vec![0.0; rows * wide];
        let mut start = 0;
        for (input, &width) in inputs.iter().zip(&self.widths) {
            let (found, columns) = super::super::native::matrix(self.name(), input.shape())?;
            if found != rows {
                return Err(bad(self.name(), format!("{rows} rows in each input"), &found));
            }
            let x = numbers::<f32>(input)?;
            let kept = columns.min(width);
            for row in 0..rows {
                let to = &mut made[row * wide + start..][..kept];
                to.copy_from_slice(&x[row * columns..][..kept]);
            }
            start += width;
        }
        Ok(tvec!(Tensor::from_shape(&[rows, wide], &made)?))
    }

    fn rows(&self) -> RowRule {
        RowRule::First
    }
}

/// Elements of the last axis, by their places.
#[derive(Debug)]
struct Extractor;

pub(super) fn extractor(_: &ParsingContext, _: &NodeProto) -> Built {
    native(Extractor, 1)
}

impl Extractor {
    fn pick<T: Clone>(from: &[T], columns: usize, places: &[usize]) -> Vec<T> {
        let rows = from.chunks_exact(columns.max(1));
        rows.flat_map(|row| places.iter().map(|&place| row[place].clone())).collect()
    }
}

impl Function for Extractor {
    fn name(&self) -> &'static str {
        "ArrayFeatureExtractor"
    }

    fn outputs(&self, inputs: &[Kind]) -> TractResult<TVec<Kind>> {
        let [x, places] = inputs else { bail!("expected two inputs, found {}", inputs.len()) };
        ensure!(!x.shape.is_empty(), "ArrayFeatureExtractor: expected an axis or more");
        let count: TDim = places.shape.iter().product();
        let mut shape = x.shape.clone();
        match shape.len() {
            1 => shape = tvec!(1.to_dim(), count),
            rank => shape[rank - 1] = count,
        }
        Ok(tvec!(Kind::new(x.datum_type, shape)))
    }

    fn run(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let x = inputs[0];
        let columns = x.shape().last().copied().unwrap_or(0);
        let given = numbers::<i64>(inputs[1])?;
        let place = |&place: &i64| {
            let found = usize::try_from(place).ok().filter(|&place| place < columns);
            found.ok_or_else(|| bad(self.name(), format!("places below {columns}"), &place))
        };
        let places: Vec<usize> = given.iter().map(place).collect::<TractResult<_>>()?;
        let mut shape = x.shape().to_vec();
        match shape.len() {
            1 => shape = vec![1, places.len()],
            rank => shape[rank - 1] = places.len(),
        }
        if x.datum_type() == String::datum_type() {
            let made = Self::pick(strings(x)?, columns, &places);
            return Ok(tvec!(texts(&shape, made)?));
        }
        let axis = x.rank() - 1;
        if places.is_empty() || x.len() == 0 {
            return Ok(tvec!(Tensor::zero_dt(x.datum_type(), &shape)?));
        }
        let parts: Vec<Tensor> =
            places.iter().map(|&p| x.slice(axis, p, p + 1)).collect::<TractResult<_>>()?;
        Ok(tvec!(Tensor::stack_tensors(axis, &parts)?.into_shape(&shape)?))
    }

    fn rows(&self) -> RowRule {
        RowRule::BeforeLast
    }
}
