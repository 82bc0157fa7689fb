-- What each stream was when it was last looked at, so that one that was made anew or put back to an older copy is told.
CREATE TABLE stream_marks (
    stream        text PRIMARY KEY,
    created_at    timestamptz NOT NULL,        -- by the server's own word: a stream that was made anew has another
    last_sequence bigint NOT NULL,
    message_id    text,                        -- of what stood there; an older copy that has grown since has another
    compared_to   bigint NOT NULL DEFAULT 0,   -- events up to this position were looked for on the stream, by samples
    looked_at     timestamptz NOT NULL DEFAULT now(),
    leased_until  timestamptz NOT NULL DEFAULT '-infinity',
    -- The latest loss, and how far it is made good: what was lost is put back user by user, or letter by letter.
    lost_at       timestamptz,
    lost_what     text CHECK (lost_what IN ('made anew', 'older than it was', 'lacks what was announced')),
    refilled_to   uuid,
    put_back      bigint NOT NULL DEFAULT 0,
    refilled_at   timestamptz
);

DO $$
DECLARE app text := current_setting('user_service.app_role');
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON stream_marks TO %I', app);
END $$;
