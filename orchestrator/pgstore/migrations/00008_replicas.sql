-- +goose Up
-- The orchestrators' processes, and where the others reach each. id is what leases name it by; seen_at says which are alive.
-- volume is the state folder's own mark: those with the same one share profiles and spools.
CREATE TABLE replicas (
    id           text PRIMARY KEY,
    orchestrator text NOT NULL,
    url          text NOT NULL DEFAULT '',
    volume       text NOT NULL DEFAULT '',
    started_at   timestamptz NOT NULL DEFAULT now(),
    seen_at      timestamptz NOT NULL DEFAULT now()
);

-- The volume that has a profile's file; '': it has none yet, or every orchestrator has it.
ALTER TABLE profiles ADD volume text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE profiles DROP volume;
DROP TABLE replicas;
