-- +goose Up
-- count_sessions of 00018 joined the rows before a statement to those after it. How many there will be nobody knows when that is planned: a plan made for
-- one session is kept, and joins a thousand that end together one by one, a million times. Now those after are added, those before taken off.
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

-- +goose Down
-- It counts the same as the one before.
SELECT 1;
