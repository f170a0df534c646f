package main

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestBound(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name  string
		limit int64
		live  int64
		since time.Duration
		want  int64
	}{
		{"little lives and it is quiet", leastLimit, 40 * mib, time.Second, leastLimit},
		{"collections come fast", leastLimit, 60 * mib, often / 2, leastLimit + limitStep},
		{"neither fast nor seldom", leastLimit + 8*mib, 60 * mib, (often + seldom) / 2, leastLimit + 8*mib},
		{"quiet again", leastLimit + 8*mib, 60 * mib, 2 * seldom, leastLimit + 8*mib - limitStep},
		{"not below the least", leastLimit + mib, 60 * mib, 2 * seldom, leastLimit},
		{"not above what the percentage lets through", 112 * mib, 60 * mib, often / 2, 60*mib + 36*mib + besideHeap},
		{"much lives", leastLimit, 1000 * mib, 2 * seldom, 1100*mib + besideHeap},
		{"much lived", 1100 * mib, 50 * mib, often / 2, 50*mib + 30*mib + besideHeap},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := bound{limit: tc.limit}
			if got := b.next(tc.live, tc.since); got != tc.want {
				t.Errorf("%d MiB, want %d", got/mib, tc.want/mib)
			}
		})
	}
}

// TestBoundMemory: the limit follows what the collector does, collection after collection.
func TestBoundMemory(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	defer debug.SetMemoryLimit(math.MaxInt64)
	boundMemory()
	for _, want := range []int64{200 << 20, leastLimit} {
		var live []byte
		if want > leastLimit {
			live = make([]byte, want)
		}
		deadline := time.Now().Add(10 * time.Second)
		for {
			runtime.GC()
			got := debug.SetMemoryLimit(-1)
			if want > leastLimit && got > want || want == leastLimit && got < 200<<20 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("with %d MiB that live the limit is %d MiB", len(live)>>20, got>>20)
			}
			runtime.Gosched()
		}
		runtime.KeepAlive(live)
	}
}
