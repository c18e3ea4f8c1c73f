//! Requests that a page of another site makes a browser send.
//!
//! A browser sends them with the operator's network, so a worker that only its machine can reach can
//! be reached by any page that the operator looks at. Reading an answer is forbidden to the page, but
//! a model that was unloaded stays unloaded. So calls that change something are refused where the
//! browser says that another site asks. A page can also make its own name mean this machine (DNS
//! rebinding): then browser and page agree on the site, but the host is a name that no operator gave.

use crate::refusal::Refusal;
use forebay_protocol::Reason;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use std::net::IpAddr;

/// The origin that a browser states for the page that sends the request.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses what a page of another site asks for.
///
/// # Errors
/// It does.
pub(crate) fn refuse(headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err(refusal("the header sec-fetch-site says that another site sent it"));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    let host = uri.authority().cloned().or(host);
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    match (origin.as_ref().and_then(Uri::authority), &host) {
        (Some(origin), Some(host)) if origin == host && is_own_name(host.host()) => Ok(()),
        (_, Some(_)) => Err(refusal("its origin is not this worker's address")),
        (_, None) => Err(refusal("it names no host")),
    }
}

/// Whether no other party can give this machine that name.
fn is_own_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn refusal(why: &str) -> Refusal {
    let text = format!("refused, since a page of another site may have sent it: {why}");
    Refusal::new(Reason::Forbidden, text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn allowed(fields: &[(&str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::try_from(*name).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        refuse(&headers, &Uri::from_static("/v2/repository/models/m/load")).is_ok()
    }

    #[test]
    fn other_sites_are_refused_and_programs_are_not() {
        let own = ("host", "127.0.0.1:8000");
        assert!(allowed(&[own]) && allowed(&[("host", "worker.internal")]) && allowed(&[]));
        assert!(allowed(&[own, ("origin", "http://127.0.0.1:8000")]));
        assert!(allowed(&[("host", "[::1]:8000"), ("origin", "http://[::1]:8000")]));
        assert!(allowed(&[("host", "localhost:8000"), ("origin", "http://localhost:8000")]));
        assert!(allowed(&[own, ("sec-fetch-site", "none")]));
        for site in ["cross-site", "same-site", "", "anything"] {
            assert!(!allowed(&[own, ("sec-fetch-site", site)]), "{site}");
        }
        for origin in ["null", "", "http://evil.example", "http://127.0.0.1:9000", "file://", "*"] {
            assert!(!allowed(&[own, ("origin", origin)]), "{origin}");
        }
        // A name that was made to mean this machine.
        let rebound = [("host", "evil.example:8000"), ("origin", "http://evil.example:8000")];
        assert!(!allowed(&rebound));
        let says_so = [rebound[0], rebound[1], ("sec-fetch-site", "same-origin")];
        assert!(!allowed(&says_so));
    }
}
