//! One purchase, followed from its beginning to its refund, across the deaths of
//! the service that tells of it.

use std::time::Duration;

use proto::purchase::v1::{
    CreatePurchaseRequest, ListPurchasesRequest, PurchaseEvent, PurchaseState,
    RefundPurchaseRequest, WatchPurchaseRequest,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::watch::{Receiver, Sender},
    time::sleep,
};

use super::{Failure, call, people::FOLLOWED};
use crate::{
    check::{Sent, state_name},
    clients::Clients,
    load::{self, Progress, is_worth_repeating},
    terminal::{Terminal, amount},
};

const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Buys, and gives the purchase back after so many answers to other requests.
/// Answers with what was sent.
pub(super) async fn trade(
    clients: &Clients,
    request: &CreatePurchaseRequest,
    refund_after: usize,
    mut random: StdRng,
    mut progress: Receiver<Progress>,
) -> Result<Sent, Failure> {
    let mut sent = Sent::default();
    sent.request(&request.request_id);
    let (options, uncounted) = (load::Options::default(), Sender::default());
    let bought = load::buy(clients, request, &options, StdRng::from_rng(&mut random), &uncounted)
        .await
        .map_err(|status| Failure::Call("CreatePurchase", status))?;
    sent.answer(&request.request_id, &bought);

    let cue = |progress: &Progress| progress.answered + progress.unanswered >= refund_after;
    if progress.wait_for(cue).await.is_ok() && bought.state() == PurchaseState::Confirmed {
        let refund = || {
            let mut client = clients.purchases.clone();
            let refund = RefundPurchaseRequest { id: bought.id.clone(), ..Default::default() };
            async move { client.refund_purchase(refund).await }
        };
        let refunded = call("RefundPurchase", &mut random, refund).await?;
        sent.answer(&request.request_id, &refunded);
    }
    Ok(sent)
}

/// Tells of every change of the one purchase of a user, until none can follow.
pub(super) async fn follow(
    clients: &Clients,
    request: &CreatePurchaseRequest,
    mut random: StdRng,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let user_id = request.purchase.as_ref().map_or("", |purchase| &purchase.user_id);
    let id = find(clients, user_id, &mut random).await?;
    let mut version = 0;
    loop {
        let open = || {
            let mut client = clients.purchases.clone();
            let request = WatchPurchaseRequest { id: id.clone(), after_version: version };
            async move { client.watch_purchase(request).await }
        };
        let mut events = call("WatchPurchase", &mut random, open).await?;
        if version > 0 {
            let text = format!("the stream broke, and goes on after version {version}");
            terminal.event("follow", text);
        }
        loop {
            match events.message().await {
                Ok(Some(event)) => {
                    terminal.event("follow", describe(&event));
                    version = event.version;
                }
                Ok(None) => return Ok(()),
                Err(status) if is_worth_repeating(&status) => break,
                Err(status) => return Err(Failure::Call("WatchPurchase", status)),
            }
        }
    }
}

/// The identifier of the one purchase of a user, as soon as it is on record and
/// long before it is answered.
async fn find(clients: &Clients, user_id: &str, random: &mut StdRng) -> Result<String, Failure> {
    loop {
        let list = || {
            let mut client = clients.purchases.clone();
            let request =
                ListPurchasesRequest { user_id: user_id.to_owned(), ..Default::default() };
            async move { client.list_purchases(request).await }
        };
        let page = call("ListPurchases", random, list).await?;
        if let Some(purchase) = page.purchases.into_iter().next() {
            return Ok(purchase.id);
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn describe(event: &PurchaseEvent) -> String {
    let price = event.total.as_ref().map_or_else(String::new, |it| format!(", {}", amount(it)));
    let state = state_name(event.state());
    format!("{FOLLOWED}'s purchase, version {}: {state}{price}", event.version)
}
