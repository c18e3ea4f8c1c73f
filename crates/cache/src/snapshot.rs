//! The store in a file, so that a restart does not begin with nothing.
//!
//! A file is written whole under another name, and takes the place of the former one when it is on the disk: after a crash
//! there is the old one or the new one. It is in pieces, each [sealed](crate::sealed) for its place in this very
//! file, the last one as such, so that a file that was cut, put together from two, or written by another program is
//! none. It is all taken or not at all.
//!
//! Entries must not become younger while they lie there, though the clock may be set. While the machine runs, its
//! uptime says how long they lay; after it was started again, the time of day does, and at least the uptime has gone by.

use crate::contents::{Content, Fact};
use crate::new_file::{NewFile, sync_folder};
use crate::question::Question;
use crate::record::{self, Instants, Unusable};
use crate::sealed::{self, Seal};
use crate::store::Entry;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The beginning of a file of this form.
const FORM: [u8; 8] = *b"FBCACHE1";
/// Bytes from which a piece is full.
const PIECE: usize = 256 * 1024;
/// Bytes of the first piece, at most.
const MAX_FIRST: usize = 1024 * 1024;
const ID: usize = 16;
/// Bytes of a fact.
const FACT: usize = 25;

/// A moment, as it can be compared with one of another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// A number that the machine has since it was started; 0: not known.
    pub boot: u128,
    /// Time since then, while it slept as well.
    pub up: Duration,
    /// Time of day, since 1970.
    pub day: Duration,
}

impl Stamp {
    /// Time that has gone by since `earlier`; `None`: that can't be known.
    pub fn since(&self, earlier: &Self) -> Option<Duration> {
        if self.boot == earlier.boot && self.boot != 0 {
            return self.up.checked_sub(earlier.up);
        }
        Some(self.day.checked_sub(earlier.day)?.max(self.up))
    }
}

/// A fact about a model, as [`Contents`](crate::Contents) has it: the model, the generation, and the fact.
pub type KnownFact = ((u64, u64), Fact);
/// An entry with its question.
pub type Kept = ((Question, Content), Arc<Entry>);

/// The contents of a file.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The facts about models.
    pub facts: Vec<KnownFact>,
    /// The entries whose time is not over.
    pub entries: Vec<Kept>,
}

/// Why nothing was taken from a file.
#[derive(Debug)]
pub enum Refused {
    /// It can't be read.
    Unreadable(io::Error),
    /// It is longer than what the memory could hold.
    TooLong(u64),
    /// It has another form: of another program, or of another version of this one.
    OtherForm,
    /// It was not sealed with this key, or is not whole.
    Unverified,
    /// It is from the future, so that the age of its entries is not known.
    FromTheFuture,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::TooLong(bytes) => write!(f, "it has {bytes} bytes, more than cache.memory"),
            Self::OtherForm => f.write_str("it has another form than this version writes"),
            Self::Unverified => f.write_str("it is not whole, or sealed with another key"),
            Self::FromTheFuture => f.write_str("it is from the future: the clock was set back"),
        }
    }
}

/// Writes a file under the name `path`; returns its length in bytes. `takes_place` is called when all is
/// written, with what lets the file take its place.
///
/// # Errors
/// It can't be written. The file that was there before stays.
pub fn write(
    path: &Path,
    seal: &Seal,
    (now, stamp): (Instants, Stamp),
    facts: &[KnownFact],
    entries: impl Iterator<Item = Kept>,
    takes_place: impl FnOnce(&dyn Fn() -> io::Result<()>) -> io::Result<()>,
) -> io::Result<u64> {
    let new = NewFile::create(path)?;
    let length = write_all(new.file(), seal, (now, stamp), facts, entries)?;
    takes_place(&|| new.replace(path))?;
    sync_folder(path)?;
    Ok(length)
}

fn write_all(
    file: &File,
    seal: &Seal,
    (now, stamp): (Instants, Stamp),
    facts: &[KnownFact],
    entries: impl Iterator<Item = Kept>,
) -> io::Result<u64> {
    let mut id = [0; ID];
    for half in id.chunks_exact_mut(ID / 2) {
        let random = sealed::random().ok_or(ErrorKind::Unsupported)?;
        half.copy_from_slice(&random.to_le_bytes());
    }
    let mut writer = Writer { file, seal, id, count: 0, length: 0 };
    writer.plain(&FORM)?;
    writer.plain(&id)?;
    writer.piece(&first(stamp, facts), false)?;
    let mut piece = Vec::with_capacity(PIECE);
    for (at, entry) in entries {
        let before = piece.len();
        piece.extend_from_slice(&[0; 4]);
        record::write(&mut piece, at, &entry, now);
        match u32::try_from(piece.len() - before - 4) {
            Ok(length) => piece[before..before + 4].copy_from_slice(&length.to_le_bytes()),
            // Longer than anything that is kept.
            Err(_) => piece.truncate(before),
        }
        if piece.len() >= PIECE {
            writer.piece(&piece, false)?;
            piece.clear();
        }
    }
    writer.piece(&piece, true)?;
    writer.file.sync_all()?;
    Ok(writer.length)
}

/// The first piece: when the file was written, and the facts.
fn first(stamp: Stamp, facts: &[KnownFact]) -> Vec<u8> {
    let mut bytes = stamp.boot.to_le_bytes().to_vec();
    for time in [stamp.up, stamp.day] {
        bytes.extend_from_slice(&micros(time).to_le_bytes());
    }
    for ((model, generation), fact) in facts.iter().take((MAX_FIRST - 1024) / FACT) {
        for number in [*model, *generation, fact.content.0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.push(match fact.has_rows {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        });
    }
    bytes
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

struct Writer<'a> {
    file: &'a File,
    seal: &'a Seal,
    id: [u8; ID],
    count: u64,
    length: u64,
}

impl Writer<'_> {
    fn plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn piece(&mut self, bytes: &[u8], is_last: bool) -> io::Result<()> {
        let place = place(&self.id, self.count, is_last);
        self.count += 1;
        let fill = |value: &mut Vec<u8>| value.extend_from_slice(bytes);
        let sealed = self.seal.seal(&place, fill).ok_or(ErrorKind::Unsupported)?;
        let length = u32::try_from(sealed.len()).map_err(|_| ErrorKind::FileTooLarge)?;
        self.plain(&length.to_le_bytes())?;
        self.plain(&sealed)
    }
}

/// The place of a piece: in which file, as which one, and whether as the last.
fn place(id: &[u8; ID], count: u64, is_last: bool) -> [u8; ID + 9] {
    let mut place = [0; ID + 9];
    place[..ID].copy_from_slice(id);
    place[ID..ID + 8].copy_from_slice(&count.to_le_bytes());
    place[ID + 8] = u8::from(is_last);
    place
}

/// The contents of a file, without entries whose time is over; `None`: there is no file. `most`: bytes of the longest file that is taken.
///
/// # Errors
/// Nothing is taken from it.
pub fn read(
    path: &Path,
    seal: &Seal,
    (now, stamp): (Instants, Stamp),
    most: u64,
) -> Result<Option<Snapshot>, Refused> {
    // Opening anything else could wait without end.
    let meta = match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => meta,
        Ok(_) => return Err(Refused::OtherForm),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Refused::Unreadable(error)),
    };
    let file = File::open(path).map_err(Refused::Unreadable)?;
    if meta.len() > most {
        return Err(Refused::TooLong(meta.len()));
    }
    let mut reader = Reader { file: BufReader::new(file.take(most)), left: meta.len() };
    if reader.array::<8>()? != FORM {
        return Err(Refused::OtherForm);
    }
    let id = reader.array::<ID>()?;
    let mut snapshot = Snapshot::default();
    let mut now = now;
    for count in 0.. {
        let limit = if count == 0 { MAX_FIRST + sealed::OVERHEAD } else { usize::MAX };
        let mut piece = reader.piece(limit)?;
        let is_last = reader.left == 0;
        let place = place(&id, count, is_last);
        let open = seal.open(&place, &mut piece).ok_or(Refused::Unverified)?;
        if count == 0 {
            let (written, facts) = open_first(open).ok_or(Refused::Unverified)?;
            let lain = stamp.since(&written).ok_or(Refused::FromTheFuture)?;
            // As if the clock had not been set meanwhile.
            now.day = written.day.saturating_add(lain);
            snapshot.facts = facts;
        } else {
            entries(open, now, &mut snapshot.entries).ok_or(Refused::Unverified)?;
        }
        if is_last {
            break;
        }
    }
    Ok(Some(snapshot))
}

fn open_first(mut bytes: &[u8]) -> Option<(Stamp, Vec<KnownFact>)> {
    let (boot, rest) = bytes.split_first_chunk::<16>()?;
    bytes = rest;
    let mut number = || {
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        bytes = rest;
        Some(u64::from_le_bytes(*number))
    };
    let (up, day) = (Duration::from_micros(number()?), Duration::from_micros(number()?));
    let facts = bytes.as_chunks::<FACT>().0.iter().map(|fact| {
        let number = |place: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&fact[8 * place..8 * place + 8]);
            u64::from_le_bytes(bytes)
        };
        let has_rows = [None, Some(false), Some(true)].get(usize::from(fact[24])).copied()?;
        Some(((number(0), number(1)), Fact { content: Content(number(2)), has_rows }))
    });
    let facts = facts.collect::<Option<_>>()?;
    Some((Stamp { boot: u128::from_le_bytes(*boot), up, day }, facts))
}

/// Takes the entries of a piece whose time is not over; `None`: it is malformed.
fn entries(mut bytes: &[u8], now: Instants, into: &mut Vec<Kept>) -> Option<()> {
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (record, rest) = rest.split_at_checked(length)?;
        bytes = rest;
        match record::read(record, now) {
            Ok((question, content, entry)) => into.push(((question, content), Arc::new(entry))),
            Err(Unusable::Over) => {}
            Err(Unusable::Malformed) => return None,
        }
    }
    Some(())
}

struct Reader {
    file: BufReader<io::Take<File>>,
    /// Bytes that are still to come.
    left: u64,
}

impl Reader {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), Refused> {
        let short = |error: io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => Refused::Unverified,
            _ => Refused::Unreadable(error),
        };
        self.file.read_exact(bytes).map_err(short)?;
        self.left = self.left.saturating_sub(bytes.len() as u64);
        Ok(())
    }

    /// The next piece, of at most so many bytes.
    fn piece(&mut self, limit: usize) -> Result<Vec<u8>, Refused> {
        let length = u64::from(u32::from_le_bytes(self.array()?));
        // No more memory than the file has bytes.
        let length =
            usize::try_from(length).ok().filter(|&it| it <= limit && it as u64 <= self.left);
        let mut piece = vec![0; length.ok_or(Refused::Unverified)?];
        self.exact(&mut piece)?;
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::answer::Answer;
    use crate::sealed::Secret;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    const MOST: u64 = 10_000_000;

    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("forebay-snapshot-{:x}", sealed::random().unwrap());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn file(&self) -> std::path::PathBuf {
            self.0.join("answers")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn seal(secret: &str) -> Seal {
        Seal::new(&Secret::new(secret.as_bytes()), "snapshot", false)
    }

    fn stamp(boot: u128, up: u64, day: u64) -> Stamp {
        Stamp { boot, up: Duration::from_secs(up), day: Duration::from_secs(day) }
    }

    const WRITTEN: Stamp =
        Stamp { boot: 5, up: Duration::from_secs(1_000), day: Duration::from_secs(100_000) };

    /// The steady clock of each process has a beginning of its own.
    fn at(stamp: Stamp) -> (Instants, Stamp) {
        (Instants { steady: 1_000_000 * SECOND, day: stamp.day }, stamp)
    }

    fn kept(number: u8, bytes: usize) -> Kept {
        let born = 1_000_000 * SECOND - 10 * SECOND;
        let entry = Entry {
            answer: Answer::of_bytes(vec![number; bytes]),
            route: "r".into(),
            model: "m".into(),
            version: None,
            born,
            expires: born + 100 * SECOND,
            gone: born + 200 * SECOND,
            took: SECOND,
        };
        ((Question::from_bytes([number; 32]), Content(3)), Arc::new(entry))
    }

    fn facts() -> Vec<KnownFact> {
        let fact = |has_rows| Fact { content: Content(9), has_rows };
        [None, Some(false), Some(true)].map(|has| ((1, 2), fact(has))).to_vec()
    }

    fn fill(folder: &Folder, count: u8, bytes: usize) -> u64 {
        let entries = (0..count).map(|number| kept(number, bytes));
        write(&folder.file(), &seal("s"), at(WRITTEN), &facts(), entries, |place| place()).unwrap()
    }

    fn read_at(folder: &Folder, stamp: Stamp) -> Result<Option<Snapshot>, Refused> {
        read(&folder.file(), &seal("s"), at(stamp), MOST)
    }

    #[test]
    fn all_comes_back_with_its_age() {
        let folder = Folder::new();
        assert!(read_at(&folder, WRITTEN).unwrap().is_none(), "there is no file");
        let length = fill(&folder, 100, 10_000);
        assert_eq!(std::fs::metadata(folder.file()).unwrap().len(), length);
        let found = read_at(&folder, stamp(5, 1_030, 100_030)).unwrap().unwrap();
        assert_eq!((found.facts, found.entries.len()), (facts(), 100));
        let ((question, content), entry) = &found.entries[7];
        assert_eq!((*question, *content), (Question::from_bytes([7; 32]), Content(3)));
        assert_eq!(entry.answer.bytes(), vec![7; 10_000]);
        let now = 1_000_000 * SECOND;
        assert_eq!((entry.age(now), entry.expires - now), (40 * SECOND, 60 * SECOND));
        let names: Vec<_> = std::fs::read_dir(&folder.0).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing else is left");
        fill(&folder, 0, 0);
        assert!(read_at(&folder, WRITTEN).unwrap().unwrap().entries.is_empty());
    }

    #[test]
    fn a_clock_that_was_set_makes_nothing_live_longer() {
        let folder = Folder::new();
        fill(&folder, 1, 10);
        let age = |now: Stamp| {
            let found = read_at(&folder, now).unwrap().unwrap();
            found.entries.first().map(|(_, entry)| entry.age(1_000_000 * SECOND))
        };
        let day = WRITTEN.day;
        // While the machine runs, its uptime counts, whatever the clock says.
        for set in [day - HOUR, day, day + HOUR] {
            assert_eq!(age(Stamp { up: 1_050 * SECOND, day: set, ..WRITTEN }), Some(60 * SECOND));
            assert_eq!(age(Stamp { up: 1_190 * SECOND, day: set, ..WRITTEN }), None);
        }
        // After a restart of the machine, the clock does, and the uptime at least.
        assert_eq!(age(stamp(6, 20, 100_050)), Some(60 * SECOND));
        assert_eq!(age(stamp(6, 100, 100_050)), Some(110 * SECOND));
        assert_eq!(age(stamp(6, 20, 100_000 + 3600)), None);
        for future in [stamp(6, 20, 99_999), stamp(5, 999, 100_000), stamp(0, 20, 96_400)] {
            assert!(matches!(read_at(&folder, future), Err(Refused::FromTheFuture)));
        }
    }

    #[test]
    fn a_file_that_is_not_whole_gives_nothing() {
        let folder = Folder::new();
        fill(&folder, 60, 10_000);
        let whole = std::fs::read(folder.file()).unwrap();
        for length in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
            std::fs::write(folder.file(), &whole[..length]).unwrap();
            let found = read_at(&folder, WRITTEN);
            assert!(matches!(found, Err(Refused::Unverified)), "{length}: {found:?}");
        }
        for place in (0..whole.len()).step_by(4_999).chain(0..40) {
            let mut changed = whole.clone();
            changed[place] ^= 1;
            std::fs::write(folder.file(), &changed).unwrap();
            assert!(read_at(&folder, WRITTEN).is_err(), "{place}");
        }
        std::fs::write(folder.file(), [&whole[..], &whole[..]].concat()).unwrap();
        assert!(matches!(read_at(&folder, WRITTEN), Err(Refused::Unverified)));
    }

    #[test]
    fn a_file_of_another_key_form_or_length_gives_nothing() {
        let folder = Folder::new();
        let length = fill(&folder, 3, 100);
        let other = read(&folder.file(), &seal("t"), at(WRITTEN), MOST);
        assert!(matches!(other, Err(Refused::Unverified)));
        let long = read(&folder.file(), &seal("s"), at(WRITTEN), length - 1);
        assert!(matches!(long, Err(Refused::TooLong(found)) if found == length));
        assert!(read(&folder.file(), &seal("s"), at(WRITTEN), length).is_ok());
        std::fs::write(folder.file(), b"FBCACHE2 and so on").unwrap();
        assert!(matches!(read_at(&folder, WRITTEN), Err(Refused::OtherForm)));
        // A length that the file does not have.
        let huge = [&FORM[..], &[0; ID], &u32::MAX.to_le_bytes(), b"x"].concat();
        std::fs::write(folder.file(), huge).unwrap();
        assert!(matches!(read_at(&folder, WRITTEN), Err(Refused::Unverified)));
        std::fs::remove_file(folder.file()).unwrap();
        std::fs::create_dir(folder.file()).unwrap();
        assert!(matches!(read_at(&folder, WRITTEN), Err(Refused::OtherForm)));
    }

    #[test]
    fn two_that_are_written_at_once_do_not_spoil_each_other() {
        let folder = Folder::new();
        let other = (0..50).map(|number| kept(number, 10_000));
        // The second one takes its place while the first is written.
        let meanwhile = (0..50).map(|number| {
            if number == 25 {
                fill(&folder, 7, 10_000);
            }
            kept(number, 10_000)
        });
        let written = |entries: &mut dyn Iterator<Item = Kept>| {
            write(&folder.file(), &seal("s"), at(WRITTEN), &[], entries, |place| {
                assert!(read_at(&folder, WRITTEN).is_ok());
                place()
            })
        };
        for entries in [&mut { other } as &mut dyn Iterator<Item = Kept>, &mut { meanwhile }] {
            written(entries).unwrap();
            assert_eq!(read_at(&folder, WRITTEN).unwrap().unwrap().entries.len(), 50);
        }
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_file_that_can_not_be_written_leaves_the_former_one() {
        let folder = Folder::new();
        fill(&folder, 3, 100);
        let path = folder.file();
        let entries = || (0..1).map(|number| kept(number, 10));
        let refuse = |_: &dyn Fn() -> io::Result<()>| Err(ErrorKind::Interrupted.into());
        assert!(write(&path, &seal("s"), at(WRITTEN), &[], entries(), refuse).is_err());
        let nowhere = folder.0.join("no folder/answers");
        let place = |place: &dyn Fn() -> io::Result<()>| place();
        assert!(write(&nowhere, &seal("s"), at(WRITTEN), &[], entries(), place).is_err());
        assert_eq!(read_at(&folder, WRITTEN).unwrap().unwrap().entries.len(), 3);
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1);
    }
}
