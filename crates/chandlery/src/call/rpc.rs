//! The RPCs that can be called, by the names that people give them.

use std::{ffi::OsStr, sync::LazyLock};

use clap::{
    Arg, Command,
    builder::{PossibleValue, TypedValueParser},
    error::ErrorKind,
};
use prost_reflect::{DescriptorError, DescriptorPool, MessageDescriptor, MethodDescriptor};
use strsim::jaro_winkler;

/// How many names are proposed in place of one that nothing has.
const PROPOSALS: usize = 3;

/// The contract of the suite, what every service offers beside it, and the details
/// of errors.
static POOL: LazyLock<Result<DescriptorPool, DescriptorError>> = LazyLock::new(|| {
    let mut pool = DescriptorPool::decode(proto::DESCRIPTOR_SET)?;
    for descriptors in [
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_types::pb::FILE_DESCRIPTOR_SET,
    ] {
        pool.decode_file_descriptor_set(descriptors)?;
    }
    Ok(pool)
});

static RPCS: LazyLock<Vec<Rpc>> = LazyLock::new(|| {
    let services = POOL.iter().flat_map(DescriptorPool::services);
    services.flat_map(|service| service.methods().map(Rpc::new).collect::<Vec<_>>()).collect()
});

/// One RPC.
#[derive(Debug)]
pub(super) struct Rpc {
    /// `package.Service/Method`, which ends with the shorter names.
    full_name: String,
    /// What it does, in a few words.
    summary: String,
    pub(super) method: MethodDescriptor,
}

impl Rpc {
    fn new(method: MethodDescriptor) -> Self {
        let full_name = format!("{}/{}", method.parent_service().full_name(), method.name());
        Self { full_name, summary: summary(&method), method }
    }

    /// `package.Service/Method`.
    pub(super) fn full_name(&self) -> &str {
        &self.full_name
    }

    /// `Service/Method`, which no two RPCs share.
    fn name(&self) -> &str {
        self.full_name.rsplit_once('.').map_or(&self.full_name, |(_package, name)| name)
    }

    /// What it may be called, the shortest first: `Method` only if no other RPC is meant
    /// by that.
    fn names(&self) -> impl Iterator<Item = &str> {
        let method = Some(self.method.name()).filter(|name| Self::find(name).is_ok());
        method.into_iter().chain([self.name(), self.full_name()])
    }

    /// The RPC that is meant: `Service/Method`, `Method` or the full name, with a slash
    /// or a dot before the method.
    pub(super) fn find(name: &str) -> Result<&'static Self, String> {
        let asked = name.trim_start_matches('/').replace('/', ".");
        let is_meant = |rpc: &&Rpc| {
            let rest = rpc.method.full_name().strip_suffix(&asked);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        match *RPCS.iter().filter(is_meant).collect::<Vec<_>>() {
            [rpc] => Ok(rpc),
            [] => Err(format!("no RPC is called {name:?}; did you mean {}?", nearest(&asked))),
            ref several => {
                let names: Vec<_> = several.iter().map(|rpc| rpc.name()).collect();
                Err(format!("{name:?} may be {}; say which", names.join(" or ")))
            }
        }
    }
}

/// The names that look most like this one.
fn nearest(asked: &str) -> String {
    let mut segments = asked.rsplit('.');
    let method = segments.next().unwrap_or_default();
    let service = segments.next();
    let likeness = |rpc: &Rpc| match service {
        Some(service) => jaro_winkler(&format!("{service}/{method}"), rpc.name()),
        None => jaro_winkler(method, rpc.method.name()),
    };
    let mut rpcs: Vec<_> = RPCS.iter().collect();
    rpcs.sort_by(|one, other| likeness(other).total_cmp(&likeness(one)));
    let names: Vec<_> = rpcs.into_iter().take(PROPOSALS).map(Rpc::name).collect();
    names.join(", ")
}

/// The first sentence of the comment of an RPC, without what is in parentheses.
fn summary(method: &MethodDescriptor) -> String {
    let file = method.parent_file();
    let locations = file.file_descriptor_proto().source_code_info.iter();
    let comment = locations
        .flat_map(|info| &info.location)
        .find(|location| location.path == method.path())
        .map(|location| location.leading_comments().replace('\n', " "))
        .unwrap_or_default();
    let end = [". ", " ("].iter().filter_map(|end| comment.find(end)).min();
    comment[..end.unwrap_or(comment.len())].trim().to_owned()
}

/// The type of this name, if it is a built-in one.
pub(super) fn message(full_name: &str) -> Option<MessageDescriptor> {
    POOL.as_ref().ok()?.get_message_by_name(full_name)
}

/// Reads the name of an RPC, and offers those of all for completion.
#[derive(Clone, Debug)]
pub(super) struct Parser;

impl TypedValueParser for Parser {
    type Value = &'static Rpc;

    fn parse_ref(
        &self,
        command: &Command,
        _argument: Option<&Arg>,
        name: &OsStr,
    ) -> Result<&'static Rpc, clap::Error> {
        Rpc::find(&name.to_string_lossy())
            .map_err(|problem| command.clone().error(ErrorKind::InvalidValue, problem))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let values = |rpc: &'static Rpc| {
            rpc.names().map(|name| PossibleValue::new(name).help(&*rpc.summary))
        };
        Some(Box::new(RPCS.iter().flat_map(values)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn full_name(name: &str) -> Result<&'static str, String> {
        Rpc::find(name).map(|rpc| rpc.method.full_name())
    }

    #[test]
    fn the_built_in_descriptors_can_be_read() {
        assert!(POOL.is_ok(), "{:?}", *POOL);
    }

    #[test]
    fn every_rpc_has_a_name_of_its_own_and_those_of_the_contract_a_summary() {
        let names: HashSet<_> = RPCS.iter().map(Rpc::name).collect();
        assert_eq!(names.len(), RPCS.len());
        for rpc in RPCS.iter().filter(|rpc| rpc.method.full_name().starts_with("chandlery.")) {
            assert_ne!(rpc.summary, "", "{}", rpc.name());
        }
        assert_eq!(Rpc::find("GetProduct").unwrap().summary, "Reads a product");
    }

    #[test]
    fn an_rpc_is_found_by_each_of_its_names() {
        for name in [
            "GetProduct",
            "CatalogService/GetProduct",
            "CatalogService.GetProduct",
            "chandlery.catalog.v1.CatalogService/GetProduct",
            "chandlery.catalog.v1.CatalogService.GetProduct",
            "/chandlery.catalog.v1.CatalogService/GetProduct",
        ] {
            let found = full_name(name);
            assert_eq!(found, Ok("chandlery.catalog.v1.CatalogService.GetProduct"), "{name}");
        }
        for rpc in RPCS.iter() {
            for name in rpc.names() {
                assert_eq!(full_name(name), Ok(rpc.method.full_name()), "{name}");
            }
        }
    }

    #[test]
    fn the_nearest_names_are_proposed_for_an_unknown_one() {
        for name in [
            "GetProdukt",
            "CatalogService/GetProdct",
            "chandlery.catalog.v2.CatalogService/GetProduct",
        ] {
            let refusal = full_name(name).unwrap_err();
            assert!(refusal.contains("did you mean CatalogService/GetProduct, "), "{refusal}");
        }
        for name in ["", "/", ".", "oduct", "é"] {
            assert!(full_name(name).is_err(), "{name}");
        }
    }
}
