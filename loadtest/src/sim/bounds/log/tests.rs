#![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
use super::*;

/// Writes a log and reads its reports.
fn reports_of(name: &str, text: &str, slots: Option<u32>) -> Result<Vec<FleetReport>, LogError> {
    let directory = std::env::temp_dir().join(format!("forebay-log-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join(name);
    std::fs::write(&file, text).unwrap();
    let found = reports(&file, slots);
    std::fs::remove_file(&file).unwrap();
    found
}

/// A line of a request that came at `at`, waited and was forwarded for so many milliseconds.
fn line(endpoint: &str, [at, waited, forwarded]: [u64; 3], rest: &str) -> String {
    let time = |millis: u64| {
        let (seconds, millis) = (millis / 1000, millis % 1000);
        format!("2026-03-01T12:{:02}:{:02}.{millis:03}Z", seconds / 60, seconds % 60)
    };
    format!(
        "{{\"time\":\"{}\",\"status\":200,\"reason\":\"ok\",\"pool\":\"p\",\"model\":\"m\",\
         \"endpoint\":\"{endpoint}\",\"attempts\":1,\"total_us\":{},\"receive_us\":0,\"balance_us\":{},\
         \"forward_us\":{}{rest}}}\n",
        time(at + waited + forwarded),
        (waited + forwarded) * 1000,
        waited * 1000,
        forwarded * 1000,
    )
}

#[test]
fn a_request_behind_another_has_a_service_from_the_end_of_that_one() {
    // Two at once at one endpoint, beside one that idles: 10 ms of service each.
    let mut log = String::new();
    for at in (0..100).map(|number| number * 50) {
        log += &line("a", [at, 0, 10], ",\"slots\":1");
        log += &line("a", [at, 0, 20], ",\"slots\":1");
        log += &line("b", [at + 25, 0, 10], ",\"slots\":1");
    }
    let found = reports_of("behind", &log, None).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let report = &found[0];
    assert_eq!((report.endpoints, report.requests), (2, 300));
    let mean = |level: &Level| (level.latency.mean * 1e4).round() / 10.0;
    assert_eq!(mean(&report.actual), 13.3);
    assert_eq!(report.perfect.as_ref().map(mean), Some(10.0));
    assert_eq!(report.advice, Advice::LookAtTheProxy);
    assert!(report.missing.iter().any(|it| it.starts_with("100 requests found all")), "{report:?}");
    assert!(!report.missing.iter().any(|it| it.contains("--slots")), "{report:?}");
}

#[test]
fn slots_that_the_log_lacks_are_stated_or_taken_for_what_was_seen() {
    let mut log = String::new();
    for at in (0..100).map(|number| number * 20) {
        log += &line("a", [at, 0, 10], "");
        log += &line("a", [at, 0, 20], "");
    }
    let seen = reports_of("seen", &log, None).unwrap();
    assert!((seen[0].load - 0.75).abs() < 0.02, "two slots: {}", seen[0].load);
    assert!(seen[0].missing.iter().any(|it| it.contains("--slots")), "{seen:?}");
    let stated = reports_of("stated", &log, Some(1)).unwrap();
    assert!((stated[0].load - 1.0).abs() < 0.02, "one slot: {}", stated[0].load);
}

#[test]
fn a_slow_endpoint_is_found_and_others_are_alike() {
    let mut log = String::new();
    for number in 0..300 {
        // Between 5 and 15 ms at two of them, three times as long at the third.
        let takes = 5 + number * 7 % 11;
        log += &line("a", [number * 100, 0, takes], ",\"slots\":1");
        log += &line("b", [number * 100 + 30, 0, 20 - takes], ",\"slots\":1");
        log += &line("c", [number * 100 + 60, 0, takes * 3], ",\"slots\":1");
    }
    let found = reports_of("slow", &log, None).unwrap();
    let ideal = found[0].ideal.latency.mean;
    assert!((0.0095..0.0105).contains(&ideal), "{ideal}");
    let actual = found[0].actual.latency.mean;
    assert!((0.0155..0.0175).contains(&actual), "{actual}");
}

#[test]
fn refusals_for_load_are_work_that_was_not_done() {
    let mut log = String::new();
    for at in (0..500).map(|number| number * 10) {
        log += &line("a", [at, 0, 10], ",\"slots\":1,\"deadline_us\":20000");
        let refused = line("a", [at, 0, 0], ",\"deadline_us\":20000");
        log += &refused
            .replace("\"endpoint\":\"a\"", "\"endpoint\":null")
            .replace("200,\"reason\":\"ok\"", "429,\"reason\":\"queue_full\"");
    }
    let found = reports_of("refused", &log, None).unwrap();
    let report = &found[0];
    assert!((report.load - 2.0).abs() < 0.02, "{}", report.load);
    assert!((report.actual.lost - 0.5).abs() < 0.01 && report.capacity.lost > 0.4, "{report:?}");
    assert_eq!(report.advice, Advice::AddMachines);
}

#[test]
fn each_pool_has_a_report_and_other_lines_count_nowhere() {
    let mut log = String::new();
    for at in (0..50).map(|number| number * 20) {
        log += &line("a", [at, 0, 10], ",\"slots\":1");
        log += &line("b", [at, 0, 10], ",\"slots\":1").replace("\"pool\":\"p\"", "\"pool\":\"q\"");
        log += &line("b", [at, 0, 0], "")
            .replace("\"pool\":\"p\"", "\"pool\":null")
            .replace("200,\"reason\":\"ok\"", "404,\"reason\":\"no_route\"");
    }
    log += &line("a", [0, 0, 10], ",\"protocol\":\"tcp\"");
    let found = reports_of("pools", &log, None).unwrap();
    let names: Vec<_> = found.iter().map(|it| (it.pool.as_deref(), it.requests)).collect();
    assert_eq!(names, [(Some("p"), 50), (Some("q"), 50)]);
}

#[test]
fn a_log_without_an_answer_or_with_a_bad_line_is_refused() {
    let refused = |name, text| reports_of(name, text, None).unwrap_err().to_string();
    let error = refused("none", "{\"time\":\"2026-03-01T12:00:00Z\",\"status\":200}\n");
    assert!(error.contains("expected lines of forebay's access log"), "{error}");
    let error = refused("bad", "{\"time\":3}\n");
    assert!(error.contains("line 1: expected"), "{error}");
    assert!(refused("empty", "").contains("empty log"));
}
