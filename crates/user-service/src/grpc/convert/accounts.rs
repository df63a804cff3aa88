//! Store credit and payments.

use proto::user::v1 as pb;
use service_runtime::{
    Caller, Currency, Fields, Page, PageTokens, to_proto_money, to_proto_timestamp,
};
use tonic::Status;
use uuid::Uuid;

use crate::{
    ledger::{Entry, Kind},
    payment::{ChargeRequest, Paid, Payment, State},
    store::{Audit, AuditedPayment, Balance, Deposit, Refund, Sum},
};

pub(in crate::grpc) fn deposit(
    caller: &Caller,
    request: pb::DepositRequest,
) -> Result<Deposit, Status> {
    let mut fields = Fields::default();
    let user_id = fields.uuid("user_id", &request.user_id);
    let amount = fields.money("amount", request.amount, 1..=i64::MAX);
    let credit = user_id.and_then(|user_id| Ok((user_id, amount?)));
    let key = fields.request_key(caller, "Deposit", &request.request_id, &credit);
    fields.accept(|| {
        let (user_id, amount) = credit?;
        Ok(Deposit { key: key?, user_id, amount })
    })
}

pub(in crate::grpc) fn charge(request: pb::ChargeRequest) -> Result<ChargeRequest, Status> {
    let mut fields = Fields::default();
    let purchase_id = fields.uuid("purchase_id", &request.purchase_id);
    let user_id = fields.uuid("user_id", &request.user_id);
    let amount = fields.money("amount", request.amount, 0..=i64::MAX);
    let not_after = fields.timestamp("not_after", request.not_after);
    fields.accept(|| {
        Ok(ChargeRequest {
            purchase_id: purchase_id?,
            paid: Paid { user_id: user_id?, amount: amount? },
            not_after: not_after?,
        })
    })
}

pub(in crate::grpc) fn refund(request: &pb::RefundRequest) -> Result<Refund, Status> {
    let mut fields = Fields::default();
    let purchase_id = fields.uuid("purchase_id", &request.purchase_id);
    let not_after = fields.timestamp("not_after", request.not_after);
    fields.accept(|| Ok(Refund { purchase_id: purchase_id?, not_after: not_after? }))
}

pub(in crate::grpc) fn get_balance(
    request: &pb::GetBalanceRequest,
) -> Result<(Uuid, Currency), Status> {
    let mut fields = Fields::default();
    let user_id = fields.uuid("user_id", &request.user_id);
    let currency = fields.currency("currency_code", &request.currency_code);
    fields.accept(|| Ok((user_id?, currency?)))
}

/// Whose entries are wanted, and after which.
pub(in crate::grpc) fn list_entries(
    request: &pb::ListEntriesRequest,
) -> Result<(Uuid, Option<Uuid>), Status> {
    let mut fields = Fields::default();
    let user_id = fields.uuid("user_id", &request.user_id);
    let after = Some(&request.after_id).filter(|id| !id.is_empty());
    let after = after.map(|id| fields.uuid("after_id", id)).transpose();
    fields.accept(|| Ok((user_id?, after?)))
}

pub(in crate::grpc) fn audit_ledger(
    tokens: &PageTokens<'_>,
    request: &pb::AuditLedgerRequest,
) -> Result<Page, Status> {
    let mut fields = Fields::default();
    let page = tokens.page(&mut fields, request.page_size, 1000, &request.page_token);
    fields.accept(|| page)
}

impl From<Balance> for pb::Balance {
    fn from(Balance { user_id, amount }: Balance) -> Self {
        Self { user_id: user_id.to_string(), amount: Some(to_proto_money(amount)) }
    }
}

impl From<Kind> for pb::entry::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Deposit => Self::Deposit,
            Kind::Charge => Self::Charge,
            Kind::Refund => Self::Refund,
        }
    }
}

impl From<Entry> for pb::Entry {
    fn from(entry: Entry) -> Self {
        let Entry { id, user_id, kind, amount, purchase_id, create_time } = entry;
        Self {
            id: id.to_string(),
            user_id: user_id.to_string(),
            kind: pb::entry::Kind::from(kind).into(),
            amount: Some(to_proto_money(amount)),
            purchase_id: purchase_id.map(|id| id.to_string()).unwrap_or_default(),
            create_time: Some(to_proto_timestamp(create_time)),
        }
    }
}

impl From<State> for pb::payment::State {
    fn from(state: State) -> Self {
        match state {
            State::Charged => Self::Charged,
            State::Refunded => Self::Refunded,
        }
    }
}

impl From<Payment> for pb::Payment {
    fn from(payment: Payment) -> Self {
        let Payment { purchase_id, state, paid, not_after: _, create_time } = payment;
        Self {
            purchase_id: purchase_id.to_string(),
            user_id: paid.map(|paid| paid.user_id.to_string()).unwrap_or_default(),
            amount: paid.map(|paid| to_proto_money(paid.amount)),
            state: pb::payment::State::from(state).into(),
            create_time: Some(to_proto_timestamp(create_time)),
        }
    }
}

impl From<Audit> for pb::AuditLedgerResponse {
    fn from(Audit { sums, unsound_account_count, payments }: Audit) -> Self {
        Self {
            sums: sums.into_iter().map(Into::into).collect(),
            unsound_account_count,
            payments: payments.rows.into_iter().map(Into::into).collect(),
            next_page_token: String::new(),
        }
    }
}

impl From<Sum> for pb::audit_ledger_response::Sum {
    fn from(sum: Sum) -> Self {
        let Sum { currency, postings, balances, deposited, captured } = sum;
        Self {
            currency_code: currency.as_str().to_owned(),
            postings_minor_units: postings,
            balances_minor_units: balances,
            deposited_minor_units: deposited,
            captured_minor_units: captured,
        }
    }
}

impl From<AuditedPayment> for pb::audit_ledger_response::AuditedPayment {
    fn from(payment: AuditedPayment) -> Self {
        let AuditedPayment {
            purchase_id,
            currency_code,
            captured_minor_units,
            refunded_minor_units,
        } = payment;
        Self {
            purchase_id: purchase_id.to_string(),
            currency_code,
            captured_minor_units,
            refunded_minor_units,
        }
    }
}
