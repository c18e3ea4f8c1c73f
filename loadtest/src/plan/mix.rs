//! The mix of a scenario: the kind of each request, drawn by index.
//!
//! Two balancers can only be compared over the very same requests. So the kind of a request and the work
//! that it brings follow from the seed and the request's index alone: neither earlier answers nor the
//! difference between a live run and a simulation changes them.

use super::seed::derive;
use super::{DEFAULT_CLIENT_HEADER, Plan};
use crate::distribution::Distribution;
use crate::scenario::{Header, Request};
use std::sync::Arc;
use std::time::Duration;

/// Keeps the chance of clients apart.
const CLIENT: u64 = 0x63_61_6c_6c_65_72;

/// The requests of a run.
#[derive(Debug, Clone)]
pub struct Mix {
    weights: Weights,
    demands: Vec<Option<Distribution>>,
    seed: u64,
    /// Number of clients; 0: requests name none.
    clients: u32,
    /// By kind: its client, if a header of its own names one.
    named: Vec<Option<u32>>,
    recorded: Arc<[Option<u32>]>,
}

/// One request of the mix.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// Its kind, by the position in the scenario.
    pub kind: usize,
    /// The service time that it asks for, in whole microseconds as on the wire.
    pub demand: Option<Duration>,
    /// The number of its client, from 0.
    pub client: u32,
    /// Source of everything else that is random about it.
    pub rng: fastrand::Rng,
}

impl Mix {
    /// The mix that `plan` describes.
    pub fn new(plan: &Plan) -> Self {
        Self {
            weights: Weights::new(plan.requests.iter().map(|request| request.weight)),
            demands: plan.requests.iter().map(|request| request.demand).collect(),
            seed: plan.seed,
            clients: plan.clients.as_ref().map_or(0, |clients| clients.count),
            named: plan.requests.iter().map(|request| named(plan, request)).collect(),
            recorded: Arc::clone(&plan.recorded),
        }
    }

    /// The request with this index: always the same for the same seed.
    pub fn draw(&self, index: u64) -> Drawn {
        let mut rng = fastrand::Rng::with_seed(derive(self.seed, index));
        let recorded = usize::try_from(index).ok().and_then(|index| self.recorded.get(index));
        let kind = match recorded {
            Some(Some(kind)) => *kind as usize,
            _ => self.weights.draw(&mut rng),
        };
        let demand = self.demands.get(kind).copied().flatten();
        let demand = demand.map(|demand| whole_micros(demand.draw(&mut rng)));
        let named = self.named.get(kind).copied().flatten();
        Drawn { kind, demand, client: named.unwrap_or_else(|| self.client(index)), rng }
    }

    /// Apart from the other chance: the work is the same however many ask for it.
    fn client(&self, index: u64) -> u32 {
        let chance = derive(self.seed, index ^ CLIENT) >> 32;
        // Below `clients`, since the chance is below 2^32.
        u32::try_from((chance * u64::from(self.clients)) >> 32).unwrap_or(0)
    }
}

/// The client that a kind of request names in a header of its own: kinds that name the same one are of
/// one client, beyond those that are drawn.
fn named(plan: &Plan, request: &Request) -> Option<u32> {
    let header =
        plan.clients.as_ref().map_or(DEFAULT_CLIENT_HEADER, |clients| clients.header.as_str());
    let value = |request: &Request| {
        let named = |it: &&Header| it.name.eq_ignore_ascii_case(header);
        request.headers.iter().find(named).map(|header| header.value.clone())
    };
    let own = value(request)?;
    let first = plan.requests.iter().position(|other| value(other).as_ref() == Some(&own))?;
    let drawn = plan.clients.as_ref().map_or(0, |clients| clients.count);
    drawn.checked_add(1 + u32::try_from(first).ok()?)
}

fn whole_micros(demand: Duration) -> Duration {
    Duration::from_micros(u64::try_from(demand.as_micros()).unwrap_or(u64::MAX))
}

/// Draws an index with a probability that is proportional to its weight.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    /// Running sums; empty if there is nothing to choose.
    sums: Vec<f64>,
}

impl Weights {
    /// Weights of 0 or more, in order.
    pub(crate) fn new(weights: impl Iterator<Item = f64>) -> Self {
        let mut sum = 0.0;
        let sums: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        Self { sums: if sums.len() > 1 { sums } else { Vec::new() } }
    }

    /// Popularity by Zipf's law: the n-th of `count` has the weight 1/n^exponent.
    pub(crate) fn zipf(count: usize, exponent: f64) -> Self {
        Self::new((1..=count).map(|rank| crate::units::float(rank as u64).powf(-exponent)))
    }

    /// An index; 0 if there is nothing to choose.
    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> usize {
        let Some(total) = self.sums.last() else { return 0 };
        let point = rng.f64() * total;
        self.sums.partition_point(|sum| *sum <= point).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_kept_and_one_choice_needs_none() {
        let mut rng = fastrand::Rng::with_seed(3);
        let weights = Weights::new([1.0, 0.0, 3.0].into_iter());
        let mut counts = [0_u32; 3];
        for _ in 0..40_000 {
            counts[weights.draw(&mut rng)] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((9_500..10_500).contains(&counts[0]), "{counts:?}, seed 3");
        assert_eq!(Weights::new([5.0].into_iter()).draw(&mut rng), 0);
    }

    #[test]
    fn the_first_rank_is_as_popular_as_zipfs_law_says() {
        let mut rng = fastrand::Rng::with_seed(4);
        let weights = Weights::zipf(1000, 1.0);
        let first = (0..100_000).filter(|_| weights.draw(&mut rng) == 0).count();
        // 1 / H(1000) = 0.1336
        assert!((12_900..13_800).contains(&first), "{first}, seed 4");
    }
}
