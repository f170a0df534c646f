package catalog_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

// connections are the two kinds that everything must work over.
func connections(t *testing.T, dsn string) map[string]*pgx.Conn {
	t.Helper()
	m := map[string]*pgx.Conn{}
	for kind, replication := range map[string]string{"plain": "", "replication": "database"} {
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		if replication != "" {
			config.RuntimeParams["replication"] = replication
			config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		}
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(t.Context()) })
		m[kind] = conn
	}
	return m
}

func TestReadServer(t *testing.T) {
	db := pgtest.NewDatabase(t)
	_, dsn := db.Role(t, "REPLICATION")
	for kind, conn := range connections(t, dsn) {
		s, err := catalog.ReadServer(t.Context(), conn)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if s.VersionNum/10000 != db.Cluster.Version() || s.Database != db.Name || s.WALLevel != "logical" || s.Superuser || !s.Replication || s.CreateInDB ||
			s.Current.IsZero() || s.SenderTimeout == 0 || s.MaxSlotKeep != -1 || s.MaxSlots == 0 || s.DecodingWorkMem == 0 {
			t.Errorf("%s: %+v", kind, s)
		}
	}
}

func TestReadTables(t *testing.T) {
	db := pgtest.NewDatabase(t, `
		CREATE TYPE mood AS ENUM ('a');
		CREATE TABLE d (id int, r int, m mood NOT NULL, gone int, total numeric(20,6) GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (r, id));
		ALTER TABLE d DROP gone;
		CREATE TABLE f (id int PRIMARY KEY, v text); ALTER TABLE f REPLICA IDENTITY FULL;
		CREATE TABLE i (id int PRIMARY KEY, k text NOT NULL); CREATE UNIQUE INDEX i_k ON i (k) INCLUDE (id); ALTER TABLE i REPLICA IDENTITY USING INDEX i_k;
		CREATE TABLE p (id int, r int, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
		CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1) PARTITION BY HASH (id);
		CREATE TABLE p11 PARTITION OF p1 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
		ALTER TABLE p REPLICA IDENTITY FULL;
		CREATE SCHEMA "Odd"; CREATE TABLE "Odd"."na""me" (id int PRIMARY KEY, "sel ect" int);
		CREATE VIEW v AS SELECT 1 AS x;`)
	var names []catalog.Name
	for _, n := range []string{"d", "f", "i", "p", "v", "missing"} {
		names = append(names, catalog.Name{Schema: "public", Table: n})
	}
	names = append(names, catalog.Name{Schema: "Odd", Table: `na"me`})
	for kind, conn := range connections(t, db.DSN) {
		tables, missing, err := catalog.ReadTables(t.Context(), conn, names)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if fmt.Sprint(missing) != "[public.missing]" || len(tables) != 6 {
			t.Fatalf("%s: missing %v, %d tables", kind, missing, len(tables))
		}
		d, f, i, p, v, odd := tables[0], tables[1], tables[2], tables[3], tables[4], tables[5]
		if d.Identity != wal.IdentityDefault || !slices.Equal(d.PrimaryKey, []string{"r", "id"}) || !slices.Equal(d.IdentityColumns, d.PrimaryKey) || len(d.Columns) != 4 || !d.Owned || !d.Select {
			t.Errorf("%s: %+v", kind, d)
		}
		if c, ok := d.Column("total"); !ok || c.Generated != "stored" || c.Type != "numeric(20,6)" {
			t.Errorf("%s: %+v", kind, c)
		}
		if c, _ := d.Column("m"); c.TypeKind != 'e' || !c.NotNull || c.Type != "mood" && c.Type != "public.mood" {
			t.Errorf("%s: %+v", kind, c)
		}
		if !f.FullIdentity() || len(f.IdentityColumns) != 2 {
			t.Errorf("%s: %+v", kind, f)
		}
		if i.Identity != wal.IdentityIndex || !slices.Equal(i.IdentityColumns, []string{"k"}) {
			t.Errorf("%s: %+v", kind, i)
		}
		if p.Kind != 'p' || len(p.Leaves) != 1 || p.Leaves[0].Table != "p11" || !p.MixedIdentity() || p.FullIdentity() || p.Unpublishable() != "" {
			t.Errorf("%s: %+v", kind, p)
		}
		if v.Unpublishable() == "" {
			t.Errorf("%s: a view is publishable", kind)
		}
		if odd.SQL() != `"Odd"."na""me"` || len(odd.Columns) != 2 {
			t.Errorf("%s: %+v", kind, odd)
		}

		if list, why := d.ColumnList([]string{"m"}); why != "" || !slices.Equal(list, []string{"id", "r", "m"}) {
			t.Errorf("%s: %v, %q", kind, list, why)
		}
		if list, why := f.ColumnList([]string{"id"}); list != nil || why == "" {
			t.Errorf("%s: %v, %q", kind, list, why)
		}
		all, err := catalog.ListTables(t.Context(), conn)
		if err != nil || len(all) != 5 {
			t.Errorf("%s: %v, %v", kind, all, err)
		}
	}
}

func TestReadPublicationAndSlot(t *testing.T) {
	db := pgtest.NewDatabase(t, `CREATE TABLE a (id int PRIMARY KEY, v text, w text)`)
	full := "CREATE PUBLICATION p FOR TABLE a WITH (publish = 'insert, update')"
	if db.Cluster.Version() >= 15 {
		full = "CREATE PUBLICATION p FOR TABLE a (id, w) WHERE (id > 5) WITH (publish = 'insert, update')"
	}
	db.Exec(t, full)
	db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", db.Name)
	for kind, conn := range connections(t, db.DSN) {
		p, found, err := catalog.ReadPublication(t.Context(), conn, "p")
		if err != nil || !found {
			t.Fatalf("%s: %v, %v", kind, found, err)
		}
		a, ok := p.Table(catalog.Name{Schema: "public", Table: "a"})
		if p.OID == 0 || p.AllTables || p.Omits() != "delete, truncate" || !ok || a.OID == 0 {
			t.Errorf("%s: %+v", kind, p)
		}
		if db.Cluster.Version() >= 15 && (!slices.Equal(a.Columns, []string{"id", "w"}) || a.RowFilter != "(id > 5)") {
			t.Errorf("%s: %+v", kind, a)
		}
		if _, found, err := catalog.ReadPublication(t.Context(), conn, "q"); found || err != nil {
			t.Errorf("%s: %v, %v", kind, found, err)
		}

		s, found, err := catalog.ReadSlot(t.Context(), conn, db.Name)
		if err != nil || !found {
			t.Fatalf("%s: %v, %v", kind, found, err)
		}
		if s.Plugin != "pgoutput" || s.Type != "logical" || s.Database != db.Name || s.Active || s.WALStatus != "reserved" || s.Lost() || s.ConfirmedFlush.IsZero() || !math.IsInf(s.SafeBytes, 1) {
			t.Errorf("%s: %+v", kind, s)
		}
		if _, found, err := catalog.ReadSlot(t.Context(), conn, "none"); found || err != nil {
			t.Errorf("%s: %v, %v", kind, found, err)
		}
		slots, err := catalog.ReadSlots(t.Context(), conn)
		if err != nil || !slices.ContainsFunc(slots, func(o catalog.Slot) bool { return o.Name == db.Name }) {
			t.Errorf("%s: %+v, %v", kind, slots, err)
		}
	}
}

func TestReadWriters(t *testing.T) {
	db := pgtest.NewDatabase(t, `CREATE TABLE a (id int PRIMARY KEY)`)
	writer := db.Connect(t)
	if _, err := writer.Exec(t.Context(), "BEGIN; INSERT INTO a VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	for kind, conn := range connections(t, db.DSN) {
		ts, err := catalog.ReadWriters(t.Context(), conn)
		if err != nil || !slices.ContainsFunc(ts, func(x catalog.Transaction) bool { return x.PID == int(writer.PgConn().PID()) }) {
			t.Errorf("%s: %+v, %v", kind, ts, err)
		}
		if bs, err := catalog.ReadBlockers(t.Context(), conn, conn.PgConn().PID()); err != nil || len(bs) != 0 {
			t.Errorf("%s: %+v, %v", kind, bs, err)
		}
	}
}
