//! The invariants of the code that `docs/architecture.md` states, where a look at
//! the text can tell.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const SERVICES: [&str; 3] = ["user-service", "catalog-service", "purchase-service"];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates")
}

/// The sources below a folder, by their path in it, without what is for tests.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.push((name, code));
            }
        }
    }
    found
}

/// The files of a service that use a crate.
fn users_of(service: &str, name: &str) -> BTreeSet<String> {
    let used = format!("{name}::");
    sources(&crates().join(service).join("src"))
        .into_iter()
        .filter(|(_, code)| code.contains(&used))
        .map(|(file, _)| file)
        .collect()
}

#[test]
fn the_domain_of_a_service_knows_neither_rpc_nor_storage() {
    for service in SERVICES {
        for file in users_of(service, "tonic") {
            let may = ["grpc.rs", "error.rs", "worker.rs"];
            let may = may.contains(&file.as_str()) || file.starts_with("grpc/");
            assert!(may, "{service}/src/{file} names tonic");
        }
        for file in users_of(service, "sqlx") {
            assert!(file.starts_with("store/") || file == "error.rs", "{service}/src/{file}");
        }
        for file in users_of(service, "proto") {
            let may = ["grpc.rs", "lib.rs", "worker.rs"];
            let may = may.contains(&file.as_str()) || file.starts_with("grpc/");
            assert!(may, "{service}/src/{file} names proto");
        }
        for name in ["prost", "prost_types"] {
            assert_eq!(users_of(service, name), BTreeSet::new(), "{service}");
        }
    }
}

#[test]
fn every_service_has_the_same_rooms() {
    const ROOMS: [&str; 9] = [
        "main.rs",
        "lib.rs",
        "config.rs",
        "error.rs",
        "store.rs",
        "store/sqlite.rs",
        "grpc.rs",
        "grpc/convert.rs",
        "../migrations/sqlite",
    ];
    for service in SERVICES {
        for room in ROOMS {
            let path = crates().join(service).join("src").join(room);
            assert!(path.exists(), "{} is missing", path.display());
        }
        let main = fs::read_to_string(crates().join(service).join("src/main.rs")).unwrap();
        assert!(main.lines().count() <= 40, "{service}/src/main.rs does more than compose");
    }
}

#[test]
fn the_environment_is_read_by_main_alone() {
    const READERS: [&str; 2] = ["service-runtime/src/program.rs", "chandlery/src/cli.rs"];
    for (file, code) in sources(&crates()) {
        let reads = ["env::var(", "env::vars(", "env::var_os(", "env::vars_os("];
        if reads.iter().any(|call| code.contains(call)) {
            assert!(READERS.contains(&file.as_str()) || file == "proto/build.rs", "{file}");
        }
    }
}
