//! Compiles the contract with protox, so that no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 8] = [
    "chandlery/catalog/v1/catalog_service.proto",
    "chandlery/catalog/v1/stock_service.proto",
    "chandlery/policy/v1/policy.proto",
    "chandlery/purchase/v1/purchase_service.proto",
    "chandlery/type/v1/money.proto",
    "chandlery/user/v1/account_service.proto",
    "chandlery/user/v1/auth_service.proto",
    "chandlery/user/v1/user_service.proto",
];

/// Messages that hold passwords, tokens or keys.
const SECRET: [&str; 7] = [
    "chandlery.user.v1.CreateApiKeyResponse",
    "chandlery.user.v1.CreateUserRequest",
    "chandlery.user.v1.ExchangeApiKeyRequest",
    "chandlery.user.v1.RefreshTokenRequest",
    "chandlery.user.v1.SignInRequest",
    "chandlery.user.v1.Tokens",
    "chandlery.user.v1.UpdateUserRequest",
];

#[expect(clippy::disallowed_methods, reason = "cargo configures a build script so")]
fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());

    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    // The typed set would lose the options that policies are stated in; its
    // encoding keeps them.
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.binpb");
    fs::write(&descriptors, compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure()
        .codec_path("crate::codec::Codec")
        .build_transport(false)
        .skip_debug(SECRET)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
