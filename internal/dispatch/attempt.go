package dispatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

const (
	// maxRetryAfter bounds the delay that a receiver may ask for, unless the
	// handler's own schedule is slower.
	maxRetryAfter = time.Hour
	// minRetryAfter keeps a receiver that asks for no delay from using up the
	// attempts at once, unless the handler's own schedule is faster.
	minRetryAfter = time.Second
	// latestPage is how many executions after one are looked through for a newer one
	// of its object.
	latestPage = 256
	// recordingPerWorker is how many outcomes may be on their way to the disk for each
	// attempt that may be made at a time.
	recordingPerWorker = 8
	// maxError bounds the text of an error in the journal, in bytes.
	maxError = 4096
)

// work makes executions until there is none to make.
func (d *Dispatcher) work() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		var l *line
		var g *gate
		if d.workers <= d.maxWorkers {
			l, g = d.take()
		}
		if l == nil {
			d.workers--
			return
		}
		d.mu.Unlock()
		d.step(l, g)
		d.mu.Lock()
	}
}

// step makes the head of l, which has passed g and is busy, and puts l where it
// goes next.
func (d *Dispatcher) step(l *line, g *gate) {
	var err error
	if l.window == nil {
		err = d.load(l)
	}

	d.mu.Lock()
	if err != nil {
		d.log.Error("cannot read what is pending in a lane", "handler", l.handler, "err", err)
		d.leave(g)
		d.done(g)
		l.id = 0
		d.wait(l, d.now()+int64(lastPause))
		d.mu.Unlock()
		return
	}
	to, _ := d.route(l, d.now())
	if to != g || g == d.loader || l.window == nil || !g.settled || g.breaker.open && g.shut || !d.going() {
		d.leave(g)
		d.done(g)
		d.place(l)
		d.mu.Unlock()
		return
	}
	c := g.use()
	e := l.window.entries[0]
	l.woken = 0
	x := &execution{entry: e, Handler: c.Handler, probe: g.breaker.open}
	d.mu.Unlock()

	x.event, x.err = d.event(l, e.event)
	if x.err == nil && x.deadOf != 0 {
		x.err = d.tellDead(x)
	}
	d.attempt(g, l, x)

	d.mu.Lock()
	d.leave(g)
	mustClose := c.unuse()
	if x.interrupted {
		// Its line stays busy: nothing may pass it any more. The rest is for the
		// next start.
		g.metrics.interrupted()
	}
	// While the outcome is on its way to the disk the worker makes other attempts, so
	// that many outcomes share a commit and a sync.
	aside := !x.interrupted && x.stop == "" && d.recording < recordingPerWorker*d.maxWorkers
	if aside {
		d.recording++
		d.wg.Add(1)
		x.outcome.Patient = l.rewind == 0 && l.bound() <= x.id
	}
	d.mu.Unlock()

	switch {
	case x.interrupted:
		d.log.Debug("attempt interrupted", "event", x.entry.event, "handler", c.ID, "execution", e.id, "attempt", e.attempts+1)
	case aside:
		x.outcome.OnDead = d.onDead(x)
		d.store.RecordThen(x.outcome, func(told []journal.Queued, err error) {
			if !definite(err) {
				// Whoever waits until the store can do it is not the one that tells.
				d.troubled(x, err)
				go func() {
					defer d.recorded()
					d.finish(l, g, x, d.insist)
				}()
				return
			}
			d.conclude(l, g, x, nil, nil, told, err)
			d.recorded()
		})
	default:
		d.finish(l, g, x, d.persist)
	}
	if mustClose {
		d.closeCall(c)
	}
}

// recorded ends the recording of an outcome that no worker waited for.
func (d *Dispatcher) recorded() {
	d.mu.Lock()
	d.recording--
	d.mu.Unlock()
	d.wg.Done()
}

// event reads the event of an execution, or finds it in l's window.
func (d *Dispatcher) event(l *line, id event.ID) (*event.Event, error) {
	if ev := l.window.event; ev != nil && ev.ID == id {
		return ev, nil
	}
	ev, err := d.store.Event(id)
	if err != nil {
		return nil, err
	}
	l.window.event = ev
	return ev, nil
}

// execution is what a worker has in hand: what it is to make, and what became of it.
type execution struct {
	entry
	*Handler
	event *event.Event
	err   error // why there is no event

	probe       bool // the handler's breaker was open when it began
	outcome     journal.Outcome
	due         int64 // if it is to be repeated, by Dispatcher.now
	result      handler.Result
	plain       []byte // the body, when it is the event's own payload
	interrupted bool   // nothing is to be recorded
	stop        string // why the rest of the chain is to be skipped; empty: it is not
}

// attempt makes one attempt, or finds that none is to be made, and decides what
// becomes of the execution.
func (d *Dispatcher) attempt(g *gate, l *line, x *execution) {
	x.outcome.Execution = x.id
	if x.err == nil {
		switch ok, err := x.wants(x.event); {
		case err != nil:
			x.outcome.Status = journal.Dead
			x.outcome.Error = cut("condition: " + err.Error())
			x.outcome.Reason = handler.ReasonOther
			x.decideStop()
			return
		case !ok:
			x.outcome.Status = journal.Skipped
			x.outcome.Error = "the handler's condition has changed and excludes this event"
			return
		}
	}
	if x.err == nil && x.Latest && !x.replay {
		// What cannot be read now is found out by the attempt.
		if newer, err := d.newer(l, x); err == nil && newer != 0 {
			x.outcome.Status = journal.Skipped
			x.outcome.Error = fmt.Sprintf("execution %d is newer and of the same object", newer)
			return
		}
	}

	a := x.newAttempt()
	x.outcome.Attempt = a
	err := x.call(d.base, d.log)
	a.Duration = time.Since(a.Start)
	if x.interrupted {
		return
	}
	a.Code, a.Request, a.Response = x.result.Code, x.result.Request, x.result.Response
	a.SentPayload = x.plain != nil && len(a.Request.Body) > 0 && bytes.Equal(a.Request.Body, x.plain)
	if x.err == nil {
		a.Uncounted = !d.judge(g, x, err)
	}
	if err == nil {
		a.OK = true
		x.outcome.Status = journal.Succeeded
	} else {
		a.Error, a.Reason, a.Permanent = cut(err.Error()), x.result.Reason, handler.IsPermanent(err)
		x.outcome.Status = journal.Dead
		if next, ok := x.retryAt(a, err); ok {
			x.outcome.Status, x.outcome.NextAt = journal.Pending, next
			x.due = d.now() + int64(delayOf(a, next))
		}
	}
	x.decideStop()
}

func (x *execution) newAttempt() *journal.Attempt {
	return &journal.Attempt{Number: x.attempts + 1, Start: time.Now(), Code: -1}
}

// call calls the handler. Its error is the attempt's; result is always filled.
func (x *execution) call(base context.Context, log *slog.Logger) (err error) {
	x.result.Code = -1
	switch {
	case errors.Is(x.err, journal.ErrNotFound):
		x.result.Reason = handler.ReasonPayload
		return handler.Permanent(fmt.Errorf("event %s is not in the journal", x.entry.event))
	case x.err != nil:
		x.result.Reason = handler.ReasonOther
		return fmt.Errorf("read event: %w", x.err)
	}
	body, contentType, err := x.payload(x.event)
	if err != nil {
		x.result.Reason = handler.ReasonPayload
		return handler.Permanent(fmt.Errorf("format payload: %w", err))
	}
	if x.Format == nil && x.deadOf == 0 {
		x.plain = body
	}

	ctx, cancel := context.WithTimeout(base, x.timeout())
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			log.Error("handler panicked", "event", x.entry.event, "handler", x.Handler.ID, "execution", x.id,
				"attempt", x.attempts+1, "err", p, "stack", string(debug.Stack()))
			x.result = handler.Result{Code: -1}
			err = fmt.Errorf("panic: %v", p)
		}
		switch {
		case err == nil:
			x.result.Reason = ""
		case errors.Is(ctx.Err(), context.Canceled):
			x.interrupted = true
		case !slices.Contains(handler.Reasons(), x.result.Reason):
			x.result.Reason = handler.ReasonOther
			if errors.Is(err, context.DeadlineExceeded) {
				x.result.Reason = handler.ReasonTimeout
			}
		}
	}()
	x.result, err = x.Call.Handle(ctx, &handler.Delivery{
		Event: x.event, HandlerID: x.Handler.ID, Name: x.Name, Attempt: x.attempts + 1,
		Body: body, ContentType: contentType,
	})
	if err == nil {
		err = x.writeBack(base)
	}
	return err
}

// writeBack obeys an answer that wants something written. It has a time of its own: the
// handler's was for the handler.
func (x *execution) writeBack(base context.Context) error {
	if x.WriteBack == nil || len(x.result.Answer.Data) == 0 {
		return nil
	}
	note, err := x.WriteBack(base, x.event, x.result.Answer.Data)
	if note != "" {
		x.result.Response.Head = append(x.result.Response.Head, "billhook-note: "+note)
	}
	switch {
	case err == nil:
	case base.Err() != nil:
		x.interrupted = true
	default:
		x.result.Reason = handler.ReasonWriteBack
	}
	return err
}

// retryAt returns when a failed attempt is to be repeated, false if it is not.
func (x *execution) retryAt(a *journal.Attempt, err error) (time.Time, bool) {
	// What was not counted does not bring the last attempt nearer.
	counted := a.Number - x.free
	if a.Uncounted {
		counted--
	}
	if a.Permanent || !a.Uncounted && counted >= x.Backoff.Limit() {
		return time.Time{}, false
	}
	delay := x.Backoff.Delay(max(counted, 1)+1, x.id)
	if asked, ok := handler.RetryDelay(err); ok {
		delay = min(max(asked, min(minRetryAfter, delay)), max(maxRetryAfter, delay))
	}
	next := a.Start.Add(a.Duration + delay).Round(0)
	if x.MaxAge > 0 && next.After(x.created.Add(x.MaxAge)) {
		return time.Time{}, false
	}
	return next, true
}

// delayOf is how long after an attempt the next one is due.
func delayOf(a *journal.Attempt, next time.Time) time.Duration {
	return next.Sub(a.Start.Add(a.Duration).Round(0))
}

// decideStop decides whether the outcome ends the event's chain.
func (x *execution) decideStop() {
	switch answer := x.result.Answer; {
	case x.replay:
	case x.outcome.Status == journal.Succeeded && answer.Stop:
		x.stop = fmt.Sprintf("stopped by the answer of handler %d", x.Handler.ID)
		if answer.Reason != "" {
			x.stop = cut(x.stop + ": " + answer.Reason)
		}
	case x.outcome.Status == journal.Dead && x.OnFailure == Stop:
		x.stop = fmt.Sprintf("stopped by the failure of handler %d", x.Handler.ID)
	}
}

// finish records the outcome, with persist or insist, and puts l where it goes next.
func (d *Dispatcher) finish(l *line, g *gate, x *execution, persist func(*execution, func() error) error) {
	var skipped []int // handlers of outcome.Also
	var frozen []*line
	if l.side != 0 {
		x.stop = "" // too late: the chain has gone on
	}
	var told []journal.Queued
	err := persist(x, func() (err error) {
		if x.stop != "" && x.outcome.Also == nil {
			rest, err := d.rest(x)
			if err != nil {
				return err
			}
			d.mu.Lock()
			rest, frozen = d.freeze(l.lane, rest)
			d.mu.Unlock()
			for _, r := range rest {
				skipped = append(skipped, r.Handler)
				x.outcome.Also = append(x.outcome.Also, journal.StatusChange{
					Execution: r.ID, Status: journal.Skipped, Error: x.stop,
				})
			}
		}
		x.outcome.OnDead = d.onDead(x)
		// An attempt that ended as the grace did still counts.
		told, err = d.store.Record(context.WithoutCancel(d.base), x.outcome)
		return err
	})
	d.conclude(l, g, x, skipped, frozen, told, err)
}

// conclude puts l where it goes next when the outcome is durable, or will never be.
// skipped are the handlers of outcome.Also, frozen the lines that waited meanwhile.
func (d *Dispatcher) conclude(l *line, g *gate, x *execution, skipped []int, frozen []*line, told []journal.Queued, err error) {
	ended := time.Now()
	final := errors.Is(err, journal.ErrFinal) || errors.Is(err, journal.ErrNotFound)
	d.report(x, err)

	d.mu.Lock()
	defer d.mu.Unlock()
	for _, q := range told {
		d.announce(q.Lane, q.Execution, q.Handler, q.Execution)
	}
	d.done(g)
	if err != nil && !final {
		return // given up at the stop; l stays busy
	}
	if err == nil {
		g.metrics.outcome(&x.outcome, ended.Sub(x.commit), x.replay)
		for _, h := range skipped {
			d.gate(h).metrics.finished(journal.Skipped, 1)
		}
	}
	switch {
	case err == nil && x.outcome.Status == journal.Pending:
		e := &l.window.entries[0]
		e.attempts++
		if x.outcome.Attempt.Uncounted {
			e.free++
		}
		e.next = x.due
	case len(x.outcome.Also) > 0:
		l.pop()
		d.setWindow(l, nil)
	default:
		l.pop()
	}
	if main := &l.lane.main; l.side != 0 && x.id > main.cursor {
		// The main line was rewound and may have read this execution before it ended.
		d.forget(main)
	}
	d.place(l)
	for _, s := range frozen {
		s.id = 0
		d.setWindow(s, nil)
		d.place(s)
	}
}

// onDead plans the execution that tells of x's death, nil when nobody is to be told.
func (d *Dispatcher) onDead(x *execution) *journal.Planned {
	if x.outcome.Status != journal.Dead || x.OnDead == 0 || x.deadOf != 0 || errors.Is(x.err, journal.ErrNotFound) {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.gates[x.OnDead]
	if g == nil || g.cur == nil || g.cur.Status == Archived {
		return nil
	}
	return &journal.Planned{Handler: x.OnDead, Priority: g.cur.Priority, Held: g.cur.Status == Disabled}
}

// tellDead gives x a copy of its event that tells of the execution that is dead.
func (d *Dispatcher) tellDead(x *execution) error {
	dead, err := d.store.Execution(x.deadOf)
	if errors.Is(err, journal.ErrNotFound) {
		dead = journal.Execution{ID: x.deadOf} // it has expired
	} else if err != nil {
		return fmt.Errorf("read dead execution %d: %w", x.deadOf, err)
	}
	e := *x.event
	e.Dead = &event.Dead{Execution: dead.ID, Handler: dead.Handler, Attempts: dead.Attempts, Reason: string(dead.LastReason), Error: dead.LastError}
	d.mu.Lock()
	if g := d.gates[dead.Handler]; g != nil && g.cur != nil {
		e.Dead.Name = g.cur.Name
	}
	d.mu.Unlock()
	x.event = &e
	return nil
}

// newer returns a pending execution of x's handler and object that comes after it in
// its lane, 0 if none of the next ones is.
func (d *Dispatcher) newer(l *line, x *execution) (uint64, error) {
	d.mu.Lock()
	last := l.lane.last
	d.mu.Unlock()
	page, err := d.store.Pending(l.lane.name, x.id, latestPage)
	for _, y := range page {
		if y.ID <= last && y.Handler == x.Handler.ID && y.Object == x.event.Object {
			return y.ID, err
		}
	}
	return 0, err
}

// rest returns the open executions of x's event that come after it in the chain.
func (d *Dispatcher) rest(x *execution) ([]journal.Execution, error) {
	var rest []journal.Execution
	for id := x.id + 1; ; id++ {
		r, err := d.store.Execution(id)
		if errors.Is(err, journal.ErrNotFound) {
			return rest, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the chain of event %s: %w", x.entry.event, err)
		}
		if r.Event != x.entry.event || r.ReplayOf != 0 || r.DeadOf != 0 {
			return rest, nil
		}
		if r.Status.Open() {
			rest = append(rest, r)
		}
	}
}

// freeze keeps the side lines of a lane from making any of rest, and takes from rest
// what they are making already. Its caller places the frozen ones again.
func (d *Dispatcher) freeze(ln *lane, rest []journal.Execution) (left []journal.Execution, frozen []*line) {
	left = rest[:0]
	for _, r := range rest {
		s := ln.side(r.Handler)
		if s != nil && s.id == r.ID {
			if s.state == busy {
				continue
			}
			d.unplace(s)
			s.state = busy
			frozen = append(frozen, s)
		}
		left = append(left, r)
	}
	return left, frozen
}

// definite reports whether asking again would change nothing.
func definite(err error) bool {
	return err == nil || errors.Is(err, journal.ErrFinal) || errors.Is(err, journal.ErrNotFound)
}

// persist calls record until the store has taken the outcome or says that it never
// will. Meanwhile nothing else is started.
func (d *Dispatcher) persist(x *execution, record func() error) error {
	err := record()
	if definite(err) {
		return err
	}
	d.troubled(x, err)
	return d.insist(x, record)
}

// troubled begins a time in which nothing is started, because the store did not take
// an outcome; insist ends it.
func (d *Dispatcher) troubled(x *execution, err error) {
	d.mu.Lock()
	d.trouble++
	first := d.trouble == 1
	d.mu.Unlock()
	if first {
		d.log.Error("dispatch pauses: the journal does not take outcomes",
			"event", x.entry.event, "handler", x.Handler.ID, "execution", x.id, "err", err)
	}
}

// insist calls record again and again until the store has taken the outcome or says
// that it never will. When a stop has used up its grace it gives up.
func (d *Dispatcher) insist(x *execution, record func() error) error {
	err := errStopped
	for p := newPause(); !definite(err) && p.wait(d.base.Done()); {
		err = record()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.trouble--; d.trouble == 0 && definite(err) {
		d.log.Info("dispatch goes on: the journal takes outcomes again")
		d.kick()
	}
	return err
}

// report logs what became of an execution.
func (d *Dispatcher) report(x *execution, err error) {
	o := &x.outcome
	level, text, problem := slog.LevelDebug, "", o.Error
	switch {
	case errors.Is(err, journal.ErrFinal), errors.Is(err, journal.ErrNotFound):
		level, text, problem = slog.LevelWarn, "execution was ended by another while an attempt was made", err.Error()
	case err != nil:
		level, text, problem = slog.LevelError, "outcome not recorded: the attempt will be made again", err.Error()
	case o.Status == journal.Succeeded:
		text = "execution succeeded"
	case o.Status == journal.Skipped:
		text = "execution skipped"
	case o.Status == journal.Dead:
		level, text = slog.LevelError, "execution given up"
	case o.Attempt.Number == 1:
		level, text = slog.LevelWarn, "attempt failed"
	default:
		level, text = slog.LevelInfo, "attempt failed"
	}
	if !d.log.Enabled(d.base, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("event", x.entry.event.String()), slog.String("type", string(x.typ)),
		slog.Int("handler", x.Handler.ID), slog.Uint64("execution", x.id),
	}
	if a := o.Attempt; a != nil {
		attrs = append(attrs, slog.Int("attempt", a.Number), slog.Duration("took", a.Duration))
		if problem == "" {
			problem = a.Error
		}
	}
	if o.Status == journal.Pending {
		attrs = append(attrs, slog.Time("next", o.NextAt))
	}
	if problem != "" {
		attrs = append(attrs, slog.String("err", problem))
	}
	d.log.LogAttrs(d.base, level, text, attrs...)
}

// cut bounds the text of an error.
func cut(s string) string {
	if len(s) <= maxError {
		return s
	}
	return s[:maxError] + "..."
}
