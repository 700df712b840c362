-- +goose Up
-- What devices are matched by, but for their host. Many have the same; a fleet has few of them.
CREATE TABLE shapes (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest           bytea NOT NULL UNIQUE, -- SHA-256 of the rest
    kind             text NOT NULL,
    model            text NOT NULL,
    platform_name    text NOT NULL,
    platform_version text NOT NULL,
    version          integer[], -- four numbers; null: platform_version is no version
    browser          text NOT NULL,
    bidi             boolean NOT NULL,
    labels           jsonb NOT NULL,
    country          text NOT NULL
);

-- A device without a shape is one whose host has not said hello since: it takes no session.
ALTER TABLE devices ADD shape bigint REFERENCES shapes, ADD country text NOT NULL DEFAULT '';
DROP INDEX devices_free;
CREATE INDEX devices_free ON devices (shape, used_at) WHERE state = 'ready' AND session IS NULL AND NOT closed;
CREATE INDEX devices_shape ON devices (shape, host);

-- What sessions want of a device. Many want the same, so that the queue is looked at by want.
CREATE TABLE wants (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest   bytea NOT NULL UNIQUE, -- SHA-256 of the rest
    kind     text NOT NULL,
    model    text NOT NULL,
    host     text NOT NULL,
    platform text NOT NULL,
    least    integer[], -- OS version: least <= version < below
    below    integer[],
    browser  text NOT NULL,
    bidi     boolean NOT NULL,
    labels   jsonb NOT NULL,
    country  text NOT NULL,
    used_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX wants_used ON wants (used_at);

-- The keys of a want that a shape does not meet. This is what matching is, for claims, admission and explanations alike; the
-- host is not a shape's.
-- +goose StatementBegin
CREATE FUNCTION misfits(w wants, s shapes) RETURNS text[] IMMUTABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT array_remove(ARRAY[
        CASE WHEN w.kind <> '' AND s.kind <> w.kind THEN 'kind' END,
        CASE WHEN w.model <> '' AND s.model <> w.model THEN 'model' END,
        CASE WHEN w.platform <> '' AND lower(s.platform_name) <> lower(w.platform) THEN 'platform' END,
        CASE WHEN (w.least IS NOT NULL OR w.below IS NOT NULL)
              AND NOT coalesce((w.least IS NULL OR s.version >= w.least) AND (w.below IS NULL OR s.version < w.below), false) THEN 'os_version' END,
        CASE WHEN w.browser <> '' AND s.browser <> w.browser THEN 'browser' END,
        CASE WHEN w.bidi AND NOT s.bidi THEN 'bidi' END,
        CASE WHEN NOT s.labels @> w.labels THEN 'labels' END,
        CASE WHEN w.country <> '' AND s.country <> w.country THEN 'country' END], NULL)
$$;
-- +goose StatementEnd

-- What an account has and may have. Apart from accounts, because it changes with every session. A limit that is null is
-- the orchestrators' default. Who changes it, or the account's lanes, holds the row's lock.
CREATE TABLE account_load (
    account     text PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    queued      integer NOT NULL DEFAULT 0,
    active      integer NOT NULL DEFAULT 0, -- starting, running, finishing
    recent      integer[] NOT NULL DEFAULT '{}', -- sessions created in each stretch of 5 s, the newest first
    stretch     bigint NOT NULL DEFAULT 0,       -- the newest
    pass        bigint NOT NULL DEFAULT 0,       -- virtual time at which the account is next served
    busy_ms     bigint,                          -- how long its sessions have had a device lately; null: none has ended
    max_active  integer CHECK (max_active >= 0),
    max_queued  integer CHECK (max_queued >= 0),
    max_creates integer CHECK (max_creates >= 0),
    weight      integer NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 1000)
) WITH (fillfactor = 50);
CREATE INDEX account_load_queued ON account_load (account) WHERE queued > 0;

-- An account's queued sessions that want the same. open: the account may have another session.
CREATE TABLE lanes (
    account text NOT NULL REFERENCES account_load ON DELETE CASCADE,
    want    bigint NOT NULL REFERENCES wants,
    pass    bigint NOT NULL, -- the account's
    open    boolean NOT NULL DEFAULT true,
    PRIMARY KEY (account, want)
) WITH (fillfactor = 50);
CREATE INDEX lanes_next ON lanes (want, pass, account) WHERE open;

-- The virtual time: the pass of the account that was served last. It is a sequence because it only rises, and whoever moves it
-- must not wait for another who does.
CREATE SEQUENCE virtual_time MINVALUE 0 START 0;

-- The queue's room, in pieces that sessions are created in beside one another. Each has its part of the limit.
CREATE TABLE queue_room (
    piece  integer PRIMARY KEY,
    queued integer NOT NULL DEFAULT 0
) WITH (fillfactor = 20);
INSERT INTO queue_room (piece) SELECT generate_series(0, 15);

ALTER TABLE sessions
    ADD want         bigint, -- a row of wants
    ADD want_os      text NOT NULL DEFAULT '',
    ADD want_country text NOT NULL DEFAULT '',
    ADD priority     smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
    ADD piece        integer NOT NULL DEFAULT 0; -- of queue_room

CREATE TABLE idempotency_keys (
    account    text NOT NULL REFERENCES accounts ON DELETE CASCADE,
    key        text NOT NULL,
    request    bytea NOT NULL, -- SHA-256
    session    text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, key)
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);

-- recent_creates moves the stretches on to now's.
-- +goose StatementBegin
CREATE FUNCTION recent_creates(recent integer[], stretch bigint, now bigint) RETURNS integer[] IMMUTABLE LANGUAGE sql AS $$
    SELECT (array_fill(0, ARRAY[least(greatest(now - stretch, 0), 13)::integer]) || recent)[1:13]
$$;
-- +goose StatementEnd

-- What is queued and what has not ended at the time of the change.
INSERT INTO account_load (account, queued, active)
    SELECT a.id, count(s.id) FILTER (WHERE s.state = 'queued'), count(s.id) FILTER (WHERE s.state IN ('starting', 'running', 'finishing'))
    FROM accounts a LEFT JOIN sessions s ON s.account = a.id AND s.state <> 'ended' GROUP BY a.id;
INSERT INTO wants (digest, kind, model, host, platform, browser, bidi, labels, country)
    SELECT DISTINCT sha256(convert_to(ROW (want_kind, want_model, want_host, want_platform, want_browser, want_bidi, want_labels)::text, 'UTF8')),
           want_kind, want_model, want_host, want_platform, want_browser, want_bidi, want_labels, ''
    FROM sessions WHERE state <> 'ended';
UPDATE sessions s SET want = w.id FROM wants w
    WHERE s.state <> 'ended' AND (w.kind, w.model, w.host, w.platform, w.browser, w.bidi, w.labels)
        = (s.want_kind, s.want_model, s.want_host, s.want_platform, s.want_browser, s.want_bidi, s.want_labels);
INSERT INTO lanes (account, want, pass) SELECT DISTINCT account, want, 0 FROM sessions WHERE state = 'queued';
UPDATE queue_room SET queued = (SELECT count(*) FROM sessions WHERE state = 'queued') WHERE piece = 0;

DROP INDEX sessions_queue;
CREATE INDEX sessions_queue ON sessions (account, want, priority DESC, created_at, id) WHERE state = 'queued';

-- count_session keeps account_load and lanes: whatever statement changes a session's state, the counts follow.
-- +goose StatementBegin
CREATE FUNCTION count_session() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was    text := 'none';
    is_now text := 'none';
    who    text;
    served bigint;
    at     bigint := extract(epoch FROM now())::bigint / 5;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        was := OLD.state;
        who := OLD.account;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        is_now := NEW.state;
        who := NEW.account;
    END IF;
    UPDATE account_load SET
        queued = queued + (is_now = 'queued')::integer - (was = 'queued')::integer,
        active = active + (is_now IN ('starting', 'running', 'finishing'))::integer - (was IN ('starting', 'running', 'finishing'))::integer,
        pass = CASE WHEN is_now = 'queued' AND queued = 0 THEN greatest(pass, (SELECT last_value FROM virtual_time)) ELSE pass END,
        recent = CASE WHEN TG_OP = 'INSERT' AND is_now = 'queued' THEN
                (coalesce((recent_creates(recent, stretch, at))[1], 0) + 1) || (recent_creates(recent, stretch, at))[2:] ELSE recent END,
        stretch = CASE WHEN TG_OP = 'INSERT' AND is_now = 'queued' THEN greatest(at, stretch) ELSE stretch END
        WHERE account = who RETURNING pass INTO served;
    IF is_now = 'ended' AND was NOT IN ('none', 'queued') AND NEW.started_at IS NOT NULL THEN
        UPDATE account_load SET busy_ms = (coalesce(busy_ms, b.ms) * 7 + b.ms) / 8
            FROM (SELECT (extract(epoch FROM now() - NEW.started_at) * 1000)::bigint AS ms) b WHERE account = who;
    END IF;
    IF is_now = 'queued' THEN
        INSERT INTO lanes (account, want, pass) VALUES (who, NEW.want, served)
            ON CONFLICT (account, want) DO UPDATE SET pass = excluded.pass WHERE lanes.pass <> excluded.pass;
    END IF;
    IF was IN ('starting', 'running', 'finishing') AND is_now NOT IN ('starting', 'running', 'finishing') THEN
        UPDATE lanes SET open = true WHERE account = who AND NOT open;
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER sessions_inserted AFTER INSERT ON sessions FOR EACH ROW WHEN (NEW.state <> 'ended') EXECUTE FUNCTION count_session();
CREATE TRIGGER sessions_moved AFTER UPDATE OF state ON sessions FOR EACH ROW
    WHEN ((OLD.state = 'queued') <> (NEW.state = 'queued') OR (OLD.state = 'ended') <> (NEW.state = 'ended')) EXECUTE FUNCTION count_session();
CREATE TRIGGER sessions_deleted AFTER DELETE ON sessions FOR EACH ROW WHEN (OLD.state <> 'ended') EXECUTE FUNCTION count_session();

-- count_queue keeps queue_room. It is put off to the end of the transaction: accounts are locked before pieces of room, always.
-- +goose StatementBegin
CREATE FUNCTION count_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' AND OLD.state = 'queued' THEN
        UPDATE queue_room SET queued = queued - 1 WHERE piece = OLD.piece;
    END IF;
    IF TG_OP <> 'DELETE' AND NEW.state = 'queued' THEN
        UPDATE queue_room SET queued = queued + 1 WHERE piece = NEW.piece;
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE CONSTRAINT TRIGGER queue_inserted AFTER INSERT ON sessions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.state = 'queued') EXECUTE FUNCTION count_queue();
CREATE CONSTRAINT TRIGGER queue_moved AFTER UPDATE OF state ON sessions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.state = 'queued') <> (NEW.state = 'queued')) EXECUTE FUNCTION count_queue();
CREATE CONSTRAINT TRIGGER queue_deleted AFTER DELETE ON sessions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.state = 'queued') EXECUTE FUNCTION count_queue();

-- +goose Down
DROP TRIGGER sessions_inserted ON sessions;
DROP TRIGGER sessions_moved ON sessions;
DROP TRIGGER sessions_deleted ON sessions;
DROP TRIGGER queue_inserted ON sessions;
DROP TRIGGER queue_moved ON sessions;
DROP TRIGGER queue_deleted ON sessions;
DROP FUNCTION count_session, count_queue, recent_creates, misfits;
DROP INDEX sessions_queue;
CREATE INDEX sessions_queue ON sessions (created_at, id) WHERE state = 'queued';
DROP INDEX devices_free, devices_shape;
CREATE INDEX devices_free ON devices (used_at) WHERE state = 'ready' AND session IS NULL;
ALTER TABLE sessions DROP want, DROP want_os, DROP want_country, DROP priority, DROP piece;
ALTER TABLE devices DROP shape, DROP country;
DROP TABLE idempotency_keys, queue_room, lanes, account_load, wants, shapes;
DROP SEQUENCE virtual_time;
