-- Lists of users come from a table of their own: every sign-in writes its user's row in `users`, and with it an entry
-- in each index there; trigrams of names, addresses and roles change hardly ever.
DROP INDEX users_by_email, users_unusual_by_created, users_unusual_by_email, users_staff, users_staff_by_email,
    users_names;

-- What users are listed and found by, beside `users`: a sign-in writes that row, and must not write all these indexes.
CREATE TABLE user_directory (
    id         uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    email_key  text COLLATE "C" NOT NULL,
    name_key   text NOT NULL,         -- first and last name, by the function of that name
    role       text NOT NULL,
    status     text NOT NULL,
    created_at timestamptz NOT NULL
);

-- Small letters, and what is not ASCII spelled out: where the database's locale is "C", trigrams know no other letters.
CREATE FUNCTION name_key(name text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    CASE WHEN octet_length(name) = char_length(name) THEN lower(name) ELSE (
        SELECT string_agg(CASE WHEN ascii(letter) < 128 THEN letter ELSE 'u' || to_hex(ascii(letter)) || 'z' END, ''
            ORDER BY place)
        FROM unnest(string_to_array(lower(name), NULL)) WITH ORDINALITY AS spelled (letter, place)) END;

CREATE FUNCTION keep_user_directory() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO user_directory (id, email_key, name_key, role, status, created_at)
    VALUES (NEW.id, NEW.email_key, name_key(NEW.first_name || ' ' || NEW.last_name), NEW.role, NEW.status, NEW.created_at)
    ON CONFLICT (id) DO UPDATE SET email_key = EXCLUDED.email_key, name_key = EXCLUDED.name_key,
        role = EXCLUDED.role, status = EXCLUDED.status, created_at = EXCLUDED.created_at;
    RETURN NULL;
END $$;
CREATE TRIGGER listed AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION keep_user_directory();
CREATE TRIGGER listed_anew AFTER UPDATE OF email_key, first_name, last_name, role, status, created_at ON users
    FOR EACH ROW
    WHEN ((OLD.email_key, OLD.first_name, OLD.last_name, OLD.role, OLD.status, OLD.created_at)
        IS DISTINCT FROM (NEW.email_key, NEW.first_name, NEW.last_name, NEW.role, NEW.status, NEW.created_at))
    EXECUTE FUNCTION keep_user_directory();
INSERT INTO user_directory (id, email_key, name_key, role, status, created_at)
SELECT id, email_key, name_key(first_name || ' ' || last_name), role, status, created_at FROM users;

CREATE INDEX user_directory_created ON user_directory (created_at, id);
CREATE INDEX user_directory_email ON user_directory (email_key);
CREATE INDEX user_directory_name ON user_directory USING gin (name_key gin_trgm_ops)
    WITH (gin_pending_list_limit = 256);
-- Nearly all users are active, and hardly one is more than a user: the rest is found by small indexes of its own.
CREATE INDEX user_directory_status_created ON user_directory (status, created_at, id) WHERE status <> 'active';
CREATE INDEX user_directory_status_email ON user_directory (status, email_key) WHERE status <> 'active';
CREATE INDEX user_directory_role ON user_directory (role, created_at, id) WHERE role <> 'user';
ALTER TABLE user_directory ALTER name_key SET STATISTICS 1000, ALTER email_key SET STATISTICS 1000;

-- Most actions end in one way alone: who guesses otherwise takes the wrong index.
CREATE STATISTICS audit_logs_outcomes (mcv) ON action, success FROM audit_logs;

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON user_directory TO %I', app);
END $$;
