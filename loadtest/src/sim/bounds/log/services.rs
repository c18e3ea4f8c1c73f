//! The work of recorded requests and the speed of endpoints, inferred from when requests were sent and answered.
//!
//! An endpoint serves first come, first served, so a request that found all slots taken began when one was free:
//! at the end of an earlier one, which the log has. Endpoints whose services differ by no more than chance count as
//! alike: otherwise perfect routing would follow noise.

use super::requests::{End, Pool, Recorded};
use crate::sim::bounds::Server;
use crate::units::{float, nanos_of};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Standard errors by which two endpoints' means must differ to count as different.
const CERTAIN: f64 = 3.0;
/// The least service, and the precision of arrivals, in nanoseconds.
const MIN_SERVICE: u64 = 1_000;
const PRECISION: u64 = 1_000_000;

/// The inferred part.
pub(super) struct Services {
    /// Of each request, in nanoseconds at the speed of an endpoint that is not slow.
    pub(super) work: Vec<u64>,
    pub(super) servers: Vec<Server>,
    /// Requests that found all slots taken.
    pub(super) behind: u64,
    /// Requests of which no service is known.
    pub(super) guessed: u64,
    /// Endpoints whose slots are not stated.
    pub(super) unstated: u64,
}

/// Infers the services of a pool; `stated`: the slots of endpoints of which the log has none.
pub(super) fn infer(pool: &Pool, stated: Option<u32>) -> Services {
    let by_endpoint = by_endpoint(pool);
    let slots: Vec<u32> = pool
        .slots
        .iter()
        .zip(&by_endpoint)
        .map(|(slots, there)| slots.or(stated).unwrap_or_else(|| most_at_once(there)))
        .collect();
    let unstated = pool.slots.iter().filter(|slots| slots.or(stated).is_none()).count() as u64;
    let mut services: Vec<Option<u64>> = vec![None; pool.requests.len()];
    let mut behind = 0;
    for (there, slots) in by_endpoint.iter().zip(&slots) {
        behind += serve(there, *slots, &mut services);
    }
    let means = model_means(&pool.requests, &services);
    let mean = |request: &Recorded| means.get(&request.model).copied().unwrap_or(0.0);
    let slow = slowness(pool, &services, &mean);
    let guessed = services.iter().filter(|service| service.is_none()).count() as u64;
    // Means are over endpoints as they are; a guess is of one that is not slow.
    let usual = usual(&pool.requests, &services, &slow);
    let work = |(request, service): (&Recorded, &Option<u64>)| match (service, &request.end) {
        (Some(service), End::Answered { endpoint, .. }) => {
            nanos_of(float(*service) / slow[*endpoint] / 1e9)
        }
        _ => nanos_of(mean(request) * usual / 1e9),
    };
    let work = pool.requests.iter().zip(&services).map(work).collect();
    let servers =
        slots.iter().zip(&slow).map(|(slots, slow)| Server { slots: *slots, slow: *slow });
    Services { work, servers: servers.collect(), behind, guessed, unstated }
}

/// Of a request at an endpoint: when it was sent and answered, its index, and whether it was sent once.
type Stay = (u64, u64, usize, bool);

fn by_endpoint(pool: &Pool) -> Vec<Vec<Stay>> {
    let mut stays: Vec<Vec<Stay>> = vec![Vec::new(); pool.slots.len()];
    for (index, request) in pool.requests.iter().enumerate() {
        if let End::Answered { endpoint, sent, is_single } = request.end {
            let end = request.at.saturating_add(request.took);
            stays[endpoint].push((sent, end, index, is_single));
        }
    }
    stays.iter_mut().for_each(|stays| stays.sort_unstable());
    stays
}

/// The most requests that were there at a time; at least one.
fn most_at_once(stays: &[Stay]) -> u32 {
    let mut ends: BinaryHeap<Reverse<u64>> = BinaryHeap::new();
    let mut most = 1;
    for (sent, end, ..) in stays {
        let latest = sent.saturating_add(PRECISION);
        while ends.peek().is_some_and(|Reverse(first)| *first <= latest) {
            ends.pop();
        }
        ends.push(Reverse(*end));
        most = most.max(ends.len());
    }
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// Writes the service of each that was sent once; the number of those that found all slots taken.
fn serve(stays: &[Stay], slots: u32, services: &mut [Option<u64>]) -> u64 {
    let mut free: BinaryHeap<Reverse<u64>> = BinaryHeap::new();
    let mut behind = 0;
    for (sent, end, index, is_single) in stays {
        let mut begins = *sent;
        if free.len() >= slots as usize
            && let Some(Reverse(first)) = free.pop()
        {
            behind += u64::from(first > *sent);
            begins = begins.max(first);
        }
        free.push(Reverse(*end));
        if *is_single {
            services[*index] = Some(end.saturating_sub(begins).max(MIN_SERVICE));
        }
    }
    behind
}

fn model_means(requests: &[Recorded], services: &[Option<u64>]) -> HashMap<Option<String>, f64> {
    let mut sums: HashMap<Option<String>, (f64, f64)> = HashMap::new();
    for (request, service) in requests.iter().zip(services) {
        let Some(service) = service else { continue };
        let (sum, count) = sums.entry(request.model.clone()).or_default();
        (*sum, *count) = (*sum + float(*service), *count + 1.0);
    }
    sums.into_iter().map(|(model, (sum, count))| (model, sum / count)).collect()
}

/// Of each endpoint: its services take so many times as long as those of the fastest.
fn slowness(pool: &Pool, services: &[Option<u64>], mean: &impl Fn(&Recorded) -> f64) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); pool.slots.len()];
    let (mut square, mut all) = (0.0, 0.0);
    for (request, service) in pool.requests.iter().zip(services) {
        let (Some(service), End::Answered { endpoint, .. }) = (service, &request.end) else {
            continue;
        };
        let ratio = float(*service) / mean(request).max(1.0);
        let (sum, count) = &mut sums[*endpoint];
        (*sum, *count) = (*sum + ratio, *count + 1.0);
        (square, all) = (square + (ratio - 1.0) * (ratio - 1.0), all + 1.0);
    }
    let variance = if all > 1.0 { square / all } else { 0.0 };
    let mut order: Vec<usize> = (0..sums.len()).filter(|at| sums[*at].1 > 0.0).collect();
    let mean_of = |at: &usize| sums[*at].0 / sums[*at].1;
    order.sort_by(|one, other| mean_of(one).total_cmp(&mean_of(other)));
    // Neighbours in order of speed are one group as long as chance explains their difference.
    let mut groups: Vec<(f64, f64, Vec<usize>)> = Vec::new();
    for at in order {
        let (sum, count) = sums[at];
        if let Some((group_sum, group_count, members)) = groups.last_mut() {
            let off = sum / count - *group_sum / *group_count;
            if off * off <= CERTAIN * CERTAIN * variance * (1.0 / count + 1.0 / *group_count) {
                (*group_sum, *group_count) = (*group_sum + sum, *group_count + count);
                members.push(at);
                continue;
            }
        }
        groups.push((sum, count, vec![at]));
    }
    let fastest = groups.first().map_or(1.0, |(sum, count, _)| sum / count);
    // One of which no service is known is like the fastest.
    let mut slow = vec![1.0; sums.len()];
    for (sum, count, members) in groups {
        for at in members {
            slow[at] = (sum / count / fastest).max(1.0);
        }
    }
    slow
}

/// The mean of what is inferred as a share of the mean of what was seen.
fn usual(requests: &[Recorded], services: &[Option<u64>], slow: &[f64]) -> f64 {
    let (mut own, mut seen) = (0.0, 0.0);
    for (request, service) in requests.iter().zip(services) {
        if let (Some(service), End::Answered { endpoint, .. }) = (service, &request.end) {
            own += float(*service) / slow[*endpoint];
            seen += float(*service);
        }
    }
    if seen > 0.0 { own / seen } else { 1.0 }
}
