-- What serves the lists of operators: every order, filter and search by an index, however many users there are.
-- A sign-in rewrites its user's row and with it every entry here that holds that row: the fewer, the better. So rare
-- values have small partial indexes of their own, and the common ones are filtered on the way along an order.
CREATE EXTENSION IF NOT EXISTS pg_trgm;

-- The orders, of those who are shown unless somebody asks for the deleted. "C" serves beginnings as well as the order.
CREATE INDEX users_by_created ON users (created_at, id) WHERE status <> 'deleted';
CREATE INDEX users_by_email ON users (email_key COLLATE "C") WHERE status <> 'deleted';
CREATE INDEX users_by_login ON users ((coalesce(last_login_at, '1970-01-01Z'::timestamptz)), id)
    WHERE status <> 'deleted';

-- The same of the suspended and the deleted, who do not sign in, and of the few with another role.
CREATE INDEX users_unusual_by_created ON users (status, created_at, id) WHERE status <> 'active';
CREATE INDEX users_unusual_by_email ON users (status, email_key COLLATE "C") WHERE status <> 'active';
CREATE INDEX users_unusual_by_login ON users (status, (coalesce(last_login_at, '1970-01-01Z'::timestamptz)), id)
    WHERE status <> 'active';
CREATE INDEX users_staff ON users (role, created_at, id) WHERE role <> 'user';

-- Parts of names. A short pending list: whoever fills it sorts it in, and no sign-in shall wait long for that.
CREATE INDEX users_names ON users USING gin (lower(first_name || ' ' || last_name) gin_trgm_ops)
    WITH (gin_pending_list_limit = 128);

DROP INDEX users_status, users_created, users_last_login, users_email_prefix;

-- An action says mostly how it ends, but not always: neither answer may have to walk along all of the other's rows.
CREATE INDEX audit_logs_outcome ON audit_logs (success, created_at DESC, position DESC);
CREATE INDEX audit_logs_action_outcome ON audit_logs (action, success, created_at DESC, position DESC);
