use super::*;

const END: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, length: u32) -> Frame {
    Frame { kind, flags, stream, length, start: [0; 8] }
}

fn reset_by_server(stream: u32, code: u32) -> Frame {
    let mut start = [0; 8];
    start[..4].copy_from_slice(&code.to_be_bytes());
    Frame { start, ..frame(kind::RST_STREAM, 0, stream, 4) }
}

/// Number of times that `step` can be repeated, up to `most`.
fn lasts(most: u32, mut step: impl FnMut(&mut Budget, u32, Instant) -> Result<(), Flood>) -> u32 {
    let start = Instant::now();
    let mut budget = Budget::new(start);
    (0..most).find(|&turn| step(&mut budget, turn, start).is_err()).unwrap_or(most)
}

fn millis(n: u32) -> Duration {
    Duration::from_millis(u64::from(n))
}

#[test]
fn a_flood_of_any_frame_that_is_not_a_request_ends_within_a_burst() {
    for (frame, kind) in [
        (frame(kind::PING, 0, 0, 8), Flood::Ping),
        (frame(kind::PING, 1, 0, 8), Flood::Ping),
        (frame(kind::SETTINGS, 0, 0, 0), Flood::Settings),
        (frame(kind::SETTINGS, 1, 0, 0), Flood::Settings),
        (frame(kind::WINDOW_UPDATE, 0, 0, 4), Flood::WindowUpdate),
        (frame(kind::WINDOW_UPDATE, 0, 1, 4), Flood::WindowUpdate),
        (frame(kind::PRIORITY, 0, 1, 5), Flood::Priority),
        (frame(kind::DATA, 0, 1, 0), Flood::EmptyData),
        (Frame { start: [9; 8], ..frame(kind::DATA, 8, 1, 10) }, Flood::EmptyData),
        (frame(kind::RST_STREAM, 0, 1, 4), Flood::Reset),
        (frame(kind::CONTINUATION, 0, 1, 0), Flood::Continuation),
        (frame(kind::GOAWAY, 0, 0, 8), Flood::Other),
        (frame(0xbe, 0, 0, 16_384), Flood::Other),
    ] {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        // One every 100 us, which is 2 % of a core at most.
        let outcomes = (0..10_000_u64)
            .map(|turn| budget.received(&frame, start + Duration::from_micros(100 * turn)));
        let ended: Vec<_> = outcomes.filter(Result::is_err).collect();
        assert_eq!(ended.first(), Some(&Err(kind)), "{frame:?}");
        assert!(ended.len() > 9_000, "{frame:?} lasted for {}", 10_000 - ended.len());
    }
}

#[test]
fn a_few_control_frames_a_second_last_for_ever() {
    let ping = frame(kind::PING, 0, 0, 8);
    let lasted =
        lasts(100_000, |budget, turn, start| budget.received(&ping, start + millis(50 * turn)));
    assert_eq!(lasted, 100_000);
}

#[test]
fn a_download_pays_for_its_windows_however_small_the_pieces() {
    // Bytes that the server sends at once, and the numbers of WINDOW_UPDATE frames and PINGs that it
    // tolerates.
    for (length, updates) in [(16_384, 35), (4096, 10), (1024, 5), (100, 3), (16, 3)] {
        let lasted = lasts(50_000, |budget, _, now| {
            budget.sent(&frame(kind::DATA, 0, 1, length), now)?;
            (0..updates)
                .try_for_each(|_| budget.received(&frame(kind::WINDOW_UPDATE, 0, 1, 4), now))
        });
        assert_eq!(lasted, 50_000, "{length} bytes with {updates} updates");
    }
}

#[test]
fn a_window_that_opens_byte_by_byte_does_not_pay_for_itself() {
    let lasted = lasts(50_000, |budget, _, now| {
        budget.sent(&frame(kind::DATA, 0, 1, 1), now)?;
        budget.received(&frame(kind::WINDOW_UPDATE, 0, 1, 4), now)
    });
    assert!(lasted < 1000, "{lasted}");
}

/// A request that is cancelled after `age`, with the next one `pause` later.
fn cancelled(budget: &mut Budget, turn: u32, now: Instant, age: Duration) -> Result<(), Flood> {
    let stream = 2 * turn + 1;
    budget.received(&frame(kind::HEADERS, END, stream, 20), now)?;
    budget.received(&frame(kind::RST_STREAM, 0, stream, 4), now + age)
}

#[test]
fn requests_that_are_cancelled_at_once_end_the_connection_even_where_they_come_slowly() {
    for pause in [0, 1, 5, 20, 40] {
        let lasted = lasts(100_000, |budget, turn, start| {
            cancelled(budget, turn, start + millis(pause * turn), Duration::ZERO)
        });
        assert!(lasted < 600, "{lasted} with a pause of {pause} ms");
    }
}

#[test]
fn a_hundred_requests_that_are_cancelled_at_once_are_forgiven() {
    let lasted = lasts(100, |budget, turn, now| cancelled(budget, turn, now, Duration::ZERO));
    assert_eq!(lasted, 100);
}

#[test]
fn clients_that_give_up_after_a_while_go_on_for_ever() {
    for (at_once, age) in [(100, 1000), (100, 100), (10, 10), (1, 5)] {
        let lasted = lasts(100_000, |budget, turn, start| {
            let now = start + millis(turn / at_once * age);
            cancelled(budget, turn, now, millis(age))
        });
        assert_eq!(lasted, 100_000, "{at_once} at once for {age} ms");
    }
}

#[test]
fn a_hedging_client_pays_for_the_losers_by_the_winners() {
    let lasted = lasts(50_000, |budget, turn, now| {
        let (winner, loser) = (4 * turn + 1, 4 * turn + 3);
        budget.received(&frame(kind::HEADERS, END, winner, 20), now)?;
        budget.received(&frame(kind::HEADERS, END, loser, 20), now)?;
        budget.sent(&frame(kind::HEADERS, 0, winner, 20), now)?;
        budget.sent(&frame(kind::DATA, END, winner, 100), now)?;
        budget.received(&frame(kind::RST_STREAM, 0, loser, 4), now)
    });
    assert_eq!(lasted, 50_000);
}

#[test]
fn a_client_that_makes_the_server_reset_its_streams_is_stopped() {
    for code in [error::PROTOCOL_ERROR, error::FLOW_CONTROL_ERROR, error::REFUSED_STREAM] {
        let lasted = lasts(100_000, |budget, turn, now| {
            let stream = 2 * turn + 1;
            budget.received(&frame(kind::HEADERS, 0, stream, 20), now)?;
            budget.sent(&reset_by_server(stream, code), now)
        });
        assert!((90..1000).contains(&lasted), "{lasted} with code {code}");
    }
    // Cancelled for reasons of the server's own: nothing to be charged for.
    let lasted = lasts(10_000, |budget, turn, now| {
        let stream = 2 * turn + 1;
        budget.received(&frame(kind::HEADERS, 0, stream, 20), now)?;
        budget.sent(&reset_by_server(stream, 8), now)
    });
    assert_eq!(lasted, 10_000);
}

#[test]
fn what_is_remembered_is_bounded() {
    let lasted = lasts(10_000, |budget, turn, now| {
        let taken = budget.received(&frame(kind::HEADERS, 0, 2 * turn + 1, 20), now);
        assert!(budget.open.len() <= MAX_OPEN);
        taken
    });
    assert_eq!(lasted, 10_000);
}
