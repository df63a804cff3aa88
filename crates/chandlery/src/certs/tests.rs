use std::os::unix::fs::PermissionsExt;

use client::Identity;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tempfile::TempDir;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::{authority::AUTHORITY_VALIDITY, *};

const DAY: Duration = Duration::from_hours(24);

/// A day in 2026.
const NOW: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);

fn make(args: &Args, now: Timestamp) -> Summary {
    run(args, &Clock::new(move || now)).unwrap()
}

fn refusal(args: &Args, now: Timestamp) -> String {
    run(args, &Clock::new(move || now)).unwrap_err().to_string()
}

fn outcomes(summary: &Summary) -> Vec<Outcome> {
    summary.entries.iter().map(|entry| entry.outcome).collect()
}

fn contents(folder: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_certificate_says_who_its_workload_is_and_no_more() {
    let authority = Authority::create("chandlery.local", NOW).unwrap();
    let leaf = Leaf::new("catalog-service", "chandlery", NOW, 90 * DAY);
    let issued = authority.issue(&leaf).unwrap();

    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        names.value.general_names,
        [
            GeneralName::URI("spiffe://chandlery.local/ns/chandlery/sa/catalog-service"),
            GeneralName::DNSName("catalog-service"),
            GeneralName::DNSName("catalog-service.chandlery"),
            GeneralName::DNSName("catalog-service.chandlery.svc"),
            GeneralName::DNSName("catalog-service.chandlery.svc.cluster.local"),
            GeneralName::DNSName("localhost"),
            GeneralName::IPAddress(&[127, 0, 0, 1]),
            GeneralName::IPAddress(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ]
    );

    assert!(!certificate.is_ca());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert_eq!(usage.to_string(), "Digital Signature");
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let has = |wanted: fn(&ParsedExtension<'_>) -> bool| {
        certificate.extensions().iter().any(|extension| wanted(extension.parsed_extension()))
    };
    assert!(has(|extension| matches!(extension, ParsedExtension::SubjectKeyIdentifier(_))));
    assert!(has(|extension| matches!(extension, ParsedExtension::AuthorityKeyIdentifier(_))));
}

#[test]
fn a_certificate_is_vouched_for_by_its_authority_while_it_is_valid() {
    let authority = Authority::create("chandlery.local", NOW).unwrap();
    let other = Authority::create("chandlery.local", NOW).unwrap();
    let leaf = Leaf::new("catalog-service", "chandlery", NOW, 90 * DAY);
    let issued = authority.issue(&leaf).unwrap();
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();

    assert!(authority.vouches_for(&der, NOW).is_some());
    assert!(authority.vouches_for(&der, NOW.saturating_add(91 * DAY)).is_none());
    assert!(other.vouches_for(&der, NOW).is_none());
}

#[test]
fn a_certificate_can_be_issued_expired() {
    let authority = Authority::create("chandlery.local", NOW).unwrap();
    let validity = Validity { not_before: Timestamp::default(), not_after: NOW };
    let leaf = Leaf { workload: "catalog-service", namespace: "chandlery", validity };
    let issued = authority.issue(&leaf).unwrap();
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(Validity::of(&certificate), validity);
}

#[test]
fn the_first_run_makes_an_identity_for_every_workload() {
    let folder = TempDir::new().unwrap();
    let summary = make(&Args::new(folder.path().join("certs")), NOW);
    assert_eq!(outcomes(&summary), [Outcome::Created; 5]);
    for workload in WORKLOADS {
        let files = identity_files(&summary.folder, workload);
        let identity = Identity::load(&files).unwrap();
        assert_eq!(identity.spiffe_id().workload(), workload);
        let mode = fs::metadata(&files.private_key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let mode = fs::metadata(summary.folder.join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_run_keeps_what_is_fresh() {
    let folder = TempDir::new().unwrap();
    let args = Args::new(folder.path().to_owned());
    make(&args, NOW);
    let before = contents(folder.path());
    let summary = make(&args, NOW.saturating_add(59 * DAY));
    assert_eq!(outcomes(&summary), [Outcome::Kept; 5]);
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn what_is_past_two_thirds_of_its_life_or_broken_is_renewed() {
    let folder = TempDir::new().unwrap();
    let args = Args::new(folder.path().to_owned());
    make(&args, NOW);
    let authority = fs::read_to_string(folder.path().join("ca.crt")).unwrap();
    let later = NOW.saturating_add(61 * DAY);
    let (kept, renewed) = (Outcome::Kept, Outcome::Renewed);

    assert_eq!(outcomes(&make(&args, later)), [kept, renewed, renewed, renewed, renewed]);
    assert_eq!(outcomes(&make(&args, later)), [kept; 5]);
    fs::write(folder.path().join("user-service.key"), "").unwrap();
    assert_eq!(outcomes(&make(&args, later)), [kept, kept, renewed, kept, kept]);
    let forced = Args { force: true, ..args };
    assert_eq!(outcomes(&make(&forced, later)), [kept, renewed, renewed, renewed, renewed]);
    assert_eq!(fs::read_to_string(folder.path().join("ca.crt")).unwrap(), authority);
}

#[test]
fn an_authority_is_never_overwritten() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::create("chandlery.local", NOW).unwrap();
    authority.save(folder.path()).unwrap();
    let before = contents(folder.path());

    Authority::create("chandlery.local", NOW).unwrap().save(folder.path()).unwrap_err();
    assert_eq!(contents(folder.path()), before);

    let args = Args::new(folder.path().to_owned());
    let other = Args { trust_domain: Some("other.local".to_owned()), ..args.clone() };
    assert!(refusal(&other, NOW).contains("is of the trust domain chandlery.local; leave out"));
    let late = NOW.saturating_add(AUTHORITY_VALIDITY);
    assert!(refusal(&args, late).contains("ca.crt has expired; restore it, or move"));
    fs::write(folder.path().join("ca.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(refusal(&args, NOW).contains("ca.key is the key of another certificate"));
    fs::remove_file(folder.path().join("ca.key")).unwrap();
    assert!(refusal(&args, NOW).contains("ca.key is missing; restore it, or move"));
}

#[test]
fn a_name_that_cannot_be_certified_changes_nothing() {
    let folder = TempDir::new().unwrap();
    for name in ["", "ca", "a.b", "-a", "A", "../a", &"a".repeat(64)] {
        let workloads = vec!["chandlery".to_owned(), name.to_owned()];
        let args = Args { workloads, ..Args::new(folder.path().to_owned()) };
        assert!(refusal(&args, NOW).contains("is no name of a workload"), "{name}");
    }
    let args = Args::new(folder.path().to_owned());
    let other = Args { trust_domain: Some("A b".to_owned()), ..args };
    assert!(refusal(&other, NOW).contains("is no trust domain"));
    assert!(contents(folder.path()).is_empty());
}

#[test]
fn the_summary_reads_as_a_list() {
    let folder = TempDir::new().unwrap();
    let args =
        Args { workloads: vec!["user-service".to_owned()], ..Args::new(folder.path().to_owned()) };
    let summary = Summary { folder: "certs".into(), ..make(&args, NOW) };
    assert_eq!(
        summary.to_string(),
        "Certificates of chandlery.local in certs\n\
         \x20 ca            created  until 2036-09-18\n\
         \x20 user-service  created  until 2026-12-20\n\
         Run this again after 2026-11-20 to renew them."
    );
}
