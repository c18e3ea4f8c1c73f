//! Memory for models: a bound, the memory of each, and which are unloaded.
//!
//! A repository may hold more than a machine. With a bound (`models_memory`) the models that were
//! used last stay in memory, and the others are loaded when they are asked for.
//!
//! Several models may be loading at once, so the room for one is taken before its load begins.
//!
//! A model's memory is the memory that its engine holds for it: each weight once, a plan for each set of
//! shapes that was asked for, and the values of its runs. It is counted again whenever a plan was compiled.
//! If models then take too much, the model that has grown drops plans first, and the model that was unused
//! longest goes next. `memory` in `model.toml` overrules the count.

use crate::repository::State;
use crate::repository::models::Models;
use crate::repository::version::{MemoryShare, Version};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time that requests may go on using a version that was unloaded to make room.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Interval at which the loader checks whether they have gone.
const STEP: Duration = Duration::from_millis(2);

/// Bytes that a model is taken for before it was ever loaded.
pub(crate) fn estimate(file: u64) -> u64 {
    file.saturating_mul(2)
}

/// Models that must not be unloaded to make room.
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

impl Models {
    /// Takes `bytes` of the memory for models. Unloads what was not used for longest until they fit,
    /// but not what is to be spared.
    ///
    /// # Errors
    /// In words, why there is no room.
    pub(crate) fn make_room(&self, bytes: u64, spare: Spare<'_>) -> Result<MemoryShare, String> {
        let repository = &self.repository;
        let Some(bound) = self.options.models_memory else { return Ok(repository.hold(bytes)) };
        if let Some(share) = repository.try_hold(bytes, bound) {
            return Ok(share);
        }
        if bytes > bound {
            return Err(format!("it takes {bytes} bytes of memory, but models_memory is {bound}"));
        }
        if spare == Spare::All {
            let used = repository.memory();
            return Err(format!(
                "it takes {bytes} bytes of memory, but {used} of {bound} are in use"
            ));
        }
        let until = Instant::now() + MAX_WAIT;
        loop {
            // Retired versions free their memory when their requests have gone.
            let stays = repository.memory().saturating_sub(self.retired_bytes());
            if stays.saturating_add(bytes) > bound && !self.evict_one(spare) {
                // A model that is being loaded can go when it has been.
                let may_go = bytes > 0 && stays > self.ready_bytes();
                if !may_go || Instant::now() >= until || self.is_ended() {
                    return Err(format!("the {bound} bytes of memory for models are in use"));
                }
                std::thread::sleep(STEP);
                continue;
            }
            self.free();
            if let Some(share) = repository.try_hold(bytes, bound) {
                return Ok(share);
            }
            if Instant::now() >= until || self.is_ended() {
                return Err("requests still use models that were unloaded to make room".to_owned());
            }
            if self.has_retired() {
                std::thread::sleep(STEP);
            }
        }
    }

    /// Unloads what was not used for longest where models take too much together, but not what is to be
    /// spared. Their memory is free when their requests have gone.
    pub(crate) fn evict_excess(&self, spare: Spare<'_>) {
        let Some(bound) = self.options.models_memory else { return };
        let stays = || self.repository.memory().saturating_sub(self.retired_bytes());
        while stays() > bound && self.evict_one(spare) {}
    }

    /// Bytes that the versions take which can be asked now.
    fn ready_bytes(&self) -> u64 {
        let served = self.repository.served();
        let entries = served.values().flat_map(|model| model.versions.values());
        entries.filter_map(|entry| Some(entry.version()?.memory.bytes())).sum()
    }

    /// Unloads the version that was not used for longest. `false`: there is none.
    fn evict_one(&self, spare: Spare<'_>) -> bool {
        let evicted: Option<Arc<Version>> = self.repository.change(|served| {
            let entries = served.iter().flat_map(|(name, model)| {
                model.versions.iter().map(move |(number, entry)| (name, *number, entry))
            });
            let in_memory = entries.filter_map(|(name, number, entry)| {
                let version = entry.version()?;
                (!spare.covers(name, number)).then_some((version.used(), name.clone(), number))
            });
            let (_, name, number) = in_memory.min()?;
            let entry = Arc::make_mut(served.get_mut(&name)?).versions.get_mut(&number)?;
            match std::mem::replace(&mut entry.state, State::OnDemand) {
                State::Ready(version) => Some(version),
                _ => None,
            }
        });
        let is_there = evicted.is_some();
        evicted.into_iter().for_each(|version| self.retire(version, "evicted"));
        is_there
    }
}
