//! The load generator reports the truth, against servers whose behaviour is known.

use crate::harness::{self, Backend, Canned, count, plan, report};
use forebay_loadtest::cli::args::Cli;
use forebay_loadtest::corpus::Corpus;
use forebay_loadtest::generate::run::{self, Options};
use forebay_loadtest::plan::arrivals::Source;
use forebay_loadtest::plan::mix::Mix;
use forebay_loadtest::plan::{Loop, Plan};
use forebay_loadtest::report::Report;
use forebay_loadtest::units;
use std::process::Command;

/// The first seed with which exactly one of `requests` demands is long, and neither early nor late.
fn seed_with_one_stall(url: &str, flags: &str, requests: u64) -> u64 {
    (1..10_000)
        .find(|seed| {
            let plan = plan(&format!("{url} --path / {flags} --seed {seed} -c 1"));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let corpus = runtime.block_on(Corpus::make(&plan)).unwrap();
            let long: Vec<u64> = (0..requests)
                .filter(|index| {
                    let request = corpus.draw(*index).request();
                    request.headers()["x-service-demand"] != "0"
                })
                .collect();
            matches!(long.as_slice(), [index] if (80..140).contains(index))
        })
        .unwrap()
}

#[test]
fn a_stall_shows_in_full_in_the_open_loop_and_hides_in_the_closed_one() {
    let backend = Backend::slots(1);
    let demand = "--demand bimodal:0ms:400ms:0.004 --requests 300 --warm-up 0s";
    let seed = seed_with_one_stall(&backend.url, demand, 300);
    let run = |load: &str| {
        let url = &backend.url;
        report(&format!("{url} --model synthetic {demand} --seed {seed} --for 20s {load}"))
    };
    let open = run("--rate 200/s");
    let closed = run("-c 1");
    assert_eq!((open.results.ok, closed.results.ok), (300, 300), "seed {seed}");
    // 80 arrivals fall into the 400 ms, and wait for what is left of them.
    assert!(open.results.latency.get("p90") > 0.2, "seed {seed}: {:?}", open.results.latency);
    assert!(closed.results.latency.get("p90") < 0.1, "seed {seed}: {:?}", closed.results.latency);
    assert!(closed.results.latency.max >= 0.4, "seed {seed}: {:?}", closed.results.latency);
}

#[test]
fn no_latency_is_below_the_service_time_and_quantiles_are_those_of_the_distribution() {
    let backend = Backend::slots(64);
    let report = report(&format!(
        "{} --model synthetic --demand bimodal:2ms:60ms:0.2 --rate 200/s --for 2s --warm-up 0s",
        backend.url
    ));
    assert_eq!((report.results.ok, report.results.requests), (400, 400));
    let (p50, p90) = (report.results.latency.get("p50"), report.results.latency.get("p90"));
    assert!(report.results.latency.min >= 0.002, "{:?}", report.results.latency);
    assert!((0.002..0.06).contains(&p50) && p90 >= 0.06, "{:?}", report.results.latency);
}

#[test]
fn quantiles_are_those_of_the_demands_within_the_histograms_precision() {
    let backend = Backend::slots(200);
    let line = format!(
        "{} --model synthetic --demand lognormal:20ms:0.8 --rate 400/s --requests 600 --for 5s \
         --warm-up 0s --seed 7",
        backend.url
    );
    let plan = plan(&line);
    let mut demands: Vec<f64> =
        (0..600).map(|index| Mix::new(&plan).draw(index).demand.unwrap().as_secs_f64()).collect();
    demands.sort_by(f64::total_cmp);
    let report = report(&line);
    assert_eq!(report.results.ok, 600, "{:?}", report.results.outcomes);
    for (name, rank) in [("p50", 299), ("p90", 539), ("p99", 593)] {
        let (found, expected) = (report.results.latency.get(name), demands[rank]);
        // Nothing is faster than its demand; how much slower it is is up to the machine.
        assert!(found > expected * 0.999, "{name}: {found}, {expected}, seed 7");
        assert!(found < expected + 0.1, "{name}: {found}, {expected}, seed 7");
    }
}

#[test]
fn every_way_to_fail_has_its_name() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    for (answer, close, class) in [
        ("", true, "closed"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", true, "truncated"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", true, "truncated"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", false, "not_http"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", false, "timeout"),
        ("", false, "timeout"),
        (
            "HTTP/1.1 503 Service Unavailable\r\nx-forebay-reason: queue_full\r\ncontent-length: 0\r\n\r\n",
            false,
            "503 queue_full",
        ),
        (
            "HTTP/1.1 500 Oops\r\nx-forebay-reason: made up\r\ncontent-length: 0\r\n\r\n",
            false,
            "500 other",
        ),
        ("HTTP/1.1 404 Not SimResult\r\ncontent-length: 0\r\n\r\n", false, "404"),
        (ok, false, "200 wrong_answer_not_an_inference"),
        (&ok.replace("{}", "<>"), false, "200 wrong_answer_not_json"),
    ] {
        let server = Canned::new(answer, close);
        let report = report(&format!(
            "{} --model m --input {} -c 2 --requests 6 --for 20s --warm-up 0s --timeout 300ms",
            server.url,
            harness::input()
        ));
        assert_eq!(count(&report, class), 6, "{answer:?}: {:?}", report.results.outcomes);
        assert_eq!((report.results.ok, report.results.latency.count), (0, 0), "{answer:?}");
        assert_eq!(report.results.error_latency.count, 6, "{answer:?}");
    }
}

#[test]
fn a_connection_that_the_server_ends_after_each_answer_is_no_error() {
    let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let server = Canned::new(answer, true);
    let report = report(&format!("{} -c 2 --requests 40 --for 20s --warm-up 0s", server.url));
    assert_eq!(
        (report.results.ok, report.results.requests),
        (40, 40),
        "{:?}",
        report.results.outcomes
    );
    assert_eq!(report.generator.connections, 40);
}

#[test]
fn http_2_shares_a_few_connections() {
    let backend = Backend::slots(32);
    let flags = "--model synthetic --protocol h2c -c 2 --streams 16 --for 20s --warm-up 0s";
    for load in ["--requests 500", "--requests 500 --rate 2k/s"] {
        let report = report(&format!("{} {flags} {load}", backend.url));
        assert_eq!(
            (report.results.ok, report.results.requests),
            (500, 500),
            "{load}: {:?}",
            report.results.outcomes
        );
        assert!(report.generator.connections <= 2, "{load}: {:?}", report.generator);
    }
}

#[test]
fn json_and_binary_requests_fit_the_models_metadata() {
    let backend = Backend::slots(4);
    for flags in ["--encoding json --batch 1,4", "--encoding binary --batch 8 --zipf 1"] {
        let report = report(&format!(
            "{} --model synthetic {flags} -c 2 --requests 100 --for 20s --warm-up 0s",
            backend.url
        ));
        assert_eq!(
            (report.results.ok, report.results.requests),
            (100, 100),
            "{flags}: {:?}",
            report.results.outcomes
        );
    }
    let unknown = plan(&format!("{} --model nobody --rate 1/s", backend.url));
    let error = run::run(unknown, Options::default()).unwrap_err().to_string();
    assert!(error.contains("expected status 200, found 404"), "{error}");
}

#[test]
fn a_rate_beyond_one_thread_makes_the_run_invalid() {
    let backend = Backend::slots(1);
    let report = report(&format!(
        "{} --path /v2 --rate 9M/s --for 100ms --warm-up 0s --requests 150000 -c 4 --timeout 1s",
        backend.url
    ));
    assert!(!report.is_valid());
    assert!(report.problems[0].contains("could not keep up"), "{:?}", report.problems);
}

#[test]
fn the_same_seed_asks_the_same_questions() {
    let backend = Backend::slots(1);
    let bodies = |seed: u64| -> Vec<(u64, String)> {
        let plan = plan(&format!(
            "{} --model synthetic --distinct 50 --batch 1,2,3 --demand exponential:5ms --rate 1/s \
             --seed {seed}",
            backend.url
        ));
        let corpus = harness::local(async move { Corpus::make(&plan).await.unwrap() });
        let draw = |index| {
            let draw = corpus.draw(index);
            let demand = draw.request().headers()["x-service-demand"].to_str().unwrap().to_owned();
            (draw.length(), demand)
        };
        (0..200).map(draw).collect()
    };
    assert_eq!(bodies(7), bodies(7));
    assert_ne!(bodies(7), bodies(8));
}

#[test]
fn exit_statuses_are_those_that_help_promises() {
    let backend = Backend::slots(4);
    let base = format!("run {} --model synthetic -c 1 --warm-up 0s --quiet", backend.url);
    let unused_url = harness::unused_url();
    for (line, status) in [
        (format!("{base} --requests 20 --objective errors<1%"), 0),
        (format!("{base} --requests 20 --objective errors<1% p50<1us"), 1),
        (format!("{base} --objective p99<50"), 2),
        (format!("run {} --model synthetic", backend.url), 2),
        ("run missing.toml".to_owned(), 2),
        (format!("run {unused_url} --rate 1/s"), 3),
        (format!("capacity {unused_url} --objective p99<1s"), 3),
        (format!("capacity {unused_url}"), 2),
        ("capacity missing.toml --objective p99<1s".to_owned(), 2),
        ("run missing.toml --rate 5/s".to_owned(), 2),
        ("--help".to_owned(), 0),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_forebay-load"))
            .args(line.split_whitespace())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{line}: {text}");
    }
}

#[test]
fn a_report_survives_its_json_form() {
    let backend = Backend::slots(4);
    let output = Command::new(env!("CARGO_BIN_EXE_forebay-load"))
        .args([
            "run",
            &backend.url,
            "--model",
            "synthetic",
            "-c",
            "1",
            "--requests",
            "30",
            "--json",
        ])
        .args(["--warm-up", "0s"])
        .output()
        .unwrap();
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (report.results.ok, report.results.requests, report.run.kind.as_str()),
        (30, 30, "closed")
    );
    assert!(units::float(report.series.iter().map(|point| point.ok).sum()) == 30.0);
}

#[test]
fn every_scenario_that_ships_is_read_and_makes_a_plan() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut found = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy();
        if name.ends_with(".toml") && !name.ends_with(".forebay.toml") {
            let scenario = forebay_loadtest::scenario::Scenario::read(&path).unwrap();
            let plan = Plan::new(scenario).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            assert!(!plan.describe().is_empty());
            found += 1;
        }
    }
    assert!(found >= 4, "{found}");
}

#[test]
fn a_replay_sends_the_requests_of_the_log_at_their_times_and_leaves_probes_out() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/replay.toml");
    let scenario = forebay_loadtest::scenario::Scenario::read(file.as_ref()).unwrap();
    let plan = Plan::new(scenario).unwrap();
    assert_eq!(plan.recorded.to_vec(), [0, 1, 1, 0, 1, 0].map(Some));
    let Loop::Open(Source::Recorded(times)) = &plan.load else { panic!("{:?}", plan.load) };
    // Twice as fast as recorded; `time` in the log is the end of the request.
    let millis: Vec<u64> = times.iter().map(|nanos| (nanos + 500_000) / 1_000_000).collect();
    assert_eq!(millis, [0, 20, 28, 155, 501, 850]);
}

#[test]
fn help_is_complete() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
}
