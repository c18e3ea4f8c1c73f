//! Checks that a head of an HTTP/1 request is one that all readers read alike.
//!
//! Requests are smuggled where two readers of the same bytes disagree on where one ends: a length beside
//! chunks, two lengths, a bare line feed, a folded line. The servers behind this proxy may be lenient in
//! unknown ways, so every head that the standard lets a server refuse is refused, with a message, before it
//! is used. (RFC 9112; the numbers below are its sections.)

use crate::Violation;
use forebay_protocol::Reason;
use http::uri::PathAndQuery;
use http::{Method, Uri, header, request};
use httparse::{Header, Status};
use std::mem::MaybeUninit;

/// Longest head.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most header fields.
const MAX_FIELDS: usize = 100;

/// The framing of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes; most often none.
    Length(u64),
    /// By chunks.
    Chunked,
    /// Perhaps never: the client asks for another protocol.
    Open,
}

/// Checks a whole head, the empty line included; says where the body ends.
///
/// # Errors
/// Why it is refused: 400, 405 or 431.
pub fn check(head: &[u8]) -> Result<Framing, Violation> {
    if head.len() > MAX_HEAD {
        return Err(too_long());
    }
    lines(head)?;
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(invalid("expected a complete header")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(too_many());
        }
        Err(error) => return Err(invalid(said(error))),
    }
    let one_dot_one = request.version == Some(1);
    let found = Fields::gather(request.headers)?;
    if request.method == Some("CONNECT") {
        return Err(connect());
    }
    if one_dot_one && found.host.is_none() {
        return Err(invalid("expected one host header, found none"));
    }
    target(request.path.unwrap_or_default(), request.method, found.host)?;
    found.framing(one_dot_one)
}

/// Checks the head of an HTTP/2 request, as far as the HTTP/2 library has not: the same bounds and the
/// same rules as over HTTP/1. `raw_path` is its `:path` as it came.
///
/// # Errors
/// Why it is refused: 400, 405 or 431.
pub fn check_http2(head: &request::Parts, raw_path: &[u8]) -> Result<(), Violation> {
    let fields = &head.headers;
    if fields.len() > MAX_FIELDS {
        return Err(too_many());
    }
    let lengths = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    if lengths.sum::<usize>() + raw_path.len() > MAX_HEAD {
        return Err(too_long());
    }
    if head.method == Method::CONNECT {
        return Err(connect());
    }
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    if let Some(value) = lengths.next() {
        length(value.as_bytes())?;
        if lengths.next().is_some() {
            return Err(invalid("expected one content-length, found several"));
        }
    }
    let path = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
    target(path, Some(head.method.as_str()), None)
}

/// A head that is too long, found whole or not.
pub fn too_long() -> Violation {
    let message = format!("expected a header of at most {MAX_HEAD} bytes, found more");
    Violation::new(Reason::HeadersTooLarge, message)
}

fn too_many() -> Violation {
    let message = format!("expected at most {MAX_FIELDS} header fields, found more");
    Violation::new(Reason::HeadersTooLarge, message)
}

fn connect() -> Violation {
    Violation::new(Reason::MethodNotAllowed, "CONNECT is not supported")
}

/// Method and path of a head that may be wrong, for the log: what there is of them.
pub fn request_line(head: &[u8]) -> (String, String) {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty());
    let mut words = line.unwrap_or_default().splitn(3, |byte| *byte == b' ');
    let mut word = || String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
    let (method, path) = (word(), word());
    let path = path.split('?').next().unwrap_or_default().to_owned();
    (method, path)
}

/// Lines end in CRLF (2.2), and none goes on in the next (5.2).
fn lines(head: &[u8]) -> Result<(), Violation> {
    let mut before = 0;
    for end in memchr::memchr_iter(b'\n', head) {
        if end == before || head[end - 1] != b'\r' {
            return Err(invalid("expected lines that end in CRLF, found a bare LF"));
        }
        if before > 0 && matches!(head[before], b' ' | b'\t') {
            return Err(invalid("expected a header field on one line, found a folded one"));
        }
        before = end + 1;
    }
    Ok(())
}

/// The fields that say where a request goes and where it ends.
#[derive(Default)]
struct Fields<'h> {
    host: Option<&'h [u8]>,
    length: Option<u64>,
    coding: Option<&'h [u8]>,
    upgrade: bool,
}

impl<'h> Fields<'h> {
    fn gather(headers: &[Header<'h>]) -> Result<Self, Violation> {
        let mut found = Self::default();
        for Header { name, value } in headers {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if is("host") {
                once(&mut found.host, *value, "expected one host header, found several")?;
            } else if is("content-length") {
                let several = "expected one content-length, found several";
                once(&mut found.length, length(value)?, several)?;
            } else if is("transfer-encoding") {
                let several = "expected one transfer-encoding, found several";
                once(&mut found.coding, *value, several)?;
            } else if is("upgrade") {
                found.upgrade |= !is_h2c(value);
            }
        }
        if found.coding.is_some_and(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
            return Err(invalid("expected transfer-encoding: chunked, found another"));
        }
        Ok(found)
    }

    /// The framing of the body (6.3).
    fn framing(&self, one_dot_one: bool) -> Result<Framing, Violation> {
        match (self.coding.is_some(), self.length) {
            (true, Some(_)) => {
                Err(invalid("expected content-length or transfer-encoding, found both"))
            }
            (true, None) if !one_dot_one => {
                Err(invalid("expected no transfer-encoding before HTTP/1.1, found one"))
            }
            (true, None) => Ok(Framing::Chunked),
            (false, None) if self.upgrade && one_dot_one => Ok(Framing::Open),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// Whether an `Upgrade` header offers HTTP/2, which some clients do with every request and which a
/// server may pass over (RFC 9110, 7.8).
pub fn is_h2c(offer: &[u8]) -> bool {
    offer.trim_ascii().eq_ignore_ascii_case(b"h2c")
}

fn once<T>(place: &mut Option<T>, value: T, several: &'static str) -> Result<(), Violation> {
    if place.replace(value).is_some() { Err(invalid(several)) } else { Ok(()) }
}

/// Digits and nothing else: what a sign, a comma or a blank means differs from reader to reader.
fn length(value: &[u8]) -> Result<u64, Violation> {
    let digits = std::str::from_utf8(value).ok();
    let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| invalid("content-length: expected a number of bytes"))
}

/// A path, or `*` for OPTIONS, or a whole URL of the host that the request names (3.2).
fn target(target: &str, method: Option<&str>, host: Option<&[u8]>) -> Result<(), Violation> {
    if host.is_some_and(|host| host.contains(&b'@')) {
        return Err(invalid("expected a host without a user"));
    }
    if host.is_some_and(|host| !host.iter().all(is_of_host)) {
        return Err(invalid("expected a valid URL host"));
    }
    if target == "*" && method == Some("OPTIONS") {
        return Ok(());
    }
    if target.starts_with('/') {
        return match PathAndQuery::try_from(target) {
            Ok(_) => Ok(()),
            Err(_) => Err(invalid("expected a valid URL path")),
        };
    }
    let url = Uri::try_from(target).ok();
    let authority = url
        .as_ref()
        .filter(|url| matches!(url.scheme_str(), Some("http" | "https")))
        .and_then(Uri::authority);
    match authority {
        Some(authority) if host.is_none_or(|host| host == authority.as_str().as_bytes()) => Ok(()),
        Some(_) => Err(invalid("expected the host header to name the host of the URL")),
        None => Err(invalid("expected a path that begins with /")),
    }
}

/// Whether the byte may stand in a host and its port (RFC 3986, 3.2.2).
fn is_of_host(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte)
}

fn said(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "expected a header field's name, found something else",
        httparse::Error::HeaderValue => "expected a header field's value, found something else",
        httparse::Error::Version => "expected HTTP/1.0 or HTTP/1.1",
        httparse::Error::Token => "expected a method and a path, found something else",
        _ => "expected an HTTP/1 request, found something else",
    }
}

fn invalid(message: &'static str) -> Violation {
    Violation::new(Reason::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    fn checked(line: &str, fields: &str) -> Result<Framing, Reason> {
        check(format!("{line}\r\n{fields}\r\n").as_bytes()).map_err(|violation| violation.reason)
    }

    #[test]
    fn what_everyone_reads_alike_passes() {
        for (line, fields, framing) in [
            ("GET / HTTP/1.1", "host: x\r\n", Framing::Length(0)),
            ("GET / HTTP/1.0", "", Framing::Length(0)),
            ("GET /a?b=%20&c[]=d HTTP/1.1", "Host:x\r\n", Framing::Length(0)),
            ("GET /gr\u{fc}n HTTP/1.1", "host: x\r\n", Framing::Length(0)),
            ("OPTIONS * HTTP/1.1", "host:\r\n", Framing::Length(0)),
            ("GET http://x:80/a HTTP/1.1", "host: x:80\r\n", Framing::Length(0)),
            ("POST / HTTP/1.1", "host: x\r\nContent-Length: 12\r\n", Framing::Length(12)),
            ("POST / HTTP/1.1", "host: x\r\nTransfer-Encoding: Chunked\r\n", Framing::Chunked),
            ("GET / HTTP/1.1", "host: x\r\nupgrade: websocket\r\n", Framing::Open),
            (
                "POST / HTTP/1.1",
                "host: x\r\nupgrade: h2c\r\ncontent-length: 1\r\n",
                Framing::Length(1),
            ),
            ("GET / HTTP/1.1", "host: x\r\nx_y: \u{e9}\t \r\nempty:\r\n", Framing::Length(0)),
        ] {
            assert_eq!(checked(line, fields), Ok(framing), "{line} {fields}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let post = "POST / HTTP/1.1";
        for (line, fields) in [
            ("GET / HTTP/1.1", ""),
            ("GET / HTTP/1.1", "host: a\r\nhost: b\r\n"),
            ("GET / HTTP/1.1", "host: u@x\r\n"),
            ("GET / HTTP/1.1", "host: a b\r\n"),
            ("GET / HTTP/1.1", "host: a/b\r\n"),
            ("GET / HTTP/1.1", "host: gr\u{fc}n\r\n"),
            ("GET a HTTP/1.1", "host: x\r\n"),
            ("GET * HTTP/1.1", "host: x\r\n"),
            ("GET http://y/ HTTP/1.1", "host: x\r\n"),
            ("GET http:/\\x/ HTTP/1.1", "host: x\r\n"),
            ("GET ftp://x/ HTTP/1.1", "host: x\r\n"),
            ("GET /a b HTTP/1.1", "host: x\r\n"),
            ("GET /a>b HTTP/1.1", "host: x\r\n"),
            ("GET /a\0b HTTP/1.1", "host: x\r\n"),
            ("GET /a\u{7f}b HTTP/1.1", "host: x\r\n"),
            ("GET  / HTTP/1.1", "host: x\r\n"),
            ("GET\t/ HTTP/1.1", "host: x\r\n"),
            ("GET / HTTP/1.1 ", "host: x\r\n"),
            ("GET / HTTP/2.0", "host: x\r\n"),
            ("GET / http/1.1", "host: x\r\n"),
            ("GET /", "host: x\r\n"),
            ("G@T / HTTP/1.1", "host: x\r\n"),
            (post, "host: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n"),
            (post, "host: x\r\ncontent-length: 4\r\ncontent-length: 4\r\n"),
            (post, "host: x\r\ncontent-length: 4, 4\r\n"),
            (post, "host: x\r\ncontent-length: +4\r\n"),
            (post, "host: x\r\ncontent-length: 0x4\r\n"),
            (post, "host: x\r\ncontent-length:\r\n"),
            (post, "host: x\r\ncontent-length: 18446744073709551616\r\n"),
            (post, "host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"),
            (post, "host: x\r\ntransfer-encoding: chunked, chunked\r\n"),
            (post, "host: x\r\ntransfer-encoding: gzip, chunked\r\n"),
            (post, "host: x\r\ntransfer-encoding: identity\r\n"),
            (post, "host: x\r\ntransfer-encoding: xchunked\r\n"),
            ("POST / HTTP/1.0", "transfer-encoding: chunked\r\n"),
            (post, "host: x\r\nfolded: a\r\n b\r\n"),
            (post, " host: x\r\n"),
            (post, "host: x\r\nbad name: 1\r\n"),
            (post, "host: x\r\ncontent-length : 4\r\n"),
            (post, "host: x\r\n: 1\r\n"),
            (post, "host: x\r\nvalue: a\0b\r\n"),
            (post, "host: x\r\nvalue: a\rb\r\n"),
            (post, "host: x\r\nnothing\r\n"),
            (post, "host: x\nlone: 1\r\n"),
            (post, "host: x\r\nlone: 1\n"),
        ] {
            assert_eq!(checked(line, fields), Err(Reason::InvalidRequest), "{line:?} {fields:?}");
        }
        assert!(check(b"GET / HTTP/1.1\nhost: x\n\n").is_err());
        assert_eq!(checked("CONNECT x:1 HTTP/1.1", "host: x:1\r\n"), Err(Reason::MethodNotAllowed));
    }

    #[test]
    fn bounds_are_exact() {
        let many = |count| "a: b\r\n".repeat(count - 1) + "host: x\r\n";
        assert!(checked("GET / HTTP/1.1", &many(MAX_FIELDS)).is_ok());
        let over = checked("GET / HTTP/1.1", &many(MAX_FIELDS + 1));
        assert_eq!(over, Err(Reason::HeadersTooLarge));
        let frame = "GET / HTTP/1.1\r\nhost: x\r\na: \r\n\r\n".len();
        let long = |length: usize| format!("host: x\r\na: {}\r\n", "b".repeat(length - frame));
        assert!(checked("GET / HTTP/1.1", &long(MAX_HEAD)).is_ok());
        let over = checked("GET / HTTP/1.1", &long(MAX_HEAD + 1));
        assert_eq!(over, Err(Reason::HeadersTooLarge));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        let sample = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nupgrade: y\r\n\r\n";
        for _ in 0..100_000 {
            let mut bytes = sample.to_vec();
            for _ in 0..rng.usize(1..5) {
                let at = rng.usize(..bytes.len());
                bytes[at] = *rng.choice(b"\r\n \0:/,\xff0a").unwrap();
            }
            bytes.truncate(rng.usize(..=bytes.len()));
            let _ = (check(&bytes), request_line(&bytes));
        }
    }
}
