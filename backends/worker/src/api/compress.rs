//! Compresses answers for clients that accept it, where that saves something.
//!
//! Many HTTP libraries ask for compression with every request, and binary tensors of floats hardly shrink.
//! So a piece of each body is tried first; a body that does not shrink is sent unchanged and has cost the
//! time of that piece alone. Large bodies are compressed off the I/O threads.

use crate::api::body::Encoding;
use crate::inference::blocking::{INLINE, off_io};
use crate::refusal::Refusal;
use axum::body::{Body, HttpBody as _};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use forebay_protocol::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::BodyExt;
use std::io::Write;

/// A body of fewer bytes fits a packet anyway.
const MIN_LENGTH: usize = 1 << 10;
/// Bytes that are tried first, and what has to be saved of them at least: one in eight.
const PIECE: usize = 16 << 10;
const SAVED: usize = 8;

/// The compression that the client prefers, by the header `name`. Without a preference gzip comes first,
/// then deflate.
pub(crate) fn accepted(headers: &HeaderMap, name: &HeaderName) -> Encoding {
    let mut best = (Encoding::Identity, 0.0);
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    for entry in lists.flat_map(|list| list.split(',')) {
        let (coding, weight) = entry.split_once(';').unwrap_or((entry, ""));
        let weight = weight.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.trim().parse().ok());
        let (Some(encoding), Some(weight)) = (coding_of(coding.trim()), weight) else { continue };
        let is_better = weight > best.1 || (weight == best.1 && encoding == Encoding::Gzip);
        if weight > 0.0_f32 && is_better {
            best = (encoding, weight);
        }
    }
    best.0
}

fn coding_of(name: &str) -> Option<Encoding> {
    match name.to_ascii_lowercase().as_str() {
        "gzip" | "x-gzip" => Some(Encoding::Gzip),
        "deflate" => Some(Encoding::Deflate),
        _ => None,
    }
}

/// The answer in this encoding if it is whole, large enough and shrinks.
pub(crate) async fn answer(response: Response, encoding: Encoding) -> Response {
    let length = response.body().size_hint().exact().and_then(|n| usize::try_from(n).ok());
    let is_encoded = response.headers().contains_key(header::CONTENT_ENCODING);
    let Some(length) = length.filter(|&length| length >= MIN_LENGTH && !is_encoded) else {
        return response;
    };
    let (mut parts, body) = response.into_parts();
    // It is in memory already: one whose length is known was made from bytes.
    let Ok(body) = body.collect().await else { return broken(parts) };
    let body = body.to_bytes();
    let work = move || Ok((compressed(&body, encoding), body));
    let result = if length <= INLINE { work() } else { off_io(work).await };
    let Ok((compressed, body)) = result else { return broken(parts) };
    parts.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    match (compressed, encoding.name()) {
        (Some(compressed), Some(name)) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(compressed))
        }
        _ => Response::from_parts(parts, Body::from(body)),
    }
}

/// Only a fault of ours could lose a body that is in memory.
fn broken(_: http::response::Parts) -> Response {
    use axum::response::IntoResponse;
    Refusal::new(Reason::Internal, "compressing the answer failed").into_response()
}

/// `None`: it is short, it does not shrink, or no compression is wanted.
pub(crate) fn compressed(bytes: &[u8], encoding: Encoding) -> Option<Bytes> {
    if bytes.len() < MIN_LENGTH {
        return None;
    }
    if bytes.len() > 2 * PIECE {
        // From the middle, where a tensor's numbers are; the head of an answer is text.
        let start = (bytes.len() - PIECE) / 2;
        shrunk(&bytes[start..start + PIECE], encoding)?;
    }
    shrunk(bytes, encoding)
}

fn shrunk(bytes: &[u8], encoding: Encoding) -> Option<Bytes> {
    let out = Vec::with_capacity(bytes.len() / 2);
    let done = match encoding {
        Encoding::Identity => return None,
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(out, Compression::fast());
            encoder.write_all(bytes).and_then(|()| encoder.finish())
        }
        Encoding::Deflate => {
            let mut encoder = ZlibEncoder::new(out, Compression::fast());
            encoder.write_all(bytes).and_then(|()| encoder.finish())
        }
    };
    // Writing to memory does not fail.
    done.ok().filter(|out| out.len() < bytes.len() - bytes.len() / SAVED).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_heaviest_weight_decides_and_gzip_where_the_client_does_not_care() {
        for (value, expected) in [
            ("", Encoding::Identity),
            ("identity", Encoding::Identity),
            ("br, zstd", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("deflate, gzip", Encoding::Gzip),
            ("gzip;q=0.5, deflate;q=0.8", Encoding::Deflate),
            ("gzip;q=0", Encoding::Identity),
            ("gzip; q=0, DEFLATE", Encoding::Deflate),
            ("gzip;q=nonsense", Encoding::Identity),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())]);
            assert_eq!(accepted(&headers, &header::ACCEPT_ENCODING), expected, "{value}");
        }
        assert_eq!(accepted(&HeaderMap::new(), &header::ACCEPT_ENCODING), Encoding::Identity);
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is() {
        let text = b"0.5,0.25,".repeat(10_000);
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(200_000)
        .collect();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            assert!(compressed(&text, encoding).unwrap().len() < text.len() / 10);
            assert_eq!(compressed(&noise, encoding), None);
            assert_eq!(compressed(&text[..1000], encoding), None, "short");
        }
        assert_eq!(compressed(&text, Encoding::Identity), None);
    }
}
