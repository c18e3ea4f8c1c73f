//! A limit on how often one kind of event is logged.
//!
//! A client can cause some events as often as it likes: a failed handshake, a malformed request, an aborted
//! connection. If each were a line, a stranger could fill a disk or hide the lines that matter. Events of
//! the libraries below, and our own that are marked with [`CLIENT`], pass a few times in each window; the
//! others are counted, and one line gives their number.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::{Event, Level, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The target of our own events that a client can cause at will.
pub const CLIENT: &str = "forebay::client";

/// Events of one kind that pass in each window.
const BURST: u32 = 10;
/// A window, from the first event of its kind.
const WINDOW: Duration = Duration::from_secs(10);
/// Kinds that are told apart. Their number is that of places in the code, unless a library invents
/// targets; those beyond share one.
const KINDS: usize = 1024;

/// An event's place in the code.
type Kind = (Cow<'static, str>, u32);

#[derive(Debug)]
struct Window {
    since: Instant,
    passed: u32,
    suppressed: u64,
}

static WINDOWS: Mutex<Option<HashMap<Kind, Window>>> = Mutex::new(None);
static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// Events that were counted instead of logged, over all kinds.
pub fn suppressed() -> u64 {
    SUPPRESSED.load(Relaxed)
}

/// Lets through only so many events of a kind.
#[derive(Debug, Default)]
pub struct Limit;

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        // An operator who asks for details gets them.
        if *metadata.level() > Level::INFO || is_own(metadata.target()) {
            return true;
        }
        let kind = (Cow::Owned(metadata.target().to_owned()), metadata.line().unwrap_or(0));
        passes(kind, Instant::now())
    }
}

/// Whether this is an event of our own code that no client can cause at will.
fn is_own(target: &str) -> bool {
    target.starts_with("forebay") && target != CLIENT
}

fn passes(kind: Kind, now: Instant) -> bool {
    let mut windows = windows();
    let windows = windows.get_or_insert_default();
    let kind = if windows.len() < KINDS || windows.contains_key(&kind) {
        kind
    } else {
        (Cow::Borrowed("others"), 0)
    };
    let new = Window { since: now, passed: 0, suppressed: 0 };
    let window = windows.entry(kind).or_insert(new);
    // Only `report` ends a window in which something was suppressed: it says how much.
    if window.suppressed == 0 && now.duration_since(window.since) >= WINDOW {
        (window.since, window.passed) = (now, 0);
    }
    if window.passed < BURST {
        window.passed += 1;
        return true;
    }
    window.suppressed += 1;
    SUPPRESSED.fetch_add(1, Relaxed);
    false
}

/// Says how many events were suppressed in windows that are over. The log's writer calls it.
pub fn report() {
    for ((target, line), suppressed) in over(Instant::now()) {
        tracing::warn!(
            source = format!("{target}:{line}"),
            suppressed,
            "{suppressed} similar messages were suppressed"
        );
    }
}

fn over(now: Instant) -> Vec<(Kind, u64)> {
    let mut windows = windows();
    let windows = windows.get_or_insert_default();
    let is_over = |window: &Window| now.duration_since(window.since) >= WINDOW;
    let ended = windows.extract_if(|_, window| is_over(window));
    ended.map(|(kind, window)| (kind, window.suppressed)).filter(|(_, count)| *count > 0).collect()
}

fn windows() -> MutexGuard<'static, Option<HashMap<Kind, Window>>> {
    WINDOWS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_of_a_window_is_counted() {
        let start = Instant::now();
        let kind = |line| (Cow::Borrowed("a library"), line);
        let passed = (0..100).filter(|_| passes(kind(1), start)).count();
        assert_eq!(passed, 10);
        assert!(passes(kind(2), start), "another kind");
        assert!(!over(start).iter().any(|(found, _)| *found == kind(1)), "its window is not over");
        let ended = over(start + WINDOW);
        assert!(ended.contains(&(kind(1), 90)), "{ended:?}");
        assert!(!ended.iter().any(|(found, _)| *found == kind(2)), "{ended:?}");
        assert!(passes(kind(1), start + WINDOW), "a new window");
    }

    #[test]
    fn only_events_that_a_client_can_cause_are_limited() {
        assert!(is_own("forebay::pool::rotation") && is_own("forebay_worker::load"));
        assert!(!is_own(CLIENT) && !is_own("pingora_core::services") && !is_own("h2::proto"));
    }
}
