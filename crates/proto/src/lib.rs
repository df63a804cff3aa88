//! The contract as Rust sees it: the types generated from `proto/`, the
//! descriptors behind server reflection, and the policies that the contract
//! states for every RPC.

mod codec;
pub mod policy;

pub use policy::{Callers, Idempotency, Policies, Policy, Role};

/// The descriptors of the whole contract, an encoded
/// `google.protobuf.FileDescriptorSet` with its comments and options.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

/// Shows that there is a message, and nothing of what it holds.
macro_rules! secret {
    ($($message:ident),+) => {$(
        impl std::fmt::Debug for user::v1::$message {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        }
    )+};
}

secret!(
    CreateApiKeyResponse,
    CreateUserRequest,
    ExchangeApiKeyRequest,
    RefreshTokenRequest,
    SignInRequest,
    Tokens,
    UpdateUserRequest
);

/// Declares the module of a generated package.
macro_rules! package {
    ($(#[$meta:meta])* $name:ident, $package:literal) => {
        $(#[$meta])*
        #[allow(
            clippy::all,
            clippy::pedantic,
            clippy::allow_attributes_without_reason,
            missing_docs,
            unreachable_pub,
            reason = "generated"
        )]
        pub mod $name {
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    };
}

package!(
    /// What is sold, and how much of it there is.
    catalog,
    "chandlery.catalog.v1"
);
package!(
    /// Who bought what.
    purchase,
    "chandlery.purchase.v1"
);
package!(
    /// Types that every package shares.
    r#type,
    "chandlery.r#type.v1"
);
package!(
    /// Who buys, and with what credit.
    user,
    "chandlery.user.v1"
);
