//! What is written about the contract: the reference is what the contract says, and
//! the reasons of errors are those that the services give.
//!
//! A reason has two words at least (`SKU_TAKEN`). The comment of an RPC states its own
//! in a paragraph that begins with "Errors"; `docs/api-design.md` explains, in
//! backticks, those that any RPC may answer with.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What looks like a reason and is a status code.
const CODES: [&str; 9] = [
    "ALREADY_EXISTS",
    "DATA_LOSS",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of every file of a kind below a folder, by its name.
fn files(folder: &Path, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    found
}

fn is_reason(word: &str) -> bool {
    let kept = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    word.contains('_')
        && word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.chars().all(kept)
        && !CODES.contains(&word)
}

fn reasons(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| is_reason(word))
        .map(str::to_owned)
}

/// The reasons that the RPCs of a package state.
fn stated(package: &str) -> BTreeSet<String> {
    files(&root().join("proto/chandlery").join(package), "proto")
        .iter()
        .flat_map(|(_, text)| {
            let comments = text.lines().map(|line| line.trim().strip_prefix("//").unwrap_or(""));
            let comments = comments.map(str::trim).collect::<Vec<_>>().join("\n");
            comments
                .split("\n\n")
                .filter(|paragraph| paragraph.trim_start().starts_with("Errors"))
                .flat_map(reasons)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The reasons that a crate gives: those that `error.rs` maps to, and those that it
/// refuses for elsewhere.
fn given(name: &str) -> BTreeSet<String> {
    let mut given = BTreeSet::new();
    for (file, text) in files(&root().join("crates").join(name).join("src"), "rs") {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let literals: Vec<_> = match file.as_str() {
            "error.rs" => code.split('"').collect(),
            _ => code.split("refusal(").skip(1).filter_map(|call| call.split('"').nth(1)).collect(),
        };
        given.extend(literals.into_iter().filter(|word| is_reason(word)).map(str::to_owned));
    }
    given
}

#[test]
fn the_reference_is_what_the_contract_says() {
    let page = fs::read_to_string(root().join("docs/reference.md")).unwrap_or_default();
    assert!(
        page == suite_tests::reference::markdown(),
        "docs/reference.md is not what the contract says; write it anew with `just reference`"
    );
}

#[test]
fn every_reason_of_an_error_is_stated_and_given() {
    let design = fs::read_to_string(root().join("docs/api-design.md")).unwrap();
    let explained: BTreeSet<_> =
        design.split('`').filter(|word| is_reason(word)).map(str::to_owned).collect();
    let common = given("service-runtime");
    let (mut all_stated, mut all_given) = (BTreeSet::new(), common.clone());
    let mut problems = Vec::new();
    for package in ["user", "catalog", "purchase"] {
        let (stated, given) = (stated(package), given(&format!("{package}-service")));
        for reason in given.difference(&stated) {
            problems.push(format!("{reason} is given by {package}-service and stated by no RPC"));
        }
        for reason in stated.difference(&given).filter(|reason| !common.contains(*reason)) {
            problems.push(format!("{reason} is stated and never given by {package}-service"));
        }
        all_stated.extend(stated);
        all_given.extend(given);
    }
    for reason in common.difference(&all_stated).filter(|reason| !explained.contains(*reason)) {
        problems.push(format!("{reason} is given by all and not in docs/api-design.md"));
    }
    for reason in explained.difference(&all_given) {
        problems.push(format!("{reason} is in docs/api-design.md and given by none"));
    }
    assert!(problems.is_empty(), "{problems:#?}");
}
