package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestCache(t *testing.T) {
	for _, size := range []int{4096, 64 << 10, 4 << 20} {
		c := newCache(size)
		t.Cleanup(c.free)
		store := make(map[string]string)
		r := rand.New(rand.NewPCG(3, uint64(size)))
		hits := 0
		for i := range 50_000 {
			key := fmt.Sprint(r.IntN(3000))
			if i%15_000 == 14_999 {
				c.forget()
			}
			switch r.IntN(4) {
			case 0:
				value, ok := string(make([]byte, r.IntN(30)))+fmt.Sprint(i), r.IntN(5) > 0
				if ok {
					store[key] = value
				} else {
					delete(store, key)
				}
				o := newOverlay()
				o.delete([]byte(key))
				if ok {
					o.set([]byte(key), []byte(value))
				}
				for range o.changes() { // puts them in order
				}
				c.merged(&o)
				if !ok {
					continue
				}
			default:
				v, ok, known, epoch := c.get(nil, []byte(key))
				w, wok := store[key]
				if !known {
					c.put([]byte(key), []byte(w), wok, epoch)
					c.put([]byte(key), []byte("stale"), true, epoch-1)
					continue
				}
				hits++
				if ok != wok || string(v) != w {
					t.Fatalf("size %d, step %d: %s is %q %v, want %q %v", size, i, key, v, ok, w, wok)
				}
			}
		}
		t.Logf("size %d: %d hits, %d entries", size, hits, c.count)
		if hits == 0 {
			t.Error("no hit")
		}
	}
}

// TestWarm: what memory holds is in the cache again soon after a restart, as far as there
// is room, and what is written meanwhile is never hidden by what was read before.
func TestWarm(t *testing.T) {
	fs := vfs.NewMem()
	const n = 5000
	key := func(i int) []byte { return fmt.Appendf(nil, "row %05d", i) }
	j := open(t, func(o *Options) { o.FS = fs })
	b := j.NewBatch()
	for i := range n {
		b.SetMemory(key(i), fmt.Appendf(nil, "old %d", i))
	}
	commit(t, j, b)
	if err := errors.Join(j.settle(), j.Close()); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{256 << 10, 1 << 20} {
		j := open(t, func(o *Options) { o.FS, o.MemoryCache = fs, size })
		value := fmt.Sprint("new ", size)
		for i := 9; i < n; i += 10 { // as warm goes
			b := j.NewBatch()
			b.SetMemory(key(i), []byte(value))
			commit(t, j, b)
		}
		cached := func() int {
			j.cache.mu.Lock()
			defer j.cache.mu.Unlock()
			return j.cache.count
		}
		tick, deadline := time.NewTicker(time.Millisecond), time.After(20*time.Second)
		for cached() < min(n, size/100) {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("%d keys are in a cache of %d bytes", cached(), size)
			}
		}
		tick.Stop()
		b := j.NewBatch()
		for i := range n {
			want := fmt.Sprintf("old %d", i)
			if i%10 == 9 {
				want = value
			}
			if got, ok, err := b.Memory(key(i)); err != nil || !ok || string(got) != want {
				t.Fatalf("size %d: row %d is %q %v %v, want %q", size, i, got, ok, err, want)
			}
		}
		b.Discard()
		if err := errors.Join(j.Verify(t.Context(), nil), j.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
