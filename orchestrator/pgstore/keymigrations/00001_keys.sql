-- +goose Up
-- Wrapped keys: without the root key they open nothing. root is the epoch of the root key that wraps.
CREATE TABLE account_keys (
    account    text PRIMARY KEY,
    epoch      bigint NOT NULL CHECK (epoch > 0),
    root       text NOT NULL,
    wrapped    bytea NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX account_keys_root ON account_keys (root);

-- epoch is that of the account's key that wraps.
CREATE TABLE profile_keys (
    account    text NOT NULL,
    profile    text NOT NULL,
    epoch      bigint NOT NULL CHECK (epoch > 0),
    wrapped    bytea NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, profile)
);

CREATE TABLE destroyed_keys (
    account text NOT NULL,
    profile text NOT NULL,
    epoch   bigint NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (account, profile)
);

-- +goose Down
DROP TABLE destroyed_keys, profile_keys, account_keys;
