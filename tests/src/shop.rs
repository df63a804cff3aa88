//! A shop for one test: three real processes on files of its own, and what a test
//! does in it, said in few words.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use chandlery::{
    certs::{NAMESPACE, TRUST_DOMAIN},
    check::{Evidence, Sent, check},
    clients::Clients,
    service::Service,
    suite::{Credential, Options, Suite},
};
use client::{Channel, Identity, SpiffeId};
use futures::{TryStreamExt, stream};
use hyper_util::rt::TokioIo;
use proto::{
    catalog::v1::{CreateProductRequest, Product},
    purchase::v1::{
        AuditPurchasesRequest, CreatePurchaseRequest, GetPurchaseRequest, Purchase, PurchaseState,
        purchase::Item, purchase_service_client::PurchaseServiceClient,
    },
    r#type::v1::Money,
    user::v1::{CreateUserRequest, DepositRequest, User},
};
use rand::{
    RngExt, SeedableRng,
    rngs::{StdRng, SysRng},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use service_runtime::{Clock, Identifiers, Timestamp};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::{Status, transport};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// How long the books may take to become quiet.
const QUIET_PATIENCE: Duration = Duration::from_secs(40);

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running shop. It ends with the test.
pub struct Shop {
    /// The processes.
    pub suite: Suite,
    /// Clients of the operator.
    pub clients: Clients,
    identifiers: Identifiers,
    folder: TempDir,
}

impl Shop {
    /// Opens a shop. `program` offers the services as subcommands.
    pub async fn open(program: &str) -> Self {
        Self::open_with(program, &[]).await
    }

    /// Opens a shop whose services have these variables, too.
    pub async fn open_with(program: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let mut random = StdRng::try_from_rng(&mut SysRng).unwrap();
        let identifiers = Identifiers::new(Clock::system(), StdRng::from_rng(&mut random));
        let options = Options {
            program: PathBuf::from(program),
            directory: folder.path().to_owned(),
            environment: environment.iter().map(owned).collect(),
            clock: Clock::system(),
            random,
        };
        let suite = Suite::start(options).await.unwrap_or_else(|error| panic!("{error}"));
        let clients = suite.clients().unwrap();
        Self { suite, clients, identifiers, folder }
    }

    /// A new UUID.
    pub fn uuid(&self) -> String {
        self.identifiers.next().to_string()
    }

    /// Puts a product on the shelf, at so many cents apiece.
    pub async fn product(&self, price: i64, quantity: i64) -> Product {
        let request = self.product_request(price, quantity);
        self.clients.catalog.clone().create_product(request).await.unwrap().into_inner()
    }

    /// The request that puts such a product on the shelf.
    pub fn product_request(&self, price: i64, quantity: i64) -> CreateProductRequest {
        let request_id = self.uuid();
        let product = Product {
            sku: request_id.to_uppercase(),
            name: "Anchor".to_owned(),
            category: "Anchors".to_owned(),
            price: Some(euros(price)),
            ..Product::default()
        };
        CreateProductRequest { product: Some(product), initial_quantity: quantity, request_id }
    }

    /// Somebody with so many cents of store credit.
    pub async fn user(&self, credit: i64) -> User {
        let request_id = self.uuid();
        let user = User {
            email: format!("{request_id}@example.com"),
            display_name: "Grace".to_owned(),
            ..User::default()
        };
        let request =
            CreateUserRequest { user: Some(user), request_id, ..CreateUserRequest::default() };
        let user = self.clients.users.clone().create_user(request).await.unwrap().into_inner();
        if credit > 0 {
            let request = DepositRequest {
                user_id: user.id.clone(),
                amount: Some(euros(credit)),
                request_id: self.uuid(),
            };
            self.clients.accounts.clone().deposit(request).await.unwrap();
        }
        user
    }

    /// The request by which a user buys pieces of products.
    pub fn order(&self, user: &User, goods: &[(&Product, i32)]) -> CreatePurchaseRequest {
        let items = goods.iter().map(|&(product, quantity)| Item {
            product_id: product.id.clone(),
            quantity,
            unit_price: None,
        });
        let purchase = Purchase {
            user_id: user.id.clone(),
            items: items.collect(),
            currency_code: "EUR".to_owned(),
            ..Purchase::default()
        };
        CreatePurchaseRequest { purchase: Some(purchase), request_id: self.uuid() }
    }

    /// Buys.
    pub async fn buy(&self, order: &CreatePurchaseRequest) -> Purchase {
        let mut purchases = self.clients.purchases.clone();
        purchases.create_purchase(order.clone()).await.unwrap().into_inner()
    }

    /// The purchase as it is now.
    pub async fn purchase(&self, id: &str) -> Purchase {
        let request = GetPurchaseRequest { id: id.to_owned() };
        self.clients.purchases.clone().get_purchase(request).await.unwrap().into_inner()
    }

    /// Waits until so many purchases are on record, and tells which.
    pub async fn wait_for_purchases(&self, count: usize) -> Vec<String> {
        let on_record = async {
            loop {
                let mut purchases = self.clients.purchases.clone();
                let page = purchases.audit_purchases(AuditPurchasesRequest::default()).await;
                let recorded = page.unwrap().into_inner().purchases;
                if recorded.len() >= count {
                    return recorded.into_iter().map(|purchase| purchase.id).collect();
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(QUIET_PATIENCE, on_record).await.expect("the purchases are on record in time")
    }

    /// Waits until a purchase is in a state.
    pub async fn wait_for_state(&self, id: &str, state: PurchaseState) {
        let reached = async {
            while self.purchase(id).await.state() != state {
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(QUIET_PATIENCE, reached).await.expect("the state is reached in time");
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        Clock::system().now()
    }

    /// A channel of the suite to a service, as the operator.
    pub fn channel(&self, service: Service) -> Channel {
        self.channel_as(service, self.suite.identity(Credential::OPERATOR).unwrap())
    }

    /// A channel of the suite to a service, as somebody else.
    pub fn channel_as(&self, service: Service, identity: Identity) -> Channel {
        let peer = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service}");
        let target = format!("static:///{}", self.suite.address(service));
        Channel::to(target).identity(identity).peer(peer).build().unwrap()
    }

    /// A client over a bare connection, which adds nothing to a request and ends none.
    pub async fn raw_purchases(&self) -> PurchaseServiceClient<transport::Channel> {
        PurchaseServiceClient::new(self.raw_channel(Service::Purchase).await)
    }

    /// A bare connection to a service, as the operator.
    pub async fn raw_channel(&self, service: Service) -> transport::Channel {
        let identity = self.suite.identity(Credential::OPERATOR).unwrap();
        let peer = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, service.name()).unwrap();
        let tls = TlsConnector::from(identity.client_config(peer).unwrap());
        let address = self.suite.address(service);
        let connect = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                tls.connect(address.ip().into(), stream).await.map(TokioIo::new)
            }
        });
        let endpoint = transport::Endpoint::from_shared(format!("https://{address}")).unwrap();
        endpoint.connect_with_connector(connect).await.unwrap()
    }

    /// How a service refuses a TLS client that shows no certificate.
    pub async fn connect_without_certificate(&self, service: Service) -> io::Error {
        let mut roots = RootCertStore::empty();
        let authority = self.suite.certificates().join("ca.crt");
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let address = self.suite.address(service);
        let stream = TcpStream::connect(address).await.unwrap();
        let tls = TlsConnector::from(Arc::new(config));
        match tls.connect(address.ip().into(), stream).await {
            // TLS 1.3 lets the client believe that it is done before the server has seen
            // that there is no certificate.
            Ok(mut stream) => stream.read_u8().await.unwrap_err(),
            Err(error) => error,
        }
    }

    /// Whether a service says so of itself, on its own port and on that of its probes.
    pub async fn is_serving(&self, service: Service, name: &str) -> bool {
        let request = HealthCheckRequest { service: name.to_owned() };
        let own = HealthClient::new(self.channel(service)).check(request.clone()).await;
        let address = format!("http://{}", self.suite.health_address(service));
        let probe = transport::Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        let mut probe = HealthClient::new(probe);
        [own, probe.check(request).await]
            .into_iter()
            .all(|answer| answer.is_ok_and(|it| it.get_ref().status() == ServingStatus::Serving))
    }

    /// The names of the services that user-service reflects.
    pub async fn reflected_services(&self) -> Result<Vec<String>, Status> {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(self.channel(Service::User));
        let answers = client.server_reflection_info(stream::iter([request])).await?.into_inner();
        let answers: Vec<_> = answers.try_collect().await?;
        let services = answers.into_iter().filter_map(|answer| match answer.message_response {
            Some(MessageResponse::ListServicesResponse(list)) => Some(list.service),
            _ => None,
        });
        Ok(services.flatten().map(|service| service.name).collect())
    }

    /// Waits until nothing is under way and checks every invariant; `sent` is what the
    /// test sent and was answered, if it kept count.
    pub async fn check(&self, sent: Option<Sent>) -> Evidence {
        let mut evidence =
            Evidence::collect_when_quiet(&self.clients, QUIET_PATIENCE).await.unwrap();
        evidence.sent = sent;
        let report = check(&evidence);
        if !report.holds() {
            // The files tell what happened.
            let folder = self.folder.path().display();
            panic!("{report}\n(the files were in {folder})");
        }
        evidence
    }

    /// Checks every invariant, drains the services, and demands that each ends well.
    pub async fn close(self) {
        self.check(None).await;
        self.suite.stop().await.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// So many cents.
pub fn euros(minor_units: i64) -> Money {
    Money { currency_code: "EUR".to_owned(), minor_units }
}

/// A seed that differs between runs, printed so that a run can be had again.
pub fn printed_seed() -> u64 {
    let seed = StdRng::try_from_rng(&mut SysRng).unwrap().random();
    println!("seed {seed}");
    seed
}
