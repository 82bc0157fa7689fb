-- Runs once, when the data directory is made. Two roles: the owner changes the schema and is used by `migrate` alone;
-- the service's own role is granted what it needs by the migrations, and can neither alter nor empty the audit tables.

\getenv owner_password USER_SERVICE_OWNER_PASSWORD
\getenv service_password USER_SERVICE_PASSWORD

CREATE ROLE user_service_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE user_service LOGIN PASSWORD :'service_password';

CREATE DATABASE user_service OWNER user_service_owner;
REVOKE ALL ON DATABASE user_service FROM PUBLIC;
GRANT CONNECT ON DATABASE user_service TO user_service;

-- What `user-service scrub` needs beside owning the tables: see "Deleting and erasing" in docs/operations.md.
GRANT pg_checkpoint TO user_service_owner;
\connect user_service
GRANT EXECUTE ON FUNCTION pg_switch_wal() TO user_service_owner;
