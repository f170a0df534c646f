package dispatch

import (
	"context"
	"errors"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
)

// ErrNoHandler says that no handler in force has the id.
var ErrNoHandler = errors.New("no such handler")

// Trial is a call that was made to see what a handler does with an event.
type Trial struct {
	// Wanted is false when the handler's condition excludes the event; it is called
	// all the same.
	Wanted      bool
	WhenErr     error // of the condition
	Body        []byte
	ContentType string

	Called    bool
	Start     time.Time
	Duration  time.Duration
	Result    handler.Result
	Err       error
	Permanent bool // it would not be tried again
}

// Try calls a handler with an event, now and once, whatever its status and limits, and
// records nothing of it. Nothing is written back. With dry the payload is made and the
// handler not called. An error means that there is no such handler.
func (d *Dispatcher) Try(ctx context.Context, id int, e *event.Event, dry bool) (Trial, error) {
	d.mu.Lock()
	g := d.gates[id]
	if g == nil || g.cur == nil || d.stopped {
		d.mu.Unlock()
		return Trial{}, ErrNoHandler
	}
	c := g.use()
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		mustClose := c.unuse()
		d.mu.Unlock()
		if mustClose {
			d.closeCall(c)
		}
	}()

	return d.TryDraft(ctx, c.Handler, e, dry), nil
}

// TryDraft is Try for a definition that need not be in force.
func (d *Dispatcher) TryDraft(ctx context.Context, definition *Handler, e *event.Event, dry bool) Trial {
	h := *definition
	h.WriteBack = nil
	x := &execution{entry: entry{handler: h.ID, event: e.ID, typ: e.Type}, Handler: &h, event: e}
	t := Trial{Start: time.Now(), Result: handler.Result{Code: -1}}
	t.Wanted, t.WhenErr = h.wants(e)
	if t.Body, t.ContentType, t.Err = h.payload(e); t.Err != nil {
		t.Result.Reason, t.Permanent = handler.ReasonPayload, true
		return t
	}
	if dry || h.Call == nil {
		return t
	}
	t.Called = true
	t.Err = x.call(ctx, d.log)
	t.Duration, t.Result, t.Permanent = time.Since(t.Start), x.result, handler.IsPermanent(t.Err)
	return t
}
