//! An entry as bytes, for places outside this process.
//!
//! The times of an [`Entry`] are of a clock that only goes forward and means nothing elsewhere. A record has the
//! time of day at which the answer was given, and the times to live from then on. The time of day may be set while the
//! record lies there: an answer that seems to come from the future is of no use, since its age is not known.

use crate::answer::Answer;
use crate::contents::Content;
use crate::question::Question;
use crate::store::Entry;
use std::time::Duration;

/// Clocks of machines differ by this much, though they are kept in time.
const CLOCK_SKEW: Duration = Duration::from_secs(2);

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instants {
    /// Of the clock that only goes forward.
    pub steady: Duration,
    /// The time of day, since 1970.
    pub day: Duration,
}

/// Why a record is not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// Its bytes are no record, or one of another question.
    Malformed,
    /// Its time is over, or it comes from the future.
    Over,
}

/// Appends the record of an entry.
pub fn write(
    into: &mut Vec<u8>,
    (question, content): (Question, Content),
    entry: &Entry,
    now: Instants,
) {
    let born = now.day.saturating_sub(entry.age(now.steady));
    into.extend_from_slice(question.as_bytes());
    into.extend_from_slice(&content.0.to_le_bytes());
    for time in [
        born,
        entry.expires.saturating_sub(entry.born),
        entry.gone.saturating_sub(entry.born),
        entry.took,
    ] {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        into.extend_from_slice(&micros.to_le_bytes());
    }
    into.push(u8::from(entry.version.is_some()));
    for text in [&*entry.route, &*entry.model, entry.version.as_deref().unwrap_or_default()] {
        text_into(into, text);
    }
    into.extend_from_slice(entry.answer.bytes());
}

fn text_into(into: &mut Vec<u8>, text: &str) {
    into.extend_from_slice(&(text.len() as u64).to_le_bytes());
    into.extend_from_slice(text.as_bytes());
}

/// The entry of a record, with its question and content.
///
/// # Errors
/// The bytes are none, or its time is over at `now`.
pub fn read(bytes: &[u8], now: Instants) -> Result<(Question, Content, Entry), Unusable> {
    let mut reader = Reader(bytes);
    let (question, content, entry) = reader.entry().ok_or(Unusable::Malformed)?;
    let Times { born, fresh, kept, took } = entry.times;
    if born > now.day + CLOCK_SKEW {
        return Err(Unusable::Over);
    }
    let age = now.day.saturating_sub(born);
    // Before the start of this clock there is no time.
    let born = now.steady.checked_sub(age).ok_or(Unusable::Over)?;
    if age >= kept || fresh > kept {
        return Err(Unusable::Over);
    }
    let entry = Entry {
        answer: Answer::of_bytes(reader.0.to_vec()),
        route: entry.route.into(),
        model: entry.model.into(),
        version: entry.version.map(Into::into),
        born,
        expires: born.saturating_add(fresh),
        gone: born.saturating_add(kept),
        took,
    };
    Ok((question, content, entry))
}

struct Head<'a> {
    times: Times,
    route: &'a str,
    model: &'a str,
    version: Option<&'a str>,
}

struct Times {
    born: Duration,
    fresh: Duration,
    kept: Duration,
    took: Duration,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn entry(&mut self) -> Option<(Question, Content, Head<'a>)> {
        let question = Question::from_bytes(*self.array::<32>()?);
        let content = Content(self.number()?);
        let mut time = || self.number().map(Duration::from_micros);
        let times = Times { born: time()?, fresh: time()?, kept: time()?, took: time()? };
        let [has_version] = *self.array::<1>()?;
        let (route, model, version) = (self.text()?, self.text()?, self.text()?);
        let version = (has_version == 1).then_some(version);
        Some((question, content, Head { times, route, model, version }))
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(array)
    }

    fn number(&mut self) -> Option<u64> {
        self.array::<8>().map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(steady: u64, day: u64) -> Instants {
        Instants { steady: Duration::from_secs(steady), day: Duration::from_secs(day) }
    }

    fn entry() -> Entry {
        Entry {
            answer: Answer::of_bytes(b"the answer".to_vec()),
            route: "r".into(),
            model: "m".into(),
            version: Some("7".into()),
            born: 100 * SECOND,
            expires: 160 * SECOND,
            gone: 190 * SECOND,
            took: Duration::from_micros(1500),
        }
    }

    fn record(entry: &Entry) -> Vec<u8> {
        let mut bytes = Vec::new();
        let key = (Question::from_bytes([9; 32]), Content(5));
        write(&mut bytes, key, entry, at(110, 10_000));
        bytes
    }

    #[test]
    fn an_entry_keeps_its_age_on_another_clock() {
        let given = entry();
        let (question, content, found) = read(&record(&given), at(5_000, 10_020)).unwrap();
        assert_eq!((question, content), (Question::from_bytes([9; 32]), Content(5)));
        assert_eq!(found.answer, given.answer);
        assert_eq!((&*found.route, &*found.model, found.version.as_deref()), ("r", "m", Some("7")));
        let now = 5_000 * SECOND;
        assert_eq!((found.age(now), found.took), (30 * SECOND, given.took));
        assert_eq!((found.expires - now, found.gone - now), (30 * SECOND, 60 * SECOND));
        let without = Entry { version: None, ..entry() };
        assert_eq!(read(&record(&without), at(5_000, 10_020)).unwrap().2.version, None);
    }

    #[test]
    fn a_clock_that_was_set_makes_no_answer_younger() {
        let bytes = record(&entry());
        let hour = 3600;
        assert_eq!(read(&bytes, at(5_000, 10_000 + hour)).unwrap_err(), Unusable::Over);
        assert_eq!(read(&bytes, at(5_000, 10_000 - hour)).unwrap_err(), Unusable::Over);
        assert_eq!(read(&bytes, at(5_000, 10_079)).unwrap().2.age(5_000 * SECOND), 89 * SECOND);
        assert_eq!(read(&bytes, at(5_000, 10_080)).unwrap_err(), Unusable::Over);
        assert_eq!(read(&bytes, at(20, 10_020)).unwrap_err(), Unusable::Over, "no such time");
    }

    #[test]
    fn bytes_that_are_no_record_are_none() {
        let whole = record(&entry());
        for length in 0..whole.len() - b"the answer".len() {
            let found = read(&whole[..length], at(5_000, 10_020));
            assert_eq!(found.unwrap_err(), Unusable::Malformed, "{length}");
        }
        let mut wrong = whole;
        for place in 32 + 8 + 4 * 8 + 1..whole_head(&wrong) {
            let before = wrong[place];
            wrong[place] = 0xff;
            let _ = read(&wrong, at(5_000, 10_020));
            wrong[place] = before;
        }
    }

    fn whole_head(record: &[u8]) -> usize {
        record.len() - b"the answer".len()
    }
}
