package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

// TestStatusBytes decodes the status update by hand: all three positions are the
// durable one.
func TestStatusBytes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	b := appendStatus(nil, 0x16B374D848, now, true)
	if len(b) != 5+34 || b[0] != 'd' || binary.BigEndian.Uint32(b[1:]) != 38 || b[5] != 'r' {
		t.Fatalf("% x", b)
	}
	for i, name := range []string{"written", "flushed", "applied"} {
		if got := wal.LSN(binary.BigEndian.Uint64(b[6+8*i:])); got != 0x16B374D848 {
			t.Errorf("%s position is %v", name, got)
		}
	}
	if got := time.UnixMicro(int64(binary.BigEndian.Uint64(b[30:])) + postgresEpoch); !got.Equal(now) {
		t.Errorf("clock is %v", got)
	}
	if b[38] != 1 {
		t.Error("no reply is asked for")
	}
	if b := appendStatus(nil, 0, now, false); b[38] != 0 {
		t.Error("a reply is asked for")
	}
}

func TestStreamIdentities(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `
		CREATE TABLE d (id int PRIMARY KEY, v text, big text);
		CREATE TABLE f (id int PRIMARY KEY, v text, big text);
		CREATE TABLE i (id int PRIMARY KEY, k text NOT NULL, v text);
		CREATE UNIQUE INDEX i_k ON i (k);
		ALTER TABLE f REPLICA IDENTITY FULL;
		ALTER TABLE i REPLICA IDENTITY USING INDEX i_k;
		ALTER TABLE d ALTER big SET STORAGE EXTERNAL;
		ALTER TABLE f ALTER big SET STORAGE EXTERNAL;`)
	f := follow(t, options(t, db, "d", "f", "i"))
	db.Exec(t, `
		INSERT INTO d VALUES (1, 'a', repeat('x', 9000)), (2, NULL, '');
		INSERT INTO f VALUES (1, 'a', repeat('x', 9000));
		INSERT INTO i VALUES (1, 'k', 'a');
		UPDATE d SET v = 'b' WHERE id = 1;
		UPDATE d SET id = 3 WHERE id = 1;
		UPDATE f SET v = 'b';
		UPDATE i SET v = 'b';
		UPDATE i SET k = 'l';
		DELETE FROM d; DELETE FROM f; DELETE FROM i;
		TRUNCATE d, f;`)
	f.expect(
		"insert d (id=1 v=a big=9000 bytes)", "insert d (id=2 v null big=)",
		"insert f (id=1 v=a big=9000 bytes)", "insert i (id=1 k=k v=a)",
		"update d (id=1 v=b big unchanged)", "update d (id=1) -> (id=3 v=b big unchanged)",
		"update f (id=1 v=a big=9000 bytes) -> (id=1 v=b big unchanged)",
		"update i (id=1 k=k v=b)", "update i (k=k) -> (id=1 k=l v=b)",
		"delete d (id=2)", "delete d (id=3)", "delete f (id=1 v=b big=9000 bytes)", "delete i (k=l)",
		"truncate 2")
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = 'p'"); n != 3 {
		t.Errorf("%d tables published", n)
	}
	s := f.session()
	if !s.SlotCreated || s.Number != 1 || s.Database != db.Name || s.Start.IsZero() || s.PublicationOID == 0 || s.Timeline == 0 {
		t.Errorf("session %+v", s)
	}
}

const oneTable = `CREATE TABLE a (id int PRIMARY KEY, v text)`

// TestStreamTransactions goes through what makes positions tricky: interleaved
// transactions, many rows at one LSN, DDL in mid-stream, savepoints.
func TestStreamTransactions(t *testing.T) {
	db := pgtest.NewDatabase(t, oneTable)
	f := follow(t, options(t, db, "a"))
	one, two := db.Connect(t), db.Connect(t)
	exec := func(c *pgx.Conn, sql string) {
		t.Helper()
		if _, err := c.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(one, "BEGIN")
	exec(one, "INSERT INTO a VALUES (1)")
	exec(two, "BEGIN")
	exec(two, "INSERT INTO a VALUES (2)")
	exec(two, "COMMIT")
	exec(one, "INSERT INTO a VALUES (3)")
	exec(one, "COMMIT")
	if _, err := one.CopyFrom(t.Context(), pgx.Identifier{"a"}, []string{"id"}, pgx.CopyFromRows([][]any{{4}, {5}, {6}})); err != nil {
		t.Fatal(err)
	}
	exec(one, "BEGIN; INSERT INTO a VALUES (7); SAVEPOINT s; INSERT INTO a VALUES (8); ROLLBACK TO s; ALTER TABLE a ADD w int DEFAULT 9; INSERT INTO a VALUES (10); COMMIT")
	f.expect("insert a (id=2 v null)", "insert a (id=1 v null)", "insert a (id=3 v null)",
		"insert a (id=4 v null)", "insert a (id=5 v null)", "insert a (id=6 v null)",
		"insert a (id=7 v null)", "insert a (id=10 v null w=9)")
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := 1; i < len(f.commits); i++ {
		if f.commits[i].CommitLSN <= f.commits[i-1].CommitLSN || f.commits[i].CommitLSN >= f.commits[i].EndLSN {
			t.Errorf("commits %+v", f.commits)
		}
	}
}

// TestStreamResumes stops and starts with the position of a journal: nothing
// comes twice and nothing is missed.
func TestStreamResumes(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	o := options(t, db, "a")
	f := follow(t, o)
	db.Exec(t, "INSERT INTO a VALUES (1)")
	f.expect("insert a (id=1 v null)")
	f.stop()
	if f.err != nil {
		t.Fatal(f.err)
	}
	if s := f.client.State(); s.Phase != Stopped {
		t.Errorf("phase %v", s.Phase)
	}
	// The last position was told on the way out.
	s := f.session()
	end := f.commits[0].EndLSN
	if got := pgtest.Value[string](t, db, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", db.Name); mustLSN(t, got) < end {
		t.Errorf("the slot is at %s, the journal at %s", got, end)
	}
	db.Exec(t, "INSERT INTO a VALUES (2)")
	o.Resume = Position{SystemID: s.SystemID, Timeline: s.Timeline, Slot: o.Slot, Publication: o.Publication, PublicationOID: s.PublicationOID, LSN: f.client.confirmed()}
	g := follow(t, o)
	g.expect("insert a (id=2 v null)")
	if g.session().SlotCreated {
		t.Error("a slot was made")
	}
}

func mustLSN(t testing.TB, s string) wal.LSN {
	t.Helper()
	l, err := wal.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestStreamIdleAdvancesSlot: WAL that concerns nobody here must not be kept.
func TestStreamIdleAdvancesSlot(t *testing.T) {
	db := pgtest.NewDatabase(t, oneTable, "CREATE TABLE unpublished (v text)")
	f := follow(t, options(t, db, "a"))
	db.Exec(t, "INSERT INTO unpublished SELECT repeat('x', 100) FROM generate_series(1, 1000)")
	at := pgtest.Value[string](t, db, "SELECT pg_current_wal_lsn()::text")
	db.WaitFor(t, "SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", at, db.Name)
	if got := f.got(); len(got) != 0 {
		t.Errorf("got %q", got)
	}
	f.wait("the poller", func() bool { return f.client.State().Slot.WALStatus == "reserved" })
}

// TestStreamBlockedConsumer lets the consumer stand still for much longer than
// wal_sender_timeout, with more on its way than the buffers hold.
func TestStreamBlockedConsumer(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"wal_sender_timeout": "2s"})
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	o := options(t, db, "a")
	o.bufferSize = 64 << 10
	f := follow(t, o)
	block := make(chan struct{})
	f.mu.Lock()
	f.block = block
	f.mu.Unlock()
	db.Exec(t, "INSERT INTO a SELECT g, repeat('x', 100) FROM generate_series(1, 50000) g")
	sent := time.After(8 * time.Second) // four times the timeout
	before := counted(t, f.client.metrics.statusUpdates)
	<-sent
	if n := counted(t, f.client.metrics.statusUpdates) - before; n < 4 { // one in each wal_sender_timeout at the least
		t.Errorf("%v status updates in 8 s", n)
	}
	f.mu.Lock()
	f.block = nil
	f.mu.Unlock()
	close(block)
	f.wait("50000 changes", func() bool { return len(f.got()) == 50000 })
	if s := f.client.State(); s.Reconnects != 0 || s.Session.Number != 1 {
		t.Errorf("state %+v", s)
	}
}

// TestStreamLongMessage has one message longer than a buffer, and longer than all
// of them.
func TestStreamLongMessage(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	o := options(t, db, "a")
	o.bufferSize = 8 << 10
	f := follow(t, o)
	db.Exec(t, `INSERT INTO a VALUES (1, repeat('x', 30000)), (2, repeat('y', 5000000)), (3, 'z'), (4, repeat('x', 8150))`)
	f.expect("insert a (id=1 v=30000 bytes)", "insert a (id=2 v=5000000 bytes)", "insert a (id=3 v=z)", "insert a (id=4 v=8150 bytes)")
	f.wait("the buffers to shrink", func() bool { return len(f.client.pool.free) >= cap(f.client.pool.free)-1 })
	for range len(f.client.pool.free) {
		b := <-f.client.pool.free
		if len(b.b) > o.bufferSize {
			t.Errorf("a buffer of %d bytes was kept", len(b.b))
		}
		f.client.pool.free <- b
	}
}

// TestStreamServerCrash restarts the server as a crash would, in mid-flow.
func TestStreamServerCrash(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	f := follow(t, options(t, db, "a"))
	next := 0
	insert := func(n int) {
		db.Exec(t, "INSERT INTO a SELECT g, 'x' FROM generate_series($1::int, $2::int) g", next+1, next+n)
		next += n
	}
	for range 3 {
		insert(100)
		if err := c.Restart(t.Context(), cluster.Immediate); err != nil {
			t.Fatal(err)
		}
		insert(100)
	}
	// Resent transactions are told by their commit LSN, as the journal does.
	complete := func() bool {
		seen := map[string]bool{}
		for _, s := range f.got() {
			seen[s] = true
		}
		return len(seen) == next
	}
	f.wait(fmt.Sprintf("%d rows", next), complete)
	s := f.client.State()
	if s.Reconnects == 0 || s.Session.Number < 2 || s.Err == nil {
		t.Errorf("state %+v", s)
	}
	if e, ok := errors.AsType[*Error](s.Err); !ok || e.Class != Transient || strings.Contains(e.Text, "\n") {
		t.Errorf("error %v", s.Err)
	}
}

// TestStreamSilence: a connection that no longer carries anything, without being
// closed, is given up.
func TestStreamSilence(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"wal_sender_timeout": "3s"})
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	p := pgtest.NewProxy(t, c.Port())
	o := options(t, db, "a")
	o.DSN = dsn(t, db.DSN, func(u *url.URL) { u.Host = p.Address })
	o.silence = 3 * time.Second
	f := follow(t, o)
	db.Exec(t, "INSERT INTO a VALUES (1)")
	f.expect("insert a (id=1 v null)")
	p.Hole()
	db.Exec(t, "INSERT INTO a VALUES (2)")
	f.wait("the connection to be given up", func() bool { return f.client.State().Reconnects > 0 })
	if e, ok := errors.AsType[*Error](f.client.State().Err); !ok || e.Reason != ReasonSilence {
		t.Errorf("error %v", f.client.State().Err)
	}
	p.Heal()
	f.expect("insert a (id=1 v null)", "insert a (id=2 v null)")
}

// TestStreamCut cuts the connection after every few bytes of one transaction: it
// arrives whole, once or more, never in part.
func TestStreamCut(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	p := pgtest.NewProxy(t, db.Cluster.Port())
	o := options(t, db, "a")
	o.DSN = dsn(t, db.DSN, func(u *url.URL) { u.Host = p.Address })
	f := follow(t, o)
	db.Exec(t, "INSERT INTO a SELECT g, 'x' FROM generate_series(1, 20) g")
	f.wait("20 rows", func() bool { return len(f.got()) >= 20 })
	for range 5 {
		before := f.client.State().Reconnects
		p.Cut()
		f.wait("a reconnect", func() bool { return f.client.State().Reconnects > before })
		f.waitPhase(Streaming)
		db.Exec(t, "UPDATE a SET v = v || 'x'")
	}
	f.wait("120 changes", func() bool { return len(f.got()) >= 120 })
	if n := len(f.got()); n%20 != 0 {
		t.Errorf("%d changes: a transaction came in part", n)
	}
}

// TestStreamStandby: the second client waits, names the first, and takes over.
func TestStreamStandby(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	f := follow(t, options(t, db, "a"))
	g := start(t, options(t, db, "a"))
	g.waitPhase(Standby)
	s := g.client.State()
	for _, want := range []string{"is in use by pid ", "billhook", "127.0.0.1"} {
		if !strings.Contains(s.Detail, want) {
			t.Errorf("%q does not name %q", s.Detail, want)
		}
	}
	db.Exec(t, "INSERT INTO a VALUES (1)")
	f.expect("insert a (id=1 v null)")
	if _, err := g.client.Attach(t.Context()); err == nil || !strings.Contains(err.Error(), "is in use by pid") {
		t.Errorf("Attach: %v", err)
	}
	f.stop()
	g.waitPhase(Streaming)
	db.Exec(t, "INSERT INTO a VALUES (2)")
	g.expect("insert a (id=2 v null)")
}

// TestStreamSettings: what somebody has set for the database must not change the
// text of values.
func TestStreamSettings(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `CREATE TABLE a (id int PRIMARY KEY, ts timestamptz, iv interval, b bytea, f float8, m money, c regclass)`)
	for _, s := range []string{"datestyle = 'German'", "timezone = 'Asia/Tokyo'", "intervalstyle = 'sql_standard'", "bytea_output = 'escape'", "extra_float_digits = 0", "search_path = public", "statement_timeout = 100"} {
		db.Exec(t, "ALTER DATABASE "+db.Name+" SET "+s)
	}
	f := follow(t, options(t, db, "a"))
	db.Exec(t, `INSERT INTO a VALUES (1, '2026-01-02 03:04:05+00', '1 day 02:03:04', '\x00ff', 0.1::float8 + 0.2, 5, 'public.a')`)
	f.expect(`insert a (id=1 ts=22 bytes iv=1 day 02:03:04 b=\x00ff f=0.30000000000000004 m=$5.00 c=public.a)`)
}

func counted(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// TestStreamServerStops: a server that shuts down waits until its walsenders have
// heard that all is confirmed. It must not wait long.
func TestStreamServerStops(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	f := follow(t, options(t, db, "a"))
	db.Exec(t, "INSERT INTO a VALUES (1)")
	began := time.Now()
	if err := c.Restart(t.Context(), cluster.Fast); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("the server took %s to restart", d)
	}
	db.Exec(t, "INSERT INTO a VALUES (2)")
	f.expect("insert a (id=1 v null)", "insert a (id=2 v null)")
	if e, ok := errors.AsType[*Error](f.client.State().Err); !ok || e.Class != Transient {
		t.Errorf("error %v", f.client.State().Err)
	}
}
