-- +goose Up
-- A copy that its account does not want any more is removing, then removed; what its uploader says of it meanwhile does not change that.
-- removal_tried_at is when somebody last set about it.
ALTER TABLE recording_copies ADD removal_tried_at timestamptz, ADD removed_at timestamptz,
    ADD CHECK ((state = 'removed') = (removed_at IS NOT NULL));
CREATE INDEX recording_copies_removing ON recording_copies (region, removal_tried_at) WHERE state = 'removing';

-- +goose Down
DROP INDEX recording_copies_removing;
ALTER TABLE recording_copies DROP removed_at, DROP removal_tried_at;
