-- +goose Up
CREATE TABLE accounts (
    id         text PRIMARY KEY,
    recordings text NOT NULL CHECK (recordings IN ('eu', 'replicated')),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Metadata only; the state itself is a sealed file. generation, file, sha256 and bytes name the current one.
CREATE TABLE profiles (
    id          text PRIMARY KEY,
    account     text NOT NULL REFERENCES accounts,
    name        text NOT NULL,
    archetype   text NOT NULL DEFAULT '',
    description text NOT NULL DEFAULT '',
    generation  bigint NOT NULL DEFAULT 0,
    file        text NOT NULL DEFAULT '',
    sha256      bytea NOT NULL DEFAULT '',
    bytes       bigint NOT NULL DEFAULT 0,
    term        bigint NOT NULL DEFAULT 0,
    wrapped_key bytea,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX profiles_account ON profiles (account, created_at);

-- number is the host's place in the tunnel's network; it is never given to another host.
CREATE SEQUENCE host_numbers MINVALUE 256 MAXVALUE 65534;
CREATE TABLE hosts (
    name            text PRIMARY KEY,
    number          integer NOT NULL UNIQUE,
    join_public_key text UNIQUE,
    join_psk        bytea,
    join_expires_at timestamptz,
    public_key      text UNIQUE,
    psk             bytea,
    reason          text NOT NULL DEFAULT '',
    seen_at         timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
);

-- Which orchestrators a host has a control socket to. Each touches its own rows only.
CREATE TABLE host_links (
    host         text NOT NULL REFERENCES hosts ON DELETE CASCADE,
    orchestrator text NOT NULL,
    PRIMARY KEY (host, orchestrator)
);

-- state is what the host says; session is our claim. A device is free when it is ready and unclaimed.
CREATE TABLE devices (
    host             text NOT NULL REFERENCES hosts ON DELETE CASCADE,
    name             text NOT NULL,
    kind             text NOT NULL,
    model            text NOT NULL,
    platform_name    text NOT NULL,
    platform_version text NOT NULL,
    labels           jsonb NOT NULL DEFAULT '{}',
    state            text NOT NULL CHECK (state IN ('ready', 'busy', 'quarantined', 'offline')),
    reason           text NOT NULL DEFAULT '',
    session          text,
    used_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, name)
);
CREATE INDEX devices_free ON devices (used_at) WHERE state = 'ready' AND session IS NULL;
CREATE UNIQUE INDEX devices_session ON devices (session) WHERE session IS NOT NULL;

CREATE TABLE sessions (
    id              text PRIMARY KEY,
    account         text NOT NULL REFERENCES accounts,
    profile         text REFERENCES profiles,
    name            text NOT NULL DEFAULT '',
    want_kind       text NOT NULL DEFAULT '',
    want_model      text NOT NULL DEFAULT '',
    want_host       text NOT NULL DEFAULT '',
    want_labels     jsonb NOT NULL DEFAULT '{}',
    want_caps       jsonb, -- until it runs
    recording       boolean NOT NULL,
    placement       text NOT NULL CHECK (placement IN ('eu', 'replicated')),
    idle_seconds    integer NOT NULL,
    max_seconds     integer NOT NULL,
    command_seconds integer NOT NULL,
    queue_until     timestamptz NOT NULL,
    state           text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'starting', 'running', 'finishing', 'ended')),
    reason          text NOT NULL DEFAULT '',
    detail          text NOT NULL DEFAULT '',
    cancelled       boolean NOT NULL DEFAULT false,
    term            bigint NOT NULL DEFAULT 0,
    holder          text NOT NULL DEFAULT '',
    lease_until     timestamptz,
    host            text NOT NULL DEFAULT '',
    device          text NOT NULL DEFAULT '',
    generation      bigint NOT NULL DEFAULT 0,
    caps            jsonb, -- while it runs
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    running_at      timestamptz,
    ended_at        timestamptz,
    CHECK ((state = 'ended') = (reason <> '')),
    CHECK ((state = 'ended') = (ended_at IS NOT NULL))
);
CREATE INDEX sessions_queue ON sessions (created_at, id) WHERE state = 'queued';
CREATE INDEX sessions_queue_until ON sessions (queue_until) WHERE state = 'queued';
CREATE INDEX sessions_by_profile ON sessions (profile, created_at DESC, id DESC) WHERE profile IS NOT NULL;
CREATE INDEX sessions_lease ON sessions (lease_until) WHERE state IN ('starting', 'running', 'finishing');
CREATE INDEX sessions_list ON sessions (created_at DESC, id DESC);
CREATE INDEX sessions_account ON sessions (account, created_at DESC, id DESC);
-- A profile has one writer: the database, not a check before an insert, says so.
CREATE UNIQUE INDEX sessions_profile ON sessions (profile) WHERE state <> 'ended' AND profile IS NOT NULL;

CREATE TABLE session_events (
    session    text NOT NULL REFERENCES sessions ON DELETE CASCADE,
    seq        bigint NOT NULL,
    at         timestamptz NOT NULL,
    kind       text NOT NULL,
    term       bigint NOT NULL DEFAULT 0,
    route      text NOT NULL DEFAULT '',
    status     integer NOT NULL DEFAULT 0,
    took_us    bigint NOT NULL DEFAULT 0,
    driver_us  bigint NOT NULL DEFAULT 0,
    bytes_in   bigint NOT NULL DEFAULT 0,
    bytes_out  bigint NOT NULL DEFAULT 0,
    reason     text NOT NULL DEFAULT '',
    generation bigint NOT NULL DEFAULT 0,
    restored   integer NOT NULL DEFAULT 0,
    altered    integer NOT NULL DEFAULT 0,
    dropped    integer NOT NULL DEFAULT 0,
    captured   integer NOT NULL DEFAULT 0,
    kept       integer NOT NULL DEFAULT 0,
    removed    integer NOT NULL DEFAULT 0,
    partial    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (session, seq)
);

-- What recorder.RecordingUpdate says, whole, each time.
CREATE TABLE recordings (
    id          text PRIMARY KEY,
    session     text NOT NULL REFERENCES sessions ON DELETE CASCADE,
    account     text NOT NULL,
    term        bigint NOT NULL,
    placement   text NOT NULL CHECK (placement IN ('eu', 'replicated')),
    state       text NOT NULL,
    partial     boolean NOT NULL DEFAULT false,
    cause       text NOT NULL DEFAULT '',
    key         text NOT NULL,
    bytes       bigint NOT NULL DEFAULT 0,
    duration_ms bigint NOT NULL DEFAULT 0,
    sha256      text NOT NULL DEFAULT '',
    started_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);
CREATE INDEX recordings_session ON recordings (session);

CREATE TABLE recording_copies (
    recording   text NOT NULL REFERENCES recordings ON DELETE CASCADE,
    region      text NOT NULL CHECK (region IN ('eu', 'us')),
    bucket      text NOT NULL,
    state       text NOT NULL,
    etag        text NOT NULL DEFAULT '',
    verified_at timestamptz,
    PRIMARY KEY (recording, region)
);

-- +goose Down
DROP TABLE recording_copies, recordings, session_events, sessions, devices, host_links, hosts, profiles, accounts;
DROP SEQUENCE host_numbers;
