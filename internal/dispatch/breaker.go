package dispatch

import (
	"slices"
	"time"

	"github.com/billhook/billhook/internal/handler"
)

// Breaker rests a handler that seems to be down. The zero Breaker never does.
//
//	           attempts of Failures executions fail in a row
//	closed ──────────────────────────────────────────────────► open ◄────────┐
//	  ▲                                                         │ after Pause │ it fails: twice
//	  │        it answers                                       ▼            │ the pause, up to Max
//	  └──────────────────────────────────────────────── one attempt ─────────┘
//
// While it is open its executions wait, and an attempt that fails is not counted. A
// single execution that keeps failing opens it no more than its own attempts allow:
// it takes several. Where only that one is left to try, it does not spoil the others.
type Breaker struct {
	Failures int // 0: no breaker
	Pause    time.Duration
	Max      time.Duration // of the pause
}

// breaker is a handler's breaker as it stands. Dispatcher.mu guards it.
type breaker struct {
	row   []uint64 // executions whose attempts have failed in a row
	open  bool
	since time.Time
	until time.Time
	pause time.Duration // the next one
}

// health is how a handler fares. Dispatcher.mu guards it.
type health struct {
	success time.Time // the last
	failure time.Time // the last
	since   time.Time // the first failure after the last success; zero: there was none
	text    string    // of the last failure
	told    bool      // that it is failing
}

// Health tells how a handler fares, since the start of the process.
type Health struct {
	// Failing: for FailingAfter its attempts have failed and none has succeeded.
	Failing bool
	// FailingSince is when the first attempt failed after the last that succeeded; zero
	// when the last one has succeeded.
	FailingSince time.Time
	LastSuccess  time.Time // zero: none
	LastFailure  time.Time // zero: none
	LastError    string    // of the last failure
	// Open: its breaker is, since OpenSince; the next attempt is not made before
	// OpenUntil.
	Open                 bool
	OpenSince, OpenUntil time.Time
}

// Health returns how the handlers in force fare, by id.
func (d *Dispatcher) Health() map[int]Health {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[int]Health, len(d.gates))
	for id, g := range d.gates {
		if g.cur == nil {
			continue
		}
		h, b := &g.health, &g.breaker
		x := Health{Failing: g.failing(), FailingSince: h.since, LastSuccess: h.success, LastFailure: h.failure, LastError: h.text}
		if b.open {
			x.Open, x.OpenSince, x.OpenUntil = true, b.since, b.until
		}
		all[id] = x
	}
	return all
}

func (g *gate) failing() bool {
	h := &g.health
	return !h.since.IsZero() && h.failure.Sub(h.since) >= g.cur.failingAfter()
}

// what an attempt says about the handler.
type verdict uint8

const (
	unclear verdict = iota
	alive           // it has answered, whatever it thinks of this event
	down            // it has not, or says that it cannot now
)

func verdictOf(err error, reason handler.Reason) verdict {
	switch {
	case err == nil, reason == handler.ReasonClientError:
		return alive
	case handler.IsPermanent(err):
		return unclear
	}
	return down
}

// judge draws from an attempt that has just ended what it says about the handler, and
// reports whether the attempt counts.
func (d *Dispatcher) judge(g *gate, x *execution, err error) (counts bool) {
	var notes []func()
	defer func() {
		for _, note := range notes {
			note()
		}
	}()
	d.mu.Lock()
	defer d.mu.Unlock()
	if g.cur == nil || g.cur.Handler != x.Handler {
		return true // of another definition
	}
	now := time.Now()
	if note := d.fares(g, now, err); note != nil {
		notes = append(notes, note)
	}
	b := &g.breaker
	switch verdictOf(err, x.result.Reason) {
	case unclear:
		return true
	case alive:
		b.row = b.row[:0]
		if b.open {
			b.open = false
			if g.shut {
				d.due.remove(&g.wake)
				g.shut = false
			}
			took := now.Sub(b.since)
			notes = append(notes, func() {
				d.log.Info("breaker closed: the handler answers again", "handler", g.id, "took", took)
			})
			d.offer(g)
		}
		return true
	case down:
	}
	if b.open {
		if x.probe {
			d.open(g, now, err)
		}
		return false
	}
	if x.Breaker.Failures == 0 || slices.Contains(b.row, x.id) {
		return true
	}
	if b.row = append(b.row, x.id); len(b.row) >= x.Breaker.Failures {
		b.open, b.since, b.pause = true, now, x.Breaker.Pause
		d.open(g, now, err)
		failures := len(b.row)
		notes = append(notes, func() {
			d.log.Error("breaker open: executions wait until the handler answers", "handler", g.id, "failures", failures, "err", cut(err.Error()))
		})
	}
	return true
}

// open shuts the gate for the breaker's pause, or for as long as the receiver asks.
func (d *Dispatcher) open(g *gate, now time.Time, err error) {
	b := &g.breaker
	pause := b.pause
	if asked, ok := handler.RetryDelay(err); ok {
		pause = max(pause, min(asked, maxRetryAfter))
	}
	b.pause = min(2*b.pause, max(g.cur.Breaker.Max, g.cur.Breaker.Pause))
	b.until = now.Add(pause)
	d.shut(g, d.now()+int64(pause))
}

// fares keeps how the handler fares, and returns what the log is to be told.
func (d *Dispatcher) fares(g *gate, now time.Time, err error) (note func()) {
	h := &g.health
	if err == nil {
		if since := h.since; h.told {
			note = func() { d.log.Info("handler succeeds again", "handler", g.id, "took", now.Sub(since)) }
		}
		*h = health{success: now, failure: h.failure, text: h.text}
		return note
	}
	h.failure, h.text = now, cut(err.Error())
	if h.since.IsZero() {
		h.since = now
	}
	if g.failing() && !h.told {
		h.told = true
		since, text := h.since, h.text
		note = func() { d.log.Error("handler is failing", "handler", g.id, "since", since, "err", text) }
	}
	return note
}

func (h *Handler) failingAfter() time.Duration {
	if h.FailingAfter > 0 {
		return h.FailingAfter
	}
	return DefaultFailingAfter
}
