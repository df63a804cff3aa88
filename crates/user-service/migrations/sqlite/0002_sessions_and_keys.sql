-- Secrets are stored as their SHA-256 alone.

-- The refresh tokens of a session: one that may be used, and those that were. A session
-- is over when its tokens are gone.
CREATE TABLE refresh_tokens (
    digest              BLOB    NOT NULL PRIMARY KEY,
    session_id          BLOB    NOT NULL,
    user_id             BLOB    NOT NULL REFERENCES users,
    session_expire_time INTEGER NOT NULL,
    expire_time         INTEGER NOT NULL,
    is_used             INTEGER NOT NULL CHECK (is_used IN (0, 1))
) STRICT, WITHOUT ROWID;

-- However two requests race, a session has one token that may be used.
CREATE UNIQUE INDEX refresh_tokens_to_use ON refresh_tokens (session_id) WHERE is_used = 0;
CREATE INDEX refresh_tokens_of_sessions ON refresh_tokens (session_id);
CREATE INDEX refresh_tokens_of_users ON refresh_tokens (user_id);
CREATE INDEX refresh_tokens_to_sweep ON refresh_tokens (expire_time);

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

CREATE TABLE signing_keys (
    id          BLOB    NOT NULL PRIMARY KEY,
    -- PKCS#8, as it is: whoever reads it can sign in as anyone.
    private_key BLOB    NOT NULL,
    sign_time   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
