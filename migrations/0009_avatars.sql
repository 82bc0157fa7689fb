-- The picture that a user shows: id and names of its objects; the bytes lie in the object store.
ALTER TABLE user_profiles ADD COLUMN avatar jsonb;

-- Objects that no profile shows: put and not shown yet, or shown no longer. What stands here is removed when it is due.
-- No foreign key: it is needed most when its user is gone.
CREATE TABLE avatar_leftovers (
    avatar_id uuid PRIMARY KEY,
    user_id   uuid NOT NULL,
    sizes     jsonb NOT NULL,
    due_at    timestamptz NOT NULL,
    removing  boolean NOT NULL DEFAULT false
);
CREATE INDEX avatar_leftovers_due ON avatar_leftovers (due_at);
CREATE INDEX avatar_leftovers_user ON avatar_leftovers (user_id);

DO $$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON avatar_leftovers TO %I',
        current_setting('user_service.app_role'));
END $$;
