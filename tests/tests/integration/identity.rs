//! Every RPC of the contract against every kind of caller. What is expected is read
//! from the policies, and what is sent is made from the descriptors, so that a new
//! RPC is in the matrix by itself.

use std::{collections::BTreeMap, fmt, time::Duration};

use chandlery::{service::Service, suite::Credential};
use client::{Channel, Identity};
use futures::stream;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    Value,
};
use proto::{Policies, Policy, Role};
use suite_tests::{member::Member, shop::Shop};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use crate::shop;

/// Somebody who calls: with a certificate, and with a token or without.
struct Identified {
    name: String,
    workload: &'static str,
    channels: BTreeMap<Service, Channel>,
    token: Token,
}

#[derive(Clone, Debug)]
enum Token {
    None,
    /// Of an end user in this role.
    Of(Role, String),
    Expired(String),
    /// Something that is no access token, like an API key.
    Invalid(String),
}

/// What a call comes to.
#[derive(Clone, PartialEq, Eq)]
enum Verdict {
    /// The handler saw it.
    Admitted,
    /// It was refused for this reason.
    Refused(Code, String),
    /// There was no connection to make it on.
    Unconnected,
}

impl fmt::Debug for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admitted => write!(formatter, "admitted"),
            Self::Refused(code, reason) => write!(formatter, "{code:?} {reason}"),
            Self::Unconnected => write!(formatter, "no connection"),
        }
    }
}

/// What the contract says of this caller.
fn stated(policy: &Policy, caller: &Identified) -> Verdict {
    let refused = |code, reason: &str| Verdict::Refused(code, reason.to_owned());
    if !policy.callers.admit(caller.workload) {
        return refused(Code::PermissionDenied, "NOT_ALLOWED");
    }
    if policy.roles.is_empty() {
        return Verdict::Admitted;
    }
    match &caller.token {
        Token::None if caller.workload == "chandlery" => Verdict::Admitted,
        Token::None => refused(Code::Unauthenticated, "TOKEN_MISSING"),
        Token::Expired(_) => refused(Code::Unauthenticated, "TOKEN_EXPIRED"),
        Token::Invalid(_) => refused(Code::Unauthenticated, "TOKEN_INVALID"),
        Token::Of(role, _) if policy.roles.contains(role) => Verdict::Admitted,
        Token::Of(..) => refused(Code::PermissionDenied, "ROLE_MISSING"),
    }
}

fn verdict(outcome: Result<(), Status>) -> Verdict {
    match outcome {
        Err(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) => {
            Verdict::Refused(status.code(), service_runtime::reason(&status).unwrap_or_default())
        }
        Err(status) if status.code() == Code::Unavailable => Verdict::Unconnected,
        Ok(()) | Err(_) => Verdict::Admitted,
    }
}

/// Every RPC of the suite, with the service that offers it.
fn rpcs() -> Vec<(MethodDescriptor, Service)> {
    let pool = DescriptorPool::decode(proto::DESCRIPTOR_SET).unwrap();
    let service_of = |package: &str| match package {
        "chandlery.user.v1" => Service::User,
        "chandlery.catalog.v1" => Service::Catalog,
        "chandlery.purchase.v1" => Service::Purchase,
        other => panic!("which service offers {other}?"),
    };
    pool.services()
        .flat_map(|service| {
            let offered_by = service_of(service.package_name());
            service.methods().map(move |method| (method, offered_by)).collect::<Vec<_>>()
        })
        .collect()
}

fn path(rpc: &MethodDescriptor) -> String {
    format!("/{}/{}", rpc.parent_service().full_name(), rpc.name())
}

/// Sends one message and waits for the first answer.
async fn call(
    caller: &Identified,
    service: Service,
    rpc: &MethodDescriptor,
    message: DynamicMessage,
) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(caller.channels[&service].clone());
    client.ready().await?;
    let mut request = Request::new(stream::iter([message]));
    request.set_timeout(Duration::from_secs(10));
    if let Token::Of(_, token) | Token::Expired(token) | Token::Invalid(token) = &caller.token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let codec = tonic_prost::ProstCodec::<DynamicMessage, ()>::default();
    let path = path(rpc).parse::<PathAndQuery>().unwrap();
    let mut answers = client.streaming(request, path, codec).await?.into_inner();
    answers.message().await.map(drop)
}

impl Identified {
    fn new(shop: &Shop, name: &str, workload: &'static str, token: Token) -> Self {
        let identity = shop.suite.identity(Credential::Workload(workload)).unwrap();
        Self::with(shop, name, workload, &identity, token)
    }

    fn with(
        shop: &Shop,
        name: &str,
        workload: &'static str,
        identity: &Identity,
        token: Token,
    ) -> Self {
        let channel = |service| (service, shop.channel_as(service, identity.clone()));
        let channels = Service::ALL.into_iter().map(channel).collect();
        Self { name: name.to_owned(), workload, channels, token }
    }

    fn of(shop: &Shop, member: &Member) -> Self {
        let token = Token::Of(member.role, member.access_token.clone());
        Self::new(shop, &member.user.display_name, "storefront", token)
    }
}

#[tokio::test]
async fn every_rpc_admits_whom_its_policy_names_and_nobody_else() {
    let shop = shop().await;
    // Else who watches the products would wait for the first.
    shop.product(100, 1).await;
    let customer = shop.member(Role::Customer).await;
    let staff = shop.member(Role::Staff).await;
    let revoked = shop.revoked_api_key(&customer).await;
    let expired = shop.expired_token(&customer).await;

    let mut callers: Vec<_> =
        ["user-service", "catalog-service", "purchase-service", "chandlery", "storefront"]
            .map(|workload| Identified::new(&shop, workload, workload, Token::None))
            .into();
    for workload in ["storefront", "chandlery"] {
        for (name, token) in [
            ("a customer", Token::Of(Role::Customer, customer.access_token.clone())),
            ("staff", Token::Of(Role::Staff, staff.access_token.clone())),
            ("an expired token", Token::Expired(expired.clone())),
            ("a revoked key", Token::Invalid(revoked.clone())),
            ("a forged token", Token::Invalid(format!("{}x", staff.access_token))),
        ] {
            callers.push(Identified::new(&shop, &format!("{workload}, {name}"), workload, token));
        }
    }

    let policies = Policies::load().unwrap();
    for (rpc, service) in rpcs() {
        let policy = policies.get(&path(&rpc)).unwrap();
        for caller in &callers {
            let outcome = call(caller, service, &rpc, DynamicMessage::new(rpc.input())).await;
            let found = verdict(outcome.clone());
            let expected = stated(policy, caller);
            assert_eq!(found, expected, "{} by {}: {outcome:?}", path(&rpc), caller.name);
        }
    }
    shop.close().await;
}

#[tokio::test]
async fn no_rpc_is_reached_without_a_certificate_that_counts() {
    let shop = shop().await;
    let foreign = |credential| shop.suite.identity(credential).unwrap();
    let at_the_handshake = [
        ("expired", foreign(Credential::Expired)),
        ("of another authority", foreign(Credential::Foreign)),
    ]
    .map(|(name, identity)| Identified::with(&shop, name, "chandlery", &identity, Token::None));
    let other_domain = foreign(Credential::OtherTrustDomain);
    let by_name =
        Identified::with(&shop, "of another trust domain", "chandlery", &other_domain, Token::None);
    for (rpc, service) in rpcs() {
        let empty = || DynamicMessage::new(rpc.input());
        for caller in &at_the_handshake {
            let found = verdict(call(caller, service, &rpc, empty()).await);
            assert_eq!(found, Verdict::Unconnected, "{} {}", path(&rpc), caller.name);
        }
        let found = verdict(call(&by_name, service, &rpc, empty()).await);
        let refused = Verdict::Refused(Code::PermissionDenied, "NOT_ALLOWED".to_owned());
        assert_eq!(found, refused, "{} {}", path(&rpc), by_name.name);
    }
    // There is no call to make without a certificate: the handshake is below every RPC.
    for service in Service::ALL {
        let refused = shop.connect_without_certificate(service).await;
        assert!(refused.to_string().contains("CertificateRequired"), "{service}: {refused}");
    }
    shop.close().await;
}

/// What belongs to one user.
struct Belongings {
    owner: Member,
    api_key_id: String,
    purchase_id: String,
    product_id: String,
}

impl Belongings {
    async fn of_a_customer(shop: &Shop) -> Self {
        let owner = shop.member(Role::Customer).await;
        let api_key_id = shop.api_key(&owner).await.0.id;
        let product = shop.product(100, 10).await;
        shop.credit(&owner.user, 1_000).await;
        let purchase_id = shop.buy(&shop.order(&owner.user, &[(&product, 1)])).await.id;
        Self { owner, api_key_id, purchase_id, product_id: product.id }
    }

    /// A request of `rpc` about what belongs to the owner, and how many of its fields
    /// say so.
    fn request(&self, shop: &Shop, rpc: &MethodDescriptor) -> (DynamicMessage, usize) {
        let mut naming = 0;
        let message = self.fill(shop, rpc, &rpc.input(), &mut naming);
        (message, naming)
    }

    fn fill(
        &self,
        shop: &Shop,
        rpc: &MethodDescriptor,
        descriptor: &MessageDescriptor,
        naming: &mut usize,
    ) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            // The first of alternatives is as good as any.
            let is_chosen = |oneof: prost_reflect::OneofDescriptor| {
                oneof.fields().next().is_none_or(|first| first == field)
            };
            if field.containing_oneof().is_none_or(is_chosen)
                && let Some(value) = self.value(shop, rpc, &field, naming)
            {
                message.set_field(&field, value);
            }
        }
        message
    }

    fn value(
        &self,
        shop: &Shop,
        rpc: &MethodDescriptor,
        field: &FieldDescriptor,
        naming: &mut usize,
    ) -> Option<Value> {
        if let Kind::Message(inner) = field.kind() {
            let is_plain = inner.full_name().starts_with("chandlery.") && !field.is_map();
            let inner = is_plain.then(|| self.fill(shop, rpc, &inner, naming))?;
            let inner = Value::Message(inner);
            return Some(if field.is_list() { Value::List(vec![inner]) } else { inner });
        }
        let owned = match (rpc.parent_service().name(), field.name()) {
            (_, "user_id") | ("UserService", "id") => Some(&self.owner.user.id),
            ("AuthService", "id") => Some(&self.api_key_id),
            ("PurchaseService", "id") => Some(&self.purchase_id),
            _ => None,
        };
        if let Some(owned) = owned {
            *naming += 1;
            return Some(Value::String(owned.clone()));
        }
        Some(match field.name() {
            "request_id" | "cart_id" => Value::String(shop.uuid()),
            "product_id" => Value::String(self.product_id.clone()),
            "currency_code" => Value::String("EUR".to_owned()),
            "display_name" => Value::String("Somebody".to_owned()),
            "quantity" => Value::I32(1),
            _ => return None,
        })
    }
}

#[tokio::test]
async fn what_belongs_to_a_user_is_kept_from_other_customers_and_from_nobody_else() {
    let shop = shop().await;
    let other = shop.member(Role::Customer).await;
    let other = Identified::of(&shop, &other);
    let staff = shop.member(Role::Staff).await;
    let staff = Identified::of(&shop, &staff);
    let operator = Identified::new(&shop, "the operator", "chandlery", Token::None);

    let policies = Policies::load().unwrap();
    let personal =
        |rpc: &MethodDescriptor| policies.get(&path(rpc)).unwrap().roles.contains(&Role::Customer);
    for (rpc, service) in rpcs().into_iter().filter(|(rpc, _)| personal(rpc)) {
        // What is done to it by one who may must not be in the way of the next.
        let own = Belongings::of_a_customer(&shop).await;
        let owner = Identified::of(&shop, &own.owner);
        for (caller, belongings, is_other) in [
            (&other, &own, true),
            (&staff, &Belongings::of_a_customer(&shop).await, false),
            (&operator, &Belongings::of_a_customer(&shop).await, false),
            (&owner, &own, false),
        ] {
            let (request, naming) = belongings.request(&shop, &rpc);
            assert!(naming > 0, "teach this test which field of {} names a user", path(&rpc));
            let outcome = call(caller, service, &rpc, request).await;
            let is_kept = matches!(&outcome, Err(status)
                if service_runtime::reason(status).as_deref() == Some("NOT_OWNER")
                    || status.code() == Code::NotFound);
            assert_eq!(is_kept, is_other, "{} by {}: {outcome:?}", path(&rpc), caller.name);
        }
    }
    shop.close().await;
}
