//! A gRPC client of a few lines, so that it can also say what no library would.

use crate::harness::MAX_WAIT;
use bytes::{Bytes, BytesMut};
use forebay_protocol::grpc::{Code, PREFIX_BYTES, Prefix, decode_message, frame};
use forebay_protocol::header;
use futures_util::stream;
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

pub(crate) const SERVICE: &str = "/inference.GRPCInferenceService";

/// A message in its frame.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    frame(message.encoded_len(), |out| message.encode(out).unwrap())
}

/// An answer that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) headers: HeaderMap,
    pub(crate) messages: Vec<Bytes>,
    /// The trailers, or the headers if there was nothing else.
    pub(crate) trailers: HeaderMap,
}

impl Ended {
    pub(crate) fn code(&self) -> Code {
        Code::parse(&self.trailers[header::GRPC_STATUS]).unwrap()
    }

    pub(crate) fn words(&self) -> String {
        self.trailers.get(header::GRPC_MESSAGE).map(decode_message).unwrap_or_default()
    }

    /// The one message of an answer that went well.
    #[track_caller]
    pub(crate) fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.code(), Code::Ok, "{}", self.words());
        assert_eq!(self.messages.len(), 1);
        M::decode(self.messages[0].clone()).unwrap()
    }

    /// It ended so, and the words contain `part`.
    #[track_caller]
    pub(crate) fn refused(&self, code: Code, reason: &str, part: &str) {
        let found = self.trailers.get(header::REASON).map_or("", |value| value.to_str().unwrap());
        assert_eq!((self.code(), found), (code, reason), "{}", self.words());
        assert!(self.words().contains(part), "expected \"{part}\", found \"{}\"", self.words());
    }
}

/// A unary call with a well-formed message.
pub(crate) async fn call(address: SocketAddr, method: &str, message: &impl Message) -> Ended {
    call_with(address, method, &[], framed(message)).await
}

/// A call with these headers and this body.
pub(crate) async fn call_with(
    address: SocketAddr,
    method: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Ended {
    Connection::open(address).await.call(method, headers, body).await
}

/// A connection for many calls; closed when it and its calls are dropped.
#[derive(Clone)]
pub(crate) struct Connection {
    address: SocketAddr,
    sender: SendRequest<UnsyncBoxBody<Bytes, Infallible>>,
    _task: Arc<Task>,
}

struct Task(tokio::task::AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let task = Arc::new(Task(tokio::spawn(connection).abort_handle()));
        Self { address, sender, _task: task }
    }

    /// A unary call.
    pub(crate) async fn call(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Ended {
        let body = Full::new(body.into()).boxed_unsync();
        self.clone().begin(method, headers, body).await.end().await
    }

    async fn begin(
        mut self,
        method: &str,
        headers: &[(&str, &str)],
        body: UnsyncBoxBody<Bytes, Infallible>,
    ) -> Call {
        let uri = format!("http://{}{method}", self.address);
        let mut request = Request::post(uri).header("te", "trailers");
        request = request.header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let sent = timeout(MAX_WAIT, self.sender.send_request(request));
        let response = sent.await.expect("an answer in time").unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let (parts, body) = response.into_parts();
        let (headers, buffer) = (parts.headers, BytesMut::new());
        // A header that ends the stream is a trailer at the same time, any other is none.
        let trailers = body.is_end_stream().then(|| headers.clone());
        Call { headers, body, buffer, trailers, _connection: self }
    }
}

/// A call that is under way; dropping it is the client going away.
pub(crate) struct Call {
    pub(crate) headers: HeaderMap,
    body: Incoming,
    buffer: BytesMut,
    trailers: Option<HeaderMap>,
    _connection: Connection,
}

impl Call {
    /// A call with one message, and perhaps many answers.
    pub(crate) async fn start(
        address: SocketAddr,
        method: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Self {
        let body = Full::new(body.into()).boxed_unsync();
        Connection::open(address).await.begin(method, headers, body).await
    }

    /// A call whose messages come out of the channel.
    pub(crate) async fn stream(
        address: SocketAddr,
        method: &str,
        headers: &[(&str, &str)],
    ) -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel::<Bytes>(64);
        let frames = stream::unfold(receiver, |mut receiver| async {
            let bytes = receiver.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), receiver))
        });
        let body = StreamBody::new(frames).boxed_unsync();
        (sender, Connection::open(address).await.begin(method, headers, body).await)
    }

    /// The next message; `None`: the call has ended.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(prefix) = Prefix::read(&self.buffer).unwrap()
                && self.buffer.len() >= PREFIX_BYTES + prefix.length
            {
                let message = self.buffer.split_to(PREFIX_BYTES + prefix.length);
                return Some(message.freeze().slice(PREFIX_BYTES..));
            }
            let frame = timeout(MAX_WAIT, self.body.frame()).await.expect("an answer in time");
            let Some(frame) = frame else { break };
            match frame.unwrap().into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
        assert!(self.buffer.is_empty(), "half a message");
        None
    }

    /// The next message, which must be there.
    pub(crate) async fn expect<M: Message + Default>(&mut self) -> M {
        M::decode(self.next().await.expect("a message")).unwrap()
    }

    /// The rest of the answer.
    pub(crate) async fn end(mut self) -> Ended {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        let headers = self.headers.clone();
        let trailers = self.trailers.clone().expect("a status at the end");
        Ended { headers, messages, trailers }
    }
}
