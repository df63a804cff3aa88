//! The carts on `SQLite`. Checking out is one compare-and-set on the cart's row, in the
//! transaction that makes its purchase.

use futures::FutureExt;
use service_runtime::{Timestamp, sqlite::currency};
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::{Sqlite, purchases::find_or_insert};
use crate::{
    cart::{Cart, Opening},
    error::Error,
    purchase::{Order, Ordered},
    store::{Carts, Draft},
};

impl Carts for Sqlite {
    async fn cart(&self, opening: Opening) -> Result<Cart, Error> {
        let found = self.0.snapshot(async |db| cart(db, opening.cart_id).await).await?;
        Ok(found.unwrap_or_else(|| Cart::new(opening)))
    }

    async fn set_cart_item(
        &self,
        opening: Opening,
        item: Ordered,
        now: Timestamp,
    ) -> Result<Cart, Error> {
        self.0
            .write(move |db| {
                async move {
                    let found = cart(db, opening.cart_id).await?;
                    let mut cart = found.unwrap_or_else(|| Cart::new(opening));
                    cart.match_opening(&opening)?;
                    if cart.purchase_id.is_some() {
                        return Ok(cart);
                    }
                    cart.set(item.product_id, item.quantity)?;
                    record_item(db, &cart, item, now).await?;
                    Ok(cart)
                }
                .boxed()
            })
            .await
    }

    async fn check_out(
        &self,
        cart_id: Uuid,
        version: i64,
        draft: Draft,
        now: Timestamp,
    ) -> Result<Option<Uuid>, Error> {
        self.0
            .write(move |db| {
                async move {
                    // Written and not only read, so that any engine locks the row.
                    let won = sqlx::query(
                        "UPDATE carts SET update_time = ?
                         WHERE id = ? AND version = ? AND purchase_id IS NULL",
                    )
                    .bind(now.as_micros())
                    .bind(cart_id)
                    .bind(version)
                    .execute(&mut *db)
                    .await?;
                    if won.rows_affected() == 0 {
                        return Ok(None);
                    }
                    let id = find_or_insert(db, &draft, now).await?;
                    sqlx::query("UPDATE carts SET purchase_id = ? WHERE id = ?")
                        .bind(id)
                        .bind(cart_id)
                        .execute(&mut *db)
                        .await?;
                    // The goods are the purchase's from now on.
                    sqlx::query("DELETE FROM cart_items WHERE cart_id = ?")
                        .bind(cart_id)
                        .execute(db)
                        .await?;
                    Ok(Some(id))
                }
                .boxed()
            })
            .await
    }
}

/// Records what an edit has made of one product of a cart.
async fn record_item(
    db: &mut SqliteConnection,
    cart: &Cart,
    item: Ordered,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO carts (id, user_id, currency_code, version, update_time)
         VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE
         SET version = excluded.version, update_time = excluded.update_time",
    )
    .bind(cart.id)
    .bind(cart.order.user_id)
    .bind(cart.order.currency.as_str())
    .bind(cart.version)
    .bind(now.as_micros())
    .execute(&mut *db)
    .await?;
    if item.quantity == 0 {
        sqlx::query("DELETE FROM cart_items WHERE cart_id = ? AND product_id = ?")
            .bind(cart.id)
            .bind(item.product_id)
            .execute(db)
            .await?;
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO cart_items (cart_id, product_id, version, quantity) VALUES (?, ?, ?, ?)
         ON CONFLICT (cart_id, product_id) DO UPDATE SET quantity = excluded.quantity",
    )
    .bind(cart.id)
    .bind(item.product_id)
    .bind(cart.version)
    .bind(item.quantity)
    .execute(db)
    .await?;
    Ok(())
}

async fn cart(db: &mut SqliteConnection, id: Uuid) -> Result<Option<Cart>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM carts WHERE id = ?").bind(id).fetch_optional(&mut *db);
    let Some(row) = row.await? else { return Ok(None) };
    let items: Vec<(Uuid, u32)> = sqlx::query_as(
        "SELECT product_id, quantity FROM cart_items WHERE cart_id = ? ORDER BY version",
    )
    .bind(id)
    .fetch_all(db)
    .await?;
    let items = items.into_iter().map(|(product_id, quantity)| Ordered { product_id, quantity });
    Ok(Some(Cart {
        id,
        order: Order {
            user_id: row.try_get("user_id")?,
            items: items.collect(),
            currency: currency(&row)?,
        },
        version: row.try_get("version")?,
        purchase_id: row.try_get("purchase_id")?,
    }))
}
