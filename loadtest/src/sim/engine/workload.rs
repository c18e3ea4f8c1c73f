//! The requests of a simulation in the order of their arrival.

use crate::plan::arrivals::Arrivals;
use crate::plan::mix::{Drawn, Mix};
use crate::plan::{Loop, Plan};

/// Requests still to come.
pub(in crate::sim) struct Workload {
    mix: Mix,
    arrivals: Arrivals,
    /// Time of the next request.
    next: Option<u64>,
    /// Its number.
    index: u64,
}

impl Workload {
    pub(in crate::sim) fn new(run: &Plan) -> Self {
        let mut arrivals = match &run.load {
            Loop::Open(source) => source.arrivals(run.seed),
            Loop::Closed => Arrivals::Recorded { times: [].into(), next: 0 },
        };
        Self { mix: Mix::new(run), next: arrivals.next(), arrivals, index: 0 }
    }

    /// Time of the next request, in nanoseconds; `None` after the last one.
    pub(in crate::sim) fn next(&self) -> Option<u64> {
        self.next
    }

    /// Takes the next request: its number and what was drawn for it.
    pub(in crate::sim) fn take(&mut self) -> (u64, Drawn) {
        let index = self.index;
        self.index += 1;
        self.next = self.arrivals.next();
        (index, self.mix.draw(index))
    }
}
