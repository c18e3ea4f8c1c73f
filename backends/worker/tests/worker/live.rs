//! A repository that changes while it is served: on request, by signal, by looking, by memory.

use crate::harness::*;
use forebay_protocol::oip::{Data, Tensor};
use forebay_worker::{Options, Worker};
use http::Method;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

pub(crate) fn controlled(models: &Path) -> Options {
    Options { models_control: true, ..options(models.to_owned()) }
}

pub(crate) async fn load(worker: &Worker, model: &str) -> Answer {
    post(worker, &format!("/v2/repository/models/{model}/load"), "{}").await
}

async fn unload(worker: &Worker, model: &str) -> Answer {
    post(worker, &format!("/v2/repository/models/{model}/unload"), "{}").await
}

/// State and reason of a version in the index.
pub(crate) async fn state(worker: &Worker, model: &str, version: &str) -> (String, String) {
    let index = post(worker, "/v2/repository/index", "").await.json();
    let index = index.as_array().unwrap();
    let found = index.iter().find(|entry| entry["name"] == model && entry["version"] == version);
    let text = |key: &str| found.map_or("absent", |entry| entry[key].as_str().unwrap()).to_owned();
    (text("state"), text("reason"))
}

pub(crate) async fn serving(worker: &Worker, model: &str) -> String {
    let answer = infer(worker, model, arith_body(1.0, 1.0)).await.json();
    answer["model_version"].as_str().unwrap_or_default().to_owned()
}

pub(crate) async fn metric(worker: &Worker, line: &str) -> u64 {
    let metrics = get(worker, "/metrics").await.text();
    let found = metrics.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    found.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn a_model_that_appears_is_loaded_on_request_and_can_be_unloaded() {
    let scratch = Scratch::new("appears");
    scratch.write("first/1/model.onnx", Scratch::model("arith"));
    let worker = start(controlled(scratch.path())).await;
    load(&worker, "second").await.refused(404, "model_not_found", "no model \"second\"");
    load(&worker, "..").await.refused(404, "model_not_found", "");
    scratch.write("second/1/model.onnx", Scratch::model("arith"));
    infer(&worker, "second", arith_body(1.0, 1.0)).await.refused(404, "model_not_found", "");
    assert_eq!(load(&worker, "second").await.status, 200);
    assert_eq!(serving(&worker, "second").await, "1");
    assert_eq!(unload(&worker, "second").await.status, 200);
    infer(&worker, "second", arith_body(1.0, 1.0)).await.refused(
        503,
        "model_not_ready",
        "unloaded",
    );
    assert_eq!(state(&worker, "second", "1").await, ("UNAVAILABLE".into(), "unloaded".into()));
    let ready = post(&worker, "/v2/repository/index", r#"{"ready": true}"#).await.json();
    assert_eq!(ready.as_array().unwrap().len(), 1, "{ready}");
    assert_eq!(load(&worker, "second").await.status, 200);
    assert_eq!(serving(&worker, "second").await, "1");
    unload(&worker, "nobody").await.refused(404, "model_not_found", "");
    let line = r#"forebay_worker_model_loads_total{model="second",outcome="ok"}"#;
    assert_eq!(metric(&worker, line).await, 2);
}

#[tokio::test]
async fn metrics_of_a_version_go_with_it_and_those_of_the_others_stay() {
    let scratch = Scratch::new("metrics");
    scratch.write("other/1/model.onnx", Scratch::model("arith"));
    scratch.write("m/1/model.onnx", "this is no model");
    let worker = start(controlled(scratch.path())).await;
    let of = |model: &str, version: &str| format!("model=\"{model}\",version=\"{version}\"");
    let text = async || {
        infer(&worker, "other", arith_body(1.0, 1.0)).await.outputs();
        get(&worker, "/metrics").await.text()
    };
    assert!(text().await.contains(&of("m", "1")));
    for version in 2..5 {
        scratch.write(&format!("m/{version}/model.onnx"), Scratch::model("arith"));
        std::fs::remove_dir_all(scratch.path().join(format!("m/{}", version - 1))).unwrap();
        assert_eq!(load(&worker, "m").await.status, 200);
        infer(&worker, "m", arith_body(1.0, 1.0)).await.outputs();
        // The version before is freed once its last request has gone.
        let before = of("m", &(version - 1).to_string());
        eventually("it has gone", async || !text().await.contains(&before)).await;
        assert!(text().await.contains(&of("m", &version.to_string())));
    }
    assert_eq!(unload(&worker, "m").await.status, 200);
    let ready = format!("forebay_worker_model_ready{{{}}}", of("m", "4"));
    assert_eq!(metric(&worker, &ready).await, 0, "listed still");
    let answers = format!("forebay_worker_inferences_total{{{},reason=\"ok\"}}", of("other", "1"));
    assert!(metric(&worker, &answers).await > 6, "{}", text().await);
}

#[tokio::test]
async fn callers_may_load_and_unload_only_where_the_operator_says_so() {
    let worker = start_fixtures().await;
    load(&worker, "arith").await.refused(403, "forbidden", "models_control");
    unload(&worker, "arith").await.refused(403, "forbidden", "models_control");
    assert_eq!(serving(&worker, "arith").await, "1");
    let scratch = Scratch::new("parameters");
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let worker = start(controlled(scratch.path())).await;
    let body = r#"{"parameters": {"file:1/model.onnx": "AAAA"}}"#;
    let answer = post(&worker, "/v2/repository/models/m/load", body).await;
    answer.refused(400, "invalid_request", "models come from disk alone");
}

#[tokio::test]
async fn a_load_that_fails_leaves_the_old_version_serving_and_says_why() {
    let scratch = Scratch::new("fails");
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let worker = start(controlled(scratch.path())).await;
    // A newer version that is broken.
    scratch.write("m/2/model.onnx", "this is no model");
    let answer = load(&worker, "m").await;
    answer.refused(500, "load_failed", "version 2: expected an ONNX model");
    assert_eq!(serving(&worker, "m").await, "1");
    assert_eq!(state(&worker, "m", "1").await.0, "READY");
    let (broken, reason) = state(&worker, "m", "2").await;
    assert_eq!(broken, "UNAVAILABLE");
    assert!(reason.contains("expected an ONNX model"), "{reason}");
    // The content of the version that serves.
    std::fs::remove_dir_all(scratch.path().join("m/2")).unwrap();
    scratch.write("m/1/model.onnx", "no model either");
    load(&worker, "m").await.refused(500, "load_failed", "version 1: expected an ONNX model");
    assert_eq!(serving(&worker, "m").await, "1");
    let (state_now, reason) = state(&worker, "m", "1").await;
    assert_eq!(state_now, "READY");
    assert!(reason.contains("expected an ONNX model"), "{reason}");
    // The configuration.
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    scratch.write("m/model.toml", "max_batches = 1\n");
    load(&worker, "m").await.refused(500, "load_failed", "did you mean");
    assert_eq!(serving(&worker, "m").await, "1");
    scratch.write("m/model.toml", "max_batch = 1\n");
    assert_eq!(load(&worker, "m").await.status, 200);
    assert_eq!(state(&worker, "m", "1").await, ("READY".into(), String::new()));
    let line = r#"forebay_worker_model_loads_total{model="m",outcome="failed"}"#;
    assert_eq!(metric(&worker, line).await, 2);
}

#[tokio::test]
async fn requests_that_have_begun_are_finished_by_the_version_they_began_with() {
    let scratch = Scratch::new("begun");
    scratch.write("slow/1/model.onnx", Scratch::model("slow"));
    let worker = start(Options { executors: 1, ..controlled(scratch.path()) }).await;
    let address = worker.address();
    let begun = tokio::spawn(try_send(address, slow_request()));
    until_busy(&worker, 1, 0).await;
    assert_eq!(unload(&worker, "slow").await.status, 200);
    let (unloading, reason) = state(&worker, "slow", "1").await;
    assert_eq!(unloading, "UNLOADING", "{reason}");
    infer(&worker, "slow", "{}").await.refused(503, "model_not_ready", "unloaded");
    // A second one, of the same number, beside it.
    assert_eq!(load(&worker, "slow").await.status, 200);
    assert_eq!(state(&worker, "slow", "1").await.0, "READY");
    until_busy(&worker, 1, 0).await;
    begun.abort();
    until_busy(&worker, 0, 0).await;
    assert_eq!(unload(&worker, "slow").await.status, 200);
    eventually("no request uses it", || async {
        state(&worker, "slow", "1").await.0 == "UNAVAILABLE"
    })
    .await;
    assert_eq!(metric(&worker, "forebay_worker_models_memory_bytes").await, 0);
}

#[tokio::test]
async fn labels_name_versions() {
    let scratch = Scratch::new("labels");
    for version in ["1", "2", "3"] {
        scratch.write(&format!("m/{version}/model.onnx"), Scratch::model("arith"));
    }
    let labels = "versions = \"all\"\nlabels = { stable = 1, canary = 3, gone = 9 }\n";
    scratch.write("m/model.toml", labels);
    let worker = start(controlled(scratch.path())).await;
    for (label, number) in [("stable", "1"), ("canary", "3"), ("2", "2")] {
        let path = format!("/v2/models/m/versions/{label}/infer");
        let answer = post(&worker, &path, arith_body(1.0, 1.0)).await.json();
        assert_eq!(answer["model_version"], number, "{label}");
    }
    for nobody in ["gone", "latest", "01"] {
        let answer = get(&worker, &format!("/v2/models/m/versions/{nobody}")).await;
        answer.refused(404, "model_not_found", "only 1, 2, 3");
    }
    // A label moves without a version being loaded again.
    let digest = |answer: &Answer| answer.json()["properties"]["digest"].clone();
    let before = get(&worker, "/v2/models/m/versions/stable").await;
    scratch.write("m/model.toml", labels.replace("stable = 1", "stable = 2"));
    assert_eq!(load(&worker, "m").await.status, 200);
    let after = get(&worker, "/v2/models/m/versions/stable").await;
    assert_eq!(after.json()["properties"]["version"], "2");
    assert_eq!(digest(&before), digest(&after), "the same content");
    assert_eq!(before.json()["properties"]["label.canary"], "3");
    let hash = blake3::hash(&Scratch::model("arith")).to_hex();
    assert_eq!(digest(&before), format!("blake3:{hash}"));
}

#[tokio::test]
async fn what_appears_changes_and_goes_on_disk_is_found_by_looking() {
    let scratch = Scratch::new("looking");
    scratch.write("m/1/model.onnx", Scratch::model("arith"));
    let poll = Some(Duration::from_millis(50));
    let worker = start(Options { models_poll: poll, ..controlled(scratch.path()) }).await;
    scratch.write("m/2/model.onnx", Scratch::model("arith"));
    scratch.write("n/1/model.onnx", Scratch::model("arith"));
    eventually("version 2 serves", || async { serving(&worker, "m").await == "2" }).await;
    eventually("n serves", || async { serving(&worker, "n").await == "1" }).await;
    assert_eq!(state(&worker, "m", "1").await.0, "absent", "only the latest is served");
    scratch.write("m/3/model.onnx", "this is no model");
    eventually("version 3 was tried", || async {
        state(&worker, "m", "3").await.1.contains("expected an ONNX model")
    })
    .await;
    assert_eq!(serving(&worker, "m").await, "2");
    std::fs::remove_dir_all(scratch.path().join("n")).unwrap();
    eventually("n has gone", || async {
        infer(&worker, "n", arith_body(1.0, 1.0)).await.reason() == "model_not_found"
    })
    .await;
    // A model that was unloaded on request is not loaded again by a scan.
    unload(&worker, "m").await;
    std::fs::remove_dir_all(scratch.path().join("m/3")).unwrap();
    scratch.write("o/1/model.onnx", Scratch::model("arith"));
    eventually("o serves", || async { serving(&worker, "o").await == "1" }).await;
    infer(&worker, "m", arith_body(1.0, 1.0)).await.refused(503, "model_not_ready", "unloaded");
}

/// Two models of 60 MiB by their own word, and room for one.
async fn start_cramped(scratch: &Scratch) -> Worker {
    for name in ["a", "b"] {
        scratch.write(&format!("{name}/1/model.onnx"), Scratch::model("arith"));
        scratch.write(&format!("{name}/model.toml"), "memory = \"60MiB\"\n");
    }
    scratch.write("large/1/model.onnx", Scratch::model("arith"));
    scratch.write("large/model.toml", "memory = \"1GiB\"\n");
    start(Options { models_memory: Some(100 << 20), ..controlled(scratch.path()) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn models_beyond_the_memory_are_loaded_on_demand_once_for_all_who_wait() {
    let scratch = Scratch::new("cramped");
    let worker = start_cramped(&scratch).await;
    let loads = |model: &str, outcome: &str| {
        format!("forebay_worker_model_loads_total{{model=\"{model}\",outcome=\"{outcome}\"}}")
    };
    assert_eq!(state(&worker, "a", "1").await, ("READY".into(), String::new()));
    let on_demand = ("READY".into(), "not in memory, loaded on demand".into());
    assert_eq!(state(&worker, "b", "1").await, on_demand);
    assert_eq!(get(&worker, "/v2/models/b/ready").await.status, 200);
    assert_eq!(metric(&worker, "forebay_worker_models_memory_bytes").await, 60 << 20);
    let address = worker.address();
    let clients = (0..20).map(|_| {
        let sent = request(Method::POST, "/v2/models/b/infer", arith_body(1.0, 1.0));
        tokio::spawn(async move { send(address, sent).await.status })
    });
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.await.unwrap(), 200);
    }
    assert_eq!(metric(&worker, &loads("b", "ok")).await, 1);
    assert_eq!(state(&worker, "a", "1").await, on_demand, "it was not used for longer");
    let line = r#"forebay_worker_model_unloads_total{model="a",why="evicted"}"#;
    assert_eq!(metric(&worker, line).await, 1);
    // There and back, with metadata too.
    assert_eq!(get(&worker, "/v2/models/a").await.json()["inputs"].as_array().unwrap().len(), 2);
    assert_eq!(serving(&worker, "b").await, "1");
    assert_eq!(metric(&worker, "forebay_worker_models_memory_bytes").await, 60 << 20);
    // A model that can never fit is refused, and no other is unloaded for it.
    let answer = infer(&worker, "large", arith_body(1.0, 1.0)).await;
    answer.refused(503, "model_not_ready", "models_memory is 104857600");
    load(&worker, "large").await.refused(500, "load_failed", "models_memory is");
    assert_eq!(state(&worker, "b", "1").await.0, "READY");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_models_that_drive_each_other_out_are_all_answered() {
    let scratch = Scratch::new("thrash");
    let worker = start_cramped(&scratch).await;
    let address = worker.address();
    let clients = (0..8).map(|client| {
        let path = if client % 2 == 0 { "/v2/models/a/infer" } else { "/v2/models/b/infer" };
        tokio::spawn(async move {
            for _ in 0..10 {
                let answer = send(address, request(Method::POST, path, arith_body(1.0, 1.0))).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert!(metric(&worker, "forebay_worker_models_memory_bytes").await <= 100 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_grows_forgets_plans_before_others_have_to_go() {
    let scratch = Scratch::new("grows");
    for name in ["a", "b"] {
        scratch.write(&format!("{name}/1/model.onnx"), Scratch::model("each_size"));
    }
    let total = "forebay_worker_models_memory_bytes";
    let of =
        |name: &str| format!("forebay_worker_model_memory_bytes{{model=\"{name}\",version=\"1\"}}");
    let lengths = |worker: Worker| async move {
        for length in 1..60 {
            let tokens = |name: &str| {
                Tensor::new(name, vec![1, length], Data::Int64(vec![1; length].into()))
            };
            let inputs = ["input_ids", "attention_mask"].map(|name| tokens(name).unwrap());
            assert_eq!(infer(&worker, "a", json_body(inputs.to_vec())).await.status, 200);
        }
        worker
    };
    let worker = start(controlled(scratch.path())).await;
    let loaded = metric(&worker, total).await;
    assert_eq!(loaded, metric(&worker, &of("a")).await + metric(&worker, &of("b")).await);
    let worker = lengths(worker).await;
    let compilations = r#"forebay_worker_model_compilations_total{model="a",version="1"}"#;
    assert!(metric(&worker, compilations).await > 50, "each length has a plan of its own");
    assert!(metric(&worker, &of("a")).await >= metric(&worker, &of("b")).await);
    let statistics = get(&worker, "/v2/models/a/stats").await.json();
    let stated = &statistics["model_stats"][0]["memory_usage"][0]["byte_size"];
    assert_eq!(stated.as_u64().unwrap(), metric(&worker, &of("a")).await);
    // Room for some more plans than there are after the load, not for all.
    let bound = loaded + loaded / 4;
    let options = Options { models_memory: Some(bound), ..controlled(scratch.path()) };
    let worker = lengths(start(options).await).await;
    assert!(metric(&worker, total).await <= bound);
    let evicted = r#"forebay_worker_model_unloads_total{model="b",why="evicted"}"#;
    assert_eq!(metric(&worker, evicted).await, 0);
    assert!(metric(&worker, &of("b")).await > 0);
}

/// Clients of one model until they are told to stop; how many answers, and what was not one.
struct Traffic {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(address: SocketAddr, model: &str, clients: usize) -> Self {
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let path = format!("/v2/models/{model}/infer");
        let clients = (0..clients).map(|_| {
            let (stop, answers, path) = (Arc::clone(&stop), Arc::clone(&answers), path.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Relaxed) {
                    let sent = request(Method::POST, &path, arith_body(1.0, 2.0));
                    match try_send(address, sent).await {
                        Ok(answer) if answer.status == 200 => {
                            assert_eq!(answer.outputs()[0], tensor("sum", &[1, 4], vec![3.0; 4]));
                            answers.fetch_add(1, Relaxed);
                        }
                        Ok(answer) => failures.push(answer.text()),
                        Err(error) => failures.push(error.to_string()),
                    }
                }
                failures
            })
        });
        let clients = clients.collect();
        Self { stop, answers, clients }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            assert_eq!(client.await.unwrap(), Vec::<String>::new());
        }
        self.answers.load(Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_versions_are_switched_and_other_models_come_and_go() {
    let scratch = Scratch::new("churn");
    let model = Scratch::model("arith");
    scratch.write("m/1/model.onnx", &model);
    scratch.write("other/1/model.onnx", Scratch::model("lstm"));
    let worker = start(controlled(scratch.path())).await;
    let traffic = Traffic::start(worker.address(), "m", 2);
    for cycle in 0..20 {
        let (new, old) = if cycle % 2 == 0 { ("m/2", "m/1") } else { ("m/1", "m/2") };
        scratch.write(&format!("{new}/model.onnx"), &model);
        if cycle % 2 == 1 {
            std::fs::remove_dir_all(scratch.path().join(old)).unwrap();
        }
        assert_eq!(load(&worker, "m").await.status, 200);
        assert_eq!(unload(&worker, "other").await.status, 200);
        assert_eq!(load(&worker, "other").await.status, 200);
    }
    assert!(traffic.end().await > 20);
    let line = r#"forebay_worker_model_unloads_total{model="m",why="replaced"}"#;
    assert_eq!(metric(&worker, line).await, 20);
}
