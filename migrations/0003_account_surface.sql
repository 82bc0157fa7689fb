-- What the whole account surface needs of the rows that are there already; its new tables come with their features.
ALTER TABLE users
    ADD COLUMN password_reset_required boolean NOT NULL DEFAULT false,
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN erased_at timestamptz;

-- A link may speak of one session ("this was not me"), and one mail may carry two tokens of different purpose.
ALTER TABLE links ADD COLUMN session_id uuid;

-- The session that a device was first known by: who disowns the session disowns its device.
ALTER TABLE device_tokens ADD COLUMN session_id uuid;
CREATE INDEX device_tokens_session ON device_tokens (session_id) WHERE session_id IS NOT NULL;
