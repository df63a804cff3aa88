//! A model of the purchase protocol that drives the production functions: the
//! saga, the stock and the payments. Around them it plays the databases, the
//! network and the client, each as unhelpful as it can be: a message that was sent
//! may arrive at any later time, any number of times or never; an answer may be
//! lost or come late; a worker may crash between any two steps; every database has
//! its own clock, and a handler may be held up once it has read it. A state of the model is one moment of all that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use catalog_service::stock::{self, Level, Offer, RequestedItem, ReserveRequest};
use purchase_service::{
    purchase::{self, Decision, FailureReason, Transition},
    saga::{self, ATTEMPTS_LIMIT, Claim, Command, Event, Line, Progress},
};
use service_runtime::{Currency, Money, Timestamp};
use stateright::{Model, Property};
use user_service::{
    ledger::{self, Account, Transfer},
    payment::{self, ChargeRequest, Paid, Payment},
};
use uuid::Uuid;

const PRODUCT: Uuid = Uuid::from_u128(1);
const USER: Uuid = Uuid::from_u128(2);
const QUANTITY: u32 = 2;

/// The price of a piece in minor units, until it rises.
const LOW_PRICE: i64 = 5;
const HIGH_PRICE: i64 = 7;

const IN_TIME: Timestamp = Timestamp::from_micros(0);
const NOT_AFTER: Timestamp = Timestamp::from_micros(1);
const LATE: Timestamp = Timestamp::from_micros(2);
/// Later than either service keeps a record for.
const FORGETTABLE: Timestamp = {
    let retention = stock::RETENTION.saturating_add(payment::RETENTION);
    Timestamp::from_micros(LATE.as_micros() + retention.as_secs().cast_signed() * 1_000_000)
};

/// How much of the world to explore.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each stands for one thing that may happen")]
pub struct Bounds {
    /// How many purchases compete for the goods and the credit.
    pub purchases: usize,
    /// How many workers work on each of them.
    pub workers: usize,
    /// For how many purchases there are goods.
    pub goods_for: u32,
    /// For how many purchases the user has credit.
    pub credit_for: u32,
    /// How many attempts each purchase has before it gives up.
    pub attempts: u32,
    /// Whether the client may cancel.
    pub cancel: bool,
    /// Whether the client may refund.
    pub refund: bool,
    /// Whether `not_after` may pass, on each database's own clock.
    pub late: bool,
    /// Whether the price of the goods may rise, once.
    pub reprice: bool,
}

impl Default for Bounds {
    /// One purchase that has all it needs, and one worker.
    fn default() -> Self {
        Self {
            purchases: 1,
            workers: 1,
            goods_for: 1,
            credit_for: 1,
            attempts: 2,
            cancel: false,
            refund: false,
            late: false,
            reprice: false,
        }
    }
}

/// One moment of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    level: Level,
    unit_price: i64,
    balances: BTreeMap<Account, i64>,
    purchases: Vec<Purchase>,
    workers: Vec<Worker>,
    clocks: BTreeMap<Database, Timestamp>,
}

/// The databases, each of which has a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Database {
    /// That of purchase-service.
    Purchases,
    /// That of catalog-service.
    Stock,
    /// That of user-service.
    Accounts,
}

/// What the databases hold of one purchase, what is under way for it, and what
/// the client was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Purchase {
    state: purchase::State,
    total: Option<i64>,
    attempts: u32,
    reservation: Option<stock::Reservation>,
    payment: Option<Payment>,
    charged: Vec<i64>,
    captured: i64,
    sent: BTreeSet<Request>,
    told: BTreeSet<purchase::State>,
    asked: BTreeSet<Transition>,
}

/// A call to another service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// Hold the goods.
    Reserve,
    /// Take the total.
    Charge(i64),
    /// Sell the goods.
    Confirm,
    /// Put the goods back.
    Release,
    /// Give the money back.
    Refund,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Worker {
    purchase: usize,
    progress: Progress,
    doing: Doing,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Doing {
    /// Looking for work.
    Nothing,
    /// About to read the purchase again.
    Reading,
    /// About to do what only its own database or the client sees.
    Writing(Command),
    /// Waiting for the answer to a call.
    Waiting(Request),
    /// The answer is on its way.
    Hearing(Event),
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A worker claims its purchase.
    Claim(usize),
    /// A worker carries out its command.
    Write(usize),
    /// An answer reaches a worker.
    Hear(usize),
    /// A worker gives up waiting.
    GiveUp(usize),
    /// A worker crashes.
    Crash(usize),
    /// A service handles a call, at the time that it read from its clock, and a
    /// worker's answer is on its way.
    Serve(usize, Request, Timestamp),
    /// A service handles a call for a purchase, and nobody hears the answer: it
    /// came late, was doubled, or the answer is lost.
    Stray(usize, Request, Timestamp),
    /// The client asks for a purchase to be cancelled.
    Cancel(usize),
    /// The client asks for a purchase to be refunded.
    Refund(usize),
    /// What the client asked for is recorded, if it still can be.
    Record(usize, Transition),
    /// The client reads a settled purchase.
    Read(usize),
    /// `not_after` passes on a clock, then the time that records outlive it.
    Pass(Database),
    /// The price of the goods rises.
    Reprice,
    /// Goods of a purchase that were held too long go back.
    Expire(usize),
    /// The reservation of a purchase is forgotten.
    CollectReservation(usize),
    /// The payment of a purchase is forgotten.
    CollectPayment(usize),
}

impl World {
    fn new(bounds: &Bounds) -> Self {
        let mut world = Self {
            level: Level::new(i64::from(bounds.goods_for * QUANTITY)),
            unit_price: LOW_PRICE,
            balances: BTreeMap::new(),
            purchases: vec![Purchase::new(bounds); bounds.purchases],
            workers: (0..bounds.purchases)
                .flat_map(|purchase| vec![Worker::idle(purchase); bounds.workers])
                .collect(),
            clocks: BTreeMap::new(),
        };
        // Enough at either price, and never for one purchase more.
        let credit = total(HIGH_PRICE) * i64::from(bounds.credit_for);
        if let Ok(transfer) = ledger::deposit(USER, money(credit), 0) {
            world.post(&transfer);
        }
        world
    }

    fn now(&self, database: Database) -> Timestamp {
        self.clocks.get(&database).copied().unwrap_or(IN_TIME)
    }

    /// The times that the handler of a call may go by: it reads its clock first, and
    /// may then be held up, though less long than records outlive their `not_after`.
    fn readings(&self, request: Request) -> Vec<Timestamp> {
        let now = self.now(request.database());
        match request {
            Request::Reserve | Request::Charge(_) | Request::Confirm if now == LATE => {
                vec![IN_TIME, LATE]
            }
            _ => vec![now],
        }
    }

    fn balance(&self, account: Account) -> i64 {
        self.balances.get(&account).copied().unwrap_or(0)
    }

    /// Hands an event to a worker and takes its next command.
    fn step(&mut self, worker: usize, event: Event) {
        let Worker { purchase, progress, doing } = &mut self.workers[worker];
        let (next, command) = saga::step(*progress, event);
        *progress = next;
        let request = match command {
            Command::Reserve => Request::Reserve,
            Command::Charge(total) => Request::Charge(total),
            Command::Confirm => Request::Confirm,
            Command::Release => Request::Release,
            Command::Refund => Request::Refund,
            Command::ReadAgain => {
                *doing = Doing::Reading;
                return;
            }
            Command::Done => {
                *doing = Doing::Nothing;
                return;
            }
            Command::RecordTotal { .. }
            | Command::Transition(_)
            | Command::Answer(_)
            | Command::RetryLater => {
                *doing = Doing::Writing(command);
                return;
            }
        };
        *doing = Doing::Waiting(request);
        self.purchases[*purchase].sent.insert(request);
    }

    /// Carries out a command that needs no other service.
    fn write(&mut self, worker: usize, command: &Command) {
        let purchase = &mut self.purchases[self.workers[worker].purchase];
        let event = match *command {
            Command::RecordTotal { total, .. } => {
                let won = purchase.state == purchase::State::Pending && purchase.total.is_none();
                if won {
                    purchase.total = Some(total);
                }
                outcome(won)
            }
            Command::Transition(transition) => outcome(purchase.record(transition)),
            Command::Answer(state) => {
                purchase.told.insert(state);
                Event::Answered
            }
            _ => {
                purchase.attempts = ATTEMPTS_LIMIT.min(purchase.attempts + 1);
                self.forget(worker);
                return;
            }
        };
        self.step(worker, event);
    }

    fn forget(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        *worker = Worker::idle(worker.purchase);
    }

    /// Lets a service handle a call.
    fn serve(&mut self, purchase: usize, request: Request, now: Timestamp) -> Event {
        let purchase_id = id(purchase);
        let Purchase { reservation, payment, .. } = &self.purchases[purchase];
        let reservation = reservation.as_ref();
        let payment = payment.as_ref();
        match request {
            Request::Reserve => {
                let request = ReserveRequest {
                    purchase_id,
                    items: vec![RequestedItem { product_id: PRODUCT, quantity: QUANTITY }],
                    currency: *EURO,
                    not_after: NOT_AFTER,
                };
                let offers = |id| {
                    (id == PRODUCT).then_some(Offer {
                        price: money(self.unit_price),
                        available: self.level.available,
                    })
                };
                match stock::reserve(reservation, &request, offers, now) {
                    Ok(decision) => {
                        let items = &decision.reservation().items;
                        let lines = items.iter().map(line).collect();
                        self.move_goods(purchase, decision);
                        Event::Reserved(lines)
                    }
                    Err(refusal) => no_goods(refusal),
                }
            }
            Request::Confirm => match stock::confirm(reservation, now) {
                Ok(decision) => self.move_goods(purchase, decision),
                Err(refusal) => no_goods(refusal),
            },
            Request::Release => {
                let decision = stock::release(reservation, purchase_id, NOT_AFTER);
                self.move_goods(purchase, decision)
            }
            Request::Charge(total) => {
                let request = ChargeRequest {
                    purchase_id,
                    paid: Paid { user_id: USER, amount: money(total) },
                    not_after: NOT_AFTER,
                };
                let balance = self.balance(Account::User(USER));
                match payment::charge(payment, &request, Some(balance), now) {
                    Ok(decision) => self.move_money(purchase, decision),
                    Err(refusal) => no_money(refusal),
                }
            }
            Request::Refund => {
                let decision = payment::refund(payment, purchase_id, NOT_AFTER, now);
                self.move_money(purchase, decision)
            }
        }
    }

    fn move_goods(&mut self, purchase: usize, decision: stock::Decision) -> Event {
        if let stock::Decision::Write { reservation, changes } = decision {
            for change in changes {
                self.level = self.level.apply(&change);
            }
            self.purchases[purchase].reservation = Some(reservation);
        }
        Event::Yes
    }

    fn move_money(&mut self, purchase: usize, decision: payment::Decision) -> Event {
        if let payment::Decision::Write { payment, transfer } = decision {
            let purchase = &mut self.purchases[purchase];
            // Nothing depends on when a payment was first heard of.
            purchase.payment = Some(Payment { create_time: IN_TIME, ..payment });
            if let Some(transfer) = transfer {
                let amount = transfer.amount.minor_units;
                if transfer.to == Account::Sales {
                    purchase.charged.push(amount);
                    purchase.captured += amount;
                } else {
                    purchase.captured -= amount;
                }
                self.post(&transfer);
            }
        }
        Event::Yes
    }

    fn post(&mut self, transfer: &Transfer) {
        for posting in transfer.postings() {
            *self.balances.entry(posting.account).or_default() += posting.amount.minor_units;
        }
    }

    /// Writes down what the client asks for, to be recorded at any later time.
    fn ask(&mut self, purchase: usize, decide: fn(purchase::State) -> Decision) -> Option<()> {
        let purchase = &mut self.purchases[purchase];
        match decide(purchase.state) {
            Decision::Record(transition) => purchase.asked.insert(transition).then_some(()),
            Decision::Answer => purchase.told.insert(purchase.state).then_some(()),
            Decision::Wait | Decision::Refuse => None,
        }
    }

    /// Whether one worker that nothing disturbs settles every purchase, if all the
    /// others have crashed.
    fn recovers(&self) -> bool {
        let mut world = self.clone();
        for worker in 0..world.workers.len() {
            let purchase = world.workers[worker].purchase;
            for _ in 0..30 {
                let Worker { doing, .. } = world.workers[worker].clone();
                if world.purchases[purchase].state.is_settled() {
                    break;
                }
                match doing {
                    Doing::Nothing | Doing::Reading => {
                        let claim = world.purchases[purchase].claim(&world);
                        world.step(worker, Event::Claimed(claim));
                    }
                    Doing::Writing(command) => world.write(worker, &command),
                    Doing::Waiting(request) => {
                        let now = world.now(request.database());
                        let event = world.serve(purchase, request, now);
                        world.step(worker, event);
                    }
                    Doing::Hearing(event) => world.step(worker, event),
                }
            }
        }
        world.purchases.iter().all(|purchase| purchase.state.is_settled())
    }
}

impl Purchase {
    fn new(bounds: &Bounds) -> Self {
        Self {
            state: purchase::State::Pending,
            total: None,
            attempts: ATTEMPTS_LIMIT.saturating_sub(bounds.attempts),
            reservation: None,
            payment: None,
            charged: Vec::new(),
            captured: 0,
            sent: BTreeSet::new(),
            told: BTreeSet::new(),
            asked: BTreeSet::new(),
        }
    }

    fn claim(&self, world: &World) -> Claim {
        Claim {
            state: self.state,
            total: self.total,
            attempts: self.attempts,
            is_late: world.now(Database::Purchases) > NOT_AFTER,
        }
    }

    fn record(&mut self, transition: Transition) -> bool {
        let won = self.state == transition.from;
        if won {
            self.state = transition.to;
        }
        won
    }

    fn holds(&self, state: stock::State) -> bool {
        let reservation = self.reservation.as_ref();
        reservation.is_some_and(|reservation| reservation.state == state)
    }

    fn pieces(&self, state: stock::State) -> i64 {
        let reservation = self.reservation.iter().filter(|held| held.state == state);
        reservation.flat_map(|held| &held.items).map(|item| i64::from(item.quantity)).sum()
    }

    /// What the goods that were ever held cost at their locked prices.
    fn price(&self) -> Option<i64> {
        let items = &self.reservation.as_ref()?.items;
        let price = |item: &stock::Item| i64::from(item.quantity) * item.unit_price.minor_units;
        (!items.is_empty()).then(|| items.iter().map(price).sum())
    }

    /// Whether what the client was told of the purchase is still true.
    fn keeps_its_word(&self) -> bool {
        use purchase::State::{Confirmed, Refunded, Refunding};
        self.told.iter().all(|told| match told {
            Confirmed => matches!(self.state, Confirmed | Refunding | Refunded),
            settled => *settled == self.state,
        })
    }
}

impl Request {
    const fn database(self) -> Database {
        match self {
            Self::Reserve | Self::Confirm | Self::Release => Database::Stock,
            Self::Charge(_) | Self::Refund => Database::Accounts,
        }
    }
}

impl Worker {
    fn idle(purchase: usize) -> Self {
        Self { purchase, progress: Progress::Idle, doing: Doing::Nothing }
    }
}

fn id(purchase: usize) -> Uuid {
    Uuid::from_u128(0x100 + purchase as u128)
}

#[expect(clippy::expect_used, reason = "the code is a constant")]
static EURO: LazyLock<Currency> = LazyLock::new(|| "EUR".parse().expect("a currency code"));

fn money(minor_units: i64) -> Money {
    Money { currency: *EURO, minor_units }
}

/// What a purchase costs at this price.
fn total(unit_price: i64) -> i64 {
    i64::from(QUANTITY) * unit_price
}

fn line(item: &stock::Item) -> Line {
    Line { quantity: item.quantity, unit_price: item.unit_price.minor_units }
}

fn outcome(won: bool) -> Event {
    if won { Event::Won } else { Event::Lost }
}

fn no_goods(refusal: stock::Refusal) -> Event {
    Event::No(match refusal {
        stock::Refusal::OutOfStock(_) => FailureReason::OutOfStock,
        _ => FailureReason::TimedOut,
    })
}

fn no_money(refusal: payment::Refusal) -> Event {
    Event::No(match refusal {
        payment::Refusal::InsufficientCredit => FailureReason::InsufficientCredit,
        _ => FailureReason::TimedOut,
    })
}

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (index, worker) in world.workers.iter().enumerate() {
            match worker.doing {
                Doing::Nothing => {
                    if !world.purchases[worker.purchase].state.is_settled() {
                        actions.push(Action::Claim(index));
                    }
                    continue;
                }
                Doing::Reading => actions.push(Action::Claim(index)),
                Doing::Writing(_) => actions.push(Action::Write(index)),
                Doing::Waiting(request) => {
                    let readings = world.readings(request).into_iter();
                    actions.extend(readings.map(|now| Action::Serve(index, request, now)));
                    actions.push(Action::GiveUp(index));
                }
                Doing::Hearing(_) => actions.push(Action::Hear(index)),
            }
            actions.push(Action::Crash(index));
        }
        for (index, purchase) in world.purchases.iter().enumerate() {
            for &request in &purchase.sent {
                let readings = world.readings(request).into_iter();
                actions.extend(readings.map(|now| Action::Stray(index, request, now)));
            }
            if self.cancel {
                actions.push(Action::Cancel(index));
            }
            if self.refund {
                actions.push(Action::Refund(index));
            }
            let asked = purchase.asked.iter();
            actions.extend(asked.map(|transition| Action::Record(index, *transition)));
            if purchase.state.is_settled() {
                actions.push(Action::Read(index));
            }
            if self.late {
                actions.push(Action::Expire(index));
                actions.push(Action::CollectReservation(index));
                actions.push(Action::CollectPayment(index));
            }
        }
        if self.reprice {
            actions.push(Action::Reprice);
        }
        if self.late {
            actions.extend(
                [Database::Purchases, Database::Stock, Database::Accounts].map(Action::Pass),
            );
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Claim(worker) => {
                let claim = world.purchases[world.workers[worker].purchase].claim(&world);
                world.step(worker, Event::Claimed(claim));
            }
            Action::Write(worker) => {
                let Doing::Writing(command) = &last.workers[worker].doing else {
                    return None;
                };
                world.write(worker, command);
            }
            Action::Hear(worker) => {
                let Doing::Hearing(event) = world.workers[worker].doing.clone() else {
                    return None;
                };
                world.step(worker, event);
            }
            Action::GiveUp(worker) => world.step(worker, Event::Unknown),
            Action::Crash(worker) => world.forget(worker),
            Action::Serve(worker, request, now) => {
                let event = world.serve(world.workers[worker].purchase, request, now);
                world.workers[worker].doing = Doing::Hearing(event);
            }
            Action::Stray(purchase, request, now) => {
                world.serve(purchase, request, now);
            }
            Action::Cancel(purchase) => world.ask(purchase, purchase::cancel)?,
            Action::Refund(purchase) => world.ask(purchase, purchase::refund)?,
            Action::Record(purchase, transition) => {
                let purchase = &mut world.purchases[purchase];
                purchase.asked.remove(&transition);
                purchase.record(transition);
            }
            Action::Read(purchase) => {
                let purchase = &mut world.purchases[purchase];
                purchase.told.insert(purchase.state).then_some(())?;
            }
            Action::Pass(database) => {
                let now = match world.now(database) {
                    IN_TIME => LATE,
                    LATE if database != Database::Purchases => FORGETTABLE,
                    _ => return None,
                };
                world.clocks.insert(database, now);
            }
            Action::Reprice => world.unit_price = HIGH_PRICE,
            Action::Expire(purchase) => {
                let reservation = world.purchases[purchase].reservation.as_ref()?;
                let decision = stock::expire(reservation, world.now(Database::Stock))?;
                world.move_goods(purchase, decision);
            }
            Action::CollectReservation(purchase) => {
                let now = world.now(Database::Stock);
                let row = &mut world.purchases[purchase].reservation;
                row.take_if(|reservation| reservation.is_collectable(now))?;
            }
            Action::CollectPayment(purchase) => {
                let now = world.now(Database::Accounts);
                let row = &mut world.purchases[purchase].payment;
                row.take_if(|payment| payment.is_collectable(now))?;
            }
        }
        // Workers of one purchase are alike: which is which does not matter.
        world.workers.sort_unstable();
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always("no piece appears, vanishes or is sold twice", |_, world| {
                let pieces = |state| world.purchases.iter().map(|p| p.pieces(state)).sum::<i64>();
                world.level.is_sound()
                    && world.level.reserved == pieces(stock::State::Reserved)
                    && world.level.sold == pieces(stock::State::Sold)
            }),
            Property::<Self>::always("the ledger sums to zero and no user owes", |_, world| {
                world.balances.values().sum::<i64>() == 0 && world.balance(Account::User(USER)) >= 0
            }),
            Property::<Self>::always("a total is that of the locked prices", |_, world| {
                world
                    .purchases
                    .iter()
                    .all(|p| p.total.zip(p.price()).is_none_or(|(total, price)| total == price))
            }),
            Property::<Self>::always(
                "a purchase is charged its recorded total, once",
                |_, world| {
                    world.purchases.iter().all(|p| {
                        p.charged.len() <= 1
                            && p.charged.iter().all(|amount| p.total == Some(*amount))
                            && (p.captured == 0 || p.total == Some(p.captured))
                    })
                },
            ),
            Property::<Self>::always("goods are sold only once they were charged", |_, world| {
                let sold = |p: &&Purchase| p.holds(stock::State::Sold);
                world.purchases.iter().filter(sold).all(|p| p.charged.len() == 1)
            }),
            Property::<Self>::always("money is kept if and only if confirmed", |_, world| {
                settled(world).all(|p| match p.state {
                    purchase::State::Confirmed => p.total == Some(p.captured),
                    _ => p.captured == 0,
                })
            }),
            Property::<Self>::always("goods are gone if and only if confirmed", |_, world| {
                settled(world).all(|p| {
                    p.holds(stock::State::Sold) == (p.state == purchase::State::Confirmed)
                        && !p.holds(stock::State::Reserved)
                })
            }),
            Property::<Self>::always("what the client was told stays true", |_, world| {
                world.purchases.iter().all(Purchase::keeps_its_word)
            }),
            Property::<Self>::always("whatever happened, one worker can finish", |_, world| {
                let idle = |worker: &Worker| worker.doing == Doing::Nothing;
                !world.workers.iter().all(idle) || world.recovers()
            }),
            Property::<Self>::sometimes("a purchase is confirmed", |_, world| {
                told(world, purchase::State::Confirmed)
            }),
            Property::<Self>::sometimes("a purchase fails", |_, world| {
                told(world, purchase::State::Failed)
            }),
        ];
        if self.cancel {
            properties.push(Property::sometimes("a purchase is cancelled", |_, world| {
                told(world, purchase::State::Cancelled)
            }));
        }
        if self.refund {
            properties.push(Property::sometimes("a purchase is refunded", |_, world| {
                told(world, purchase::State::Refunded)
            }));
        }
        if self.late {
            properties.push(Property::sometimes("a charge outlives its mark", |_, world| {
                settled(world).any(|p| {
                    p.reservation.is_none()
                        && p.payment.is_none()
                        && p.sent.iter().any(|request| matches!(request, Request::Charge(_)))
                })
            }));
        }
        if self.reprice {
            properties.push(Property::sometimes("a price is kept though it rose", |_, world| {
                settled(world).any(|p| p.captured == total(LOW_PRICE))
                    && world.unit_price == HIGH_PRICE
            }));
            properties.push(Property::sometimes("a price that rose is paid", |_, world| {
                settled(world).any(|p| p.captured == total(HIGH_PRICE))
            }));
        }
        properties
    }
}

fn settled(world: &World) -> impl Iterator<Item = &Purchase> {
    world.purchases.iter().filter(|p| p.state.is_settled())
}

fn told(world: &World, state: purchase::State) -> bool {
    world.purchases.iter().any(|p| p.told.contains(&state))
}
