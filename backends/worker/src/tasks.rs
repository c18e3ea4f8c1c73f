//! Loads that wait and loads that run: which may start next.
//!
//! Loading may take minutes, or for ever, as long as `load_timeout` allows. If loads went one after
//! the other, one such model would keep every other out of service. So each load runs on a thread of
//! its own, a few at once; one that takes long does not count among those few any more, up to a bound
//! that no repository of healthy models comes near. A model has at most one load that counts: what
//! is asked of it meanwhile waits, and is merged.

use crate::command::{Cancel, Reply, TaskId, Why};
use std::time::{Duration, Instant};

/// A load that has taken so long does not keep others from starting.
const LONG: Duration = Duration::from_secs(5);
/// Most loads at once, those that take long included.
const MOST: usize = 8;

/// The models to load.
#[derive(Debug)]
pub(crate) struct Wish {
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
pub(crate) struct Tasks {
    waiting: Vec<Wish>,
    running: Vec<Running>,
    /// Loads that may run at once, not counting those that take long.
    width: usize,
    next: TaskId,
}

impl Tasks {
    pub(crate) fn new(width: usize) -> Self {
        Self { waiting: Vec::new(), running: Vec::new(), width: width.max(1), next: 0 }
    }

    /// Puts a wish in line, or joins it to one that waits for the same.
    pub(crate) fn wish(&mut self, wish: Wish) {
        let same = |other: &&mut Wish| other.model == wish.model && other.number == wish.number;
        match self.waiting.iter_mut().find(same) {
            Some(other) => {
                other.why = other.why.max(wish.why);
                other.replies.extend(wish.replies);
            }
            None => self.waiting.push(wish),
        }
    }

    /// The next wish that may be started now: first what requests wait for, then what was asked for.
    pub(crate) fn start(&mut self, now: Instant) -> Option<(TaskId, Wish, Cancel)> {
        let young = self.running.iter().filter(|running| now - running.since < LONG).count();
        if young >= self.width || self.running.len() >= MOST {
            return None;
        }
        let may_start = |wish: &Wish| !self.runs(&wish.model);
        let waiting = self.waiting.iter().enumerate().filter(|(_, wish)| may_start(wish));
        let (index, _) =
            waiting.max_by_key(|(index, wish)| (wish.why, std::cmp::Reverse(*index)))?;
        let wish = self.waiting.remove(index);
        let (id, cancel) = (self.next, Cancel::new());
        self.next += 1;
        let model = wish.model.clone();
        self.running.push(Running { id, model, cancel: cancel.clone(), since: now });
        Some((id, wish, cancel))
    }

    /// When a wish may be started that may not be now, even if no load ends until then.
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

    /// Takes back all wishes for a model and cancels the load of it that runs; gives the replies
    /// that were awaited by those that had not begun.
    pub(crate) fn cancel(&mut self, model: &str) -> Vec<Reply> {
        self.running.iter().filter(|running| running.model == model).for_each(|running| {
            running.cancel.cancel();
        });
        let taken = self.waiting.extract_if(.., |wish| wish.model == model);
        taken.flat_map(|wish| wish.replies).collect()
    }

    /// Does a load of the model run or wait, not counting cancelled ones?
    pub(crate) fn has(&self, model: &str) -> bool {
        self.runs(model) || self.waiting.iter().any(|wish| wish.model == model)
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

    fn wish(model: &str, why: Why) -> Wish {
        Wish { model: model.to_owned(), why, number: None, replies: Vec::new() }
    }

    fn started(tasks: &mut Tasks, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| tasks.start(now)).map(|(_, wish, _)| wish.model).collect()
    }

    #[test]
    fn few_run_at_once_and_those_that_take_long_do_not_keep_others_waiting() {
        let (mut tasks, now) = (Tasks::new(2), Instant::now());
        for model in 0..12 {
            tasks.wish(wish(&format!("m{model:02}"), Why::Present));
        }
        assert_eq!(started(&mut tasks, now), ["m00", "m01"], "in the order in which they came");
        assert_eq!(tasks.next_start(now), Some(now + LONG));
        assert_eq!(started(&mut tasks, now + LONG), ["m02", "m03"]);
        let later = now + 10 * LONG;
        assert_eq!(started(&mut tasks, later), ["m04", "m05"]);
        assert_eq!(started(&mut tasks, later + LONG), ["m06", "m07"]);
        assert!(started(&mut tasks, later + 10 * LONG).is_empty(), "a bound for those too");
        tasks.ended(3);
        assert_eq!(started(&mut tasks, later + 10 * LONG), ["m08"]);
    }

    #[test]
    fn what_requests_wait_for_goes_first_and_wishes_for_one_model_are_joined() {
        let (mut tasks, now) = (Tasks::new(1), Instant::now());
        tasks.wish(wish("a", Why::Present));
        tasks.wish(wish("b", Why::Present));
        tasks.wish(wish("c", Why::Present));
        tasks.wish(wish("c", Why::Asked));
        tasks.wish(Wish { number: Some(1), ..wish("d", Why::Fetched) });
        let mut order = Vec::new();
        while let Some((id, wish, _)) = tasks.start(now) {
            order.push((wish.model, wish.why));
            tasks.ended(id);
        }
        let expected =
            [("d", Why::Fetched), ("c", Why::Asked), ("a", Why::Present), ("b", Why::Present)];
        assert_eq!(order, expected.map(|(model, why)| (model.to_owned(), why)));
    }

    #[test]
    fn a_model_is_loaded_once_at_a_time_and_again_once_that_is_cancelled() {
        let (mut tasks, now) = (Tasks::new(4), Instant::now());
        tasks.wish(wish("a", Why::Present));
        let (_, _, cancel) = tasks.start(now).unwrap();
        tasks.wish(wish("a", Why::Asked));
        assert!(tasks.start(now).is_none() && tasks.has("a"));
        let (reply, mut answer) = oneshot::channel();
        tasks.wish(Wish { replies: vec![reply], ..wish("a", Why::Asked) });
        let replies = tasks.cancel("a");
        assert!(cancel.is_cancelled() && replies.len() == 1 && !tasks.has("a"));
        drop(replies);
        assert!(answer.try_recv().is_err());
        tasks.wish(wish("a", Why::Asked));
        assert!(tasks.start(now).is_some_and(|(_, _, cancel)| !cancel.is_cancelled()));
    }
}
