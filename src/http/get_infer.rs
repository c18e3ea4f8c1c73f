//! Inferences by GET: `GET /v2/models/MODEL/infer?inputs=…`, so that any cache between clients and the proxy can
//! keep their answers.
//!
//! A CDN or a browser keeps answers to GET, and of no other method that has a body. So the request of an
//! inference may stand in the query, as JSON in base64url (RFC 4648, section 5): the whole request, or its
//! `inputs` alone. From here on it is the same request as if it had come by POST, so nothing that checks,
//! counts or answers it knows a difference.

use crate::http::admit::no_memory;
use crate::http::identify::Identity;
use crate::http::receive::Received;
use crate::http::request::Request;
use crate::refusal::Refusal;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use forebay_protocol::{Reason, header};
use http::Method;
use http::header::{
    CONTENT_ENCODING, CONTENT_TYPE, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, RANGE,
};
use pingora::http::RequestHeader;
use std::borrow::Cow;

/// The name of the query's only key.
const KEY: &str = "inputs";
const WORDS: &str = "expected a request with the query inputs=…, a JSON request in base64url";

/// With or without padding, as clients have it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The request that stands in the query, in place of the body that was `received`.
///
/// # Errors
/// There is none, or it is not written as it should be, or finds no memory.
pub fn question(
    head: &RequestHeader,
    request: &Request,
    received: &Received,
) -> Result<Received, Refusal> {
    if !received.at_hand().is_empty() {
        return Err(invalid("expected a GET without a body"));
    }
    let body = decoded(head.uri.query())?;
    if let Some(held) = &request.body_memory {
        held.grow(body.len()).map_err(no_memory)?;
    }
    Ok(Received::Whole(Bytes::from(body)))
}

/// The JSON of the request in a query.
fn decoded(query: Option<&str>) -> Result<Vec<u8>, Refusal> {
    let text = query.and_then(|query| query.strip_prefix(KEY)?.strip_prefix('='));
    let text = text.ok_or_else(|| invalid(WORDS))?;
    let json = BASE64.decode(text).map_err(|error| invalid(format!("{WORDS}: {error}")))?;
    let is_inputs = json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    Ok(if is_inputs { [b"{\"inputs\":", &json[..], b"}"].concat() } else { json })
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Reason::InvalidRequest, message)
}

/// The header under which a request is sent on.
///
/// # Errors
/// None in practice: all header values are made here.
pub fn forwarded<'a>(
    head: &'a RequestHeader,
    identity: &Identity,
) -> pingora::Result<Cow<'a, RequestHeader>> {
    if !identity.asks_by_get {
        return Ok(Cow::Borrowed(head));
    }
    let mut post = head.clone();
    // With a path of its own, the target of an HTTP/2 request loses its authority.
    if let Some(authority) = head.uri.authority() {
        post.insert_header(http::header::HOST, authority.as_str())?;
    }
    post.set_method(Method::POST);
    let path = head.uri.path().to_owned();
    post.set_raw_path(path.as_bytes())?;
    let of_get = [IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE];
    for name in of_get.iter().chain([&CONTENT_ENCODING]) {
        post.remove_header(name);
    }
    post.remove_header(&header::INFERENCE_HEADER_CONTENT_LENGTH);
    post.insert_header(CONTENT_TYPE, "application/json")?;
    Ok(Cow::Owned(post))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_query_is_a_request_or_its_inputs() {
        let asked = |query| decoded(Some(query));
        assert_eq!(asked("inputs=eyJpbnB1dHMiOltdfQ").unwrap(), b"{\"inputs\":[]}");
        assert_eq!(asked("inputs=eyJpbnB1dHMiOltdfQ==").unwrap(), b"{\"inputs\":[]}");
        assert_eq!(asked("inputs=IFtd").unwrap(), b"{\"inputs\": []}");
        let wrong =
            ["inputs", "input=IFtd", "inputs=IFtd&outputs=x", "inputs=%20", "x=1", "inputs=+/=="];
        for query in wrong {
            assert_eq!(asked(query).unwrap_err().reason, Reason::InvalidRequest, "{query}");
        }
        assert!(decoded(None).is_err());
    }

    #[test]
    fn it_is_sent_on_as_a_post_without_what_belongs_to_get() {
        let mut head =
            RequestHeader::build("GET", b"/v2/models/m/infer?inputs=IFtd", None).unwrap();
        head.insert_header(IF_NONE_MATCH, "\"x\"").unwrap();
        head.insert_header(header::INFERENCE_HEADER_CONTENT_LENGTH, "7").unwrap();
        let identity = Identity { asks_by_get: true, ..Identity::default() };
        let post = forwarded(&head, &identity).unwrap();
        assert_eq!(
            (&post.method, post.uri.to_string()),
            (&Method::POST, "/v2/models/m/infer".into())
        );
        assert_eq!(post.headers.len(), 1);
        assert_eq!(post.headers[CONTENT_TYPE], "application/json");
        let target = "http://a.example/v2/models/m/infer?inputs=IFtd";
        let (parts, ()) = http::Request::get(target).body(()).unwrap().into_parts();
        let post = forwarded(&RequestHeader::from(parts), &identity).unwrap().into_owned();
        assert_eq!(post.headers[http::header::HOST], "a.example");
        let identity = Identity::default();
        assert!(matches!(forwarded(&head, &identity).unwrap(), Cow::Borrowed(_)));
    }
}
