-- The plainest billing schema: the balance and a JSON column of custom fields stand
-- in the clients' own table, deletions are marks.

CREATE TABLE clients (
    id            bigserial PRIMARY KEY,
    name          text NOT NULL,
    email         text,
    currency      char(3) NOT NULL DEFAULT 'EUR',
    balance       numeric(18,6) NOT NULL DEFAULT 0,
    custom_fields jsonb NOT NULL DEFAULT '{}',
    deleted_at    timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE accounts (
    id         bigserial PRIMARY KEY,
    client_id  bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    name       text NOT NULL,
    login      text,
    password   text,
    enabled    boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX accounts_client_id ON accounts (client_id);

CREATE TABLE subscriptions (
    id                   bigserial PRIMARY KEY,
    client_id            bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    plan                 text NOT NULL,
    status               text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'active', 'suspended', 'cancelled', 'closed', 'terminated')),
    current_period_start timestamptz,
    current_period_end   timestamptz,
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX subscriptions_client_id ON subscriptions (client_id);
