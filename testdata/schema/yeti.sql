-- What billing needs of a database in the manner of Yeti: the balance stands on
-- accounts, under a client who has none, in a schema of its own; services stand
-- under the accounts. Not all columns, and none of the tables around it.

CREATE SCHEMA billing;

CREATE TABLE public.contractors (
    id          serial PRIMARY KEY,
    name        varchar NOT NULL UNIQUE,
    enabled     boolean NOT NULL,
    vendor      boolean NOT NULL,
    customer    boolean NOT NULL,
    description varchar,
    address     varchar,
    phones      varchar,
    external_id bigint UNIQUE
);

CREATE TABLE billing.accounts (
    id                    serial PRIMARY KEY,
    contractor_id         integer NOT NULL REFERENCES public.contractors,
    balance               numeric NOT NULL,
    min_balance           numeric NOT NULL,
    max_balance           numeric NOT NULL,
    name                  varchar NOT NULL UNIQUE,
    uuid                  uuid NOT NULL,
    origination_capacity  smallint CHECK (origination_capacity > 0),
    termination_capacity  smallint CHECK (termination_capacity > 0),
    next_invoice_at       timestamptz,
    next_invoice_type_id  smallint,
    send_invoices_to      integer[],
    vat                   numeric NOT NULL DEFAULT 0,
    timezone              varchar NOT NULL DEFAULT 'UTC',
    currency_id           smallint NOT NULL,
    external_id           bigint
);
CREATE INDEX accounts_contractor_id_idx ON billing.accounts (contractor_id);

CREATE TABLE billing.services (
    id              bigserial PRIMARY KEY,
    uuid            uuid NOT NULL,
    type_id         smallint NOT NULL,
    account_id      integer NOT NULL REFERENCES billing.accounts,
    name            varchar,
    variables       jsonb,
    state_id        smallint NOT NULL DEFAULT 10, -- 10 active, 20 suspended
    created_at      timestamptz NOT NULL DEFAULT now(),
    renew_at        timestamptz,
    renew_period_id smallint, -- 10 day, 20 month
    initial_price   numeric NOT NULL,
    renew_price     numeric NOT NULL
);
CREATE INDEX services_account_id_idx ON billing.services (account_id);
