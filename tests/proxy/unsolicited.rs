//! Every request gets its own answer: bodies end once, and unsolicited bytes of an endpoint reach no client.

use crate::client::{self, Response};
use crate::harness::{MAX_WAIT, Proxy, eventually, pool_of};
use crate::scripted::{Answers, Close, Pause, Scripted, Send, Step};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

const INFER: &str = "/v2/models/m/infer";
const STREAMED: &str = "/v1/x";
const OWN: &str = "HTTP/1.1 200 OK\r\nx-answer: TAG\r\ncontent-length: 2\r\n\r\nok";
const STRAY: &str = "HTTP/1.1 200 OK\r\nx-answer: stray-TAG\r\ncontent-length: 5\r\n\r\nstray";

async fn in_front_of(endpoint: &Scripted, more: &str) -> Proxy {
    let more = format!("{more}\nejection = {{ max_share = \"0%\" }}");
    let proxy = Proxy::start(&pool_of(&[endpoint.address], &more)).await;
    proxy.wait_ready(1).await;
    proxy
}

type Frames = Vec<Result<Frame<Bytes>, Infallible>>;

struct Iter<I>(I);
impl<I: Iterator + Unpin> futures_core::Stream for Iter<I> {
    type Item = I::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

fn data(text: &'static str) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn upload_h2(proxy: &Proxy, path: &str, frames: Frames) -> u16 {
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let uri = format!("http://{}{path}", proxy.address);
    let request = Request::post(uri)
        .header("x-tag", "up")
        .body(StreamBody::new(Iter(frames.into_iter())))
        .unwrap();
    let response = timeout(MAX_WAIT, sender.send_request(request)).await.unwrap().unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    driver.abort();
    status
}

#[tokio::test]
async fn a_body_of_unknown_length_ends_once_at_an_http1_endpoint() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-trailer", "1".parse().unwrap());
    let forms: Vec<(&str, Frames)> = vec![
        ("one frame", vec![data("hello\n")]),
        ("several frames", vec![data("he"), data("llo"), data("\n")]),
        ("empty frames between", vec![data(""), data("hello"), data(""), data("\n"), data("")]),
        ("nothing", vec![]),
        ("an empty frame", vec![data("")]),
        ("trailers", vec![data("hello\n"), Ok(Frame::trailers(trailers))]),
    ];
    for path in [STREAMED, INFER] {
        let endpoint = Scripted::start(Answers::Requests, vec![Send(OWN.into())]).await;
        let proxy = in_front_of(&endpoint, "").await;
        for (form, frames) in forms.iter().map(|(form, frames)| {
            let copy = frames.iter().flatten().map(|frame| {
                Ok(match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => Frame::data(data.clone()),
                    (_, trailers) => Frame::trailers(trailers.unwrap().clone()),
                })
            });
            (form, copy.collect::<Frames>())
        }) {
            assert_eq!(upload_h2(&proxy, path, frames).await, 200, "{form} at {path}");
        }
        // The same from HTTP/1 clients: trailers, and a body that is sent only when it is asked for.
        for (fields, body) in [
            ("transfer-encoding: chunked\r\n", "6\r\nhello\n\r\n0\r\n\r\n"),
            ("transfer-encoding: chunked\r\n", "0\r\n\r\n"),
            ("transfer-encoding: chunked\r\n", "6\r\nhello\n\r\n0\r\nx-trailer: 1\r\n\r\n"),
            ("expect: 100-continue\r\ntransfer-encoding: chunked\r\n", "1\r\nx\r\n0\r\n\r\n"),
            ("expect: 100-continue\r\ncontent-length: 1\r\n", "x"),
            ("content-length: 0\r\n", ""),
            ("", ""),
        ] {
            let head =
                format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n");
            let sent = format!("{head}{body}");
            let (answer, _) = client::raw(proxy.address, sent.as_bytes(), MAX_WAIT).await;
            assert!(answer.contains("HTTP/1.1 200 OK\r\n"), "{fields:?}: {answer}");
        }
        let all = forms.len() + 7;
        assert_eq!(endpoint.played(), all);
        let bytes: Vec<_> = (0..endpoint.connections()).map(|it| endpoint.bytes(it)).collect();
        for bytes in &bytes {
            assert!(bytes.starts_with("POST "), "{bytes}");
            assert!(!bytes.contains("0\r\n\r\n0\r\n\r\n"), "a body ended twice: {bytes}");
        }
        assert_eq!(bytes.concat().matches("POST ").count(), all, "{bytes:?}");
    }
}

/// One request of a client of its own, and its answer.
async fn ask(proxy: &Proxy, method: &Method, path: &str, tag: &str) -> Response {
    ask_script(proxy, method, path, tag, 0).await
}

async fn ask_script(
    proxy: &Proxy,
    method: &Method,
    path: &str,
    tag: &str,
    script: usize,
) -> Response {
    let request = Request::builder().method(method.clone()).uri(path);
    let request = request.header("x-tag", tag).header("x-script", script);
    let body = if *method == Method::POST { Bytes::from_static(b"body") } else { Bytes::new() };
    client::send(proxy.address, request.body(Full::new(body)).unwrap()).await.unwrap()
}

/// Clients ask one after the other, a few for each script: whatever the endpoint sends beside its answers,
/// each client gets its own.
async fn own_answers_only(scripts: Vec<Vec<Step>>, method: Method) {
    let endpoint = Scripted::start_many(Answers::Requests, scripts.clone()).await;
    let proxy = in_front_of(&endpoint, "").await;
    let mut asked = 0;
    for (number, script) in scripts.iter().enumerate() {
        for path in [INFER, STREAMED, INFER, STREAMED, STREAMED, INFER] {
            let tag = format!("t{asked}");
            let answer = ask_script(&proxy, &method, path, &tag, number).await;
            let said = format!("{script:?}, {method} {path}: {} {}", answer.status, answer.text());
            assert!(answer.status.is_success() || answer.status == 304, "{said}");
            assert_eq!(answer.header("x-answer"), tag, "{said}");
            assert!(!answer.text().contains("stray"), "{said}");
            asked += 1;
            // The late bytes are there before the next client asks.
            eventually("the end of the script", async || {
                (endpoint.played() >= asked).then_some(())
            })
            .await;
            assert_eq!(endpoint.played(), asked, "sent twice: {said}");
        }
    }
}

#[tokio::test]
async fn what_follows_an_answer_is_given_to_no_client() {
    let late = Pause(Duration::from_millis(10));
    let chunked = "HTTP/1.1 200 OK\r\nx-answer: TAG\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let nothing = "HTTP/1.1 204 No Content\r\nx-answer: TAG\r\n\r\n";
    let unchanged = "HTTP/1.1 304 Not Modified\r\nx-answer: TAG\r\ncontent-length: 5\r\n\r\n";
    let mut scripts = Vec::new();
    for answer in [OWN, chunked, nothing, unchanged] {
        for stray in [STRAY, "stray", "\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "0\r\n\r\n"] {
            scripts.extend([
                vec![Send(format!("{answer}{stray}"))],
                vec![Send(answer.into()), Send(stray.into())],
                vec![Send(answer.into()), late.clone(), Send(stray.into())],
                vec![Send(answer.into()), late.clone(), Send(stray.into()), Close],
            ]);
        }
    }
    own_answers_only(scripts, Method::POST).await;
}

#[tokio::test]
async fn an_answer_to_head_that_has_a_body_is_given_to_no_client() {
    let (head, body) = OWN.split_at(OWN.len() - 2);
    let pause = Pause(Duration::from_millis(10));
    let scripts = vec![
        vec![Send(OWN.into())],
        vec![Send(head.into()), Send(body.into())],
        vec![Send(head.into()), pause, Send(body.into())],
    ];
    own_answers_only(scripts, Method::HEAD).await;
}

#[tokio::test]
async fn a_connection_on_which_an_answer_came_early_is_not_used_again() {
    let early = "HTTP/1.1 200 OK\r\nx-answer: TAG\r\ncontent-length: 2\r\n\r\nok";
    let script = vec![Send(early.into())];
    let endpoint = Scripted::start(Answers::Headers, script).await;
    // A body is sent as it comes only beyond what is collected first.
    let config = pool_of(&[endpoint.address], "ejection = { max_share = \"0%\" }");
    let proxy = Proxy::start(&format!("[limits]\nbuffer = \"1KiB\"\n{config}")).await;
    proxy.wait_ready(1).await;
    let begun = "x".repeat(2048);
    for number in 0..5 {
        let head = format!(
            "POST {STREAMED} HTTP/1.1\r\nhost: x\r\nx-tag: {number}\r\n\
             transfer-encoding: chunked\r\n\r\n800\r\n{begun}\r\n"
        );
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        write(&mut client, &head).await;
        let answer = read_until(&mut client, "ok").await;
        assert!(answer.contains(&format!("x-answer: {number}")), "{answer}");
        write(&mut client, "1\r\nx\r\n0\r\n\r\n").await;
        drop(client);
    }
    eventually("all connections", async || (endpoint.connections() == 5).then_some(())).await;
}

async fn write(stream: &mut TcpStream, text: &str) {
    tokio::io::AsyncWriteExt::write_all(stream, text.as_bytes()).await.unwrap();
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        let read = tokio::io::AsyncReadExt::read_buf(stream, &mut all);
        assert!(timeout(MAX_WAIT, read).await.unwrap().unwrap() > 0, "an early end");
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn an_answer_that_could_be_read_in_two_ways_is_a_502_and_closes_its_connection() {
    let ok = "HTTP/1.1 200 OK\r\nx-answer: TAG\r\n";
    // Pingora mends the last two of these in silence on the stream way: see `Wire`.
    let cases = [
        (format!("{ok}content-length: 2\r\ncontent-length: 3\r\n\r\nok"), true),
        (format!("{ok}content-length: 2\r\ncontent-length: 2\r\n\r\nok"), true),
        (format!("{ok}content-length: 2, 2\r\n\r\nok"), true),
        (format!("{ok}content-length: +2\r\n\r\nok"), true),
        (format!("{ok}content-length: 0x2\r\n\r\nok"), true),
        (format!("{ok}content-length: -2\r\n\r\nok"), true),
        (format!("{ok}transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), true),
        (format!("{ok}transfer-encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), true),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".into(), true),
        ("HTTP/1.1 100 Continue\r\n\r\n".repeat(100) + OWN, true),
        ("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(17) + OWN, true),
        ("nonsense\r\n\r\n".into(), true),
        (
            format!(
                "{ok}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            ),
            false,
        ),
        (format!("{ok}x-folded: a\r\n b\r\ncontent-length: 2\r\n\r\nok"), false),
    ];
    for (answer, on_both_ways) in cases {
        let endpoint = Scripted::start(Answers::Requests, vec![Send(answer.clone())]).await;
        let proxy = in_front_of(&endpoint, "retry = { attempts = 1 }").await;
        let paths = if on_both_ways { &[INFER, STREAMED][..] } else { &[INFER] };
        for (number, path) in paths.iter().enumerate() {
            let found = ask(&proxy, &Method::POST, path, "own").await;
            assert_eq!(found.status, 502, "{answer:?} at {path}: {}", found.text());
            assert_eq!(found.reason(), "invalid_response", "{answer:?} at {path}");
            assert_eq!(endpoint.connections(), number + 1, "{answer:?}: a connection was kept");
        }
    }
}

#[tokio::test]
async fn a_chunk_that_breaks_the_rules_is_a_502_on_the_buffered_way_and_no_end_on_the_other() {
    for chunks in
        ["zz\r\nok\r\n", "-2\r\nok\r\n", "ffffffffffffffffff\r\nok", "2\r\nokk\r\n0\r\n\r\n"]
    {
        let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        let endpoint = Scripted::start(Answers::Requests, vec![Send(answer)]).await;
        let proxy = in_front_of(&endpoint, "retry = { attempts = 1 }").await;
        let found = ask(&proxy, &Method::POST, INFER, "own").await;
        assert_eq!(
            (found.status.as_u16(), found.reason()),
            (502, "invalid_response"),
            "{chunks:?}"
        );
        let request = Request::post(STREAMED).body(Full::new(Bytes::from_static(b"x"))).unwrap();
        match client::send(proxy.address, request).await {
            Ok(found) => assert_eq!(found.status, 502, "{chunks:?}: {}", found.text()),
            Err(broken) => drop(broken),
        }
        assert_eq!(endpoint.connections(), 2, "{chunks:?}: a connection was kept");
    }
}

#[tokio::test]
async fn a_few_interim_answers_are_passed_on_and_do_not_count_as_answers() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(3);
    let endpoint = Scripted::start(Answers::Requests, vec![Send(interim + OWN)]).await;
    let proxy = in_front_of(&endpoint, "").await;
    for (path, number) in [(INFER, 1), (STREAMED, 2)] {
        assert_eq!(ask(&proxy, &Method::POST, path, "own").await.header("x-answer"), "own");
        let answered = proxy.metric("forebay_attempts_total", &["outcome=\"answered\""]).await;
        assert!((answered - f64::from(number)).abs() < 0.1, "{path}: {answered}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_the_endpoint_closed_costs_no_client_an_answer() {
    let script = vec![Send(OWN.into()), Close];
    let endpoint = Scripted::start(Answers::Requests, script).await;
    let proxy = in_front_of(&endpoint, "").await;
    for number in 0..20 {
        for path in [INFER, STREAMED] {
            let tag = number.to_string();
            let answer = ask(&proxy, &Method::POST, path, &tag).await;
            assert_eq!((answer.status.as_u16(), answer.header("x-answer")), (200, &*tag), "{path}");
        }
    }
}
