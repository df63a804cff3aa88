-- Times are microseconds since the Unix epoch.

CREATE TABLE carts (
    id            BLOB    NOT NULL PRIMARY KEY,
    user_id       BLOB    NOT NULL,
    currency_code TEXT    NOT NULL,
    -- Counts the edits, for the compare-and-set that checking out is.
    version       INTEGER NOT NULL,
    update_time   INTEGER NOT NULL,
    -- What it has become, for ever.
    purchase_id   BLOB    UNIQUE REFERENCES purchases
) STRICT;

CREATE INDEX carts_not_checked_out ON carts (update_time) WHERE purchase_id IS NULL;

CREATE TABLE cart_items (
    cart_id    BLOB    NOT NULL REFERENCES carts ON DELETE CASCADE,
    product_id BLOB    NOT NULL,
    -- The version of the cart that put it in, by which goods are in order.
    version    INTEGER NOT NULL,
    quantity   INTEGER NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (cart_id, product_id)
) STRICT, WITHOUT ROWID;
