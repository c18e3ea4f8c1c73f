//! Queues, deadlines, cancellation, and what the load report says of them.
//!
//! One executor and a model that takes seconds make the order of events certain; the slow requests
//! are given up at the end of each test, which stops them between two nodes of the graph.

use crate::harness::*;
use forebay_protocol::header;
use forebay_protocol::oip::{InferStatistics, Statistics};
use forebay_worker::{Options, Worker};
use http::{HeaderValue, Method};
use std::time::{Duration, Instant};

async fn start_single(queue: usize) -> Worker {
    start(Options { executors: 1, queue, ..options(fixtures()) }).await
}

/// A slow request under way; dropping it is the client going away.
struct Slow(tokio::task::JoinHandle<()>);

impl Slow {
    fn start(worker: &Worker) -> Self {
        let address = worker.address();
        Self(tokio::spawn(async move {
            drop(try_send(address, slow_request()).await);
        }))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn arith_with_deadline(ms: &str) -> http::Request<bytes::Bytes> {
    let mut sent = request(Method::POST, "/v2/models/arith/infer", arith_body(1.0, 1.0));
    sent.headers_mut().insert(header::REQUEST_DEADLINE, HeaderValue::from_str(ms).unwrap());
    sent
}

async fn count(worker: &Worker, model: &str, reason: &str) -> u64 {
    let metrics = get(worker, "/metrics").await.text();
    let labels = format!("model=\"{model}\",version=\"1\",reason=\"{reason}\"");
    let line = metrics
        .lines()
        .find(|l| l.starts_with("forebay_worker_inferences_total") && l.contains(&labels));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_is_answered_by_its_own_timer() {
    let worker = start_single(8).await;
    let slow = Slow::start(&worker);
    until_busy(&worker, 1, 0).await;
    let sent = Instant::now();
    let mut behind = slow_request();
    behind.headers_mut().insert(header::REQUEST_DEADLINE, HeaderValue::from_static("60"));
    let answer = send(worker.address(), behind).await;
    answer.refused(504, "deadline_exceeded", "deadline");
    let waited = sent.elapsed();
    assert!(waited >= Duration::from_millis(60), "{waited:?}");
    // The one before it still runs: no request waited for the executor.
    until_busy(&worker, 1, 0).await;
    drop(slow);
    until_busy(&worker, 0, 0).await;
    assert_eq!(count(&worker, "slow", "deadline_exceeded").await, 1);
    let abandoned = get(&worker, "/metrics").await.text();
    let line = "forebay_worker_abandoned_total{model=\"slow\",stage=\"queue\",\
                reason=\"deadline_exceeded\"} 1";
    assert!(abandoned.contains(line), "it should never have started: {abandoned}");
    // The protocol's own timeout does the same.
    let slow = Slow::start(&worker);
    until_busy(&worker, 1, 0).await;
    let body = String::from_utf8(slow_request().into_body().to_vec()).unwrap();
    let body = body.replacen('{', r#"{"parameters":{"timeout":60000},"#, 1);
    infer(&worker, "slow", body).await.refused(504, "deadline_exceeded", "deadline");
    drop(slow);
}

#[tokio::test]
async fn a_deadline_that_has_passed_on_arrival_never_starts() {
    let worker = start_single(8).await;
    let answer = send(worker.address(), arith_with_deadline("0")).await;
    answer.refused(504, "deadline_exceeded", "deadline");
    assert_eq!(count(&worker, "arith", "ok").await, 0);
    let answer = send(worker.address(), arith_with_deadline("20000")).await;
    assert_eq!(answer.outputs()[0], tensor("sum", &[1, 4], vec![2.0; 4]));
}

#[tokio::test]
async fn a_deadline_that_passes_during_the_run_stops_it() {
    let worker = start_single(8).await;
    let mut sent = slow_request();
    sent.headers_mut().insert(header::REQUEST_DEADLINE, HeaderValue::from_static("100"));
    let answer = send(worker.address(), sent).await;
    answer.refused(504, "deadline_exceeded", "deadline");
    // The executor is free again long before the model would have finished.
    let outputs = infer(&worker, "arith", arith_body(1.0, 2.0)).await.outputs();
    assert_eq!(outputs[1], tensor("difference", &[1, 4], vec![-1.0; 4]));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_other_models_are_not_touched() {
    let worker = start_single(2).await;
    let mut slow = vec![Slow::start(&worker)];
    until_busy(&worker, 1, 0).await;
    for waiting in 1..=2 {
        slow.push(Slow::start(&worker));
        until_busy(&worker, 1, waiting).await;
    }
    let answer = send(worker.address(), slow_request()).await;
    answer.refused(503, "queue_full", "slow");
    assert_eq!(answer.header("retry-after"), "1");
    let report = answer.report();
    assert_eq!((report.rif, report.queue, report.slots), (Some(3), Some(2), Some(1)));
    // Another model has a line of its own, and the long run lends it the executor.
    assert_eq!(infer(&worker, "arith", arith_body(1.0, 1.0)).await.status, 200);
    until_busy(&worker, 1, 2).await;
    assert_eq!(count(&worker, "slow", "queue_full").await, 1);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place_and_is_counted() {
    let worker = start_single(1).await;
    let running = Slow::start(&worker);
    until_busy(&worker, 1, 0).await;
    let waiting = Slow::start(&worker);
    until_busy(&worker, 1, 1).await;
    drop(waiting);
    until_busy(&worker, 1, 0).await;
    drop(running);
    // Between two nodes, not after seconds.
    until_busy(&worker, 0, 0).await;
    eventually("both are counted", || async { count(&worker, "slow", "client_closed").await == 2 })
        .await;
    assert_eq!(count(&worker, "slow", "ok").await, 0);
}

#[tokio::test]
async fn a_heavy_model_does_not_keep_a_light_one_waiting() {
    let worker = start_single(8).await;
    let mut slow = Vec::new();
    for waiting in 0..4 {
        slow.push(Slow::start(&worker));
        until_busy(&worker, 1, waiting).await;
    }
    for _ in 0..20 {
        assert_eq!(infer(&worker, "arith", arith_body(1.0, 1.0)).await.status, 200);
    }
    // The only executor was lent between two nodes: the heavy run goes on as it was.
    until_busy(&worker, 1, 3).await;
    let lent = get(&worker, "/metrics").await.text();
    let lent =
        lent.lines().find_map(|l| l.strip_prefix("forebay_worker_lent_total{model=\"slow\"} "));
    assert_eq!(lent, Some("20"));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_clients_each_get_their_own_answer() {
    let worker = start(Options { executors: 4, ..options(fixtures()) }).await;
    let address = worker.address();
    let clients = (0_u16..32).map(|client| {
        tokio::spawn(async move {
            for round in 0_u16..10 {
                let (a, b) = (f32::from(client), f32::from(round));
                let body = arith_body(a, b);
                let sent = request(Method::POST, "/v2/models/arith/infer", body);
                let outputs = send(address, sent).await.outputs();
                assert_eq!(outputs[0], tensor("sum", &[1, 4], vec![a + b; 4]));
                assert_eq!(outputs[1], tensor("difference", &[1, 4], vec![a - b; 4]));
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    until_busy(&worker, 0, 0).await;
    assert_eq!(count(&worker, "arith", "ok").await, 320);
}

/// The model's statistics so far.
async fn times(worker: &Worker, model: &str) -> InferStatistics {
    let answer = get(worker, &format!("/v2/models/{model}/stats")).await;
    let mut found: Statistics = serde_json::from_slice(&answer.body).unwrap();
    found.model_stats.remove(0).inference_stats
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_agree_with_the_time_that_requests_spend_here() {
    // Little's law: the average number there is the sum of all stays by the time. That holds on any machine;
    // the reports are independent evidence, read at other moments than the stays are measured at.
    const CLIENTS: usize = 6;
    const EXECUTORS: u32 = 2;
    let worker = start(Options { executors: 2, ..options(fixtures()) }).await;
    let address = worker.address();
    let body = json_body(vec![tensor("x", &[160], vec![0.03; 160])]);
    let path = "/v2/models/slow/infer";
    // Its plan is compiled by the first.
    assert_eq!(infer(&worker, "slow", body.clone()).await.status, 200);
    let clients = (0..CLIENTS).map(|_| {
        let body = body.clone();
        tokio::spawn(async move {
            for _ in 0..60 {
                let sent = request(Method::POST, path, body.clone());
                assert_eq!(send(address, sent).await.status, 200);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    eventually("they are at it", || async {
        get(&worker, "/v2/health/live").await.report().rif > Some(EXECUTORS)
    })
    .await;
    let (before, started) = (times(&worker, "slow").await, Instant::now());
    let (mut there, mut waiting, mut last) = (0.0, 0.0, started);
    // As long as all of them are at it.
    while !clients.iter().any(tokio::task::JoinHandle::is_finished) {
        let report = get(&worker, "/v2/health/live").await.report();
        let (rif, queue) = (report.rif.unwrap(), report.queue.unwrap());
        assert!(rif as usize <= CLIENTS, "{report}");
        assert!(queue <= rif && rif - queue <= EXECUTORS, "no more than runs at once: {report}");
        assert_eq!(report.slots, Some(EXECUTORS));
        let step = last.elapsed().as_secs_f64();
        (there, waiting) = (there + f64::from(rif) * step, waiting + f64::from(queue) * step);
        last = Instant::now();
    }
    let after = times(&worker, "slow").await;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let grown = |of: fn(&InferStatistics) -> u64| (of(&after) - of(&before)) as f64 / 1e9;
    let (queued, ran) = (grown(|t| t.queue.ns), grown(|t| t.compute_infer.ns));
    let all = started.elapsed().as_secs_f64();
    let close = |a: f64, b: f64| (a - b).abs() <= 0.15 * b.max(all);
    let told = format!(
        "{there:.2} and {waiting:.2} request seconds were reported, {queued:.2} waited and {ran:.2} ran, in {all:.2} s"
    );
    assert!(close(there, queued + ran) && close(waiting, queued), "{told}");
    for client in clients {
        client.await.unwrap();
    }
    until_busy(&worker, 0, 0).await;
}
