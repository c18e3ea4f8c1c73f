//! Rollouts: each route with a plan has its canary judged, and its weights moved.
//!
//! The requests themselves are the evidence: each that has ended is told to the rollout of its route
//! ([`evidence`]). A task looks at all rollouts every second ([`forebay_rollout::controller`] decides), changes
//! weights by the control task like any operator, and keeps the state in a file ([`state`]), so that no restart
//! forgets what was seen.

mod evidence;
mod state;

use crate::config::{Route, RouteRollout};
use crate::pool::Snapshot;
use crate::pool::control::ControlHandle;
use crate::pool::message::SetWeights;
use crate::split::Split;
use evidence::{Listener, Seen};
use forebay_protocol::metric::proxy as metric;
use forebay_rollout::controller::{Decision, Outcome, Phase, Plan, Rollout};
use forebay_rollout::evidence::{Assignment, Finding, Margins, Terms};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which the evidence is written to the file, if nothing else calls for it.
const LOOKS_PER_WRITE: u32 = 10;

/// An operator's word on a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A new one begins at the first step.
    Start,
    /// The weights stay; evidence of harm still ends it.
    Pause,
    /// It goes on.
    Resume,
    /// The canary gets all requests.
    Promote,
    /// Stable gets all requests.
    Abort,
}

impl Command {
    /// The word in paths and commands.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("start", Self::Start),
        ("pause", Self::Pause),
        ("resume", Self::Resume),
        ("promote", Self::Promote),
        ("abort", Self::Abort),
    ];

    /// The command with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, command)| *command)
    }
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no such rollout.
    #[error("route {0:?} has no rollout")]
    Unknown(String),
    /// It does not fit the state.
    #[error("{0}")]
    Unfit(String),
}

/// The rollout of one route.
struct Trial {
    /// The pool, model and version of both variants: others make another rollout.
    identity: String,
    plan: RouteRollout,
    /// The terms of the comparison: others make other evidence.
    terms: Terms,
    state: State,
    /// The last decision, in words.
    last: String,
    /// The split that is listened to.
    split: Option<Arc<Split>>,
}

enum State {
    Active(Box<Rollout>),
    /// The file can't be read or written, so none was begun.
    Faulty(String),
}

impl Trial {
    /// Whether it moves weights.
    fn is_under_way(&self) -> bool {
        match &self.state {
            State::Active(rollout) => rollout.outcome().is_none(),
            State::Faulty(_) => false,
        }
    }

    /// Goes on by another plan, and with other terms without the evidence so far.
    fn follow(&mut self, plan: &RouteRollout, terms: Terms) {
        if self.plan == *plan && self.terms == terms {
            return;
        }
        self.plan = plan.clone();
        self.terms = terms;
        if let State::Active(rollout) = &mut self.state {
            let next = rollout.clone().with_plan(controller_plan(plan)).with_terms(terms);
            **rollout = next;
        }
    }

    fn weight(&self) -> Option<u16> {
        match &self.state {
            State::Active(rollout) => Some(rollout.weight()),
            State::Faulty(_) => None,
        }
    }
}

/// All rollouts of a process.
pub struct Rollouts {
    began: Instant,
    /// Held from a decision on weights until they are set and written: a look and a command at once would undo
    /// one another.
    turn: tokio::sync::Mutex<()>,
    trials: Mutex<BTreeMap<String, Arc<Mutex<Trial>>>>,
}

impl Default for Rollouts {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            turn: tokio::sync::Mutex::default(),
            trials: Mutex::default(),
        }
    }
}

impl Rollouts {
    /// Seconds since the process began.
    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Looks at all rollouts every second, until it is aborted.
    pub async fn run(self: Arc<Self>, control: ControlHandle) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0_u32;
        loop {
            looks.tick().await;
            number = number.wrapping_add(1);
            self.look(&control, number.is_multiple_of(LOOKS_PER_WRITE)).await;
        }
    }

    /// One look: takes over what the configuration says now, and acts on the evidence.
    async fn look(self: &Arc<Self>, control: &ControlHandle, writes: bool) {
        let _turn = self.turn.lock().await;
        let snapshot = control.snapshot().load_full();
        self.forget(&snapshot);
        for route in &snapshot.config.routes {
            let Some(plan) = &route.rollout else { continue };
            let Some(split) = snapshot.splits.of(route) else { continue };
            let (trial, is_new) = self.take_over(&snapshot, route, plan).await;
            let is_other = self.attach(&trial, split);
            let change = decide(&trial, self.now());
            // The weights that the file gives a route whose rollout has ended are the operator's.
            let is_reset = is_other && lock(&trial).is_under_way();
            if change.is_some() || is_new || is_reset {
                set_weights(control, &trial, route).await;
            }
            if change.is_some() || is_new || writes {
                write(&trial, &route.name).await;
            }
            set_gauges(&route.name, &lock(&trial));
        }
    }

    /// Lets rollouts go whose routes have none any more.
    fn forget(&self, snapshot: &Snapshot) {
        let named = |name: &str| {
            snapshot.config.routes.iter().any(|route| route.name == name && route.rollout.is_some())
        };
        lock(&self.trials).retain(|name, trial| {
            let stays = named(name);
            if !stays && let Some(split) = &lock(trial).split {
                split.listen(None);
            }
            stays
        });
    }

    /// The rollout of a route as the configuration has it, and whether this process has just taken it over.
    async fn take_over(
        &self,
        snapshot: &Snapshot,
        route: &Arc<Route>,
        plan: &RouteRollout,
    ) -> (Arc<Mutex<Trial>>, bool) {
        let (identity, terms) = (identity(snapshot, route, plan), terms(plan, route));
        let known = lock(&self.trials).get(&route.name).map(Arc::clone);
        if let Some(trial) = known {
            let mut locked = lock(&trial);
            // Where none could begin, another plan may name a file that it can.
            let may_begin = matches!(locked.state, State::Faulty(_)) && locked.plan != *plan;
            if locked.identity == identity && !may_begin {
                locked.follow(plan, terms);
                drop(locked);
                return (trial, false);
            }
        }
        let state = begin(&route.name, plan, &identity, terms, self.now()).await;
        let (plan, last) = (plan.clone(), String::new());
        let trial = Trial { identity, plan, terms, state, last, split: None };
        let trial = Arc::new(Mutex::new(trial));
        lock(&self.trials).insert(route.name.clone(), Arc::clone(&trial));
        (trial, true)
    }

    /// Listens to the route's requests; whether the split is another one than before.
    fn attach(self: &Arc<Self>, trial: &Arc<Mutex<Trial>>, split: &Arc<Split>) -> bool {
        let mut locked = lock(trial);
        if locked.split.as_ref().is_some_and(|known| Arc::ptr_eq(known, split)) {
            return false;
        }
        let (stable, canary) = (locked.plan.stable.clone(), locked.plan.canary.clone());
        let rollouts = Arc::clone(self);
        let trial = Arc::clone(trial);
        split.listen(Some(Box::new(Listener::new(stable, canary, move |seen| {
            if let State::Active(rollout) = &mut lock(&trial).state {
                match seen {
                    Seen::Request(seen) => rollout.add(rollouts.now(), &seen),
                    Seen::Pair(difference) => rollout.add_pair(difference),
                    Seen::Noise(difference) => rollout.add_noise(difference),
                }
            }
        }))));
        locked.split = Some(Arc::clone(split));
        true
    }

    /// Carries out an operator's command.
    ///
    /// # Errors
    /// There is no such rollout, or it is not in a state for this.
    pub async fn command(
        self: &Arc<Self>,
        control: &ControlHandle,
        name: &str,
        command: Command,
    ) -> Result<Value, CommandError> {
        let _turn = self.turn.lock().await;
        let unknown = || CommandError::Unknown(name.to_owned());
        let trial = lock(&self.trials).get(name).map(Arc::clone).ok_or_else(unknown)?;
        let snapshot = control.snapshot().load_full();
        let route = snapshot.config.routes.iter().find(|route| route.name == name);
        let route = route.ok_or_else(unknown)?;
        let (plan, identity, terms) = {
            let locked = lock(&trial);
            (locked.plan.clone(), locked.identity.clone(), locked.terms)
        };
        if command == Command::Start {
            let state = begun(name, &plan, &identity, terms, self.now()).await;
            if let State::Faulty(error) = state {
                return Err(CommandError::Unfit(error));
            }
            lock(&trial).state = state;
        } else {
            obey(&mut lock(&trial).state, command)?;
        }
        lock(&trial).last = String::new();
        tracing::info!(route = name, ?command, by = "operator", "rollout changed");
        set_weights(control, &trial, route).await;
        write(&trial, name).await;
        let shown = shown(name, &lock(&trial));
        Ok(shown)
    }

    /// Whether a rollout moves the weights of this route, so that they may not be changed otherwise.
    pub fn moves(&self, name: &str) -> bool {
        let trial = lock(&self.trials).get(name).map(Arc::clone);
        trial.is_some_and(|trial| lock(&trial).is_under_way())
    }

    /// All rollouts, for programs.
    pub fn shown(&self) -> Value {
        let trials = lock(&self.trials).clone();
        trials.iter().map(|(name, trial)| shown(name, &lock(trial))).collect()
    }

    /// One of them.
    pub fn shown_one(&self, name: &str) -> Option<Value> {
        let trial = lock(&self.trials).get(name).map(Arc::clone)?;
        let shown = shown(name, &lock(&trial));
        Some(shown)
    }
}

impl std::fmt::Debug for Rollouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rollouts").finish_non_exhaustive()
    }
}

/// State that a panic leaves is as good as any: it is numbers, each by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The words that say whether a rollout is still the same.
fn identity(snapshot: &Snapshot, route: &Route, plan: &RouteRollout) -> String {
    let one = |name: &str| {
        let variant = route.variants.iter().find(|variant| variant.name == name);
        let pool = variant.and_then(|it| snapshot.config.pools.get(it.pool));
        let pool = pool.map_or("", |pool| pool.name.as_str());
        let part = |text: Option<&String>| text.cloned().unwrap_or_default();
        let model = part(variant.and_then(|it| it.model.as_ref()));
        let version = part(variant.and_then(|it| it.version.as_ref()));
        format!("{name:?} {pool:?} {model:?} {version:?}")
    };
    format!("{} / {}", one(&plan.stable), one(&plan.canary))
}

/// The rollout in the file, or a new one.
async fn begin(name: &str, plan: &RouteRollout, identity: &str, terms: Terms, now: f64) -> State {
    let found = match plan.state.clone() {
        Some(path) => read(path).await,
        None => Ok(None),
    };
    let error = match found {
        Ok(Some(kept)) if kept.route() != name => {
            let other = kept.route();
            format!("the state file is that of the rollout of route {other:?}; name another file")
        }
        Ok(Some(kept)) if kept.is_about(identity) => {
            tracing::info!(route = name, "rollout goes on where its state file left it");
            let rollout = kept.rollout.with_plan(controller_plan(plan)).with_terms(terms);
            return State::Active(Box::new(rollout));
        }
        Ok(_) => return begun(name, plan, identity, terms, now).await,
        Err(error) => error,
    };
    tracing::error!(route = name, error, "no rollout is begun");
    State::Faulty(error)
}

/// A new rollout, whose state could be written.
async fn begun(name: &str, plan: &RouteRollout, identity: &str, terms: Terms, now: f64) -> State {
    let mut rollout = Rollout::new(controller_plan(plan), terms);
    rollout.look(now);
    if let Some(path) = plan.state.clone()
        && let Err(error) = written(path, state::text(name, identity, &rollout)).await
    {
        tracing::error!(route = name, error, "no rollout is begun");
        return State::Faulty(error);
    }
    let (stable, canary) = (&plan.stable, &plan.canary);
    tracing::info!(route = name, stable, canary, weight = rollout.weight(), "rollout begins");
    State::Active(Box::new(rollout))
}

async fn read(path: PathBuf) -> Result<Option<state::Kept>, String> {
    let read = tokio::task::spawn_blocking(move || state::read(&path)).await;
    read.unwrap_or_else(|_| Err("reading the state file failed".to_owned()))
}

async fn written(path: PathBuf, text: Vec<u8>) -> Result<(), String> {
    let written = tokio::task::spawn_blocking(move || state::write(&path, &text)).await;
    written.unwrap_or_else(|_| Err("writing the state file failed".to_owned()))
}

fn terms(plan: &RouteRollout, route: &Route) -> Terms {
    let assignment =
        if route.sticky.is_some() { Assignment::Sticky } else { Assignment::PerRequest };
    let margins = Margins {
        errors: plan.margin_errors,
        slow: plan.margin_slow,
        outputs: plan.margin_outputs,
        ..Margins::default()
    };
    let compares_outputs = route.shadow.as_ref().is_some_and(|it| it.variant == plan.canary);
    let steps = u16::try_from(plan.steps.len()).unwrap_or(u16::MAX);
    Terms { alpha: plan.false_verdicts, assignment, margins, compares_outputs, steps }
}

fn controller_plan(plan: &RouteRollout) -> Plan {
    Plan {
        steps: plan.thousandths(),
        step_min: plan.step_min.as_secs_f64(),
        max_duration: plan.max_duration.as_secs_f64(),
        watch: plan.watch.as_secs_f64(),
        on_inconclusive: plan.on_inconclusive,
    }
}

/// Changes the state as the operator says.
fn obey(state: &mut State, command: Command) -> Result<(), CommandError> {
    let unfit = |text: &str| Err(CommandError::Unfit(text.to_owned()));
    let rollout = match state {
        State::Active(rollout) => rollout,
        State::Faulty(error) => return unfit(error),
    };
    if let Some(outcome) = rollout.outcome() {
        return unfit(&format!("the rollout has ended: {}", outcome.as_str()));
    }
    match command {
        Command::Start => {}
        Command::Pause => rollout.pause(true),
        Command::Resume => rollout.pause(false),
        Command::Promote => rollout.end(true),
        Command::Abort => rollout.end(false),
    }
    Ok(())
}

/// Has the controller decide, and logs what follows; the decision, if it changes weights or the state.
fn decide(trial: &Arc<Mutex<Trial>>, now: f64) -> Option<Decision> {
    let mut locked = lock(trial);
    let Trial { state: State::Active(rollout), .. } = &mut *locked else { return None };
    let decision = rollout.look(now);
    let words = words(&decision);
    let figures = figures(rollout);
    let split = locked.split.as_ref().map_or("", |split| split.route()).to_owned();
    let is_news = words != locked.last;
    locked.last.clone_from(&words);
    drop(locked);
    match decision {
        Decision::Ended => return None,
        Decision::Hold(_) => {
            if is_news {
                tracing::info!(route = split, decision = words, figures, "rollout holds");
            }
            return None;
        }
        Decision::RollBack(_) | Decision::Inconclusive => {
            tracing::warn!(route = split, decision = words, figures, "rollout ends");
        }
        Decision::Advance(_) | Decision::Promote | Decision::Complete => {
            tracing::info!(route = split, decision = words, figures, "rollout advances");
        }
    }
    if let Some(outcome) = outcome_of(&decision) {
        metric::ROLLOUT_OUTCOMES.with([&split, outcome.as_str()]).increment(1);
    }
    Some(decision)
}

fn outcome_of(decision: &Decision) -> Option<Outcome> {
    match decision {
        Decision::RollBack(_) => Some(Outcome::RolledBack),
        Decision::Inconclusive => Some(Outcome::Inconclusive),
        Decision::Complete => Some(Outcome::Promoted),
        _ => None,
    }
}

fn words(decision: &Decision) -> String {
    match decision {
        Decision::Hold(wait) => wait.as_str().to_owned(),
        Decision::Advance(weight) => format!("canary gets {:.1} %", f64::from(*weight) / 10.0),
        Decision::Promote => "canary gets all requests".to_owned(),
        Decision::RollBack(cause) => format!("stable gets all requests: {}", cause.as_str()),
        Decision::Inconclusive => "the time is over without a verdict".to_owned(),
        Decision::Complete => "the promoted variant has been watched long enough".to_owned(),
        Decision::Ended => String::new(),
    }
}

/// The figures behind a decision, for a line of the log.
fn figures(rollout: &Rollout) -> String {
    let one = |finding: &Finding| {
        let (name, (bad, requests), (stable_bad, stable)) =
            (finding.metric.as_str(), finding.canary, finding.stable);
        format!("{name}: {bad} of {requests} at the canary, {stable_bad} of {stable} at stable")
    };
    rollout.evidence().findings().iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Has the control task set the weights that the rollout wants.
async fn set_weights(control: &ControlHandle, trial: &Arc<Mutex<Trial>>, route: &Route) {
    let wanted = {
        let locked = lock(trial);
        let Some(weight) = locked.weight() else { return };
        let weight = u32::from(weight);
        let (stable, canary) = (locked.plan.stable.clone(), locked.plan.canary.clone());
        let weights = vec![(stable, 1000 - weight.min(1000)), (canary, weight)];
        SetWeights { route: route.name.clone(), weights, by: "rollout".to_owned() }
    };
    if let Err(error) = control.set_weights(wanted).await {
        tracing::error!(route = route.name, %error, "a rollout can't set its weights");
    }
}

/// Writes the state to its file, if there is one.
async fn write(trial: &Arc<Mutex<Trial>>, name: &str) {
    let text = {
        let locked = lock(trial);
        let State::Active(rollout) = &locked.state else { return };
        let Some(path) = locked.plan.state.clone() else { return };
        (path, state::text(name, &locked.identity, rollout))
    };
    let (path, text) = text;
    if let Err(error) = written(path, text).await {
        tracing::error!(route = name, error, "the state of a rollout can't be written");
    }
}

/// A rollout, for programs.
fn shown(name: &str, trial: &Trial) -> Value {
    let plan = &trial.plan;
    let rollout = match &trial.state {
        State::Active(rollout) => rollout,
        State::Faulty(error) => {
            return json!({ "route": name, "state": "faulty", "error": error });
        }
    };
    let finding = |found: &Finding| {
        json!({
            "metric": found.metric.as_str(),
            "stable": { "bad": found.stable.0, "requests": found.stable.1 },
            "canary": { "bad": found.canary.0, "requests": found.canary.1 },
            "increase_at_most": found.upper,
            "increase_at_least": found.lower,
            "is_worse": found.is_harm,
            "is_within_margin": found.is_fine,
        })
    };
    json!({
        "route": name,
        "stable": plan.stable,
        "canary": plan.canary,
        "state": state_word(rollout),
        "step": match rollout.phase() { Phase::Step(step) => Some(step + 1), _ => None },
        "steps": plan.steps,
        "weight": rollout.weight(),
        "seconds": rollout.elapsed().round(),
        "last": trial.last,
        "evidence": rollout.evidence().findings().iter().map(finding).collect::<Vec<_>>(),
    })
}

fn state_word(rollout: &Rollout) -> &'static str {
    match rollout.phase() {
        Phase::Step(_) if rollout.is_paused() => "paused",
        Phase::Step(_) => "advancing",
        Phase::Watching => "watching",
        Phase::Ended(outcome) => outcome.as_str(),
    }
}

fn set_gauges(name: &str, trial: &Trial) {
    let active = match &trial.state {
        State::Active(rollout) => Some(rollout),
        State::Faulty(_) => None,
    };
    let word = active.map_or("faulty", |rollout| state_word(rollout));
    for known in [
        "advancing",
        "paused",
        "watching",
        "promoted",
        "rolled_back",
        "inconclusive",
        "aborted",
        "faulty",
    ] {
        metric::ROLLOUT_STATE.with([name, known]).set(f64::from(u8::from(known == word)));
    }
    let Some(rollout) = active else { return };
    for found in rollout.evidence().findings() {
        let what = found.metric.as_str();
        metric::ROLLOUT_INCREASE.with([name, what, "at_most"]).set(found.upper);
        metric::ROLLOUT_INCREASE
            .with([name, what, "at_least"])
            .set(found.lower.unwrap_or(f64::NAN));
    }
}
