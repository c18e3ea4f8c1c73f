//! The response cache: its memory, and which routes use it.

use super::check::HeaderNames;
use forebay_config::form::{any, bytes, one_of, positive};
use forebay_config::{Section, Table};
use http::HeaderName;
use std::time::Duration;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

forebay_config::section! {
    /// The memory of the response cache. Which answers are kept is said by the routes, see [route.cache].
    pub struct CacheMemory {
        /// Memory for kept answers of all routes. Answers that are asked for again stay in it, those that
        /// are asked for once make room. It is taken only as answers come.
        memory: u64 = 256 * MIB, bytes();
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
