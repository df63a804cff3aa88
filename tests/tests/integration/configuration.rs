//! Bad configuration stops a service before it serves, and says what to set.

use std::process::{Command, Output};

use crate::PROGRAM;

fn start(service: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    command.arg(service).env_clear().envs(variables.iter().copied());
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn every_missing_and_wrong_variable_is_named_with_the_form_it_takes() {
    let (code, message) = start(
        "purchase-service",
        &[
            ("GRPC_LISTEN_ADDRESS", "here"),
            ("CATALOG_SERVICE_TARGET", "catalog:50051"),
            ("DATABASE_FILE", "/no/such/folder/purchase.db"),
            ("DRAIN_DEADLINE_SECONDS", "1.5"),
        ],
    );
    assert_eq!(code, Some(78), "{message}");
    for expected in [
        "GRPC_LISTEN_ADDRESS is \"here\"; it takes an address and a port",
        "CATALOG_SERVICE_TARGET is \"catalog:50051\"; it takes a target, for example static:///",
        "USER_SERVICE_TARGET is not set; it takes a target",
        "DATABASE_FILE is \"/no/such/folder/purchase.db\"; it takes the path of a SQLite file",
        "DRAIN_DEADLINE_SECONDS is \"1.5\"; it takes",
        "TLS_CERTIFICATE_FILE is not set; it takes the path of a PEM file",
    ] {
        assert!(message.contains(expected), "{expected:?} is not in:\n{message}");
    }
    assert!(!message.contains("backtrace") && !message.contains("panicked"), "{message}");
}

#[test]
fn a_certificate_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("user.db");
    let (code, message) = start(
        "user-service",
        &[
            ("DATABASE_FILE", database.to_str().unwrap()),
            ("TLS_CERTIFICATE_FILE", "/no/such.crt"),
            ("TLS_PRIVATE_KEY_FILE", "/no/such.key"),
            ("TLS_TRUST_BUNDLE_FILE", "/no/ca.crt"),
        ],
    );
    assert_eq!(code, Some(78), "{message}");
    assert!(message.contains("TLS_CERTIFICATE_FILE"), "{message}");
    assert!(message.contains("/no/"), "{message}");
    assert!(!database.exists());
}

#[test]
fn a_service_refuses_to_start_as_another_in_no_namespace_or_on_what_is_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = folder.path().join("certs");
    let made = chandlery::certs::run(
        &chandlery::certs::Args::new(certificates.clone()),
        &service_runtime::Clock::system(),
    );
    made.unwrap();
    let path = |name: &str| certificates.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("user-service.crt"), path("user-service.key"));
    let database = folder.path().join("it.db");
    std::fs::write(&database, "Call me Ishmael. ".repeat(1_000)).unwrap();
    let variables = [
        ("DATABASE_FILE", database.to_str().unwrap()),
        ("USER_SERVICE_TARGET", "static:///127.0.0.1:50051"),
        ("TLS_CERTIFICATE_FILE", &certificate),
        ("TLS_PRIVATE_KEY_FILE", &key),
        ("TLS_TRUST_BUNDLE_FILE", &path("ca.crt")),
    ];
    let (code, message) = start("catalog-service", &variables);
    assert_eq!(code, Some(78), "{message}");
    assert!(message.contains("TLS_CERTIFICATE_FILE is of spiffe://"), "{message}");

    let (code, message) = start("user-service", &variables);
    assert_eq!(code, Some(78), "{message}");
    assert!(message.contains("DATABASE_FILE"), "{message}");
    assert!(!message.contains("listening"), "{message}");

    let misplaced: Vec<_> = variables.into_iter().chain([("NAMESPACE", "a/b")]).collect();
    let (code, message) = start("user-service", &misplaced);
    assert_eq!(code, Some(78), "{message}");
    assert!(message.contains("NAMESPACE"), "{message}");
}
