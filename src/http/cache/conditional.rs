//! Answers for caches between clients and the proxy: of browsers, and of CDNs.
//!
//! An answer to GET says how long it may be kept and by whom (`Cache-Control`, RFC 9111), and has a tag from
//! its bytes (`ETag`): a client that has these bytes already gets 304 in place of them (RFC 9110, section 13). Errors are not for keeping: without a word, caches would keep a 404.

use crate::config::CacheScope;
use crate::http::request::Request;
use crate::http::response::BufferedResponse;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, StatusCode};
use std::fmt::Write;
use std::time::Duration;

/// Completes the answer to a GET. `asked`: the headers of the request. `is_whole`: nothing of the answer is
/// still to be read.
///
/// # Errors
/// None in practice: all header values are made here.
pub fn complete(
    asked: &HeaderMap,
    request: &Request,
    response: &mut BufferedResponse,
    is_whole: bool,
) -> pingora::Result<()> {
    let head = &mut response.head;
    for name in [ETAG, http::header::EXPIRES, http::header::LAST_MODIFIED] {
        head.remove_header(&name);
    }
    let freshness = request.cache.and_then(super::outcome::Outcome::freshness);
    let settings = request.target.as_ref().and_then(|target| target.route.cache.as_ref());
    let (Some((_, lifetime)), Some(settings)) = (freshness, settings) else {
        return head.insert_header(CACHE_CONTROL, "no-store");
    };
    if head.status != StatusCode::OK || !is_whole {
        return head.insert_header(CACHE_CONTROL, "no-store");
    }
    let is_public = settings.public && settings.scope == CacheScope::Shared;
    let mut control =
        format!("{}, max-age={}", if is_public { "public" } else { "private" }, lifetime.as_secs());
    for (name, time) in [
        ("stale-while-revalidate", settings.stale_while_revalidate),
        ("stale-if-error", settings.stale_if_error),
    ] {
        if time > Duration::ZERO {
            // Writing to a string does not fail.
            let _ = write!(control, ", {name}={}", time.as_secs());
        }
    }
    head.insert_header(CACHE_CONTROL, control)?;
    for name in &settings.vary {
        head.append_header(VARY, name.as_str())?;
    }
    let tag = tag(&response.body);
    let is_known = asked.get_all(IF_NONE_MATCH).iter().any(|value| names(value.as_bytes(), &tag));
    head.insert_header(ETAG, tag)?;
    if is_known {
        head.set_status(StatusCode::NOT_MODIFIED)?;
        head.remove_header(&CONTENT_LENGTH);
        head.remove_header(&CONTENT_TYPE);
        response.body.clear();
    }
    Ok(())
}

/// The tag of a body: equal for equal bytes, and in practice for no others.
fn tag(body: &[bytes::Bytes]) -> String {
    let mut hasher = blake3::Hasher::new();
    for piece in body {
        hasher.update(piece);
    }
    format!("\"{}\"", &hasher.finalize().to_hex()[..32])
}

/// Whether a value of `If-None-Match` names this tag. A weak tag names the same bytes here.
fn names(value: &[u8], tag: &str) -> bool {
    let Ok(value) = std::str::from_utf8(value) else { return false };
    value.trim() == "*"
        || value.split(',').any(|one| {
            let one = one.trim();
            one.strip_prefix("W/").unwrap_or(one) == tag
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_tag_depends_on_the_bytes_alone() {
        let whole = tag(&[Bytes::from_static(b"abc")]);
        assert_eq!(whole, tag(&[Bytes::from_static(b"a"), Bytes::from_static(b"bc")]));
        assert_ne!(whole, tag(&[Bytes::from_static(b"abd")]));
        assert_eq!(whole.len(), 34);
    }

    #[test]
    fn a_list_of_tags_names_each_of_them() {
        for (value, expected) in [
            ("\"a\"", true),
            ("\"b\", \"a\"", true),
            ("W/\"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(names(value.as_bytes(), "\"a\""), expected, "{value}");
        }
        assert!(!names(b"\xff", "\"a\""));
    }
}
