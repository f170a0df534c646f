package replication

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication/catalog"
)

// expectError makes sure of an error's class, reason and text. In want, * stands
// for anything.
func expectError(t *testing.T, err error, class Class, reason Reason, want string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Errorf("got %v, want an error %s", err, reason)
		return
	}
	if e.Class != class || e.Reason != reason {
		t.Errorf("class %d reason %s, want %d %s: %v", e.Class, e.Reason, class, reason, e)
	}
	if !matches(e.Text, want) {
		t.Errorf("text:\n got %s\nwant %s", e.Text, want)
	}
	if strings.Contains(e.Text, "\n") || !slices.Contains(reasons(), e.Reason) {
		t.Errorf("text %q, reason %q", e.Text, e.Reason)
	}
}

func matches(s, want string) bool {
	parts := strings.Split(want, "*")
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	for _, p := range parts[1:] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		if p == "" {
			return true
		}
		s = s[i+len(p):]
	}
	return len(parts) == 1 && s == want || len(parts) > 1 && s == ""
}

// attachError is the error of an attach that must fail, and leaves no slot.
func attachError(t *testing.T, o Options) error {
	t.Helper()
	_, err := newClient(t, o).Attach(t.Context())
	if err == nil {
		t.Error("attached")
	}
	return err
}

func TestAttachRefusals(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable, "ALTER TABLE a ADD secret text", "CREATE TABLE nokey (id int)", "CREATE TABLE nothing (id int PRIMARY KEY)",
		"ALTER TABLE nothing REPLICA IDENTITY NOTHING", "CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)", "CREATE VIEW v AS SELECT * FROM a",
		"CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY HASH (id)", "CREATE TABLE leaf PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
		"ALTER TABLE leaf REPLICA IDENTITY NOTHING")
	list := ` ("id", "v")`
	if db.Cluster.Version() < 15 {
		list = "" // column lists came with 15
	}
	_, plain := db.Role(t, "")
	_, replicating := db.Role(t, "REPLICATION", "GRANT SELECT ON a TO $role")
	cases := []struct {
		name   string
		change func(o *Options)
		class  Class
		reason Reason
		want   string
	}{
		{
			"unreachable", func(o *Options) { o.DSN = dsn(t, o.DSN, func(u *url.URL) { u.Host = "127.0.0.1:1" }) },
			Transient, ReasonUnreachable, "cannot reach Postgres at 127.0.0.1:1: connect: connection refused; check source.dsn, and that the server runs and listens there",
		},
		{
			"no such host", func(o *Options) {
				o.DSN = dsn(t, o.DSN, func(u *url.URL) { u.Host = "no-such-host.invalid:5432" })
			},
			Transient, ReasonUnreachable, "cannot reach Postgres at no-such-host.invalid:5432: lookup no-such-host.invalid*; check source.dsn, and that the server runs and listens there",
		},
		{
			"wrong password", func(o *Options) {
				o.DSN = dsn(t, replicating, func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "wrong") })
			},
			Fatal, ReasonAuthentication, "Postgres at 127.0.0.1:* refuses role \"*\": password authentication failed for user \"*\"; check the password in source.dsn and pg_hba.conf",
		},
		{
			"no such database", func(o *Options) { o.DSN = dsn(t, o.DSN, func(u *url.URL) { u.Path = "/nowhere" }) },
			Fatal, ReasonDatabaseMissing, "database \"nowhere\" is not on the server at 127.0.0.1:*; check source.dsn",
		},
		{
			"no replication privilege", func(o *Options) { o.DSN = plain },
			Fatal, ReasonPrivilege, "role \"*\" lacks a privilege: *; `billhook check` says what to grant",
		},
		{
			"may not create the publication", func(o *Options) { o.DSN = replicating },
			Fatal, ReasonPrivilege, "role \"*\" may not do this (permission denied for database *); let the tables' owner run: CREATE PUBLICATION \"p\" FOR TABLE \"public\".\"a\" WITH (publish_via_partition_root = true)",
		},
		{
			"not allowed to create", func(o *Options) { o.Create = false; o.Tables[0].Columns = []string{"id", "v"} },
			Fatal, ReasonPublicationMissing, "publication \"p\" does not exist; let its owner run: CREATE PUBLICATION \"p\" FOR TABLE \"public\".\"a\"" + list + " WITH (publish_via_partition_root = true)",
		},
		{
			"no such table", func(o *Options) { o.Tables = append(o.Tables, Table{Name: catalog.Name{Schema: "public", Table: "b"}}) },
			Fatal, ReasonTable, "not in database \"*\", or not to be seen by role \"postgres\": public.b; correct the mapping, or GRANT USAGE on the schema",
		},
		{
			"no key", func(o *Options) { o.Tables[0].Name.Table = "nokey" },
			Fatal, ReasonTable, "table public.nokey has no usable replica identity: the application's UPDATE and DELETE would fail; add a primary key, or ALTER TABLE \"public\".\"nokey\" REPLICA IDENTITY USING INDEX ... or FULL",
		},
		{
			"identity nothing", func(o *Options) { o.Tables[0].Name.Table = "nothing" },
			Fatal, ReasonTable, "table public.nothing has REPLICA IDENTITY NOTHING: the application's UPDATE and DELETE would fail; give it a primary key and ALTER TABLE \"public\".\"nothing\" REPLICA IDENTITY DEFAULT",
		},
		{
			"leaf with identity nothing", func(o *Options) { o.Tables[0].Name.Table = "parted" },
			Fatal, ReasonTable, "table public.parted has a partition public.leaf that has REPLICA IDENTITY NOTHING: *",
		},
		{
			"unlogged", func(o *Options) { o.Tables[0].Name.Table = "unlogged" },
			Fatal, ReasonTable, "table public.unlogged is unlogged: its changes are not in the WAL",
		},
		{
			"view", func(o *Options) { o.Tables[0].Name.Table = "v" },
			Fatal, ReasonTable, "table public.v is a view: map the table behind it",
		},
		{
			"no tables", func(o *Options) { o.Tables = nil },
			Fatal, ReasonConfiguration, "publication \"p\" cannot be made: no table is mapped",
		},
		{
			"another cluster", func(o *Options) { o.Resume = Position{SystemID: "7", Timeline: 1} },
			Fatal, ReasonIdentityChanged, "the server at 127.0.0.1:* is another database cluster (system identifier *) than the journal was filled from (7); correct source.dsn; if this is the same database in a new cluster, `billhook reconcile`*",
		},
		{
			"another timeline", func(o *Options) { o.Resume = Position{Timeline: 99} },
			Fatal, ReasonIdentityChanged, "the server at 127.0.0.1:* is on timeline 1, but the journal was filled on 99: there was a fail-over or a restore*",
		},
		{
			"another slot name", func(o *Options) { o.Resume = Position{Slot: "old"} },
			Fatal, ReasonIdentityChanged, "the journal was filled from slot \"old\", but source.slot is \"*\"; put the name back, or start with a new journal",
		},
		{
			"ahead of the server", func(o *Options) { o.Resume = Position{LSN: 1 << 60} },
			Fatal, ReasonAhead, "the journal is at 10000000/0, but the server at 127.0.0.1:* only at *: the database was put back to an earlier state*",
		},
		{
			"publication gone", func(o *Options) { o.Resume = Position{LSN: 1} },
			Fatal, ReasonPublicationMissing, "publication \"p\" is gone; *",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := options(t, db, "a")
			c.change(&o)
			expectError(t, attachError(t, o), c.class, c.reason, c.want)
		})
	}
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1", db.Name); n != 0 {
		t.Error("a slot was left behind")
	}
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_publication"); n != 0 {
		t.Error("a publication was left behind")
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Slot: "s"}, "source.slot and source.publication must have a name"},
		{Options{Slot: "Bad-Name", Publication: "p"}, `source.slot "Bad-Name": a slot's name has 1 to 63 characters out of a-z, 0-9 and _`},
		{Options{Slot: "s", Publication: "p", DSN: "postgres://u:hunter2@host:notaport/db"}, "source.dsn: *"},
	} {
		_, err := New(c.o)
		expectError(t, err, Fatal, ReasonConfiguration, c.want)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the password is in %q", err)
		}
	}
}

// TestSlotRefusals has a slot or publication that was fine once.
func TestSlotRefusals(t *testing.T) {
	t.Parallel()
	attached := func(t *testing.T) (*pgtest.Database, Options) {
		db := pgtest.NewDatabase(t, oneTable)
		o := options(t, db, "a")
		s, err := newClient(t, o).Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		o.Resume = Position{SystemID: s.SystemID, Timeline: s.Timeline, Slot: s.Slot, Publication: s.Publication, PublicationOID: s.PublicationOID, LSN: s.Start}
		return db, o
	}
	t.Run("gap", func(t *testing.T) {
		db, o := attached(t)
		db.Exec(t, "INSERT INTO a VALUES (1)")
		to := pgtest.Value[string](t, db, "SELECT end_lsn::text FROM pg_replication_slot_advance($1, pg_current_wal_lsn())", db.Name)
		expectError(t, attachError(t, o), Fatal, ReasonGap, fmt.Sprintf("transactions are missing: the journal ends at %s, but slot %q has moved on to %s, *", o.Resume.LSN, db.Name, to))
	})
	t.Run("slot dropped", func(t *testing.T) {
		db, o := attached(t)
		db.Exec(t, "SELECT pg_drop_replication_slot($1)", db.Name)
		expectError(t, attachError(t, o), Fatal, ReasonSlotMissing, "replication slot \"*\" does not exist; *`billhook reconcile` finds what was missed*")
		if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1", db.Name); n != 0 {
			t.Error("the slot was made anew")
		}
	})
	t.Run("slot dropped under a stream", func(t *testing.T) {
		db, o := attached(t)
		f := follow(t, o)
		db.Exec(t, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", db.Name)
		db.WaitFor(t, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1", db.Name)
		if _, err := db.Connect(t).Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", db.Name); err != nil {
			t.Skip("the client was back before the slot could be dropped:", err)
		}
		<-f.done
		expectError(t, f.err, Fatal, ReasonSlotMissing, "replication slot \"*\" does not exist; *")
		if p := f.client.State().Phase; p != Failed {
			t.Errorf("phase %v", p)
		}
	})
	t.Run("publication dropped", func(t *testing.T) {
		db, o := attached(t)
		db.Exec(t, "DROP PUBLICATION p")
		expectError(t, attachError(t, o), Fatal, ReasonPublicationMissing, "publication \"p\" is gone; *")
	})
	t.Run("publication made again", func(t *testing.T) {
		db, o := attached(t)
		db.Exec(t, "DROP PUBLICATION p; CREATE PUBLICATION p FOR TABLE a")
		expectError(t, attachError(t, o), Fatal, ReasonPublicationMissing, "publication \"p\" was dropped and made again; *")
	})
	t.Run("publication dropped under a stream", func(t *testing.T) {
		db, o := attached(t)
		f := follow(t, o)
		db.Exec(t, "DROP PUBLICATION p; INSERT INTO a VALUES (1)")
		<-f.done
		expectError(t, f.err, Fatal, ReasonPublicationMissing, "publication \"p\" *")
	})
	t.Run("slot without its publication", func(t *testing.T) {
		db, o := attached(t)
		db.Exec(t, "DROP PUBLICATION p")
		o.Resume = Position{}
		expectError(t, attachError(t, o), Fatal, ReasonPublicationMissing, "slot \"*\" exists but publication \"p\" does not, *")
	})
	t.Run("another plugin", func(t *testing.T) {
		db, o := attached(t)
		db.Exec(t, "SELECT pg_drop_replication_slot($1)", db.Name)
		db.Exec(t, "SELECT pg_create_physical_replication_slot($1)", db.Name)
		expectError(t, attachError(t, o), Fatal, ReasonSlotUnfit, "replication slot \"*\" is not one for pgoutput (physical ); choose another name for source.slot")
	})
	t.Run("another database", func(t *testing.T) {
		_, o := attached(t)
		other := pgtest.NewDatabase(t, oneTable, "CREATE PUBLICATION p FOR TABLE a")
		o.DSN, o.Resume = other.DSN, Position{}
		expectError(t, attachError(t, o), Fatal, ReasonSlotUnfit, "replication slot \"*\" belongs to database \"*\", but source.dsn leads to \"*\"")
	})
}

func TestWALLevel(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"wal_level": "replica"})
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	expectError(t, attachError(t, options(t, db, "a")), Fatal, ReasonServerUnfit,
		`the server keeps too little in its WAL for logical replication (wal_level is "replica"); run ALTER SYSTEM SET wal_level = 'logical' and restart it`)
}

func TestSlotLost(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"})
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	o := options(t, db, "a")
	if _, err := newClient(t, o).Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		db.Exec(t, "SELECT pg_switch_wal(); CREATE TABLE IF NOT EXISTS junk (v text); INSERT INTO junk SELECT 'x' FROM generate_series(1, 1000)")
	}
	db.Exec(t, "CHECKPOINT")
	db.WaitFor(t, "SELECT wal_status = 'lost' FROM pg_replication_slots")
	f := start(t, o)
	<-f.done
	expectError(t, f.err, Fatal, ReasonSlotLost, "replication slot \"*\" is lost, the server has removed WAL that it needs (*); *")
}

func TestTooManySlots(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"max_replication_slots": "1"})
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	db.Exec(t, "SELECT pg_create_physical_replication_slot('other')")
	expectError(t, attachError(t, options(t, db, "a")), Fatal, ReasonServerUnfit, "all 1 replication slots of the server are in use; *")
}

// TestSlotCreationWaits has an older transaction open: that is told, and calling
// it off leaves nothing behind.
func TestSlotCreationWaits(t *testing.T) {
	db := pgtest.NewDatabase(t, oneTable)
	conn := db.Connect(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; SET application_name = 'the old one'; INSERT INTO a VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	f := start(t, options(t, db, "a"))
	want := fmt.Sprintf("waiting for the end of older transactions: pid %d (the old one) open for ", conn.PgConn().PID())
	f.wait("the detail", func() bool { return strings.Contains(f.client.State().Detail, want) })
	f.stop()
	if f.err != nil {
		t.Error(f.err)
	}
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1", db.Name); n != 0 {
		t.Error("the slot was left behind")
	}
	if _, err := conn.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	// The publication of the first try serves the second.
	g := follow(t, options(t, db, "a"))
	db.Exec(t, "INSERT INTO a VALUES (2)")
	g.expect("insert a (id=2 v null)")
}

// TestColumnLists: what is left out never comes, the identity always does, and a
// table with FULL goes whole rather than break the application.
func TestColumnLists(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, "CREATE TABLE d (id int PRIMARY KEY, v text, secret text)", "CREATE TABLE f (id int PRIMARY KEY, v text, secret text)",
		"ALTER TABLE f REPLICA IDENTITY FULL", "CREATE TABLE later (id int PRIMARY KEY, secret text)",
		`CREATE TABLE parted (id int, r int, v text, secret text, PRIMARY KEY (id, r)) PARTITION BY LIST (r)`, "CREATE TABLE p1 PARTITION OF parted FOR VALUES IN (1)")
	if db.Cluster.Version() < 15 {
		t.Skip("from Postgres 15 on")
	}
	o := options(t, db, "d", "f", "parted")
	for i := range o.Tables {
		o.Tables[i].Columns = []string{"v"}
	}
	o.Tables[0] = Table{Name: o.Tables[0].Name, Exclude: []string{"secret", "no such column"}}
	f := follow(t, o)
	db.Exec(t, `INSERT INTO d VALUES (1, 'a', 's'); INSERT INTO f VALUES (1, 'a', 's'); UPDATE d SET v = 'b'; UPDATE f SET v = 'b';
		INSERT INTO parted VALUES (1, 1, 'a', 's'); UPDATE parted SET v = 'b'; DELETE FROM d; DELETE FROM f`)
	f.expect("insert d (id=1 v=a)", "insert f (id=1 v=a secret=s)", "update d (id=1 v=b)", "update f (id=1 v=a secret=s) -> (id=1 v=b secret=s)",
		"insert parted (id=1 r=1 v=a)", "update parted (id=1 r=1 v=b)", "delete d (id=1)", "delete f (id=1 v=b secret=s)")
	f.stop()

	// A table that is mapped later is added.
	o.Tables = append(o.Tables, options(t, db, "later").Tables...)
	s := f.session()
	o.Resume = Position{SystemID: s.SystemID, Timeline: s.Timeline, Slot: o.Slot, Publication: o.Publication, PublicationOID: s.PublicationOID, LSN: f.client.confirmed()}
	o.Create = false
	expectError(t, attachError(t, o), Fatal, ReasonTable, `publication "p" lacks mapped tables; let its owner run: ALTER PUBLICATION "p" ADD TABLE "public"."later"`)
	o.Create = true
	g := follow(t, o)
	db.Exec(t, "INSERT INTO later VALUES (1)")
	g.expect("insert later (id=1 secret null)")
}

// TestPartitionDoubt: the root says FULL, a leaf does not.
func TestPartitionDoubt(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `CREATE TABLE p (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY LIST (r)`,
		"CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)", "CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2)",
		"ALTER TABLE p REPLICA IDENTITY FULL", "ALTER TABLE p2 REPLICA IDENTITY FULL")
	f := follow(t, options(t, db, "p"))
	db.Exec(t, "INSERT INTO p VALUES (1, 1, 'a'), (2, 2, 'b'); DELETE FROM p")
	f.expect("insert p (id=1 r=1 v=a)", "insert p (id=2 r=2 v=b)", "delete p (id=1 r=1)", "delete p (id=2 r=2 v=b)")
}

// TestLockTimeout: setting up does not queue for a lock for long.
func TestLockTimeout(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	conn := db.Connect(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE a IN SHARE UPDATE EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	expectError(t, attachError(t, options(t, db, "a")), Fatal, ReasonTable, "another transaction holds a lock for longer than 2s; try again later, or run by hand: CREATE PUBLICATION *")
}

// TestLeastPrivilege: with publication and slot made by somebody else, REPLICATION
// alone is enough.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable, "CREATE PUBLICATION p FOR TABLE a")
	_, role := db.Role(t, "REPLICATION")
	o := options(t, db, "a")
	o.DSN, o.Create = role, false
	expectError(t, attachError(t, o), Fatal, ReasonSlotMissing, "replication slot \"*\" does not exist; make it: SELECT pg_create_logical_replication_slot('*', 'pgoutput')")
	db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", db.Name)
	f := follow(t, o)
	db.Exec(t, "INSERT INTO a VALUES (1)")
	f.expect("insert a (id=1 v null)")
	f.wait("the poller", func() bool { return f.client.State().Slot.WALStatus != "" })
}

func TestDetach(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	f := follow(t, options(t, db, "a"))
	_, err := f.client.Detach(t.Context(), true)
	expectError(t, err, Wait, ReasonSlotActive, "replication slot \"*\" is in use by pid *; stop it first")
	f.stop()
	dropped, err := f.client.Detach(t.Context(), true)
	if err != nil || len(dropped) != 2 {
		t.Errorf("dropped %q, %v", dropped, err)
	}
	if dropped, err := f.client.Detach(t.Context(), true); err != nil || len(dropped) != 0 {
		t.Errorf("dropped again %q, %v", dropped, err)
	}
}

// TestNotice: the warning of Postgres 18 is fatal, whatever its language.
func TestNotice(t *testing.T) {
	c := newClient(t, Options{Slot: "s", Publication: "p"})
	for _, n := range []*pgproto3.ErrorResponse{
		{Severity: "WARNING", SeverityUnlocalized: "WARNING", Code: "55000", Message: `skipped loading publication "p"`},
		{Severity: "WARNUNG", SeverityUnlocalized: "WARNING", Code: "55000", Message: "Laden von Publikation übersprungen", Routine: "LoadPublications"},
	} {
		expectError(t, c.notice(n), Fatal, ReasonPublicationMissing, "publication \"p\" does not exist at the position the slot has reached*")
	}
	if err := c.notice(&pgproto3.ErrorResponse{Severity: "WARNING", Message: "something else"}); err != nil {
		t.Error(err)
	}
}

func TestClassify(t *testing.T) {
	tg := target{address: "db:5432", user: "u", database: "d", slot: "s", publication: "p"}
	for _, c := range []struct {
		code, message string
		class         Class
		reason        Reason
	}{
		{"57P01", "terminating connection due to administrator command", Transient, ReasonServerStopped},
		{"57P03", "the database system is starting up", Transient, ReasonServerStopped},
		{"53300", "too many connections", Transient, ReasonTooManyConnections},
		{"55006", `replication slot "s" is active for PID 1`, Wait, ReasonSlotActive},
		{"42704", `publication "p" does not exist`, Fatal, ReasonPublicationMissing},
		{"42704", `replication slot "s" does not exist`, Fatal, ReasonSlotMissing},
		{"55000", "logical decoding requires wal_level >= logical", Fatal, ReasonServerUnfit},
		{"55000", `can no longer get changes from replication slot "s"`, Fatal, ReasonSlotLost},
		{"28P01", "password authentication failed", Fatal, ReasonAuthentication},
		{"3D000", "no", Fatal, ReasonDatabaseMissing},
		{"42601", `syntax error at or near "IDENTIFY_SYSTEM"`, Fatal, ReasonPooler},
		{"08P01", "unsupported startup parameter: extra_float_digits", Fatal, ReasonPooler},
		{"XX000", "something broke", Transient, ReasonServerError},
	} {
		e := tg.classify(fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: c.code, Message: c.message}))
		if e.Class != c.class || e.Reason != c.reason {
			t.Errorf("%s %q: class %d reason %s", c.code, c.message, e.Class, e.Reason)
		}
	}
	if e := tg.classify(context.DeadlineExceeded); e.Class != Transient || e.Reason != ReasonConnectionLost {
		t.Errorf("%+v", e)
	}
}

// TestTLS streams and gathers below TLS.
func TestTLS(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	certificate(t, db)
	if err := c.Restart(t.Context(), cluster.Fast); err != nil {
		t.Fatal(err)
	}
	o := options(t, db, "a")
	o.DSN = dsn(t, o.DSN, func(u *url.URL) { u.RawQuery = "sslmode=require" })
	if _, err := newClient(t, o).Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "CREATE PROCEDURE fill() LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..20000 LOOP INSERT INTO a VALUES (i, repeat('x', 50)); COMMIT; END LOOP; END $$")
	db.Exec(t, "CALL fill()")
	f := follow(t, o)
	f.wait("20000 changes", func() bool { return len(f.got()) >= 20000 })
	last := time.Now()
	db.Exec(t, "INSERT INTO a VALUES (0)")
	f.wait("one more", func() bool { return len(f.got()) == 20001 })
	if d := time.Since(last); d > 5*time.Second {
		t.Errorf("the last one took %s", d)
	}
}
