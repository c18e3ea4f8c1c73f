//! HTTP/2 clients that do other things than ask, and requests that are not by the letter: the
//! connection or the stream ends in order, counted and logged, and clients that cancel, download and
//! ping are left alone.

use crate::client::{Response, post, post_h2};
use crate::endpoint::{Behaviour, Endpoint, echo};
use crate::harness::{MAX_WAIT, Proxy, eventually, pool_of};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const INFER: &str = "/v2/models/m/infer";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// Fields as HPACK literals that are not kept.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            match text.len() {
                short @ ..127 => block.push(u8::try_from(short).unwrap()),
                long => {
                    block.push(127);
                    let mut rest = long - 127;
                    while rest >= 128 {
                        block.push(u8::try_from(rest % 128).unwrap() | 128);
                        rest /= 128;
                    }
                    block.push(u8::try_from(rest).unwrap());
                }
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", INFER), (":authority", "x")];

/// A client that writes frames as it likes.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

/// A frame that the proxy sent.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Raw {
    async fn connect(proxy: &Proxy) -> Self {
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Self { stream, read: Vec::new() };
        let settings = frame(SETTINGS, 0, 0, &[]);
        raw.send(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat()).await;
        raw
    }

    /// Writes, as far as the proxy takes it.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self) -> Option<Frame> {
        let reading = async {
            loop {
                if self.read.len() >= 9 {
                    let length = u32::from_be_bytes([0, self.read[0], self.read[1], self.read[2]]);
                    let end = 9 + usize::try_from(length).unwrap();
                    if self.read.len() >= end {
                        let bytes: Vec<_> = self.read.drain(..end).collect();
                        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
                        let (kind, flags) = (bytes[3], bytes[4]);
                        return Some(Frame { kind, flags, stream, payload: bytes[9..].to_vec() });
                    }
                }
                match self.stream.read_buf(&mut self.read).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        timeout(MAX_WAIT, reading).await.expect("the proxy says nothing")
    }

    /// The code of the GOAWAY that ends the connection.
    async fn goaway(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
        code
    }

    /// The first frame on `stream`.
    async fn on(&mut self, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection ended");
            if frame.stream == stream {
                return frame;
            }
        }
    }
}

async fn echoing() -> (Proxy, Endpoint) {
    let endpoint = Endpoint::start(Behaviour::Echo).await;
    let proxy = Proxy::start(&pool_of(&[endpoint.address], "")).await;
    proxy.wait_ready(1).await;
    (proxy, endpoint)
}

async fn floods(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metric("forebay_http2_floods_total", &[&format!("kind=\"{kind}\"")]).await
}

#[tokio::test]
async fn a_flood_of_any_frame_ends_with_goaway_counted_by_kind() {
    let (proxy, _endpoint) = echoing().await;
    let open = frame(HEADERS, END_HEADERS, 1, &block(&POST));
    for (kind, before, flood) in [
        ("ping", &[][..], frame(PING, 0, 0, &[0; 8])),
        ("ping", &[], frame(PING, 1, 0, &[0; 8])),
        ("settings", &[], frame(SETTINGS, 0, 0, &[])),
        ("settings", &[], frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("window_update", &[], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("window_update", &open, frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("priority", &[], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty_data", &open, frame(DATA, 0, 1, &[])),
        ("other", &[], frame(0xbe, 0, 0, &[0; 100])),
        ("other", &open, frame(0x10, 0, 0, b"\0\0\0\x01u=1")),
    ] {
        let earlier = floods(&proxy, kind).await;
        let mut raw = Raw::connect(&proxy).await;
        raw.send(before).await;
        let started = Instant::now();
        // More than the proxy takes: what comes behind its GOAWAY is not read.
        for _ in 0..50 {
            if !raw.send(&flood.repeat(100)).await {
                break;
            }
        }
        assert_eq!(raw.goaway().await, Some(11), "{kind}");
        assert!(started.elapsed() < Duration::from_secs(20), "{kind}: {:?}", started.elapsed());
        assert_eq!(floods(&proxy, kind).await, earlier + 1.0, "{kind}");
        let line = loop {
            let line = proxy.next_line();
            if line["path"] == "" {
                break line;
            }
        };
        assert_eq!(line["reason"], "client_flood", "{line}");
        assert!(line["error"].as_str().unwrap().contains(kind), "{line}");
        assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
    let counted = async || {
        let ended = proxy.metric("forebay_connections_total", &["reason=\"client_flood\""]).await;
        (ended == 10.0).then_some(())
    };
    eventually("the connections' ends", counted).await;
    assert_eq!(post(proxy.address, INFER, "x").await.text(), echo(b"x"));
}

#[tokio::test]
async fn requests_that_are_cancelled_at_once_end_the_connection_even_if_they_come_slowly() {
    let (proxy, _endpoint) = echoing().await;
    for pause in [Duration::ZERO, Duration::from_millis(5)] {
        let earlier = floods(&proxy, "reset").await;
        let mut raw = Raw::connect(&proxy).await;
        let headers = block(&POST);
        for turn in 0..2000 {
            let stream = 2 * turn + 1;
            let cancelled = [
                frame(HEADERS, END_HEADERS, stream, &headers),
                frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
            ];
            if !raw.send(&cancelled.concat()).await {
                break;
            }
            sleep(pause).await;
            if !pause.is_zero() && floods(&proxy, "reset").await > earlier {
                break;
            }
        }
        // The library may be faster where they come in one piece.
        assert_eq!(raw.goaway().await, Some(11), "{pause:?}");
        if !pause.is_zero() {
            assert_eq!(floods(&proxy, "reset").await, earlier + 1.0);
        }
    }
    assert_eq!(post(proxy.address, INFER, "x").await.text(), echo(b"x"));
}

#[tokio::test]
async fn clients_that_cancel_what_takes_too_long_are_left_alone() {
    let slow = Endpoint::start(Behaviour::Gated).await;
    let proxy = Proxy::start(&pool_of(&[slow.address], "")).await;
    proxy.wait_ready(1).await;
    let mut sender = connect(&proxy).await;
    for _ in 0..5 {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let answer = sender.send_request(request(&proxy, &[], "x"));
            tasks.spawn(timeout(Duration::from_millis(300), answer));
        }
        tasks.join_all().await;
    }
    // The connection is still there.
    slow.let_go(1000);
    sender.ready().await.unwrap();
    let answer = timeout(MAX_WAIT, sender.send_request(request(&proxy, &[], "x"))).await;
    assert_eq!(answer.unwrap().unwrap().status(), 200);
    assert_eq!(floods(&proxy, "reset").await, 0.0);
}

#[tokio::test]
async fn a_download_in_small_windows_with_pings_is_left_alone() {
    let huge = Endpoint::start(Behaviour::Huge).await;
    let proxy = Proxy::start(&pool_of(&[huge.address], "")).await;
    proxy.wait_ready(1).await;
    let mut raw = Raw::connect(&proxy).await;
    let mut received = 0;
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block(&POST))).await;
    raw.send(&frame(DATA, END_STREAM, 1, b"x")).await;
    while received < 4_000_000 {
        let said = raw.next().await.expect("the connection ended");
        assert!(said.kind != RST_STREAM && said.kind != GOAWAY, "{said:?}");
        if said.kind == DATA {
            received += said.payload.len();
            // The window of stream and connection for each kilobyte, and a PING for the data.
            let mut updates = frame(PING, 0, 0, &[0; 8]);
            for piece in said.payload.chunks(1024) {
                let more = u32::try_from(piece.len()).unwrap().to_be_bytes();
                updates.extend(frame(WINDOW_UPDATE, 0, 0, &more));
                updates.extend(frame(WINDOW_UPDATE, 0, 1, &more));
            }
            raw.send(&updates).await;
        }
    }
    huge.becomes(Behaviour::Echo);
    let answers = post_h2(proxy.address, INFER, vec![Bytes::from_static(b"y"); 100]).await;
    assert!(answers.iter().all(|answer| answer.text() == echo(b"y")));
    assert_eq!(floods(&proxy, "window_update").await, 0.0);
}

async fn connect(proxy: &Proxy) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(proxy: &Proxy, fields: &[(&str, &str)], body: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::post(format!("http://{}{INFER}", proxy.address));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

async fn send(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Response {
    let answer = timeout(MAX_WAIT, sender.send_request(request)).await.unwrap().unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response { status: head.status, headers: head.headers, body }
}

#[tokio::test]
async fn bounds_of_the_header_hold_over_http2_as_over_http1() {
    let (proxy, endpoint) = echoing().await;
    let mut sender = connect(&proxy).await;
    let names: Vec<String> = (0..1000).map(|number| format!("x-{number}")).collect();
    let long = "v".repeat(70_000);
    let fields = |count: usize| -> Vec<(&str, &str)> {
        names.iter().take(count).map(|name| (&**name, "v")).collect()
    };
    let refused = [
        (431, "headers_too_large", fields(101)),
        (431, "headers_too_large", fields(1000)),
        (431, "headers_too_large", vec![("x", "v"); 101]),
        (431, "headers_too_large", vec![("x", &*long)]),
        (431, "headers_too_large", vec![("x", &long[..15_000]); 10]),
        (431, "headers_too_large", vec![("x", &long[..15_000]); 33]),
        (400, "invalid_request", vec![("content-length", "1"), ("content-length", "1")]),
    ];
    for (status, reason, fields) in &refused {
        let answer = send(&mut sender, request(&proxy, fields, "x")).await;
        assert_eq!((answer.status.as_u16(), answer.reason()), (*status, *reason));
        let line = proxy.next_line();
        assert_eq!((&line["reason"], &line["status"]), (&(*reason).into(), &(*status).into()));
        assert_eq!(line["path"], INFER);
    }
    // One may be the length.
    let answer = send(&mut sender, request(&proxy, &fields(99), "x")).await;
    assert_eq!(answer.text(), echo(b"x"));
    assert_eq!(endpoint.served(), 1);
}

#[tokio::test]
async fn what_the_library_refuses_is_counted_and_logged_too() {
    let (proxy, endpoint) = echoing().await;
    let with = |fields: &[(&str, &str)]| block(&[&POST[..], fields].concat());
    let [method, scheme, path, authority] = POST;
    let long = "v".repeat(15_000);
    // Beyond what the library decodes.
    let list: Vec<_> = (0..38).map(|_| ("x", &*long)).collect();
    let mut refused = 0;
    for (status, reason, block) in [
        (400, "invalid_request", with(&[("content-length", "5, 5")])),
        (400, "invalid_request", with(&[("content-length", "5"), ("content-length", "6")])),
        (400, "invalid_request", with(&[("connection", "close")])),
        (400, "invalid_request", with(&[("transfer-encoding", "chunked")])),
        (400, "invalid_request", with(&[("te", "gzip")])),
        (400, "invalid_request", with(&[(":path", "/twice")])),
        (400, "invalid_request", block(&[scheme, path, authority])),
        (400, "invalid_request", block(&[method, scheme, authority])),
        (400, "invalid_request", block(&[method, scheme, path])),
        (400, "invalid_request", block(&[method, scheme, path, (":authority", "u@x")])),
        (431, "headers_too_large", with(&list)),
    ] {
        let mut raw = Raw::connect(&proxy).await;
        let parts: Vec<_> = block.chunks(16_000).collect();
        for (place, part) in parts.iter().enumerate() {
            let kind = if place == 0 { HEADERS } else { CONTINUATION };
            let last = if place + 1 == parts.len() { END_HEADERS } else { 0 };
            let end = if place == 0 { END_STREAM } else { 0 };
            raw.send(&frame(kind, last | end, 1, part)).await;
        }
        let said = raw.on(1).await;
        let bare = said.kind == HEADERS && said.flags & END_STREAM != 0;
        assert!(bare || said.kind == RST_STREAM, "{said:?}");
        let line = proxy.next_line();
        assert_eq!((&line["reason"], &line["status"]), (&reason.into(), &status.into()), "{line}");
        refused += usize::from(status == 400);
        // The connection goes on.
        raw.send(&frame(HEADERS, END_HEADERS, 3, &block_of_good())).await;
        raw.send(&frame(DATA, END_STREAM, 3, b"x")).await;
        assert_eq!(raw.on(3).await.kind, HEADERS);
        assert_eq!(proxy.next_line()["reason"], "ok");
    }
    // A name that is not lower case is an error of the connection.
    let mut raw = Raw::connect(&proxy).await;
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &with(&[("X-Upper", "1")]))).await;
    assert!(matches!(raw.goaway().await, Some(1 | 9)), "GOAWAY for an upper-case name");
    assert_eq!(proxy.next_line()["reason"], "invalid_request");
    // CONNECT is ours.
    let mut raw = Raw::connect(&proxy).await;
    let connect = block(&[(":method", "CONNECT"), (":authority", "x:1")]);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &connect)).await;
    assert_eq!(raw.on(1).await.kind, HEADERS);
    assert_eq!(proxy.next_line()["reason"], "method_not_allowed");
    for (status, expected) in [(400, refused + 1), (431, 1), (405, 1)] {
        let status = format!("status=\"{status}\"");
        let counted = proxy.metric("forebay_requests_total", &[&status]).await;
        assert_eq!(counted, expected as f64, "{status}");
    }
    assert_eq!(endpoint.served(), 11);
}

#[tokio::test]
async fn a_client_may_send_as_much_ahead_as_the_file_says() {
    for (line, window) in [("", 65_536), ("http2_window = \"1MiB\"", 1_048_576)] {
        let pool = pool_of(&[([127, 0, 0, 1], 9).into()], "");
        let proxy = Proxy::start_with(line, &pool).await;
        let mut raw = Raw::connect(&proxy).await;
        // Of a stream, and what is added to the connection's 65,535.
        let (mut of_stream, mut added) = (None, None);
        // One byte more is not worth a frame.
        let is_more = window > 65_536;
        while of_stream.is_none() || (is_more && added.is_none()) {
            let frame = raw.next().await.expect("settings and a window");
            let number =
                |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
            match frame.kind {
                SETTINGS if frame.flags == 0 => {
                    let entries = (0..frame.payload.len()).step_by(6);
                    let window = entries.clone().find(|at| frame.payload[at + 1] == 4);
                    of_stream = Some(window.map_or(65_535, |at| number(at + 2)));
                }
                WINDOW_UPDATE if frame.stream == 0 => added = Some(number(0)),
                _ => {}
            }
        }
        assert_eq!(
            (of_stream, added),
            (Some(window), is_more.then_some(window - 65_535)),
            "{line}"
        );
    }
}

fn block_of_good() -> Vec<u8> {
    block(&POST)
}
