-- +goose Up
-- Lists of sessions in a state that is not the last do not read the history.
CREATE INDEX sessions_live ON sessions (created_at DESC, id DESC) WHERE state <> 'ended';

-- +goose Down
DROP INDEX sessions_live;
