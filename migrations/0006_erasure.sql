-- The way out of an account: the address it had is kept for its owner for a while, and what is deleted is erased later.

-- An address that an account has left: nobody else may take it while the change can still be undone.
CREATE TABLE email_reservations (
    email_key text PRIMARY KEY,
    user_id   uuid NOT NULL,
    until     timestamptz NOT NULL
);
CREATE INDEX email_reservations_user ON email_reservations (user_id);
CREATE INDEX email_reservations_until ON email_reservations (until);

-- Asked after the row is written: it sees a reservation that came about while the address was waited for.
CREATE FUNCTION refuse_reserved_email() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM email_reservations r
               WHERE r.email_key = NEW.email_key AND r.user_id <> NEW.id AND r.until > now()) THEN
        RAISE EXCEPTION 'this address is kept for another account'
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'users_email_key_key';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER reserved_email_added AFTER INSERT ON users
    FOR EACH ROW EXECUTE FUNCTION refuse_reserved_email();
CREATE TRIGGER reserved_email_changed AFTER UPDATE OF email_key ON users
    FOR EACH ROW WHEN (OLD.email_key IS DISTINCT FROM NEW.email_key) EXECUTE FUNCTION refuse_reserved_email();

-- Erasing is done in steps, each of which may be repeated; `erasing_until` is the lease of the process that is at it.
ALTER TABLE users
    ADD COLUMN erasing_until timestamptz,
    ADD COLUMN swept_at timestamptz,
    ADD COLUMN is_swept boolean NOT NULL DEFAULT false;
CREATE INDEX users_to_erase ON users (deleted_at) WHERE status = 'deleted' AND NOT is_swept;
CREATE INDEX users_to_free ON users (deleted_at) WHERE status = 'deleted' AND strpos(email_key, '@') > 0;
CREATE INDEX users_unverified ON users (created_at) WHERE status = 'active' AND NOT email_verified;

-- What is looked for by user when one is erased.
CREATE INDEX idempotency_keys_user ON idempotency_keys (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX dead_letters_user ON dead_letters (user_id);

DO $$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON email_reservations TO %I',
        current_setting('user_service.app_role'));
END $$;
