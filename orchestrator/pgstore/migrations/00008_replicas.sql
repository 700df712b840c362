-- +goose Up
-- The orchestrators' processes, and where the others reach each. id is what leases name it by; seen_at says which are alive.
-- volume is the id of the folder of profiles: those with the same one share it, and the spools beside it.
CREATE TABLE replicas (
    id           text PRIMARY KEY,
    orchestrator text NOT NULL,
    url          text NOT NULL DEFAULT '',
    volume       text NOT NULL DEFAULT '',
    started_at   timestamptz NOT NULL DEFAULT now(),
    seen_at      timestamptz NOT NULL DEFAULT now()
);

-- +goose Down
DROP TABLE replicas;
