//! The number of connections of each listener and client, and which of them make room for others.
//!
//! A connection costs memory and a file descriptor even if it never sends a byte, and when descriptors run
//! out, nothing works any more: not the open connections, not the probes, not the admin listener. So each
//! listener has a bound, and a part of it that no single client can exceed. When a bound is reached, the
//! connections that have waited longest for their client make room, silent ones and those kept for a further
//! request alike; a new connection is refused only where all are busy.

use crate::config;
use forebay_protocol::{Reason, metric};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Connections that make room at once: looking for them means looking at all.
const MAX_EVICTED_AT_ONCE: usize = 16;
/// Time after a search that found none in which there is no other.
const MIN_SEARCH_INTERVAL: Duration = Duration::from_millis(5);

/// The protocol of the admin listener.
const ADMIN: &str = "admin";

/// The connections of one listener.
#[derive(Debug)]
pub struct Connections {
    /// The listener's address, as it is bound: its name in logs and metrics.
    pub listener: Arc<str>,
    /// The listener's protocol.
    pub protocol: &'static str,
    most: usize,
    most_per_client: usize,
    open: AtomicUsize,
    /// Of those that are open, those that have been asked to make room.
    leaving: AtomicUsize,
    began: Instant,
    /// Milliseconds since `began` until which nothing is searched for.
    no_search: AtomicU64,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    taken: Vec<Option<Arc<Seat>>>,
    free: Vec<usize>,
    by_client: HashMap<IpAddr, usize>,
}

/// The record of one connection.
#[derive(Debug)]
struct Seat {
    /// Since when it waits for its client, in milliseconds after the listener's beginning; 0 while it
    /// does not wait.
    waits_since: AtomicU64,
    leaving: AtomicBool,
    leave: Notify,
    client: Mutex<Option<IpAddr>>,
}

/// One open connection; dropping it counts it out.
#[derive(Debug)]
pub struct Connection {
    of: Arc<Connections>,
    seat: Arc<Seat>,
    place: usize,
    outcome: &'static str,
}

/// The mark that a connection waits for its client.
#[derive(Debug, Clone)]
pub struct Waiting {
    of: Arc<Connections>,
    seat: Arc<Seat>,
}

impl Connections {
    /// None yet.
    pub fn new(bound: std::net::SocketAddr, listener: &config::Listener) -> Self {
        Self {
            protocol: listener.protocol.as_str(),
            most_per_client: listener.max_connections_per_client,
            ..Self::of_operators(bound, listener.max_connections)
        }
    }

    /// Those of the admin listener, which are not counted among those of clients.
    pub fn of_operators(bound: std::net::SocketAddr, most: usize) -> Self {
        Self {
            listener: bound.to_string().into(),
            protocol: ADMIN,
            most,
            most_per_client: most,
            open: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            began: Instant::now(),
            no_search: AtomicU64::new(0),
            seats: Mutex::default(),
        }
    }

    /// Counts a connection in; `None` (and counted as refused) if there are too many already, and
    /// none can make room.
    pub fn enter(self: &Arc<Self>) -> Option<Connection> {
        let before = self.open.fetch_add(1, Relaxed);
        let mut connection = self.seated();
        let staying = before.saturating_sub(self.leaving.load(Relaxed));
        if staying >= self.most && !self.make_room(None) {
            connection.ended(Reason::ConnectionLimit);
            return None;
        }
        Some(connection)
    }

    /// Counts a connection that was never let in.
    pub fn refused(&self, reason: Reason) {
        self.count(reason.code());
    }

    fn count(&self, outcome: &'static str) {
        if self.protocol == ADMIN {
            return;
        }
        metric::proxy::CONNECTIONS.with([&self.listener, outcome]).increment(1);
    }

    /// Number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Maximum number of open connections.
    pub fn most(&self) -> usize {
        self.most
    }

    fn seated(self: &Arc<Self>) -> Connection {
        let seat = Arc::new(Seat {
            waits_since: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            leave: Notify::new(),
            client: Mutex::new(None),
        });
        let mut seats = self.seats();
        let place = seats.free.pop().unwrap_or_else(|| {
            seats.taken.push(None);
            seats.taken.len() - 1
        });
        seats.taken[place] = Some(Arc::clone(&seat));
        Connection { of: Arc::clone(self), seat, place, outcome: OK }
    }

    /// BindRequest those to leave that have waited longest, of `client` or of all. `false`: none waits.
    fn make_room(&self, client: Option<IpAddr>) -> bool {
        let now = self.now();
        if client.is_none() && now < self.no_search.load(Relaxed) {
            return false;
        }
        // A client's own bound costs none but itself a place.
        let batch = if client.is_some() { 1 } else { MAX_EVICTED_AT_ONCE };
        let mut longest: Vec<(u64, Arc<Seat>)> = Vec::with_capacity(batch + 1);
        let mut seats = self.seats();
        for seat in seats.taken.iter().flatten() {
            let since = seat.waits_since.load(Relaxed);
            let waits = since > 0 && !seat.leaving.load(Relaxed);
            if !waits || client.is_some_and(|client| *lock(&seat.client) != Some(client)) {
                continue;
            }
            let place = longest.partition_point(|(other, _)| *other <= since);
            if place < batch {
                longest.insert(place, (since, Arc::clone(seat)));
                longest.truncate(batch);
            }
        }
        let found = !longest.is_empty();
        for (_, seat) in longest {
            // The seats are locked, so no other code sets it.
            seat.leaving.store(true, Relaxed);
            self.leaving.fetch_add(1, Relaxed);
            seats.one_less(lock(&seat.client).take());
            seat.leave.notify_one();
        }
        drop(seats);
        if !found && client.is_none() {
            self.no_search.store(now + millis(MIN_SEARCH_INTERVAL), Relaxed);
        }
        found
    }

    /// Never 0.
    fn now(&self) -> u64 {
        millis(self.began.elapsed()) + 1
    }

    fn seats(&self) -> std::sync::MutexGuard<'_, Seats> {
        lock(&self.seats)
    }
}

impl Connection {
    /// The listener's connections, this one among them.
    pub fn listener(&self) -> &Connections {
        &self.of
    }

    /// It is this client's. `false`: the client has too many already, and none can make room.
    #[must_use]
    pub fn belongs_to(&mut self, client: IpAddr) -> bool {
        let client = one_client(client);
        let mut seats = self.of.seats();
        let count = seats.by_client.entry(client).or_default();
        *count += 1;
        let too_many = *count > self.of.most_per_client;
        drop(seats);
        *lock(&self.seat.client) = Some(client);
        !too_many || self.of.make_room(Some(client))
    }

    /// It ends for this reason, and is counted so; without one it ends in order.
    pub fn ended(&mut self, reason: Reason) {
        if self.outcome == OK {
            self.outcome = reason.code();
            self.of.count(self.outcome);
        }
    }

    /// Why it ended: `ok`, or the reason.
    pub fn outcome(&self) -> &'static str {
        self.outcome
    }

    /// To note when it waits for its client.
    pub fn waiting(&self) -> Waiting {
        Waiting { of: Arc::clone(&self.of), seat: Arc::clone(&self.seat) }
    }

    /// Whether it has to make room for others.
    pub fn is_leaving(&self) -> bool {
        self.seat.leaving.load(Relaxed)
    }

    /// Until it is to make room for others.
    pub async fn room_is_wanted(&self) {
        while !self.is_leaving() {
            self.seat.leave.notified().await;
        }
    }
}

impl Waiting {
    /// From now on it waits.
    pub fn begins(&self) {
        self.seat.waits_since.store(self.of.now(), Relaxed);
    }

    /// It does something for its client again.
    pub fn ends(&self) {
        self.seat.waits_since.store(0, Relaxed);
    }

    /// Whether it waits.
    pub fn is_on(&self) -> bool {
        self.seat.waits_since.load(Relaxed) > 0
    }
}

/// Ended in order.
const OK: &str = "ok";

impl Drop for Connection {
    fn drop(&mut self) {
        self.of.open.fetch_sub(1, Relaxed);
        if self.is_leaving() {
            self.of.leaving.fetch_sub(1, Relaxed);
        }
        let client = lock(&self.seat.client).take();
        let mut seats = self.of.seats();
        seats.taken[self.place] = None;
        seats.free.push(self.place);
        seats.one_less(client);
        drop(seats);
        if self.outcome == OK {
            self.of.count(OK);
        }
    }
}

impl Seats {
    /// A connection of this client counts no more.
    fn one_less(&mut self, client: Option<IpAddr>) {
        if let Some(client) = client
            && let Some(count) = self.by_client.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&client);
            }
        }
    }
}

/// The addresses that one client has: of IPv6 usually the 2^64 of a network.
fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    fn connections(most: usize, most_per_client: usize) -> Arc<Connections> {
        Arc::new(Connections {
            listener: "test".into(),
            protocol: "http",
            most,
            most_per_client,
            open: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            began: Instant::now(),
            no_search: AtomicU64::new(0),
            seats: Mutex::default(),
        })
    }

    fn waits_since(connection: &Connection, since: u64) {
        connection.seat.waits_since.store(since, Relaxed);
    }

    #[test]
    fn those_make_room_that_have_waited_longest_and_only_where_it_is_needed() {
        let connections = connections(40, 40);
        let all: Vec<_> = (0..40).map(|_| connections.enter().unwrap()).collect();
        for (place, connection) in all.iter().enumerate() {
            // The first ten are busy.
            waits_since(connection, if place < 10 { 0 } else { 100 - place as u64 });
        }
        assert!(all.iter().all(|connection| !connection.is_leaving()));
        let new = connections.enter().unwrap();
        let leaving: Vec<_> = (0..40).filter(|place| all[*place].is_leaving()).collect();
        assert_eq!(leaving, (24..40).collect::<Vec<_>>());
        // They have not gone yet, but their places are given already.
        let more: Vec<_> = (0..15).map(|_| connections.enter().unwrap()).collect();
        assert_eq!(
            all.iter().filter(|connection| connection.is_leaving()).count(),
            MAX_EVICTED_AT_ONCE
        );
        drop((all, new, more));
        assert_eq!((connections.open(), connections.leaving.load(Relaxed)), (0, 0));
    }

    #[test]
    fn a_new_connection_is_refused_where_all_are_busy() {
        let connections = connections(2, 2);
        let all = [connections.enter().unwrap(), connections.enter().unwrap()];
        assert!(connections.enter().is_none());
        assert_eq!(connections.open(), 2);
        drop(all);
        assert!(connections.enter().is_some());
    }

    #[test]
    fn a_client_has_no_more_than_its_part_and_makes_room_for_itself() {
        let connections = connections(100, 3);
        let client = |address: &str| address.parse::<IpAddr>().unwrap();
        let enter = |address: &str| {
            let mut connection = connections.enter().unwrap();
            connection.belongs_to(client(address)).then_some(connection)
        };
        let greedy: Vec<_> = (0..3).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert!(enter("10.0.0.1").is_none(), "all are busy");
        assert!(enter("::ffff:10.0.0.1").is_none(), "the same client");
        let other = enter("10.0.0.2").unwrap();
        waits_since(&other, 1);
        waits_since(&greedy[1], 7);
        let next = enter("10.0.0.1").unwrap();
        assert!(greedy[1].is_leaving() && !other.is_leaving());
        assert!(enter("10.0.0.1").is_none());
        drop((greedy, next));
        assert!(enter("10.0.0.1").is_some());
        // A network of IPv6 is one client.
        let network: Vec<_> =
            (1..4).map(|host| enter(&format!("2001:db8::{host}")).unwrap()).collect();
        assert!(enter("2001:db8::ffff:1").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(network);
    }
}
