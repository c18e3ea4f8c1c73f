//! Faults on schedule: what was planned is done, and the figures are those of its time.

use crate::harness;
use forebay_loadtest::generate::run::{self, Options};
use forebay_loadtest::plan::Plan;
use forebay_loadtest::report::Report;
use forebay_loadtest::report::fault_window::FaultWindowReport;
use forebay_loadtest::report::style::Style;
use forebay_loadtest::report::{html, table};
use forebay_loadtest::{scenario, synthetic};
use std::process::ExitCode;

/// Names the flags of a backend that this program is to be, instead of testing anything.
const FLAGS: &str = "FOREBAY_TEST_BACKEND";

/// A command of a scenario that starts a backend with these flags. It is this very program: a worker would
/// have to be built first, and with it the engine. SIGHUP ends it even where these tests run under nohup.
fn backend(flags: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let words = [
        "env",
        "--default-signal=HUP",
        &format!("{FLAGS}={flags}"),
        program.to_str().unwrap(),
        "faults::a_backend_while_it_is_wanted",
        "--exact",
        "--ignored",
        "--nocapture",
    ];
    format!("command = {words:?}")
}

#[test]
#[ignore = "it is the backend of the other tests"]
fn a_backend_while_it_is_wanted() {
    let Ok(flags) = std::env::var(FLAGS) else { return };
    let words = ["forebay-worker", "--synthetic"].into_iter().chain(flags.split(' '));
    let status = synthetic::main(words.map(Into::into));
    // Without more words: those of the backend itself are what a test reads.
    std::process::exit(i32::from(status != ExitCode::SUCCESS) * 2);
}

/// Four seconds of load on a backend that the run starts, and its fault after one.
fn scenario(port: u16, fault: &str) -> String {
    let load = harness::steady("constant", "100/s", "4s");
    let command = backend(&format!("--slots 4 --listen 127.0.0.1:{port}"));
    format!(
        r#"
        target = "http://127.0.0.1:{port}"
        warm_up = "0s"
        timeout = "3s"
        objectives = ["errors<=0", "p99<400ms"]
        {load}
        [[request]]
        kind = "infer"
        model = "synthetic"
        demand = "constant:5ms"
        [[process]]
        name = "a"
        {command}
        ready = "http://127.0.0.1:{port}/v2/health/ready"
        slow = "http://127.0.0.1:{port}/slow"
        [[fault]]
        at = "1s"
        for = "1s"
        process = "a"
        {fault}
        "#
    )
}

fn report(fault: &str) -> Report {
    let text = scenario(harness::free_port(), fault);
    let plan = Plan::new(scenario::parse(&text).unwrap()).unwrap();
    let report = run::run(plan, Options::default()).unwrap();
    let names: Vec<&str> = report.fault_windows.iter().map(|stage| stage.name.as_str()).collect();
    let word = report.faults[0].fault.as_str();
    assert_eq!(names, [format!("before {word}"), word.to_owned(), format!("after {word}")]);
    assert_eq!(report.faults[0].problem, None, "{:?}", report.faults);
    let (began, ended) = report.faults[0].actual;
    assert!(began >= 1.0 && ended >= 2.0, "{:?}", report.faults);
    for (stage, expected) in report.fault_windows.iter().zip([100, 100, 200]) {
        // One of them may be meant to start at the very border.
        assert!(stage.requests.abs_diff(expected) <= 1, "{stage:?}");
    }
    report
}

fn errors(stage: &FaultWindowReport, class: &str) -> u64 {
    stage.errors.iter().filter(|error| error.class == class).map(|error| error.count).sum()
}

#[test]
fn a_killed_program_is_missed_until_it_is_started_again() {
    let report = report("kind = \"kill\"");
    let [before, during, after] = report.fault_windows.as_slice() else {
        panic!("{:?}", report.fault_windows)
    };
    // Those on their way at the moment of the kill lose their connection.
    assert!(before.error_share < 0.5, "{before:?}");
    assert!(errors(during, "connect_refused") > 50, "{during:?}");
    assert!(after.error_share < 0.9, "{after:?}");
    assert_eq!(during.missed().next(), Some("errors <= 0"), "{during:?}");
    let text = table::render(&report, Style::Plain);
    assert!(text.contains("before kill a") && text.contains("✗ errors <= 0"), "{text}");
    let page = html::render(&report);
    assert!(page.contains("Before, during and after faults") && page.contains("class=\"band\""));
}

#[test]
fn a_stopped_program_answers_late_and_loses_nothing() {
    let report = report("kind = \"stop\"");
    let [before, during, after] = report.fault_windows.as_slice() else {
        panic!("{:?}", report.fault_windows)
    };
    assert_eq!(report.results.ok, report.results.requests, "{:?}", report.results.outcomes);
    // The first of them waits for the whole second, the median for half of it.
    assert!(during.latency.max > 0.9 && during.latency.get("p50") > 0.3, "{during:?}");
    assert!(before.latency.min < 0.3 && after.latency.min < 0.3, "{before:?} {after:?}");
}

#[test]
fn a_program_that_is_told_to_be_slow_is_and_recovers() {
    let report = report("kind = \"slow\"\nfactor = 7.0");
    let [before, during, after] = report.fault_windows.as_slice() else {
        panic!("{:?}", report.fault_windows)
    };
    assert_eq!(report.faults[0].fault, "slow a x 7");
    // 35 ms each, four at a time, 100 a second: it keeps up, and is slower by 30 ms.
    assert!(during.latency.min >= 0.005 && during.latency.get("p50") >= 0.035, "{during:?}");
    assert!(before.latency.min < 0.035 && after.latency.min < 0.035, "{before:?} {after:?}");
}

#[test]
fn a_program_without_a_word_for_it_is_slowed_by_signals_and_a_reload_is_one() {
    // A program that counts what it hears, and how long it was not let run.
    let text = scenario(harness::free_port(), "kind = \"slow\"\nfactor = 4.0")
        .replace("slow = \"http", "log = \"/dev/null\"\n# slow = \"http");
    let plan = Plan::new(scenario::parse(&text).unwrap()).unwrap();
    let slowed = run::run(plan, Options::default()).unwrap();
    assert_eq!(slowed.faults[0].problem, None, "{:?}", slowed.faults);
    assert_eq!(slowed.results.ok, slowed.results.requests, "{:?}", slowed.results.outcomes);
    // SIGHUP ends a program that does not listen to it.
    let reloaded = report("kind = \"reload\"");
    assert!(reloaded.fault_windows[1].error_share > 0.9, "{:?}", reloaded.fault_windows[1]);
}

#[test]
fn a_drained_program_ends_by_itself_and_an_upgrade_replaces_it() {
    let drained = report("kind = \"drain\"");
    assert!(
        errors(&drained.fault_windows[1], "connect_refused") > 50,
        "{:?}",
        drained.fault_windows[1]
    );
    let port = harness::free_port();
    let new = harness::free_port();
    let text = scenario(port, "kind = \"upgrade\"\noverlap = \"100ms\"")
        .replace("overlap", &format!("{}\noverlap", backend(&format!("--listen 127.0.0.1:{new}"))));
    let plan = Plan::new(scenario::parse(&text).unwrap()).unwrap();
    let upgraded = run::run(plan, Options::default()).unwrap();
    // The new one listens elsewhere, so the target is gone as soon as the old one has ended.
    assert_eq!(upgraded.faults[0].problem, None, "{:?}", upgraded.faults);
    assert!(upgraded.fault_windows[1].error_share > 0.5, "{:?}", upgraded.fault_windows[1]);
    assert!(upgraded.fault_windows[2].error_share > 0.9, "{:?}", upgraded.fault_windows[2]);
}

#[test]
fn a_fault_that_can_not_be_carried_out_makes_the_run_invalid() {
    let port = harness::free_port();
    // It ends by itself before it can be stopped.
    let text = scenario(port, "kind = \"kill\"")
        .replace("for = \"1s\"\n        process", "for = \"500ms\"\n        process")
        + "\n[[process]]\nname = \"b\"\ncommand = [\"true\"]\n[[fault]]\nat = \"2s\"\nprocess = \"b\"\nkind = \"stop\"\n";
    let plan = Plan::new(scenario::parse(&text).unwrap()).unwrap();
    let report = run::run(plan, Options::default()).unwrap();
    let problem = report.problems.join("\n");
    assert!(problem.contains("\"stop b\" failed: b"), "{problem}");
}

#[test]
fn a_program_that_does_not_start_or_a_fault_without_one_is_refused() {
    let refused = |from: &str, to: &str| {
        let text = scenario(9, "kind = \"kill\"").replace(from, to);
        match Plan::new(scenario::parse(&text).unwrap()) {
            Err(error) => error.to_string(),
            Ok(plan) => run::run(plan, Options::default()).unwrap_err().to_string(),
        }
    };
    let error = refused("process = \"a\"", "process = \"b\"");
    assert!(error.contains("expected the name of a [[process]], found b"), "{error}");
    let error = refused("at = \"1s\"", "at = \"1h\"");
    assert!(error.contains("fault.at: expected a time"), "{error}");
    let error = refused("\"env\"", "\"/nowhere/at/all\"");
    assert!(error.starts_with("a: /nowhere/at/all: No such file"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = refused("slow =", &format!("sockets = [\"{address}\"]\nslow ="));
    assert!(error.starts_with(&format!("a: can't listen on {address}: ")), "{error}");
    let error = refused("--slots", "--no-such-flag");
    assert!(
        error.contains("a has ended, exit status: 2") && error.contains("--no-such-flag"),
        "{error}"
    );
}

#[test]
fn the_scenarios_that_ship_have_their_faults_in_order() {
    for (file, faults) in [("faults.toml", 5), ("upgrade.toml", 3)] {
        let file = format!("{}/scenarios/{file}", env!("CARGO_MANIFEST_DIR"));
        let plan = Plan::new(scenario::Scenario::read(file.as_ref()).unwrap()).unwrap();
        assert_eq!(plan.faults.len(), faults, "{file}");
        assert!(plan.borders().is_sorted(), "{:?}", plan.faults);
    }
}
