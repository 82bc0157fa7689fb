-- Seals over the audit log: each over the rows from one position to another, and over the seal before it. Signed, and
-- published on the bus besides: what stands here can be rewritten by the owner.
CREATE TABLE audit_seals (
    number        bigint PRIMARY KEY,
    from_position bigint NOT NULL,
    to_position   bigint NOT NULL,
    row_count     integer NOT NULL,
    entries       bytea NOT NULL,        -- position (8 bytes) and SHA-256 of each row, to tell which is another
    content       bytea NOT NULL,        -- SHA-256 of the entries
    previous      bytea NOT NULL,        -- hash of the seal before
    sealed_us     bigint NOT NULL,       -- microseconds since the epoch
    hash          bytea NOT NULL,        -- SHA-256 of all that stands above but the entries
    signature     text NOT NULL          -- Ed25519 over the hash: v1.<kid>.…
);
ALTER TABLE audit_seals ALTER COLUMN entries SET STORAGE EXTERNAL; -- hashes cannot be compressed
CREATE INDEX audit_seals_position ON audit_seals (to_position);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_seals FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON audit_seals FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT ON audit_seals TO %I', app);
    EXECUTE format('GRANT SELECT ON SEQUENCE audit_logs_position_seq TO %I', app);
END $$;
