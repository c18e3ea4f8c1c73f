//! A request that breaks the standard is refused with a message, counted and logged, and its connection is
//! closed; a valid one arrives, however it is cut and with any bytes behind it.

use crate::client::{post, raw};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::harness::{MAX_WAIT, Proxy, pool_of};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const INFER: &str = "/v2/models/m/infer";
const GOOD: &str = "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx";
const LAST: &str = "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                    content-length: 4\r\n\r\nlast";

async fn echoing(limits: &str) -> (Proxy, Endpoint) {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let config = format!("{limits}\n{}", pool_of(&[endpoint.address], ""));
    let proxy = Proxy::start(&config).await;
    proxy.wait_ready(1).await;
    (proxy, endpoint)
}

/// The last answer among those that were read is a refusal in the usual form.
fn refused(text: &str, status: u16, reason: &str) {
    let at = text.rfind("HTTP/1.1 ").unwrap_or_else(|| panic!("no answer in {text:?}"));
    let (head, body) = text[at..].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    for line in [&format!("x-forebay-reason: {reason}")[..], "connection: close", "x-request-id: "]
    {
        assert!(head.to_lowercase().contains(line), "no {line} in {head}");
    }
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(body["error"].as_str().is_some_and(|error| error.len() > 10), "{body}");
}

#[tokio::test]
async fn every_refused_head_is_answered_counted_and_logged() {
    let (proxy, endpoint) = echoing("").await;
    let post = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\n");
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    let many = "a: b\r\n".repeat(100);
    let bad = [
        (400, "GET /v2 HTTP/1.1\r\n\r\n".to_owned()),
        (400, "GET /v2 HTTP/1.1\nhost: x\n\n".to_owned()),
        (400, "GET /v2/a b HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()),
        (400, "GET /v2/a\0b HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()),
        (400, "GET http://other/ HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()),
        (400, "\u{16}\u{3}\u{1} not even close to HTTP".to_owned()),
        (400, "PRI * HTTP/2.0 \r\nhost: x\r\n\r\n".to_owned()),
        (400, format!("{post}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{smuggled}")),
        (400, format!("{post}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n{smuggled}")),
        (400, format!("{post}transfer-encoding: chunked, chunked\r\n\r\n{smuggled}")),
        (400, format!("{post}transfer-encoding: xchunked\r\n\r\n{smuggled}")),
        (400, format!("{post}folded: 1\r\n 2\r\ncontent-length: 0\r\n\r\n")),
        (400, format!("{post}content-length: 1\r\ncontent-length: 2\r\n\r\nx")),
        (400, format!("{post}transfer-encoding: chunked\r\n\r\nnonsense\r\n")),
        (405, "CONNECT x:1 HTTP/1.1\r\nhost: x:1\r\n\r\n".to_owned()),
        (431, format!("GET /v2 HTTP/1.1\r\nhost: x\r\n{many}\r\n")),
        (431, format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000))),
        (431, format!("GET /v2 HTTP/1.1\r\nhost: {}", "x".repeat(70_000))),
    ];
    let reason = |status| match status {
        400 => "invalid_request",
        405 => "method_not_allowed",
        _ => "headers_too_large",
    };
    for (status, request) in &bad {
        // On a new connection, and behind a request that is answered.
        for (before, bytes) in [(0, request.clone()), (1, format!("{GOOD}{request}"))] {
            let (answer, closed) = raw(proxy.address, bytes.as_bytes(), MAX_WAIT).await;
            let shown = &request[..request.len().min(80)];
            assert_eq!(answer.matches("HTTP/1.1 200 ").count(), before, "{shown:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), before + 1, "{shown:?}: {answer}");
            assert!(closed, "{shown:?}");
            refused(&answer, *status, reason(*status));
            if before == 1 {
                assert_eq!(proxy.next_line()["reason"], "ok", "{shown:?}");
            }
            let line = proxy.next_line();
            assert_eq!(line["reason"], reason(*status), "{shown:?}: {line}");
            assert_eq!(line["status"], *status);
            assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
            assert!(line["error"].is_string() && line["request_id"].is_string(), "{line}");
        }
    }
    let count = bad.len();
    assert_eq!(endpoint.served(), count, "only what is by the letter arrived");
    for status in [400, 405, 431] {
        let expected = 2.0 * bad.iter().filter(|(this, _)| *this == status).count() as f64;
        let labels = [format!("status=\"{status}\""), format!("reason=\"{}\"", reason(status))];
        let labels = labels.each_ref().map(String::as_str);
        assert_eq!(proxy.metric("forebay_requests_total", &labels).await, expected);
    }
}

#[tokio::test]
async fn what_follows_a_body_is_the_next_request_however_the_body_is_framed() {
    let (proxy, endpoint) = echoing("").await;
    let chunked = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
         3;ext=\"1\"\r\nabc\r\n2\r\nde\r\n0\r\ntrailer: 1\r\n\r\n"
    );
    let upgrade = "GET /v2 HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\n\r\n";
    let stray = format!("\r\n{GOOD}");
    for first in [GOOD, &chunked, &stray, "GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n", upgrade] {
        // At once, cut anywhere, and one after the other.
        let whole = format!("{first}{LAST}");
        let mut answers = Vec::new();
        if first != upgrade {
            answers.push(raw(proxy.address, whole.as_bytes(), MAX_WAIT).await.0);
            for _ in 0..5 {
                let cut = fastrand::usize(1..whole.len());
                answers.push(in_pieces(&proxy, &[&whole[..cut], &whole[cut..]]).await);
            }
            let bytes: Vec<_> = (0..whole.len()).map(|at| &whole[at..=at]).collect();
            answers.push(in_pieces(&proxy, &bytes).await);
        }
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        timeout(MAX_WAIT, stream.read_exact(&mut head)).await.unwrap().unwrap();
        stream.write_all(LAST.as_bytes()).await.unwrap();
        let mut rest = String::new();
        timeout(MAX_WAIT, stream.read_to_string(&mut rest)).await.unwrap().unwrap();
        answers.push(String::from_utf8_lossy(&head).into_owned() + &rest);
        for answer in answers {
            assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 2, "{first:?}: {answer}");
            let expected = match first {
                first if first == chunked => Some(echo(b"abcde")),
                first if first.starts_with("GET") => None,
                _ => Some(echo(b"x")),
            };
            let mut from = 0;
            for part in expected.into_iter().chain([echo(b"last")]) {
                from += answer[from..].find(&part).unwrap_or_else(|| panic!("{part}: {answer}"));
            }
        }
    }
    assert!(endpoint.served() > 0);
}

async fn in_pieces(proxy: &Proxy, pieces: &[&str]) -> String {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in pieces {
        stream.write_all(piece.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    timeout(MAX_WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn chunks_that_are_not_by_the_letter_are_refused_wherever_they_come() {
    let (proxy, endpoint) = echoing("").await;
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    for bad in [
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\nx\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nfoo\nbar\r\n\r\n",
    ] {
        let at_once = format!("{head}{bad}");
        let (answer, closed) = raw(proxy.address, at_once.as_bytes(), MAX_WAIT).await;
        refused(&answer, 400, "invalid_request");
        assert!(closed, "{bad:?}");
        assert_eq!(proxy.next_line()["reason"], "invalid_request");
        let (mut stream, mut answer) =
            (TcpStream::connect(proxy.address).await.unwrap(), String::new());
        stream.write_all(head.as_bytes()).await.unwrap();
        // The head is on its way to the endpoint before the chunks come.
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.write_all(bad.as_bytes()).await.unwrap();
        timeout(MAX_WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        refused(&answer, 400, "invalid_request");
        assert_eq!(proxy.next_line()["reason"], "invalid_request", "{bad:?}");
    }
    assert_eq!(endpoint.served(), 0);
    assert_eq!(proxy.endpoints().await[0]["in_flight"], 0);
}

#[tokio::test]
async fn a_head_that_does_not_come_is_refused_in_time_on_every_request() {
    let (proxy, _endpoint) = echoing("[limits]\nheader_timeout = \"300ms\"").await;
    for before in ["", GOOD] {
        let started = Instant::now();
        let bytes = format!("{before}GET /v2 HTTP/1.1\r\nhost: ");
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = stream.split();
        let mut answer = String::new();
        // A byte now and then does not help.
        let drip = async {
            while writing.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            read = timeout(MAX_WAIT, reading.read_to_string(&mut answer)) => {
                // The answer may be followed by a reset: the drip went on.
                let _ = read.unwrap();
            }
            () = drip => {}
        }
        assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
        if !before.is_empty() {
            assert_eq!(proxy.next_line()["reason"], "ok");
        }
        assert_eq!(proxy.next_line()["reason"], "request_timeout", "{answer}");
        if !answer.is_empty() {
            refused(&answer, 408, "request_timeout");
        }
    }
    // A silent client gets no answer to a question that it did not ask.
    let (answer, closed) = raw(proxy.address, b"", MAX_WAIT).await;
    assert!(answer.is_empty() && closed, "{answer}");
}

#[tokio::test]
async fn whatever_is_sent_the_answer_has_its_reason_and_the_proxy_goes_on() {
    let (proxy, _endpoint) = echoing("[limits]\nheader_timeout = \"200ms\"").await;
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let samples = [
        GOOD.to_owned(),
        "GET /v2?a=b HTTP/1.1\r\nhost: x\r\nupgrade: y\r\nconnection: close\r\n\r\n".to_owned(),
        format!(
            "POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        ),
    ];
    let mut calls = JoinSet::new();
    for round in 0..300 {
        let mut bytes = samples[round % samples.len()].clone().into_bytes();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..bytes.len());
            let byte = *rng.choice(b"\r\n\0 \t:/;,@\"{}|\\^<>%#?*\x7f\xc3\xff0aA").unwrap();
            if rng.bool() {
                bytes[at] = byte;
            } else {
                bytes.insert(at, byte);
            }
        }
        let address = proxy.address;
        calls.spawn(async move {
            let (answer, _) = raw(address, &bytes, Duration::from_secs(2)).await;
            (bytes, answer)
        });
    }
    for (bytes, answer) in calls.join_all().await {
        for one in answer.split("HTTP/1.1 ").skip(1) {
            let bare = one.starts_with('4') && !one.to_lowercase().contains("x-forebay-reason");
            assert!(!bare, "seed {seed}: {} -> {one}", bytes.escape_ascii());
        }
    }
    assert_eq!(post(proxy.address, INFER, "x").await.text(), echo(b"x"), "seed {seed}");
}
