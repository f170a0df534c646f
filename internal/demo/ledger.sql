-- An independent account of what Billhook must tell: triggers in the database
-- note the first image of every row that a transaction touches, and at its
-- commit compare it with what the row has become. Nothing of this is streamed,
-- and no line of it is shared with the code that derives events from the log.
--
-- Each client has a counter. An event takes the next number under the counter's
-- row lock, which is held until the commit is done: so a client's numbers are in
-- commit order.

CREATE SCHEMA ledger;

CREATE TABLE ledger.counters (
    client bigint PRIMARY KEY,
    seq    bigint NOT NULL
);

CREATE TABLE ledger.events (
    client bigint,
    seq    bigint,
    xid    bigint NOT NULL,
    type   text NOT NULL,
    object text NOT NULL,
    PRIMARY KEY (client, seq)
);
CREATE INDEX ON ledger.events (xid, client);

-- One row per row and transaction, with the image before the transaction.
CREATE TABLE ledger.touched (
    nth    bigserial, -- the order of the first touch
    xid    bigint,
    rel    text,
    key    text,
    client bigint NOT NULL,
    before jsonb, -- null: the transaction made the row
    PRIMARY KEY (xid, rel, key)
);

-- Which of the two balance events a client got last.
CREATE TABLE ledger.sides (
    client bigint PRIMARY KEY,
    side   text NOT NULL CHECK (side IN ('zero', 'notzero'))
);

CREATE FUNCTION ledger.xid() RETURNS bigint LANGUAGE sql AS
    $$ SELECT pg_current_xact_id()::text::bigint & 4294967295 $$;

CREATE FUNCTION ledger.touch() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    r jsonb := to_jsonb(COALESCE(NEW, OLD));
BEGIN
    INSERT INTO ledger.touched (xid, rel, key, client, before)
    VALUES (
        ledger.xid(), TG_TABLE_NAME,
        CASE TG_TABLE_NAME
            WHEN 'clients_balances' THEN r ->> 'clients_id'
            WHEN 'clients_custom_fields' THEN (r ->> 'clients_id') || ',' || (r ->> 'field_key')
            ELSE r ->> 'id'
        END,
        (CASE TG_TABLE_NAME WHEN 'clients' THEN r ->> 'id' ELSE r ->> 'clients_id' END)::bigint,
        CASE TG_OP WHEN 'INSERT' THEN NULL ELSE to_jsonb(OLD) END)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION ledger.tell(t ledger.touched, type text, object text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    INSERT INTO ledger.counters AS c VALUES (t.client, 1)
        ON CONFLICT (client) DO UPDATE SET seq = c.seq + 1
        RETURNING c.seq INTO n;
    INSERT INTO ledger.events VALUES (t.client, n, t.xid, type, object);
END $$;

-- Runs at commit, once per touched row.
CREATE FUNCTION ledger.judge() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    o    jsonb := NEW.before;
    n    jsonb;
    gone bool;
BEGIN
    CASE NEW.rel
        WHEN 'clients' THEN SELECT to_jsonb(r) INTO n FROM public.clients r WHERE id = NEW.key::bigint;
        WHEN 'clients_balances' THEN SELECT to_jsonb(r) INTO n FROM public.clients_balances r WHERE clients_id = NEW.key::bigint;
        WHEN 'clients_custom_fields' THEN SELECT to_jsonb(r) INTO n FROM public.clients_custom_fields r
            WHERE clients_id = NEW.client AND field_key = split_part(NEW.key, ',', 2);
        WHEN 'accounts' THEN SELECT to_jsonb(r) INTO n FROM public.accounts r WHERE id = NEW.key::bigint;
        WHEN 'clients_packages' THEN SELECT to_jsonb(r) INTO n FROM public.clients_packages r WHERE id = NEW.key::bigint;
    END CASE;
    IF o IS NULL AND n IS NULL THEN
        RETURN NULL; -- came and went
    END IF;

    CASE NEW.rel
        WHEN 'clients' THEN
            IF o IS NULL THEN
                PERFORM ledger.tell(NEW, 'clients.create', NEW.key);
            ELSIF n IS NULL THEN
                PERFORM ledger.tell(NEW, 'clients.delete', NEW.key);
            ELSE
                -- m_dt is ignored, notes are not read.
                o := o - 'm_dt' - 'notes';
                n := n - 'm_dt' - 'notes';
                IF n ->> 'status' = 'archive' AND o ->> 'status' <> 'archive' THEN
                    IF o - 'status' <> n - 'status' THEN
                        PERFORM ledger.tell(NEW, 'clients.update', NEW.key);
                    END IF;
                    PERFORM ledger.tell(NEW, 'clients.archive', NEW.key);
                ELSIF o <> n THEN
                    PERFORM ledger.tell(NEW, 'clients.update', NEW.key);
                END IF;
            END IF;

        WHEN 'clients_balances' THEN
            PERFORM ledger.cross(NEW, (o ->> 'balance')::numeric, (n ->> 'balance')::numeric);

        WHEN 'clients_custom_fields' THEN
            -- One event per client and transaction, and none for a client that
            -- was made or deleted in it: that event says it all.
            SELECT t.before IS NULL OR NOT EXISTS (SELECT FROM public.clients WHERE id = t.client) INTO gone
                FROM ledger.touched t
                WHERE t.xid = NEW.xid AND t.rel = 'clients' AND t.key = NEW.client::text;
            IF o IS DISTINCT FROM n AND gone IS NOT TRUE AND NOT EXISTS (
                SELECT FROM ledger.events e
                WHERE e.xid = NEW.xid AND e.client = NEW.client AND e.type = 'clients.custom_fields.update')
            THEN
                PERFORM ledger.tell(NEW, 'clients.custom_fields.update', NEW.client::text);
            END IF;

        WHEN 'accounts' THEN
            IF o IS NULL THEN
                PERFORM ledger.tell(NEW, 'clients.accounts.create', NEW.key);
            ELSIF n IS NULL THEN
                PERFORM ledger.tell(NEW, 'clients.accounts.delete', NEW.key);
            ELSIF o - 'm_dt' <> n - 'm_dt' THEN
                PERFORM ledger.tell(NEW, 'clients.accounts.update', NEW.key);
            END IF;

        WHEN 'clients_packages' THEN
            IF o IS NULL THEN
                PERFORM ledger.tell(NEW, 'clients.packages.assign', NEW.key);
            END IF;
            IF n ->> 'condition' = 'activated' AND o ->> 'condition' IS DISTINCT FROM 'activated' THEN
                PERFORM ledger.tell(NEW, 'clients.packages.activate', NEW.key);
            END IF;
            IF (n ->> 'period_start_dt')::timestamptz > (o ->> 'period_start_dt')::timestamptz THEN
                PERFORM ledger.tell(NEW, 'clients.packages.renew', NEW.key);
            END IF;
            IF n ->> 'condition' = 'deactivated' AND o ->> 'condition' <> 'deactivated' THEN
                PERFORM ledger.tell(NEW, 'clients.packages.deactivate', NEW.key);
            END IF;
            -- What is deleted is over, unless it was before.
            IF o ->> 'status' <> 'archive' AND COALESCE(n ->> 'status', 'archive') = 'archive' THEN
                PERFORM ledger.tell(NEW, 'clients.packages.close', NEW.key);
            END IF;
    END CASE;
    RETURN NULL;
END $$;

-- A balance moved from o to n. At exactly zero what was told last decides: a
-- client that was told to be at zero can only leave it upwards, one that was told
-- to be out of debt only downwards, and one that was told nothing either way.
CREATE FUNCTION ledger.cross(t ledger.touched, o numeric, n numeric) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    told text;
    tell text;
BEGIN
    IF o IS NULL OR n IS NULL THEN
        DELETE FROM ledger.sides WHERE client = t.client;
        RETURN;
    END IF;
    IF o = n THEN
        RETURN;
    END IF;
    SELECT side INTO told FROM ledger.sides WHERE client = t.client;
    IF o > 0 AND n <= 0 THEN
        tell := 'zero';
    ELSIF o < 0 AND n >= 0 THEN
        tell := 'notzero';
    ELSIF o = 0 AND n > 0 AND told IS DISTINCT FROM 'notzero' THEN
        tell := 'notzero';
    ELSIF o = 0 AND n < 0 AND told IS DISTINCT FROM 'zero' THEN
        tell := 'zero';
    ELSE
        RETURN;
    END IF;
    INSERT INTO ledger.sides VALUES (t.client, tell) ON CONFLICT (client) DO UPDATE SET side = tell;
    PERFORM ledger.tell(t, 'clients.balance_' || tell, t.client::text);
END $$;

CREATE CONSTRAINT TRIGGER judge AFTER INSERT ON ledger.touched
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger.judge();

CREATE TRIGGER ledger AFTER INSERT OR UPDATE OR DELETE ON public.clients FOR EACH ROW EXECUTE FUNCTION ledger.touch();
CREATE TRIGGER ledger AFTER INSERT OR UPDATE OR DELETE ON public.clients_balances FOR EACH ROW EXECUTE FUNCTION ledger.touch();
CREATE TRIGGER ledger AFTER INSERT OR UPDATE OR DELETE ON public.clients_custom_fields FOR EACH ROW EXECUTE FUNCTION ledger.touch();
CREATE TRIGGER ledger AFTER INSERT OR UPDATE OR DELETE ON public.accounts FOR EACH ROW EXECUTE FUNCTION ledger.touch();
CREATE TRIGGER ledger AFTER INSERT OR UPDATE OR DELETE ON public.clients_packages FOR EACH ROW EXECUTE FUNCTION ledger.touch();
