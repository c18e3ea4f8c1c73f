//! Things that come and go by the million, in memory that is used again.
//!
//! An event may speak of a request that has long been answered, and its place may be taken by
//! another. A [`Key`] carries a generation, so that what is gone is not found.

/// Names one entry for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    slot: u32,
    generation: u32,
}

impl Key {
    /// Its place, which later entries may have again.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Entries by key.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Keeps `value`.
    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(slot) = self.free.pop() {
            let (generation, entry) = &mut self.entries[slot as usize];
            *entry = Some(value);
            return Key { slot, generation: *generation };
        }
        let slot = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push((0, Some(value)));
        Key { slot, generation: 0 }
    }

    /// The entry, if it is still there.
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (generation, entry) = self.entries.get(key.slot())?;
        entry.as_ref().filter(|_| *generation == key.generation)
    }

    /// The entry, if it is still there.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, entry) = self.entries.get_mut(key.slot())?;
        entry.as_mut().filter(|_| *generation == key.generation)
    }

    /// Takes the entry out, if it is still there.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, entry) = self.entries.get_mut(key.slot())?;
        if *generation != key.generation {
            return None;
        }
        let value = entry.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::Slab;

    #[test]
    fn what_is_gone_is_not_found_though_its_place_is_taken() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(first.slot(), second.slot());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!((slab.get(second), slab.len()), (Some(&'b'), 1));
    }
}
