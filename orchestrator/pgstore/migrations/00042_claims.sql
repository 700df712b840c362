-- +goose Up
-- Which shapes meet a want, found out once for each pair, and not with each claim for all wants that are queued.
CREATE TABLE want_shapes (
    want  bigint NOT NULL REFERENCES wants ON DELETE CASCADE,
    shape bigint NOT NULL REFERENCES shapes ON DELETE CASCADE,
    host  text   NOT NULL, -- that is wanted
    PRIMARY KEY (want, shape)
);
CREATE INDEX want_shapes_shape ON want_shapes (shape, want);
INSERT INTO want_shapes SELECT w.id, s.id, w.host FROM wants w CROSS JOIN shapes s WHERE misfits(w, s) = '{}';

-- Of a want and a shape that come at once, one sees the other: wants come beside one another, but not beside shapes. The lock is taken before the first row
-- is added, so that nobody who has it waits for somebody's row.
-- +goose StatementBegin
CREATE FUNCTION want_comes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7236838, 3);
    RETURN NULL;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION shape_comes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7236838, 3);
    RETURN NULL;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION fit_want() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO want_shapes SELECT NEW.id, s.id, NEW.host FROM shapes s WHERE misfits(NEW, s) = '{}';
    RETURN NULL;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION fit_shape() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO want_shapes SELECT w.id, NEW.id, w.host FROM wants w WHERE misfits(w, NEW) = '{}' FOR KEY SHARE OF w; -- one that is being forgotten is waited for, and left out
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER want_comes BEFORE INSERT ON wants FOR EACH STATEMENT EXECUTE FUNCTION want_comes();
CREATE TRIGGER shape_comes BEFORE INSERT ON shapes FOR EACH STATEMENT EXECUTE FUNCTION shape_comes();
CREATE TRIGGER fit_want AFTER INSERT ON wants FOR EACH ROW EXECUTE FUNCTION fit_want();
CREATE TRIGGER fit_shape AFTER INSERT ON shapes FOR EACH ROW EXECUTE FUNCTION fit_shape();

-- The virtual time is a row, so that a claim that is undone has not moved it. Only who claims moves it, one at a time.
ALTER SEQUENCE virtual_time RENAME TO virtual_time_before;
CREATE TABLE virtual_time (last_value bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO virtual_time SELECT b.last_value FROM virtual_time_before b;
DROP SEQUENCE virtual_time_before;

-- count_sessions as before, but that it looks at the lanes of those sessions that left the queue, not at all that there are, and that a session that is queued
-- again gives its account the turn back that it had taken.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION count_sessions() RETURNS trigger LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    whose   text[];
    waiting integer[]; -- by how many more are queued
    busy    integer[]; -- by how many more have devices
    created integer[];
    over    integer[]; -- how many gave a device back, and how long they had had it
    ms      bigint[];
    pieces  integer[];
    room    integer[];
    at      bigint := extract(epoch FROM now())::bigint / 5;
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(x.account), array_agg(x.queued), array_agg(x.active), array_agg(x.queued), array_agg(0), array_agg(NULL::bigint)
            INTO whose, waiting, busy, created, over, ms
            FROM (SELECT n.account, count(*) FILTER (WHERE n.state = 'queued') AS queued, count(*) FILTER (WHERE n.state <> 'queued') AS active
                FROM new_rows n WHERE n.state <> 'ended' GROUP BY n.account ORDER BY n.account) x;
        SELECT array_agg(x.piece), array_agg(x.n) INTO pieces, room
            FROM (SELECT n.piece, count(*) AS n FROM new_rows n WHERE n.state = 'queued' GROUP BY n.piece ORDER BY n.piece) x;
    ELSIF TG_OP = 'UPDATE' THEN
        SELECT array_agg(x.account), array_agg(x.queued), array_agg(x.active), array_agg(0), array_agg(x.over), array_agg(x.ms / nullif(x.over, 0))
            INTO whose, waiting, busy, created, over, ms
            FROM (SELECT r.account, sum(r.n * (r.state = 'queued')::integer) AS queued, sum(r.n * (r.state NOT IN ('queued', 'ended'))::integer) AS active,
                    sum(r.n * (r.state = 'ended' AND r.started_at IS NOT NULL)::integer) AS over, -- who is queued has not started
                    sum(r.n * extract(epoch FROM now() - r.started_at) * 1000) FILTER (WHERE r.state = 'ended') AS ms
                FROM (SELECT 1 AS n, account, state, started_at FROM new_rows UNION ALL SELECT -1, account, state, started_at FROM old_rows) r
                GROUP BY r.account ORDER BY r.account) x
            WHERE x.queued <> 0 OR x.active <> 0;
        IF whose IS NULL THEN
            RETURN NULL; -- lease renewed, running, finishing
        END IF;
        SELECT array_agg(x.piece), array_agg(x.n) INTO pieces, room
            FROM (SELECT r.piece, sum(r.n) AS n
                FROM (SELECT 1 AS n, piece, state FROM new_rows UNION ALL SELECT -1, piece, state FROM old_rows) r
                WHERE r.state = 'queued' GROUP BY r.piece HAVING sum(r.n) <> 0 ORDER BY r.piece) x;
    ELSE
        SELECT array_agg(x.account), array_agg(x.queued), array_agg(x.active), array_agg(0), array_agg(0), array_agg(NULL::bigint)
            INTO whose, waiting, busy, created, over, ms
            FROM (SELECT o.account, -count(*) FILTER (WHERE o.state = 'queued') AS queued, -count(*) FILTER (WHERE o.state <> 'queued') AS active
                FROM old_rows o WHERE o.state <> 'ended' GROUP BY o.account ORDER BY o.account) x;
        SELECT array_agg(x.piece), array_agg(x.n) INTO pieces, room
            FROM (SELECT o.piece, -count(*) AS n FROM old_rows o WHERE o.state = 'queued' GROUP BY o.piece ORDER BY o.piece) x;
    END IF;
    IF whose IS NULL THEN
        RETURN NULL;
    END IF;

    PERFORM FROM account_load a WHERE a.account = ANY (whose) ORDER BY a.account FOR UPDATE;
    UPDATE account_load a SET
        queued = a.queued + c.queued,
        active = a.active + c.active,
        pass = CASE WHEN c.queued > 0 AND c.active < 0 THEN a.pass - least(c.queued, -c.active) * (1000000 / a.weight) -- it was not served after all
            WHEN c.queued > 0 AND a.queued = 0 THEN greatest(a.pass, (SELECT v.last_value FROM virtual_time v)) ELSE a.pass END,
        recent = CASE WHEN c.created > 0 THEN
                (coalesce((recent_creates(a.recent, a.stretch, at))[1], 0) + c.created) || (recent_creates(a.recent, a.stretch, at))[2:] ELSE a.recent END,
        stretch = CASE WHEN c.created > 0 THEN greatest(at, a.stretch) ELSE a.stretch END,
        busy_ms = CASE WHEN c.over > 0 THEN (c.ms + (coalesce(a.busy_ms, c.ms) - c.ms) * power(7 / 8.0, c.over))::bigint ELSE a.busy_ms END
        FROM unnest(whose, waiting, busy, created, over, ms) AS c(account, queued, active, created, over, ms) WHERE a.account = c.account;
    IF 0 < ANY (waiting) AND TG_OP <> 'DELETE' THEN
        INSERT INTO lanes (account, want, pass)
            SELECT n.account, n.want, a.pass FROM (SELECT DISTINCT q.account, q.want FROM new_rows q WHERE q.state = 'queued') n JOIN account_load a USING (account)
            ORDER BY n.account, n.want
            ON CONFLICT (account, want) DO UPDATE SET pass = excluded.pass WHERE lanes.pass <> excluded.pass;
    END IF;
    IF 0 > ANY (waiting) THEN
        DELETE FROM lanes l USING (SELECT DISTINCT o.account, o.want FROM old_rows o WHERE o.state = 'queued') c
            WHERE l.account = c.account AND l.want = c.want
            AND (SELECT true FROM sessions s WHERE s.account = c.account AND s.want = c.want AND s.state = 'queued'
                ORDER BY s.priority DESC, s.created_at, s.id LIMIT 1) IS NULL; -- in the index's order, as for a claim
    END IF;
    IF 0 > ANY (busy) THEN
        UPDATE lanes l SET open = true, pass = a.pass FROM unnest(whose, busy) AS c(account, active) JOIN account_load a ON a.account = c.account
            WHERE c.active < 0 AND l.account = ANY (whose) AND l.account = c.account AND (NOT l.open OR l.pass > a.pass);
    END IF;
    IF pieces IS NOT NULL THEN
        PERFORM FROM queue_room r WHERE r.piece = ANY (pieces) ORDER BY r.piece FOR UPDATE;
        UPDATE queue_room r SET queued = r.queued + c.n FROM unnest(pieces, room) AS c(piece, n) WHERE r.piece = c.piece;
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

-- claim_sessions gives queued sessions to free devices of the hosts in reach, up to most of them, to whom they would go if each were claimed alone: next is
-- the account whose pass is lowest, among those that have a session for which a device is free. It is served from the later of its pass and the virtual time,
-- so that nothing is saved up while its devices are taken.
--
-- It goes in rounds. Each says whom it would serve, in order, of no account more than its part, and gives them devices until that order is no longer the one
-- it would be: for a want no device is left, or an account has had its part. The next one goes on from there, until no device is left that any session fits.
-- It waits for nobody: sessions and devices that are locked are passed over, and accounts that are for more than 10 ms. With tell, the last row has no session where that, or how much
-- was claimed, may have left something for another claim. What it stores, it stores of all at once. Whoever claims has the advisory lock, and tells nobody: who
-- called it does, once it is committed.
DROP FUNCTION claim_sessions(text, text[], double precision, integer, integer);
-- +goose StatementBegin
CREATE FUNCTION claim_sessions(who text, reach text[], ttl double precision, most integer, default_active integer, tell boolean DEFAULT false)
RETURNS TABLE (claimed sessions, seq bigint) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    stride  CONSTANT bigint := 1000000;
    rounds  integer := 16;       -- that are left: where so many end for want of a device, most of them are locked
    kinds   bigint[];            -- shapes that a device is free of, and how many
    frees   bigint[];
    live    bigint[];            -- wants that sessions are queued for and a device is free for, and how many
    fit     bigint[];
    chosen  text[];
    asked   text[];
    gone    integer := 0;        -- how many are away
    whose   text[] := '{}';      -- accounts that are locked here
    until   bigint;              -- at which an account would be next that has had its part
    goal    integer;             -- so many are taken where no device is left
    away    text[] := '{}';      -- accounts that others have locked
    tried   text[] := '{}';      -- sessions that others have locked
    spent   bigint[] := '{}';    -- wants that no device is free for any more
    weights bigint;
    last    bigint;              -- the virtual time
    spare   bigint;              -- devices that may be given still
    bytes   integer := 0;
    again   boolean := true;     -- another round may find more
    next    record;
    dev     record;
    wanted  bigint;
    fits    bigint[];            -- shapes, for wanted
    pinned  text;                -- that is wanted, '': any
    taken   text[] := '{}';      -- sessions, and for each of them
    served  text[] := '{}';      -- its account
    starts  bigint[] := '{}';    -- the virtual time
    on_host text[] := '{}';
    on_name text[] := '{}';
BEGIN
    -- As most who are woken, and do not have to wait for the others to find it out.
    IF NOT EXISTS (SELECT FROM lanes l WHERE l.open)
        OR (SELECT d.shape FROM devices d WHERE d.state = 'ready' AND d.session IS NULL AND NOT d.closed ORDER BY d.shape LIMIT 1) IS NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(7236838, 1);
    SELECT v.last_value INTO last FROM virtual_time v;

    <<filling>>
    WHILE again AND rounds > 0 AND cardinality(taken) < most LOOP
        again := false;
        rounds := rounds - 1;
        -- The first part looks at one row a shape, and then at no more devices than are asked for.
        WITH RECURSIVE free AS (
            (SELECT d.shape FROM devices d WHERE d.state = 'ready' AND d.session IS NULL AND NOT d.closed ORDER BY d.shape LIMIT 1)
            UNION ALL
            SELECT (SELECT d.shape FROM devices d WHERE d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.shape > f.shape ORDER BY d.shape LIMIT 1)
            FROM free f WHERE f.shape IS NOT NULL)
        SELECT array_agg(f.shape), array_agg(n.free), least(sum(n.free), most - cardinality(taken)) INTO kinds, frees, spare FROM free f CROSS JOIN LATERAL (
            SELECT count(*) AS free FROM (
                SELECT FROM devices d WHERE d.shape = f.shape AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed AND d.host = ANY (reach)
                ORDER BY d.used_at LIMIT most - cardinality(taken)) d) n -- in the index's order, so that nobody thinks of reading all devices
            WHERE n.free > 0;
        EXIT WHEN kinds IS NULL;
        -- From want to want that sessions are queued for; from one that none of these shapes meets to the next that one does.
        WITH RECURSIVE queued AS (
            SELECT 0::bigint AS want, 0::numeric AS free
            UNION ALL
            SELECT l.want, n.free FROM queued q CROSS JOIN LATERAL (
                SELECT l.want FROM lanes l WHERE l.open AND l.want > q.want AND l.want >= CASE WHEN q.free IS NULL THEN (
                    SELECT min(f.want) FROM unnest(kinds) AS k(shape) CROSS JOIN LATERAL (
                        SELECT x.want FROM want_shapes x WHERE x.shape = k.shape AND x.want > q.want ORDER BY x.want LIMIT 1) f) ELSE q.want END
                ORDER BY l.want LIMIT 1) l CROSS JOIN LATERAL (
                SELECT sum(CASE x.host WHEN '' THEN frees[array_position(kinds, x.shape)] ELSE (
                    SELECT count(*) FROM (SELECT FROM devices d WHERE d.host = x.host AND d.shape = x.shape AND d.state = 'ready' AND d.session IS NULL AND NOT d.closed
                        AND d.host = ANY (reach) LIMIT spare) d) END) AS free
                FROM want_shapes x WHERE x.want = l.want AND x.shape = ANY (kinds)) n)
        SELECT array_agg(q.want), array_agg(q.free::bigint) INTO live, fit FROM queued q WHERE q.free > 0 AND q.want <> ALL (spent);
        EXIT WHEN live IS NULL;

        -- The accounts that may be served. Lanes that nothing can be taken from now (their sessions' time is up, their profiles are with another) are passed
        -- over, 200 of them at most.
        SELECT array_agg(c.account) INTO chosen FROM (
            SELECT n.account FROM unnest(live) AS u(want) CROSS JOIN LATERAL (
                SELECT l.account, l.pass FROM (
                    SELECT lanes.account, lanes.pass FROM lanes WHERE lanes.want = u.want AND lanes.open AND lanes.account <> ALL (away)
                    ORDER BY lanes.pass, lanes.account LIMIT spare + cardinality(taken) + 200) l
                WHERE EXISTS (SELECT FROM sessions s WHERE s.account = l.account AND s.want = u.want AND s.state = 'queued' AND s.queue_until > now()
                    AND s.id <> ALL (taken) AND s.id <> ALL (tried)
                    AND (s.waiter IN ('', who) OR s.created_at < now() - interval '100 milliseconds')
                    AND (s.profile IS NULL OR reaches_profile(who, s.profile, s.forked_from)))
                ORDER BY l.pass, l.account LIMIT spare + cardinality(taken)) n
            GROUP BY n.account ORDER BY min(n.pass), n.account LIMIT spare + cardinality(taken)) c;
        EXIT WHEN chosen IS NULL;
        asked := chosen;
        SELECT coalesce(array_agg(a.account), '{}') INTO chosen FROM (
            SELECT l.account FROM account_load l WHERE l.account = ANY (asked) ORDER BY l.account FOR UPDATE SKIP LOCKED) a;
        IF cardinality(chosen) < cardinality(asked) THEN
            BEGIN -- who has locked one lets go of it with its statement, mostly
                PERFORM set_config('lock_timeout', '10', true);
                PERFORM FROM account_load l WHERE l.account = ANY (asked) ORDER BY l.account FOR UPDATE;
                PERFORM set_config('lock_timeout', '0', true);
                chosen := asked;
            EXCEPTION WHEN lock_not_available THEN
                away := away || asked;
            END;
        END IF;
        SELECT sum(l.weight) INTO weights FROM account_load l WHERE l.account = ANY (chosen);
        whose := whose || chosen;
        SELECT coalesce(array_agg(u.account), '{}') INTO away FROM unnest(away) AS u(account) WHERE u.account <> ALL (whose);
        again := cardinality(away) > gone;
        gone := cardinality(away);

        -- Of one account, the first sessions of all its lanes, no more of a lane than there are devices for it. Of those that have not been served yet the one
        -- with the lower pass is first, also where it is served from the virtual time.
        wanted := NULL;
        until := NULL;
        goal := cardinality(taken) + spare;
        FOR next IN
            SELECT c.id, c.account, c.want, c.turn, c.step, greatest(c.turn, last) AS start, c.place = c.part AND c.part < c.room AS ends, s.bytes FROM (
                SELECT n.id, n.account, n.want, n.step, n.room, n.part, n.place, CASE n.place WHEN 1 THEN n.pass ELSE greatest(n.pass, last) + (n.place - 1) * n.step END AS turn FROM (
                    SELECT s.id, a.account, l.want, a.pass, a.step, a.room, a.part,
                        row_number() OVER (PARTITION BY a.account ORDER BY s.priority DESC, s.created_at, s.id) AS place
                    FROM (
                        SELECT o.account, o.step, o.room, coalesce(o.served + o.step, o.pass) AS pass, least(o.room, spare * o.weight / weights + 1) AS part FROM (
                            SELECT l.account, l.weight, l.pass, stride / l.weight AS step,
                                least(coalesce(l.max_active, default_active) - l.active - cardinality(array_positions(served, l.account)), spare) AS room,
                                (SELECT max(u.start) FROM unnest(served, starts) AS u(account, start) WHERE u.account = l.account) AS served
                            FROM account_load l WHERE l.account = ANY (chosen)) o
                        WHERE o.room > 0) a
                    JOIN lanes l ON l.account = a.account AND l.want = ANY (live)
                    CROSS JOIN LATERAL (
                        SELECT q.id, q.priority, q.created_at FROM sessions q WHERE q.account = a.account AND q.want = l.want AND q.state = 'queued' AND q.queue_until > now()
                            AND q.id <> ALL (taken) AND q.id <> ALL (tried)
                            AND (q.waiter IN ('', who) OR q.created_at < now() - interval '100 milliseconds')
                            AND (q.profile IS NULL OR reaches_profile(who, q.profile, q.forked_from))
                        ORDER BY q.priority DESC, q.created_at, q.id LIMIT least(a.part, fit[array_position(live, l.want)])) s) n
                WHERE n.place <= n.part ORDER BY turn, n.account, n.place LIMIT spare) c
            LEFT JOIN LATERAL (
                SELECT coalesce(octet_length(q.want_caps::text), 0) AS bytes FROM sessions q WHERE q.id = c.id AND q.state = 'queued' FOR UPDATE SKIP LOCKED) s ON true
            ORDER BY c.turn, c.account, c.place
        LOOP
            EXIT WHEN next.turn >= until;
            EXIT filling WHEN bytes >= 65536; -- a caller who stops reading must not stop the others
            IF next.bytes IS NULL THEN
                tried := tried || next.id;
                again := true;
                CONTINUE;
            END IF;
            IF wanted IS DISTINCT FROM next.want THEN
                wanted := next.want;
                SELECT array_agg(x.shape), max(x.host) INTO fits, pinned FROM want_shapes x WHERE x.want = wanted AND x.shape = ANY (kinds);
            END IF;
            -- A device that is locked is passed over: its host is saying something of it.
            IF pinned = '' THEN
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
                    WHERE e.host = pinned AND e.shape = ANY (fits) AND e.state = 'ready' AND e.session IS NULL AND NOT e.closed AND e.host = ANY (reach)
                    ORDER BY e.used_at LIMIT 1 FOR UPDATE SKIP LOCKED) p
                    WHERE d.host = p.host AND d.name = p.name RETURNING d.host, d.name INTO dev;
            END IF;
            IF NOT FOUND THEN
                spent := spent || next.want;
                again := true;
                EXIT;
            END IF;
            taken := taken || next.id;
            served := served || next.account;
            starts := starts || next.start;
            on_host := on_host || dev.host;
            on_name := on_name || dev.name;
            bytes := bytes + next.bytes;
            last := next.start;
            IF next.ends THEN
                until := least(until, next.start + next.step);
            END IF;
        END LOOP;
        again := again OR until IS NOT NULL AND cardinality(taken) < goal;
    END LOOP;

    IF cardinality(taken) > 0 THEN
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
        UPDATE account_load a SET pass = p.start + stride / a.weight
            FROM (SELECT u.account, max(u.start) AS start FROM unnest(served, starts) AS u(account, start) GROUP BY u.account) p WHERE a.account = p.account;
        UPDATE virtual_time v SET last_value = last WHERE v.last_value < last;
    END IF;
    UPDATE lanes l SET pass = a.pass, open = a.active < coalesce(a.max_active, default_active)
        FROM account_load a WHERE l.account = ANY (whose) AND a.account = l.account -- from the lanes of those accounts, not from all that there are
        AND (l.pass <> a.pass OR l.open <> (a.active < coalesce(a.max_active, default_active)));
    IF tell AND (again OR cardinality(taken) >= most OR bytes >= 65536 OR gone > 0 OR cardinality(tried) > 0) THEN
        RETURN QUERY SELECT NULL::sessions, NULL::bigint;
    END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down
ALTER TABLE virtual_time RENAME TO virtual_time_before;
CREATE SEQUENCE virtual_time MINVALUE 0 START 0;
SELECT setval('virtual_time', b.last_value) FROM virtual_time_before b;
DROP TABLE virtual_time_before;
DROP FUNCTION claim_sessions(text, text[], double precision, integer, integer, boolean);
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
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION count_sessions() RETURNS trigger LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    whose   text[];
    waiting integer[]; -- by how many more are queued
    busy    integer[]; -- by how many more have devices
    created integer[];
    over    integer[]; -- how many gave a device back, and how long they had had it
    ms      bigint[];
    pieces  integer[];
    room    integer[];
    at      bigint := extract(epoch FROM now())::bigint / 5;
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(x.account), array_agg(x.queued), array_agg(x.active), array_agg(x.queued), array_agg(0), array_agg(NULL::bigint)
            INTO whose, waiting, busy, created, over, ms
            FROM (SELECT n.account, count(*) FILTER (WHERE n.state = 'queued') AS queued, count(*) FILTER (WHERE n.state <> 'queued') AS active
                FROM new_rows n WHERE n.state <> 'ended' GROUP BY n.account ORDER BY n.account) x;
        SELECT array_agg(x.piece), array_agg(x.n) INTO pieces, room
            FROM (SELECT n.piece, count(*) AS n FROM new_rows n WHERE n.state = 'queued' GROUP BY n.piece ORDER BY n.piece) x;
    ELSIF TG_OP = 'UPDATE' THEN
        SELECT array_agg(x.account), array_agg(x.queued), array_agg(x.active), array_agg(0), array_agg(x.over), array_agg(x.ms / nullif(x.over, 0))
            INTO whose, waiting, busy, created, over, ms
            FROM (SELECT r.account, sum(r.n * (r.state = 'queued')::integer) AS queued, sum(r.n * (r.state NOT IN ('queued', 'ended'))::integer) AS active,
                    sum(r.n * (r.state = 'ended' AND r.started_at IS NOT NULL)::integer) AS over, -- who is queued has not started
                    sum(r.n * extract(epoch FROM now() - r.started_at) * 1000) FILTER (WHERE r.state = 'ended') AS ms
                FROM (SELECT 1 AS n, account, state, started_at FROM new_rows UNION ALL SELECT -1, account, state, started_at FROM old_rows) r
                GROUP BY r.account ORDER BY r.account) x
            WHERE x.queued <> 0 OR x.active <> 0;
        IF whose IS NULL THEN
            RETURN NULL; -- lease renewed, running, finishing
        END IF;
        SELECT array_agg(x.piece), array_agg(x.n) INTO pieces, room
            FROM (SELECT r.piece, sum(r.n) AS n
                FROM (SELECT 1 AS n, piece, state FROM new_rows UNION ALL SELECT -1, piece, state FROM old_rows) r
                WHERE r.state = 'queued' GROUP BY r.piece HAVING sum(r.n) <> 0 ORDER BY r.piece) x;
    ELSE
        SELECT array_agg(x.account), array_agg(x.queued), array_agg(x.active), array_agg(0), array_agg(0), array_agg(NULL::bigint)
            INTO whose, waiting, busy, created, over, ms
            FROM (SELECT o.account, -count(*) FILTER (WHERE o.state = 'queued') AS queued, -count(*) FILTER (WHERE o.state <> 'queued') AS active
                FROM old_rows o WHERE o.state <> 'ended' GROUP BY o.account ORDER BY o.account) x;
        SELECT array_agg(x.piece), array_agg(x.n) INTO pieces, room
            FROM (SELECT o.piece, -count(*) AS n FROM old_rows o WHERE o.state = 'queued' GROUP BY o.piece ORDER BY o.piece) x;
    END IF;
    IF whose IS NULL THEN
        RETURN NULL;
    END IF;

    PERFORM FROM account_load a WHERE a.account = ANY (whose) ORDER BY a.account FOR UPDATE;
    UPDATE account_load a SET
        queued = a.queued + c.queued,
        active = a.active + c.active,
        pass = CASE WHEN c.queued > 0 AND a.queued = 0 THEN greatest(a.pass, (SELECT v.last_value FROM virtual_time v)) ELSE a.pass END,
        recent = CASE WHEN c.created > 0 THEN
                (coalesce((recent_creates(a.recent, a.stretch, at))[1], 0) + c.created) || (recent_creates(a.recent, a.stretch, at))[2:] ELSE a.recent END,
        stretch = CASE WHEN c.created > 0 THEN greatest(at, a.stretch) ELSE a.stretch END,
        busy_ms = CASE WHEN c.over > 0 THEN (c.ms + (coalesce(a.busy_ms, c.ms) - c.ms) * power(7 / 8.0, c.over))::bigint ELSE a.busy_ms END
        FROM unnest(whose, waiting, busy, created, over, ms) AS c(account, queued, active, created, over, ms) WHERE a.account = c.account;
    IF 0 < ANY (waiting) AND TG_OP <> 'DELETE' THEN
        INSERT INTO lanes (account, want, pass)
            SELECT n.account, n.want, a.pass FROM (SELECT DISTINCT q.account, q.want FROM new_rows q WHERE q.state = 'queued') n JOIN account_load a USING (account)
            ORDER BY n.account, n.want
            ON CONFLICT (account, want) DO UPDATE SET pass = excluded.pass WHERE lanes.pass <> excluded.pass;
    END IF;
    IF 0 > ANY (waiting) THEN
        DELETE FROM lanes l USING unnest(whose, waiting) AS c(account, queued)
            WHERE c.queued < 0 AND l.account = c.account
            AND (SELECT true FROM sessions s WHERE s.account = l.account AND s.want = l.want AND s.state = 'queued'
                ORDER BY s.priority DESC, s.created_at, s.id LIMIT 1) IS NULL; -- in the index's order, as for a claim
    END IF;
    IF 0 > ANY (busy) THEN
        UPDATE lanes l SET open = true FROM unnest(whose, busy) AS c(account, active) WHERE c.active < 0 AND l.account = c.account AND NOT l.open;
    END IF;
    IF pieces IS NOT NULL THEN
        PERFORM FROM queue_room r WHERE r.piece = ANY (pieces) ORDER BY r.piece FOR UPDATE;
        UPDATE queue_room r SET queued = r.queued + c.n FROM unnest(pieces, room) AS c(piece, n) WHERE r.piece = c.piece;
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
DROP TRIGGER want_comes ON wants;
DROP TRIGGER fit_want ON wants;
DROP TRIGGER shape_comes ON shapes;
DROP TRIGGER fit_shape ON shapes;
DROP FUNCTION want_comes, shape_comes, fit_want, fit_shape;
DROP TABLE want_shapes;
