-- Who discarded or restored a letter, and why: what an operator reads on the letter itself.
ALTER TABLE dead_letters ADD COLUMN state_by uuid, ADD COLUMN state_why text;

-- Where a replayed letter stands on its stream: it is sent again only when it is lost there.
ALTER TABLE replay_items ADD COLUMN sent_sequence bigint;

-- Closed letters, ended replays and old attempts are cleared away in the end.
CREATE INDEX dead_letters_closed ON dead_letters (state_at) WHERE state IN ('replayed', 'failed_again', 'discarded');
CREATE INDEX delivery_attempts_at ON delivery_attempts (at);
CREATE INDEX replay_jobs_ended ON replay_jobs (ended_at) WHERE ended_at IS NOT NULL;
