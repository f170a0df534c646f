-- What billhook sql prints for ../billhook/billhook.yaml, with the password from the environment.
\getenv password BILLHOOK_DB_PASSWORD
CREATE ROLE billhook LOGIN REPLICATION PASSWORD :'password';
GRANT USAGE ON SCHEMA public TO billhook;
GRANT SELECT ON clients, accounts, subscriptions TO billhook;
CREATE PUBLICATION billhook FOR TABLE clients, accounts, subscriptions WITH (publish_via_partition_root = true);
