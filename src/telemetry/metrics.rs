//! The metrics of the process: how they are kept and what each means.

use anyhow::{Context, Result};
use forebay_process::supervise::{Importance, Supervisor, fault_point};
use forebay_protocol::metric::proxy as metric;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use std::time::Duration;

/// Upper bounds of latency buckets, in seconds: fine where inference lives, coarse beyond.
const LATENCY_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
];
/// Gauges of endpoints that are gone disappear after this time.
const GAUGE_LIFETIME: Duration = Duration::from_secs(300);
/// How often recorded latencies are moved into their buckets, so that they do not pile up between
/// two scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Installs the process's metrics and keeps them up on the present runtime.
///
/// # Errors
/// Metrics were installed already.
pub fn install(tasks: &Supervisor) -> Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".to_owned()), LATENCY_BUCKETS)
        .context("latency buckets")?
        .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_LIFETIME))
        .install_recorder()
        .context("can't install metrics")?;
    describe();
    let upkeep = handle.clone();
    tasks.spawn("metrics", Importance::Helpful, move || {
        let upkeep = upkeep.clone();
        async move {
            let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
            loop {
                ticks.tick().await;
                fault_point("metrics");
                upkeep.run_upkeep();
            }
        }
    });
    Ok(handle)
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge};
    counter!(metric::REQUESTS, "finished requests");
    metrics::describe_histogram!(
        metric::REQUEST_SECONDS,
        metrics::Unit::Seconds,
        "from the header's arrival to the end of the answer"
    );
    gauge!(metric::IN_FLIGHT, "requests inside the proxy");
    gauge!(metric::MEMORY_HELD, "bytes of bodies and answers that are held in memory");
    counter!(
        metric::MEMORY_FULL,
        "times that bytes found no memory, by the bound that was reached"
    );
    counter!(metric::SLOW_CLIENTS, "clients that were cut off since they were too slow, by side");
    counter!(metric::ATTEMPTS, "attempts by how they ended");
    counter!(
        metric::UNSOLICITED,
        "connections to endpoints that were to be used and held bytes that answer no request"
    );
    counter!(metric::RETRIES, "requests that were sent once more");
    counter!(metric::RETRIES_REFUSED, "retries that the budget refused");
    gauge!(metric::QUEUED, "requests that wait in the proxy for an endpoint");
    metrics::describe_histogram!(
        metric::QUEUE_SECONDS,
        metrics::Unit::Seconds,
        "how long requests waited for an endpoint, of those that had to"
    );
    counter!(metric::SHED, "requests refused because of load");
    counter!(metric::HEDGES, "second attempts beside a slow first one, by outcome");
    counter!(metric::HEDGES_REFUSED, "second attempts that were not made, by cause");
    counter!(metric::DEGRADED, "requests that went on to a cheaper variant");
    counter!(metric::EJECTIONS, "endpoints taken out for what their answers were like, by cause");
    counter!(metric::EJECTIONS_REFUSED, "ejections that would have left too few in rotation");
    gauge!(metric::POOL_PANIC, "1 while so few are ready that ejected endpoints are used too");
    gauge!(
        metric::POOL_LAST_RESORT,
        "1 while endpoints that do not answer probes are used for want of any other"
    );
    gauge!(metric::ENDPOINT_IN_FLIGHT, "requests sent to the endpoint and unfinished");
    gauge!(metric::ENDPOINT_HEALTH, "1 for the endpoint's present health");
    gauge!(metric::ENDPOINT_COST, "expected seconds until a request sent now is finished");
    gauge!(metric::ENDPOINT_QUEUE, "queue depth that the endpoint reported last");
    counter!(metric::PROBES, "health probes by outcome");
    counter!(metric::POLLS, "polls for load by outcome");
    gauge!(metric::ENDPOINT_REPORT_AGE, "seconds since the endpoint's last load report");
    counter!(metric::REPORTS_DROPPED, "load reports that were not believed, by cause");
    gauge!(metric::CONNECTIONS_OPEN, "open connections of clients");
    counter!(metric::CONNECTIONS, "connections of clients that ended, by how");
    counter!(
        metric::HTTP2_FLOODS,
        "client connections ended for a flood of HTTP/2 frames, by kind"
    );
    counter!(metric::TLS_HANDSHAKES, "TLS handshakes with clients, by how they ended");
    gauge!(metric::TLS_EXPIRY, "Unix time at which the first certificate of a listener expires");
    counter!(metric::CONNECTION_BYTES, "bytes over connections at layer 4");
    metrics::describe_histogram!(
        metric::CONNECTION_SECONDS,
        metrics::Unit::Seconds,
        "how long connections at layer 4 lasted"
    );
    counter!(metric::ADMIN_REFUSED, "admin requests that a web page may have sent, by cause");
    counter!(metric::RELOADS, "configuration reloads by outcome");
    gauge!(metric::CONFIG_LOADED, "Unix time of the configuration that runs");
    counter!(metric::ACCESS_LOG_DROPPED, "access log lines that were dropped");
    counter!(metric::EXHAUSTED, "connections that failed for want of descriptors, ports or memory");
    counter!(metric::PANICS, "panics, which are mistakes of this program");
    gauge!(
        metric::TASKS_STALLED,
        "tasks of the process that stand still: it is not ready meanwhile"
    );
    counter!(metric::TASK_RESTARTS, "tasks of the process that were started again");
    counter!(metric::LOG_DROPPED, "lines of the process log that were not written, by cause");
}
