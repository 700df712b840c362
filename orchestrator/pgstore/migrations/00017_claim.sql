-- +goose Up
-- Sessions are listed by host, newest first.
CREATE INDEX sessions_host ON sessions (host, created_at DESC, id DESC) WHERE host <> '';

-- claim_sessions as before, but that it tells nobody: whoever called it does, once it is committed. Postgres commits those that notify
-- one after the other, each until it is on disk.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION claim_sessions(who text, reach text[], ttl double precision, most integer, default_active integer)
RETURNS TABLE (claimed sessions, seq bigint) LANGUAGE plpgsql AS $$
DECLARE
    stride CONSTANT bigint := 1000000;
    live   bigint[];
    tries  integer := most + 200; -- lanes that turn out to be empty or shut cost one each
    bytes  integer := 0;
    wanted wants;
    lane   record;
    passed text[] := '{}'; -- lanes with nothing in them that could be taken now
    load   account_load;
    dev    record;
    picked text;
    start  bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(7236838, 1);
    -- The wants that sessions are queued for and a device is free for. The first part looks at one row a want.
    WITH RECURSIVE queued AS (
        (SELECT l.want FROM lanes l WHERE l.open ORDER BY l.want LIMIT 1)
        UNION ALL
        SELECT (SELECT l.want FROM lanes l WHERE l.open AND l.want > q.want ORDER BY l.want LIMIT 1) FROM queued q WHERE q.want IS NOT NULL)
    SELECT array_agg(q.want) INTO live FROM queued q JOIN wants w ON w.id = q.want
    WHERE CASE WHEN w.host = '' THEN EXISTS (
            SELECT FROM shapes s CROSS JOIN LATERAL (
                SELECT FROM devices d WHERE d.shape = s.id AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach)
                ORDER BY d.used_at LIMIT 1) d -- in the index's order, so that nobody thinks of reading all devices
            WHERE misfits(w, s) = '{}')
        ELSE EXISTS (
            SELECT FROM devices d JOIN shapes s ON s.id = d.shape
            WHERE d.host = w.host AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach) AND misfits(w, s) = '{}') END;
    WHILE most > 0 AND tries > 0 AND bytes < 65536 AND cardinality(live) > 0 LOOP
        tries := tries - 1;
        -- Of one account's lanes, the one whose first session is first.
        SELECT l.account, l.want INTO lane
        FROM unnest(live) AS u(want) CROSS JOIN LATERAL (
            SELECT lanes.account, lanes.want, lanes.pass FROM lanes WHERE lanes.want = u.want AND lanes.open
                AND lanes.want || ' ' || lanes.account <> ALL (passed)
            ORDER BY lanes.pass, lanes.account LIMIT 1) l
        LEFT JOIN LATERAL (
            SELECT s.id, s.priority, s.created_at FROM sessions s WHERE s.account = l.account AND s.want = l.want AND s.state = 'queued'
            ORDER BY s.priority DESC, s.created_at, s.id LIMIT 1) h ON true
        ORDER BY l.pass, l.account, h.priority DESC NULLS FIRST, h.created_at, h.id LIMIT 1;
        EXIT WHEN NOT FOUND;

        SELECT * INTO load FROM account_load a WHERE a.account = lane.account FOR UPDATE;
        IF load.active >= coalesce(load.max_active, default_active) THEN
            UPDATE lanes SET open = false WHERE lanes.account = lane.account AND lanes.open;
            CONTINUE;
        END IF;
        SELECT s.id INTO picked FROM sessions s WHERE s.account = lane.account AND s.want = lane.want AND s.state = 'queued' AND s.queue_until > now()
            AND (s.profile IS NULL OR reaches_profile(who, s.profile, s.forked_from))
            ORDER BY s.priority DESC, s.created_at, s.id LIMIT 1 FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            DELETE FROM lanes WHERE lanes.account = lane.account AND lanes.want = lane.want
                AND NOT EXISTS (SELECT FROM sessions s WHERE s.account = lane.account AND s.want = lane.want AND s.state = 'queued');
            IF NOT FOUND THEN -- what is left is being cancelled, its time is up, or its profile is with another
                passed := passed || (lane.want || ' ' || lane.account);
            END IF;
            CONTINUE;
        END IF;

        SELECT * INTO wanted FROM wants w WHERE w.id = lane.want;
        IF wanted.host = '' THEN
            SELECT d.host, d.name INTO dev FROM shapes s CROSS JOIN LATERAL (
                SELECT f.host, f.name, f.used_at FROM devices f
                WHERE f.shape = s.id AND f.state = 'ready' AND f.session IS NULL AND NOT f.closed AND f.host = ANY (reach) ORDER BY f.used_at LIMIT 1) d
            WHERE misfits(wanted, s) = '{}' ORDER BY d.used_at LIMIT 1;
        ELSE
            SELECT d.host, d.name INTO dev FROM devices d JOIN shapes s ON s.id = d.shape
            WHERE d.host = wanted.host AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach) AND misfits(wanted, s) = '{}'
            ORDER BY d.used_at LIMIT 1;
        END IF;
        IF FOUND THEN -- its host may be saying something of it
            PERFORM FROM devices d WHERE d.host = dev.host AND d.name = dev.name AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed FOR UPDATE SKIP LOCKED;
        END IF;
        IF NOT FOUND THEN
            live := array_remove(live, lane.want);
            CONTINUE;
        END IF;

        UPDATE devices d SET session = picked, used_at = clock_timestamp() WHERE d.host = dev.host AND d.name = dev.name;
        UPDATE sessions s SET state = 'starting', term = s.term + 1, holder = who, lease_until = now() + make_interval(secs => ttl),
            host = dev.host, device = dev.name, started_at = now()
            WHERE s.id = picked RETURNING s.* INTO claimed; -- counts it as active
        INSERT INTO session_events (session, seq, at, kind, term)
            VALUES (picked, 1 + (SELECT max(e.seq) FROM session_events e WHERE e.session = picked), now(), 'starting', (claimed).term)
            RETURNING session_events.seq INTO claim_sessions.seq;

        SELECT greatest(load.pass, v.last_value) INTO start FROM virtual_time v;
        PERFORM setval('virtual_time', start);
        UPDATE account_load a SET pass = start + stride / a.weight WHERE a.account = lane.account;
        UPDATE lanes SET pass = start + stride / load.weight, open = load.active + 1 < coalesce(load.max_active, default_active)
            WHERE lanes.account = lane.account;

        most := most - 1;
        bytes := bytes + coalesce(octet_length((claimed).want_caps::text), 0); -- a caller who stops reading must not stop the others
        RETURN NEXT;
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP INDEX sessions_host;
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION claim_sessions(who text, reach text[], ttl double precision, most integer, default_active integer)
RETURNS TABLE (claimed sessions, seq bigint) LANGUAGE plpgsql AS $$
DECLARE
    stride CONSTANT bigint := 1000000;
    live   bigint[];
    tries  integer := most + 200; -- lanes that turn out to be empty or shut cost one each
    bytes  integer := 0;
    wanted wants;
    lane   record;
    passed text[] := '{}'; -- lanes with nothing in them that could be taken now
    load   account_load;
    dev    record;
    picked text;
    start  bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(7236838, 1);
    -- The wants that sessions are queued for and a device is free for. The first part looks at one row a want.
    WITH RECURSIVE queued AS (
        (SELECT l.want FROM lanes l WHERE l.open ORDER BY l.want LIMIT 1)
        UNION ALL
        SELECT (SELECT l.want FROM lanes l WHERE l.open AND l.want > q.want ORDER BY l.want LIMIT 1) FROM queued q WHERE q.want IS NOT NULL)
    SELECT array_agg(q.want) INTO live FROM queued q JOIN wants w ON w.id = q.want
    WHERE CASE WHEN w.host = '' THEN EXISTS (
            SELECT FROM shapes s CROSS JOIN LATERAL (
                SELECT FROM devices d WHERE d.shape = s.id AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach) LIMIT 1) d
            WHERE misfits(w, s) = '{}')
        ELSE EXISTS (
            SELECT FROM devices d JOIN shapes s ON s.id = d.shape
            WHERE d.host = w.host AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach) AND misfits(w, s) = '{}') END;
    WHILE most > 0 AND tries > 0 AND bytes < 65536 AND cardinality(live) > 0 LOOP
        tries := tries - 1;
        -- Of one account's lanes, the one whose first session is first.
        SELECT l.account, l.want INTO lane
        FROM unnest(live) AS u(want) CROSS JOIN LATERAL (
            SELECT lanes.account, lanes.want, lanes.pass FROM lanes WHERE lanes.want = u.want AND lanes.open
                AND lanes.want || ' ' || lanes.account <> ALL (passed)
            ORDER BY lanes.pass, lanes.account LIMIT 1) l
        LEFT JOIN LATERAL (
            SELECT s.id, s.priority, s.created_at FROM sessions s WHERE s.account = l.account AND s.want = l.want AND s.state = 'queued'
            ORDER BY s.priority DESC, s.created_at, s.id LIMIT 1) h ON true
        ORDER BY l.pass, l.account, h.priority DESC NULLS FIRST, h.created_at, h.id LIMIT 1;
        EXIT WHEN NOT FOUND;

        SELECT * INTO load FROM account_load a WHERE a.account = lane.account FOR UPDATE;
        IF load.active >= coalesce(load.max_active, default_active) THEN
            UPDATE lanes SET open = false WHERE lanes.account = lane.account AND lanes.open;
            CONTINUE;
        END IF;
        SELECT s.id INTO picked FROM sessions s WHERE s.account = lane.account AND s.want = lane.want AND s.state = 'queued' AND s.queue_until > now()
            AND (s.profile IS NULL OR reaches_profile(who, s.profile, s.forked_from))
            ORDER BY s.priority DESC, s.created_at, s.id LIMIT 1 FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            DELETE FROM lanes WHERE lanes.account = lane.account AND lanes.want = lane.want
                AND NOT EXISTS (SELECT FROM sessions s WHERE s.account = lane.account AND s.want = lane.want AND s.state = 'queued');
            IF NOT FOUND THEN -- what is left is being cancelled, its time is up, or its profile is with another
                passed := passed || (lane.want || ' ' || lane.account);
            END IF;
            CONTINUE;
        END IF;

        SELECT * INTO wanted FROM wants w WHERE w.id = lane.want;
        IF wanted.host = '' THEN
            SELECT d.host, d.name INTO dev FROM shapes s CROSS JOIN LATERAL (
                SELECT f.host, f.name, f.used_at FROM devices f
                WHERE f.shape = s.id AND f.state = 'ready' AND f.session IS NULL AND NOT f.closed AND f.host = ANY (reach) ORDER BY f.used_at LIMIT 1) d
            WHERE misfits(wanted, s) = '{}' ORDER BY d.used_at LIMIT 1;
        ELSE
            SELECT d.host, d.name INTO dev FROM devices d JOIN shapes s ON s.id = d.shape
            WHERE d.host = wanted.host AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach) AND misfits(wanted, s) = '{}'
            ORDER BY d.used_at LIMIT 1;
        END IF;
        IF FOUND THEN -- its host may be saying something of it
            PERFORM FROM devices d WHERE d.host = dev.host AND d.name = dev.name AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed FOR UPDATE SKIP LOCKED;
        END IF;
        IF NOT FOUND THEN
            live := array_remove(live, lane.want);
            CONTINUE;
        END IF;

        UPDATE devices d SET session = picked, used_at = clock_timestamp() WHERE d.host = dev.host AND d.name = dev.name;
        UPDATE sessions s SET state = 'starting', term = s.term + 1, holder = who, lease_until = now() + make_interval(secs => ttl),
            host = dev.host, device = dev.name, started_at = now()
            WHERE s.id = picked RETURNING s.* INTO claimed; -- counts it as active
        INSERT INTO session_events (session, seq, at, kind, term)
            VALUES (picked, 1 + (SELECT max(e.seq) FROM session_events e WHERE e.session = picked), now(), 'starting', (claimed).term)
            RETURNING session_events.seq INTO claim_sessions.seq;
        PERFORM pg_notify('driftstack_session', picked);

        SELECT greatest(load.pass, v.last_value) INTO start FROM virtual_time v;
        PERFORM setval('virtual_time', start);
        UPDATE account_load a SET pass = start + stride / a.weight WHERE a.account = lane.account;
        UPDATE lanes SET pass = start + stride / load.weight, open = load.active + 1 < coalesce(load.max_active, default_active)
            WHERE lanes.account = lane.account;

        most := most - 1;
        bytes := bytes + coalesce(octet_length((claimed).want_caps::text), 0); -- a caller who stops reading must not stop the others
        RETURN NEXT;
    END LOOP;
END
$$;
-- +goose StatementEnd
