#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use Priority::{High, Normal};
use std::sync::atomic::AtomicU32;

/// A job of a model whose batch of n rows takes `fixed + n * row` seconds.
#[derive(Debug, Clone, PartialEq)]
struct Fake {
    tag: u32,
    rows: usize,
    form: u8,
    limit: usize,
    fixed: f64,
    row: f64,
    preemption_delay: f64,
    deadline: Option<Instant>,
}

fn job(tag: u32) -> Fake {
    Fake {
        tag,
        rows: 1,
        form: 0,
        limit: 1,
        fixed: 0.0,
        row: 0.001,
        preemption_delay: 0.0,
        deadline: None,
    }
}

fn batched(tag: u32) -> Fake {
    Fake { limit: 4, fixed: 0.010, ..job(tag) }
}

fn due_in(ms: u64) -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(ms))
}

impl Work for Fake {
    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn joins(&self, other: &Self) -> bool {
        self.form == other.form
    }
    fn best(&self) -> usize {
        self.limit
    }
    fn limit(&self) -> usize {
        self.limit
    }
    #[allow(clippy::cast_precision_loss, reason = "few rows")]
    fn expected(&self, rows: usize) -> f64 {
        self.fixed + self.row * rows as f64
    }
    fn high_estimate(&self, rows: usize) -> f64 {
        self.expected(rows)
    }
    fn preemption_delay(&self) -> f64 {
        self.preemption_delay
    }
}

const PLAIN: LineConfig = LineConfig { bound: 9, weight: 1, max_delay: Duration::ZERO };

/// A queue whose lines are numbered from 0.
fn queue<const N: usize>(
    executors: usize,
    lines: [LineConfig; N],
) -> (Arc<Queue<Fake>>, [LineHandle; N]) {
    let queue = Queue::new(executors);
    let lines = lines.map(|line| queue.open(line));
    (queue, lines)
}

fn tags(batch: &Batch<Fake>) -> Vec<u32> {
    batch.jobs.iter().map(|job| job.tag).collect()
}

/// Takes a batch and settles it as it was expected.
fn run(queue: &Queue<Fake>) -> Vec<u32> {
    let batch = queue.pop(|| ()).unwrap();
    queue.finished(&batch.account, batch.account.charged);
    tags(&batch)
}

#[test]
fn the_place_of_a_closed_line_is_taken_by_the_next() {
    let (queue, [first, second]) = queue(1, [PLAIN; 2]);
    assert_eq!((first.id(), second.id()), (0, 1));
    drop(first);
    assert_eq!(queue.push(0, Normal, job(7)), Err(PushError::Full(0)), "it is closed");
    let third = queue.open(PLAIN);
    assert_eq!(third.id(), 0);
    queue.push(third.id(), Normal, job(7)).unwrap();
    assert_eq!(run(&queue), [7]);
}

#[test]
fn a_line_at_its_bound_refuses_and_the_others_do_not() {
    let (queue, _lines) = queue(1, [LineConfig { bound: 1, ..PLAIN }, PLAIN]);
    queue.push(0, Normal, job(1)).unwrap();
    assert!(queue.is_full(0) && !queue.is_full(1));
    assert_eq!(queue.push(0, Normal, job(2)), Err(PushError::Full(1)));
    queue.push(1, Normal, job(3)).unwrap();
    assert_eq!((queue.depth(0), queue.depth(1), queue.counts().waiting), (1, 1, 2));
}

#[test]
fn a_withdrawn_job_frees_its_place_and_is_never_given_out() {
    let (queue, _lines) = queue(1, [LineConfig { bound: 2, ..PLAIN }]);
    let first = queue.push(0, Normal, job(1)).unwrap();
    queue.push(0, Normal, job(2)).unwrap();
    assert_eq!(queue.withdraw(0, &first), Some(job(1)));
    assert_eq!(queue.withdraw(0, &first), None);
    queue.push(0, Normal, job(3)).unwrap();
    assert_eq!((run(&queue), run(&queue)), (vec![2], vec![3]));
    assert_eq!(queue.counts(), Counts::default());
}

#[test]
fn a_closed_queue_gives_out_what_it_has_and_then_nothing() {
    let (queue, _lines) = queue(1, [LineConfig { max_delay: Duration::from_secs(1), ..PLAIN }]);
    queue.push(0, Normal, batched(1)).unwrap();
    queue.close();
    assert_eq!(queue.push(0, Normal, job(2)), Err(PushError::Closed));
    assert_eq!(run(&queue), [1], "it does not wait for company either");
    assert!(queue.pop(|| ()).is_none());
}

#[test]
fn many_threads_take_every_job_once() {
    let (queue, _lines) = queue(4, [LineConfig { bound: 10_000, ..PLAIN }; 2]);
    let taken = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(batch) = queue.pop(|| ()) {
                    let sum: u32 = tags(&batch).iter().sum();
                    taken.fetch_add(sum, Relaxed);
                    queue.finished(&batch.account, 0.001);
                }
            });
        }
        for tag in 0..2_000 {
            queue.push(tag as usize % 2, Normal, batched(tag)).unwrap();
        }
        queue.close();
    });
    assert_eq!(taken.into_inner(), 1_999_000);
    assert_eq!(queue.counts(), Counts::default());
}

#[test]
fn the_urgent_class_goes_first_and_within_it_the_earliest_deadline() {
    let (queue, _lines) = queue(1, [PLAIN]);
    let with = |tag, ms| Fake { deadline: due_in(ms), ..job(tag) };
    queue.push(0, Priority::Batch, with(1, 1_000)).unwrap();
    queue.push(0, Normal, job(2)).unwrap();
    queue.push(0, Normal, with(3, 60_000)).unwrap();
    queue.push(0, Normal, with(4, 5_000)).unwrap();
    queue.push(0, High, with(5, 50_000)).unwrap();
    let order: Vec<_> = (0..5).flat_map(|_| run(&queue)).collect();
    // A job without a deadline is ranked like one with some seconds: it is not passed forever.
    assert_eq!(order, [5, 4, 2, 3, 1]);
}

#[test]
fn the_urgent_class_goes_first_between_models_too() {
    let (queue, _lines) = queue(1, [PLAIN; 2]);
    queue.push(0, Normal, job(1)).unwrap();
    queue.push(1, High, job(2)).unwrap();
    assert_eq!((run(&queue), run(&queue)), (vec![2], vec![1]));
}

#[test]
fn lines_share_the_time_of_executors_by_weight() {
    let (queue, _lines) = queue(1, [PLAIN, LineConfig { weight: 3, ..PLAIN }]);
    let mut served = [0, 0];
    for _ in 0..800 {
        for (line, seconds) in [(0, 0.010), (1, 0.001)] {
            if queue.depth(line) == 0 {
                let tag = u32::try_from(line).unwrap();
                queue.push(line, Normal, Fake { row: seconds, ..job(tag) }).unwrap();
            }
        }
        let batch = queue.pop(|| ()).unwrap();
        queue.finished(&batch.account, batch.account.charged);
        served[batch.jobs[0].tag as usize] += 1;
    }
    // Three times the time, in jobs of a tenth.
    assert!((28..=32).contains(&(served[1] / served[0].max(1))), "{served:?}");
}

#[test]
fn a_line_that_was_idle_has_saved_nothing_up() {
    let (queue, _lines) = queue(1, [PLAIN; 2]);
    for tag in 0..9 {
        queue.push(0, Normal, job(tag)).unwrap();
    }
    let order: Vec<_> = (0..5).flat_map(|_| run(&queue)).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    for tag in 10..13 {
        queue.push(1, Normal, job(tag)).unwrap();
    }
    let order: Vec<_> = (0..5).flat_map(|_| run(&queue)).collect();
    assert!(
        order.iter().filter(|&&tag| tag < 10).count() >= 2,
        "in turn, not 10 to 12 first: {order:?}"
    );
}

#[test]
fn what_agrees_in_form_is_joined_up_to_what_is_worth_it() {
    let (queue, _lines) = queue(1, [PLAIN]);
    for tag in 0..6 {
        let form = u8::from(tag == 2);
        queue.push(0, Normal, Fake { form, ..batched(tag) }).unwrap();
    }
    assert_eq!(run(&queue), [0, 1, 3, 4], "4 rows at most, and 2 is of another form");
    assert_eq!(run(&queue), [2]);
    assert_eq!(run(&queue), [5]);
    queue.push(0, Normal, Fake { rows: 3, ..batched(7) }).unwrap();
    queue.push(0, Normal, Fake { rows: 2, ..batched(8) }).unwrap();
    queue.push(0, Normal, Fake { rows: 1, ..batched(9) }).unwrap();
    assert_eq!(run(&queue), [7, 9], "3 + 2 rows are too many, 3 + 1 are not");
    assert_eq!(run(&queue), [8]);
    queue.push(0, Normal, job(10)).unwrap();
    queue.push(0, Normal, job(11)).unwrap();
    assert_eq!(run(&queue), [10], "joining does not pay for this one");
}

#[test]
fn a_batch_is_no_larger_than_its_earliest_deadline_allows() {
    let (queue, _lines) = queue(1, [PLAIN]);
    let slow = |tag, deadline| Fake { fixed: 0.0, row: 10.0, deadline, ..batched(tag) };
    // 1.2 x 10 s for each row: 25 s are enough for two.
    queue.push(0, Normal, slow(1, due_in(25_000))).unwrap();
    for tag in 2..5 {
        queue.push(0, Normal, slow(tag, due_in(90_000))).unwrap();
    }
    assert_eq!(run(&queue), [1, 2]);
    assert_eq!(run(&queue), [3, 4]);
}

#[test]
fn what_is_late_is_let_go_and_never_started() {
    let (queue, _lines) = queue(1, [PLAIN]);
    queue.push(0, Normal, Fake { deadline: Some(Instant::now()), ..job(1) }).unwrap();
    queue.push(0, Normal, job(2)).unwrap();
    assert_eq!(run(&queue), [2]);
    assert_eq!(queue.counts(), Counts::default());
}

#[test]
fn what_cannot_end_in_time_is_let_go_where_others_can() {
    let (queue, _lines) = queue(1, [PLAIN]);
    let with = |tag, ms| Fake { row: 10.0, deadline: due_in(ms), ..job(tag) };
    queue.push(0, Normal, with(1, 9_000)).unwrap();
    queue.push(0, Normal, with(2, 9_900)).unwrap();
    queue.push(0, Normal, with(3, 12_000)).unwrap();
    queue.push(0, Normal, with(4, 90_000)).unwrap();
    assert_eq!(run(&queue), [3], "the earliest deadline that can be met");
    assert_eq!(queue.counts().waiting, 1, "those before it are gone");
    assert_eq!(run(&queue), [4]);
}

#[test]
fn where_nothing_seems_to_end_in_time_the_one_with_the_most_time_left_shows_whether_that_is_so() {
    let (queue, _lines) = queue(1, [PLAIN]);
    for (tag, ms) in [(1, 5_000), (2, 6_000), (3, 7_000)] {
        queue.push(0, Normal, Fake { row: 10.0, deadline: due_in(ms), ..job(tag) }).unwrap();
    }
    queue.push(0, Priority::Batch, Fake { row: 10.0, deadline: due_in(90_000), ..job(4) }).unwrap();
    assert_eq!((run(&queue), run(&queue), run(&queue)), (vec![3], vec![2], vec![1]));
    assert_eq!(run(&queue), [4], "the urgent class goes first all the same");
}

#[test]
fn a_batch_forms_until_it_is_full_or_its_delay_is_over() {
    let delay = Duration::from_secs(1);
    let (queue, _lines) = queue(1, [LineConfig { max_delay: delay, ..PLAIN }]);
    queue.push(0, Normal, batched(1)).unwrap();
    let (forming, closes) = queue.counts().forming.unwrap();
    assert_eq!(forming, 1);
    assert!(closes <= Instant::now() + delay);
    for tag in 2..5 {
        queue.push(0, Normal, batched(tag)).unwrap();
    }
    assert_eq!(queue.counts().forming, None, "it is full");
    assert_eq!(run(&queue), [1, 2, 3, 4]);
    let started = Instant::now();
    queue.push(0, Normal, batched(6)).unwrap();
    assert_eq!(run(&queue), [6]);
    assert!(started.elapsed() >= delay, "{:?}", started.elapsed());
    let started = Instant::now();
    queue.push(0, Normal, Fake { deadline: due_in(100), ..batched(7) }).unwrap();
    assert_eq!(run(&queue), [7]);
    assert!(started.elapsed() < Duration::from_millis(100), "a deadline closes it earlier");
}

#[test]
fn a_long_run_lends_its_executor_to_short_jobs_that_are_behind_their_share() {
    let (queue, _lines) = queue(1, [PLAIN; 2]);
    queue.push(0, Normal, Fake { row: 0.100, ..job(1) }).unwrap();
    let long = queue.pop(|| ()).unwrap();
    assert!(queue.preempt(&long.account).is_none(), "nobody waits");
    queue.push(0, Normal, Fake { row: 0.100, ..job(2) }).unwrap();
    assert!(queue.preempt(&long.account).is_none(), "not to its own line");
    for tag in 3..5 {
        queue.push(1, Normal, Fake { row: 0.060, ..job(tag) }).unwrap();
        assert!(queue.preempt(&long.account).is_none(), "not to what is nearly as long");
        let rank = queue.lock().lines[1].head().copied().unwrap();
        queue.withdraw(1, &rank).unwrap();
    }
    let mut lent = 0;
    for tag in 5..12 {
        queue.push(1, Normal, Fake { row: 0.020, ..job(tag) }).unwrap();
        if let Some(short) = queue.preempt(&long.account) {
            queue.finished(&short.account, 0.020);
            lent += 1;
        }
    }
    assert_eq!(lent, 5, "until it has had as much as the long run");
    queue.push(1, High, Fake { row: 0.020, ..job(20) }).unwrap();
    assert!(queue.preempt(&long.account).is_some(), "the urgent are not counted");
    assert_eq!(queue.counts().executing, 2);
}

#[test]
fn a_model_with_long_nodes_leaves_an_executor_to_a_shorter_one_while_that_is_active() {
    let (queue, _lines) = queue(2, [PLAIN; 2]);
    let coarse = |tag| Fake { row: 0.100, preemption_delay: 0.090, ..job(tag) };
    queue.push(1, Normal, job(1)).unwrap();
    assert_eq!(run(&queue), [1]);
    let short_came = Instant::now();
    for tag in 2..4 {
        queue.push(0, Normal, coarse(tag)).unwrap();
    }
    let first = queue.pop(|| ()).unwrap();
    assert_eq!(tags(&first), [2]);
    queue.push(1, Normal, job(4)).unwrap();
    assert_eq!(run(&queue), [4], "the other executor is the short one's");
    // No short job comes any more: then the second executor is not left idle forever.
    let second = queue.pop(|| ()).unwrap();
    assert_eq!(tags(&second), [3]);
    assert!(short_came.elapsed() >= ACTIVE, "{:?}", short_came.elapsed());
}

#[test]
fn a_model_that_lends_in_time_or_is_alone_may_have_every_executor() {
    let (queue, _lines) = queue(2, [PLAIN; 2]);
    for tag in 2..4 {
        queue.push(0, Normal, Fake { row: 0.100, preemption_delay: 0.090, ..job(tag) }).unwrap();
    }
    let both = [queue.pop(|| ()).unwrap(), queue.pop(|| ()).unwrap()];
    both.iter().for_each(|batch| queue.finished(&batch.account, 0.1));
    queue.push(1, Normal, job(1)).unwrap();
    run(&queue);
    for tag in 4..6 {
        queue.push(0, Normal, Fake { row: 0.100, preemption_delay: 0.0005, ..job(tag) }).unwrap();
    }
    let started = Instant::now();
    let both = [queue.pop(|| ()).unwrap(), queue.pop(|| ()).unwrap()];
    assert_eq!(both.map(|batch| tags(&batch)), [[4], [5]]);
    assert!(started.elapsed() < ACTIVE / 2, "{:?}", started.elapsed());
}
