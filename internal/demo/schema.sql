-- A billing database as carriers run it: what clients are, what they owe, how
-- they are recognised and what they subscribed to. Balances and custom fields
-- stand beside the clients, not in them, and every table keeps its default
-- replica identity, as a DBA would insist.

CREATE TABLE currencies (
    id   int PRIMARY KEY,
    name varchar(8) NOT NULL UNIQUE,
    rate numeric(18,8) NOT NULL
);

-- Resellers.
CREATE TABLE companies (
    id        bigserial PRIMARY KEY,
    parent_id bigint REFERENCES companies,
    name      varchar(255) NOT NULL,
    status    varchar(16) NOT NULL DEFAULT 'active',
    c_dt      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE clients (
    id                         bigserial PRIMARY KEY,
    companies_id               bigint NOT NULL REFERENCES companies,
    name                       varchar(255) NOT NULL,
    status                     varchar(16) NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled', 'archive')),
    role                       varchar(8) NOT NULL DEFAULT 'orig' CHECK (role IN ('orig', 'term', 'both', 'none')),
    currencies_id              int NOT NULL REFERENCES currencies,
    credit                     numeric(18,5) NOT NULL DEFAULT 0,
    payment_terms_id           int,
    tax_id                     varchar(64),
    c_company                  varchar(255),
    c_address                  text,
    c_city                     varchar(128),
    c_state                    varchar(128),
    c_country                  varchar(128),
    c_zip_code                 varchar(32),
    c_email                    text,
    c_email_tech               text,
    c_email_billing            text,
    c_email_rates              text,
    groups                     text,
    tags                       text[] NOT NULL DEFAULT '{}',
    orig_rate_table            bigint,
    term_rate_table            bigint,
    routing_plans_id           bigint,
    orig_capacity              int,
    low_balance_athreshold     numeric(18,5),
    low_balance_capacity       numeric(18,5),
    low_balance_capacity_value int,
    autoinvoice_enabled        bool NOT NULL DEFAULT false,
    invoice_no_tpl             varchar(128),
    bill_by_time               varchar(16) NOT NULL DEFAULT 'setup',
    notes                      text, -- may be long: it is stored out of line
    c_dt                       timestamptz NOT NULL DEFAULT now(),
    m_dt                       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE clients_balances (
    clients_id         bigint PRIMARY KEY REFERENCES clients ON DELETE CASCADE,
    balance            numeric(18,5) NOT NULL DEFAULT 0, -- live: payments and rated calls
    balance_accountant numeric(18,5) NOT NULL DEFAULT 0, -- fixed: invoices and payments
    updated_dt         timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE custom_fields (
    id           bigserial PRIMARY KEY,
    companies_id bigint REFERENCES companies, -- null: every reseller's
    field_key    varchar(64) NOT NULL UNIQUE CHECK (field_key ~ '^[A-Za-z0-9_]+$'),
    title        varchar(255) NOT NULL
);

CREATE TABLE clients_custom_fields (
    clients_id bigint REFERENCES clients ON DELETE CASCADE,
    field_key  varchar(64) REFERENCES custom_fields (field_key),
    value      text,
    PRIMARY KEY (clients_id, field_key)
);

CREATE TABLE accounts (
    id              bigserial PRIMARY KEY,
    clients_id      bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    name            varchar(255) NOT NULL,
    auth_type       varchar(16) NOT NULL DEFAULT 'ip' CHECK (auth_type IN ('ani', 'ip', 'login', 'tech_prefix')),
    ani             varchar(64),
    ips             inet[],
    port            int,
    protocol        varchar(8),
    login           varchar(64),
    password        varchar(128),
    tech_prefix     varchar(32),
    orig_enabled    bool NOT NULL DEFAULT true,
    term_enabled    bool NOT NULL DEFAULT false,
    orig_rate_table bigint,
    term_rate_table bigint,
    orig_capacity   int,
    term_capacity   int,
    c_dt            timestamptz NOT NULL DEFAULT now(),
    m_dt            timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX accounts_clients_id ON accounts (clients_id);

CREATE TABLE packages (
    id               bigserial PRIMARY KEY,
    companies_id     bigint REFERENCES companies,
    name             varchar(128) NOT NULL,
    status           varchar(16) NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled', 'archive')),
    period           interval NOT NULL DEFAULT '1 month',
    currencies_id    int NOT NULL REFERENCES currencies,
    priority         int NOT NULL DEFAULT 0,
    activation_fee   numeric(18,5) NOT NULL DEFAULT 0,
    subscription_fee numeric(18,5) NOT NULL DEFAULT 0,
    advance_renew    interval NOT NULL DEFAULT '1 hour',
    renew_due        interval,
    effective_from   timestamptz,
    effective_till   timestamptz,
    charging         varchar(16) NOT NULL DEFAULT 'period_start' CHECK (charging IN ('pre_activation', 'period_start')),
    charge_on_event  bool NOT NULL DEFAULT false
);

-- Subscriptions: which client has which package, and until when.
CREATE TABLE clients_packages (
    id              bigserial PRIMARY KEY,
    clients_id      bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    accounts_id     bigint REFERENCES accounts ON DELETE SET NULL,
    packages_id     bigint NOT NULL REFERENCES packages,
    qty             int NOT NULL DEFAULT 1,
    condition       varchar(16) NOT NULL DEFAULT 'new' CHECK (condition IN ('new', 'activated', 'deactivated')),
    status          varchar(16) NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'active', 'archive')),
    start_dt        timestamptz,
    stop_dt         timestamptz,
    period_start_dt timestamptz,
    period_stop_dt  timestamptz,
    renew_due       timestamptz,
    c_dt            timestamptz NOT NULL DEFAULT now(),
    m_dt            timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX clients_packages_clients_id ON clients_packages (clients_id);
CREATE INDEX clients_packages_accounts_id ON clients_packages (accounts_id);

-- Payments and charges: what moves a balance. Nobody streams them.
CREATE TABLE transactions (
    id         bigserial PRIMARY KEY,
    clients_id bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    amount     numeric(18,5) NOT NULL,
    notes      text,
    c_dt       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX transactions_clients_id ON transactions (clients_id);
