//! HTTP/1 connections to endpoints: which answer belongs to which request.
//!
//! HTTP/1 matches answers to requests by their order and by nothing else (RFC 9112, 9.2). Bytes that an
//! endpoint sends before it is asked would be read as the answer to the next request on that connection,
//! which is most often another client's. So a connection is looked at before a request is written to it,
//! and it is closed after any exchange that leaves doubt about where the next answer begins.

use crate::pool::liveness::Watched;
use http::{StatusCode, Version};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType};
use std::os::fd::RawFd;

/// Maximum number of interim answers (1xx) before the final one. Servers send one or two; an endpoint that
/// sends them without end would keep a request alive forever.
const MAX_INTERIM: u32 = 16;

/// Nothing was sent: the connection held bytes that answer no request, or its end.
pub(super) const UNSOLICITED: ErrorType = ErrorType::new("Unsolicited");

/// Nothing was sent: the endpoint had closed the connection.
pub(super) const CLOSED_BEFORE: ErrorType = ErrorType::new("ClosedBefore");

/// The state of a connection before a request is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing, as it should be.
    Quiet,
    /// Its end: the endpoint has closed it.
    Closed,
    /// Bytes that answer no request.
    Unsolicited,
}

/// Looks at what the kernel holds for a socket, without taking it. Pingora asks the runtime instead,
/// which may not have heard of the bytes yet.
pub(super) fn look(socket: RawFd) -> Before {
    let mut byte = [0];
    match recv(socket, &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(0) => Before::Closed,
        Ok(_) => Before::Unsolicited,
        Err(Errno::EAGAIN | Errno::EINTR) => Before::Quiet,
        Err(_) => Before::Closed,
    }
}

/// Makes the connection close instead of being kept: bytes that arrive from now on are not read.
pub(super) fn do_not_keep(socket: RawFd) {
    // A connection that is gone is not kept either.
    let _ = shutdown(socket, Shutdown::Read);
}

/// One exchange on an HTTP/1 connection, for the pipe, where Pingora moves the bytes.
#[derive(Debug)]
pub struct Wire {
    socket: RawFd,
    /// Whether the whole request was handed to the connection.
    request_sent: bool,
    /// Whether the final answer began before that.
    early: bool,
    interim: u32,
    /// Until the answer begins.
    watched: Option<Watched>,
}

impl Wire {
    /// An exchange on this socket, which must stay open while the exchange lasts.
    pub(super) fn new(socket: RawFd, watched: Watched) -> Self {
        Self { socket, request_sent: false, early: false, interim: 0, watched: Some(watched) }
    }

    /// The request can't be sent again: too much of its body has passed.
    pub(super) fn stays(&self) {
        if let Some(watched) = &self.watched {
            watched.exchange().stays();
        }
    }

    /// Whether the proxy ended the connection because the endpoint is silent.
    pub(super) fn was_cut(&self) -> bool {
        self.watched.as_ref().is_some_and(|watched| watched.exchange().was_cut())
    }

    /// The last piece of the request is on its way.
    pub(super) fn request_sent(&mut self) {
        self.request_sent = true;
    }

    /// Takes in that an answer began.
    ///
    /// # Errors
    /// It is one interim answer too many.
    pub(super) fn answer_began(
        &mut self,
        head: &ResponseHeader,
        is_head: bool,
    ) -> pingora::Result<()> {
        if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
            return count_interim(&mut self.interim);
        }
        self.watched = None;
        self.early = !self.request_sent;
        if is_head || has_no_body(head) {
            self.answer_ended();
        }
        Ok(())
    }

    /// Takes in that the answer is complete. An endpoint that answers early may read the rest of the
    /// request as another one, and answer that too.
    pub(super) fn answer_ended(&self) {
        if self.early {
            do_not_keep(self.socket);
        }
    }
}

/// Whether no body follows this header, for any request.
pub(super) fn has_no_body(head: &ResponseHeader) -> bool {
    let empty = head.headers.get(http::header::CONTENT_LENGTH).is_some_and(|length| length == "0");
    empty || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Counts an interim answer.
///
/// # Errors
/// It is one too many.
pub(super) fn count_interim(seen: &mut u32) -> pingora::Result<()> {
    *seen += 1;
    if *seen > MAX_INTERIM {
        return invalid("more than 16 interim answers (1xx)");
    }
    Ok(())
}

/// Checks that everyone who reads this header finds the same end of the answer.
///
/// # Errors
/// Two readers could disagree (RFC 9112, 6.3).
pub(super) fn check(head: &ResponseHeader) -> pingora::Result<()> {
    let mut lengths = head.headers.get_all(http::header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some() || !is_number(length.as_bytes()))
    {
        return invalid("expected one content-length that is a number");
    }
    let mut codings = head.headers.get_all(http::header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return invalid("expected transfer-encoding: chunked and no other");
        }
        if head.version < Version::HTTP_11 {
            return invalid("expected no transfer-encoding before HTTP/1.1");
        }
    }
    Ok(())
}

fn is_number(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// Checks what Pingora mends in silence: a length beside chunks, and a field that goes on in the next
/// line.
///
/// # Errors
/// The header has one of them.
pub(super) fn check_raw(head: &[u8]) -> pingora::Result<()> {
    let (mut length, mut coding) = (false, false);
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return invalid("expected a header field on one line");
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii_end();
        length |= name.eq_ignore_ascii_case(b"content-length");
        coding |= name.eq_ignore_ascii_case(b"transfer-encoding");
    }
    if length && coding {
        return invalid("expected content-length or transfer-encoding, found both");
    }
    Ok(())
}

/// An answer that can't be believed.
pub(super) fn invalid<T>(words: &'static str) -> pingora::Result<T> {
    let mut error = Error::explain(ErrorType::InvalidHTTPHeader, words);
    error.as_up();
    Err(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    /// Bytes on the loopback device arrive before the write returns; nothing promises it for an end.
    fn eventually(socket: &TcpStream, wanted: Before) {
        while look(socket.as_raw_fd()) != wanted {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_look_tells_quiet_from_bytes_and_from_the_end_and_takes_nothing() {
        let (mut ours, mut theirs) = pair();
        assert_eq!(look(ours.as_raw_fd()), Before::Quiet);
        theirs.write_all(b"x").unwrap();
        eventually(&ours, Before::Unsolicited);
        assert_eq!(look(ours.as_raw_fd()), Before::Unsolicited);
        ours.read_exact(&mut [0]).unwrap();
        assert_eq!(look(ours.as_raw_fd()), Before::Quiet);
        drop(theirs);
        eventually(&ours, Before::Closed);
    }

    #[test]
    fn a_connection_that_is_not_to_be_kept_looks_closed_and_can_still_be_written_to() {
        let (mut ours, mut theirs) = pair();
        do_not_keep(ours.as_raw_fd());
        assert_eq!(look(ours.as_raw_fd()), Before::Closed);
        ours.write_all(b"rest").unwrap();
        let mut rest = [0; 4];
        theirs.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[test]
    fn an_answer_whose_end_two_readers_could_find_in_two_places_is_refused() {
        for (fields, good) in [
            (&[][..], true),
            (&[("content-length", "5")], true),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("content-length", "5"), ("content-length", "5")], false),
            (&[("content-length", "5"), ("content-length", "6")], false),
            (&[("content-length", "5, 5")], false),
            (&[("content-length", "+5")], false),
            (&[("content-length", "")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "identity")], false),
        ] {
            let mut head = ResponseHeader::build(200, None).unwrap();
            for (name, value) in fields {
                head.append_header(*name, *value).unwrap();
            }
            assert_eq!(check(&head).is_ok(), good, "{fields:?}");
        }
        let mut old = ResponseHeader::build(200, None).unwrap();
        old.set_version(Version::HTTP_10);
        old.append_header("transfer-encoding", "chunked").unwrap();
        assert!(check(&old).is_err());
    }

    #[test]
    fn what_pingora_would_mend_is_refused() {
        for (fields, good) in [
            ("content-length: 5\r\n", true),
            ("content-length: 5\r\nx: transfer-encoding: y\r\n", true),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", false),
            ("transfer-encoding : chunked\r\ncontent-length\t: 5\r\n", false),
            ("x: a\r\n b\r\n", false),
            ("x: a\r\n\tb\r\n", false),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            assert_eq!(check_raw(head.as_bytes()).is_ok(), good, "{fields:?}");
        }
    }
}
