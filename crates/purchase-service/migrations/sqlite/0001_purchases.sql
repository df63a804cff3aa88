-- Times are microseconds since the Unix epoch; money is minor units.

CREATE TABLE purchases (
    id             BLOB    NOT NULL PRIMARY KEY,
    -- The key of the request is bound to its purchase for ever.
    principal      TEXT    NOT NULL,
    request_id     BLOB    NOT NULL,
    fingerprint    BLOB    NOT NULL,
    user_id        BLOB    NOT NULL,
    currency_code  TEXT    NOT NULL,
    not_after      INTEGER NOT NULL,
    create_time    INTEGER NOT NULL,
    -- The last event, for the compare-and-set that every change is.
    version        INTEGER NOT NULL,
    state          TEXT    NOT NULL,
    failure_reason TEXT,
    total          INTEGER,
    update_time    INTEGER NOT NULL,
    -- Work: how often it failed, when it is due again, whose trace it belongs to.
    attempts       INTEGER NOT NULL DEFAULT 0,
    due_time       INTEGER NOT NULL,
    trace_parent   TEXT    NOT NULL,
    UNIQUE (principal, request_id)
) STRICT;

CREATE INDEX purchases_by_user ON purchases (user_id, id);

CREATE INDEX purchases_due ON purchases (due_time)
    WHERE state IN ('PENDING', 'FAILING', 'CANCELLING', 'REFUNDING');

CREATE TABLE purchase_items (
    purchase_id BLOB    NOT NULL REFERENCES purchases,
    line        INTEGER NOT NULL,
    product_id  BLOB    NOT NULL,
    quantity    INTEGER NOT NULL CHECK (quantity > 0),
    unit_price  INTEGER,
    PRIMARY KEY (purchase_id, line)
) STRICT, WITHOUT ROWID;

-- Every change that a purchase ever made; the answers of requests are among them.
CREATE TABLE purchase_events (
    purchase_id    BLOB    NOT NULL REFERENCES purchases,
    version        INTEGER NOT NULL,
    state          TEXT    NOT NULL,
    failure_reason TEXT,
    total          INTEGER,
    update_time    INTEGER NOT NULL,
    PRIMARY KEY (purchase_id, version)
) STRICT, WITHOUT ROWID;
