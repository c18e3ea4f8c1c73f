//! Refuses HTTP/1 requests that two readers could frame differently.
//!
//! The HTTP library reads on where another reader might stop: it accepts `chunked` named twice, and requires
//! no host. A proxy in front of a worker may read such a request differently, and the rest of it would
//! become part of another client's request. So it is refused, and its connection ends with the answer. (RFC
//! 9112; the numbers below are its sections.)

use crate::refusal::Refusal;
use axum::extract::Request;
use http::{HeaderValue, Version, header};

/// # Errors
/// Why it is refused.
pub(crate) fn check(request: &Request) -> Result<(), Refusal> {
    if request.version() > Version::HTTP_11 {
        return Ok(());
    }
    let headers = request.headers();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        // 6.1 and 7: chunked is applied once, and HTTP/1.0 has none of it.
        let chunked = coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        if !chunked || codings.next().is_some() || request.version() < Version::HTTP_11 {
            return Err(Refusal::request("expected the transfer-encoding chunked, once"));
        }
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    // 3.2
    if hosts.next().is_some() {
        return Err(Refusal::request("expected one host header, found several"));
    }
    match (host, request.uri().authority()) {
        (None, _) if request.version() == Version::HTTP_11 => {
            Err(Refusal::request("expected one host header, found none"))
        }
        (Some(host), _) if !is_host(host) => Err(Refusal::request("expected a valid URL host")),
        (Some(host), Some(authority)) if host.as_bytes() != authority.as_str().as_bytes() => {
            Err(Refusal::request("expected the host header to name the host of the URL"))
        }
        _ => Ok(()),
    }
}

/// A host and perhaps a port, without a user (RFC 3986, 3.2.2).
fn is_host(value: &HeaderValue) -> bool {
    let may = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte);
    value.as_bytes().iter().all(may)
}
