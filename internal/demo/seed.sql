-- Clients that were there before Billhook came, and of whom it must not tell.
-- $clients is their number.

SELECT setseed(0.4711);

INSERT INTO currencies VALUES (1, 'USD', 1), (2, 'EUR', 0.92), (3, 'GBP', 0.79);

INSERT INTO companies (name) VALUES ('Main'), ('Northern Reseller'), ('Southern Reseller');

INSERT INTO custom_fields (field_key, title) VALUES
    ('crm_id', 'CRM id'), ('sales_manager', 'Sales manager'), ('contract_no', 'Contract number'),
    ('portal_login', 'Portal login'), ('risk_class', 'Risk class');

INSERT INTO packages (companies_id, name, currencies_id, period, activation_fee, subscription_fee, charging) VALUES
    (1, 'Wholesale flat 1M', 1, '1 month', 0, 25, 'period_start'),
    (1, 'Retail 500 minutes', 2, '1 month', 5, 9.90, 'pre_activation'),
    (2, 'DID pool 100', 1, '1 month', 10, 40, 'period_start'),
    (3, 'Weekend', 2, '7 days', 0, 2.50, 'period_start');

INSERT INTO clients (companies_id, name, currencies_id, credit, tax_id, c_company, c_address, c_city, c_country,
    c_email, c_email_billing, tags, orig_capacity, autoinvoice_enabled, notes, c_dt)
SELECT 1 + n % 3,
    (ARRAY['Acme','Borealis','Cobalt','Delta','Evergreen','Fathom','Granite','Harbour','Indigo','Juniper'])[1 + n % 10]
        || ' ' || (ARRAY['Telecom','Wholesale','Voice','Networks','Carrier'])[1 + n / 10 % 5]
        || CASE WHEN n >= 50 THEN ' ' || n ELSE '' END,
    1 + n % 3, CASE WHEN n % 4 = 0 THEN 100 ELSE 0 END, 'TAX-' || 100000 + n, 'Company ' || n,
    n || ' Main Street', (ARRAY['Lisbon','Riga','Toronto','Nairobi'])[1 + n % 4], (ARRAY['PT','LV','CA','KE'])[1 + n % 4],
    'noc' || n || '@example.net', 'billing' || n || '@example.net',
    CASE WHEN n % 5 = 0 THEN ARRAY['vip','24x7'] ELSE ARRAY['standard'] END, 10 * (1 + n % 30), n % 2 = 0,
    -- Long enough to be stored out of line.
    CASE WHEN n % 3 = 0 THEN (SELECT string_agg(md5(n || ':' || i), ' ') FROM generate_series(1, 150) i) END,
    now() - (n % 700) * interval '1 day'
FROM generate_series(0, $clients - 1) n;

INSERT INTO clients_balances (clients_id, balance, balance_accountant)
SELECT id,
    -- Most have a little left, some owe, a few stand at exactly zero.
    CASE WHEN id % 17 = 0 THEN 0 WHEN id % 5 = 0 THEN -round((random() * 20)::numeric, 5) ELSE round((random() * 60)::numeric, 5) END, 0
FROM clients;

INSERT INTO clients_custom_fields (clients_id, field_key, value)
SELECT id, 'crm_id', 'C-' || 5000 + id FROM clients WHERE id % 2 = 0
UNION ALL
SELECT id, 'sales_manager', (ARRAY['Ada','Grace','Linus'])[1 + id % 3] FROM clients WHERE id % 3 = 0;

INSERT INTO accounts (clients_id, name, auth_type, ips, port, protocol, password)
SELECT id, 'ip-' || id || '-' || k, 'ip', ARRAY[('198.51.100.' || (id + k) % 250)::inet], 5060, 'udp', md5('secret' || id || k)
FROM clients, generate_series(1, 2) k WHERE (id + k) % 3 <> 0;

INSERT INTO clients_packages (clients_id, packages_id, condition, status, start_dt, period_start_dt, period_stop_dt)
SELECT c.id, 1 + c.id % 4, 'activated', 'active', now() - interval '40 days', now() - interval '10 days', now() + interval '20 days'
FROM clients c WHERE c.id % 2 = 0
UNION ALL
SELECT c.id, 1 + c.id % 4, 'new', 'pending', now(), NULL, NULL
FROM clients c WHERE c.id % 7 = 0;
