//! Stock, and the reservation of a purchase, as functions of what is on record.
//! The store reads the rows in one transaction, asks a function here, and writes
//! what it decided in that same transaction; nothing here knows how.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use service_runtime::{Currency, Money, Timestamp};
use uuid::Uuid;

/// How long after its `not_after` a record is kept: longer than a clock is ever set
/// back, or a message under way is held up after it was looked at.
pub const RETENTION: Duration = Duration::from_hours(1);

/// How many pieces of one product there may ever be.
pub const STOCK_LIMIT: i64 = 1_000_000_000_000_000;

/// How many pieces of a product there are. At all times
/// `available + reserved + sold = initial + restocked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Level {
    /// Pieces that can be bought.
    pub available: i64,
    /// Pieces held for purchases that are under way.
    pub reserved: i64,
    /// Pieces sold.
    pub sold: i64,
    /// Pieces there were when the product was created.
    pub initial: i64,
    /// Pieces added since.
    pub restocked: i64,
}

impl Level {
    /// The stock of a new product.
    pub const fn new(initial: i64) -> Self {
        Self { available: initial, reserved: 0, sold: 0, initial, restocked: 0 }
    }

    /// Adds pieces, or refuses with [`Refusal::StockLimit`]. What was sold counts
    /// towards the limit, since it may come back.
    pub fn restock(self, quantity: u32) -> Result<Self, Refusal> {
        let quantity = i64::from(quantity);
        if self.initial + self.restocked > STOCK_LIMIT - quantity {
            return Err(Refusal::StockLimit);
        }
        Ok(Self {
            available: self.available + quantity,
            restocked: self.restocked + quantity,
            ..self
        })
    }

    /// Moves pieces. Whether there are enough was decided with the change.
    #[must_use]
    pub const fn apply(self, change: &Change) -> Self {
        Self {
            available: self.available + change.available,
            reserved: self.reserved + change.reserved,
            sold: self.sold + change.sold,
            ..self
        }
    }

    /// Whether no piece appeared or vanished, and none was given away twice.
    pub const fn is_sound(&self) -> bool {
        self.available >= 0
            && self.reserved >= 0
            && self.sold >= 0
            && self.available + self.reserved + self.sold == self.initial + self.restocked
    }
}

/// What to add to the level of a product. The three sum to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The product.
    pub product_id: Uuid,
    /// What to add to the pieces that can be bought.
    pub available: i64,
    /// What to add to the pieces that are held.
    pub reserved: i64,
    /// What to add to the pieces that are sold.
    pub sold: i64,
}

impl Change {
    fn hold(item: &Item) -> Self {
        let quantity = i64::from(item.quantity);
        Self::new(item, -quantity, quantity, 0)
    }

    fn sell(item: &Item) -> Self {
        let quantity = i64::from(item.quantity);
        Self::new(item, 0, -quantity, quantity)
    }

    fn put_back_held(item: &Item) -> Self {
        let quantity = i64::from(item.quantity);
        Self::new(item, quantity, -quantity, 0)
    }

    fn put_back_sold(item: &Item) -> Self {
        let quantity = i64::from(item.quantity);
        Self::new(item, quantity, 0, -quantity)
    }

    fn new(item: &Item, available: i64, reserved: i64, sold: i64) -> Self {
        Self { product_id: item.product_id, available, reserved, sold }
    }
}

/// What became of the goods of a purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Held until `not_after`.
    Reserved,
    /// Sold.
    Sold,
    /// Back on the shelf, or never taken and never to be.
    Released,
}

/// The goods of one purchase.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reservation {
    /// The purchase, which is the key.
    pub purchase_id: Uuid,
    /// What became of the goods.
    pub state: State,
    /// The goods in the order of the request. None in the mark that a release of
    /// an unknown purchase leaves.
    pub items: Vec<Item>,
    /// When a reservation that was not confirmed runs out.
    pub not_after: Timestamp,
}

/// One product of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    /// The product.
    pub product_id: Uuid,
    /// How many pieces.
    pub quantity: u32,
    /// The price of one piece, locked for this purchase.
    pub unit_price: Money,
}

impl Reservation {
    /// Whether the record may be forgotten: whatever comes late for it is refused
    /// for being late. Goods that are held or sold are never forgotten.
    pub fn is_collectable(&self, now: Timestamp) -> bool {
        match self.state {
            State::Released => now > self.not_after.saturating_add(RETENTION),
            State::Reserved | State::Sold => false,
        }
    }

    fn is_for(&self, request: &ReserveRequest) -> bool {
        self.items.len() == request.items.len()
            && self.items.iter().zip(&request.items).all(|(held, wanted)| {
                held.product_id == wanted.product_id
                    && held.quantity == wanted.quantity
                    && held.unit_price.currency == request.currency
            })
    }

    fn with(&self, state: State) -> Self {
        Self { state, ..self.clone() }
    }
}

/// What a purchase wants held.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReserveRequest {
    /// The purchase.
    pub purchase_id: Uuid,
    /// The goods, each product once.
    pub items: Vec<RequestedItem>,
    /// The currency that every price must have.
    pub currency: Currency,
    /// Until when the goods are held, and from when on a purchase that is not
    /// known yet is refused.
    pub not_after: Timestamp,
}

/// One product of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestedItem {
    /// The product.
    pub product_id: Uuid,
    /// How many pieces.
    pub quantity: u32,
}

/// What a product costs and how much of it can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The price of one piece.
    pub price: Money,
    /// Pieces that can be bought.
    pub available: i64,
}

/// A yes, and what makes it true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The answer is on record already; there is nothing to write.
    OnRecord(Reservation),
    /// The answer is true once the record and every change are written, all in
    /// the transaction that read what they were decided from.
    Write {
        /// The record to insert or replace.
        reservation: Reservation,
        /// What moves, one change per product.
        changes: Vec<Change>,
    },
}

impl Decision {
    /// The reservation to answer with.
    pub const fn reservation(&self) -> &Reservation {
        match self {
            Self::OnRecord(reservation) | Self::Write { reservation, .. } => reservation,
        }
    }
}

/// A no. Nothing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is too little of a product.
    #[error("too little of product {0} is available; order less of it, or wait for a restock")]
    OutOfStock(Uuid),
    /// A product does not exist, or no more.
    #[error("there is no product {0}; leave it out")]
    ProductNotFound(Uuid),
    /// A price is in another currency than the purchase.
    #[error("product {0} is sold in another currency; buy it apart")]
    CurrencyMismatch(Uuid),
    /// A release came first.
    #[error("the goods of the purchase were released; make another purchase")]
    ReservationReleased,
    /// The purchase is unknown and its time has passed.
    #[error("the time of the purchase has passed; make another purchase")]
    TooLate,
    /// Other goods were reserved for the purchase.
    #[error("other goods were reserved for the purchase; make another purchase")]
    ReservationDiffers,
    /// Nothing was reserved for the purchase.
    #[error("nothing is reserved for the purchase; reserve first")]
    ReservationNotFound,
    /// The goods were held too long.
    #[error("the reservation has run out; make another purchase")]
    ReservationExpired,
    /// There would be more than [`STOCK_LIMIT`] pieces of the product.
    #[error("a product cannot have more than {STOCK_LIMIT} pieces; add fewer")]
    StockLimit,
}

impl Refusal {
    /// The product that it is about, if it is about one.
    pub const fn product_id(&self) -> Option<Uuid> {
        match self {
            Self::OutOfStock(id) | Self::ProductNotFound(id) | Self::CurrencyMismatch(id) => {
                Some(*id)
            }
            Self::ReservationReleased
            | Self::TooLate
            | Self::ReservationDiffers
            | Self::ReservationNotFound
            | Self::ReservationExpired
            | Self::StockLimit => None,
        }
    }
}

/// Holds the goods of a purchase, all or none, and locks their prices. `offers`
/// looks a product up; a product that is gone has none.
pub fn reserve(
    current: Option<&Reservation>,
    request: &ReserveRequest,
    offers: impl Fn(Uuid) -> Option<Offer>,
    now: Timestamp,
) -> Result<Decision, Refusal> {
    if let Some(current) = current {
        return match current.state {
            State::Released => Err(Refusal::ReservationReleased),
            State::Reserved | State::Sold if !current.is_for(request) => {
                Err(Refusal::ReservationDiffers)
            }
            State::Reserved | State::Sold => Ok(Decision::OnRecord(current.clone())),
        };
    }
    if now > request.not_after {
        return Err(Refusal::TooLate);
    }
    let items = request
        .items
        .iter()
        .map(|wanted| hold(wanted, request.currency, &offers))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Decision::Write {
        changes: items.iter().map(Change::hold).collect(),
        reservation: Reservation {
            purchase_id: request.purchase_id,
            state: State::Reserved,
            items,
            not_after: request.not_after,
        },
    })
}

fn hold(
    wanted: &RequestedItem,
    currency: Currency,
    offers: impl Fn(Uuid) -> Option<Offer>,
) -> Result<Item, Refusal> {
    let RequestedItem { product_id, quantity } = *wanted;
    let offer = offers(product_id).ok_or(Refusal::ProductNotFound(product_id))?;
    if offer.price.currency != currency {
        return Err(Refusal::CurrencyMismatch(product_id));
    }
    if offer.available < i64::from(quantity) {
        return Err(Refusal::OutOfStock(product_id));
    }
    Ok(Item { product_id, quantity, unit_price: offer.price })
}

/// Sells goods that are held.
pub fn confirm(current: Option<&Reservation>, now: Timestamp) -> Result<Decision, Refusal> {
    let current = current.ok_or(Refusal::ReservationNotFound)?;
    match current.state {
        State::Sold => Ok(Decision::OnRecord(current.clone())),
        State::Released => Err(Refusal::ReservationReleased),
        State::Reserved if now > current.not_after => Err(Refusal::ReservationExpired),
        State::Reserved => Ok(Decision::Write {
            reservation: current.with(State::Sold),
            changes: current.items.iter().map(Change::sell).collect(),
        }),
    }
}

/// Puts goods back, held or sold. An unknown purchase is marked as released, so
/// that a Reserve that comes later is refused.
pub fn release(current: Option<&Reservation>, purchase_id: Uuid, not_after: Timestamp) -> Decision {
    let Some(current) = current else {
        return Decision::Write {
            reservation: Reservation {
                purchase_id,
                state: State::Released,
                items: Vec::new(),
                not_after,
            },
            changes: Vec::new(),
        };
    };
    let put_back = match current.state {
        State::Released => return Decision::OnRecord(current.clone()),
        State::Reserved => Change::put_back_held,
        State::Sold => Change::put_back_sold,
    };
    Decision::Write {
        reservation: current.with(State::Released),
        changes: current.items.iter().map(put_back).collect(),
    }
}

/// Puts goods back that were held too long, and were not sold meanwhile.
pub fn expire(current: &Reservation, now: Timestamp) -> Option<Decision> {
    match current.state {
        State::Reserved if now > current.not_after => {
            Some(release(Some(current), current.purchase_id, current.not_after))
        }
        State::Reserved | State::Sold | State::Released => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NOT_AFTER: Timestamp = Timestamp::from_micros(100);
    const LATE: Timestamp = Timestamp::from_micros(101);
    const FORGETTABLE: Timestamp = Timestamp::from_micros(101 + 3_600_000_000);
    const ROPE: Uuid = Uuid::from_u128(1);
    const ANCHOR: Uuid = Uuid::from_u128(2);

    fn euros(minor_units: i64) -> Money {
        Money { currency: "EUR".parse().unwrap(), minor_units }
    }

    fn request(purchase: u128, items: &[(Uuid, u32)]) -> ReserveRequest {
        ReserveRequest {
            purchase_id: Uuid::from_u128(purchase),
            items: items
                .iter()
                .map(|&(product_id, quantity)| RequestedItem { product_id, quantity })
                .collect(),
            currency: "EUR".parse().unwrap(),
            not_after: NOT_AFTER,
        }
    }

    /// The catalog's database in memory.
    #[derive(Clone, Debug, PartialEq)]
    struct Shop {
        levels: BTreeMap<Uuid, Level>,
        reservations: BTreeMap<Uuid, Reservation>,
        now: Timestamp,
    }

    impl Shop {
        fn with(pieces: i64) -> Self {
            Self {
                levels: [ROPE, ANCHOR].map(|id| (id, Level::new(pieces))).into(),
                reservations: BTreeMap::new(),
                now: NOT_AFTER,
            }
        }

        fn reserve(&mut self, request: &ReserveRequest) -> Result<Reservation, Refusal> {
            let current = self.reservations.get(&request.purchase_id);
            let offers = |id| {
                let price = euros(250);
                self.levels.get(&id).map(|level| Offer { price, available: level.available })
            };
            let decision = reserve(current, request, offers, self.now)?;
            Ok(self.write(decision))
        }

        fn confirm(&mut self, purchase: u128) -> Result<Reservation, Refusal> {
            let current = self.reservations.get(&Uuid::from_u128(purchase));
            let decision = confirm(current, self.now)?;
            Ok(self.write(decision))
        }

        fn release(&mut self, purchase: u128) -> Reservation {
            let purchase_id = Uuid::from_u128(purchase);
            let decision = release(self.reservations.get(&purchase_id), purchase_id, NOT_AFTER);
            self.write(decision)
        }

        fn expire(&mut self) {
            for reservation in self.reservations.clone().values() {
                if let Some(decision) = expire(reservation, self.now) {
                    self.write(decision);
                }
            }
        }

        fn collect(&mut self) {
            let now = self.now;
            self.reservations.retain(|_, row| !row.is_collectable(now));
        }

        fn write(&mut self, decision: Decision) -> Reservation {
            let answer = decision.reservation().clone();
            if let Decision::Write { reservation, changes } = decision {
                for change in changes {
                    let level = self.levels.get_mut(&change.product_id).unwrap();
                    *level = level.apply(&change);
                }
                self.reservations.insert(reservation.purchase_id, reservation);
            }
            answer
        }

        fn pieces(&self, product: Uuid, state: State) -> i64 {
            self.reservations
                .values()
                .filter(|reservation| reservation.state == state)
                .flat_map(|reservation| &reservation.items)
                .filter(|item| item.product_id == product)
                .map(|item| i64::from(item.quantity))
                .sum()
        }
    }

    #[test]
    fn goods_are_held_all_or_none() {
        let mut shop = Shop::with(2);
        let before = shop.clone();
        let wish = request(1, &[(ROPE, 2), (ANCHOR, 3)]);
        assert_eq!(shop.reserve(&wish), Err(Refusal::OutOfStock(ANCHOR)));
        let wish = request(1, &[(ROPE, 2), (Uuid::nil(), 1)]);
        assert_eq!(shop.reserve(&wish), Err(Refusal::ProductNotFound(Uuid::nil())));
        let dollars =
            ReserveRequest { currency: "USD".parse().unwrap(), ..request(1, &[(ROPE, 1)]) };
        assert_eq!(shop.reserve(&dollars), Err(Refusal::CurrencyMismatch(ROPE)));
        assert_eq!(shop, before);
    }

    #[test]
    fn a_replay_is_answered_and_an_altered_one_refused_even_when_late() {
        let mut shop = Shop::with(2);
        let wish = request(1, &[(ROPE, 1), (ANCHOR, 2)]);
        let held = shop.reserve(&wish).unwrap();
        shop.now = LATE;
        assert_eq!(shop.reserve(&wish), Ok(held));
        for altered in [
            request(1, &[(ROPE, 1)]),
            request(1, &[(ROPE, 2), (ANCHOR, 2)]),
            request(1, &[(ANCHOR, 2), (ROPE, 1)]),
            ReserveRequest { currency: "USD".parse().unwrap(), ..wish.clone() },
        ] {
            assert_eq!(shop.reserve(&altered), Err(Refusal::ReservationDiffers));
        }
        assert_eq!(shop.reserve(&request(2, &[(ROPE, 1)])), Err(Refusal::TooLate));
    }

    #[test]
    fn release_brings_sold_goods_back_and_bars_the_purchase() {
        let mut shop = Shop::with(2);
        let wish = request(1, &[(ROPE, 2)]);
        shop.reserve(&wish).unwrap();
        shop.confirm(1).unwrap();
        assert_eq!(shop.levels[&ROPE].sold, 2);
        assert_eq!(shop.release(1).state, State::Released);
        assert_eq!(shop.levels[&ROPE], Level::new(2));
        assert_eq!(shop.reserve(&wish), Err(Refusal::ReservationReleased));
        assert_eq!(shop.confirm(1), Err(Refusal::ReservationReleased));
    }

    #[test]
    fn release_of_an_unknown_purchase_bars_it() {
        let mut shop = Shop::with(2);
        assert_eq!(shop.confirm(1), Err(Refusal::ReservationNotFound));
        assert_eq!(shop.release(1).items, []);
        assert_eq!(shop.reserve(&request(1, &[(ROPE, 1)])), Err(Refusal::ReservationReleased));
    }

    #[test]
    fn expired_reservation_cannot_be_confirmed_and_a_sold_one_does_not_expire() {
        let mut shop = Shop::with(2);
        shop.reserve(&request(1, &[(ROPE, 1)])).unwrap();
        shop.reserve(&request(2, &[(ROPE, 1)])).unwrap();
        shop.confirm(2).unwrap();
        shop.now = LATE;
        assert_eq!(shop.confirm(1), Err(Refusal::ReservationExpired));
        shop.expire();
        assert_eq!(shop.levels[&ROPE].available, 1);
        assert_eq!(shop.confirm(1), Err(Refusal::ReservationReleased));
        assert_eq!(shop.confirm(2).unwrap().state, State::Sold);
    }

    #[test]
    fn only_a_released_record_is_collected_and_only_once_late() {
        let mut shop = Shop::with(3);
        for purchase in 1..=3 {
            shop.reserve(&request(purchase, &[(ROPE, 1)])).unwrap();
        }
        shop.confirm(2).unwrap();
        shop.release(3);
        shop.collect();
        assert_eq!(shop.reservations.len(), 3);
        shop.now = FORGETTABLE;
        shop.collect();
        assert_eq!(shop.reservations.len(), 2);
    }

    #[test]
    fn restocking_stops_at_the_limit() {
        let level = Level::new(STOCK_LIMIT - 5);
        assert_eq!(level.restock(5).unwrap().available, STOCK_LIMIT);
        assert_eq!(level.restock(6), Err(Refusal::StockLimit));
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Reserve(u128, Vec<(Uuid, u32)>),
        Confirm(u128),
        Release(u128),
        Restock(Uuid, u32),
        Expire,
        Collect,
        RunLate,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let purchase = 0..4_u128;
        let goods = prop_oneof![
            (0..5_u32).prop_map(|rope| vec![(ROPE, rope)]),
            (0..5_u32, 0..5_u32).prop_map(|(rope, anchor)| vec![(ROPE, rope), (ANCHOR, anchor)]),
        ];
        prop_oneof![
            6 => (purchase.clone(), goods).prop_map(|(id, goods)| Operation::Reserve(id, goods)),
            4 => purchase.clone().prop_map(Operation::Confirm),
            3 => purchase.prop_map(Operation::Release),
            1 => (0..5_u32).prop_map(|quantity| Operation::Restock(ROPE, quantity)),
            1 => Just(Operation::Expire),
            1 => Just(Operation::Collect),
            1 => Just(Operation::RunLate),
        ]
    }

    impl Shop {
        fn run(&mut self, operation: &Operation) -> Option<Result<Reservation, Refusal>> {
            match operation {
                Operation::Reserve(id, goods) => return Some(self.reserve(&request(*id, goods))),
                Operation::Confirm(id) => return Some(self.confirm(*id)),
                Operation::Release(id) => return Some(Ok(self.release(*id))),
                Operation::Restock(id, quantity) => {
                    let level = self.levels.get_mut(id).unwrap();
                    *level = level.restock(*quantity).unwrap();
                }
                Operation::Expire => self.expire(),
                Operation::Collect => self.collect(),
                Operation::RunLate if self.now == NOT_AFTER => self.now = LATE,
                Operation::RunLate => self.now = FORGETTABLE,
            }
            None
        }
    }

    proptest! {
        #[test]
        fn any_sequence_keeps_the_balance_and_every_vote_can_be_repeated(
            operations in prop::collection::vec(operation(), 1..40),
        ) {
            let mut shop = Shop::with(6);
            for operation in operations {
                let answer = shop.run(&operation);
                if answer.is_some() {
                    let before = shop.clone();
                    prop_assert_eq!(shop.run(&operation), answer);
                    prop_assert_eq!(&shop, &before);
                }
                for (&product, level) in &shop.levels {
                    prop_assert!(level.is_sound(), "{level:?}");
                    prop_assert_eq!(level.reserved, shop.pieces(product, State::Reserved));
                    prop_assert_eq!(level.sold, shop.pieces(product, State::Sold));
                }
            }
        }
    }
}
