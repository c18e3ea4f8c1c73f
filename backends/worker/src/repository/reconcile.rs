//! Makes what is served of a model be what its directory says.
//!
//! Several loads may run at once, each of another model, while models are unloaded on request or to
//! make room. So nothing here is decided by what was served when a load began: each step looks at
//! what is served now, under the one lock for changes, and a load that was cancelled changes nothing
//! any more. A load holds no version while it runs, or that version could not be unloaded meanwhile.

use crate::config::model::ModelConfig;
use crate::repository::command::{Cancel, Why};
use crate::repository::error::LoadError;
use crate::repository::load::{Order, Outcome};
use crate::repository::model_files::{Found, Stamp};
use crate::repository::models::Models;
use crate::repository::version::Version;
use crate::repository::{Entry, Model, Served, State};
use crate::scheduler::queue::{LineConfig, LineHandle};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// The contents of a model's directory, and the served versions to keep.
struct Target {
    config: Arc<ModelConfig>,
    line: Arc<LineHandle>,
    numbers: Vec<u64>,
    stamp: Option<Stamp>,
}

impl Models {
    /// Shows a model that is to be loaded.
    pub(crate) fn list(&self, name: &str) {
        if let Ok(found) = self.files.model(name) {
            drop(self.prepare(name, found, None, &Cancel::new()));
        }
    }

    /// Loads what is new in a model's directory, and lets go of what is not in it any more.
    ///
    /// # Errors
    /// In words, what could not be loaded.
    pub(crate) fn reconcile(&self, name: &str, why: Why, cancel: &Cancel) -> Result<(), String> {
        let stamp = self.files.stamp(name).ok();
        let found = match self.files.model(name) {
            Ok(found) => found,
            Err(failure) => return Err(self.refuse(name, &failure, stamp, cancel)),
        };
        let Some(target) = self.prepare(name, found, stamp, cancel) else { return Ok(()) };
        let mut failures = Vec::new();
        for &number in &target.numbers {
            let (config, line) = (&target.config, &target.line);
            let outcome = self.load(&Order { name, number, config, line, why, cancel });
            if let Some(failure) = self.settle((name, number), outcome, why, cancel) {
                failures.push(format!("version {number}: {failure}"));
            }
        }
        self.finish(name, target, failures.is_empty(), cancel);
        self.forget();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Loads a version that requests wait for.
    pub(crate) fn fetch(&self, name: &str, number: u64, cancel: &Cancel) {
        let entry_of = |model: &Arc<Model>| {
            let entry = model.versions.get(&number)?;
            let is_wanted = matches!(entry.state, State::OnDemand);
            let beside = (Arc::clone(&model.config), Arc::clone(&model.line));
            Some((Arc::clone(&entry.demand), is_wanted.then_some(beside)))
        };
        let Some((demand, wanted)) = self.repository.served().get(name).and_then(entry_of) else {
            return;
        };
        if let Some((config, line)) = wanted {
            let (config, line, why) = (&config, &line, Why::Fetched);
            let outcome = self.load(&Order { name, number, config, line, why, cancel });
            let may_pass = matches!(&outcome, Outcome::Failed(LoadError::Passing(_)));
            self.settle((name, number), outcome, why, cancel);
            if may_pass && !cancel.is_cancelled() {
                self.backoff().put_off(name, Instant::now());
            }
        }
        demand.attempted();
        // Those who wait look again.
        self.repository.change(|_| ());
    }

    /// Takes a model out of service on request. `false`: there is none.
    pub(crate) fn unload(&self, name: &str) -> bool {
        let retired = self.repository.change(|served| {
            let model = Arc::make_mut(served.get_mut(name)?);
            (model.is_unloaded, model.failure) = (true, None);
            let mut retired = Vec::new();
            for entry in model.versions.values_mut() {
                let version = entry.version().cloned();
                let weak = version.as_ref().map_or_else(Default::default, Arc::downgrade);
                (entry.state, entry.failure) = (State::Unloaded(weak), None);
                entry.demand.attempted();
                retired.extend(version);
            }
            Some(retired)
        });
        self.backoff().forget(name);
        let is_there = retired.is_some();
        retired.into_iter().flatten().for_each(|version| self.retire(version, "unloaded"));
        is_there
    }

    /// Its directory has gone.
    pub(crate) fn take_away(&self, name: &str) {
        let gone = self.repository.change(|served| served.remove(name));
        self.backoff().forget(name);
        for entry in gone.iter().flat_map(|model| model.versions.values()) {
            entry.demand.attempted();
            if let Some(version) = entry.version() {
                self.retire(Arc::clone(version), "gone");
            }
        }
    }

    /// Changes what is served, unless the load that wants it was cancelled.
    fn change<T>(&self, cancel: &Cancel, change: impl FnOnce(&mut Served) -> T) -> Option<T> {
        self.repository.change(|served| (!cancel.is_cancelled()).then(|| change(served)))
    }

    /// The directory can't be served as it stands; what was served of it before still is.
    fn refuse(
        &self,
        name: &str,
        failure: &LoadError,
        stamp: Option<Stamp>,
        cancel: &Cancel,
    ) -> String {
        let text = failure.to_string();
        tracing::error!(model = name, failure = text, "model can't be served");
        let may_pass = matches!(failure, LoadError::Passing(_));
        self.change(cancel, |served| {
            let old = served.get(name).map(|old| Model::clone(old));
            let mut model = old.unwrap_or_else(|| self.new_model(ModelConfig::default()));
            (model.failure, model.stamp) = (Some(text.clone()), stamp);
            model.may_pass = may_pass;
            served.insert(name.to_owned(), Arc::new(model));
        });
        self.try_again(name, may_pass, cancel);
        text
    }

    /// Decides which served versions stay. A model without a version that can answer is shown at once, with
    /// an entry for each wanted version. `None`: the model is no longer wanted.
    fn prepare(
        &self,
        name: &str,
        found: Found,
        stamp: Option<Stamp>,
        cancel: &Cancel,
    ) -> Option<Target> {
        self.change(cancel, |served| {
            let old = served.get(name);
            let mut model = match old {
                // The same configuration: what it made goes on.
                Some(old) if *old.config == found.config => Model::clone(old),
                _ => self.new_model(found.config),
            };
            let (config, line) = (Arc::clone(&model.config), Arc::clone(&model.line));
            let numbers = found.numbers;
            let serves = old.is_some_and(|old| old.versions.values().any(|e| e.state.can_answer()));
            if !serves {
                (model.stamp, model.is_unloaded, model.failure) = (stamp.clone(), false, None);
                let entry = |&number: &u64| (number, Entry::new(State::Loading));
                model.versions = numbers.iter().map(entry).collect();
                served.insert(name.to_owned(), Arc::new(model));
            }
            Target { config, line, numbers, stamp }
        })
    }

    /// Shows what became of one version. Gives the reason if it was not loaded.
    fn settle(
        &self,
        (name, number): (&str, u64),
        outcome: Outcome,
        why: Why,
        cancel: &Cancel,
    ) -> Option<String> {
        let counted = match &outcome {
            Outcome::Same => None,
            Outcome::Loaded(_) => Some("ok"),
            Outcome::Failed(LoadError::Full(_)) => Some("full"),
            Outcome::Failed(_) => Some("failed"),
        };
        let (replaced, failure) = self.change(cancel, |served| {
            let Some(model) = served.get_mut(name) else { return (None, None) };
            let versions = &mut Arc::make_mut(model).versions;
            let entry = versions.entry(number).or_insert_with(|| Entry::new(State::Loading));
            let replaced = entry.settle(outcome, why, (name, number));
            (replaced, entry.failure.clone())
        })?;
        if let Some(counted) = counted {
            self.metrics.loads(name, counted).increment(1);
        }
        replaced.into_iter().for_each(|version| self.retire(version, "replaced"));
        failure
    }

    /// The model as it is to be served from now on.
    fn finish(&self, name: &str, target: Target, all_loaded: bool, cancel: &Cancel) {
        let done = self.change(cancel, |served| {
            let old = served.get(name).map(|model| model.versions.clone()).unwrap_or_default();
            let mut versions: BTreeMap<u64, Entry> = BTreeMap::new();
            let mut retired = Vec::new();
            for (number, entry) in old {
                // Better the versions of before than none: nothing that answers is taken away.
                let is_kept = !all_loaded && entry.state.can_answer();
                if target.numbers.contains(&number) || is_kept {
                    versions.insert(number, entry);
                } else {
                    retired.extend(entry.version().cloned());
                }
            }
            let may_pass = versions.values().any(|entry| entry.may_pass);
            let Target { config, line, stamp, .. } = target;
            let (failure, is_unloaded) = (None, false);
            let model =
                Model { config, line, versions, failure, may_pass: false, is_unloaded, stamp };
            served.insert(name.to_owned(), Arc::new(model));
            (retired, may_pass)
        });
        let Some((retired, may_pass)) = done else { return };
        retired.into_iter().for_each(|version| self.retire(version, "replaced"));
        self.try_again(name, may_pass, cancel);
    }

    fn try_again(&self, name: &str, may_pass: bool, cancel: &Cancel) {
        let mut backoff = self.backoff();
        if may_pass && !cancel.is_cancelled() {
            backoff.put_off(name, Instant::now());
        } else {
            backoff.forget(name);
        }
    }

    fn new_model(&self, config: ModelConfig) -> Model {
        let line = LineConfig {
            bound: config.queue.unwrap_or(self.options.queue),
            weight: config.weight,
            max_delay: config.max_delay,
        };
        Model {
            config: Arc::new(config),
            line: Arc::new(self.queue.open(line)),
            versions: BTreeMap::new(),
            failure: None,
            may_pass: false,
            is_unloaded: false,
            stamp: None,
        }
    }
}

impl Entry {
    /// Takes in what became of a load; gives the version that is not served any more.
    fn settle(
        &mut self,
        outcome: Outcome,
        why: Why,
        (model, version): (&str, u64),
    ) -> Option<Arc<Version>> {
        self.may_pass = false;
        let failure = match outcome {
            Outcome::Same => {
                self.failure = None;
                return None;
            }
            Outcome::Loaded(loaded) => {
                let replaced = self.version().cloned();
                self.known = Some(Arc::new(loaded.known()));
                (self.state, self.failure) = (State::Ready(Arc::new(*loaded)), None);
                return replaced;
            }
            Outcome::Failed(failure) => failure,
        };
        let (is_full, keeps) = (matches!(failure, LoadError::Full(_)), self.version().is_some());
        self.may_pass = matches!(failure, LoadError::Passing(_));
        let text = failure.to_string();
        if why != Why::Present || !is_full {
            tracing::error!(model, version, failure = text, keeps, "model can't be served");
            self.failure = Some(text);
        } else {
            tracing::info!(model, version, why = text, "on demand");
            self.failure = None;
        }
        if !keeps {
            self.state = if is_full { State::OnDemand } else { State::Failed };
        }
        None
    }
}
