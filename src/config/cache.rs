//! The response cache: its memory, and which routes use it.

use super::check::HeaderNames;
use forebay_config::form::{any, bytes, one_of, positive};
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
        /// A longer answer is not kept.
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
