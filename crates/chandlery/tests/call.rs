//! Calls from the command line, of services that run as processes, and what a shell
//! completes of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use chandlery::{
    certs,
    service::Service,
    suite::{Options, Suite},
};
use prost_reflect::DescriptorPool;
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};
use serde_json::{Value, json};
use service_runtime::Clock;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chandlery");

/// A suite in a folder as `chandlery dev` leaves it.
struct Shop {
    suite: Suite,
    directory: TempDir,
}

impl Shop {
    async fn open() -> Self {
        let directory = TempDir::new().unwrap();
        let options = Options {
            program: PROGRAM.into(),
            directory: directory.path().to_owned(),
            environment: vec![("REFLECTION_ENABLED".to_owned(), "true".to_owned())],
            clock: Clock::system(),
            random: StdRng::try_from_rng(&mut SysRng).unwrap(),
        };
        let suite = Suite::start(options).await.unwrap();
        let endpoints = serde_json::to_string(&suite.endpoints()).unwrap();
        fs::write(directory.path().join("endpoints.json"), endpoints).unwrap();
        Self { suite, directory }
    }

    fn call(&self, arguments: &[&str]) -> Call {
        call(self.directory.path(), arguments)
    }

    async fn close(self) {
        self.suite.stop().await.unwrap();
    }
}

/// A call that goes on.
struct Call(Child);

fn call(data_dir: &Path, arguments: &[&str]) -> Call {
    let mut command = Command::new(PROGRAM);
    command.arg("call").args(arguments).arg("--data-dir").arg(data_dir);
    command.env("NO_COLOR", "1").env_remove("CHANDLERY_TOKEN");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Call(command.spawn().unwrap())
}

impl Call {
    /// Types this, and no more.
    fn typing(mut self, text: &str) -> Self {
        self.0.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        self
    }

    /// Its exit status, its standard output and its standard error.
    fn end(self) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.0.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    /// What a call that succeeds prints.
    fn answer(self) -> String {
        let (status, answer, problem) = self.end();
        assert_eq!((status, problem.as_str()), (0, ""), "{answer}");
        answer
    }

    /// What a call that does not succeed ends with and says.
    fn refusal(self) -> (i32, String) {
        let (status, answer, problem) = self.end();
        assert_eq!(answer, "");
        (status, problem)
    }
}

fn products(count: usize) -> String {
    let line = |number| {
        let product = json!({
            "sku": format!("ROPE-{number}"),
            "name": "Rope",
            "description": "Three strands. ".repeat(10),
            "category": "Rope",
            "price": { "currencyCode": "EUR", "minorUnits": number },
        });
        json!({ "product": product }).to_string()
    };
    (0..count).map(line).collect::<Vec<_>>().join("\n") + "\n"
}

fn rpcs() -> impl Iterator<Item = String> {
    let pool = DescriptorPool::decode(proto::DESCRIPTOR_SET).unwrap();
    let services: Vec<_> = pool.services().collect();
    services.into_iter().flat_map(|service| {
        let name = |method: &str| format!("{}/{method}", service.name());
        service.methods().map(|method| name(method.name())).collect::<Vec<_>>()
    })
}

#[tokio::test]
async fn a_single_answer_is_printed_for_reading() {
    let shop = Shop::open().await;
    let request = r#"{
        "product": {
            "sku": "ANCHOR", "name": "Anchor", "category": "Anchors",
            "price": {"currency_code": "EUR", "minorUnits": 4900}
        },
        "initialQuantity": 3,
        "request_id": "0199aaaa-0000-7000-8000-000000000001"
    }"#;
    let created = shop.call(&["CreateProduct", request]).answer();
    assert!(created.starts_with("{\n  \"id\": \""), "{created}");
    let created: Value = serde_json::from_str(&created).unwrap();
    assert_eq!(created["price"]["minorUnits"], "4900");

    let id = json!({ "id": created["id"] }).to_string();
    let file = shop.directory.path().join("request.json");
    fs::write(&file, &id).unwrap();
    let file = format!("@{}", file.display());
    let rpc = "chandlery.catalog.v1.CatalogService/GetProduct";
    for arguments in [&["GetProduct", &id], &["CatalogService/GetProduct", &file], &[rpc, &id]] {
        let read: Value = serde_json::from_str(&shop.call(arguments).answer()).unwrap();
        assert_eq!(read, created);
    }
    assert!(shop.call(&["GetProduct", "-"]).typing(&id).answer().contains("ANCHOR"));

    let target = shop.suite.targets().catalog_service;
    let certs = shop.suite.certificates();
    let nowhere = shop.directory.path().join("nowhere");
    let arguments = ["ListProducts", "--target", &target, "--certs", certs.to_str().unwrap()];
    assert!(call(&nowhere, &arguments).answer().contains("ANCHOR"));

    let health = shop.call(&["Health/Check", "--service", "user-service"]).answer();
    assert_eq!(serde_json::from_str::<Value>(&health).unwrap(), json!({ "status": "SERVING" }));
    shop.close().await;
}

#[tokio::test]
async fn streams_go_in_and_come_out_line_by_line() {
    let shop = Shop::open().await;
    let import = shop.call(&["ImportProducts", "-"]).typing(&products(1_200)).answer();
    let import: Value = serde_json::from_str(&import).unwrap();
    assert_eq!(import["createdCount"], "1200");
    let again: Vec<_> = products(2).lines().map(str::to_owned).collect();
    let again = shop.call(&["ImportProducts", &again[0], &again[1]]).answer();
    assert!(again.contains(r#""unchangedCount": "2""#), "{again}");

    let export = shop.call(&["ExportProducts"]).answer();
    assert_eq!(export.lines().count(), 1_200);
    for line in export.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["name"], "Rope");
    }

    // Whoever reads no further ends the call, and is told nothing.
    let mut export = shop.call(&["ExportProducts"]);
    let mut line = String::new();
    BufReader::new(export.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(export.answer(), "");

    let mut watch = shop.call(&["Health/Watch", "--service", "catalog-service"]);
    let mut line = String::new();
    BufReader::new(watch.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"status\":\"SERVING\"}\n");
    watch.0.kill().unwrap();
    watch.0.wait().unwrap();
    shop.close().await;
}

#[tokio::test]
async fn a_call_of_two_ways_is_a_conversation() {
    let shop = Shop::open().await;
    let rpc = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let mut conversation = shop.call(&[rpc, "-", "--service", "purchase-service"]);
    let mut questions = conversation.0.stdin.take().unwrap();
    let mut answers = BufReader::new(conversation.0.stdout.take().unwrap());
    for (question, expected) in [
        ("{\"listServices\": \"\"}\n", "chandlery.purchase.v1.PurchaseService"),
        ("{\"fileContainingSymbol\": \"grpc.health.v1.Health\"}\n", "fileDescriptorProto"),
    ] {
        questions.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert!(answer.contains(expected), "{answer}");
    }
    drop(questions);
    assert_eq!(conversation.answer(), "");
    shop.close().await;
}

#[tokio::test]
async fn a_status_is_laid_out_with_its_details() {
    let mut shop = Shop::open().await;
    let unknown = r#"{"id": "0199aaaa-0000-7000-8000-000000000001"}"#;
    let (status, problem) = shop.call(&["GetProduct", unknown]).refusal();
    assert_eq!(status, 105);
    let lines: Vec<_> = problem.lines().collect();
    assert!(lines[0].starts_with("chandlery: NOT_FOUND: "), "{problem}");
    assert!(lines.contains(&"  reason    PRODUCT_NOT_FOUND"), "{problem}");
    assert!(lines.contains(&"  domain    chandlery.local"), "{problem}");

    let (status, problem) = shop.call(&["GetProduct", r#"{"id": "7"}"#]).refusal();
    assert_eq!(status, 103);
    assert!(problem.contains("\n  field     id: "), "{problem}");

    let (status, _) = shop.call(&["AuditStock", "--as", "user-service"]).refusal();
    assert_eq!(status, 107);
    let (status, _) = shop.call(&["GetProduct", unknown, "--service", "user-service"]).refusal();
    assert_eq!(status, 112, "another service does not have it");

    shop.suite.pause(Service::Catalog).unwrap();
    let (status, problem) = shop.call(&["GetProduct", unknown, "--timeout", "0.2"]).refusal();
    assert_eq!(status, 104, "{problem}");
    shop.suite.resume(Service::Catalog).unwrap();
    shop.suite.terminate(Service::Catalog).await.unwrap();
    let (status, problem) = shop.call(&["GetProduct", unknown]).refusal();
    assert_eq!(status, 69, "{problem}");
    shop.close().await;
}

#[tokio::test]
async fn a_token_and_headers_go_with_the_call() {
    let shop = Shop::open().await;
    let id = r#"{"id": "0199aaaa-0000-7000-8000-000000000001"}"#;
    let token = ["GetPurchase", id, "--token", "no.such.token"];
    let header = ["GetPurchase", id, "-H", "Authorization: Bearer no.such.token"];
    for arguments in [token, header] {
        let (status, problem) = shop.call(&arguments).refusal();
        assert_eq!(status, 116, "{problem}");
        assert!(!problem.contains("no.such.token"), "{problem}");
    }
    let (status, problem) = shop.call(&["GetPurchase", id, "-H", "grpc-timeout: 1n"]).refusal();
    assert_eq!(status, 104, "{problem}");
    shop.close().await;
}

#[tokio::test]
async fn a_stream_that_breaks_is_not_taken_for_a_whole_one() {
    let shop = Shop::open().await;
    let broken = format!("{}{{\"product\": {{\"sku\": 1}}}}\n", products(2));
    let (status, problem) = shop.call(&["ImportProducts", "-"]).typing(&broken).refusal();
    assert_eq!(status, 64);
    assert!(problem.contains("the standard input holds no "), "{problem}");
    assert!(problem.contains("product.sku: invalid type: integer `1`"), "{problem}");
    assert!(problem.contains("at line 3 column 22"), "{problem}");
    assert_eq!(shop.call(&["ExportProducts"]).answer(), "");
    shop.close().await;
}

#[test]
fn what_cannot_be_called_is_refused_before_anything_is_called() {
    let directory = TempDir::new().unwrap();
    for (arguments, expected) in [
        (&["GetProdct"][..], "did you mean CatalogService/GetProduct"),
        (&["GetProduct", r#"{"idd": ""}"#], "unrecognized field name 'idd' at line 1 column 6"),
        (&["GetProduct", "@no-such-file"], "no-such-file cannot be read"),
        (&["Check"], "say with --service"),
        (&["GetProduct", "--timeout", "0"], "more than 0"),
        (&["GetProduct", "--timeout", "1e300"], "at most those of a year"),
        (&["GetProduct", "-H", "no colon"], "a colon follows"),
        (&["GetProduct", "--token", ""], "it is empty"),
        (&["GetProduct", "--target", "static:///127.0.0.1:1", "--as", "fork"], "fork.crt"),
    ] {
        let (status, problem) = call(directory.path(), arguments).refusal();
        assert_eq!(status, 64, "{problem}");
        assert!(problem.contains(expected), "{problem}");
    }
    let (status, problem) = call(directory.path(), &["ListProducts"]).refusal();
    assert_eq!(status, 69, "nothing runs");
    assert!(problem.contains("`chandlery dev`"), "{problem}");
}

fn script(shell: &str) -> String {
    let output = Command::new(PROGRAM).args(["completions", shell]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_shell_knows_the_rpcs_and_no_hidden_subcommand() {
    for shell in ["bash", "zsh", "fish"] {
        let script = script(shell);
        for rpc in rpcs() {
            assert!(script.contains(&rpc), "{shell}: {rpc}");
        }
        assert!(!script.contains("until-stdin-closes"), "{shell}");
    }
}

#[test]
fn bash_completes_every_name_of_an_rpc_and_the_workloads() {
    let script = script("bash");
    // The word that a line ends with, which may be empty.
    let complete = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let [.., previous, word] = words[..] else { panic!("{line}") };
        let script = format!(
            "{script}\nCOMP_WORDS=({line}{quotes}); COMP_CWORD={cursor}\n\
             _chandlery chandlery {word:?} {previous}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            quotes = if word.is_empty() { "''" } else { "" },
            cursor = words.len() - 1,
        );
        match Command::new("bash").args(["--norc", "-c", &script]).output() {
            Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => panic!("{error}"),
        }
    };
    let Some(all) = complete("chandlery call ") else {
        println!("bash is not installed here");
        return;
    };
    for rpc in rpcs() {
        assert!(all.lines().any(|word| word == rpc), "{rpc}: {all}");
    }
    for (word, expected) in [
        ("GetProd", "GetProduct\n"),
        ("CatalogService/Get", "CatalogService/GetProduct\n"),
        (
            "chandlery.catalog.v1.CatalogService/Get",
            "chandlery.catalog.v1.CatalogService/GetProduct\n",
        ),
    ] {
        assert_eq!(complete(&format!("chandlery call {word}")).unwrap(), expected);
    }
    let workloads = complete("chandlery call ListProducts --as ").unwrap();
    assert_eq!(workloads.lines().collect::<Vec<_>>(), certs::WORKLOADS);
}
