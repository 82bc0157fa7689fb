-- A letter's place is its stream and its sequence there: what is replayed to a group comes from a stream of its own.
ALTER TABLE dead_letters ADD COLUMN stream text NOT NULL DEFAULT 'USER_EVENTS';
ALTER TABLE dead_letters
    DROP CONSTRAINT dead_letters_group_name_event_id_stream_sequence_key,
    ADD UNIQUE (group_name, event_id, stream, stream_sequence);
