package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
)

// What a Handler's zero fields mean.
const (
	DefaultTimeout      = 10 * time.Second
	DefaultConcurrency  = 4
	DefaultFailingAfter = 10 * time.Minute
)

// Status is what the operator wants of a handler. The zero Status is Enabled.
type Status uint8

// The statuses of a handler.
const (
	Enabled  Status = iota
	Disabled        // its executions are held until it is enabled again
	Archived        // it gets no executions, and those it has are cancelled
)

// String returns "enabled", "disabled" or "archived".
func (s Status) String() string {
	switch s {
	case Enabled:
		return "enabled"
	case Disabled:
		return "disabled"
	case Archived:
		return "archived"
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// OnFailure says what a dead execution means for the rest of its event's chain.
// The zero OnFailure is Continue.
type OnFailure uint8

// What may follow a dead execution.
const (
	Continue OnFailure = iota
	Stop               // the rest of the chain is skipped
)

// Handler is one entry of handlers.yaml, ready to be called. It is immutable once
// given to SetHandlers; a change is a new Handler with the same ID.
type Handler struct {
	ID   int // at least 1; never changes, never given to another
	Name string
	Kind string // "http", "script" or "plugin", for logs
	// Events are the patterns of the event types it is for: "clients.create",
	// "clients.*" for all that begin with "clients.", or "*".
	Events   []string
	Priority int // lowest first; ties by ID
	Status   Status

	// Aside is what the operator writes as `blocking: false`: when the first
	// attempt has failed, the lane goes on and the retries are made beside it.
	// From then on nothing of that execution can stop its chain any more.
	Aside     bool
	OnFailure OnFailure
	// OnDead is the handler that is called with the event of an execution that is
	// dead, at the end of its lane; 0: none. Of such a call's own death nobody is told.
	OnDead int
	// Latest: of several executions for one object that wait in a lane only the newest
	// is made, the others are skipped.
	Latest bool

	// When judges whether the handler wants the event; nil: always. It is asked
	// when the event is planned and again before every attempt, so that a changed
	// definition holds for pending executions too: false then means skipped, an
	// error dead.
	When func(*event.Event) (bool, error)
	// Format makes the payload; nil: event.Event.AppendPayload. The same event
	// must always give the same bytes. Its error is a permanent failure.
	Format func(*event.Event) (body []byte, contentType string, err error)

	Timeout     time.Duration // of one attempt; 0: DefaultTimeout
	Backoff     backoff.Schedule
	MaxAge      time.Duration // no retry later than this after the execution was journaled; 0: no limit
	Concurrency int           // calls at a time; 0: DefaultConcurrency
	Rate        float64       // attempts per second; 0: no limit
	Burst       int           // attempts that Rate allows at once; 0: 1
	Breaker     Breaker
	// FailingAfter is for how long attempts must have failed, and none succeeded, for
	// the handler to count as failing; 0: DefaultFailingAfter.
	FailingAfter time.Duration

	// WriteBack writes what a successful answer asks for into the event's row; nil:
	// nobody does. note says to people what became of it. An error means that it could
	// not be done now: the attempt has failed and is made again, so WriteBack must know
	// what it has written before.
	WriteBack func(ctx context.Context, e *event.Event, data json.RawMessage) (note string, err error)

	// Call makes the attempts. The dispatcher owns it from SetHandlers on and
	// closes it once, when no attempt uses it any more. Two Handlers never share
	// one. It may be nil unless Status is Enabled.
	Call handler.Handler
}

// Matches reports whether one of h's patterns covers the event type.
func (h *Handler) Matches(t event.Type) bool {
	return slices.ContainsFunc(h.Events, t.Matches)
}

// wants asks When. A panic of the condition is its error.
func (h *Handler) wants(e *event.Event) (ok bool, err error) {
	if h.When == nil {
		return true, nil
	}
	defer func() {
		if p := recover(); p != nil {
			ok, err = false, fmt.Errorf("panic: %v", p)
		}
	}()
	return h.When(e)
}

// payload asks Format. A panic of the format is its error.
func (h *Handler) payload(e *event.Event) (body []byte, contentType string, err error) {
	if h.Format == nil {
		return e.AppendPayload(make([]byte, 0, 256+len(e.Data)+len(e.Changed))), "application/json", nil
	}
	defer func() {
		if p := recover(); p != nil {
			body, contentType, err = nil, "", fmt.Errorf("panic: %v", p)
		}
	}()
	return h.Format(e)
}

func (h *Handler) timeout() time.Duration {
	if h.Timeout > 0 {
		return h.Timeout
	}
	return DefaultTimeout
}

func (h *Handler) concurrency() int {
	if h.Concurrency > 0 {
		return h.Concurrency
	}
	return DefaultConcurrency
}
