//! A live cart: edits in, the priced cart out, a purchase in the end.
//!
//! It happens while the response is polled, and nothing is queued: the next edit is read
//! once the answer to the last has been taken, and a slow reader gets the cart as it
//! stands when he reads.

mod convert;
mod shelf;

use std::time::Duration;

use futures::{Stream, TryStreamExt, future::join, stream};
use proto::{
    purchase::v1::{self as pb, ShopRequest, ShopResponse, shop_response::View},
    user::v1::GetBalanceRequest,
};
use service_runtime::{Actor, Caller, Money, RequestKey};
use tonic::{Request, Status, Streaming};

use self::{convert::Step, shelf::Shelf};
use super::{OUTCOMES, Service};
use crate::{
    cart::{Cart, Opening, Refusal},
    changes::Subscription,
    error::Error,
    purchase::Ordered,
    store::Store,
    worker::Others,
};

/// How long a cart waits for the user's store credit, which is good to know and no more.
const CREDIT_PATIENCE: Duration = Duration::from_millis(500);

/// What a shopper is shown, from the opening of the cart to its purchase.
pub(super) fn views<S: Store>(
    service: Service<S>,
    caller: Caller,
    steps: Streaming<ShopRequest>,
) -> impl Stream<Item = Result<ShopResponse, Status>> + Send {
    let visit = Visit::begin(service, caller, steps);
    stream::once(visit).map_ok(|visit| stream::try_unfold(visit, Visit::next)).try_flatten()
}

/// A shopper and the cart that he has opened.
struct Visit<S> {
    service: Service<S>,
    caller: Caller,
    steps: Streaming<ShopRequest>,
    opening: Opening,
    changes: Subscription,
    shelf: Shelf,
    cart: Cart,
    credit: Option<Money>,
    shown: Shown,
}

/// What the shopper was shown last.
enum Shown {
    Nothing,
    Cart(pb::Cart),
    Purchase,
}

impl<S: Store> Visit<S> {
    async fn begin(
        service: Service<S>,
        caller: Caller,
        mut steps: Streaming<ShopRequest>,
    ) -> Result<Self, Status> {
        let opening = convert::opening(steps.message().await?)?;
        caller.actor().admit(opening.user_id).map_err(Error::from)?;
        let changes = service.changes.subscribe(opening.cart_id);
        let shelf = Shelf::new(&service.others, opening.cart_id);
        let (cart, credit, shown) = (Cart::new(opening), None, Shown::Nothing);
        Ok(Self { service, caller, steps, opening, changes, shelf, cart, credit, shown })
    }

    /// Waits for what there is to show next; none if that was all.
    async fn next(mut self) -> Result<Option<(ShopResponse, Self)>, Status> {
        let view = match self.shown {
            Shown::Nothing => {
                self.cart = self.read().await?;
                self.show().await?
            }
            Shown::Cart(_) => match self.wait().await? {
                Some(view) => view,
                None => return Ok(None),
            },
            Shown::Purchase => return Ok(None),
        };
        Ok(Some((ShopResponse { view: Some(view) }, self)))
    }

    /// Waits until there is another view than the last, or the shopper leaves.
    async fn wait(&mut self) -> Result<Option<View>, Status> {
        loop {
            tokio::select! {
                step = self.steps.message() => {
                    let Some(step) = step? else { return Ok(None) };
                    self.cart = match convert::step(step)? {
                        Step::SetItem(item) => self.set_item(item).await?,
                        Step::CheckOut(etag) => self.check_out(etag.as_deref()).await?,
                    };
                    return self.show().await.map(Some);
                }
                () = self.changes.changed() => {
                    let cart = self.read().await?;
                    if cart != self.cart {
                        self.cart = cart;
                        return self.show().await.map(Some);
                    }
                }
                () = self.shelf.changed() => {
                    let _ = self.shelf.read(&self.cart).await;
                    let cart = self.priced();
                    if !matches!(&self.shown, Shown::Cart(shown) if *shown == cart) {
                        return Ok(Some(self.show_cart(cart)));
                    }
                }
            }
        }
    }

    /// Shows the cart, or the purchase that it has become once its outcome is known.
    async fn show(&mut self) -> Result<View, Status> {
        if let Some(purchase_id) = self.cart.purchase_id {
            let purchase = self.service.answer(purchase_id, &OUTCOMES).await?;
            self.shown = Shown::Purchase;
            return Ok(View::Purchase(purchase.into()));
        }
        let credit = store_credit(&self.service.others, self.caller.actor(), self.opening);
        // If the catalog is away, what was last known is shown.
        (_, self.credit) = join(self.shelf.read(&self.cart), credit).await;
        let cart = self.priced();
        Ok(self.show_cart(cart))
    }

    fn show_cart(&mut self, cart: pb::Cart) -> View {
        self.shown = Shown::Cart(cart.clone());
        View::Cart(cart)
    }

    fn priced(&self) -> pb::Cart {
        convert::cart(&self.cart, &self.shelf.goods, self.credit)
    }

    /// The cart as it is on record.
    async fn read(&mut self) -> Result<Cart, Error> {
        let cart = self.service.store.cart(self.opening).await?;
        cart.admit(self.caller.actor(), &self.opening)?;
        Ok(cart)
    }

    async fn set_item(&mut self, item: Ordered) -> Result<Cart, Error> {
        let Service { store, changes, clock, .. } = &self.service;
        let (store, opening, now) = (store.clone(), self.opening, clock.now());
        let write = async move { store.set_cart_item(opening, item, now).await };
        match changes.announce_after(opening.cart_id, write).await {
            // Somebody else has made the cart meanwhile: whose it is comes first.
            Err(Error::CartRefused(Refusal::Differs(_))) => self.read().await,
            outcome => outcome,
        }
    }

    /// Makes a purchase of the cart, or finds the one that was made of it.
    async fn check_out(&mut self, etag: Option<&str>) -> Result<Cart, Status> {
        loop {
            let cart = self.read().await?;
            if cart.purchase_id.is_some() {
                return Ok(cart);
            }
            let order = cart.to_order().map_err(Error::from)?;
            if let Some(etag) = etag {
                self.shelf.read(&cart).await?;
                if cart.price(&self.shelf.goods).etag != etag {
                    return Err(Error::from(Refusal::Stale(cart.id)).into());
                }
            }
            let key = RequestKey::new(&self.caller, cart.id, "Shop", &order);
            let Service { store, worker, changes, clock, .. } = &self.service;
            let (store, draft, now) = (store.clone(), self.service.draft(key, order), clock.now());
            let write = async move { store.check_out(cart.id, cart.version, draft, now).await };
            if changes.announce_after(cart.id, write).await?.is_some() {
                worker.notify_one();
            }
            // Whether it was won or lost, the record tells what the cart is now.
        }
    }
}

/// What the user can spend, if it is the user who calls.
async fn store_credit(others: &Others, actor: Actor, opening: Opening) -> Option<Money> {
    let Opening { user_id, currency, .. } = opening;
    if !actor.is_user(user_id) {
        return None;
    }
    let currency_code = currency.as_str().to_owned();
    let mut request =
        Request::new(GetBalanceRequest { user_id: user_id.to_string(), currency_code });
    request.set_timeout(CREDIT_PATIENCE);
    let balance = others.accounts.clone().get_balance(request).await.ok()?;
    let minor_units = balance.into_inner().amount?.minor_units;
    Some(Money { currency, minor_units })
}
