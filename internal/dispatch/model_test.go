package dispatch

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

var seeds = flag.Uint64("seeds", 3, "how many seeds TestModel runs with")

// TestModel lets chance commit events, break handlers and the store, change the
// status of handlers, remove and return them, and stop and restart, and then checks
// what was promised: nothing lost, nothing out of order within lane and handler,
// nothing twice at a time, ids that stay. Every third seed leaves the handlers as they
// are, and looks at the order of all calls of a lane.
func TestModel(t *testing.T) {
	for seed := range *seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newModel(t, seed).run() })
		})
	}
}

type model struct {
	t    *testing.T
	rng  *rand.Rand
	r    *rig
	defs []*Handler // as they are when all is well; index is id-1
	calm bool       // nobody changes the handlers
	was  []*Handler // in force before the last change: intake may still plan by them

	mu      sync.Mutex
	rnd     *rand.Rand // for the peers
	healthy bool
	running map[string]int // by lane, and by lane and handler
	last    map[string]event.ID
	place   map[string]place // calm: of the last call by lane
	calls   map[callKey]int
	success map[callKey]int
	bodies  map[event.ID]string
	planned map[callKey]bool
}

type callKey struct {
	event   event.ID
	handler int
}

// place is a place in the order of a lane.
type place struct {
	event    event.ID
	priority int
	handler  int
}

func (p place) compare(o place) int {
	return cmp.Or(p.event.Compare(o.event), cmp.Compare(p.priority, o.priority), cmp.Compare(p.handler, o.handler))
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), rnd: rand.New(rand.NewPCG(seed, 2)),
		calm:    seed%3 == 0,
		running: map[string]int{}, place: map[string]place{}, last: map[string]event.ID{}, calls: map[callKey]int{},
		success: map[callKey]int{}, bodies: map[event.ID]string{}, planned: map[callKey]bool{},
	}
	short := backoff.Schedule{Initial: 200 * time.Millisecond, Factor: 3, Max: 20 * time.Second, Jitter: 0.3, Attempts: 6}
	m.defs = []*Handler{
		{Concurrency: 3},
		{Concurrency: 8, Aside: true},
		{Concurrency: 1, OnFailure: Stop},
		{Concurrency: 4, Rate: 40, Burst: 5},
		{Concurrency: 4, Aside: true, MaxAge: 5 * time.Second, Priority: -1},
	}
	for i, h := range m.defs {
		h.ID, h.Name, h.Events, h.Backoff, h.Timeout = i+1, "handler", []string{"*"}, short, 2*time.Second
		if h.Priority == 0 {
			h.Priority = i / 2
		}
	}
	m.r = newRig(t)
	m.r.opts = Options{Workers: 6, Grace: time.Second}
	return m
}

// handle is what every peer does.
func (m *model) handle(ctx context.Context, d *handler.Delivery) (handler.Result, error) {
	lane, own := d.Event.Lane, fmt.Sprintf("%s/%d", d.Event.Lane, d.HandlerID)
	key := callKey{d.Event.ID, d.HandlerID}
	isAside := m.defs[d.HandlerID-1].Aside
	m.mu.Lock()
	if !isAside {
		m.running[lane]++
		if m.running[lane] > 1 {
			m.t.Errorf("two calls at a time for lane %s", lane)
		}
		p := place{d.Event.ID, m.defs[d.HandlerID-1].Priority, d.HandlerID}
		if m.calm && p.compare(m.place[lane]) < 0 {
			m.t.Errorf("lane %s: %v after %v", lane, p, m.place[lane])
		}
		m.place[lane] = p
	}
	m.running[own]++
	if m.running[own] > 1 {
		m.t.Errorf("two calls at a time for lane/handler %s", own)
	}
	if last := m.last[own]; d.Event.ID.Compare(last) < 0 {
		m.t.Errorf("%s: event %v after %v", own, d.Event.ID, last)
	}
	m.last[own] = d.Event.ID
	if body := m.bodies[d.Event.ID]; body != "" && body != string(d.Body) {
		m.t.Errorf("event %v has two bodies", d.Event.ID)
	}
	m.bodies[d.Event.ID] = string(d.Body)
	if m.success[key] > 0 && m.healthy {
		m.t.Errorf("%s: event %v again after its success", own, d.Event.ID)
	}
	m.calls[key]++
	dice, took := m.rnd.IntN(100), time.Duration(m.rnd.IntN(300))*time.Millisecond
	if m.healthy {
		dice = 99
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !isAside {
			m.running[lane]--
		}
		m.running[own]--
	}()

	switch {
	case dice < 4:
		panic("out of luck")
	case dice < 8:
		took = time.Hour // until the timeout
	case dice < 30:
		return handler.Result{Code: 503, Reason: handler.ReasonServerError}, errRefused
	case dice < 34:
		return handler.Result{}, handler.RetryAfter(errRefused, took)
	case dice < 38:
		return handler.Result{Code: 400, Reason: handler.ReasonClientError}, handler.Permanent(errRefused)
	}
	if res, err := taking(took)(ctx, d); err != nil {
		return res, err
	}
	m.mu.Lock()
	m.success[key]++
	m.mu.Unlock()
	return handler.Result{Code: 200, Answer: handler.Answer{Stop: dice < 42}}, nil
}

// define returns handler id as it is to be, with something new to call.
func (m *model) define(id int, status Status) *Handler {
	h := *m.defs[id-1]
	h.Status = status
	h.Call = &peer{id: id, f: m.handle}
	return &h
}

func (m *model) all(status Status) []*Handler {
	var hs []*Handler
	for _, h := range m.defs {
		hs = append(hs, m.define(h.ID, status))
	}
	return hs
}

func (m *model) run() {
	r := m.r
	r.next(m.all(Enabled)...)
	r.start()
	lanes := names(7)
	for range 200 {
		switch dice := m.rng.IntN(100); {
		case dice < 45:
			var to []string
			for range 1 + m.rng.IntN(5) {
				to = append(to, lanes[m.rng.IntN(len(lanes))])
			}
			hs := r.hs
			if m.was != nil && m.rng.IntN(4) == 0 {
				hs = m.was
			}
			for _, id := range r.commitPlanned(hs, "clients.update", to...) {
				for _, h := range hs {
					if h.Status != Archived {
						m.planned[callKey{id, h.ID}] = true
					}
				}
			}
		case dice < 85:
			sleep(time.Duration(m.rng.IntN(1000)) * time.Millisecond)
		case dice < 88:
			sleep(time.Duration(m.rng.IntN(30)) * time.Second)
		case dice < 94:
			if !m.calm {
				m.changeHandlers()
			}
		case dice < 96:
			r.store.set(func() { r.store.record = func(journal.Outcome) error { return journal.ErrDiskFull } })
		case dice < 98:
			r.store.set(func() { r.store.record = nil })
		default:
			r.stop()
			if m.rng.IntN(2) == 0 {
				r.store.set(func() { r.store.record = nil })
			}
			m.was = nil
			r.next(m.fresh(r.hs)...)
			r.start()
		}
	}

	// All is well from now on.
	m.mu.Lock()
	m.healthy = true
	m.mu.Unlock()
	r.store.set(func() { r.store.record = nil })
	// Attempts that were under way may still have to be repeated, so healthy is
	// judged after the restart.
	r.stop()
	m.mu.Lock()
	clear(m.success)
	m.mu.Unlock()
	for _, x := range m.reopened() {
		if x.Status == journal.Succeeded {
			m.success[callKey{x.Event, x.Handler}] = 1
		}
	}
	r.set(m.all(Enabled)...)
	r.run()
	sleep(time.Hour)
	m.check()
}

// reopened opens the journal and returns its executions.
func (m *model) reopened() []journal.Execution {
	m.r.next()
	m.r.open()
	return m.r.executions()
}

// fresh returns the same handlers with something new to call.
func (m *model) fresh(hs []*Handler) []*Handler {
	var list []*Handler
	for _, h := range hs {
		list = append(list, m.define(h.ID, h.Status))
	}
	return list
}

func (m *model) changeHandlers() {
	r := m.r
	id := 1 + m.rng.IntN(len(m.defs))
	hs := slices.DeleteFunc(slices.Clone(r.hs), func(h *Handler) bool { return h.ID == id })
	switch dice := m.rng.IntN(100); {
	case dice < 35:
		hs = append(hs, m.define(id, Disabled))
	case dice < 70:
		hs = append(hs, m.define(id, Enabled))
	case dice < 75 && id == 4:
		hs = append(hs, m.define(id, Archived))
	case dice < 85:
		// gone
	default:
		hs = append(hs, m.define(id, Enabled))
	}
	m.was = r.hs
	r.set(hs...)
}

func (m *model) check() {
	t, r := m.t, m.r
	xs := r.executions()
	got := map[callKey]bool{}
	last := map[callKey]uint64{}
	counts := map[journal.Status]int{}
	for _, x := range xs {
		key := callKey{x.Event, x.Handler}
		if got[key] {
			t.Errorf("two executions of event %v for handler %d", x.Event, x.Handler)
		}
		got[key] = true
		last[key] = x.ID
		counts[x.Status]++
		m.mu.Lock()
		calls, success := m.calls[key], m.success[key]
		m.mu.Unlock()
		if calls < x.Attempts {
			t.Errorf("execution %d: %d attempts recorded, %d calls made", x.ID, x.Attempts, calls)
		}
		attempts, err := r.j.Attempts(x.ID)
		if err != nil || len(attempts) != x.Attempts {
			t.Errorf("execution %d: %d attempts kept of %d, %v", x.ID, len(attempts), x.Attempts, err)
		}
		switch x.Status {
		case journal.Succeeded:
			if success == 0 {
				t.Errorf("execution %d succeeded without a success", x.ID)
			}
		case journal.Dead:
			h := m.defs[x.Handler-1]
			a := attempts[len(attempts)-1]
			if x.Attempts < h.Backoff.Limit() && !a.Permanent && h.MaxAge == 0 {
				t.Errorf("execution %d is dead after %d attempts", x.ID, x.Attempts)
			}
		case journal.Skipped, journal.Cancelled:
		case journal.Pending, journal.Held:
			t.Errorf("execution %d is still %v: %+v", x.ID, x.Status, x)
		}
	}
	for key := range m.planned {
		if !got[key] {
			t.Errorf("event %v for handler %d is lost", key.event, key.handler)
		}
	}
	if len(got) != len(m.planned) {
		t.Errorf("%d executions, %d planned", len(got), len(m.planned))
	}
	t.Logf("%d executions: %v", len(xs), counts)
	r.quiet()
	if t.Failed() {
		return
	}
	if counts[journal.Succeeded] == 0 || counts[journal.Dead] == 0 || counts[journal.Skipped] == 0 {
		t.Errorf("chance was too kind to prove anything: %v", counts)
	}
}
