//! Decides when an answer that its client does not read gives its endpoint's slot to others.
//!
//! Where memory is short, an answer that its client does not read keeps its slot. A few clients that do that must
//! not hold up all others, each for as long as a client may stall. So while others wait, such a client gets less
//! time, and the less the more of them there are for each slot: those that wait would else wait for one such client
//! after the other.
//!
//! Bytes that were written say little of a client: the kernel takes some hundred kilobytes of an answer that is
//! not read, a part now and then. So the bytes are counted that the client's kernel has acknowledged. Over HTTP/2 they
//! may be those of another answer; there, bytes for which this one found a window count as well.

use crate::config::Limits;
use crate::http::pace::Pace;
use crate::pool::{Endpoint, Pool};
use pingora::protocols::SocketDigest;
use pingora::protocols::http::ServerSession;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Part of the time for a client that does not read that it gets while others wait for the slot.
const HURRY: u32 = 10;
/// Time between two looks at the client.
const LOOK: Duration = Duration::from_millis(20);
/// The least time that a client gets beyond two round trips: some acknowledge late.
const ACKNOWLEDGES: Duration = Duration::from_millis(100);

/// The waiting for one client while it is read for it ahead.
#[derive(Debug)]
pub(in crate::http) struct Hurry {
    /// The connection to the client, if the kernel knows it.
    socket: Option<Arc<SocketDigest>>,
    /// Whether other answers may be on it.
    is_shared: bool,
    most: Duration,
    connection: Credit,
    answer: Credit,
}

/// Bytes that have moved, and the time for which they are too few.
#[derive(Debug)]
struct Credit {
    pace: Pace,
    moved: u64,
}

impl Credit {
    fn new(limits: &Limits) -> Self {
        Self { pace: Pace::new(limits), moved: 0 }
    }

    /// After waiting for so long, `moved` bytes have moved in all.
    fn waited(&mut self, time: Duration, moved: u64) {
        let bytes = moved.saturating_sub(self.moved);
        self.moved = moved;
        self.pace.spend(time);
        self.pace.moved(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
}

/// The state of a client's connection.
struct Seen {
    acknowledged: u64,
    round_trip: Duration,
}

impl Hurry {
    /// For an answer in this session.
    pub(in crate::http) fn new(session: &ServerSession, limits: &Limits) -> Self {
        let socket = session.digest().and_then(|digest| digest.socket_digest.clone());
        Self {
            is_shared: session.is_http2(),
            socket,
            most: limits.stall_timeout / HURRY,
            connection: Credit::new(limits),
            answer: Credit::new(limits),
        }
    }

    /// Until the answer has waited for its client for so long in all that it is in the way of those that wait for a
    /// slot of `pool`, such as it keeps at `endpoint`. `given`: the bytes that the client has been given so far.
    pub(super) async fn is_spent(
        &mut self,
        given: impl Fn() -> usize,
        (pool, endpoint): (&Pool, &Endpoint),
    ) {
        let mut since = Instant::now();
        // Bytes from before the wait are no part of it.
        self.answer.moved = given() as u64;
        self.connection.moved = self.seen().map_or(0, |seen| seen.acknowledged);
        loop {
            sleep(LOOK).await;
            let time = since.elapsed();
            since += time;
            self.answer.waited(time, given() as u64);
            let seen = self.seen();
            if let Some(seen) = &seen {
                self.connection.waited(time, seen.acknowledged);
            }
            let waiting = pool.state.queue.count();
            if waiting > 0 {
                let running = pool.rotation.ready.len() * endpoint.state.in_flight() as usize;
                if self.is_over(seen.map(|seen| seen.round_trip), (waiting, running)) {
                    return;
                }
            }
        }
    }

    /// Whether it has taken too long, where so many wait for one of so many slots.
    fn is_over(&self, round_trip: Option<Duration>, line: (usize, usize)) -> bool {
        match round_trip {
            Some(round_trip) => {
                self.connection.pace.spent() >= patience(self.most, round_trip, line)
                    || (self.is_shared && self.answer.pace.spent() >= self.most)
            }
            None => self.answer.pace.spent() >= self.most,
        }
    }

    fn seen(&self) -> Option<Seen> {
        let info = self.socket.as_ref()?.tcp_info()?;
        let round_trip = Duration::from_micros(info.tcpi_rtt.into());
        Some(Seen { acknowledged: info.tcpi_bytes_acked, round_trip })
    }
}

/// The time for a client where `waiting` requests want one of the slots on which `running` are: those before the last
/// of them, each as slow as this client, take `most` together.
fn patience(most: Duration, round_trip: Duration, (waiting, running): (usize, usize)) -> Duration {
    let slots = running.max(1) as f64;
    let share = most.mul_f64(slots / (slots + waiting as f64));
    share.max(2 * round_trip + ACKNOWLEDGES).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hurry(is_shared: bool) -> Hurry {
        let limits = Limits {
            min_rate: 1000.0,
            stall_timeout: Duration::from_secs(10),
            ..Limits::default()
        };
        Hurry {
            socket: None,
            is_shared,
            most: limits.stall_timeout / HURRY,
            connection: Credit::new(&limits),
            answer: Credit::new(&limits),
        }
    }

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_more_wait_the_less_time_a_client_gets_but_two_round_trips_always() {
        let patience = |waiting, trip| patience(millis(1000), millis(trip), (waiting, 4));
        assert_eq!(patience(0, 0), millis(1000));
        assert_eq!(patience(4, 0), millis(500));
        assert_eq!(patience(16, 0), millis(200));
        assert_eq!(patience(10_000, 0), millis(100));
        assert_eq!(patience(10_000, 150), millis(400));
        assert_eq!(patience(10_000, 5000), millis(1000));
        assert_eq!(super::patience(millis(1000), millis(0), (1, 0)), millis(500));
    }

    #[test]
    fn a_client_that_reads_at_the_least_rate_is_never_in_the_way() {
        let mut hurry = hurry(false);
        for round in 1..100 {
            hurry.connection.waited(millis(90), round * 90);
            assert!(!hurry.is_over(Some(millis(0)), (1000, 1)), "{round}");
        }
        hurry.connection.waited(millis(90), 99 * 90);
        assert!(!hurry.is_over(Some(millis(0)), (1000, 1)));
        hurry.connection.waited(millis(90), 99 * 90);
        assert!(hurry.is_over(Some(millis(0)), (1000, 1)));
        assert!(!hurry.is_over(Some(millis(0)), (1, 1)));
    }

    #[test]
    fn waits_for_several_pieces_add_up_if_nothing_is_acknowledged_between_them() {
        let mut hurry = hurry(false);
        for given in 0..6 {
            assert!(!hurry.is_over(Some(millis(0)), (1, 1)));
            // The kernel has taken them.
            hurry.answer.waited(millis(90), given * 60_000);
            hurry.connection.waited(millis(90), 0);
        }
        assert!(hurry.is_over(Some(millis(0)), (1, 1)));
    }

    #[test]
    fn an_answer_of_a_connection_that_moves_must_move_itself() {
        let (mut shared, mut own) = (hurry(true), hurry(false));
        for hurry in [&mut shared, &mut own] {
            for round in 1..=10 {
                hurry.connection.waited(millis(100), round * 60_000);
                hurry.answer.waited(millis(100), 0);
            }
        }
        assert!(shared.is_over(Some(millis(0)), (1, 4)));
        assert!(!own.is_over(Some(millis(0)), (1, 4)));
        assert!(own.is_over(None, (1, 4)), "where nothing is known of the connection");
    }
}
