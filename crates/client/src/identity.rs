//! Who this process is and whom it trusts: a certificate, its key and a trust
//! bundle, and the TLS configurations that follow from them.

use std::{
    fmt, mem,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
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
    server::{
        ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::spiffe::{self, SpiffeId};

/// The one protocol of every connection.
const HTTP_2: &[u8] = b"h2";

/// How often the files of an identity are read again. Watching them instead would save
/// next to nothing, and miss what a volume of Kubernetes does, which swaps a link.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

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

/// The identity of this process, which is renewed while it runs. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<Shared>);

struct Shared {
    files: IdentityFiles,
    spiffe_id: SpiffeId,
    current: watch::Sender<Arc<Loaded>>,
    is_kept_fresh: AtomicBool,
}

/// What the files held when they were last in order.
struct Loaded {
    contents: Contents,
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
    /// A new certificate is somebody else's.
    #[error(
        "the certificate {} is of {found}, and this process is {expected}",
        path.display()
    )]
    AnotherIdentity {
        /// The file.
        path: PathBuf,
        /// Whose certificate it is.
        found: SpiffeId,
        /// Whose it should be.
        expected: SpiffeId,
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
        let (spiffe_id, loaded) = Contents::read(files)?.parse(files)?;
        Ok(Self(Arc::new(Shared {
            files: files.clone(),
            spiffe_id,
            current: watch::Sender::new(Arc::new(loaded)),
            is_kept_fresh: AtomicBool::new(false),
        })))
    }

    /// The ID that the certificate states, which a renewal does not change.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.spiffe_id
    }

    /// Has the files read again every second from now on, for as long as anybody holds
    /// this identity. What is new and in order counts from then on; what is broken is
    /// reported once, and what was there before still counts.
    ///
    /// Must be called in a tokio runtime. A [`Channel`](crate::Channel) sees to it itself.
    pub fn keep_fresh(&self) {
        if !self.0.is_kept_fresh.swap(true, Ordering::Relaxed) {
            tokio::spawn(keep_fresh(Arc::downgrade(&self.0)));
        }
    }

    /// Tells of every renewal from now on.
    pub fn renewals(&self) -> Renewals {
        Renewals(self.0.current.subscribe())
    }

    /// Whether a client with these certificates, its own first, is to be trusted now.
    pub fn verify_client(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let Some((own, intermediates)) = chain.split_first() else {
            return Err(Error::Tls(rustls::Error::NoCertificatesPresented));
        };
        let loaded = self.current();
        loaded.client_verifier()?.verify_client_cert(own, intermediates, UnixTime::now())?;
        Ok(())
    }

    /// Whether a server with these certificates, its own first, is `peer` and to be trusted
    /// now.
    pub(crate) fn verify_server(
        &self,
        peer: &SpiffeId,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        let Some((own, intermediates)) = chain.split_first() else {
            return Err(Error::Tls(rustls::Error::NoCertificatesPresented));
        };
        let verifier = self.current().peer_verifier(peer.clone());
        Ok(verifier.verify(own, intermediates, UnixTime::now())?)
    }

    fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.0.current.borrow())
    }

    /// How to call `peer`, and nobody else, as this identity.
    pub fn client_config(&self, peer: SpiffeId) -> Result<Arc<ClientConfig>, Error> {
        let loaded = self.current();
        let Loaded { certified_key, provider, .. } = &*loaded;
        let verifier = loaded.peer_verifier(peer);
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
        let loaded = self.current();
        let Loaded { certified_key, provider, .. } = &*loaded;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(loaded.client_verifier()?)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified_key))));
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Renewals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Renewals")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Identity({})", self.spiffe_id())
    }
}

/// Tells of renewals of an [`Identity`].
pub struct Renewals(watch::Receiver<Arc<Loaded>>);

impl Renewals {
    /// Returns when there has been a renewal since the last call, or since the identity
    /// was asked for renewals.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads the files again until nobody holds the identity any more.
async fn keep_fresh(identity: Weak<Shared>) {
    // What is half written may be broken, or look whole and lack something: only what was
    // found twice is believed.
    let mut found = None;
    let mut is_reported = false;
    loop {
        sleep(RELOAD_INTERVAL).await;
        let Some(shared) = identity.upgrade() else { return };
        let files = shared.files.clone();
        let read = spawn_blocking(move || Contents::read(&files));
        let Ok(read) = read.await else { continue };
        let read = read.map_err(|error| error.to_string());
        let was_found = found.as_ref() == Some(&read);
        let renewed = match &read {
            _ if !was_found => Ok(()),
            Ok(contents) => shared.renew(contents.clone()).map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        match renewed {
            Ok(()) => is_reported = false,
            Err(error) if !mem::replace(&mut is_reported, true) => {
                tracing::warn!(%error, "the new identity cannot be used; the old one still counts");
            }
            Err(_) => {}
        }
        found = Some(read);
    }
}

impl Shared {
    /// Lets what the files hold now count, if it is new.
    fn renew(&self, contents: Contents) -> Result<(), Error> {
        if self.current.borrow().contents == contents {
            return Ok(());
        }
        let (found, loaded) = contents.parse(&self.files)?;
        if found != self.spiffe_id {
            let (path, expected) = (self.files.certificate.clone(), self.spiffe_id.clone());
            return Err(Error::AnotherIdentity { path, found, expected });
        }
        self.current.send_replace(Arc::new(loaded));
        tracing::info!(identity = %self.spiffe_id, "renewed");
        Ok(())
    }
}

impl Loaded {
    fn peer_verifier(&self, peer: SpiffeId) -> PeerVerifier {
        let algorithms = self.provider.signature_verification_algorithms;
        PeerVerifier { peer, roots: Arc::clone(&self.roots), algorithms }
    }

    fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let Self { roots, provider, .. } = self;
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
        Ok(builder.build()?)
    }
}

/// What stands in the files of an identity.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    private_key: Vec<u8>,
    trust_bundle: Vec<u8>,
}

impl Contents {
    fn read(files: &IdentityFiles) -> Result<Self, Error> {
        let read = |what, path: &PathBuf| {
            std::fs::read(path).map_err(|source| {
                let source = pem::Error::Io(source);
                Error::Load { what, path: path.clone(), source }
            })
        };
        Ok(Self {
            certificate: read(CERTIFICATE, &files.certificate)?,
            private_key: read(PRIVATE_KEY, &files.private_key)?,
            trust_bundle: read(TRUST_BUNDLE, &files.trust_bundle)?,
        })
    }

    /// Checks that the parts belong together.
    fn parse(self, files: &IdentityFiles) -> Result<(SpiffeId, Loaded), Error> {
        let IdentityFiles { certificate, private_key, trust_bundle } = files;

        let chain = parse_certificates(CERTIFICATE, certificate, &self.certificate)?;
        let spiffe_id = SpiffeId::from_certificate(&chain[0])
            .map_err(|source| Error::SpiffeId { path: certificate.clone(), source })?;

        let key = PrivateKeyDer::from_pem_slice(&self.private_key).map_err(|source| {
            Error::Load { what: PRIVATE_KEY, path: private_key.clone(), source }
        })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certified_key =
            CertifiedKey::from_der(chain, key, &provider).map_err(|source| Error::PrivateKey {
                certificate: certificate.clone(),
                private_key: private_key.clone(),
                source,
            })?;

        let mut roots = RootCertStore::empty();
        for root in parse_certificates(TRUST_BUNDLE, trust_bundle, &self.trust_bundle)? {
            roots
                .add(root)
                .map_err(|source| Error::TrustBundle { path: trust_bundle.clone(), source })?;
        }
        let loaded = Loaded {
            contents: self,
            certified_key: Arc::new(certified_key),
            roots: Arc::new(roots),
            provider,
        };
        Ok((spiffe_id, loaded))
    }
}

const CERTIFICATE: &str = "certificate";
const PRIVATE_KEY: &str = "private key";
const TRUST_BUNDLE: &str = "trust bundle";

/// Reads at least one certificate.
fn parse_certificates(
    what: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
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
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.verify_peer(end_entity)
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))).into())
    }

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
        self.verify(end_entity, intermediates, now)?;
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

    #[tokio::test(start_paused = true)]
    async fn a_new_pair_counts_once_it_is_whole_and_nobody_elses() {
        let folder = TempDir::new().unwrap();
        let files = write_identity(&folder, ID);
        let identity = Identity::load(&files).unwrap();
        let old = identity.current().contents.clone();
        let mut renewals = identity.renewals();
        identity.keep_fresh();
        let many_looks = || sleep(10 * RELOAD_INTERVAL);

        let new = TempDir::new().unwrap();
        let new = write_identity(&new, ID);
        let (certificate, trust_bundle) =
            [new.certificate, new.trust_bundle].map(|it| std::fs::read(it).unwrap()).into();
        std::fs::write(&files.certificate, &certificate).unwrap();
        many_looks().await;
        assert!(identity.current().contents == old, "its key is missing still");
        std::fs::copy(&new.private_key, &files.private_key).unwrap();
        std::fs::write(&files.trust_bundle, &trust_bundle).unwrap();
        renewals.next().await;
        assert!(identity.current().contents.certificate == certificate);

        write_identity(&folder, "spiffe://test.local/ns/shop/sa/user-service");
        many_looks().await;
        assert!(identity.current().contents.certificate == certificate);
        assert_eq!(identity.spiffe_id().to_string(), ID);
    }

    #[test]
    fn a_client_is_trusted_by_the_authorities_of_the_bundle_alone() {
        let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let identity = Identity::load(&write_identity(&folder, ID)).unwrap();
        let other = Identity::load(&write_identity(&other, ID)).unwrap();
        identity.verify_client(&identity.current().certified_key.cert).unwrap();
        identity.verify_client(&other.current().certified_key.cert).unwrap_err();
        identity.verify_client(&[]).unwrap_err();
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
