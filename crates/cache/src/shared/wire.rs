//! The bytes of requests to a shared store and of its answers: those of Redis, and those of memcached.
//!
//! Four commands are needed, and each answer has a bound: a store that lies about a length, or sends what was not asked
//! for, must cost no memory. General clients have no such bounds, and bring far more than is needed here.

use bytes::{Buf, Bytes, BytesMut};
use std::io::Write as _;
use std::time::Duration;

/// Bytes of the longest line of an answer.
const MAX_LINE: usize = 4096;
/// Seconds from which memcached takes a time to live for a time of day.
const MEMCACHED_MONTH: u64 = 30 * 24 * 3600;
/// memcached's words for a name and a password have this key, which it does not look at.
const LOGIN: &str = "login";

/// The protocol of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Redis, Valkey and their like (RESP2).
    #[default]
    Redis,
    /// The text protocol of memcached.
    Memcached,
}

/// A value to be stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Set<'a> {
    /// Its key: printable, without spaces.
    pub(super) key: &'a str,
    /// The value.
    pub(super) value: &'a [u8],
    /// Time after which the store forgets it; `None`: never.
    pub(super) ttl: Option<Duration>,
    /// Whether a value that is there already stays.
    pub(super) only_new: bool,
}

/// The form of the answer that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A value.
    Value,
    /// A word.
    Word,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// The value of a key, if there is one.
    Value(Option<Bytes>),
    /// It was done (`true`), or not, since a value was there.
    Done(bool),
    /// The store has no room.
    Full,
    /// The store refuses, in its words.
    Refused(String),
}

/// The bytes are no answer to what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoAnswer;

impl Protocol {
    /// Appends a question for the value of `key`.
    pub(super) fn get(self, into: &mut Vec<u8>, key: &str) {
        match self {
            Self::Redis => command(into, &[b"GET", key.as_bytes()]),
            Self::Memcached => line(into, format_args!("get {key}")),
        }
    }

    /// Appends the order to store a value. With memcached, times to live are whole seconds; `day` is the time since 1970.
    pub(super) fn set(self, into: &mut Vec<u8>, set: Set<'_>, day: Duration) {
        match self {
            Self::Redis => {
                let millis = set.ttl.map(|ttl| ttl.as_millis().max(1).to_string());
                let mut words = vec![&b"SET"[..], set.key.as_bytes(), set.value];
                if let Some(millis) = &millis {
                    words.extend([&b"PX"[..], millis.as_bytes()]);
                }
                if set.only_new {
                    words.push(b"NX");
                }
                command(into, &words);
            }
            Self::Memcached => {
                // 0 is never, and one second at least is due to be gone in time.
                let seconds = set.ttl.map_or(0, |ttl| ttl.as_secs().max(1));
                let until = match seconds {
                    long if long > MEMCACHED_MONTH => day.as_secs().saturating_add(long),
                    short => short,
                };
                let (verb, length) = (if set.only_new { "add" } else { "set" }, set.value.len());
                line(into, format_args!("{verb} {} 0 {until} {length}", set.key));
                into.extend_from_slice(set.value);
                into.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Appends what is said first on a connection; returns the number of answers to it, each a word.
    pub(super) fn greet(
        self,
        into: &mut Vec<u8>,
        login: Option<(&str, &str)>,
        database: u32,
    ) -> usize {
        let mut count = 0;
        if let Some((user, password)) = login {
            count += 1;
            match self {
                Self::Redis if user.is_empty() => command(into, &[b"AUTH", password.as_bytes()]),
                Self::Redis => command(into, &[b"AUTH", user.as_bytes(), password.as_bytes()]),
                Self::Memcached => {
                    let words = format!("{user} {password}");
                    let set =
                        Set { key: LOGIN, value: words.as_bytes(), ttl: None, only_new: false };
                    self.set(into, set, Duration::ZERO);
                }
            }
        }
        if self == Self::Redis && database != 0 {
            count += 1;
            command(into, &[b"SELECT", database.to_string().as_bytes()]);
        }
        count
    }

    /// Takes the next answer off the bytes that have come; `None`: more must come. A value has at most `most` bytes.
    ///
    /// # Errors
    /// The bytes are no such answer.
    pub(super) fn reply(
        self,
        from: &mut BytesMut,
        due: Due,
        most: usize,
    ) -> Result<Option<Reply>, NoAnswer> {
        match self {
            Self::Redis => redis(from, due, most),
            Self::Memcached => memcached(from, due, most),
        }
    }
}

fn command(into: &mut Vec<u8>, words: &[&[u8]]) {
    // Writing to a vector does not fail.
    let _ = write!(into, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(into, "${}\r\n", word.len());
        into.extend_from_slice(word);
        into.extend_from_slice(b"\r\n");
    }
}

fn line(into: &mut Vec<u8>, words: std::fmt::Arguments<'_>) {
    let _ = write!(into, "{words}\r\n");
}

/// The first line that has come, without its end; `None`: it is not whole yet.
fn first_line(from: &[u8]) -> Result<Option<&[u8]>, NoAnswer> {
    let seen = &from[..from.len().min(MAX_LINE)];
    match seen.windows(2).position(|end| end == b"\r\n") {
        Some(end) => Ok(Some(&from[..end])),
        None if seen.len() < MAX_LINE => Ok(None),
        None => Err(NoAnswer),
    }
}

fn redis(from: &mut BytesMut, due: Due, most: usize) -> Result<Option<Reply>, NoAnswer> {
    let Some(line) = first_line(from)? else { return Ok(None) };
    let (kind, rest) = line.split_first().ok_or(NoAnswer)?;
    let after = line.len() + 2;
    let reply = match (kind, due) {
        (b'-', _) => refused(rest),
        (b'$', _) if rest == b"-1" => match due {
            Due::Value => Reply::Value(None),
            // Of `SET … NX` where a value was there.
            Due::Word => Reply::Done(false),
        },
        (b'$', Due::Value) => return value(from, after, number(rest)?, most, b"\r\n"),
        (b'+', Due::Word) => Reply::Done(true),
        _ => return Err(NoAnswer),
    };
    from.advance(after);
    Ok(Some(reply))
}

fn memcached(from: &mut BytesMut, due: Due, most: usize) -> Result<Option<Reply>, NoAnswer> {
    let Some(line) = first_line(from)? else { return Ok(None) };
    let after = line.len() + 2;
    let reply = match (line, due) {
        (b"END", Due::Value) => Reply::Value(None),
        (b"STORED", Due::Word) => Reply::Done(true),
        (b"NOT_STORED", Due::Word) => Reply::Done(false),
        _ if line.starts_with(b"VALUE ") && due == Due::Value => {
            let length = line.rsplit(|byte| *byte == b' ').next().ok_or(NoAnswer)?;
            return value(from, after, number(length)?, most, b"\r\nEND\r\n");
        }
        _ if line.starts_with(b"ERROR")
            || line.starts_with(b"CLIENT_ERROR")
            || line.starts_with(b"SERVER_ERROR") =>
        {
            refused(line)
        }
        _ => return Err(NoAnswer),
    };
    from.advance(after);
    Ok(Some(reply))
}

/// The value of this length that begins after the line, and is followed by `end`.
fn value(
    from: &mut BytesMut,
    after: usize,
    length: usize,
    most: usize,
    end: &[u8],
) -> Result<Option<Reply>, NoAnswer> {
    if length > most {
        return Err(NoAnswer);
    }
    let Some(tail) = from.get(after + length..after + length + end.len()) else {
        return Ok(None);
    };
    if tail != end {
        return Err(NoAnswer);
    }
    from.advance(after);
    let value = from.split_to(length).freeze();
    from.advance(end.len());
    Ok(Some(Reply::Value(Some(value))))
}

fn number(digits: &[u8]) -> Result<usize, NoAnswer> {
    let digits = std::str::from_utf8(digits).map_err(|_| NoAnswer)?;
    // A sign is no digit, which `parse` would let pass.
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_plain).ok_or(NoAnswer)
}

fn refused(words: &[u8]) -> Reply {
    let words = String::from_utf8_lossy(words);
    let is_full = words.starts_with("OOM ") || words.starts_with("SERVER_ERROR out of memory");
    if is_full { Reply::Full } else { Reply::Refused(words.chars().take(200).collect()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use Protocol::{Memcached, Redis};

    const MOST: usize = 100;

    fn replies(protocol: Protocol, due: Due, bytes: &[u8]) -> Result<Option<Reply>, NoAnswer> {
        // However the bytes come, the answer is the same.
        let mut from = BytesMut::new();
        for (place, byte) in bytes.iter().enumerate() {
            from.extend_from_slice(&[*byte]);
            let reply = protocol.reply(&mut from, due, MOST)?;
            if reply.is_some() {
                assert!(from.is_empty() && place + 1 == bytes.len());
                return Ok(reply);
            }
        }
        Ok(None)
    }

    fn some(text: &'static [u8]) -> Reply {
        Reply::Value(Some(Bytes::from_static(text)))
    }

    #[test]
    fn commands_are_as_the_stores_read_them() {
        let set = Set {
            key: "k",
            value: b"a\r\nb",
            ttl: Some(Duration::from_millis(1500)),
            only_new: false,
        };
        let day = Duration::from_secs(1_000_000_000);
        let said = |protocol: Protocol, set: Set<'_>| {
            let mut bytes = Vec::new();
            protocol.set(&mut bytes, set, day);
            protocol.get(&mut bytes, "k");
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(
            said(Redis, set),
            "*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n$2\r\nPX\r\n$4\r\n1500\r\n\
             *2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
        );
        assert_eq!(said(Memcached, set), "set k 0 1 4\r\na\r\nb\r\nget k\r\n");
        let month = Some(Duration::from_secs(MEMCACHED_MONTH + 1));
        let long = Set { ttl: month, only_new: true, value: b"", ..set };
        assert_eq!(said(Memcached, long), "add k 0 1002592001 0\r\n\r\nget k\r\n");
        let never = Set { ttl: None, only_new: true, value: b"", ..set };
        assert!(said(Redis, never).starts_with("*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n$2\r\nNX"));
        let mut greeting = Vec::new();
        assert_eq!(Redis.greet(&mut greeting, Some(("u", "p")), 3), 2);
        assert_eq!(Memcached.greet(&mut greeting, Some(("u", "p")), 0), 1);
        assert_eq!(
            String::from_utf8(greeting).unwrap(),
            "*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$1\r\np\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n\
             set login 0 0 3\r\nu p\r\n"
        );
        assert_eq!(Redis.greet(&mut Vec::new(), None, 0), 0);
    }

    #[test]
    fn answers_are_read_however_they_come() {
        for (protocol, due, bytes, expected) in [
            (Redis, Due::Value, &b"$4\r\na\r\nb\r\n"[..], some(b"a\r\nb")),
            (Redis, Due::Value, b"$0\r\n\r\n", some(b"")),
            (Redis, Due::Value, b"$-1\r\n", Reply::Value(None)),
            (Redis, Due::Word, b"+OK\r\n", Reply::Done(true)),
            (Redis, Due::Word, b"$-1\r\n", Reply::Done(false)),
            (Redis, Due::Word, b"-OOM command not allowed\r\n", Reply::Full),
            (Redis, Due::Value, b"-ERR no\r\n", Reply::Refused("ERR no".to_owned())),
            (Memcached, Due::Value, b"VALUE k 0 4\r\na\r\nb\r\nEND\r\n", some(b"a\r\nb")),
            (Memcached, Due::Value, b"END\r\n", Reply::Value(None)),
            (Memcached, Due::Word, b"STORED\r\n", Reply::Done(true)),
            (Memcached, Due::Word, b"NOT_STORED\r\n", Reply::Done(false)),
            (Memcached, Due::Word, b"SERVER_ERROR out of memory storing\r\n", Reply::Full),
            (Memcached, Due::Word, b"ERROR\r\n", Reply::Refused("ERROR".to_owned())),
        ] {
            let found = replies(protocol, due, bytes).unwrap();
            assert_eq!(found, Some(expected), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_lie_ends_the_connection_before_it_costs_memory() {
        let endless = vec![b'x'; MAX_LINE + 1];
        for (protocol, due, bytes) in [
            (Redis, Due::Value, &b"$101\r\n"[..]),
            (Redis, Due::Value, b"$99999999999999999999999\r\n"),
            (Redis, Due::Value, b"$-2\r\n"),
            (Redis, Due::Value, b"$+3\r\n"),
            (Redis, Due::Value, b"*1000000000\r\n"),
            (Redis, Due::Value, b"+OK\r\n"),
            (Redis, Due::Value, b"$1\r\nabc\r\n"),
            (Redis, Due::Word, b"$1\r\na\r\n"),
            (Redis, Due::Word, b"HTTP/1.1 200 OK\r\n"),
            (Redis, Due::Word, b"\r\n"),
            (Redis, Due::Word, &endless),
            (Memcached, Due::Value, b"VALUE k 0 101\r\n"),
            (Memcached, Due::Value, b"VALUE k 0 1\r\nab\r\nEND\r\n"),
            (Memcached, Due::Value, b"STORED\r\n"),
            (Memcached, Due::Word, b"END\r\n"),
            (Memcached, Due::Value, &endless),
        ] {
            let found = replies(protocol, due, bytes);
            assert_eq!(found, Err(NoAnswer), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
