//! The proxy's settings of a pool that do not depend on its endpoints.
//!
//! The proxy and the simulator read the same keys with the same defaults, so that a simulation predicts the
//! proxy's behaviour with a configuration.

use crate::form::{any, interval, optional, positive, ratio, share, some_of, within};
use crate::section::Section;
use crate::table::Table;
use forebay_routing::RetryPolicy;
use std::time::Duration;

pub use forebay_routing::RetryOn;

crate::section! {
    /// Requests that wait in the proxy: more urgent ones first (see `priority` of the route), then fairly
    /// among clients, then by the earlier deadline. A request whose deadline can't be met is rejected at
    /// once, with Retry-After.
    pub struct Queue {
        /// Maximum number of waiting requests. Beyond it the least urgent ones are refused, of the client
        /// that has the most. 0: no queue.
        size: usize = 1024, within(0..=1_000_000);
        /// Time between an endpoint's end of one request and its beginning of the next. If it is long
        /// relative to a service, endpoints get a few requests more than they have slots, so that they never
        /// idle.
        handoff_delay: Duration = Duration::from_micros(500), any();
    }
}

crate::section! {
    /// The conditions of retries to another endpoint.
    pub struct Retry {
        /// Maximum number of attempts of one request, the first included, each on another endpoint.
        attempts: u32 = 3, within(1..=16);
        /// Retries that each good answer pays for, as a share of one retry: endpoints get at most this much
        /// more than the offered load. The balance fades after 10 s. Ten retries are available from the
        /// start, so that a quiet pool can retry at all. A retry that fails is charged again, and each
        /// further one in a row once more: a pool without answers soon gets no retries.
        budget: f64 = 0.1, ratio();
        /// Retries per second that are allowed in addition, except while retries fail. At low rates this can
        /// exceed the budget.
        min_per_second: f64 = 0.0, within(0.0..=1e6);
        /// Time limit of one attempt, after which another endpoint is tried; an attempt that no other can
        /// follow may take all the time that is left. Default: none, since only the operator knows how long
        /// the slowest model takes; the deadline bounds it.
        attempt_timeout: Option<Duration> = None, optional(positive()), shown "\"5s\"";
        /// The failures after which another endpoint is tried: no connection ("connect"), a broken
        /// connection ("reset"), an attempt_timeout or silence ("timeout"), an answer that is not HTTP
        /// ("invalid"), or an answer with status "429", "500", "502", "503" or "504" (of gRPC: the
        /// corresponding code). All of them apply to inferences that are held in memory; other requests, and
        /// connections at Layer 4, are sent again only if they can't have had an effect yet. An error of an
        /// endpoint's own (500, 502) is retried only once: if another endpoint answers the same, the request
        /// is at fault, and the client gets that answer.
        on: Vec<RetryOn> = RetryOn::DEFAULT.to_vec(), some_of(RetryOn::NAMES);
    }
}

crate::section! {
    /// A second attempt beside a slow first one, at an endpoint that has room for it at once: the earlier
    /// answer is taken, and the other attempt is dropped, also from the worker's queue. For inferences that
    /// are held in memory. Default: none, since it adds load.
    pub struct Hedge {
        /// A hedge is sent after this quantile of recent first attempts for the same model (and version) in
        /// this pool, so that only the few requests that make the tail are hedged.
        quantile: f64 = 0.95, within(0.5..=0.9999);
        /// Maximum number of hedges, as a share of the pool's requests; separate from retries.
        budget: f64 = 0.03, share();
        /// Minimum time before a hedge: fast requests gain nothing.
        min_delay: Duration = Duration::from_millis(5), any();
    }
}

crate::section! {
    /// Takes an endpoint out of rotation because of the outcomes of requests, in addition to probes. These
    /// count: no connection, a broken connection, a timeout that the operator set, 500, 502, and 503 for a
    /// reason other than load. These never count: a client's mistake (4xx), 429, a full queue, and a timeout
    /// of a request that had little time, because its client gave less than the route or half of it passed
    /// in the queue.
    pub struct Ejection {
        /// Consecutive failures that eject an endpoint at once. A timeout counts only if the endpoint
        /// answered no other request meanwhile: otherwise it is slow, as under overload, and only its
        /// success rate shows whether it is worse than the others. 0: off.
        consecutive_failures: u32 = 5, within(0..=1_000_000);
        /// Length of a window. Success rates and latencies are judged at the end of each.
        interval: Duration = Duration::from_secs(2), interval();
        /// Minimum number of requests in a window: with fewer, an endpoint is not judged by it.
        min_requests: u32 = 20, within(1..=1_000_000);
        /// Success rate below which an endpoint is ejected, unless the median of the pool is below it, too:
        /// requests that fail everywhere are not an endpoint's fault. "0%": off.
        success_rate: f64 = 0.8, share();
        /// Multiple of the median of the pool's mean latencies above which an endpoint is ejected. Default:
        /// off, since cost-based picking gives a slow endpoint less by itself, and a fleet may be mixed on
        /// purpose.
        latency_factor: Option<f64> = None, optional(within(1.1..=1e6)), shown "5.0";
        /// Duration of the first ejection. Each further one lasts twice as long, up to `max_time`; each
        /// `base_time` without an ejection takes a doubling back, so with the defaults half a minute of good
        /// behaviour clears the record. An endpoint that comes back is on trial: one failure, even for load,
        /// ejects it again. An endpoint that falls and rises by its probes is held back in the same way from
        /// its second fall on.
        base_time: Duration = Duration::from_secs(3), positive();
        /// Maximum duration of an ejection, and so the longest time that a healthy endpoint can be out.
        max_time: Duration = Duration::from_secs(300), positive();
        /// Maximum share of the pool that may be out at once, but always one endpoint, and never the last in
        /// rotation. "0%": nothing is ever ejected.
        max_share: f64 = 0.5, share();
        /// With less than this share of the pool in rotation, ejected endpoints are used all the same: half
        /// of a sick fleet does more than none. "0%": never.
        panic_below: f64 = 0.5, share();
    }
}

impl Ejection {
    /// The rules of outlier detection.
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
    /// The schedule of probes, and their thresholds.
    pub struct ProbeSchedule {
        /// Time that a probe may take. At most `interval`, which is the default if it is less than this. With the
        /// defaults an endpoint that went silent is out within three seconds.
        timeout: Duration = Duration::from_millis(800), positive();
        /// Time between two probes of an endpoint whose health is settled.
        interval: Duration = Duration::from_secs(1), interval();
        /// Time between two probes while a change is under way, while a new endpoint is not ready yet, or
        /// after a request failed there. At most `interval`.
        fast_interval: Duration = Duration::from_millis(100), interval();
        /// Consecutive successes that bring an endpoint back: one lucky answer must not.
        rise: u32 = 2, within(1..=100);
        /// Consecutive failures that take it out: one lost packet must not.
        fall: u32 = 2, within(1..=100);
    }
}

impl Retry {
    /// The rules of retries for the decisions on attempts.
    pub fn policy(&self) -> RetryPolicy {
        let Self { attempts, attempt_timeout, ref on, .. } = *self;
        RetryPolicy { attempts, attempt_timeout, on: on.clone() }
    }
}

impl ProbeSchedule {
    /// Reads the section, and checks its keys together.
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
