-- A family has one unspent refresh token, or two between a new proof of identity and the first use of either.
CREATE INDEX refresh_tokens_unspent ON refresh_tokens (session_id) WHERE used_at IS NULL;
