//! Load reports of endpoints, and their effect on the proxy.

use crate::client::{get, post};
use crate::endpoint::{Behaviour, Endpoint};
use crate::harness::{ARITH, Proxy, Worker, addresses, anywhere, eventually};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

const INFER: &str = "/v2/models/m/infer";

/// By path: header lines and body. Other paths get none.
type Script = Arc<Mutex<Vec<(&'static str, String, String)>>>;

/// An endpoint that answers 200 with headers and a body that the test sets as it goes.
struct Scripted {
    address: SocketAddr,
    answers: Script,
    task: AbortHandle,
}

impl Scripted {
    async fn start() -> Self {
        Self::start_on(anywhere().ip()).await
    }

    async fn start_on(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Script::default();
        let script = Arc::clone(&answers);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(play(stream, Arc::clone(&script)));
            }
        });
        Self { address, answers, task: task.abort_handle() }
    }

    /// From now on `path` is answered so; `headers` are whole lines.
    fn on(&self, path: &'static str, headers: &str, body: &str) {
        let mut answers = self.answers.lock().unwrap();
        answers.retain(|(known, ..)| *known != path);
        answers.push((path, headers.to_owned(), body.to_owned()));
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Requests have no body, or one that comes with its header.
async fn play(mut stream: TcpStream, script: Script) -> Option<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let mut seen = String::new();
        while !seen.contains("\r\n\r\n") {
            let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        let path = seen.split(' ').nth(1)?.to_owned();
        let found = script.lock().unwrap().iter().find(|(known, ..)| *known == path).cloned();
        let (headers, body) = found.map_or_else(Default::default, |(_, h, b)| (h, b));
        let length = body.len();
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
        stream.write_all(text.as_bytes()).await.ok()?;
    }
}

#[tokio::test]
async fn reports_are_understood_in_every_form_and_kept_from_clients() {
    let endpoint = Scripted::start().await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "report_ttl = \"1h\"").await;
    for (number, (header, value)) in [
        ("endpoint-load-metrics", "TEXT named_metrics.rif=1"),
        ("endpoint-load-metrics", r#"JSON {"namedMetrics":{"rif":2}}"#),
        // {"rif": 3} and {"rif": 4} as messages.
        ("endpoint-load-metrics", "BIN Qg4KA3JpZhEAAAAAAAAIQA=="),
        ("endpoint-load-metrics-bin", "Qg4KA3JpZhEAAAAAAAAQQA"),
    ]
    .into_iter()
    .enumerate()
    {
        // One is held, the other is piped through: both leave the same knowledge behind.
        for path in [INFER, "/v2/models/m/generate"] {
            endpoint.on(path, &format!("{header}: {value}\r\n"), "{}");
            let answer = post(proxy.address, path, "").await;
            assert_eq!(answer.status, 200, "{value}");
            assert_eq!(answer.header(header), "", "{value}: the report is for the proxy");
            eventually("the end of the request", async || {
                (proxy.endpoints().await[0]["in_flight"] == 0).then_some(())
            })
            .await;
            let known = &proxy.endpoints().await[0];
            assert_eq!(known["reported_in_flight"], number + 1, "{value} on {path}: {known}");
        }
    }
}

/// The status of the one endpoint, as soon as `condition` holds for it.
async fn known(proxy: &Proxy, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || {
        let known = proxy.endpoints().await.swap_remove(0);
        condition(&known).then_some(known)
    })
    .await
}

#[tokio::test]
async fn other_servers_are_asked_for_their_queues() {
    let pages = "crates/protocol/tests/pages";
    for (kind, queue, occupancy) in [
        ("vllm", 5, 26),
        ("sglang", 2826, 2987),
        ("tgi", 3, 17),
        ("triton", 11, 11),
        ("tensorrt_llm", 6, 38),
    ] {
        let endpoint = Scripted::start().await;
        let page = format!("{}/{pages}/{kind}.txt", env!("CARGO_MANIFEST_DIR"));
        endpoint.on("/metrics", "", &std::fs::read_to_string(page).unwrap());
        let poll =
            format!("poll = {{ kind = \"{kind}\", interval = \"20ms\", timeout = \"20ms\" }}");
        let proxy = Proxy::in_front_of(&[endpoint.address], 1, &poll).await;
        known(&proxy, kind, |known| {
            let report = (&known["queue"], &known["occupancy"], &known["origin"]);
            report == (&queue.into(), &occupancy.into(), &"polled".into())
        })
        .await;
    }
}

#[tokio::test]
async fn metrics_may_have_a_port_of_their_own_and_names_of_ones_own() {
    let metrics = Scripted::start().await;
    let endpoint = Scripted::start_on(metrics.address.ip()).await;
    metrics.on("/stats", "", "# TYPE waits gauge\nwaits{queue=\"a\"} 2\nruns 3\n");
    let port = metrics.address.port();
    let poll = format!(
        "poll = {{ kind = \"custom\", waiting = \"waits\", running = \"runs\", path = \"/stats\", \
         port = {port}, interval = \"20ms\" }}"
    );
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, &poll).await;
    known(&proxy, "a report", |known| known["occupancy"] == 5 && known["queue"] == 2).await;
}

#[tokio::test]
async fn our_own_workers_can_be_polled_in_either_way() {
    let workers = Worker::start_many(1).await;
    for poll in ["kind = \"forebay\"", "kind = \"orca\""] {
        let poll = format!("poll = {{ {poll}, interval = \"1s\" }}");
        let proxy = Proxy::in_front_of(&addresses(&workers), 1, &poll).await;
        eventually(&poll, async || {
            let polled = proxy.metric("forebay_polls_total", &["outcome=\"reported\""]).await;
            (polled > 0.0).then_some(())
        })
        .await;
        known(&proxy, "slots", |known| known["slots"] == 1 && known["queue"] == 0).await;
    }
}

#[tokio::test]
async fn an_outage_of_the_metrics_stops_nothing_and_is_said_when_it_begins_and_ends() {
    let endpoint = Scripted::start().await;
    let page = "vllm:num_requests_waiting 4\nvllm:num_requests_running 1\n";
    endpoint.on("/metrics", "", page);
    let poll = "report_ttl = \"200ms\"\npoll = { kind = \"vllm\", interval = \"20ms\" }";
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, poll).await;
    known(&proxy, "a report", |known| known["occupancy"] == 5).await;
    for (page, cause) in [
        ("<html>gone</html>", "missing"),
        ("# TYPE vllm:num_requests_waiting counter\nvllm:num_requests_waiting 4\n", "not_a_gauge"),
    ] {
        endpoint.on("/metrics", "", page);
        let labels = [format!("cause=\"{cause}\""), "origin=\"polled\"".to_owned()];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        eventually(cause, async || {
            let dropped = proxy.metric("forebay_load_reports_dropped_total", &labels).await;
            (dropped > 0.0).then_some(())
        })
        .await;
        known(&proxy, "own counts", |known| known["occupancy"] == 0).await;
        assert!(proxy.metric("forebay_polls_total", &["outcome=\"doubtful\""]).await > 0.0);
        assert_eq!(post(proxy.address, INFER, "").await.status, 200);
        assert_eq!(proxy.endpoints().await[0]["health"], "ready");
    }
    endpoint.on("/metrics", "", page);
    known(&proxy, "a report again", |known| known["occupancy"] == 5).await;
    eventually("the end of the outage in the log", async || {
        let said = |words: &str| proxy.messages().matches(words).count();
        let fails = said("polling for load failed");
        // A busy machine may miss a poll beside those that this test spoils.
        (fails >= 1 && said("polling for load works again") == fails).then_some(())
    })
    .await;
}

#[tokio::test]
async fn where_a_pool_is_polled_a_stale_report_is_polled_at_once() {
    let endpoint = Scripted::start().await;
    endpoint.on("/metrics", "", "vllm:num_requests_running 1\n");
    let poll = "report_ttl = \"50ms\"\npoll = { kind = \"vllm\", interval = \"1h\" }";
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, poll).await;
    known(&proxy, "a stale report", |known| known["stale"] == true).await;
    let polls = async || proxy.metric("forebay_polls_total", &[]).await;
    assert_eq!(polls().await, 1.0, "no poll without requests");
    post(proxy.address, INFER, "").await;
    eventually("a poll long before its turn", async || (polls().await > 1.0).then_some(())).await;
}

#[tokio::test]
async fn a_reload_follows_a_change_of_polling() {
    let endpoint = Scripted::start().await;
    endpoint.on("/a", "", "vllm:num_requests_running 1\n");
    endpoint.on("/b", "", "vllm:num_requests_running 2\n");
    let poll = "poll = { kind = \"vllm\", path = \"/a\", interval = \"20ms\" }";
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, poll).await;
    known(&proxy, "the one", |known| known["occupancy"] == 1).await;
    let text = std::fs::read_to_string(&proxy.config).unwrap();
    std::fs::write(&proxy.config, text.replace("\"/a\"", "\"/b\"")).unwrap();
    assert_eq!(post(proxy.admin, "/reload", "").await.status, 200);
    known(&proxy, "the other", |known| known["occupancy"] == 2).await;
}

#[tokio::test]
async fn doubtful_reports_are_counted_by_cause_and_break_no_answer() {
    let endpoint = Scripted::start().await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let huge = "x".repeat(5000);
    for (value, cause) in [
        ("TEXT named_metrics.rif=NaN", "bad_value"),
        ("TEXT named_metrics.rif=1, named_metrics.rif=2", "duplicate"),
        ("TEXT surprise=1", "unknown_key"),
        ("BIN not*base64", "malformed"),
        (huge.as_str(), "too_long"),
    ] {
        endpoint.on(INFER, &format!("endpoint-load-metrics: {value}\r\n"), "{}");
        assert_eq!(post(proxy.address, INFER, "").await.text(), "{}", "{cause}");
        let labels = [format!("cause=\"{cause}\""), "origin=\"in_band\"".to_owned()];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        let count = proxy.metric("forebay_load_reports_dropped_total", &labels).await;
        assert_eq!(count, 1.0, "{cause}");
    }
    // Within a second of each other; a busy machine may need a second try.
    eventually("reports that crossed", async || {
        for seq in [9, 8] {
            let report = format!("TEXT named_metrics.rif=3, named_metrics.seq={seq}");
            endpoint.on(INFER, &format!("endpoint-load-metrics: {report}\r\n"), "{}");
            post(proxy.address, INFER, "").await;
        }
        let crossed = ["cause=\"out_of_order\""];
        let count = proxy.metric("forebay_load_reports_dropped_total", &crossed).await;
        (count > 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stale_report_has_its_endpoint_asked_at_once_when_a_request_meets_it() {
    let workers = Worker::start_many(1).await;
    let probe = "report_ttl = \"50ms\"";
    let config = crate::harness::pool_of(&addresses(&workers), probe)
        .replace("interval = \"300ms\"", "interval = \"1h\"");
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    let path = "/v2/models/arith/infer";
    post(proxy.address, path, ARITH).await;
    eventually("a stale report", async || {
        (proxy.endpoints().await[0]["report_age_ms"].as_f64()? > 50.0).then_some(())
    })
    .await;
    let probes = proxy.metric("forebay_probes_total", &[]).await;
    post(proxy.address, path, ARITH).await;
    eventually("a probe long before its turn", async || {
        (proxy.metric("forebay_probes_total", &[]).await > probes).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_model_takes_is_learnt_from_its_inferences_alone() {
    let endpoint = Endpoint::start(Behaviour::Paced).await;
    let proxy = Proxy::in_front_of(&[endpoint.address], 1, "").await;
    let learnt = async || proxy.endpoints().await[0]["service_ms"].as_f64();
    let post = async |path: &str| {
        assert_eq!(post(proxy.address, path, "{}").await.status, 200, "{path}");
        // The sample is recorded before its line is written.
        assert_eq!(proxy.next_line()["path"], path);
    };
    // The model takes a second, and everything else hardly any time.
    post("/v2/models/slow/infer").await;
    let slow = learnt().await;
    assert!(slow.is_some_and(|millis| millis >= 1000.0), "{slow:?}");
    for path in ["/v2", "/v2/models/slow", "/v2/models/slow/ready", "/v2/models/slow/stats"] {
        assert_eq!(get(proxy.address, path).await.status, 200, "{path}");
        assert_eq!(proxy.next_line()["path"], path);
    }
    post("/v2/repository/index").await;
    assert_eq!(learnt().await, slow);
    post("/v1/embeddings").await;
    assert!(learnt().await < slow, "that is an inference, too");
}
