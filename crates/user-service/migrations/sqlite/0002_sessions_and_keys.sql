-- Secrets are stored as their SHA-256 alone.

-- Whoever is signed in. A session has one refresh token that may be used; any other that
-- tells of it was used before. It is over when its row is gone.
CREATE TABLE sessions (
    -- Of what all refresh tokens of the session have in common.
    id                BLOB    NOT NULL PRIMARY KEY,
    user_id           BLOB    NOT NULL REFERENCES users,
    expire_time       INTEGER NOT NULL,
    token             BLOB    NOT NULL,
    token_expire_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_of_users ON sessions (user_id);
CREATE INDEX sessions_to_sweep ON sessions (token_expire_time);

CREATE TABLE api_keys (
    id           BLOB    NOT NULL PRIMARY KEY,
    digest       BLOB    NOT NULL UNIQUE,
    user_id      BLOB    NOT NULL REFERENCES users,
    display_name TEXT    NOT NULL,
    create_time  INTEGER NOT NULL,
    expire_time  INTEGER,
    revoke_time  INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX api_keys_of_users ON api_keys (user_id, id);
CREATE INDEX api_keys_to_sweep ON api_keys (revoke_time) WHERE revoke_time IS NOT NULL;
CREATE INDEX expired_api_keys_to_sweep ON api_keys (expire_time) WHERE expire_time IS NOT NULL;

CREATE TABLE signing_keys (
    id          BLOB    NOT NULL PRIMARY KEY,
    -- PKCS#8, as it is: whoever reads it can sign in as anyone.
    private_key BLOB    NOT NULL,
    sign_time   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
