//! Tasks that panic: the process goes on without a part missing, or it ends in order.

use crate::client::{Load, get, post};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{ARITH, Folder, Proxy, eventually, pool_of, test_models};
use rustix::process::Signal;
use std::net::TcpListener;
use std::os::fd::AsFd;

const INFER: &str = "/v2/models/m/infer";
const RESTARTS: &str = "forebay_task_restarts_total";

/// A proxy in which a task panics once for each file with its name in the folder.
async fn start(faults: &Folder, config: &str) -> Proxy {
    let before = format!("export FOREBAY_TEST_FAULTS={};", faults.0.display());
    Proxy::start_under(&before, &[], &Proxy::text("", config)).await
}

async fn panics(proxy: &Proxy, faults: &Folder, task: &str) {
    let label = format!("task=\"{task}\"");
    let before = proxy.metric(RESTARTS, &[&label]).await;
    std::fs::write(faults.0.join(task), "").unwrap();
    eventually(&format!("a restart of {task}"), async || {
        // An accept loop looks when a connection comes.
        get(proxy.address, "/v2/health/live").await;
        (proxy.metric(RESTARTS, &[&label]).await > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_panic_are_started_again_and_no_request_fails() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let faults = Folder::new();
    let poll = "poll = { kind = \"forebay\", interval = \"50ms\" }";
    // A probe must not be late only because the machine is busy.
    let pool = pool_of(&[endpoint.address], poll).replace("300ms", "2s");
    let mut proxy = start(&faults, &pool).await;
    proxy.wait_ready(1).await;
    let load = Load::start(proxy.address, INFER, "x", 2);
    for task in ["metrics", "probe", "poll", "control", "accept"] {
        panics(&proxy, &faults, task).await;
        let words = format!("a test asked the task {task} to panic");
        eventually(&words, async || proxy.messages().contains(&words).then_some(())).await;
    }
    // Their work is done by the restarted task.
    assert_eq!(post(proxy.admin, "/reload", "").await.status, 200);
    eventually("readiness", async || {
        (get(proxy.admin, "/readyz").await.status == 200).then_some(())
    })
    .await;
    let outcomes = load.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    let panics = proxy.metric("forebay_panics_total", &[]).await;
    assert!(panics >= 5.0, "{panics}");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_reload_that_panics_is_refused_and_the_next_one_is_not() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let faults = Folder::new();
    let proxy = start(&faults, &pool_of(&[endpoint.address], "")).await;
    proxy.wait_ready(1).await;
    std::fs::write(faults.0.join("reload"), "").unwrap();
    let answer = post(proxy.admin, "/reload", "").await;
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("the reload failed"), "{}", answer.text());
    std::fs::write(faults.0.join("reload"), "").unwrap();
    proxy.signal(Signal::HUP);
    eventually("the reload by signal", async || {
        (proxy.metric("forebay_reloads_total", &["refused"]).await == 2.0).then_some(())
    })
    .await;
    // More often than a task may fail in a row.
    for _ in 0..12 {
        std::fs::write(faults.0.join("build"), "").unwrap();
        let answer = post(proxy.admin, "/reload", "").await;
        assert_eq!(answer.status, 422, "{}", answer.text());
        assert!(answer.text().contains("keeping the running configuration"), "{}", answer.text());
    }
    assert_eq!(post(proxy.address, INFER, "x").await.status, 200);
    assert_eq!(post(proxy.admin, "/reload", "").await.json()["generation"], 2);
    assert_eq!(proxy.endpoints().await[0]["health"], "ready");
    assert_eq!(proxy.metric(RESTARTS, &[]).await, 0.0);
}

#[tokio::test]
async fn a_vital_task_that_keeps_panicking_shows_in_readiness_and_ends_the_process() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let faults = Folder::new();
    let mut proxy = start(&faults, &pool_of(&[endpoint.address], "")).await;
    proxy.wait_ready(1).await;
    // Again and again, until the process is on its way out.
    let file = faults.0.join("control");
    eventually("a proxy that is not ready", async || {
        std::fs::write(&file, "").unwrap();
        // It may have ended since it was last asked.
        let request =
            http::Request::get("/readyz").body(http_body_util::Empty::<bytes::Bytes>::new());
        let answer = crate::client::send(proxy.admin, request.unwrap()).await;
        answer.is_ok_and(|answer| answer.status == 503).then_some(())
    })
    .await;
    assert_eq!(post(proxy.address, INFER, "x").await.status, 200, "requests are still served");
    let ended = eventually("the end", async || {
        std::fs::write(&file, "").unwrap();
        proxy.try_ended()
    })
    .await;
    assert_eq!(ended.code(), Some(1));
    let messages = proxy.messages();
    assert!(messages.contains("task keeps failing") && messages.contains("draining"), "{messages}");
}

#[tokio::test]
async fn a_task_that_hangs_shows_in_readiness_for_as_long_as_it_does() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let faults = Folder::new();
    let proxy = start(&faults, &pool_of(&[endpoint.address], "")).await;
    proxy.wait_ready(1).await;
    for task in ["control", "probe"] {
        let (file, label) = (faults.0.join(format!("{task}.hang")), format!("task=\"{task}\""));
        let stalled = async || proxy.metric("forebay_tasks_stalled", &[&label]).await;
        assert_eq!(stalled().await, 0.0);
        std::fs::write(&file, "").unwrap();
        eventually(&format!("{task} to be missed"), async || {
            let answer = get(proxy.admin, "/readyz").await;
            (answer.status == 503 && answer.text().contains(&format!("task {task}: 1 ")))
                .then_some(())
        })
        .await;
        assert_eq!(stalled().await, 1.0);
        let words = format!("\"task\":\"{task}\"");
        eventually("a line", async || {
            let messages = proxy.messages();
            let mut lines = messages.lines();
            lines
                .any(|line| line.contains("makes no progress") && line.contains(&words))
                .then_some(())
        })
        .await;
        assert_eq!(post(proxy.address, INFER, "x").await.status, 200, "requests are still served");
        std::fs::remove_file(&file).unwrap();
        eventually("readiness", async || {
            (get(proxy.admin, "/readyz").await.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_worker_whose_supervisor_panics_is_started_again() {
    let faults = Folder::new();
    let fleet = format!(
        "[pool.test]\nfleet = {{ workers = 1, executors = 1, models = {:?} }}\n\
         probe = {{ interval = \"300ms\", fast_interval = \"30ms\" }}\n\
         [[route]]\nname = \"test\"\npool = \"test\"\n",
        test_models()
    );
    let mut proxy = start(&faults, &fleet).await;
    proxy.wait_ready(1).await;
    panics(&proxy, &faults, "fleet").await;
    eventually("an answer of the new worker", async || {
        let answer = post(proxy.address, "/v2/models/arith/infer", ARITH).await;
        (answer.status == 200).then_some(())
    })
    .await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_listener_keeps_its_waiting_connections_over_a_panic() {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let faults = Folder::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let pool = pool_of(&[endpoint.address], "");
    let text = Proxy::text("", &pool).replacen(
        "[[listener]]\naddress = \"127.0.0.1:0\"",
        &format!("[[listener]]\naddress = \"{}\"", socket.local_addr().unwrap()),
        1,
    );
    let before = format!("export FOREBAY_TEST_FAULTS={};", faults.0.display());
    let proxy = Proxy::start_under(&before, &[&socket as &dyn AsFd], &text).await;
    proxy.wait_ready(1).await;
    for _ in 0..5 {
        std::fs::write(faults.0.join("accept"), "").unwrap();
        let posts = (0..20).map(|_| post(proxy.address, INFER, "x"));
        for answer in futures_util::future::join_all(posts).await {
            assert_eq!(answer.status, 200);
        }
    }
    assert!(proxy.metric(RESTARTS, &["task=\"accept\""]).await >= 1.0);
}
