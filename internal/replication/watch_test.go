package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/billhook/billhook/internal/pgtest"
)

func gauged(t testing.TB, g prometheus.Gauge) float64 {
	t.Helper()
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}

// TestPublicationAltered alters the publication by hand in mid-stream: the server
// says nothing of it, Billhook does, and takes it back when it is whole again.
func TestPublicationAltered(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, alter, back, want string
		from                    int
	}{
		{"table taken out", "ALTER PUBLICATION p DROP TABLE a", "ALTER PUBLICATION p ADD TABLE a", "no longer holds table public.a", 0},
		{"other tables", "ALTER PUBLICATION p SET TABLE b", "ALTER PUBLICATION p SET TABLE a, b", "no longer holds table public.a", 0},
		{"table renamed", "ALTER TABLE a RENAME TO c", "ALTER TABLE c RENAME TO a", "no longer holds table public.a", 0},
		{"table made again", "DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, v text)", "ALTER PUBLICATION p ADD TABLE a", "no longer holds table public.a", 0},
		{"operations left out", "ALTER PUBLICATION p SET (publish = 'insert, delete')", "ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate')", "no longer sends update, no longer sends truncate", 0},
		{"not via root", "ALTER PUBLICATION p SET (publish_via_partition_root = false)", "ALTER PUBLICATION p SET (publish_via_partition_root = true)", "sends partitions under their own names", 0},
		{"column list", "ALTER PUBLICATION p SET TABLE a (id), b", "ALTER PUBLICATION p SET TABLE a, b", "no longer sends v of public.a", 15},
		{"row filter", "ALTER PUBLICATION p SET TABLE a WHERE (id > 5), b", "ALTER PUBLICATION p SET TABLE a, b", "filters rows of public.a by (id > 5)", 15},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if pgtest.Shared(t).Version() < c.from {
				t.Skipf("from Postgres %d on", c.from)
			}
			db := pgtest.NewDatabase(t, oneTable, "CREATE TABLE b (id int PRIMARY KEY)")
			f := follow(t, options(t, db, "a", "b"))
			db.Exec(t, c.alter)
			f.wait("the fault", func() bool { return f.client.State().Faults[FaultPublication] != "" })
			if got := f.client.State().Faults[FaultPublication]; !strings.Contains(got, `publication "p" was altered and `+c.want) {
				t.Errorf("fault %q", got)
			}
			if v := gauged(t, f.client.metrics.faults.WithLabelValues(string(FaultPublication))); v != 1 {
				t.Errorf("the metric is %v", v)
			}
			db.Exec(t, c.back)
			f.wait("the fault's end", func() bool { return len(f.client.State().Faults) == 0 })
			db.Exec(t, "INSERT INTO a VALUES (7)")
			f.expect("insert a (id=7 v null)")
			if v := gauged(t, f.client.metrics.faults.WithLabelValues(string(FaultPublication))); v != 0 {
				t.Errorf("the metric is %v", v)
			}
		})
	}
}

// TestLooked alters the publication between two looks and puts it back, which no fault
// shows, and while nobody looks at all. What sends no less is not told.
func TestLooked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, sql, want string
		from            int
	}{
		{"operations", "ALTER PUBLICATION p SET (publish = 'insert'); ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate')", "was altered and put back", 0},
		{"table out and in", "ALTER PUBLICATION p DROP TABLE a; ALTER PUBLICATION p ADD TABLE a", "did not hold table public.a for a while", 0},
		{"table made again", "DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, v text); ALTER PUBLICATION p ADD TABLE a", "did not hold table public.a for a while", 0},
		{"table out", "ALTER PUBLICATION p DROP TABLE a", "no longer holds table public.a", 0},
		{"column list", "ALTER PUBLICATION p SET TABLE a (id), b", "no longer sends v of public.a", 15},
		{"row filter", "ALTER PUBLICATION p SET TABLE a WHERE (id > 5), b", "filters rows of public.a by (id > 5)", 15},
		{"another table", "ALTER PUBLICATION p DROP TABLE b", "", 0},
		{"more", "CREATE TABLE c (n int PRIMARY KEY); ALTER PUBLICATION p ADD TABLE c; ALTER TABLE a ADD w int", "", 0},
		{"column gone", "ALTER TABLE a DROP v", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if pgtest.Shared(t).Version() < c.from {
				t.Skipf("from Postgres %d on", c.from)
			}
			for _, running := range []bool{true, false} {
				db := pgtest.NewDatabase(t, oneTable, "CREATE TABLE b (id int PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE a, b")
				var mu sync.Mutex
				var lacks []string
				var last Look
				looks := 0
				o := options(t, db, "a")
				o.Looked = func(l Look) error {
					mu.Lock()
					defer mu.Unlock()
					if looks++; looks%3 == 0 && len(l.Lacks) > 0 {
						return errors.New("not kept, so it is told again")
					}
					lacks, last = append(lacks, l.Lacks...), l
					return nil
				}
				told := func(n int) func() bool {
					return func() bool {
						mu.Lock()
						defer mu.Unlock()
						return looks >= n
					}
				}
				f := follow(t, o)
				f.wait("a look", told(2))
				if !running {
					f.stop()
					kept := last.Publication
					o.Resume, o.Sent = f.resume(), &kept
				}
				db.Exec(t, "BEGIN; "+c.sql+"; COMMIT")
				if !running {
					o.Create = true
					f = follow(t, o)
				}
				mu.Lock()
				n := looks
				mu.Unlock()
				f.wait("more looks", told(n+3))
				mu.Lock()
				got := strings.Join(lacks, ", ")
				mu.Unlock()
				if c.want == "" && got != "" || !strings.Contains(got, c.want) {
					t.Errorf("running %t: lacks %q, want %q", running, got, c.want)
				}
				if faults := f.client.State().Faults; c.want == "" && len(faults) > 0 {
					t.Errorf("running %t: %v", running, faults)
				}
			}
		})
	}
}

// TestPublicationRemade: dropped, or dropped and made again, is the end, even
// while nothing is written that would make the server say so.
func TestPublicationRemade(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, sql, want string }{
		{"dropped", "DROP PUBLICATION p", `publication "p" *`},
		{"made again", "BEGIN; DROP PUBLICATION p; CREATE PUBLICATION p FOR TABLE a; COMMIT", `publication "p" was dropped and made again; *`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewDatabase(t, oneTable)
			f := follow(t, options(t, db, "a"))
			db.Exec(t, c.sql)
			<-f.done
			expectError(t, f.err, Fatal, ReasonPublicationMissing, c.want)
			if s := f.client.State(); s.Phase != Failed {
				t.Errorf("phase %v", s.Phase)
			}
		})
	}
}

// TestStandbyAltersNothing: an instance that waits for the slot leaves the
// publication alone until it has it.
func TestStandbyAltersNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable, "CREATE TABLE b (id int PRIMARY KEY)")
	f := follow(t, options(t, db, "a"))
	g := start(t, options(t, db, "a", "b"))
	g.waitPhase(Standby)
	published := func() int {
		return pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_publication_tables")
	}
	if n := published(); n != 1 {
		t.Errorf("%d tables are published while it waits", n)
	}
	if _, err := g.client.Attach(t.Context()); err == nil || published() != 1 {
		t.Errorf("Attach: %v, %d tables are published", err, published())
	}
	f.stop()
	g.waitPhase(Streaming)
	db.Exec(t, "INSERT INTO b VALUES (1)")
	g.expect("insert b (id=1)")
}

// TestStalled has a connection that is up and answers, but over which nothing
// comes any more: it is given up, and told of until changes come again.
func TestStalled(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, oneTable)
	db.Exec(t, "ALTER DATABASE "+db.Name+" SET wal_sender_timeout = '3s'") // so that an answer is asked for every second
	p := pgtest.NewProxy(t, db.Cluster.Port())
	var stuck atomic.Bool
	var at atomic.Uint64
	p.Filter(func(kind byte, body []byte) pgtest.Verdict {
		switch {
		case kind != 'd' || !stuck.Load():
			if kind == 'd' && body[0] == 'k' {
				at.Store(binary.BigEndian.Uint64(body[1:]))
			}
		case body[0] == 'w':
			return pgtest.Drop
		case body[0] == 'k':
			binary.BigEndian.PutUint64(body[1:], at.Load())
		}
		return pgtest.Pass
	})
	o := options(t, db, "a")
	o.DSN = dsn(t, db.DSN, func(u *url.URL) { u.Host = p.Address })
	o.silence = 1500 * time.Millisecond
	f := follow(t, o)
	db.Exec(t, "INSERT INTO a VALUES (1)")
	f.expect("insert a (id=1 v null)")
	stuck.Store(true)
	db.Exec(t, "INSERT INTO a VALUES (2)")
	f.wait("the connection to be given up", func() bool { return f.client.State().Faults[FaultStalled] != "" })
	f.wait("the error", func() bool { return f.client.State().Err != nil })
	expectError(t, f.client.State().Err, Transient, ReasonStalled, "Postgres at 127.0.0.1:* has written WAL up to *, but has sent nothing after * for *s; the connection is given up")
	stuck.Store(false)
	p.Cut()
	f.expect("insert a (id=1 v null)", "insert a (id=2 v null)")
	f.wait("the fault's end", func() bool { return len(f.client.State().Faults) == 0 })
}

// TestStoppedWalsender: a walsender that hangs, with its connection open, is given
// up. It still has the slot, which is told, until the server is rid of it.
func TestStoppedWalsender(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, map[string]string{"wal_sender_timeout": "3s"})
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	o := options(t, db, "a")
	o.silence = 2500 * time.Millisecond // an answer is asked for every second
	f := follow(t, o)
	pid := int(f.session().PID)
	if err := syscall.Kill(pid, syscall.SIGSTOP); errors.Is(err, syscall.EPERM) {
		t.Skip("the server's processes are another user's")
	} else if err != nil {
		t.Fatal(err)
	}
	awake := func() { _ = syscall.Kill(pid, syscall.SIGCONT) } // it may have ended
	t.Cleanup(awake)
	f.waitPhase(Standby)
	if got, want := f.client.State().Detail, fmt.Sprintf("is in use by pid %d ", pid); !strings.Contains(got, want) {
		t.Errorf("%q does not tell %q", got, want)
	}
	if n := counted(t, f.client.metrics.reconnects.WithLabelValues(string(ReasonSilence))); n != 1 {
		t.Errorf("given up %v times", n)
	}
	awake()
	f.waitPhase(Streaming)
	db.Exec(t, "INSERT INTO a VALUES (1)")
	f.expect("insert a (id=1 v null)")
}
