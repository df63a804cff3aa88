//! What the contract demands of the callers of each RPC, read from the
//! descriptors (`chandlery.policy.v1`).

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use prost_reflect::{DescriptorPool, MethodDescriptor, Value};

const EXTENSION: &str = "chandlery.policy.v1.method";

/// The policy of one RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who may call.
    pub callers: Callers,
    /// How long a call may take when its caller sets no deadline.
    pub default_deadline: Duration,
    /// Whether a call may be repeated.
    pub idempotency: Idempotency,
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
    let stated = value.as_message().ok_or_else(|| refuse("states no policy"))?;

    let any_workload =
        stated.get_field_by_name("any_workload").and_then(|value| value.as_bool()).unwrap_or(false);
    let workloads: Vec<String> = stated
        .get_field_by_name("workloads")
        .and_then(|value| {
            let names = value.as_list()?.iter().filter_map(Value::as_str);
            Some(names.map(str::to_owned).collect())
        })
        .unwrap_or_default();
    let callers = match (any_workload, workloads.is_empty()) {
        (true, true) => Callers::AnyWorkload,
        (false, false) => Callers::Workloads(workloads),
        (true, false) => return Err(refuse("names workloads and admits any")),
        (false, true) => return Err(refuse("admits nobody")),
    };

    let default_deadline = stated
        .get_field_by_name("default_deadline")
        .and_then(|value| {
            let seconds = value.as_message()?.get_field_by_name("seconds")?.as_i64()?;
            u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
        })
        .ok_or_else(|| refuse("states no default deadline in whole seconds"))?;

    let idempotency =
        options.get_field_by_name("idempotency_level").and_then(|value| value.as_enum_number());
    let idempotency = match idempotency {
        Some(1) => Idempotency::NoSideEffects,
        Some(2) => Idempotency::Idempotent,
        _ => Idempotency::Unknown,
    };
    Ok(Policy { callers, default_deadline, idempotency })
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
            })
        );
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
