-- The other orders of the few with another role than `user`: without these all of a role are read and sorted.
CREATE INDEX users_staff_by_email ON users (role, email_key COLLATE "C") WHERE role <> 'user';
CREATE INDEX users_staff_by_login ON users (role, (coalesce(last_login_at, '1970-01-01Z'::timestamptz)), id)
    WHERE role <> 'user';
