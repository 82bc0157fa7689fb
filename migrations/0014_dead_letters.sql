-- What a message says without what differs from one delivery to the next: ids, addresses, quoted text, long numbers and
-- fractions. Three digits and dotted codes stay: 450 and 550, 4.2.2 and 5.1.1 are different causes.
CREATE FUNCTION letter_shape(message text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
    regexp_replace(regexp_replace(regexp_replace(regexp_replace(message,
        '[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}', '*', 'g'),
        '[^[:space:]<>"'']+@[^[:space:]<>"'']+', '*', 'g'),
        '"[^"]*"|''[^'']*''|\m0[xX][0-9a-fA-F]+\M|\m[0-9a-fA-F]{12,}\M', '*', 'g'),
        '\m[0-9]{4,}\M|(?<![0-9.])[0-9]+\.[0-9]+(?!\.?[0-9])', '*', 'g');

-- `dead` waits for an operator, `held` behind another of its user; the others are closed.
ALTER TABLE dead_letters
    ADD COLUMN state text NOT NULL DEFAULT 'dead'
        CHECK (state IN ('dead', 'held', 'replayed', 'failed_again', 'discarded')),
    ADD COLUMN state_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN version integer,                                          -- of the event, where it is one of ours
    ADD COLUMN shape text NOT NULL GENERATED ALWAYS AS (letter_shape(message)) STORED,
    ADD COLUMN cause text NOT NULL GENERATED ALWAYS AS (left(md5(
        group_name || chr(10) || event_type || chr(10) || reason || chr(10) || error || chr(10) || letter_shape(message)
    ), 12)) STORED;
UPDATE dead_letters d SET version = (SELECT version FROM events e WHERE e.id = d.event_id);

DROP INDEX dead_letters_created, dead_letters_user;
CREATE INDEX dead_letters_state ON dead_letters (state, created_at, id);
CREATE INDEX dead_letters_cause ON dead_letters (state, cause, created_at, id) INCLUDE (user_id);
CREATE INDEX dead_letters_group ON dead_letters (state, group_name, created_at, id);
CREATE INDEX dead_letters_type ON dead_letters (state, event_type, created_at, id);
CREATE INDEX dead_letters_reason ON dead_letters (state, reason, created_at, id);
CREATE INDEX dead_letters_user ON dead_letters (user_id, created_at, id);

-- A replay: letters that are fixed when it begins, handed to their group again, and what has become of each.
CREATE TABLE replay_jobs (
    id           uuid PRIMARY KEY,
    created_by   uuid NOT NULL,
    asked        jsonb NOT NULL,              -- ids or filters, as they were asked
    rate         real NOT NULL,               -- letters a second
    careful      boolean NOT NULL,            -- first one, then ten, then the rest, each if the one before went well
    state        text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'stopped', 'cancelled', 'done')),
    why          text,                        -- it stopped
    total        integer NOT NULL DEFAULT 0,
    done         integer NOT NULL DEFAULT 0,
    failed_again integer NOT NULL DEFAULT 0,
    already_handled integer NOT NULL DEFAULT 0,
    discarded    integer NOT NULL DEFAULT 0,
    settled_before integer NOT NULL DEFAULT 0, -- when it was begun or resumed: it goes carefully from there
    failed_before  integer NOT NULL DEFAULT 0,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    created_at   timestamptz NOT NULL DEFAULT now(),
    ended_at     timestamptz
);
CREATE INDEX replay_jobs_running ON replay_jobs (leased_until) WHERE state = 'running';
CREATE INDEX replay_jobs_created ON replay_jobs (created_at DESC, id);
CREATE TABLE replay_items (
    job_id     uuid NOT NULL REFERENCES replay_jobs ON DELETE CASCADE,
    place      integer NOT NULL,
    letter_id  uuid NOT NULL REFERENCES dead_letters ON DELETE CASCADE,
    group_name text NOT NULL,
    event_id   uuid NOT NULL,
    user_id    uuid,
    sent_at    timestamptz,
    outcome    text CHECK (outcome IN ('done', 'failed_again', 'already_handled', 'discarded')),
    ended_at   timestamptz,
    PRIMARY KEY (job_id, place)
);
CREATE INDEX replay_items_unsent ON replay_items (job_id, place) WHERE outcome IS NULL AND sent_at IS NULL;
CREATE INDEX replay_items_sent ON replay_items (job_id, place) WHERE outcome IS NULL AND sent_at IS NOT NULL;
CREATE INDEX replay_items_turn ON replay_items (job_id, user_id, place) WHERE outcome IS NULL;
CREATE INDEX replay_items_letter ON replay_items (letter_id);
CREATE INDEX replay_items_outcome ON replay_items (job_id, outcome, place);

-- A timeline begins at a request's id, too.
CREATE INDEX events_request ON events ((metadata ->> 'requestId'));
CREATE INDEX audit_logs_request ON audit_logs (request_id) WHERE event_id IS NULL;

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON replay_jobs, replay_items TO %I', app);
END $$;
