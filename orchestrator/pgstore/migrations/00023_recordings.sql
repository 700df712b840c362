-- +goose Up
-- Lists of recordings, newest first: of all, and of one account.
CREATE INDEX recordings_newest ON recordings (started_at, id);
CREATE INDEX recordings_account ON recordings (account, started_at, id);

-- +goose Down
DROP INDEX recordings_account, recordings_newest;
