//! The heart of the demonstration: many purchases, one that is followed, and the
//! kills, all at once.

use std::convert::Infallible;

use indicatif::{HumanCount, ProgressBar};
use proto::{
    catalog::v1::Product,
    purchase::v1::{CreatePurchaseRequest, purchase::Item},
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IteratorRandom};
use tokio::sync::watch::{Receiver, channel};

use super::{
    Args, Failure,
    kill::{self, Kills},
    people::{FOLLOWED, People},
    supervisor::Supervisor,
    watch,
};
use crate::{
    clients::Clients,
    load::{self, Outcome, Progress},
    terminal::{Terminal, counted, seconds},
};

/// Everything that chance decides, decided beforehand.
pub(super) struct Trade {
    requests: Vec<CreatePurchaseRequest>,
    options: load::Options,
    followed: CreatePurchaseRequest,
    kill_moments: Vec<usize>,
    random: StdRng,
}

/// What became of it.
pub(super) struct Traded {
    pub(super) outcome: Outcome,
    pub(super) kills: Kills,
}

impl Trade {
    pub(super) fn plan(
        args: &Args,
        people: &People,
        products: &[Product],
        random: &mut StdRng,
    ) -> Result<Self, Failure> {
        let Args { purchases, kills, concurrency, seed: _ } = *args;
        Ok(Self {
            requests: load::choose(purchases as usize, &people.buyers, products, random),
            options: load::Options {
                concurrency: concurrency as usize,
                seed: random.random(),
                ..load::Options::default()
            },
            followed: choose_followed(&people.followed, products, random)?,
            // After the last moment there is still enough in flight to be hit.
            kill_moments: kill::moments(kills, purchases.saturating_sub(concurrency), random),
            random: StdRng::from_rng(random),
        })
    }

    pub(super) async fn run(
        self,
        clients: &Clients,
        supervisor: &Supervisor<'_>,
        terminal: &Terminal,
    ) -> Result<Traded, Failure> {
        let Self { requests, options, followed, kill_moments, mut random } = self;
        let mut random = || StdRng::from_rng(&mut random);
        let count = requests.len();
        let bar = terminal.begin_bar(count, "purchases answered");
        let (progress, watched) = channel(Progress::default());

        let buying = async {
            let outcome = load::run(clients, requests, &options, &progress).await;
            let Some((request_id, status)) = outcome.unanswered.first() else { return Ok(outcome) };
            let (count, request_id) = (outcome.unanswered.len(), request_id.clone());
            Err(Failure::Unanswered { count, request_id, status: status.clone() })
        };
        let killing = kill::run(supervisor, kill_moments, random(), watched.clone(), terminal);
        let following = watch::follow(clients, &followed, random(), terminal);
        let trading = watch::trade(clients, &followed, count / 2, random(), watched.clone());
        let (mut outcome, kills, (), sent) = tokio::select! {
            all = async { tokio::try_join!(buying, killing, following, trading) } => all?,
            never = show(&bar, watched.clone()) => match never {},
        };
        terminal.end_bar();
        for line in summary(&outcome) {
            terminal.line(format_args!("  {line}"));
        }
        let refund = if sent.answers.len() > 1 { " with its refund" } else { "" };
        outcome.sent.merge(sent);
        terminal.line(format_args!(
            "  and {FOLLOWED}'s purchase{refund}: {} and {} in all",
            counted(outcome.sent.request_ids.len(), "purchase"),
            counted(outcome.sent.answers.len(), "answer"),
        ));
        Ok(Traded { outcome, kills })
    }
}

/// A purchase that nothing but a fault can make fail.
fn choose_followed(
    user_id: &str,
    products: &[Product],
    random: &mut StdRng,
) -> Result<CreatePurchaseRequest, Failure> {
    const QUANTITY: i32 = 2;
    // More than the other purchases are likely to leave.
    let in_stock = |it: &&Product| it.available_quantity >= i64::from(QUANTITY) * 10;
    let product = products.iter().filter(in_stock).choose(random);
    let product = product.ok_or_else(|| Failure::Products("nothing is in stock".to_owned()))?;
    let currency_code = product.price.as_ref().map_or("", |price| &price.currency_code);
    let item = Item { product_id: product.id.clone(), quantity: QUANTITY, ..Item::default() };
    Ok(load::request(user_id, currency_code, vec![item], random))
}

async fn show(bar: &ProgressBar, mut progress: Receiver<Progress>) -> Infallible {
    while progress.changed().await.is_ok() {
        let Progress { answered, unanswered, .. } = *progress.borrow_and_update();
        bar.set_position((answered + unanswered) as u64);
    }
    std::future::pending().await
}

/// What became of the purchases.
fn summary(outcome: &Outcome) -> [String; 2] {
    let failed = outcome.failed.iter().map(|(reason, count)| {
        let name = reason.as_str_name();
        let name = name.strip_prefix("FAILURE_REASON_").unwrap_or(name);
        format!(", {} FAILED ({name})", HumanCount(*count as u64))
    });
    let confirmed = HumanCount(outcome.confirmed as u64);
    let states = format!("{confirmed} CONFIRMED{}", failed.collect::<String>());
    let times = format!(
        "half answered within {}, 99 of 100 within {}, all within {}",
        seconds(outcome.percentile(50)),
        seconds(outcome.percentile(99)),
        seconds(outcome.percentile(100)),
    );
    [states, times]
}
