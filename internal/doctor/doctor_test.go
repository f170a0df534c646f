package doctor_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/doctor"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication/catalog"
)

const schema = `
	CREATE TABLE clients (id int PRIMARY KEY, name text, status text, tax_id text, notes text);
	CREATE TABLE balances (clients_id int PRIMARY KEY, balance numeric(20,6) NOT NULL DEFAULT 0);
	CREATE TABLE fields (clients_id int, name text, value text, PRIMARY KEY (clients_id, name));
	INSERT INTO clients SELECT i, 'Client ' || i FROM generate_series(1, 10) i;
	ANALYZE clients;`

// bed is a database that is ready to be attached to.
type bed struct {
	db   *pgtest.Database
	role string
	dsn  string // of the role
	o    doctor.Options
}

func (b *bed) name() string { return "billhook_" + b.db.Name }

func prepare(t *testing.T, db *pgtest.Database) *bed {
	t.Helper()
	db.Exec(t, schema)
	role, dsn := db.Role(t, "REPLICATION", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO $role")
	b := &bed{db: db, role: role, dsn: dsn}
	b.o = doctor.Options{
		DSN: dsn, Slot: b.name(), Publication: b.name(), Create: true, MinFree: 1,
		Tables: []doctor.Table{
			{Name: table("clients"), Use: "billhook.yaml:5:5: entities.clients.table", Key: []string{"id"}},
			{Name: table("balances"), Use: "billhook.yaml:6:5: entities.clients.balance.table", Key: []string{"clients_id"}},
			{Name: table("fields"), Use: "billhook.yaml:7:5: entities.clients.custom_fields.table", Unique: []string{"clients_id", "name"}},
		},
		Columns: []doctor.Column{
			{Name: "status", Use: "billhook.yaml:8:5: entities.clients.archive.column", Tables: []catalog.Name{table("clients")}},
			{Name: "balance", Use: "billhook.yaml:9:5: entities.clients.balance.column", Tables: []catalog.Name{table("balances")}},
			{Name: "tax_id", Use: "billhook.yaml:10:5: entities.clients.mask[0]", Tables: []catalog.Name{table("clients")}, Idle: true},
		},
		JournalPath: filepath.Join(t.TempDir(), "journal"), Listen: "127.0.0.1:0",
	}
	db.Exec(t, b.publish("clients, balances, fields"))
	return b
}

func (b *bed) publish(what string) string {
	return "CREATE PUBLICATION " + b.name() + " FOR TABLE " + what + " WITH (publish_via_partition_root = true)"
}

func (b *bed) republish(t *testing.T, what string) {
	b.db.Exec(t, "DROP PUBLICATION "+b.name())
	b.db.Exec(t, b.publish(what))
}

func table(name string) catalog.Name { return catalog.Name{Schema: "public", Table: name} }

func run(t *testing.T, o doctor.Options) []doctor.Finding {
	t.Helper()
	return doctor.Run(t.Context(), o)
}

func show(list []doctor.Finding) string {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "%-4s %s: %s\n", f.Level, f.Check, f.Text)
		for line := range strings.Lines(f.Remedy) {
			fmt.Fprintf(&b, "        %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	return b.String()
}

func find(list []doctor.Finding, check string, level doctor.Level, text string) (doctor.Finding, bool) {
	i := slices.IndexFunc(list, func(f doctor.Finding) bool {
		return f.Check == check && f.Level == level && strings.Contains(f.Text, text)
	})
	if i < 0 {
		return doctor.Finding{}, false
	}
	return list[i], true
}

func want(t *testing.T, list []doctor.Finding, check string, level doctor.Level, text string) doctor.Finding {
	t.Helper()
	f, ok := find(list, check, level, text)
	if !ok {
		t.Fatalf("no %s of %q with %q in:\n%s", level, check, text, show(list))
	}
	return f
}

func wantNoFail(t *testing.T, list []doctor.Finding) {
	t.Helper()
	if slices.ContainsFunc(list, func(f doctor.Finding) bool { return f.Level == doctor.Fail || f.Level == doctor.Skip }) {
		t.Fatalf("something failed or was skipped:\n%s", show(list))
	}
}

// apply runs a remedy as it stands, as somebody would who copies it into psql.
func apply(t *testing.T, b *bed, remedy string) {
	t.Helper()
	conn := b.db.Connect(t)
	ran := 0
	for line := range strings.Lines(remedy) {
		sql, _, _ := strings.Cut(line, "--")
		if sql = strings.TrimSpace(sql); sql == "" {
			continue
		}
		if !strings.HasSuffix(sql, ";") {
			t.Fatalf("no statement: %s", line)
		}
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("remedy %s: %v", sql, err)
		}
		ran++
	}
	if ran == 0 {
		t.Fatalf("the remedy is no SQL: %q", remedy)
	}
}

func TestGood(t *testing.T) {
	t.Parallel()
	b := prepare(t, pgtest.NewDatabase(t))
	list := run(t, b.o)
	wantNoFail(t, list)
	want(t, list, "table public.clients", doctor.OK, "identity by id: what rules need of old rows is remembered; about 10 rows")
	want(t, list, "publication", doctor.OK, "holds every mapped table")
	want(t, list, "slot", doctor.OK, "will be made")
	want(t, list, "replication connection", doctor.OK, "it can be made")
	want(t, list, "database: pooler", doctor.OK, "")
	if _, err := os.Stat(b.o.JournalPath); err == nil {
		t.Error("the journal's folder was made")
	}

	// Once the slot is there as well.
	b.db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", b.name())
	list = run(t, b.o)
	wantNoFail(t, list)
	want(t, list, "slot", doctor.OK, "is there and free")
	want(t, list, "replication connection", doctor.OK, "replication can start")

	// An owner may let billhook make the publication.
	b.db.Exec(t, "SELECT pg_drop_replication_slot($1)", b.name())
	b.db.Exec(t, "DROP PUBLICATION "+b.name()+"; ALTER TABLE clients OWNER TO "+b.role+"; ALTER TABLE balances OWNER TO "+b.role+"; ALTER TABLE fields OWNER TO "+b.role)
	f := want(t, run(t, b.o), "publication", doctor.Fail, "it lacks CREATE on the database")
	apply(t, b, f.Remedy)
	list = run(t, b.o)
	wantNoFail(t, list)
	want(t, list, "publication", doctor.OK, "will be made: CREATE PUBLICATION")
}

// cure does what a remedy says.
type cure func(t *testing.T, b *bed, remedy string)

// mapBalance is to map a column that will do.
func mapBalance(column string) cure {
	return func(t *testing.T, b *bed, _ string) {
		b.db.Exec(t, "ALTER TABLE balances ADD "+column)
		b.o.Columns[1].Name, _, _ = strings.Cut(column, " ")
	}
}

// apart is to map the balances as entities of their own.
func apart(_ *testing.T, b *bed, _ string) {
	b.o.Tables[1].Beside, b.o.Tables[1].Key = false, []string{"id"}
}

// applyAll is for a fault behind which there is another of the same check.
func applyAll(t *testing.T, b *bed, remedy string) {
	apply(t, b, remedy)
	for _, f := range run(t, b.o) {
		if f.Check == "table public.clients" && f.Level != doctor.OK {
			apply(t, b, f.Remedy)
		}
	}
}

func anotherSlot(_ *testing.T, b *bed, _ string) { b.o.Slot += "_2" }

func anotherFolder(t *testing.T, b *bed, remedy string) {
	path, found := strings.CutPrefix(strings.TrimSuffix(remedy, "}"), "journal: {path: ")
	if !found {
		t.Fatalf("no folder in %q", remedy)
	}
	b.o.JournalPath = path
}

// TestFaults plants one fault at a time in a good database, and cures it as the
// remedy says: where that is SQL, by running it as it stands. After that the check
// finds no fault any more.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		plant  func(t *testing.T, b *bed)
		check  string
		level  doctor.Level
		text   string
		remedy string
		cure   cure
		from   int // server version
	}{
		{
			"schema closed", func(t *testing.T, b *bed) {
				b.db.Exec(t, "CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY); GRANT SELECT ON s.t TO "+b.role)
				b.o.Tables = append(b.o.Tables, doctor.Table{Name: catalog.Name{Schema: "s", Table: "t"}, Key: []string{"id"}})
			}, "table s.t", doctor.Fail, "may not use schema s", "GRANT USAGE ON SCHEMA", apply, 0,
		},
		{
			"no SELECT", func(t *testing.T, b *bed) { b.db.Exec(t, "REVOKE SELECT ON clients FROM "+b.role) },
			"table public.clients", doctor.Fail, "may not read it", "GRANT SELECT ON ", apply, 0,
		},
		{
			"no SELECT on what is not excluded", func(t *testing.T, b *bed) {
				b.db.Exec(t, "REVOKE SELECT ON clients FROM "+b.role+"; GRANT SELECT (id) ON clients TO "+b.role)
				b.o.Tables[0].Exclude = []string{"notes"}
			}, "table public.clients", doctor.Fail, "may not read all of it: not name, status, tax_id", `GRANT SELECT ("id", "name", "status", "tax_id") ON`, applyAll, 0,
		},
		{
			"row level security", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER TABLE clients ENABLE ROW LEVEL SECURITY") },
			"table public.clients", doctor.Warn, "row level security", "BYPASSRLS", apply, 0,
		},
		{
			"no REPLICATION", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER ROLE "+b.role+" NOREPLICATION") },
			"role: privileges", doctor.Fail, "may not replicate", " REPLICATION;", apply, 0,
		},
		{
			"a superuser", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER ROLE "+b.role+" SUPERUSER") },
			"role: least privilege", doctor.Warn, "is a superuser", "CREATE ROLE", func(t *testing.T, b *bed, _ string) {
				_, b.o.DSN = b.db.Role(t, "REPLICATION", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO $role")
			}, 0,
		},
		{
			"table missing", func(t *testing.T, b *bed) {
				b.db.Exec(t, "CREATE SCHEMA s; ALTER TABLE clients SET SCHEMA s")
			}, "table public.clients", doctor.Fail, "billhook.yaml:5:5: entities.clients.table: database ", "table: s.clients", func(t *testing.T, b *bed, _ string) {
				b.db.Exec(t, "GRANT USAGE ON SCHEMA s TO "+b.role)
				b.o.Tables[0].Schema = "s"
				b.o.Columns[0].Tables[0].Schema, b.o.Columns[2].Tables[0].Schema = "s", "s"
			}, 0,
		},
		{
			"column missing", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER TABLE clients RENAME status TO state") },
			"table public.clients", doctor.Fail, `billhook.yaml:8:5: entities.clients.archive.column: there is no column "status"`, "state # the table has: id, name, state, tax_id, notes", func(_ *testing.T, b *bed, remedy string) { b.o.Columns[0].Name, _, _ = strings.Cut(remedy, " ") }, 0,
		},
		{
			"masked column missing", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER TABLE clients DROP tax_id") },
			"table public.clients", doctor.Fail, `entities.clients.mask[0]: there is no column "tax_id"`, "the table has:", func(_ *testing.T, b *bed, _ string) { b.o.Columns = b.o.Columns[:2] }, 0,
		},
		{
			"an amount that is no number", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE balances ALTER balance TYPE money USING balance::text::money")
				b.o.Columns[1].Number = true
			}, "table public.balances", doctor.Fail, `entities.clients.balance.column: column "balance" is of type money, which cannot be compared`, "numeric", mapBalance("amount numeric"), 0,
		},
		{
			"several balances of a client", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE balances DROP CONSTRAINT balances_pkey; ALTER TABLE balances ADD id serial PRIMARY KEY")
				b.o.Tables[1].Beside = true
			}, "table public.balances", doctor.Fail, `key column "clients_id" is not part of the replica identity (id)`, "entities.accounts", apart, 0,
		},
		{
			"several balances of a client, with FULL", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE balances DROP CONSTRAINT balances_pkey; ALTER TABLE balances ADD id serial PRIMARY KEY; ALTER TABLE balances REPLICA IDENTITY FULL")
				b.o.Tables[1].Beside = true
			}, "table public.balances", doctor.Warn, "rows are told apart by id, not by clients_id alone", "entities.accounts", apart, 0,
		},
		{
			"column generated", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE balances DROP balance; ALTER TABLE balances ADD balance int GENERATED ALWAYS AS (clients_id * 2) STORED")
			}, "table public.balances", doctor.Fail, `column "balance" is generated`, "", mapBalance("amount numeric"), 0, // the remedy is another from 18 on
		},
		{
			"column generated, stored", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE balances DROP balance; ALTER TABLE balances ADD balance int GENERATED ALWAYS AS (clients_id * 2) STORED")
			}, "table public.balances", doctor.Fail, `does not send generated columns`, "SET (publish_generated_columns = stored);", apply, 18,
		},
		{
			"column generated, virtual", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE balances DROP balance; ALTER TABLE balances ADD balance int GENERATED ALWAYS AS (clients_id * 2) VIRTUAL")
				b.db.Exec(t, "ALTER PUBLICATION "+b.name()+" SET (publish_generated_columns = stored)")
			}, "table public.balances", doctor.Fail, `column "balance" is generated, and generated columns are not sent`, "# map a column that is stored: clients_id", mapBalance("amount numeric"), 18,
		},
		{
			"a view", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE clients RENAME TO rows; CREATE VIEW clients AS SELECT * FROM rows; GRANT SELECT ON clients TO "+b.role)
			}, "table public.clients", doctor.Fail, "it is a view", "table: ", func(t *testing.T, b *bed, _ string) {
				b.o.Tables[0].Table, b.o.Columns[0].Tables[0].Table, b.o.Columns[2].Tables[0].Table = "rows", "rows", "rows"
			}, 0,
		},
		{
			"unlogged", func(t *testing.T, b *bed) {
				b.db.Exec(t, "DROP PUBLICATION "+b.name()+"; ALTER TABLE clients SET UNLOGGED")
			}, "table public.clients", doctor.Fail, "it is unlogged", "SET LOGGED", apply, 0,
		},
		{
			"no primary key", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER TABLE clients DROP CONSTRAINT clients_pkey") },
			"table public.clients", doctor.Fail, "no usable replica identity: the application's UPDATE and DELETE would fail", `ADD PRIMARY KEY ("id")`, apply, 0,
		},
		{
			"no primary key beside", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER TABLE fields DROP CONSTRAINT fields_pkey") },
			"table public.fields", doctor.Fail, "no usable replica identity", `ADD PRIMARY KEY ("clients_id", "name")`, apply, 0,
		},
		{
			"identity nothing", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER TABLE clients REPLICA IDENTITY NOTHING") },
			"table public.clients", doctor.Fail, "REPLICA IDENTITY NOTHING", "REPLICA IDENTITY DEFAULT;", apply, 0,
		},
		{
			"key not in the identity", func(t *testing.T, b *bed) { b.o.Tables[0].Key = []string{"name"} },
			"table public.clients", doctor.Fail, `key column "name" is not part of the replica identity (id)`, "REPLICA IDENTITY FULL", apply, 0,
		},
		{
			"partitions of mixed identity", func(t *testing.T, b *bed) {
				b.db.Exec(t, `CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id); CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0);
					ALTER TABLE p REPLICA IDENTITY FULL; GRANT SELECT ON p TO `+b.role)
				b.o.Tables = append(b.o.Tables, doctor.Table{Name: table("p"), Key: []string{"id"}})
				b.republish(t, "clients, balances, fields, p")
			}, "table public.p", doctor.Warn, "1 of its 1 partitions have not", "REPLICA IDENTITY FULL", apply, 0,
		},
		{
			"partitions under their own names", func(t *testing.T, b *bed) {
				b.db.Exec(t, `CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id); CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0); GRANT SELECT ON p TO `+b.role)
				b.o.Tables = append(b.o.Tables, doctor.Table{Name: table("p"), Key: []string{"id"}})
				b.republish(t, "clients, balances, fields, p")
				b.db.Exec(t, "ALTER PUBLICATION "+b.name()+" SET (publish_via_partition_root = false)")
			}, "publication", doctor.Fail, "under the names of its partitions", "publish_via_partition_root = true", apply, 0,
		},
		{
			"excluded but FULL", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE clients REPLICA IDENTITY FULL")
				b.o.Tables[0].Exclude = []string{"notes"}
			}, "table public.clients", doctor.Warn, "the excluded column notes cannot be kept in the database, because of REPLICA IDENTITY FULL", "REPLICA IDENTITY DEFAULT", applyAll, 15,
		},
		{
			"excluded but published", func(t *testing.T, b *bed) { b.o.Tables[0].Exclude = []string{"notes"} },
			"table public.clients", doctor.Warn, "sends the excluded column notes", `ADD TABLE "public"."clients" ("id", "name", "status", "tax_id");`, apply, 15,
		},
		{
			"publication missing, not to be made", func(t *testing.T, b *bed) {
				b.db.Exec(t, "DROP PUBLICATION "+b.name())
				b.o.Create = false
			}, "publication", doctor.Fail, "source.create is false", "CREATE PUBLICATION", apply, 0,
		},
		{
			"publication missing, tables of others", func(t *testing.T, b *bed) { b.db.Exec(t, "DROP PUBLICATION "+b.name()) },
			"publication", doctor.Fail, "does not own public.clients, public.balances, public.fields", "CREATE PUBLICATION", apply, 0,
		},
		{
			"publication younger than the slot", func(t *testing.T, b *bed) {
				b.db.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'pgoutput')")
				b.db.Exec(t, "DROP PUBLICATION "+b.name())
			}, "publication", doctor.Fail, "a slot cannot use a publication that is younger", "pg_drop_replication_slot", apply, 0,
		},
		{
			"publication lacks a table", func(t *testing.T, b *bed) { b.republish(t, "clients, fields") },
			"publication", doctor.Fail, "does not hold table public.balances", "ADD TABLE", apply, 0,
		},
		{
			"publication lacks a column", func(t *testing.T, b *bed) { b.republish(t, "clients (id, name), balances, fields") },
			"table public.clients", doctor.Fail, `entities.clients.archive.column: publication `, "ADD TABLE", apply, 15,
		},
		{
			"publication lacks the identity", func(t *testing.T, b *bed) { b.republish(t, "clients (name, status, tax_id), balances, fields") },
			"publication", doctor.Fail, `the application's own UPDATE and DELETE fail`, "ADD TABLE", apply, 15,
		},
		{
			"row filter", func(t *testing.T, b *bed) { b.republish(t, "clients WHERE (id > 5), balances, fields") },
			"publication", doctor.Warn, "filters rows of public.clients by (id > 5)", "BEGIN;\nALTER PUBLICATION", apply, 15,
		},
		{
			"operations left out", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER PUBLICATION "+b.name()+" SET (publish = 'insert, update')")
			}, "publication", doctor.Fail, "does not publish delete, truncate", "SET (publish", apply, 0,
		},
		{
			"all tables", func(t *testing.T, b *bed) {
				b.db.Exec(t, "DROP PUBLICATION "+b.name()+"; CREATE PUBLICATION "+b.name()+" FOR ALL TABLES WITH (publish_via_partition_root = true)")
			}, "publication", doctor.Warn, "FOR ALL TABLES", "DROP PUBLICATION", apply, 0,
		},
		{
			"all tables, and a slot that needs it", func(t *testing.T, b *bed) {
				b.db.Exec(t, "DROP PUBLICATION "+b.name()+"; CREATE PUBLICATION "+b.name()+" FOR ALL TABLES WITH (publish_via_partition_root = true)")
				b.db.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'pgoutput')")
			}, "publication", doctor.Warn, "FOR ALL TABLES", "do not drop this one", func(t *testing.T, b *bed, _ string) {
				dropSlot(t, b)
				b.republish(t, "clients, balances, fields")
			}, 0,
		},
		{
			"another table is broken", func(t *testing.T, b *bed) {
				b.db.Exec(t, "CREATE TABLE other (n int)")
				b.republish(t, "clients, balances, fields, other")
			}, "publication", doctor.Fail, "own UPDATE and DELETE fail: public.other", "DROP TABLE", apply, 0,
		},
		{
			"slot missing, not to be made", func(t *testing.T, b *bed) { b.o.Create = false },
			"slot", doctor.Fail, "source.create is false", "pg_create_logical_replication_slot", apply, 0,
		},
		{
			"slot of another plugin", func(t *testing.T, b *bed) {
				b.db.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'test_decoding')")
			}, "slot", doctor.Fail, "another plugin: test_decoding", "source: {slot:", anotherSlot, 0,
		},
		{
			"physical slot", func(t *testing.T, b *bed) {
				b.db.Exec(t, "SELECT pg_create_physical_replication_slot('"+b.name()+"')")
				t.Cleanup(func() { dropSlot(t, b) })
			}, "slot", doctor.Fail, "is a physical slot", "source: {slot:", anotherSlot, 0,
		},
		{
			"slot of another database", func(t *testing.T, b *bed) {
				other := pgtest.NewDatabase(t)
				other.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'pgoutput')")
			}, "slot", doctor.Fail, "another database: test_", "source: {slot:", anotherSlot, 0,
		},
		{
			"slot in use", func(t *testing.T, b *bed) {
				b.db.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'pgoutput')")
				follow(t, b)
			}, "slot", doctor.Warn, "is in use by pid", "source: {slot:", anotherSlot, 0,
		},
		{
			"role missing", func(t *testing.T, b *bed) {
				b.o.DSN = b.db.Cluster.URL(b.role+"_x", "hunter2", b.db.Name)
				t.Cleanup(func() {
					conn, err := pgx.Connect(context.Background(), b.db.DSN)
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close(context.Background())
					if _, err := conn.Exec(context.Background(), "DROP ROLE "+b.role+"_x"); err != nil {
						t.Error(err)
					}
				})
			}, "database: login", doctor.Fail, "refuses role", "\n-- or, when there is no such role: CREATE ROLE ", func(t *testing.T, b *bed, remedy string) {
				_, remedy, _ = strings.Cut(remedy, "no such role: ")
				apply(t, b, strings.ReplaceAll(remedy, "...", "hunter2"))
			}, 0,
		},
		{
			"answers may not be written", func(_ *testing.T, b *bed) { b.o.Columns[0].Write = true },
			"table public.clients", doctor.Fail, `may not update column "status"`, `GRANT UPDATE ("status") ON`, apply, 0,
		},
		{
			"answers for a generated column", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE clients DROP status; ALTER TABLE clients ADD status text GENERATED ALWAYS AS (name || '!') STORED")
				b.o.Columns[0].Write = true
			}, "table public.clients", doctor.Fail, "nobody can write it", "remove it from write_back", func(_ *testing.T, b *bed, _ string) {
				b.o.Columns = b.o.Columns[1:]
			}, 0,
		},
		{
			"a date that is none", func(_ *testing.T, b *bed) { b.o.Columns[0].Time = true },
			"table public.clients", doctor.Fail, `column "status" is of type text, which is no time`, "timestamp with time zone", func(t *testing.T, b *bed, _ string) {
				b.db.Exec(t, "ALTER TABLE clients ADD until timestamptz")
				b.o.Columns[0].Name = "until"
			}, 0,
		},
		{
			"a column of two tables", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE balances ADD status text")
				b.o.Columns[0].Tables = append(b.o.Columns[0].Tables, table("balances"))
				b.o.Columns[0].One = true
			}, "table public.clients", doctor.Fail, "in more than one of the tables", "clients.status", func(_ *testing.T, b *bed, _ string) {
				b.o.Columns[0].Tables = b.o.Columns[0].Tables[:1]
			}, 0,
		},
		{
			"identity by an index that is gone", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE clients ALTER name SET NOT NULL; CREATE UNIQUE INDEX by_name ON clients (name); ALTER TABLE clients REPLICA IDENTITY USING INDEX by_name; DROP INDEX by_name")
			}, "table public.clients", doctor.Fail, "no usable replica identity", "REPLICA IDENTITY DEFAULT;", apply, 0,
		},
		{
			"identity by an index that is gone, and no primary key", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE clients ALTER name SET NOT NULL; CREATE UNIQUE INDEX by_name ON clients (name); ALTER TABLE clients REPLICA IDENTITY USING INDEX by_name; DROP INDEX by_name; ALTER TABLE clients DROP CONSTRAINT clients_pkey")
			}, "table public.clients", doctor.Fail, "no usable replica identity", `ADD PRIMARY KEY ("id")`, apply, 0,
		},
		{
			"no key at all", func(t *testing.T, b *bed) {
				b.db.Exec(t, "ALTER TABLE fields DROP CONSTRAINT fields_pkey")
				b.o.Tables[2].Unique = nil
			}, "table public.fields", doctor.Fail, "no usable replica identity", "REPLICA IDENTITY FULL;", apply, 0,
		},
		{
			"a partition without identity", func(t *testing.T, b *bed) {
				b.db.Exec(t, `CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id); CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);
					CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1); ALTER TABLE p1 REPLICA IDENTITY NOTHING; GRANT SELECT ON p TO `+b.role)
				b.o.Tables = append(b.o.Tables, doctor.Table{Name: table("p"), Key: []string{"id"}})
				b.republish(t, "clients, balances, fields, p")
			}, "table public.p", doctor.Fail, "REPLICA IDENTITY NOTHING", `ALTER TABLE "public"."p1" REPLICA IDENTITY DEFAULT;`, apply, 0,
		},
		{
			"a partition that is unlogged", func(t *testing.T, b *bed) {
				b.db.Exec(t, `CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id); CREATE UNLOGGED TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0);
					GRANT SELECT ON p TO `+b.role)
				b.o.Tables = append(b.o.Tables, doctor.Table{Name: table("p"), Key: []string{"id"}})
			}, "table public.p", doctor.Fail, "unlogged", `ALTER TABLE "public"."p0" SET LOGGED;`, apply, 0,
		},
		{
			"a partition on another server", func(t *testing.T, b *bed) {
				b.db.Exec(t, `CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw; CREATE TABLE p (id int) PARTITION BY RANGE (id);
					CREATE FOREIGN TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10) SERVER far; CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (10) TO (20);
					ALTER TABLE p1 REPLICA IDENTITY FULL; GRANT SELECT ON p TO `+b.role)
				b.o.Tables = append(b.o.Tables, doctor.Table{Name: table("p"), Key: []string{"id"}})
			}, "table public.p", doctor.Fail, "foreign", `DETACH PARTITION "public"."p0";`, apply, 0,
		},
		{
			"slot made without fail-over", func(t *testing.T, b *bed) {
				b.db.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'pgoutput')")
				b.o.Failover = true
			}, "slot", doctor.Warn, "standbys keep no copy of it", "(FAILOVER true)", func(t *testing.T, b *bed, remedy string) {
				_, sql, _ := strings.Cut(remedy, "-c '")
				sql, _, _ = strings.Cut(sql, "'")
				conn, err := pgconn.Connect(t.Context(), b.dsn+"&replication=database")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close(t.Context())
				if _, err := conn.Exec(t.Context(), sql).ReadAll(); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}, 17,
		},
		{
			"temporary slot", func(t *testing.T, b *bed) {
				conn := b.db.Connect(t)
				if _, err := conn.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput', true)", b.name()); err != nil {
					t.Fatal(err)
				}
			}, "slot", doctor.Fail, "is a temporary slot of", "source: {slot:", anotherSlot, 0,
		},
		{
			"role may not log in", func(t *testing.T, b *bed) { b.db.Exec(t, "ALTER ROLE "+b.role+" NOLOGIN") },
			"database: login", doctor.Fail, "refuses role", " LOGIN;", apply, 0,
		},
		{
			"nobody answers", func(_ *testing.T, b *bed) {
				b.o.DSN = "postgres://billhook:secret@127.0.0.1:1/billing?sslmode=disable"
			}, "database: connection", doctor.Fail, "cannot reach Postgres at 127.0.0.1:1", "check source.dsn", func(_ *testing.T, b *bed, _ string) { b.o.DSN = b.dsn }, 0,
		},
		{
			"wrong password", func(_ *testing.T, b *bed) { b.o.DSN = b.db.Cluster.URL(b.role, "hunter2", b.db.Name) },
			"database: login", doctor.Fail, "refuses role", "LOGIN PASSWORD '...';", func(t *testing.T, b *bed, remedy string) { apply(t, b, strings.ReplaceAll(remedy, "...", "hunter2")) }, 0,
		},
		{
			"no such database", func(_ *testing.T, b *bed) {
				b.o.DSN = b.db.Cluster.URL(b.role, "secret of "+b.role, "nowhere")
			}, "database: login", doctor.Fail, `database "nowhere" is not on the server`, "check source.dsn", func(_ *testing.T, b *bed, _ string) { b.o.DSN = b.dsn }, 0,
		},
		{
			"no connection string", func(_ *testing.T, b *bed) { b.o.DSN = "postgres://billhook:hunter2@host:port/" },
			"database: connection", doctor.Fail, "source.dsn: ", "postgres://", func(_ *testing.T, b *bed, _ string) { b.o.DSN = b.dsn }, 0,
		},
		{
			"a pooler", func(t *testing.T, b *bed) { b.o.DSN = pool(t, b.o.DSN) },
			"database: pooler", doctor.Warn, "a connection pooler answers", "let source.dsn name the database server itself", func(_ *testing.T, b *bed, _ string) { b.o.DSN = b.dsn }, 0,
		},
		{
			"a file in place of the journal", func(t *testing.T, b *bed) {
				write(t, b.o.JournalPath)
			}, "journal: folder", doctor.Fail, "is a file, not a folder", "journal: {path: ", anotherFolder, 0,
		},
		{
			"a file above the journal", func(t *testing.T, b *bed) {
				write(t, b.o.JournalPath)
				b.o.JournalPath = filepath.Join(b.o.JournalPath, "a", "b")
			}, "journal: folder", doctor.Fail, "cannot be made", "journal: {path: ", anotherFolder, 0,
		},
		{
			"something else in place of the journal", func(t *testing.T, b *bed) {
				b.o.JournalPath = t.TempDir()
				write(t, filepath.Join(b.o.JournalPath, "letter.txt"))
			}, "journal: folder", doctor.Fail, `is not a journal: it holds "letter.txt"`, "journal: {path: ", anotherFolder, 0,
		},
		{
			"disk full", func(_ *testing.T, b *bed) { b.o.MinFree = 1 << 62 },
			"journal: disk", doctor.Fail, "intake stands still below", "make room", func(_ *testing.T, b *bed, _ string) { b.o.MinFree = 1 }, 0,
		},
		{
			"address in use", func(t *testing.T, b *bed) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = l.Close() })
				b.o.Listen = l.Addr().String()
			}, "http: address", doctor.Fail, "is in use by another process", "ss -ltnp", func(_ *testing.T, b *bed, _ string) { b.o.Listen = "127.0.0.1:0" }, 0,
		},
		{
			"address of another machine", func(_ *testing.T, b *bed) { b.o.Listen = "192.0.2.1:80" },
			"http: address", doctor.Fail, "cannot listen on 192.0.2.1:80", "http: {listen:", func(_ *testing.T, b *bed, _ string) { b.o.Listen = "127.0.0.1:0" }, 0,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if pgtest.Shared(t).Version() < c.from {
				t.Skipf("from Postgres %d on", c.from)
			}
			b := prepare(t, pgtest.NewDatabase(t))
			c.plant(t, b)
			list := run(t, b.o)
			f := want(t, list, c.check, c.level, c.text)
			if !strings.Contains(f.Remedy, c.remedy) || f.Remedy == "" {
				t.Errorf("remedy %q, want %q", f.Remedy, c.remedy)
			}
			if strings.Contains(show(list), "secret of") || strings.Contains(show(list), "hunter2") {
				t.Errorf("a password is shown:\n%s", show(list))
			}
			c.cure(t, b, f.Remedy)
			list = run(t, b.o)
			if slices.ContainsFunc(list, func(f doctor.Finding) bool { return f.Check == c.check && f.Level != doctor.OK }) {
				t.Errorf("the remedy\n%s\ndoes not cure:\n%s", f.Remedy, show(list))
			}
		})
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func dropSlot(t *testing.T, b *bed) {
	conn, err := pgx.Connect(context.Background(), b.db.DSN)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), "SELECT pg_drop_replication_slot($1)", b.name()); err != nil {
		t.Error(err)
	}
}

// follow holds the slot as a billhook would, until the test ends.
func follow(t *testing.T, b *bed) {
	t.Helper()
	config, err := pgx.ParseConfig(b.o.DSN)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["replication"] = "database"
	config.RuntimeParams["application_name"] = "billhook"
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	sql := fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL 0/0 (proto_version '1', publication_names '%s')", b.name(), b.name())
	var wire []byte
	wire = append(wire, 'Q')
	wire = binary.BigEndian.AppendUint32(wire, uint32(len(sql)+5))
	wire = append(append(wire, sql...), 0)
	if _, err := conn.PgConn().Conn().Write(wire); err != nil {
		t.Fatal(err)
	}
	b.db.WaitFor(t, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", b.name())
}

// pool is what a pooler looks like to its clients: the process id that it tells is
// not the backend's.
func pool(t *testing.T, dsn string) string {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", net.JoinHostPort(config.Host, fmt.Sprint(config.Port)))
			if err != nil {
				_ = client.Close()
				continue
			}
			wg.Go(func() {
				_, _ = io.Copy(server, client)
				_ = server.Close()
			})
			wg.Go(func() {
				disguise(client, server)
				_ = client.Close()
			})
		}
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return fmt.Sprintf("host=127.0.0.1 port=%s user=%s password='%s' dbname=%s sslmode=disable", port, config.User, config.Password, config.Database)
}

func disguise(client io.Writer, server io.Reader) {
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(server, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		if head[0] == 'K' {
			body[0] ^= 0x11
		}
		if _, err := client.Write(append(slices.Clone(head), body...)); err != nil {
			return
		}
	}
}

func TestWALLevel(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"wal_level": "replica", "max_replication_slots": "0", "max_wal_senders": "0", "max_slot_wal_keep_size": "1GB"})
	b := prepare(t, pgtest.NewDatabaseOn(t, c))
	list := run(t, b.o)
	f := want(t, list, "server: wal_level", doctor.Fail, "replica")
	g := want(t, list, "server: slots", doctor.Fail, "0 of 0 are taken")
	want(t, list, "server: max_slot_wal_keep_size", doctor.OK, "1.0 GiB")
	want(t, list, "replication connection", doctor.Skip, "must be right first")
	apply(t, b, f.Remedy)
	apply(t, b, g.Remedy)
	apply(t, b, want(t, list, "server: walsenders", doctor.Fail, "0 of 0 are in use").Remedy)
	if err := c.Restart(t.Context(), cluster.Fast); err != nil {
		t.Fatal(err)
	}
	wantNoFail(t, run(t, b.o))
}

// TestSettings: what can be set while the server runs.
func TestSettings(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"max_slot_wal_keep_size": "-1"})
	b := prepare(t, pgtest.NewDatabaseOn(t, c))
	f := want(t, run(t, b.o), "server: max_slot_wal_keep_size", doctor.Warn, "no limit")
	apply(t, b, f.Remedy)
	b.db.WaitFor(t, "SELECT setting <> '-1' FROM pg_settings WHERE name = 'max_slot_wal_keep_size'")
	want(t, run(t, b.o), "server: max_slot_wal_keep_size", doctor.OK, "50.0 GiB")
	if c.Version() < 18 {
		return
	}
	b.db.Exec(t, "ALTER SYSTEM SET idle_replication_slot_timeout = '1h'")
	b.db.Exec(t, "SELECT pg_reload_conf()")
	b.db.WaitFor(t, "SELECT setting <> '0' FROM pg_settings WHERE name = 'idle_replication_slot_timeout'")
	f = want(t, run(t, b.o), "server: idle_replication_slot_timeout", doctor.Warn, "is given up")
	apply(t, b, f.Remedy)
	b.db.WaitFor(t, "SELECT setting = '0' FROM pg_settings WHERE name = 'idle_replication_slot_timeout'")
	if slices.ContainsFunc(run(t, b.o), func(f doctor.Finding) bool { return f.Check == "server: idle_replication_slot_timeout" }) {
		t.Error("the remedy does not cure")
	}
}

// TestWritesNothing: no transaction of a check has an id, which a write takes, and
// no lock of it stands in the way of those that leave only SELECT alone.
func TestWritesNothing(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"autovacuum": "off"})
	b := prepare(t, pgtest.NewDatabaseOn(t, c))
	b.db.Exec(t, "GRANT CREATE ON DATABASE "+b.db.Name+" TO "+b.role)
	b.db.Exec(t, "ALTER ROLE "+b.role+" SUPERUSER") // so that nothing else keeps it from writing
	conn := b.db.Connect(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE clients, balances, fields, pg_publication, pg_publication_rel, pg_class, pg_attribute, pg_authid IN EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	next := func() string {
		return pgtest.Value[string](t, b.db, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
	}
	before := next()
	list := run(t, b.o)
	wantNoFail(t, list)
	if after := next(); after != before {
		t.Errorf("the next transaction id went from %s to %s", before, after)
	}
	if n := pgtest.Value[int](t, b.db, "SELECT count(*)::int FROM pg_replication_slots"); n != 0 {
		t.Errorf("%d slots", n)
	}
	if entries, err := os.ReadDir(filepath.Dir(b.o.JournalPath)); err != nil || len(entries) != 0 {
		t.Errorf("beside the journal: %v, %v", entries, err)
	}
}

// TestBlocked: somebody who locks what a check reads costs it seconds, not for ever.
func TestBlocked(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	b := prepare(t, pgtest.NewDatabaseOn(t, c))
	conn := b.db.Connect(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE pg_publication_rel IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	want(t, run(t, b.o), "publication", doctor.Fail, "lock timeout")
}

// TestRunning: a journal that is open makes a used slot what it shall be.
func TestRunning(t *testing.T) {
	t.Parallel()
	b := prepare(t, pgtest.NewDatabase(t))
	b.db.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'pgoutput')")
	follow(t, b)
	j, err := journal.Open(journal.Options{Path: b.o.JournalPath})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b.o.Listen, b.o.Attached = l.Addr().String(), true
	list := run(t, b.o)
	wantNoFail(t, list)
	want(t, list, "slot", doctor.OK, "the billhook that runs here")
	want(t, list, "journal: folder", doctor.OK, "in use by the billhook that runs as process")
	want(t, list, "http: address", doctor.OK, "as it is to be while billhook runs")
	if _, err := journal.Open(journal.Options{Path: b.o.JournalPath}); err == nil {
		t.Error("the journal's lock is gone")
	}
}

// TestLost: a slot that fell too far behind, before and after.
func TestLost(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"max_slot_wal_keep_size": "2MB", "min_wal_size": "32MB", "max_wal_size": "32MB"})
	b := prepare(t, pgtest.NewDatabaseOn(t, c))
	b.db.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'pgoutput')")
	for range 20 {
		b.db.Exec(t, "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 4)")
		b.db.Exec(t, "SELECT pg_switch_wal()")
		b.db.Exec(t, "CHECKPOINT")
		if pgtest.Value[string](t, b.db, "SELECT wal_status FROM pg_replication_slots") == "lost" {
			break
		}
	}
	f := want(t, run(t, b.o), "slot", doctor.Fail, "is lost: the server has removed WAL that it needs")
	apply(t, b, f.Remedy)
	want(t, run(t, b.o), "slot", doctor.OK, "will be made")
}

// TestRetained: a slot that is about to be lost.
func TestRetained(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"max_slot_wal_keep_size": "32MB", "max_wal_size": "1GB", "checkpoint_timeout": "1h"})
	b := prepare(t, pgtest.NewDatabaseOn(t, c))
	b.db.Exec(t, "SELECT pg_create_logical_replication_slot('"+b.name()+"', 'pgoutput')")
	want(t, run(t, b.o), "slot: retained WAL", doctor.OK, "the slot is lost after")
	for range 3 {
		b.db.Exec(t, "SELECT pg_logical_emit_message(false, 'x', 'x')")
		b.db.Exec(t, "SELECT pg_switch_wal()")
	}
	f := want(t, run(t, b.o), "slot: retained WAL", doctor.Warn, "the slot is lost after")
	apply(t, b, f.Remedy)
	b.db.WaitFor(t, "SELECT setting = '1024' FROM pg_settings WHERE name = 'max_slot_wal_keep_size'")
	want(t, run(t, b.o), "slot: retained WAL", doctor.OK, "are kept for it")
}

// TestWriters: transactions that the creation of a slot would wait for.
func TestWriters(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"max_prepared_transactions": "2"})
	b := prepare(t, pgtest.NewDatabaseOn(t, c))
	b.db.Exec(t, "GRANT pg_read_all_stats TO "+b.role)
	b.o = b.o.Impatient()
	const check = "slot: open transactions"
	want(t, run(t, b.o), check, doctor.OK, "none that the slot would wait for")

	b.db.Exec(t, "BEGIN; INSERT INTO balances VALUES (77); PREPARE TRANSACTION 'it''s'")
	f := want(t, run(t, b.o), check, doctor.Warn, `the prepared transaction "it's" of role`)
	apply(t, b, f.Remedy)
	want(t, run(t, b.o), check, doctor.OK, "")

	conn := b.db.Connect(t)
	if _, err := conn.Exec(t.Context(), "SET application_name = 'month end'; BEGIN; INSERT INTO balances VALUES (78)"); err != nil {
		t.Fatal(err)
	}
	f = want(t, run(t, b.o), check, doctor.Warn, "(month end), open for")
	apply(t, b, f.Remedy)
	b.db.WaitFor(t, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'month end')")
	want(t, run(t, b.o), check, doctor.OK, "")
}

func TestStandby(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	b := prepare(t, pgtest.NewDatabaseOn(t, c))
	signal := filepath.Join(pgtest.Value[string](t, b.db, "SHOW data_directory"), "standby.signal")
	write(t, signal)
	if err := os.Chmod(signal, 0o644); err != nil { // the server runs as another user
		t.Fatal(err)
	}
	if err := c.Restart(t.Context(), cluster.Fast); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a standby's roles cannot be dropped: they go with it
		if err := c.Stop(cluster.Fast); err != nil {
			t.Error(err)
		}
	})
	want(t, run(t, b.o), "server: primary", doctor.Fail, "this server is a standby")
}

func TestSkew(t *testing.T) {
	t.Parallel()
	for d, text := range map[time.Duration]string{time.Second: "within 2s", -3 * time.Second: "3s behind", time.Hour: "1h0m0s ahead"} {
		if list := doctor.Skew(d); len(list) != 1 || !strings.Contains(list[0].Text, text) || (list[0].Level == doctor.OK) != (d == time.Second) {
			t.Errorf("%s: %s", d, show(list))
		}
	}
}

func TestEnded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	list := doctor.Run(ctx, doctor.Options{DSN: "postgres://a@127.0.0.1:1/b", Slot: "s", Publication: "p", JournalPath: t.TempDir()})
	want(t, list, "database: connection", doctor.Fail, "")
	want(t, list, "slot", doctor.Skip, "there is no connection")
	want(t, list, "journal: folder", doctor.OK, "")
}
