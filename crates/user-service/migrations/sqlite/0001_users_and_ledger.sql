-- Times are microseconds since the Unix epoch; money is minor units.

CREATE TABLE users (
    id           BLOB    NOT NULL PRIMARY KEY,
    email        TEXT    NOT NULL,
    -- What makes an address another one.
    folded_email TEXT    NOT NULL,
    display_name TEXT    NOT NULL,
    role         TEXT    NOT NULL CHECK (role IN ('CUSTOMER', 'STAFF')),
    -- A PHC string; none of a user who never signs in.
    password     TEXT,
    revision     INTEGER NOT NULL,
    create_time  INTEGER NOT NULL,
    update_time  INTEGER NOT NULL,
    -- A user is never removed: what was paid may have to be given back.
    delete_time  INTEGER,
    CHECK (delete_time IS NULL OR password IS NULL)
) STRICT;

CREATE UNIQUE INDEX users_by_email ON users (folded_email) WHERE delete_time IS NULL;

-- Where money can be. The till and the sales belong to the nil user. Accounts
-- outlive their users, so that a refund is never in want of one.
CREATE TABLE accounts (
    owner               TEXT    NOT NULL CHECK (owner IN ('USER', 'TILL', 'SALES')),
    user_id             BLOB    NOT NULL,
    currency_code       TEXT    NOT NULL,
    balance_minor_units INTEGER NOT NULL CHECK (owner = 'TILL' OR balance_minor_units >= 0),
    PRIMARY KEY (owner, user_id, currency_code)
) STRICT, WITHOUT ROWID;

-- The ledger: two rows per transfer, which sum to zero. Rows are never changed.
CREATE TABLE postings (
    transfer_id        BLOB    NOT NULL,
    kind               TEXT    NOT NULL CHECK (kind IN ('DEPOSIT', 'CHARGE', 'REFUND')),
    -- The request of a deposit; the purchase of a charge or a refund.
    cause_id           BLOB    NOT NULL,
    owner              TEXT    NOT NULL,
    user_id            BLOB    NOT NULL,
    currency_code      TEXT    NOT NULL,
    amount_minor_units INTEGER NOT NULL,
    create_time        INTEGER NOT NULL,
    PRIMARY KEY (transfer_id, owner),
    FOREIGN KEY (owner, user_id, currency_code) REFERENCES accounts
) STRICT, WITHOUT ROWID;

-- A purchase is charged once at most, and refunded once at most.
CREATE UNIQUE INDEX postings_of_purchases ON postings (cause_id, kind, owner)
WHERE kind <> 'DEPOSIT';

CREATE INDEX postings_of_users ON postings (user_id, transfer_id) WHERE owner = 'USER';

-- One row per purchase that was ever heard of; one that nobody paid for is a mark,
-- until it may be forgotten.
CREATE TABLE payments (
    purchase_id        BLOB    NOT NULL PRIMARY KEY,
    state              TEXT    NOT NULL CHECK (state IN ('CHARGED', 'REFUNDED')),
    user_id            BLOB,
    amount_minor_units INTEGER CHECK (amount_minor_units >= 0),
    currency_code      TEXT,
    not_after          INTEGER NOT NULL,
    create_time        INTEGER NOT NULL,
    CHECK ((user_id IS NULL) = (amount_minor_units IS NULL)),
    CHECK ((user_id IS NULL) = (currency_code IS NULL)),
    CHECK (state = 'REFUNDED' OR user_id IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX payments_to_sweep ON payments (not_after) WHERE user_id IS NULL;

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
