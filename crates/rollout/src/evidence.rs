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
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            alpha: 0.05,
            assignment: Assignment::PerRequest,
            margins: Margins::default(),
            compares_outputs: false,
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
    /// Seconds that it took.
    pub took: f64,
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
    groups: Option<Box<GroupTest>>,
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
            groups: (terms.assignment == Assignment::Sticky).then(Box::default),
        }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
    fn add(&mut self, now: f64, seen: &Observation, is_bad: bool) {
        let is_canarys = seen.arm == Arm::Canary;
        let arm = usize::from(is_canarys);
        self.requests[arm] += 1.0;
        if is_bad {
            self.bad[arm] += 1.0;
            self.harm.add(is_canarys, seen.weight);
            self.fine.add(is_canarys, seen.weight);
            self.bursts[arm].add(now.max(0.0) as u64);
        }
        self.block.add(is_canarys, is_bad, seen.weight);
        if let (Some(groups), Some(group)) = (&mut self.groups, seen.group) {
            groups.add(is_canarys, is_bad, group);
        }
    }

    fn end_block(&mut self) {
        self.blocks.add(&self.block);
        self.block = Block::default();
    }

    fn finding(&self, metric: Metric, margin: f64, (harm, fine): (f64, f64)) -> Finding {
        let sums = |arm: usize| (self.bad[arm], self.requests[arm]);
        let (stable, canary) = (sums(0), sums(1));
        let found = |lower, upper, is_harm, is_fine| Finding {
            metric,
            stable,
            canary,
            upper,
            lower,
            is_harm,
            is_fine: is_fine || upper < margin,
        };
        if let Some(groups) = &self.groups {
            let Some((lower, _)) = groups.bounds(harm) else {
                return found(None, 1.0, false, false);
            };
            let upper = groups.bounds(fine).map_or(1.0, |(_, upper)| upper);
            return found(Some(lower), upper, lower > 0.0, false);
        }
        let bursts = self.bursts[0].get().max(self.bursts[1].get());
        let lower = self.blocks.lower(harm * (1.0 - COUNTS_PART));
        let is_harm =
            self.harm.rejects(harm * COUNTS_PART, bursts) || lower.is_some_and(|lower| lower > 0.0);
        let by_counts = proportion::upper_difference(canary, stable, bursts, fine / 4.0);
        let upper = self.blocks.upper(fine / 4.0).map_or(by_counts, |upper| upper.min(by_counts));
        found(lower, upper, is_harm, self.fine.rejects(fine / 2.0, bursts))
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
    /// The longest row of stable's.
    longest: u32,
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
            longest: 0,
        }
    }

    /// Takes in a request that ended at `now`, in seconds since the beginning of the comparison.
    pub fn add(&mut self, now: f64, seen: &Observation) {
        self.advance(now);
        let is_canarys = seen.arm == Arm::Canary;
        self.split.add(is_canarys, seen.weight);
        let run = &mut self.runs[usize::from(is_canarys)];
        *run = if seen.failed { run.saturating_add(1) } else { 0 };
        self.longest = self.longest.max(self.runs[0]);
        self.errors.add(now, seen, seen.failed);
        if seen.failed {
            return;
        }
        if let Some(is_slow) = self.bound.is_slow(seen.took) {
            self.slow.add(now, seen, is_slow);
        }
        if !is_canarys {
            self.bound.add(seen.took);
        }
    }

    /// Takes in the difference between two answers to the same request, from 0 to 1.
    pub fn add_pair(&mut self, difference: f64) {
        let noise = self.noise.0 / self.noise.1.max(1.0);
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

    /// Whether the canary's last requests failed in a row that is far longer than any of stable's.
    pub fn fails_outright(&self) -> bool {
        self.runs[1] >= RUN.max(self.longest.saturating_mul(2))
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
        let levels = (alpha / metrics, alpha);
        let mut findings = vec![
            self.errors.finding(Metric::Errors, margins.errors, levels),
            self.slow.finding(Metric::Slow, margins.slow, levels),
        ];
        findings.extend(self.pairs.as_ref().map(|pairs| Finding {
            metric: Metric::Outputs,
            stable: (0.0, 0.0),
            canary: (pairs.mean() * pairs.pairs(), pairs.pairs()),
            upper: if pairs.is_fine(alpha) { margins.outputs } else { 1.0 },
            lower: None,
            is_harm: pairs.differs(levels.0),
            is_fine: pairs.is_fine(alpha),
        }));
        findings
    }
}
