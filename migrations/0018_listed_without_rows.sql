-- A search with many finds looks among the next rows in order of creation: out of the index alone, without the table,
-- whose rows lie in another order where many came in at once.
CREATE INDEX user_directory_looked_through ON user_directory (created_at, id) INCLUDE (status, role, email_key, name_key);
DROP INDEX user_directory_created;
ALTER INDEX user_directory_looked_through RENAME TO user_directory_created;
