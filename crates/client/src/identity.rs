//! Who this process is and whom it trusts: a certificate, its key and a trust
//! bundle, and the TLS configurations that follow from them.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, PeerIncompatible,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};

use crate::spiffe::{self, SpiffeId};

/// The one protocol of every connection.
const HTTP_2: &[u8] = b"h2";

/// Where an identity is kept. All files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate, followed by its intermediates if it has any.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub private_key: PathBuf,
    /// The certificates of the authorities that are trusted.
    pub trust_bundle: PathBuf,
}

/// The identity of this process. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<Loaded>);

struct Loaded {
    spiffe_id: SpiffeId,
    certified_key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

/// Why there is no identity, or no TLS configuration for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or holds nothing of its kind.
    #[error("the {what} {} cannot be loaded: {source}", path.display())]
    Load {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A certificate of the trust bundle cannot be used.
    #[error("the trust bundle {} cannot be used: {source}", path.display())]
    TrustBundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The key is not that of the certificate.
    #[error(
        "the private key {} does not fit the certificate {}: {source}",
        private_key.display(),
        certificate.display()
    )]
    PrivateKey {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        private_key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// The certificate says not who its workload is.
    #[error("the certificate {} names no workload: {source}", path.display())]
    SpiffeId {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: spiffe::Error,
    },
    /// The TLS library refuses the configuration.
    #[error("TLS cannot be configured: {0}")]
    Tls(#[from] rustls::Error),
    /// The trust bundle cannot verify clients.
    #[error("the certificates of clients cannot be verified: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

impl Identity {
    /// Loads an identity and checks that its parts belong together.
    ///
    /// Whether the certificate is valid now is for its peers to judge.
    pub fn load(files: &IdentityFiles) -> Result<Self, Error> {
        let IdentityFiles { certificate, private_key, trust_bundle } = files;

        let chain = load_certificates("certificate", certificate)?;
        let spiffe_id = SpiffeId::from_certificate(&chain[0])
            .map_err(|source| Error::SpiffeId { path: certificate.clone(), source })?;

        let key = PrivateKeyDer::from_pem_file(private_key).map_err(|source| Error::Load {
            what: "private key",
            path: private_key.clone(),
            source,
        })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certified_key =
            CertifiedKey::from_der(chain, key, &provider).map_err(|source| Error::PrivateKey {
                certificate: certificate.clone(),
                private_key: private_key.clone(),
                source,
            })?;

        let mut roots = RootCertStore::empty();
        for root in load_certificates("trust bundle", trust_bundle)? {
            roots
                .add(root)
                .map_err(|source| Error::TrustBundle { path: trust_bundle.clone(), source })?;
        }
        Ok(Self(Arc::new(Loaded {
            spiffe_id,
            certified_key: Arc::new(certified_key),
            roots: Arc::new(roots),
            provider,
        })))
    }

    /// The ID that the certificate states.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.spiffe_id
    }

    /// How to call `peer`, and nobody else, as this identity.
    pub fn client_config(&self, peer: SpiffeId) -> Result<Arc<ClientConfig>, Error> {
        let Loaded { certified_key, roots, provider, .. } = &*self.0;
        let verifier = PeerVerifier {
            peer,
            roots: Arc::clone(roots),
            algorithms: provider.signature_verification_algorithms,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified_key))));
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        // A resumed session would skip the verification of a certificate that
        // may have expired since.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// How to serve as this identity, to clients that show a certificate of a
    /// trusted authority.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        let Loaded { certified_key, roots, provider, .. } = &*self.0;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
                .build()?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified_key))));
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Identity({})", self.spiffe_id())
    }
}

/// Loads at least one certificate.
fn load_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|certificates| match certificates.as_slice() {
            [] => Err(pem::Error::NoItemsFound),
            _ => Ok(certificates),
        })
        .map_err(|source| Error::Load { what, path: path.to_owned(), source })
}

/// Why a peer with a valid certificate is not the one that was called.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnexpectedPeer {
    /// It is somebody else.
    #[error("expected {expected}, found {found}")]
    Other { expected: SpiffeId, found: SpiffeId },
    /// It does not say who it is.
    #[error("expected {expected}, but {source}")]
    Nobody { expected: SpiffeId, source: spiffe::Error },
}

/// Verifies a server by its SPIFFE ID; the DNS names of its certificate are for
/// callers outside the suite.
#[derive(Debug)]
struct PeerVerifier {
    peer: SpiffeId,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn verify_peer(&self, certificate: &CertificateDer<'_>) -> Result<(), UnexpectedPeer> {
        let expected = self.peer.clone();
        match SpiffeId::from_certificate(certificate) {
            Ok(found) if found == expected => Ok(()),
            Ok(found) => Err(UnexpectedPeer::Other { expected, found }),
            Err(source) => Err(UnexpectedPeer::Nobody { expected, source }),
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.verify_peer(end_entity)
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};
    use tempfile::TempDir;

    const ID: &str = "spiffe://test.local/ns/shop/sa/catalog-service";

    /// A self-signed certificate, which is its own trust bundle.
    fn write_identity(folder: &TempDir, uri: &str) -> IdentityFiles {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let certificate = parameters.self_signed(&key).unwrap().pem();
        let files = IdentityFiles {
            certificate: folder.path().join("tls.crt"),
            private_key: folder.path().join("tls.key"),
            trust_bundle: folder.path().join("ca.crt"),
        };
        std::fs::write(&files.certificate, &certificate).unwrap();
        std::fs::write(&files.private_key, key.serialize_pem()).unwrap();
        std::fs::write(&files.trust_bundle, certificate).unwrap();
        files
    }

    fn refusal(files: &IdentityFiles) -> String {
        Identity::load(files).unwrap_err().to_string()
    }

    #[test]
    fn an_identity_is_who_its_certificate_says() {
        let folder = TempDir::new().unwrap();
        let identity = Identity::load(&write_identity(&folder, ID)).unwrap();
        assert_eq!(identity.spiffe_id().to_string(), ID);
        identity.server_config().unwrap();
        identity.client_config(ID.parse().unwrap()).unwrap();
    }

    #[test]
    fn the_key_of_another_certificate_is_refused() {
        let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let files = IdentityFiles {
            private_key: write_identity(&other, ID).private_key,
            ..write_identity(&folder, ID)
        };
        assert!(refusal(&files).contains("does not fit the certificate"));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let folder = TempDir::new().unwrap();
        let files = write_identity(&folder, "https://test.local");
        assert!(refusal(&files).contains("tls.crt names no workload"));

        let files = write_identity(&folder, ID);
        std::fs::write(&files.trust_bundle, "").unwrap();
        assert!(refusal(&files).contains("ca.crt cannot be loaded: no items found"));
        std::fs::remove_file(&files.private_key).unwrap();
        assert!(refusal(&files).contains("tls.key cannot be loaded"));
    }
}
