//! What a person can do with the services, as lines for a shell that are true in the
//! current directory.

use std::{
    fmt::{self, Write as _},
    path::Path,
};

use uuid::Uuid;

use super::DATA_DIR;
use crate::{certs, service::Service, suite::Endpoints};

/// Who greets, and for which services.
pub(super) struct Greeting<'a> {
    pub(super) data_dir: &'a Path,
    /// How the person called this program.
    pub(super) invoked_as: &'a str,
    /// What the line that creates something is sent with, again and again.
    pub(super) request_id: Uuid,
}

/// A call that tells something of an empty shop, too.
struct Example {
    service: Service,
    rpc: &'static str,
    request: String,
}

impl Greeting<'_> {
    /// The text, with services that are there.
    pub(super) fn at(&self, endpoints: &Endpoints) -> String {
        let Self { data_dir, invoked_as, .. } = self;
        let identity = certs::identity_files(&data_dir.join("certs"), certs::WORKLOADS[0]);
        let grpcurl = format!(
            "grpcurl -cacert {} -cert {} -key {}",
            quoted(identity.trust_bundle.display()),
            quoted(identity.certificate.display()),
            quoted(identity.private_key.display())
        );
        let data_dir_option = match data_dir.to_str() {
            Some(DATA_DIR) => String::new(),
            _ => format!(" --data-dir {}", quoted(data_dir.display())),
        };
        let invoked_as = quoted(invoked_as);
        let catalog = endpoints.of(Service::Catalog).grpc;

        let mut text = String::from("\nCall them as the operator, with any gRPC client:\n");
        let mut line = |line: fmt::Arguments<'_>| {
            let _ = writeln!(text, "  {line}");
        };
        line(format_args!("{grpcurl} {catalog} list"));
        for Example { service, rpc, request } in self.examples() {
            let address = endpoints.of(service).grpc;
            line(format_args!("{grpcurl} -d {} {address} {rpc}", quoted(request)));
        }
        text.push_str("or with this program:\n");
        for Example { rpc, request, .. } in self.examples() {
            let name = rpc.rsplit_once('.').map_or(rpc, |(_package, name)| name);
            let _ =
                writeln!(text, "  {invoked_as} call {name} {}{data_dir_option}", quoted(request));
        }
        let _ = write!(
            text,
            "Work on one of them, and run what you have built in its place:\n  \
             {invoked_as} dev --only catalog-service{data_dir_option}\n\
             Databases, certificates and logs are in {}. Ctrl-C ends it all.\n",
            data_dir.display()
        );
        text
    }

    fn examples(&self) -> [Example; 3] {
        let Self { request_id, .. } = self;
        let example = |service, rpc, request| Example { service, rpc, request };
        [
            example(
                Service::Catalog,
                "chandlery.catalog.v1.CatalogService/ListProducts",
                r#"{"page_size": 3}"#.to_owned(),
            ),
            example(
                Service::User,
                "chandlery.user.v1.UserService/CreateUser",
                format!(
                    "{{\"user\": {{\"email\": \"{}@example.com\", \"display_name\": \"Grace\"}}, \
                     \"request_id\": \"{request_id}\"}}",
                    request_id.simple()
                ),
            ),
            example(
                Service::Purchase,
                "chandlery.purchase.v1.PurchaseService/AuditPurchases",
                r#"{"page_size": 3}"#.to_owned(),
            ),
        ]
    }
}

/// A word as a shell takes it.
fn quoted(word: impl fmt::Display) -> String {
    let word = word.to_string();
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "/._-".contains(it);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word;
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_takes_a_quoted_word_as_it_is() {
        assert_eq!(quoted(".chandlery/certs/ca.crt"), ".chandlery/certs/ca.crt");
        for word in ["it's here", r#"{"page_size": 3}"#, "$HOME;`ls`\\", ""] {
            let script = format!("printf %s {}", quoted(word));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
