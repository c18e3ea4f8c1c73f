//! The target of requests: a URL, taken apart once.

use super::tls::{self, TlsError};
use crate::scenario::{Protocol, Trust};
use http::Uri;
use http::uri::PathAndQuery;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

/// A parsed and resolved URL.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host[:port]`, as it stands in the URL and in the header `host`.
    pub authority: String,
    /// The first address of the host.
    pub address: SocketAddr,
    /// The URL's path and query, `/` if it has none.
    pub path: PathAndQuery,
    /// The protocol of requests.
    pub protocol: Protocol,
    /// Set if the URL says https.
    pub tls: Option<tls::Connector>,
}

/// Why a URL can't be a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not of the form `http://host:port/path`.
    #[error("expected a URL such as \"http://127.0.0.1:8080\", found \"{0}\"")]
    Form(String),
    /// A scheme that is not spoken.
    #[error("expected the scheme http or https, found \"{0}\"")]
    Scheme(String),
    /// Certificates that can't be checked.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The name has no address.
    #[error("no address found for \"{authority}\": {error}")]
    Resolve {
        /// The host that was looked up.
        authority: String,
        /// The resolver's error.
        error: std::io::Error,
    },
}

impl Target {
    /// Takes `url` apart and resolves its host, which may ask a DNS resolver and block.
    ///
    /// # Errors
    /// A URL that is malformed, has another scheme than http or https, or whose host has no address;
    /// authorities that can't be read.
    pub fn parse(url: &str, protocol: Protocol, trust: &Trust) -> Result<Self, TargetError> {
        let form = || TargetError::Form(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| form())?;
        let is_secret = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(other) => return Err(TargetError::Scheme(other.to_owned())),
            None => return Err(form()),
        };
        let authority = uri.authority().ok_or_else(form)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if is_secret { 443 } else { 80 });
        let address = resolve(host, port)
            .map_err(|error| TargetError::Resolve { authority: authority.to_string(), error })?;
        let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let tls = is_secret.then(|| tls::Connector::new(host, protocol, trust)).transpose()?;
        Ok(Self { authority: authority.to_string(), address, path, protocol, tls })
    }

    /// No target, for what sends nothing.
    pub fn nowhere() -> Self {
        Self {
            authority: "nowhere".to_owned(),
            address: (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            path: PathAndQuery::from_static("/"),
            protocol: Protocol::default(),
            tls: None,
        }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The protocol of requests, in words.
    pub fn wire(&self) -> &'static str {
        match (self.protocol, self.tls.is_some()) {
            (Protocol::Http1, false) => "http/1.1",
            (Protocol::Http1, true) => "http/1.1 over TLS",
            (Protocol::Http2, false) => "h2c",
            (Protocol::Http2, true) => "h2 over TLS",
            (Protocol::Grpc, false) => "gRPC",
            (Protocol::Grpc, true) => "gRPC over TLS",
        }
    }

    /// The target's path without a slash at the end, to put an API's path behind.
    pub fn base(&self) -> &str {
        self.path.path().trim_end_matches('/')
    }

    /// The form in which a URI stands in a request: HTTP/2 needs the authority.
    ///
    /// # Errors
    /// `path` is not a valid path.
    pub fn uri(&self, path: &str) -> Result<Uri, http::Error> {
        match self.protocol {
            Protocol::Http1 => Ok(path.parse()?),
            Protocol::Http2 | Protocol::Grpc => Uri::builder()
                .scheme(self.scheme())
                .authority(self.authority.as_str())
                .path_and_query(path)
                .build(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority, self.path)
    }
}

fn resolve(host: &str, port: u16) -> std::io::Result<SocketAddr> {
    (host, port).to_socket_addrs()?.next().ok_or_else(|| std::io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails may say so bluntly")]
    use super::*;

    fn parse(url: &str) -> Result<Target, TargetError> {
        Target::parse(url, Protocol::Http1, &Trust::default())
    }

    #[test]
    fn a_url_is_taken_apart() {
        let target = parse("http://127.0.0.1:8080/base/?x=1").unwrap();
        assert_eq!(target.authority, "127.0.0.1:8080");
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(target.base(), "/base");
        assert_eq!(target.to_string(), "http://127.0.0.1:8080/base/?x=1");
        let bare = parse("http://[::1]").unwrap();
        assert_eq!(bare.address, "[::1]:80".parse().unwrap());
        assert_eq!(bare.base(), "");
        let insecure = Trust { insecure: true, ca: None };
        let secret = Target::parse("https://127.0.0.1/", Protocol::Grpc, &insecure).unwrap();
        assert_eq!(secret.address.port(), 443);
        assert_eq!(
            (secret.to_string().as_str(), secret.wire()),
            ("https://127.0.0.1/", "gRPC over TLS")
        );
    }

    #[test]
    fn a_text_that_is_no_url_is_refused_with_the_expected_form() {
        for (url, expected) in [
            ("127.0.0.1:8080", "expected a URL"),
            ("nonsense", "expected a URL"),
            ("", "expected a URL"),
            ("ftp://127.0.0.1", "expected the scheme http"),
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
    }
}
