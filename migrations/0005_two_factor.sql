-- The second factor of a user: a TOTP secret, sealed; pending until its first code has been shown. Wrong codes are
-- counted here over all sessions, and forgotten only by a right one.
CREATE TABLE second_factors (
    user_id       uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    id            uuid NOT NULL,                -- of this enrolment
    secret        text NOT NULL,                -- sealed: v1.<kid>.…
    created_at    timestamptz NOT NULL,
    enabled_at    timestamptz,                  -- null while pending
    last_step     bigint NOT NULL DEFAULT -1,   -- of the last code that was accepted: none is accepted twice
    codes_salt    bytea NOT NULL DEFAULT '',
    codes_cost    integer[] NOT NULL DEFAULT '{}',  -- argon2id: KiB, passes, lanes
    codes         bytea[] NOT NULL DEFAULT '{}',    -- hashes of the backup codes that are left
    codes_made_at timestamptz,
    wrong_codes   integer NOT NULL DEFAULT 0,
    last_wrong_at timestamptz
);
-- For the job that seals anew what another key than the current one has sealed.
CREATE INDEX second_factors_key ON second_factors (split_part(secret, '.', 2));

-- The right password of an account with a second factor was shown: what is left is a code.
CREATE TABLE login_challenges (
    hash          bytea PRIMARY KEY,
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    password_mark bytea NOT NULL,   -- SHA-256 of the password's hash: another password ends the challenge
    remember_me   boolean NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    wrong_codes   integer NOT NULL DEFAULT 0,
    spent_at      timestamptz
);
CREATE INDEX login_challenges_user ON login_challenges (user_id, created_at);
CREATE INDEX login_challenges_expiry ON login_challenges (expires_at);

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON second_factors, login_challenges TO %I', app);
END $$;
