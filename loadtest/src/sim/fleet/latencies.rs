//! An endpoint's estimate of its latency at the present load, as Prequal's probes ask for it.

use std::collections::VecDeque;

/// Latencies that are remembered, and how many of them a median is taken of.
const MAX_SAMPLES: usize = 64;
const NEAREST_SAMPLES: usize = 9;

/// Durations of the last requests in nanoseconds, and the number of others that each had found.
#[derive(Debug, Default)]
pub(super) struct Latencies(VecDeque<(usize, u64)>);

impl Latencies {
    pub(super) fn add(&mut self, others: usize, took: u64) {
        if self.0.len() == MAX_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back((others, took));
    }

    /// The median of those that found the number of others that is nearest to `in_flight`.
    pub(super) fn at(&self, in_flight: usize) -> u64 {
        let newest_first = self.0.iter().rev();
        let mut near: Vec<(usize, u64)> =
            newest_first.map(|(others, took)| (others.abs_diff(in_flight), *took)).collect();
        // Stable: among those that are equally near the newest count.
        near.sort_by_key(|(distance, _)| *distance);
        near.truncate(NEAREST_SAMPLES);
        near.sort_unstable_by_key(|(_, took)| *took);
        near.get(near.len() / 2).map_or(0, |(_, took)| *took)
    }
}

#[cfg(test)]
mod tests {
    use super::Latencies;

    #[test]
    fn the_estimate_is_the_latency_of_requests_that_found_as_many_others() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.at(3), 0);
        for took in 0..20 {
            latencies.add(1, 100 + took);
            latencies.add(8, 800 + took);
        }
        assert_eq!(latencies.at(0), 115);
        assert_eq!(latencies.at(9), 815);
    }
}
