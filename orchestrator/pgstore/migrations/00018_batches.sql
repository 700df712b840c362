-- +goose Up
-- Sessions are claimed, and counted, many with one statement: what a statement on sessions costs before it looks at its first row (eight indices,
-- six checks, the conditions of triggers) is more than a row of it.

DROP TRIGGER sessions_inserted ON sessions;
DROP TRIGGER sessions_moved ON sessions;
DROP TRIGGER sessions_deleted ON sessions;
DROP TRIGGER queue_inserted ON sessions;
DROP TRIGGER queue_moved ON sessions;
DROP TRIGGER queue_deleted ON sessions;
DROP FUNCTION count_session, count_queue;

-- count_sessions keeps account_load, lanes and queue_room: whatever statement changes sessions' states, the counts follow. Everybody locks
-- sessions, then accounts in their order, then pieces of the queue's room in theirs.
-- +goose StatementBegin
CREATE FUNCTION count_sessions() RETURNS trigger LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
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
        SELECT array_agg(x.account), array_agg(x.queued), array_agg(x.active), array_agg(0), array_agg(x.over), array_agg(x.ms)
            INTO whose, waiting, busy, created, over, ms
            FROM (SELECT n.account, sum((n.state = 'queued')::integer - (o.state = 'queued')::integer) AS queued,
                    sum((n.state NOT IN ('queued', 'ended'))::integer - (o.state NOT IN ('queued', 'ended'))::integer) AS active,
                    count(n.started_at) FILTER (WHERE n.state = 'ended' AND o.state <> 'queued') AS over,
                    avg(extract(epoch FROM now() - n.started_at) * 1000) FILTER (WHERE n.state = 'ended' AND o.state <> 'queued') AS ms
                FROM old_rows o JOIN new_rows n ON n.id = o.id
                WHERE o.state <> n.state AND (o.state IN ('queued', 'ended') OR n.state IN ('queued', 'ended'))
                GROUP BY n.account ORDER BY n.account) x;
        IF whose IS NULL THEN
            RETURN NULL; -- lease renewed, running, finishing
        END IF;
        SELECT array_agg(x.piece), array_agg(x.n) INTO pieces, room
            FROM (SELECT n.piece, sum((n.state = 'queued')::integer - (o.state = 'queued')::integer) AS n
                FROM old_rows o JOIN new_rows n ON n.id = o.id
                WHERE (o.state = 'queued') <> (n.state = 'queued') GROUP BY n.piece ORDER BY n.piece) x;
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
CREATE TRIGGER sessions_inserted AFTER INSERT ON sessions REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_sessions();
CREATE TRIGGER sessions_moved AFTER UPDATE ON sessions REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_sessions();
CREATE TRIGGER sessions_deleted AFTER DELETE ON sessions REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION count_sessions();

-- claim_sessions gives queued sessions to free devices of the hosts in reach, up to most of them, as fair as if each had been
-- claimed alone: next is the account whose pass is lowest, among those that have a session for which a device is free. It
-- is served from the later of its pass and the virtual time, so that nothing is saved up while its devices are taken.
--
-- It says whom it would serve, in order, and gives them devices for as long as there are any that fit; what it stores, it stores
-- of all at once. Whoever claims has the advisory lock, and tells nobody: who called it does, once it is committed.
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

-- +goose Down
DROP TRIGGER sessions_inserted ON sessions;
DROP TRIGGER sessions_moved ON sessions;
DROP TRIGGER sessions_deleted ON sessions;
DROP FUNCTION count_sessions;
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
