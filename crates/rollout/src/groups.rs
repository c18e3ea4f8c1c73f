//! Differences of groups of clients.
//!
//! A sticky split keeps a client at its variant, and clients differ: one that sends malformed requests all day
//! would be evidence against whichever variant it was given. There the clients are the observations. They are
//! gathered by the same hash that assigns them, in as many groups as a weight has steps.

use crate::blocks::half_width;

/// Number of groups.
pub const GROUPS: u16 = 1000;
/// Groups that a variant needs, counted by the evenness of their requests, before the first verdict.
pub const MIN_GROUPS: f64 = 15.0;

#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Group {
    requests: u32,
    bad: u32,
}

/// All groups, by variant.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GroupTest {
    stable: Vec<Group>,
    canary: Vec<Group>,
}

impl Default for GroupTest {
    fn default() -> Self {
        let groups = || vec![Group::default(); usize::from(GROUPS)];
        Self { stable: groups(), canary: groups() }
    }
}

/// The share of bad requests of one variant.
struct Share {
    mean: f64,
    /// Square of its standard error.
    variance: f64,
    /// Number of groups of equal size that would tell as much.
    groups: f64,
}

impl GroupTest {
    /// Takes in a request of a client of this group.
    pub fn add(&mut self, is_canarys: bool, is_bad: bool, group: u16) {
        let groups = if is_canarys { &mut self.canary } else { &mut self.stable };
        if let Some(group) = groups.get_mut(usize::from(group)) {
            group.requests = group.requests.saturating_add(1);
            group.bad = group.bad.saturating_add(u32::from(is_bad));
        }
    }

    /// Bounds below and above the difference of the shares, canary's minus stable's. `None`: too few groups.
    pub fn bounds(&self, alpha: f64) -> Option<(f64, f64)> {
        let (stable, canary) = (share(&self.stable)?, share(&self.canary)?);
        let groups = stable.groups.min(canary.groups);
        if groups < MIN_GROUPS {
            return None;
        }
        let half = (stable.variance + canary.variance).sqrt() * half_width(groups, alpha);
        let difference = canary.mean - stable.mean;
        Some((difference - half, difference + half))
    }
}

/// `None`: no requests.
fn share(groups: &[Group]) -> Option<Share> {
    let seen = || groups.iter().filter(|group| group.requests > 0);
    let sum = |of: fn(&Group) -> f64| seen().map(of).sum::<f64>();
    let requests = sum(|group| f64::from(group.requests));
    if requests < 1.0 {
        return None;
    }
    let evenness = requests.powi(2) / sum(|group| f64::from(group.requests).powi(2));
    let mean = sum(|group| f64::from(group.bad)) / requests;
    let squares: f64 =
        seen().map(|group| (f64::from(group.bad) - mean * f64::from(group.requests)).powi(2)).sum();
    // As if one bad request more had been seen: none is no proof that there are none.
    let variance = (squares + 1.0) / requests.powi(2) * evenness / (evenness - 1.0).max(0.1);
    Some(Share { mean, variance, groups: evenness })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_that_all_clients_see_is_found_and_that_of_one_is_not() {
        let filled = |bad: fn(bool, u16) -> u32| {
            let mut test = GroupTest::default();
            for group in 0..GROUPS {
                let is_canarys = group < 100;
                for request in 0..100 {
                    test.add(is_canarys, request < bad(is_canarys, group), group);
                }
            }
            test.bounds(0.05).unwrap_or_default()
        };
        let (lower, _) = filled(|is_canarys, _| if is_canarys { 5 } else { 1 });
        assert!(lower > 0.02, "{lower}");
        let (lower, _) = filled(|_, group| if group == 7 { 100 } else { 1 });
        assert!(lower < 0.0, "{lower}");
    }

    #[test]
    fn few_clients_give_no_bounds() {
        let mut test = GroupTest::default();
        for request in 0..10_000_u32 {
            let group = u16::try_from(request % 10).unwrap_or_default();
            test.add(group < 5, request % 50 == 0, group);
        }
        assert_eq!(test.bounds(0.05), None);
        test.add(true, true, GROUPS);
    }
}
