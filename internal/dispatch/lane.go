package dispatch

import (
	"errors"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
)

const (
	// windowSize is how many executions of a line are read at a time.
	windowSize = 16
	// maxWindows is how many lines that wait in a queue may keep what they have
	// read; the others read it again when it is their turn.
	maxWindows = 1024
)

// lane holds what is in memory of one lane with pending executions: where its
// main line stands and the lines beside it, never the executions themselves.
type lane struct {
	name string
	// last is the highest execution id of the lane that was announced. Higher ones
	// in the journal may not be durable yet and are left alone.
	last  uint64
	main  line
	sides []*line // one for each handler that has something to retry aside
}

// side returns the lane's side line of the handler, nil if there is none.
func (ln *lane) side(handler int) *line {
	for _, s := range ln.sides {
		if s.side == handler {
			return s
		}
	}
	return nil
}

// line is a sequence of executions that are made one after another: the main
// line of a lane, or beside it what one Aside handler has left to do. A side line
// covers the handler's pending executions up to the main line's cursor; while it
// exists the main line passes the handler's executions over to it, so that they
// stay in order.
//
// A line is in one place at a time, as its state says. While it is busy one worker
// owns it, apart from rewind; else everything is guarded by Dispatcher.mu.
type line struct {
	lane *lane
	side int // the handler of a side line; 0: the main line

	state  lineState
	cursor uint64 // executions up to this id are done with
	rewind uint64 // while busy: the lowest id that was announced behind its back; 0: none

	// id and handler are the head, the next execution to make; id 0: not known,
	// must be read. There is no head without its being announced or read.
	id      uint64
	handler int
	woken   uint64  // the head, if the time for which it waited has come; 0 once it is attempted
	window  *window // nil: the head's details are not read

	gate       *gate // the queue it is in, while queued
	next, prev *line // in that queue
	wake       wake  // while waiting
}

type lineState uint8

const (
	idle    lineState = iota // nothing pending is known; the lane lives on for a side line
	queued                   // in a gate's queue
	waiting                  // in the due heap
	busy                     // owned by a worker
)

// more reports whether the journal may hold executions of l beyond its cursor.
func (l *line) more() bool {
	if l.side != 0 {
		return l.cursor < l.lane.main.cursor
	}
	return l.cursor < l.lane.last
}

// bound is the id up to which l may read.
func (l *line) bound() uint64 {
	if l.side != 0 {
		return l.lane.main.cursor
	}
	return l.lane.last
}

// pop drops the head, which is read and done with.
func (l *line) pop() {
	l.cursor = l.id
	l.id = 0
	l.window.entries = l.window.entries[1:]
}

// window is what was read of a line: its head first.
type window struct {
	gen     uint64 // Dispatcher.gen when it was read: an older one is stale
	entries []entry
	event   *event.Event // of the head, or of an execution before it; may be nil
}

// entry is the part of an execution that an attempt needs.
type entry struct {
	id       uint64
	handler  int
	attempts int
	free     int    // attempts that do not count
	replay   bool   // a chain of its own
	deadOf   uint64 // the execution whose death it tells of; 0: none
	next     int64  // when it is due, by Dispatcher.now; 0: it is
	created  time.Time
	commit   time.Time
	event    event.ID
	typ      event.Type
}

func newEntry(x *journal.Execution) entry {
	return entry{
		id: x.ID, handler: x.Handler, attempts: x.Attempts, free: x.Uncounted,
		replay: x.ReplayOf != 0 || x.DeadOf != 0, deadOf: x.DeadOf,
		created: x.Created, commit: x.CommitTime, event: x.Event, typ: x.Type,
	}
}

// dueAt returns when x is due by d.now, 0 if it is. NextAt is by the wall clock, and where
// that was set back after the last attempt the moment is further away than was ever
// meant: x never waits for longer than was decided then.
func (d *Dispatcher) dueAt(x *journal.Execution) int64 {
	if x.NextAt.IsZero() {
		return 0
	}
	wait := time.Until(x.NextAt)
	if wait <= 0 {
		return 0
	}
	if a, err := d.store.Attempt(x.ID, x.Attempts); err == nil {
		wait = min(wait, max(delayOf(&a, x.NextAt), 0))
	}
	return d.now() + int64(wait)
}

// route says where l goes next: to a gate's queue, into the due heap until the
// given time, or, if neither, nowhere, because nothing is left. On the way it passes
// executions over to side lines. l is in no place.
func (d *Dispatcher) route(l *line, now int64) (*gate, int64) {
	d.refresh(l)
	for {
		var e *entry
		switch {
		case l.window == nil:
		case len(l.window.entries) == 0:
			d.setWindow(l, nil)
			l.id = 0
		default:
			e = &l.window.entries[0]
			l.id, l.handler = e.id, e.handler
		}
		if l.id == 0 {
			if l.more() {
				return d.loader, 0
			}
			return nil, 0
		}
		g := d.gate(l.handler)
		if l.side == 0 {
			s := l.lane.side(l.handler)
			switch {
			case s == nil && (e == nil || e.attempts == 0 || !g.aside()):
			case e == nil:
				return d.loader, 0
			default:
				l.pop()
				if s == nil {
					d.addSide(l.lane, *e)
				}
				continue
			}
		}
		switch {
		case !g.enabled():
			// It waits at the closed gate until the journal's statuses agree.
			d.unsettle(g)
			return g, 0
		case e != nil && e.next > now:
			return nil, e.next
		}
		return g, 0
	}
}

// refresh drops what l knows that is not true any more.
func (d *Dispatcher) refresh(l *line) {
	if l.rewind != 0 {
		l.cursor = min(l.cursor, l.rewind-1)
		l.rewind, l.id = 0, 0
		d.setWindow(l, nil)
	}
	if l.window != nil && l.window.gen != d.gen {
		d.setWindow(l, nil)
	}
}

// place puts l, which is in no place, where route says.
func (d *Dispatcher) place(l *line) {
	g, at := d.route(l, d.now())
	switch {
	case g != nil:
		if l.window != nil && d.windows > maxWindows {
			d.setWindow(l, nil)
		}
		l.state, l.gate = queued, g
		g.queue.push(l)
		d.offer(g)
	case at != 0:
		d.wait(l, at)
	default:
		l.state = idle
		ln := l.lane
		if l.side != 0 {
			for i, s := range ln.sides {
				if s == l {
					ln.sides = append(ln.sides[:i], ln.sides[i+1:]...)
					break
				}
			}
		}
		if ln.main.state == idle && len(ln.sides) == 0 {
			delete(d.lanes, ln.name)
		}
	}
}

// wait puts l, which is in no place, into the due heap.
func (d *Dispatcher) wait(l *line, at int64) {
	d.setWindow(l, nil)
	l.state = waiting
	if l.id != 0 {
		d.gate(l.handler).waiting++
	}
	d.sleep(&l.wake, at)
}

// unplace takes l, which is not busy, out of its place.
func (d *Dispatcher) unplace(l *line) {
	switch l.state {
	case queued:
		l.gate.queue.remove(l)
		l.gate = nil
	case waiting:
		d.due.remove(&l.wake)
		if l.id != 0 {
			d.gate(l.handler).waiting--
		}
	case idle, busy:
	}
}

// addSide makes a side line that begins with e, which its lane has passed over.
func (d *Dispatcher) addSide(ln *lane, e entry) {
	s := &line{lane: ln, side: e.handler, cursor: e.id - 1, id: e.id, handler: e.handler}
	s.wake.line = s
	d.setWindow(s, &window{gen: d.gen, entries: []entry{e}})
	ln.sides = append(ln.sides, s)
	d.place(s)
}

// setWindow replaces l's window and keeps count of them.
func (d *Dispatcher) setWindow(l *line, w *window) {
	if l.window != nil {
		d.windows--
	}
	if w != nil {
		d.windows++
	}
	l.window = w
}

// announce tells that execution id of the lane is pending and durable, and that
// others of the lane up to last may be.
func (d *Dispatcher) announce(name string, id uint64, handler int, last uint64) {
	ln := d.lanes[name]
	if ln == nil {
		ln = &lane{name: name, last: last}
		m := &ln.main
		m.lane, m.id, m.handler = ln, id, handler
		m.wake.line = m
		if d.scanned {
			m.cursor = id - 1 // all lanes with something older are in memory
		}
		d.lanes[name] = ln
		d.place(m)
		return
	}
	if id > ln.last {
		ln.last = last
		if m := &ln.main; m.state == idle {
			m.id, m.handler = id, handler
			d.place(m)
		}
		return
	}
	// Out of order: released, repeated, or found by the scan after newer ones.
	ln.last = max(ln.last, last)
	d.announceOld(&ln.main, id, handler)
	if s := ln.side(handler); s != nil {
		d.announceOld(s, id, handler)
	}
}

// announceOld tells l of an execution that is not beyond all it knows of.
func (d *Dispatcher) announceOld(l *line, id uint64, handler int) {
	switch {
	case l.state == busy:
		if l.rewind == 0 || id < l.rewind {
			l.rewind = id
		}
	case id <= l.cursor || id < l.id:
		d.unplace(l)
		d.setWindow(l, nil)
		l.cursor = min(l.cursor, id-1)
		l.id, l.handler = id, handler
		d.place(l)
	default: // behind its head, so it will be read in its turn
		d.setWindow(l, nil)
		if l.state == idle {
			d.place(l)
		}
	}
}

// forget makes l read again what it may have read too early.
func (d *Dispatcher) forget(l *line) {
	switch l.state {
	case busy:
		if l.rewind == 0 {
			l.rewind = l.cursor + 1 // read again from the cursor
		}
	case queued, waiting:
		d.unplace(l)
		d.setWindow(l, nil)
		l.id = 0
		d.place(l)
	case idle:
	}
}

// reload makes every line whose head is of the handler read it again.
func (d *Dispatcher) reload(handler int) {
	again := func(l *line) {
		if l.id != 0 && l.handler == handler && l.state != busy {
			d.forget(l)
		}
	}
	for _, ln := range d.lanes {
		for i := len(ln.sides) - 1; i >= 0; i-- {
			again(ln.sides[i])
		}
		again(&ln.main)
	}
}

// pending reads the next executions of a lane, of which the one that has been woken is
// due. If the only one that there can be is known, it is read by its id, which is cheaper
// than to look for it.
func (d *Dispatcher) pending(lane string, after, only, woken uint64) ([]entry, error) {
	var page []journal.Execution
	if only != 0 {
		x, err := d.store.Execution(only)
		if err == nil && x.Status == journal.Pending {
			page = []journal.Execution{x}
		}
		if err != nil && !errors.Is(err, journal.ErrNotFound) {
			return nil, err
		}
	}
	if page == nil {
		var err error
		if page, err = d.store.Pending(lane, after, windowSize); err != nil {
			return nil, err
		}
	}
	entries := make([]entry, len(page))
	for i := range page {
		x := &page[i]
		entries[i] = newEntry(x)
		if x.ID != woken {
			entries[i].next = d.dueAt(x)
		}
	}
	return entries, nil
}

// load reads l's head and some more, outside of the lock; l is busy. After an
// error l is as it was.
func (d *Dispatcher) load(l *line) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		d.refresh(l)
		d.setWindow(l, nil)
		after, bound, gen := l.cursor, l.bound(), d.gen
		var w *window
		for w == nil && after < bound {
			only := uint64(0)
			if d.scanned && l.id == bound && l.id > after {
				only = l.id
			}
			woken := l.woken
			d.mu.Unlock()
			page, err := d.pending(l.lane.name, after, only, woken)
			d.mu.Lock()
			if err != nil {
				return err
			}
			for i := range page {
				e := &page[i]
				if e.id > bound {
					break
				}
				if l.side != 0 && e.handler != l.side {
					continue
				}
				if w == nil {
					w = &window{gen: gen, entries: page[:0]}
				}
				w.entries = append(w.entries, *e)
			}
			if len(page) < windowSize {
				break
			}
			after = page[len(page)-1].id
		}
		if l.rewind != 0 || gen != d.gen {
			continue
		}
		if w == nil {
			l.cursor, l.id = max(l.cursor, bound), 0
		} else {
			l.id, l.handler = w.entries[0].id, w.entries[0].handler
			l.cursor = max(l.cursor, l.id-1)
			d.setWindow(l, w)
		}
		return nil
	}
}
