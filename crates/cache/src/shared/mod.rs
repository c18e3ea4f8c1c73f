//! A store that several proxies share, behind the memory of each: Redis, Valkey or memcached.
//!
//! An answer that one proxy has is then a hit at the others, and after a restart. The store may be slow, away, full, or
//! in the hands of someone who writes into it what they like; none of that may cost a request more than a few
//! milliseconds, or give it a wrong answer. So a look-up has a short time-out and a [`breaker`], answers are written
//! behind the request through a bounded queue, and values are [sealed](crate::sealed).
//!
//! Values lie under an [`epoch`], a number that lies in the store as well. A purge replaces it by a higher one: whatever lies
//! under another one is never asked for again, and goes when its time is up. If the epoch is lost, so is all that lies under
//! it.
//!
//! [`lane`] keeps a connection up, [`wire`] knows the bytes on it.

mod breaker;
mod epoch;
mod lane;
mod wire;

pub use lane::{Dial, Dialling, Stream};
pub use wire::Protocol;

use crate::contents::Content;
use crate::question::Question;
use crate::record::{self, Instants, Unusable};
use crate::sealed::{self, Seal, Secret};
use crate::store::Entry;
use breaker::Breaker;
use lane::{Call, Failure, Lane, Store};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use wire::{Due, Reply, Set};

/// Answers that wait to be written, at most; their bytes have a bound of their own.
const MAX_QUEUED: usize = 4096;
/// Interval at which the epoch is read again.
const REFRESH: Duration = Duration::from_secs(1);
/// Interval of probes while the store is not asked.
const PROBE: Duration = Duration::from_millis(250);
/// An epoch that was not read for so long may have been replaced.
const EPOCH_LASTS: Duration = Duration::from_secs(10);
/// Time for which a purge waits for the store.
const MAX_PURGE: Duration = Duration::from_secs(1);
/// Time for which memory has an answer of the store, at most. Clocks of proxies differ: by that of a proxy which is
/// behind, an answer lives longer than it should. The store counts the time by itself, so it is asked again.
const IN_MEMORY: Duration = Duration::from_secs(60);
/// Bytes of a record beside the answer and its names.
const RECORD: usize = 256;

/// The settings of a shared store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its protocol.
    pub protocol: Protocol,
    /// User and password; Redis takes an empty user.
    pub login: Option<(String, String)>,
    /// The database, of Redis.
    pub database: u32,
    /// The first part of all keys: printable, without spaces.
    pub prefix: String,
    /// Time that a look-up may take.
    pub timeout: Duration,
    /// Bytes of answers that wait to be written.
    pub queue: u64,
    /// Bytes of the longest answer that is stored or taken.
    pub max_answer: usize,
    /// Whether values are encrypted.
    pub encrypts: bool,
}

macro_rules! outcomes {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $outcome:ident $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $outcome,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$outcome,)*];

            /// The word in metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$outcome => $word,)* }
            }
        }
    };
}

outcomes! {
    /// The outcome of a look-up.
    Got {
        /// There was an answer.
        Hit "hit",
        /// There was none.
        Miss "miss",
        /// The store did not answer in time.
        Late "timeout",
        /// There was no connection, or it broke.
        Away "away",
        /// Too many look-ups were under way.
        Busy "busy",
        /// The store refused.
        Refused "refused",
        /// The value was not sealed for this question.
        Unverified "unverified",
        /// The value's time was over, or it came from the future.
        Over "over",
        /// The store was not asked, because it did not answer before.
        Skipped "skipped",
    }
}

outcomes! {
    /// The outcome of a write.
    Put {
        /// The store has it.
        Stored "stored",
        /// The store has no room.
        Full "full",
        /// The store refused.
        Refused "refused",
        /// There was no connection, or it broke.
        Away "away",
        /// Too many answers waited to be written.
        Dropped "dropped",
        /// The store was not asked, because it did not answer before.
        Skipped "skipped",
    }
}

/// An answer on its way to the store.
struct Write {
    key: String,
    at: (Question, Content),
    entry: Arc<Entry>,
}

/// The shared store, as one proxy sees it.
pub struct Tier {
    settings: Settings,
    store: Store,
    seal: Seal,
    /// For look-ups, so that no long value is before them.
    reads: Lane,
    writes: Lane,
    breaker: Breaker,
    /// 0: not known.
    epoch: AtomicU64,
    /// Whether the epoch in the store is still to be replaced by this one's.
    is_purging: watch::Sender<bool>,
    /// The highest epoch that was ever known. Held while either of these two is changed.
    highest: std::sync::Mutex<u64>,
    wake: Notify,
    queue: mpsc::Sender<Write>,
    queued: Mutex<mpsc::Receiver<Write>>,
    queued_bytes: Arc<AtomicU64>,
    got: Counts,
    put: Arc<Counts>,
}

#[derive(Default)]
struct Counts([AtomicU64; 9]);

impl Counts {
    fn add(&self, place: usize) {
        self.0[place].fetch_add(1, Relaxed);
    }
}

/// The state of the store, for operators.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct State {
    /// Whether it is asked.
    pub asked: bool,
    /// Whether there are connections.
    pub connected: bool,
    /// Why there are none, or why the last one ended.
    pub trouble: Option<String>,
    /// Times that it was given up.
    pub given_up: u64,
    /// Bytes of answers that wait to be written.
    pub queued_bytes: u64,
}

impl Tier {
    /// A tier on the store that `dial` connects to. Its tasks are [`Tier::read`], [`Tier::write`],
    /// [`Tier::send_queued`] and [`Tier::keep`], which the caller runs.
    pub fn new(settings: Settings, secret: &Secret, dial: Dial) -> Self {
        let store = Store {
            protocol: settings.protocol,
            login: settings.login.clone(),
            database: settings.database,
            max_value: settings.max_answer + RECORD + 1024 + sealed::OVERHEAD,
            dial,
        };
        let (queue, queued) = mpsc::channel(MAX_QUEUED);
        Self {
            store,
            seal: Seal::new(secret, "shared store", settings.encrypts),
            settings,
            reads: Lane::new(),
            writes: Lane::new(),
            breaker: Breaker::open(),
            epoch: AtomicU64::new(0),
            is_purging: watch::Sender::new(false),
            highest: std::sync::Mutex::default(),
            wake: Notify::new(),
            queue,
            queued: Mutex::new(queued),
            queued_bytes: Arc::default(),
            got: Counts::default(),
            put: Arc::default(),
        }
    }

    /// Keeps the connection for look-ups up.
    pub async fn read(self: Arc<Self>) {
        self.reads.run(&self.store).await;
    }

    /// Keeps the connection for writes up.
    pub async fn write(self: Arc<Self>) {
        self.writes.run(&self.store).await;
    }

    /// Seals the answers that wait to be written. `now` is asked for the time.
    pub async fn send_queued(self: Arc<Self>, now: fn() -> Instants) {
        let mut queued = self.queued.lock().await;
        while let Some(write) = queued.recv().await {
            self.send(write, now()).await;
        }
    }

    /// Keeps the epoch known, and asks the store whether it answers while it is not asked otherwise. `now` is asked
    /// for the time.
    pub async fn keep(self: Arc<Self>, now: fn() -> Instants) {
        let mut known = Instant::now();
        loop {
            match self.refresh(now().day).await {
                Ok(()) => {
                    known = Instant::now();
                    self.breaker.close();
                }
                // The store was not asked.
                Err(Failure::Busy) => {}
                Err(Failure::Away) => self.breaker.note(false),
            }
            if known.elapsed() > EPOCH_LASTS {
                self.forget_epoch();
            }
            let is_purging = *self.is_purging.borrow();
            let pause = if self.breaker.is_open() || is_purging { PROBE } else { REFRESH };
            let _ = timeout(pause, self.wake.notified()).await;
        }
    }

    /// The answers to these questions, as far as the store has them. It takes the time-out at most, and a little.
    pub async fn get(&self, keys: &[(Question, Content)], now: Instants) -> Vec<Option<Entry>> {
        let Some(epoch) = self.epoch() else {
            return keys.iter().map(|_| self.count(Got::Skipped)).collect();
        };
        let ask = |at: &(Question, Content)| {
            let key = self.key(epoch, *at);
            let mut bytes = Vec::with_capacity(key.len() + 32);
            self.store.protocol.get(&mut bytes, &key);
            (key, *at, self.ask(bytes, Due::Value))
        };
        let asked: Vec<_> = keys.iter().map(ask).collect();
        let deadline = Instant::now() + self.settings.timeout;
        let mut found = Vec::with_capacity(keys.len());
        let (mut has_answered, mut was_asked) = (true, false);
        for (key, at, answer) in asked {
            let (got, entry) = match timeout_at(deadline, answer).await {
                Ok(Ok(Ok(Reply::Value(Some(value))))) => self.opened(&key, at, value.into(), now),
                Ok(Ok(Ok(Reply::Value(None)))) => (Got::Miss, None),
                Ok(Ok(Ok(Reply::Refused(_) | Reply::Full | Reply::Done(_)))) => {
                    (Got::Refused, None)
                }
                Ok(Ok(Err(Failure::Busy))) => (Got::Busy, None),
                Ok(Ok(Err(Failure::Away)) | Err(_)) => (Got::Away, None),
                Err(_) => (Got::Late, None),
            };
            // That this proxy asks too much at once says nothing about the store.
            was_asked |= got != Got::Busy;
            has_answered &= !matches!(got, Got::Late | Got::Away | Got::Refused);
            self.count(got);
            found.push(entry);
        }
        if was_asked {
            self.breaker.note(has_answered);
        }
        found
    }

    /// Has an answer written, soon and if possible.
    pub fn put(&self, at: (Question, Content), entry: Arc<Entry>) {
        let Some(epoch) = self.epoch() else { return self.put.add(Put::Skipped as usize) };
        let size = entry.size();
        if entry.answer.len() > self.settings.max_answer {
            return self.put.add(Put::Dropped as usize);
        }
        if self.queued_bytes.fetch_add(size, Relaxed) + size > self.settings.queue {
            self.queued_bytes.fetch_sub(size, Relaxed);
            return self.put.add(Put::Dropped as usize);
        }
        let write = Write { key: self.key(epoch, at), at, entry };
        if self.queue.try_send(write).is_err() {
            self.queued_bytes.fetch_sub(size, Relaxed);
            self.put.add(Put::Dropped as usize);
        }
    }

    /// Makes all that is in the store worthless, for every proxy. Returns whether the store has noted it; if not, this proxy
    /// tries until it has. `day`: the time of day, since 1970.
    pub async fn purge(&self, day: Duration) -> bool {
        if self.replace_epoch(day).is_none() {
            return false;
        }
        self.wake.notify_one();
        let mut purging = self.is_purging.subscribe();
        timeout(MAX_PURGE, purging.wait_for(|is| !is)).await.is_ok()
    }

    /// Number of look-ups, by outcome.
    pub fn gets(&self) -> impl Iterator<Item = (Got, u64)> {
        Got::ALL.iter().map(|got| (*got, self.got.0[*got as usize].load(Relaxed)))
    }

    /// Number of writes, by outcome.
    pub fn puts(&self) -> impl Iterator<Item = (Put, u64)> {
        Put::ALL.iter().map(|put| (*put, self.put.0[*put as usize].load(Relaxed)))
    }

    /// Its state.
    pub fn state(&self) -> State {
        State {
            asked: self.epoch().is_some(),
            connected: self.reads.is_up() && self.writes.is_up(),
            trouble: self.reads.trouble().or_else(|| self.writes.trouble()),
            given_up: self.breaker.opened(),
            queued_bytes: self.queued_bytes.load(Relaxed),
        }
    }

    /// The epoch, if the store is to be asked.
    fn epoch(&self) -> Option<u64> {
        let epoch = self.epoch.load(Relaxed);
        (epoch != 0 && !self.breaker.is_open()).then_some(epoch)
    }

    /// Notes the epoch that the store has, unless this proxy is replacing it, or knows a higher one, which is written again.
    fn learn_epoch(&self, stated: u64, day: Duration) {
        let mut highest = self.highest();
        if *self.is_purging.borrow() {
            return;
        }
        if stated < *highest && epoch::is_plausible(*highest, day) {
            // It is from before a purge.
            self.is_purging.send_replace(true);
        } else {
            *highest = stated;
        }
        self.epoch.store(*highest, Relaxed);
    }

    /// Asks for nothing any more, until the epoch is known again.
    fn forget_epoch(&self) {
        let _changing = self.highest();
        if !*self.is_purging.borrow() {
            self.epoch.store(0, Relaxed);
        }
    }

    /// Has the epoch in the store replaced by a new one; `None`: the system has no random numbers, without which
    /// nothing is sealed or read either.
    fn replace_epoch(&self, day: Duration) -> Option<()> {
        let random = sealed::random()?;
        let mut highest = self.highest();
        *highest = epoch::new(*highest, day, random);
        self.epoch.store(*highest, Relaxed);
        self.is_purging.send_replace(true);
        Some(())
    }

    fn highest(&self) -> MutexGuard<'_, u64> {
        self.highest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, epoch: u64, (question, content): (Question, Content)) -> String {
        let hash = blake3::Hash::from(*question.as_bytes()).to_hex();
        format!("{}{epoch:016x}:{hash}{:016x}", self.settings.prefix, content.0)
    }

    fn count(&self, got: Got) -> Option<Entry> {
        self.got.add(got as usize);
        None
    }

    /// The entry that a value holds, if it is one for this question.
    fn opened(
        &self,
        key: &str,
        at: (Question, Content),
        mut value: Vec<u8>,
        now: Instants,
    ) -> (Got, Option<Entry>) {
        let Some(record) = self.seal.open(key.as_bytes(), &mut value) else {
            return (Got::Unverified, None);
        };
        match record::read(record, now) {
            Ok((question, content, entry)) if (question, content) == at => {
                match entry.is_fresh(now.steady) {
                    true => (Got::Hit, Some(for_a_while(entry, now.steady))),
                    false => (Got::Over, None),
                }
            }
            Err(Unusable::Over) => (Got::Over, None),
            Ok(_) | Err(Unusable::Malformed) => (Got::Unverified, None),
        }
    }

    /// Sends a request; its answer comes to the receiver.
    fn ask(&self, bytes: Vec<u8>, due: Due) -> oneshot::Receiver<Result<Reply, Failure>> {
        let (sender, receiver) = oneshot::channel();
        // One who does not wait any more needs no answer.
        let answer = Box::new(move |reply| drop(sender.send(reply)));
        self.reads.call(Call { bytes, due, answer });
        receiver
    }

    /// Writes an answer.
    async fn send(&self, write: Write, now: Instants) {
        let (size, counts) = (write.entry.size(), Arc::clone(&self.put));
        let queued = Arc::clone(&self.queued_bytes);
        let done = move |put: Put| {
            queued.fetch_sub(size, Relaxed);
            counts.add(put as usize);
        };
        let ttl = write.entry.expires.saturating_sub(now.steady);
        let fill = |value: &mut Vec<u8>| record::write(value, write.at, &write.entry, now);
        let value = self.seal.seal(write.key.as_bytes(), fill);
        let Some(value) = value.filter(|_| !ttl.is_zero()) else { return done(Put::Dropped) };
        let mut bytes = Vec::with_capacity(value.len() + 128);
        let set = Set { key: &write.key, value: &value, ttl: Some(ttl), only_new: false };
        self.store.protocol.set(&mut bytes, set, now.day);
        let answer = Box::new(move |reply: Result<Reply, Failure>| {
            done(match reply {
                Ok(Reply::Done(_)) => Put::Stored,
                Ok(Reply::Full) => Put::Full,
                Ok(_) => Put::Refused,
                Err(_) => Put::Away,
            });
        });
        self.writes.call_later(Call { bytes, due: Due::Word, answer }).await;
    }

    /// Reads the epoch, or sets it where there is none or a purge has replaced it.
    ///
    /// # Errors
    /// The store has not answered in time.
    async fn refresh(&self, day: Duration) -> Result<(), Failure> {
        let key = format!("{}epoch", self.settings.prefix);
        if *self.is_purging.borrow() {
            let epoch = self.epoch.load(Relaxed);
            self.set_epoch(&key, epoch, false).await?;
            let _changing = self.highest();
            // Another purge may have come meanwhile.
            if self.epoch.load(Relaxed) == epoch {
                self.is_purging.send_replace(false);
            }
        }
        let mut bytes = Vec::new();
        self.store.protocol.get(&mut bytes, &key);
        let stated = match self.answered(self.settings.timeout, bytes, Due::Value).await? {
            Reply::Value(Some(value)) => match epoch::parse(&value, day) {
                Some(epoch) => epoch,
                None => {
                    tracing::warn!("{key} in the shared store is no epoch: all there is purged");
                    return self.replace_epoch(day).ok_or(Failure::Away);
                }
            },
            Reply::Value(None) => {
                let random = sealed::random().ok_or(Failure::Away)?;
                let new = epoch::new(*self.highest(), day, random);
                // If another proxy was sooner, the next look has its epoch.
                match self.set_epoch(&key, new, true).await? {
                    true => new,
                    false => return Err(Failure::Away),
                }
            }
            _ => return Err(Failure::Away),
        };
        self.learn_epoch(stated, day);
        Ok(())
    }

    /// Writes the epoch; whether it is there now.
    ///
    /// # Errors
    /// The store does not say.
    async fn set_epoch(&self, key: &str, epoch: u64, only_new: bool) -> Result<bool, Failure> {
        let value = epoch::write(epoch);
        let mut bytes = Vec::new();
        let set = Set { key, value: value.as_bytes(), ttl: None, only_new };
        self.store.protocol.set(&mut bytes, set, Duration::ZERO);
        match self.answered(MAX_PURGE, bytes, Due::Word).await? {
            Reply::Done(is_set) => Ok(is_set),
            _ => Err(Failure::Away),
        }
    }

    /// The answer to a request, if it comes within this time.
    async fn answered(&self, within: Duration, bytes: Vec<u8>, due: Due) -> Result<Reply, Failure> {
        match timeout(within, self.ask(bytes, due)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) | Err(_) => Err(Failure::Away),
        }
    }
}

/// The entry for as long as memory may have it. It is gone after that, not old, so that the store is asked again.
fn for_a_while(entry: Entry, now: Duration) -> Entry {
    let until = now.saturating_add(IN_MEMORY);
    if entry.expires <= until {
        return entry;
    }
    Entry { expires: until, gone: until, ..entry }
}
