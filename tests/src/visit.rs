//! A shopper with a live cart, as a client of the suite.

use client::Channel;
use futures::stream;
use proto::purchase::v1::{
    Cart, Purchase, ShopRequest, ShopResponse,
    purchase_service_client::PurchaseServiceClient,
    shop_request::{CheckOut, Open, SetItem, Step},
    shop_response::View,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tonic::{Request, Status, Streaming};

/// A stream of Shop.
pub struct Visit {
    steps: Option<UnboundedSender<ShopRequest>>,
    views: Streaming<ShopResponse>,
}

impl Visit {
    /// Begins to shop with these steps, on behalf of whom the token proves.
    pub async fn begin(
        mut client: PurchaseServiceClient<Channel>,
        access_token: Option<&str>,
        steps: impl IntoIterator<Item = Step>,
    ) -> Result<Self, Status> {
        let (sender, receiver) = unbounded_channel();
        let sent = stream::unfold(receiver, |mut receiver| async move {
            Some((receiver.recv().await?, receiver))
        });
        let mut request = Request::new(sent);
        if let Some(token) = access_token {
            let token = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", token);
        }
        let views = client.shop(request).await?.into_inner();
        let visit = Self { steps: Some(sender), views };
        for step in steps {
            visit.take(Some(step));
        }
        Ok(visit)
    }

    /// Puts so many pieces of a product into the cart.
    pub fn set(&self, product_id: &str, quantity: i32) {
        self.take(Some(set(product_id, quantity)));
    }

    /// Checks out, if the cart has this etag still.
    pub fn check_out(&self, etag: &str) {
        self.take(Some(check_out(etag)));
    }

    /// Takes a step, or none that the contract knows.
    pub fn take(&self, step: Option<Step>) {
        // Nobody may be listening any more.
        let _ = self.steps.as_ref().unwrap().send(ShopRequest { step });
    }

    /// Takes no more steps.
    pub fn leave(&mut self) {
        self.steps = None;
    }

    /// What is shown next; none at the end.
    pub async fn view(&mut self) -> Result<Option<View>, Status> {
        Ok(self.views.message().await?.map(|response| response.view.unwrap()))
    }

    /// The cart that is shown next.
    pub async fn cart(&mut self) -> Cart {
        match self.view().await.unwrap() {
            Some(View::Cart(cart)) => cart,
            other => panic!("{other:?} is no cart"),
        }
    }

    /// Waits for a cart that meets a condition.
    pub async fn cart_where(&mut self, condition: impl Fn(&Cart) -> bool) -> Cart {
        loop {
            let cart = self.cart().await;
            if condition(&cart) {
                return cart;
            }
        }
    }

    /// The purchase that the visit ends with.
    pub async fn purchase(&mut self) -> Purchase {
        self.outcome().await.unwrap()
    }

    /// Why the visit ends.
    pub async fn refusal(&mut self) -> Status {
        self.outcome().await.unwrap_err()
    }

    /// What the visit ends with, after carts that may be shown before.
    pub async fn outcome(&mut self) -> Result<Purchase, Status> {
        loop {
            match self.view().await? {
                Some(View::Cart(_)) => {}
                Some(View::Purchase(purchase)) => {
                    assert_eq!(self.view().await?, None, "nothing follows a purchase");
                    return Ok(purchase);
                }
                None => panic!("the visit ended with the cart as it was"),
            }
        }
    }
}

/// The step that opens a cart in euros.
pub fn open(cart_id: &str, user_id: &str) -> Step {
    Step::Open(Open {
        cart_id: cart_id.to_owned(),
        user_id: user_id.to_owned(),
        currency_code: "EUR".to_owned(),
    })
}

/// The step that puts so many pieces of a product into the cart.
pub fn set(product_id: &str, quantity: i32) -> Step {
    Step::SetItem(SetItem { product_id: product_id.to_owned(), quantity })
}

/// The step that checks out, if the cart has this etag still.
pub fn check_out(etag: &str) -> Step {
    Step::CheckOut(CheckOut { etag: etag.to_owned() })
}
