-- The billing schema under the column names of its older releases, where a
-- reference is called id_clients and not clients_id, with the balance rescaled
-- by a trigger when a client's currency changes: one statement of the
-- application then touches two tables. It proves that the mapping is
-- configuration.

CREATE TABLE currencies (
    id   int PRIMARY KEY,
    name varchar(8) NOT NULL UNIQUE,
    rate numeric(18,8) NOT NULL
);

CREATE TABLE companies (
    id   bigserial PRIMARY KEY,
    name varchar(255) NOT NULL
);

CREATE TABLE clients (
    id              bigserial PRIMARY KEY,
    id_companies    bigint NOT NULL REFERENCES companies,
    name            varchar(255) NOT NULL,
    type            varchar(8) NOT NULL DEFAULT 'orig',
    status          varchar(16) NOT NULL DEFAULT 'active',
    id_currencies   int NOT NULL REFERENCES currencies,
    credit          numeric(18,5) NOT NULL DEFAULT 0,
    cc_serial       varchar(64),
    groups          text,
    c_company       varchar(255),
    c_email_tech    text,
    c_email_billing text,
    c_email_rates   text,
    orig_rate_table bigint,
    term_rate_table bigint,
    c_dt            timestamptz NOT NULL DEFAULT now(),
    m_dt            timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE clients_balances (
    id_clients         bigint PRIMARY KEY REFERENCES clients ON DELETE CASCADE,
    balance            numeric(18,5) NOT NULL DEFAULT 0,
    balance_accountant numeric(18,5) NOT NULL DEFAULT 0
);

CREATE TABLE custom_fields (
    id           bigserial PRIMARY KEY,
    id_companies bigint REFERENCES companies,
    field_key    varchar(64) NOT NULL UNIQUE,
    title        varchar(255) NOT NULL
);

-- Here a value names its field by number, not by key.
CREATE TABLE clients_custom_fields (
    id_clients       bigint REFERENCES clients ON DELETE CASCADE,
    id_custom_fields bigint REFERENCES custom_fields,
    value            text,
    PRIMARY KEY (id_clients, id_custom_fields)
);

CREATE TABLE accounts (
    id              bigserial PRIMARY KEY,
    id_clients      bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    name            varchar(255) NOT NULL,
    auth_type       varchar(16) NOT NULL DEFAULT 'ip',
    ani             varchar(64),
    ips             text,
    password        varchar(128),
    orig_enabled    bool NOT NULL DEFAULT true,
    orig_rate_table bigint,
    term_rate_table bigint,
    m_dt            timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE packages (
    id            bigserial PRIMARY KEY,
    id_companies  bigint REFERENCES companies,
    id_currencies int NOT NULL REFERENCES currencies,
    name          varchar(64) NOT NULL
);

CREATE TABLE clients_packages (
    id              bigserial PRIMARY KEY,
    id_clients      bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    id_accounts     bigint REFERENCES accounts ON DELETE SET NULL,
    id_packages     bigint NOT NULL REFERENCES packages,
    condition       varchar(16) NOT NULL DEFAULT 'new',
    status          varchar(16) NOT NULL DEFAULT 'pending',
    start_dt        timestamptz,
    stop_dt         timestamptz,
    period_start_dt timestamptz,
    period_stop_dt  timestamptz,
    m_dt            timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE transactions (
    id         bigserial PRIMARY KEY,
    id_clients bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    amount     numeric(18,5) NOT NULL,
    notes      text,
    c_dt       timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION rescale_to_currency() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    factor numeric;
BEGIN
    SELECT n.rate / o.rate INTO factor FROM currencies o, currencies n
        WHERE o.id = OLD.id_currencies AND n.id = NEW.id_currencies;
    NEW.credit := NEW.credit * factor;
    UPDATE clients_balances SET balance = balance * factor, balance_accountant = balance_accountant * factor
        WHERE id_clients = NEW.id;
    RETURN NEW;
END $$;

CREATE TRIGGER rescale_to_currency BEFORE UPDATE OF id_currencies ON clients
    FOR EACH ROW WHEN (OLD.id_currencies IS DISTINCT FROM NEW.id_currencies)
    EXECUTE FUNCTION rescale_to_currency();
