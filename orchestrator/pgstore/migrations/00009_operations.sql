-- +goose Up
-- What operators take out of use. A cordoned host or device takes no new session; at drain_until what still runs on the host ends.
ALTER TABLE hosts
    ADD cordoned_at   timestamptz,
    ADD cordoned_by   text NOT NULL DEFAULT '',
    ADD cordon_reason text NOT NULL DEFAULT '',
    ADD drain_until   timestamptz,
    ADD CHECK (drain_until IS NULL OR cordoned_at IS NOT NULL);
CREATE INDEX hosts_drain ON hosts (drain_until) WHERE drain_until IS NOT NULL;

-- host_cordoned repeats that of the host: a claim locks the device's row, and sees there what was committed before.
ALTER TABLE devices
    ADD cordoned_at   timestamptz,
    ADD cordoned_by   text NOT NULL DEFAULT '',
    ADD cordon_reason text NOT NULL DEFAULT '',
    ADD host_cordoned boolean NOT NULL DEFAULT false,
    ADD closed        boolean GENERATED ALWAYS AS (host_cordoned OR cordoned_at IS NOT NULL) STORED;

-- The reason of the ending that a session is asked for; '' is cancelled.
ALTER TABLE sessions ADD end_as text NOT NULL DEFAULT '';

-- A link that was lost too often takes no new sessions until then, and how often that was lately.
ALTER TABLE host_links
    ADD damped_until timestamptz,
    ADD losses       integer NOT NULL DEFAULT 0;

-- What operators did. Rows are added and read, nothing else.
CREATE TABLE audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    actor   text NOT NULL,
    action  text NOT NULL,
    host    text NOT NULL,
    device  text NOT NULL DEFAULT '',
    session text NOT NULL DEFAULT '',
    reason  text NOT NULL DEFAULT '',
    detail  text NOT NULL DEFAULT ''
);
CREATE INDEX audit_host ON audit (host, id);
-- +goose StatementBegin
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END $$;
-- +goose StatementEnd
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

-- +goose Down
DROP TABLE audit;
DROP FUNCTION audit_is_append_only;
ALTER TABLE host_links DROP damped_until, DROP losses;
ALTER TABLE sessions DROP end_as;
ALTER TABLE devices DROP closed, DROP host_cordoned, DROP cordoned_at, DROP cordoned_by, DROP cordon_reason;
ALTER TABLE hosts DROP drain_until, DROP cordoned_at, DROP cordoned_by, DROP cordon_reason;
