package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/steady"
)

// What the zero Options mean.
const (
	DefaultWorkers = 256
	DefaultGrace   = 15 * time.Second
)

const (
	// firstPause and lastPause bound the time between two tries to use a store that
	// cannot do it now.
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
)

// Options of New. Store is required.
type Options struct {
	Store      Store
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// Workers is how many attempts are made at a time, over all handlers; 0:
	// DefaultWorkers. An execution that waits for its turn, its time or the disk makes
	// none.
	Workers int
	// Grace is how long running attempts may go on when Run's context has ended,
	// before theirs is cancelled; 0: DefaultGrace.
	Grace time.Duration
}

// Dispatcher brings executions to their end. Its methods may be called from any
// goroutine.
type Dispatcher struct {
	store      Store
	log        *slog.Logger
	metrics    *metrics
	maxWorkers int
	grace      time.Duration
	steady     *steady.Clock
	newest     uint64 // execution id when New was called

	// base is the context of attempts: it ends when a stop has used up its grace.
	// It is set by Run before the first worker starts.
	base context.Context

	earlier   chan struct{} // the first of due has changed
	unsettled chan struct{} // a gate may be settled

	wg sync.WaitGroup // workers

	// mu guards all that follows, and lanes, lines, gates and callees. Nothing
	// blocks while it is held.
	mu        sync.Mutex
	running   bool // Run has been called
	stopping  bool // Run's context has ended
	stopped   bool // Run has closed the handlers
	scanned   bool // every lane with something older than newest is in lanes
	trouble   int  // workers whose outcome the store would not take
	workers   int
	recording int    // outcomes on their way to the disk that no worker waits for
	windows   int    // lines that have one
	gen       uint64 // grows when the store's statuses were changed in bulk

	lanes                map[string]*lane
	gates                map[int]*gate // by handler id
	loader               *gate         // not in gates
	readyHead, readyTail *gate         // gates that are open
	due                  dueHeap
}

// New returns a dispatcher over the store. It must be called before intake commits
// anything, so that it knows what was there: that is found by Run, all later
// executions are announced by Enqueue.
func New(o Options) (*Dispatcher, error) {
	d := &Dispatcher{
		store:      o.Store,
		log:        o.Logger,
		maxWorkers: cmp.Or(max(o.Workers, 0), DefaultWorkers),
		grace:      cmp.Or(max(o.Grace, 0), DefaultGrace),
		steady:     steady.New(),
		earlier:    make(chan struct{}, 1),
		unsettled:  make(chan struct{}, 1),
		lanes:      map[string]*lane{},
		gates:      map[int]*gate{},
		loader:     &gate{reads: true, settled: true},
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	page, _, err := o.Store.Executions(context.Background(), journal.Query{Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("find the newest execution: %w", err)
	}
	if len(page) > 0 {
		d.newest = page[0].ID
	}
	d.metrics = newMetrics(o.Registerer, d)
	return d, nil
}

// Run makes attempts until ctx ends. Then it starts no more, gives those that are
// running the grace period, cancels the rest, and returns when all have ended and
// their outcomes are recorded and the handlers are closed. It is called once.
//
// An outcome that the store does not take during the grace period is given up: the
// execution stays pending and its attempt will be made again.
func (d *Dispatcher) Run(ctx context.Context) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)

	d.mu.Lock()
	if d.running {
		d.mu.Unlock()
		return errors.New("dispatcher: run twice")
	}
	d.running, d.base = true, base
	d.kick()
	d.mu.Unlock()

	var wg sync.WaitGroup
	wg.Go(func() { d.settle(ctx) })
	wg.Go(func() { d.scan(ctx) })
	wg.Go(func() { d.clock(ctx) })
	<-ctx.Done()

	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	wg.Wait()
	grace := time.AfterFunc(d.grace, func() { cancel(errStopped) })
	d.wg.Wait()
	grace.Stop()

	d.mu.Lock()
	d.stopped = true
	var last []*callee
	for _, g := range d.gates {
		if g.cur.retire() {
			last = append(last, g.cur)
		}
	}
	d.mu.Unlock()
	for _, c := range last {
		wg.Go(func() { d.closeCall(c) })
	}
	wg.Wait()
	return nil
}

// errStopped is why an attempt was cancelled.
var errStopped = errors.New("billhook stops")

// going reports whether attempts may be started.
func (d *Dispatcher) going() bool { return d.running && !d.stopping && d.trouble == 0 }

// Enqueue tells of executions that became pending and are durable, in the order in
// which they did. It never waits for a handler or the disk.
func (d *Dispatcher) Enqueue(q []journal.Queued) {
	d.checkLate()
	for len(q) > 0 {
		n := min(len(q), 1024)
		d.mu.Lock()
		if d.stopping {
			d.mu.Unlock()
			return // the journal has them
		}
		for _, x := range q[:n] {
			d.announce(x.Lane, x.Execution, x.Handler, x.Execution)
		}
		d.mu.Unlock()
		q = q[n:]
	}
}

// SetHandlers puts definitions into force: all of them, whatever there was before.
//
// Pending executions run with the definition that is in force when their attempt
// begins. An attempt that is running ends with the one it began with. A Handler
// that was given before (the same pointer) stays as it is; any other that is not
// given again is closed, once, when no attempt uses it any more. SetHandlers waits
// for the Close of those that none uses.
//
// By the change of a handler's status, in the background, its open executions are
//
//	disabled   held
//	enabled    released, and made in their order before newer ones of their lanes
//	archived   cancelled
//	gone       held, until a handler with that id is there again
//
// It panics when an id is below 1 or given twice, or an enabled handler has no Call.
func (d *Dispatcher) SetHandlers(hs []*Handler) {
	given := make(map[int]*Handler, len(hs))
	for _, h := range hs {
		switch {
		case h.ID < 1:
			panic(fmt.Sprintf("dispatch: handler id %d", h.ID))
		case given[h.ID] != nil:
			panic(fmt.Sprintf("dispatch: handler id %d given twice", h.ID))
		case h.Call == nil && h.Status == Enabled:
			panic(fmt.Sprintf("dispatch: handler %d has nothing to call", h.ID))
		}
		given[h.ID] = h
	}

	d.mu.Lock()
	var unused []*callee
	for _, h := range hs {
		d.gate(h.ID)
	}
	for id, g := range d.gates {
		h := given[id]
		if old := g.cur; old == nil || old.Handler != h {
			if d.define(g, h) {
				unused = append(unused, old)
			}
		}
	}
	if d.stopped { // too late: nobody will use them
		for _, g := range d.gates {
			if g.cur.retire() {
				unused = append(unused, g.cur)
			}
		}
	}
	d.mu.Unlock()
	for _, c := range unused {
		d.closeCall(c)
	}
}

// define puts h, or nil for none, in force at g and reports whether the caller must
// close the definition before it.
func (d *Dispatcher) define(g *gate, h *Handler) (mustClose bool) {
	old := g.cur
	g.cur, g.limiter = nil, nil
	if h != nil {
		g.cur = &callee{Handler: h}
		if h.Rate > 0 {
			g.limiter = rate.NewLimiter(rate.Limit(h.Rate), max(h.Burst, 1))
		}
	}
	if g.shut {
		d.due.remove(&g.wake)
		g.shut = false
	}
	g.breaker = breaker{}
	switch {
	case h == nil && old != nil:
		d.metrics.forget(g.id)
		g.metrics, g.health = nil, health{}
	case h != nil && old == nil:
		g.metrics = d.metrics.handler(g.id)
	}
	was, is := Disabled, Disabled // as one that is gone is treated
	if old != nil {
		was = old.Status
	}
	if h != nil {
		is = h.Status
	}
	if was != is || old == nil || h == nil {
		if was == Disabled && is != Disabled && d.running {
			g.late = true
		}
		d.unsettle(g)
	}
	d.offer(g)
	return old.retire()
}

// Replay makes new executions that repeat those given, at the tail of their lanes,
// and returns them. A replay is a chain of its own: its handler cannot stop others.
// An error comes with those that were made.
func (d *Dispatcher) Replay(ctx context.Context, executions []uint64) ([]journal.Queued, error) {
	q, err := d.store.Requeue(ctx, executions)
	d.Enqueue(q)
	return q, err
}

// scan finds the lanes that had something pending when New was called. Dispatch
// goes on meanwhile.
func (d *Dispatcher) scan(ctx context.Context) {
	if d.newest == 0 {
		d.mu.Lock()
		d.scanned = true
		d.mu.Unlock()
		return
	}
	for p := newPause(); ; {
		n, start := 0, time.Now()
		err := d.store.Lanes(ctx, func(name string, head journal.Execution) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.announce(name, head.ID, head.Handler, max(head.ID, d.newest))
			n++
			return ctx.Err()
		})
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			d.mu.Lock()
			d.scanned = true
			d.mu.Unlock()
			d.log.Info("pending executions found", "lanes", n, "took", time.Since(start))
			return
		}
		d.log.Error("cannot read what is pending", "err", err)
		if !p.wait(ctx.Done()) {
			return
		}
	}
}

func (d *Dispatcher) closeCall(c *callee) {
	if err := c.Call.Close(); err != nil {
		d.log.Warn("handler not closed cleanly", "handler", c.ID, "err", err)
	}
}

// pause is the time between two tries to use the store.
type pause struct{ next time.Duration }

func newPause() *pause { return &pause{next: firstPause} }

// wait waits, longer each time. It reports false when stop came first.
func (p *pause) wait(stop <-chan struct{}) bool {
	t := time.NewTimer(p.next)
	defer t.Stop()
	p.next = min(2*p.next, lastPause)
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}
