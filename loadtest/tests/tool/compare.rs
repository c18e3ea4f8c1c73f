//! `compare` tells a difference from chance, on runs whose difference is known.

use crate::harness;
use clap::Parser as _;
use forebay_loadtest::cli::args::{Cli, Command};
use forebay_loadtest::report::compare::{self, CompareArgs, Comparison, Quantity, Verdict};
use forebay_loadtest::report::outcome::{Finished, Outcome};
use forebay_loadtest::report::record::Record;
use forebay_loadtest::report::{Circumstances, Report};
use std::time::Duration;

/// Length of a made-up run in seconds, and its requests a second.
const LENGTH: u32 = 40;
const RATE: u32 = 250;

/// A made-up run: latencies are 5 ms and an exponential part, and every second has a mood of its
/// own, which it shares in part with the second before.
fn run(seed: u64, mean_ms: f64, error_share: f64) -> Report {
    let plan = harness::plan("http://127.0.0.1:9 --rate 250/s --for 40s --warm-up 0s");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut record, mut mood) = (Record::default(), 0.0_f64);
    for index in 0..LENGTH * RATE {
        if index % RATE == 0 {
            mood = 0.5 * mood + 0.1 * (rng.f64() - 0.5);
        }
        let intended = Duration::from_secs(1) * index / RATE;
        let latency = (5.0 - rng.f64().ln() * mean_ms) * (1.0 + mood) / 1e3;
        let failed = rng.f64() < error_share;
        let outcome = if failed { Outcome::refused(503, None) } else { Outcome::Ok(200) };
        let done = intended + Duration::from_secs_f64(latency);
        let (taken, sent, bytes_out, bytes_in) = (intended, intended, 10, 10);
        let finished = Finished { intended, taken, sent, done, outcome, bytes_out, bytes_in };
        record.finish(plan.timeline, &finished);
    }
    Report::new(&plan, &record, &Circumstances::default())
}

fn args(line: &str) -> CompareArgs {
    let words = ["forebay-load", "compare", "a", "b"].into_iter().chain(line.split_whitespace());
    match Cli::try_parse_from(words).unwrap().command {
        Command::Compare(args) => args,
        other => panic!("{other:?}"),
    }
}

fn compared(a: &[Report], b: &[Report], line: &str) -> Comparison {
    // Enough to tell these, and fast enough without optimisation.
    Comparison::of(a, b, &args(&format!("--resamples 300 {line}"))).unwrap()
}

fn verdict(comparison: &Comparison, quantity: Quantity) -> Verdict {
    comparison.rows.iter().find(|row| row.quantity == quantity).unwrap().verdict
}

#[test]
fn chance_is_not_taken_for_a_difference() {
    let line = "--tolerance 0%";
    let mut wrong = Vec::new();
    for seed in 0..30 {
        let (a, b) = (run(2 * seed, 20.0, 0.01), run(2 * seed + 1, 20.0, 0.01));
        let comparison = compared(&[a], &[b], line);
        if matches!(comparison.verdict, Verdict::Worse | Verdict::Better) {
            wrong.push(seed);
        }
    }
    // 5 % of 30 are 1.5.
    assert!(wrong.len() <= 3, "false alarms with the seeds {wrong:?}");
}

#[test]
fn a_slower_or_broken_run_is_worse_and_a_faster_one_is_better() {
    let base = run(1, 20.0, 0.0);
    for (other, quantity, expected) in [
        (run(2, 30.0, 0.0), Quantity::P50, Verdict::Worse),
        (run(3, 30.0, 0.0), Quantity::P99, Verdict::Worse),
        (run(4, 10.0, 0.0), Quantity::P99, Verdict::Better),
        (run(5, 20.0, 0.03), Quantity::Errors, Verdict::Worse),
        (run(6, 20.0, 0.2), Quantity::Rate, Verdict::Worse),
        (run(7, 20.0, 0.0), Quantity::Errors, Verdict::Same),
        (run(8, 20.0, 0.0), Quantity::Rate, Verdict::Same),
        (run(9, 20.0, 1.0), Quantity::Errors, Verdict::Worse),
        (run(9, 20.0, 1.0), Quantity::P99, Verdict::Unclear),
    ] {
        let comparison = compared(std::slice::from_ref(&base), &[other], "");
        assert_eq!(verdict(&comparison, quantity), expected, "{:?}", comparison.rows);
        let is_worse = comparison.rows.iter().any(|row| row.verdict == Verdict::Worse);
        assert_eq!(comparison.verdict == Verdict::Worse, is_worse);
        assert!(
            compare::render(&comparison, forebay_loadtest::report::style::Style::Plain).len() > 100
        );
    }
}

#[test]
fn the_ratio_is_that_of_the_quantiles_and_its_interval_contains_it() {
    // The median is 5 + ln 2 times the exponential part's mean.
    let comparison = compared(&[run(1, 20.0, 0.0)], &[run(2, 40.0, 0.0)], "");
    let row = &comparison.rows[0];
    let expected = (5.0 + 40.0 * 2_f64.ln()) / (5.0 + 20.0 * 2_f64.ln());
    let (low, high) = row.interval.unwrap();
    assert!((row.change.unwrap() / expected - 1.0).abs() < 0.1, "{row:?}, {expected}");
    assert!(low < row.change.unwrap() && row.change.unwrap() < high, "{row:?}");
    assert!(low < expected && expected < high && high / low < 1.3, "{row:?}, {expected}");
}

#[test]
fn runs_that_differ_among_themselves_widen_the_interval() {
    let width = |b: &[Report]| {
        let a = [run(1, 20.0, 0.0), run(2, 20.0, 0.0)];
        let (low, high) = compared(&a, b, "").rows[0].interval.unwrap();
        high / low
    };
    let alike = width(&[run(3, 20.0, 0.0), run(4, 20.0, 0.0)]);
    let unlike = width(&[run(3, 12.0, 0.0), run(4, 30.0, 0.0)]);
    assert!(unlike > 1.5 * alike, "{unlike} {alike}");
}

#[test]
fn the_same_seed_gives_the_same_comparison() {
    let (a, b) = ([run(1, 20.0, 0.0)], [run(2, 21.0, 0.01)]);
    let json = |line: &str| serde_json::to_string(&compared(&a, &b, line).rows).unwrap();
    assert_eq!(json("--seed 5"), json("--seed 5"));
    assert_ne!(json("--seed 5"), json("--seed 6"));
}

#[test]
fn exit_statuses_are_those_that_help_promises() {
    let directory = std::env::temp_dir().join(format!("forebay-compare-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let mut spoilt = run(3, 20.0, 0.0);
    spoilt.problems.push("the generator could not keep up".to_owned());
    for (name, report) in [("a", run(1, 20.0, 0.0)), ("b", run(2, 40.0, 0.0)), ("spoilt", spoilt)] {
        let json = serde_json::to_string_pretty(&report).unwrap();
        std::fs::write(directory.join(name), json).unwrap();
    }
    let damaged = std::fs::read_to_string(directory.join("a")).unwrap();
    let huge = damaged.replacen("\"ok\": 250", "\"ok\": 18446744073709551615", 3);
    std::fs::write(directory.join("huge"), huge).unwrap();
    std::fs::write(directory.join("damaged"), damaged.replace(":1 ", ":x ")).unwrap();
    for (line, status) in [
        ("a a", 0),
        ("b a", 0),
        ("a b", 1),
        ("a,a b,b", 1),
        ("a spoilt", 3),
        ("a missing", 2),
        ("a damaged", 2),
        ("a huge", 0),
        ("a b --tolerance 5", 2),
        ("a b --confidence 10%", 2),
        ("a b --confidence 100%", 2),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_forebay-load"))
            .current_dir(&directory)
            .args(["compare", "--resamples=300"])
            .args(line.split_whitespace())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{line}: {text}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
