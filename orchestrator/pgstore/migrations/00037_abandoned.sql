-- +goose Up
-- abandoned_at is when a copy was found to be one that nobody brings to storage; what anybody says of its recording takes it back.
ALTER TABLE recording_copies ADD abandoned_at timestamptz;
-- 00025 gave all there were the same check_at: a day is there to look at them.
UPDATE recording_copies SET check_at = now() + random() * interval '1 day' WHERE checked_at IS NULL AND state NOT IN ('removing', 'removed');

-- +goose Down
ALTER TABLE recording_copies DROP abandoned_at;
