package intake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/wal"
)

// ending is a mapping whose clients end at a time, and whose balance settles.
func ending(t *testing.T) billing.Mapping {
	t.Helper()
	m := clients(t)
	m.Entities[0].Balance.Settle = 2 * time.Second
	when, err := expr.CompileRow(`new.name != "kept"`)
	if err != nil {
		t.Fatal(err)
	}
	m.Rules = []billing.Rule{{Event: "clients.ended", Entity: billing.Clients, Test: billing.Test{At: "stop_dt", When: when}}}
	return m
}

const endingTable = "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric, stop_dt timestamptz)"

// wait waits until n events have come, and returns them in order of name.
func (f *flow) wait(n int) []string {
	f.t.Helper()
	poll(f.t, fmt.Sprint(n, " events"), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.events) >= n
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	events := f.events
	f.events = nil
	slices.Sort(events)
	return events
}

// TestAt: what ends by the passing of time alone is told, once, also when it ended
// while Billhook was away, and not when it was put off; under each replica identity.
func TestAt(t *testing.T) {
	for _, identity := range []string{"DEFAULT", "FULL"} {
		t.Run(identity, func(t *testing.T) {
			// What has ended when memory is filled is nobody's news; so on a busy machine
			// what is to end soon must not do so too soon.
			var db *pgtest.Database
			var dir string
			var f *flow
			for soon, ended := 2, true; ended; soon *= 2 {
				db = pgtest.NewDatabase(t, endingTable, "ALTER TABLE clients REPLICA IDENTITY "+identity, fmt.Sprintf(
					`INSERT INTO clients VALUES
					 (1, 'past', 1, now() - interval '1 hour'), (2, 'soon', 1, now() + interval '%[1]d s'), (3, 'later', 1, now() + interval '1 h'),
					 (4, 'never', 1, 'infinity'), (5, 'null', 1, NULL), (6, 'kept', 1, now() + interval '%[1]d s')`, soon))
				dir = t.TempDir() + "/j"
				f = start(t, db, dir, ending(t))
				if err := f.fill(t.Context()); err != nil {
					t.Fatal(err)
				}
				if ended = pgtest.Value[bool](t, db, "SELECT now() >= stop_dt FROM clients WHERE id = 2"); ended {
					f.stop()
				}
			}
			if got := f.wait(1); !slices.Equal(got, []string{"clients.ended 2"}) {
				t.Errorf("filled in: %v", got)
			}
			if late := pgtest.Value[bool](t, db, "SELECT now() < (SELECT stop_dt FROM clients WHERE id = 2)"); late {
				t.Error("it was told before its time")
			}
			// In the stream: to the past at once; soon; put off; changed while away.
			db.Exec(t, "UPDATE clients SET stop_dt = now() - interval '1 day' WHERE id = 3")
			db.Exec(t, "INSERT INTO clients VALUES (7, 'new', 1, now() + interval '1 s'), (8, 'put off', 1, now() + interval '1 s'), (9, 'away', 1, now() + interval '4 s'), (10, 'off', 1, now() + interval '4 s')")
			db.Exec(t, "UPDATE clients SET stop_dt = now() + interval '1 h' WHERE id = 8")
			want := []string{"clients.create 10", "clients.create 7", "clients.create 8", "clients.create 9", "clients.ended 3", "clients.ended 7", "clients.update 3", "clients.update 8"}
			if got := f.wait(len(want)); !slices.Equal(got, want) {
				t.Errorf("in the stream: %v, want %v", got, want)
			}
			f.stop()
			db.Exec(t, "UPDATE clients SET stop_dt = now() + interval '1 h' WHERE id = 10")
			db.WaitFor(t, "SELECT now() > stop_dt FROM clients WHERE id = 9")

			// It has ended while nobody looked; the other one was put off in time, which the
			// stream tells only later.
			f = start(t, db, dir, ending(t))
			want = []string{"clients.ended 9", "clients.update 10"}
			if got := f.wait(len(want)); !slices.Equal(got, want) {
				t.Errorf("after a restart: %v, want %v", got, want)
			}
			if err := f.fill(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.stop()
			f = start(t, db, dir, ending(t))
			db.Exec(t, "UPDATE clients SET stop_dt = now() WHERE id = 5")
			if got := f.wait(2); !slices.Equal(got, []string{"clients.ended 5", "clients.update 5"}) {
				t.Errorf("after two restarts: %v", got)
			}
			// What was derived last is committed soon.
			n := 0
			poll(t, "13 executions", func() bool {
				page, _, err := f.journal.Executions(t.Context(), journal.Query{})
				if err != nil {
					t.Fatal(err)
				}
				n = len(page)
				return n >= 1+8+2+2
			})
			if n != 1+8+2+2 {
				t.Errorf("%d executions", n)
			}
		})
	}
}

// TestSettle: a balance that flaps is told once it holds, across a restart.
func TestSettle(t *testing.T) {
	for _, identity := range []string{"DEFAULT", "FULL"} {
		t.Run(identity, func(t *testing.T) {
			db := pgtest.NewDatabase(t, endingTable, "ALTER TABLE clients REPLICA IDENTITY "+identity,
				"INSERT INTO clients SELECT i, 'c', 1 FROM generate_series(1, 3) i")
			dir := t.TempDir() + "/j"
			f := start(t, db, dir, ending(t))
			if err := f.fill(t.Context()); err != nil {
				t.Fatal(err)
			}
			db.Exec(t, "UPDATE clients SET balance = -1 WHERE id < 3")
			db.Exec(t, "UPDATE clients SET balance = 1 WHERE id = 2")
			db.Exec(t, "UPDATE clients SET balance = -balance WHERE id = 3")
			db.Exec(t, "UPDATE clients SET balance = -balance WHERE id = 3")
			db.Exec(t, "UPDATE clients SET balance = -balance WHERE id = 3")
			if got := f.settle(); len(got) > 0 {
				t.Errorf("at once: %v", got)
			}
			f.stop()
			f = start(t, db, dir, ending(t))
			if got := f.wait(2); !slices.Equal(got, []string{"clients.balance_zero 1", "clients.balance_zero 3"}) {
				t.Errorf("settled: %v", got)
			}
			db.Exec(t, "UPDATE clients SET balance = 5 WHERE id = 1")
			if got := f.wait(1); !slices.Equal(got, []string{"clients.balance_notzero 1"}) {
				t.Errorf("the way back: %v", got)
			}
		})
	}
}

// script is a Clock that a test turns.
type script struct {
	mu    sync.Mutex
	skew  time.Duration // of the source's clock
	upTo  wal.LSN
	err   error
	reads []time.Time
	open  bool
}

func (s *script) Read(context.Context) (wal.LSN, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = append(s.reads, time.Now())
	s.open = s.err == nil
	return s.upTo, time.Now().Add(s.skew - 600*time.Millisecond), s.err
}

func (s *script) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = false
}

// TestWhen: by a clock of the source that goes wrong, a timer fires when that clock
// says so and the stream has come as far as the log was; questions are few, and none
// is asked when nothing is due.
func TestWhen(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		j, err := journal.Open(journal.Options{Path: dir + "/j"})
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		var mu sync.Mutex
		var told []string
		clock := &script{skew: 90 * time.Second}
		in, err := New(Options{
			Journal: j, Mapping: ending(t), Confirm: func(wal.LSN) {}, Clock: clock,
			Plan: func(e *event.Event) []journal.Planned {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, string(e.Type)+" "+e.Object)
				return nil
			},
			Wants: func(event.Type) bool { return true },
		})
		if err != nil {
			t.Fatal(err)
		}
		rel := &wal.Relation{ID: 1, Schema: "public", Name: "clients", Identity: wal.IdentityDefault, Columns: []wal.Column{
			{Name: "id", Type: 20, Key: true}, {Name: "name", Type: 25}, {Name: "balance", Type: 1700}, {Name: "stop_dt", Type: 1184},
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() {
			if err := in.Run(ctx, make(chan *replication.Chunk)); err != nil {
				t.Error(err)
			}
		})
		// The source's clock is 90 s ahead: one hour by it is 58 min 30 s from now.
		due := time.Now().Add(clock.skew).Add(time.Hour)
		err = in.do(ctx, func() error {
			in.session = &replication.Session{Timeline: 1}
			in.position.EndLSN = 0x100
			in.deriver.Begin(1, wal.Begin{CommitLSN: 0xF0, CommitTime: time.Now().Add(clock.skew)})
			text := func(s string) wal.Value { return wal.Value{Kind: wal.Text, Text: []byte(s)} }
			in.deriver.Change(&wal.Change{Op: wal.Insert, Relation: rel, New: wal.Tuple{text("1"), text("a"), text("1"), text(due.UTC().Format("2006-01-02 15:04:05.999999+00"))}})
			return in.committed(wal.Commit{CommitLSN: 0xF0, EndLSN: 0x100, CommitTime: time.Now()})
		})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		step := func(d time.Duration) (events []string, reads int, open bool) {
			<-time.After(time.Until(begun.Add(d)))
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			clock.mu.Lock()
			defer clock.mu.Unlock()
			events, told = told, nil
			reads, clock.reads = len(clock.reads), nil
			return events, reads, clock.open
		}
		set := func(f func()) { clock.mu.Lock(); defer clock.mu.Unlock(); f() }

		if _, reads, _ := step(58 * time.Minute); reads != 0 {
			t.Errorf("asked %d times with nothing due", reads)
		}
		// Nothing is known of the source's clock yet, so it is asked by ours; then again
		// when its time has come. The log is further than the stream.
		set(func() { clock.upTo = 0x200 })
		if events, reads, _ := step(61*time.Minute + 40*time.Second); len(events) != 0 || reads != 1 {
			t.Errorf("%v, asked %d times, with the stream behind", events, reads)
		}
		if err := in.do(ctx, func() error { in.position.EndLSN = 0x200; return nil }); err != nil {
			t.Fatal(err)
		}
		if events, reads, open := step(61*time.Minute + 41*time.Second); len(events) != 1 || reads != 0 || open {
			t.Errorf("%v, asked %d times, open %v, when the stream has come", events, reads, open)
		}

		// From now on the source's clock is known. It cannot be asked for a while.
		again := time.Now().Add(clock.skew + 10*time.Second)
		err = in.do(ctx, func() error {
			in.deriver.Begin(1, wal.Begin{CommitLSN: 0x1F0, CommitTime: time.Now().Add(clock.skew)})
			text := func(s string) wal.Value { return wal.Value{Kind: wal.Text, Text: []byte(s)} }
			in.deriver.Change(&wal.Change{Op: wal.Update, Relation: rel, New: wal.Tuple{text("1"), text("a"), text("1"), text(again.UTC().Format("2006-01-02 15:04:05.999999+00"))}})
			return in.committed(wal.Commit{CommitLSN: 0x1F0, EndLSN: 0x200, CommitTime: time.Now()})
		})
		if err != nil {
			t.Fatal(err)
		}
		begun = time.Now()
		set(func() { clock.err = errors.New("away") })
		if events, reads, _ := step(15 * time.Second); len(events) != 1 || reads != 3 { // at 10.6, 11.6, 13.6 s
			t.Errorf("%v, asked %d times while the source is away", events, reads)
		}
		set(func() { clock.err = nil })
		if events, reads, _ := step(18 * time.Second); len(events) != 1 || reads != 1 {
			t.Errorf("%v, asked %d times when the source is back", events, reads)
		}

		// Somebody sets the source's clock forward, and a frame tells of it.
		change := func(due time.Time) {
			t.Helper()
			err := in.do(ctx, func() error {
				in.position.CommitLSN += 0x10
				in.position.EndLSN += 0x10
				in.deriver.Begin(1, wal.Begin{CommitLSN: in.position.CommitLSN, CommitTime: time.Now().Add(clock.skew)})
				text := func(s string) wal.Value { return wal.Value{Kind: wal.Text, Text: []byte(s)} }
				in.deriver.Change(&wal.Change{Op: wal.Update, Relation: rel, New: wal.Tuple{text("1"), text("a"), text("1"), text(due.UTC().Format("2006-01-02 15:04:05.999999+00"))}})
				return in.committed(wal.Commit{CommitLSN: in.position.CommitLSN, EndLSN: in.position.EndLSN, CommitTime: time.Now()})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		frame := func() {
			t.Helper()
			if err := in.do(ctx, func() error { in.timers.skew = clock.skew; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		frame()
		begun = time.Now()
		change(time.Now().Add(clock.skew + time.Hour))
		if events, reads, _ := step(time.Minute); len(events) != 1 || reads != 0 {
			t.Errorf("%v, asked %d times an hour before", events, reads)
		}
		set(func() { clock.skew += 2 * time.Hour })
		frame()
		if events, reads, _ := step(61 * time.Second); len(events) != 1 || reads != 1 {
			t.Errorf("%v, asked %d times when the source is two hours further", events, reads)
		}
		// And back: that is found out by a question that comes too early.
		begun = time.Now()
		change(time.Now().Add(clock.skew + time.Minute))
		set(func() { clock.skew -= 3 * time.Hour })
		frame()
		if events, reads, _ := step(2 * time.Minute); len(events) != 1 || reads != 1 {
			t.Errorf("%v, asked %d times when the source is three hours back", events, reads)
		}
		if events, reads, _ := step(3*time.Hour + 2*time.Minute); len(events) != 1 || reads != 1 {
			t.Errorf("%v, asked %d times when its time has come", events, reads)
		}
		cancel()
		run.Wait()
	})
}

// TestTwoTables: an amount that stands in two tables crosses by a change of either,
// also when the rows were there before, and when only one of the tables has FULL.
func TestTwoTables(t *testing.T) {
	for _, full := range []string{"clients", "balances"} {
		t.Run(full+" full", func(t *testing.T) {
			db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, credit numeric)",
				"CREATE TABLE balances (client bigint PRIMARY KEY REFERENCES clients ON UPDATE CASCADE ON DELETE CASCADE, balance numeric)",
				"ALTER TABLE "+full+" REPLICA IDENTITY FULL",
				"INSERT INTO clients SELECT i, 'c', 10 FROM generate_series(1, 4) i", "INSERT INTO balances SELECT i, 5 FROM generate_series(1, 4) i")
			amount, err := expr.CompileNumber("balance + credit")
			if err != nil {
				t.Fatal(err)
			}
			m := billing.Mapping{Source: "test", Entities: []billing.Entity{{
				Name: billing.Clients, Table: billing.Table{Schema: "public", Name: "clients"}, Key: []string{"id"},
				Balance: &billing.Balance{Table: &billing.Table{Schema: "public", Name: "balances"}, Key: []string{"client"}, Amount: amount},
			}}}
			dir := t.TempDir() + "/j"
			f := start(t, db, dir, m)
			if err := f.fill(t.Context()); err != nil {
				t.Fatal(err)
			}
			check := func(sql string, want ...string) {
				t.Helper()
				db.Exec(t, sql)
				got := f.settle()
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("%s: %v, want %v", sql, got, want)
				}
			}
			check("UPDATE balances SET balance = -10 WHERE client = 1", "clients.balance_zero 1")
			check("UPDATE clients SET credit = 11 WHERE id = 1", "clients.balance_notzero 1", "clients.update 1")
			check("BEGIN; UPDATE clients SET credit = 0; UPDATE balances SET balance = 20; COMMIT", "clients.update 1", "clients.update 2", "clients.update 3", "clients.update 4")
			f.stop()
			f = start(t, db, dir, m)
			check("UPDATE clients SET credit = -20 WHERE id = 2", "clients.balance_zero 2", "clients.update 2")
			check("UPDATE clients SET id = 20 WHERE id = 2", "clients.update 20")
			check("UPDATE balances SET balance = 21 WHERE client = 20", "clients.balance_notzero 20")
			check("DELETE FROM clients WHERE id = 20", "clients.delete 20")
			check("UPDATE balances SET balance = 0 WHERE client = 3", "clients.balance_zero 3")
		})
	}
}
