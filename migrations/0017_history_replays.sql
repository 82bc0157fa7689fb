-- A replay may be of a stretch of history, too: of events for which no letter stands.
ALTER TABLE replay_items ALTER COLUMN letter_id DROP NOT NULL;
