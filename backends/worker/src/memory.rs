//! Memory for bodies: how much all of them may hold, and what each one does.
//!
//! Every request with a body holds a share of one account for all, and of its connection's own, so
//! that neither many clients nor one with many streams take the memory of the machine.

use crate::refusal::Refusal;
use forebay_process::memory::Taken;
use forebay_protocol::Reason;
use std::sync::Arc;

/// Bytes of each body that are not accounted for: a stream costs as much without a body, and a call
/// that asks for the worker's health must not fail because others have sent much.
const FREE: usize = 1 << 10;

/// Bytes of bodies that all requests together may hold.
#[derive(Debug)]
pub(crate) struct Memory {
    used: Taken,
    bound: usize,
}

impl Memory {
    pub(crate) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self { used: Taken::default(), bound })
    }

    /// The memory that is held, for the task that gives memory back to the system.
    pub(crate) fn taken(&self) -> &Taken {
        &self.used
    }
}

/// One request's share of [`Memory`]; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    memory: Arc<Memory>,
    of_connection: Option<OfConnection>,
    bytes: usize,
    free: usize,
}

impl Share {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self::of(memory, None)
    }

    /// The share of a request that came on this connection.
    pub(crate) fn of(memory: &Arc<Memory>, of_connection: Option<OfConnection>) -> Self {
        Self { memory: Arc::clone(memory), of_connection, bytes: 0, free: FREE }
    }

    /// Accounts for so many bytes more.
    ///
    /// # Errors
    /// All requests together, or those of the connection, would hold more than they may.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let free = self.free.min(bytes);
        self.free -= free;
        let bytes = bytes - free;
        self.bytes += bytes;
        let of_connection = self.of_connection.as_ref().map(|OfConnection(memory)| memory);
        let mut is_full = false;
        for memory in of_connection.into_iter().chain([&self.memory]) {
            is_full |= memory.used.add(bytes) > memory.bound;
        }
        if is_full {
            let text = format!(
                "request bodies of all clients, or of this connection, hold all the memory that \
                 they may ({} bytes in all)",
                self.memory.bound
            );
            return Err(Refusal::new(Reason::QueueFull, text));
        }
        Ok(())
    }

    /// Gives away the account of so many of its bytes.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let (memory, of_connection) = (Arc::clone(&self.memory), self.of_connection.clone());
        Self { memory, of_connection, bytes, free: 0 }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.remove(self.bytes);
        if let Some(OfConnection(memory)) = &self.of_connection {
            memory.used.remove(self.bytes);
        }
    }
}

/// The memory budget for the bodies of one connection, as an extension of each request.
#[derive(Debug, Clone)]
pub(crate) struct OfConnection(pub(crate) Arc<Memory>);
