//! The worker's load, as it states it on every answer.
//!
//! A proxy expects a new request to take as many service times as there are rounds before it:
//! requests that are there, divided by `slots`. So `slots` is what really runs at once: executors
//! times the rows that the models join, as it was on average of the batches that ran lately. A model
//! that is never batched counts 1 for each executor. `lat_at_rif_ms` is the time in the engine of
//! batches that were started while about so many requests were there as there are now.

use crate::scheduler::queue::Counts;
use forebay_protocol::LoadReport;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

/// Weight of the newest value in the moving means: about the last 20 batches count.
const NEWEST: f64 = 0.05;
/// Levels of load that times are kept for: 1, 2-3, 4-7 and so on up to 32,768 requests and more.
const LEVELS: usize = 16;

/// Counters behind the report.
#[derive(Debug)]
pub(crate) struct LoadMonitor {
    executors: usize,
    /// Moving means of service times in milliseconds by the load at their start.
    service_ms: [Mean; LEVELS],
    /// Moving mean of the rows that were worth joining.
    joined: Mean,
    /// Bits of an `f64`.
    cpu_utilization: AtomicU64,
    seq: AtomicU64,
}

/// A moving mean, as bits of an `f64`; 0: nothing yet.
#[derive(Debug, Default)]
struct Mean(AtomicU64);

impl Mean {
    fn learn(&self, newest: f64) {
        let next = |bits| {
            let old = f64::from_bits(bits);
            let mean = if old == 0.0 { newest } else { old + NEWEST * (newest - old) };
            Some(mean.to_bits())
        };
        // The function always gives a value, so the update can't fail.
        let _ = self.0.fetch_update(Relaxed, Relaxed, next);
    }

    fn value(&self) -> Option<f64> {
        let mean = f64::from_bits(self.0.load(Relaxed));
        (mean > 0.0).then_some(mean)
    }
}

impl LoadMonitor {
    pub(crate) fn new(executors: usize) -> Self {
        Self {
            executors,
            service_ms: Default::default(),
            joined: Mean::default(),
            cpu_utilization: AtomicU64::new(0),
            seq: AtomicU64::new(first_number()),
        }
    }

    /// A batch of a model for which `best` rows are worth joining took so long in the engine; so many
    /// requests were there when it started.
    #[allow(clippy::cast_precision_loss, reason = "rows are few")]
    pub(crate) fn served(&self, took: Duration, in_flight: usize, best: usize) {
        self.service_ms[level(in_flight)].learn(took.as_secs_f64() * 1e3);
        self.joined.learn(best as f64);
    }

    /// Share of the machine that the process used lately, 1.0 = all cores.
    pub(crate) fn set_cpu_utilization(&self, share: f64) {
        self.cpu_utilization.store(share.to_bits(), Relaxed);
    }

    /// Rows that are worth joining, on average of the batches that ran lately.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 32 rows")]
    fn batch(&self) -> usize {
        self.joined.value().unwrap_or(1.0).round().max(1.0) as usize
    }

    /// Requests that run at once.
    pub(crate) fn slots(&self) -> usize {
        self.executors * self.batch()
    }

    /// The next report.
    pub(crate) fn report(&self, counts: &Counts) -> LoadReport {
        let count = |count: usize| Some(u32::try_from(count).unwrap_or(u32::MAX));
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let in_flight = counts.waiting + counts.executing;
        let closes = counts.forming.map(|(_, at)| at.saturating_duration_since(Instant::now()));
        LoadReport {
            rif: count(in_flight),
            queue: count(counts.waiting),
            slots: count(self.slots()),
            batch: count(self.batch()),
            forming: counts.forming.and_then(|(jobs, _)| count(jobs)),
            close_in_ms: closes.map(|left| round(left.as_secs_f64() * 1e3)),
            lat_at_rif_ms: self.service_at(in_flight).map(round),
            seq: Some(self.seq.fetch_add(1, Relaxed) + 1),
            cpu_utilization: Some(round(f64::from_bits(self.cpu_utilization.load(Relaxed)))),
            ..LoadReport::default()
        }
    }

    /// Of the level of load that is nearest among those that were seen, the lower first.
    fn service_at(&self, in_flight: usize) -> Option<f64> {
        let level = level(in_flight);
        let (lower, higher) = self.service_ms.split_at(level + 1);
        lower.iter().rev().chain(higher).find_map(Mean::value)
    }
}

fn level(in_flight: usize) -> usize {
    (in_flight.max(1).ilog2() as usize).min(LEVELS - 1)
}

/// The first number of reports: microseconds since 1970, so that the numbers of a restarted process are
/// higher than those before. Small enough to be exact as an `f64`.
fn first_number() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(0)
}

/// CPU time of this process so far.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn counts(waiting: usize, executing: usize) -> Counts {
        Counts { waiting, executing, forming: None }
    }

    #[test]
    fn a_report_counts_what_runs_and_what_waits_and_is_numbered() {
        let load = LoadMonitor::new(2);
        let first = load.report(&counts(3, 2));
        assert_eq!((first.rif, first.queue, first.slots), (Some(5), Some(3), Some(2)));
        assert_eq!((first.lat_at_rif_ms, first.forming), (None, None), "nothing was served yet");
        load.served(Duration::from_millis(10), 2, 1);
        let second = load.report(&counts(0, 0));
        assert_eq!((second.rif, second.lat_at_rif_ms), (Some(0), Some(10.0)));
        assert!(second.seq > first.seq);
        assert!(
            LoadMonitor::new(1).report(&counts(0, 0)).seq > first.seq,
            "numbers grow over a restart"
        );
        assert_eq!(LoadReport::parse(&second.to_string()).unwrap(), second);
    }

    #[test]
    fn slots_are_executors_times_the_rows_that_are_joined() {
        let load = LoadMonitor::new(2);
        for _ in 0..200 {
            load.served(Duration::from_millis(1), 1, 8);
        }
        assert_eq!((load.slots(), load.batch()), (16, 8));
        for _ in 0..200 {
            load.served(Duration::from_millis(1), 1, 1);
        }
        assert_eq!(load.slots(), 2);
    }

    #[test]
    fn service_times_are_those_of_the_present_load() {
        let load = LoadMonitor::new(1);
        load.served(Duration::from_millis(2), 1, 8);
        load.served(Duration::from_millis(9), 20, 8);
        assert_eq!(load.service_at(0), Some(2.0));
        assert_eq!(load.service_at(7), Some(2.0), "nearest below");
        assert_eq!(load.service_at(31), Some(9.0));
        assert_eq!(load.service_at(4000), Some(9.0));
    }

    #[test]
    fn a_batch_that_is_forming_is_told_with_the_time_that_it_has_left() {
        let forming = Some((3, Instant::now() + Duration::from_millis(50)));
        let report = LoadMonitor::new(1).report(&Counts { waiting: 3, executing: 0, forming });
        assert_eq!(report.forming, Some(3));
        assert!(report.close_in_ms.is_some_and(|left| left > 0.0 && left <= 50.0));
    }
}
