//! Requests and answers between their bytes and what the cache knows: read in every form in which the
//! protocol has them, written in the form that the client asked in.
//!
//! Only messages are read that say nothing beyond what is read: whatever else an endpoint may look at would
//! make two requests equal that are not.

use super::outcome::Bypass;
use crate::http::response::BufferedResponse;
use bytes::Bytes;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use forebay_cache::embeddings::{self, EmbeddingsRequest};
use forebay_cache::memo::Written;
use forebay_cache::{Answer, CacheControl};
use forebay_protocol::grpc::{self, Code, infer};
use forebay_protocol::oip::{InferRequest, InferResponse};
use forebay_protocol::{Reason, header};
use http::{HeaderMap, HeaderValue};
use pingora::http::ResponseHeader;
use prost::Message as _;
use std::io::Read;
use std::sync::Arc;

/// A message of more bytes is read on a thread of its own, so that others' requests go on meanwhile.
pub(super) const MAX_INLINE: usize = 64 * 1024;

/// Runs `work` on `size` bytes where that holds up nothing else.
pub(in crate::http) async fn off_io<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    if size <= MAX_INLINE { Some(work()) } else { tokio::task::spawn_blocking(work).await.ok() }
}

/// A request that was read.
pub(super) enum Message {
    /// An inference; its inputs only while they are needed.
    Infer(InferRequest),
    /// Embeddings of a list of inputs.
    Embeddings(Arc<EmbeddingsRequest>),
}

impl Message {
    /// Whether it asks for embeddings.
    pub(super) fn is_embeddings(&self) -> bool {
        matches!(self, Self::Embeddings(_))
    }
}

/// An answer that was read.
pub(super) enum Found {
    /// To an inference.
    Infer(InferResponse),
    /// To each of the inputs to embed that were asked for.
    Embeddings(Vec<Answer>),
}

/// How the bytes of a message are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) struct Wire {
    is_grpc: bool,
    encoding: Encoding,
    /// Bytes of JSON before the tensors.
    json_len: Option<usize>,
    /// Most bytes that it may inflate to.
    most: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

impl Wire {
    /// As the headers of the message say.
    pub(in crate::http) fn of(
        headers: &HeaderMap,
        is_grpc: bool,
        most: u64,
    ) -> Result<Self, Bypass> {
        let encoding = if is_grpc { Encoding::Identity } else { encoding(headers)? };
        let json_len = headers.get(header::INFERENCE_HEADER_CONTENT_LENGTH).map(|value| {
            let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            // Without JSON the tensor's name and shape are the model's.
            length.filter(|&length: &usize| length > 0).ok_or(Bypass::Unread)
        });
        let json_len = json_len.filter(|_| !is_grpc).transpose()?;
        Ok(Self { is_grpc, encoding, json_len, most })
    }

    /// The request in these bytes.
    pub(super) fn request(self, body: &Bytes) -> Result<InferRequest, Bypass> {
        let read = if self.is_grpc {
            infer::read_only_request(&message(body)?)
        } else {
            InferRequest::parse_only(&self.inflated(body)?, self.json_len)
        };
        read.map_err(|_| Bypass::Unread)
    }

    /// The request for embeddings in these bytes.
    pub(super) fn embeddings(self, body: &Bytes) -> Result<EmbeddingsRequest, Bypass> {
        EmbeddingsRequest::parse(&self.inflated(body)?).ok_or(Bypass::Unread)
    }

    /// The embeddings in these bytes, of the inputs at these `places` of the request.
    pub(super) fn found_embeddings(
        self,
        body: &Bytes,
        request: &EmbeddingsRequest,
        (places, tokens): (&[usize], Option<&[u64]>),
    ) -> Option<Vec<Answer>> {
        embeddings::split(request, &self.inflated(body).ok()?, (places, tokens))
    }

    /// The answer in these bytes.
    pub(in crate::http) fn response(self, body: &Bytes) -> Result<InferResponse, Bypass> {
        let read = if self.is_grpc {
            infer::read_only_response(&message(body)?)
        } else {
            InferResponse::parse_only(&self.inflated(body)?, self.json_len)
        };
        read.map_err(|_| Bypass::Unread)
    }

    /// A request in the same form, for the model that a message of gRPC names, and the bytes of JSON before
    /// its tensors.
    pub(super) fn write(
        self,
        (model, version): (&str, Option<&str>),
        request: &InferRequest,
    ) -> Option<(Bytes, Option<usize>)> {
        if self.is_grpc {
            let message = infer::write_request(model, version, request);
            let length = message.encoded_len();
            // Fails only without room, and the buffer grows.
            let framed = grpc::frame(length, |frame| message.encode(frame).unwrap_or_default());
            return Some((framed, None));
        }
        let is_binary = self.json_len.is_some();
        let encoded = request.encode(|_| is_binary).ok()?;
        Some((encoded.body.into(), encoded.json_len))
    }

    /// A number for the way in which plain bytes are read; `None`: they are compressed.
    pub(super) fn form(self) -> Option<u64> {
        // A message of gRPC has no length of JSON, and JSON alone has none either.
        let length = self.json_len.map_or(0, |length| length as u64 + 2);
        (!self.is_compressed()).then_some(if self.is_grpc { 1 } else { length })
    }

    /// Whether its bytes say little of its length.
    pub(in crate::http) fn is_compressed(self) -> bool {
        self.encoding != Encoding::Identity
    }

    /// The bytes without their compression.
    pub(in crate::http) fn inflated(self, body: &Bytes) -> Result<Bytes, Bypass> {
        let reader: &mut dyn Read = match self.encoding {
            Encoding::Identity => return Ok(body.clone()),
            Encoding::Gzip => &mut MultiGzDecoder::new(&body[..]),
            Encoding::Deflate => &mut ZlibDecoder::new(&body[..]),
        };
        let mut inflated = Vec::new();
        let read = reader.take(self.most.saturating_add(1)).read_to_end(&mut inflated);
        let fits = read.is_ok() && inflated.len() as u64 <= self.most;
        if fits { Ok(inflated.into()) } else { Err(Bypass::Encoding) }
    }
}

fn message(body: &Bytes) -> Result<Bytes, Bypass> {
    let (compressed, message) = grpc::only_message(body).map_err(|_| Bypass::Unread)?;
    if compressed { Err(Bypass::Encoding) } else { Ok(message) }
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Bypass> {
    let mut values = headers.get_all(http::header::CONTENT_ENCODING).iter();
    let value = values.next().map(|value| value.to_str().unwrap_or("?").trim());
    match (value, values.next()) {
        (None | Some("identity" | ""), None) => Ok(Encoding::Identity),
        (Some("gzip" | "x-gzip"), None) => Ok(Encoding::Gzip),
        (Some("deflate"), None) => Ok(Encoding::Deflate),
        _ => Err(Bypass::Encoding),
    }
}

/// The header and the body of a kept answer, for a client that asked `message`, and the trailers of gRPC.
pub(super) fn written(
    answer: &Answer,
    message: &Message,
    is_grpc: bool,
) -> Option<(Box<ResponseHeader>, Bytes, Option<Box<HeaderMap>>)> {
    let mut head = ResponseHeader::build(http::StatusCode::OK, Some(8)).ok()?;
    let request = match message {
        Message::Infer(request) => request,
        Message::Embeddings(_) => {
            head.insert_header(http::header::CONTENT_TYPE, "application/json").ok()?;
            return Some((Box::new(head), Bytes::copy_from_slice(answer.bytes()), None));
        }
    };
    if is_grpc {
        head.insert_header(http::header::CONTENT_TYPE, grpc::CONTENT_TYPE).ok()?;
        let trailers = HeaderMap::from_iter([(header::GRPC_STATUS, Code::Ok.value())]);
        return Some((
            Box::new(head),
            answer.grpc(request.id.as_deref()),
            Some(Box::new(trailers)),
        ));
    }
    let encoded = answer.http(request).ok()?;
    head.insert_header(http::header::CONTENT_TYPE, encoded.content_type()).ok()?;
    if let Some(length) = encoded.json_len {
        let length = HeaderValue::from(length);
        head.insert_header(header::INFERENCE_HEADER_CONTENT_LENGTH, length).ok()?;
    }
    Some((Box::new(head), encoded.body.into(), None))
}

/// The header and the body of an answer over HTTP as it was written before.
pub(super) fn written_before(written: &Written) -> Option<(Box<ResponseHeader>, Bytes)> {
    let mut head = ResponseHeader::build(http::StatusCode::OK, Some(8)).ok()?;
    head.insert_header(http::header::CONTENT_TYPE, &written.content_type).ok()?;
    if let Some(length) = &written.json_len {
        head.insert_header(header::INFERENCE_HEADER_CONTENT_LENGTH, length).ok()?;
    }
    Some((Box::new(head), written.body.clone()))
}

/// Whether an answer is a success.
pub(in crate::http) fn is_success(response: &BufferedResponse, is_grpc: bool) -> bool {
    let code = response.trailers.as_deref().and_then(|it| it.get(header::GRPC_STATUS));
    match is_grpc {
        true => code.and_then(Code::parse) == Some(Code::Ok),
        false => response.head.status == http::StatusCode::OK,
    }
}

/// Whether an endpoint says that it has no such model.
pub(super) fn is_unknown_model(response: &BufferedResponse) -> bool {
    let last = response.trailers.as_deref().unwrap_or(&response.head.headers);
    let code = last.get(header::GRPC_STATUS).and_then(Code::parse);
    let says_so = match code {
        Some(code) => code == Code::NotFound,
        None => response.head.status == http::StatusCode::NOT_FOUND,
    };
    let reason = last.get(header::REASON).and_then(|value| value.to_str().ok());
    // A server that states no reason may mean something else, or this client alone.
    says_so && reason.and_then(Reason::from_code) == Some(Reason::ModelNotFound)
}

/// Whether its endpoint lets others keep an answer.
pub(super) fn may_be_kept(response: &BufferedResponse) -> bool {
    let headers = &response.head.headers;
    let control = control(headers);
    !control.no_store
        && !control.private
        && !headers.contains_key(http::header::SET_COOKIE)
        && !headers.contains_key(http::header::VARY)
}

/// The whole body in one piece.
pub(in crate::http) fn joined(body: &[Bytes]) -> Bytes {
    match body {
        [only] => only.clone(),
        pieces => pieces.concat().into(),
    }
}

/// The tokens of each row that its endpoint states.
pub(super) fn row_tokens(headers: &HeaderMap) -> Option<Vec<u64>> {
    let value = headers.get(header::ROW_TOKENS)?.to_str().ok()?;
    value.split(',').map(|one| one.trim().parse().ok()).collect()
}

/// The directives of `Cache-Control`.
pub(super) fn control(headers: &HeaderMap) -> CacheControl {
    let values = headers.get_all(http::header::CACHE_CONTROL).iter();
    CacheControl::parse(values.filter_map(|value| value.to_str().ok()))
}
