-- +goose Up
-- A foreign key looks its session up for each event, which is half of what storing one takes. AppendEvents locks the sessions of a batch
-- instead, each once and as the foreign key did; and events go with their sessions by statement.
ALTER TABLE session_events DROP CONSTRAINT session_events_session_fkey;
-- +goose StatementBegin
CREATE FUNCTION delete_events_of_sessions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM session_events e USING gone WHERE e.session = gone.id;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER events_of_sessions AFTER DELETE ON sessions REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION delete_events_of_sessions();

-- +goose Down
DROP TRIGGER events_of_sessions ON sessions;
DROP FUNCTION delete_events_of_sessions();
ALTER TABLE session_events ADD CONSTRAINT session_events_session_fkey FOREIGN KEY (session) REFERENCES sessions ON DELETE CASCADE;
