-- Accounts, sessions, links, events with their outbox, audit, inboxes, dead letters, idempotency.
-- The owner runs this; the application's role (setting user_service.app_role) gets only what it needs.

CREATE TABLE users (
    id                    uuid PRIMARY KEY,
    email                 text NOT NULL,
    email_key             text NOT NULL UNIQUE,
    password_hash         text NOT NULL,
    first_name            text NOT NULL,
    last_name             text NOT NULL,
    role                  text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'moderator', 'admin')),
    status                text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended', 'deleted')),
    email_verified        boolean NOT NULL DEFAULT false,
    two_factor_enabled    boolean NOT NULL DEFAULT false,
    failed_login_attempts integer NOT NULL DEFAULT 0,
    account_locked        boolean NOT NULL DEFAULT false,
    lockout_until         timestamptz,
    last_login_at         timestamptz,
    last_password_change  timestamptz NOT NULL,
    revision              integer NOT NULL DEFAULT 1,
    version               integer NOT NULL DEFAULT 0,
    created_at            timestamptz NOT NULL,
    updated_at            timestamptz NOT NULL
);
CREATE INDEX users_status ON users (status);
CREATE INDEX users_created ON users (created_at, id);
CREATE INDEX users_last_login ON users (last_login_at, id);
CREATE INDEX users_email_prefix ON users (email_key text_pattern_ops);

CREATE TABLE user_profiles (
    user_id             uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    display_name        varchar(100),
    bio                 text,
    avatar_url          varchar(500),
    website_url         varchar(500),
    location            varchar(100),
    timezone            text NOT NULL DEFAULT 'UTC',
    language            text,            -- null until its owner has chosen; shown as 'en'
    theme               text NOT NULL DEFAULT 'light',
    notifications_email boolean NOT NULL DEFAULT true,
    notifications_push  boolean NOT NULL DEFAULT true,
    notifications_sms   boolean NOT NULL DEFAULT false,
    social_links        jsonb NOT NULL DEFAULT '[]',
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL
);

-- The key that a user's personal data in events and audit is encrypted under, itself wrapped by a server key.
-- No foreign key: erasing a user destroys this row alone.
CREATE TABLE user_keys (
    user_id    uuid PRIMARY KEY,
    wrapped    text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE user_sessions (
    id                 uuid PRIMARY KEY,
    user_id            uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    refresh_token_hash bytea NOT NULL,   -- the newest of its family
    device_info        jsonb NOT NULL DEFAULT '{}',
    ip_address         inet,
    user_agent         text,
    location           jsonb,
    remember_me        boolean NOT NULL DEFAULT false,
    amr                text[] NOT NULL,
    auth_time          timestamptz NOT NULL,
    expires_at         timestamptz NOT NULL,
    created_at         timestamptz NOT NULL,
    last_active_at     timestamptz NOT NULL,
    ended_at           timestamptz,
    end_reason         text
);
CREATE INDEX user_sessions_user ON user_sessions (user_id);
CREATE INDEX user_sessions_expiry ON user_sessions (expires_at);

CREATE TABLE refresh_tokens (
    hash             bytea PRIMARY KEY,
    session_id       uuid NOT NULL REFERENCES user_sessions ON DELETE CASCADE,
    expires_at       timestamptz NOT NULL,
    used_at          timestamptz,
    used_by          text,               -- fingerprint of the device that spent it
    successor_hash   bytea,
    successor_sealed text                -- under a key derived from this very token, which is not stored
);
CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id);
CREATE INDEX refresh_tokens_sealed ON refresh_tokens (used_at) WHERE successor_sealed IS NOT NULL;

CREATE TABLE device_tokens (
    hash       bytea PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX device_tokens_user ON device_tokens (user_id, created_at);
CREATE INDEX device_tokens_expiry ON device_tokens (expires_at);

-- A mail link: made with the event that asks for the mail; its random tokens are made just before mail is sent.
CREATE TABLE links (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    purpose    text NOT NULL,
    address    text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX links_user ON links (user_id, purpose, created_at);
CREATE INDEX links_expiry ON links (expires_at);

CREATE TABLE link_tokens (
    hash       bytea PRIMARY KEY,
    link_id    uuid NOT NULL REFERENCES links ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX link_tokens_link ON link_tokens (link_id);

-- The event store. Nothing of it ever changes; personal fields are ciphertext under the user's key.
CREATE TABLE events (
    position     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id           uuid NOT NULL UNIQUE,
    aggregate_id uuid NOT NULL,
    version      integer NOT NULL CHECK (version > 0),
    type         text NOT NULL,
    occurred_at  timestamptz NOT NULL,
    data         jsonb NOT NULL,
    personal     text,
    metadata     jsonb NOT NULL,
    traceparent  text,
    UNIQUE (aggregate_id, version)
);

-- What is still to be announced: a narrow row for each event, deleted after the broker's acknowledgement.
CREATE TABLE outbox (
    position   bigint PRIMARY KEY,
    user_id    uuid NOT NULL,
    version    integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX outbox_user ON outbox (user_id, version);

-- The unit a relay locks: the user's last announced version, and where it stands on the stream.
CREATE TABLE relay_heads (
    user_id         uuid PRIMARY KEY,
    version         integer NOT NULL DEFAULT 0,
    stream_sequence bigint NOT NULL DEFAULT 0
);

CREATE TABLE audit_logs (
    id          uuid PRIMARY KEY,
    position    bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    event_id    uuid UNIQUE,
    user_id     uuid,
    actor_id    uuid,
    action      text NOT NULL,
    resource    text NOT NULL,
    resource_id text,
    details     jsonb NOT NULL DEFAULT '{}',
    personal    text,                    -- the personal part of details, encrypted
    ip_address  text,                    -- encrypted
    user_agent  text,                    -- encrypted
    success     boolean NOT NULL,
    request_id  text,
    created_at  timestamptz NOT NULL
);
CREATE INDEX audit_logs_user ON audit_logs (user_id, created_at DESC, position DESC);
CREATE INDEX audit_logs_action ON audit_logs (action, created_at DESC, position DESC);
CREATE INDEX audit_logs_created ON audit_logs (created_at DESC, position DESC);
CREATE INDEX audit_logs_user_action ON audit_logs (user_id, action, created_at DESC);

-- What a group has done with an event; kept as long as the event, so that no replay repeats an effect.
CREATE TABLE inbox (
    group_name text NOT NULL,
    event_id   uuid NOT NULL,
    done_at    timestamptz NOT NULL DEFAULT now(),
    outcome    text NOT NULL,
    PRIMARY KEY (group_name, event_id)
);

CREATE TABLE delivery_attempts (
    group_name text NOT NULL,
    event_id   uuid NOT NULL,
    attempt    integer NOT NULL,
    error      text NOT NULL,
    message    text NOT NULL,
    trace      text NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (group_name, event_id, attempt)
);

CREATE TABLE dead_letters (
    id              uuid PRIMARY KEY,
    group_name      text NOT NULL,
    event_id        uuid NOT NULL,
    n               integer NOT NULL,    -- counts this event's letters in this group
    user_id         uuid,
    event_type      text NOT NULL,
    reason          text NOT NULL,
    error           text NOT NULL,
    message         text NOT NULL,
    subject         text NOT NULL,
    body            bytea NOT NULL,
    headers         jsonb NOT NULL,
    attempts        jsonb NOT NULL,
    deliveries      integer NOT NULL,
    stream_sequence bigint NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    announced_at    timestamptz,
    UNIQUE (group_name, event_id, n),
    -- One delivery makes one letter, however often the server hands it out again.
    UNIQUE (group_name, event_id, stream_sequence)
);
CREATE INDEX dead_letters_unannounced ON dead_letters (created_at) WHERE announced_at IS NULL;
CREATE INDEX dead_letters_created ON dead_letters (created_at DESC);

CREATE TABLE idempotency_keys (
    key_mac       bytea PRIMARY KEY,
    body_mac      bytea NOT NULL,
    user_id       uuid,
    claimed_by    uuid NOT NULL,
    claimed_until timestamptz NOT NULL,
    reply_sealed  text,                  -- under a key derived from the caller's raw key, which is not stored
    secret_until  timestamptz,           -- a reply that holds secrets is given again until then
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_logs FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON audit_logs FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', app);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON users, user_profiles, user_keys, user_sessions,
        refresh_tokens, device_tokens, links, link_tokens, outbox, relay_heads, inbox, delivery_attempts,
        dead_letters, idempotency_keys TO %I', app);
    EXECUTE format('GRANT SELECT, INSERT ON events, audit_logs TO %I', app);
    EXECUTE format('GRANT SELECT ON schema_migrations TO %I', app);
END $$;
