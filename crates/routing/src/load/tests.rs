use super::*;

const TTL: Duration = Duration::from_secs(1);

fn at(millis: u64) -> Time {
    Time::new(Duration::from_millis(millis))
}

#[test]
fn guards_count_in_and_out() {
    let load = Arc::new(Load::new(1));
    let guards = [load.enter(), load.enter()];
    assert_eq!(load.in_flight(), 2);
    drop(guards);
    assert_eq!(load.in_flight(), 0);
}

#[test]
fn a_report_is_corrected_by_what_was_sent_and_finished_since() {
    let load = Arc::new(Load::new(1));
    let ours = load.enter();
    load.report(&Report { in_flight: Some(5), ..Report::default() }, at(0));
    assert_eq!(load.occupancy(at(1), TTL), 5);
    let more = [load.enter(), load.enter()];
    assert_eq!(load.occupancy(at(1), TTL), 7);
    drop(more);
    drop(ours);
    assert_eq!(load.occupancy(at(1), TTL), 4);
    assert_eq!(load.occupancy(at(1500), TTL), 0, "a stale report is not believed");
}

#[test]
fn the_answer_that_bears_a_report_is_not_taken_off_twice() {
    let load = Arc::new(Load::new(1));
    let (bearer, _other) = (load.enter(), load.enter());
    let report = Report { in_flight: Some(5), answered: 1, ..Report::default() };
    load.report(&report, at(0));
    drop(bearer);
    assert_eq!(load.occupancy(at(1), TTL), 5);
}

#[test]
fn a_report_below_our_own_count_is_not_believed() {
    let load = Arc::new(Load::new(1));
    let _guards = [load.enter(), load.enter()];
    load.report(&Report { in_flight: Some(0), ..Report::default() }, at(0));
    assert_eq!(load.occupancy(at(0), TTL), 2);
}

#[test]
fn cost_is_the_expected_time_to_finish() {
    let load = Arc::new(Load::new(2));
    load.report(
        &Report { service_time: Some(Duration::from_millis(10)), ..Report::default() },
        at(0),
    );
    let cost = |load: &Load| (load.completion(at(0), TTL, 1.0) * 1e6).round();
    assert_eq!(cost(&load), 10_000.0);
    let _first = load.enter();
    assert_eq!(cost(&load), 10_000.0, "a free slot costs no wait");
    let _second = load.enter();
    assert_eq!(cost(&load), 15_000.0);
    let _third = load.enter();
    assert_eq!(cost(&load), 20_000.0);
}

#[test]
fn failing_fast_is_expensive_and_forgiven() {
    let load = Arc::new(Load::new(1));
    let cost = |millis| load.cost(at(millis), TTL, 0.001);
    for _ in 0..10 {
        load.failed(at(0));
    }
    assert!(cost(0) > 5.0 && cost(0) < 10.0, "{}", cost(0));
    assert!(cost(6000) < 0.01, "{}", cost(6000));
    load.enter().answered(Duration::from_millis(1), at(0));
    assert!(cost(0) < 0.01, "one answer makes good: {}", cost(0));
}

#[test]
fn waiting_behind_others_does_not_make_an_endpoint_slow() {
    let load = Load::new(1);
    load.observe(Duration::from_millis(40), 3, at(0));
    assert!((load.service_seconds().unwrap_or(0.0) - 0.010).abs() < 1e-9);
}

#[test]
fn time_that_must_be_left_is_that_which_passes_whatever_others_are_thought_to_be_there() {
    // Reports count requests that we have given up already as if they were those of others.
    let (load, picks) = (Arc::new(Load::new(2)), Arc::<PickMemory>::default());
    load.serves(&picks);
    for millis in (0..200).map(|number| number * 50) {
        load.report(&Report { in_flight: Some(2), ..Report::default() }, at(millis));
        let _ours = load.enter();
        load.enter().answered(Duration::from_millis(200), at(millis));
    }
    let mean = load.service_seconds().unwrap_or_default();
    assert!(mean < 0.15, "the mean is without the others: {mean}");
    let reserve = picks.odds.quantile(0.99) * mean;
    assert!((0.19..0.22).contains(&reserve), "{reserve}");
}

#[test]
fn joining_requests_counts_for_what_it_saves() {
    // Batches of up to eight: one takes 10 ms, and each more so many milliseconds.
    let cost = |each: u64| {
        let load = Arc::new(Load::new(0));
        load.report(&Report { slots: Some(8), batch: Some(8), ..Report::default() }, at(0));
        for number in 0..2000_u64 {
            let together = 1 + number % 8;
            let mut guards = (0..together).map(|_| load.enter()).collect::<Vec<_>>().into_iter();
            // The first one begins at once, and the others are the next batch.
            let took = 20 + each * together.saturating_sub(2);
            guards
                .by_ref()
                .take(1)
                .for_each(|it| it.answered(Duration::from_millis(10), at(number)));
            guards.for_each(|it| it.answered(Duration::from_millis(took), at(number)));
        }
        let _there: Vec<_> = (0..4).map(|_| load.enter()).collect();
        load.completion(at(2000), TTL, 0.01)
    };
    let (saves, in_vain) = (cost(1), cost(10));
    assert!(saves < 0.035, "{saves}");
    assert!(in_vain > 0.05, "four go before it: {in_vain}");
}
