-- +goose Up
-- What somebody wants ended, by who holds it: asked for every second, and almost always nothing.
CREATE INDEX sessions_cancelled ON sessions (holder, id) WHERE cancelled AND state IN ('starting', 'running', 'finishing');

-- +goose Down
DROP INDEX sessions_cancelled;
