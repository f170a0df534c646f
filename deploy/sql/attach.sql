-- What Billhook needs, for a DBA who would rather make it by hand (then set
-- source.create: false). Run as a superuser, or as the owner of the tables:
--
--   psql -v password="$(openssl rand -hex 16)" -f attach.sql billing
--
-- Change the table list to what billhook.yaml maps. `billhook check` says what is
-- still amiss, and `billhook run` does the rest.
\set ON_ERROR_STOP on

-- A role that may follow the log and read the mapped tables, and nothing else.
-- Cost: none.
CREATE ROLE billhook LOGIN REPLICATION PASSWORD :'password';
GRANT USAGE ON SCHEMA public TO billhook;
GRANT SELECT ON clients, clients_balances, clients_custom_fields, accounts, clients_packages TO billhook;
-- Only where handlers.yaml has write_back: the columns that it names, and no others.
-- GRANT UPDATE (status) ON clients TO billhook;

-- The tables whose changes are sent. Cost: a SHARE UPDATE EXCLUSIVE lock on each
-- table for a moment, which waits for VACUUM and DDL but not for reads and writes;
-- the timeout keeps it from standing in a queue. Every table must have a replica
-- identity (a primary key), or the application's own UPDATE would fail from now on.
-- From Postgres 15 a column list keeps columns in the database: clients (id, name,
-- ...). It must hold the replica identity, and does not go with REPLICA IDENTITY FULL.
BEGIN;
SET LOCAL lock_timeout = '2s';
CREATE PUBLICATION billhook
	FOR TABLE clients, clients_balances, clients_custom_fields, accounts, clients_packages
	WITH (publish_via_partition_root = true);
COMMIT;

-- Where the reader stands. After the publication, never before. Cost: it waits for
-- every transaction that has written and is still open, and from now on WAL is kept
-- until Billhook has confirmed it.
SELECT pg_create_logical_replication_slot('billhook', 'pgoutput');

-- The bound on that: beyond it the slot is given up and the primary stays well.
-- Cost: none; takes effect with a reload.
ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';
SELECT pg_reload_conf();
