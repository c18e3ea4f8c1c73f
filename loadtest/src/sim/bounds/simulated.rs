//! The bounds of a simulated fleet, over the requests of its scenario.

use super::{Ask, Server};
use crate::distribution::Distribution;
use crate::report::fleet::{Advice, FleetReport, Level};
use crate::scenario::Group;
use crate::sim::engine::workload::Workload;
use crate::sim::{SimPlan, SimPolicy, SimResult, engine};
use crate::units::nanos;

/// The report on the fleet of `plan`, of which a policy made what was `found`.
pub(in crate::sim) fn report(plan: &SimPlan, found: &SimResult) -> FleetReport {
    let (asks, servers) = (asks(plan), servers(plan));
    let way = plan.one_way * 2;
    let record = &found.record;
    let has_batches = plan.groups.iter().any(|group| group.batch.is_some());
    // Faults can be foreseen only where they are simulated.
    let perfect = match (has_batches, plan.faults.is_empty()) {
        (true, _) => None,
        (false, true) => Some(super::perfect(&asks, &servers, way)),
        (false, false) => {
            let record = engine::run(plan, SimPolicy::Oracle).record;
            Some(Level::new(&record.latency, record.total() - record.ok()))
        }
    };
    let measured = asks.iter().filter(|ask| ask.is_measured);
    FleetReport {
        pool: None,
        endpoints: servers.len(),
        requests: measured.count() as u64,
        load: super::load(&asks, &servers),
        ideal: super::ideal(&asks, &servers, way),
        capacity: super::capacity(&asks, &servers, way),
        perfect,
        actual: Level::new(&record.latency, record.total() - record.ok()),
        advice: Advice::Nothing,
        missing: missing(plan, has_batches),
    }
    .advised()
}

fn missing(plan: &SimPlan, has_batches: bool) -> Vec<String> {
    let facts = [
        (has_batches, "which requests will share a batch, so there is no perfect routing"),
        (!plan.faults.is_empty(), "faults, at the first two levels"),
    ];
    facts.into_iter().filter(|(is_so, _)| *is_so).map(|(_, fact)| fact.to_owned()).collect()
}

/// The endpoints of the route's own pool.
fn servers(plan: &SimPlan) -> Vec<Server> {
    let server = |group: &Group| Server { slots: group.slots, slow: group.slow };
    own(plan).flat_map(|group| std::iter::repeat_n(server(group), group.count as usize)).collect()
}

fn own(plan: &SimPlan) -> impl Iterator<Item = &Group> {
    plan.groups.iter().filter(|group| group.pool.is_none())
}

fn asks(plan: &SimPlan) -> Vec<Ask> {
    let warm_up = nanos(plan.run.timeline.warm_up);
    let batch = own(plan).find_map(|group| group.batch);
    let service = own(plan).next().map_or(Distribution::Constant(0.0), |group| group.service);
    let (base, each, size) = batch.map_or((0, 0, 1), |batch| {
        (nanos(batch.base), nanos(batch.each), u64::from(batch.max_size))
    });
    let mut workload = Workload::new(&plan.run);
    let mut asks = Vec::new();
    while let Some(at) = workload.next() {
        let (_, mut drawn) = workload.take();
        let demand = drawn.demand.unwrap_or_else(|| service.draw(&mut drawn.rng));
        let demand = nanos(demand);
        asks.push(Ask {
            at,
            alone: base + each + demand,
            work: base / size + each + demand,
            patience: plan.timeouts[drawn.kind].0,
            is_measured: at >= warm_up,
        });
    }
    asks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;
    use crate::scenario::{Load, Phase, Scenario};
    use std::path::Path;
    use std::time::Duration;

    /// Of each phase, at most.
    const LENGTH: Duration = Duration::from_secs(20);

    fn report_of(scenario: &str, policy: &str) -> FleetReport {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim");
        let mut scenario = Scenario::read(&directory.join(scenario)).unwrap();
        if let Load::Open(open) = &mut scenario.load {
            for phase in &mut open.phases {
                if let Phase::Constant(constant) = phase {
                    constant.length = constant.length.min(LENGTH);
                }
            }
        }
        let plan = SimPlan::new(scenario).unwrap();
        report(&plan, &engine::run(&plan, SimPolicy::named(policy).unwrap()))
    }

    #[test]
    fn routing_that_knows_nothing_of_load_is_what_keeps_a_mixed_fleet_waiting() {
        let blind = report_of("tail75.toml", "random");
        assert_eq!(blind.advice, Advice::LookAtTheProxy, "{blind:?}");
        assert!((blind.load - 0.75).abs() < 0.03, "{}", blind.load);
        let own = report_of("tail75.toml", "adaptive");
        assert_ne!(own.advice, Advice::LookAtTheProxy, "{own:?}");
        assert!(own.perfect.as_ref().is_some_and(|it| it.latency.mean <= own.actual.latency.mean));
    }

    #[test]
    fn more_than_all_endpoints_can_do_asks_for_machines() {
        let overload = report_of("overload2x.toml", "adaptive");
        assert_eq!(overload.advice, Advice::AddMachines, "{overload:?}");
        assert!(overload.capacity.lost > 0.1 && overload.ideal.lost < 0.01, "{overload:?}");
    }
}
