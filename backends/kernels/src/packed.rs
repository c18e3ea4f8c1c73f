//! Constant values of a kernel, in the order in which it reads them.
//!
//! They are most of what a kernel holds, and the same for every size of input that it is made for. So
//! kernels hold them by reference, and several kernels of the same weights can share one copy.

use std::sync::Arc;

/// Bytes of a cache line, which the values begin on.
const LINE: usize = 64;

/// Values that begin on a cache line of their own.
#[derive(Debug)]
pub struct Packed {
    data: Vec<f32>,
    start: usize,
    length: usize,
}

/// Puts one copy in the place of another that holds the same values.
pub type Share<'a> = &'a mut dyn FnMut(&mut Arc<Packed>);

impl Packed {
    /// A buffer of `length` zeros, to be filled.
    pub(crate) fn zeros(length: usize) -> Self {
        let spare = LINE / size_of::<f32>();
        let data = vec![0.0; length + spare];
        let start = data.as_ptr().align_offset(LINE).min(spare);
        Self { data, start, length }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data[self.start..self.start + self.length]
    }

    /// The values.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.data[self.start..self.start + self.length]
    }

    /// The same as they lie in memory.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        pulp::bytemuck::cast_slice(self.as_slice())
    }

    /// Bytes of memory that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.capacity() * size_of::<f32>()
    }
}

impl FromIterator<f32> for Packed {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        let values: Vec<f32> = values.into_iter().collect();
        let mut made = Self::zeros(values.len());
        made.as_mut_slice().copy_from_slice(&values);
        made
    }
}
