package intake

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
	"github.com/billhook/billhook/internal/wal"
)

// flow is a stream into a journal, with every event kept.
type flow struct {
	t       *testing.T
	db      *pgtest.Database
	mapping billing.Mapping
	journal *journal.Journal
	client  *replication.Client
	intake  *Intake
	stop    func()
	gate    func(context.Context, *replication.Session) // called before each chunk; nil: none

	mu     sync.Mutex
	events []string // "type object"
}

func clients(t *testing.T) billing.Mapping {
	t.Helper()
	balance, err := expr.CompileNumber("balance")
	if err != nil {
		t.Fatal(err)
	}
	return billing.Mapping{Source: "test", Entities: []billing.Entity{{
		Name: billing.Clients, Table: billing.Table{Schema: "public", Name: "clients"}, Key: []string{"id"},
		Balance: &billing.Balance{Amount: balance},
	}}}
}

func start(t *testing.T, db *pgtest.Database, dir string, m billing.Mapping, with ...func(*Options)) *flow {
	t.Helper()
	f := &flow{t: t, db: db, mapping: m}
	f.start(journal.Options{Path: dir}, with...)
	return f
}

func (f *flow) start(jo journal.Options, with ...func(*Options)) {
	t, db, m := f.t, f.db, f.mapping
	t.Helper()
	jo.Cache, jo.MemoryCache = 8<<20, 1<<20
	var err error
	if f.journal, err = journal.Open(jo); err != nil {
		t.Fatal(err)
	}
	position, _ := f.journal.Position()
	var tables []replication.Table
	for _, table := range billing.Tables(m) {
		tables = append(tables, replication.Table{Name: catalog.Name{Schema: table.Schema, Table: table.Name}})
	}
	f.client, err = replication.New(replication.Options{
		DSN: db.DSN, Slot: db.Name, Publication: "p", Create: true,
		Tables: tables,
		Resume: replication.Position{
			SystemID: position.SystemID, Timeline: position.Timeline, Slot: position.Slot,
			Publication: position.Publication, PublicationOID: position.PublicationOID, LSN: position.EndLSN,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Journal: f.journal, Mapping: m, Confirm: f.client.Confirm, Clock: f.client.Clock(),
		Plan: func(e *event.Event) []journal.Planned {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.events = append(f.events, string(e.Type)+" "+e.Object)
			return []journal.Planned{{Handler: 1, Priority: 1}}
		},
		Wants: func(event.Type) bool { return true },
	}
	for _, w := range with {
		w(&o)
	}
	f.intake, err = New(o)
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
	taken := chunks
	if f.gate != nil {
		taken = make(chan *replication.Chunk)
		stream.Go(func() {
			for {
				select {
				case c := <-chunks:
					f.gate(streaming, c.Session())
					select {
					case taken <- c:
					case <-streaming.Done():
						return
					}
				case <-streaming.Done():
					return
				}
			}
		})
	}
	take.Go(func() {
		if err := f.intake.Run(taking, taken); err != nil {
			t.Errorf("intake: %v", err)
		}
	})
	poll(t, "the stream", func() bool { return f.client.State().Phase == replication.Streaming })
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
}

// poll waits until ok, for a minute at most.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
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

// fill fills memory, in chunks of few rows.
func (f *flow) fill(ctx context.Context) error {
	r, err := snapshot.Open(ctx, f.db.DSN)
	if err != nil {
		return err
	}
	defer r.Close(context.WithoutCancel(ctx))
	return f.intake.Fill(ctx, r, "p")
}

// settle waits until all that the database has committed is in the journal, and
// returns the events since the last call.
func (f *flow) settle() []string {
	f.t.Helper()
	target, err := wal.ParseLSN(pgtest.Value[string](f.t, f.db, "SELECT pg_current_wal_insert_lsn()::text"))
	if err != nil {
		f.t.Fatal(err)
	}
	// A commit after it, so that there is a position to wait for.
	f.db.Exec(f.t, "SELECT pg_logical_emit_message(true, 'test', '')")
	poll(f.t, "the journal", func() bool {
		p, ok := f.journal.Position()
		return ok && p.EndLSN >= target
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	events := f.events
	f.events = nil
	return events
}

// TestFill: while rows are changed, inserted, deleted and given other keys, memory
// is filled from the table. Afterwards every row is known: turning every balance
// over makes exactly the crossings that there are, and touching every row without
// changing it makes none.
func TestFill(t *testing.T) {
	db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)",
		`INSERT INTO clients SELECT i, 'a longer name of client ' || i, (i % 7) - 3 FROM generate_series(1, 6000) i`)
	dir := t.TempDir() + "/j"
	f := start(t, db, dir, clients(t))
	f.intake.fillRows = 250

	var mutators sync.WaitGroup
	mutating, done := context.WithCancel(t.Context())
	defer mutators.Wait()
	defer done()
	for n := range 3 {
		conn := db.Connect(t)
		mutators.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 1))
			for mutating.Err() == nil {
				id := rng.IntN(6000)
				var sql string
				switch rng.IntN(6) {
				case 0:
					sql = fmt.Sprintf("DELETE FROM clients WHERE id = %d", id)
				case 1:
					sql = fmt.Sprintf("INSERT INTO clients VALUES (%d, 'new name number %d', %d) ON CONFLICT DO NOTHING", id, id, rng.IntN(5)-2)
				case 2:
					sql = fmt.Sprintf("UPDATE clients SET id = %d WHERE id = %d AND NOT EXISTS (SELECT FROM clients WHERE id = %[1]d)", rng.IntN(6000), id)
				case 3:
					sql = fmt.Sprintf("BEGIN; UPDATE clients SET name = 'another longer name %d' WHERE id = %d; ROLLBACK", id, id)
				case 4:
					sql = fmt.Sprintf("UPDATE clients SET name = 'a name that was changed %d' WHERE id = %d", rng.IntN(100), id)
				default:
					sql = fmt.Sprintf("UPDATE clients SET balance = %d WHERE id BETWEEN %d AND %d", rng.IntN(5)-2, id, id+3)
				}
				if _, err := conn.Exec(context.WithoutCancel(mutating), sql); err != nil && !strings.Contains(err.Error(), "duplicate key") && !strings.Contains(err.Error(), "deadlock") {
					t.Errorf("%s: %v", sql, err)
					return
				}
			}
		})
	}
	// Stop in the middle once: the fill goes on where it was.
	half, stopHalf := context.WithCancel(t.Context())
	var stopped sync.WaitGroup
	stopped.Go(func() {
		if err := f.fill(half); err != nil && half.Err() == nil {
			t.Errorf("fill: %v", err)
		}
	})
	poll(t, "the fill to begin", func() bool { return f.intake.TablesToFill() == 1 })
	stopHalf()
	stopped.Wait()
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	done()
	mutators.Wait()
	if n := f.intake.TablesToFill(); n != 0 {
		t.Errorf("%d tables to fill", n)
	}
	if l := f.intake.Fillings(); len(l) != 1 || !l[0].Done || l[0].Table != "public.clients" || l[0].Rows < 4000 || l[0].Rows > 8000 {
		t.Errorf("the fill says %+v", l)
	}
	f.settle()

	check := func(f *flow, when string) {
		t.Helper()
		// Rows exactly at zero turn to zero and have no crossing.
		want := map[string]int{}
		for _, sign := range []struct{ sql, event string }{{"balance > 0", "clients.balance_zero"}, {"balance < 0", "clients.balance_notzero"}} {
			for _, id := range pgtest.Value[[]string](t, db, "SELECT coalesce(array_agg(id::text), '{}') FROM clients WHERE "+sign.sql) {
				want[sign.event+" "+id]++
			}
		}
		db.Exec(t, "UPDATE clients SET balance = -balance")
		got := map[string]int{}
		for _, e := range f.settle() {
			got[e]++
		}
		if len(want) < 1000 {
			t.Fatalf("only %d crossings to come", len(want))
		}
		if !maps.Equal(got, want) {
			for e := range want {
				if got[e] != want[e] {
					t.Errorf("%s: %s came %d times", when, e, got[e])
				}
			}
			for e := range got {
				if want[e] == 0 {
					t.Errorf("%s: %s came and must not", when, e)
				}
			}
		}
		db.Exec(t, "UPDATE clients SET name = name || ''")
		if events := f.settle(); len(events) > 0 {
			t.Errorf("%s: touching made %d events, such as %s", when, len(events), events[0])
		}
	}
	check(f, "after the fill")

	// After a restart nothing is read again, and all is known still.
	f.stop()
	f = start(t, db, dir, clients(t))
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if marks := f.intake.lastToken; marks != 0 {
		t.Errorf("after a restart %d chunks were read again", marks)
	}
	check(f, "after a restart")

	// A rule that needs to know more: rows are read again, and what was known stays.
	f.stop()
	m := clients(t)
	m.Entities[0].Archive = &billing.Test{Becomes: &billing.Predicate{Column: "name", Values: []string{"archived client, gone"}}}
	f = start(t, db, dir, m)
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.intake.lastToken == 0 {
		t.Error("after a change of the rules nothing was read")
	}
	check(f, "after a change of the rules")
	db.Exec(t, "UPDATE clients SET name = 'archived client, gone' WHERE id = (SELECT min(id) FROM clients)")
	if events := f.settle(); len(events) != 1 || !strings.HasPrefix(events[0], "clients.archive ") {
		t.Errorf("archive: %v", events)
	}
}

// TestRedelivery: what the server sends again after a crash is not journaled again.
func TestRedelivery(t *testing.T) {
	db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)")
	dir := t.TempDir() + "/j"
	f := start(t, db, dir, clients(t))
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO clients VALUES (1, 'one', 1)")
	db.Exec(t, "UPDATE clients SET balance = -1")
	first := f.settle()
	f.stop()
	if want := []string{"clients.create 1", "clients.balance_zero 1"}; !slices.Equal(first, want) {
		t.Fatalf("%v, want %v", first, want)
	}
	f = start(t, db, dir, clients(t))
	db.Exec(t, "UPDATE clients SET balance = 1")
	if got, want := f.settle(), []string{"clients.balance_notzero 1"}; !slices.Equal(got, want) {
		t.Errorf("after a restart %v, want %v", got, want)
	}
	page, _, err := f.journal.Executions(t.Context(), journal.Query{})
	if err != nil || len(page) != 3 {
		t.Errorf("%d executions, %v", len(page), err)
	}
}

// TestIdle: with nothing to tell, the slot still moves, so no WAL piles up.
func TestIdle(t *testing.T) {
	db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)", "CREATE TABLE other (id int)")
	start(t, db, t.TempDir()+"/j", clients(t))
	db.WaitFor(t, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", db.Name)
	db.Exec(t, "INSERT INTO other SELECT generate_series(1, 100000)")
	target := pgtest.Value[string](t, db, "SELECT pg_current_wal_lsn()::text")
	db.WaitFor(t, "SELECT confirmed_flush_lsn >= $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1", db.Name, target)
}
