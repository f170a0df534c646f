package replication

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

func run(t testing.TB, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// TestConfirmPositions tries each position that might be thought of as the end of
// a transaction: only the server's own end of it leaves just that one out. The two
// transactions are open at the same time and commit back to back.
func TestConfirmPositions(t *testing.T) {
	db := pgtest.NewDatabase(t, oneTable)
	o := options(t, db, "a")
	o.stopTimeout = 200 * time.Millisecond // nothing is confirmed, so all of it passes
	f := launch(t, o, false)
	f.waitPhase(Streaming)
	one, two := db.Connect(t), db.Connect(t)
	run(t, one, "BEGIN; INSERT INTO a VALUES (1)")
	run(t, two, "BEGIN; INSERT INTO a VALUES (2)")
	run(t, one, "COMMIT")
	run(t, two, "COMMIT")
	db.Exec(t, "INSERT INTO a VALUES (3)")
	rows := []string{"insert a (id=1 v null)", "insert a (id=2 v null)", "insert a (id=3 v null)"}
	f.expect(rows...)
	f.stop()
	for _, c := range []struct {
		name string
		at   wal.LSN
		want []string
	}{
		{"commit of the first", f.commits[0].CommitLSN, rows},
		{"end of the first", f.commits[0].EndLSN, rows[1:]},
		{"commit of the second", f.commits[1].CommitLSN, rows[1:]},
		{"end of the second", f.commits[1].EndLSN, rows[2:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			o.Resume = f.resume()
			o.Resume.LSN = c.at
			g := launch(t, o, false)
			g.expect(c.want...)
			g.stop()
		})
	}
}

// TestOpenAcrossRestart: transactions that were open or prepared while others were
// confirmed, and Billhook was stopped and started, come whole at their commit.
func TestOpenAcrossRestart(t *testing.T) {
	db := pgtest.NewDatabase(t, oneTable)
	o := options(t, db, "a")
	f := follow(t, o)
	open := db.Connect(t)
	run(t, open, "BEGIN; INSERT INTO a VALUES (1)")
	db.Exec(t, "BEGIN; INSERT INTO a VALUES (2); PREPARE TRANSACTION 'p'")
	db.Exec(t, "INSERT INTO a VALUES (3)")
	f.expect("insert a (id=3 v null)")
	end := f.commits[0].EndLSN
	db.WaitFor(t, "SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", end.String(), db.Name)
	f.stop()
	db.Exec(t, "COMMIT PREPARED 'p'")
	o.Resume = f.resume()
	g := follow(t, o)
	g.expect("insert a (id=2 v null)")
	run(t, open, "INSERT INTO a VALUES (4); COMMIT")
	g.expect("insert a (id=2 v null)", "insert a (id=1 v null)", "insert a (id=4 v null)")
}

// TestServerForgets: a server that crashes forgets what was confirmed since its
// last checkpoint. A journal's own position leaves out what it holds all the same;
// who asks the slot gets it again, with the same positions.
func TestServerForgets(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	o := options(t, db, "a")
	f := follow(t, o)
	db.Exec(t, "INSERT INTO a VALUES (1)")
	db.Exec(t, "INSERT INTO a VALUES (2)")
	f.expect("insert a (id=1 v null)", "insert a (id=2 v null)")
	end := f.commits[1].EndLSN
	db.WaitFor(t, "SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots", end.String())
	f.stop()
	if err := c.Restart(t.Context(), cluster.Immediate); err != nil {
		t.Fatal(err)
	}
	if back := mustLSN(t, pgtest.Value[string](t, db, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots")); back >= end {
		t.Fatalf("the slot is at %s, it has forgotten nothing of %s", back, end)
	}
	again := launch(t, o, false)
	again.expect("insert a (id=1 v null)", "insert a (id=2 v null)")
	again.stop()
	if !slices.Equal(again.commits, f.commits) {
		t.Errorf("sent again as %+v, were %+v", again.commits, f.commits)
	}
	o.Resume = f.resume()
	g := follow(t, o)
	db.Exec(t, "INSERT INTO a VALUES (3)")
	g.expect("insert a (id=3 v null)")
}

// TestCleanStop: after a stop in good order the slot stands where the consumer
// does, so that whoever goes on from the slot alone gets nothing twice, whatever is
// written meanwhile.
func TestCleanStop(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	o := options(t, db, "a")
	const rounds, rows = 5, 40
	var got []string
	for round := range rounds {
		f := follow(t, o)
		conn := db.Connect(t)
		for i := range rows {
			run(t, conn, fmt.Sprintf("INSERT INTO a VALUES (%d)", round*rows+i))
		}
		last := round == rounds-1
		f.wait("changes", func() bool { return len(f.got()) > 5 && (!last || len(got)+len(f.got()) >= rounds*rows) })
		f.stop()
		slot := mustLSN(t, pgtest.Value[string](t, db, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", db.Name))
		if slot != f.client.confirmed() {
			t.Errorf("round %d: the slot is at %s, the consumer at %s", round, slot, f.client.confirmed())
		}
		got = append(got, f.got()...)
	}
	for i, s := range got {
		if want := fmt.Sprintf("insert a (id=%d v null)", i); s != want {
			t.Fatalf("change %d is %s, want %s", i, s, want)
		}
	}
}

// TestGeneratedColumns: a stored one comes from Postgres 18 on, when the
// publication says so; a virtual one never.
func TestGeneratedColumns(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, "CREATE TABLE g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)")
	version := db.Cluster.Version()
	if version >= 18 {
		db.Exec(t, "ALTER TABLE g ADD thrice int GENERATED ALWAYS AS (id * 3) VIRTUAL")
	}
	f := follow(t, options(t, db, "g"))
	sent := func() []string {
		p, _, err := catalog.ReadPublication(t.Context(), db.Connect(t), "p")
		if err != nil {
			t.Fatal(err)
		}
		table, _ := p.Table(catalog.Name{Schema: "public", Table: "g"})
		return table.Columns
	}
	db.Exec(t, "INSERT INTO g VALUES (1)")
	f.expect("insert g (id=1)")
	if l := sent(); version >= 15 && !slices.Equal(l, []string{"id"}) {
		t.Errorf("sent: %v", l)
	}
	if version < 18 {
		return
	}
	db.Exec(t, "ALTER PUBLICATION p SET (publish_generated_columns = stored)")
	db.Exec(t, "INSERT INTO g VALUES (2)")
	f.expect("insert g (id=1)", "insert g (id=2 twice=4)")
	if l := sent(); !slices.Equal(l, []string{"id", "twice"}) {
		t.Errorf("sent: %v", l)
	}
}

// TestApplicationGoesOn: attaching never makes the application's own statements
// fail, neither where it is refused nor where it is granted.
func TestApplicationGoesOn(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable, "CREATE TABLE nokey (id int, v text)", "CREATE TABLE nothing (id int PRIMARY KEY, v text)",
		"ALTER TABLE nothing REPLICA IDENTITY NOTHING", "CREATE TABLE f (id int PRIMARY KEY, v text)", "ALTER TABLE f REPLICA IDENTITY FULL")
	for _, table := range []string{"nokey", "nothing"} {
		if err := attachError(t, options(t, db, "a", table)); err == nil {
			t.Errorf("%s was taken", table)
		}
	}
	o := options(t, db, "a", "f")
	for i := range o.Tables {
		o.Tables[i].Columns = []string{"v"} // with FULL a list would break updates
	}
	f := follow(t, o)
	for _, table := range []string{"nokey", "nothing", "a", "f"} {
		db.Exec(t, fmt.Sprintf("INSERT INTO %s VALUES (1, 'x'); UPDATE %[1]s SET v = 'y'; DELETE FROM %[1]s", table))
	}
	f.wait("6 changes", func() bool { return len(f.got()) == 6 })
}

// TestLogicalMessages: those outside of transactions come at once, even when their
// caller rolls back, and between the transactions around them.
func TestLogicalMessages(t *testing.T) {
	db := pgtest.NewDatabase(t, oneTable)
	f := follow(t, options(t, db, "a"))
	open := db.Connect(t)
	run(t, open, "BEGIN; INSERT INTO a VALUES (1); SELECT pg_logical_emit_message(true, 'in', 'x')")
	db.Exec(t, "BEGIN; INSERT INTO a VALUES (2); SELECT pg_logical_emit_message(false, 'out', 'y'), pg_logical_emit_message(true, 'in', 'never'); ROLLBACK")
	db.Exec(t, "INSERT INTO a VALUES (3)")
	run(t, open, "COMMIT")
	f.expect("message out: y", "insert a (id=3 v null)", "insert a (id=1 v null)", "message in: x")
}

// TestOrigin: transactions that came here by replication come on, named.
func TestOrigin(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	f := follow(t, options(t, db, "a"))
	conn := db.Connect(t)
	name := "elsewhere_" + db.Name
	run(t, conn, "SELECT pg_replication_origin_create('"+name+"'); SELECT pg_replication_origin_session_setup('"+name+"')")
	run(t, conn, "INSERT INTO a VALUES (1)")
	run(t, conn, "SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('"+name+"')")
	run(t, conn, "INSERT INTO a VALUES (2)")
	f.expect("origin "+name, "insert a (id=1 v null)", "insert a (id=2 v null)")
}

// TestPartitions: leaves come under their root's name, a row that moves is deleted
// and inserted, and a leaf attached in mid-stream, whose identity nobody thought
// of, is not trusted to have whole old rows.
func TestPartitions(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `CREATE TABLE p (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY LIST (r)`,
		"CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)", "CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2)")
	f := follow(t, options(t, db, "p"))
	db.Exec(t, "INSERT INTO p VALUES (1, 1, 'a'); UPDATE p SET v = 'b'; UPDATE p SET r = 2; DELETE FROM p")
	want := []string{"insert p (id=1 r=1 v=a)", "update p (id=1 r=1 v=b)", "delete p (id=1 r=1)", "insert p (id=1 r=2 v=b)", "delete p (id=1 r=2)"}
	f.expect(want...)
	f.stop()

	db.Exec(t, "ALTER TABLE p REPLICA IDENTITY FULL; ALTER TABLE p1 REPLICA IDENTITY FULL; ALTER TABLE p2 REPLICA IDENTITY FULL")
	o := options(t, db, "p")
	o.Resume = f.resume()
	g := follow(t, o)
	db.Exec(t, "INSERT INTO p VALUES (1, 1, 'a'); DELETE FROM p")
	db.Exec(t, "CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)")
	db.Exec(t, "INSERT INTO p VALUES (3, 3, 'a'); DELETE FROM p")
	db.Exec(t, "CREATE TABLE p4 (id int NOT NULL, r int NOT NULL, v text, PRIMARY KEY (id, r)); INSERT INTO p4 VALUES (4, 4, 'attached')")
	db.Exec(t, "ALTER TABLE p ATTACH PARTITION p4 FOR VALUES IN (4); ALTER TABLE p DETACH PARTITION p1")
	if db.Cluster.Version() < 15 { // it goes on with what it knew of p1 and p4
		g.wait("the connection to be made anew", func() bool {
			return counted(t, g.client.metrics.reconnects.WithLabelValues(string(ReasonPartitions))) > 0 && g.client.State().Phase == Streaming
		})
	}
	db.Exec(t, "INSERT INTO p1 VALUES (9, 1, 'no longer of p')")
	db.Exec(t, "UPDATE p SET v = 'b'")
	g.expect("insert p (id=1 r=1 v=a)", "delete p (id=1 r=1 v=a)",
		"insert p (id=3 r=3 v=a)", "delete p (id=3 r=3)", // v is unknown, not null
		"update p (id=4 r=4 v=b)")
}

// TestValues: every value comes as Postgres itself writes it under the settings of
// catalog.Settings, the odd ones too, and the stream goes on.
func TestValues(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `
		CREATE TYPE state AS ENUM ('on', 'off');
		CREATE DOMAIN amount AS numeric;
		CREATE TYPE pair AS (a int, b text);
		CREATE TABLE v (id int PRIMARY KEY, n numeric, d amount, s state, p pair, ds amount[], ss state[], f float8, j jsonb, js json,
			ts timestamp, tz timestamptz, dt date, tm time, iv interval, i inet, b bytea, m money, r numrange, u uuid, x text[])`)
	for _, s := range []string{"datestyle = 'German'", "timezone = 'Asia/Tokyo'", "intervalstyle = 'iso_8601'", "bytea_output = 'escape'", "extra_float_digits = 0"} {
		db.Exec(t, "ALTER DATABASE "+db.Name+" SET "+s)
	}
	f := follow(t, options(t, db, "v"))
	config, err := pgx.ParseConfig(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range catalog.Settings() {
		config.RuntimeParams[k] = v
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows := []string{
		`1, 'NaN', 123456789012345678.000001, 'on', '(1,"x, y")', '{1.50,NaN}', '{on,on}', 'NaN', '{"a": 12345678901234567890.123456789, "b": 1e400}', '{"a":1e999}',
			'infinity', '-infinity', 'infinity', '24:00:00', '-1 year +2 days -03:04:05.6', '10.0.0.1/8', '\x00ff', 5, '[1,)', '6ecd8c99-4036-403d-bf84-cf8400f67836', '{NULL,"NULL","a,b","\"",""}'`,
		`2, -0.000000000000000000000000000001, 1e100, 'off', NULL, '{}', NULL, 0.1::float8 + 0.2, 'null', 'null',
			'0044-03-15 00:00:00 BC', '294276-12-31 23:59:59.999999+00', '5874897-12-31', '00:00:00', '0', '::1', '', -0.01, 'empty', NULL, '[2:3]={a,b}'`,
	}
	if db.Cluster.Version() >= 14 {
		rows = append(rows, `3, 'Infinity', '-Infinity', 'on', NULL, '{Infinity}', NULL, '-Infinity', NULL, NULL, NULL, NULL, '4713-01-01 BC', NULL, NULL, NULL, NULL, NULL, '(-infinity,5]', NULL, NULL`)
	}
	var columns string
	for i, row := range rows {
		run(t, conn, "INSERT INTO public.v VALUES ("+strings.ReplaceAll(row, "\n", " ")+")")
		if i == 0 {
			db.Exec(t, "ALTER TYPE state RENAME VALUE 'off' TO 'out'")
			rows[1] = strings.Replace(rows[1], "'off'", "'out'", 1)
			if columns, err = columnTexts(t, conn); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.wait("all rows", func() bool { return len(f.got()) == len(rows) })
	for i := range rows {
		var want []string
		if err := conn.QueryRow(t.Context(), fmt.Sprintf("SELECT ARRAY[%s] FROM public.v WHERE id = %d", columns, i+1)).Scan(&want); err != nil {
			t.Fatal(err)
		}
		if got, want := f.got()[i], "insert v ("+strings.Join(want, " ")+")"; got != want {
			t.Errorf("row %d:\n got %s\nwant %s", i+1, got, want)
		}
	}
}

// columnTexts is SQL for what changeText makes of each column of v.
func columnTexts(t *testing.T, conn *pgx.Conn) (string, error) {
	var s string
	// format has a type's output function, which a cast to text need not have: inet.
	err := conn.QueryRow(t.Context(), `SELECT string_agg(format('CASE WHEN %1$I IS NULL THEN %2$L WHEN octet_length(format(%5$L, %1$I)) > 20 THEN %3$L || octet_length(format(%5$L, %1$I)) || %4$L ELSE %3$L || format(%5$L, %1$I) END',
		attname, attname || ' null', attname || '=', ' bytes', '%s'), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'public.v'::regclass AND attnum > 0`).Scan(&s)
	return s, err
}

// TestSavepoints: thousands of savepoints, half of them rolled back, in a
// transaction that the server spills to its disk: what was committed comes once,
// and what was not never does. The spilling is counted.
func TestSavepoints(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable, `CREATE PROCEDURE fill(lo int, hi int) LANGUAGE plpgsql AS $$ BEGIN
		FOR i IN lo..hi LOOP
			BEGIN
				INSERT INTO a VALUES (i, repeat('x', 200));
				IF i % 2 = 0 THEN RAISE EXCEPTION 'back'; END IF;
			EXCEPTION WHEN raise_exception THEN NULL;
			END;
		END LOOP; END $$`)
	f := follow(t, options(t, db, "a"))
	db.Exec(t, "CALL fill(1, 4000)")
	db.Exec(t, "BEGIN; CALL fill(4001, 8000); ROLLBACK")
	db.Exec(t, "INSERT INTO a VALUES (0)")
	f.wait("all rows", func() bool { return len(f.got()) >= 2001 })
	got := f.got()
	for i, s := range got[:2000] {
		if want := fmt.Sprintf("insert a (id=%d v=200 bytes)", 2*i+1); s != want {
			t.Fatalf("change %d is %s, want %s", i, s, want)
		}
	}
	if len(got) != 2001 || len(f.commits) != 2 {
		t.Errorf("%d changes in %d transactions", len(got), len(f.commits))
	}
	f.wait("the spill counters", func() bool {
		return f.client.State().Slot.SpillTransactions > 0 && gauged(t, f.client.metrics.slotSpillBytes) > 0
	})
}

// TestTablesRenamed: the stream knows tables by their OID. A renamed one comes
// under its new name, two that were swapped under each other's, and one that was
// made again not before the publication holds it.
func TestTablesRenamed(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable, "CREATE TABLE b (id int PRIMARY KEY, w int)")
	f := follow(t, options(t, db, "a", "b"))
	db.Exec(t, `INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)`)
	db.Exec(t, `BEGIN; INSERT INTO a VALUES (2); ALTER TABLE a RENAME TO c; INSERT INTO c VALUES (3); ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b;
		INSERT INTO a VALUES (4); INSERT INTO b VALUES (5); COMMIT`)
	db.Exec(t, `DROP TABLE a; CREATE TABLE a (id bigint PRIMARY KEY); INSERT INTO a VALUES (6); ALTER PUBLICATION p ADD TABLE a; INSERT INTO a VALUES (7); ALTER TABLE b ALTER v TYPE varchar(5); INSERT INTO b VALUES (8)`)
	f.expect("insert a (id=1 v null)", "insert b (id=1 w null)",
		"insert a (id=2 v null)", "insert c (id=3 v null)", "insert a (id=4 w null)", "insert b (id=5 v null)",
		"insert a (id=7)", "insert b (id=8 v null)")
}

// TestPooler has what a real pooler (PgBouncer 1.18) does in front of a server:
// refuse the settings, refuse replication, or, told to ignore both, hand the
// replication commands to an ordinary session.
func TestPooler(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	for _, c := range []struct{ name, refuses, want string }{
		{"settings refused", "bytea_output", "unsupported startup parameter: bytea_output"},
		{"replication refused", "replication", "unsupported startup parameter: replication"},
		{"replication ignored", "", `syntax error at or near "IDENTIFY_SYSTEM"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t, db, "a")
			o.DSN = dsn(t, o.DSN, func(u *url.URL) { u.Host = pooler(t, db, c.refuses) })
			expectError(t, attachError(t, o), Fatal, ReasonPooler, "Postgres at 127.0.0.1:* does not understand replication ("+c.want+"): a connection pooler answers there; let source.dsn name the database server itself")
		})
	}
}

// pooler listens as a pooler does that refuses a startup parameter, or else leaves
// "replication" out of those it passes on.
func pooler(t *testing.T, db *pgtest.Database, refuses string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	serve := func(c net.Conn) error {
		defer c.Close()
		m, err := pgproto3.NewBackend(c, c).ReceiveStartupMessage()
		if err != nil {
			return err
		}
		start := m.(*pgproto3.StartupMessage)
		if refuses != "" {
			if _, ok := start.Parameters[refuses]; !ok {
				return fmt.Errorf("no %s among %v", refuses, start.Parameters)
			}
			b, err := (&pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: " + refuses}).Encode(nil)
			if err != nil {
				return err
			}
			_, err = c.Write(b)
			return err
		}
		delete(start.Parameters, "replication")
		b, err := start.Encode(nil)
		if err != nil {
			return err
		}
		s, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", db.Cluster.Port()))
		if err != nil {
			return err
		}
		defer s.Close()
		if _, err := s.Write(b); err != nil {
			return err
		}
		back := make(chan struct{})
		go func() { defer close(back); copyAll(c, s) }()
		copyAll(s, c)
		<-back
		return nil
	}
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if err := serve(c); err != nil {
				t.Errorf("pooler: %v", err)
			}
		}
	}()
	return l.Addr().String()
}

// copyAll copies until either end closes, and closes both.
func copyAll(to, from net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			to.Close()
			from.Close()
			return
		}
	}
}

// TestDetachServerAway: taking away what was made says so when it cannot.
func TestDetachServerAway(t *testing.T) {
	c := newClient(t, Options{DSN: "postgres://u@127.0.0.1:1/d?sslmode=disable", Slot: "s", Publication: "p"})
	dropped, err := c.Detach(t.Context(), true)
	expectError(t, err, Transient, ReasonUnreachable, "cannot reach Postgres at 127.0.0.1:1: *")
	if len(dropped) != 0 {
		t.Errorf("dropped %q", dropped)
	}
}

// TestLagIsFromCommit: how far behind one is goes by when things were committed,
// not by when they were sent.
func TestLagIsFromCommit(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	o := options(t, db, "a")
	f := follow(t, o)
	f.stop()
	db.Exec(t, "INSERT INTO a VALUES (1)")
	committed := pgtest.Value[time.Time](t, db, "SELECT clock_timestamp()")
	<-time.After(2 * time.Second) // the lag itself
	o.Resume = f.resume()
	g := follow(t, o)
	g.expect("insert a (id=1 v null)")
	if last := g.client.State().LastCommit; last.After(committed) || committed.Sub(last) > time.Second {
		t.Errorf("the last commit was at %s, is told as %s", committed, last)
	}
	if lag := float64(time.Now().UnixNano())/1e9 - gauged(t, g.client.metrics.lastCommit); lag < 2 {
		t.Errorf("a lag of %.1f s, was 2 s at least", lag)
	}
}

// TestOptionsByVersion: what a version does not know is not asked of it.
func TestOptionsByVersion(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	o := options(t, db, "a")
	o.Failover = true
	f := follow(t, o)
	f.wait("the poller", func() bool { return f.client.State().Slot.Name != "" })
	if got, want := f.client.State().Slot.Failover, db.Cluster.Version() >= 17; got != want {
		t.Errorf("failover is %v", got)
	}
	if f.client.State().Slot.TwoPhase {
		t.Error("the slot has two_phase")
	}
}

// TestIdleTimeout: Postgres 18 may give up a slot that nobody uses.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	if pgtest.Shared(t).Version() < 18 {
		t.Skip("from Postgres 18 on")
	}
	c := pgtest.Start(t, map[string]string{"idle_replication_slot_timeout": "1s"})
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	o := options(t, db, "a")
	f := follow(t, o)
	f.stop()
	conn := db.Connect(t)
	f.wait("the slot to be given up", func() bool {
		run(t, conn, "CHECKPOINT")
		return pgtest.Value[bool](t, db, "SELECT invalidation_reason IS NOT NULL FROM pg_replication_slots")
	})
	o.Resume = f.resume()
	g := start(t, o)
	<-g.done
	expectError(t, g.err, Fatal, ReasonSlotLost, "replication slot \"*\" is lost, the server has removed WAL that it needs (idle_timeout); *")
}

// TestSlotLostUnderStream: a consumer that stands still until the server gives the
// slot up is warned before, and told once after.
func TestSlotLostUnderStream(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"max_slot_wal_keep_size": "64MB", "min_wal_size": "32MB", "max_wal_size": "32MB"})
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	f := launch(t, options(t, db, "a"), false)
	f.waitPhase(Streaming)
	conn := db.Connect(t)
	const megabytes = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 4)"
	for f.client.State().Faults[FaultSlot] == "" {
		run(t, conn, megabytes)
		polled := f.client.State().SlotPolled
		f.wait("a look", func() bool { return f.client.State().SlotPolled.After(polled) })
		if f.client.State().Slot.Lost() {
			t.Fatal("the end came without a warning")
		}
	}
	for f.client.State().Phase != Failed {
		run(t, conn, megabytes+"; SELECT pg_switch_wal(); CHECKPOINT")
	}
	<-f.done
	expectError(t, f.err, Fatal, ReasonSlotLost, "replication slot \"*\" is lost, *")
}
