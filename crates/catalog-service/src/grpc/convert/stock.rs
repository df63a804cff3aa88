//! Stock.

use std::collections::HashSet;

use proto::catalog::v1 as pb;
use service_runtime::{
    Caller, Fields, Page, PageTokens, Reported, Timestamp, to_proto_money, to_proto_timestamp,
};
use tonic::Status;
use uuid::Uuid;

use super::products::MOST_PIECES;
use crate::{
    stock::{RequestedItem, Reservation, ReserveRequest, State},
    store::{Audit, AuditedReservation, Restock, ShelfLevel},
};

/// The most pieces of a product in one purchase.
const MOST_BOUGHT: i32 = 1_000_000;
/// The most products in one purchase.
const MOST_ITEMS: usize = 100;

pub(in crate::grpc) fn restock(
    caller: &Caller,
    request: &pb::RestockRequest,
) -> Result<Restock, Status> {
    let mut fields = Fields::default();
    let product_id = fields.uuid("product_id", &request.product_id);
    let quantity = fields.integer("quantity", request.quantity, 1..=MOST_PIECES);
    // The range leaves nothing that a u32 cannot hold.
    let quantity = quantity.map(|quantity| u32::try_from(quantity).unwrap_or(u32::MAX));
    let goods = product_id.and_then(|product_id| Ok((product_id, quantity?)));
    let key = fields.request_key(caller, "Restock", &request.request_id, &goods);
    fields.accept(|| {
        let (product_id, quantity) = goods?;
        Ok(Restock { key: key?, product_id, quantity })
    })
}

pub(in crate::grpc) fn reserve(request: &pb::ReserveRequest) -> Result<ReserveRequest, Status> {
    let mut fields = Fields::default();
    let purchase_id = fields.uuid("purchase_id", &request.purchase_id);
    let currency = fields.currency("currency_code", &request.currency_code);
    let not_after = fields.timestamp("not_after", request.not_after);
    let items = items(&mut fields, &request.items);
    fields.accept(|| {
        Ok(ReserveRequest {
            purchase_id: purchase_id?,
            items: items?,
            currency: currency?,
            not_after: not_after?,
        })
    })
}

fn items(
    fields: &mut Fields,
    items: &[pb::reserve_request::Item],
) -> Result<Vec<RequestedItem>, Reported> {
    if !(1..=MOST_ITEMS).contains(&items.len()) {
        let problem = format!("has {} products; send 1 to {MOST_ITEMS}", items.len());
        return Err(fields.refuse("items", problem));
    }
    let mut seen = HashSet::new();
    let wanted: Vec<_> = items
        .iter()
        .enumerate()
        .map(|(line, item)| {
            let field = format!("items[{line}].product_id");
            let product_id = fields.uuid(&field, &item.product_id);
            if product_id.is_ok_and(|id| !seen.insert(id)) {
                fields.refuse(&field, "is named twice; add the quantities up");
            }
            let field = format!("items[{line}].quantity");
            let quantity = fields.integer(&field, item.quantity, 1..=MOST_BOUGHT);
            Ok(RequestedItem { product_id: product_id?, quantity: quantity?.unsigned_abs() })
        })
        .collect();
    wanted.into_iter().collect()
}

pub(in crate::grpc) fn confirm(request: &pb::ConfirmRequest) -> Result<Uuid, Status> {
    let mut fields = Fields::default();
    let purchase_id = fields.uuid("purchase_id", &request.purchase_id);
    fields.accept(|| purchase_id)
}

pub(in crate::grpc) fn release(request: &pb::ReleaseRequest) -> Result<(Uuid, Timestamp), Status> {
    let mut fields = Fields::default();
    let purchase_id = fields.uuid("purchase_id", &request.purchase_id);
    let not_after = fields.timestamp("not_after", request.not_after);
    fields.accept(|| Ok((purchase_id?, not_after?)))
}

pub(in crate::grpc) fn audit_stock(
    tokens: &PageTokens<'_>,
    request: &pb::AuditStockRequest,
) -> Result<Page, Status> {
    let mut fields = Fields::default();
    let page = tokens.page(&mut fields, request.page_size, 1000, &request.page_token);
    fields.accept(|| page)
}

impl From<ShelfLevel> for pb::StockLevel {
    fn from(ShelfLevel { product_id, level }: ShelfLevel) -> Self {
        Self {
            product_id: product_id.to_string(),
            available_quantity: level.available,
            reserved_quantity: level.reserved,
            sold_quantity: level.sold,
            initial_quantity: level.initial,
            restocked_quantity: level.restocked,
        }
    }
}

impl From<State> for pb::reservation::State {
    fn from(state: State) -> Self {
        match state {
            State::Reserved => Self::Reserved,
            State::Sold => Self::Sold,
            State::Released => Self::Released,
        }
    }
}

impl From<Reservation> for pb::Reservation {
    fn from(reservation: Reservation) -> Self {
        let Reservation { purchase_id, state, items, not_after } = reservation;
        let items = items.into_iter().map(|item| pb::reservation::Item {
            product_id: item.product_id.to_string(),
            // A quantity came in as a positive i32.
            quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
            unit_price: Some(to_proto_money(item.unit_price)),
        });
        Self {
            purchase_id: purchase_id.to_string(),
            state: pb::reservation::State::from(state).into(),
            items: items.collect(),
            not_after: Some(to_proto_timestamp(not_after)),
        }
    }
}

impl From<Audit> for pb::AuditStockResponse {
    fn from(audit: Audit) -> Self {
        let Audit {
            product_count,
            total,
            oversold_product_count,
            unbalanced_product_count,
            reservations,
        } = audit;
        let reservations = reservations.rows.into_iter().map(|reservation| {
            let AuditedReservation { purchase_id, state, total_minor_units, currency_code } =
                reservation;
            pb::audit_stock_response::AuditedReservation {
                purchase_id: purchase_id.to_string(),
                state: pb::reservation::State::from(state).into(),
                total_minor_units,
                currency_code,
            }
        });
        Self {
            product_count,
            available_quantity: total.available,
            reserved_quantity: total.reserved,
            sold_quantity: total.sold,
            initial_quantity: total.initial,
            restocked_quantity: total.restocked,
            oversold_product_count,
            unbalanced_product_count,
            reservations: reservations.collect(),
            next_page_token: String::new(),
        }
    }
}
