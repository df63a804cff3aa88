# Every task by name; CI calls only these.

buf := "npx --yes @bufbuild/buf@1.75.0"

# List the recipes.
default:
    @just --list --unsorted

# Show the suite at work: purchases through three services, and processes killed meanwhile.
demo *arguments:
    cargo run -- demo {{ arguments }}

# Run every test.
test:
    cargo test --workspace

# Check formatting, lints, dependencies and the contract.
lint: lint-rust lint-dependencies lint-contract

# Check formatting and lints of the code.
lint-rust:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Check licences, bans and sources of the dependencies; needs cargo-deny.
lint-dependencies:
    cargo deny --log-level warn check bans licenses sources

# Check the dependencies for known vulnerabilities; needs cargo-deny and the network.
advisories:
    cargo deny check advisories

# Check the contract; needs npx.
lint-contract:
    {{ buf }} lint proto

# Check that the contract still serves the callers of an earlier revision; needs npx.
breaking revision="origin/main":
    {{ buf }} breaking proto --against ".git#ref={{ revision }},subdir=proto"

# Write docs/reference.md from the contract.
reference:
    cargo run --package suite-tests --example reference

# Explore the purchase protocol further than the tests do; takes several minutes.
model:
    cargo run --package suite-tests --example model

# Send ten thousand bad inputs to every RPC in turn; --seed sends those of a run again.
bad-input *arguments:
    cargo run --package suite-tests --example bad_input -- {{ arguments }}

# Carry a million products in and out, with a slow reader, and show what it takes; takes minutes.
streams *count:
    cargo run --release --package suite-tests --example streams -- {{ count }}

# Run every case of hostile peers and lost services in full, and print the table; takes minutes.
hardening *arguments:
    cargo run --release --package suite-tests --example hardening -- {{ arguments }}

# Disturb a suite in every way at once for an hour, and show that nothing grows.
soak *arguments:
    cargo run --release --package suite-tests --example soak -- {{ arguments }}

# Plant known bugs in copies of the code, and check that the tests catch each.
planted:
    tests/planted/check

# Everything that gates a landing.
ci: lint test planted
    cargo run -- demo
