-- +goose Up
-- Profiles of before had one generation and their wrapped key beside it. Nothing of them is taken over: their files do not open any more.
ALTER TABLE profiles DROP file, DROP sha256, DROP bytes, DROP term, DROP wrapped_key,
    ADD last_generation bigint NOT NULL DEFAULT 0,
    ADD deleted_at timestamptz;
UPDATE profiles SET generation = 0;

-- One sealed file each. profiles.generation is the current one, 0 where there is none.
CREATE TABLE generations (
    profile    text NOT NULL REFERENCES profiles,
    number     bigint NOT NULL CHECK (number > 0),
    file       text NOT NULL UNIQUE,
    volume     text NOT NULL,
    digest     bytea NOT NULL,
    bytes      bigint NOT NULL,
    term       bigint NOT NULL,
    session    text NOT NULL,
    previous   bigint NOT NULL,
    source     text NOT NULL,
    state      text NOT NULL CHECK (state IN ('good', 'candidate', 'quarantined')),
    reason     text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    PRIMARY KEY (profile, number)
);
CREATE INDEX generations_age ON generations (created_at);

-- Keys that must never open anything again, also when the key database comes out of a backup; it has the same table. profile is ''
-- where all of the account's are meant.
CREATE TABLE destroyed_keys (
    account text NOT NULL,
    profile text NOT NULL,
    epoch   bigint NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (account, profile)
);

-- readonly sessions publish nothing and hold nothing; a fork holds a profile of its own, and starts from another.
ALTER TABLE sessions ADD profile_mode text NOT NULL DEFAULT 'exclusive' CHECK (profile_mode IN ('exclusive', 'readonly', 'fork')),
    ADD forked_from text REFERENCES profiles;
DROP INDEX sessions_profile;
CREATE UNIQUE INDEX sessions_profile ON sessions (profile) WHERE state <> 'ended' AND profile IS NOT NULL AND profile_mode <> 'readonly';

-- +goose Down
DROP INDEX sessions_profile;
CREATE UNIQUE INDEX sessions_profile ON sessions (profile) WHERE state <> 'ended' AND profile IS NOT NULL;
ALTER TABLE sessions DROP profile_mode, DROP forked_from;
DROP TABLE destroyed_keys, generations;
ALTER TABLE profiles DROP last_generation, DROP deleted_at,
    ADD file text NOT NULL DEFAULT '', ADD sha256 bytea NOT NULL DEFAULT '', ADD bytes bigint NOT NULL DEFAULT 0,
    ADD term bigint NOT NULL DEFAULT 0, ADD wrapped_key bytea;
UPDATE profiles SET generation = 0;
