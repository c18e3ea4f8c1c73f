//! All that is known of a canary beside stable, and the verdict on each metric.
//!
//! Only requests that were assigned by chance count: one that asked for a variant, a retry, a hedge or an answer
//! from a cache says nothing about the split. Each observation carries the probability with which it was
//! assigned, so weights may change at any time.

use crate::Arm;
use crate::blocks::{Block, BlockTest};
use crate::count::{CountTest, Dispersion};
use crate::groups::GroupTest;
use crate::pairs::PairTest;
use crate::proportion;
use crate::slow::SlowBound;

/// Length of a block, in seconds.
pub const BLOCK: f64 = 10.0;
/// Of the level of a metric, this part is the count test's, the rest the blocks'.
const COUNTS_PART: f64 = 0.8;
/// The level at which a split is called broken.
const SPLIT_LEVEL: f64 = 0.001;
/// So many failed requests of the canary in a row end its trial, if stable never had half as many.
const RUN: u32 = 10;
/// Seconds that the row must last: one client can fail ten times at once.
const RUN_TIME: f64 = 1.0;

/// How requests are assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Assignment {
    /// Each by itself.
    PerRequest,
    /// A client stays at its variant.
    Sticky,
}

/// The differences that are accepted of a canary.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Margins {
    /// Increase of the share of failed requests.
    pub errors: f64,
    /// Increase of the share of slow requests, which is 1 % at stable.
    pub slow: f64,
    /// Mean difference of outputs, from 0 to 1.
    pub outputs: f64,
    /// Ratio of the canary's rate of bad requests to stable's that is refused. A canary is also accepted if
    /// its rates are certainly below this.
    pub ratio: f64,
}

impl Default for Margins {
    fn default() -> Self {
        Self { errors: 0.005, slow: 0.01, outputs: 0.01, ratio: 2.0 }
    }
}

/// The terms of a comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Terms {
    /// Probability with which a canary that is no worse is rolled back, and with which one beyond the margins
    /// is promoted.
    pub alpha: f64,
    /// How requests are assigned.
    pub assignment: Assignment,
    /// The accepted differences.
    pub margins: Margins,
    /// Whether outputs are compared.
    pub compares_outputs: bool,
    /// Number of weights at which the canary may be judged: the probabilities are divided among them where each
    /// weight has evidence of its own.
    pub steps: u16,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            alpha: 0.05,
            assignment: Assignment::PerRequest,
            margins: Margins::default(),
            compares_outputs: false,
            steps: 4,
        }
    }
}

/// One request that was assigned by chance and has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Its variant.
    pub arm: Arm,
    /// Probability with which it was assigned to the canary.
    pub weight: f64,
    /// The group of its client, below [`crate::groups::GROUPS`], where clients stay at their variant.
    pub group: Option<u16>,
    /// Whether it failed by the variant's fault.
    pub failed: bool,
    /// Seconds that it took; `None`: its time says nothing of the variant, as with an answer from memory.
    pub took: Option<f64>,
}

/// The quantities that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Failed requests.
    Errors,
    /// Requests that took longer than 99 % of stable's.
    Slow,
    /// Outputs of shadows.
    Outputs,
}

impl Metric {
    /// The word in logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::Slow => "slow",
            Self::Outputs => "outputs",
        }
    }
}

/// The finding on one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finding {
    /// The metric.
    pub metric: Metric,
    /// Bad requests and all requests of stable; of outputs, nothing.
    pub stable: (f64, f64),
    /// The same of the canary; of outputs, the sum of the differences and the number of pairs.
    pub canary: (f64, f64),
    /// A bound above the increase of the share of bad requests.
    pub upper: f64,
    /// A bound below it, where one is known.
    pub lower: Option<f64>,
    /// Whether the canary is certainly worse.
    pub is_harm: bool,
    /// Whether it is certainly within the margin.
    pub is_fine: bool,
}

/// The evidence on bad requests of one kind.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct BadRequests {
    harm: CountTest,
    fine: CountTest,
    bursts: [Dispersion; 2],
    bad: [f64; 2],
    requests: [f64; 2],
    block: Block,
    blocks: BlockTest,
    step: StepSums,
}

/// Sums at the present weight. Sums over several weights would take common drift for a difference: stable had more
/// of its requests at another time than the canary.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct StepSums {
    /// Bad requests and all requests, of stable and of the canary.
    sums: [(f64, f64); 2],
    /// Those of clients that stay at their variant, if clients do.
    groups: Option<Box<GroupTest>>,
}

impl StepSums {
    fn new(terms: &Terms) -> Self {
        let groups = (terms.assignment == Assignment::Sticky).then(Box::default);
        Self { sums: [(0.0, 0.0); 2], groups }
    }
}

impl BadRequests {
    fn new(terms: &Terms) -> Self {
        Self {
            harm: CountTest::worse_than(1.0),
            fine: CountTest::better_than(terms.margins.ratio),
            bursts: [Dispersion::default(), Dispersion::default()],
            bad: [0.0; 2],
            requests: [0.0; 2],
            block: Block::default(),
            blocks: BlockTest::default(),
            step: StepSums::new(terms),
        }
    }

    /// `is_present`: the request was drawn with the present weight.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
    fn add(&mut self, now: f64, seen: &Observation, is_bad: bool, is_present: bool) {
        let is_canarys = seen.arm == Arm::Canary;
        let arm = usize::from(is_canarys);
        self.requests[arm] += 1.0;
        self.bad[arm] += f64::from(u8::from(is_bad));
        if is_bad {
            self.bursts[arm].add(now.max(0.0) as u64);
        }
        // Requests of one client that stays at its variant are no independent draws.
        if let (Some(groups), Some(group)) = (&mut self.step.groups, seen.group) {
            if is_present {
                groups.add(is_canarys, is_bad, group);
            }
            return;
        }
        if is_bad {
            self.harm.add(is_canarys, seen.weight);
            self.fine.add(is_canarys, seen.weight);
        }
        self.block.add(is_canarys, is_bad, seen.weight);
        if is_present {
            let (bad, requests) = &mut self.step.sums[arm];
            *bad += f64::from(u8::from(is_bad));
            *requests += 1.0;
        }
    }

    fn end_block(&mut self) {
        self.blocks.add(&self.block);
        self.block = Block::default();
    }

    fn finding(&self, metric: Metric, margin: f64, terms: &Terms, harm: f64) -> Finding {
        let totals = |arm: usize| (self.bad[arm], self.requests[arm]);
        let found = |lower, upper, is_harm, is_fine| Finding {
            metric,
            stable: totals(0),
            canary: totals(1),
            upper,
            lower,
            is_harm,
            is_fine: is_fine || upper < margin,
        };
        let (steps, fine) = (f64::from(terms.steps.max(1)), terms.alpha);
        let is_sticky = self.step.groups.is_some();
        // Of a route whose clients stay, some requests may still have been drawn by themselves.
        let harm_of_draws = if is_sticky { harm / 2.0 } else { harm };
        let bursts = self.bursts[0].get().max(self.bursts[1].get());
        let by_blocks = self.blocks.lower(harm_of_draws * (1.0 - COUNTS_PART));
        let is_harm = self.harm.rejects(harm_of_draws * COUNTS_PART, bursts)
            || by_blocks.is_some_and(|lower| lower > 0.0);
        if let Some(groups) = &self.step.groups {
            let bounds = groups.bounds(harm / 2.0 / steps);
            let lower = bounds.map(|(lower, _)| lower);
            let upper = groups.bounds(fine / steps).map_or(1.0, |(_, upper)| upper);
            return found(lower, upper, is_harm || lower.is_some_and(|it| it > 0.0), false);
        }
        let [stable, canary] = self.step.sums;
        let by_sums = proportion::upper_difference(canary, stable, bursts, fine / 4.0 / steps);
        let upper = self.blocks.upper(fine / 4.0).map_or(by_sums, |upper| upper.min(by_sums));
        found(by_blocks, upper, is_harm, self.fine.rejects(fine / 2.0, bursts))
    }
}

/// All evidence on one canary.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Evidence {
    terms: Terms,
    errors: BadRequests,
    slow: BadRequests,
    bound: SlowBound,
    split: CountTest,
    pairs: Option<PairTest>,
    /// Sum and number of the differences of stable from itself.
    noise: (f64, f64),
    block: u64,
    /// Failed requests in a row until now, of stable and of the canary.
    runs: [u32; 2],
    /// When the canary's row began.
    run_since: f64,
    /// The latest time that was told.
    now: f64,
    /// The longest row of stable's.
    longest: u32,
    /// The present weight.
    weight: f64,
}

impl Evidence {
    /// None yet.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            errors: BadRequests::new(&terms),
            slow: BadRequests::new(&terms),
            bound: SlowBound::default(),
            split: CountTest::of_split(),
            pairs: terms.compares_outputs.then(|| PairTest::new(terms.margins.outputs)),
            noise: (0.0, 0.0),
            block: 0,
            runs: [0; 2],
            run_since: 0.0,
            now: 0.0,
            longest: 0,
            weight: 0.0,
        }
    }

    /// Takes in a request that ended at `now`, in seconds since the beginning of the comparison.
    pub fn add(&mut self, now: f64, seen: &Observation) {
        self.advance(now);
        let is_canarys = seen.arm == Arm::Canary;
        self.split.add(is_canarys, seen.weight);
        if is_canarys && self.runs[1] == 0 {
            self.run_since = now;
        }
        let run = &mut self.runs[usize::from(is_canarys)];
        *run = if seen.failed { run.saturating_add(1) } else { 0 };
        self.longest = self.longest.max(self.runs[0]);
        let is_present = (seen.weight - self.weight).abs() < 1e-9;
        self.errors.add(now, seen, seen.failed, is_present);
        let Some(took) = seen.took.filter(|_| !seen.failed) else { return };
        if let Some(is_slow) = self.bound.is_slow(took) {
            self.slow.add(now, seen, is_slow, is_present);
        }
        if !is_canarys {
            self.bound.add(took);
        }
    }

    /// The canary has this weight from now on, as a share.
    pub fn at_weight(&mut self, weight: f64) {
        self.weight = weight;
        self.errors.step = StepSums::new(&self.terms);
        self.slow.step = StepSums::new(&self.terms);
    }

    /// Takes in the difference between two answers to the same request, from 0 to 1.
    pub fn add_pair(&mut self, difference: f64) {
        // Few samples of the noise prove neither that there is some nor that there is none.
        let (sum, samples) = self.noise;
        let noise = (sum / (samples + 100.0), (sum + 1.0) / (samples + 1.0));
        if let Some(pairs) = &mut self.pairs {
            pairs.add(difference, noise);
        }
    }

    /// Takes in the difference between two answers of stable to the same request.
    pub fn add_noise(&mut self, difference: f64) {
        if difference >= 0.0 {
            self.noise.0 += difference.min(1.0);
            self.noise.1 += 1.0;
        }
    }

    /// Closes the blocks that are over at `now`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
    pub fn advance(&mut self, now: f64) {
        self.now = self.now.max(now);
        let block = (now / BLOCK).max(0.0) as u64;
        if block > self.block {
            self.block = block;
            self.errors.end_block();
            self.slow.end_block();
            self.bound.end_block();
        }
    }

    /// The terms of the comparison.
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether the canary's last requests failed in a row that is far longer than any of stable's, and not within
    /// a moment.
    pub fn fails_outright(&self) -> bool {
        self.runs[1] >= RUN.max(self.longest.saturating_mul(2))
            && self.now - self.run_since >= RUN_TIME
    }

    /// Whether the canary's share of the requests contradicts its weights. Clients that stay at their variant
    /// are not counted, as they differ in the number of their requests.
    pub fn split_is_broken(&self) -> bool {
        self.terms.assignment == Assignment::PerRequest && self.split.rejects(SPLIT_LEVEL, 1.0)
    }

    /// The number of the canary's requests.
    pub const fn canary_requests(&self) -> f64 {
        self.errors.requests[1]
    }

    /// The finding on each metric.
    pub fn findings(&self) -> Vec<Finding> {
        let Terms { alpha, margins, .. } = self.terms;
        let metrics = if self.pairs.is_some() { 3.0 } else { 2.0 };
        // A canary is rolled back by any metric and promoted by all of them.
        let harm = alpha / metrics;
        let mut findings = vec![
            self.errors.finding(Metric::Errors, margins.errors, &self.terms, harm),
            self.slow.finding(Metric::Slow, margins.slow, &self.terms, harm),
        ];
        findings.extend(self.pairs.as_ref().map(|pairs| Finding {
            metric: Metric::Outputs,
            stable: (0.0, 0.0),
            canary: (pairs.mean() * pairs.pairs(), pairs.pairs()),
            upper: if pairs.is_fine(alpha) { margins.outputs } else { 1.0 },
            lower: None,
            is_harm: pairs.differs(harm),
            is_fine: pairs.is_fine(alpha),
        }));
        findings
    }
}
