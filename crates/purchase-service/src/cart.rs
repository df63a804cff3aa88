//! What a user is about to buy, as a function of what is in the cart and of what the
//! catalog says of it. Nothing is held for a cart.

use std::{collections::HashMap, time::Duration};

use aws_lc_rs::digest::{Context, SHA256};
use service_runtime::{Actor, Currency, Money};
use uuid::Uuid;

use crate::{
    purchase::{MOST_ITEMS, Order, Ordered},
    saga::{Line, total},
};

/// How long a cart is kept that nobody edits or checks out. The contract promises it.
pub const RETENTION: Duration = Duration::from_hours(30 * 24);

/// How a shopper opens a cart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The cart.
    pub cart_id: Uuid,
    /// Who is to buy.
    pub user_id: Uuid,
    /// The one currency of the cart.
    pub currency: Currency,
}

/// A cart as it is on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cart {
    /// Its identifier.
    pub id: Uuid,
    /// What is to be bought, in the order it was put in. Once the cart was checked out,
    /// the goods are those of its purchase and no longer here.
    pub order: Order,
    /// How often it was edited.
    pub version: i64,
    /// What it has become. A cart becomes one purchase at most.
    pub purchase_id: Option<Uuid>,
}

/// Why nobody can go on with a cart so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The cart is another's.
    #[error("cart {0} is somebody else's; make up another cart_id")]
    NotOwner(Uuid),
    /// The cart is of another user or currency than it is opened for.
    #[error(
        "cart {0} is for another user or in another currency; open it so, or make up another \
         cart_id"
    )]
    Differs(Uuid),
    /// There is nothing to check out.
    #[error("cart {0} is empty; put something in before you check out")]
    Empty(Uuid),
    /// There is no room for another product.
    #[error("cart {0} holds {MOST_ITEMS} products, the most there can be; take one out first")]
    Full(Uuid),
    /// The goods or their prices are not what the buyer saw.
    #[error("cart {0} or a price in it has changed since; look at it again and decide anew")]
    Stale(Uuid),
}

impl Cart {
    /// A cart with nothing in it.
    pub fn new(opening: Opening) -> Self {
        let Opening { cart_id, user_id, currency } = opening;
        let order = Order { user_id, items: Vec::new(), currency };
        Self { id: cart_id, order, version: 0, purchase_id: None }
    }

    /// Whether an actor may go on with the cart as he opens it.
    pub fn admit(&self, actor: Actor, opening: &Opening) -> Result<(), Refusal> {
        actor.admit(self.order.user_id).map_err(|_| Refusal::NotOwner(self.id))?;
        self.match_opening(opening)
    }

    /// Refuses an opening that is of another cart than the one on record.
    pub fn match_opening(&self, opening: &Opening) -> Result<(), Refusal> {
        let Opening { cart_id, user_id, currency } = *opening;
        let on_record = (self.id, self.order.user_id, self.order.currency);
        let is_same = on_record == (cart_id, user_id, currency);
        if is_same { Ok(()) } else { Err(Refusal::Differs(self.id)) }
    }

    /// Lets the cart hold so many pieces of a product. Zero takes it out.
    pub fn set(&mut self, product_id: Uuid, quantity: u32) -> Result<(), Refusal> {
        let items = &mut self.order.items;
        match items.iter().position(|item| item.product_id == product_id) {
            Some(line) if quantity == 0 => {
                items.remove(line);
            }
            Some(line) => items[line].quantity = quantity,
            None if quantity == 0 => {}
            None if items.len() >= MOST_ITEMS => return Err(Refusal::Full(self.id)),
            None => items.push(Ordered { product_id, quantity }),
        }
        self.version += 1;
        Ok(())
    }

    /// The products in it.
    pub fn product_ids(&self) -> Vec<Uuid> {
        self.order.items.iter().map(|item| item.product_id).collect()
    }

    /// What is bought when it is checked out.
    pub fn to_order(&self) -> Result<Order, Refusal> {
        if self.order.items.is_empty() {
            return Err(Refusal::Empty(self.id));
        }
        Ok(self.order.clone())
    }

    /// What the cart comes to at the prices that the catalog says.
    pub fn price<'a>(&self, goods: &'a Goods) -> Priced<'a> {
        let Order { items, currency, .. } = &self.order;
        let lines: Vec<_> =
            items.iter().map(|item| PricedItem::new(*item, *currency, goods)).collect();
        let payable: Option<Vec<_>> = lines.iter().map(|line| line.payable(*currency)).collect();
        let etag = etag(&lines);
        Priced { lines, total: payable.and_then(|payable| total(&payable)), etag }
    }
}

/// What is known of products. One that is not here is yet to be heard of; none stands
/// for one that does not exist.
pub type Goods = HashMap<Uuid, Option<Good>>;

/// What the catalog says of a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Good {
    /// The name on the label.
    pub name: String,
    /// The price of one piece.
    pub price: Money,
    /// Pieces that can be bought now, by anyone.
    pub available: i64,
}

/// What a cart comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Priced<'a> {
    /// The goods, in the order they were put in.
    pub lines: Vec<PricedItem<'a>>,
    /// The price of the goods in minor units, if all are to be had in the currency of the
    /// cart and an int64 can hold it. Stock does not matter.
    pub total: Option<i64>,
    /// What a buyer agrees to when he checks out: changes with the goods and their prices
    /// (<https://google.aip.dev/154>).
    pub etag: String,
}

/// One product of a cart, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PricedItem<'a> {
    /// What is in the cart.
    pub item: Ordered,
    /// What the catalog says of it, if anything.
    pub good: Option<&'a Good>,
    /// Why it cannot be bought so, if it cannot.
    pub problem: Option<Problem>,
}

/// Why a product cannot be bought as a cart has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is too little of it.
    OutOfStock,
    /// It does not exist, or no longer.
    ProductNotFound,
    /// Its price is in another currency than the cart.
    CurrencyMismatch,
    /// The catalog is away and has said nothing of it yet.
    CatalogAway,
}

impl<'a> PricedItem<'a> {
    fn new(item: Ordered, currency: Currency, goods: &'a Goods) -> Self {
        let (good, problem) = match goods.get(&item.product_id) {
            None => (None, Some(Problem::CatalogAway)),
            Some(None) => (None, Some(Problem::ProductNotFound)),
            Some(Some(good)) if good.price.currency != currency => {
                (Some(good), Some(Problem::CurrencyMismatch))
            }
            Some(Some(good)) if good.available < i64::from(item.quantity) => {
                (Some(good), Some(Problem::OutOfStock))
            }
            Some(Some(good)) => (Some(good), None),
        };
        Self { item, good, problem }
    }

    /// What is to be paid for, if the product has a price in this currency.
    fn payable(&self, currency: Currency) -> Option<Line> {
        let price = self.good?.price;
        let line = Line { quantity: self.item.quantity, unit_price: price.minor_units };
        (price.currency == currency).then_some(line)
    }
}

fn etag(lines: &[PricedItem<'_>]) -> String {
    let mut digest = Context::new(&SHA256);
    for PricedItem { item, good, .. } in lines {
        digest.update(item.product_id.as_bytes());
        digest.update(&item.quantity.to_be_bytes());
        // Every line has the same length, so that no two carts read the same.
        let price = good.map(|good| good.price);
        digest.update(price.as_ref().map_or("---", |price| price.currency.as_str()).as_bytes());
        digest.update(&price.map_or(0, |price| price.minor_units).to_be_bytes());
    }
    let mut short = [0; 16];
    short.copy_from_slice(&digest.finish().as_ref()[..16]);
    format!("\"{:032x}\"", u128::from_be_bytes(short))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const OWN: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn currency(code: &str) -> Currency {
        code.parse().unwrap()
    }

    fn opening() -> Opening {
        Opening { cart_id: Uuid::from_u128(7), user_id: OWN, currency: currency("EUR") }
    }

    fn product(number: u128) -> Uuid {
        Uuid::from_u128(100 + number)
    }

    fn cart(items: &[(u128, u32)]) -> Cart {
        let mut cart = Cart::new(opening());
        for &(number, quantity) in items {
            cart.set(product(number), quantity).unwrap();
        }
        cart
    }

    fn good(code: &str, minor_units: i64, available: i64) -> Good {
        let price = Money { currency: currency(code), minor_units };
        Good { name: "Anchor".to_owned(), price, available }
    }

    #[test]
    fn a_cart_is_its_owners_and_is_opened_as_it_was() {
        let cart = cart(&[]);
        let as_opened = |actor, opening| cart.admit(actor, &opening);
        assert_eq!(as_opened(Actor::Customer(OWN), opening()), Ok(()));
        assert_eq!(as_opened(Actor::Staff(OTHER), opening()), Ok(()));
        let mine = Opening { user_id: OTHER, ..opening() };
        assert_eq!(as_opened(Actor::Customer(OTHER), mine), Err(Refusal::NotOwner(cart.id)));
        assert_eq!(as_opened(Actor::Operator, mine), Err(Refusal::Differs(cart.id)));
        let dollars = Opening { currency: currency("USD"), ..opening() };
        assert_eq!(as_opened(Actor::Customer(OWN), dollars), Err(Refusal::Differs(cart.id)));
    }

    #[test]
    fn goods_stay_in_the_order_they_were_put_in_and_zero_takes_one_out() {
        let held = |cart: &Cart| {
            let items = cart.order.items.iter();
            items.map(|item| (item.product_id.as_u128() - 100, item.quantity)).collect::<Vec<_>>()
        };
        let mut cart = cart(&[(3, 1), (1, 2), (2, 5), (1, 4), (9, 0)]);
        assert_eq!(held(&cart), [(3, 1), (1, 4), (2, 5)]);
        cart.set(product(3), 0).unwrap();
        cart.set(product(3), 7).unwrap();
        assert_eq!(held(&cart), [(1, 4), (2, 5), (3, 7)]);
        assert_eq!(cart.version, 7);
    }

    #[test]
    fn a_full_cart_takes_no_other_product_and_what_it_holds_can_be_changed() {
        let goods: Vec<_> = (0..100).map(|number| (number, 1)).collect();
        let mut full = cart(&goods);
        let before = full.clone();
        assert_eq!(full.set(product(100), 1), Err(Refusal::Full(full.id)));
        assert_eq!(full, before);
        full.set(product(100), 0).unwrap();
        full.set(product(5), 2).unwrap();
        full.set(product(6), 0).unwrap();
        full.set(product(100), 1).unwrap();
    }

    #[test]
    fn an_empty_cart_costs_nothing_and_cannot_be_checked_out() {
        let empty = cart(&[(1, 1), (1, 0)]);
        assert_eq!(empty.to_order(), Err(Refusal::Empty(empty.id)));
        assert_eq!(empty.price(&Goods::new()).total, Some(0));
        assert_eq!(cart(&[(1, 1)]).to_order(), Ok(cart(&[(1, 1)]).order));
    }

    #[test]
    fn every_problem_is_told_and_only_those_of_the_price_leave_no_total() {
        let goods = Goods::from([
            (product(1), Some(good("EUR", 250, 2))),
            (product(2), Some(good("EUR", 1, 3))),
            (product(3), Some(good("USD", 100, 0))),
            (product(4), None),
        ]);
        for (items, problem, total) in [
            ((1, 2), None, Some(500)),
            ((1, 3), Some(Problem::OutOfStock), Some(750)),
            ((3, 1), Some(Problem::CurrencyMismatch), None),
            ((4, 1), Some(Problem::ProductNotFound), None),
            ((5, 1), Some(Problem::CatalogAway), None),
        ] {
            let cart = cart(&[(2, 3), items]);
            let priced = cart.price(&goods);
            assert_eq!(priced.lines[0].problem, None);
            assert_eq!(priced.lines[1].problem, problem);
            assert_eq!(priced.total, total.map(|total| total + 3));
        }
    }

    #[test]
    fn the_etag_changes_with_goods_and_prices_and_with_nothing_else() {
        let goods =
            |price, available| Goods::from([(product(1), Some(good("EUR", price, available)))]);
        let etag = |items: &[(u128, u32)], goods: &Goods| cart(items).price(goods).etag;
        let agreed = etag(&[(1, 2)], &goods(250, 10));
        assert_eq!(etag(&[(1, 2)], &goods(250, 0)), agreed, "stock");
        assert_eq!(etag(&[(1, 3), (1, 2)], &goods(250, 10)), agreed, "the way it came about");
        let others = [
            etag(&[(1, 3)], &goods(250, 10)),
            etag(&[(2, 2)], &goods(250, 10)),
            etag(&[(1, 2)], &goods(251, 10)),
            etag(&[(1, 2)], &Goods::from([(product(1), Some(good("USD", 250, 10)))])),
            etag(&[(1, 2)], &Goods::new()),
            etag(&[(1, 2), (2, 1)], &goods(250, 10)),
            etag(&[(2, 1), (1, 2)], &goods(250, 10)),
            etag(&[], &goods(250, 10)),
        ];
        let differing: HashSet<_> = others.iter().chain([&agreed]).collect();
        assert_eq!(differing.len(), others.len() + 1);
    }

    proptest! {
        #[test]
        fn a_total_is_the_exact_sum_or_there_is_none(
            lines in prop::collection::vec((1..=1_000_000_u32, 0..=i64::MAX, 0..=20_u32), 0..8),
        ) {
            let mut cart = Cart::new(opening());
            let mut goods = Goods::new();
            let mut sum = 0_i128;
            for (number, &(quantity, price, shift)) in (0..).zip(&lines) {
                // Prices of every magnitude, so that some sums fit.
                let price = price >> (shift * 3);
                cart.set(product(number), quantity).unwrap();
                goods.insert(product(number), Some(good("EUR", price, i64::from(quantity))));
                sum += i128::from(price) * i128::from(quantity);
            }
            let priced = cart.price(&goods);
            prop_assert_eq!(priced.total, i64::try_from(sum).ok());
            prop_assert!(priced.lines.iter().all(|line| line.problem.is_none()));
        }
    }
}
