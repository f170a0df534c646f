package journal

import (
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
	_, x, err := j.execution(nil, id)
	return x, err
}
