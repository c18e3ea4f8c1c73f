//! Routes: which requests they take, and the variants that answer.
//!
//! Most routes have one variant, their pool. So `pool = "NAME"` is enough for those, and tables are
//! needed only where there is more to say.

use super::check::{MAX_MODEL_NAME, Names};
use super::split::SplitKeyForm;
use super::{Pattern, Route, RouteCache, RouteRollout, Shadow, SplitKey, Variant};
use forebay_config::form::{
    any, each, nested, one_of, optional, positive, required, section_name, text, within,
};
use forebay_config::{NameOrTable, Section, Table};
use forebay_protocol::Priority;
use std::sync::Arc;
use std::time::Duration;

/// Priorities, by the words of the header.
const PRIORITIES: &[(&str, Priority)] = &[
    (Priority::High.as_str(), Priority::High),
    (Priority::Normal.as_str(), Priority::Normal),
    (Priority::Batch.as_str(), Priority::Batch),
];

forebay_config::section! {
    /// Routes: rules that send requests to a pool; the first match wins.
    pub(super) struct RouteKeys {
        /// Required, unique. The name in logs and metrics.
        name: String = String::new(), required(any()), shown "\"models\"";
        /// The models of the route: names, or prefixes that end in "*". Default: any, and paths without a
        /// model.
        models: Vec<String> = Vec::new(), each("the name of a model", |name: &String| !name.is_empty()),
            shown "[\"magika\", \"silero-*\"]";
        /// Prefixes of the paths of the route. Default: any.
        paths: Vec<String> = Vec::new(), each("a path that begins with /", |path: &String| path.starts_with('/')),
            shown "[\"/v2/\"]";
        /// The pool that answers. Required, unless the route has variants: see the next route.
        pool: Option<String> = None, optional(section_name("pool")), shown "\"models\"";
        /// Cheaper variants that answer if the pool can't: names of pools, or tables as [[route.variant]]
        /// below, but without a weight. They are tried in this order if the pool has no endpoint or a full
        /// queue, can't meet the deadline, or fails; never if it answered. The answer then has the header
        /// x-forebay-degraded. Default: none.
        fallback: () = (), nested("a list of names of pools and of tables of variants"),
            shown "[\"plain\", { name = \"small\", pool = \"local\", model = \"magika\", version = \"1\" }]";
        /// Priority of requests without the header x-request-priority: "high", "normal" or "batch". For
        /// inferences that are held in memory, Triton's parameters count, too, if they stand in the first 16
        /// KiB of JSON or in a gRPC message: `priority` (1: high, 2: normal, 3 and more: batch; 0: this
        /// key), and `timeout` in microseconds, as a deadline.
        priority: Priority = Priority::default(), one_of(PRIORITIES);
        /// Time limit of a request. A client may ask for less with x-request-deadline (milliseconds) or the
        /// body's `timeout` (see `priority` above), not for more.
        deadline: Duration = Duration::from_secs(30), positive();
        /// Whether answers name the endpoint that gave them (x-forebay-endpoint). Off by default: clients
        /// need not know your addresses.
        expose_endpoint: bool = false, any();
        /// Keeps each client with one variant of a route that is split: "client" (by its address, or by
        /// `limits.client_header`), { header = "x-user" }, or { cookie = "NAME", max_age = "30d" }, a cookie
        /// that the proxy sets. A weight that is raised moves clients to that variant only, and lowering it
        /// again moves the same ones back. Requests without the header are drawn at random. Default: every
        /// request is drawn at random.
        sticky: Option<SplitKey> = None, SplitKeyForm, shown "{ cookie = \"forebay-split\", max_age = \"30d\" }";
        /// Whether a request may ask for one of the route's variants by its name, in the header
        /// x-forebay-variant: for tests of a canary. Such requests are marked in the log (`assignment`), and
        /// no other variant or fallback answers them. Where this is off, the header is not looked at.
        allow_override: bool = false, any();
    }
}

forebay_config::section! {
    /// A variant, in place of the route's `pool`.
    pub(super) struct VariantKeys {
        /// Its name in x-forebay-variant, logs and metrics, unique in its route. Default: the name of its
        /// pool.
        name: Option<String> = None, optional(any()), shown "\"stable\"";
        /// Required. The pool that answers.
        pool: String = String::new(), required(section_name("pool")), shown "\"models\"";
        /// The model that is asked for in place of the client's, so that two models in one pool are two
        /// variants. Only requests whose model name the proxy can exchange (paths under /v2/models/,
        /// uncompressed ModelInfer messages) get such a variant; others are drawn from the rest. Default:
        /// the client's.
        model: Option<String> = None, optional(part_of_path()), shown "\"bert-distilled\"";
        /// The version that is asked for. Default: the client's, or with `model` that model's own default.
        version: Option<String> = None, optional(part_of_path()), shown "\"7\"";
    }
}

forebay_config::section! {
    /// The weight of a variant.
    pub(super) struct WeightKeys {
        /// Share of the route's requests, in thousandths. The weights of a route add up to 1000; a variant
        /// with 0 gets none. Required where there are several variants.
        weight: u32 = Variant::WHOLE, within(0..=Variant::WHOLE), shown "950";
    }
}

/// Reads the table, and checks its keys together. `pools` are the names of the pools in their order.
pub(super) fn read(table: &Table<'_, '_>, pools: &[String], names: &mut Names) -> Route {
    let keys = RouteKeys::read(table);
    let cache = table.table("cache").map(|table| RouteCache::read_checked(&table));
    if matches!(keys.sticky, Some(SplitKey::Cookie { .. }))
        && cache.as_ref().is_some_and(|it| it.public)
    {
        let span = table.place_of("sticky").unwrap_or(table.span());
        let message =
            "expected no cookie beside cache.public = true: all clients would get the same one";
        table.note(span, "sticky", message);
    }
    if let Some((name, span)) = table.spanned::<String>("name") {
        names.take(table, "name", &name, span);
    }
    let variants = variants(table, keys.pool, pools);
    let names: Vec<_> = variants.iter().map(|variant| variant.name.as_str()).collect();
    let shadow = table.table("shadow").map(|table| Shadow::read_checked(&table, &names));
    let weights: Vec<_> = variants.iter().map(|it| (it.name.as_str(), it.weight)).collect();
    let rollout = table
        .table("rollout")
        .map(|table| RouteRollout::read_checked(&table, &weights, keys.sticky.is_some()));
    Route {
        name: keys.name,
        models: keys.models.into_iter().map(pattern).collect(),
        paths: keys.paths,
        sticky: keys.sticky,
        allow_override: keys.allow_override,
        shadow,
        fallback: fallbacks(table, pools, &variants),
        variants,
        deadline: keys.deadline,
        priority: keys.priority,
        expose_endpoint: keys.expose_endpoint,
        cache,
        rollout,
    }
}

/// The variants of a route: the one that `pool` stands for, or those of the tables.
fn variants(table: &Table<'_, '_>, pool: Option<String>, pools: &[String]) -> Vec<Arc<Variant>> {
    let tables = table.tables("variant");
    match (table.place_of("pool"), table.has("variant")) {
        (Some(span), true) => {
            table.note(span, "pool", "expected either a pool or variants, found both");
        }
        (None, false) => {
            let message = "expected the name of a pool, or variants, found neither";
            table.note(table.span(), "pool", message);
        }
        _ => {}
    }
    if !table.has("variant") {
        return vec![Arc::new(plain(pool.unwrap_or_default(), pools))];
    }
    let mut names = Names::default();
    let is_only = tables.len() == 1;
    let read = |table: &Table<'_, '_>| {
        let variant = with_pool(VariantKeys::read(table), pools);
        let span = table.place_of("name").unwrap_or(table.span());
        names.take(table, "name", &variant.name, span);
        if !is_only && !table.has("weight") {
            let expected = "expected a weight beside other variants";
            table.note(table.span(), "weight", format!("{expected}, found none"));
        }
        Variant { weight: WeightKeys::read(table).weight, ..variant }
    };
    let variants: Vec<_> = tables.iter().map(read).map(Arc::new).collect();
    let sum: u32 = variants.iter().map(|variant| variant.weight).sum();
    if sum != Variant::WHOLE {
        let expected = format!("expected weights that add up to {} thousandths", Variant::WHOLE);
        table.note(table.span(), "variant", format!("{expected}, found {sum}"));
    }
    variants
}

/// The variants that may stand in for those of the route.
fn fallbacks(
    table: &Table<'_, '_>,
    pools: &[String],
    variants: &[Arc<Variant>],
) -> Vec<Arc<Variant>> {
    let mut fallbacks = Vec::new();
    for item in table.names_or_tables("fallback") {
        let (fallback, pool, span) = match item {
            NameOrTable::Name(name, span) => {
                section_name("pool").check(table, "fallback", &name, span.clone());
                (plain(name.clone(), pools), name, span)
            }
            NameOrTable::Table(item) => {
                let keys = VariantKeys::read(&item);
                let span = item.place_of("pool").unwrap_or(item.span());
                (with_pool(keys.clone(), pools), keys.pool, span)
            }
        };
        // One of several variants may stand in for the others. Of a pool that there is not, no more is said.
        if let [own] = variants
            && own.pool == fallback.pool
            && pools.contains(&pool)
            && !fallback.renames()
        {
            let message = "expected another pool than the route's own, or another model";
            table.note(span, "fallback", format!("{message}, found {pool:?}"));
        }
        fallbacks.push(Arc::new(fallback));
    }
    fallbacks
}

/// A pool and no more. The first one stands for a pool that there is not until everything else is checked.
fn plain(name: String, pools: &[String]) -> Variant {
    let pool = pools.iter().position(|pool| *pool == name).unwrap_or_default();
    Variant { name, pool, model: None, version: None, weight: Variant::WHOLE }
}

/// A pool, and what is said beside it.
fn with_pool(keys: VariantKeys, pools: &[String]) -> Variant {
    let plain = plain(keys.pool, pools);
    let name = keys.name.unwrap_or(plain.name);
    Variant { name, model: keys.model, version: keys.version, ..plain }
}

/// The name of a model or of a version.
const fn part_of_path() -> forebay_config::form::Text {
    const WORDS: &str = "a name of at most 255 bytes";
    const { assert!(MAX_MODEL_NAME == 255, "the words say so") };
    text("NAME", WORDS, |name| (name.is_empty() || name.len() > MAX_MODEL_NAME).then_some(WORDS))
}

fn pattern(text: String) -> Pattern {
    match text.strip_suffix('*') {
        Some(prefix) => Pattern::Prefix(prefix.to_owned()),
        None => Pattern::Exact(text),
    }
}
