//! The command line and the suite as processes: what they leave behind, and what
//! they do not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use chandlery::{
    service::Service,
    suite::{Credential, Options, Suite},
};
use proto::catalog::v1::AuditStockRequest;
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};
use rustix::process::{Pid, Signal, kill_process};
use service_runtime::Clock;
use tempfile::TempDir;
use tonic::Code;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chandlery");

/// How long anything may take that should not take long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The command line, to be run with a temporary folder of its own.
fn chandlery(temporary: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.env("TMPDIR", temporary).env("NO_COLOR", "1");
    command
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

fn is_listening(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

fn wait_until_silent(addresses: &[SocketAddr]) {
    let end = Instant::now() + PATIENCE;
    while addresses.iter().copied().any(is_listening) {
        assert!(Instant::now() < end, "somebody still listens on one of {addresses:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A demonstration that goes on, and what it says of its services as they start.
struct Demonstration {
    process: Child,
    story: BufReader<ChildStdout>,
    services: Vec<String>,
}

impl Demonstration {
    fn begin(temporary: &Path, purchases: &str) -> Self {
        let mut process = chandlery(temporary)
            .args(["demo", "--purchases", purchases])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let story = BufReader::new(process.stdout.take().unwrap());
        let mut demo = Self { process, story, services: Vec::new() };
        for service in Service::ALL {
            let line = demo.read_until(&format!("  {service} "));
            demo.services.push(line);
        }
        demo
    }

    /// The next line of the story that contains this.
    fn read_until(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.story.read_line(&mut line).unwrap(), 0, "the story ended early");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Where the services are.
    fn addresses(&self) -> Vec<SocketAddr> {
        let words = |line: &String| line.split_whitespace().find_map(|word| word.parse().ok());
        self.services.iter().filter_map(words).collect()
    }

    /// Sends a signal to the first process of a service.
    fn signal(&self, service: Service, signal: Signal) {
        let line = self.services[service as usize].trim_end();
        let process_id = line.rsplit(' ').next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(process_id).unwrap(), signal).unwrap();
    }
}

#[test]
fn a_demonstration_holds_and_leaves_nothing_behind() {
    let temporary = TempDir::new().unwrap();
    let Output { status, stdout, stderr } = chandlery(temporary.path())
        .args(["demo", "--purchases", "60", "--kills", "2", "--seed", "1"])
        .output()
        .unwrap();
    let story = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{story}\n{}", String::from_utf8_lossy(&stderr));
    assert!(stderr.is_empty(), "no bars where nobody watches");
    assert!(!story.contains('\u{1b}'), "no colours either");
    assert!(story.contains("SIGKILL"), "{story}");
    assert!(is_empty(temporary.path()));
}

#[test]
fn an_interrupted_demonstration_leaves_nothing_behind() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::QUIT, 131)] {
        let temporary = TempDir::new().unwrap();
        let mut demo = Demonstration::begin(temporary.path(), "100000");
        kill_process(Pid::from_child(&demo.process), signal).unwrap();
        assert_eq!(demo.process.wait().unwrap().code(), Some(status));
        assert!(is_empty(temporary.path()));
        wait_until_silent(&demo.addresses());
    }
}

#[test]
fn services_that_somebody_else_ends_are_started_again_and_the_story_ends_well() {
    let temporary = TempDir::new().unwrap();
    let mut demo = Demonstration::begin(temporary.path(), "100");
    demo.signal(Service::Catalog, Signal::KILL);
    demo.read_until("catalog-service ended (signal: 9 (SIGKILL)), not by this story");
    demo.read_until("4 Purchases");
    demo.signal(Service::User, Signal::TERM);
    let end = demo.read_until("exactly once or not at all: ");
    assert!(end.contains(" and 2 by somebody else, "), "{end}");
    assert!(demo.process.wait().unwrap().success());
    assert!(is_empty(temporary.path()));
    wait_until_silent(&demo.addresses());
}

#[test]
fn services_do_not_outlive_a_demonstration_that_is_killed() {
    let temporary = TempDir::new().unwrap();
    let mut demo = Demonstration::begin(temporary.path(), "100000");
    let addresses = demo.addresses();
    assert!(addresses.iter().copied().all(is_listening));
    demo.process.kill().unwrap();
    demo.process.wait().unwrap();
    wait_until_silent(&addresses);
}

#[test]
fn wrong_usage_and_services_out_of_reach_are_told_apart() {
    let temporary = TempDir::new().unwrap();
    let status = |arguments: &[&str]| {
        let output = chandlery(temporary.path()).args(arguments).output().unwrap();
        assert!(!output.stderr.is_empty());
        output.status.code()
    };
    assert_eq!(status(&["no-such-command"]), Some(64));
    assert_eq!(status(&["demo", "--kills", "0"]), Some(64));

    let certs = temporary.path().join("certs");
    let certs = certs.to_str().unwrap();
    let nowhere = "static:///127.0.0.1:1";
    let check = ["check", "--certs", certs, "--user-service", nowhere];
    let check =
        [&check[..], &["--catalog-service", nowhere, "--purchase-service", nowhere]].concat();
    assert_eq!(status(&check), Some(64), "there are no certificates");
    let made = chandlery(temporary.path()).args(["certs", "--out", certs]).output().unwrap();
    assert!(made.status.success());
    assert_eq!(status(&check), Some(69), "there are no services");
}

#[test]
fn the_help_of_a_service_lists_its_variables() {
    let temporary = TempDir::new().unwrap();
    for service in Service::ALL {
        let output = chandlery(temporary.path()).args([service.name(), "--help"]).output().unwrap();
        assert!(output.status.success());
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains("\n  GRPC_LISTEN_ADDRESS\n"), "{help}");
    }
}

fn options(directory: &TempDir) -> Options {
    Options {
        program: PROGRAM.into(),
        directory: directory.path().to_owned(),
        environment: Vec::new(),
        clock: Clock::system(),
        random: StdRng::try_from_rng(&mut SysRng).unwrap(),
    }
}

async fn start(directory: &TempDir) -> Suite {
    Suite::start(options(directory)).await.unwrap()
}

#[tokio::test]
async fn a_killed_service_serves_again_where_it_was() {
    let directory = TempDir::new().unwrap();
    let mut suite = start(&directory).await;
    let address = suite.address(Service::Catalog);
    let process_id = suite.process_id(Service::Catalog).unwrap();

    suite.kill(Service::Catalog).unwrap();
    assert_eq!(suite.process_id(Service::Catalog), None);
    assert!(suite.kill(Service::Catalog).is_err(), "there is nothing left to kill");

    suite.restart(Service::Catalog).await.unwrap();
    assert_eq!(suite.address(Service::Catalog), address);
    assert_ne!(suite.process_id(Service::Catalog), Some(process_id));
    suite.clients().unwrap().stock.audit_stock(AuditStockRequest::default()).await.unwrap();
    suite.stop().await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_terminated_ends_with_success() {
    let directory = TempDir::new().unwrap();
    let mut suite = start(&directory).await;
    for service in Service::ALL {
        assert!(suite.terminate(service).await.unwrap().success(), "{service}");
    }
    suite.stop().await.unwrap();
}

#[tokio::test]
async fn the_books_of_running_services_can_be_checked() {
    let directory = TempDir::new().unwrap();
    let suite = start(&directory).await;
    let targets = suite.targets();
    let Output { status, stdout, .. } = chandlery(directory.path())
        .args(["check", "--certs", suite.certificates().to_str().unwrap()])
        .args(["--user-service", &targets.user_service])
        .args(["--catalog-service", &targets.catalog_service])
        .args(["--purchase-service", &targets.purchase_service])
        .output()
        .unwrap();
    let table = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{table}");
    assert_eq!(table.matches("not known from outside").count(), 2, "{table}");
    suite.stop().await.unwrap();
}

#[tokio::test]
async fn a_paused_service_answers_nothing_until_it_goes_on() {
    let directory = TempDir::new().unwrap();
    let mut suite = start(&directory).await;
    let mut stock = suite.clients().unwrap().stock;
    stock.audit_stock(AuditStockRequest::default()).await.unwrap();

    suite.pause(Service::Catalog).unwrap();
    let mut request = tonic::Request::new(AuditStockRequest::default());
    request.set_timeout(Duration::from_millis(200));
    let status = stock.audit_stock(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);

    suite.resume(Service::Catalog).unwrap();
    stock.audit_stock(AuditStockRequest::default()).await.unwrap();
    suite.stop().await.unwrap();
}

#[tokio::test]
async fn a_service_that_cannot_start_is_reported_with_its_log() {
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("catalog-service.db")).unwrap();
    let problem = Suite::start(options(&directory)).await.unwrap_err().to_string();
    assert!(problem.starts_with("catalog-service ended before it served"), "{problem}");
    assert!(problem.lines().count() > 1, "{problem}");
}

#[tokio::test]
async fn no_certificate_but_one_that_the_services_trust_gets_through() {
    let directory = TempDir::new().unwrap();
    let suite = start(&directory).await;
    for credential in [Credential::Expired, Credential::Foreign] {
        let mut stock = suite.clients_of(credential).unwrap().stock;
        let status = stock.audit_stock(AuditStockRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{credential:?}");
    }
    let mut stock = suite.clients_of(Credential::Workload("purchase-service")).unwrap().stock;
    let status = stock.audit_stock(AuditStockRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    suite.stop().await.unwrap();
}
