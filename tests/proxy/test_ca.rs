//! Certificates for tests, and clients that believe them.

use crate::client::{Failed, Response, send_on};
use crate::harness::{Folder, MAX_WAIT};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const INFER: &str = "/v2/models/m/infer";
/// The name that clients ask for.
pub const NAME: &str = "models.example.org";
pub static V13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
pub static V12: [&SupportedProtocolVersion; 1] = [&version::TLS12];
static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// An authority, and a folder for what it signs.
pub struct Authority {
    pub folder: Folder,
    pub file: PathBuf,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let folder = Folder::new();
        let file = folder.0.join("authority.pem");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        std::fs::write(&file, pem("CERTIFICATE", &der)).unwrap();
        Self { folder, file, der, issuer: Issuer::new(params, key) }
    }

    /// Signs a certificate.
    fn sign(&self, params: &CertificateParams) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }

    /// Writes a certificate for `names` and its key to `FILE.pem` and `FILE.key`; returns the keys of
    /// the configuration that name them.
    pub fn write(&self, file: &str, names: &[&str]) -> String {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        self.write_as(file, &CertificateParams::new(names).unwrap())
    }

    pub fn write_as(&self, file: &str, params: &CertificateParams) -> String {
        let (der, key) = self.sign(params);
        let path = |ending: &str| self.folder.0.join(format!("{file}.{ending}"));
        std::fs::write(path("pem"), pem("CERTIFICATE", &der)).unwrap();
        std::fs::write(path("key"), pem("PRIVATE KEY", &key.serialize_der())).unwrap();
        std::fs::set_permissions(path("key"), Permissions::from_mode(0o600)).unwrap();
        format!("certificate = {:?}\nkey = {:?}\n", path("pem"), path("key"))
    }

    /// A client that believes this authority.
    pub fn client(&self) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        Client { roots, shows: None, alpn: &[], versions: &BOTH }
    }
}

fn pem(what: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n")
}

/// The trust, certificate and protocols of a client.
#[derive(Clone)]
pub struct Client {
    roots: RootCertStore,
    shows: Option<(CertificateDer<'static>, Vec<u8>)>,
    alpn: &'static [&'static str],
    versions: &'static [&'static SupportedProtocolVersion],
}

impl Client {
    /// Shows a certificate of `authority`.
    pub fn shows(mut self, authority: &Authority) -> Self {
        let (der, key) = authority.sign(&CertificateParams::new(Vec::new()).unwrap());
        self.shows = Some((der, key.serialize_der()));
        self
    }

    pub fn speaks(mut self, alpn: &'static [&'static str]) -> Self {
        self.alpn = alpn;
        self
    }

    pub fn only(mut self, versions: &'static [&'static SupportedProtocolVersion]) -> Self {
        self.versions = versions;
        self
    }

    fn connector(&self) -> TlsConnector {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.shows {
            None => builder.with_no_client_auth(),
            Some((der, key)) => {
                let key = PrivateKeyDer::try_from(key.clone()).unwrap();
                builder.with_client_auth_cert(vec![der.clone()], key).unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    pub async fn connect(&self, to: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_as(to, NAME).await
    }

    pub async fn connect_as(
        &self,
        to: SocketAddr,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.shake(TcpStream::connect(to).await?, name).await
    }

    pub async fn shake(
        &self,
        stream: TcpStream,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        timeout(MAX_WAIT, self.connector().connect(name, stream)).await.unwrap()
    }

    /// An inference on a connection of its own; a refusal may come with the handshake or after it.
    pub async fn infer(&self, to: SocketAddr, body: &str) -> Result<Response, Failed> {
        send_on(self.connect(to).await?, inference(body)).await
    }
}

pub fn inference(body: &str) -> Request<Full<Bytes>> {
    let body = Full::new(Bytes::from(body.to_owned()));
    Request::post(INFER).header("host", NAME).body(body).unwrap()
}
