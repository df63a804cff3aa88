//! SPIFFE IDs: who a workload is, as its certificate states it.

use std::{fmt, str::FromStr, sync::Arc};

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// The longest ID that the SPIFFE specification allows, in bytes.
const MAX_LENGTH: usize = 2048;

/// The identity of a workload of the suite,
/// `spiffe://<trust domain>/ns/<namespace>/sa/<workload>`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

/// Why something is no SPIFFE ID of a workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text has another form.
    #[error(
        "{0:?} is not a SPIFFE ID of the form spiffe://<trust domain>/ns/<namespace>/sa/<workload>"
    )]
    Form(String),
    /// The certificate is not X.509.
    #[error("the certificate cannot be parsed")]
    Certificate,
    /// The certificate has so many URIs among its names.
    #[error("the certificate has {0} URI names where exactly one, the SPIFFE ID, is needed")]
    UriNames(usize),
}

impl SpiffeId {
    /// The ID of a workload.
    pub fn new(trust_domain: &str, namespace: &str, workload: &str) -> Result<Self, Error> {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{workload}").parse()
    }

    /// Reads the ID from a certificate, whose only URI name it must be
    /// (the X509-SVID specification, section 2).
    ///
    /// Says nothing about who signed the certificate.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|_| Error::Certificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| Error::Certificate)?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let uris: Vec<_> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris.as_slice() {
            [uri] => uri.parse(),
            _ => Err(Error::UriNames(uris.len())),
        }
    }

    /// The domain whose authority vouches for the workload.
    pub fn trust_domain(&self) -> &str {
        self.segment(2)
    }

    /// The namespace that the workload runs in.
    pub fn namespace(&self) -> &str {
        self.segment(4)
    }

    /// The name of the workload: its service account.
    pub fn workload(&self) -> &str {
        self.segment(6)
    }

    fn segment(&self, index: usize) -> &str {
        self.0.split('/').nth(index).unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let segments: Vec<_> = text.split('/').collect();
        match segments.as_slice() {
            ["spiffe:", "", trust_domain, "ns", namespace, "sa", workload]
                if text.len() <= MAX_LENGTH
                    && is_trust_domain(trust_domain)
                    && is_path_segment(namespace)
                    && is_path_segment(workload) =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(Error::Form(text.to_owned())),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The last second in which a certificate is valid, since the Unix epoch.
pub fn expiry(certificate: &CertificateDer<'_>) -> Result<i64, Error> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| Error::Certificate)?;
    Ok(certificate.validity().not_after.timestamp())
}

/// Whether this is the name of a trust domain.
pub fn is_trust_domain(text: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    (1..=255).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_path_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_parsed_into_its_parts_and_back() {
        let text = "spiffe://chandlery.local/ns/chandlery/sa/catalog-service";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(id.trust_domain(), "chandlery.local");
        assert_eq!(id.namespace(), "chandlery");
        assert_eq!(id.workload(), "catalog-service");
        assert_eq!(id.to_string(), text);
        assert_eq!(SpiffeId::new("chandlery.local", "chandlery", "catalog-service"), Ok(id));
    }

    #[test]
    fn what_has_another_form_is_refused() {
        let long = format!("spiffe://a/ns/b/sa/{}", "c".repeat(MAX_LENGTH));
        for text in [
            "",
            "catalog-service",
            "https://a/ns/b/sa/c",
            "SPIFFE://a/ns/b/sa/c",
            "spiffe:/a/ns/b/sa/c",
            "spiffe://a",
            "spiffe://a/",
            "spiffe:///ns/b/sa/c",
            "spiffe://A/ns/b/sa/c",
            "spiffe://a:443/ns/b/sa/c",
            "spiffe://user@a/ns/b/sa/c",
            "spiffe://a/ns//sa/c",
            "spiffe://a/ns/../sa/c",
            "spiffe://a/ns/b/sa/.",
            "spiffe://a/ns/b/sa/c/",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://a/ns/b/sa/c?d",
            "spiffe://a/ns/b/sa/%63",
            "spiffe://a/sa/b/ns/c",
            long.as_str(),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(Error::Form(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_certificate_states_exactly_one_id() {
        let read = |uris: &[&str]| {
            let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            parameters
                .subject_alt_names
                .extend(uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())));
            let key = rcgen::KeyPair::generate().unwrap();
            SpiffeId::from_certificate(parameters.self_signed(&key).unwrap().der())
        };
        let id = "spiffe://a/ns/b/sa/c";
        assert_eq!(read(&[id]), id.parse());
        assert_eq!(read(&[]), Err(Error::UriNames(0)));
        assert_eq!(read(&[id, "https://a"]), Err(Error::UriNames(2)));
        assert_eq!(read(&["spiffe://a"]), Err(Error::Form("spiffe://a".to_owned())));
    }

    #[test]
    fn a_certificate_states_when_it_expires() {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.not_after = time::OffsetDateTime::from_unix_timestamp(1_900_000_000).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        assert_eq!(expiry(certificate.der()), Ok(1_900_000_000));
        assert_eq!(expiry(&CertificateDer::from(vec![0])), Err(Error::Certificate));
    }

    proptest! {
        #[test]
        fn an_id_is_written_as_it_was_read(
            text in r"spiffe://[a-z0-9._-]{1,9}/ns/[A-Za-z0-9._-]{1,9}/sa/[A-Za-z0-9._-]{1,9}|[a-z:/.]*|\PC*",
        ) {
            if let Ok(id) = text.parse::<SpiffeId>() {
                let parts = SpiffeId::new(id.trust_domain(), id.namespace(), id.workload());
                prop_assert_eq!(parts, Ok(id.clone()));
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
