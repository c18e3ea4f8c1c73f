//! Where requests go: a URL, taken apart once.

use http::Uri;
use http::uri::PathAndQuery;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

/// How requests are put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 with keep-alive, one request at a time on a connection
    #[default]
    #[value(name = "http/1.1", alias = "h1")]
    Http1,
    /// HTTP/2 in clear text with prior knowledge, many requests at a time on a connection
    #[value(name = "h2c")]
    H2c,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 => "http/1.1",
            Self::H2c => "h2c",
        })
    }
}

/// A parsed and resolved URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host[:port]`, as it stands in the URL and in the header `host`.
    pub authority: String,
    /// The first address of the host.
    pub address: SocketAddr,
    /// The URL's path and query, `/` if it has none.
    pub path: PathAndQuery,
}

/// Why a URL can't be a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not of the form `http://host:port/path`.
    #[error("expected a URL such as \"http://127.0.0.1:8080\", found \"{0}\"")]
    Form(String),
    /// A scheme that is not spoken.
    #[error("expected the scheme http, found \"{0}\"")]
    Scheme(String),
    /// The name has no address.
    #[error("no address found for \"{authority}\": {error}")]
    Resolve {
        /// What was asked for.
        authority: String,
        /// What the resolver said.
        error: std::io::Error,
    },
}

impl Target {
    /// Takes `url` apart and resolves its host, which may ask a DNS resolver and block.
    ///
    /// # Errors
    /// A URL that is malformed, has another scheme than http, or whose host has no address.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let form = || TargetError::Form(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| form())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(other) => return Err(TargetError::Scheme(other.to_owned())),
            None => return Err(form()),
        }
        let authority = uri.authority().ok_or_else(form)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let address = resolve(host, authority.port_u16().unwrap_or(80))
            .map_err(|error| TargetError::Resolve { authority: authority.to_string(), error })?;
        let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        Ok(Self { authority: authority.to_string(), address, path })
    }

    /// No target, for what sends nothing.
    pub fn nowhere() -> Self {
        Self {
            authority: "nowhere".to_owned(),
            address: (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            path: PathAndQuery::from_static("/"),
        }
    }

    /// The target's path without a slash at the end, to put an API's path behind.
    pub fn base(&self) -> &str {
        self.path.path().trim_end_matches('/')
    }

    /// The form in which a URI stands in a request of `protocol`: HTTP/2 needs the authority.
    ///
    /// # Errors
    /// `path` is not a valid path.
    pub fn uri(&self, protocol: Protocol, path: &str) -> Result<Uri, http::Error> {
        match protocol {
            Protocol::Http1 => Ok(path.parse()?),
            Protocol::H2c => Uri::builder()
                .scheme("http")
                .authority(self.authority.as_str())
                .path_and_query(path)
                .build(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

fn resolve(host: &str, port: u16) -> std::io::Result<SocketAddr> {
    (host, port).to_socket_addrs()?.next().ok_or_else(|| std::io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let target = Target::parse("http://127.0.0.1:8080/base/?x=1").unwrap();
        assert_eq!(target.authority, "127.0.0.1:8080");
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(target.base(), "/base");
        assert_eq!(target.to_string(), "http://127.0.0.1:8080/base/?x=1");
        let bare = Target::parse("http://[::1]").unwrap();
        assert_eq!(bare.address, "[::1]:80".parse().unwrap());
        assert_eq!(bare.base(), "");
    }

    #[test]
    fn what_is_no_url_is_refused_with_what_was_expected() {
        for (url, expected) in [
            ("127.0.0.1:8080", "expected a URL"),
            ("nonsense", "expected a URL"),
            ("", "expected a URL"),
            ("https://127.0.0.1", "expected the scheme http"),
            ("ftp://127.0.0.1", "expected the scheme http"),
        ] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
    }
}
