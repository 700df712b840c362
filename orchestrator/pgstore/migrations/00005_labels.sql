-- +goose Up
-- A customer's own names for a session, and the platform it wants.
ALTER TABLE sessions ADD labels jsonb NOT NULL DEFAULT '{}', ADD want_platform text NOT NULL DEFAULT '';
CREATE INDEX sessions_labels ON sessions USING gin (labels jsonb_path_ops) WHERE labels <> '{}';

-- +goose Down
ALTER TABLE sessions DROP labels, DROP want_platform;
