//! The files that a report can be turned into.

use crate::harness::{self, Canned};
use forebay_loadtest::generate::run::{self, Options};
use forebay_loadtest::report::Report;
use forebay_loadtest::report::style::Style;
use forebay_loadtest::report::{hdr, html, table};
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use std::path::Path;

fn report(line: &str) -> Report {
    run::run(harness::plan(line), Options::default()).unwrap()
}

#[test]
fn a_page_needs_nothing_else_and_shows_foreign_text_as_text() {
    let answer = "HTTP/1.1 200 OK\r\nx-forebay-variant: <script>alert('x')</script>\r\n\
                  x-forebay-endpoint: a&\"b\r\ncontent-length: 0\r\n\r\n";
    let server = Canned::new(answer, false);
    let url = &server.url;
    let report = report(&format!(
        "{url} -c 2 --requests 50 --for 20s --warm-up 0s --objective p99<1h errors<1%"
    ));
    let page = html::render(&report);
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"), "{page}");
    assert!(page.contains("a&amp;&quot;b") && page.contains("✓ met"), "{page}");
    for foreign in ["<script", "<link", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for tag in ["section", "table", "svg", "div", "tr", "td", "rect"] {
        let count = |text: String| page.matches(&text).count();
        let empty = page.matches(&format!("<{tag} ")).count() + count(format!("<{tag}>"));
        let closed = count(format!("</{tag}>"));
        assert!(empty == closed || tag == "rect", "{tag}: {empty} {closed}");
    }
    assert_eq!(page.matches("<svg").count(), 3);
}

#[test]
fn a_run_without_an_answer_has_a_page_too() {
    let server = Canned::new("", true);
    let report =
        report(&format!("{} -c 1 --requests 5 --for 20s --warm-up 0s --timeout 1s", server.url));
    assert_eq!(report.results.ok, 0);
    let page = html::render(&report);
    assert!(page.contains("closed") && !page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn hdr_files_hold_the_latencies_of_the_report() {
    let server = Canned::new("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false);
    let report = report(&format!("{} -c 2 --requests 300 --for 20s --warm-up 0s", server.url));
    let log = hdr::render(&report, Path::new("run.hlog")).unwrap();
    let mut counted = 0;
    for entry in IntervalLogIterator::new(log.as_bytes()) {
        if let LogEntry::Interval(interval) = entry.unwrap() {
            let bytes = harness::from_base64(interval.encoded_histogram());
            let histogram: hdrhistogram::Histogram<u64> =
                hdrhistogram::serialization::Deserializer::new()
                    .deserialize(&mut bytes.as_slice())
                    .unwrap();
            counted += histogram.len();
        }
    }
    assert_eq!(counted, 300);
    let text = hdr::render(&report, Path::new("run.hgrm")).unwrap();
    assert!(text.contains("Total count    =          300]"), "{text}");
    let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
    let max: f64 = last.split_whitespace().next().unwrap().parse().unwrap();
    // Three digits of the histogram, and milliseconds with three decimals.
    let off = (max / 1e3 - report.results.latency.max).abs();
    assert!(off < 0.002 * report.results.latency.max + 0.5e-6, "{last}");
    assert_eq!(
        text.lines().rfind(|l| !l.starts_with('#')).unwrap().split_whitespace().nth(2),
        Some("300")
    );
}

#[test]
fn a_report_with_absurd_figures_is_shown_all_the_same() {
    let server = Canned::new("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false);
    let mut report = report(&format!("{} -c 1 --requests 5 --for 20s --warm-up 0s", server.url));
    (report.results.ok, report.results.warm_up_requests, report.run.started) =
        (u64::MAX, u64::MAX, u64::MAX);
    (report.run.measured_seconds, report.interval_seconds) = (-1.0, 0.0);
    report.series[0].at = 1e300;
    (report.series[0].ok, report.series[0].errors) = (u64::MAX, u64::MAX);
    report.results.endpoints.extend([("a".to_owned(), u64::MAX), ("b".to_owned(), u64::MAX)]);
    assert!(!html::render(&report).is_empty());
    assert!(!table::render(&report, Style::Plain).is_empty());
    assert!(hdr::render(&report, Path::new("a.hgrm")).is_ok());
    // No clock can show its start.
    assert!(hdr::render(&report, Path::new("a.hlog")).is_err());
}
