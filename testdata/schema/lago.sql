-- What billing with prepaid wallets needs of a database in the manner of Lago:
-- keys are uuids, deletions are marks, states are numbers and amounts are in cents.
-- Not all columns, and none of the tables around it.

CREATE TABLE customers (
    id                               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    external_id                      varchar NOT NULL,
    organization_id                  uuid NOT NULL,
    name                             varchar,
    email                            varchar,
    country                          varchar,
    currency                         varchar,
    tax_identification_number        varchar,
    vat_rate                         double precision,
    sequential_id                    bigint,
    awaiting_wallet_refresh          boolean NOT NULL DEFAULT false,
    payment_receipt_counter          bigint NOT NULL DEFAULT 0,
    last_dunning_campaign_attempt    integer NOT NULL DEFAULT 0,
    last_dunning_campaign_attempt_at timestamp,
    dunning_currency_attempts        jsonb NOT NULL DEFAULT '{}',
    deleted_at                       timestamp(6),
    created_at                       timestamp(6) NOT NULL DEFAULT now(),
    updated_at                       timestamp(6) NOT NULL DEFAULT now(),
    UNIQUE (organization_id, external_id)
);

CREATE TABLE customer_metadata (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id        uuid NOT NULL REFERENCES customers ON DELETE CASCADE,
    key                varchar NOT NULL,
    value              varchar NOT NULL,
    display_in_invoice boolean NOT NULL DEFAULT false,
    created_at         timestamp(6) NOT NULL DEFAULT now(),
    updated_at         timestamp(6) NOT NULL DEFAULT now(),
    UNIQUE (customer_id, key)
);

-- A customer can have several, and ended ones stay.
CREATE TABLE wallets (
    id                            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id                   uuid NOT NULL REFERENCES customers ON DELETE CASCADE,
    status                        integer NOT NULL DEFAULT 0, -- 0 active, 1 terminated
    name                          varchar,
    priority                      integer NOT NULL DEFAULT 50,
    rate_amount                   numeric(30,5) NOT NULL DEFAULT 1, -- of a credit, in the currency
    balance_cents                 bigint NOT NULL DEFAULT 0,
    balance_currency              varchar NOT NULL,
    credits_balance               numeric(30,5) NOT NULL DEFAULT 0,
    consumed_credits              numeric(30,5) NOT NULL DEFAULT 0,
    consumed_amount_cents         bigint NOT NULL DEFAULT 0,
    ongoing_balance_cents         bigint NOT NULL DEFAULT 0,
    ongoing_usage_balance_cents   bigint NOT NULL DEFAULT 0,
    credits_ongoing_balance       numeric(30,5) NOT NULL DEFAULT 0,
    credits_ongoing_usage_balance numeric(30,5) NOT NULL DEFAULT 0,
    depleted_ongoing_balance      boolean NOT NULL DEFAULT false,
    ready_to_be_refreshed         boolean NOT NULL DEFAULT false,
    lock_version                  integer NOT NULL DEFAULT 0,
    allowed_fee_types             varchar[] NOT NULL DEFAULT '{}',
    last_balance_sync_at          timestamp,
    last_ongoing_balance_sync_at  timestamp,
    last_consumed_credit_at       timestamp,
    expiration_at                 timestamp,
    terminated_at                 timestamp,
    created_at                    timestamp(6) NOT NULL DEFAULT now(),
    updated_at                    timestamp(6) NOT NULL DEFAULT now()
);
CREATE INDEX wallets_customer_id ON wallets (customer_id);

CREATE TABLE subscriptions (
    id                       uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id              uuid NOT NULL REFERENCES customers ON DELETE CASCADE,
    plan_id                  uuid NOT NULL,
    external_id              varchar NOT NULL,
    status                   integer NOT NULL, -- 0 pending, 1 active, 2 terminated, 3 canceled, 4 incomplete
    previous_subscription_id uuid,
    subscription_at          timestamp(6),
    started_at               timestamp,
    ending_at                timestamp(6),
    terminated_at            timestamp,
    canceled_at              timestamp,
    last_received_event_on   date,
    created_at               timestamp(6) NOT NULL DEFAULT now(),
    updated_at               timestamp(6) NOT NULL DEFAULT now()
);
CREATE INDEX subscriptions_customer_id ON subscriptions (customer_id);
