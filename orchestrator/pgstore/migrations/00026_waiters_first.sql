-- +goose Up
-- claim_sessions as before, but that it leaves a session to the orchestrator that its client waits at for the first 100 ms: claimed there, it needs no
-- confirmation and no forwarding, and its requests have one hop less. And who finds nothing queued does not wait for those that claim.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION claim_sessions(who text, reach text[], ttl double precision, most integer, default_active integer)
RETURNS TABLE (claimed sessions, seq bigint) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    stride  CONSTANT bigint := 1000000;
    live    bigint[];
    whose   text[];
    weights bigint;
    at      bigint; -- the virtual time
    bytes   integer := 0;
    next    record;
    dev     record;
    wanted  wants;
    fits    bigint[];            -- shapes, for wanted
    spent   bigint[] := '{}';    -- wants that no device is free for any more
    taken   text[] := '{}';      -- sessions, and for each of them
    served  text[] := '{}';      -- its account
    on_host text[] := '{}';
    on_name text[] := '{}';
BEGIN
    IF NOT EXISTS (SELECT FROM lanes l WHERE l.open) THEN
        RETURN; -- as most who are woken, and do not have to wait for the others to find it out
    END IF;
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
    IF live IS NULL THEN
        RETURN;
    END IF;
    -- No more than there are devices.
    SELECT count(*) INTO most FROM (
        SELECT FROM devices d WHERE d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach) ORDER BY d.shape, d.used_at LIMIT most) d;

    -- The accounts that may be served. Lanes that nothing can be taken from now (their sessions' time is up, their profiles are with another) are passed
    -- over, 200 of them at most.
    SELECT array_agg(DISTINCT n.account) INTO whose FROM unnest(live) AS u(want) CROSS JOIN LATERAL (
        SELECT l.account FROM (SELECT lanes.account FROM lanes WHERE lanes.want = u.want AND lanes.open ORDER BY lanes.pass, lanes.account LIMIT most + 200) l
        WHERE EXISTS (SELECT FROM sessions s WHERE s.account = l.account AND s.want = u.want AND s.state = 'queued' AND s.queue_until > now()
            AND (s.waiter IN ('', who) OR s.created_at < now() - interval '100 milliseconds')
            AND (s.profile IS NULL OR reaches_profile(who, s.profile, s.forked_from))) LIMIT most) n;
    PERFORM FROM account_load a WHERE a.account = ANY (whose) ORDER BY a.account FOR UPDATE;
    SELECT sum(a.weight) INTO weights FROM account_load a WHERE a.account = ANY (whose);
    SELECT v.last_value INTO at FROM virtual_time v;

    -- Of one account, the first sessions of all its lanes. No account is looked at for more than its part of all.
    FOR next IN
        SELECT c.id, c.account, c.want, c.start, s.bytes FROM (
            SELECT n.id, n.account, n.want, n.place, greatest(n.pass, at) + (n.place - 1) * (stride / n.weight) AS start FROM (
                SELECT s.id, a.account, u.want, a.pass, a.weight, a.room,
                    row_number() OVER (PARTITION BY a.account ORDER BY s.priority DESC, s.created_at, s.id) AS place
                FROM (SELECT l.account, l.pass, l.weight, coalesce(l.max_active, default_active) - l.active AS room FROM account_load l WHERE l.account = ANY (whose)) a
                CROSS JOIN unnest(live) AS u(want)
                CROSS JOIN LATERAL (
                    SELECT q.id, q.priority, q.created_at FROM sessions q WHERE q.account = a.account AND q.want = u.want AND q.state = 'queued' AND q.queue_until > now()
                        AND (q.waiter IN ('', who) OR q.created_at < now() - interval '100 milliseconds')
                        AND (q.profile IS NULL OR reaches_profile(who, q.profile, q.forked_from))
                    ORDER BY q.priority DESC, q.created_at, q.id LIMIT greatest(least(a.room, most, most * a.weight / weights + 1), 0)) s) n
            WHERE n.place <= n.room ORDER BY start, n.account, n.place LIMIT most) c
        CROSS JOIN LATERAL (
            SELECT coalesce(octet_length(q.want_caps::text), 0) AS bytes FROM sessions q WHERE q.id = c.id AND q.state = 'queued' FOR UPDATE SKIP LOCKED) s
        ORDER BY c.start, c.account, c.place
    LOOP
        EXIT WHEN bytes >= 65536; -- a caller who stops reading must not stop the others
        CONTINUE WHEN next.want = ANY (spent);
        IF wanted.id IS DISTINCT FROM next.want THEN
            SELECT * INTO wanted FROM wants w WHERE w.id = next.want;
            SELECT array_agg(s.id) INTO fits FROM shapes s WHERE misfits(wanted, s) = '{}';
        END IF;
        -- A device that is locked is passed over: its host is saying something of it.
        IF wanted.host = '' THEN
            UPDATE devices d SET session = next.id, used_at = clock_timestamp() FROM (
                SELECT f.host, f.name FROM unnest(fits) AS s(id) CROSS JOIN LATERAL (
                    SELECT e.host, e.name, e.used_at FROM devices e
                    WHERE e.shape = s.id AND e.state = 'ready' AND e.session IS NULL AND NOT e.closed AND e.host = ANY (reach)
                    ORDER BY e.used_at LIMIT 1 FOR UPDATE SKIP LOCKED) f
                ORDER BY f.used_at LIMIT 1) p
                WHERE d.host = p.host AND d.name = p.name RETURNING d.host, d.name INTO dev;
        ELSE
            UPDATE devices d SET session = next.id, used_at = clock_timestamp() FROM (
                SELECT e.host, e.name FROM devices e
                WHERE e.host = wanted.host AND e.shape = ANY (fits) AND e.state = 'ready' AND e.session IS NULL AND NOT e.closed AND e.host = ANY (reach)
                ORDER BY e.used_at LIMIT 1 FOR UPDATE SKIP LOCKED) p
                WHERE d.host = p.host AND d.name = p.name RETURNING d.host, d.name INTO dev;
        END IF;
        IF NOT FOUND THEN
            spent := spent || next.want;
            CONTINUE;
        END IF;
        taken := taken || next.id;
        served := served || next.account;
        on_host := on_host || dev.host;
        on_name := on_name || dev.name;
        bytes := bytes + next.bytes;
        PERFORM setval('virtual_time', next.start);
    END LOOP;

    RETURN QUERY
        WITH moved AS (
            UPDATE sessions s SET state = 'starting', term = s.term + 1, holder = who, lease_until = now() + make_interval(secs => ttl),
                host = p.host, device = p.name, started_at = now()
                FROM unnest(taken, on_host, on_name) AS p(id, host, name) WHERE s.id = p.id RETURNING s),
        told AS (
            INSERT INTO session_events (session, seq, at, kind, term)
                SELECT (m.s).id, 1 + (SELECT max(e.seq) FROM session_events e WHERE e.session = (m.s).id), now(), 'starting', (m.s).term FROM moved m
                RETURNING session_events.session, session_events.seq)
        SELECT m.s, t.seq FROM moved m JOIN told t ON t.session = (m.s).id;
    UPDATE account_load a SET pass = greatest(a.pass, at) + p.n * (stride / a.weight)
        FROM (SELECT u.account, count(*) AS n FROM unnest(served) AS u(account) GROUP BY u.account) p WHERE a.account = p.account;
    UPDATE lanes l SET pass = a.pass, open = a.active < coalesce(a.max_active, default_active)
        FROM account_load a WHERE a.account = ANY (whose) AND l.account = a.account
        AND (l.pass <> a.pass OR l.open <> (a.active < coalesce(a.max_active, default_active)));
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION claim_sessions(who text, reach text[], ttl double precision, most integer, default_active integer)
RETURNS TABLE (claimed sessions, seq bigint) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    stride  CONSTANT bigint := 1000000;
    live    bigint[];
    whose   text[];
    weights bigint;
    at      bigint; -- the virtual time
    bytes   integer := 0;
    next    record;
    dev     record;
    wanted  wants;
    fits    bigint[];            -- shapes, for wanted
    spent   bigint[] := '{}';    -- wants that no device is free for any more
    taken   text[] := '{}';      -- sessions, and for each of them
    served  text[] := '{}';      -- its account
    on_host text[] := '{}';
    on_name text[] := '{}';
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
    IF live IS NULL THEN
        RETURN;
    END IF;
    -- No more than there are devices.
    SELECT count(*) INTO most FROM (
        SELECT FROM devices d WHERE d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach) ORDER BY d.shape, d.used_at LIMIT most) d;

    -- The accounts that may be served. Lanes that nothing can be taken from now (their sessions' time is up, their profiles are with another) are passed
    -- over, 200 of them at most.
    SELECT array_agg(DISTINCT n.account) INTO whose FROM unnest(live) AS u(want) CROSS JOIN LATERAL (
        SELECT l.account FROM (SELECT lanes.account FROM lanes WHERE lanes.want = u.want AND lanes.open ORDER BY lanes.pass, lanes.account LIMIT most + 200) l
        WHERE EXISTS (SELECT FROM sessions s WHERE s.account = l.account AND s.want = u.want AND s.state = 'queued' AND s.queue_until > now()
            AND (s.profile IS NULL OR reaches_profile(who, s.profile, s.forked_from))) LIMIT most) n;
    PERFORM FROM account_load a WHERE a.account = ANY (whose) ORDER BY a.account FOR UPDATE;
    SELECT sum(a.weight) INTO weights FROM account_load a WHERE a.account = ANY (whose);
    SELECT v.last_value INTO at FROM virtual_time v;

    -- Of one account, the first sessions of all its lanes. No account is looked at for more than its part of all.
    FOR next IN
        SELECT c.id, c.account, c.want, c.start, s.bytes FROM (
            SELECT n.id, n.account, n.want, n.place, greatest(n.pass, at) + (n.place - 1) * (stride / n.weight) AS start FROM (
                SELECT s.id, a.account, u.want, a.pass, a.weight, a.room,
                    row_number() OVER (PARTITION BY a.account ORDER BY s.priority DESC, s.created_at, s.id) AS place
                FROM (SELECT l.account, l.pass, l.weight, coalesce(l.max_active, default_active) - l.active AS room FROM account_load l WHERE l.account = ANY (whose)) a
                CROSS JOIN unnest(live) AS u(want)
                CROSS JOIN LATERAL (
                    SELECT q.id, q.priority, q.created_at FROM sessions q WHERE q.account = a.account AND q.want = u.want AND q.state = 'queued' AND q.queue_until > now()
                        AND (q.profile IS NULL OR reaches_profile(who, q.profile, q.forked_from))
                    ORDER BY q.priority DESC, q.created_at, q.id LIMIT greatest(least(a.room, most, most * a.weight / weights + 1), 0)) s) n
            WHERE n.place <= n.room ORDER BY start, n.account, n.place LIMIT most) c
        CROSS JOIN LATERAL (
            SELECT coalesce(octet_length(q.want_caps::text), 0) AS bytes FROM sessions q WHERE q.id = c.id AND q.state = 'queued' FOR UPDATE SKIP LOCKED) s
        ORDER BY c.start, c.account, c.place
    LOOP
        EXIT WHEN bytes >= 65536; -- a caller who stops reading must not stop the others
        CONTINUE WHEN next.want = ANY (spent);
        IF wanted.id IS DISTINCT FROM next.want THEN
            SELECT * INTO wanted FROM wants w WHERE w.id = next.want;
            SELECT array_agg(s.id) INTO fits FROM shapes s WHERE misfits(wanted, s) = '{}';
        END IF;
        -- A device that is locked is passed over: its host is saying something of it.
        IF wanted.host = '' THEN
            UPDATE devices d SET session = next.id, used_at = clock_timestamp() FROM (
                SELECT f.host, f.name FROM unnest(fits) AS s(id) CROSS JOIN LATERAL (
                    SELECT e.host, e.name, e.used_at FROM devices e
                    WHERE e.shape = s.id AND e.state = 'ready' AND e.session IS NULL AND NOT e.closed AND e.host = ANY (reach)
                    ORDER BY e.used_at LIMIT 1 FOR UPDATE SKIP LOCKED) f
                ORDER BY f.used_at LIMIT 1) p
                WHERE d.host = p.host AND d.name = p.name RETURNING d.host, d.name INTO dev;
        ELSE
            UPDATE devices d SET session = next.id, used_at = clock_timestamp() FROM (
                SELECT e.host, e.name FROM devices e
                WHERE e.host = wanted.host AND e.shape = ANY (fits) AND e.state = 'ready' AND e.session IS NULL AND NOT e.closed AND e.host = ANY (reach)
                ORDER BY e.used_at LIMIT 1 FOR UPDATE SKIP LOCKED) p
                WHERE d.host = p.host AND d.name = p.name RETURNING d.host, d.name INTO dev;
        END IF;
        IF NOT FOUND THEN
            spent := spent || next.want;
            CONTINUE;
        END IF;
        taken := taken || next.id;
        served := served || next.account;
        on_host := on_host || dev.host;
        on_name := on_name || dev.name;
        bytes := bytes + next.bytes;
        PERFORM setval('virtual_time', next.start);
    END LOOP;

    RETURN QUERY
        WITH moved AS (
            UPDATE sessions s SET state = 'starting', term = s.term + 1, holder = who, lease_until = now() + make_interval(secs => ttl),
                host = p.host, device = p.name, started_at = now()
                FROM unnest(taken, on_host, on_name) AS p(id, host, name) WHERE s.id = p.id RETURNING s),
        told AS (
            INSERT INTO session_events (session, seq, at, kind, term)
                SELECT (m.s).id, 1 + (SELECT max(e.seq) FROM session_events e WHERE e.session = (m.s).id), now(), 'starting', (m.s).term FROM moved m
                RETURNING session_events.session, session_events.seq)
        SELECT m.s, t.seq FROM moved m JOIN told t ON t.session = (m.s).id;
    UPDATE account_load a SET pass = greatest(a.pass, at) + p.n * (stride / a.weight)
        FROM (SELECT u.account, count(*) AS n FROM unnest(served) AS u(account) GROUP BY u.account) p WHERE a.account = p.account;
    UPDATE lanes l SET pass = a.pass, open = a.active < coalesce(a.max_active, default_active)
        FROM account_load a WHERE a.account = ANY (whose) AND l.account = a.account
        AND (l.pass <> a.pass OR l.open <> (a.active < coalesce(a.max_active, default_active)));
END
$$;
-- +goose StatementEnd
