package intake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication"
)

// withPieces sets aside transactions long before they are large.
func withPieces(o *Options) { o.spillAt, o.pieceBytes = 32<<10, 32<<10 }

// journaled counts the events in a journal as "type object", and fails for one that
// does not come in the order of ids.
func journaled(t *testing.T, j *journal.Journal) map[string]int {
	t.Helper()
	got := map[string]int{}
	var after event.ID
	for {
		events, err := j.Events(after, 5000)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			return got
		}
		for _, e := range events {
			if e.ID.Compare(after) <= 0 {
				t.Fatalf("event %s after %s", e.ID, after)
			}
			after = e.ID
			got[string(e.Type)+" "+e.Object]++
		}
	}
}

// TestLarge takes in a transaction in many pieces, with thousands of savepoints of
// which half are rolled back, while the connection is cut and Billhook is stopped in
// the middle of it. Nobody sees any of it before its end; then all of it is there
// once, and memory knows it.
func TestLarge(t *testing.T) {
	db := pgtest.NewDatabase(t,
		"CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)",
		"INSERT INTO clients SELECT i, 'a client that was there before ' || i, 1 FROM generate_series(1, 1000) i")
	dir := t.TempDir() + "/j"
	f := &flow{t: t, db: db, mapping: clients(t)}
	var armed atomic.Bool
	cut, waits := make(chan struct{}), make(chan struct{}, 2)
	var first, second *replication.Session
	parts := 0.0
	// Each of two connections brings some of it and waits.
	f.gate = func(ctx context.Context, s *replication.Session) {
		now := testutil.ToFloat64(f.intake.metrics.parts)
		switch {
		case !armed.Load() || second != nil && s != second:
			return
		case first == nil:
			first = s
		case second == nil && s != first:
			second, parts = s, now
		}
		if now < parts+3 {
			return
		}
		parts = math.Inf(1)
		waits <- struct{}{}
		select {
		case <-cut:
		case <-ctx.Done():
		}
	}
	f.start(journal.Options{Path: dir}, withPieces)
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	db.Exec(t, `DO $$
		BEGIN
			INSERT INTO clients SELECT i, repeat('a client that came with many others ', 40) || i, i % 2 FROM generate_series(1001, 8000) i;
			FOR i IN 1..3000 LOOP
				BEGIN
					UPDATE clients SET balance = balance - 1 WHERE id = i;
					IF i % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF;
				EXCEPTION WHEN raise_exception THEN NULL;
				END;
			END LOOP;
			DELETE FROM clients WHERE id % 10 = 7;
			UPDATE clients SET id = id + 100000 WHERE id BETWEEN 5000 AND 5999;
			UPDATE clients SET name = name || '!' WHERE id BETWEEN 1 AND 500;
		END $$`)

	unseen := func(when string) {
		t.Helper()
		if got := journaled(t, f.journal); len(got) > 0 {
			t.Errorf("%s, %d events are seen before their transaction is whole", when, len(got))
		}
	}
	waiting := func() bool { return len(waits) > 0 }
	poll(t, "its first parts", waiting)
	<-waits
	unseen("with its first parts")
	db.Exec(t, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", db.Name)
	cut <- struct{}{}
	poll(t, "its first parts, again", waiting)
	unseen("with its first parts, again")
	f.stop()
	f = start(t, db, dir, clients(t), withPieces)
	unseen("after a restart")
	f.settle()

	want := map[string]int{}
	for id := 1; id <= 8000; id++ {
		old, moved, deleted := id <= 1000, id >= 5000 && id <= 5999, id%10 == 7
		object := id
		if moved && !deleted {
			object += 100000
		}
		switch {
		case old && deleted:
			want[fmt.Sprintf("clients.delete %d", id)]++
		case old:
			if id%2 == 1 {
				want[fmt.Sprintf("clients.balance_zero %d", id)]++
			}
			if id <= 500 {
				want[fmt.Sprintf("clients.update %d", id)]++
			}
		case !deleted:
			want[fmt.Sprintf("clients.create %d", object)]++
		}
	}
	got := journaled(t, f.journal)
	for e, n := range want {
		if got[e] != n {
			t.Errorf("%s came %d times", e, got[e])
		}
		delete(got, e)
	}
	for e := range got {
		t.Errorf("%s came and must not", e)
	}
	left := 0
	if err := f.journal.ScanMemory(t.Context(), nil, func(k, _ []byte) error {
		if k[0] == 1 {
			left++
		}
		return nil
	}); err != nil || left > 0 {
		t.Errorf("%d keys of the transaction are left in memory, %v", left, err)
	}
	db.Exec(t, "UPDATE clients SET name = name || ''")
	if events := f.settle(); len(events) > 0 {
		t.Errorf("touching made %d events, such as %s", len(events), events[0])
	}
}

// room is a disk of which a test says how much of it is free.
type room struct {
	vfs.FS
	free atomic.Uint64
}

func (r *room) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: r.free.Load()}, nil
}

// TestLargeWithoutRoom: rows that cannot be set aside wait until there is room, and
// nothing of their transaction is lost or told twice.
func TestLargeWithoutRoom(t *testing.T) {
	db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)")
	disk := &room{FS: vfs.Default}
	disk.free.Store(1 << 40)
	dir := t.TempDir() + "/j"
	f := &flow{t: t, db: db, mapping: clients(t)}
	var full atomic.Bool
	f.gate = func(context.Context, *replication.Session) {
		if testutil.ToFloat64(f.intake.metrics.parts) > 0 && full.CompareAndSwap(false, true) {
			disk.free.Store(0)
		}
	}
	f.start(journal.Options{Path: dir, FS: disk}, withPieces, func(o *Options) { o.Retry = 10 * time.Millisecond })
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.settle()
	db.Exec(t, "INSERT INTO clients SELECT i, repeat('name ', 200) || i, 1 FROM generate_series(1, 20000) i")
	poll(t, "intake to stand still", func() bool { return f.intake.Blocked() != "" })
	if n := testutil.ToFloat64(f.intake.metrics.open); n == 0 || n >= 20_000 {
		t.Errorf("it stands still after %v changes", n)
	}
	if got := journaled(t, f.journal); len(got) > 0 {
		t.Errorf("%d events are seen before their transaction is whole", len(got))
	}
	disk.free.Store(1 << 40)
	f.settle()
	got := journaled(t, f.journal)
	for id := 1; id <= 20_000; id++ {
		if e := fmt.Sprintf("clients.create %d", id); got[e] != 1 {
			t.Errorf("%s came %d times", e, got[e])
		}
	}
	if len(got) != 20_000 || f.intake.Blocked() != "" {
		t.Errorf("%d kinds of events, blocked %q", len(got), f.intake.Blocked())
	}
	if _, err := os.Stat(dir + "/scratch"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the scratch file has a name: %v", err)
	}
}

// TestLargeHeap: what is alive on the heap does not grow with a transaction.
func TestLargeHeap(t *testing.T) {
	db := pgtest.NewDatabase(t, "CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)")
	f := start(t, db, t.TempDir()+"/j", clients(t), func(o *Options) {
		o.spillAt, o.pieceBytes = 256<<10, 256<<10
		o.Plan = func(*event.Event) []journal.Planned { return nil }
	})
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	measure := func(from, to int) (peak uint64) {
		db.Exec(t, fmt.Sprintf("INSERT INTO clients SELECT i, repeat('name ', 400) || i, 1 FROM generate_series(%d, %d) i", from, to))
		var sampling sync.WaitGroup
		done := make(chan struct{})
		sampling.Go(func() {
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
			}
		})
		f.settle()
		close(done)
		sampling.Wait()
		return peak
	}
	measure(1, 4_000) // the store's own buffers
	small := measure(4_001, 10_000)
	large := measure(10_001, 40_000)
	t.Logf("%d MiB with 6,000 rows, %d MiB with 30,000", small>>20, large>>20)
	if large > small+32<<20 {
		t.Errorf("the heap grew from %d MiB to %d MiB with a transaction of 60 MiB", small>>20, large>>20)
	}
	if n := testutil.ToFloat64(f.intake.metrics.parts); n < 10 {
		t.Errorf("%v pieces", n)
	}
}

// TestLargeCascade: a cascade deletes parents first, and is told children first.
func TestLargeCascade(t *testing.T) {
	db := pgtest.NewDatabase(t,
		"CREATE TABLE clients (id bigint PRIMARY KEY, name text, balance numeric)",
		"CREATE TABLE accounts (id bigint PRIMARY KEY, clients_id bigint REFERENCES clients ON DELETE CASCADE, name text)",
		"INSERT INTO clients SELECT i, 'client ' || i, 1 FROM generate_series(1, 2000) i",
		"INSERT INTO accounts SELECT i, (i + 1) / 2, 'account ' || i FROM generate_series(1, 4000) i")
	m := clients(t)
	m.Entities = append(m.Entities, billing.Entity{
		Name: billing.Accounts, Table: billing.Table{Schema: "public", Name: "accounts"}, Key: []string{"id"}, Client: []string{"clients_id"},
	})
	f := start(t, db, t.TempDir()+"/j", m, withPieces)
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "DELETE FROM clients")
	events := f.settle()
	if len(events) != 6000 {
		t.Fatalf("%d events", len(events))
	}
	seen := map[string]int{}
	for i, e := range events {
		seen[e] = i
	}
	for c := 1; c <= 2000; c++ {
		at, ok := seen[fmt.Sprintf("clients.delete %d", c)]
		for _, a := range []int{2*c - 1, 2 * c} {
			child, there := seen[fmt.Sprintf("clients.accounts.delete %d", a)]
			if !ok || !there || child > at {
				t.Fatalf("client %d goes at %d, its account %d at %d", c, at, a, child)
			}
		}
	}
	if !strings.HasPrefix(events[len(events)-1], "clients.delete ") {
		t.Errorf("the last is %s", events[len(events)-1])
	}
}
