//! What the checker is given: the books of the services, and what the sender of
//! the purchases remembers.

use std::{collections::BTreeSet, mem, time::Duration};

use client::Channel;
use proto::{
    catalog::v1::{
        AuditStockRequest, AuditStockResponse, stock_service_client::StockServiceClient,
    },
    purchase::v1::{
        AuditPurchasesRequest, AuditPurchasesResponse, Purchase, PurchaseState,
        audit_purchases_response::AuditedPurchase, purchase_service_client::PurchaseServiceClient,
    },
    r#type::v1::Money,
    user::v1::{
        AuditLedgerRequest, AuditLedgerResponse, account_service_client::AccountServiceClient,
    },
};
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::{check::is_settled, clients::Clients, load::is_worth_repeating};

/// How long to wait before the books are read again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long a service may be out of reach, as it is on the first call after its
/// process was replaced.
const ABSENCE_PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A service did not answer.
    #[error("{}", .0.message())]
    Call(#[from] Status),
    /// Somebody buys without a pause.
    #[error("purchases change while they are read; check again when it is quiet")]
    Busy,
}

/// What is known of purchases, stock and ledger.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// The stock, with all reservations.
    pub stock: AuditStockResponse,
    /// The ledger, with all payments.
    pub ledger: AuditLedgerResponse,
    /// All purchases.
    pub purchases: AuditPurchasesResponse,
    /// What their sender knows; what only that can show is not checked without it.
    pub sent: Option<Sent>,
}

/// What the sender of every purchase knows of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sent {
    /// The `request_id` of every request that was ever sent.
    pub request_ids: BTreeSet<String>,
    /// Every answer that arrived.
    pub answers: Vec<Answer>,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The request that created the purchase.
    pub request_id: String,
    /// The purchase.
    pub purchase_id: String,
    /// Where it stood.
    pub state: PurchaseState,
    /// What it cost, if it got so far.
    pub total: Option<Money>,
}

impl Sent {
    /// Remembers a request; to be called before it is sent.
    pub fn request(&mut self, request_id: &str) {
        self.request_ids.insert(request_id.to_owned());
    }

    /// Remembers an answer to the request that created the purchase, or to a
    /// later one that changed it.
    pub fn answer(&mut self, request_id: &str, purchase: &Purchase) {
        self.answers.push(Answer {
            request_id: request_id.to_owned(),
            purchase_id: purchase.id.clone(),
            state: purchase.state(),
            total: purchase.total.clone(),
        });
    }

    /// Remembers what another sender knows as well.
    pub fn merge(&mut self, other: Self) {
        let Self { mut request_ids, answers } = other;
        self.request_ids.append(&mut request_ids);
        self.answers.extend(answers);
    }
}

impl Evidence {
    /// Reads all books as they are.
    pub async fn collect(clients: &Clients) -> Result<Self, Status> {
        let mut clients = clients.clone();
        Ok(Self {
            purchases: purchases(&mut clients.purchases).await?,
            stock: stock(&mut clients.stock).await?,
            ledger: ledger(&mut clients.accounts).await?,
            sent: None,
        })
    }

    /// Reads all books once no purchase is under way.
    ///
    /// When `patience` runs out, purchases that are stuck are evidence as well; but
    /// books that change while they are read do not fit together, and are none.
    pub async fn collect_when_quiet(clients: &Clients, patience: Duration) -> Result<Self, Error> {
        Self::collect_despite_absences(clients, patience, ABSENCE_PATIENCE).await
    }

    /// The same of services that may be away for so long at a time.
    pub async fn collect_despite_absences(
        clients: &Clients,
        patience: Duration,
        absence_patience: Duration,
    ) -> Result<Self, Error> {
        let end = Instant::now() + patience;
        let mut away_since = None;
        loop {
            let is_last = Instant::now() >= end;
            match Self::collect_steady(clients).await {
                Ok(Some(evidence)) if is_last || evidence.unsettled().next().is_none() => {
                    return Ok(evidence);
                }
                Ok(None) if is_last => return Err(Error::Busy),
                Ok(_) => away_since = None,
                Err(status) => {
                    let since = *away_since.get_or_insert_with(Instant::now);
                    if !is_worth_repeating(&status) || since.elapsed() >= absence_patience {
                        return Err(status.into());
                    }
                }
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Reads all books, if no purchase changes meanwhile.
    async fn collect_steady(clients: &Clients) -> Result<Option<Self>, Status> {
        let evidence = Self::collect(clients).await?;
        let after = purchases(&mut clients.purchases.clone()).await?;
        let is_steady = evidence.purchases.purchases == after.purchases;
        Ok(is_steady.then_some(evidence))
    }

    /// The same with what the sender of the purchases knows.
    #[must_use]
    pub fn with_sent(self, sent: Sent) -> Self {
        Self { sent: Some(sent), ..self }
    }

    /// The purchases that are under way.
    pub fn unsettled(&self) -> impl Iterator<Item = &AuditedPurchase> {
        self.purchases.purchases.iter().filter(|purchase| !is_settled(purchase.state()))
    }
}

async fn purchases(
    client: &mut PurchaseServiceClient<Channel>,
) -> Result<AuditPurchasesResponse, Status> {
    let mut purchases = Vec::new();
    let mut request = AuditPurchasesRequest::default();
    loop {
        let mut page = client.audit_purchases(request.clone()).await?.into_inner();
        purchases.append(&mut page.purchases);
        request.page_token = mem::take(&mut page.next_page_token);
        if request.page_token.is_empty() {
            return Ok(AuditPurchasesResponse { purchases, ..page });
        }
    }
}

async fn stock(client: &mut StockServiceClient<Channel>) -> Result<AuditStockResponse, Status> {
    let mut reservations = Vec::new();
    let mut request = AuditStockRequest::default();
    loop {
        let mut page = client.audit_stock(request.clone()).await?.into_inner();
        reservations.append(&mut page.reservations);
        request.page_token = mem::take(&mut page.next_page_token);
        if request.page_token.is_empty() {
            return Ok(AuditStockResponse { reservations, ..page });
        }
    }
}

async fn ledger(client: &mut AccountServiceClient<Channel>) -> Result<AuditLedgerResponse, Status> {
    let mut payments = Vec::new();
    let mut request = AuditLedgerRequest::default();
    loop {
        let mut page = client.audit_ledger(request.clone()).await?.into_inner();
        payments.append(&mut page.payments);
        request.page_token = mem::take(&mut page.next_page_token);
        if request.page_token.is_empty() {
            return Ok(AuditLedgerResponse { payments, ..page });
        }
    }
}
