package dispatch

import (
	"context"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

// counter is a handler that does nothing and tells when it was called n times.
type counter struct {
	start chan struct{} // nil: at once
	left  atomic.Int64
	done  chan struct{}
}

func (c *counter) Handle(context.Context, *handler.Delivery) (handler.Result, error) {
	if c.start != nil {
		<-c.start
	}
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
	return handler.Result{Code: 200}, nil
}

func (c *counter) Close() error { return nil }

// BenchmarkDispatch drains b.N executions from a journal on the disk, every outcome
// durable.
func BenchmarkDispatch(b *testing.B) {
	for _, lanes := range []int{1, 64, 1_000_000} {
		b.Run("lanes="+strconv.Itoa(lanes), func(b *testing.B) {
			c := &counter{done: make(chan struct{})}
			c.left.Store(int64(b.N))
			h := &Handler{ID: 1, Events: []string{"*"}, Concurrency: 64, Call: c}
			c.start = make(chan struct{})
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error)
			// Executions are announced to a dispatcher that runs, as intake does.
			j := benchJournal(b, []*Handler{h}, b.N, lanes, func(d *Dispatcher) { go func() { ended <- d.Run(ctx) }() })
			b.ReportAllocs()
			b.ResetTimer()
			start := cpuTime(b)
			close(c.start)
			<-c.done
			cancel()
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "executions/s")
			b.ReportMetric(float64(cpuTime(b)-start)/1e3/float64(b.N), "CPU-µs/op")
			if err := j.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// cpuTime is what the process has used so far.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchJournal(b *testing.B, hs []*Handler, n, lanes int, run func(*Dispatcher)) *journal.Journal {
	b.Helper()
	var d *Dispatcher
	j, err := journal.Open(journal.Options{Path: b.TempDir(), OnDurable: func(q []journal.Queued) { d.Enqueue(q) }})
	if err != nil {
		b.Fatal(err)
	}
	if d, err = New(Options{Store: j}); err != nil {
		b.Fatal(err)
	}
	d.SetHandlers(hs)
	run(d)
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
	return j
}

// BenchmarkLaneMemory reports the memory that a lane with pending executions takes
// while it waits, however many executions it has.
func BenchmarkLaneMemory(b *testing.B) {
	hs := []*Handler{{ID: 1, Events: []string{"*"}, Status: Enabled, Call: &counter{done: make(chan struct{})}}}
	n := max(b.N, 50_000)
	var d *Dispatcher
	j := benchJournal(b, hs, 1, 1, func(made *Dispatcher) { d = made })
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
