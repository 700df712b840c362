-- +goose Up
-- The browserName that a device is asked for with, and whether its driver offers WebDriver BiDi.
ALTER TABLE devices
    ADD browser text NOT NULL DEFAULT 'safari',
    ADD bidi    boolean NOT NULL DEFAULT false;

-- What a session was matched to when it was queued; one queued before this fits any device.
ALTER TABLE sessions
    ADD want_browser text NOT NULL DEFAULT '',
    ADD want_bidi    boolean NOT NULL DEFAULT false;
