//! Reports in the formats of `HdrHistogram`, which other tools read and draw.

use super::Report;
use super::times::{RUN_DIGITS, SERIES_DIGITS};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Nanoseconds in the unit in which people read these files.
const MILLISECOND: f64 = 1e6;
/// Lines of a percentile distribution for every halving of what is above.
const TICKS_PER_HALF: u32 = 5;

/// The report as `path` wants it: a percentile distribution for `*.hgrm`, a log of intervals for
/// anything else.
///
/// # Errors
/// In words, why a histogram can't be written down.
pub fn render(report: &Report, path: &Path) -> Result<String, String> {
    if path.extension().is_some_and(|extension| extension == "hgrm") {
        Ok(distribution(report))
    } else {
        log(report)
    }
}

/// A log of one histogram for each interval, in nanoseconds; the readable maximum is in ms.
fn log(report: &Report) -> Result<String, String> {
    let warm_up = Duration::try_from_secs_f64(report.run.warm_up_seconds).unwrap_or_default();
    let start = SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(report.run.started).saturating_add(warm_up))
        .ok_or("expected a start that a clock can show")?;
    let mut out = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("forebay-load {}: {}", report.run.name, report.run.load))
        .add_comment("latency of successes from the intended start, nanoseconds")
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(MILLISECOND)
        .begin_log_with(&mut out, &mut serializer)
        .map_err(|error| error.to_string())?;
    let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    for point in &report.series {
        let histogram = point.buckets.histogram(SERIES_DIGITS);
        writer
            .write_histogram(&histogram, span(point.at), span(report.interval_seconds), None)
            .map_err(|error| error.to_string())?;
    }
    String::from_utf8(out).map_err(|error| error.to_string())
}

/// The percentile distribution of the whole run in ms, as `HdrHistogram` writes and plots it.
fn distribution(report: &Report) -> String {
    let histogram = report.latency_buckets.histogram(RUN_DIGITS);
    let mut out = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut count = 0;
    for at in histogram.iter_quantiles(TICKS_PER_HALF) {
        count += at.count_since_last_iteration();
        let value = crate::units::float(at.value_iterated_to()) / MILLISECOND;
        let quantile = at.quantile_iterated_to();
        // Writing to a string does not fail.
        let _ = if quantile < 1.0 {
            let above = 1.0 / (1.0 - quantile);
            writeln!(out, "{value:>12.3} {quantile:>2.12} {count:>10} {above:>14.2}")
        } else {
            writeln!(out, "{value:>12.3} {quantile:>2.12} {count:>10}")
        };
    }
    let latency = &report.results.latency;
    let (mean, deviation, max) = (latency.mean * 1e3, latency.deviation * 1e3, latency.max * 1e3);
    let total = histogram.len();
    let _ = writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]");
    let _ = writeln!(out, "#[Max     = {max:>12.3}, Total count    = {total:>12}]");
    out
}
