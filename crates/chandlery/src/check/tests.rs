use super::*;
use prost_types::Timestamp;
use proto::{purchase::v1::AuditPurchasesResponse, r#type::v1::Money};

const NOW: i64 = 1_000_000;

fn money(minor_units: i64) -> Money {
    Money { currency_code: "EUR".to_owned(), minor_units }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn purchase(id: &str, state: PurchaseState, total: Option<Money>) -> AuditedPurchase {
    AuditedPurchase {
        id: id.to_owned(),
        principal: "spiffe://chandlery.local/ns/chandlery/sa/chandlery".to_owned(),
        request_id: format!("request of {id}"),
        state: state.into(),
        total,
        not_after: Some(at(NOW - 300)),
        update_time: Some(at(NOW - 310)),
        events_sound: true,
    }
}

fn reservation(id: &str, state: reservation::State, total: i64) -> AuditedReservation {
    AuditedReservation {
        purchase_id: id.to_owned(),
        state: state.into(),
        total_minor_units: total,
        currency_code: "EUR".to_owned(),
    }
}

fn payment(id: &str, captured: i64, refunded: i64) -> AuditedPayment {
    AuditedPayment {
        purchase_id: id.to_owned(),
        currency_code: "EUR".to_owned(),
        captured_minor_units: captured,
        refunded_minor_units: refunded,
    }
}

/// One purchase of every kind, one of them under way.
fn sound() -> Evidence {
    use PurchaseState::{Cancelled, Confirmed, Failed, Pending, Refunded};
    use reservation::State::{Released, Reserved, Sold};
    let mut purchases = vec![
        purchase("bought", Confirmed, Some(money(500))),
        purchase("free", Confirmed, Some(money(0))),
        purchase("poor", Failed, Some(money(900))),
        purchase("empty", Failed, None),
        purchase("cancelled", Cancelled, None),
        purchase("returned", Refunded, Some(money(300))),
        purchase("running", Pending, Some(money(200))),
    ];
    let mut sent = Sent::default();
    for purchase in &purchases {
        sent.request(&purchase.request_id);
        if purchase.state() != Pending {
            sent.answers.push(Answer {
                request_id: purchase.request_id.clone(),
                purchase_id: purchase.id.clone(),
                // It was CONFIRMED before it was given back.
                state: if purchase.state() == Refunded { Confirmed } else { purchase.state() },
                total: purchase.total.clone(),
            });
        }
    }
    purchases[6].not_after = Some(at(NOW + 10));
    Evidence {
        stock: AuditStockResponse {
            product_count: 3,
            available_quantity: 91,
            reserved_quantity: 2,
            sold_quantity: 7,
            initial_quantity: 95,
            restocked_quantity: 5,
            reservations: vec![
                reservation("bought", Sold, 500),
                reservation("free", Sold, 0),
                reservation("poor", Released, 900),
                reservation("returned", Released, 300),
                reservation("running", Reserved, 200),
            ],
            ..AuditStockResponse::default()
        },
        ledger: AuditLedgerResponse {
            sums: vec![Sum {
                currency_code: "EUR".to_owned(),
                postings_minor_units: 0,
                balances_minor_units: 9_300,
                deposited_minor_units: 10_000,
                captured_minor_units: 700,
            }],
            payments: vec![
                payment("bought", 500, 0),
                payment("free", 0, 0),
                payment("empty", 0, 0),
                payment("returned", 300, 300),
                payment("running", 200, 0),
            ],
            ..AuditLedgerResponse::default()
        },
        purchases: AuditPurchasesResponse {
            purchases,
            read_time: Some(at(NOW)),
            ..Default::default()
        },
        sent: Some(sent),
    }
}

#[test]
fn sound_evidence_holds() {
    let report = check(&sound());
    assert!(report.holds(), "{report}");
    assert!(report.findings.iter().all(|finding| finding.counted.is_some()), "{report}");
}

#[test]
fn what_only_the_sender_knows_is_not_judged_without_the_sender() {
    let report = check(&Evidence { sent: None, ..sound() });
    assert!(report.holds(), "{report}");
    let unknown: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.counted.is_none())
        .map(|finding| finding.invariant)
        .collect();
    assert_eq!(unknown, [Invariant::AnswersKept, Invariant::NothingInvented]);
    assert_eq!(report.to_string().matches("not known from outside").count(), 2);
}

/// Puts one fault into sound evidence.
type Fault = fn(&mut Evidence);

#[test]
fn every_fault_is_found_by_the_invariant_that_it_breaks_and_by_no_other() {
    use Invariant as I;
    use PurchaseState::{Failed, Failing, Pending, Refunding};
    use reservation::State::{Released, Reserved, Sold};
    let faults: [(I, &str, Fault); 30] = [
        (I::NothingOversold, "oversold", |it| it.stock.oversold_product_count = 1),
        (I::StockBalances, "unbalanced product", |it| it.stock.unbalanced_product_count = 1),
        (I::StockBalances, "a lost piece", |it| it.stock.available_quantity -= 1),
        (I::AnswersKept, "answered and gone", |it| {
            it.sent.as_mut().unwrap().answers[3].purchase_id = "gone".to_owned();
        }),
        (I::AnswersKept, "another answer than before", |it| {
            it.sent.as_mut().unwrap().answers[2].state = PurchaseState::Confirmed;
        }),
        (I::AnswersKept, "answered before it was decided", |it| {
            it.sent.as_mut().unwrap().answer(
                "request of running",
                &proto::purchase::v1::Purchase {
                    id: "running".to_owned(),
                    state: PurchaseState::Confirmed.into(),
                    total: Some(money(200)),
                    ..Default::default()
                },
            );
        }),
        (I::AnswersKept, "another total than answered", |it| {
            it.sent.as_mut().unwrap().answers[0].total = Some(money(501));
        }),
        (I::AnswersKept, "one purchase for two requests", |it| {
            it.sent.as_mut().unwrap().answers[0].request_id = "request of free".to_owned();
        }),
        (I::NothingInvented, "nobody sent it", |it| {
            it.purchases.purchases.push(purchase("invented", Failed, None));
        }),
        (I::OncePerRequest, "twice under one request", |it| {
            let twin = AuditedPurchase { id: "twin".to_owned(), ..purchase("empty", Failed, None) };
            it.purchases.purchases.push(twin);
        }),
        (I::PaidPriceOrNothing, "half paid", |it| it.ledger.payments[0].captured_minor_units = 250),
        (I::PaidPriceOrNothing, "paid twice", |it| {
            it.ledger.payments[0].captured_minor_units = 1000;
        }),
        (I::PaidPriceOrNothing, "half given back", |it| {
            it.ledger.payments[0].refunded_minor_units = 250;
        }),
        (I::PaidPriceOrNothing, "paid in another currency", |it| {
            it.ledger.payments[0].currency_code = "USD".to_owned();
        }),
        (I::PaidIfConfirmed, "sold unpaid", |it| it.ledger.payments[0].refunded_minor_units = 500),
        (I::PaidIfConfirmed, "payment lost", |it| drop(it.ledger.payments.remove(0))),
        (I::PaidIfConfirmed, "paid and failed", |it| {
            it.ledger.payments.push(payment("poor", 900, 0));
        }),
        (I::PaidIfConfirmed, "returned and not paid back", |it| {
            it.ledger.payments[3].refunded_minor_units = 0;
        }),
        (I::PaidIfConfirmed, "paid for a purchase that is not there", |it| {
            it.ledger.payments.push(payment("nowhere", 100, 0));
        }),
        (I::SoldIfConfirmed, "paid and not sold", |it| {
            it.stock.reservations[0].state = Released.into();
        }),
        (I::SoldIfConfirmed, "reservation lost", |it| drop(it.stock.reservations.remove(0))),
        (I::SoldIfConfirmed, "sold and failed", |it| it.stock.reservations[2].state = Sold.into()),
        (I::SoldIfConfirmed, "held for a purchase that failed", |it| {
            it.stock.reservations[2].state = Reserved.into();
        }),
        (I::SoldIfConfirmed, "sold for another total", |it| {
            it.stock.reservations[0].total_minor_units = 499;
        }),
        (I::SoldIfConfirmed, "sold to a purchase that is not there", |it| {
            it.stock.reservations.push(reservation("nowhere", Sold, 100));
        }),
        (I::LedgerBalances, "postings do not sum to zero", |it| {
            it.ledger.sums[0].postings_minor_units = -1;
        }),
        (I::LedgerBalances, "a deposit lost", |it| it.ledger.sums[0].balances_minor_units -= 1),
        (I::AccountsSound, "an account unlike its postings", |it| {
            it.ledger.unsound_account_count = 1;
        }),
        (I::SettledInTime, "pending past its deadline", |it| {
            it.purchases.purchases[6].not_after = Some(at(NOW - 31));
        }),
        (I::EventsComplete, "a gap", |it| it.purchases.purchases[2].events_sound = false),
    ];
    for (expected, name, fault) in faults {
        let mut evidence = sound();
        fault(&mut evidence);
        let report = check(&evidence);
        assert_eq!(report.broken().collect::<Vec<_>>(), [expected], "{name}:\n{report}");
    }
    for invariant in I::ALL {
        assert!(faults.iter().any(|(expected, ..)| *expected == invariant), "{invariant:?}");
    }
    for state in [Pending, Failing, Refunding] {
        assert!(!is_settled(state), "{state:?}");
    }
}

#[test]
fn a_purchase_that_began_to_change_late_has_time_to_settle() {
    let mut evidence = sound();
    let running = &mut evidence.purchases.purchases[6];
    (running.not_after, running.update_time) = (Some(at(NOW - 100)), Some(at(NOW - 5)));
    let report = check(&evidence);
    assert!(report.holds(), "{report}");
    assert_eq!(evidence.unsettled().count(), 1);
}

#[test]
fn only_the_first_offenders_are_shown_and_the_others_counted() {
    let mut evidence = sound();
    for purchase in &mut evidence.purchases.purchases {
        purchase.events_sound = false;
    }
    let shown = check(&evidence).to_string();
    assert!(shown.contains("and 2 more"), "{shown}");
}
