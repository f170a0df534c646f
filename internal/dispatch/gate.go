package dispatch

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/billhook/billhook/internal/journal"
)

// gate is where lines wait for a handler: first come, first served. It outlives
// the definitions of its handler. All of it is guarded by Dispatcher.mu.
type gate struct {
	id  int     // of the handler
	cur *callee // nil: there is no handler with this id

	// settled: the statuses of the handler's executions in the journal agree with
	// the handler's status. Until then nothing passes the gate. rev counts the
	// reasons for unsettling it.
	settled bool
	rev     uint64
	// late: intake may still plan executions as held, by a definition that is no
	// longer in force.
	late bool

	limiter *rate.Limiter // nil: no limit
	shut    bool          // by the limiter or the breaker, until wake
	wake    wake
	breaker breaker
	health  health

	// reads: it is Dispatcher.loader, the gate of lines whose head must be read.
	reads   bool
	queue   fifo
	running int // calls being made
	active  int // lines that are busy with an execution of the handler
	waiting int // lines that wait until an execution of the handler is due

	ready bool // in Dispatcher.ready
	next  *gate

	metrics *handlerMetrics
}

// callee is one definition of a handler with the count of those who use it.
type callee struct {
	*Handler
	inflight int
	retired  bool // to be closed when nobody uses it
}

func (g *gate) enabled() bool { return g.cur != nil && g.cur.Status == Enabled }
func (g *gate) aside() bool   { return g.cur != nil && g.cur.Aside }

// open reports whether the first line of the queue may pass.
func (g *gate) open() bool {
	if g.queue.n == 0 {
		return false
	}
	return g.reads || g.settled && !g.shut && g.enabled() && g.running < g.concurrency()
}

// concurrency is how many calls may be made at a time: one while the breaker is open.
func (g *gate) concurrency() int {
	if g.breaker.open {
		return 1
	}
	return g.cur.concurrency()
}

// shut closes the gate, until the given time at least, by d.now.
func (d *Dispatcher) shut(g *gate, until int64) {
	if g.shut {
		until = max(until, g.wake.at)
		d.due.remove(&g.wake)
	}
	g.shut = true
	d.sleep(&g.wake, until)
}

// gate returns the handler's gate.
func (d *Dispatcher) gate(handler int) *gate {
	g := d.gates[handler]
	if g == nil {
		g = &gate{id: handler}
		g.wake.gate = g
		d.gates[handler] = g
	}
	return g
}

// offer puts g among those that workers look at, if a line may pass it.
func (d *Dispatcher) offer(g *gate) {
	if g.ready || !g.open() {
		return
	}
	g.ready = true
	if d.readyTail == nil {
		d.readyHead = g
	} else {
		d.readyTail.next = g
	}
	d.readyTail = g
	d.kick()
}

// kick starts a worker if there is something to do for one more.
func (d *Dispatcher) kick() {
	if d.readyHead == nil || !d.going() || d.workers >= d.maxWorkers {
		return
	}
	d.workers++
	d.wg.Go(d.work)
}

// take lets the next line pass, by turns among the open gates, and makes it busy.
// It returns nil when there is none.
func (d *Dispatcher) take() (*line, *gate) {
	for d.going() && d.readyHead != nil {
		g := d.readyHead
		if d.readyHead = g.next; d.readyHead == nil {
			d.readyTail = nil
		}
		g.ready, g.next = false, nil
		if !g.open() || !d.admit(g) {
			continue
		}
		l := g.queue.pop()
		l.state, l.gate = busy, nil
		g.running++
		g.active++
		d.offer(g)
		d.kick()
		return l, g
	}
	return nil, nil
}

// admit asks the rate limit. If it says no, the gate is shut until it says yes.
func (d *Dispatcher) admit(g *gate) bool {
	if g.limiter == nil {
		return true
	}
	now := time.Now()
	r := g.limiter.ReserveN(now, 1)
	delay := r.DelayFrom(now)
	if delay == 0 {
		return true
	}
	r.CancelAt(now)
	d.shut(g, d.now()+int64(delay))
	return false
}

// leave tells that a line which passed g has ended its call, or made none.
func (d *Dispatcher) leave(g *gate) {
	g.running--
	d.offer(g)
}

// done tells that a line which passed g is not busy with its handler any more.
func (d *Dispatcher) done(g *gate) {
	g.active--
	if !g.settled && g.active == 0 {
		signal(d.unsettled)
	}
}

// use begins to use g's definition; unuse ends it and reports whether the caller
// must close it.
func (g *gate) use() *callee {
	g.cur.inflight++
	return g.cur
}

func (c *callee) unuse() (mustClose bool) {
	c.inflight--
	return c.retired && c.inflight == 0
}

// retire tells that c is not in force any more and reports whether the caller must
// close it.
func (c *callee) retire() (mustClose bool) {
	if c == nil || c.retired {
		return false
	}
	c.retired = true
	return c.inflight == 0 && c.Call != nil
}

// unsettle closes g until the journal's statuses agree with the handler's.
func (d *Dispatcher) unsettle(g *gate) {
	g.settled = false
	g.rev++
	signal(d.unsettled)
}

// wanted is how many executions of the gate's handler have a status that does not
// agree with the handler's.
func (g *gate) wanted(counts map[journal.HandlerStatus]int64) int64 {
	pending := counts[journal.HandlerStatus{Handler: g.id, Status: journal.Pending}]
	held := counts[journal.HandlerStatus{Handler: g.id, Status: journal.Held}]
	switch {
	case g.enabled():
		return held
	case g.cur != nil && g.cur.Status == Archived:
		return pending + held
	}
	return pending
}

// fifo is a queue of lines.
type fifo struct {
	head, tail *line
	n          int
}

func (q *fifo) push(l *line) {
	l.prev, l.next = q.tail, nil
	if q.tail == nil {
		q.head = l
	} else {
		q.tail.next = l
	}
	q.tail = l
	q.n++
}

func (q *fifo) pop() *line {
	l := q.head
	q.remove(l)
	return l
}

func (q *fifo) remove(l *line) {
	if l.prev == nil {
		q.head = l.next
	} else {
		l.prev.next = l.next
	}
	if l.next == nil {
		q.tail = l.prev
	} else {
		l.next.prev = l.prev
	}
	l.prev, l.next = nil, nil
	q.n--
}

// signal wakes the one who listens on c, now or when it next does.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
