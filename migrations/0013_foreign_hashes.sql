-- What a check of a hash from elsewhere takes, by its kind and cost, for as long as some user has one: a refused sign-in
-- waits for the dearest, so that its time does not tell whose hash was checked.
CREATE TABLE foreign_hashes (
    form      text PRIMARY KEY,     -- how the text of such a hash begins, up to its salt
    took_ms   real NOT NULL,
    looked_at timestamptz NOT NULL DEFAULT now()
);

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON foreign_hashes TO %I', app);
END $$;
