//! Requests that run together, and what must not come of it.

use crate::harness::*;
use bytes::Bytes;
use forebay_protocol::header;
use forebay_protocol::oip::{Data, Tensor};
use forebay_worker::{Options, Phase, Worker};
use http::{HeaderValue, Method, Request};
use std::time::{Duration, Instant};

/// A worker of small models, each with this `model.toml`.
async fn start_with(scratch: &Scratch, executors: usize, models: &[(&str, &str)]) -> Worker {
    for (model, config) in models {
        scratch.write(&format!("{model}/1/model.onnx"), Scratch::model(model));
        scratch.write(&format!("{model}/model.toml"), config);
    }
    start(Options { executors, ..options(scratch.path().to_owned()) }).await
}

fn infer_request(model: &str, body: impl Into<Bytes>) -> Request<Bytes> {
    request(Method::POST, &format!("/v2/models/{model}/infer"), body)
}

fn lookup(rows: &[i64]) -> Vec<u8> {
    json_body(vec![Tensor::new("x", vec![rows.len()], Data::Int64(rows.to_vec().into())).unwrap()])
}

/// The value of a metric whose line begins so; 0 if it is not there.
async fn metric(worker: &Worker, line: &str) -> f64 {
    let text = get(worker, "/metrics").await.text();
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0.0)
}

async fn batches(worker: &Worker, model: &str) -> (f64, f64) {
    let value = async |part: &str| {
        metric(worker, &format!("forebay_worker_batch_rows_{part}{{model=\"{model}\"}}")).await
    };
    (value("count").await, value("sum").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_together_run_together_and_each_gets_its_own_rows() {
    let scratch = Scratch::new("joined");
    let worker = start_with(&scratch, 1, &[("arith", "max_delay = \"300ms\"")]).await;
    let best =
        metric(&worker, "forebay_worker_batch_best_rows{model=\"arith\",version=\"1\"}").await;
    assert!(best >= 8.0, "expected joining to pay for a model of two sums, found {best}");
    let address = worker.address();
    let clients = (0_u8..24).map(|client| {
        tokio::spawn(async move {
            let (a, b) = (f32::from(client), 100.0);
            // One to three rows: joined as they come, split as they were.
            let rows = usize::from(client % 3) + 1;
            let input = |name: &str, value| tensor(name, &[rows, 4], vec![value; 4 * rows]);
            let body = json_body(vec![input("a", a), input("b", b)]);
            let outputs = send(address, infer_request("arith", body)).await.outputs();
            assert_eq!(outputs[0], tensor("sum", &[rows, 4], vec![a + b; 4 * rows]));
            assert_eq!(outputs[1], tensor("difference", &[rows, 4], vec![a - b; 4 * rows]));
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let (count, rows) = batches(&worker, "arith").await;
    assert_eq!(rows, 48.0, "every row ran once");
    assert!(count < 24.0, "some of 24 requests should have run together, found {count} batches");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_spoils_its_own_request_and_no_other() {
    let scratch = Scratch::new("spoilt");
    let delay = "max_delay = \"300ms\"";
    let worker = start_with(&scratch, 1, &[("lookup", delay), ("log", delay)]).await;
    let address = worker.address();
    // Index 99 makes the engine fail for the whole batch; what is not finite is seen row by row.
    let clients = (0_i64..8).map(|client| {
        tokio::spawn(async move {
            let row = if client == 3 { 99 } else { client };
            let looked_up = send(address, infer_request("lookup", lookup(&[row]))).await;
            let x = if client == 3 { 0.0 } else { 1.0 };
            let body = json_body(vec![tensor("x", &[1, 2], vec![1.0, x])]);
            (client, looked_up, send(address, infer_request("log", body)).await)
        })
    });
    for client in clients.collect::<Vec<_>>() {
        let (client, looked_up, log) = client.await.unwrap();
        if client == 3 {
            let part = "input \"x\" of Gather";
            looked_up.refused(400, "invalid_input", part);
            log.refused(500, "inference_failed", "element 1");
        } else {
            #[allow(clippy::cast_precision_loss, reason = "small numbers")]
            let first = client as f32 * 2.0;
            assert_eq!(looked_up.outputs(), [tensor("y", &[1, 2], vec![first, first + 1.0])]);
            assert_eq!(log.outputs(), [tensor("y", &[1, 2], vec![0.0, 0.0])]);
        }
    }
    let retries = metric(&worker, "forebay_worker_batch_retries_total{model=\"lookup\"}").await;
    assert!(retries >= 2.0, "the batch with the bad row is tried again one by one: {retries}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_forms_is_reported_and_closes_for_a_deadline() {
    let scratch = Scratch::new("forming");
    let worker = start_with(&scratch, 1, &[("arith", "max_delay = \"900ms\"")]).await;
    let address = worker.address();
    let waiting: Vec<_> = (0..5)
        .map(|_| tokio::spawn(send(address, infer_request("arith", arith_body(1.0, 1.0)))))
        .collect();
    eventually("five form a batch", || async {
        let report = get(&worker, "/v2/health/live").await.report();
        report.forming == Some(5)
            && (report.rif, report.queue) == (Some(5), Some(5))
            && report.close_in_ms.is_some_and(|left| left > 0.0 && left <= 900.0)
    })
    .await;
    let started = Instant::now();
    let mut sent = infer_request("arith", arith_body(2.0, 2.0));
    sent.headers_mut().insert(header::REQUEST_DEADLINE, HeaderValue::from_static("400"));
    let answer = send(address, sent).await;
    assert_eq!(answer.status, 200, "in time: {:?} {}", started.elapsed(), answer.text());
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    until_busy(&worker, 0, 0).await;
    assert_eq!(get(&worker, "/v2/health/live").await.report().forming, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_what_runs_at_once() {
    let worker = start(Options { executors: 2, ..options(fixtures()) }).await;
    assert_eq!(get(&worker, "/v2/health/live").await.report().slots, Some(2));
    for _ in 0..100 {
        assert_eq!(infer(&worker, "arith", arith_body(1.0, 1.0)).await.status, 200);
    }
    let best =
        metric(&worker, "forebay_worker_batch_best_rows{model=\"arith\",version=\"1\"}").await;
    let slots = f64::from(get(&worker, "/v2/health/live").await.report().slots.unwrap());
    assert!(slots > 2.0 && slots <= 2.0 * 32.0, "2 executors of {best} rows: {slots}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_under_load_never_count_more_than_there_is_and_end_at_nothing() {
    const CLIENTS: u32 = 12;
    let worker = start(Options { executors: 2, ..options(fixtures()) }).await;
    let address = worker.address();
    let clients = (0..CLIENTS).map(|client| {
        tokio::spawn(async move {
            let mut reports = Vec::new();
            for round in 0..30 {
                let sent = match (client + round) % 3 {
                    0 => infer_request("lookup", lookup(&[1, 2])),
                    _ => infer_request("arith", arith_body(1.0, 1.0)),
                };
                if (client * 7 + round) % 10 == 0 {
                    // This one leaves at once, or nearly so.
                    let patience = Duration::from_micros(u64::from(round) * 50);
                    drop(tokio::time::timeout(patience, try_send(address, sent)).await);
                    continue;
                }
                let answer = send(address, sent).await;
                assert_eq!(answer.status, 200);
                reports.push(answer.report());
            }
            reports
        })
    });
    let mut seen = std::collections::HashSet::new();
    for client in clients.collect::<Vec<_>>() {
        for report in client.await.unwrap() {
            let (rif, queue) = (report.rif.unwrap(), report.queue.unwrap());
            assert!(queue <= rif, "{report}");
            // Its own request is answered: it is not counted any more. Those that left may be.
            assert!(rif <= 2 * CLIENTS, "{report}");
            assert!(seen.insert(report.seq), "numbered twice: {report}");
        }
    }
    until_busy(&worker, 0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_beyond_its_limit_is_stopped_and_counted() {
    let scratch = Scratch::new("overrun");
    let models = [("slow", "max_execution = \"100ms\""), ("arith", "")];
    let worker = start_with(&scratch, 1, &models).await;
    let answer = send(worker.address(), slow_request()).await;
    answer.refused(500, "inference_failed", "max_execution");
    assert_eq!(metric(&worker, "forebay_worker_overruns_total{model=\"slow\"}").await, 1.0);
    assert_eq!(infer(&worker, "arith", arith_body(1.0, 1.0)).await.status, 200);
    until_busy(&worker, 0, 0).await;
}

/// A request that one node of the graph computes for seconds.
fn endless_request() -> Request<Bytes> {
    // Some seconds on any machine: several times the time after which it is given up.
    const STEPS: usize = 2_000_000;
    let inputs = vec![tensor("x", &[STEPS, 1, 3], vec![0.5; 3 * STEPS])];
    let body = forebay_protocol::oip::InferRequest { inputs, ..Default::default() };
    binary_request("/v2/models/endless/infer", &body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_can_not_be_stopped_costs_one_executor_and_its_clients_are_answered() {
    let scratch = Scratch::new("endless");
    // The product before the long node must be over by then, which takes longer on a busy machine, and the
    // long node, which takes longer by as much, must not be by far.
    let mut found = None;
    for most in ["1500ms", "5s", "15s"] {
        let config = format!("max_execution = \"{most}\"");
        let worker = start_with(&scratch, 2, &[("endless", &config), ("arith", "")]).await;
        let answer = send(worker.address(), endless_request()).await;
        if metric(&worker, "forebay_worker_executors_lost").await == 1.0 {
            answer.refused(500, "inference_failed", "given up");
            found = Some(worker);
            break;
        }
    }
    let worker = found.expect("a run that is in its long node when its time is over");
    let address = worker.address();
    until_busy(&worker, 0, 0).await;
    assert_eq!(worker.lifecycle().phase(), Phase::Serving, "another has taken its place");
    for _ in 0..4 {
        assert_eq!(infer(&worker, "arith", arith_body(1.0, 1.0)).await.status, 200);
    }
    // As many are lost as there were: the worker drains, to be restarted. On a busy machine a run may be
    // stopped before its long node.
    for _ in 0..5 {
        if worker.lifecycle().phase() < Phase::Draining {
            let answer = send(address, endless_request()).await;
            answer.refused(500, "inference_failed", "model \"endless\"");
        }
    }
    eventually("it drains", async || worker.lifecycle().phase() >= Phase::Draining).await;
}

#[tokio::test]
async fn a_model_that_does_not_answer_as_recorded_is_not_served() {
    let scratch = Scratch::new("golden");
    scratch.write("arith/examples/sum.json", arith_body(1.0, 2.0));
    let output = |name, value| tensor(name, &[1, 4], vec![value; 4]);
    let expected = forebay_protocol::oip::InferResponse {
        outputs: vec![output("sum", 3.0), output("difference", -1.01)],
        ..Default::default()
    };
    let expected = expected.encode(|_| false).unwrap().body;
    scratch.write("arith/examples/sum.expected.json", expected);
    let worker = start_with(&scratch, 1, &[("arith", "")]).await;
    let answer = infer(&worker, "arith", arith_body(1.0, 2.0)).await;
    answer.refused(501, "model_failed", "example \"sum\": output \"difference\"");
    // Within the tolerance that its operator allows, it is.
    let worker = start_with(&scratch, 1, &[("arith", "tolerance = 0.02")]).await;
    assert_eq!(infer(&worker, "arith", arith_body(1.0, 2.0)).await.status, 200);
}

#[tokio::test]
async fn priorities_are_read_from_header_and_parameter_and_nonsense_is_refused() {
    let worker = start_fixtures().await;
    let with = |word: &'static str| {
        let mut sent = infer_request("arith", arith_body(1.0, 1.0));
        sent.headers_mut().insert(header::REQUEST_PRIORITY, HeaderValue::from_static(word));
        sent
    };
    for word in ["high", "normal", "batch"] {
        assert_eq!(send(worker.address(), with(word)).await.status, 200, "{word}");
    }
    let answer = send(worker.address(), with("urgent")).await;
    answer.refused(400, "invalid_request", "expected high, normal or batch, found \"urgent\"");
    let level = |level: &str| {
        let body = String::from_utf8(arith_body(1.0, 1.0)).unwrap();
        body.replacen('{', &format!(r#"{{"parameters":{{"priority":{level}}},"#), 1)
    };
    for good in ["0", "1", "2", "99"] {
        assert_eq!(infer(&worker, "arith", level(good)).await.status, 200, "{good}");
    }
    infer(&worker, "arith", level("-1")).await.refused(400, "invalid_input", "priority");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_see_each_other_are_not_joined_with_those_of_other_clients() {
    let scratch = Scratch::new("apart");
    // x / max(1, |x|): all rows of a request are divided by the largest value of any.
    let case =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tract/tests/cases/autoscale");
    let onnx = std::fs::read(case.join("model.onnx")).unwrap();
    scratch.write("autoscale/1/model.onnx", onnx);
    scratch.write("autoscale/model.toml", "max_delay = \"50ms\"");
    let worker = start(Options { executors: 1, ..options(scratch.path().to_owned()) }).await;
    let metadata = get(&worker, "/v2/models/autoscale").await.json();
    let batching = metadata["properties"]["batching"].as_str().unwrap().to_owned();
    assert!(
        batching.contains("runs alone") && batching.contains("reduces over rows"),
        "{batching}"
    );
    let input = &metadata["inputs"][0];
    let width = usize::try_from(input["shape"][1].as_i64().unwrap()).unwrap();
    let (name, address) = (input["name"].as_str().unwrap().to_owned(), worker.address());
    let clients = (1_u8..=24).map(|client| {
        let name = name.clone();
        tokio::spawn(async move {
            let rows = usize::from(client % 3) + 1;
            let value = f32::from(client);
            let body = json_body(vec![tensor(&name, &[rows, width], vec![value; rows * width])]);
            let outputs = send(address, infer_request("autoscale", body)).await.outputs();
            assert_eq!(
                outputs[0].data,
                Data::Fp32(vec![1.0; rows * width].into()),
                "client {client}"
            );
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}
