//! The file of the cache, so that a restart or an upgrade does not begin with nothing.
//!
//! Whatever is wrong with it, the cache starts empty, with one line in the log that says why. A purge takes the file as
//! well, or the next process would have again what was to be forgotten.

use super::time::instants;
use crate::config::CacheMemory;
use anyhow::{Context, Result, bail};
use forebay_cache::new_file::{self, NewFile};
use forebay_cache::sealed::{MIN_SECRET, Seal, Secret};
use forebay_cache::snapshot::{self, Kept, KnownFact, Snapshot, Stamp};
use forebay_config::file::read_bytes;
use forebay_protocol::metric::proxy as metric;
use rustls::crypto::ring;
use serde::Serialize;
use std::fs::DirBuilder;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Name of the file in its folder.
const ANSWERS: &str = "answers";
/// Name of the file with a secret, where the configuration names none.
const SECRET: &str = "secret";

/// The file of the cache.
pub(super) struct Persistence {
    folder: PathBuf,
    secret: Secret,
    seal: Seal,
    interval: Duration,
    /// Whether it was read: before that, it is not replaced.
    is_read: AtomicBool,
    /// Held while it is written.
    writing: Mutex<()>,
    /// Number of purges. Held while the file takes its place, and while its answers do.
    purges: Mutex<u64>,
    state: Mutex<State>,
}

/// The state of the file, for operators.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct State {
    /// Answers that were taken from it at the start.
    taken: usize,
    /// Its length in bytes; null before it was written.
    bytes: Option<u64>,
    /// Why it was not read or written the last time.
    trouble: Option<String>,
}

impl Persistence {
    /// The one in the folder that the settings name; `None`: they name none, or it can't be used, which is logged.
    pub(super) fn open(settings: &CacheMemory) -> Option<Self> {
        let folder = settings.persist.clone()?;
        let secret = match &settings.secret {
            Some(secret) => Ok(secret.0.clone()),
            None => own_secret(&folder),
        };
        let secret = secret
            .map_err(|error| tracing::warn!("the cache is not kept over restarts: {error:#}"))
            .ok()?;
        let seal = Seal::new(&secret, "snapshot", settings.encrypt);
        let left_over = [ANSWERS, SECRET].map(|it| new_file::remove_left_over(&folder.join(it)));
        if left_over != [0, 0] {
            let files: usize = left_over.iter().sum();
            tracing::info!(files, "{}: removed what was left of a write", folder.display());
        }
        Some(Self {
            folder,
            secret,
            seal,
            interval: settings.persist_interval,
            is_read: AtomicBool::new(false),
            writing: Mutex::default(),
            purges: Mutex::default(),
            state: Mutex::default(),
        })
    }

    /// The secret with which its questions are hashed.
    pub(super) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Its state.
    pub(super) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// Deletes the file.
    pub(super) fn purge(&self) {
        let mut purges = lock(&self.purges);
        *purges += 1;
        match std::fs::remove_file(self.path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!("{}: {error}: a restart may bring purged answers back", self.name());
            }
            _ => {}
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(ANSWERS)
    }

    fn name(&self) -> String {
        self.path().display().to_string()
    }

    /// Reads the file, and has its contents taken unless they were purged meanwhile. `memory`: bytes that the
    /// cache may have.
    pub(super) fn read(&self, memory: u64, take: impl FnOnce(Snapshot)) {
        let (began, purges) = (Instant::now(), *lock(&self.purges));
        let most = memory.saturating_add(memory / 4).saturating_add(1 << 20);
        let outcome = match snapshot::read(&self.path(), &self.seal, (instants(), stamp()), most) {
            Ok(None) => {
                tracing::info!("the cache starts empty: there is no {}", self.name());
                "none"
            }
            Ok(Some(found)) => {
                let unchanged = lock(&self.purges);
                let answers = found.entries.len();
                if *unchanged == purges {
                    take(found);
                    lock(&self.state).taken = answers;
                    let took = began.elapsed();
                    tracing::info!(answers, ?took, "the cache starts with {}", self.name());
                }
                "read"
            }
            Err(why) => {
                tracing::warn!("the cache starts empty: {}: {why}", self.name());
                lock(&self.state).trouble = Some(why.to_string());
                "refused"
            }
        };
        metric::CACHE_SNAPSHOTS.with([outcome]).increment(1);
        self.is_read.store(true, Relaxed);
    }

    /// Whether the file was read. Before that, it is not replaced.
    pub(super) fn is_read(&self) -> bool {
        self.is_read.load(Relaxed)
    }

    /// Time between two writes.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Writes the file with these `contents`, after a write that is under way.
    pub(super) fn write<Entries: Iterator<Item = Kept>>(
        &self,
        contents: impl FnOnce() -> (Vec<KnownFact>, Entries),
    ) {
        if !self.is_read() {
            return;
        }
        let _writing = lock(&self.writing);
        let purges = *lock(&self.purges);
        // Contents from before that number could have been purged since, unnoticed.
        let (facts, entries) = contents();
        let takes_place = |place: &dyn Fn() -> io::Result<()>| {
            let unchanged = lock(&self.purges);
            // It may hold answers that were purged meanwhile.
            if *unchanged == purges { place() } else { Err(ErrorKind::Interrupted.into()) }
        };
        let now = (instants(), stamp());
        let written = snapshot::write(&self.path(), &self.seal, now, &facts, entries, takes_place);
        let mut state = lock(&self.state);
        let outcome = match written {
            Ok(bytes) => {
                (state.bytes, state.trouble) = (Some(bytes), None);
                "written"
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => "purged",
            Err(error) => {
                tracing::warn!("the cache can't be written to {}: {error}", self.name());
                state.trouble = Some(error.to_string());
                "failed"
            }
        };
        metric::CACHE_SNAPSHOTS.with([outcome]).increment(1);
    }
}

/// The secret in the folder, which is made with it where there is none.
fn own_secret(folder: &Path) -> Result<Secret> {
    let path = folder.join(SECRET);
    let name = path.display().to_string();
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).context(folder.display().to_string());
        }
        _ => {}
    }
    if !path.exists() {
        make_secret(&path).context(name.clone())?;
    }
    let bytes = read_bytes(&path).context(name.clone())?;
    let secret = bytes.trim_ascii();
    if secret.len() < MIN_SECRET {
        let found = secret.len();
        bail!(
            "{name}: expected at least {MIN_SECRET} bytes, found {found}; delete it for a new one"
        );
    }
    Ok(Secret::new(secret))
}

/// Makes a file with a random secret, unless another process is sooner. A file with a part of one never has that
/// name: it would be in the way for good.
fn make_secret(path: &Path) -> Result<()> {
    let mut random = [0; MIN_SECRET];
    let provider = ring::default_provider();
    provider.secure_random.fill(&mut random).ok().context("no random numbers")?;
    let words: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let new = NewFile::create(path)?;
    new.file().write_all(words.as_bytes())?;
    new.file().sync_all()?;
    match new.link(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(new_file::sync_folder(path)?),
    }
}

/// This moment, as another process can compare it.
fn stamp() -> Stamp {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let digits: String = text("/proc/sys/kernel/random/boot_id").trim().replace('-', "");
    let boot = u128::from_str_radix(&digits, 16).unwrap_or(0);
    let uptime = text("/proc/uptime");
    let seconds = uptime.split(' ').next().and_then(|it| it.parse::<f64>().ok());
    let up = seconds.and_then(|it| Duration::try_from_secs_f64(it).ok());
    // Without an uptime, the time of day alone counts.
    Stamp {
        boot: if up.is_some() { boot } else { 0 },
        up: up.unwrap_or_default(),
        day: instants().day,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_never_in_part() {
        let name = format!("forebay-secret-{:032x}", fastrand::u128(..));
        let folder = std::env::temp_dir().join(name);
        let secrets: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(|| own_secret(&folder))).collect();
            makers.into_iter().map(|maker| maker.join().unwrap().unwrap().key("test")).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]), "all have the same one");
        assert_eq!(own_secret(&folder).unwrap().key("test"), secrets[0]);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
        std::fs::write(folder.join(SECRET), "").unwrap();
        let error = own_secret(&folder).err().unwrap().to_string();
        assert!(error.ends_with("found 0; delete it for a new one"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
