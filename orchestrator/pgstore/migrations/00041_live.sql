-- +goose Up
-- Lists of sessions in a state that is not the last do not read the history. The condition is written as nobody else writes it: a statement that looks
-- for one session that has not ended must not go through all that have not, which looks cheap for as long as there are few.
CREATE INDEX sessions_live ON sessions (created_at DESC, id DESC) WHERE (state <> 'ended') IS TRUE;

-- +goose Down
DROP INDEX sessions_live;
