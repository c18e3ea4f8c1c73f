//! Places for requests and streams: bounded in total and for each client.
//!
//! A client may have a hundred of them on one connection over HTTP/2, so bounds of connections are not enough. A
//! request whose body does not come takes 17 KiB until its time is up: 1,500 connections of one client would
//! take 2.5 GiB. A stream lasts for as long as its client likes and has a connection of its own to an endpoint: 300
//! connections would take every port towards an endpoint, or every descriptor, and no other request could be sent.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places that all clients share.
#[derive(Debug, Default)]
pub struct Places(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_client: HashMap<u64, usize>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub struct Place {
    of: Arc<Places>,
    client: u64,
}

/// The bound that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacesFull {
    /// That of the client.
    Client,
    /// That of all.
    Total,
}

impl Places {
    /// Takes a place for `client`, a number that is equal for requests of one client: of `most` places it may have half.
    ///
    /// # Errors
    /// The bound that does not allow it.
    pub fn begin(self: &Arc<Self>, client: u64, most: usize) -> Result<Place, PlacesFull> {
        let mut open = self.lock();
        if open.all >= most {
            return Err(PlacesFull::Total);
        }
        let of_client = open.by_client.entry(client).or_default();
        if *of_client >= most.div_ceil(2) {
            return Err(PlacesFull::Client);
        }
        *of_client += 1;
        open.all += 1;
        drop(open);
        Ok(Place { of: Arc::clone(self), client })
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Nothing is left half done under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.lock();
        open.all = open.all.saturating_sub(1);
        if let Entry::Occupied(mut count) = open.by_client.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_half_of_all_places_and_others_the_rest() {
        let places = Arc::new(Places::default());
        let begin = |client| places.begin(client, 4);
        let (first, second) = (begin(1).ok(), begin(1).ok());
        assert!(first.is_some() && second.is_some());
        assert_eq!(begin(1).err(), Some(PlacesFull::Client));
        let others = [begin(2).ok(), begin(3).ok()];
        assert_eq!(begin(4).err(), Some(PlacesFull::Total));
        drop(first);
        assert!(begin(4).is_ok() && begin(1).is_ok());
        drop((second, others));
        assert!(places.0.lock().is_ok_and(|open| open.all == 0 && open.by_client.is_empty()));
    }

    #[test]
    fn a_refusal_leaves_nothing_behind() {
        let places = Arc::new(Places::default());
        assert_eq!(places.begin(1, 0).err(), Some(PlacesFull::Total));
        assert!(places.0.lock().is_ok_and(|open| open.by_client.is_empty()));
    }
}
