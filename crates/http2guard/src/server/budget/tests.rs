use super::*;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const WINDOW: u32 = 256 * 1024;

fn frame(kind: u8, flags: u8, stream: u32, length: u32) -> Frame {
    Frame { kind, flags, stream, length, start: [0; 8] }
}

fn window_update(stream: u32, more: u32) -> Frame {
    let mut start = [0; 8];
    start[..4].copy_from_slice(&more.to_be_bytes());
    Frame { start, ..frame(kind::WINDOW_UPDATE, 0, stream, 4) }
}

/// A connection whose windows are as wide as the proxy's, with a request on stream 1.
fn asked(now: Instant) -> ServerBudget {
    let mut budget = ServerBudget::new(WINDOW, now);
    budget.sent(&frame(kind::SETTINGS, 0, 0, 24));
    budget.sent(&window_update(0, 8 << 20));
    budget.sent(&frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, 20));
    budget
}

/// Number of times that `step` can be repeated, up to `most`.
fn lasts(
    most: u32,
    mut step: impl FnMut(&mut ServerBudget, u32, Instant) -> Result<(), Flood>,
) -> u32 {
    let start = Instant::now();
    let mut budget = asked(start);
    (0..most).find(|&turn| step(&mut budget, turn, start).is_err()).unwrap_or(most)
}

#[test]
fn a_flood_of_any_frame_that_is_no_answer_ends_within_a_burst() {
    for (frame, kind) in [
        (frame(kind::PING, 0, 0, 8), Flood::Ping),
        (frame(kind::PING, ACK, 0, 8), Flood::Ping),
        (frame(kind::SETTINGS, 0, 0, 6), Flood::Settings),
        (frame(kind::SETTINGS, ACK, 0, 0), Flood::Settings),
        (window_update(0, 1), Flood::WindowUpdate),
        (window_update(1, 1), Flood::WindowUpdate),
        (frame(kind::PRIORITY, 0, 1, 5), Flood::Priority),
        (frame(kind::RST_STREAM, 0, 7, 4), Flood::Reset),
        (frame(kind::GOAWAY, 0, 0, 8), Flood::Other),
        (frame(5, 4, 1, 10), Flood::Other),
        (frame(0xee, 0, 0, 16_384), Flood::Other),
        (frame(kind::DATA, 0, 1, 0), Flood::EmptyData),
        (Frame { start: [9; 8], ..frame(kind::DATA, 8, 1, 10) }, Flood::EmptyData),
        (frame(kind::DATA, 0, 7, 10), Flood::Data),
        (frame(kind::DATA, END_STREAM, 7, 0), Flood::Data),
        (frame(kind::HEADERS, END_HEADERS, 1, 4), Flood::Headers),
        (frame(kind::HEADERS, END_HEADERS | END_STREAM, 7, 4), Flood::Headers),
        (frame(kind::CONTINUATION, 0, 1, 0), Flood::Continuation),
        (frame(kind::CONTINUATION, 0, 1, 4000), Flood::Headers),
    ] {
        let start = Instant::now();
        let mut budget = asked(start);
        // One every 100 us, which is 2 % of a core at most.
        let outcomes = (0..10_000_u64)
            .map(|turn| budget.received(&frame, start + Duration::from_micros(100 * turn)));
        let ended: Vec<_> = outcomes.filter(Result::is_err).collect();
        assert_eq!(ended.first(), Some(&Err(kind)), "{frame:?}");
        assert!(ended.len() > 9_000, "{frame:?} lasted for {}", 10_000 - ended.len());
    }
}

#[test]
fn a_flood_ends_also_where_no_request_is_under_way() {
    let lasted = lasts(10_000, |budget, turn, now| {
        if turn == 0 {
            budget.received(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, 20), now)?;
        }
        budget.received(&frame(kind::WINDOW_UPDATE, 0, 0, 4), now)
    });
    assert!(lasted < 600, "{lasted}");
}

#[test]
fn answers_of_any_shape_go_on_for_ever() {
    for (pieces, length) in [(1, 16_384), (16, 16_384), (1000, 1), (1, 0)] {
        let lasted = lasts(2000, |budget, turn, now| {
            let stream = 2 * turn + 1;
            budget.sent(&frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, 20));
            budget.received(&frame(kind::HEADERS, END_HEADERS, stream, 40), now)?;
            for _ in 0..pieces {
                if length > 0 {
                    budget.received(&frame(kind::DATA, 0, stream, length), now)?;
                    budget.sent(&window_update(stream, length));
                    budget.sent(&window_update(0, length));
                }
            }
            // Trailers, and what a server says that does not want the rest of a request.
            budget.received(&frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, 20), now)?;
            budget.received(&frame(kind::RST_STREAM, 0, stream, 4), now)
        });
        assert_eq!(lasted, 2000, "{pieces} pieces of {length} bytes");
    }
}

#[test]
fn an_upload_pays_for_windows_and_pings() {
    for length in [16_384, 1000, 16] {
        let lasted = lasts(20_000, |budget, _, now| {
            budget.sent(&frame(kind::DATA, 0, 1, length));
            budget.received(&window_update(1, length), now)?;
            budget.received(&window_update(0, length), now)?;
            budget.received(&frame(kind::PING, 0, 0, 8), now)
        });
        assert_eq!(lasted, 20_000, "{length}");
    }
}

#[test]
fn an_answer_may_have_sixteen_interim_ones_before_it() {
    let lasted = lasts(1000, |budget, turn, now| {
        let stream = 2 * turn + 3;
        budget.sent(&frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, 20));
        for _ in 0..17 {
            budget.received(&frame(kind::HEADERS, END_HEADERS, stream, 20), now)?;
        }
        budget.received(&frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, 20), now)
    });
    assert_eq!(lasted, 1000);
}

#[test]
fn headers_of_a_stream_are_bounded_together() {
    let now = Instant::now();
    let mut budget = asked(now);
    // Three frames of 16 KiB and one byte of a fourth.
    let first = frame(kind::HEADERS, 0, 1, 16_384);
    let more = frame(kind::CONTINUATION, 0, 1, 16_384);
    assert_eq!(budget.received(&first, now), Ok(()));
    for _ in 0..3 {
        assert_eq!(budget.received(&more, now), Ok(()));
    }
    let last = frame(kind::CONTINUATION, END_HEADERS, 1, 1);
    assert_eq!(budget.received(&last, now), Err(Flood::Headers));
    // The trailers count, too.
    let mut budget = asked(now);
    let whole = frame(kind::HEADERS, END_HEADERS, 1, 40_000);
    assert_eq!(budget.received(&whole, now), Ok(()));
    let trailers = Frame { flags: END_HEADERS | END_STREAM, ..whole };
    assert_eq!(budget.received(&trailers, now), Err(Flood::Headers));
}

#[test]
fn more_than_a_window_ends_the_connection_at_its_first_byte() {
    let now = Instant::now();
    let mut budget = asked(now);
    for _ in 0..16 {
        assert_eq!(budget.received(&frame(kind::DATA, 0, 1, WINDOW / 16), now), Ok(()));
    }
    assert_eq!(budget.received(&frame(kind::DATA, 0, 1, 1), now), Err(Flood::FlowControl));
    // The same with windows that were opened again, to the byte.
    let mut budget = asked(now);
    for _ in 0..100 {
        assert_eq!(budget.received(&frame(kind::DATA, 0, 1, WINDOW), now), Ok(()));
        budget.sent(&window_update(1, WINDOW));
        budget.sent(&window_update(0, WINDOW));
    }
    budget.sent(&frame(kind::HEADERS, END_STREAM | END_HEADERS, 3, 20));
    assert_eq!(budget.received(&frame(kind::DATA, 0, 3, WINDOW + 1), now), Err(Flood::FlowControl));
    // All streams together have one, too.
    let mut budget = ServerBudget::new(WINDOW, now);
    for stream in [1, 3] {
        budget.sent(&frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, 20));
    }
    assert_eq!(budget.received(&frame(kind::DATA, 0, 1, 40_000), now), Ok(()));
    assert_eq!(budget.received(&frame(kind::DATA, 0, 3, 25_535), now), Ok(()));
    assert_eq!(budget.received(&frame(kind::DATA, 0, 3, 1), now), Err(Flood::FlowControl));
}

#[test]
fn what_is_under_way_when_a_stream_is_reset_is_forgiven() {
    // Hundreds of requests given up at once, each with a window's worth of its answer under way.
    let lasted = lasts(500, |budget, turn, now| {
        let stream = 2 * turn + 3;
        budget.sent(&frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, 20));
        budget.sent(&frame(kind::RST_STREAM, 0, stream, 4));
        budget.received(&frame(kind::HEADERS, END_HEADERS, stream, 20), now)?;
        for _ in 0..16 {
            budget.received(&frame(kind::DATA, 0, stream, WINDOW / 16), now)?;
        }
        budget.sent(&window_update(0, WINDOW));
        Ok(())
    });
    assert_eq!(lasted, 500);
}

#[test]
fn a_stream_that_goes_on_after_its_reset_ends_the_connection() {
    let now = Instant::now();
    let mut budget = asked(now);
    budget.sent(&frame(kind::RST_STREAM, 0, 1, 4));
    let mut sent = 0;
    let flood = loop {
        match budget.received(&frame(kind::DATA, 0, 1, 16_000), now) {
            Ok(()) => sent += 16_000,
            Err(flood) => break flood,
        }
        // The library gives the window back for what it ignores.
        budget.sent(&window_update(0, 16_000));
    };
    assert_eq!(flood, Flood::Data);
    assert!(sent < WINDOW + 25 * 16_000, "{sent} bytes");
}

#[test]
fn streams_that_were_reset_do_not_add_up_to_a_licence() {
    let now = Instant::now();
    let mut budget = asked(now);
    for turn in 0..100_000 {
        let stream = 2 * turn + 3;
        budget.sent(&frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, 20));
        budget.sent(&frame(kind::RST_STREAM, 0, stream, 4));
    }
    assert!(budget.late <= (8 << 20) + FIRST_WINDOW);
    assert_eq!(budget.open.len(), 1);
}

#[test]
fn an_idle_connection_keeps_nothing() {
    let now = Instant::now();
    let mut budget = asked(now);
    assert_eq!(budget.received(&frame(kind::RST_STREAM, 0, 1, 4), now), Ok(()));
    assert_eq!(budget.open.capacity(), 0);
}
