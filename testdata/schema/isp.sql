-- An Internet provider's billing, grown over the years: no reference is declared, the
-- money is on the subscriber, services are given with dates, states are words.

CREATE TABLE subscribers (
    id            integer PRIMARY KEY,
    login         varchar(64) NOT NULL,
    password_hash varchar(128),
    full_name     text,
    email         text,
    deposit       numeric(12,4) NOT NULL DEFAULT 0,
    credit_limit  numeric(12,4) NOT NULL DEFAULT 0,
    state         varchar(16) NOT NULL DEFAULT 'active',
    attributes    jsonb NOT NULL DEFAULT '{}',
    modified_at   timestamp
);
CREATE TABLE subscribers_log (id bigserial PRIMARY KEY, subscriber_id integer, at timestamp, what text);
CREATE TABLE payments (id bigserial PRIMARY KEY, subscriber_id integer NOT NULL, amount numeric(12,4) NOT NULL, at timestamp NOT NULL DEFAULT now());
CREATE TABLE tariffs (id serial PRIMARY KEY, title text, price numeric(12,4));
CREATE TABLE subscriber_services (
    id            bigserial PRIMARY KEY,
    subscriber_id integer NOT NULL,
    tariff_id     integer NOT NULL,
    status        varchar(16) NOT NULL DEFAULT 'active',
    paid_until    date,
    end_date      timestamp,
    updated_at    timestamp
);
CREATE TABLE sip_accounts (id bigserial PRIMARY KEY, subscriber_id integer NOT NULL, number text, sip_secret text, modified_at timestamp);
CREATE TABLE "Settings" (name text PRIMARY KEY, value text);

INSERT INTO subscribers (id, login, state, deposit) SELECT i, 'u' || i, (ARRAY['active','active','blocked','terminated'])[1 + i % 4], i FROM generate_series(1, 200) i;
INSERT INTO tariffs (title, price) VALUES ('Home 100', 10), ('Home 500', 20);
INSERT INTO subscriber_services (subscriber_id, tariff_id, status) SELECT i, 1 + i % 2, (ARRAY['active','suspended','cancelled'])[1 + i % 3] FROM generate_series(1, 200) i;
ANALYZE;
