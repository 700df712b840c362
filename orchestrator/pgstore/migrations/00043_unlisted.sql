-- +goose Up
-- A device that its host does not list any more has no shape, so that nothing is matched to it, and goes once no session holds it.
-- +goose StatementBegin
CREATE FUNCTION forget_device() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM devices WHERE host = NEW.host AND name = NEW.name;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER devices_unlisted AFTER UPDATE OF session ON devices FOR EACH ROW WHEN (NEW.session IS NULL AND NEW.shape IS NULL) EXECUTE FUNCTION forget_device();

-- +goose Down
DROP TRIGGER devices_unlisted ON devices;
DROP FUNCTION forget_device;
