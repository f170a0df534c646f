-- The way out. Stop Billhook first; then, as a superuser:
--
--   psql -f detach.sql billing
--
-- What stays: replica identities and max_slot_wal_keep_size as you have set them, and
-- the journal folder on Billhook's machine.
\set ON_ERROR_STOP on
SELECT pg_drop_replication_slot('billhook');
DROP PUBLICATION billhook;
DROP OWNED BY billhook;
DROP ROLE billhook;
