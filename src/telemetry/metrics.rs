//! The metrics of the process: how they are kept and what each means.

use anyhow::{Context, Result};
use forebay_process::supervise::{Importance, Supervisor, fault_point};
use forebay_protocol::family::Kind;
use forebay_protocol::metric::proxy as metric;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use std::time::Duration;

/// Upper bounds of latency buckets, in seconds: fine where inference lives, coarse beyond.
const LATENCY_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
];
/// Upper bounds of buckets of differences between two answers: from the last digit of a number upwards.
const DIFFERENCE_BUCKETS: &[f64] =
    &[0.0, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 1000.0];
/// Gauges of endpoints that are gone disappear after this time.
const GAUGE_LIFETIME: Duration = Duration::from_secs(300);
/// Interval at which recorded latencies are moved into their buckets, so that they do not pile up between
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
        .set_buckets_for_metric(
            Matcher::Full(metric::SHADOW_DIFFERENCE.name.to_owned()),
            DIFFERENCE_BUCKETS,
        )
        .context("buckets of differences")?
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
    for family in metric::ALL {
        let help = family.help();
        match family.kind {
            Kind::Counter => metrics::describe_counter!(family.name, help),
            Kind::Gauge => metrics::describe_gauge!(family.name, help),
            Kind::Histogram if family.name == metric::SHADOW_DIFFERENCE.name => {
                metrics::describe_histogram!(family.name, help);
            }
            Kind::Histogram => {
                metrics::describe_histogram!(family.name, metrics::Unit::Seconds, help);
            }
        }
    }
}
