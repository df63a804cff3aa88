-- Times are microseconds since the Unix epoch; money is minor units.

CREATE TABLE products (
    id                BLOB    NOT NULL PRIMARY KEY,
    sku               TEXT    NOT NULL UNIQUE,
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
    revision          INTEGER NOT NULL,
    create_time       INTEGER NOT NULL,
    update_time       INTEGER NOT NULL,
    CHECK (available + reserved + sold = initial + restocked)
) STRICT;

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
