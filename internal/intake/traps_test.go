package intake_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/url"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/backfill"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/intake"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
	"github.com/billhook/billhook/internal/wal"
)

// line is a stream into a journal, from a real server, as internal/app wires it.
type line struct {
	t       *testing.T
	db      *pgtest.Database
	journal *journal.Journal
	client  *replication.Client
	intake  *intake.Intake
	stop    func()
	failed  atomic.Pointer[string] // what intake ended with
}

// setup says what differs between lines.
type setup struct {
	dir     string // of the journal
	dsn     string // "": the database's own
	mapping billing.Mapping
	tables  []replication.Table // nil: those of the mapping, whole
	own     bool                // publication and slot are there already
}

func tables(m billing.Mapping) []replication.Table {
	var out []replication.Table
	for _, t := range billing.Tables(m) {
		out = append(out, replication.Table{Name: catalog.Name{Schema: t.Schema, Table: t.Name}})
	}
	return out
}

func public(name string) billing.Table { return billing.Table{Schema: "public", Name: name} }

// clientsOf maps clients with a balance beside their names.
func clientsOf(t *testing.T) billing.Mapping {
	t.Helper()
	balance, err := expr.CompileNumber("balance")
	if err != nil {
		t.Fatal(err)
	}
	return billing.Mapping{Source: "test", Entities: []billing.Entity{{
		Name: billing.Clients, Table: public("clients"), Key: []string{"id"}, Balance: &billing.Balance{Amount: balance},
	}}}
}

func open(t *testing.T, db *pgtest.Database, s setup) *line {
	t.Helper()
	f := &line{t: t, db: db}
	var err error
	if f.journal, err = journal.Open(journal.Options{Path: s.dir}); err != nil {
		t.Fatal(err)
	}
	if s.dsn == "" {
		s.dsn = db.DSN
	}
	if s.tables == nil {
		s.tables = tables(s.mapping)
	}
	position, _ := f.journal.Position()
	f.client, err = replication.New(replication.Options{
		DSN: s.dsn, Slot: db.Name, Publication: "p", Create: !s.own, Tables: s.tables, PollInterval: 200 * time.Millisecond,
		Resume: replication.Position{
			SystemID: position.SystemID, Timeline: position.Timeline, Slot: position.Slot,
			Publication: position.Publication, PublicationOID: position.PublicationOID, LSN: position.EndLSN,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.intake, err = intake.New(intake.Options{
		Journal: f.journal, Mapping: s.mapping, Confirm: f.client.Confirm,
		Plan:  func(*event.Event) []journal.Planned { return []journal.Planned{{Handler: 1, Priority: 1}} },
		Wants: func(event.Type) bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	streaming, stopStream := context.WithCancel(context.WithoutCancel(t.Context()))
	taking, stopIntake := context.WithCancel(context.WithoutCancel(t.Context()))
	chunks := make(chan *replication.Chunk)
	var stream, take sync.WaitGroup
	stream.Go(func() {
		if err := f.client.Run(streaming, chunks); err != nil {
			t.Errorf("stream: %v", err)
		}
	})
	take.Go(func() {
		if err := f.intake.Run(taking, chunks); err != nil {
			text := err.Error()
			f.failed.Store(&text)
			stopStream() // as internal/app does
		}
	})
	f.stop = sync.OnceFunc(func() {
		stopStream()
		stream.Wait()
		stopIntake()
		take.Wait()
		if err := f.journal.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(func() { f.stop() })
	until(t, "the stream", func() bool { return f.client.State().Phase == replication.Streaming || f.failed.Load() != nil })
	return f
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// fill fills memory from the tables.
func (f *line) fill(dsn string) {
	f.t.Helper()
	r, err := snapshot.Open(f.t.Context(), dsn)
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close(context.WithoutCancel(f.t.Context()))
	if err := f.intake.Fill(f.t.Context(), r, "p"); err != nil {
		f.t.Fatal(err)
	}
}

// backfill tells one handler of all clients.
func (f *line) backfill(dsn string, m billing.Mapping) {
	f.t.Helper()
	b, err := backfill.New(f.t.Context(), backfill.Options{
		Journal: f.journal, Mapping: m, Intake: f.intake, Publication: "p",
		Open: func(ctx context.Context) (*snapshot.Reader, error) { return snapshot.Open(ctx, dsn) },
		Plan: func(*event.Event) []journal.Planned { return []journal.Planned{{Handler: 1}} },
		Handlers: func() []backfill.Handler {
			return []backfill.Handler{{ID: 1, Listens: func(event.Type) bool { return true }}}
		},
		Resolve: func(name string) []event.Type { return []event.Type{event.Type(name)} },
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		if err := b.Run(ctx); err != nil {
			f.t.Error(err)
		}
	})
	st, err := b.Start(ctx, backfill.Spec{Events: []event.Type{"clients.create"}, Handlers: []int{1}})
	if err != nil {
		f.t.Fatal(err)
	}
	until(f.t, "the backfill to have told some", func() bool {
		st, err = b.Get(st.ID)
		return err != nil || st.Executions >= 500
	})
	if _, err := b.Cancel(ctx, st.ID); err != nil {
		f.t.Error(err)
	}
}

// settle waits until all that the database has committed is in the journal.
func (f *line) settle() {
	f.t.Helper()
	target, err := wal.ParseLSN(pgtest.Value[string](f.t, f.db, "SELECT pg_current_wal_insert_lsn()::text"))
	if err != nil {
		f.t.Fatal(err)
	}
	// A commit after it, so that there is a position to wait for.
	f.db.Exec(f.t, "SELECT pg_logical_emit_message(true, 'test', '')")
	until(f.t, "the journal", func() bool {
		p, ok := f.journal.Position()
		return ok && p.EndLSN >= target
	})
}

// events are all in the journal, oldest first: "clients.update 4711".
func (f *line) events() []string {
	f.t.Helper()
	f.settle()
	var out []string
	q := journal.Query{Limit: 1000}
	for {
		page, next, err := f.journal.Executions(f.t.Context(), q)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, x := range page {
			out = append(out, string(x.Type)+" "+x.Object)
		}
		if next == 0 {
			break
		}
		q.Before = next
	}
	slices.Reverse(out)
	return out
}

// expect wants exactly these events since the journal began.
func (f *line) expect(want ...string) {
	f.t.Helper()
	if got := f.events(); !slices.Equal(got, want) {
		f.t.Errorf("events:\n got %s\nwant %s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
}

const clientsTable = "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)"

// TestCutAtEachFrame cuts the connection behind each frame of a transaction: its
// events are in the journal once, all of them, whatever was there when it broke.
func TestCutAtEachFrame(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, clientsTable, "INSERT INTO clients VALUES (1, 'one', 1), (2, 'two', 1)")
	proxy := pgtest.NewProxy(t, db.Cluster.Port())
	u, err := url.Parse(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = proxy.Address
	s := setup{dir: t.TempDir() + "/j", dsn: u.String(), mapping: clientsOf(t)}
	f := open(t, db, s)
	f.fill(db.DSN)
	f.settle()
	f.stop()
	var want []string
	for n := 1; ; n++ {
		id := 100 + n
		db.Exec(t, fmt.Sprintf("BEGIN; UPDATE clients SET balance = -balance WHERE id = 1; INSERT INTO clients VALUES (%d, 'new', 1); UPDATE clients SET name = 'two %[1]d' WHERE id = 2; DELETE FROM clients WHERE id = %[1]d - 1; COMMIT", id))
		side := "clients.balance_zero 1"
		if n%2 == 0 {
			side = "clients.balance_notzero 1"
		}
		want = append(want, side, fmt.Sprintf("clients.create %d", id), "clients.update 2")
		if n > 1 {
			want = append(want, fmt.Sprintf("clients.delete %d", id-1))
		}
		frames, cut := 0, false
		proxy.Filter(func(kind byte, body []byte) pgtest.Verdict {
			if kind != 'd' || len(body) < 26 || body[0] != 'w' || cut {
				return pgtest.Pass
			}
			if frames++; frames < n {
				return pgtest.Pass
			}
			cut = true
			return pgtest.Cut
		})
		f = open(t, db, s)
		f.expect(want...)
		until(t, "the cut or the end", func() bool { return f.client.State().Reconnects > 0 || n > 8 })
		f.stop()
		if n == 9 { // B R U I U D C and the transaction of settle: every frame has had its turn
			return
		}
	}
}

// TestIdentities: many rows at one position, by COPY and by one statement, in one
// transaction that comes again, have ids of their own. Another journal, over
// another slot, finds the same ids and the same payloads.
func TestIdentities(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, clientsTable, "CREATE PUBLICATION p FOR TABLE clients", "SELECT pg_create_logical_replication_slot(current_database(), 'pgoutput')")
	db.Exec(t, "SELECT pg_create_logical_replication_slot(current_database() || '_2', 'pgoutput')")
	conn := db.Connect(t)
	if _, err := conn.Exec(t.Context(), "BEGIN"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.CopyFrom(t.Context(), pgx.Identifier{"clients"}, []string{"id", "name"}, pgx.CopyFromRows([][]any{{1, "a"}, {2, "b"}, {3, "c"}})); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"INSERT INTO clients VALUES (4), (5), (6)", "INSERT INTO clients VALUES (7)", "COMMIT", "UPDATE clients SET name = 'd'"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	s := setup{dir: t.TempDir() + "/a", mapping: clientsOf(t), own: true}
	one := open(t, db, s)
	one.settle()
	one.stop()
	one = open(t, db, s) // and again
	events := func(f *line) (list []string) {
		f.settle()
		page, _, err := f.journal.Executions(t.Context(), journal.Query{Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		ids := map[event.ID]bool{}
		for _, x := range slices.Backward(page) {
			e, err := f.journal.Event(x.Event)
			if err != nil {
				t.Fatal(err)
			}
			if ids[e.ID] {
				t.Errorf("id %s is there twice", e.ID)
			}
			ids[e.ID] = true
			list = append(list, e.ID.String()+" "+string(e.AppendPayload(nil)))
		}
		return list
	}
	first := events(one)
	if len(first) != 14 {
		t.Errorf("%d events, want 14", len(first))
	}
	again := *db
	again.Name += "_2" // names the slot
	two := open(t, &again, setup{dir: t.TempDir() + "/b", mapping: clientsOf(t), own: true})
	if second := events(two); !slices.Equal(first, second) {
		t.Errorf("the same transactions became\n%s\nand then\n%s", strings.Join(first, "\n"), strings.Join(second, "\n"))
	}
}

// TestAnyIdentity: the same statements make the same events whatever old rows the
// tables send. A client whose key changes is no second one.
func TestAnyIdentity(t *testing.T) {
	t.Parallel()
	for _, identity := range []string{"DEFAULT", "FULL", "USING INDEX clients_other"} {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric, note text)", "CREATE UNIQUE INDEX clients_other ON clients (id) INCLUDE (name)",
				"ALTER TABLE clients ALTER note SET STORAGE EXTERNAL; ALTER TABLE clients REPLICA IDENTITY "+identity,
				"INSERT INTO clients VALUES (1, 'one', 5, repeat('x', 9000)), (2, 'two', -5, NULL)")
			f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: clientsOf(t)})
			f.fill(db.DSN)
			db.Exec(t, "UPDATE clients SET balance = -balance")
			db.Exec(t, "UPDATE clients SET name = name, note = note")
			db.Exec(t, "UPDATE clients SET name = 'uno', balance = 0 WHERE id = 1")
			db.Exec(t, "UPDATE clients SET id = 11 WHERE id = 1")
			db.Exec(t, "UPDATE clients SET balance = balance - 5")
			db.Exec(t, "UPDATE clients SET note = 'short' WHERE id = 11")
			db.Exec(t, "DELETE FROM clients")
			got := f.events()
			// A changed key is told as an update of the new one.
			want := []string{"clients.balance_zero 1", "clients.balance_notzero 2", "clients.update 1", "clients.balance_notzero 1", "clients.update 11", "clients.balance_zero 11", "clients.balance_zero 2", "clients.update 11", "clients.delete 2", "clients.delete 11"}
			slices.Sort(got)
			slices.Sort(want) // within a transaction the order of rows is the statement's
			if !slices.Equal(got, want) {
				t.Errorf("events:\n got %s\nwant %s", strings.Join(got, ", "), strings.Join(want, ", "))
			}
		})
	}
}

// TestRenamedTables: what is mapped is mapped by name. A table that is renamed is
// mapped no more, and told as missing from the publication; swapped tables change
// places; a table that is made again under its name, and published again, goes on.
func TestRenamedTables(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, clientsTable, "CREATE TABLE clients_new (id bigint PRIMARY KEY, name text, balance numeric)", "CREATE PUBLICATION p FOR TABLE clients, clients_new",
		"SELECT pg_create_logical_replication_slot(current_database(), 'pgoutput')")
	f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: clientsOf(t), own: true})
	f.fill(db.DSN)
	db.Exec(t, "INSERT INTO clients VALUES (1, 'one', 1); INSERT INTO clients_new VALUES (2, 'not mapped', 1)")
	db.Exec(t, "BEGIN; ALTER TABLE clients RENAME TO clients_old; ALTER TABLE clients_new RENAME TO clients; INSERT INTO clients_old VALUES (3, 'no longer mapped', 1); INSERT INTO clients VALUES (4, 'four', 1); COMMIT")
	f.expect("clients.create 1", "clients.create 4")
	db.Exec(t, "DROP TABLE clients; CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)")
	until(t, "the fault", func() bool { return f.client.State().Faults[replication.FaultPublication] != "" })
	db.Exec(t, "ALTER PUBLICATION p ADD TABLE clients; INSERT INTO clients VALUES (5, 'five', 1)")
	db.Exec(t, "UPDATE clients SET balance = -1")
	until(t, "the fault's end", func() bool { return len(f.client.State().Faults) == 0 })
	f.expect("clients.create 1", "clients.create 4", "clients.create 5", "clients.balance_zero 5")
}

// TestPartitionedTable: clients in partitions make the events of clients in one
// table, with partitions that say FULL and partitions that do not, and one that is
// attached while the stream runs. A row that moves is one client still.
func TestPartitionedTable(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `CREATE TABLE clients (id bigint, region int, name text, balance numeric, PRIMARY KEY (id, region)) PARTITION BY LIST (region)`,
		"CREATE TABLE clients_1 PARTITION OF clients FOR VALUES IN (1)", "CREATE TABLE clients_2 PARTITION OF clients FOR VALUES IN (2)",
		"ALTER TABLE clients REPLICA IDENTITY FULL; ALTER TABLE clients_1 REPLICA IDENTITY FULL",
		"INSERT INTO clients VALUES (1, 1, 'one', 1), (2, 2, 'two', 1)")
	m := clientsOf(t)
	f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: m})
	f.fill(db.DSN)
	db.Exec(t, "CREATE TABLE clients_3 PARTITION OF clients FOR VALUES IN (3)")
	db.Exec(t, "INSERT INTO clients VALUES (3, 3, 'three', 1)")
	db.Exec(t, "UPDATE clients SET balance = -1")
	db.Exec(t, "UPDATE clients SET name = name") // nothing differs
	db.Exec(t, "UPDATE clients SET name = 'new' WHERE id = 3")
	db.Exec(t, "DELETE FROM clients WHERE id = 3")
	f.expect("clients.create 3", "clients.balance_zero 1", "clients.balance_zero 2", "clients.balance_zero 3", "clients.update 3", "clients.delete 3")
	n := len(f.events())
	db.Exec(t, "UPDATE clients SET region = 2 WHERE id = 1")
	if moved := f.events()[n:]; !slices.Equal(moved, []string{"clients.update 1"}) {
		t.Errorf("a move made %v", moved)
	}
	db.Exec(t, "UPDATE clients SET balance = 1 WHERE id = 1")
	if got := f.events(); got[len(got)-1] != "clients.balance_notzero 1" {
		t.Errorf("after the move: %v", got[n:])
	}
}

// TestRowFilter: a row that crosses a publication's filter is inserted or deleted,
// as far as anybody can tell; the doctor warns of it.
func TestRowFilter(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, clientsTable)
	if db.Cluster.Version() < 15 {
		t.Skip("from Postgres 15 on")
	}
	db.Exec(t, "ALTER TABLE clients REPLICA IDENTITY FULL; INSERT INTO clients VALUES (1, 'one', 1); CREATE PUBLICATION p FOR TABLE clients WHERE (balance < 0)")
	db.Exec(t, "SELECT pg_create_logical_replication_slot(current_database(), 'pgoutput')")
	f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: clientsOf(t), own: true})
	f.fill(db.DSN)
	f.settle()
	db.Exec(t, "UPDATE clients SET balance = -1")
	db.Exec(t, "UPDATE clients SET balance = -2, name = 'uno'")
	db.Exec(t, "UPDATE clients SET balance = 1")
	f.expect("clients.create 1", "clients.update 1", "clients.delete 1")
}

// TestColumnList: a column that stays in the database is in no event, and makes
// none.
func TestColumnList(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric, secret text)")
	if db.Cluster.Version() < 15 {
		t.Skip("from Postgres 15 on")
	}
	m := clientsOf(t)
	m.Entities[0].Exclude = []string{"secret"}
	list := tables(m)
	list[0].Exclude = []string{"secret"}
	f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: m, tables: list})
	f.fill(db.DSN)
	db.Exec(t, "INSERT INTO clients VALUES (1, 'one', 1, 'hunter2')")
	db.Exec(t, "UPDATE clients SET secret = 'hunter3'")
	db.Exec(t, "UPDATE clients SET name = 'uno', secret = 'hunter4'")
	f.expect("clients.create 1", "clients.update 1")
	page, _, err := f.journal.Executions(t.Context(), journal.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range page {
		e, err := f.journal.Event(x.Event)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(e.AppendPayload(nil)); strings.Contains(text, "secret") || strings.Contains(text, "hunter") {
			t.Errorf("payload %s", text)
		}
	}
}

// TestSideTables: a client in three tables is one client, and its custom fields are
// told once a transaction, large ones that a statement leaves alone not at all.
func TestSideTables(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, extra jsonb)", "ALTER TABLE clients ALTER extra SET STORAGE EXTERNAL",
		"CREATE TABLE balances (clients_id bigint PRIMARY KEY, balance numeric)", "CREATE TABLE fields (clients_id bigint, name text, value text, PRIMARY KEY (clients_id, name))",
		"INSERT INTO clients VALUES (1, 'one', jsonb_build_object('k', repeat('x', 9000))); INSERT INTO balances VALUES (1, 5); INSERT INTO fields VALUES (1, 'a', '1')")
	m := clientsOf(t)
	side, fields := public("balances"), public("fields")
	m.Entities[0].Balance.Table, m.Entities[0].Balance.Key = &side, []string{"clients_id"}
	m.Entities[0].CustomFields = &billing.CustomFields{Table: &fields, Client: []string{"clients_id"}, Name: "name", Value: "value"}
	f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: m})
	f.fill(db.DSN)
	db.Exec(t, "UPDATE clients SET name = name") // the large value is not sent
	db.Exec(t, "BEGIN; UPDATE balances SET balance = 0; UPDATE fields SET value = '2'; INSERT INTO fields VALUES (1, 'b', '1'); COMMIT")
	db.Exec(t, "UPDATE clients SET name = 'uno'")
	db.Exec(t, "TRUNCATE fields")
	db.Exec(t, "INSERT INTO fields VALUES (1, 'a', '2')")
	got := f.events()
	want := []string{"clients.balance_zero 1", "clients.custom_fields.update 1", "clients.update 1", "clients.custom_fields.update 1"}
	if !slices.Equal(got, want) {
		t.Errorf("events:\n got %s\nwant %s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
}

// TestTruncated: after a TRUNCATE the same keys are new clients.
func TestTruncated(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, clientsTable, "CREATE TABLE accounts (id bigint PRIMARY KEY, clients_id bigint REFERENCES clients)", "INSERT INTO clients VALUES (1, 'one', 1)")
	m := clientsOf(t)
	m.Entities = append(m.Entities, billing.Entity{Name: billing.Accounts, Table: public("accounts"), Key: []string{"id"}, Client: []string{"clients_id"}})
	f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: m})
	f.fill(db.DSN)
	db.Exec(t, "INSERT INTO accounts VALUES (1, 1)")
	db.Exec(t, "TRUNCATE clients CASCADE")
	db.Exec(t, "INSERT INTO clients VALUES (1, 'one', -1); INSERT INTO accounts VALUES (1, 1)")
	db.Exec(t, "UPDATE clients SET balance = 1")
	f.expect("clients.accounts.create 1", "clients.create 1", "clients.accounts.create 1", "clients.balance_notzero 1")
}

// TestDomainsAndEnums: a balance of a domain type, a status that is renamed in
// mid-stream, values that are no numbers.
func TestDomainsAndEnums(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `CREATE DOMAIN money_exact AS numeric(30,12); CREATE TYPE state AS ENUM ('active', 'gone');
		CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance money_exact, state state DEFAULT 'active')`,
		"INSERT INTO clients VALUES (1, 'one', 0.000000000001), (2, 'two', 123456789012345678.000000000001)")
	m := clientsOf(t)
	m.Entities[0].Archive = &billing.Test{Becomes: &billing.Predicate{Column: "state", Values: []string{"archived"}}}
	f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: m})
	f.fill(db.DSN)
	db.Exec(t, "UPDATE clients SET balance = -0.000000000001 WHERE id = 1")
	db.Exec(t, "UPDATE clients SET balance = 'NaN' WHERE id = 2")
	db.Exec(t, "UPDATE clients SET balance = 0.000000000001 WHERE id = 2")
	db.Exec(t, "ALTER TYPE state RENAME VALUE 'gone' TO 'archived'")
	db.Exec(t, "UPDATE clients SET state = 'archived' WHERE id = 1")
	f.expect("clients.balance_zero 1", "clients.archive 1")
}

// TestIdentityThereAndBack: the table has REPLICA IDENTITY FULL for a while. What was
// remembered before is not taken for what is, and rows that have changed meanwhile are
// filled in again, without a restart.
func TestIdentityThereAndBack(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, clientsTable, "INSERT INTO clients SELECT i, 'client', 1 FROM generate_series(1, 50) i")
	f := open(t, db, setup{dir: t.TempDir() + "/j", mapping: clientsOf(t)})
	f.fill(db.DSN)
	again := func() {
		t.Helper()
		select {
		case <-f.intake.Refill():
			f.fill(db.DSN)
		case <-time.After(20 * time.Second):
			if p := f.failed.Load(); p != nil {
				t.Fatal(*p)
			}
			t.Fatal("nobody asks for the table to be filled in again")
		}
	}
	db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 1")
	db.Exec(t, "ALTER TABLE clients REPLICA IDENTITY FULL")
	db.Exec(t, "UPDATE clients SET balance = -balance WHERE id < 4")
	again()
	db.Exec(t, "UPDATE clients SET balance = -2 WHERE id = 4; UPDATE clients SET id = 100 WHERE id = 5")
	db.Exec(t, "ALTER TABLE clients REPLICA IDENTITY DEFAULT")
	db.Exec(t, "UPDATE clients SET name = 'x' WHERE id = 50")
	again()
	db.Exec(t, "UPDATE clients SET balance = -balance WHERE id < 6 OR id = 100")
	want := []string{
		"clients.balance_zero 1", "clients.balance_notzero 1", "clients.balance_zero 2", "clients.balance_zero 3",
		"clients.balance_zero 4", "clients.update 100", "clients.update 50",
		"clients.balance_zero 1", "clients.balance_notzero 2", "clients.balance_notzero 3", "clients.balance_notzero 4", "clients.balance_zero 100",
	}
	f.expect(want...)

	// Back and forth before anybody looks.
	db.Exec(t, "ALTER TABLE clients REPLICA IDENTITY FULL; UPDATE clients SET balance = 3 WHERE id = 1; ALTER TABLE clients REPLICA IDENTITY DEFAULT; UPDATE clients SET name = 'y' WHERE id = 50")
	again()
	db.Exec(t, "UPDATE clients SET balance = -3 WHERE id = 1")
	f.expect(append(want, "clients.balance_notzero 1", "clients.update 50", "clients.balance_zero 1")...)
}

// TestUndecodable: a message that makes no sense stops intake with a text that says
// where; nothing of it is confirmed, so nothing is lost, and what comes after is
// not taken in its stead.
func TestUndecodable(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, clientsTable)
	proxy := pgtest.NewProxy(t, db.Cluster.Port())
	u, err := url.Parse(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = proxy.Address
	s := setup{dir: t.TempDir() + "/j", dsn: u.String(), mapping: clientsOf(t)}
	f := open(t, db, s)
	f.stop()
	for _, c := range []struct {
		name  string
		spoil func(body []byte)
		want  string
	}{
		{"unknown", func(b []byte) { b[25] = '?' }, `decode pgoutput: unknown message '\?' of \d+ bytes`},
		{"truncated", func(b []byte) { binary.BigEndian.PutUint16(b[31:], 9) }, `decode INSERT at byte 6: a tuple of 9 columns, but public.clients was described with 3`},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Other databases of the cluster move the slot too, up to here.
			inside := pgtest.Value[string](t, db, "WITH i AS (INSERT INTO clients SELECT coalesce(max(id), 0) + 1, 'x' FROM clients RETURNING id) SELECT pg_current_wal_insert_lsn()::text FROM i")
			proxy.Filter(func(kind byte, body []byte) pgtest.Verdict {
				if kind == 'd' && len(body) > 33 && body[0] == 'w' && body[25] == 'I' {
					c.spoil(body)
				}
				return pgtest.Pass
			})
			f := open(t, db, s)
			until(t, "intake to stop", func() bool { return f.failed.Load() != nil })
			if got := *f.failed.Load(); !regexp.MustCompile(`^decode the stream at [0-9A-F]+/[0-9A-F]+: ` + c.want + `$`).MatchString(got) {
				t.Errorf("error %s", got)
			}
			f.stop()
			if past := pgtest.Value[bool](t, db, "SELECT confirmed_flush_lsn > $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1", db.Name, inside); past {
				t.Errorf("the slot went past the transaction, which wrote at %s", inside)
			}
		})
	}
	proxy.Filter(nil)
	f = open(t, db, s)
	f.expect("clients.create 1", "clients.create 2")
}

// TestFootprint runs all that Billhook does with a database, from the first attach
// to its removal, in a role of its own, and looks what that takes and leaves there:
// no lock that the application could meet beyond what altering a publication takes,
// and no transaction but those of its publication and its marks.
func TestFootprint(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, map[string]string{"autovacuum": "off", "deadlock_timeout": "50ms", "log_lock_waits": "on", "track_commit_timestamp": "on"})
	db := pgtest.NewDatabaseOn(t, server, clientsTable, "CREATE TABLE accounts (id bigint PRIMARY KEY, clients_id bigint)", "CREATE TABLE app (n int)",
		"INSERT INTO clients SELECT g, 'client ' || g, g % 5 - 2 FROM generate_series(1, 20000) g", "INSERT INTO accounts SELECT g, g FROM generate_series(1, 6000) g", "VACUUM ANALYZE")
	role, dsn := db.Role(t, "REPLICATION", "ALTER TABLE clients OWNER TO $role", "ALTER TABLE accounts OWNER TO $role")
	db.Exec(t, "GRANT CREATE ON DATABASE "+db.Name+" TO "+role)

	// Somebody reads for long, and somebody writes and would notice a wait.
	long := db.Connect(t)
	if _, err := long.Exec(t.Context(), "BEGIN; SELECT count(*) FROM clients"); err != nil {
		t.Fatal(err)
	}
	sampling, done := context.WithCancel(t.Context())
	var aside sync.WaitGroup
	defer aside.Wait()
	defer done()
	locks := map[string]bool{} // mode on what, of Billhook's sessions
	watcher := db.Connect(t)
	aside.Go(func() {
		for sampling.Err() == nil {
			rows, err := watcher.Query(context.WithoutCancel(sampling), `SELECT DISTINCT l.mode || ' on ' || CASE WHEN c.oid IS NULL THEN l.locktype WHEN c.oid < 16384 THEN 'catalogs' WHEN c.relkind = 'i' THEN 'indexes' ELSE c.relname END
				FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid LEFT JOIN pg_class c ON c.oid = l.relation WHERE a.usename = $1`, role)
			if err == nil {
				var got []string
				if got, err = pgx.CollectRows(rows, pgx.RowTo[string]); err == nil {
					for _, s := range got {
						locks[s] = true
					}
				}
			}
			if err != nil {
				t.Errorf("sample locks: %v", err)
				return
			}
		}
	})
	var writes atomic.Int64
	writer := db.Connect(t)
	aside.Go(func() {
		ctx := context.WithoutCancel(sampling)
		if _, err := writer.Exec(ctx, "SET lock_timeout = '300ms'"); err != nil {
			t.Error(err)
			return
		}
		// So that the stream keeps up on a busy machine too: with the race detector a read
		// of memory takes the store half a millisecond.
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for sampling.Err() == nil {
			<-tick.C
			n := writes.Add(1)
			if _, err := writer.Exec(ctx, fmt.Sprintf("UPDATE clients SET name = 'w%d' WHERE id = %d; INSERT INTO accounts VALUES (%d, 1); DELETE FROM accounts WHERE id = %[3]d", n, n%20000+1, 1_000_000+n)); err != nil {
				t.Errorf("the application's statement failed: %v", err)
				return
			}
		}
	})

	begin := pgtest.Value[string](t, db, "SELECT lsn::text FROM pg_create_logical_replication_slot('witness', 'test_decoding')")
	m := clientsOf(t)
	s := setup{dir: t.TempDir() + "/j", dsn: dsn, mapping: m}
	f := open(t, db, s)
	f.fill(dsn)
	f.stop()
	m.Entities = append(m.Entities, billing.Entity{Name: billing.Accounts, Table: public("accounts"), Key: []string{"id"}, Client: []string{"clients_id"}})
	s.mapping = m // a table more
	f = open(t, db, s)
	f.fill(dsn)
	f.backfill(dsn, m)
	until(t, "the application to write beside all that", func() bool { return writes.Load() >= 50 })
	f.settle()
	f.stop()
	if _, err := f.client.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	done()
	aside.Wait()
	end := pgtest.Value[string](t, db, "SELECT pg_current_wal_flush_lsn()::text")

	// Locks: what a SELECT takes, and on the tables what altering a publication takes,
	// which no SELECT, INSERT, UPDATE or DELETE waits for.
	for s := range locks {
		mode, on, _ := strings.Cut(s, " on ")
		switch {
		case mode == "AccessShareLock", on == "catalogs", on == "virtualxid", on == "transactionid":
		case mode == "ShareUpdateExclusiveLock" && (on == "clients" || on == "accounts"):
		case on == "object" && (mode == "AccessShareLock" || mode == "RowShareLock" || mode == "AccessExclusiveLock" || mode == "ShareUpdateExclusiveLock" || mode == "RowExclusiveLock"): // the publication itself
		default:
			t.Errorf("a lock %s", s)
		}
	}
	if len(locks) == 0 { // those on tables may be too short to be met on a busy machine
		t.Error("no lock was seen at all: the sampling sees nothing")
	}
	if log := server.LogTail(400); strings.Contains(log, "still waiting for") {
		t.Errorf("somebody waited for a lock:\n%s", log)
	}

	// Transactions: the writer's change tables; what is left are Billhook's marks,
	// settle's, and the publication's, which have no rows to decode.
	type tx struct {
		xid  string
		data string
	}
	rows, err := watcher.Query(t.Context(), "SELECT xid::text, data FROM pg_logical_slot_get_changes('witness', NULL, NULL, 'include-xids', 'false')")
	if err != nil {
		t.Fatal(err)
	}
	changes, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (x tx, err error) { return x, r.Scan(&x.xid, &x.data) })
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, c := range changes {
		switch {
		case c.data == "BEGIN" || strings.HasPrefix(c.data, "COMMIT"):
			seen[c.xid] += ""
		case strings.HasPrefix(c.data, "message: transactional: 1 prefix: billhook"):
			seen[c.xid] += "mark "
		case strings.HasPrefix(c.data, "message: transactional: 1 prefix: test"):
			seen[c.xid] += "test "
		case strings.HasPrefix(c.data, "table public.clients: UPDATE: id[bigint]") && strings.Contains(c.data, " name[text]:'w"), strings.HasPrefix(c.data, "table public.accounts: "):
			seen[c.xid] += "w"
		default:
			t.Errorf("transaction %s did %s", c.xid, c.data)
		}
	}
	kinds := map[string]int{}
	for _, what := range seen {
		kinds[strings.TrimSpace(what)]++
	}
	// 20000 clients and 6000 accounts in chunks of 5000, each with one mark; each stop
	// may come before the last one's progress is durable, and then it is read again. A
	// chunk of a backfill has two, and so has each turn that reads again what the
	// application has touched meanwhile: a few on a busy machine.
	if n := kinds["mark"]; n < 5+2 || n > 5+2+2+2*4 || kinds["test"] == 0 {
		t.Errorf("transactions by what they did: %v", kinds)
	}
	if kinds[""] != 3 { // publication made, extended, dropped
		t.Errorf("%d transactions changed catalogs, want 3: %v", kinds[""], kinds)
	}
	for k := range kinds {
		if strings.Trim(k, "w") != "" && k != "mark" && k != "test" {
			t.Errorf("a transaction did %q", k)
		}
	}
	walDump(t, db, server.Program("pg_waldump"), begin, end, seen)
	if n := pgtest.Value[int](t, db, "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'witness')::int"); n != 0 {
		t.Errorf("%d publications and slots are left", n)
	}
}

// walDump reads the WAL itself, where there is a program of the server's version
// for it: no transaction but the writer's touches a table, an index or a sequence
// of the database, and what else there is touches catalogs only.
func walDump(t *testing.T, db *pgtest.Database, program, begin, end string, seen map[string]string) {
	t.Helper()
	version, err := exec.Command(program, "--version").Output()
	if err != nil || !strings.Contains(string(version), fmt.Sprintf(") %d.", db.Cluster.Version())) {
		t.Logf("pg_waldump of version %d is not here: the WAL was read by a slot only", db.Cluster.Version())
		return
	}
	dir := pgtest.Value[string](t, db, "SHOW data_directory") + "/pg_wal"
	out, err := db.Cluster.Command(t.Context(), "pg_waldump", "-p", dir, "-s", begin, "-e", end).Output()
	if err != nil {
		t.Fatalf("pg_waldump: %v", err)
	}
	record := regexp.MustCompile(`^rmgr: (\S+) .* tx:\s+(\d+), .*desc: (.*)$`)
	relation := regexp.MustCompile(`rel \d+/\d+/(\d+)`)
	records := 0
	for line := range strings.Lines(string(out)) {
		m := record.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil || m[2] == "0" {
			continue
		}
		if what, ours := seen[m[2]]; ours && strings.Contains(what, "w") {
			continue
		}
		records++
		for _, r := range relation.FindAllStringSubmatch(m[3], -1) {
			if len(r[1]) >= 5 && r[1] >= "16384" {
				t.Errorf("transaction %s wrote to a table of the database: %s %s", m[2], m[1], m[3])
			}
		}
	}
	if records < 10 {
		t.Errorf("only %d records of Billhook's transactions in the WAL", records)
	}
}
