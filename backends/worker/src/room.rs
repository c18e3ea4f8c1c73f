//! Memory for models: a bound, what each one takes, and who has to go.
//!
//! A repository may hold more than a machine. With a bound (`models_memory`) the models that were
//! used last stay in memory, and the others are loaded when they are asked for.
//!
//! What a model takes can't be asked of the engine: packed weights and one plan for each batch size
//! come on top of the file. So it is measured, as the growth of the process while it loads and warms
//! up. Requests that are served meanwhile blur that, so it is kept between twice the file's length
//! and [`MOST`] times that; `memory` in `model.toml` overrules it. Plans that are compiled later, for
//! shapes that were not seen at load, are not counted.

use crate::attempt::status_bytes;
use crate::loader::Loader;
use crate::repository::{State, Version};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A growth beyond so many times the file and [`SLACK`] was somebody else's.
const MOST: u64 = 16;
/// Bytes that the smallest model may take.
const SLACK: u64 = 64 << 20;
/// How long requests may go on using what was unloaded to make room.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether they have gone.
const STEP: Duration = Duration::from_millis(2);

/// Bytes that a model is taken for before it was ever loaded.
pub(crate) fn estimate(file: usize) -> u64 {
    2 * file as u64
}

/// Bytes that a model took, where the process held `before` when its load began.
pub(crate) fn measured(file: usize, before: u64) -> u64 {
    let least = estimate(file);
    resident().saturating_sub(before).clamp(least, MOST * least + SLACK)
}

/// Bytes of memory that this process holds; 0 if the system does not say.
pub(crate) fn resident() -> u64 {
    status_bytes("VmRSS:")
}

/// What must not be unloaded to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spare<'a> {
    /// Nothing has to go.
    All,
    /// The model that room is made for.
    Model(&'a str),
    /// The version that room is made for.
    Version(&'a str, u64),
}

impl Spare<'_> {
    fn covers(self, name: &str, number: u64) -> bool {
        match self {
            Self::All => true,
            Self::Model(model) => model == name,
            Self::Version(model, version) => (model, version) == (name, number),
        }
    }
}

impl Loader {
    /// Unloads what was not used for longest until `bytes` more fit, but not what is to be spared.
    ///
    /// # Errors
    /// In words, why there is no room.
    pub(crate) fn make_room(&mut self, bytes: u64, spare: Spare<'_>) -> Result<(), String> {
        let Some(bound) = self.app.options.models_memory else { return Ok(()) };
        let used = || self.app.repository.memory();
        if used().saturating_add(bytes) <= bound {
            return Ok(());
        }
        if bytes > bound {
            return Err(format!("it takes {bytes} bytes of memory, all models may take {bound}"));
        }
        if spare == Spare::All {
            let used = used();
            return Err(format!("{used} of {bound} bytes of memory are taken, it takes {bytes}"));
        }
        let until = Instant::now() + PATIENCE;
        while self.app.repository.memory().saturating_add(bytes) > bound {
            // What is retired already frees its memory when its requests have gone.
            let retired: u64 = self.retired.iter().map(|version| version.memory.bytes).sum();
            let stays = self.app.repository.memory().saturating_sub(retired);
            if stays.saturating_add(bytes) > bound && !self.evict_one(spare) {
                return Err(format!("the {bound} bytes of memory for models are in use"));
            }
            self.free();
            if Instant::now() >= until || self.app.is_ended() {
                return Err("requests still use what was unloaded to make room".to_owned());
            }
            if !self.retired.is_empty() {
                std::thread::sleep(STEP);
            }
        }
        Ok(())
    }

    /// Unloads the version that was not used for longest. `false`: there is none.
    fn evict_one(&mut self, spare: Spare<'_>) -> bool {
        let served = self.app.repository.served();
        let entries = served.iter().flat_map(|(name, model)| {
            model.versions.iter().map(move |(number, entry)| (name.as_str(), *number, entry))
        });
        let in_memory = entries.filter_map(|(name, number, entry)| {
            let version: &Arc<Version> = entry.version()?;
            (!spare.covers(name, number)).then_some((version.used(), name, number, entry))
        });
        let Some((_, name, number, entry)) = in_memory.min_by_key(|(used, ..)| *used) else {
            return false;
        };
        let mut evicted = entry.clone();
        evicted.state = State::OnDemand;
        self.put_version(name, number, evicted);
        if let Some(version) = entry.version() {
            self.retire(Arc::clone(version), "evicted");
        }
        true
    }
}
