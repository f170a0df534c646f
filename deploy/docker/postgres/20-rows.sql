-- A few clients to begin with.
INSERT INTO clients (name, email, balance, custom_fields) VALUES
	('Acme', 'billing@acme.example', 12.50, '{"manager": "Eve"}'),
	('Umbrella', 'billing@umbrella.example', 3, '{}'),
	('Wayne', 'billing@wayne.example', -4.20, '{"grade": "gold"}');
INSERT INTO accounts (client_id, name, login) SELECT id, name || ', office', lower(name) FROM clients;
INSERT INTO subscriptions (client_id, plan, status, current_period_start, current_period_end)
	SELECT id, 'Fibre 100', 'active', date_trunc('month', now()), date_trunc('month', now()) + interval '1 month' FROM clients;
