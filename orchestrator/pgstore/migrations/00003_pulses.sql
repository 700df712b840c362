-- +goose Up

-- The last pulse of a host whose agent was not connected to the orchestrator that heard it: its tunnel works.
ALTER TABLE hosts
    ADD pulsed_at    timestamptz,
    ADD pulsed_to    text NOT NULL DEFAULT '', -- the orchestrator
    ADD pulse_reason text NOT NULL DEFAULT ''; -- what the host finds wrong with the tunnel

-- +goose Down
ALTER TABLE hosts DROP pulsed_at, DROP pulsed_to, DROP pulse_reason;
