//! The steps of a shopper, where every field is checked, and what he is shown.

use proto::purchase::v1::{
    self as pb, ShopRequest,
    cart::{self, Problem as ProtoProblem},
    shop_request::Step as ProtoStep,
};
use service_runtime::{Fields, Money, to_proto_money};
use tonic::Status;

use crate::{
    cart::{Cart, Goods, Opening, PricedItem, Problem},
    grpc::convert::MOST_BOUGHT,
    purchase::Ordered,
};

/// What a shopper does with the cart that he has opened.
pub(super) enum Step {
    /// Lets it hold so many pieces of a product; none of it if zero.
    SetItem(Ordered),
    /// Checks out, if the cart has this etag still.
    CheckOut(Option<String>),
}

pub(super) fn opening(request: Option<ShopRequest>) -> Result<Opening, Status> {
    let mut fields = Fields::default();
    let open = match request.and_then(|request| request.step) {
        Some(ProtoStep::Open(open)) => open,
        Some(ProtoStep::SetItem(_) | ProtoStep::CheckOut(_)) | None => {
            let refused = fields.refuse("open", "is not what comes first; open a cart");
            return fields.accept(|| Err(refused));
        }
    };
    let cart_id = fields.uuid("open.cart_id", &open.cart_id);
    let user_id = fields.uuid("open.user_id", &open.user_id);
    let currency = fields.currency("open.currency_code", &open.currency_code);
    fields.accept(|| Ok(Opening { cart_id: cart_id?, user_id: user_id?, currency: currency? }))
}

pub(super) fn step(request: ShopRequest) -> Result<Step, Status> {
    let mut fields = Fields::default();
    let step = match request.step {
        Some(ProtoStep::SetItem(item)) => {
            let product_id = fields.uuid("set_item.product_id", &item.product_id);
            let quantity = fields.integer("set_item.quantity", item.quantity, 0..=MOST_BOUGHT);
            product_id.and_then(|product_id| {
                Ok(Step::SetItem(Ordered { product_id, quantity: quantity?.unsigned_abs() }))
            })
        }
        Some(ProtoStep::CheckOut(check_out)) => {
            fields.etag("check_out.etag", check_out.etag).map(Step::CheckOut)
        }
        Some(ProtoStep::Open(_)) => {
            Err(fields.refuse("open", "comes once; open another cart in another stream"))
        }
        None => Err(fields.refuse("step", "is missing; send set_item or check_out")),
    };
    fields.accept(|| step)
}

pub(super) fn cart(cart: &Cart, goods: &Goods, store_credit: Option<Money>) -> pb::Cart {
    let priced = cart.price(goods);
    let currency = cart.order.currency;
    pb::Cart {
        id: cart.id.to_string(),
        user_id: cart.order.user_id.to_string(),
        currency_code: currency.as_str().to_owned(),
        items: priced.lines.into_iter().map(Into::into).collect(),
        total: priced.total.map(|minor_units| to_proto_money(Money { currency, minor_units })),
        store_credit: store_credit.map(to_proto_money),
        etag: priced.etag,
    }
}

impl From<PricedItem<'_>> for cart::Item {
    fn from(line: PricedItem<'_>) -> Self {
        let PricedItem { item, good, problem } = line;
        Self {
            product_id: item.product_id.to_string(),
            // A quantity came in as a positive i32.
            quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
            name: good.map(|good| good.name.clone()).unwrap_or_default(),
            unit_price: good.map(|good| to_proto_money(good.price)),
            available_quantity: good.map(|good| good.available).unwrap_or_default(),
            problem: problem.map(ProtoProblem::from).unwrap_or_default().into(),
        }
    }
}

impl From<Problem> for ProtoProblem {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::OutOfStock => Self::OutOfStock,
            Problem::ProductNotFound => Self::ProductNotFound,
            Problem::CurrencyMismatch => Self::CurrencyMismatch,
            Problem::CatalogAway => Self::CatalogAway,
        }
    }
}
