-- +goose Up
-- The old and the new rows of a statement are two lists without an index: they are joined by hash, also where the connection has statements go by indices.
ALTER FUNCTION count_sessions() SET enable_hashjoin = on;

-- +goose Down
ALTER FUNCTION count_sessions() RESET enable_hashjoin;
