//! Elements of a tensor, in memory of their own or in memory that they share.
//!
//! A request's tensors lie in its body, and an answer's where the engine has left them. Each copy of them costs
//! as much time as a small model takes for a row, so that elements stay where they are if they lie there as
//! numbers do: in the machine's byte order and aligned.

use bytemuck::{AnyBitPattern, NoUninit};
use bytes::Bytes;
use std::fmt;
use std::ops::Deref;

/// A sequence of numbers, to be read as a slice.
#[derive(Clone)]
pub struct Elements<T>(Memory<T>);

#[derive(Clone)]
enum Memory<T> {
    Own(Vec<T>),
    /// Aligned for `T`, and as long as a number of them.
    Shared(Bytes),
}

impl<T: AnyBitPattern + NoUninit> Elements<T> {
    /// The elements that lie in these bytes, in the machine's byte order; copied only if they are not aligned.
    /// `None` if the bytes end within an element.
    pub fn shared(bytes: Bytes) -> Option<Self> {
        if !bytes.len().is_multiple_of(size_of::<T>().max(1)) {
            return None;
        }
        Some(Self(match bytemuck::try_cast_slice::<u8, T>(&bytes) {
            Ok(_) => Memory::Shared(bytes),
            Err(_) => {
                let each = bytes.chunks_exact(size_of::<T>().max(1));
                Memory::Own(each.map(bytemuck::pod_read_unaligned).collect())
            }
        }))
    }

    /// As a vector, without a copy if it is one.
    pub fn into_vec(self) -> Vec<T> {
        match self.0 {
            Memory::Own(elements) => elements,
            Memory::Shared(_) => self.to_vec(),
        }
    }
}

impl<T: AnyBitPattern + NoUninit + Send> Elements<T> {
    /// The memory in which they lie.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Memory::Own(elements) => Bytes::from_owner(Owned(elements)),
            Memory::Shared(bytes) => bytes,
        }
    }

    /// Adds elements.
    pub fn append(&mut self, others: &[T]) {
        if let Memory::Shared(_) = self.0 {
            let mut own = Vec::with_capacity(self.len() + others.len());
            own.extend_from_slice(self);
            self.0 = Memory::Own(own);
        }
        if let Memory::Own(own) = &mut self.0 {
            own.extend_from_slice(others);
        }
    }
}

/// A vector as bytes.
pub(super) struct Owned<T>(pub(super) Vec<T>);

impl<T: NoUninit> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl<T: AnyBitPattern + NoUninit> Deref for Elements<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Memory::Own(elements) => elements,
            // Checked when it was made: memory does not move.
            Memory::Shared(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

impl<T> From<Vec<T>> for Elements<T> {
    fn from(elements: Vec<T>) -> Self {
        Self(Memory::Own(elements))
    }
}

impl<T> FromIterator<T> for Elements<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Vec::from_iter(elements).into()
    }
}

impl<'a, T: AnyBitPattern + NoUninit> IntoIterator for &'a Elements<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: AnyBitPattern + NoUninit + PartialEq> PartialEq for Elements<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: AnyBitPattern + NoUninit + PartialEq, const N: usize> PartialEq<[T; N]> for Elements<T> {
    fn eq(&self, other: &[T; N]) -> bool {
        **self == *other
    }
}

impl<T: AnyBitPattern + NoUninit + fmt::Debug> fmt::Debug for Elements<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Eight numbers and three bytes of memory before them, in one block.
    fn block() -> (Bytes, usize) {
        let bytes = Bytes::from(vec![7_u8; 64]);
        let aligned = bytes.as_ptr().align_offset(8);
        (bytes, aligned)
    }

    #[test]
    fn aligned_memory_is_shared_and_any_other_is_copied() {
        let (bytes, aligned) = block();
        let number = i32::from_ne_bytes([7; 4]);
        for (offset, is_shared) in [(0, true), (4, true), (1, false), (2, false), (7, false)] {
            let part = bytes.slice(aligned + offset..aligned + offset + 16);
            let at = part.as_ptr();
            let elements = Elements::<i32>::shared(part).unwrap();
            assert_eq!(*elements, [number; 4]);
            assert_eq!(elements.as_ptr().cast() == at, is_shared, "at {offset}");
            assert_eq!(elements.clone().into_vec(), [number; 4]);
            assert_eq!(elements.into_bytes(), bytes.slice(..16));
        }
        assert!(Elements::<i32>::shared(bytes.slice(..7)).is_none());
        assert!(Elements::<f64>::shared(Bytes::new()).unwrap().is_empty());
    }

    #[test]
    fn elements_are_added_to_a_copy_of_what_is_shared() {
        let (bytes, aligned) = block();
        let part = bytes.slice(aligned..aligned + 2);
        for mut elements in [Elements::shared(part).unwrap(), vec![7_u8, 7].into()] {
            let before = elements.clone();
            elements.append(&[1, 2]);
            assert_eq!((&*elements, &*before), (&[7, 7, 1, 2][..], &[7, 7][..]));
        }
        assert_eq!(bytes, vec![7; 64]);
    }
}
