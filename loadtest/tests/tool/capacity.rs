//! `capacity` finds a known limit.

use crate::harness::Backend;
use clap::Parser as _;
use forebay_loadtest::cli::args::{Cli, Command};
use forebay_loadtest::generate::capacity::{self, Capacity, End};

fn search(line: &str) -> Capacity {
    let words = ["forebay-load", "capacity"].into_iter().chain(line.split_whitespace());
    match Cli::try_parse_from(words).unwrap().command {
        Command::Capacity(args) => capacity::search(&args.plan().unwrap(), false).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_limit_of_a_backend_with_one_slot_is_its_service_rate() {
    let backend = Backend::slots(1);
    // 4 ms each: 250/s, beyond which the queue grows until the end of the step. Far away from it on
    // either side the verdict can't be luck; hence the coarse precision.
    let found = search(&format!(
        "{} --model synthetic --demand constant:4ms --arrivals constant --from 60/s --for 1s \
         --warm-up 0s --precision 60% --objective p50<100ms",
        backend.url
    ));
    assert_eq!(found.end, End::Target, "{found:?}");
    let rate = found.rate.unwrap();
    assert!((120.0..=250.0).contains(&rate), "{found:?}");
    assert!(found.steps.iter().all(|step| step.met == (step.rate <= rate)), "{found:?}");
    assert_eq!(found.objectives[1], "errors < 1.0 %");
    let text = capacity::render(&found, forebay_loadtest::report::style::Style::Plain);
    assert!(text.contains("hold up to"), "{text}");
}

#[test]
fn a_target_that_can_do_it_ends_at_the_highest_rate_and_one_that_never_can_has_none() {
    let backend = Backend::slots(8);
    let flags = "--model synthetic --for 200ms --warm-up 0s --from 50/s --to 100/s";
    let found = search(&format!("{} {flags} --objective p50<1s", backend.url));
    assert_eq!((found.end, found.rate, found.steps.len()), (End::Bound, Some(100.0), 2));
    let found = search(&format!("{} {flags} --objective p50<1ns", backend.url));
    assert_eq!(found.rate, None, "{found:?}");
}
