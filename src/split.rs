//! Routes that are split: their weights, which may change while the process runs, and the evidence about their
//! variants.
//!
//! A rollout moves weights every few minutes, and a reload for each step would disturb everything else. So the
//! weights of a route are one value beside the snapshot, which is loaded once for a request and replaced as a
//! whole: no request sees half of a change. They survive reloads for as long as the file says the same of the
//! route's variants; once the file says something else of them, the file wins.
//!
//! A program that moves weights, such as a rollout controller, uses these:
//! - [`ControlHandle::set_weights`](crate::pool::control::ControlHandle::set_weights) changes them, one change
//!   after the other and never between two halves of a reload; [`Split::weights`] are those of now.
//! - [`Split::listen`] has it told of each finished request as a [`Sample`]: the variant, the [`Assignment`] with
//!   the weight that the request was drawn with, the outcome and the time; and of each copy whose answer was
//!   compared with the client's as a [`Comparison`].
//! - [`Splits::named`] finds a route's split in the current [`Snapshot`](crate::pool::Snapshot). A split that the
//!   file has changed is another one, without listeners.

use crate::config::{Config, Route, Variant};
use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use forebay_protocol::Reason;
use forebay_routing::split::{WeightError, revised};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How a request came to its variant. Weights are in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// At random, by itself, with this weight of its variant.
    Drawn(u32),
    /// By its client's place among a thousand, with this weight of its variant. Requests of one client are not
    /// independent of each other.
    Sticky(u32),
    /// It asked for the variant.
    Asked,
    /// The variant that was drawn, with this weight, has no endpoint: another one stands in.
    Moved(u32),
    /// The form of the request left out a variant that has a weight, so the weights did not decide.
    Restricted,
}

impl Assignment {
    /// The words in the log and in metrics, in the order of [`Assignment::position`].
    pub const WORDS: [&str; 5] = ["drawn", "sticky", "asked", "moved", "restricted"];

    /// Its position among [`Assignment::WORDS`].
    pub const fn position(self) -> usize {
        match self {
            Self::Drawn(_) => 0,
            Self::Sticky(_) => 1,
            Self::Asked => 2,
            Self::Moved(_) => 3,
            Self::Restricted => 4,
        }
    }

    /// The word in the log and in metrics.
    pub const fn as_str(self) -> &'static str {
        Self::WORDS[self.position()]
    }

    /// The weight that the request was drawn with, of the variant that was drawn.
    pub const fn weight(self) -> Option<u32> {
        match self {
            Self::Drawn(weight) | Self::Sticky(weight) | Self::Moved(weight) => Some(weight),
            Self::Asked | Self::Restricted => None,
        }
    }
}

/// A finished request of a route that is split.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The name of the variant that answered, or should have.
    pub variant: &'a str,
    /// The name of the variant that was chosen first, before anything stood in for it.
    pub drawn: &'a str,
    /// The variant that was drawn, if it had no endpoint.
    pub instead_of: Option<&'a str>,
    /// How the request came to its variant.
    pub assignment: Assignment,
    /// The place of its client among a thousand, if its client stays with a variant.
    pub place: Option<u32>,
    /// The client, as a number.
    pub client: u64,
    /// The HTTP status that the client got; 0 for none.
    pub status: u16,
    /// Why it failed, if it did.
    pub reason: Option<Reason>,
    /// From its first byte to the last of its answer.
    pub took: Duration,
    /// Endpoints that were tried: more than one where it was sent again or hedged, none where it was answered
    /// from memory or refused.
    pub attempts: usize,
    /// Whether there was a second attempt beside a slow first one.
    pub is_hedged: bool,
    /// Whether a kept answer, or that of an equal request, was given.
    pub is_from_cache: bool,
    /// Whether another variant answered than the one that was drawn.
    pub is_degraded: bool,
}

impl Sample<'_> {
    /// Whether chance alone decided on its variant, and that variant alone on its outcome: one attempt, no kept
    /// answer, nothing that stood in.
    pub fn is_randomised(&self) -> bool {
        matches!(self.assignment, Assignment::Drawn(_) | Assignment::Sticky(_))
            && self.attempts <= 1
            && !self.is_hedged
            && !self.is_from_cache
            && !self.is_degraded
    }
}

/// Takes the evidence about a route's variants. It is called on the threads that serve requests, so it must
/// neither wait nor take long.
pub trait Evidence: Send + Sync {
    /// A request has finished.
    fn finished(&self, sample: &Sample<'_>);

    /// The answer to a copy of a request was compared with the client's.
    fn compared(&self, comparison: &Comparison<'_>) {
        let _ = comparison;
    }
}

/// How the answer to a copy of a request compares with the client's; see [`crate::http::shadow`].
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The variant that got the copy.
    pub variant: &'a str,
    /// The variant that answered the client.
    pub given_by: &'a str,
    /// How far the answers lie apart, from 0 (equal) to 1. `None`: it gave none, or none that can be compared.
    pub score: Option<f64>,
    /// Whether the copy went to the variant that had answered: its difference from itself.
    pub is_noise: bool,
}

/// The file's words on a variant: what must be the same for live weights to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arm {
    name: String,
    pool: String,
    model: Option<String>,
    version: Option<String>,
    weight: u32,
}

/// The split of one route.
pub struct Split {
    route: String,
    arms: Vec<Arm>,
    names: Vec<String>,
    weights: ArcSwap<Vec<u32>>,
    evidence: ArcSwapOption<Box<dyn Evidence>>,
}

impl Split {
    fn new(route: &Route, arms: Vec<Arm>) -> Self {
        let weights = arms.iter().map(|arm| arm.weight).collect();
        let names = arms.iter().map(|arm| arm.name.clone()).collect();
        let (weights, evidence) = (ArcSwap::from_pointee(weights), ArcSwapOption::empty());
        Self { route: route.name.clone(), arms, names, weights, evidence }
    }

    /// The name of its route.
    pub fn route(&self) -> &str {
        &self.route
    }

    /// The names of the variants, in the order of [`Route::variants`].
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The weights as they are now, in thousandths, in the order of [`Route::variants`].
    pub fn weights(&self) -> Guard<Arc<Vec<u32>>> {
        self.weights.load()
    }

    /// The weights of the file.
    pub fn configured(&self) -> Vec<u32> {
        self.arms.iter().map(|arm| arm.weight).collect()
    }

    /// Sets the weights of some variants; see [`revised`]. Only the control task does this.
    ///
    /// # Errors
    /// A variant is unknown or named twice, or the weights don't add up; nothing has changed then.
    pub(crate) fn set(&self, given: &[(String, u32)], by: &str) -> Result<(), WeightError> {
        let before = self.weights.load_full();
        let weights = revised(&self.names, &before, given)?;
        if weights != *before {
            let (from, to) = (self.shown(&before), self.shown(&weights));
            tracing::info!(route = self.route, by, from, to, "weights changed");
            self.weights.store(Arc::new(weights));
        }
        Ok(())
    }

    /// Has `evidence` told of each finished request from now on, in place of the one before; `None`: no more.
    pub fn listen(&self, evidence: Option<Box<dyn Evidence>>) {
        self.evidence.store(evidence.map(Arc::new));
    }

    /// Tells the listener, if there is one.
    pub fn finished(&self, sample: &Sample<'_>) {
        if let Some(evidence) = &*self.evidence.load() {
            evidence.finished(sample);
        }
    }

    /// Tells the listener of a comparison, if there is one.
    pub fn compared(&self, comparison: &Comparison<'_>) {
        if let Some(evidence) = &*self.evidence.load() {
            evidence.compared(comparison);
        }
    }

    /// `stable=950 canary=50`.
    fn shown(&self, weights: &[u32]) -> String {
        let pairs = self.names.iter().zip(weights);
        pairs.map(|(name, weight)| format!("{name}={weight}")).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Split({}: {})", self.route, self.shown(&self.weights.load()))
    }
}

/// The splits of a configuration.
#[derive(Debug, Default)]
pub struct Splits(HashMap<usize, Arc<Split>>);

impl Splits {
    /// Those of `config`, in which the splits of `before` live on of which the file says the same.
    pub(crate) fn new(config: &Config, before: Option<&Self>) -> Self {
        let split = |route: &Arc<Route>| (key(route), of(config, route, before));
        let split_routes = config.routes.iter().filter(|route| route.variants.len() > 1);
        Self(split_routes.map(split).collect())
    }

    /// That of a route of this configuration; `None`: it has one variant.
    pub fn of(&self, route: &Arc<Route>) -> Option<&Arc<Split>> {
        if route.variants.len() < 2 {
            return None;
        }
        self.0.get(&key(route))
    }

    /// That of the route with this name.
    pub fn named(&self, route: &str) -> Option<&Arc<Split>> {
        self.0.values().find(|split| split.route == route)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Split>> {
        self.0.values()
    }

    /// The weights of a route of this configuration as they are now, in the order of its variants.
    pub fn weights(&self, route: &Arc<Route>) -> Vec<u32> {
        match self.of(route) {
            Some(split) => split.weights().to_vec(),
            None => route.variants.iter().map(|variant| variant.weight).collect(),
        }
    }
}

/// The route's address in the configuration, which is unique while the configuration lives.
fn key(route: &Arc<Route>) -> usize {
    Arc::as_ptr(route).addr()
}

fn of(config: &Config, route: &Arc<Route>, before: Option<&Splits>) -> Arc<Split> {
    let arm = |variant: &Arc<Variant>| Arm {
        name: variant.name.clone(),
        pool: config.pools.get(variant.pool).map(|it| it.name.clone()).unwrap_or_default(),
        model: variant.model.clone(),
        version: variant.version.clone(),
        weight: variant.weight,
    };
    let arms: Vec<_> = route.variants.iter().map(arm).collect();
    let Some(known) = before.and_then(|before| before.named(&route.name)) else {
        return Arc::new(Split::new(route, arms));
    };
    if known.arms == arms {
        return Arc::clone(known);
    }
    let split = Split::new(route, arms);
    let (from, to) = (known.shown(&known.weights.load()), split.shown(&split.weights.load()));
    tracing::info!(
        route = split.route,
        by = "reload",
        from,
        to,
        "weights changed: the configuration says something else of the variants than before"
    );
    Arc::new(split)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn config(canary: &str, weights: (u32, u32)) -> Config {
        let (stable, weight) = weights;
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [pool.a]\nendpoints = [\"127.0.0.1:1\"]\n[pool.b]\nendpoints = [\"127.0.0.1:2\"]\n\
             [[route]]\nname = \"r\"\n\
             [[route.variant]]\npool = \"a\"\nweight = {stable}\n\
             [[route.variant]]\npool = \"b\"\nweight = {weight}\n{canary}\n"
        );
        Config::parse(&text, Path::new("")).unwrap()
    }

    #[test]
    fn weights_survive_a_reload_until_the_file_says_something_else_of_the_variants() {
        let set = |weight| [("b".to_owned(), weight)];
        let first = config("", (950, 50));
        let splits = Splits::new(&first, None);
        splits.named("r").unwrap().set(&set(200), "test").unwrap();
        assert_eq!(splits.weights(&first.routes[0]), [800, 200]);

        let same = config("", (950, 50));
        let next = Splits::new(&same, Some(&splits));
        assert_eq!(next.weights(&same.routes[0]), [800, 200]);
        assert!(Arc::ptr_eq(next.named("r").unwrap(), splits.named("r").unwrap()));

        for other in [config("", (900, 100)), config("version = \"2\"", (950, 50))] {
            let next = Splits::new(&other, Some(&splits));
            let expected: Vec<_> = other.routes[0].variants.iter().map(|it| it.weight).collect();
            assert_eq!(next.weights(&other.routes[0]), expected);
        }
        assert_eq!(splits.weights(&first.routes[0]), [800, 200], "what runs is as it was");
    }

    #[test]
    fn a_listener_is_told_of_requests_until_it_is_let_go() {
        struct Count(Arc<AtomicUsize>);
        impl Evidence for Count {
            fn finished(&self, sample: &Sample<'_>) {
                self.0.fetch_add(usize::from(sample.is_randomised()), Relaxed);
            }
        }
        let config = config("", (950, 50));
        let splits = Splits::new(&config, None);
        let split = splits.of(&config.routes[0]).unwrap();
        let sample = Sample {
            variant: "a",
            drawn: "a",
            place: None,
            instead_of: None,
            assignment: Assignment::Drawn(950),
            client: 0,
            status: 200,
            reason: None,
            took: Duration::ZERO,
            attempts: 1,
            is_hedged: false,
            is_from_cache: false,
            is_degraded: false,
        };
        let counted = Arc::new(AtomicUsize::new(0));
        split.finished(&sample);
        split.listen(Some(Box::new(Count(Arc::clone(&counted)))));
        split.finished(&sample);
        for not_randomised in [
            Sample { assignment: Assignment::Asked, ..sample },
            Sample { assignment: Assignment::Moved(950), ..sample },
            Sample { attempts: 2, ..sample },
            Sample { is_hedged: true, ..sample },
            Sample { is_from_cache: true, ..sample },
            Sample { is_degraded: true, ..sample },
        ] {
            split.finished(&not_randomised);
        }
        split.listen(None);
        split.finished(&sample);
        assert_eq!(counted.load(Relaxed), 1);
    }
}
