//! The impact of a fault or of overload: how soon traffic left the faulty endpoints, how soon it came
//! back, and how latency and errors changed for clients.
//!
//! Quantiles over a whole run hide a few bad seconds. The share of requests that went to the faulty
//! endpoints is kept in slices of 50 ms.

use crate::report::outcome::Finished;
use crate::report::times::Times;
use crate::units::{float, nanos};

/// Length of a slice in nanoseconds.
const SLICE: u64 = 50_000_000;
/// Maximum number of slices: what comes after them counts as in the last one. Almost three hours.
const MAX_SLICES: usize = 200_000;
/// Slices over which a share is taken when asking whether traffic has left or come back.
const STEADY: usize = 2;

/// One fault or overload and its impact.
#[derive(Debug)]
pub struct Impact {
    begin: u64,
    end: u64,
    slices: Vec<Slice>,
    before: Latencies,
    during: Latencies,
    /// Intended start of the last request that failed after the end.
    last_error: Option<u64>,
}

/// Requests that were sent in a slice: all, and those to the faulty endpoints.
#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    all: u32,
    hit: u32,
}

/// Requests that were meant to start in a stretch of time.
#[derive(Debug, Default)]
struct Latencies {
    ok: Times,
    errors: u64,
}

/// The impact in figures: shares from 0 to 1, times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Share of the faulty endpoints before it.
    pub share_before: f64,
    /// In its first second.
    pub share_first: f64,
    /// From then to its end.
    pub share_later: f64,
    /// From its begin until their share had halved.
    pub left_after: Option<f64>,
    /// From its end until their share was more than half of what it had been.
    pub back_after: Option<f64>,
    /// Latency at the 99th percentile before.
    pub p99_before: f64,
    /// And of those that came while it lasted.
    pub p99_during: f64,
    /// Share of errors among those.
    pub errors_during: f64,
    /// Successes a second among those.
    pub goodput: f64,
    /// From its end until the last request that failed came.
    pub recovered_after: f64,
}

impl Impact {
    /// From `begin` to `end`, in nanoseconds from the start of the run.
    pub(super) fn new(begin: u64, end: u64) -> Self {
        Self {
            begin,
            end: end.max(begin),
            slices: Vec::new(),
            before: Latencies::default(),
            during: Latencies::default(),
            last_error: None,
        }
    }

    /// A request was sent at `now`: to a faulty endpoint?
    pub(super) fn bound(&mut self, now: u64, hit: bool) {
        let index = usize::try_from(now / SLICE).unwrap_or(MAX_SLICES).min(MAX_SLICES - 1);
        if self.slices.len() <= index {
            self.slices.resize(index + 1, Slice::default());
        }
        self.slices[index].all += 1;
        self.slices[index].hit += u32::from(hit);
    }

    /// A request is over.
    pub(super) fn finished(&mut self, request: &Finished) {
        let intended = nanos(request.intended);
        let stretch = match intended {
            at if at < self.begin => &mut self.before,
            at if at < self.end => &mut self.during,
            at => {
                if !request.outcome.is_ok() {
                    self.last_error = self.last_error.max(Some(at));
                }
                return;
            }
        };
        if request.outcome.is_ok() {
            stretch.ok.add(request.done.saturating_sub(request.intended));
        } else {
            stretch.errors += 1;
        }
    }

    /// In figures.
    pub fn summary(&self) -> Summary {
        let second = 1_000_000_000;
        let first = (self.begin + second).min(self.end);
        let before = self.share(self.begin.saturating_sub(10 * second), self.begin);
        let half = |from: u64, until: u64, is_it: fn(f64, f64) -> bool| {
            let (from, until) = (self.slice(from), self.slice(until));
            let window = |at: usize| self.share_of(at, at + STEADY);
            let found =
                (from..until.min(self.slices.len())).find(|at| is_it(window(*at), before / 2.0))?;
            Some(float(((found - from) as u64) * SLICE) / 1e9)
        };
        let (ok, errors) = (self.during.ok.len(), self.during.errors);
        Summary {
            share_before: before,
            share_first: self.share(self.begin, first),
            share_later: self.share(first, self.end),
            left_after: half(self.begin, self.end, |share, half| share < half),
            back_after: half(self.end, u64::MAX, |share, half| share > half),
            p99_before: self.before.ok.quantile(0.99),
            p99_during: self.during.ok.quantile(0.99),
            errors_during: float(errors) / float((ok + errors).max(1)),
            goodput: float(ok) / (float((self.end - self.begin).max(1)) / 1e9),
            recovered_after: self.last_error.map_or(0.0, |at| float(at - self.end) / 1e9),
        }
    }

    fn share(&self, from: u64, until: u64) -> f64 {
        self.share_of(self.slice(from), self.slice(until))
    }

    fn share_of(&self, from: usize, until: usize) -> f64 {
        let until = until.min(self.slices.len());
        let slices = self.slices.get(from..until).unwrap_or_default();
        let (all, hit) = slices.iter().fold((0, 0), |(all, hit), slice| {
            (all + u64::from(slice.all), hit + u64::from(slice.hit))
        });
        float(hit) / float(all.max(1))
    }

    fn slice(&self, at: u64) -> usize {
        usize::try_from(at / SLICE).unwrap_or(usize::MAX)
    }
}
