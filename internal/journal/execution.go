package journal

import (
	"context"
	"fmt"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
)

// Status is where an execution stands. The zero Status is no status.
type Status uint8

// The statuses. Pending and Held are open, the others are final.
const (
	Pending   Status = iota + 1 // to be attempted at NextAt
	Held                        // its handler is disabled
	Succeeded                   //
	Dead                        // used up its attempts or failed permanently
	Skipped                     // an earlier handler of the event's chain said stop
	Cancelled                   // its handler was archived, or a person cancelled it
)

// Statuses is every Status, in the order of their declaration.
func Statuses() []Status {
	return []Status{Pending, Held, Succeeded, Dead, Skipped, Cancelled}
}

// String returns "pending", "held", "succeeded", "dead", "skipped" or "cancelled".
func (s Status) String() string {
	switch s {
	case Pending:
		return "pending"
	case Held:
		return "held"
	case Succeeded:
		return "succeeded"
	case Dead:
		return "dead"
	case Skipped:
		return "skipped"
	case Cancelled:
		return "cancelled"
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// ParseStatus reads what String writes.
func ParseStatus(s string) (Status, error) {
	for _, st := range Statuses() {
		if st.String() == s {
			return st, nil
		}
	}
	return 0, fmt.Errorf("parse status %q: want pending, held, succeeded, dead, skipped or cancelled", s)
}

// Open reports whether an execution in this status may still be attempted.
func (s Status) Open() bool { return s == Pending || s == Held }

// Valid reports whether s is one of the statuses.
func (s Status) Valid() bool { return s >= Pending && s <= Cancelled }

// Execution is one event for one handler.
type Execution struct {
	// ID ascends in the order of commit: by event, within an event by chain.
	// IDs start at 1 and have no gaps.
	ID       uint64
	Event    event.ID
	Type     event.Type
	Object   string
	Lane     string
	Handler  int
	Priority int
	// ReplayOf is the execution that this one repeats, 0 for a first one.
	ReplayOf uint64
	// Replay is the last execution that repeats this one, 0 for none.
	Replay uint64
	// DeadOf is the execution whose end as Dead this one is to tell of, 0 for none.
	DeadOf uint64

	Status    Status
	Attempts  int       // attempts made
	Uncounted int       // those among them that the handler's limit does not count
	NextAt    time.Time // when a pending one is due; zero: at once

	Created    time.Time // when it was journaled
	Finished   time.Time // when its status became final; zero while open
	CommitTime time.Time // when the event's transaction was committed

	LastError    string
	LastReason   handler.Reason
	LastCode     int // HTTP status, exit code, gRPC code; -1: none
	LastDuration time.Duration
}

// Planned is one execution that an event shall have. The plan of an event is in
// chain order.
type Planned struct {
	Handler  int
	Priority int
	Held     bool // the handler is disabled: start as Held
}

func (p *Planned) status() Status {
	if p.Held {
		return Held
	}
	return Pending
}

// Queued names a pending execution.
type Queued struct {
	Execution uint64
	Lane      string
	Handler   int
}

// HandlerStatus is the key of Counts.
type HandlerStatus struct {
	Handler int
	Status  Status
}

// Execution returns one execution, or an error that wraps ErrNotFound.
func (j *Journal) Execution(id uint64) (Execution, error) {
	if err := j.enter(); err != nil {
		return Execution{}, err
	}
	defer j.leave()
	_, x, err := j.execution(j.db, id)
	return x, err
}

// Record stores an attempt and the new state of its execution, and of the others
// in o.Also, in one durable commit. It blocks until that is durable; concurrent
// calls share the wait for the disk. A ctx that has ended is an error; one that
// ends later is not, because the commit cannot be taken back.
//
// A person or a change of the handlers may have held or cancelled the execution
// while the attempt ran. Then the attempt is stored all the same; Succeeded and
// Dead count, and Pending leaves it held or cancelled. An execution that is
// final otherwise is an error that wraps ErrFinal, and nothing is stored.
// ErrDiskFull means that nothing was stored and that no more attempts should be
// made before there is space again: their outcomes could not be stored either.
//
// What o.OnDead has brought is returned: it is durable and not known to dispatch.
func (j *Journal) Record(ctx context.Context, o Outcome) ([]Queued, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if !o.Status.Valid() {
		return nil, fmt.Errorf("record execution %d: %v", o.Execution, o.Status)
	}
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	start := time.Now()
	e, err := j.applied(0, func(e *edit) error {
		if err := j.room(o.size(), j.o.MinFree/4); err != nil {
			return err
		}
		return e.record(&o)
	})
	if err != nil {
		return nil, fmt.Errorf("record execution %d: %w", o.Execution, err)
	}
	if err := e.wait(); err != nil {
		return nil, fmt.Errorf("record execution %d: %w", o.Execution, err)
	}
	j.metrics.commit.WithLabelValues("record").Observe(time.Since(start).Seconds())
	if len(e.queued) > 0 {
		j.raise(e.next - 1)
	}
	return e.queued, nil
}

func (o *Outcome) size() int {
	n := 512
	if o.Attempt != nil {
		n += len(o.Attempt.Request.Body) + len(o.Attempt.Response.Body)
	}
	return n
}

func (e *edit) record(o *Outcome) error {
	bk, x, err := e.j.execution(e.j.db, o.Execution)
	if err != nil {
		return err
	}
	was := x.Status
	if !was.Open() && was != Cancelled || was == Cancelled && o.Attempt == nil {
		return fmt.Errorf("%w: %v", ErrFinal, was)
	}
	now := e.j.now()
	x.LastError, x.LastReason = o.Error, o.Reason
	if a := o.Attempt; a != nil {
		if a.Number != x.Attempts+1 {
			return fmt.Errorf("attempt %d after %d attempts", a.Number, x.Attempts)
		}
		x.Attempts, x.LastCode, x.LastDuration = a.Number, a.Code, a.Duration
		if a.Uncounted {
			x.Uncounted++
		}
		if x.LastError == "" {
			x.LastError = a.Error
		}
		if x.LastReason == "" {
			x.LastReason = a.Reason
		}
		e.key = appendAttemptKey(e.key[:0], bk.number, x.ID, a.Number)
		e.val = appendAttempt(e.val[:0], a)
		if err := e.set(e.val); err != nil {
			return err
		}
	}
	// What is to be tried again stays held or cancelled.
	if !o.Status.Open() || was == Pending {
		x.Status = o.Status
	}
	x.NextAt = time.Time{}
	if x.Status.Open() {
		x.NextAt = o.NextAt
	} else if was != Cancelled || x.Status != Cancelled {
		x.Finished = now
	}
	if err := e.change(bk, was, &x); err != nil {
		return err
	}
	if t := e.tally(x.Handler); o.Attempt != nil || was != x.Status {
		if o.Attempt != nil && !o.Attempt.OK {
			t.Failed++
		}
		switch {
		case was == x.Status:
		case x.Status == Succeeded:
			t.Succeeded++
		case x.Status == Dead:
			t.Dead++
		}
	}
	if p := o.OnDead; p != nil && x.Status == Dead {
		if err := e.again(&x, Execution{Handler: p.Handler, Priority: p.Priority, DeadOf: x.ID, Status: p.status()}); err != nil {
			return err
		}
	}
	for _, c := range o.Also {
		if c.Execution == o.Execution || !c.Status.Valid() {
			return fmt.Errorf("change of execution %d to %v beside its own outcome", c.Execution, c.Status)
		}
		bk, x, err := e.j.execution(e.j.db, c.Execution)
		if err != nil {
			return err
		}
		if !x.Status.Open() {
			continue
		}
		was := x.Status
		x.Status, x.LastError = c.Status, c.Error
		if !x.Status.Open() {
			x.Finished, x.NextAt = now, time.Time{}
		}
		if err := e.change(bk, was, &x); err != nil {
			return err
		}
	}
	return nil
}
