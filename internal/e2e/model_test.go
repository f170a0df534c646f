package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/pgtest"
)

// The model works out what handlers must be told from what triggers wrote down of
// each row change, in the database, in the transaction itself. It knows the rules
// from the documentation and nothing of how Billhook derives events: it has every
// old row.
//
// Sessions take a lock for each client that they touch, so for each client the order
// in which triggers wrote is the order of commits.
const modelSQL = `
	CREATE TABLE clients (id bigint PRIMARY KEY, ref int NOT NULL DEFAULT 0, name text, status text NOT NULL, credit numeric(18,5), info text, m_dt int);
	ALTER TABLE clients ALTER info SET STORAGE EXTERNAL;
	CREATE TABLE clients_balances (clients_id bigint PRIMARY KEY REFERENCES clients ON DELETE CASCADE ON UPDATE CASCADE, ref int NOT NULL DEFAULT 0, balance numeric);
	CREATE TABLE clients_custom_fields (clients_id bigint REFERENCES clients ON DELETE CASCADE ON UPDATE CASCADE, field_key text, ref int NOT NULL DEFAULT 0, value text, PRIMARY KEY (clients_id, field_key));
	CREATE TABLE accounts (id bigserial PRIMARY KEY, ref int NOT NULL DEFAULT 0, clients_id bigint REFERENCES clients ON DELETE CASCADE ON UPDATE CASCADE, name text, m_dt int);
	CREATE TABLE clients_packages (id bigserial PRIMARY KEY, ref int NOT NULL DEFAULT 0, clients_id bigint REFERENCES clients ON DELETE CASCADE ON UPDATE CASCADE, condition text, status text, period_start_dt date);
	CREATE SEQUENCE client_ids START 1000;

	CREATE TABLE seen (seq bigint PRIMARY KEY, xid bigint NOT NULL, tab text NOT NULL, old jsonb, new jsonb);
	CREATE SEQUENCE seen_seq;
	CREATE FUNCTION texts(r jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT jsonb_object_agg(key, value) FROM jsonb_each_text(r)';
	CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO seen VALUES (nextval('seen_seq'), pg_current_xact_id()::text::bigint & 4294967295, TG_TABLE_NAME,
			CASE WHEN TG_OP <> 'INSERT' THEN texts(to_jsonb(OLD)) END, CASE WHEN TG_OP <> 'DELETE' THEN texts(to_jsonb(NEW)) END);
		RETURN NULL;
	END $$;
	-- Named so that they fire before the foreign keys' own: parents are seen before their children.
	CREATE TRIGGER "A_see" AFTER INSERT OR UPDATE OR DELETE ON clients FOR EACH ROW EXECUTE FUNCTION see();
	CREATE TRIGGER "A_see" AFTER INSERT OR UPDATE OR DELETE ON clients_balances FOR EACH ROW EXECUTE FUNCTION see();
	CREATE TRIGGER "A_see" AFTER INSERT OR UPDATE OR DELETE ON clients_custom_fields FOR EACH ROW EXECUTE FUNCTION see();
	CREATE TRIGGER "A_see" AFTER INSERT OR UPDATE OR DELETE ON accounts FOR EACH ROW EXECUTE FUNCTION see();
	CREATE TRIGGER "A_see" AFTER INSERT OR UPDATE OR DELETE ON clients_packages FOR EACH ROW EXECUTE FUNCTION see();

	INSERT INTO clients SELECT i, 0, 'client ' || i, 'active', i, CASE WHEN i % 3 = 0 THEN repeat(md5(i::text), 100) END FROM generate_series(1, 30) i;
	INSERT INTO clients_balances SELECT i, 0, (i % 5) - 2 FROM generate_series(1, 30) i;
	INSERT INTO clients_custom_fields SELECT i, 'k' || i % 3, 0, 'a value that was there before' FROM generate_series(1, 30) i;
	INSERT INTO accounts (clients_id, name) SELECT i, 'account of ' || i FROM generate_series(1, 30) i;
	INSERT INTO clients_packages (clients_id, condition, status, period_start_dt) SELECT i, 'new', 'active', '2026-01-01' FROM generate_series(1, 30) i;
	TRUNCATE seen;`

var modelTables = map[string]string{ // primary key
	"clients": "id", "clients_balances": "clients_id", "clients_custom_fields": "clients_id, field_key", "accounts": "id", "clients_packages": "id",
}

const modelYAML = `version: 1
source: {dsn: "${DSN}", slot: billhook_%[1]s, publication: billhook_%[1]s}
entities:
  clients:
    table: public.clients
    key: [id]
    ignore: [m_dt]
    archive: {column: status, value: archive}
    balance: {table: public.clients_balances, key: [clients_id], column: balance}
    custom_fields: {table: public.clients_custom_fields, client: clients_id, name: field_key, value: value}
  accounts: {table: public.accounts, key: [id], client: clients_id, ignore: [m_dt]}
  packages:
    table: public.clients_packages
    key: [id]
    client: clients_id
    activate: {column: condition, value: activated}
    deactivate: {column: condition, value: deactivated}
    renew: {column: period_start_dt, moves: forward}
    close: {column: status, value: archive}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`

// texts is a row as the triggers wrote it: nil is NULL.
type texts map[string]*string

func (r texts) at(column string) string {
	if v := r[column]; v != nil {
		return *v
	}
	return "<null>"
}

// sight is what a trigger saw.
type sight struct {
	xid      uint32
	tab      string
	old, new texts
}

// change is what a transaction did to one row.
type change struct {
	tab      string
	old, new texts
}

func (n *change) row() texts {
	if n.new != nil {
		return n.new
	}
	return n.old
}

func (n *change) client() string {
	if n.tab == "clients" {
		return n.row().at("id")
	}
	return n.row().at("clients_id")
}

// differ returns the columns that differ, sorted.
func (n *change) differ() []string {
	var list []string
	for column := range n.new {
		if n.old.at(column) != n.new.at(column) {
			list = append(list, column)
		}
	}
	slices.Sort(list)
	return list
}

// must is an event that must be told.
type must struct {
	xid          uint32
	typ, object  string
	data         texts
	old, changed texts // of what differs; nil: not to be compared
}

func (m must) String() string {
	return fmt.Sprintf("%s of %s in transaction %d", m.typ, m.object, m.xid)
}

// model turns sights into what must be told, by client.
type model struct {
	sides map[string]int // by client: 1 above zero, -1 below, 0 not known
	told  map[string][]must
}

// transaction folds what was seen of one transaction and works out its events.
func (m *model) transaction(list []sight) {
	xid := list[0].xid
	var rows []*change
	now := map[string]*change{} // by table and present key
	for _, s := range list {
		id := func(r texts) string {
			key := s.tab
			for column := range strings.SplitSeq(modelTables[s.tab], ", ") {
				key += " " + r.at(column)
			}
			return key
		}
		var n *change
		if s.old != nil {
			n = now[id(s.old)]
		} else {
			n = now[id(s.new)]
		}
		if n == nil {
			n = &change{tab: s.tab, old: s.old}
			rows = append(rows, n)
		}
		n.new = s.new
		if s.old != nil && s.new != nil {
			delete(now, id(s.old))
		}
		now[id(n.row())] = n
		if s.new == nil {
			now[id(s.old)] = n
		}
	}
	rows = slices.DeleteFunc(rows, func(n *change) bool { return n.old == nil && n.new == nil })

	// A deleted client comes after its last deleted row.
	for i := 0; i < len(rows); i++ {
		n := rows[i]
		if n.tab != "clients" || n.new != nil {
			continue
		}
		last := i
		for j := i + 1; j < len(rows); j++ {
			if rows[j].new == nil && rows[j].client() == n.client() {
				last = j
			}
		}
		if last > i {
			rows = slices.Insert(slices.Delete(rows, i, i+1), last, n)
			i--
		}
	}

	tell := func(n *change, typ, object string) *must {
		e := must{xid: xid, typ: typ, object: object, data: n.row()}
		if n.old != nil && n.new != nil {
			e.old, e.changed = texts{}, texts{}
			for _, column := range n.differ() {
				if column != "m_dt" {
					e.old[column], e.changed[column] = n.old[column], n.new[column]
				}
			}
		}
		list := append(m.told[n.client()], e)
		m.told[n.client()] = list
		return &list[len(list)-1]
	}
	fields := map[string]bool{}
	for _, n := range rows {
		inserted, deleted := n.old == nil, n.new == nil
		updated := !inserted && !deleted
		switch n.tab {
		case "clients":
			id := n.row().at("id")
			archived := updated && n.old.at("status") != "archive" && n.new.at("status") == "archive"
			if inserted {
				tell(n, "clients.create", id)
			}
			if updated && slices.ContainsFunc(n.differ(), func(c string) bool { return c != "m_dt" && (c != "status" || !archived) }) {
				tell(n, "clients.update", id)
			}
			if archived {
				tell(n, "clients.archive", id)
			}
			if deleted {
				tell(n, "clients.delete", id)
			}
		case "accounts":
			id := n.row().at("id")
			switch {
			case inserted:
				tell(n, "clients.accounts.create", id)
			case deleted:
				tell(n, "clients.accounts.delete", id)
			case slices.ContainsFunc(n.differ(), func(c string) bool { return c != "m_dt" }):
				tell(n, "clients.accounts.update", id)
			}
		case "clients_packages":
			id := n.row().at("id")
			became := func(column, value string) bool {
				return n.new.at(column) == value && (inserted || n.old.at(column) != value)
			}
			if inserted {
				tell(n, "clients.packages.assign", id)
			}
			if !deleted && became("condition", "activated") {
				tell(n, "clients.packages.activate", id)
			}
			if updated && n.old["period_start_dt"] != nil && n.new["period_start_dt"] != nil && n.old.at("period_start_dt") < n.new.at("period_start_dt") {
				tell(n, "clients.packages.renew", id)
			}
			if updated && became("condition", "deactivated") {
				tell(n, "clients.packages.deactivate", id)
			}
			if updated && became("status", "archive") || deleted && n.old.at("status") != "archive" {
				tell(n, "clients.packages.close", id)
			}
		case "clients_balances":
			if typ := m.crossing(n); typ != "" {
				tell(n, typ, n.client()).data = nil
			}
		case "clients_custom_fields":
			client := n.client()
			if fields[client] {
				continue
			}
			fields[client] = true
			data := texts{}
			for _, f := range rows {
				if f.tab != "clients_custom_fields" || f.client() != client {
					continue
				}
				switch {
				case f.new == nil:
					data[f.old.at("field_key")] = nil
				case f.old == nil || f.old.at("value") != f.new.at("value"):
					data[f.new.at("field_key")] = f.new["value"]
				}
			}
			own := func(n *change) bool {
				return n.tab == "clients" && n.client() == client && (n.old == nil || n.new == nil)
			}
			if len(data) > 0 && !slices.ContainsFunc(rows, own) {
				e := tell(n, "clients.custom_fields.update", client)
				e.data, e.old, e.changed = nil, nil, data
			}
		}
	}
}

// crossing moves the side of a client's balance and says what that tells.
func (m *model) crossing(n *change) string {
	sign := func(r texts) (int, bool) {
		v := r["balance"]
		switch {
		case v == nil:
			return 0, false
		case strings.Trim(*v, "0.") == "":
			return 0, true
		case strings.HasPrefix(*v, "-"):
			return -1, true
		}
		return 1, true
	}
	client := n.client()
	if n.new == nil {
		delete(m.sides, client)
		return ""
	}
	now, known := sign(n.new)
	if n.old == nil {
		m.sides[client] = now
		return ""
	}
	was, wasKnown := sign(n.old)
	side := m.sides[n.old.at("clients_id")]
	delete(m.sides, n.old.at("clients_id"))
	if was != 0 {
		side = was
	}
	atZero := wasKnown && was == 0
	typ := ""
	switch {
	case !known || now == 0 && atZero:
	case now == 0 && side != 0:
		typ = map[int]string{1: "clients.balance_zero", -1: "clients.balance_notzero"}[side]
		side = -side
	case now == 0:
	case now != side && (side != 0 || atZero):
		typ = map[int]string{-1: "clients.balance_zero", 1: "clients.balance_notzero"}[now]
		side = now
	default:
		side = now
	}
	m.sides[client] = side
	return typ
}

// expect reads what triggers wrote and works out what must be told.
func expect(t testing.TB, db *pgtest.Database) map[string][]must {
	t.Helper()
	rows, err := db.Connect(t).Query(t.Context(), "SELECT xid, tab, old, new FROM seen ORDER BY seq")
	if err != nil {
		t.Fatal(err)
	}
	var order []uint32
	byXID := map[uint32][]sight{}
	var s sight
	var xid int64
	if _, err := pgx.ForEachRow(rows, []any{&xid, &s.tab, &s.old, &s.new}, func() error {
		s.xid = uint32(xid)
		if byXID[s.xid] == nil {
			order = append(order, s.xid)
		}
		byXID[s.xid] = append(byXID[s.xid], s)
		s.old, s.new = nil, nil
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	m := &model{sides: map[string]int{}, told: map[string][]must{}}
	for i := 1; i <= 30; i++ { // those that were there
		m.sides[strconv.Itoa(i)] = cmp.Compare(i%5-2, 0)
	}
	for _, xid := range order {
		m.transaction(byXID[xid])
	}
	return m.told
}

// disagrees says how a payload differs from what must be told.
func (m must) disagrees(a arrival) string {
	if a.typ != m.typ || strings.Trim(a.object, `"`) != m.object || a.xid != m.xid {
		return fmt.Sprintf("%s of %s in transaction %d", a.typ, a.object, a.xid)
	}
	var p struct {
		Data      map[string]any
		Changed   map[string]map[string]any
		Unchanged []string
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(a.body)))
	dec.UseNumber()
	if err := dec.Decode(&p); err != nil {
		return err.Error()
	}
	text := func(v any) string {
		if v == nil {
			return "<null>"
		}
		return fmt.Sprint(v)
	}
	for column := range m.data {
		v, ok := p.Data[column]
		if !ok && column == "info" && slices.Contains(p.Unchanged, "info") {
			continue // it lies elsewhere and did not come
		}
		// Of a deleted row only what is remembered is known.
		if !ok && strings.HasSuffix(m.typ, ".delete") || !ok && m.typ == "clients.packages.close" {
			continue
		}
		if !ok || text(v) != m.data.at(column) {
			return fmt.Sprintf("data.%s is %.60v, not %.60s", column, v, m.data.at(column))
		}
	}
	if m.changed == nil {
		return ""
	}
	for column := range p.Changed {
		if _, ok := m.changed[column]; !ok && column != "m_dt" {
			return fmt.Sprintf("changed.%s", column)
		}
	}
	for column := range m.changed {
		c, ok := p.Changed[column]
		if !ok && !watched(m.typ, column) {
			continue
		}
		if !ok || text(c["new"]) != m.changed.at(column) {
			return fmt.Sprintf("changed.%s is %.60v, not %.60s", column, c, m.changed.at(column))
		}
		if old, ok := c["old"]; ok && m.old != nil && text(old) != m.old.at(column) {
			return fmt.Sprintf("changed.%s.old is %.60v, not %.60s", column, old, m.old.at(column))
		}
	}
	return ""
}

// watched says whether changed must show a column: packages and balances are only
// remembered as far as their events need it.
func watched(typ, column string) bool {
	switch {
	case strings.HasPrefix(typ, "clients.packages."):
		return slices.Contains([]string{"condition", "status", "period_start_dt", "clients_id"}, column)
	case strings.HasPrefix(typ, "clients.balance_"):
		return column == "balance"
	}
	return true
}

// judge compares what came with what must have.
func judge(told map[string][]must, came []arrival) (wrong []string, events int) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	lanes := map[string][]arrival{}
	bodies := map[string]string{}
	for _, a := range came {
		body, ok := bodies[a.id]
		if !ok {
			bodies[a.id] = a.body
			lanes[a.lane] = append(lanes[a.lane], a)
		} else if body != a.body {
			say("two bodies under id %s:\n\t%s\n\t%s", a.id, body, a.body)
		}
	}
	for _, lane := range slices.Sorted(maps.Keys(told)) {
		events += len(told[lane])
		for i, m := range told[lane] {
			if i >= len(lanes[lane]) {
				say("client %s: %d events never came, the first %s", lane, len(told[lane])-i, m)
				break
			}
			if diff := m.disagrees(lanes[lane][i]); diff != "" {
				say("client %s, event %d: want %s; got %s: %.1500s", lane, i, m, diff, lanes[lane][i].body)
				break
			}
		}
	}
	for lane, list := range lanes {
		if n := len(told[lane]); len(list) > n {
			say("client %s: %d events too many, the first %.1500s", lane, len(list)-n, list[n].body)
		}
	}
	return wrong, events
}

// session runs random transactions until ctx ends or so many are done.
func modelSession(ctx context.Context, db *pgtest.Database, r *rand.Rand, left *atomic.Int64, rate time.Duration) error {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	tick := time.NewTicker(rate)
	defer tick.Stop()
	for left.Add(-1) >= 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if conn == nil || conn.IsClosed() {
			c, err := pgx.Connect(ctx, db.DSN)
			if err != nil {
				continue // it is being restarted
			}
			conn = c
		}
		for _, sql := range modelTransaction(r) {
			_, err := conn.Exec(ctx, sql)
			var pg interface{ SQLState() string }
			if errors.As(err, &pg) && (strings.HasPrefix(pg.SQLState(), "42") || strings.HasPrefix(pg.SQLState(), "22")) {
				return fmt.Errorf("%s: %w", sql, err) // the test's own mistake
			}
			if err != nil {
				_, _ = conn.Exec(ctx, "ROLLBACK")
				break
			}
		}
	}
	return nil
}

// modelTransaction makes up the statements of a transaction on one or two clients.
func modelTransaction(r *rand.Rand) []string {
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	pick := func() string {
		// Most are old acquaintances; others came since.
		if r.IntN(3) > 0 {
			return strconv.Itoa(1 + r.IntN(30))
		}
		return "(SELECT coalesce(max(id), 0) FROM (SELECT id FROM clients WHERE id >= 1000 ORDER BY id DESC LIMIT " + strconv.Itoa(1+r.IntN(8)) + ") c)"
	}
	sql := []string{"BEGIN"}
	// Both are locked, in order, and named by settings of the transaction.
	sql = append(sql, fmt.Sprintf(`DO $$ DECLARE a bigint := %s; b bigint := %s; n bigint := nextval('client_ids');
		BEGIN PERFORM pg_advisory_xact_lock(least(a, b)), pg_advisory_xact_lock(greatest(a, b)), pg_advisory_xact_lock(n);
		PERFORM set_config('m.a', a::text, true), set_config('m.b', b::text, true), set_config('m.n', n::text, true); END $$`, pick(), pick()))
	const a, b, n = "current_setting('m.a')::bigint", "current_setting('m.b')::bigint", "current_setting('m.n')::bigint"
	balance := func() string {
		return one("-3", "-0.5", "0", "0.00", "0.0001", "2", "7.25", "NULL", "balance + 1", "balance - 1", "-balance", "balance")
	}
	name := func() string {
		return one("'x'", "NULL", "'a name of more than eight bytes'", "'other name, also long'", "name", "name || ''")
	}
	statement := func() string {
		switch r.IntN(24) {
		case 0, 1:
			return "UPDATE clients SET name = " + name() + ", m_dt = m_dt + 1 WHERE id = " + a
		case 2:
			return "UPDATE clients SET status = " + one("'active'", "'disabled'", "'archive'") + ", credit = " + one("credit", "1", "123456789012.12345", "NULL") + " WHERE id IN (" + a + ", " + b + ")"
		case 3:
			return "UPDATE clients SET info = " + one("NULL", "'short'", "repeat(md5(random()::text), 100)", "info", "info") + " WHERE id = " + a
		case 4:
			return "UPDATE clients SET m_dt = coalesce(m_dt, 0) + 1 WHERE id = " + b
		case 5, 6, 7, 8, 9:
			return "UPDATE clients_balances SET balance = " + balance() + " WHERE clients_id IN (" + a + ", " + b + ")"
		case 10:
			return one("DELETE FROM clients_balances WHERE clients_id = "+a,
				"INSERT INTO clients_balances SELECT id, 0, "+one("1", "0", "-1", "NULL")+" FROM clients WHERE id = "+a+" ON CONFLICT DO NOTHING")
		case 11, 12:
			return "INSERT INTO clients_custom_fields SELECT id, " + one("'k0'", "'k1'", "'k2'") + ", 0, " + one("'v'", "NULL", "'a longer value of a field'") +
				" FROM clients WHERE id = " + a + " ON CONFLICT (clients_id, field_key) DO UPDATE SET value = excluded.value"
		case 13:
			return "DELETE FROM clients_custom_fields WHERE clients_id = " + a + " AND field_key " + one("= 'k0'", "= 'k1'", "<> 'k2'")
		case 14, 15:
			return "INSERT INTO accounts (clients_id, name) SELECT id, " + one("'account'", "NULL", "'an account with a longer name'") + " FROM clients, generate_series(1, " + one("1", "3") + ") WHERE id = " + a
		case 16:
			return "UPDATE accounts SET name = " + name() + ", m_dt = 1 WHERE clients_id = " + a
		case 17:
			return "UPDATE accounts SET clients_id = (SELECT id FROM clients WHERE id = " + b + ") WHERE id = (SELECT min(id) FROM accounts WHERE clients_id = " + a + ") AND EXISTS (SELECT FROM clients WHERE id = " + b + ")"
		case 18:
			return "DELETE FROM accounts WHERE id = (SELECT " + one("min", "max") + "(id) FROM accounts WHERE clients_id = " + a + ")"
		case 19:
			return "INSERT INTO clients_packages (clients_id, condition, status, period_start_dt) SELECT id, " + one("'new'", "'activated'") + ", 'active', " + one("NULL", "'2026-05-01'") + " FROM clients WHERE id = " + a
		case 20:
			return "UPDATE clients_packages SET " + one("condition = 'activated'", "condition = 'deactivated'", "status = 'archive'", "status = 'active'",
				"period_start_dt = period_start_dt + 31", "period_start_dt = period_start_dt - 1", "period_start_dt = '2026-02-01'", "condition = condition") + " WHERE clients_id = " + a
		case 21:
			return "DELETE FROM clients_packages WHERE id = (SELECT max(id) FROM clients_packages WHERE clients_id = " + a + ")"
		case 22:
			return "WITH c AS (INSERT INTO clients SELECT " + n + ", 0, 'new', 'active', 0, " + one("NULL", "repeat('x', 5000)") +
				" WHERE NOT EXISTS (SELECT FROM clients WHERE id = " + n + ") RETURNING id) SELECT id FROM c"
		}
		switch r.IntN(4) {
		case 0:
			return "DELETE FROM clients WHERE id = " + a + " AND id >= 1000"
		case 1:
			return "UPDATE clients SET id = " + n + " WHERE id = " + a + " AND id >= 1000 AND NOT EXISTS (SELECT FROM clients WHERE id = " + n + ")"
		case 2:
			return "INSERT INTO clients_balances SELECT id, 0, 5 FROM clients WHERE id = " + n + " ON CONFLICT DO NOTHING"
		}
		return "INSERT INTO clients_custom_fields SELECT id, 'k1', 0, 'of a new client' FROM clients WHERE id = " + n + " ON CONFLICT DO NOTHING"
	}
	for range 1 + r.IntN(6) {
		if r.IntN(6) > 0 {
			sql = append(sql, statement())
			continue
		}
		sql = append(sql, "SAVEPOINT s", statement(), statement(), one("ROLLBACK TO s", "RELEASE s"))
	}
	return append(sql, one("COMMIT", "COMMIT", "COMMIT", "COMMIT", "COMMIT", "COMMIT", "COMMIT", "ROLLBACK"))
}

// TestModel runs random transactions in concurrent sessions, under each replica
// identity, while Billhook is killed and the server restarted at random, and
// compares what a receiver was told with the model.
//
// BILLHOOK_MODEL_TRANSACTIONS is how many transactions there are for each identity;
// make nightly runs many.
func TestModel(t *testing.T) {
	t.Parallel()
	transactions := scaled(t, 1000)
	if text := os.Getenv("BILLHOOK_MODEL_TRANSACTIONS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		transactions = n
	}
	seed := newSeed(t)
	chance := rand.New(rand.NewPCG(seed, 1))

	pg := pgtest.Start(t, map[string]string{"max_replication_slots": "8", "max_wal_senders": "8"})
	type run struct {
		identity string
		db       *pgtest.Database
		r        *receiver
		in       *instance
	}
	var runs []*run
	for _, identity := range []string{"DEFAULT", "FULL", "USING INDEX"} {
		x := &run{identity: identity, db: pgtest.NewDatabaseOn(t, pg), r: newReceiver(t)}
		x.db.Exec(t, modelSQL)
		for table, key := range modelTables {
			to := identity
			if identity == "USING INDEX" {
				x.db.Exec(t, fmt.Sprintf("CREATE UNIQUE INDEX %s_ri ON %[1]s (%s, ref)", table, key))
				to += " " + table + "_ri"
			}
			x.db.Exec(t, "ALTER TABLE "+table+" REPLICA IDENTITY "+to)
		}
		x.r.failing.Store(5)
		x.in = install(t, x.db.DSN, fmt.Sprintf(modelYAML, x.db.Name), fmt.Sprintf(`version: 1
defaults:
  retry: {attempts: 10000, initial: 20ms, max: 200ms, factor: 2, jitter: 0.5}
handlers: [{id: 1, name: All, event: "*", http: {url: %q}}]
`, x.r.url))
		x.in.start()
		x.in.waitReady()
		runs = append(runs, x)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var sessions sync.WaitGroup
	working := make(chan struct{})
	for n, x := range runs {
		left := new(atomic.Int64)
		left.Store(int64(transactions))
		for i := range 3 {
			r := rand.New(rand.NewPCG(seed, uint64(100*n+i)))
			sessions.Go(func() {
				if err := modelSession(ctx, x.db, r, left, 4*time.Millisecond); err != nil {
					t.Errorf("%s: %v", x.identity, err)
				}
			})
		}
	}
	go func() {
		sessions.Wait()
		close(working)
	}()
	lives := 0
	for on := true; on; {
		select {
		case <-working:
			on = false
		case <-time.After(time.Duration(200+chance.IntN(1200)) * time.Millisecond):
			if chance.IntN(6) == 0 {
				mode := []cluster.Mode{cluster.Immediate, cluster.Fast}[chance.IntN(2)]
				if err := pg.Restart(t.Context(), mode); err != nil {
					t.Fatal(err)
				}
				continue
			}
			x := runs[chance.IntN(len(runs))]
			x.in.alive()
			x.in.kill()
			x.in.start()
			lives++
		}
	}
	for _, x := range runs {
		x.r.failing.Store(0)
		x.in.waitReady()
		b := &bench{t, x.db}
		b.caughtUp(x.in, 2*time.Minute)
		wrong, events := judge(expect(t, x.db), x.r.all(t))
		t.Logf("%s: %d events in %d requests", x.identity, events, len(x.r.all(t)))
		for _, w := range wrong[:min(len(wrong), maxReasons)] {
			t.Errorf("%s: %s", x.identity, w)
		}
		if events < transactions/3 {
			t.Errorf("%s: only %d events of %d transactions: this proves little", x.identity, events, transactions)
		}
		// Memory has not drifted: what is written again as it was tells nothing.
		before := len(x.r.all(t))
		for table := range modelTables {
			x.db.Exec(t, "UPDATE "+table+" SET ref = ref")
		}
		b.caughtUp(x.in, time.Minute)
		for _, a := range x.r.all(t)[before:] {
			t.Errorf("%s: writing rows as they were told %s", x.identity, a.body)
		}
		x.in.stop()
	}
	t.Logf("killed %d times", lives)
}
