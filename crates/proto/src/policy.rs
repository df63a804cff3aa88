//! What the contract demands of the callers of each RPC, read from the
//! descriptors (`chandlery.policy.v1`).

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use prost_reflect::{DescriptorPool, MethodDescriptor};

/// The messages that policies are stated in.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("chandlery.policy.v1");
}

use v1::MethodPolicy;
pub use v1::Role;

const EXTENSION: &str = "chandlery.policy.v1.method";

/// The policy of one RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who may call.
    pub callers: Callers,
    /// On behalf of whom; empty if no end user is needed.
    pub roles: Vec<Role>,
    /// How long a call may take when its caller sets no deadline.
    pub default_deadline: Duration,
    /// Whether a call may be repeated.
    pub idempotency: Idempotency,
    /// Whether its stream has no end of its own and can be taken up again.
    pub resumable: bool,
    /// Whether either side sends a stream.
    pub streaming: bool,
}

/// Who may call an RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Every workload of the trust domain and namespace.
    AnyWorkload,
    /// The workloads of these names.
    Workloads(Vec<String>),
}

impl Callers {
    /// Whether the workload of this name may call.
    pub fn admit(&self, workload: &str) -> bool {
        match self {
            Self::AnyWorkload => true,
            Self::Workloads(names) => names.iter().any(|name| name == workload),
        }
    }
}

/// Whether a call may be repeated: the standard `idempotency_level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idempotency {
    /// The contract does not say, so no.
    Unknown,
    /// The call changes nothing.
    NoSideEffects,
    /// A repeat has no effect beyond that of the first call.
    Idempotent,
}

/// Why an RPC has no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The descriptors themselves cannot be read.
    #[error("the descriptors of the contract cannot be read: {0}")]
    Descriptors(String),
    /// An RPC states no policy, or half of one.
    #[error("{rpc} {problem}; state (chandlery.policy.v1.method) beside it")]
    Policy {
        /// The full name of the RPC.
        rpc: String,
        /// What is missing.
        problem: &'static str,
    },
}

/// The policies of a whole contract, by the path of the RPC
/// (`/package.Service/Method`). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policies(Arc<HashMap<String, Policy>>);

/// The contract does not change while a process runs, so it is read once, however
/// many channels and servers ask.
static CONTRACT: LazyLock<Result<Policies, Error>> =
    LazyLock::new(|| Policies::read(crate::DESCRIPTOR_SET));

impl Policies {
    /// Reads the policies of the contract of the suite.
    pub fn load() -> Result<Self, Error> {
        CONTRACT.clone()
    }

    /// Reads the policies of every RPC in an encoded `FileDescriptorSet`.
    ///
    /// Refuses the whole set if any RPC states none.
    pub fn read(descriptor_set: &[u8]) -> Result<Self, Error> {
        let pool = DescriptorPool::decode(descriptor_set)
            .map_err(|error| Error::Descriptors(error.to_string()))?;
        let methods: Vec<_> =
            pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
        methods
            .iter()
            .map(|method| {
                let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
                Ok((path, read_one(&pool, method)?))
            })
            .collect::<Result<_, _>>()
            .map(|policies| Self(Arc::new(policies)))
    }

    /// The policy of the RPC at this path; none means that nobody may call it.
    pub fn get(&self, path: &str) -> Option<&Policy> {
        self.0.get(path)
    }

    /// Every RPC and its policy, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Policy)> {
        self.0.iter().map(|(path, policy)| (path.as_str(), policy))
    }
}

fn read_one(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<Policy, Error> {
    let refuse = |problem| Error::Policy { rpc: method.full_name().to_owned(), problem };
    let extension = pool
        .get_extension_by_name(EXTENSION)
        .ok_or_else(|| Error::Descriptors(format!("{EXTENSION} is not among them")))?;
    let options = method.options();
    if !options.has_extension(&extension) {
        return Err(refuse("states no policy"));
    }
    let value = options.get_extension(&extension);
    let stated = value
        .as_message()
        .and_then(|message| message.transcode_to::<MethodPolicy>().ok())
        .ok_or_else(|| refuse("states no policy"))?;

    let callers = match (stated.any_workload, stated.workloads.is_empty()) {
        (true, true) => Callers::AnyWorkload,
        (false, false) => Callers::Workloads(stated.workloads.clone()),
        (true, false) => return Err(refuse("names workloads and admits any")),
        (false, true) => return Err(refuse("admits nobody")),
    };
    let roles: Vec<_> = stated.roles().collect();
    if roles.contains(&Role::Unspecified) {
        return Err(refuse("names a role that is none"));
    }
    let default_deadline = stated
        .default_deadline
        .and_then(|deadline| u64::try_from(deadline.seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| refuse("states no default deadline in whole seconds"))?;
    let resumable = stated.resumable;
    if resumable && !method.is_server_streaming() {
        return Err(refuse("is resumable and no stream"));
    }

    let idempotency =
        options.get_field_by_name("idempotency_level").and_then(|value| value.as_enum_number());
    let idempotency = match idempotency {
        Some(1) => Idempotency::NoSideEffects,
        Some(2) => Idempotency::Idempotent,
        _ => Idempotency::Unknown,
    };
    let streaming = method.is_client_streaming() || method.is_server_streaming();
    Ok(Policy { callers, roles, default_deadline, idempotency, resumable, streaming })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_of_the_contract_states_its_policy() {
        let policies = Policies::load().unwrap();
        assert!(policies.iter().count() > 0);
    }

    #[test]
    fn a_policy_says_who_may_call_how_long_and_how_often() {
        let policies = Policies::load().unwrap();
        assert_eq!(
            policies.get("/chandlery.catalog.v1.StockService/Reserve"),
            Some(&Policy {
                callers: Callers::Workloads(vec!["purchase-service".into()]),
                default_deadline: Duration::from_secs(2),
                idempotency: Idempotency::Idempotent,
                roles: Vec::new(),
                resumable: false,
                streaming: false,
            })
        );
        let list = policies.get("/chandlery.user.v1.UserService/ListUsers").unwrap();
        assert_eq!((&list.callers, &*list.roles), (&Callers::AnyWorkload, &[Role::Staff][..]));
        let watch = policies.get("/chandlery.catalog.v1.CatalogService/WatchProducts").unwrap();
        assert!(watch.resumable && watch.streaming);
        let import = policies.get("/chandlery.catalog.v1.CatalogService/ImportProducts").unwrap();
        assert_eq!(import.idempotency, Idempotency::Unknown);
    }

    #[test]
    fn an_rpc_without_a_policy_is_refused_by_name() {
        let mut compiler = protox::Compiler::new(["tests", "../../proto"]).unwrap();
        compiler.include_imports(true).open_file("unstated.proto").unwrap();
        let error = Policies::read(&compiler.encode_file_descriptor_set()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unstated.v1.UnstatedService.Forgotten states no policy; \
             state (chandlery.policy.v1.method) beside it"
        );
    }
}
