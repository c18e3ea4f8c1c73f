//! The wish of a request for one of its route's variants: by its header, by its client's key, or none.
//!
//! A client that stays with a variant is known by a key, and the key alone says where among a thousand the client
//! stands: nothing is remembered of it here, so every proxy of a fleet assigns it alike. A cookie holds no more
//! than a random name, and never the variant: what is written there could not follow the weights.

use crate::config::{Limits, Route, SplitKey};
use crate::http::identify;
use crate::http::request::Request;
use crate::http::variant::Wish;
use forebay_protocol::header;
use forebay_routing::split;
use http::{HeaderMap, HeaderValue};
use pingora::proxy::Session;
use std::time::Duration;

/// Longest value of a cookie that is taken for one of ours.
const MAX_COOKIE: usize = 64;

/// The wish of a request. One without a key on a route that sets a cookie is given a new one, which the answer
/// brings.
pub fn wish(session: &mut Session, request: &mut Request, route: &Route, limits: &Limits) -> Wish {
    if route.allow_override
        && let Some(asked) = session.req_header().headers.get(header::VARIANT)
    {
        let name = String::from_utf8_lossy(asked.as_bytes()).into_owned();
        // The name means something on this route only.
        session.req_header_mut().remove_header(&header::VARIANT);
        return Wish::Asked(name);
    }
    let drawn = Wish::Drawn(fastrand::u32(..));
    let Some(by) = route.sticky.as_ref().filter(|_| route.variants.len() > 1) else { return drawn };
    let headers = &session.req_header().headers;
    let at = |key: &[u8]| Wish::Sticky(split::place(&route.name, key));
    match by {
        SplitKey::Client => {
            at(&identify::client_name(session, headers, limits.client_header.as_ref()))
        }
        SplitKey::Header(name) => headers.get(name).map_or(drawn, |value| at(value.as_bytes())),
        SplitKey::Cookie { name, max_age } => {
            if let Some(value) = cookie(headers, name) {
                return at(value.as_bytes());
            }
            let is_secure = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
            let value = format!("{:032x}", fastrand::u128(..));
            request.set_cookie = set_cookie(name, &value, *max_age, is_secure);
            at(value.as_bytes())
        }
    }
}

/// The value of the first cookie with this name that the proxy may have set.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let fields = headers.get_all(http::header::COOKIE).iter();
    let pairs = fields.filter_map(|field| field.to_str().ok()).flat_map(|field| field.split(';'));
    let mut values = pairs.filter_map(|pair| {
        let (found, value) = pair.split_once('=')?;
        (found.trim() == name).then_some(value.trim())
    });
    values.find(|value| {
        (1..=MAX_COOKIE).contains(&value.len())
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    })
}

fn set_cookie(name: &str, value: &str, max_age: Duration, is_secure: bool) -> Option<HeaderValue> {
    let secure = if is_secure { "; Secure" } else { "" };
    let seconds = max_age.as_secs();
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; SameSite=Lax; HttpOnly{secure}");
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others_and_a_malformed_one_is_not_one() {
        let long = format!("s={}", "x".repeat(65));
        for (fields, expected) in [
            (&["s=abc"][..], Some("abc")),
            (&["a=1; s=abc; b=2"], Some("abc")),
            (&["a=1", " s = abc "], Some("abc")),
            (&["xs=1;s=\"q\"; s=ok-_9"], Some("ok-_9")),
            (&["s="], None),
            (&["s"], None),
            (&["s=a b"], None),
            (&[&*long], None),
            (&[], None),
        ] {
            let headers: HeaderMap =
                fields.iter().map(|field| (http::header::COOKIE, field.parse().unwrap())).collect();
            assert_eq!(cookie(&headers, "s"), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_cookie_says_where_it_belongs_and_for_how_long() {
        let day = Duration::from_secs(86_400);
        let set = |is_secure| set_cookie("s", "v", day, is_secure).unwrap();
        assert_eq!(set(false), "s=v; Path=/; Max-Age=86400; SameSite=Lax; HttpOnly");
        assert_eq!(set(true), "s=v; Path=/; Max-Age=86400; SameSite=Lax; HttpOnly; Secure");
    }
}
