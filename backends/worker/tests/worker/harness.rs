//! A worker to talk to, and a client that also says what no decent client would.

use bytes::Bytes;
use forebay_protocol::oip::{Data, InferRequest, InferResponse, Tensor};
use forebay_protocol::{LoadReport, header};
use forebay_worker::{Options, Worker};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for anything that has to happen.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(20);

/// Small models for the odd cases.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

/// The models that ship.
pub(crate) fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models")
}

/// Any port, no waiting at the end.
pub(crate) fn options(models: PathBuf) -> Options {
    Options {
        models,
        listen: "127.0.0.1:0".parse().unwrap(),
        drain_delay: Duration::ZERO,
        ..Options::default()
    }
}

/// Starts a worker and waits until its models have settled.
pub(crate) async fn start(options: Options) -> Worker {
    let worker = Worker::start(options).await.unwrap();
    tokio::time::timeout(MAX_WAIT, worker.settled()).await.expect("models should settle in time");
    worker
}

/// A worker of the small models.
pub(crate) async fn start_fixtures() -> Worker {
    start(options(fixtures())).await
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: impl http::header::AsHeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn reason(&self) -> &str {
        self.header(header::REASON)
    }

    pub(crate) fn error(&self) -> String {
        let json = self.json();
        json["error"]
            .as_str()
            .unwrap_or_else(|| panic!("expected an error, found {json}"))
            .to_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {text}", self.status))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn report(&self) -> LoadReport {
        LoadReport::parse(self.header(header::LOAD_REPORT)).unwrap()
    }

    pub(crate) fn outputs(&self) -> Vec<Tensor> {
        let json_len = self.headers.get(header::INFERENCE_HEADER_CONTENT_LENGTH);
        let json_len = json_len.map(|length| length.to_str().unwrap().parse().unwrap());
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        InferResponse::parse(&self.body, json_len).unwrap().outputs
    }

    /// The status and reason were these, and the words contain `part`.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, reason: &str, part: &str) {
        let found = (self.status.as_u16(), self.reason(), self.error());
        assert_eq!((found.0, found.1), (status, reason), "{}", found.2);
        assert!(found.2.contains(part), "expected words with \"{part}\", found \"{}\"", found.2);
    }
}

/// Sends one request on a connection of its own.
pub(crate) async fn send(address: SocketAddr, request: Request<Bytes>) -> Answer {
    try_send(address, request).await.unwrap()
}

pub(crate) async fn try_send(
    address: SocketAddr,
    request: Request<Bytes>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let io = TokioIo::new(TcpStream::connect(address).await?);
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts, Full::new(body));
    let work = async {
        if request.version() == Version::HTTP_2 {
            let executor = TokioExecutor::new();
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(executor, io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await
        }
    };
    let response = tokio::time::timeout(MAX_WAIT, work).await??;
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(MAX_WAIT, body.collect()).await??.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

pub(crate) fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Bytes> {
    let request = Request::builder().method(method).uri(path).header("host", "worker");
    request.body(body.into()).unwrap()
}

pub(crate) async fn get(worker: &Worker, path: &str) -> Answer {
    send(worker.address(), request(Method::GET, path, "")).await
}

pub(crate) async fn post(worker: &Worker, path: &str, body: impl Into<Bytes>) -> Answer {
    send(worker.address(), request(Method::POST, path, body)).await
}

/// Infers with a body as it is.
pub(crate) async fn infer(worker: &Worker, model: &str, body: impl Into<Bytes>) -> Answer {
    post(worker, &format!("/v2/models/{model}/infer"), body).await
}

pub(crate) fn tensor(name: &str, shape: &[usize], data: Vec<f32>) -> Tensor {
    Tensor::new(name, shape.to_vec(), Data::Fp32(data.into())).unwrap()
}

/// The JSON body of a request with these inputs.
pub(crate) fn json_body(inputs: Vec<Tensor>) -> Vec<u8> {
    InferRequest { inputs, ..InferRequest::default() }.encode(|_| false).unwrap().body
}

/// A request whose inputs are all binary, its header set.
pub(crate) fn binary_request(path: &str, request_body: &InferRequest) -> Request<Bytes> {
    let encoded = request_body.encode(|_| true).unwrap();
    let mut sent = request(Method::POST, path, encoded.body);
    let length = encoded.json_len.unwrap();
    sent.headers_mut().insert(header::INFERENCE_HEADER_CONTENT_LENGTH, length.into());
    sent
}

/// `a + b` and `a - b` of one row each.
pub(crate) fn arith_body(a: f32, b: f32) -> Vec<u8> {
    json_body(vec![tensor("a", &[1, 4], vec![a; 4]), tensor("b", &[1, 4], vec![b; 4])])
}

/// A request that keeps an executor busy for seconds.
pub(crate) fn slow_request() -> Request<Bytes> {
    let body = json_body(vec![tensor("x", &[1024], vec![0.03; 1024])]);
    request(Method::POST, "/v2/models/slow/infer", body)
}

/// Bytes as they are; all that comes back until the worker closes the connection.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The worker may have refused and closed before all was written.
    drop(stream.write_all(bytes).await);
    let mut answer = Vec::new();
    let read = tokio::time::timeout(MAX_WAIT, stream.read_to_end(&mut answer)).await;
    drop(read.expect("the worker should close the connection"));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits for something observable.
#[track_caller]
pub(crate) fn eventually<F: Future<Output = bool>>(
    what: &'static str,
    condition: impl Fn() -> F,
) -> impl Future<Output = ()> {
    let client = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        while !condition().await {
            assert!(started.elapsed() < MAX_WAIT, "waited in vain until {what} at {client}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Waits until so many requests run and so many wait.
pub(crate) async fn until_busy(worker: &Worker, executing: u32, waiting: u32) {
    let expected = (Some(executing + waiting), Some(waiting));
    eventually("the load report says so", || async {
        let report = get(worker, "/v2/health/live").await.report();
        (report.rif, report.queue) == expected
    })
    .await;
}

/// A directory of its own, removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and the directories above it.
    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// The bytes of a small model.
    pub(crate) fn model(name: &str) -> Vec<u8> {
        std::fs::read(fixtures().join(name).join("1/model.onnx")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
