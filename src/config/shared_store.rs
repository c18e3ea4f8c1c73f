//! The store behind the memory of the cache, which several proxies share.

use super::tls;
use forebay_cache::shared::Protocol;
use forebay_config::file::read_bytes;
use forebay_config::form::{
    bytes, one_of, optional, path_in_file, positive, required, text, within,
};
use forebay_config::{Section, Table};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1024 * 1024;
/// The longest prefix: memcached's keys have at most 250 bytes.
const MAX_PREFIX: usize = 100;
const MAX_DATABASE: u32 = 1_000_000;

forebay_config::section! {
    /// A store behind the memory that several proxies share: an answer that one of them has is then a hit at the others, and
    /// after a restart. It is asked where memory has nothing, and written behind the answers. While it is slow, away or full,
    /// requests go on as without it. Changes need a restart.
    pub(super) struct SharedKeys {
        /// "redis": Redis, Valkey and their like. "memcached": its text protocol, with times to live of whole
        /// seconds.
        kind: Protocol = Protocol::Redis,
            one_of(&[("redis", Protocol::Redis), ("memcached", Protocol::Memcached)]);
        /// Required. Host name or address, and port.
        address: String = String::new(),
            required(text("HOST:PORT", "a host and a port such as \"cache.internal:6379\"", place)), shown "\"127.0.0.1:6379\"";
        /// The user to log in as. Default: Redis's user "default".
        user: String = String::new(), text("NAME", "a name without spaces", word), shown "\"forebay\"";
        /// A file with the password. Default: the store asks for none.
        password_file: Option<PathBuf> = None, optional(path_in_file()), shown "\"tls/example.password\"";
        /// The number of the database, of Redis.
        database: u32 = 0, within(0..=MAX_DATABASE);
        /// The authorities that the store's certificate is trusted from, in PEM form: with them, connections are
        /// encrypted (TLS 1.2 or 1.3). Default: no TLS.
        tls_ca: Option<PathBuf> = None, optional(path_in_file()), shown "\"tls/example.pem\"";
        /// The name in the store's certificate. Default: the host in `address`.
        tls_name: String = String::new(), text("NAME", "a host name", word), shown "\"cache.internal\"";
        /// The beginning of all keys. Proxies with another prefix share nothing.
        prefix: String = "forebay:".to_owned(),
            text("TEXT", "at most 100 printable characters without spaces", prefix);
        /// Time that a look-up may take. A store that often takes longer is not asked for a while.
        timeout: Duration = Duration::from_millis(5), positive();
        /// Memory for answers that wait to be written; further ones are not written.
        queue: u64 = 16 * MIB, bytes();
        /// Longer answers are kept in memory only.
        max_entry: u64 = MIB, bytes();
    }
}

/// A store that is shared.
#[derive(Debug, Clone)]
pub struct SharedStore {
    keys: SharedKeys,
    /// Host and port.
    pub address: String,
    /// How it is used.
    pub settings: forebay_cache::shared::Settings,
    /// Settings of handshakes and the name that the store shows; `None`: no TLS.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// Equal if the file says the same.
impl PartialEq for SharedStore {
    fn eq(&self, other: &Self) -> bool {
        self.keys == other.keys
    }
}

/// Reads the table and the files that it names. Errors are noted. `encrypts`: values are encrypted.
pub(super) fn read(table: &Table<'_, '_>, encrypts: bool) -> Option<SharedStore> {
    let keys = SharedKeys::read(table);
    if keys.kind == Protocol::Memcached {
        table.refuse("database", "kind = \"redis\"");
    }
    if keys.password_file.is_none() {
        table.refuse("user", "password_file");
    }
    if keys.kind == Protocol::Memcached && keys.password_file.is_some() && keys.user.is_empty() {
        table.note(table.span(), "user", "expected a user beside password_file of memcached");
    }
    let password = match &keys.password_file {
        Some(file) => Some(password(table, file)?),
        None => None,
    };
    let host = keys.address.rsplit_once(':').map_or("", |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tls = match &keys.tls_ca {
        Some(file) => {
            let name = if keys.tls_name.is_empty() { host } else { keys.tls_name.as_str() };
            Some(tls(table, file, name)?)
        }
        None => {
            table.refuse("tls_name", "tls_ca");
            None
        }
    };
    let settings = forebay_cache::shared::Settings {
        protocol: keys.kind,
        login: password.map(|password| (keys.user.clone(), password)),
        database: keys.database,
        prefix: keys.prefix.clone(),
        timeout: keys.timeout,
        queue: keys.queue,
        max_answer: usize::try_from(keys.max_entry).unwrap_or(usize::MAX),
        encrypts,
    };
    Some(SharedStore { address: keys.address.clone(), keys, settings, tls })
}

fn password(table: &Table<'_, '_>, file: &Path) -> Option<String> {
    let span = table.place_of("password_file")?;
    let read = || -> Result<String, String> {
        let bytes = read_bytes(file).map_err(|error| error.to_string())?;
        let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
        let password = text.trim_end_matches(['\r', '\n']);
        // Between these, memcached finds the end of the password.
        let is_line = !password.is_empty() && !password.contains(['\r', '\n', '\0']);
        if is_line { Ok(password.to_owned()) } else { Err("not one line".to_owned()) }
    };
    read()
        .map_err(|error| {
            let expected = "expected a file with a password";
            table.note(
                span,
                "password_file",
                format!("{expected}, found {}: {error}", file.display()),
            );
        })
        .ok()
}

fn tls(
    table: &Table<'_, '_>,
    file: &Path,
    name: &str,
) -> Option<(Arc<ClientConfig>, ServerName<'static>)> {
    let roots: RootCertStore = tls::roots(table, "tls_ca", file)?;
    let Ok(name) = ServerName::try_from(name.to_owned()) else {
        let key = if table.has("tls_name") { "tls_name" } else { "address" };
        let span = table.place_of(key).unwrap_or(table.span());
        table.note(span, key, format!("expected a host name or an address, found {name:?}"));
        return None;
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some((Arc::new(config), name))
}

fn place(value: &str) -> Option<&'static str> {
    let is_place = value.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && word(host).is_none() && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    (!is_place).then_some("a host and a port such as \"cache.internal:6379\"")
}

fn word(value: &str) -> Option<&'static str> {
    let is_word = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
    (!is_word).then_some("printable characters without spaces")
}

fn prefix(value: &str) -> Option<&'static str> {
    let is_prefix = value.len() <= MAX_PREFIX && value.bytes().all(|byte| byte.is_ascii_graphic());
    (!is_prefix).then_some("at most 100 printable characters without spaces")
}
