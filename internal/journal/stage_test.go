package journal

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// large stages a transaction of pieces, each with events and memory, and returns
// the batch with the rest.
func large(t testing.TB, j *Journal, n, pieces int) *Batch {
	t.Helper()
	b := j.NewBatch()
	// A whole transaction comes first in the same batch.
	b.Begin()
	b.SetMemory([]byte("a/1"), []byte("before"))
	b.SetMemory([]byte("a/2"), []byte("before"))
	if err := b.AddEvent(sample(at(n-1, 1), "clients.update", "small"), []Planned{{Handler: 1}}); err != nil {
		t.Fatal(err)
	}
	b.SetPosition(position(n - 1))
	b.Begin()
	ordinal := 0
	for p := range pieces {
		for i := range 50 {
			ordinal++
			if err := b.AddEvent(sample(at(n, ordinal), "clients.update", fmt.Sprint(i%5)), []Planned{{Handler: 1}, {Handler: 2}}); err != nil {
				t.Fatal(err)
			}
			b.SetMemory(fmt.Appendf(nil, "a/%d", ordinal), fmt.Appendf(nil, "large %d", p))
		}
		if p == 1 {
			b.DeleteMemoryPrefix([]byte("b/"))
			b.SetMemory([]byte("b/2"), []byte("after"))
			b.DeleteMemory([]byte("a/3"))
		}
		if p < pieces-1 {
			wait, err := j.CommitPiece(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			b = j.NewBatch()
			check(t, b, "a/1", "large 0")
			check(t, b, fmt.Sprint("a/", ordinal), fmt.Sprint("large ", p))
			if p >= 1 {
				check(t, b, "b/1", "")
				check(t, b, "b/2", "after")
				check(t, b, "a/3", "")
			}
		}
	}
	return b
}

func check(t testing.TB, b *Batch, key, value string) {
	t.Helper()
	v, ok, err := b.Memory([]byte(key))
	if err != nil || string(v) != value || ok != (value != "") {
		t.Fatalf("memory of %s: %q %v %v, want %q", key, v, ok, err, value)
	}
}

func TestLargeTransaction(t *testing.T) {
	fs := vfs.NewMem()
	var mu sync.Mutex
	var queued []uint64
	j := open(t, func(o *Options) {
		o.FS = fs
		o.OnDurable = func(q []Queued) {
			mu.Lock()
			defer mu.Unlock()
			for _, x := range q {
				queued = append(queued, x.Execution)
			}
		}
	})
	b := j.NewBatch()
	for _, k := range []string{"a/9", "a/99999", "b/1", "b/2", "c/1"} {
		b.SetMemory([]byte(k), []byte("old"))
	}
	b.SetPosition(position(1))
	commit(t, j, b)

	const pieces = 60 // more executions than one commit of a merge takes
	b = large(t, j, 3, pieces)
	// What came before the large one counts, and nothing of it.
	want(t, "executions", all(t, j, Query{}), []uint64{1})
	if p, _ := j.Position(); p != position(2) {
		t.Fatalf("position %+v", p)
	}
	if es, err := j.Events(at(1, 1), 1000); err != nil || len(es) != 1 {
		t.Fatalf("%d events, %v", len(es), err)
	}
	verify(t, j)

	if err := j.DiscardPieces(); err != nil {
		t.Fatal(err)
	}
	b.Discard()
	b = j.NewBatch()
	check(t, b, "a/1", "before")
	check(t, b, "b/2", "old")
	b.Discard()
	verify(t, j)
	if es, err := j.Events(at(1, 1), 1000); err != nil || len(es) != 1 {
		t.Fatalf("%d events after the pieces were discarded, %v", len(es), err)
	}

	b = large(t, j, 5, pieces)
	b.SetPosition(position(5))
	commit(t, j, b)
	const n = pieces*50*2 + 2
	want(t, "counts", j.Counts(), map[HandlerStatus]int64{{1, Pending}: pieces*50 + 2, {2, Pending}: pieces * 50})
	if p, _ := j.Position(); p != position(5) {
		t.Fatalf("position %+v", p)
	}
	transaction(t, j, 6, "clients.update", []string{"1"}, 1)
	mu.Lock()
	for i, id := range queued {
		if id != uint64(i+1) {
			t.Fatalf("queued %d as number %d", id, i)
		}
	}
	want(t, "queued", len(queued), n+1)
	mu.Unlock()
	verify(t, j)
	b = j.NewBatch()
	for k, v := range map[string]string{"a/1": "large 0", "a/3": "", "a/3000": "large 59", "b/1": "", "b/2": "after", "c/1": "old", "a/99999": "old"} {
		check(t, b, k, v)
	}
	b.Discard()
	scanned := 0
	if err := j.ScanMemory(t.Context(), nil, func(_, _ []byte) error { scanned++; return nil }); err != nil {
		t.Fatal(err)
	}
	want(t, "keys of memory", scanned, 3000-1+3)
}

// A kill with a stage: it is gone if it did not count, and merged if it did.
func TestLargeTransactionCut(t *testing.T) {
	fs := vfs.NewCrashableMem()
	set := func(o *Options) { o.FS = fs }
	j := open(t, set)
	b := j.NewBatch()
	b.SetMemory([]byte("b/1"), []byte("old"))
	b.SetPosition(position(1))
	commit(t, j, b)
	b = large(t, j, 3, 30)

	cut := fs.CrashClone(vfs.CrashCloneCfg{})
	k := open(t, func(o *Options) { o.FS = cut })
	verify(t, k)
	want(t, "executions", all(t, k, Query{}), []uint64{1})
	c := k.NewBatch()
	check(t, c, "a/1", "before")
	check(t, c, "a/4", "")
	check(t, c, "b/1", "old")
	c.Discard()
	transaction(t, k, 3, "clients.update", []string{"1"}, 1)
	verify(t, k)

	// Cut the merge short after each of its commits.
	b.SetPosition(position(3))
	if err := j.settle(); err != nil {
		t.Fatal(err)
	}
	a, err := j.commitPiece(b, b.whole(), b.position)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.wait(); err != nil {
		t.Fatal(err)
	}
	cuts := 0
	err = j.merge(func(e *edit, _ time.Time, _ bool) error {
		if err := e.wait(); err != nil {
			return err
		}
		cuts++
		k := open(t, func(o *Options) { o.FS = fs.CrashClone(vfs.CrashCloneCfg{}) })
		verify(t, k)
		want(t, "counts", k.Counts(), map[HandlerStatus]int64{{1, Pending}: 1501, {2, Pending}: 1500})
		c := k.NewBatch()
		for key, v := range map[string]string{"a/1": "large 0", "a/3": "", "b/1": "", "b/2": "after", "a/1500": "large 29"} {
			check(t, c, key, v)
		}
		c.Discard()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if cuts < 3 {
		t.Fatalf("the merge took %d commits", cuts)
	}
	verify(t, j)
}
