-- What Billhook may do, and no more: stream, and read the mapped tables without
-- the column that must not leave. The owner of the tables runs this once. That
-- the publication is the owner's spares the role CREATE on the database and the
-- ownership of tables.

CREATE ROLE billhook LOGIN REPLICATION PASSWORD 'change me';

GRANT USAGE ON SCHEMA public TO billhook;
GRANT SELECT ON clients_balances, clients_custom_fields, accounts, clients_packages TO billhook;

DO $$
DECLARE
    -- All of clients but its notes.
    columns text := (
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = 'clients'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'notes');
    list text := '';
BEGIN
    EXECUTE format('GRANT SELECT (%s) ON clients TO billhook', columns);
    IF current_setting('server_version_num')::int >= 150000 THEN -- 14 has no column lists
        list := ' (' || columns || ')';
    END IF;
    EXECUTE 'CREATE PUBLICATION billhook FOR TABLE clients' || list
        || ', clients_balances, clients_custom_fields, accounts, clients_packages';
END $$;
