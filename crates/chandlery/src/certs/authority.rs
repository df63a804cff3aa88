//! The authority itself: what its certificates say, and the files that keep them.

use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use client::{Identity, IdentityFiles, SpiffeId, spiffe};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use service_runtime::Timestamp;
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time,
};

use super::{Error, check_name, identity_files};

pub(super) const AUTHORITY_VALIDITY: Duration = Duration::from_hours(10 * 365 * 24);

/// How far certificates reach into the past, for peers whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

/// The time that a certificate is valid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning.
    pub not_before: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
}

impl Validity {
    /// From five minutes ago, for peers whose clock is behind, until so long from
    /// now.
    pub fn starting(now: Timestamp, duration: Duration) -> Self {
        let skew_micros = i64::try_from(CLOCK_SKEW.as_micros()).unwrap_or_default();
        Self {
            not_before: Timestamp::from_micros(now.as_micros().saturating_sub(skew_micros)),
            not_after: now.saturating_add(duration),
        }
    }

    /// When two thirds of the time have passed.
    pub fn renew_after(self) -> Timestamp {
        let life = self.not_after.saturating_since(self.not_before);
        self.not_before.saturating_add(life * 2 / 3)
    }

    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let from = |time: ASN1Time| Timestamp::from_micros(time.timestamp() * 1_000_000);
        let validity = certificate.validity();
        Self { not_before: from(validity.not_before), not_after: from(validity.not_after) }
    }

    fn set(self, parameters: &mut CertificateParams) -> Result<(), Error> {
        let convert = |time: Timestamp| {
            OffsetDateTime::from_unix_timestamp(time.as_micros().div_euclid(1_000_000))
                .map_err(|_| Error::Time(time))
        };
        parameters.not_before = convert(self.not_before)?;
        parameters.not_after = convert(self.not_after)?;
        Ok(())
    }
}

/// An authority that vouches for the workloads of a trust domain.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    trust_domain: String,
    validity: Validity,
}

/// What a certificate of a workload shall say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf<'a> {
    /// The workload, a DNS label.
    pub workload: &'a str,
    /// The namespace of the workload, a DNS label.
    pub namespace: &'a str,
    /// When it is valid; the past is allowed, since tests need expired ones.
    pub validity: Validity,
}

impl<'a> Leaf<'a> {
    /// A certificate that is valid from now on.
    pub fn new(workload: &'a str, namespace: &'a str, now: Timestamp, validity: Duration) -> Self {
        Self { workload, namespace, validity: Validity::starting(now, validity) }
    }
}

/// A certificate of a workload and its key.
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// The key, PKCS #8.
    pub private_key_pem: String,
}

impl Authority {
    /// Creates an authority that is valid for ten years.
    pub fn create(trust_domain: &str, now: Timestamp) -> Result<Self, Error> {
        if !spiffe::is_trust_domain(trust_domain) {
            return Err(Error::TrustDomain(trust_domain.to_owned()));
        }
        let validity = Validity::starting(now, AUTHORITY_VALIDITY);
        let mut parameters = CertificateParams::default();
        validity.set(&mut parameters)?;
        parameters
            .distinguished_name
            .push(DnType::CommonName, format!("{trust_domain} development authority"));
        parameters.subject_alt_names =
            vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

        let key = KeyPair::generate()?;
        let certificate_pem = parameters.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(parameters, key),
            certificate_pem,
            trust_domain: trust_domain.to_owned(),
            validity,
        })
    }

    /// Loads the authority that was saved in a folder, expired or not.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        let certificate_pem = read_half(&certificate_path, &key_path)?;
        let key_pem = read_half(&key_path, &certificate_path)?;

        let refuse = |path: &Path, problem| Error::Authority { path: path.to_owned(), problem };
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|_| refuse(&key_path, "holds no private key in PEM"))?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| refuse(&certificate_path, "holds no certificate in PEM"))?;
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|_| refuse(&certificate_path, "holds no certificate"))?;
        if !certificate.is_ca() {
            return Err(refuse(&certificate_path, "is no certificate of an authority"));
        }
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(refuse(&key_path, "is the key of another certificate"));
        }
        let trust_domain = stated_trust_domain(&certificate)
            .ok_or_else(|| refuse(&certificate_path, "names no trust domain"))?;
        let validity = Validity::of(&certificate);
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { issuer, certificate_pem, trust_domain, validity })
    }

    /// The same authority, vouching for the workloads of another trust domain, as it
    /// should not.
    #[must_use]
    pub fn vouching_for(self, trust_domain: &str) -> Self {
        Self { trust_domain: trust_domain.to_owned(), ..self }
    }

    /// Saves the authority in a folder that has none.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        for (name, pem, mode) in [
            ("ca.key", &self.issuer.key().serialize_pem(), KEY_MODE),
            ("ca.crt", &self.certificate_pem, CERTIFICATE_MODE),
        ] {
            let path = folder.join(name);
            let file = stage(&path, pem, mode)?;
            file.persist_noclobber(&path)
                .map_err(|failure| Error::io("create", &path, failure.error))?;
        }
        Ok(())
    }

    /// The certificate, which is the trust bundle of its workloads.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The time that it is valid for.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Issues a certificate with a new key, ECDSA on P-256.
    pub fn issue(&self, leaf: &Leaf<'_>) -> Result<Issued, Error> {
        let Leaf { workload, namespace, validity } = leaf;
        let spiffe_id = self.spiffe_id(workload, namespace)?;
        let mut names = vec![SanType::URI(spiffe_id.to_string().try_into()?)];
        for name in [
            (*workload).to_owned(),
            format!("{workload}.{namespace}"),
            format!("{workload}.{namespace}.svc"),
            format!("{workload}.{namespace}.svc.cluster.local"),
            "localhost".to_owned(),
        ] {
            names.push(SanType::DnsName(name.try_into()?));
        }
        names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        names.push(SanType::IpAddress(Ipv6Addr::LOCALHOST.into()));

        let mut parameters = CertificateParams::default();
        validity.set(&mut parameters)?;
        parameters.distinguished_name.push(DnType::CommonName, *workload);
        parameters.subject_alt_names = names;
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;

        let key = KeyPair::generate()?;
        Ok(Issued {
            certificate_pem: parameters.signed_by(&key, &self.issuer)?.pem(),
            private_key_pem: key.serialize_pem(),
        })
    }

    fn spiffe_id(&self, workload: &str, namespace: &str) -> Result<SpiffeId, Error> {
        check_name(workload, "workload")?;
        check_name(namespace, "namespace")?;
        SpiffeId::new(&self.trust_domain, namespace, workload)
            .map_err(|_| Error::TrustDomain(self.trust_domain.clone()))
    }

    /// The validity of the certificate that a workload has in a folder, if this
    /// authority issued it to that workload and it is not yet due for renewal.
    pub(super) fn find_fresh(
        &self,
        folder: &Path,
        workload: &str,
        namespace: &str,
        now: Timestamp,
    ) -> Option<Validity> {
        let files = identity_files(folder, workload);
        let identity = Identity::load(&files).ok()?;
        let expected = self.spiffe_id(workload, namespace).ok()?;
        let certificate = CertificateDer::from_pem_file(&files.certificate).ok()?;
        let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
        let validity = Validity::of(&parsed);
        let is_fresh = *identity.spiffe_id() == expected
            && now < validity.renew_after()
            && self.vouches_for(&certificate, now).is_some();
        is_fresh.then_some(validity)
    }

    pub(super) fn vouches_for(
        &self,
        certificate: &CertificateDer<'_>,
        now: Timestamp,
    ) -> Option<()> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).ok()?).ok()?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate).ok()?,
            &roots,
            &[],
            UnixTime::since_unix_epoch(now.saturating_since(Timestamp::default())),
            aws_lc_rs::default_provider().signature_verification_algorithms.all,
        )
        .ok()
    }
}

impl Issued {
    /// Saves the certificate and the key of a workload, in place of those that
    /// it has.
    ///
    /// Each file is replaced at once. Between the two replacements they do not
    /// fit each other, which [`Identity::load`] refuses.
    pub fn save(&self, folder: &Path, workload: &str) -> Result<(), Error> {
        let IdentityFiles { certificate, private_key, trust_bundle: _ } =
            identity_files(folder, workload);
        for (path, pem, mode) in [
            (private_key, &self.private_key_pem, KEY_MODE),
            (certificate, &self.certificate_pem, CERTIFICATE_MODE),
        ] {
            stage(&path, pem, mode)?
                .persist(&path)
                .map_err(|failure| Error::io("replace", &path, failure.error))?;
        }
        Ok(())
    }
}

/// Writes a file beside `path`, to be moved there when it is whole.
fn stage(path: &Path, contents: &str, mode: u32) -> Result<NamedTempFile, Error> {
    let folder = path.parent().unwrap_or(path);
    let write = || {
        let mut file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(folder)?;
        file.write_all(contents.as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().map_err(|source| Error::io("write", path, source))
}

/// Reads one of the two files of an authority.
fn read_half(path: &Path, other: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound && other.exists() {
            Error::HalfAnAuthority { present: other.to_owned(), missing: path.to_owned() }
        } else {
            Error::io("read", path, source)
        }
    })
}

fn stated_trust_domain(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://").map(str::to_owned),
        _ => None,
    })
}
