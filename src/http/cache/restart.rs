//! When the file of the cache is read and written: beside the first requests, which do not wait for it, now and then, and
//! when the process is told to stop.

use super::answers::Cache;
use super::persist::Persistence;
use forebay_process::supervise::{Importance, Supervisor};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Time for which the end of the process waits for the file.
const MAX_WRITE: Duration = Duration::from_secs(10);

impl Cache {
    /// Has the file read, and written now and then, if there is one.
    pub fn keep_over_restarts(self: &Arc<Self>, tasks: &Supervisor) {
        if self.persistence.is_none() {
            return;
        }
        let cache = Arc::clone(self);
        tasks.spawn("cache: file", Importance::Helpful, move || {
            let cache = Arc::clone(&cache);
            async move {
                let Some(file) = &cache.persistence else { return };
                if !file.is_read() {
                    cache.off_io(Self::read_file).await;
                }
                loop {
                    sleep(file.interval()).await;
                    cache.off_io(Self::write_file).await;
                }
            }
        });
    }

    /// Writes the file, before the process ends.
    pub async fn persist(self: Arc<Self>) {
        if self.persistence.is_none() {
            return;
        }
        if timeout(MAX_WRITE, self.off_io(Self::write_file)).await.is_err() {
            tracing::warn!("the cache could not be written within {MAX_WRITE:?}");
        }
    }

    fn read_file(&self, file: &Persistence) {
        file.read(self.store.capacity(), |found| {
            for ((model, generation), fact) in found.facts {
                self.contents.learn(model, generation, fact);
            }
            for ((question, content), entry) in found.entries {
                self.store.insert_if_new(question, content, entry);
            }
        });
    }

    fn write_file(&self, file: &Persistence) {
        file.write(|| (self.contents.all(), self.store.entries()));
    }

    /// Does this with the file on a thread that may wait for the disk.
    async fn off_io(self: &Arc<Self>, work: fn(&Self, &Persistence)) {
        let cache = Arc::clone(self);
        let work = move || {
            if let Some(file) = &cache.persistence {
                work(&cache, file);
            }
        };
        // It fails only where the process ends.
        let _ = tokio::task::spawn_blocking(work).await;
    }
}
