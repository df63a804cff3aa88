//! `chandlery dev` as a process: what it starts, finds again, lends and ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use chandlery::{certs, clients::Clients, dev::DATA_DIR, service::Service, suite::Endpoints};
use client::Identity;
use proto::{
    catalog::v1::{DeleteProductRequest, ListProductsRequest, Product},
    user::v1::{CreateUserRequest, GetUserRequest, User},
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chandlery");

/// How long anything may take that should not take long.
const PATIENCE: Duration = Duration::from_secs(30);

/// `chandlery dev` in a folder, to be run to its end.
fn dev(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("dev").args(arguments).current_dir(folder).env("NO_COLOR", "1");
    command
}

/// A `chandlery dev` that runs, and what it says.
struct Dev {
    process: Child,
    story: BufReader<ChildStdout>,
}

impl Dev {
    /// Starts one, and waits for the last line of its greeting.
    fn start(folder: &Path) -> (Self, Vec<String>) {
        let mut dev = Self::begin(folder, &[]);
        let greeting = dev.read_until("Ctrl-C ends it all");
        (dev, greeting)
    }

    fn begin(folder: &Path, arguments: &[&str]) -> Self {
        let mut process =
            dev(folder, arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let story = BufReader::new(process.stdout.take().unwrap());
        Self { process, story }
    }

    /// The next lines, to the one that contains this.
    fn read_until(&mut self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.story.read_line(&mut line).unwrap(), 0, "{text}: {lines:?}");
            let is_last = line.contains(text);
            lines.push(line);
            if is_last {
                return lines;
            }
        }
    }

    /// How it ends by itself, and the rest of what it says.
    fn wait(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.story.read_to_string(&mut rest).unwrap();
        (self.process.wait().unwrap(), rest)
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
        self.process.wait().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Does nothing if it has ended and was waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn data(folder: &Path) -> PathBuf {
    folder.join(DATA_DIR)
}

/// Clients that know what the folder says, and nothing else.
fn clients(folder: &Path) -> Clients {
    let files = certs::identity_files(&data(folder).join("certs"), "chandlery");
    let endpoints = Endpoints::read(&data(folder)).unwrap();
    Clients::new(&endpoints.targets(), &Identity::load(&files).unwrap()).unwrap()
}

/// The products of the first page.
async fn products(clients: &Clients, filter: &str) -> Vec<Product> {
    let request = ListProductsRequest { filter: filter.to_owned(), ..Default::default() };
    clients.catalog.clone().list_products(request).await.unwrap().into_inner().products
}

async fn has_products(clients: &Clients) -> bool {
    !products(clients, "").await.is_empty()
}

/// Each certificate and key, and the authority's.
fn certificates(folder: &Path) -> Vec<Vec<u8>> {
    let certs = data(folder).join("certs");
    let names = certs::WORKLOADS.iter().chain(&["ca"]);
    names
        .flat_map(|name| ["crt", "key"].map(|kind| certs.join(format!("{name}.{kind}"))))
        .map(|path| fs::read(path).unwrap())
        .collect()
}

fn wait_until_silent(endpoints: &Endpoints) {
    let end = Instant::now() + PATIENCE;
    let addresses = Service::ALL.map(|service| endpoints.of(service));
    let addresses = addresses.map(|endpoint| [endpoint.grpc, endpoint.health]).concat();
    let is_listening = |address: &SocketAddr| TcpStream::connect(address).is_ok();
    while addresses.iter().any(is_listening) {
        assert!(Instant::now() < end, "somebody still listens on one of {addresses:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The process that a line ends with.
fn process_id(line: &str) -> Pid {
    let number = line.split("process ").nth(1).unwrap();
    let digits = number.find(|it: char| !it.is_ascii_digit()).unwrap_or(number.len());
    Pid::from_raw(number[..digits].parse().unwrap()).unwrap()
}

// Connections live on while the test waits for a process.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_data_ports_and_certificates_again_and_callers_notice_nothing() {
    let folder = TempDir::new().unwrap();
    let (dev, _) = Dev::start(folder.path());
    let (endpoints, certificates_before) =
        (Endpoints::read(&data(folder.path())).unwrap(), certificates(folder.path()));
    let clients = clients(folder.path());
    assert!(has_products(&clients).await, "an empty shop is filled");
    let user = User {
        email: "grace@example.com".to_owned(),
        display_name: "Grace".to_owned(),
        ..User::default()
    };
    let request_id = "01890a5d-ac96-774b-bcce-b302099a8057".to_owned();
    let request =
        CreateUserRequest { user: Some(user), request_id, ..CreateUserRequest::default() };
    let user = clients.users.clone().create_user(request).await.unwrap().into_inner();

    assert_eq!(dev.end(Signal::TERM).code(), Some(0));
    wait_until_silent(&endpoints);
    assert!(Endpoints::read(&data(folder.path())).is_err(), "nobody is told of what is gone");

    let (dev, _) = Dev::start(folder.path());
    assert_eq!(Endpoints::read(&data(folder.path())).unwrap(), endpoints);
    assert_eq!(certificates(folder.path()), certificates_before);
    let request = GetUserRequest { id: user.id };
    let found = clients.users.clone().get_user(request).await.unwrap().into_inner();
    assert_eq!(found.email, user.email);
    assert_eq!(dev.end(Signal::INT).code(), Some(0));
    wait_until_silent(&endpoints);
}

// Connections live on while the test waits for a process.
#[tokio::test(flavor = "multi_thread")]
async fn one_service_is_run_elsewhere_and_given_back() {
    let folder = TempDir::new().unwrap();
    let Output { status, stderr, .. } =
        dev(folder.path(), &["--only", "catalog-service"]).output().unwrap();
    assert_eq!(status.code(), Some(69));
    let problem = String::from_utf8(stderr).unwrap();
    assert!(problem.contains("no `chandlery dev` runs on .chandlery; start one"), "{problem}");

    let (mut suite, greeting) = Dev::start(folder.path());
    let kept = process_id(greeting.iter().find(|line| line.contains("catalog-service")).unwrap());
    let clients = clients(folder.path());

    let mut only = Dev::begin(folder.path(), &["--only", "catalog-service"]);
    let taken = process_id(only.read_until("catalog-service is run here now").last().unwrap());
    assert_ne!(taken, kept);
    suite.read_until("catalog-service is run elsewhere");
    assert!(has_products(&clients).await, "with the same data, where it was");

    let refused = dev(folder.path(), &["--only", "catalog-service"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(75), "it is run elsewhere already");

    assert_eq!(only.end(Signal::TERM).code(), Some(0));
    suite.read_until("catalog-service serves again");
    assert!(has_products(&clients).await);

    // One that is killed gives it back as well.
    let mut only = Dev::begin(folder.path(), &["--only", "catalog-service"]);
    only.read_until("catalog-service is run here now");
    only.end(Signal::KILL);
    suite.read_until("catalog-service serves again");
    assert!(has_products(&clients).await);

    // One that has lost its service gives it back, and says nothing of a drain.
    let mut only = Dev::begin(folder.path(), &["--only", "catalog-service"]);
    let lines = only.read_until("catalog-service is run here now");
    kill_process(process_id(lines.last().unwrap()), Signal::KILL).unwrap();
    let (status, rest) = only.wait();
    assert_eq!((status.code(), rest.as_str()), (Some(70), ""));
    suite.read_until("catalog-service serves again");

    // One that the others have left does not go on alone.
    let mut only = Dev::begin(folder.path(), &["--only", "user-service"]);
    only.read_until("user-service is run here now");
    assert_eq!(suite.end(Signal::TERM).code(), Some(0));
    assert_eq!(only.process.wait().unwrap().code(), Some(69));
}

// Connections live on while the test waits for a process.
#[tokio::test(flavor = "multi_thread")]
async fn a_filling_that_was_interrupted_is_done_again_and_one_that_was_not_never_is() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(data(folder.path())).unwrap();
    let (dev, _) = Dev::start(folder.path());
    let ignored = fs::read_to_string(data(folder.path()).join(".gitignore")).unwrap();
    assert_eq!(ignored, "*\n", "whoever made the folder");

    let clients = clients(folder.path());
    let Product { id, sku, .. } = products(&clients, "").await.swap_remove(0);
    let filter = format!("sku = {sku:?}");
    let delete = |id| DeleteProductRequest { id, ..DeleteProductRequest::default() };
    clients.catalog.clone().delete_product(delete(id)).await.unwrap();
    fs::remove_file(data(folder.path()).join("filled")).unwrap();
    assert!(dev.end(Signal::TERM).success());

    let (dev, _) = Dev::start(folder.path());
    let id = products(&clients, &filter).await.swap_remove(0).id;
    clients.catalog.clone().delete_product(delete(id)).await.unwrap();
    assert!(dev.end(Signal::TERM).success());

    let (_dev, _) = Dev::start(folder.path());
    assert_eq!(products(&clients, &filter).await, []);
}

#[test]
fn a_second_one_on_the_same_folder_is_refused() {
    let folder = TempDir::new().unwrap();
    let (_dev, _) = Dev::start(folder.path());
    let Output { status, stderr, .. } = dev(folder.path(), &[]).output().unwrap();
    assert_eq!(status.code(), Some(75));
    let problem = String::from_utf8(stderr).unwrap();
    assert!(problem.contains("another `chandlery dev` runs on .chandlery; end"), "{problem}");
}

#[test]
fn a_database_that_cannot_be_read_ends_it_with_nothing_said_of_a_drain() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(data(folder.path())).unwrap();
    fs::write(data(folder.path()).join("user-service.db"), "no database".repeat(100)).unwrap();
    let Output { status, stdout, stderr } = dev(folder.path(), &[]).output().unwrap();
    let problem = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(70), "{problem}");
    assert!(problem.contains("user-service ended before it served"), "{problem}");
    assert_eq!(String::from_utf8(stdout).unwrap(), "Chandlery on .chandlery\n");
}

#[test]
fn a_port_that_somebody_took_meanwhile_is_replaced_and_no_other() {
    let folder = TempDir::new().unwrap();
    let (dev, _) = Dev::start(folder.path());
    let before = Endpoints::read(&data(folder.path())).unwrap();
    assert!(dev.end(Signal::TERM).success());

    let _taken = TcpListener::bind(before.catalog_service.grpc).unwrap();
    let (_dev, greeting) = Dev::start(folder.path());
    let after = Endpoints::read(&data(folder.path())).unwrap();
    assert_ne!(after.catalog_service.grpc, before.catalog_service.grpc);
    let (from, to) = (before.catalog_service.grpc, after.catalog_service.grpc);
    let moved = format!("  catalog-service has moved to {to}, since {from} is taken\n");
    assert_eq!(greeting.iter().filter(|line| line.contains("moved")).collect::<Vec<_>>(), [&moved]);
    assert_eq!(after.catalog_service.health, before.catalog_service.health);
    assert_eq!(after.user_service, before.user_service);
    assert_eq!(after.purchase_service, before.purchase_service);
}

#[test]
fn what_somebody_kills_is_started_again_and_nothing_outlives_the_one_who_starts_it() {
    let folder = TempDir::new().unwrap();
    let (mut dev, greeting) = Dev::start(folder.path());
    let endpoints = Endpoints::read(&data(folder.path())).unwrap();
    let line = greeting.iter().find(|line| line.contains("user-service")).unwrap();
    kill_process(process_id(line), Signal::KILL).unwrap();
    dev.read_until("user-service ended (signal: 9 (SIGKILL)); it is started again in 100 ms");
    dev.read_until("user-service serves again");

    dev.end(Signal::KILL);
    // The processes may be there for another moment. The next one waits for them.
    let (dev, _) = Dev::start(folder.path());
    assert_eq!(Endpoints::read(&data(folder.path())).unwrap(), endpoints);
    dev.end(Signal::KILL);
    wait_until_silent(&endpoints);
}

#[test]
fn the_calls_that_it_prints_can_be_pasted() {
    let folder = TempDir::new().unwrap();
    let (_dev, greeting) = Dev::start(folder.path());
    let calls: Vec<_> = greeting.iter().filter(|line| line.contains(" call ")).collect();
    assert_eq!(calls.len(), 3, "{greeting:?}");
    for line in calls {
        let Output { status, stderr, .. } =
            Command::new("sh").args(["-c", line]).current_dir(&folder).output().unwrap();
        assert!(status.success(), "{line}{}", String::from_utf8_lossy(&stderr));
    }
}
