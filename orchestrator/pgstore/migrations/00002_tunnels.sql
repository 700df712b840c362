-- +goose Up
-- The orchestrators' ends of the tunnels. Each writes its own row only; seen_at says which are alive.
CREATE TABLE gateways (
    orchestrator    text PRIMARY KEY,
    number          integer NOT NULL UNIQUE CHECK (number BETWEEN 1 AND 255),
    endpoint        text NOT NULL,
    fleet_port      integer NOT NULL CHECK (fleet_port BETWEEN 1 AND 65535),
    public_key      text NOT NULL UNIQUE,
    next_public_key text UNIQUE,
    next_at         timestamptz, -- when next_public_key takes the place of public_key; null: not before the hosts know it
    rotate          boolean NOT NULL DEFAULT false,
    rotate_in       interval NOT NULL DEFAULT '7 days', -- from when the next key is published to when it is used
    rotated_at      timestamptz NOT NULL DEFAULT now(),
    seen_at         timestamptz NOT NULL DEFAULT now()
);

-- offer is the SHA-256 of the public key and the encapsulation key that redeemed the token, ciphertext its answer.
-- next_* is the key that follows, until its first handshake. A revoked host has no keys and no number.
ALTER TABLE hosts
    ALTER number DROP NOT NULL,
    ADD offer           bytea,
    ADD ciphertext      bytea,
    ADD next_public_key text UNIQUE,
    ADD next_psk        bytea,
    ADD next_offer      bytea,
    ADD next_ciphertext bytea,
    ADD rotate          boolean NOT NULL DEFAULT false,
    ADD rotated_at      timestamptz,
    ADD revoked_at      timestamptz,
    ADD CHECK ((revoked_at IS NULL) = (number IS NOT NULL)),
    ADD CHECK (revoked_at IS NULL OR public_key IS NULL AND join_public_key IS NULL AND next_public_key IS NULL);

-- Numbers of revoked hosts: not given again before they have rested, so that nothing that still knows the former host
-- takes the next one for it.
CREATE TABLE resting_numbers (
    number integer PRIMARY KEY,
    host   text NOT NULL,
    until  timestamptz NOT NULL
);

-- Invite gives numbers in one transaction, so that none is lost: a sequence keeps what a failed one took. The last that the
-- sequence gave may be of a host that was removed.
INSERT INTO resting_numbers (number, host, until)
    SELECT last_value, 'removed', now() + interval '7 days' FROM host_numbers
    WHERE is_called AND last_value NOT IN (SELECT number FROM hosts);
DROP SEQUENCE host_numbers;

-- What an orchestrator knows of its link to a host, written every few seconds. A row that nobody refreshes is of an
-- orchestrator that is gone.
ALTER TABLE host_links
    ADD heard_at     timestamptz NOT NULL DEFAULT now(), -- last heartbeat
    ADD written_at   timestamptz NOT NULL DEFAULT now(),
    ADD round_trip   bigint NOT NULL DEFAULT 0,          -- microseconds, of a heartbeat
    ADD gateway      text NOT NULL DEFAULT '',           -- backend of this end
    ADD backend      text NOT NULL DEFAULT '',           -- of the host's end
    ADD mtu          integer NOT NULL DEFAULT 0,
    ADD handshake_at timestamptz,
    ADD rx_bytes     bigint NOT NULL DEFAULT 0,
    ADD tx_bytes     bigint NOT NULL DEFAULT 0,
    ADD repairs_handshake integer NOT NULL DEFAULT 0,    -- wire.Repairs
    ADD repairs_socket    integer NOT NULL DEFAULT 0,
    ADD repairs_resolve   integer NOT NULL DEFAULT 0,
    ADD repairs_device    integer NOT NULL DEFAULT 0,
    ADD repaired_at  timestamptz,
    ADD lost_at      timestamptz,                        -- when the control socket broke; null: it has not
    ADD goodbye      boolean NOT NULL DEFAULT false,     -- ... because the agent was stopped
    ADD reason       text NOT NULL DEFAULT '';           -- why it was lost; or what the host finds wrong with it
ALTER TABLE hosts DROP reason; -- it has one for each link
CREATE INDEX hosts_revoked ON hosts (name) WHERE revoked_at IS NOT NULL;

-- That a device is offline follows from the links of its host; its state is what its host last said.
UPDATE devices SET state = 'busy', reason = '' WHERE state = 'offline';
ALTER TABLE devices DROP CONSTRAINT devices_state_check, ADD CHECK (state IN ('ready', 'busy', 'quarantined'));
