//! The figures of a simulation while it goes on.

use crate::report::outcome::Finished;
use crate::report::record::Record;
use crate::sim::impact::Impact;
use crate::sim::plan::SimPlan;
use forebay_routing::queue::fair_queue::CLASSES;

/// The figures of a whole simulation.
#[derive(Debug)]
pub struct SimResult {
    /// The same record that a live run keeps.
    pub record: Record,
    /// Requests that each endpoint served, the warm-up's included.
    pub served: Vec<u64>,
    /// The impact of each fault of the scenario, in order.
    pub faults: Vec<Impact>,
    /// The impact of the time when more was asked for than could be served.
    pub overload: Option<Impact>,
    /// The same by class of urgency, the most urgent first; empty if there was no such time.
    pub classes: Vec<Impact>,
    /// The same by kind of request, in the order of the scenario.
    pub kinds: Vec<Impact>,
    /// Measured requests whose time was up after they were sent to an endpoint.
    pub late: u64,
    /// Second attempts beside slow first ones.
    pub hedges: u64,
    /// Measured requests that a fallback answered.
    pub degraded: u64,
    /// Number of times that a proxy took an endpoint out of rotation.
    pub taken_out: u64,
    /// Events on the virtual clock.
    pub events: u64,
}

/// A result in the making.
pub(super) struct Tally {
    result: SimResult,
    /// By endpoint.
    names: Vec<String>,
}

impl Tally {
    pub(super) fn new(plan: &SimPlan) -> Self {
        let impact = |(begin, end)| Impact::new(begin, end);
        let n = plan.endpoints();
        let result = SimResult {
            record: Record::default(),
            served: vec![0; n],
            faults: plan.faults.iter().map(|fault| impact(plan.fault_span(fault))).collect(),
            overload: plan.overload.map(impact),
            classes: (0..CLASSES).filter_map(|_| plan.overload.map(impact)).collect(),
            kinds: plan.run.requests.iter().filter_map(|_| plan.overload.map(impact)).collect(),
            late: 0,
            hedges: 0,
            degraded: 0,
            taken_out: 0,
            events: 0,
        };
        Self { result, names: (0..n).map(|number| format!("endpoint-{number}")).collect() }
    }

    /// An attempt was sent to `endpoint` at `now`: a hedge, if the request has another one.
    pub(super) fn sent(&mut self, plan: &SimPlan, now: u64, endpoint: usize, is_hedge: bool) {
        for (impact, fault) in self.result.faults.iter_mut().zip(&plan.faults) {
            let hit = fault.endpoints.iter().any(|number| *number as usize == endpoint);
            impact.bound(now, hit);
        }
        self.result.hedges += u64::from(is_hedge);
    }

    /// A proxy took an endpoint into rotation, or out of it.
    pub(super) fn rotated(&mut self, ready: bool) {
        self.result.taken_out += u64::from(!ready);
    }

    /// An endpoint has served so many requests more.
    pub(super) fn served(&mut self, endpoint: usize, count: u64) {
        self.result.served[endpoint] += count;
    }

    /// The time of a measured request was up after it was sent.
    pub(super) fn late(&mut self) {
        self.result.late += 1;
    }

    /// The answer that counts for a measured request came from `endpoint`, of a variant that stood in or not.
    pub(super) fn answered(&mut self, endpoint: usize, degraded: bool) {
        self.result.degraded += u64::from(degraded);
        self.result.record.share(None, Some(&self.names[endpoint]));
    }

    /// A request of this kind is over.
    pub(super) fn finish(&mut self, plan: &SimPlan, kind: usize, finished: &Finished) {
        let result = &mut self.result;
        result.record.finish(plan.run.timeline, finished);
        let class = result.classes.get_mut(usize::from(plan.classes[kind]));
        let kind = result.kinds.get_mut(kind);
        let impacts = result.faults.iter_mut().chain(&mut result.overload).chain(class);
        for impact in impacts.chain(kind) {
            impact.finished(finished);
        }
    }

    pub(super) fn into_result(self, events: u64) -> SimResult {
        SimResult { events, ..self.result }
    }
}
