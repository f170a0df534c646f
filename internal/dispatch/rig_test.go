package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/wal"
)

// rig is a dispatcher on a real journal, with an intake that commits what a test
// says. It lives inside a synctest bubble.
type rig struct {
	t     testing.TB
	fs    *vfs.MemFS
	j     *journal.Journal
	store *brittle
	d     *Dispatcher
	reg   *prometheus.Registry
	calls *calls
	hs    []*Handler
	opts  Options
	logs  *logs

	n       int // transactions committed
	cleaned bool
	cancel  context.CancelFunc
	ended   chan struct{}
}

func newRig(t testing.TB, hs ...*Handler) *rig {
	r := &rig{t: t, fs: vfs.NewMem(), calls: &calls{start: time.Now()}, logs: &logs{}}
	r.next(hs...)
	return r
}

// next says which handlers the next start begins with.
func (r *rig) next(hs ...*Handler) {
	for _, h := range hs {
		if p, ok := h.Call.(*peer); ok && p.calls == nil {
			p.calls = r.calls
		}
	}
	r.hs = hs
}

// start opens the journal and runs the dispatcher.
func (r *rig) start() {
	r.t.Helper()
	r.open()
	r.run()
}

func (r *rig) open() {
	r.t.Helper()
	var d *Dispatcher
	j, err := journal.Open(journal.Options{
		Path: "j", FS: r.fs, Cache: 1 << 20,
		OnDurable: func(q []journal.Queued) { d.Enqueue(q) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.j = j
	if !r.cleaned {
		r.cleaned = true
		r.t.Cleanup(func() {
			if r.j != nil {
				r.stop()
			}
		})
	}
	if r.store == nil {
		r.store = &brittle{}
	}
	r.store.Journal = j
	r.reg = prometheus.NewRegistry()
	o := r.opts
	o.Store, o.Registerer, o.Logger = r.store, r.reg, slog.New(r.logs)
	if d, err = New(o); err != nil {
		r.t.Fatal(err)
	}
	r.d = d
	d.SetHandlers(r.hs)
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(r.t.Context())
	r.cancel, r.ended = cancel, make(chan struct{})
	d := r.d
	go func() {
		defer close(r.ended)
		if err := d.Run(ctx); err != nil {
			r.t.Error(err)
		}
	}()
}

// stop ends the dispatcher, verifies the journal and closes it.
func (r *rig) stop() {
	r.t.Helper()
	if r.cancel != nil {
		r.cancel()
		<-r.ended
		r.cancel = nil
	}
	if err := r.j.Verify(context.Background(), nil); err != nil {
		r.t.Error(err)
	}
	if err := r.j.Close(); err != nil {
		r.t.Error(err)
	}
	r.j = nil
}

// set puts handlers into force.
func (r *rig) set(hs ...*Handler) {
	r.next(hs...)
	r.d.SetHandlers(hs)
}

// change puts a changed copy of a handler into force.
func (r *rig) change(id int, f func(h *Handler)) {
	hs := slices.Clone(r.hs)
	for i, h := range hs {
		if h.ID == id {
			c := *h
			if p, ok := h.Call.(*peer); ok {
				c.Call = &peer{calls: r.calls, id: p.id, f: p.f}
			}
			f(&c)
			hs[i] = &c
		}
	}
	r.set(hs...)
}

// commit commits a transaction with one event of the type for each lane, planned for
// the handlers in force, and returns the event ids.
func (r *rig) commit(typ event.Type, lanes ...string) []event.ID {
	r.t.Helper()
	return r.commitPlanned(r.hs, typ, lanes...)
}

func (r *rig) commitPlanned(hs []*Handler, typ event.Type, lanes ...string) []event.ID {
	r.t.Helper()
	r.n++
	var ids []event.ID
	b := r.j.NewBatch()
	b.Begin()
	for i, lane := range lanes {
		e := testEvent(r.n, i+1, typ, lane)
		plan, err := Plan(hs, e)
		if err != nil {
			r.t.Log(err)
		}
		if err := b.AddEvent(e, plan); err != nil {
			r.t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	wait, err := r.j.Commit(b)
	if err == nil {
		err = wait()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return ids
}

func testEvent(n, ordinal int, typ event.Type, lane string) *event.Event {
	return &event.Event{
		ID:   event.ID{Generation: 1, CommitLSN: wal.LSN(n * 100), Ordinal: uint32(ordinal)},
		Type: typ, Entity: "clients", Object: lane, Lane: lane, XID: 7, CommitTime: time.Now(), Source: "billing",
		ObjectJSON: []byte(strconv.Quote(lane)), Data: []byte(`{"n":` + strconv.Itoa(n) + `}`),
	}
}

// table returns every execution, oldest first: "1 h1 4711 succeeded 1".
func (r *rig) table() []string {
	r.t.Helper()
	var rows []string
	for _, x := range r.executions() {
		rows = append(rows, fmt.Sprintf("%d h%d %s %s %d", x.ID, x.Handler, x.Lane, x.Status, x.Attempts))
	}
	return rows
}

func (r *rig) executions() []journal.Execution {
	r.t.Helper()
	var all []journal.Execution
	for before := uint64(0); ; {
		page, next, err := r.j.Executions(context.Background(), journal.Query{Before: before, Limit: 500})
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, page...)
		if next == 0 {
			slices.Reverse(all)
			return all
		}
		before = next
	}
}

func (r *rig) execution(id uint64) journal.Execution {
	r.t.Helper()
	x, err := r.j.Execution(id)
	if err != nil {
		r.t.Fatal(err)
	}
	return x
}

// want compares lines.
func want(t testing.TB, what string, got []string, lines ...string) {
	t.Helper()
	if !slices.Equal(got, lines) {
		t.Fatalf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(lines, "\n     "))
	}
}

// quiet checks that nothing is left over in the dispatcher's memory.
func (r *rig) quiet() {
	r.t.Helper()
	d := r.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.lanes) > 0 || len(d.due) > 0 || d.windows != 0 || d.workers != 0 || d.trouble != 0 || d.readyHead != nil {
		r.t.Errorf("left over: %d lanes, %d due, %d windows, %d workers, %d in trouble, ready %v",
			len(d.lanes), len(d.due), d.windows, d.workers, d.trouble, d.readyHead != nil)
	}
	for id, g := range d.gates {
		if g.queue.n != 0 || g.running != 0 || g.active != 0 || g.waiting != 0 || !g.settled || g.cur != nil && g.cur.inflight != 0 {
			r.t.Errorf("left over at gate %d: %+v", id, g)
		}
	}
	if g := d.loader; g.queue.n != 0 || g.running != 0 || g.active != 0 {
		r.t.Errorf("left over at the loader: %+v", g)
	}
}

// gauge returns the sum of a metric's series.
func (r *rig) gauge(name string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() == name {
			found = true
			for _, m := range f.Metric {
				sum += m.GetGauge().GetValue()
			}
		}
	}
	if !found {
		r.t.Fatalf("no metric %s", name)
	}
	return sum
}

// calls is what the peers of a rig were called with, in order.
type calls struct {
	mu    sync.Mutex
	start time.Time
	list  []call
}

type call struct {
	at      time.Duration
	handler int
	lane    string
	event   event.ID
	attempt int
	body    string
}

// lines returns "1s h1 4711 #1" for each call and forgets them.
func (c *calls) lines() []string {
	var lines []string
	for _, x := range c.take() {
		lines = append(lines, fmt.Sprintf("%v h%d %s@%d #%d", x.at, x.handler, x.lane, x.event.CommitLSN/100, x.attempt))
	}
	return lines
}

func (c *calls) take() []call {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.list
	c.list = nil
	return list
}

// peer is what a handler calls, at the border of the process.
type peer struct {
	calls *calls
	id    int
	f     func(ctx context.Context, d *handler.Delivery) (handler.Result, error)

	mu     sync.Mutex
	now    int
	most   int
	closed int
}

func (p *peer) Handle(ctx context.Context, d *handler.Delivery) (handler.Result, error) {
	p.mu.Lock()
	if p.closed > 0 {
		panic("called after Close")
	}
	p.now++
	p.most = max(p.most, p.now)
	p.mu.Unlock()
	p.calls.mu.Lock()
	p.calls.list = append(p.calls.list, call{
		at: time.Since(p.calls.start), handler: d.HandlerID, lane: d.Event.Lane, event: d.Event.ID,
		attempt: d.Attempt, body: string(d.Body),
	})
	p.calls.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.now--
		p.mu.Unlock()
	}()
	if p.f == nil {
		return handler.Result{Code: 200}, nil
	}
	return p.f(ctx, d)
}

func (p *peer) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now > 0 {
		panic("closed while called")
	}
	p.closed++
	return nil
}

func (p *peer) closes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

type answer func(ctx context.Context, d *handler.Delivery) (handler.Result, error)

// handlerFor is a handler for all clients events, with a plain schedule.
func handlerFor(id int, f answer, set ...func(h *Handler)) *Handler {
	h := &Handler{
		ID: id, Name: "handler " + strconv.Itoa(id), Kind: "test", Events: []string{"clients.*"}, Priority: id,
		Backoff: backoff.Schedule{Initial: time.Second, Factor: 10, Max: time.Hour, Attempts: 3},
		Call:    &peer{id: id, f: f},
	}
	for _, s := range set {
		s(h)
	}
	return h
}

var errRefused = errors.New("refused")

// failing fails the first n attempts of each execution.
func failing(n int) answer {
	return func(_ context.Context, d *handler.Delivery) (handler.Result, error) {
		if d.Attempt <= n {
			return handler.Result{Code: 503, Reason: handler.ReasonServerError}, errRefused
		}
		return handler.Result{Code: 200}, nil
	}
}

// taking takes a while, unless the context ends.
func taking(d time.Duration) answer {
	return func(ctx context.Context, _ *handler.Delivery) (handler.Result, error) {
		select {
		case <-time.After(d):
			return handler.Result{Code: 200}, nil
		case <-ctx.Done():
			return handler.Result{Code: -1}, ctx.Err()
		}
	}
}

// brittle is a journal whose writes fail on demand.
type brittle struct {
	*journal.Journal
	mu     sync.Mutex
	record func(o journal.Outcome) error // before the journal
	read   func() error                  // of Pending and Execution
	hold   func() error
	event  func(id event.ID) error
	// ahead is how far the clock by which the journal was written was before ours. It is
	// set while nobody reads.
	ahead time.Duration
}

func (b *brittle) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *brittle) Record(ctx context.Context, o journal.Outcome) ([]journal.Queued, error) {
	b.mu.Lock()
	f := b.record
	b.mu.Unlock()
	if f != nil {
		if err := f(o); err != nil {
			return nil, err
		}
	}
	return b.Journal.Record(ctx, o)
}

func (b *brittle) RecordThen(o journal.Outcome, done func([]journal.Queued, error)) {
	b.mu.Lock()
	f := b.record
	b.mu.Unlock()
	if f != nil {
		if err := f(o); err != nil {
			done(nil, err)
			return
		}
	}
	b.Journal.RecordThen(o, done)
}

func (b *brittle) failRead() error {
	b.mu.Lock()
	f := b.read
	b.mu.Unlock()
	if f == nil {
		return nil
	}
	return f()
}

func (b *brittle) Pending(lane string, after uint64, n int) ([]journal.Execution, error) {
	if err := b.failRead(); err != nil {
		return nil, err
	}
	page, err := b.Journal.Pending(lane, after, n)
	for i := range page {
		b.shift(&page[i])
	}
	return page, err
}

func (b *brittle) shift(x *journal.Execution) {
	if !x.NextAt.IsZero() {
		x.NextAt = x.NextAt.Add(b.ahead)
	}
}

func (b *brittle) Attempt(id uint64, n int) (journal.Attempt, error) {
	a, err := b.Journal.Attempt(id, n)
	a.Start = a.Start.Add(b.ahead)
	return a, err
}

func (b *brittle) Execution(id uint64) (journal.Execution, error) {
	if err := b.failRead(); err != nil {
		return journal.Execution{}, err
	}
	x, err := b.Journal.Execution(id)
	b.shift(&x)
	return x, err
}

func (b *brittle) Event(id event.ID) (*event.Event, error) {
	b.mu.Lock()
	f := b.event
	b.mu.Unlock()
	if f != nil {
		if err := f(id); err != nil {
			return nil, err
		}
	}
	return b.Journal.Event(id)
}

func (b *brittle) Hold(ctx context.Context, h int) (int, error) {
	b.mu.Lock()
	f := b.hold
	b.mu.Unlock()
	if f != nil {
		if err := f(); err != nil {
			return 0, err
		}
	}
	return b.Journal.Hold(ctx, h)
}

// logs keeps what was logged: "WARN attempt failed handler=1 ...".
type logs struct {
	mu   sync.Mutex
	list []string
}

func (l *logs) Enabled(context.Context, slog.Level) bool { return true }
func (l *logs) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logs) WithGroup(string) slog.Handler            { return l }
func (l *logs) Handle(_ context.Context, r slog.Record) error {
	attrs := map[string]string{}
	r.Attrs(func(a slog.Attr) bool {
		attrs[a.Key] = a.Value.String()
		return true
	})
	text := r.Level.String() + " " + r.Message
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		if slices.Contains([]string{"handler", "execution", "attempt", "err", "event"}, k) {
			text += " " + k + "=" + attrs[k]
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, text)
	return nil
}

func (l *logs) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

// sleep lets time pass and everything settle at the end of it.
func sleep(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
