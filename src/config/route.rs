//! Routes: which requests they take, and the variants that answer.
//!
//! Most routes have one variant, their pool. So `pool = "NAME"` is enough for those, and tables are
//! needed only where there is more to say.

use super::check::{MAX_MODEL_NAME, Names, known_pool, positive, secs};
use super::{Pattern, Route, Variant};
use forebay_config::{NameOrTable, Table};
use forebay_protocol::Priority;
use std::sync::Arc;

/// How urgent a request is, by the words of its header.
const PRIORITIES: [(&str, Priority); 3] = [
    (Priority::High.as_str(), Priority::High),
    (Priority::Normal.as_str(), Priority::Normal),
    (Priority::Batch.as_str(), Priority::Batch),
];

pub(super) fn read(table: &Table<'_, '_>, pools: &[String], names: &mut Names) -> Route {
    let name = table.required_spanned::<String>("name").map(|(name, span)| {
        names.take(table, "name", &name, span);
        name
    });
    let models = table.items::<String>("models").map(|(models, _)| models).unwrap_or_default();
    for (_, span) in models.iter().flatten().filter(|(model, _)| model.is_empty()) {
        table.note(span.clone(), "models", "expected the name of a model, found \"\"");
    }
    let models = models.into_iter().flatten().map(|(model, _)| model);
    let paths = table.spanned::<Vec<String>>("paths");
    if let Some((paths, span)) = &paths
        && let Some(bad) = paths.iter().find(|path| !path.starts_with('/'))
    {
        let expected = "expected paths that begin with /";
        table.note(span.clone(), "paths", format!("{expected}, found {bad:?}"));
    }
    let variants = variants(table, pools);
    Route {
        name: name.unwrap_or_default(),
        models: models.map(pattern).collect(),
        paths: paths.map(|(paths, _)| paths).unwrap_or_default(),
        fallback: fallbacks(table, pools, &variants),
        variants,
        deadline: positive(table, "deadline", secs(30)),
        priority: table.choice("priority", &PRIORITIES, Priority::default()),
        expose_endpoint: table.or("expose_endpoint", false),
    }
}

/// The variants of a route: the one that `pool` stands for, or those of the tables.
fn variants(table: &Table<'_, '_>, pools: &[String]) -> Vec<Arc<Variant>> {
    let tables = table.tables("variant");
    if !table.has("variant") {
        return vec![Arc::new(plain(required_pool(table, pools)))];
    }
    if let Some((_, span)) = table.spanned::<String>("pool") {
        table.note(span, "pool", "expected either a pool or variants, found both");
    }
    let mut names = Names::default();
    let is_only = tables.len() == 1;
    let read = |table: &Table<'_, '_>| {
        let variant = with_pool(table, required_pool(table, pools));
        let span = table.spanned::<String>("name").map_or(table.span(), |(_, span)| span);
        names.take(table, "name", &variant.name, span);
        if !is_only && !table.has("weight") {
            let expected = "expected a weight beside other variants";
            table.note(table.span(), "weight", format!("{expected}, found none"));
        }
        let weight = table.within("weight", 0..=Variant::WHOLE, Variant::WHOLE);
        Variant { weight, ..variant }
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
        let (named, item) = match item {
            NameOrTable::Name(name, span) => (Some((name, span)), None),
            NameOrTable::Table(item) => (item.required_spanned::<String>("pool"), Some(item)),
        };
        let Some((name, span)) = named else { continue };
        let Some(pool) = known_pool(table, pools, &name, span.clone()) else { continue };
        let fallback = match &item {
            Some(item) => with_pool(item, (name.clone(), pool)),
            None => plain((name.clone(), pool)),
        };
        // One of several variants may stand in for the others.
        if let [own] = variants
            && own.pool == fallback.pool
            && !fallback.renames()
        {
            let message = "expected another pool than the route's own, or another model";
            table.note(span, "fallback", format!("{message}, found {name:?}"));
        }
        fallbacks.push(Arc::new(fallback));
    }
    fallbacks
}

/// The name of the pool that the table must have, and its place; the first one's if there is none.
fn required_pool(table: &Table<'_, '_>, pools: &[String]) -> (String, usize) {
    let Some((name, span)) = table.required_spanned::<String>("pool") else {
        return (String::new(), 0);
    };
    let place = known_pool(table, pools, &name, span).unwrap_or_default();
    (name, place)
}

/// A pool and no more.
fn plain((name, pool): (String, usize)) -> Variant {
    Variant { name, pool, model: None, version: None, weight: Variant::WHOLE }
}

/// A pool, and what the table says beside it.
fn with_pool(table: &Table<'_, '_>, pool: (String, usize)) -> Variant {
    let plain = plain(pool);
    Variant {
        name: table.get::<String>("name").unwrap_or(plain.name),
        model: part_of_path(table, "model"),
        version: part_of_path(table, "version"),
        ..plain
    }
}

/// The name of a model or of a version.
fn part_of_path(table: &Table<'_, '_>, key: &str) -> Option<String> {
    let (name, span) = table.spanned::<String>(key)?;
    if name.is_empty() || name.len() > MAX_MODEL_NAME {
        let expected = format!("expected a name of at most {MAX_MODEL_NAME} bytes");
        table.note(span, key, format!("{expected}, found {name:?}"));
    }
    Some(name)
}

fn pattern(text: String) -> Pattern {
    match text.strip_suffix('*') {
        Some(prefix) => Pattern::Prefix(prefix.to_owned()),
        None => Pattern::Exact(text),
    }
}
