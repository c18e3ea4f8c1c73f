//! Products of two tensors that are both computed, as in attention.

/// The pairing of two tensors' axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairing {
    /// Number of the input that is the left side.
    pub slot: usize,
    /// Position of each axis in the left side, the right side and the output.
    pub axes: Vec<Places>,
}

/// Position of an axis in the left side, the right side and the output.
pub type Places = (Option<usize>, Option<usize>, Option<usize>);

/// Products of equal sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Products {
    /// Their sizes.
    pub matrices: Matrices,
    /// Start of the left side, the right side and the output of each product.
    pub places: Vec<[usize; 3]>,
}

impl Pairing {
    /// The products for these shapes of the left side, the right side and the output; `None` if they
    /// are none in our sense.
    #[must_use]
    pub fn products(&self, x: &[usize], w: &[usize], y: &[usize]) -> Option<Products> {
        let stride = |shape: &[usize], place: usize| shape[place + 1..].iter().product::<usize>();
        let mut matrices = Matrices {
            rows: 1,
            lines: 1,
            channels: 1,
            x_row: 0,
            w_line: 0,
            w_channel: 0,
            y_row: 0,
        };
        let mut begin = vec![[0; 3]];
        for &(a, b, c) in &self.axes {
            let is_one =
                |shape: &[usize], place: Option<usize>| place.is_none_or(|place| shape[place] == 1);
            match (a, b, c) {
                _ if is_one(x, a) && is_one(w, b) && is_one(y, c) => (),
                // Each side of its own axis, so a second one of a kind is not ours.
                (Some(a), Some(b), None) if x[a] == w[b] && matrices.lines == 1 => {
                    (matrices.lines, matrices.w_line) = (x[a], stride(w, b));
                    if stride(x, a) != 1 {
                        return None;
                    }
                }
                (Some(a), None, Some(c)) if x[a] == y[c] && matrices.rows == 1 => {
                    (matrices.rows, matrices.x_row, matrices.y_row) =
                        (x[a], stride(x, a), stride(y, c));
                }
                (None, Some(b), Some(c)) if w[b] == y[c] && matrices.channels == 1 => {
                    (matrices.channels, matrices.w_channel) = (w[b], stride(w, b));
                    if stride(y, c) != 1 {
                        return None;
                    }
                }
                (Some(a), Some(b), Some(c)) if x[a] == w[b] && x[a] == y[c] => {
                    let steps = [stride(x, a), stride(w, b), stride(y, c)];
                    let along = |from: &[usize; 3]| {
                        let from = *from;
                        (0..x[a]).map(move |index| [0, 1, 2].map(|i| from[i] + index * steps[i]))
                    };
                    begin = begin.iter().flat_map(along).collect();
                }
                _ => return None,
            }
        }
        Some(Products { matrices, places: begin })
    }
}

/// The sizes of a product of two matrices that are both computed, and where they lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrices {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Values in a row of `x`, one after the other, and lines of `w`.
    pub lines: usize,
    /// Channels of `w` and `y`, one after the other in `y`.
    pub channels: usize,
    /// From one row of `x` to the next.
    pub x_row: usize,
    /// From one line of `w` to the next.
    pub w_line: usize,
    /// From one channel of `w` to the next.
    pub w_channel: usize,
    /// From one row of `y` to the next.
    pub y_row: usize,
}
