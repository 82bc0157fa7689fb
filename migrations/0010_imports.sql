-- How far an import has come: a run that was cut off goes on behind the last row that it committed.
CREATE TABLE user_imports (
    file_sha256 bytea PRIMARY KEY,
    lines       bigint NOT NULL DEFAULT 0,
    imported    bigint NOT NULL DEFAULT 0,
    refused     bigint NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON user_imports TO %I', app);
END $$;
