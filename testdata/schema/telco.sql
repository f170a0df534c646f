-- A telephone company's billing with a schema of its own, quoted names, enums, uuids,
-- and the balance in a wallet beside the customer.

CREATE SCHEMA crm;
CREATE TYPE crm.customer_state AS ENUM ('prospect', 'live', 'archived');
CREATE TYPE crm.subscription_state AS ENUM ('draft', 'active', 'paused', 'terminated');

CREATE TABLE crm.organizations (id uuid PRIMARY KEY, name text NOT NULL);
CREATE TABLE crm."Customer" (
    "customerId"   uuid PRIMARY KEY,
    organization   uuid NOT NULL REFERENCES crm.organizations,
    name           text NOT NULL,
    email          text,
    status         crm.customer_state NOT NULL DEFAULT 'prospect',
    "apiToken"     text,
    updated_at     timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE crm.customer_wallet (
    customer_id uuid PRIMARY KEY REFERENCES crm."Customer",
    balance     numeric(18,6) NOT NULL DEFAULT 0,
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE crm.customer_attributes (
    customer_id uuid NOT NULL REFERENCES crm."Customer",
    name        text NOT NULL,
    value       text,
    PRIMARY KEY (customer_id, name)
);
CREATE TABLE crm.subscriptions (
    id                   uuid PRIMARY KEY,
    customer_id          uuid NOT NULL REFERENCES crm."Customer",
    state                crm.subscription_state NOT NULL DEFAULT 'draft',
    current_period_start timestamptz,
    updated_at           timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE crm.subscription_items (id uuid PRIMARY KEY, subscription_id uuid NOT NULL REFERENCES crm.subscriptions, price numeric);
CREATE TABLE crm.phone_numbers (number text PRIMARY KEY, customer_id uuid REFERENCES crm."Customer");
CREATE TABLE crm.invoices (id uuid PRIMARY KEY, customer_id uuid NOT NULL REFERENCES crm."Customer", total numeric);
