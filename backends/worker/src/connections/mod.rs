//! Connections, and what a client may make them hold.
//!
//! A client that opens a connection and then does less than it should - sends no request, drips its
//! header, does not read its answers, or has left - holds memory for as long as it likes, unless it is
//! looked after. Timers within the HTTP library see only some of this: a response that waits for the
//! window of an HTTP/2 stream is not polled at all. So each connection keeps a small record of what it
//! waits for, and one task looks at all records twice a second. A record costs far less than a timer
//! for each connection and each answer.
//!
//! When as many connections are open as may be, an idle one makes room for a new one: of the address
//! that has most of them, the one that was idle for longest.
//!
//! Modules: `record` (one connection), `socket` (reads and writes, seen), `answer` (a response until
//! the client has read it).

mod answer;
mod record;
mod socket;

pub(crate) use answer::Answer;
pub(crate) use record::{Record, Timeouts, Why};
pub(crate) use socket::Socket;

use crate::lifecycle::{Lifecycle, Phase};
use crate::telemetry::metrics::Metrics;
use forebay_process::memory::Taken;
use forebay_protocol::metric::worker as metric;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Time between two looks.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Time that a client may leave an answer unread before its connection is closed.
pub(crate) const SLOW_READER: Duration = Duration::from_secs(15);
/// A connection makes room for another only if it was idle for so long: one that has just been opened
/// has to get its chance.
const SETTLED: Duration = Duration::from_secs(1);

/// All connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    records: Mutex<Records>,
    /// Those that are open, for who gives back what they held.
    open: Taken,
}

#[derive(Debug, Default)]
struct Records {
    by_number: HashMap<u64, Arc<Record>>,
    next: u64,
}

/// A connection's place among them, until it is dropped.
pub(crate) struct Place {
    connections: Arc<Connections>,
    number: u64,
    pub(crate) record: Arc<Record>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().by_number.remove(&self.number);
        self.connections.open.remove(1);
    }
}

impl Connections {
    /// Enters a new connection.
    pub(crate) fn enter(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: IpAddr,
        now: Instant,
    ) -> (Place, Socket) {
        let stream = Arc::new(stream);
        let record = Arc::new(Record::new(&stream, peer, now));
        let mut records = self.lock();
        let number = records.next;
        records.next += 1;
        records.by_number.insert(number, Arc::clone(&record));
        drop(records);
        self.open.add(1);
        let socket = Socket::new(stream, Arc::clone(&record));
        (Place { connections: Arc::clone(self), number, record }, socket)
    }

    /// The memory that is taken.
    pub(crate) fn taken(&self) -> &Taken {
        &self.open
    }

    /// The number of connections.
    pub(crate) fn count(&self) -> usize {
        self.lock().by_number.len()
    }

    /// Closes an idle connection, so that another finds a place. `false`: all are in use.
    pub(crate) fn make_room(&self, now: Instant) -> bool {
        let records = self.all();
        let mut by_peer: HashMap<IpAddr, usize> = HashMap::new();
        records.iter().for_each(|record| *by_peer.entry(record.peer).or_default() += 1);
        let idle = records.iter().filter_map(|record| {
            let idle = record.idle_for(now).filter(|idle| *idle >= SETTLED)?;
            Some((by_peer.get(&record.peer).copied(), idle, record))
        });
        let longest = idle.max_by_key(|(of_peer, idle, _)| (*of_peer, *idle));
        longest.is_some_and(|(.., record)| record.close(Why::Room))
    }

    /// Closes those whose clients do less than they should.
    fn look(&self, now: Instant, timeouts: &Timeouts) {
        for record in self.all() {
            if let Some(why) = record.overdue(now, timeouts) {
                record.close(why);
            }
        }
    }

    fn all(&self) -> Vec<Arc<Record>> {
        self.lock().by_number.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        // Nothing is left half done under the lock.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a connection that the worker closes.
pub(crate) fn count_closed(metrics: &Metrics, why: Why) {
    metrics.counter(&metric::CONNECTIONS_CLOSED, [why.as_str()]).increment(1);
}

/// Looks after all connections until the end.
pub(crate) async fn watch(connections: Arc<Connections>, lifecycle: Lifecycle, timeouts: Timeouts) {
    loop {
        tokio::select! {
            () = lifecycle.reached(Phase::Ended) => return,
            () = tokio::time::sleep(CHECK_INTERVAL) => connections.look(Instant::now(), &timeouts),
        }
    }
}
