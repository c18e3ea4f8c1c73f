//! The client's address, when a load balancer stands between the client and this proxy.
//!
//! Such a balancer opens a connection of its own, and every client would seem to come from it. The PROXY
//! protocol (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>) puts the client's address in
//! front of the first byte, as a line (v1) or in binary (v2). Anyone who can connect can write such a
//! header, so a listener either requires it of every connection or reads none: guessing would let a client
//! choose its own address.

use bytes::BytesMut;
use ppp::{v1, v2};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// Time in which the header must be there: its sender writes it at once.
pub const MAX_HEADER_TIME: Duration = Duration::from_secs(5);
/// Longest first version, its line ending included (section 2.1).
const MAX_V1: usize = 107;
/// Bytes of the second version before the part whose length it states.
const V2_FIXED: usize = 16;
/// Longest second version that is taken: addresses have at most 216 bytes, and what balancers add
/// to them (names, TLS details) some hundreds.
const MAX_V2: usize = 4096;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// As a line of text.
    V1,
    /// In binary.
    V2,
}

/// The two ends of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// The address that it connected to.
    pub destination: SocketAddr,
}

/// Why a connection that must begin with a header is not taken.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The connection broke or ended before the header was complete.
    #[error("expected a PROXY header, found the end of the connection")]
    Ended,
    /// It did not come in time.
    #[error("expected a PROXY header within {MAX_HEADER_TIME:?}")]
    Late,
    /// Other bytes arrived.
    #[error("expected a PROXY header: {0}")]
    Malformed(String),
}

/// Reads the header from `stream`. The bytes after it are left in the returned buffer. `None`: the sender
/// speaks for itself (a health check) or does not know the client.
///
/// # Errors
/// Nothing, too little, too late, or something else.
pub async fn read(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
) -> Result<(Option<Ends>, BytesMut), HeaderError> {
    let mut bytes = BytesMut::with_capacity(1024);
    let header = async {
        loop {
            if let Some((length, ends)) = parse(&bytes)? {
                let _ = bytes.split_to(length);
                return Ok(ends);
            }
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return Err(HeaderError::Ended),
                Ok(_) => {}
            }
        }
    };
    let ends = timeout(MAX_HEADER_TIME, header).await.unwrap_or(Err(HeaderError::Late))?;
    Ok((ends, bytes))
}

/// The header that says to an endpoint whose connection it gets.
///
/// # Errors
/// None in practice: addresses always fit.
pub fn write(version: Version, ends: Ends) -> io::Result<Vec<u8>> {
    let pair = (canonical(ends.source), canonical(ends.destination));
    match version {
        Version::V1 => Ok(v1::Addresses::from(pair).to_string().into_bytes()),
        Version::V2 => {
            let addresses = v2::Addresses::from(pair);
            let kind = match addresses {
                // One end in each family: there is no form for that.
                v2::Addresses::Unspecified => v2::Protocol::Unspecified,
                _ => v2::Protocol::Stream,
            };
            let proxied = v2::Version::Two | v2::Command::Proxy;
            v2::Builder::with_addresses(proxied, kind, addresses).build()
        }
    }
}

/// An IPv4 address that a socket for both families shows as IPv6 is what it was.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The header at the beginning of `bytes` and its length; `None` if it is not complete.
///
/// # Errors
/// No header begins like that, or it is malformed.
pub fn parse(bytes: &[u8]) -> Result<Option<(usize, Option<Ends>)>, HeaderError> {
    let begins = |prefix: &[u8]| bytes.starts_with(prefix) || prefix.starts_with(bytes);
    if begins(v1::PROTOCOL_PREFIX.as_bytes()) {
        return parse_v1(bytes);
    }
    if begins(v2::PROTOCOL_PREFIX) {
        return parse_v2(bytes);
    }
    Err(HeaderError::Malformed("found something else".to_owned()))
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(usize, Option<Ends>)>, HeaderError> {
    let line = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        if bytes.len() >= MAX_V1 {
            return Err(malformed(format!("found no line ending in {MAX_V1} bytes")));
        }
        return Ok(None);
    };
    if line[..end].contains(&b'+') {
        // The library takes a port for what Rust takes for a number.
        return Err(malformed("found a sign in a port"));
    }
    let header = v1::Header::try_from(&bytes[..end + 2]).map_err(malformed)?;
    let ends = match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(a) => Some(Ends {
            source: (a.source_address, a.source_port).into(),
            destination: (a.destination_address, a.destination_port).into(),
        }),
        v1::Addresses::Tcp6(a) => Some(Ends {
            source: (a.source_address, a.source_port).into(),
            destination: (a.destination_address, a.destination_port).into(),
        }),
    };
    Ok(Some((end + 2, ends)))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(usize, Option<Ends>)>, HeaderError> {
    let Some(fixed) = bytes.get(..V2_FIXED) else { return Ok(None) };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > MAX_V2 {
        return Err(malformed(format!("expected at most {MAX_V2} bytes, found {length}")));
    }
    let Some(whole) = bytes.get(..length) else { return Ok(None) };
    let header = v2::Header::try_from(whole).map_err(malformed)?;
    let proxied = header.command == v2::Command::Proxy && header.protocol == v2::Protocol::Stream;
    let ends = match header.addresses {
        v2::Addresses::IPv4(a) if proxied => Some(Ends {
            source: (a.source_address, a.source_port).into(),
            destination: (a.destination_address, a.destination_port).into(),
        }),
        v2::Addresses::IPv6(a) if proxied => Some(Ends {
            source: (a.source_address, a.source_port).into(),
            destination: (a.destination_address, a.destination_port).into(),
        }),
        // A health check of the balancer's own, a Unix socket, or nothing said.
        _ => None,
    };
    Ok(Some((length, ends)))
}

fn malformed(error: impl std::fmt::Display) -> HeaderError {
    HeaderError::Malformed(error.to_string().trim_end_matches('.').to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_written_is_read_again_in_both_versions_and_families() {
        for ends in [
            ends("192.0.2.1:40000", "198.51.100.7:443"),
            ends("[2001:db8::1]:40000", "[2001:db8::2]:443"),
        ] {
            for version in [Version::V1, Version::V2] {
                let mut bytes = write(version, ends).unwrap();
                let length = bytes.len();
                bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
                assert_eq!(parse(&bytes).unwrap(), Some((length, Some(ends))), "{version:?}");
                for cut in 0..length {
                    assert_eq!(parse(&bytes[..cut]).unwrap(), None, "{version:?} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn a_socket_for_both_families_does_not_disguise_an_ipv4_client() {
        let mapped = ends("[::ffff:192.0.2.1]:40000", "[::ffff:198.51.100.7]:443");
        let line = write(Version::V1, mapped).unwrap();
        assert_eq!(line, b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443\r\n");
    }

    #[test]
    fn ends_of_different_families_are_said_to_be_unknown() {
        let mixed = ends("192.0.2.1:40000", "[2001:db8::2]:443");
        assert_eq!(write(Version::V1, mixed).unwrap(), b"PROXY UNKNOWN\r\n");
        for version in [Version::V1, Version::V2] {
            let bytes = write(version, mixed).unwrap();
            assert_eq!(parse(&bytes).unwrap(), Some((bytes.len(), None)), "{version:?}");
        }
    }

    #[test]
    fn senders_that_speak_for_themselves_are_taken_for_what_they_are() {
        let local =
            b"\r\n\r\n\0\r\nQUIT\n\x20\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\0\x51";
        assert_eq!(parse(local).unwrap(), Some((28, None)), "LOCAL: the addresses mean nothing");
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"] {
            assert_eq!(parse(line.as_bytes()).unwrap(), Some((line.len(), None)), "{line:?}");
        }
    }

    #[test]
    fn anything_else_is_refused_as_soon_as_it_shows() {
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\r\n\r\nGET /",
            b"PROXX",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +80 90\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 080 90\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 80 65536\r\n",
            b"PROXY TCP4 1.2.3.4 ::1 80 90\r\n",
            b"PROXY TCP6 1.2.3.4 5.6.7.8 80 90\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 80 90 \r\n",
            b"PROXY  TCP4 1.2.3.4 5.6.7.8 80 90\r\n",
            b"PROXY UDP4 1.2.3.4 5.6.7.8 80 90\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c............",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04....",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x91\0\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat();
        assert!(parse(&endless).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        let samples = [
            write(Version::V1, ends("192.0.2.1:4", "192.0.2.2:5")).unwrap(),
            write(Version::V2, ends("[::1]:4", "[::2]:5")).unwrap(),
        ];
        for round in 0..100_000 {
            let mut bytes = samples[round % 2].clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            bytes.truncate(rng.usize(..=bytes.len()));
            if let Ok(Some((length, _))) = parse(&bytes) {
                assert!(length <= bytes.len(), "seed {seed}: {}", bytes.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn what_follows_the_header_is_kept() {
        let header = write(Version::V2, ends("192.0.2.1:4", "192.0.2.2:5")).unwrap();
        let (mut sender, mut receiver) = tokio::io::duplex(16);
        let sending = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            sender.write_all(&header).await.unwrap();
            sender.write_all(b"hello").await.unwrap();
        });
        let (found, mut rest) = read(&mut receiver).await.unwrap();
        assert_eq!(found, Some(ends("192.0.2.1:4", "192.0.2.2:5")));
        while rest.len() < 5 {
            receiver.read_buf(&mut rest).await.unwrap();
        }
        assert_eq!(&rest[..], b"hello");
        sending.await.unwrap();
    }
}
