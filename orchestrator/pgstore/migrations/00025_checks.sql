-- +goose Up
-- Every copy is looked at again and again, at check_at; one that is not what it should be is repairing until it was put back. damage is what
-- was wrong with it last.
ALTER TABLE recording_copies
    ADD check_at   timestamptz NOT NULL DEFAULT now() + interval '1 day',
    ADD checked_at timestamptz,
    ADD damage     text NOT NULL DEFAULT '' CHECK (damage IN ('', 'missing', 'altered')),
    ADD damaged_at timestamptz,
    ADD repairs    integer NOT NULL DEFAULT 0;
CREATE INDEX recording_copies_due ON recording_copies (region, bucket, check_at) WHERE state NOT IN ('removing', 'removed');

-- +goose Down
DROP INDEX recording_copies_due;
ALTER TABLE recording_copies DROP repairs, DROP damaged_at, DROP damage, DROP checked_at, DROP check_at;
