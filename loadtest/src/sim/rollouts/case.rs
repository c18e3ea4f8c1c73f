//! A case: what is simulated, and what must hold for its verdicts.

use forebay_routing::Rng;

/// Probability of a false verdict that the tests are set to.
pub(super) const ALPHA: f64 = 0.05;

/// One run: the number of requests until the verdict; `None`: no verdict.
type Run = Box<dyn Fn(&mut Rng) -> Option<f64> + Sync + Send>;

/// One case: runs that each end with a verdict or none.
pub(super) struct Case {
    name: String,
    bound: Bound,
    /// Share of the runs that are made: of a slow case fewer.
    share: f64,
    run: Run,
}

impl Case {
    pub(super) fn new(
        name: impl Into<String>,
        bound: Bound,
        run: impl Fn(&mut Rng) -> Option<f64> + Sync + Send + 'static,
    ) -> Self {
        Self { name: name.into(), bound, share: 1.0, run: Box::new(run) }
    }

    /// The same with this share of the runs.
    pub(super) fn of_fewer(self, share: f64) -> Self {
        Self { share, ..self }
    }

    /// One run.
    pub(super) fn run(&self, rng: &mut Rng) -> Option<f64> {
        (self.run)(rng)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn share(&self) -> f64 {
        self.share
    }

    pub(super) fn bound(&self) -> Bound {
        self.bound
    }
}

/// The bound that the verdicts of a case must keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    /// A false verdict: in at most [`ALPHA`] of the runs, plus two standard deviations of the number of runs.
    False,
    /// A control: a false verdict in more than this share.
    Blind(f64),
    /// A true verdict, in half of the runs after at most so many requests.
    Median(f64),
    /// A true verdict in at least this share of the runs.
    Power(f64),
}

impl Bound {
    /// The figure found, the bound, and whether it was kept.
    pub(super) fn judge(self, verdicts: &mut [Option<f64>]) -> (String, String, bool) {
        let runs = verdicts.len() as f64;
        let rate = verdicts.iter().flatten().count() as f64 / runs;
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        match self {
            Self::False => {
                let most = ALPHA + 2.0 * (ALPHA * (1.0 - ALPHA) / runs).sqrt();
                (percent(rate), format!("<= {}", percent(most)), rate <= most)
            }
            Self::Blind(least) => (percent(rate), format!("> {}", percent(least)), rate > least),
            Self::Power(least) => (percent(rate), format!(">= {}", percent(least)), rate >= least),
            Self::Median(most) => {
                verdicts.sort_by(|a, b| key(*a).total_cmp(&key(*b)));
                let at = |share: f64| {
                    let place = ((runs - 1.0) * share) as usize;
                    verdicts[place].map_or("never".to_owned(), |n| format!("{n:.0}"))
                };
                let found = format!("{} (95 %: {})", at(0.5), at(0.95));
                (found, format!("<= {most:.0}"), key(verdicts[verdicts.len() / 2]) <= most)
            }
        }
    }
}

fn key(verdict: Option<f64>) -> f64 {
    verdict.unwrap_or(f64::INFINITY)
}
