//! The RPCs of the contract, with what it says of each.

use chandlery::service::Service;
use prost_reflect::{DescriptorPool, MethodDescriptor, ServiceDescriptor};
use proto::{DESCRIPTOR_SET, Policies, Policy};

use super::wire::OPERATOR;

/// An RPC.
pub(super) struct Rpc {
    pub(super) method: MethodDescriptor,
    pub(super) service: Service,
    pub(super) path: String,
    pub(super) policy: Policy,
    comment: String,
}

impl Rpc {
    /// Every RPC of the contract.
    pub(super) fn all() -> Vec<Self> {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
        let policies = Policies::load().unwrap();
        let services: Vec<_> = pool.services().collect();
        services
            .iter()
            .flat_map(ServiceDescriptor::methods)
            .map(|method| {
                let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
                let policy = policies.get(&path).unwrap().clone();
                let (service, comment) = (service_of(&method), comment(&method));
                Self { method, service, path, policy, comment }
            })
            .collect()
    }

    /// Its service and its name.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.method.parent_service().name(), self.method.name())
    }

    /// Whether it is for a service alone, as the votes of a purchase are.
    pub(super) fn is_vote(&self) -> bool {
        !self.policy.callers.admit(OPERATOR)
    }

    /// Whether its comment says so: the name of a code or of a reason.
    pub(super) fn documents(&self, name: &str) -> bool {
        let mut words = self.comment.split(|c: char| c != '_' && !c.is_alphanumeric());
        !name.is_empty() && words.any(|word| word == name)
    }
}

/// The packages of `catalog-service` begin with `chandlery.catalog`.
fn service_of(method: &MethodDescriptor) -> Service {
    let package = method.parent_service().package_name().to_owned();
    let name = format!("{}-service", package.split('.').nth(1).unwrap());
    Service::ALL.into_iter().find(|service| service.name() == name).unwrap()
}

fn comment(method: &MethodDescriptor) -> String {
    let file = method.parent_service().parent_file();
    let locations = &file.file_descriptor_proto().source_code_info.as_ref().unwrap().location;
    let location = locations.iter().find(|location| location.path == method.path());
    location.unwrap().leading_comments().to_owned()
}
