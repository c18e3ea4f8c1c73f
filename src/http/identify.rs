//! The identity of a request: model, version, deadline and ids, from path and headers alone.
//!
//! The body is not read for this: routing must not wait for it. Headers are the client's word and trusted
//! only where a lie harms no other client: an id that is too long or not printable is replaced, a deadline
//! is only ever shortened.

use crate::config::{self, Limits, MAX_MODEL_NAME};
use crate::refusal::Refusal;
use forebay_framing::request_head::{self, is_h2c};
use forebay_protocol::grpc::{self, Method};
use forebay_protocol::oip::{Call, Path};
use forebay_protocol::priority::{Priority, UnknownPriority};
use forebay_protocol::{Reason, header};
use forebay_routing::{Policy, pick};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Longest `x-request-id` that is kept: a UUID has 36 bytes, a trace id 32.
const MAX_ID: usize = 128;

/// Reads what the request's header says.
///
/// # Errors
/// A part of it can't be understood, or breaks a bound.
pub fn identify(
    session: &mut Session,
    identity: &mut Identity,
    limits: &Limits,
) -> Result<(), Refusal> {
    let head = session.req_header();
    let (path, version) = (head.uri.path(), head.version);
    let read = identity.read(&head.method, version, path, &head.headers);
    read.map_err(|message| Refusal::new(Reason::InvalidRequest, message))?;
    if version == Version::HTTP_2
        && let Err(violation) = request_head::check_http2(head, head.raw_path())
    {
        // It may be long, and the answer may be waited for.
        forget_fields(session.req_header_mut());
        return Err(violation.into());
    }
    identity.asks_by_get = asks_by_get(identity, head);
    identity.infers |= identity.asks_by_get;
    let address = session.client_addr().and_then(|address| address.as_inet());
    identity.client = client(address, &head.headers, limits.client_header.as_ref());
    Ok(())
}

/// Whether it is an inference whose request stands in its query.
fn asks_by_get(identity: &Identity, head: &RequestHeader) -> bool {
    identity.call == Some(Call::Infer)
        && identity.grpc.is_none()
        && matches!(head.method, http::Method::GET | http::Method::HEAD)
        && head.uri.query().is_some_and(|query| !query.is_empty())
}

fn forget_fields(head: &mut RequestHeader) {
    let names: Vec<_> = head.headers.keys().cloned().collect();
    for name in &names {
        head.remove_header(name);
    }
}

/// The properties that a request states.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The protocol call that the path means, if it is one.
    pub call: Option<Call>,
    /// Whether a model is to work for it, so that the time that it takes says something of model and
    /// endpoint: an inference, and a POST of another protocol, such as OpenAI's.
    pub infers: bool,
    /// Whether it is an inference by GET, whose request stands in its query.
    pub asks_by_get: bool,
    /// The model, percent-decoded.
    pub model: Option<String>,
    /// Its version, if the path names one.
    pub version: Option<String>,
    /// Kept from the client or made here.
    pub request_id: String,
    /// The `traceparent` to pass on: the client's own or a new one.
    pub traceparent: String,
    /// Whether a new trace begins here; the client's `tracestate` speaks of another then.
    pub begins_trace: bool,
    /// The time that the client is willing to wait.
    pub deadline: Option<Duration>,
    /// Its priority, if it states one.
    pub priority: Option<Priority>,
    /// The client, as a number: equal for requests of one client.
    pub client: u64,
    /// Length of the body in bytes, if the request states it.
    pub content_length: Option<u64>,
    /// The gRPC call that it is, if it is one.
    pub grpc: Option<Method>,
    /// Whether the client asks to switch to another protocol than HTTP. An offer of HTTP/2, which some
    /// clients make with every request, is passed over, and so is an offer beside a body.
    pub upgrade: bool,
}

impl Identity {
    /// The model and the version that a variant is asked for, as far as they are known; `None`: before one is
    /// chosen.
    pub fn model_of<'a>(
        &'a self,
        variant: Option<&'a config::Variant>,
    ) -> (Option<&'a str>, Option<&'a str>) {
        let (model, version) =
            variant.map_or((None, None), |it| (it.model.as_deref(), it.version.as_deref()));
        // The client's version is one of the client's model.
        let version = match model {
            Some(_) => version,
            None => version.or(self.version.as_deref()),
        };
        (model.or(self.model.as_deref()), version)
    }

    /// Of a request of which nothing can be read: an id and a trace of its own.
    pub fn anonymous() -> Self {
        let request_id = request_id(None);
        Self { request_id, traceparent: new_trace(), ..Self::default() }
    }

    /// Reads path and headers. Ids come first: a refusal has them too.
    ///
    /// # Errors
    /// A part that can't be understood, as words for the client.
    pub fn read(
        &mut self,
        http_method: &http::Method,
        version: Version,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), String> {
        self.request_id = request_id(headers.get(header::REQUEST_ID));
        let continued = traceparent(headers);
        self.begins_trace = continued.is_none();
        self.traceparent = continued.unwrap_or_else(new_trace);
        self.content_length = content_length(headers)?;
        self.upgrade = version == Version::HTTP_11
            && self.content_length.is_none_or(|length| length == 0)
            && !headers.contains_key(http::header::TRANSFER_ENCODING)
            && headers.get_all(http::header::UPGRADE).iter().any(|offer| !is_h2c(offer.as_bytes()));
        if version == Version::HTTP_11 && headers.get_all(http::header::HOST).iter().count() != 1 {
            return Err("expected one host header".to_owned());
        }
        if version == Version::HTTP_2 && grpc::is_grpc(headers) {
            let method = Method::of(path);
            self.call = (method == Method::Infer).then_some(Call::Infer);
            self.grpc = Some(method);
        } else if let Some(parsed) = Path::parse(path) {
            self.call = Some(parsed.call);
            self.model = parsed.model.map(|name| decode("model", name)).transpose()?;
            self.version = parsed.version.map(|name| decode("version", name)).transpose()?;
        }
        self.infers = http_method == http::Method::POST
            && match (self.grpc, self.call) {
                (Some(method), _) => method.is_infer(),
                // `generate` is one of the others.
                (None, call) => matches!(call, None | Some(Call::Infer | Call::ModelOther)),
            };
        self.deadline = headers.get(header::REQUEST_DEADLINE).map(deadline).transpose()?;
        if self.grpc.is_some() {
            let own = headers.get(header::GRPC_TIMEOUT).map(grpc_timeout).transpose()?;
            self.deadline = [self.deadline, own].into_iter().flatten().min();
        }
        self.priority = headers.get(header::REQUEST_PRIORITY).map(priority).transpose()?;
        Ok(())
    }

    /// The 32 hex digits that name the trace.
    pub fn trace_id(&self) -> &str {
        self.traceparent.get(3..35).unwrap_or("")
    }
}

/// The client: the value of `header` where one can be trusted, otherwise the address without its port.
pub fn client(
    address: Option<&SocketAddr>,
    headers: &HeaderMap,
    header: Option<&HeaderName>,
) -> u64 {
    let mut hasher = DefaultHasher::new();
    match header.and_then(|name| headers.get(name)) {
        Some(value) => value.as_bytes().hash(&mut hasher),
        None => address.map(SocketAddr::ip).hash(&mut hasher),
    }
    hasher.finish()
}

/// The client in full, to tell two apart with certainty: the name and the value of `header` where one can be trusted,
/// otherwise the address without its port.
pub fn client_name(session: &Session, headers: &HeaderMap, header: Option<&HeaderName>) -> Vec<u8> {
    let address = session.client_addr().and_then(|address| address.as_inet());
    client_in_full(address.map(SocketAddr::ip), headers, header)
}

fn client_in_full(
    address: Option<IpAddr>,
    headers: &HeaderMap,
    header: Option<&HeaderName>,
) -> Vec<u8> {
    if let Some((name, value)) = header.and_then(|name| Some((name, headers.get(name)?))) {
        // No name has a space in it. Without it, clients of two headers would be one when an operator names the other.
        return [b"header ", name.as_str().as_bytes(), b" ", value.as_bytes()].concat();
    }
    let address = address.map(|address| address.to_canonical().to_string());
    format!("address {}", address.unwrap_or_default()).into_bytes()
}

/// The key of a sticky pool, as a number that every proxy computes alike: the model, and the value of the
/// pool's header. Nothing if that header is missing.
pub fn key(pool: &config::Pool, identity: &Identity, headers: &HeaderMap) -> Option<u64> {
    if pool.policy != Policy::Sticky {
        return None;
    }
    let value = match &pool.sticky {
        Some(name) => headers.get(name)?.as_bytes(),
        None => &[],
    };
    let model = identity.model.as_deref().unwrap_or_default();
    // The length keeps "ab" and "c" apart from "a" and "bc".
    let text = [&(model.len() as u64).to_be_bytes(), model.as_bytes(), value].concat();
    Some(pick::identity(&text))
}

/// The same at Layer 4: the client's address without its port.
pub fn key_of_address(pool: &config::Pool, client: SocketAddr) -> Option<u64> {
    let address = || client.ip().to_canonical().to_string();
    (pool.policy == Policy::Sticky).then(|| pick::identity(address().as_bytes()))
}

/// A model and its version, where they are named, as a number.
pub fn model(name: Option<&str>, version: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, version).hash(&mut hasher);
    hasher.finish()
}

fn priority(value: &HeaderValue) -> Result<Priority, String> {
    let stated = value.to_str().ok().and_then(|text| text.parse().ok());
    stated.ok_or_else(|| {
        let (name, expected) = (header::REQUEST_PRIORITY, UnknownPriority);
        format!("{name}: {expected}, found {value:?}")
    })
}

/// The client's id if it can be logged as it is, else a new one.
fn request_id(value: Option<&HeaderValue>) -> String {
    let kept = value.and_then(|value| value.to_str().ok()).filter(|id| {
        (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    });
    kept.map_or_else(|| hex(fastrand::u128(1..), 32), str::to_owned)
}

/// `00-<trace id>-<parent id>-<flags>` as it came, if it is valid and the only one.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let valid = |text: &&str| {
        let hex = |part: &str| {
            part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
                && part.bytes().any(|b| b != b'0')
        };
        let bytes = text.as_bytes();
        bytes.len() == 55
            && text.is_ascii()
            && text.starts_with("00-")
            && (bytes[35], bytes[52]) == (b'-', b'-')
            && hex(&text[3..35])
            && hex(&text[36..52])
            && text[53..].bytes().all(|b| b.is_ascii_hexdigit())
    };
    let mut values = headers.get_all(header::TRACEPARENT).iter();
    let only = values.next().filter(|_| values.next().is_none());
    only.and_then(|value| value.to_str().ok()).filter(valid).map(str::to_owned)
}

fn new_trace() -> String {
    let (trace, parent) = (fastrand::u128(1..), fastrand::u64(1..));
    format!("00-{trace:032x}-{parent:016x}-01")
}

fn hex(number: u128, width: usize) -> String {
    let mut text = String::with_capacity(width);
    // Writing to a string does not fail.
    let _ = write!(text, "{number:0width$x}");
    text
}

/// A name as it stands between two slashes of a path, without its percent-encoding.
///
/// # Errors
/// It is too long, or not encoded in the way of RFC 3986, or not UTF-8; in words for the client.
pub(crate) fn decode(what: &str, name: &str) -> Result<String, String> {
    if name.len() > MAX_MODEL_NAME {
        return Err(format!(
            "expected a {what} name of at most {MAX_MODEL_NAME} bytes, found {}",
            name.len()
        ));
    }
    if !name.contains('%') {
        return Ok(name.to_owned());
    }
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        (rest, _) = if *first == b'%' {
            let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
            let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
            let byte =
                byte.ok_or_else(|| format!("expected percent-encoding in the {what} name"))?;
            (&tail[2..], bytes.push(byte))
        } else {
            (tail, bytes.push(*first))
        };
    }
    String::from_utf8(bytes).map_err(|_| format!("expected UTF-8 in the {what} name"))
}

fn deadline(value: &HeaderValue) -> Result<Duration, String> {
    let parsed = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
    parsed
        .filter(|millis| *millis > 0.0)
        .and_then(|millis| Duration::try_from_secs_f64(millis / 1e3).ok())
        .ok_or_else(|| {
            let found = String::from_utf8_lossy(value.as_bytes()).into_owned();
            format!("{}: expected milliseconds above 0, found {found:?}", header::REQUEST_DEADLINE)
        })
}

fn grpc_timeout(value: &HeaderValue) -> Result<Duration, String> {
    value.to_str().ok().and_then(grpc::parse_timeout).ok_or_else(|| {
        let form = "at most eight digits and one of H, M, S, m, u, n";
        format!("{}: expected {form}, found {value:?}", header::GRPC_TIMEOUT)
    })
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let Some(value) = headers.get(http::header::CONTENT_LENGTH) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    parsed.map(Some).ok_or_else(|| "content-length: expected a number of bytes".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    #[test]
    fn a_client_in_full_is_told_apart_by_the_header_that_names_it() {
        let mut headers = HeaderMap::new();
        for name in ["x-user", "x-tenant"] {
            headers.insert(name, HeaderValue::from_static("7"));
        }
        let address = Some("::ffff:10.0.0.1".parse().unwrap());
        let of = |header: Option<&'static str>| {
            let header = header.map(HeaderName::from_static);
            String::from_utf8(client_in_full(address, &headers, header.as_ref())).unwrap()
        };
        assert_eq!(of(Some("x-user")), "header x-user 7");
        assert_eq!(of(Some("x-tenant")), "header x-tenant 7");
        assert_eq!((of(Some("x-other")), of(None)), (of(None), "address 10.0.0.1".to_owned()));
    }

    fn read(path: &str, headers: &[(&'static str, &str)]) -> Result<Identity, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let mut identity = Identity::default();
        identity.read(&http::Method::POST, Version::HTTP_2, path, &map).map(|()| identity)
    }

    #[test]
    fn only_what_a_model_works_for_infers() {
        let infers = |method: http::Method, path: &str, headers: &[_]| {
            let mut identity = Identity::default();
            let headers: HeaderMap = headers.iter().cloned().collect();
            identity.read(&method, Version::HTTP_2, path, &headers).unwrap();
            identity.infers
        };
        let (get, post) = (http::Method::GET, http::Method::POST);
        for (path, expected) in [
            ("/v2/models/m/infer", true),
            ("/v2/models/m/versions/3/infer", true),
            ("/v2/models/m/generate", true),
            ("/v1/embeddings", true),
            ("/v2/repository/index", false),
            ("/v2/repository/models/m/load", false),
            ("/v2/models/m/ready", false),
            ("/v2/models/m", false),
            ("/v2", false),
        ] {
            assert_eq!(infers(post.clone(), path, &[]), expected, "POST {path}");
            assert!(!infers(get.clone(), path, &[]), "GET {path}");
        }
        let grpc = [(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))];
        for (method, expected) in
            [("ModelInfer", true), ("ModelMetadata", false), ("ModelReady", false)]
        {
            let path = format!("/inference.GRPCInferenceService/{method}");
            assert_eq!(infers(post.clone(), &path, &grpc), expected, "{path}");
        }
    }

    #[test]
    fn model_and_version_are_decoded() {
        let identity = read("/v2/models/a%20b/versions/3/infer", &[]).unwrap();
        assert_eq!(identity.call, Some(Call::Infer));
        assert_eq!(identity.model.as_deref(), Some("a b"));
        assert_eq!(identity.version.as_deref(), Some("3"));
        for bad in ["/v2/models/a%2/infer", "/v2/models/a%zz/infer", "/v2/models/%ff/infer"] {
            assert!(read(bad, &[]).is_err(), "{bad}");
        }
        assert!(read(&format!("/v2/models/{}/infer", "x".repeat(300)), &[]).is_err());
    }

    #[test]
    fn ids_are_kept_if_they_can_be_logged_and_replaced_if_not() {
        assert_eq!(read("/", &[("x-request-id", "abc-1")]).unwrap().request_id, "abc-1");
        for bad in ["", "a b", "a\tb", &"x".repeat(200)] {
            let id = read("/", &[("x-request-id", bad)]).unwrap().request_id;
            assert_eq!(id.len(), 32, "{bad:?} became {id:?}");
        }
    }

    #[test]
    fn a_trace_is_continued_or_started() {
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let identity = read("/", &[("traceparent", given)]).unwrap();
        assert_eq!((identity.traceparent.as_str(), identity.begins_trace), (given, false));
        assert_eq!(identity.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let zeroes = format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16));
        for bad in ["", "junk", zeroes.as_str()] {
            let made = read("/", &[("traceparent", bad)]).unwrap();
            assert_ne!(made.traceparent, bad);
            assert_eq!((made.traceparent.len(), made.begins_trace), (55, true));
        }
    }

    #[test]
    fn a_deadline_is_a_positive_number_of_milliseconds() {
        let of = |text: &str| read("/", &[("x-request-deadline", text)]);
        assert_eq!(of("250").unwrap().deadline, Some(Duration::from_millis(250)));
        assert_eq!(of("0.5").unwrap().deadline, Some(Duration::from_micros(500)));
        for bad in ["", "0", "-1", "NaN", "inf", "1e300", "soon"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
