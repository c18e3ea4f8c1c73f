//! Load reports on answers, from the words on the wire to what picking needs.

use crate::clock;
use forebay_protocol::orca::ReportError;
use forebay_protocol::{LoadReport, header};
use forebay_routing::{Load, Report};
use http::HeaderMap;
use std::time::Duration;

/// Takes in the load report among `headers`, if there is one.
///
/// # Errors
/// The report is doubtful; it was dropped whole, and the answer itself is untouched.
pub fn take_in(headers: &HeaderMap, load: &Load) -> Result<(), ReportError> {
    let Some(value) = headers.get(header::LOAD_REPORT) else { return Ok(()) };
    let text = value.to_str().map_err(|_| ReportError::Malformed)?;
    let report = LoadReport::parse(text)?;
    load.report(
        &Report {
            in_flight: report.rif,
            queue: report.queue,
            slots: report.slots,
            service_time: report
                .lat_at_rif_ms
                .and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok()),
        },
        clock::now(),
    );
    Ok(())
}
