//! The products on `SQLite`. What becomes of one is decided by [`Product`].

use futures::FutureExt;
use service_runtime::{Page, Paged, RequestKey, Timestamp, sqlite::Database};
use sqlx::{FromRow, QueryBuilder, Row, SqliteConnection, sqlite::SqliteRow};
use tokio::sync::watch;
use uuid::Uuid;

use super::{Sqlite, money};
use crate::{
    error::Error,
    filter::{Filter, Term},
    product::{Draft, Imported, Label, Product, Sku, Update, folded},
    store::Products,
    watch::{Change, Position},
};

impl Products for Sqlite {
    async fn create(
        &self,
        key: RequestKey,
        id: Uuid,
        draft: Draft,
        now: Timestamp,
    ) -> Result<Product, Error> {
        let product = Product::new(id, draft, now);
        self.database
            .write_once(key, now, move |db| {
                async move {
                    write(db, &product).await?;
                    Ok(product)
                }
                .boxed()
            })
            .await
    }

    async fn import(
        &self,
        drafts: Vec<(Uuid, Draft)>,
        now: Timestamp,
    ) -> Result<Vec<Imported>, Error> {
        self.database
            .write(move |db| {
                async move {
                    let mut outcomes = Vec::with_capacity(drafts.len());
                    for (id, draft) in drafts {
                        outcomes.push(import_one(db, id, draft, now).await?);
                    }
                    Ok(outcomes)
                }
                .boxed()
            })
            .await
    }

    async fn get(&self, id: Uuid) -> Result<Option<Product>, Error> {
        let product =
            sqlx::query_as("SELECT * FROM products WHERE id = ? AND delete_time IS NULL").bind(id);
        self.database.read(async |db| Ok(product.fetch_optional(db).await?)).await
    }

    async fn get_many(&self, ids: &[Uuid]) -> Result<Vec<Product>, Error> {
        let mut products =
            QueryBuilder::new("SELECT * FROM products WHERE delete_time IS NULL AND id IN ");
        push_ids(&mut products, ids);
        self.database.read(async |db| Ok(products.build_query_as().fetch_all(db).await?)).await
    }

    async fn list(&self, filter: &Filter, page: Page) -> Result<Paged<Product>, Error> {
        let mut products =
            QueryBuilder::new("SELECT * FROM products WHERE delete_time IS NULL AND id > ");
        products.push_bind(page.after_bytes());
        for term in &filter.terms {
            match term {
                Term::Category(text) => {
                    products.push(" AND folded_category = ").push_bind(folded(text));
                }
                Term::Name(text) => {
                    products.push(" AND instr(folded_name, ").push_bind(folded(text)).push(")");
                }
                Term::Sku(sku) => {
                    products.push(" AND sku = ").push_bind(sku.as_str().to_owned());
                }
            }
        }
        products.push(" ORDER BY id LIMIT ").push_bind(page.size + 1);
        let rows = self.database.read(async |db| products.build_query_as().fetch_all(db).await);
        Ok(Paged::from_surplus(rows.await?, page.size, |product: &Product| product.id))
    }

    async fn update(
        &self,
        key: RequestKey,
        id: Uuid,
        update: Update,
        now: Timestamp,
    ) -> Result<Product, Error> {
        self.database
            .write_once(key, now, move |db| {
                async move {
                    let product = on_record(db, id)
                        .await?
                        .filter(|product| product.delete_time.is_none())
                        .ok_or(Error::ProductNotFound(id))?;
                    let updated = product.clone().update(update, now)?;
                    if updated != product {
                        write(db, &updated).await?;
                    }
                    Ok(updated)
                }
                .boxed()
            })
            .await
    }

    async fn delete(
        &self,
        id: Uuid,
        etag: Option<String>,
        now: Timestamp,
    ) -> Result<Product, Error> {
        self.database
            .write(move |db| {
                async move {
                    let product = on_record(db, id).await?.ok_or(Error::ProductNotFound(id))?;
                    let deleted = product.clone().delete(etag.as_deref(), now)?;
                    if deleted != product {
                        write(db, &deleted).await?;
                    }
                    Ok(deleted)
                }
                .boxed()
            })
            .await
    }

    async fn changes(
        &self,
        ids: &[Uuid],
        since: Position,
        limit: u32,
    ) -> Result<Vec<Change>, Error> {
        let mut changes = QueryBuilder::new("SELECT * FROM products WHERE change > ");
        changes.push_bind(since.told).push(" AND (delete_time IS NULL OR change > ");
        changes.push_bind(since.begun).push(")");
        if !ids.is_empty() {
            changes.push(" AND id IN ");
            push_ids(&mut changes, ids);
        }
        changes.push(" ORDER BY change LIMIT ").push_bind(limit);
        self.database.read(async |db| Ok(changes.build_query_as().fetch_all(db).await?)).await
    }

    async fn last_change(&self) -> Result<i64, Error> {
        let mut last = self.last_change.lock().await;
        if last.commits.has_changed().unwrap_or(true) {
            // First, so that a commit that comes while it is read is not missed.
            let mut commits = last.commits.clone();
            commits.mark_unchanged();
            let number = sqlx::query_scalar("SELECT coalesce(max(change), 0) FROM products");
            let number = self.database.read(async |db| number.fetch_one(db).await).await?;
            *last = LastChange { number, commits };
        }
        Ok(last.number)
    }

    fn commits(&self) -> watch::Receiver<()> {
        self.database.commits()
    }
}

/// The last change as of a commit.
#[derive(Debug)]
pub(super) struct LastChange {
    number: i64,
    /// Tells of the commits since.
    commits: watch::Receiver<()>,
}

impl LastChange {
    /// As of no commit yet.
    pub(super) fn unknown(database: &Database) -> Self {
        let mut commits = database.commits();
        commits.mark_changed();
        Self { number: 0, commits }
    }
}

async fn import_one(
    db: &mut SqliteConnection,
    id: Uuid,
    draft: Draft,
    now: Timestamp,
) -> Result<Imported, Error> {
    let current: Option<Product> =
        sqlx::query_as("SELECT * FROM products WHERE sku = ? AND delete_time IS NULL")
            .bind(draft.label.sku.as_str())
            .fetch_optional(&mut *db)
            .await?;
    let Some(current) = current else {
        write(db, &Product::new(id, draft, now)).await?;
        return Ok(Imported::Created);
    };
    if current.label == draft.label {
        return Ok(Imported::Unchanged);
    }
    write(db, &current.relabel(draft.label, now)).await?;
    Ok(Imported::Updated)
}

/// The product, which may be deleted.
async fn on_record(db: &mut SqliteConnection, id: Uuid) -> Result<Option<Product>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM products WHERE id = ?").bind(id).fetch_optional(db).await
}

/// Puts a product on record, whether new or not. The stock of one that is not new is left
/// alone.
async fn write(db: &mut SqliteConnection, product: &Product) -> Result<(), Error> {
    let Product { id, label, available, revision, create_time, update_time, delete_time } = product;
    let Label { sku, name, description, category, price } = label;
    sqlx::query(
        "INSERT INTO products (
             id, sku, name, description, category, price_minor_units, currency_code,
             available, reserved, sold, initial, restocked, folded_name, folded_category,
             revision, change, create_time, update_time, delete_time
         ) VALUES (
             ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, 0, ?8, 0, ?9, ?10,
             ?11, (SELECT coalesce(max(change), 0) + 1 FROM products), ?12, ?13, ?14
         )
         ON CONFLICT (id) DO UPDATE SET
             sku = excluded.sku,
             name = excluded.name,
             description = excluded.description,
             category = excluded.category,
             price_minor_units = excluded.price_minor_units,
             currency_code = excluded.currency_code,
             folded_name = excluded.folded_name,
             folded_category = excluded.folded_category,
             revision = excluded.revision,
             change = excluded.change,
             update_time = excluded.update_time,
             delete_time = excluded.delete_time",
    )
    .bind(id)
    .bind(sku.as_str())
    .bind(name)
    .bind(description)
    .bind(category)
    .bind(price.minor_units)
    .bind(price.currency.as_str())
    .bind(available)
    .bind(folded(name))
    .bind(folded(category))
    .bind(revision)
    .bind(create_time.as_micros())
    .bind(update_time.as_micros())
    .bind(delete_time.map(Timestamp::as_micros))
    .execute(db)
    .await
    .map_err(|error| match error {
        sqlx::Error::Database(error) if error.is_unique_violation() => Error::SkuTaken(sku.clone()),
        error => error.into(),
    })?;
    Ok(())
}

fn push_ids(query: &mut QueryBuilder<sqlx::Sqlite>, ids: &[Uuid]) {
    query.push("(");
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(*id);
    }
    query.push(")");
}

impl FromRow<'_, SqliteRow> for Change {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self { number: row.try_get("change")?, product: Product::from_row(row)? })
    }
}

impl FromRow<'_, SqliteRow> for Product {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            label: Label {
                sku: Sku::on_record(row.try_get("sku")?),
                name: row.try_get("name")?,
                description: row.try_get("description")?,
                category: row.try_get("category")?,
                price: money(row, "price_minor_units")?,
            },
            available: row.try_get("available")?,
            revision: row.try_get("revision")?,
            create_time: Timestamp::from_micros(row.try_get("create_time")?),
            update_time: Timestamp::from_micros(row.try_get("update_time")?),
            delete_time: row.try_get::<Option<_>, _>("delete_time")?.map(Timestamp::from_micros),
        })
    }
}
