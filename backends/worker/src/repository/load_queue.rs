//! Waiting and running loads, and which may start next.
//!
//! Loading may take minutes, or as long as `load_timeout` allows. If loads went one after the other, one
//! such model would keep every other out of service. So each load runs on a thread of its own, a few at
//! once; one that takes long does not count among those few any more, up to a bound that no repository of
//! healthy models comes near. A model has at most one load that counts: further requests for it wait, and
//! are merged.

use crate::repository::command::{Cancel, Reply, TaskId, Why};
use std::time::{Duration, Instant};

/// A load that has taken so long does not keep others from starting.
const LONG: Duration = Duration::from_secs(5);
/// Most loads at once, those that take long included.
const MAX_LOADS: usize = 8;

/// A load that is wanted.
#[derive(Debug)]
pub(crate) struct LoadRequest {
    pub(crate) model: String,
    pub(crate) why: Why,
    /// This version alone; `None`: what the model's directory says.
    pub(crate) number: Option<u64>,
    pub(crate) replies: Vec<Reply>,
}

#[derive(Debug)]
struct Running {
    id: TaskId,
    model: String,
    cancel: Cancel,
    since: Instant,
}

/// All loads of a worker.
#[derive(Debug)]
pub(crate) struct LoadQueue {
    waiting: Vec<LoadRequest>,
    running: Vec<Running>,
    /// Loads that may run at once, not counting those that take long.
    width: usize,
    next: TaskId,
}

impl LoadQueue {
    pub(crate) fn new(width: usize) -> Self {
        Self { waiting: Vec::new(), running: Vec::new(), width: width.max(1), next: 0 }
    }

    /// Puts a load in line, or joins it to one that waits for the same.
    pub(crate) fn push(&mut self, request: LoadRequest) {
        let same = |other: &&mut LoadRequest| {
            other.model == request.model && other.number == request.number
        };
        match self.waiting.iter_mut().find(same) {
            Some(other) => {
                other.why = other.why.max(request.why);
                other.replies.extend(request.replies);
            }
            None => self.waiting.push(request),
        }
    }

    /// The next load that may be started now: first what clients wait for, then what was asked for.
    pub(crate) fn start(&mut self, now: Instant) -> Option<(TaskId, LoadRequest, Cancel)> {
        let young = self.running.iter().filter(|running| now - running.since < LONG).count();
        if young >= self.width || self.running.len() >= MAX_LOADS {
            return None;
        }
        let may_start = |request: &LoadRequest| !self.runs(&request.model);
        let waiting = self.waiting.iter().enumerate().filter(|(_, request)| may_start(request));
        let (index, _) =
            waiting.max_by_key(|(index, request)| (request.why, std::cmp::Reverse(*index)))?;
        let request = self.waiting.remove(index);
        let (id, cancel) = (self.next, Cancel::new());
        self.next += 1;
        let model = request.model.clone();
        self.running.push(Running { id, model, cancel: cancel.clone(), since: now });
        Some((id, request, cancel))
    }

    /// The time at which a waiting load may start even if no running load ends until then.
    pub(crate) fn next_start(&self, now: Instant) -> Option<Instant> {
        if self.waiting.is_empty() {
            return None;
        }
        let times = self.running.iter().map(|running| running.since + LONG);
        times.filter(|at| *at > now).min()
    }

    /// A load has ended.
    pub(crate) fn ended(&mut self, id: TaskId) {
        self.running.retain(|running| running.id != id);
    }

    /// Takes back all waiting loads of a model and cancels the load of it that runs; gives the replies
    /// that were awaited by those that had not begun.
    pub(crate) fn cancel(&mut self, model: &str) -> Vec<Reply> {
        self.running.iter().filter(|running| running.model == model).for_each(|running| {
            running.cancel.cancel();
        });
        let taken = self.waiting.extract_if(.., |request| request.model == model);
        taken.flat_map(|request| request.replies).collect()
    }

    /// Whether a load of the model runs or waits, not counting cancelled ones.
    pub(crate) fn has(&self, model: &str) -> bool {
        self.runs(model) || self.waiting.iter().any(|request| request.model == model)
    }

    fn runs(&self, model: &str) -> bool {
        let mut of_model = self.running.iter().filter(|running| running.model == model);
        of_model.any(|running| !running.cancel.is_cancelled())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::sync::oneshot;

    fn request(model: &str, why: Why) -> LoadRequest {
        LoadRequest { model: model.to_owned(), why, number: None, replies: Vec::new() }
    }

    fn started(loads: &mut LoadQueue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| loads.start(now)).map(|(_, request, _)| request.model).collect()
    }

    #[test]
    fn few_run_at_once_and_those_that_take_long_do_not_keep_others_waiting() {
        let (mut loads, now) = (LoadQueue::new(2), Instant::now());
        for model in 0..12 {
            loads.push(request(&format!("m{model:02}"), Why::Present));
        }
        assert_eq!(started(&mut loads, now), ["m00", "m01"], "in the order in which they came");
        assert_eq!(loads.next_start(now), Some(now + LONG));
        assert_eq!(started(&mut loads, now + LONG), ["m02", "m03"]);
        let later = now + 10 * LONG;
        assert_eq!(started(&mut loads, later), ["m04", "m05"]);
        assert_eq!(started(&mut loads, later + LONG), ["m06", "m07"]);
        assert!(started(&mut loads, later + 10 * LONG).is_empty(), "a bound for those too");
        loads.ended(3);
        assert_eq!(started(&mut loads, later + 10 * LONG), ["m08"]);
    }

    #[test]
    fn what_requests_wait_for_goes_first_and_loads_of_one_model_are_joined() {
        let (mut loads, now) = (LoadQueue::new(1), Instant::now());
        loads.push(request("a", Why::Present));
        loads.push(request("b", Why::Present));
        loads.push(request("c", Why::Present));
        loads.push(request("c", Why::Asked));
        loads.push(LoadRequest { number: Some(1), ..request("d", Why::Fetched) });
        let mut order = Vec::new();
        while let Some((id, request, _)) = loads.start(now) {
            order.push((request.model, request.why));
            loads.ended(id);
        }
        let expected =
            [("d", Why::Fetched), ("c", Why::Asked), ("a", Why::Present), ("b", Why::Present)];
        assert_eq!(order, expected.map(|(model, why)| (model.to_owned(), why)));
    }

    #[test]
    fn a_model_is_loaded_once_at_a_time_and_again_once_that_is_cancelled() {
        let (mut loads, now) = (LoadQueue::new(4), Instant::now());
        loads.push(request("a", Why::Present));
        let (_, _, cancel) = loads.start(now).unwrap();
        loads.push(request("a", Why::Asked));
        assert!(loads.start(now).is_none() && loads.has("a"));
        let (reply, mut answer) = oneshot::channel();
        loads.push(LoadRequest { replies: vec![reply], ..request("a", Why::Asked) });
        let replies = loads.cancel("a");
        assert!(cancel.is_cancelled() && replies.len() == 1 && !loads.has("a"));
        drop(replies);
        assert!(answer.try_recv().is_err());
        loads.push(request("a", Why::Asked));
        assert!(loads.start(now).is_some_and(|(_, _, cancel)| !cancel.is_cancelled()));
    }
}
