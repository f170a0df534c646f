package dispatch

import (
	"context"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

// counter is a handler that does nothing and tells when it was called n times.
type counter struct {
	left atomic.Int64
	done chan struct{}
}

func (c *counter) Handle(context.Context, *handler.Delivery) (handler.Result, error) {
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
	return handler.Result{Code: 200}, nil
}

func (c *counter) Close() error { return nil }

// BenchmarkDispatch drains b.N executions from a journal on the disk, every outcome
// durable.
func BenchmarkDispatch(b *testing.B) {
	for _, lanes := range []int{1, 16, 64, 1000} {
		b.Run("lanes="+strconv.Itoa(lanes), func(b *testing.B) {
			c := &counter{done: make(chan struct{})}
			c.left.Store(int64(b.N))
			h := &Handler{ID: 1, Events: []string{"*"}, Concurrency: 64, Call: c}
			d, j := benchJournal(b, []*Handler{h}, b.N, lanes)
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error)
			b.ReportAllocs()
			b.ResetTimer()
			go func() { ended <- d.Run(ctx) }()
			<-c.done
			cancel()
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "executions/s")
			if err := j.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func benchJournal(b *testing.B, hs []*Handler, n, lanes int) (*Dispatcher, *journal.Journal) {
	b.Helper()
	var d *Dispatcher
	j, err := journal.Open(journal.Options{Path: b.TempDir(), OnDurable: func(q []journal.Queued) {
		if d != nil {
			d.Enqueue(q)
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	var wait func() error
	for i := 0; i < n; {
		batch := j.NewBatch()
		for end := min(i+1000, n); i < end; i++ {
			e := testEvent(i+1, 1, "clients.update", strconv.Itoa(i%lanes))
			plan, err := Plan(hs, e)
			if err == nil {
				err = batch.AddEvent(e, plan)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		if wait, err = j.Commit(batch); err != nil {
			b.Fatal(err)
		}
	}
	if err := wait(); err != nil {
		b.Fatal(err)
	}
	if d, err = New(Options{Store: j}); err != nil {
		b.Fatal(err)
	}
	d.SetHandlers(hs)
	return d, j
}

// BenchmarkLaneMemory reports the memory that a lane with pending executions takes
// while it waits, however many executions it has.
func BenchmarkLaneMemory(b *testing.B) {
	hs := []*Handler{{ID: 1, Events: []string{"*"}, Status: Enabled, Call: &counter{done: make(chan struct{})}}}
	n := max(b.N, 50_000)
	d, j := benchJournal(b, hs, 1, 1)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		lane := strconv.Itoa(i)
		d.Enqueue([]journal.Queued{{Execution: uint64(2*i + 2), Lane: lane, Handler: 1}, {Execution: uint64(2*i + 3), Lane: lane, Handler: 1}})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "bytes/lane")
	runtime.KeepAlive(d)
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
}
