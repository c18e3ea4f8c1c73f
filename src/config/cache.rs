//! The response cache: its memory, and which routes use it. The store behind it has a file of its own.

use super::check::HeaderNames;
use super::shared_store::{self, SharedStore};
use forebay_cache::sealed::{MIN_SECRET, Secret};
use forebay_config::file::read_bytes;
use forebay_config::form::{any, bytes, one_of, optional, path_in_file, positive};
use forebay_config::{Section, Table};
use http::HeaderName;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

forebay_config::section! {
    /// The memory of the response cache. Which answers are kept is said by the routes, see [route.cache].
    pub struct CacheMemory {
        /// Memory for kept answers of all routes. Answers that are asked for again stay in it, those that
        /// are asked for once make room. It is taken only as answers come.
        memory: u64 = 256 * MIB, bytes();
        /// A file with a secret of at least 32 bytes, such as `openssl rand -hex 32` prints: what leaves the
        /// process is sealed with keys from it. Required with [cache.shared], where all proxies that share a
        /// store have the same one. Changes need a restart. Default: no secret.
        key_file: Option<PathBuf> = None, optional(path_in_file()), shown "\"tls/example.secret\"";
        /// Whether what leaves the process is encrypted as well, with keys from the same secret. It is sealed in any
        /// case: what others write is never given to a client.
        encrypt: bool = false, any();
        /// A folder in which the kept answers outlive a restart or an upgrade; it is made if it is missing. They are
        /// written to a file there now and then and when the process is told to stop, and are as old afterwards
        /// as they are. Without `key_file`, a secret is made in the folder. Changes need a restart. Default: memory
        /// is empty after a restart.
        persist: Option<PathBuf> = None, optional(path_in_file()), shown "\"/var/lib/forebay/cache\"";
        /// Time between two writes of that file.
        persist_interval: Duration = Duration::from_secs(300), positive();
    }
    beside {
        /// The secret in the file.
        secret: Option<CacheSecret> = None;
        /// The store that is shared with other proxies.
        shared: Option<SharedStore> = None;
    }
}

impl CacheMemory {
    /// Reads the table, the tables in it, and the key file.
    pub(super) fn read_checked(table: &Table<'_, '_>) -> Self {
        let mut keys = Self::read(table);
        keys.secret = keys.key_file.as_deref().and_then(|file| secret(table, file));
        if let Some(shared) = table.table("shared") {
            if !table.has("key_file") {
                let message = "expected a file with a secret beside [cache.shared], found none";
                table.note(shared.span(), "key_file", message);
            }
            keys.shared = shared_store::read(&shared, keys.encrypt);
        }
        if !table.has("persist") {
            table.refuse("persist_interval", "persist");
        }
        keys
    }
}

/// The secret of a key file. One that can't be used is noted.
fn secret(table: &Table<'_, '_>, file: &Path) -> Option<CacheSecret> {
    let span = table.place_of("key_file")?;
    // Of a path that is wrong there is no more to say.
    if file.as_os_str().is_empty() {
        return None;
    }
    let note = |found: String| {
        let expected = format!("expected a file with at least {MIN_SECRET} bytes");
        table.note(span, "key_file", format!("{expected}, found {}{found}", file.display()));
    };
    match read_bytes(file) {
        Ok(bytes) => {
            let bytes = bytes.trim_ascii();
            if bytes.len() < MIN_SECRET {
                note(format!(" with {}", bytes.len()));
                return None;
            }
            Some(CacheSecret(Secret::new(bytes)))
        }
        Err(error) => {
            note(format!(": {error}"));
            None
        }
    }
}

/// A secret, which is never shown. All are equal: what matters for a reload is the file that it is from.
#[derive(Clone)]
pub struct CacheSecret(pub Secret);

impl fmt::Debug for CacheSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheSecret")
    }
}

impl PartialEq for CacheSecret {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

forebay_config::section! {
    /// Keeps answers of this route's inferences, and answers equal ones from memory. Default: nothing is
    /// kept. Two requests are equal if they ask the same variant, model and version for the same outputs of
    /// the same tensors with the same parameters, whether as JSON, binary tensors or gRPC. Equal requests
    /// that come at the same time are one inference. Answers of Forebay's workers are bound to the content
    /// of the model: one that is loaded again from other files is asked again. Requests of other kinds pass
    /// by.
    pub struct RouteCache {
        /// Time for which an answer is kept; up to a tenth less, so that answers that came together do not
        /// all go together.
        ttl: Duration = Duration::from_secs(600), positive();
        /// An answer that is longer, as it comes from its endpoint, is not kept. The proxy holds an answer
        /// of up to this length back until it is whole.
        max_entry: u64 = MIB, bytes();
        /// "shared": clients share answers. "client": each client, by its address or by
        /// `limits.client_header`, gets only its own.
        scope: CacheScope = CacheScope::default(), one_of(CacheScope::NAMES);
        /// Keeps the rows of batches one by one, too: of a batch only those rows are computed that are not
        /// known. For models whose rows are independent, which Forebay's workers state; of other servers it
        /// is the operator's word.
        rows: bool = false, any();
        /// Headers of a request that change its answer: requests whose values differ are not equal. A
        /// request with `authorization` is passed by unless that header is named here or the scope is
        /// "client". Default: none.
        vary: Vec<HeaderName> = Vec::new(), HeaderNames, shown "[\"x-tenant\"]";
        /// A word for the content of models whose server does not state it, as Forebay's workers do. Change
        /// it when a model was exchanged: answers under another word are not given any more.
        epoch: String = String::new(), any();
        /// Time after `ttl` for which a kept answer is still given while the model is asked for a new one,
        /// beside the request and with the lowest priority. 0: none.
        stale_while_revalidate: Duration = Duration::ZERO, any();
        /// Time after `ttl` for which a kept answer is still given if the model gives none: before a fallback
        /// variant is asked. 0: none.
        stale_if_error: Duration = Duration::ZERO, any();
        /// Time for which a model that no worker of Forebay in the pool knows is answered with 404 without
        /// asking again. A worker that loads a model is asked at once, and other servers are always asked.
        /// 0: none.
        negative_ttl: Duration = Duration::ZERO, any();
        /// Whether caches between clients and the proxy, such as a CDN, may keep answers for all: answers to
        /// GET then have `cache-control: public` and the time that is left. Needs scope "shared".
        public: bool = false, any();
    }
}

impl RouteCache {
    /// Reads the table, and checks its keys together.
    pub(super) fn read_checked(table: &Table<'_, '_>) -> Self {
        let keys = Self::read(table);
        if keys.public && keys.scope == CacheScope::Client {
            let span = table.place_of("public").unwrap_or(table.span());
            let message = "expected scope = \"shared\" beside public = true, found \"client\"";
            table.note(span, "public", message);
        }
        keys
    }

    /// Time for which an answer is kept beyond its time to live.
    pub fn stale(&self) -> Duration {
        self.stale_while_revalidate.max(self.stale_if_error)
    }
}

/// The clients that share answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheScope {
    /// All of them.
    #[default]
    Shared,
    /// None: each has its own.
    Client,
}

impl CacheScope {
    /// Names in the configuration.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("shared", Self::Shared), ("client", Self::Client)];
}
