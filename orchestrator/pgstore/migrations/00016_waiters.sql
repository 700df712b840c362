-- +goose Up
-- waiter is the orchestrator whose client waits for the session, '' when nobody has to; see "Two phases" in package orchestrator.
-- confirmed is the term under which it has said that the client is still there.
ALTER TABLE sessions
    ADD waiter    text NOT NULL DEFAULT '',
    ADD confirmed bigint NOT NULL DEFAULT 0;
CREATE INDEX sessions_waiter ON sessions (waiter) WHERE state = 'queued' AND waiter <> '';

-- What is done to an account; such an entry has no host.
ALTER TABLE audit ADD account text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE audit DROP account;
ALTER TABLE sessions DROP waiter, DROP confirmed;
