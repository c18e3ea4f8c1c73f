//! The requests of a day whose answers lie furthest apart, in a file of bounded length.
//!
//! A histogram says that answers differ, and a person who has to decide wants to see one that does. So the worst
//! of a day are kept with both answers. They are few and bounded in bytes, whatever is asked, and the file is
//! replaced as a whole, so a reader never sees half of one.

use super::compare::Difference;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Serialize;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest body that is kept of a request or of an answer, in bytes; of a longer one only its length is told.
const MAX_BODY: usize = 1024 * 1024;

/// A body as it stands in a line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Body {
    Text(String),
    Base64(String),
    /// Its length, where it is too long to be kept.
    Omitted(usize),
}

impl Body {
    fn new(bytes: &Bytes) -> Self {
        if bytes.len() > MAX_BODY {
            return Self::Omitted(bytes.len());
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64(BASE64_STANDARD.encode(bytes)),
        }
    }
}

/// A request and its two answers.
pub(super) struct Case<'a> {
    /// Its end, UTC.
    pub(super) time: String,
    pub(super) request_id: &'a str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// The variant that answered the client, and the one that got the copy.
    pub(super) variants: (&'a str, &'a str),
    pub(super) differences: &'a [Difference],
    /// The bodies of the request, of the client's answer, and of the copy's.
    pub(super) bodies: [&'a Bytes; 3],
}

#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    score: f64,
    request_id: &'a str,
    method: &'a str,
    path: &'a str,
    variant: &'a str,
    shadow: &'a str,
    differences: &'a [Difference],
    request: Body,
    answer: Body,
    shadow_answer: Body,
}

/// The worst cases of a day, the worst first.
#[derive(Debug, Default)]
pub(super) struct Worst {
    /// The day that they are of, as `2026-01-31`.
    day: String,
    lines: Vec<(f64, Vec<u8>)>,
    bytes: usize,
}

/// The bounds of a report.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Cases.
    pub(super) cases: usize,
    /// Bytes.
    pub(super) bytes: usize,
}

impl Worst {
    /// Whether a case with this score would be among them, so that its line is worth making.
    pub(super) fn wants(&self, day: &str, score: f64, bounds: Bounds) -> bool {
        score > 0.0
            && (self.day != day
                || self.lines.len() < bounds.cases
                || self.lines.last().is_some_and(|(least, _)| score > *least))
    }

    /// Takes a case in, in place of a lesser one if need be. Returns the lines of the day before, if this is the
    /// first of a new day.
    pub(super) fn add(
        &mut self,
        day: &str,
        (score, case): (f64, &Case<'_>),
        bounds: Bounds,
    ) -> Option<Vec<u8>> {
        let before = (self.day != day).then(|| {
            let lines = self.text();
            *self = Self { day: day.to_owned(), ..Self::default() };
            lines
        });
        let before = before.filter(|lines| !lines.is_empty());
        let line = line(score, case);
        if line.len() > bounds.bytes {
            // It would displace all others.
            return before;
        }
        let place = self.lines.partition_point(|(other, _)| *other >= score);
        self.bytes += line.len();
        self.lines.insert(place, (score, line));
        while self.lines.len() > bounds.cases || self.bytes > bounds.bytes {
            let Some((_, line)) = self.lines.pop() else { break };
            self.bytes -= line.len();
        }
        before
    }

    /// All lines.
    pub(super) fn text(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|(_, line)| line).copied().collect()
    }
}

fn line(score: f64, case: &Case<'_>) -> Vec<u8> {
    let [request, answer, shadow_answer] = case.bodies.map(Body::new);
    let line = Line {
        time: &case.time,
        score,
        request_id: case.request_id,
        method: case.method,
        path: case.path,
        variant: case.variants.0,
        shadow: case.variants.1,
        differences: case.differences,
        request,
        answer,
        shadow_answer,
    };
    // Every figure is finite, and there are no maps with odd keys.
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Replaces a file as a whole; only its owner may read it. The lines of the day before go to a file
/// of their own, if there are any.
///
/// # Errors
/// The system's.
pub(super) fn write(path: &Path, lines: &[u8], before: Option<&[u8]>) -> io::Result<()> {
    if let Some(before) = before {
        replace(&beside(path, ".1"), before)?;
    }
    replace(path, lines)
}

fn replace(path: &Path, lines: &[u8]) -> io::Result<()> {
    let new = beside(path, ".new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(lines)?;
    std::fs::rename(&new, path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;
    use serde_json::Value;

    const BOUNDS: Bounds = Bounds { cases: 3, bytes: 4096 };

    fn add(
        worst: &mut Worst,
        day: &str,
        score: f64,
        body: &[u8],
        bounds: Bounds,
    ) -> Option<Vec<u8>> {
        let body = Bytes::copy_from_slice(body);
        let case = Case {
            time: day.to_owned(),
            request_id: "id",
            method: "POST",
            path: "/v2/models/m/infer",
            variants: ("stable", "canary"),
            differences: &[],
            bodies: [&body, &body, &body],
        };
        worst.add(day, (score, &case), bounds)
    }

    fn scores(lines: &[u8]) -> Vec<f64> {
        let lines = std::str::from_utf8(lines).unwrap().lines();
        let score =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["score"].as_f64().unwrap();
        lines.map(score).collect()
    }

    #[test]
    fn the_worst_stay_and_a_new_day_begins_with_none() {
        let mut worst = Worst::default();
        assert!(!worst.wants("1", 0.0, BOUNDS), "equal answers are no case");
        for score in [0.5, 0.1, 0.9, 0.2, 0.5] {
            if worst.wants("1", score, BOUNDS) {
                assert_eq!(add(&mut worst, "1", score, b"{}", BOUNDS), None);
            }
        }
        assert_eq!(scores(&worst.text()), [0.9, 0.5, 0.5]);
        assert!(!worst.wants("1", 0.5, BOUNDS));
        assert!(worst.wants("2", 0.01, BOUNDS));
        let before = add(&mut worst, "2", 0.01, b"{}", BOUNDS).unwrap();
        assert_eq!(scores(&before), [0.9, 0.5, 0.5]);
        assert_eq!(scores(&worst.text()), [0.01]);
    }

    #[test]
    fn a_report_is_no_longer_than_its_bound_whatever_is_asked() {
        let mut worst = Worst::default();
        for score in 1..50 {
            add(&mut worst, "1", f64::from(score), &[b'x'; 200], Bounds { cases: 100, ..BOUNDS });
            assert!(worst.text().len() <= BOUNDS.bytes);
        }
        assert_eq!(scores(&worst.text())[0], 49.0);
        // One that does not fit alone leaves nothing.
        add(&mut worst, "2", 1.0, &[b'x'; 5000], BOUNDS);
        assert!(worst.text().is_empty());
        assert!(matches!(Body::new(&vec![0; MAX_BODY + 1].into()), Body::Omitted(_)));
        assert!(matches!(Body::new(&vec![255].into()), Body::Base64(_)));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_others_can_not_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("forebay-worst-{:x}", fastrand::u64(..)));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("report.jsonl");
        write(&path, b"one\n", None).unwrap();
        write(&path, b"two\n", Some(b"one\n")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
        assert_eq!(std::fs::read(beside(&path, ".1")).unwrap(), b"one\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
