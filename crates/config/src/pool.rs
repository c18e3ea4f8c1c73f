//! What the proxy does with a pool, as far as it does not depend on what the pool consists of.
//!
//! The proxy and the simulator read the same keys with the same defaults, so that a simulation says of a
//! configuration what the proxy would do with it.

use crate::form::{any, interval, optional, positive, ratio, share, some_of, within};
use crate::section::Section;
use crate::table::Table;
use forebay_routing::RetryPolicy;
use std::time::Duration;

pub use forebay_routing::RetryOn;

crate::section! {
    /// Requests that wait in the proxy: more urgent ones first (see `priority` of the route), then those
    /// with the earlier deadline, and no client far ahead of another. One whose deadline can't be met is
    /// refused at once, with Retry-After.
    pub struct Queue {
        /// How many may wait. Beyond that the least urgent are refused, of the client that has the most. 0: none.
        size: usize = 1024, within(0..=1_000_000);
        /// Time that passes between an endpoint's end of one request and its beginning of the next. Where it is
        /// long beside a service, endpoints get some requests more than they have slots, so that they never
        /// idle.
        handoff_delay: Duration = Duration::from_micros(500), any();
    }
}

crate::section! {
    /// What is sent again to another endpoint.
    pub struct Retry {
        /// Attempts of one request, the first included, each on another endpoint.
        attempts: u32 = 3, within(1..=16);
        /// Retries that each good answer pays for, as a share of one retry: endpoints get at most so much more
        /// than what is asked for. What is not used is worth less after 10 s. Ten retries are saved up from the
        /// start, so that a quiet pool can retry at all. A retry that fails is charged again, and each further one
        /// in a row once more: a pool that answers nothing soon gets no retries.
        budget: f64 = 0.1, ratio();
        /// Retries a second that are allowed beside that, except while retries fail. At low rates it can be more
        /// than the budget allows.
        min_per_second: f64 = 0.0, within(0.0..=1e6);
        /// Time that one attempt may take before another endpoint is tried; one that no other can follow may
        /// take all that is left. Default: none, the deadline alone bounds it: only the operator knows how long
        /// the slowest model takes.
        attempt_timeout: Option<Duration> = None, optional(positive()), shown "\"5s\"";
        /// What is sent to another endpoint: no connection ("connect"), a connection that breaks ("reset"), an
        /// attempt_timeout or silence ("timeout"), an answer that is not HTTP ("invalid"), or an answer with one
        /// of the statuses "429", "500", "502", "503", "504" (of gRPC: the code that stands for it). All of them
        /// count for inferences that are held in memory; of the rest, of which Layer 4 is a part, only what
        /// can't have had an effect yet is sent again. An error of an endpoint's own (500, 502) is tried once
        /// more and no further: if another says the same, the request is at fault. If nobody does better, the
        /// client gets that answer.
        on: Vec<RetryOn> = RetryOn::DEFAULT.to_vec(), some_of(RetryOn::NAMES);
    }
}

crate::section! {
    /// A second attempt beside a first one that is slow, at an endpoint that has room for it at once: the
    /// earlier answer is taken, the other attempt is dropped, also out of the worker's queue. For inferences
    /// that are held in memory. Default: none, since it adds load.
    pub struct Hedge {
        /// It is made after this quantile of what first attempts for the same model (and version) took lately in
        /// this pool, so that few requests have one and those are the ones that make the tail.
        quantile: f64 = 0.95, within(0.5..=0.9999);
        /// Second attempts that are allowed per request, as a share of the pool's requests; apart from retries.
        budget: f64 = 0.03, share();
        /// It is made no sooner than this: what is fast already gains nothing.
        min_delay: Duration = Duration::from_millis(5), any();
    }
}

crate::section! {
    /// Takes an endpoint out of rotation for what its answers are like, beside what its probes say: no
    /// connection, a connection that breaks, a timeout that was the operator's, a 500, 502, or 503 that is not
    /// for load. A client's mistake (4xx) never counts, nor does 429 or a queue that is full, nor a timeout of
    /// a request that had little time: its client gave less than the route, or half of it passed in the queue.
    pub struct Ejection {
        /// Failures in a row that take it out at once. A timeout is one of them only if the endpoint answered
        /// nobody else meanwhile: otherwise it is slow, as under overload, and only its share of answers says
        /// whether it does worse than the others. 0: not judged by them.
        consecutive_failures: u32 = 5, within(0..=1_000_000);
        /// At the end of each window shares and latencies are judged.
        interval: Duration = Duration::from_secs(2), interval();
        /// Requests in a window without which an endpoint is not judged by it: a share of few is chance.
        min_requests: u32 = 20, within(1..=1_000_000);
        /// Share of answers below which it is taken out, unless the median of the pool is below it too: requests
        /// that fail everywhere are not an endpoint's fault. "0%": not judged.
        success_rate: f64 = 0.8, share();
        /// Multiple of the median of the pool's mean latencies above which it is taken out. Default: none, since
        /// picking by cost gives a slow endpoint less by itself, and a fleet may be mixed by intention.
        latency_factor: Option<f64> = None, optional(within(1.1..=1e6)), shown "5.0";
        /// How long the first ejection lasts. Each further one lasts twice as long, up to `max_time`, which is the
        /// longest that an endpoint can be out that is well; each `base_time` without one takes a doubling back, so that
        /// with the defaults nothing is held against an endpoint any more that was well for half a minute. One that
        /// comes back is on trial: one failure, even for load, takes it out again. One that falls and rises by its probes
        /// is held back likewise from its second fall on.
        base_time: Duration = Duration::from_secs(3), positive();
        /// How long an ejection lasts at most.
        max_time: Duration = Duration::from_secs(300), positive();
        /// Share of the pool that may be out at once, but always one endpoint, and never the last in rotation.
        /// "0%": nothing is ever ejected.
        max_share: f64 = 0.5, share();
        /// With less than this share of the pool in rotation, those that are ejected are used all the same: half
        /// of a sick fleet does more than none. "0%": never.
        panic_below: f64 = 0.5, share();
    }
}

impl Ejection {
    /// The rules that outliers are detected by.
    pub fn rules(&self) -> forebay_routing::Ejection {
        forebay_routing::Ejection {
            consecutive_failures: self.consecutive_failures,
            interval: self.interval,
            min_requests: self.min_requests,
            success_rate: self.success_rate,
            latency_factor: self.latency_factor,
            base_time: self.base_time,
            max_time: self.max_time.max(self.base_time),
            max_share: self.max_share,
            panic_below: self.panic_below,
        }
    }
}

crate::section! {
    /// When an endpoint is probed, and what becomes of it by that.
    pub struct ProbeSchedule {
        /// Time that a probe may take. At most `interval`, which is the default if it is less than this. With the
        /// defaults an endpoint that went silent is out within three seconds.
        timeout: Duration = Duration::from_millis(800), positive();
        /// Time between two probes of an endpoint whose health is settled.
        interval: Duration = Duration::from_secs(1), interval();
        /// Time between two probes while a change is under way, while a new endpoint is not ready yet, or
        /// after a request met trouble there. At most `interval`.
        fast_interval: Duration = Duration::from_millis(100), interval();
        /// Successes in a row that bring an endpoint back: one lucky answer must not.
        rise: u32 = 2, within(1..=100);
        /// Failures in a row that take it out: one lost packet must not.
        fall: u32 = 2, within(1..=100);
    }
}

impl Retry {
    /// What decisions on attempts need of it.
    pub fn policy(&self) -> RetryPolicy {
        let Self { attempts, attempt_timeout, ref on, .. } = *self;
        RetryPolicy { attempts, attempt_timeout, on: on.clone() }
    }
}

impl ProbeSchedule {
    /// Reads the section, and checks what its keys say together.
    pub fn checked(table: &Table<'_, '_>) -> Self {
        let schedule = Self::read(table);
        let interval = schedule.interval;
        for key in ["timeout", "fast_interval"] {
            if let Some((found, span)) = table.spanned::<Duration>(key)
                && found > interval
            {
                let expected = format!("expected at most the interval ({interval:?})");
                table.note(span, key, format!("{expected}, found {found:?}"));
            }
        }
        let (timeout, fast_interval) =
            (schedule.timeout.min(interval), schedule.fast_interval.min(interval));
        Self { timeout, fast_interval, ..schedule }
    }
}
