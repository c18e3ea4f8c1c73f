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
//!
//! A client that reads fast takes a piece now and then, and the network loses one now and then: both look like a client
//! that does not read, for a moment. So the time is never less than such a moment takes, and a client that was faster
//! than it must be may pause for as long again.

use crate::config::Limits;
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
/// The least time that a client gets: a program that takes a piece of its answer now and then pauses for so long, and a
/// window that was closed opens only once there is room for a good part of it.
const PAUSE: Duration = Duration::from_millis(500);

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
    /// The least bytes per second.
    rate: f64,
    /// Seconds that the client was waited for, less those that its bytes have earned: below 0, it has time to spare.
    owed: f64,
    moved: u64,
}

impl Credit {
    fn new(limits: &Limits, moved: u64) -> Self {
        Self { rate: limits.min_rate, owed: 0.0, moved }
    }

    /// `moved` bytes have moved in all, at another time than that of waiting. No more time to spare is kept
    /// than `most`.
    #[allow(clippy::cast_precision_loss, reason = "a pace need not be exact")]
    fn moved(&mut self, moved: u64, most: Duration) {
        let bytes = moved.saturating_sub(self.moved) as f64;
        let earned = if self.rate > 0.0 { bytes / self.rate } else { f64::INFINITY };
        self.owed = (self.owed - earned).max(-most.as_secs_f64());
        self.moved = moved;
    }

    /// After waiting for so long, `moved` bytes have moved in all.
    fn waited(&mut self, time: Duration, moved: u64, most: Duration) {
        self.owed += time.as_secs_f64();
        self.moved(moved, most);
    }

    /// Whether the client was waited for longer than this, beyond what its bytes have earned.
    fn is_spent(&self, patience: Duration) -> bool {
        self.owed >= patience.as_secs_f64()
    }
}

/// The state of a client's connection.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    acknowledged: u64,
    round_trip: Duration,
    /// The time after which a piece is sent again that was not acknowledged.
    again: Duration,
}

impl Seen {
    fn of(socket: Option<&Arc<SocketDigest>>) -> Option<Self> {
        let info = socket?.tcp_info()?;
        Some(Self {
            acknowledged: info.tcpi_bytes_acked,
            round_trip: Duration::from_micros(info.tcpi_rtt.into()),
            again: Duration::from_micros(info.tcpi_rto.into()),
        })
    }
}

impl Hurry {
    /// For an answer in this session.
    pub(in crate::http) fn new(session: &ServerSession, limits: &Limits) -> Self {
        let socket = session.digest().and_then(|digest| digest.socket_digest.clone());
        // Bytes of earlier answers earn nothing.
        let before = Seen::of(socket.as_ref()).map_or(0, |seen| seen.acknowledged);
        Self {
            is_shared: session.is_http2(),
            socket,
            most: limits.stall_timeout / HURRY,
            connection: Credit::new(limits, before),
            answer: Credit::new(limits, 0),
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
        // Bytes that moved since the last wait have earned time as well: it mostly ends as they do.
        self.answer.moved(given() as u64, self.most);
        if let Some(seen) = Seen::of(self.socket.as_ref()) {
            self.connection.moved(seen.acknowledged, self.most);
        }
        loop {
            sleep(LOOK).await;
            let time = since.elapsed();
            since += time;
            let waiting = pool.state.queue.count();
            let running = pool.rotation.ready.len() * endpoint.state.in_flight() as usize;
            let seen = Seen::of(self.socket.as_ref());
            if self.is_over(time, (seen, given() as u64), (waiting, running)) {
                return;
            }
        }
    }

    /// After another wait for so long: whether it has taken too long, where so many wait for one of so many slots.
    fn is_over(
        &mut self,
        time: Duration,
        (seen, given): (Option<Seen>, u64),
        (waiting, running): (usize, usize),
    ) -> bool {
        self.answer.waited(time, given, self.most);
        let is_too_slow = match seen {
            Some(seen) => {
                let patience = patience(self.most, seen, (waiting, running));
                self.connection.waited(time, seen.acknowledged, patience);
                self.connection.is_spent(patience)
                    || (self.is_shared && self.answer.is_spent(self.most))
            }
            None => self.answer.is_spent(self.most),
        };
        is_too_slow && waiting > 0
    }
}

/// The time for a client where `waiting` requests want one of the slots on which `running` are: those before the last
/// of them, each as slow as this client, take `most` together.
fn patience(most: Duration, seen: Seen, (waiting, running): (usize, usize)) -> Duration {
    let slots = running.max(1) as f64;
    let share = most.mul_f64(slots / (slots + waiting as f64));
    let moment = PAUSE.max(2 * seen.round_trip + ACKNOWLEDGES).max(2 * seen.again);
    share.max(moment).min(most)
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
            connection: Credit::new(&limits, 0),
            answer: Credit::new(&limits, 0),
        }
    }

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A connection on which so many bytes have been acknowledged.
    fn acknowledged(acknowledged: u64) -> Option<Seen> {
        Some(Seen { acknowledged, ..Seen::default() })
    }

    /// Whether an answer is in the way of very many after so long, with so many bytes acknowledged in all.
    fn is_over(hurry: &mut Hurry, time: u64, bytes: u64) -> bool {
        hurry.is_over(millis(time), (acknowledged(bytes), 0), (1000, 1))
    }

    #[test]
    fn the_more_wait_the_less_time_a_client_gets_but_that_of_a_moment_always() {
        let patience = |waiting, round_trip, again| {
            let (round_trip, again) = (millis(round_trip), millis(again));
            patience(millis(2000), Seen { round_trip, again, acknowledged: 0 }, (waiting, 4))
        };
        assert_eq!(patience(0, 0, 0), millis(2000));
        assert_eq!(patience(4, 0, 0), millis(1000));
        assert_eq!(patience(16, 0, 0), millis(500));
        assert_eq!(patience(10_000, 0, 204), millis(500));
        assert_eq!(patience(10_000, 250, 0), millis(600));
        assert_eq!(patience(10_000, 250, 450), millis(900));
        assert_eq!(patience(10_000, 5000, 0), millis(2000));
        assert_eq!(patience(10_000, 0, 120_000), millis(2000));
        assert_eq!(super::patience(millis(2000), Seen::default(), (1, 0)), millis(1000));
    }

    #[test]
    fn a_client_that_reads_at_the_least_rate_is_never_in_the_way() {
        let mut hurry = hurry(false);
        for round in 1..100 {
            assert!(!is_over(&mut hurry, 490, round * 490), "{round}");
        }
        assert!(!is_over(&mut hurry, 490, 99 * 490));
        assert!(!is_over(&mut hurry, 9, 99 * 490));
        let line = |waiting| (millis(1), (acknowledged(99 * 490), 0), (waiting, 1));
        let (time, seen, _) = line(0);
        assert!(!hurry.is_over(time, seen, (0, 1)), "in the way of none");
        assert!(!hurry.is_over(time, seen, (1, 9)));
        assert!(hurry.is_over(time, seen, (1000, 1)));
    }

    #[test]
    fn a_client_that_takes_large_pieces_now_and_then_is_never_in_the_way() {
        let mut hurry = hurry(false);
        for round in 1..100 {
            // It comes as a wait ends, between two looks.
            hurry.connection.moved(round * 4000, hurry.most);
            for look in 1..=25 {
                assert!(!is_over(&mut hurry, 20, round * 4000), "{round} {look}");
            }
        }
    }

    #[test]
    fn bytes_pay_for_a_pause_as_long_as_the_patience_and_no_longer() {
        let (mut limited, mut unlimited) = (hurry(false), hurry(false));
        assert!(!is_over(&mut limited, 20, 1_000_000_000));
        assert!(!is_over(&mut limited, 990, 1_000_000_000));
        assert!(is_over(&mut limited, 20, 1_000_000_000));
        unlimited.connection.rate = 0.0;
        assert!(!is_over(&mut unlimited, 100_000, 0));
    }

    #[test]
    fn waits_for_several_pieces_add_up_if_nothing_is_acknowledged_between_them() {
        let mut hurry = hurry(false);
        for given in 0..10 {
            // The kernel has taken them.
            let seen = (acknowledged(0), given * 60_000);
            let is_over = hurry.is_over(millis(90), seen, (1000, 1));
            assert_eq!(is_over, (given + 1) * 90 >= 500, "{given}");
        }
    }

    #[test]
    fn an_answer_of_a_connection_that_moves_must_move_itself() {
        for (is_shared, knows) in [(true, true), (false, true), (false, false)] {
            let mut hurry = hurry(is_shared);
            for round in 1..=10 {
                let seen = acknowledged(round * 60_000).filter(|_| knows);
                let is_over = hurry.is_over(millis(101), (seen, 0), (1, 4));
                assert_eq!(is_over, round == 10 && (is_shared || !knows), "{round}");
            }
        }
    }
}
