//! The worker's load, as it states it on every answer.

use forebay_protocol::LoadReport;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// Weight of the newest service time in the moving mean: about the last 20 requests count.
const NEWEST: f64 = 0.1;

/// Counters behind the report.
#[derive(Debug)]
pub(crate) struct Load {
    slots: u32,
    executing: AtomicU32,
    /// Moving mean of service times in milliseconds, bits of an `f64`; 0 until there is one.
    service_ms: AtomicU64,
    /// Bits of an `f64`.
    cpu_utilization: AtomicU64,
    seq: AtomicU64,
}

impl Load {
    pub(crate) fn new(executors: usize) -> Self {
        Self {
            slots: u32::try_from(executors).unwrap_or(u32::MAX),
            executing: AtomicU32::new(0),
            service_ms: AtomicU64::new(0),
            cpu_utilization: AtomicU64::new(0),
            seq: AtomicU64::new(first_number()),
        }
    }

    /// A job has left the queue for an executor.
    pub(crate) fn started(&self) {
        self.executing.fetch_add(1, Relaxed);
    }

    /// It is done; `served` is the time in the engine, if it got there.
    pub(crate) fn finished(&self, served: Option<Duration>) {
        if let Some(served) = served {
            let newest = served.as_secs_f64() * 1e3;
            let mean = |bits| {
                let old = f64::from_bits(bits);
                let mean = if old == 0.0 { newest } else { old + NEWEST * (newest - old) };
                Some(mean.to_bits())
            };
            // The function always gives a value, so the update can't fail.
            let _ = self.service_ms.fetch_update(Relaxed, Relaxed, mean);
        }
        self.executing.fetch_sub(1, Relaxed);
    }

    /// Share of the machine that the process used lately, 1.0 = all cores.
    pub(crate) fn set_cpu_utilization(&self, share: f64) {
        self.cpu_utilization.store(share.to_bits(), Relaxed);
    }

    /// Jobs on executors.
    pub(crate) fn executing(&self) -> u32 {
        self.executing.load(Relaxed)
    }

    /// The next report; `queue` and `executing` were read together.
    pub(crate) fn report(&self, queue: usize, executing: u32) -> LoadReport {
        let queue = u32::try_from(queue).unwrap_or(u32::MAX);
        let mean = f64::from_bits(self.service_ms.load(Relaxed));
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        LoadReport {
            rif: Some(queue.saturating_add(executing)),
            queue: Some(queue),
            slots: Some(self.slots),
            lat_at_rif_ms: (mean > 0.0).then(|| round(mean)),
            seq: Some(self.seq.fetch_add(1, Relaxed) + 1),
            cpu_utilization: Some(round(f64::from_bits(self.cpu_utilization.load(Relaxed)))),
            ..LoadReport::default()
        }
    }
}

/// Where the numbers of reports begin: microseconds since 1970, so that those of a process that was
/// started again are higher than those before. Small enough to be exact as an `f64`.
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

    #[test]
    fn a_report_counts_what_runs_and_what_waits_and_is_numbered() {
        let load = Load::new(2);
        load.started();
        load.started();
        let first = load.report(3, load.executing());
        assert_eq!((first.rif, first.queue, first.slots), (Some(5), Some(3), Some(2)));
        assert_eq!(first.lat_at_rif_ms, None, "nothing was served yet");
        load.finished(Some(Duration::from_millis(10)));
        load.finished(None);
        let second = load.report(0, load.executing());
        assert_eq!((second.rif, second.lat_at_rif_ms), (Some(0), Some(10.0)));
        assert!(second.seq > first.seq);
        assert!(Load::new(1).report(0, 0).seq > first.seq, "numbers grow over a restart");
        assert_eq!(LoadReport::parse(&second.to_string()).unwrap(), second);
    }
}
