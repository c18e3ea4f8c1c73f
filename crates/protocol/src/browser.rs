//! Requests that a web page makes in somebody's browser.
//!
//! An administrative interface on loopback or in a private network is out of reach for strangers, but
//! not for the browser of a person who may reach it. Any page that is open there can send requests
//! (cross-site request forgery), and if the name of its own site resolves to the interface's address
//! it can read the answers, too (DNS rebinding). Browsers say where a request comes from in `Origin`
//! and `Sec-Fetch-Site`, and whom it is meant for in `Host`; programs that are no browsers send neither
//! of the first two.

use http::HeaderMap;
use http::header::{HOST, ORIGIN};
use std::net::IpAddr;

/// Why a request is not one of the operator's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// A page of another site sent it.
    CrossSite,
    /// It is meant for a host that this is not known to be.
    UnknownHost,
}

impl Foreign {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CrossSite => "cross_site",
            Self::UnknownHost => "unknown_host",
        }
    }
}

/// Judges a request. `is_own` says of a host without its port, as `Host` has it, whether it means this
/// server; loopback addresses and `localhost` always do.
pub fn foreign(headers: &HeaderMap, is_own: impl Fn(&str) -> bool) -> Option<Foreign> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().map(|host| host.to_str().unwrap_or_default());
    if let Some(host) = host {
        let name = without_port(host);
        if hosts.next().is_some() || !(is_loopback(name) || is_own(name)) {
            return Some(Foreign::UnknownHost);
        }
    }
    is_cross_site(headers, host).then_some(Foreign::CrossSite)
}

/// Did a page of another site send it, or may it have? `host` is the value of `Host`, if there is one.
pub fn is_cross_site(headers: &HeaderMap, host: Option<&str>) -> bool {
    let fetched = headers.get_all("sec-fetch-site").iter();
    let same_site = |value: &[u8]| value == b"same-origin" || value == b"none";
    let mut origins = headers.get_all(ORIGIN).iter();
    let same_origin = |origin: &[u8]| {
        let origin = std::str::from_utf8(origin).unwrap_or_default();
        let authority = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
        // `null` has none.
        authority
            .is_some_and(|authority| host.is_some_and(|host| host.eq_ignore_ascii_case(authority)))
    };
    !fetched.into_iter().all(|value| same_site(value.as_bytes()))
        || !origins.all(|origin| same_origin(origin.as_bytes()))
}

/// The host of `host:port`; of an IPv6 address what is between the brackets.
pub fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    host.split(':').next().unwrap_or_default()
}

fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    fn judged(fields: &[(&'static str, &str)]) -> Option<Foreign> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        foreign(&headers, |host| host == "proxy.example" || host == "10.0.0.7")
    }

    #[test]
    fn programs_and_own_pages_pass() {
        for fields in [
            &[][..],
            &[("host", "127.0.0.1:9090")],
            &[("host", "127.8.8.8")],
            &[("host", "[::1]:9090")],
            &[("host", "LocalHost:9090")],
            &[("host", "10.0.0.7:9090")],
            &[("host", "proxy.example")],
            &[("host", "localhost:1"), ("sec-fetch-site", "none")],
            &[
                ("host", "localhost:1"),
                ("origin", "http://localhost:1"),
                ("sec-fetch-site", "same-origin"),
            ],
            &[("host", "proxy.example"), ("origin", "https://PROXY.example")],
        ] {
            assert_eq!(judged(fields), None, "{fields:?}");
        }
    }

    #[test]
    fn other_sites_and_other_hosts_do_not() {
        for (fields, why) in [
            (&[("host", "evil.example:9090")][..], Foreign::UnknownHost),
            (&[("host", "localhost.evil.example")], Foreign::UnknownHost),
            (&[("host", "127.0.0.1.evil.example")], Foreign::UnknownHost),
            (&[("host", "10.0.0.8")], Foreign::UnknownHost),
            (&[("host", "")], Foreign::UnknownHost),
            (&[("host", "localhost"), ("host", "evil.example")], Foreign::UnknownHost),
            (&[("host", "localhost"), ("origin", "null")], Foreign::CrossSite),
            (&[("host", "localhost"), ("origin", "http://evil.example")], Foreign::CrossSite),
            (&[("host", "localhost:9090"), ("origin", "http://localhost")], Foreign::CrossSite),
            (
                &[("host", "localhost:9090"), ("origin", "http://localhost:3000")],
                Foreign::CrossSite,
            ),
            (&[("host", "localhost"), ("sec-fetch-site", "cross-site")], Foreign::CrossSite),
            (&[("host", "localhost"), ("sec-fetch-site", "same-site")], Foreign::CrossSite),
            (&[("origin", "http://localhost")], Foreign::CrossSite),
            (
                &[
                    ("host", "localhost"),
                    ("origin", "http://localhost"),
                    ("origin", "http://evil.example"),
                ],
                Foreign::CrossSite,
            ),
        ] {
            assert_eq!(judged(fields), Some(why), "{fields:?}");
        }
    }
}
