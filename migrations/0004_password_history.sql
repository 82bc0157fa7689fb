-- The passwords that a user had before: hashes alone, and only as many as the policy looks at.
CREATE TABLE password_history (
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    replaced_at   timestamptz NOT NULL,
    password_hash text NOT NULL,
    PRIMARY KEY (user_id, replaced_at)
);

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON password_history TO %I', app);
END $$;
