//! The file of the cache, so that a restart or an upgrade does not begin with nothing.
//!
//! Whatever is wrong with it, the cache starts empty, with one line in the log that says why. A purge takes the file as
//! well, or the next process would have again what was to be forgotten.

use super::time::instants;
use crate::config::CacheMemory;
use anyhow::{Context, Result, bail};
use forebay_cache::sealed::{MIN_SECRET, Seal, Secret};
use forebay_cache::snapshot::{self, Kept, KnownFact, Snapshot, Stamp};
use forebay_config::file::read_bytes;
use forebay_protocol::metric::proxy as metric;
use rustls::crypto::ring;
use serde::Serialize;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
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
        Some(Self {
            folder,
            secret,
            seal,
            interval: settings.persist_interval,
            is_read: AtomicBool::new(false),
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

    /// Writes the file.
    pub(super) fn write(&self, facts: &[KnownFact], entries: impl Iterator<Item = Kept>) {
        if !self.is_read() {
            return;
        }
        let purges = *lock(&self.purges);
        let takes_place = |place: &dyn Fn() -> io::Result<()>| {
            let unchanged = lock(&self.purges);
            // It may hold answers that were purged meanwhile.
            if *unchanged == purges { place() } else { Err(ErrorKind::Interrupted.into()) }
        };
        let now = (instants(), stamp());
        let written = snapshot::write(&self.path(), &self.seal, now, facts, entries, takes_place);
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
    let mut random = [0; MIN_SECRET];
    let provider = ring::default_provider();
    provider.secure_random.fill(&mut random).ok().context("no random numbers")?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let words: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            file.write_all(words.as_bytes()).and_then(|()| file.sync_all()).context(name)?;
            Ok(Secret::new(words.as_bytes()))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let bytes = read_bytes(&path).context(name.clone())?;
            let secret = bytes.trim_ascii();
            if secret.len() < MIN_SECRET {
                bail!("{name}: expected at least {MIN_SECRET} bytes, found {}", secret.len());
            }
            Ok(Secret::new(secret))
        }
        Err(error) => Err(error).context(name),
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
