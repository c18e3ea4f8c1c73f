//! Load reports in their three forms: numbers are finite, and what is written is read as the same.
#![no_main]
use forebay_protocol::LoadReport;
use libfuzzer_sys::fuzz_target;

fn check(report: LoadReport) {
    let numbers = [
        report.close_in_ms,
        report.lat_at_rif_ms,
        report.cpu_utilization,
        report.mem_utilization,
        report.application_utilization,
    ];
    for number in numbers.into_iter().flatten() {
        assert!(number.is_finite() && number >= 0.0, "{report:?}");
    }
    // A report without entries has no form.
    if report == LoadReport::default() {
        return;
    }
    assert_eq!(LoadReport::parse(&report.to_string()).ok(), Some(report), "{report}");
    assert_eq!(LoadReport::parse(&report.to_json()).ok(), Some(report));
    assert_eq!(LoadReport::parse_base64(&report.to_base64()).ok(), Some(report));
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(report) = LoadReport::parse_binary(bytes) {
        check(report);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        for report in [LoadReport::parse(text), LoadReport::parse_base64(text)].into_iter().flatten() {
            check(report);
        }
    }
});
