-- What a sign-in or a request for mail writes for an address that nobody has: a row is locked and counted as that of a
-- user would be, so that the time tells nothing. A fixed number of rows, picked by the address; which address it was
-- stands nowhere.
CREATE TABLE strangers (
    slot       smallint PRIMARY KEY,
    requests   bigint NOT NULL DEFAULT 0,
    updated_at timestamptz
) WITH (fillfactor = 50);
INSERT INTO strangers (slot) SELECT generate_series(0, 1023);

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, UPDATE ON strangers TO %I', app);
END $$;
