//! Values of the reference.

/// Numbers in the order of their axes; truth is 1 and its opposite 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Sizes.
    pub shape: Vec<usize>,
    /// The values; their count is the product of the sizes.
    pub values: Vec<f64>,
}
