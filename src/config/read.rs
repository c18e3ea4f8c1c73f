//! From TOML to [`Config`], in the order of the reference file. Each section has its own file with its keys.

use super::check::Names;
use super::{CacheMemory, Config, Limits, Protocol, Server, listener, pool, route};
use forebay_config::{Diagnostics, Document, Section, Table};
use std::path::Path;
use std::sync::Arc;

pub(super) fn config(source: &str, base: &Path) -> Result<Config, Diagnostics> {
    let document = Document::parse(source).in_folder(base);
    let config = read(&document.root());
    document.finish()?;
    Ok(config)
}

pub(super) fn keys_missing_from(source: &str) -> Vec<String> {
    let document = Document::parse(source);
    read(&document.root());
    document.keys_asked().difference(&document.keys_present()).cloned().collect()
}

fn read(root: &Table<'_, '_>) -> Config {
    let server = Server::read(&root.table_or_empty("server"));
    let limits = Limits::checked(&root.table_or_empty("limits"));
    let cache = CacheMemory::read_checked(&root.table_or_empty("cache"));
    let pool = |(name, table): (String, Table<'_, '_>)| {
        if name.is_empty() {
            root.note(table.span(), "pool", "expected a name, found \"\"");
        }
        pool::read(name, &table)
    };
    let pools: Vec<_> = root.named("pool").into_iter().map(pool).collect();
    let pool_names: Vec<_> = pools.iter().map(|pool| pool.name.clone()).collect();
    let mut names = Names::default();
    let listener = |table: &Table<'_, '_>| listener::read(table, &mut names);
    let listeners: Vec<_> = root.tables("listener").iter().map(listener).collect();
    // A proxy at Layer 4 alone has nothing to route.
    let only_tcp = !listeners.is_empty()
        && listeners.iter().all(|listener| matches!(listener.protocol, Protocol::Tcp(_)));
    let mut names = Names::default();
    let route = |table: &Table<'_, '_>| route::read(table, &pool_names, &mut names);
    let routes: Vec<_> = root.tables("route").iter().map(route).collect();
    for (missing, key, form) in [
        (listeners.is_empty(), "listener", "[[listener]]"),
        (pools.is_empty(), "pool", "[pool.NAME]"),
        (routes.is_empty() && !only_tcp, "route", "[[route]]"),
    ] {
        if missing && !root.has(key) {
            root.note(0..0, key, format!("expected at least one {form}, found none"));
        }
    }
    let pools = pools.into_iter().map(Arc::new).collect();
    let routes = routes.into_iter().map(Arc::new).collect();
    Config { server, listeners, limits, cache, pools, routes }
}
