//! A client: single requests, raw bytes, and steady load over kept-alive connections.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::MAX_WAIT;

pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn reason(&self) -> &str {
        self.header("x-forebay-reason")
    }
}

pub async fn get_with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request::get(path);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    send(address, request.body(Full::new(Bytes::new())).unwrap()).await.unwrap()
}

pub async fn get(address: SocketAddr, path: &str) -> Response {
    let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
    send(address, request).await.unwrap()
}

pub async fn post(address: SocketAddr, path: &str, body: impl Into<Bytes>) -> Response {
    post_with(address, path, &[], body).await
}

pub async fn post_with(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(address, request.body(Full::new(body.into())).unwrap()).await.unwrap()
}

/// One request on a connection of its own.
pub async fn send<B>(address: SocketAddr, mut request: Request<B>) -> Result<Response, Failed>
where
    B: hyper::body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Failed>,
{
    let stream = TcpStream::connect(address).await?;
    request.headers_mut().insert("host", address.to_string().parse()?);
    send_on(stream, request).await
}

pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// One request on a connection that is there.
pub async fn send_on<B>(stream: impl Connection, request: Request<B>) -> Result<Response, Failed>
where
    B: hyper::body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Failed>,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = timeout(MAX_WAIT, sender.send_request(request)).await??;
    let (head, body) = response.into_parts();
    let body = timeout(MAX_WAIT, body.collect()).await??.to_bytes();
    driver.abort();
    Ok(Response { status: head.status, headers: head.headers, body })
}

/// A connection, encrypted or not.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for S {}

/// Requests over one HTTP/2 connection without TLS, all at once.
pub async fn post_h2(address: SocketAddr, path: &str, bodies: Vec<Bytes>) -> Vec<Response> {
    let stream = TcpStream::connect(address).await.unwrap();
    post_h2_on(stream, &format!("http://{address}{path}"), bodies).await
}

/// Requests over one HTTP/2 connection that is there, all at once.
pub async fn post_h2_on(stream: impl Connection, uri: &str, bodies: Vec<Bytes>) -> Vec<Response> {
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut tasks = JoinSet::new();
    for (number, body) in bodies.into_iter().enumerate() {
        let mut sender = sender.clone();
        let uri = uri.to_owned();
        tasks.spawn(async move {
            let length = body.len();
            let request = Request::post(uri).header("content-length", length);
            let request = request.body(Full::new(body)).unwrap();
            let response = sender.send_request(request).await.unwrap();
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            (number, Response { status: head.status, headers: head.headers, body })
        });
    }
    let mut answers: Vec<_> = tasks.join_all().await;
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, response)| response).collect()
}

/// Writes `bytes` as they are and reads until the other side closes or says nothing for `quiet`.
pub async fn raw(address: SocketAddr, bytes: &[u8], quiet: Duration) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match timeout(quiet, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return (String::from_utf8_lossy(&answer).into_owned(), true),
            Ok(Ok(read)) => answer.extend_from_slice(&buffer[..read]),
            Err(_) => return (String::from_utf8_lossy(&answer).into_owned(), false),
        }
    }
}

/// Clients that send one request after the other over kept-alive connections until stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: JoinSet<BTreeMap<String, usize>>,
}

impl Load {
    pub fn start(address: SocketAddr, path: &'static str, body: &'static str, n: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for _ in 0..n {
            clients.spawn(client(address, path, body, Arc::clone(&stop), Arc::clone(&done)));
        }
        Self { stop, done, clients }
    }

    pub fn done(&self) -> usize {
        self.done.load(Relaxed)
    }

    /// Waits until `more` further requests are done.
    pub async fn wait(&self, more: usize) {
        let target = self.done() + more;
        crate::harness::eventually("requests", async || (self.done() >= target).then_some(()))
            .await;
    }

    /// Ends the load; how often each outcome was seen.
    pub async fn stop(self) -> BTreeMap<String, usize> {
        self.stop.store(true, Relaxed);
        let mut outcomes = BTreeMap::new();
        for one in self.clients.join_all().await {
            for (outcome, count) in one {
                *outcomes.entry(outcome).or_default() += count;
            }
        }
        outcomes
    }
}

/// One client. A refused connection ends it: the proxy has left. A connection that was closed
/// between two requests, as announced, is opened again.
async fn client(
    address: SocketAddr,
    path: &'static str,
    body: &'static str,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    let mut note = |outcome: String| *outcomes.entry(outcome).or_default() += 1;
    'connections: while !stop.load(Relaxed) {
        let Ok(stream) = TcpStream::connect(address).await else { break };
        let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
            break;
        };
        let driver = tokio::spawn(connection);
        while !stop.load(Relaxed) {
            if sender.ready().await.is_err() {
                break;
            }
            let request = Request::post(path)
                .header("host", address.to_string())
                .body(Full::new(Bytes::from_static(body.as_bytes())))
                .unwrap();
            let closes = match timeout(MAX_WAIT, sender.send_request(request)).await {
                Ok(Ok(response)) => {
                    let status = response.status();
                    let reason = response.headers().get("x-forebay-reason").cloned();
                    let closes = response.headers().get("connection").is_some_and(|v| v == "close");
                    match (response.into_body().collect().await, reason) {
                        (Ok(_), None) => note(status.as_u16().to_string()),
                        (Ok(_), Some(reason)) => note(format!("{status} {reason:?}")),
                        (Err(error), _) => note(format!("broken answer: {error}")),
                    }
                    closes
                }
                Ok(Err(error)) if error.is_canceled() => {
                    // Never sent: the connection was closed before.
                    continue 'connections;
                }
                Ok(Err(error)) => {
                    note(format!("no answer: {error:?}"));
                    true
                }
                Err(_) => {
                    note("hang".to_owned());
                    true
                }
            };
            done.fetch_add(1, Relaxed);
            if closes {
                break;
            }
        }
        driver.abort();
    }
    outcomes
}
