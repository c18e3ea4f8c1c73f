//! Serving, then draining, then closing, so that no request is lost when a worker ends.
//!
//! A listener that closes at the first signal refuses clients that have not heard of it yet. First the
//! worker reports not ready and goes on serving, until every proxy has had time to ask; then it closes the
//! listener and finishes the requests that it has.

use std::io::Read;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The phase of the worker; phases only move forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes requests.
    Serving,
    /// Not ready any more, but serves who comes.
    Draining,
    /// The listener is closed; what is in flight is finished.
    Closing,
    /// Unfinished requests are dropped.
    Ended,
}

/// The phase, shared.
#[derive(Debug, Clone)]
pub struct Lifecycle(watch::Sender<Phase>);

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Moves forward to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|present| {
            let forward = *present < phase;
            *present = phase.max(*present);
            forward
        });
    }

    /// Waits until `phase` is reached.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives as long as `self`.
        drop(self.0.subscribe().wait_for(|present| *present >= phase).await);
    }

    /// Takes the later phases on time once draining has begun.
    pub(crate) async fn conduct(self, delay: Duration, timeout: Duration) {
        self.reached(Phase::Draining).await;
        tracing::info!(delay_ms = delay.as_millis(), "draining: no longer ready");
        tokio::time::timeout(delay, self.reached(Phase::Closing)).await.unwrap_or_default();
        self.advance(Phase::Closing);
        tokio::time::timeout(timeout, self.reached(Phase::Ended)).await.unwrap_or_default();
        self.advance(Phase::Ended);
    }
}

/// Calls `rescan` at each SIGHUP. Drains at SIGTERM, SIGINT or (if asked) the end of standard input; ends at the second signal.
///
/// # Errors
/// The handlers can't be installed.
pub(crate) fn watch_signals(
    lifecycle: &Lifecycle,
    stdin: bool,
    rescan: impl Fn() + Send + 'static,
) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            rescan();
        }
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let on_signal = lifecycle.clone();
    tokio::spawn(async move {
        for phase in [Phase::Draining, Phase::Ended] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            on_signal.advance(phase);
        }
    });
    if stdin {
        let on_end = lifecycle.clone();
        // Not the runtime's: a blocking read could not be waited for when the runtime ends.
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            let mut buffer = [0; 64];
            while std::io::stdin().read(&mut buffer).is_ok_and(|read| read > 0) {}
            on_end.advance(Phase::Draining);
        })?;
    }
    Ok(())
}
