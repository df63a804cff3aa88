//! A development authority and the certificates of the workloads, each with its
//! SPIFFE ID and, for callers that know nothing of SPIFFE, its DNS names.
//! Production takes its certificates from an authority that keeps its key.

mod authority;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use client::IdentityFiles;
use service_runtime::{Clock, Timestamp};

pub use authority::{Authority, Issued, Leaf, Validity};

/// The workloads of the suite, the operator first.
pub const WORKLOADS: [&str; 4] =
    ["chandlery", "user-service", "catalog-service", "purchase-service"];

/// The trust domain of an authority that is created without one.
pub const TRUST_DOMAIN: &str = "chandlery.local";

/// The namespace of the workloads.
pub const NAMESPACE: &str = "chandlery";

/// Makes a development authority and the certificates of the workloads
///
/// Run again on the same folder, it keeps the authority and renews what is past
/// two thirds of its life or cannot be used.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The folder of the certificates; made if it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// A workload that needs a certificate; may be given several times
    #[arg(long = "workload", value_name = "NAME", default_values = WORKLOADS)]
    pub workloads: Vec<String>,

    /// The trust domain of a new authority [default: chandlery.local]
    #[arg(long, value_name = "DOMAIN")]
    pub trust_domain: Option<String>,

    /// The namespace of the workloads
    #[arg(long, value_name = "NAME", default_value = NAMESPACE)]
    pub namespace: String,

    /// How long new certificates of workloads are valid
    #[arg(
        long,
        value_name = "DAYS",
        default_value_t = 90,
        value_parser = clap::value_parser!(u16).range(1..=3650)
    )]
    pub validity_days: u16,

    /// Renew every certificate of a workload, however fresh
    #[arg(long)]
    pub force: bool,
}

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The authority has lost a file.
    #[error(
        "{} is there but {} is missing; restore it, or move the other away to begin a new authority",
        present.display(),
        missing.display()
    )]
    HalfAnAuthority {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// The files of the authority hold something else.
    #[error(
        "{} {problem}; restore it, or move ca.crt and ca.key away to begin a new authority",
        path.display()
    )]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The authority is that of another trust domain.
    #[error(
        "the authority in {} is of the trust domain {found}; \
         leave out --trust-domain, or choose another folder with --out",
        folder.display()
    )]
    OtherTrustDomain {
        /// The folder.
        folder: PathBuf,
        /// The trust domain of the authority.
        found: String,
    },
    /// A trust domain that SPIFFE does not allow.
    #[error("{0:?} is no trust domain; use lower-case letters, digits, dots and dashes")]
    TrustDomain(String),
    /// A workload or namespace that is no DNS label.
    #[error("{0:?} is no name of a {1}; use lower-case letters, digits and dashes, at most 63")]
    Name(String, &'static str),
    /// A time that X.509 cannot state.
    #[error("a certificate cannot be valid at {0}")]
    Time(Timestamp),
    /// The certificate cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Generate(#[from] rcgen::Error),
}

/// Makes what is missing in the folder and renews what is due.
pub fn run(args: &Args, clock: &Clock) -> Result<Summary, Error> {
    let Args { out, workloads, trust_domain, namespace, validity_days, force } = args;
    let now = clock.now();
    let validity = Duration::from_hours(24 * u64::from(*validity_days));
    check_name(namespace, "namespace")?;
    for workload in workloads {
        check_name(workload, "workload")?;
    }

    fs::create_dir_all(out).map_err(|source| Error::io("create", out, source))?;
    let (authority, outcome) = if out.join("ca.crt").exists() || out.join("ca.key").exists() {
        (Authority::load(out)?, Outcome::Kept)
    } else {
        let authority = Authority::create(trust_domain.as_deref().unwrap_or(TRUST_DOMAIN), now)?;
        authority.save(out)?;
        (authority, Outcome::Created)
    };
    if trust_domain.as_ref().is_some_and(|domain| *domain != authority.trust_domain()) {
        let found = authority.trust_domain().to_owned();
        return Err(Error::OtherTrustDomain { folder: out.clone(), found });
    }
    let authority_ends = authority.validity().not_after;
    if authority_ends <= now {
        return Err(Error::Authority { path: out.join("ca.crt"), problem: "has expired" });
    }

    let mut entries = vec![Entry { name: "ca".to_owned(), outcome, not_after: authority_ends }];
    let mut renew_after = authority_ends;
    for workload in workloads {
        let existed = identity_files(out, workload).certificate.exists();
        let fresh = authority.find_fresh(out, workload, namespace, now).filter(|_| !force);
        let (outcome, validity) = if let Some(validity) = fresh {
            (Outcome::Kept, validity)
        } else {
            let mut leaf = Leaf::new(workload, namespace, now, validity);
            leaf.validity.not_after = leaf.validity.not_after.min(authority_ends);
            authority.issue(&leaf)?.save(out, workload)?;
            (if existed { Outcome::Renewed } else { Outcome::Created }, leaf.validity)
        };
        renew_after = renew_after.min(validity.renew_after());
        let not_after = validity.not_after;
        entries.push(Entry { name: workload.clone(), outcome, not_after });
    }
    Ok(Summary {
        folder: out.clone(),
        trust_domain: authority.trust_domain().to_owned(),
        entries,
        renew_after,
    })
}

/// Where the identity of a workload lies in the folder of the certificates.
pub fn identity_files(folder: &Path, workload: &str) -> IdentityFiles {
    IdentityFiles {
        certificate: folder.join(format!("{workload}.crt")),
        private_key: folder.join(format!("{workload}.key")),
        trust_bundle: folder.join("ca.crt"),
    }
}

impl Args {
    /// What the command line does when it is given a folder alone.
    pub fn new(out: PathBuf) -> Self {
        Self {
            out,
            workloads: WORKLOADS.map(str::to_owned).into(),
            trust_domain: None,
            namespace: NAMESPACE.to_owned(),
            validity_days: 90,
            force: false,
        }
    }
}

/// What was done, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The folder of the certificates.
    pub folder: PathBuf,
    /// The trust domain of the authority.
    pub trust_domain: String,
    /// The authority, then the workloads.
    pub entries: Vec<Entry>,
    /// When the first of the certificates will be due for renewal.
    pub renew_after: Timestamp,
}

/// What was done with one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The workload, or `ca`.
    pub name: String,
    /// What was done.
    pub outcome: Outcome,
    /// The end of its validity.
    pub not_after: Timestamp,
}

/// What was done with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none.
    Created,
    /// It was due, could not be used, or had to be renewed by order.
    Renewed,
    /// It is still good.
    Kept,
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { folder, trust_domain, entries, renew_after } = self;
        writeln!(formatter, "Certificates of {trust_domain} in {}", folder.display())?;
        let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or_default();
        for Entry { name, outcome, not_after } in entries {
            let outcome = match outcome {
                Outcome::Created => "created",
                Outcome::Renewed => "renewed",
                Outcome::Kept => "kept",
            };
            writeln!(formatter, "  {name:width$}  {outcome:7}  until {}", date(*not_after))?;
        }
        write!(formatter, "Run this again after {} to renew them.", date(*renew_after))
    }
}

fn date(timestamp: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(timestamp.as_micros())
        .map_or_else(|_| timestamp.to_string(), |time| time.strftime("%F").to_string())
}

impl Error {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// Refuses what is no DNS label, and the workload whose files would be those of
/// the authority.
fn check_name(name: &str, kind: &'static str) -> Result<(), Error> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let is_label = (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-');
    let is_reserved = (kind, name) == ("workload", "ca");
    if is_label && !is_reserved { Ok(()) } else { Err(Error::Name(name.to_owned(), kind)) }
}

#[cfg(test)]
mod tests;
