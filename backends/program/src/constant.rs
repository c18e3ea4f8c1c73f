//! Constants of a program, by reference: weights are most of a model, and a program is made for each set of
//! shapes. A device that packs them reads them in place, and nothing holds a second copy meanwhile.

use forebay_protocol::oip::Datatype;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// Values that somebody holds.
pub trait Values: Any + Debug + Send + Sync {
    /// Their sizes.
    fn shape(&self) -> &[usize];

    /// `None` for one that is known inside of the engine that made the program alone.
    fn datatype(&self) -> Option<Datatype>;

    /// The bytes in memory; `None` if they are not in plain order.
    fn bytes(&self) -> Option<&[u8]>;

    /// The values, if they are FP32 in plain order.
    fn numbers(&self) -> Option<&[f32]>;
}

/// A constant.
pub type Constant = Arc<dyn Values>;

/// Numbers that no other object holds.
#[derive(Debug)]
pub struct Owned {
    /// Their sizes.
    pub shape: Vec<usize>,
    /// The numbers; their count is the product of the sizes.
    pub numbers: Vec<f32>,
}

impl Values for Owned {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn datatype(&self) -> Option<Datatype> {
        Some(Datatype::Fp32)
    }

    fn bytes(&self) -> Option<&[u8]> {
        None
    }

    fn numbers(&self) -> Option<&[f32]> {
        Some(&self.numbers)
    }
}

/// Weights in the order of the constant, some with factors.
#[derive(Debug, Clone)]
pub struct Weights {
    /// Their values, the output channel as the first axis.
    pub constant: Constant,
    /// Each weight times these, one after the other.
    pub factors: Vec<Factor>,
}

/// A factor of weights.
#[derive(Debug, Clone, PartialEq)]
pub enum Factor {
    /// All with one number.
    One(f32),
    /// Those of each output channel with its own.
    Channel(Vec<f32>),
}

impl Weights {
    /// The weights with all factors, to be packed; `None` if the constant is none of numbers, or has
    /// other channels than the factors.
    #[must_use]
    pub fn values(&self) -> Option<Vec<f32>> {
        let mut values = self.constant.numbers()?.to_vec();
        for factor in &self.factors {
            match factor {
                Factor::One(factor) => values.iter_mut().for_each(|weight| *weight *= factor),
                Factor::Channel(factors) => {
                    let size = values.len().checked_div(factors.len())?;
                    if size * factors.len() != values.len() {
                        return None;
                    }
                    for (weights, factor) in values.chunks_exact_mut(size.max(1)).zip(factors) {
                        weights.iter_mut().for_each(|weight| *weight *= factor);
                    }
                }
            }
        }
        Some(values)
    }
}

/// A matrix of a constant's values, which may lie in any order.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Its values.
    pub constant: Constant,
    /// Axes of the constant that its lines go over, the outermost first.
    pub lines: Vec<Stride>,
    /// The same of its columns, which are the channels of the output.
    pub channels: Vec<Stride>,
}

/// An axis of a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stride {
    /// Values along it.
    pub size: usize,
    /// From one of them to the next.
    pub step: usize,
}

impl Matrix {
    /// Start of each line and each column: the weight of both is at the sum of the two.
    #[must_use]
    pub fn places(&self) -> [Vec<usize>; 2] {
        [&self.lines, &self.channels].map(|axes| {
            axes.iter().fold(vec![0], |places, axis| {
                let along =
                    |&place: &usize| (0..axis.size).map(move |index| place + index * axis.step);
                places.iter().flat_map(along).collect()
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(shape: &[usize]) -> Constant {
        let numbers = (0_u8..).map(f32::from).take(shape.iter().product()).collect();
        Arc::new(Owned { shape: shape.to_vec(), numbers })
    }

    #[test]
    fn weights_are_multiplied_by_channel_one_factor_after_the_other() {
        let factors = vec![Factor::Channel(vec![1.0, 10.0]), Factor::One(2.0)];
        let weights = Weights { constant: constant(&[2, 3]), factors };
        assert_eq!(weights.values(), Some(vec![0.0, 2.0, 4.0, 60.0, 80.0, 100.0]));
        let misfit = Weights { factors: vec![Factor::Channel(vec![1.0; 4])], ..weights };
        assert_eq!(misfit.values(), None);
    }

    #[test]
    fn a_matrix_is_read_over_any_axes() {
        let [a, b, c] = [(2, 12), (3, 4), (4, 1)].map(|(size, step)| Stride { size, step });
        let matrix =
            Matrix { constant: constant(&[2, 3, 4]), lines: vec![c, a], channels: vec![b] };
        let [lines, channels] = matrix.places();
        assert_eq!(lines, [0, 12, 1, 13, 2, 14, 3, 15]);
        assert_eq!(channels, [0, 4, 8]);
    }
}
