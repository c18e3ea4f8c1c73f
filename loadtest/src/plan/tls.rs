//! TLS towards the target.
//!
//! A certificate is checked as any client would check it, because a target that clients can't talk
//! to must not look fast. Test fleets have certificates of their own: their authority can be named,
//! or the check be left out.

use crate::scenario::{Protocol, Trust};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file has no certificates.
    #[error("{path}: expected certificates in PEM form, {what}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// The reason.
        what: String,
    },
    /// The system has none.
    #[error("the system's trusted certificates: {0}; name some with --ca FILE")]
    System(io::Error),
    /// A host that no certificate could be for.
    #[error("expected a host name or an address, found \"{0}\"")]
    Name(String),
    /// A fault of ours.
    #[error("TLS: {0}")]
    Config(#[from] rustls::Error),
}

/// Makes TLS connections to one host.
#[derive(Clone)]
pub struct Connector {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Connector {
    /// For `host`, which is a name or an address; `protocol` is negotiated by ALPN.
    ///
    /// # Errors
    /// The authorities can't be read.
    pub fn new(host: &str, protocol: Protocol, trust: &Trust) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = if trust.insecure {
            Arc::new(Anyone(Arc::clone(&provider)))
        } else {
            let roots = Arc::new(roots(trust.ca.as_deref())?);
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 | Protocol::Grpc => b"h2".to_vec(),
        }];
        let name = ServerName::try_from(host.to_owned());
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            name: name.map_err(|_| TlsError::Name(host.to_owned()))?,
        })
    }

    /// Shakes hands over a new connection.
    ///
    /// # Errors
    /// The certificate is not believed, or the other side speaks no TLS.
    pub(crate) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.name).finish()
    }
}

fn roots(file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = file else {
        let found = rustls_native_certs::load_native_certs().map_err(TlsError::System)?;
        // One that is damaged must not keep the others from being trusted.
        roots.add_parsable_certificates(found);
        return Ok(roots);
    };
    let fail = |what: &dyn fmt::Display| TlsError::Authorities {
        path: path.to_owned(),
        what: what.to_string(),
    };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fail(&error))? {
        let certificate = certificate.map_err(|error| fail(&error))?;
        roots.add(certificate).map_err(|error| fail(&error))?;
    }
    if roots.is_empty() {
        return Err(fail(&"found none"));
    }
    Ok(roots)
}

/// Believes any certificate, but wants it to be used as the protocol has it.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

/// A server that shows a certificate must have its key: both versions of the protocol ask for that.
macro_rules! signed_by_its_key {
    ($verify:ident) => {
        fn $verify(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            $verify(message, certificate, signature, &self.0.signature_verification_algorithms)
        }
    };
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    signed_by_its_key!(verify_tls12_signature);
    signed_by_its_key!(verify_tls13_signature);

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
