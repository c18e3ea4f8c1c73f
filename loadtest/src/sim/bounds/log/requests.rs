//! The requests of an access log, by pool.

use crate::plan::replay;
use crate::units::{self, nanos_of};
use forebay_protocol::Reason;
use forebay_protocol::oip::{self, Call};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The part of a line that matters here. Times in microseconds.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Line {
    time: String,
    protocol: Option<String>,
    status: Option<u16>,
    grpc_status: Option<u8>,
    path: Option<String>,
    reason: Option<String>,
    pool: Option<String>,
    variant: Option<String>,
    model: Option<String>,
    endpoint: Option<String>,
    slots: Option<u32>,
    attempts: Option<u32>,
    hedged: Option<String>,
    deadline_us: Option<u64>,
    total_us: Option<u64>,
    receive_us: Option<u64>,
    balance_us: Option<u64>,
    forward_us: Option<u64>,
}

/// A request as the log has it. Times in nanoseconds from the first arrival.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Recorded {
    /// When its body was there.
    pub(super) at: u64,
    pub(super) took: u64,
    pub(super) patience: Option<u64>,
    pub(super) model: Option<String>,
    pub(super) end: End,
}

/// The end of a recorded request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    /// Answered by the endpoint with this index: sent then, in a single attempt if it was so.
    Answered { endpoint: usize, sent: u64, is_single: bool },
    /// Refused for want of capacity or time.
    Refused,
}

/// The requests and endpoints of one pool.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) requests: Vec<Recorded>,
    pub(super) endpoints: BTreeMap<String, usize>,
    /// As the log states them last.
    pub(super) slots: Vec<Option<u32>>,
    /// Requests that count nowhere.
    pub(super) others: u64,
}

/// By name of the pool, or of the variant where the log has no pool.
pub(super) fn pools(lines: &[Line]) -> BTreeMap<String, Pool> {
    let arrival = |line: &Line| {
        let took = units::float(line.total_us?.saturating_sub(line.receive_us.unwrap_or(0)));
        Some(replay::rfc3339(&line.time)? - took / 1e6)
    };
    let timed = |line| Some((arrival(line)?, line));
    let mut timed: Vec<(f64, &Line)> = lines.iter().filter_map(timed).collect();
    timed.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let first = timed.first().map_or(0.0, |(at, _)| *at);
    let mut pools: BTreeMap<String, Pool> = BTreeMap::new();
    for (at, line) in timed {
        let name = line.pool.as_ref().or(line.variant.as_ref()).cloned().unwrap_or_default();
        // A request without a pool belongs to none.
        if line.protocol.is_none() && !name.is_empty() && !is_other_call(line) {
            pools.entry(name).or_default().add(nanos_of(at - first), line);
        }
    }
    pools
}

impl Pool {
    fn add(&mut self, at: u64, line: &Line) {
        let micros = |time: Option<u64>| time.unwrap_or(0).saturating_mul(1000);
        let (balance, forward) = (micros(line.balance_us), micros(line.forward_us));
        let is_ok = line.status.is_some_and(|status| (200..300).contains(&status))
            && line.grpc_status.is_none_or(|code| code == 0)
            && line.reason.as_deref().is_none_or(|reason| reason == "ok");
        let end = match &line.endpoint {
            Some(endpoint) if is_ok && forward > 0 => {
                let is_single = line.attempts.is_none_or(|n| n == 1) && line.hedged.is_none();
                let endpoint = self.endpoint(endpoint, line.slots);
                End::Answered { endpoint, sent: at.saturating_add(balance), is_single }
            }
            _ if is_refused(line) => End::Refused,
            _ => {
                self.others += 1;
                return;
            }
        };
        let left = |all: u64| micros(Some(all)).saturating_sub(micros(line.receive_us));
        self.requests.push(Recorded {
            at,
            took: balance.saturating_add(forward),
            patience: line.deadline_us.map(left),
            model: line.model.clone(),
            end,
        });
    }

    fn endpoint(&mut self, name: &str, slots: Option<u32>) -> usize {
        let next = self.endpoints.len();
        let index = *self.endpoints.entry(name.to_owned()).or_insert(next);
        if index == next {
            self.slots.push(None);
        }
        self.slots[index] = slots.filter(|slots| *slots > 0).or(self.slots[index]);
        index
    }

    /// The longest time that any request took, in nanoseconds: a bound where the log has no deadline.
    pub(super) fn longest(&self) -> u64 {
        self.requests.iter().map(|it| it.took).max().unwrap_or(0)
    }
}

/// Whether it asks for something else than work of a model, such as metadata.
fn is_other_call(line: &Line) -> bool {
    let call = line.path.as_deref().and_then(oip::Path::parse).map(|path| path.call);
    call.is_some_and(|call| !matches!(call, Call::Infer | Call::ModelOther))
}

/// Was it refused because there was too much to do?
fn is_refused(line: &Line) -> bool {
    const LOAD: [Reason; 4] = [
        Reason::QueueFull,
        Reason::Displaced,
        Reason::DeadlineUnreachable,
        Reason::DeadlineExceeded,
    ];
    let reason = line.reason.as_deref().unwrap_or_default();
    LOAD.iter().any(|it| it.code() == reason)
}
