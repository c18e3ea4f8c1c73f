//! `tls` of a listener: what it shows to clients, and which clients it lets in.
//!
//! The files are read with the configuration. A certificate that does not fit its key is then an
//! error in the file, at its line, and not a handshake that fails at night. A reload reads them again,
//! so that a renewed certificate is used from the next handshake on.

use forebay_config::file::read_bytes;
use forebay_config::form::{nested, one_of, optional, path_in_file, required};
use forebay_config::{Section, Span, Table};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore, SupportedProtocolVersion, version};
use std::collections::HashMap;
use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use x509_parser::extensions::GeneralName;

/// TLS at a listener.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The settings of the file.
    settings: Settings,
    /// The settings of handshakes.
    pub server: Arc<ServerConfig>,
    /// Its certificates, with the files that they come from.
    pub certificates: Vec<Certificate>,
}

impl Tls {
    /// The expiry of the first of its certificates.
    pub fn first_end(&self) -> Option<SystemTime> {
        self.certificates.iter().map(|certificate| certificate.ends).min()
    }
}

/// Equal if the file says the same: the certificates may have been renewed meanwhile.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for Tls {}

/// A certificate, without those that lead to its authority: clients may know another way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its file.
    pub file: PathBuf,
    /// Begin of its validity.
    pub begins: SystemTime,
    /// End of its validity.
    pub ends: SystemTime,
    /// The file of its key.
    key: PathBuf,
    /// Whether every user of the machine can read that file.
    key_is_open: bool,
}

impl Certificate {
    /// Problems at `now` that are not errors.
    pub fn warnings(&self, now: SystemTime) -> impl Iterator<Item = String> {
        let key = self.key.display();
        let open = || format!("{key}: the key may be read by every user of this machine");
        self.out_of_time(now).into_iter().chain(self.key_is_open.then(open))
    }

    /// The reason why clients will not trust it at `now`, if there is one.
    fn out_of_time(&self, now: SystemTime) -> Option<String> {
        let file = self.file.display();
        let days = |time: Duration| time.as_secs() / (24 * 3600);
        if let Ok(over) = now.duration_since(self.ends) {
            return Some(format!("{file}: the certificate expired {} days ago", days(over)));
        }
        let early = self.begins.duration_since(now).ok()?;
        Some(format!("{file}: the certificate is not valid before {} days from now", days(early)))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    /// Files of certificate chains and of their keys.
    pairs: Vec<(PathBuf, PathBuf)>,
    client_ca: Option<PathBuf>,
    clients_required: bool,
    min_version: MinVersion,
}

/// The oldest version that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MinVersion {
    V12,
    V13,
}

/// Maximum number of certificate and key pairs at a listener, so that a reload stays short.
const MAX_PAIRS: usize = 1000;

forebay_config::section! {
    /// A certificate and its key.
    pub(super) struct CertificateKeys {
        /// Required. The certificate, followed by the chain to its authority, in PEM form (relative to this
        /// file's folder).
        certificate: PathBuf = PathBuf::new(), required(path_in_file()), shown "\"tls/example.pem\"";
        /// Required. Its private key, in PEM form, without a passphrase. The log warns if every user of the
        /// machine can read it.
        key: PathBuf = PathBuf::new(), required(path_in_file()), shown "\"tls/example.key\"";
    }
}

forebay_config::section! {
    /// Further certificates, and the clients to admit.
    pub(super) struct TlsKeys {
        /// Further certificates with their keys. The server name that a client asks for (SNI) selects one,
        /// which may be for "*.example.org"; a client without a matching name gets the one above. Default:
        /// none.
        additional_certificates: () = (), nested("a list of tables, each with a `certificate` and its `key`"),
            shown "[{ certificate = \"tls/example.pem\", key = \"tls/example.key\" }]";
        /// mTLS: the authorities whose clients are admitted, in PEM form. Revoked certificates are admitted
        /// as well: neither CRLs nor OCSP are checked. Default: clients need no certificate.
        client_ca: Option<PathBuf> = None, optional(path_in_file()), shown "\"tls/example.pem\"";
        /// Only with client_ca. "require": a client without a certificate is refused. "optional": a client
        /// needs no certificate, but one that it shows must be valid.
        client_certificate: bool = true, one_of(&[("require", true), ("optional", false)]);
        /// Minimum version: "1.2" or "1.3".
        min_version: MinVersion = MinVersion::V12,
            one_of(&[("1.2", MinVersion::V12), ("1.3", MinVersion::V13)]);
    }
}

/// Reads the table; `alpn`: the protocols inside, the preferred first. Errors are noted.
pub(super) fn read(table: &Table<'_, '_>, alpn: &[&[u8]]) -> Option<Tls> {
    let provider = Arc::new(ring::default_provider());
    let mut pairs = vec![pair(table, &provider)];
    let keys = TlsKeys::read(table);
    let additional = table.tables("additional_certificates");
    if additional.len() > MAX_PAIRS {
        let message = format!("expected at most {MAX_PAIRS}, found {}", additional.len());
        table.note(table.span(), "additional_certificates", message);
        return None;
    }
    pairs.extend(additional.iter().map(|table| pair(table, &provider)));
    let roots = keys.client_ca.as_deref().map(|file| roots(table, "client_ca", file));
    if keys.client_ca.is_none() && !table.has("client_ca") {
        table.refuse("client_certificate", "client_ca");
    }
    let pairs = pairs.into_iter().collect::<Option<Vec<_>>>()?;
    let settings = Settings {
        pairs: pairs.iter().map(|pair| (pair.known.file.clone(), pair.known.key.clone())).collect(),
        client_ca: keys.client_ca,
        clients_required: keys.client_certificate,
        min_version: keys.min_version,
    };
    let certificates = pairs.iter().map(|pair| pair.known.clone()).collect();
    match server(provider, &settings, pairs, roots.flatten(), alpn) {
        Ok(server) => Some(Tls { settings, server: Arc::new(server), certificates }),
        Err(error) => {
            table.document().error(table.span(), format!("tls: {error}"));
            None
        }
    }
}

/// # Errors
/// The authorities of clients can't be used.
fn server(
    provider: Arc<CryptoProvider>,
    settings: &Settings,
    pairs: Vec<Pair>,
    roots: Option<RootCertStore>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, String> {
    let versions: &[&SupportedProtocolVersion] = match settings.min_version {
        MinVersion::V12 => &[&version::TLS13, &version::TLS12],
        MinVersion::V13 => &[&version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| error.to_string())?;
    let builder = match roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let mut verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            if !settings.clients_required {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier = verifier.build().map_err(|error| error.to_string())?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_cert_resolver(Arc::new(ByName::new(pairs)));
    server.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // A client that comes back is known by its ticket, however many there are.
    server.ticketer = ring::Ticketer::new().map_err(|error| error.to_string())?;
    Ok(server)
}

/// A certificate chain with its key.
struct Pair {
    certified: Arc<CertifiedKey>,
    known: Certificate,
    /// The names that it is for.
    names: Vec<String>,
}

fn pair(table: &Table<'_, '_>, provider: &CryptoProvider) -> Option<Pair> {
    let CertificateKeys { certificate: file, key: key_file } = CertificateKeys::read(table);
    let [chain_span, key_span] = ["certificate", "key"].map(|key| table.place_of(key));
    // Of a path that is wrong there is no more to say.
    let there = |file: &Path, span: Option<Span>| span.filter(|_| !file.as_os_str().is_empty());
    let chain_span = there(&file, chain_span);
    let key_span = there(&key_file, key_span);
    let chain = chain_span.and_then(|span| {
        let chain = certificates(table, "certificate", &file, span.clone())?;
        Some((chain, span))
    });
    let key = key_span.and_then(|span| {
        let expected = "expected a file with a private key in PEM form";
        let read =
            |text: Vec<u8>| PrivateKeyDer::from_pem_slice(&text).map_err(|error| error.to_string());
        let found = read_bytes(&key_file).map_err(|error| error.to_string()).and_then(read);
        let note = |error: &dyn Display| {
            let found = format!("{expected}, found {}: {error}", key_file.display());
            table.note(span.clone(), "key", found);
        };
        let key = found.map_err(|error| note(&error)).ok()?;
        Some((key, span))
    });
    let ((chain, chain_span), (key, key_span)) = (chain?, key?);
    let checked = examine(&chain);
    let ((begins, ends), names) = checked
        .map_err(|error| {
            let expected = "expected certificates that can be understood, found";
            let message = format!("{expected} {}: {error}", file.display());
            table.note(chain_span, "certificate", message);
        })
        .ok()?;
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(certified) => {
            let key_is_open = everybody_can_read(&key_file);
            let known = Certificate { file, begins, ends, key: key_file, key_is_open };
            Some(Pair { certified: certified.into(), known, names })
        }
        Err(error) => {
            let found = match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => "another key".to_owned(),
                other => other.to_string(),
            };
            let expected = format!("expected the key of {}", file.display());
            let message = format!("{expected}, found {}: {found}", key_file.display());
            table.note(key_span, "key", message);
            None
        }
    }
}

fn everybody_can_read(file: &Path) -> bool {
    /// The bit of a file's mode that says so.
    const OTHERS_READ: u32 = 0o004;
    std::fs::metadata(file).is_ok_and(|found| found.mode() & OTHERS_READ != 0)
}

/// The certificates in a file; an empty file is noted.
fn certificates(
    table: &Table<'_, '_>,
    key: &str,
    file: &Path,
    span: Span,
) -> Option<Vec<CertificateDer<'static>>> {
    let read = || -> Result<Vec<_>, String> {
        let text = read_bytes(file).map_err(|error| error.to_string())?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let found = found.map_err(|error| error.to_string())?;
        if found.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(found) }
    };
    read()
        .map_err(|error| {
            let expected = "expected a file with certificates in PEM form";
            table.note(span, key, format!("{expected}, found {}: {error}", file.display()));
        })
        .ok()
}

/// From when on and until when the first certificate of a chain is valid, and the names in it.
///
/// # Errors
/// A certificate that is none.
fn examine(
    chain: &[CertificateDer<'_>],
) -> Result<((SystemTime, SystemTime), Vec<String>), String> {
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or_default();
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let read: Result<Vec<_>, _> =
        chain.iter().map(|der| x509_parser::parse_x509_certificate(der)).collect();
    let read = read.map_err(|error| error.to_string())?;
    let (_, first) = read.first().ok_or("no certificate in it")?;
    let valid = first.validity();
    let begins = time(valid.not_before.timestamp()).ok_or("a date out of range")?;
    let ends = time(valid.not_after.timestamp()).ok_or("a date out of range")?;
    let alternatives = first.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.iter().flat_map(|names| &names.value.general_names);
    let names = alternatives.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok(((begins, ends), names.collect()))
}

/// The authorities in the file that `key` names. Unreadable ones are noted.
pub(super) fn roots(table: &Table<'_, '_>, key: &str, file: &Path) -> Option<RootCertStore> {
    let span = table.place_of(key)?;
    // Of a path that is wrong there is no more to say.
    if file.as_os_str().is_empty() {
        return None;
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates(table, key, file, span.clone())? {
        if let Err(error) = roots.add(certificate) {
            let expected = "expected certificates of authorities, found";
            table.note(span, key, format!("{expected} {}: {error}", file.display()));
            return None;
        }
    }
    Some(roots)
}

/// Selects the certificate for the name that a client asks for, otherwise the first.
#[derive(Debug)]
struct ByName {
    named: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl ByName {
    fn new(pairs: Vec<Pair>) -> Self {
        let first = pairs.first().map(|pair| Arc::clone(&pair.certified));
        let mut named = HashMap::new();
        for pair in pairs {
            for name in pair.names {
                named.entry(name).or_insert_with(|| Arc::clone(&pair.certified));
            }
        }
        Self { named, first }
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        self.named.get(&name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.named.get(&format!("*.{parent}"))
        })
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().and_then(|name| self.find(name));
        asked.or(self.first.as_ref()).cloned()
    }
}
