//! The RPCs: convert, call, convert. They only decide; the
//! [`worker`](crate::worker) drives.

mod convert;
mod shop;

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use proto::purchase::v1::{self as pb, purchase_service_server::PurchaseService};
use service_runtime::{
    Actor, Caller, Clock, Identifiers, PageTokens, RequestKey, to_proto_timestamp, trace,
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::{
    changes::{Changes, Subscription},
    error::Error,
    purchase::{self, Decision, Event, Order, Purchase, State},
    store::{Draft, Store},
    worker::Others,
};

const PURCHASES: PageTokens<'_> = PageTokens::new(["AuditPurchases", ""]);

/// What answers the request that made a purchase.
const OUTCOMES: [State; 3] = [State::Confirmed, State::Failed, State::Cancelled];

/// Serves the RPCs from a store.
#[derive(Clone, Debug)]
pub struct Service<S> {
    store: S,
    others: Others,
    worker: Arc<Notify>,
    changes: Changes,
    clock: Clock,
    identifiers: Identifiers,
    purchase_timeout: Duration,
}

impl<S: Store> Service<S> {
    /// Serves from `store`; the `others` know what a shopper is shown. `worker` is
    /// notified when there is something to drive, and announces in `changes` what came of
    /// it. A purchase that is still pending after `purchase_timeout` fails.
    pub fn new(
        store: S,
        others: Others,
        worker: Arc<Notify>,
        changes: Changes,
        clock: Clock,
        identifiers: Identifiers,
        purchase_timeout: Duration,
    ) -> Self {
        Self { store, others, worker, changes, clock, identifiers, purchase_timeout }
    }

    /// A purchase, if it is there for the actor.
    async fn find(&self, actor: Actor, id: Uuid) -> Result<Purchase, Error> {
        let purchase = self.store.get(id).await?;
        purchase.filter(|it| it.is_visible_to(actor)).ok_or(Error::PurchaseNotFound(id))
    }

    /// A purchase that is to be made of an order.
    fn draft(&self, key: RequestKey, order: Order) -> Draft {
        Draft {
            key,
            id: self.identifiers.next(),
            order,
            not_after: self.clock.now().saturating_add(self.purchase_timeout),
            trace_parent: trace::current(),
        }
    }

    /// Waits for the answer that is on record under one of these states, for as long
    /// as the caller does. It is the same for whoever asks, and whenever.
    async fn answer(&self, id: Uuid, states: &[State]) -> Result<Purchase, Error> {
        let mut changes = self.changes.subscribe(id);
        loop {
            let events = self.store.events(id, 0).await?;
            if let Some(event) = events.into_iter().find(|event| states.contains(&event.state)) {
                let purchase = self.store.get(id).await?.ok_or(Error::PurchaseNotFound(id))?;
                return Ok(purchase.as_of(event));
            }
            changes.changed().await;
        }
    }

    /// Records a decision about a purchase, unless it is there already.
    async fn decide(
        &self,
        actor: Actor,
        id: Uuid,
        etag: Option<&str>,
        decide: fn(State) -> Decision,
        refusal: fn(Uuid, State) -> Error,
    ) -> Result<(), Error> {
        loop {
            let purchase = self.find(actor, id).await?;
            let transition = match decide(purchase.last.state) {
                Decision::Record(transition) => transition,
                Decision::Wait | Decision::Answer => return Ok(()),
                Decision::Refuse => return Err(refusal(id, purchase.last.state)),
            };
            if etag.is_some_and(|etag| etag != purchase.etag()) {
                return Err(Error::EtagStale(id));
            }
            let version = etag.map(|_| purchase.last.version);
            if self.store.transition(id, transition, version, self.clock.now()).await? {
                self.changes.announce(id);
                self.worker.notify_one();
                return Ok(());
            }
            // Somebody else moved the purchase on: decide anew.
        }
    }
}

#[tonic::async_trait]
impl<S: Store> PurchaseService for Service<S> {
    async fn create_purchase(
        &self,
        request: Request<pb::CreatePurchaseRequest>,
    ) -> Result<Response<pb::Purchase>, Status> {
        let caller = Caller::of(&request)?;
        let (key, order) = convert::create_purchase(&caller, &request.into_inner())?;
        caller.actor().admit(order.user_id).map_err(Error::from)?;
        let id = self.store.create(self.draft(key, order), self.clock.now()).await?;
        self.worker.notify_one();
        Ok(Response::new(self.answer(id, &OUTCOMES).await?.into()))
    }

    async fn get_purchase(
        &self,
        request: Request<pb::GetPurchaseRequest>,
    ) -> Result<Response<pb::Purchase>, Status> {
        let actor = Caller::of(&request)?.actor();
        let id = convert::get_purchase(&request.into_inner())?;
        Ok(Response::new(self.find(actor, id).await?.into()))
    }

    async fn list_purchases(
        &self,
        request: Request<pb::ListPurchasesRequest>,
    ) -> Result<Response<pb::ListPurchasesResponse>, Status> {
        let actor = Caller::of(&request)?.actor();
        let request = request.into_inner();
        let (user_id, page) = convert::list_purchases(&request)?;
        actor.admit(user_id).map_err(Error::from)?;
        let purchases = self.store.list(user_id, page).await?.into_messages(|it| it.id);
        Ok(Response::new(pb::ListPurchasesResponse {
            next_page_token: convert::purchases_of(&request.user_id).token(purchases.next),
            purchases: purchases.rows,
        }))
    }

    async fn cancel_purchase(
        &self,
        request: Request<pb::CancelPurchaseRequest>,
    ) -> Result<Response<pb::Purchase>, Status> {
        let actor = Caller::of(&request)?.actor();
        let (id, etag) = convert::cancel_purchase(request.into_inner())?;
        let etag = etag.as_deref();
        self.decide(actor, id, etag, purchase::cancel, Error::NotCancellable).await?;
        Ok(Response::new(self.answer(id, &[State::Cancelled]).await?.into()))
    }

    async fn refund_purchase(
        &self,
        request: Request<pb::RefundPurchaseRequest>,
    ) -> Result<Response<pb::Purchase>, Status> {
        let actor = Caller::of(&request)?.actor();
        let (id, etag) = convert::refund_purchase(request.into_inner())?;
        let etag = etag.as_deref();
        self.decide(actor, id, etag, purchase::refund, Error::NotRefundable).await?;
        Ok(Response::new(self.answer(id, &[State::Refunded]).await?.into()))
    }

    type WatchPurchaseStream =
        Pin<Box<dyn Stream<Item = Result<pb::PurchaseEvent, Status>> + Send>>;

    async fn watch_purchase(
        &self,
        request: Request<pb::WatchPurchaseRequest>,
    ) -> Result<Response<Self::WatchPurchaseStream>, Status> {
        let actor = Caller::of(&request)?.actor();
        let (id, after_version) = convert::watch_purchase(&request.into_inner())?;
        let changes = self.changes.subscribe(id);
        let purchase = self.find(actor, id).await?;
        let watch = Watch {
            store: self.store.clone(),
            changes,
            id,
            seen: after_version,
            pending: VecDeque::new(),
            is_over: purchase.last.state.is_final() && purchase.last.version <= after_version,
        };
        let currency = purchase.order.currency;
        let events = stream::try_unfold(watch, |mut watch| async move {
            Ok::<_, Error>(watch.next().await?.map(|event| (event, watch)))
        });
        let events = events.map(move |event| match event {
            Ok(event) => Ok(convert::purchase_event(id, currency, event)),
            Err(error) => Err(error.into()),
        });
        Ok(Response::new(events.boxed()))
    }

    type ShopStream = Pin<Box<dyn Stream<Item = Result<pb::ShopResponse, Status>> + Send>>;

    async fn shop(
        &self,
        request: Request<Streaming<pb::ShopRequest>>,
    ) -> Result<Response<Self::ShopStream>, Status> {
        let caller = Caller::of(&request)?;
        let views = shop::views(self.clone(), caller, request.into_inner());
        Ok(Response::new(views.boxed()))
    }

    async fn audit_purchases(
        &self,
        request: Request<pb::AuditPurchasesRequest>,
    ) -> Result<Response<pb::AuditPurchasesResponse>, Status> {
        let page = convert::audit_purchases(&PURCHASES, &request.into_inner())?;
        let audited = self.store.audit(page).await?;
        Ok(Response::new(pb::AuditPurchasesResponse {
            next_page_token: PURCHASES.token(audited.next),
            purchases: audited.rows.into_iter().map(Into::into).collect(),
            read_time: Some(to_proto_timestamp(self.clock.now())),
        }))
    }
}

/// Somebody who follows a purchase.
struct Watch<S> {
    store: S,
    changes: Subscription,
    id: Uuid,
    /// The last version that was sent.
    seen: i64,
    /// Events that were read and not sent yet.
    pending: VecDeque<Event>,
    is_over: bool,
}

impl<S: Store> Watch<S> {
    /// The next event; none after the last that there can be.
    async fn next(&mut self) -> Result<Option<Event>, Error> {
        while self.pending.is_empty() && !self.is_over {
            self.pending = self.store.events(self.id, self.seen).await?.into();
            if self.pending.is_empty() {
                self.changes.changed().await;
            }
        }
        let event = self.pending.pop_front();
        if let Some(event) = event {
            self.seen = event.version;
            self.is_over = event.state.is_final();
        }
        Ok(event)
    }
}
