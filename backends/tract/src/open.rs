//! One plan for all sizes that a model leaves open.
//!
//! Compiling a plan takes up to half a second, and clients send texts of every length. So a graph is
//! compiled once more with symbols in the place of its open sizes, and that plan runs all shapes that no
//! plan of their own was compiled for. Our kernels work out at each run what depends on sizes, so it is
//! about as fast as a plan for one shape.
//!
//! Some graphs can't be compiled so, and some shapes don't fit the names that a file gives to its
//! sizes. Those are compiled for, one by one, as before.

use crate::alike::Alike;
use crate::build::{Build, Plan, Shapes};
use forebay_protocol::oip::TensorMetadata;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tract_onnx::prelude::*;

/// A plan for every shape that goes with its symbols.
pub(crate) struct Open {
    pub(crate) plan: Plan,
    pub(crate) build: Build,
    pub(crate) dims: Dims,
    /// Sizes that have to be equal, though their names differ.
    alike: Alike,
    /// Values of the largest inputs so far.
    largest: AtomicUsize,
}

impl Open {
    pub(crate) fn new(plan: Plan, build: Build, dims: Dims, alike: Alike) -> Self {
        Self { plan, build, dims, alike, largest: AtomicUsize::new(0) }
    }

    /// Whether it runs these shapes.
    pub(crate) fn takes(&self, shapes: &Shapes, symbols: &SymbolScope) -> bool {
        self.dims.take(shapes) && self.alike.hold(|| self.dims.values(shapes, symbols))
    }

    /// Whether inputs of these shapes are larger by a quarter than any before.
    pub(crate) fn grows(&self, shapes: &Shapes) -> bool {
        let count = |shape: &Vec<usize>| shape.iter().fold(1_usize, |a, &b| a.saturating_mul(b));
        let values = shapes.iter().map(count).fold(0, usize::saturating_add);
        let largest = self.largest.load(Relaxed);
        values > largest + largest / 4 && self.largest.fetch_max(values, Relaxed) < values
    }
}

/// Sizes of the inputs, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dims(Vec<Vec<Dim>>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dim {
    Size(usize),
    /// Open; sizes of one name are equal.
    Name(String),
}

/// An open size in some shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) size: usize,
    /// Whether it stands first in a shape.
    pub(crate) is_first: bool,
}

impl Dims {
    /// Those of inputs, with the names that a file gives to the sizes of each; `None` if none is open.
    pub(crate) fn new(inputs: &[TensorMetadata], names: &[Vec<String>]) -> Option<Self> {
        let dims = inputs.iter().zip(names).map(|(input, names)| {
            let dim = |(axis, &size): (usize, &i64)| match usize::try_from(size) {
                Ok(size) => Dim::Size(size),
                Err(_) => {
                    let name = names.get(axis).filter(|name| !name.is_empty()).cloned();
                    Dim::Name(name.unwrap_or_else(|| format!("{}.{axis}", input.name)))
                }
            };
            input.shape.iter().enumerate().map(dim).collect()
        });
        let dims: Vec<Vec<Dim>> = dims.collect();
        dims.iter().flatten().any(|dim| matches!(dim, Dim::Name(_))).then_some(Self(dims))
    }

    /// Whether the shapes agree with the names.
    pub(crate) fn take(&self, shapes: &Shapes) -> bool {
        let is_same_rank = |(dims, shape): (&Vec<Dim>, &Vec<usize>)| dims.len() == shape.len();
        let pairs = || self.0.iter().flatten().zip(shapes.iter().flatten().copied());
        // The first size of a name is that of all.
        let named = |name: &str| {
            pairs()
                .find(|(dim, _)| matches!(dim, Dim::Name(known) if known == name))
                .map(|pair| pair.1)
        };
        let fits = |(dim, size): (&Dim, usize)| match dim {
            Dim::Size(fixed) => *fixed == size,
            Dim::Name(name) => named(name) == Some(size),
        };
        self.0.len() == shapes.len()
            && self.0.iter().zip(shapes).all(is_same_rank)
            && pairs().all(fits)
    }

    /// Whether only first dimensions are open.
    pub(crate) fn is_batch_only(&self) -> bool {
        let behind = |dims: &Vec<Dim>| dims.iter().skip(1).all(|dim| matches!(dim, Dim::Size(_)));
        self.0.iter().all(behind)
    }

    /// The size of each name in these shapes, in the order of the inputs, and whether it stands first in
    /// one of them.
    pub(crate) fn sizes(&self, shapes: &Shapes) -> Vec<Named> {
        let mut sizes: Vec<Named> = Vec::new();
        for (dims, shape) in self.0.iter().zip(shapes) {
            for (axis, (dim, &size)) in dims.iter().zip(shape).enumerate() {
                let Dim::Name(name) = dim else { continue };
                let is_first = axis == 0;
                match sizes.iter_mut().find(|known| known.name == *name) {
                    Some(known) => known.is_first |= is_first,
                    None => sizes.push(Named { name: name.clone(), size, is_first }),
                }
            }
        }
        sizes
    }

    /// Shapes with these sizes; 1 for a name that has none.
    pub(crate) fn shapes(&self, sizes: &[Named]) -> Shapes {
        let size = |name: &str| sizes.iter().find(|known| known.name == name);
        let dim = |dim: &Dim| match dim {
            Dim::Size(size) => *size,
            Dim::Name(name) => size(name).map_or(1, |known| known.size),
        };
        self.0.iter().map(|dims| dims.iter().map(dim).collect()).collect()
    }

    /// The sizes in these shapes, by symbol.
    pub(crate) fn values(&self, shapes: &Shapes, symbols: &SymbolScope) -> SymbolValues {
        let mut values = SymbolValues::default();
        for Named { name, size, .. } in self.sizes(shapes) {
            values.set(&symbols.sym(&name), i64::try_from(size).unwrap_or(i64::MAX));
        }
        values
    }

    /// The same as facts, with a symbol for each name.
    pub(crate) fn facts(&self, symbols: &SymbolScope) -> Vec<TVec<TDim>> {
        let dim = |dim: &Dim| match dim {
            Dim::Size(size) => size.to_dim(),
            Dim::Name(name) => symbols.sym(name).into(),
        };
        self.0.iter().map(|dims| dims.iter().map(dim).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims() -> Dims {
        let name = |name: &str| Dim::Name(name.to_owned());
        Dims(vec![vec![name("n"), name("t"), Dim::Size(4)], vec![name("n"), name("t")]])
    }

    #[test]
    fn shapes_are_taken_if_sizes_of_one_name_are_equal() {
        let dims = dims();
        assert!(dims.take(&vec![vec![2, 9, 4], vec![2, 9]]));
        assert!(dims.take(&vec![vec![0, 1, 4], vec![0, 1]]));
        assert!(!dims.take(&vec![vec![2, 9, 4], vec![2, 8]]), "two sizes of one name");
        assert!(!dims.take(&vec![vec![2, 9, 3], vec![2, 9]]), "another size than the file's");
        assert!(!dims.take(&vec![vec![2, 9, 4], vec![2, 9, 1]]), "another rank");
        assert!(!dims.take(&vec![vec![2, 9, 4]]), "one input less");
    }

    #[test]
    fn sizes_go_by_name_there_and_back() {
        let (dims, shapes) = (dims(), vec![vec![2, 9, 4], vec![2, 9]]);
        let sizes = dims.sizes(&shapes);
        let found: Vec<_> =
            sizes.iter().map(|named| (named.name.as_str(), named.size, named.is_first)).collect();
        assert_eq!(found, [("n", 2, true), ("t", 9, false)]);
        assert_eq!(dims.shapes(&sizes), shapes);
        assert!(!dims.is_batch_only());
    }
}
