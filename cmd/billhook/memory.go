package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// boundMemory sets how much garbage may gather, unless the environment says it.
//
// Most of the heap is the journal's caches, which live long, so the usual 100 percent of
// garbage would double them for nothing. A limit on top takes back what a percentage lets
// through, such as the holes that large buffers leave. It gives way where little lives
// below it and the collector would run all the time.
func boundMemory() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(leastLimit)
	b := &bound{limit: leastLimit, last: time.Now()}
	b.watch()
}

const (
	gcPercent  = 60
	leastLimit = 92 << 20 // of what the runtime manages
	limitStep  = 4 << 20
	besideHeap = 16 << 20 // of that, what is not heap, about
	// Collections that follow one another sooner than often are to become fewer; those
	// further apart than seldom may become more.
	often  = 100 * time.Millisecond
	seldom = 400 * time.Millisecond
)

// bound is the limit in force.
type bound struct {
	limit int64
	last  time.Time // of the last collection
}

// watch moves the limit after each collection.
func (b *bound) watch() {
	// What nobody refers to is found by the next collection.
	runtime.SetFinalizer(&struct{ _ *bound }{b}, func(any) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		now := time.Now()
		if to := b.next(int64(live[0].Value.Uint64()), now.Sub(b.last)); to != b.limit {
			b.limit = to
			debug.SetMemoryLimit(to)
		}
		b.last = now
		b.watch()
	})
}

// next is the limit to follow, where so many bytes live and the last collection was so
// long ago. Beyond most the percentage counts; below least there is hardly any room.
func (b *bound) next(live int64, since time.Duration) int64 {
	least := max(leastLimit, live+live/10+besideHeap)
	most := max(least, live+live*gcPercent/100+besideHeap)
	to := b.limit
	switch {
	case since < often:
		to += limitStep
	case since > seldom:
		to -= limitStep
	}
	return min(max(to, least), most)
}
