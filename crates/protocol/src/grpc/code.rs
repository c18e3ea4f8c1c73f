//! Status codes and the text that goes with them.

use http::HeaderValue;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};

/// Longest `grpc-message` that is sent, in bytes before encoding: clients bound their header lists.
const MAX_MESSAGE: usize = 2048;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $digits:literal;)*) => {
        /// A gRPC status code: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name = $number,)* }

        impl Code {
            /// Every code, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The value of the trailer `grpc-status`.
            pub const fn value(self) -> HeaderValue {
                match self { $(Self::$name => HeaderValue::from_static($digits),)* }
            }
        }
    };
}

codes! {
    /// Answered.
    Ok = 0, "0";
    /// The client gave up.
    Cancelled = 1, "1";
    /// Something that has no code.
    Unknown = 2, "2";
    /// The same request will fail again.
    InvalidArgument = 3, "3";
    /// No answer in time.
    DeadlineExceeded = 4, "4";
    /// The requested entity does not exist.
    NotFound = 5, "5";
    /// The entity to be created exists already.
    AlreadyExists = 6, "6";
    /// The client may not.
    PermissionDenied = 7, "7";
    /// Too much: a quota, or the size of a message.
    ResourceExhausted = 8, "8";
    /// The state does not allow it.
    FailedPrecondition = 9, "9";
    /// Given up half-way, such as for a conflict.
    Aborted = 10, "10";
    /// Beyond the valid range.
    OutOfRange = 11, "11";
    /// Not spoken here.
    Unimplemented = 12, "12";
    /// A fault of the server.
    Internal = 13, "13";
    /// Not now, or not here: ask another endpoint.
    Unavailable = 14, "14";
    /// Lost for good.
    DataLoss = 15, "15";
    /// The client did not say who it is.
    Unauthenticated = 16, "16";
}

impl Code {
    /// The number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Reads the value of the trailer `grpc-status`; a number that is no code means `Unknown`.
    /// `None`: not a number.
    pub fn parse(value: &HeaderValue) -> Option<Self> {
        let number: usize = value.to_str().ok()?.trim().parse().ok()?;
        Some(Self::ALL.get(number).copied().unwrap_or(Self::Unknown))
    }
}

/// Characters that gRPC percent-encodes in addition to non-ASCII ones.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The value of the trailer `grpc-message`: percent-encoded, and cut if it is longer than anyone
/// reads.
pub fn encode_message(message: &str) -> HeaderValue {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let text: String = utf8_percent_encode(&message[..end], ENCODED).collect();
    // Printable ASCII is always a header value.
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Decodes a message that [`encode_message`] or another program encoded; anything undecodable is returned as
/// it is.
pub fn decode_message(value: &HeaderValue) -> String {
    percent_decode(value.as_bytes()).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_numbered_in_order_and_read_back() {
        for (number, &code) in Code::ALL.iter().enumerate() {
            assert_eq!(usize::from(code.number()), number);
            assert_eq!(Code::parse(&code.value()), Some(code));
        }
        assert_eq!(Code::parse(&HeaderValue::from_static("99")), Some(Code::Unknown));
        assert_eq!(Code::parse(&HeaderValue::from_static("ok")), None);
    }

    #[test]
    fn a_message_comes_through_whatever_is_in_it() {
        for text in ["", "plain \"text\"", "100 % sure", "zwei\nZeilen: äöü", "%41"] {
            let value = encode_message(text);
            assert!(value.to_str().is_ok(), "{text}");
            assert_eq!(decode_message(&value), text);
        }
        let long = "ä".repeat(MAX_MESSAGE);
        assert!(long.starts_with(&decode_message(&encode_message(&long))));
        for odd in ["%", "%4", "%zz", "a%"] {
            assert_eq!(decode_message(&HeaderValue::from_static(odd)), odd);
        }
    }
}
