-- +goose Up
-- Where an account's sessions with a profile may run: any, or eu. Beside its quota, because creates lock this row before they look.
ALTER TABLE account_load ADD profile_execution text NOT NULL DEFAULT 'any' CHECK (profile_execution IN ('any', 'eu'));

-- The countries that a want's account allows; none: any. Last, so that older rows are as they were.
ALTER TABLE wants ADD countries text[] NOT NULL DEFAULT '{}';

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION misfits(w wants, s shapes) RETURNS text[] IMMUTABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT array_remove(ARRAY[
        CASE WHEN w.kind <> '' AND s.kind <> w.kind THEN 'kind' END,
        CASE WHEN w.model <> '' AND s.model <> w.model THEN 'model' END,
        CASE WHEN w.platform <> '' AND lower(s.platform_name) <> lower(w.platform) THEN 'platform' END,
        CASE WHEN (w.least IS NOT NULL OR w.below IS NOT NULL)
              AND NOT coalesce((w.least IS NULL OR s.version >= w.least) AND (w.below IS NULL OR s.version < w.below), false) THEN 'os_version' END,
        CASE WHEN w.browser <> '' AND s.browser <> w.browser THEN 'browser' END,
        CASE WHEN w.bidi AND NOT s.bidi THEN 'bidi' END,
        CASE WHEN NOT s.labels @> w.labels THEN 'labels' END,
        CASE WHEN w.country <> '' AND s.country <> w.country THEN 'country' END,
        CASE WHEN w.countries <> '{}' AND s.country <> ALL (w.countries) THEN 'profile_execution' END], NULL)
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION misfits(w wants, s shapes) RETURNS text[] IMMUTABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT array_remove(ARRAY[
        CASE WHEN w.kind <> '' AND s.kind <> w.kind THEN 'kind' END,
        CASE WHEN w.model <> '' AND s.model <> w.model THEN 'model' END,
        CASE WHEN w.platform <> '' AND lower(s.platform_name) <> lower(w.platform) THEN 'platform' END,
        CASE WHEN (w.least IS NOT NULL OR w.below IS NOT NULL)
              AND NOT coalesce((w.least IS NULL OR s.version >= w.least) AND (w.below IS NULL OR s.version < w.below), false) THEN 'os_version' END,
        CASE WHEN w.browser <> '' AND s.browser <> w.browser THEN 'browser' END,
        CASE WHEN w.bidi AND NOT s.bidi THEN 'bidi' END,
        CASE WHEN NOT s.labels @> w.labels THEN 'labels' END,
        CASE WHEN w.country <> '' AND s.country <> w.country THEN 'country' END], NULL)
$$;
-- +goose StatementEnd
ALTER TABLE wants DROP countries;
ALTER TABLE account_load DROP profile_execution;
