//! Writes `docs/reference.md` from the contract: `just reference`.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    fs::write(page, suite_tests::reference::markdown())
}
