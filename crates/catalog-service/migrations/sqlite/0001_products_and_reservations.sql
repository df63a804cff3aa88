-- Times are microseconds since the Unix epoch; money is minor units.

CREATE TABLE products (
    id                BLOB    NOT NULL PRIMARY KEY,
    sku               TEXT    NOT NULL,
    name              TEXT    NOT NULL,
    description       TEXT    NOT NULL,
    category          TEXT    NOT NULL,
    price_minor_units INTEGER NOT NULL CHECK (price_minor_units >= 0),
    currency_code     TEXT    NOT NULL,
    available         INTEGER NOT NULL CHECK (available >= 0),
    reserved          INTEGER NOT NULL CHECK (reserved >= 0),
    sold              INTEGER NOT NULL CHECK (sold >= 0),
    initial           INTEGER NOT NULL CHECK (initial >= 0),
    restocked         INTEGER NOT NULL CHECK (restocked >= 0),
    -- What is searched, without regard to case.
    folded_name       TEXT    NOT NULL,
    folded_category   TEXT    NOT NULL,
    revision          INTEGER NOT NULL,
    -- The place of the last write that a reader can see among all such writes of all
    -- products. Who has seen all up to a number goes on after it.
    change            INTEGER NOT NULL,
    create_time       INTEGER NOT NULL,
    update_time       INTEGER NOT NULL,
    -- A product is never removed: goods of it may be held, and whoever follows the
    -- products must learn that it is gone.
    delete_time       INTEGER,
    CHECK (available + reserved + sold = initial + restocked)
) STRICT;

CREATE UNIQUE INDEX products_by_sku ON products (sku) WHERE delete_time IS NULL;
CREATE INDEX products_by_category ON products (folded_category, id) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX products_by_change ON products (change);

-- One row per purchase that was ever heard of, until it may be forgotten.
CREATE TABLE reservations (
    purchase_id BLOB    NOT NULL PRIMARY KEY,
    state       TEXT    NOT NULL CHECK (state IN ('RESERVED', 'SOLD', 'RELEASED')),
    not_after   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX reservations_to_expire ON reservations (not_after) WHERE state = 'RESERVED';
CREATE INDEX reservations_to_forget ON reservations (not_after) WHERE state = 'RELEASED';

CREATE TABLE reservation_items (
    purchase_id            BLOB    NOT NULL REFERENCES reservations ON DELETE CASCADE,
    line                   INTEGER NOT NULL,
    product_id             BLOB    NOT NULL,
    quantity               INTEGER NOT NULL CHECK (quantity > 0),
    unit_price_minor_units INTEGER NOT NULL,
    currency_code          TEXT    NOT NULL,
    PRIMARY KEY (purchase_id, line)
) STRICT, WITHOUT ROWID;

-- The answers of requests that carry a request_id.
CREATE TABLE requests (
    principal   TEXT    NOT NULL,
    request_id  BLOB    NOT NULL,
    fingerprint BLOB    NOT NULL,
    answer      TEXT    NOT NULL,
    create_time INTEGER NOT NULL,
    PRIMARY KEY (principal, request_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX requests_to_sweep ON requests (create_time);
