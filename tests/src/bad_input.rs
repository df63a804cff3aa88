//! Bad input generated from the contract: for every RPC there is, messages that could
//! be meant, spoiled in the ways that a sender can get them wrong, from the value of a
//! field down to the framing. Whatever is sent, the answer must be one that the contract
//! documents.

mod encoding;
mod framing;
mod head;
mod known;
mod message;
mod report;
mod rpc;
mod value;
mod verdict;
mod wire;

use std::fs;

use chandlery::service::Service;
use futures::future::join_all;
use prost::Message;
use prost_reflect::DynamicMessage;
use proto::{
    Role,
    user::v1::{SignInRequest, Tokens, UpdateUserRequest, User},
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use service_runtime::Clock;

pub use report::Report;

use crate::shop::Shop;
use known::{Known, Session};
use message::{Messages, PASSWORD};
use rpc::Rpc;
use wire::{Lines, OPERATOR, Request, WORKLOAD};

/// How many inputs are under way at once. What their answers teach is used from the
/// next round on.
const ROUND: usize = 100;

/// How long a stream without an end of its own is read.
const STREAM_TIMEOUT: &str = "250m";

/// One call, and what it was made of.
struct Input<'a> {
    rpc: &'a Rpc,
    request: Request,
    messages: Vec<DynamicMessage>,
    /// What was spoiled.
    spoiled: Vec<String>,
}

/// Sends so many inputs to the services of a shop, and tells how they were answered.
///
/// A seed chooses the same RPCs and the same ways to spoil them again; what they name
/// is what the services gave out.
pub async fn send(shop: &Shop, seed: u64, count: usize) -> Report {
    let rpcs = Rpc::all();
    let mut seeds = StdRng::seed_from_u64(seed);
    let mut random = StdRng::from_rng(&mut seeds);
    let mut known = furnish(shop, &mut random).await;
    let mut report = Report::new(seed);
    let mut lines = Lines::new(shop);
    let processes = Service::ALL.map(|service| shop.suite.process_id(service));

    // In turn, so that no RPC is left out.
    let mut turn = rpcs.iter().cycle().take(count);
    loop {
        let round: Vec<_> =
            turn.by_ref().take(ROUND).map(|rpc| input(rpc, &known, &mut seeds)).collect();
        if round.is_empty() {
            break;
        }
        lines.open().await;
        let answers = join_all(round.iter().map(|it| lines.send(&it.request)));
        for (input, answer) in round.iter().zip(answers.await) {
            let judged = verdict::judge(input.rpc, &input.request, answer);
            // A vote is given strange names on purpose.
            if judged.is_accepted() && !input.rpc.is_vote() {
                let messages = input.messages.iter().chain(&judged.messages);
                messages.for_each(|message| known.learn(message, &mut random));
            }
            report.add(input.rpc, &input.spoiled, judged);
        }
    }

    for (service, process) in Service::ALL.into_iter().zip(processes) {
        if shop.suite.process_id(service) != process || !shop.is_serving(service, "").await {
            report.fault("it has ended, or no longer serves".to_owned(), service.to_string());
        }
        let log = fs::read(shop.suite.directory().join(format!("{service}.log"))).unwrap();
        let log = String::from_utf8_lossy(&log);
        for line in log.lines().filter(|line| line.contains("panicked")) {
            report.fault(line.to_owned(), service.to_string());
        }
    }
    report
}

/// Puts a few of everything into the shop, so that there is something to name.
async fn furnish(shop: &Shop, random: &mut StdRng) -> Known {
    let mut known = Known::default();
    for role in [Role::Customer, Role::Staff].repeat(4) {
        let user = shop.user(1_000_000).await;
        let request = UpdateUserRequest {
            user: Some(User { id: user.id.clone(), role: role.into(), ..User::default() }),
            new_password: PASSWORD.to_owned(),
            request_id: shop.uuid(),
            ..UpdateUserRequest::default()
        };
        shop.clients.users.clone().update_user(request).await.unwrap();
        let request = SignInRequest { email: user.email.clone(), password: PASSWORD.to_owned() };
        let tokens = shop.clients.auth.clone().sign_in(request).await.unwrap().into_inner();
        known.keep("refresh_token", tokens.refresh_token, random);
        let Tokens { user_id, access_token, .. } = tokens;
        known.keep_session(Session { user_id, access_token }, random);
        let product = shop.product(3, 1_000_000).await;
        let purchase = shop.buy(&shop.order(&user, &[(&product, 2)])).await;
        known.keep("email", user.email, random);
        known.keep("etag", purchase.etag, random);
        for (name, id) in [("user", user.id), ("product", product.id), ("purchase", purchase.id)] {
            known.keep(name, id, random);
        }
    }
    known
}

fn input<'a>(rpc: &'a Rpc, known: &Known, seeds: &mut StdRng) -> Input<'a> {
    let random = &mut StdRng::from_rng(seeds);
    // What is known differs between runs, and must not sway how an input is spoiled.
    let filling = &mut StdRng::from_rng(random);
    let nobody = Known::default();
    // Who may cast a vote may do anything with the goods and the money of a purchase that
    // exists, so that votes are about purchases, users and products that do not.
    let known = if rpc.is_vote() { &nobody } else { known };
    let workload = match (rpc.is_vote(), random.random_bool(0.8)) {
        (false, true) | (true, false) => OPERATOR,
        (true, true) | (false, false) => WORKLOAD,
    };
    let mut request = Request::new((rpc.service, workload), &rpc.path);
    if rpc.policy.resumable {
        request.set("grpc-timeout", STREAM_TIMEOUT);
    }
    // The operator has no need to call for anybody, and any other may forget it.
    let forgets = random.random_bool(0.1);
    let session = known.session(filling).filter(|_| workload == WORKLOAD && !forgets);
    if let Some(Session { access_token, .. }) = session {
        request.set("authorization", format!("Bearer {access_token}"));
    }

    let user_id = session.map(|session| session.user_id.as_str());
    let now = Clock::system().now();
    let mut messages = Messages { known, user_id, now, random: filling }.call(&rpc.method);
    // One in six is sent as it is, and as many are spoiled twice.
    let mut times = [0; 4];
    for _ in 0..*[0, 1, 1, 1, 1, 2].choose(random).unwrap() {
        times[random.random_range(0..4)] += 1;
    }
    let [values, encodings, framings, heads] = times;
    let mut spoiled = Vec::new();
    for _ in 0..values {
        spoiled.push(value::spoil(&mut messages, known, random));
    }
    let mut encoded: Vec<_> = messages.iter().map(Message::encode_to_vec).collect();
    for _ in 0..encodings {
        spoiled.push(encoding::spoil(&mut encoded, &rpc.method.input(), random).to_owned());
    }
    request.body = encoded.iter().flat_map(|message| framing::frame(message)).collect();
    for _ in 0..framings {
        spoiled.push(framing::spoil(&mut request, random).to_owned());
    }
    for _ in 0..heads {
        spoiled.push(head::spoil(&mut request, known, random).to_owned());
    }
    Input { rpc, request, messages, spoiled }
}
