//! Draws from the distributions that rollouts meet.

use forebay_routing::Rng;
use std::f64::consts::TAU;

/// A number of events with this mean: Poisson's distribution.
pub(super) fn poisson(rng: &mut Rng, mean: f64) -> f64 {
    if mean > 50.0 {
        return (mean + mean.sqrt() * normal(rng)).round().max(0.0);
    }
    let (floor, mut product, mut events) = ((-mean).exp(), rng.share(), 0.0);
    while product > floor {
        product *= rng.share();
        events += 1.0;
    }
    events
}

/// A draw of the standard normal distribution (Box and Muller).
pub(super) fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.share()).ln()).sqrt() * (TAU * rng.share()).cos()
}

/// The number of requests up to and including the next bad one, of which there is this share.
pub(super) fn until_bad(rng: &mut Rng, share: f64) -> f64 {
    ((1.0 - rng.share()).ln() / (1.0 - share).ln()).ceil().max(1.0)
}

/// A factor that wanders between `1 - most` and `1 + most` within half an hour.
pub(super) fn drift(seconds: f64, most: f64, phase: f64) -> f64 {
    1.0 + most * (TAU * (seconds / 1800.0 + phase)).sin()
}

/// Clients with shares of the requests by Zipf's law, and shares of bad requests of their own around a mean.
#[derive(Debug)]
pub(super) struct Clients {
    /// Sums of the shares of the requests, up to each client.
    up_to: Vec<f64>,
    /// Share of bad requests, by client.
    pub(super) bad: Vec<f64>,
    /// The hash of each client, below 1,000.
    pub(super) group: Vec<u16>,
}

impl Clients {
    pub(super) fn new(rng: &mut Rng, count: usize, mean: f64) -> Self {
        let mut sum = 0.0;
        let mut up_to: Vec<f64> = (0..count)
            .map(|rank| {
                sum += 1.0 / (rank as f64 + 1.0).powf(0.9);
                sum
            })
            .collect();
        up_to.iter_mut().for_each(|it| *it /= sum);
        let bad = (0..count).map(|_| (mean * (0.8 * normal(rng) - 0.32).exp()).min(0.9)).collect();
        let group =
            (0..count).map(|_| u16::try_from(rng.below(1000)).unwrap_or_default()).collect();
        Self { up_to, bad, group }
    }

    /// A client, by its share of the requests.
    pub(super) fn draw(&self, rng: &mut Rng) -> usize {
        let at = rng.share();
        self.up_to.partition_point(|sum| *sum <= at).min(self.up_to.len() - 1)
    }
}
