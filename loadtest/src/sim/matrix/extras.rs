//! The special part of a fleet of the matrix, beside endpoints, slots and a steady load.
//!
//! A policy that wins on steady fleets may lose where proxies share endpoints, where reports are old or missing, where
//! load or speed changes, or where requests differ. Each kind here changes one of these and nothing else.

use crate::distribution::Distribution;
use crate::scenario::{
    Batch, Bursts, Constant, Diurnal, EndpointFault, EndpointFaultKind, Phase, Request,
    RequestKind, Scenario, SlowServices,
};
use crate::units::Rate;
use std::f64::consts::TAU;
use std::time::Duration;

/// Seconds for which the speed of an endpoint stays the same where it drifts, and those of a whole round.
const STEP: f64 = 2.0;
const ROUND: f64 = 60.0;
/// Means of the models of a mixed pool over that of all, and their shares: 1 and 30 ms.
const LIGHT: f64 = 1.0;
const HEAVY: f64 = 30.0;
/// A stream lasts so many mean requests, and takes this share of all work.
const STREAM: f64 = 200.0;
const STREAM_WORK: f64 = 0.3;
/// Deadlines, in mean services.
pub(super) const DEADLINE: f64 = 5.0;
/// Age of reports where proxies are several.
const LATE: Duration = Duration::from_millis(100);

/// The special part of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Extra {
    /// Nothing.
    #[default]
    None,
    /// So many proxies, which hear of the endpoints' load 100 ms late.
    Proxies(u32),
    /// Requests are served together, at most eight; this share of a service alone is the same for any number.
    Batches(f64),
    /// Endpoints report nothing: slots are learnt.
    NoReports,
    /// Half of the requests are for a model that takes a thirtieth of the other's time.
    TwoModels,
    /// The last endpoint is down for the middle third.
    LosesOne,
    /// A sine between 0.4 and 1.6 times the mean, ten times.
    Diurnal,
    /// A fifth of the time twice as much as else.
    Bursts,
    /// Every request has to be answered within five mean services.
    Deadlines,
    /// Speeds drift by a factor of two and back within a minute, each endpoint at another moment.
    Drift,
    /// Long streams of another model take 30 % of the work.
    Streams,
}

impl Extra {
    /// Those that drawn cells may have.
    pub(super) fn draw(rng: &mut fastrand::Rng) -> Self {
        match rng.usize(..11) {
            0 => Self::Proxies(2),
            1 => Self::Proxies(4),
            2 => Self::Batches([0.1, 0.5, 0.79][rng.usize(..3)]),
            3 => Self::NoReports,
            4 => Self::TwoModels,
            5 => Self::LosesOne,
            6 => Self::Diurnal,
            7 => Self::Bursts,
            8 => Self::Deadlines,
            9 => Self::Drift,
            _ => Self::Streams,
        }
    }

    /// In a cell's name.
    pub(super) fn name(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Proxies(n) => format!("{n} proxies, reports late, "),
            Self::Batches(share) => format!("batches {:.0}% shared, ", share * 100.0),
            Self::NoReports => "no reports, ".to_owned(),
            Self::TwoModels => "two models, ".to_owned(),
            Self::LosesOne => "loses one, ".to_owned(),
            Self::Diurnal => "diurnal, ".to_owned(),
            Self::Bursts => "bursts, ".to_owned(),
            Self::Deadlines => "deadlines, ".to_owned(),
            Self::Drift => "drift, ".to_owned(),
            Self::Streams => "streams, ".to_owned(),
        }
    }

    /// The share of the capacity that is there on average, so that a cell's load is a share of what there is.
    pub(super) fn available(self, endpoints: usize) -> f64 {
        match self {
            // The load is that of the middle third, or all would wait for its end.
            Self::LosesOne if endpoints > 1 => 1.0 - 1.0 / endpoints as f64,
            Self::Drift => {
                (0..30).map(|step| 1.0 / drift(f64::from(step) / 30.0)).sum::<f64>() / 30.0
            }
            _ => 1.0,
        }
    }

    /// Whether requests that are not answered are what counts, and not how long the others take.
    pub fn counts_losses(self) -> bool {
        self == Self::Deadlines
    }

    /// The phase of a load of `rate` requests a second on average.
    pub(super) fn phase(self, rate: f64, length: Duration) -> Phase {
        let part = |n: f64| length.div_f64(n).max(Duration::from_millis(10));
        match self {
            Self::Diurnal => Phase::Diurnal(Diurnal {
                low: Rate(rate * 0.4),
                high: Rate(rate * 1.6),
                period: part(10.0),
                length,
            }),
            Self::Bursts => Phase::Bursts(Bursts {
                base: Rate(rate / 1.2),
                peak: Rate(rate / 0.6),
                every: part(20.0),
                burst: part(100.0),
                length,
            }),
            _ => Phase::Constant(Constant { rate: Rate(rate), length }),
        }
    }

    /// Changes the scenario of a cell with such services, whose measured part lasts for `length`.
    pub(super) fn apply(self, scenario: &mut Scenario, demand: Distribution, length: Duration) {
        let (mean, endpoints) = (demand.mean(), scenario.simulated.fleet.len());
        match self {
            Self::Proxies(n) => {
                scenario.simulated.sim.proxies = n;
                scenario.simulated.sim.reports.delay = LATE;
            }
            Self::Batches(_) => self.batch(scenario, mean),
            Self::NoReports => scenario.simulated.sim.reports.in_band = false,
            Self::TwoModels => {
                let scale = mean / ((LIGHT + HEAVY) / 2.0);
                let parts = [(1.0, LIGHT * scale), (1.0, HEAVY * scale)];
                two(scenario, demand, parts);
            }
            Self::Streams => {
                let share = STREAM_WORK / STREAM;
                let parts = [
                    (1.0 - share, mean * (1.0 - STREAM_WORK) / (1.0 - share)),
                    (share, mean * STREAM),
                ];
                two(scenario, demand, parts);
                if let Some(stream) = scenario.requests.last_mut() {
                    stream.demand = Some(Distribution::Constant(mean * STREAM));
                }
            }
            Self::LosesOne => {
                let last = u32::try_from(endpoints.saturating_sub(1)).unwrap_or(0);
                scenario.simulated.faults = vec![EndpointFault {
                    at: length / 3,
                    length: Some(length / 3),
                    endpoints: vec![last],
                    kind: EndpointFaultKind::Down,
                }];
            }
            Self::Deadlines => {
                for request in &mut scenario.requests {
                    request.deadline = Some(Duration::from_secs_f64(mean * DEADLINE));
                }
            }
            Self::Drift => scenario.simulated.faults = drifts(endpoints, length),
            Self::None | Self::Diurnal | Self::Bursts => {}
        }
    }

    /// Requests have no work of their own: each adds its part to the batch.
    fn batch(self, scenario: &mut Scenario, alone: f64) {
        let Self::Batches(share) = self else { return };
        for request in &mut scenario.requests {
            request.demand = None;
        }
        for group in &mut scenario.simulated.fleet {
            group.batch = Some(Batch {
                max_size: 8,
                base: Duration::from_secs_f64(alone * share),
                each: Duration::from_secs_f64(alone * (1.0 - share)),
                wait: Duration::ZERO,
            });
        }
    }

    /// Requests that are served in the time that the mean says, where a slot is always busy.
    pub(super) fn throughput(self) -> f64 {
        match self {
            Self::Batches(share) => 8.0 / (share + 8.0 * (1.0 - share)),
            _ => 1.0,
        }
    }
}

/// Two models with these weights and means, spread as the cell's services are.
fn two(scenario: &mut Scenario, demand: Distribution, parts: [(f64, f64); 2]) {
    let Some(first) = scenario.requests.first().cloned() else { return };
    let model = |(number, (weight, mean)): (usize, (f64, f64))| {
        let mut request: Request = first.clone();
        if let RequestKind::Infer(infer) = &mut request.kind {
            infer.model = format!("{}-{number}", infer.model);
        }
        request.weight = weight;
        request.demand = Some(scaled(demand, mean));
        request
    };
    scenario.requests = parts.into_iter().enumerate().map(model).collect();
}

/// The same distribution with this mean.
fn scaled(demand: Distribution, mean: f64) -> Distribution {
    let factor = mean / demand.mean();
    match demand {
        Distribution::Constant(_) => Distribution::Constant(mean),
        Distribution::Exponential(_) => Distribution::Exponential(mean),
        Distribution::LogNormal { sigma, .. } => Distribution::LogNormal { mean, sigma },
        Distribution::Bimodal { short, long, share } => {
            Distribution::Bimodal { short: short * factor, long: long * factor, share }
        }
    }
}

/// Slowness at this part of a round: from 1 to 2 and back.
fn drift(part: f64) -> f64 {
    (0.5 - 0.5 * (TAU * part).cos()).exp2()
}

fn drifts(endpoints: usize, length: Duration) -> Vec<EndpointFault> {
    let mut faults = Vec::new();
    for endpoint in 0..u32::try_from(endpoints).unwrap_or(0) {
        let offset = f64::from(endpoint) / endpoints as f64;
        let mut at = 0.0;
        while at < length.as_secs_f64() {
            let factor = drift((at / ROUND + offset).fract());
            faults.push(EndpointFault {
                at: Duration::from_secs_f64(at),
                length: Some(Duration::from_secs_f64(STEP)),
                endpoints: vec![endpoint],
                kind: EndpointFaultKind::Slow(SlowServices { factor }),
            });
            at += STEP;
        }
    }
    faults
}
