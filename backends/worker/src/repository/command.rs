//! Commands to the loader, and orders to its loads.

use crate::refusal::Refusal;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// A command to the loader.
#[derive(Debug)]
pub(crate) enum Command {
    /// Look for what has changed on disk.
    Scan,
    /// Load a model, or what is new in it.
    Load { model: String, reply: Reply },
    /// Take a model away.
    Unload { model: String, reply: Reply },
    /// Load a version that requests wait for.
    Fetch { model: String, number: u64 },
    /// Models take too much together since this version has grown: others may have to go.
    Grown { model: String, number: String },
    /// A load of this model has ended.
    Ended { id: TaskId, model: String },
    /// The worker has ended.
    End,
}

/// The channel for the outcome of a load.
pub(crate) type Reply = oneshot::Sender<Result<(), Refusal>>;

/// Identity of a load that runs.
pub(crate) type TaskId = u64;

/// Why a version is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// It is there, and there may be room.
    Present,
    /// Someone asked for the model: other models may have to go.
    Asked,
    /// Requests wait for this version: any other may have to go.
    Fetched,
}

/// Tells a load that its outcome is not wanted any more.
#[derive(Debug, Clone)]
pub(crate) struct Cancel(Arc<watch::Sender<bool>>);

impl Cancel {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn cancel(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the load is cancelled.
    pub(crate) async fn cancelled(&self) {
        // The sender lives as long as `self`.
        drop(self.0.subscribe().wait_for(|cancelled| *cancelled).await);
    }
}
