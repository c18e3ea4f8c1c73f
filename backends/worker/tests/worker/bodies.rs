//! Bodies as they travel: compressed, endless, lying about their length, or slow.

use crate::harness::*;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use forebay_worker::{Options, Worker};
use http::{Method, Request};
use std::io::Write;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: usize = 1 << 20;

async fn start_limited() -> Worker {
    start(Options { max_body: LIMIT, ..options(fixtures()) }).await
}

fn encoded(encoding: &str, body: Vec<u8>) -> Request<bytes::Bytes> {
    let mut request = request(Method::POST, "/v2/models/arith/infer", body);
    request.headers_mut().insert("content-encoding", encoding.parse().unwrap());
    request
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn compressed_bodies_are_understood() {
    let worker = start_limited().await;
    let body = arith_body(2.0, 1.0);
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(&body).unwrap();
    let mut bare = DeflateEncoder::new(Vec::new(), Compression::default());
    bare.write_all(&body).unwrap();
    for (encoding, sent) in [
        ("gzip", gzip(&body)),
        ("GZIP", gzip(&body)),
        ("deflate", zlib.finish().unwrap()),
        ("deflate", bare.finish().unwrap()),
        ("identity", body),
    ] {
        let answer = send(worker.address(), encoded(encoding, sent)).await;
        assert_eq!(answer.outputs()[0], tensor("sum", &[1, 4], vec![3.0; 4]), "{encoding}");
    }
}

#[tokio::test]
async fn compressed_bodies_that_are_damaged_or_foreign_are_refused() {
    let worker = start_limited().await;
    let whole = gzip(&arith_body(2.0, 1.0));
    for damaged in [&whole[..whole.len() / 2], b"no gzip at all", b""] {
        let answer = send(worker.address(), encoded("gzip", damaged.to_vec())).await;
        answer.refused(400, "invalid_request", "damaged");
    }
    for encoding in ["br", "zstd", "gzip, gzip"] {
        let answer = send(worker.address(), encoded(encoding, whole.clone())).await;
        answer.refused(415, "unsupported_encoding", "gzip, deflate or identity");
    }
}

#[tokio::test]
async fn a_body_that_inflates_beyond_the_limit_is_refused() {
    let worker = start_limited().await;
    // 64 MiB of blanks in 64 KiB.
    let bomb = gzip(&vec![b' '; 64 << 20]);
    assert!(bomb.len() < LIMIT / 8, "{} bytes", bomb.len());
    let answer = send(worker.address(), encoded("gzip", bomb)).await;
    answer.refused(413, "body_too_large", "after inflating");
}

#[tokio::test]
async fn bodies_up_to_the_limit_arrive_whole_and_longer_ones_are_refused() {
    let worker = start_limited().await;
    let padded = |length: usize| {
        let mut body = arith_body(1.0, 1.0);
        body.resize(length, b' ');
        body
    };
    for length in [63 << 10, 64 << 10, (64 << 10) + 1, 65 << 10, LIMIT - 1, LIMIT] {
        let answer = infer(&worker, "arith", padded(length)).await;
        assert_eq!(answer.outputs()[0], tensor("sum", &[1, 4], vec![2.0; 4]), "{length} bytes");
    }
    let answer = infer(&worker, "arith", padded(LIMIT + 1)).await;
    answer.refused(413, "body_too_large", "at most 1048576 bytes, found 1048577");
}

#[tokio::test]
async fn a_gigabyte_that_is_only_announced_is_refused_at_once() {
    let worker = start_limited().await;
    let head =
        "POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n";
    let answer = raw(worker.address(), head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("body_too_large"), "{answer}");
}

#[tokio::test]
async fn bodies_that_are_only_announced_keep_nobody_out() {
    // Together they announce 64 times what all bodies may hold.
    let options = Options { max_body: LIMIT, max_body_memory: LIMIT, ..options(fixtures()) };
    let worker = start(options).await;
    let head = format!(
        "POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {LIMIT}\r\n\r\n{{"
    );
    let mut announced = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(worker.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        announced.push(stream);
    }
    for _ in 0..3 {
        let answer = infer(&worker, "arith", arith_body(1.0, 1.0)).await;
        assert_eq!(answer.status, 200, "{}", answer.error());
    }
    for stream in &announced {
        let read = stream.try_read(&mut [0]);
        assert!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
}

#[tokio::test]
async fn a_body_that_comes_by_drops_ends_long_before_its_time() {
    let options = Options {
        body_timeout: Duration::from_secs(600),
        min_body_rate: 1 << 10,
        ..options(fixtures())
    };
    let worker = start(options).await;
    let stream = TcpStream::connect(worker.address()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let head = "POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9999\r\n\r\n";
    write.write_all(head.as_bytes()).await.unwrap();
    let drops = tokio::spawn(async move {
        while write.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut answer = String::new();
    let read = read.read_to_string(&mut answer);
    // All of it would take a quarter of an hour.
    let ended = tokio::time::timeout(Duration::from_secs(60), read).await;
    drops.abort();
    assert!(ended.is_ok(), "it goes on");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");
}

#[tokio::test]
async fn a_chunked_body_beyond_the_limit_is_refused() {
    let worker = start_limited().await;
    let mut sent =
        b"POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..17 {
        sent.extend_from_slice(b"10000\r\n");
        sent.resize(sent.len() + 0x10000, b' ');
        sent.extend_from_slice(b"\r\n");
    }
    let mut stream = TcpStream::connect(worker.address()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer = vec![0; 12];
    let (_, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut answer));
    read.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn chunked_and_a_length_together_cannot_smuggle_a_second_request() {
    let worker = start_limited().await;
    let body = arith_body(1.0, 1.0);
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", body.len(), String::from_utf8(body).unwrap());
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
    ] {
        let first =
            format!("POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{chunk}");
        let second = "GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n";
        let answer = raw(worker.address(), format!("{first}{second}").as_bytes()).await;
        // RFC 9112, 6.3: chunked decides, and the connection ends with this answer.
        assert!(
            answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{headers}: {answer}");
    }
}

#[tokio::test]
async fn what_two_readers_could_read_differently_is_refused_and_ends_the_connection() {
    let worker = start_limited().await;
    let second = "0\r\n\r\nGET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n";
    for (line, headers) in [
        (
            "POST /v2 HTTP/1.1",
            "host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked",
        ),
        ("POST /v2 HTTP/1.1", "host: x\r\ntransfer-encoding: chunked, chunked"),
        ("POST /v2 HTTP/1.0", "host: x\r\ntransfer-encoding: chunked"),
        ("GET /v2 HTTP/1.1", "accept: */*"),
        ("GET /v2 HTTP/1.1", "host: x\r\nhost: y"),
        ("GET /v2 HTTP/1.1", "host: x y"),
        ("GET /v2 HTTP/1.1", "host: user@x"),
        ("GET http://other/v2 HTTP/1.1", "host: x"),
    ] {
        let sent = format!("{line}\r\n{headers}\r\n\r\n{second}");
        let answer = raw(worker.address(), sent.as_bytes()).await;
        assert!(answer.contains(" 400 "), "{headers}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{headers}: {answer}");
    }
    for sent in [
        "GET /v2 HTTP/1.0\r\n\r\n",
        "GET /v2 HTTP/1.1\r\nhost: [::1]:80\r\nconnection: close\r\n\r\n",
        "GET http://x/v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ] {
        let answer = raw(worker.address(), sent.as_bytes()).await;
        assert!(answer.contains(" 200 "), "{sent:?}: {answer}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_ends_in_408() {
    let options = Options { body_timeout: Duration::from_millis(50), ..options(fixtures()) };
    let worker = start(options).await;
    let head = "POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{";
    let answer = raw(worker.address(), head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn connections_that_say_nothing_or_too_little_are_closed() {
    let timeout = Duration::from_millis(50);
    let options = Options { header_timeout: timeout, idle_timeout: timeout, ..options(fixtures()) };
    let worker = start(options).await;
    for silence in ["", "G", "GET / HTTP/1.1\r\nhost:", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        // `raw` returns only when the worker closes.
        raw(worker.address(), silence.as_bytes()).await;
    }
    let idle = raw(worker.address(), b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(idle.starts_with("HTTP/1.1 200"), "{idle}");
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let worker = start_limited().await;
    let huge = format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "b".repeat(100 << 10));
    let answer = raw(worker.address(), huge.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many: String = (0..200).map(|i| format!("a{i}: b\r\n")).collect();
    let answer =
        raw(worker.address(), format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn bodies_beyond_the_memory_of_all_are_refused_and_the_memory_comes_back() {
    let options = Options { max_body: LIMIT, max_body_memory: LIMIT, ..options(fixtures()) };
    let worker = start(options).await;
    let mut body = arith_body(1.0, 1.0);
    body.resize(4000, b' ');
    // One unfinished body holds most of the memory, unless it was refused itself because it met the
    // other: then another tries.
    let hold = || async {
        let mut holder = TcpStream::connect(worker.address()).await.unwrap();
        let head = format!(
            "POST /v2/models/arith/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {LIMIT}\r\n\r\n"
        );
        holder.write_all(head.as_bytes()).await.unwrap();
        holder.write_all(&vec![b' '; LIMIT - 1000]).await.unwrap();
        holder
    };
    let holder = std::cell::RefCell::new(None);
    eventually("the other is refused", || async {
        let held = hold().await;
        for _ in 0..10 {
            let answer = infer(&worker, "arith", body.clone()).await;
            if (answer.status.as_u16(), answer.reason()) == (503, "queue_full") {
                *holder.borrow_mut() = Some(held);
                return true;
            }
        }
        false
    })
    .await;
    drop(holder);
    eventually("the memory is back", || async {
        infer(&worker, "arith", body.clone()).await.status == 200
    })
    .await;
}
