//! Any RPC from the command line: the built-in descriptors say what it takes and
//! answers, and both are JSON.

mod codec;
mod input;
mod layout;
mod rpc;

use std::{
    future::ready,
    io::{self, Write},
    time::Duration,
};

use client::Channel;
use futures::{Stream, stream};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION, uri::PathAndQuery};
use prost_reflect::DynamicMessage;
use tonic::{Code, Extensions, Request, Status, client::Grpc, metadata::MetadataMap};

use crate::{
    caller::{self, Caller},
    clients,
    service::Service,
};
use codec::Codec;
use layout::Layout;
use rpc::Rpc;

/// A longer timeout is none, and tonic cannot write any.
const MAX_TIMEOUT: Duration = Duration::from_hours(365 * 24);

const DETAILS: &str = "\
Examples:
  chandlery call ListProducts '{\"pageSize\": 3}'
  chandlery call UserService/CreateUser @user.json
  chandlery call ImportProducts - < products.jsonl
  chandlery call PurchaseService/Shop -     line by line: each is sent once it is read
  chandlery call Health/Watch --service catalog-service

Messages are in the JSON mapping of Protobuf; fields may also be named as in the contract.
Several answers are written one per line.

Exit status:
  0 OK; 64 wrong usage, wrong JSON, or a certificate that cannot be used; 69 UNAVAILABLE,
  or not to be reached; 70 an answer has no JSON form; 71 the answers cannot be written;
  100 and the code for any other status: 103 INVALID_ARGUMENT, 104 DEADLINE_EXCEEDED,
  105 NOT_FOUND, 107 PERMISSION_DENIED, 116 UNAUTHENTICATED, ...";

/// Calls an RPC, with JSON in and JSON out
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub struct Args {
    /// Service/Method, Method alone, or the full name
    #[arg(value_name = "RPC", value_parser = rpc::Parser, hide_possible_values = true)]
    rpc: &'static Rpc,

    /// A message; - reads messages from the standard input, @FILE from a file
    ///
    /// Without any, an empty message is sent. An RPC that takes a stream takes several.
    #[arg(value_name = "JSON")]
    messages: Vec<String>,

    /// Where the service is, for example static:///127.0.0.1:50051; else as
    /// endpoints.json says
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,

    /// The service to call, where every service has the RPC, as with Health/Check
    #[arg(long, value_name = "SERVICE")]
    service: Option<Service>,

    #[command(flatten)]
    caller: Caller,

    /// The access token of the user to call for
    #[arg(
        long,
        value_name = "TOKEN",
        env = "CHANDLERY_TOKEN",
        hide_env_values = true,
        value_parser = bearer
    )]
    token: Option<HeaderValue>,

    /// How long the call may take; else as long as the contract says
    #[arg(long, value_name = "SECONDS", value_parser = timeout)]
    timeout: Option<Duration>,

    /// A header to send; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Why a call has failed, or has not been made.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The messages cannot be read.
    #[error(transparent)]
    Input(#[from] input::Error),
    /// Nobody can call.
    #[error(transparent)]
    Caller(#[from] caller::Error),
    /// Every service has the RPC.
    #[error("every service has {0}; say with --service which is to be called")]
    AnyService(String),
    /// The target or the contract cannot be used.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The call ended with a status that is not OK.
    #[error("{}", Layout(.0))]
    Status(#[from] Status),
    /// An answer has no JSON form.
    #[error("an answer cannot be written as JSON: {0}")]
    Answer(#[from] serde_json::Error),
    /// The answers cannot be written.
    #[error("the answers cannot be written: {0}")]
    Output(#[from] io::Error),
}

/// Calls the RPC, and writes its answers to the standard output as they arrive.
///
/// Whoever closes the standard output has read enough, which is no failure.
pub async fn run(args: &Args) -> Result<(), Failure> {
    let method = &args.rpc.method;
    let messages = input::messages(&args.messages, &method.input())?;
    let channel = args.channel()?;
    let outcome = if method.is_client_streaming() {
        let (messages, broken) = input::stream(messages);
        tokio::select! {
            Ok(error) = broken => Err(error.into()),
            outcome = exchange(channel, args.rpc, args.request(messages)) => outcome,
        }
    } else {
        let message = input::only(messages, &method.input())?;
        exchange(channel, args.rpc, args.request(stream::once(ready(message)))).await
    };
    match outcome {
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// One call, whatever its kind: a single message is a stream of one.
async fn exchange(
    channel: Channel,
    rpc: &Rpc,
    request: Request<impl Stream<Item = DynamicMessage> + Send + 'static>,
) -> Result<(), Failure> {
    let method = &rpc.method;
    let path = PathAndQuery::try_from(format!("/{}", rpc.full_name()))
        .map_err(|error| Status::internal(error.to_string()))?;
    let codec = Codec { answer: method.output() };
    let mut answers = Grpc::new(channel).streaming(request, path, codec).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        let json = if method.is_server_streaming() {
            serde_json::to_string(&answer)?
        } else {
            serde_json::to_string_pretty(&answer)?
        };
        let mut output = io::stdout().lock();
        writeln!(output, "{json}").and_then(|()| output.flush())?;
    }
    Ok(())
}

impl Args {
    fn channel(&self) -> Result<Channel, Failure> {
        let service = self.service()?;
        let target = match &self.target {
            Some(target) => target.clone(),
            None => format!("static:///{}", self.caller.endpoints()?.of(service).grpc),
        };
        Ok(clients::channel(service, &target, &self.caller.identity()?)?)
    }

    /// The service that is asked for, or else the one that has the RPC.
    fn service(&self) -> Result<Service, Failure> {
        let method = &self.rpc.method;
        let file = method.parent_file();
        let noun = file.package_name().split('.').nth(1).unwrap_or_default();
        let has_rpc = |service: &Service| service.name().strip_suffix("-service") == Some(noun);
        self.service
            .or_else(|| Service::ALL.into_iter().find(has_rpc))
            .ok_or_else(|| Failure::AnyService(method.full_name().to_owned()))
    }

    fn request<T>(&self, messages: T) -> Request<T> {
        let token = self.token.clone().map(|token| (AUTHORIZATION, token));
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers.iter().cloned().chain(token) {
            headers.append(name, value);
        }
        let headers = MetadataMap::from_headers(headers);
        let mut request = Request::from_parts(headers, Extensions::default(), messages);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }
}

/// The exit status of a call that ended with this code.
pub(crate) fn exit_status(code: Code) -> u8 {
    u8::try_from(i32::from(code)).map_or(u8::MAX, |code| 100_u8.saturating_add(code))
}

fn bearer(token: &str) -> Result<HeaderValue, &'static str> {
    if token.is_empty() {
        return Err("it is empty");
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| "a token has no line breaks and no other control characters")?;
    value.set_sensitive(true);
    Ok(value)
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("a colon follows the name of a header")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is no name of a header"))?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} is no value of a header"))?;
    Ok((name, value))
}

fn timeout(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|timeout| !timeout.is_zero() && *timeout <= MAX_TIMEOUT)
        .ok_or("give seconds, more than 0 and at most those of a year")
}
