package dispatch

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
)

func permanent(context.Context, *handler.Delivery) (handler.Result, error) {
	return handler.Result{Code: 400, Reason: handler.ReasonClientError}, handler.Permanent(errors.New("bad request"))
}

func veto(context.Context, *handler.Delivery) (handler.Result, error) {
	return handler.Result{Code: 200, Answer: handler.Answer{Stop: true, Reason: "enough"}}, nil
}

func aside(h *Handler)  { h.Aside = true }
func stopOn(h *Handler) { h.OnFailure = Stop }
func slower(h *Handler) { h.Backoff.Initial = 3 * time.Second }

// TestChains commits one event, or two of the same lane, for a chain of handlers and
// looks at every call and at what became of every execution.
func TestChains(t *testing.T) {
	tests := []struct {
		name   string
		hs     []*Handler
		events int
		calls  []string
		table  []string
	}{
		{
			name: "success goes on", events: 2,
			hs:    []*Handler{handlerFor(1, nil), handlerFor(2, nil)},
			calls: []string{"0s h1 a@1 #1", "0s h2 a@1 #1", "0s h1 a@2 #1", "0s h2 a@2 #1"},
			table: []string{"1 h1 a succeeded 1", "2 h2 a succeeded 1", "3 h1 a succeeded 1", "4 h2 a succeeded 1"},
		},
		{
			name: "a retry holds up the chain and the lane", events: 2,
			hs: []*Handler{handlerFor(1, failing(2)), handlerFor(2, nil)},
			calls: []string{
				"0s h1 a@1 #1", "1s h1 a@1 #2", "11s h1 a@1 #3", "11s h2 a@1 #1",
				"11s h1 a@2 #1", "12s h1 a@2 #2", "22s h1 a@2 #3", "22s h2 a@2 #1",
			},
			table: []string{"1 h1 a succeeded 3", "2 h2 a succeeded 1", "3 h1 a succeeded 3", "4 h2 a succeeded 1"},
		},
		{
			name: "used up attempts: dead, and the chain goes on", events: 1,
			hs:    []*Handler{handlerFor(1, failing(99)), handlerFor(2, nil)},
			calls: []string{"0s h1 a@1 #1", "1s h1 a@1 #2", "11s h1 a@1 #3", "11s h2 a@1 #1"},
			table: []string{"1 h1 a dead 3", "2 h2 a succeeded 1"},
		},
		{
			name: "permanent failure: dead at once", events: 1,
			hs:    []*Handler{handlerFor(1, permanent), handlerFor(2, nil)},
			calls: []string{"0s h1 a@1 #1", "0s h2 a@1 #1"},
			table: []string{"1 h1 a dead 1", "2 h2 a succeeded 1"},
		},
		{
			name: "on_failure stop skips the rest of this event only", events: 2,
			hs: []*Handler{handlerFor(1, func(ctx context.Context, d *handler.Delivery) (handler.Result, error) {
				if d.Event.ID.CommitLSN == 100 {
					return permanent(ctx, d)
				}
				return handler.Result{}, nil
			}, stopOn), handlerFor(2, nil), handlerFor(3, nil)},
			calls: []string{"0s h1 a@1 #1", "0s h1 a@2 #1", "0s h2 a@2 #1", "0s h3 a@2 #1"},
			table: []string{
				"1 h1 a dead 1", "2 h2 a skipped 0", "3 h3 a skipped 0",
				"4 h1 a succeeded 1", "5 h2 a succeeded 1", "6 h3 a succeeded 1",
			},
		},
		{
			name: "an answer stops the chain", events: 1,
			hs:    []*Handler{handlerFor(1, nil), handlerFor(2, veto), handlerFor(3, nil), handlerFor(4, nil)},
			calls: []string{"0s h1 a@1 #1", "0s h2 a@1 #1"},
			table: []string{"1 h1 a succeeded 1", "2 h2 a succeeded 1", "3 h3 a skipped 0", "4 h4 a skipped 0"},
		},
		{
			name: "a stop skips what is held, too", events: 1,
			hs: []*Handler{
				handlerFor(1, veto),
				handlerFor(2, nil, func(h *Handler) { h.Status = Disabled }),
			},
			calls: []string{"0s h1 a@1 #1"},
			table: []string{"1 h1 a succeeded 1", "2 h2 a skipped 0"},
		},
		{
			name: "aside: the lane goes on after the first failure, and the handler keeps its order", events: 2,
			hs: []*Handler{handlerFor(1, failing(2), aside), handlerFor(2, nil)},
			calls: []string{
				"0s h1 a@1 #1", "0s h2 a@1 #1", "0s h2 a@2 #1",
				"1s h1 a@1 #2", "11s h1 a@1 #3", "11s h1 a@2 #1", "12s h1 a@2 #2", "22s h1 a@2 #3",
			},
			table: []string{"1 h1 a succeeded 3", "2 h2 a succeeded 1", "3 h1 a succeeded 3", "4 h2 a succeeded 1"},
		},
		{
			name: "aside: what has gone aside stops nothing", events: 1,
			hs: []*Handler{handlerFor(1, failing(99), aside, stopOn), handlerFor(2, failing(1), slower), handlerFor(3, nil)},
			calls: []string{
				"0s h1 a@1 #1", "0s h2 a@1 #1", "1s h1 a@1 #2", "3s h2 a@1 #2", "3s h3 a@1 #1", "11s h1 a@1 #3",
			},
			table: []string{"1 h1 a dead 3", "2 h2 a succeeded 2", "3 h3 a succeeded 1"},
		},
		{
			name: "aside: a first attempt that fails for good does stop", events: 1,
			hs:    []*Handler{handlerFor(1, permanent, aside, stopOn), handlerFor(2, nil)},
			calls: []string{"0s h1 a@1 #1"},
			table: []string{"1 h1 a dead 1", "2 h2 a skipped 0"},
		},
		{
			name: "aside: two handlers have their own lines", events: 2,
			hs: []*Handler{handlerFor(1, failing(1), aside), handlerFor(2, failing(2), aside, slower), handlerFor(3, nil)},
			calls: []string{
				"0s h1 a@1 #1", "0s h2 a@1 #1", "0s h3 a@1 #1", "0s h3 a@2 #1",
				"1s h1 a@1 #2", "1s h1 a@2 #1", "2s h1 a@2 #2",
				"3s h2 a@1 #2", "33s h2 a@1 #3", "33s h2 a@2 #1", "36s h2 a@2 #2", "1m6s h2 a@2 #3",
			},
			table: []string{
				"1 h1 a succeeded 2", "2 h2 a succeeded 3", "3 h3 a succeeded 1",
				"4 h1 a succeeded 2", "5 h2 a succeeded 3", "6 h3 a succeeded 1",
			},
		},
		{
			name: "a panic is a failed attempt", events: 1,
			hs: []*Handler{handlerFor(1, func(_ context.Context, d *handler.Delivery) (handler.Result, error) {
				if d.Attempt == 1 {
					panic("nil map")
				}
				return handler.Result{}, nil
			})},
			calls: []string{"0s h1 a@1 #1", "1s h1 a@1 #2"},
			table: []string{"1 h1 a succeeded 2"},
		},
		{
			name: "the timeout ends an attempt", events: 1,
			hs: []*Handler{handlerFor(1, func(ctx context.Context, d *handler.Delivery) (handler.Result, error) {
				if d.Attempt == 1 {
					return taking(time.Hour)(ctx, d)
				}
				return handler.Result{}, nil
			}, func(h *Handler) { h.Timeout = 7 * time.Second })},
			calls: []string{"0s h1 a@1 #1", "8s h1 a@1 #2"},
			table: []string{"1 h1 a succeeded 2"},
		},
		{
			name: "the receiver chooses the delay", events: 1,
			hs: []*Handler{handlerFor(1, func(_ context.Context, d *handler.Delivery) (handler.Result, error) {
				if d.Attempt == 1 {
					return handler.Result{}, handler.RetryAfter(errRefused, 90*time.Second)
				}
				return handler.Result{}, nil
			})},
			calls: []string{"0s h1 a@1 #1", "1m30s h1 a@1 #2"},
			table: []string{"1 h1 a succeeded 2"},
		},
		{
			name: "no payload: dead at once", events: 1,
			hs: []*Handler{
				handlerFor(1, nil, func(h *Handler) {
					h.Format = func(*event.Event) ([]byte, string, error) { return nil, "", errors.New("no such column") }
				}),
				handlerFor(2, nil, func(h *Handler) {
					h.Format = func(*event.Event) ([]byte, string, error) { panic("index out of range") }
				}),
			},
			table: []string{"1 h1 a dead 1", "2 h2 a dead 1"},
		},
		{
			name: "a condition that cannot be judged: dead without a call", events: 1,
			hs: []*Handler{
				handlerFor(1, nil, func(h *Handler) {
					h.When = func(*event.Event) (bool, error) { return false, errors.New("no such key") }
				}),
				handlerFor(2, nil),
			},
			calls: []string{"0s h2 a@1 #1"},
			table: []string{"1 h1 a dead 0", "2 h2 a succeeded 1"},
		},
		{
			name: "max_age ends the retries", events: 1,
			hs: []*Handler{handlerFor(1, failing(99), func(h *Handler) {
				h.MaxAge = 35 * time.Second
				h.Backoff = backoff.Schedule{List: []time.Duration{10 * time.Second}, Attempts: 100}
			})},
			calls: []string{"0s h1 a@1 #1", "10s h1 a@1 #2", "20s h1 a@1 #3", "30s h1 a@1 #4"},
			table: []string{"1 h1 a dead 4"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, tt.hs...)
				r.start()
				for range tt.events {
					r.commit("clients.update", "a")
				}
				sleep(10 * time.Minute)
				calls := r.calls.lines()
				want(t, "calls", calls, tt.calls...)
				want(t, "executions", r.table(), tt.table...)
				r.quiet()
			})
		})
	}
}

func TestRetryAt(t *testing.T) {
	start := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	schedule := backoff.Schedule{List: []time.Duration{10 * time.Second, 2 * time.Hour}, Attempts: 3}
	tests := []struct {
		name    string
		attempt int
		maxAge  time.Duration
		err     error
		delay   time.Duration // -1: none
	}{
		{"first", 1, 0, errRefused, 10 * time.Second},
		{"second", 2, 0, errRefused, 2 * time.Hour},
		{"last", 3, 0, errRefused, -1},
		{"permanent", 1, 0, handler.Permanent(errRefused), -1},
		{"longer than the schedule", 1, 0, handler.RetryAfter(errRefused, time.Minute), time.Minute},
		{"shorter than the schedule", 1, 0, handler.RetryAfter(errRefused, 3*time.Second), 3 * time.Second},
		{"none at all", 1, 0, handler.RetryAfter(errRefused, 0), time.Second},
		{"absurd", 1, 0, handler.RetryAfter(errRefused, 1000*time.Hour), time.Hour},
		{"absurd, but the schedule is slower", 2, 0, handler.RetryAfter(errRefused, 1000*time.Hour), 2 * time.Hour},
		{"asked for, but the last", 3, 0, handler.RetryAfter(errRefused, time.Minute), -1},
		{"young enough", 1, 15 * time.Second, errRefused, 10 * time.Second},
		{"too old", 1, 14 * time.Second, errRefused, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := &execution{
				entry:   entry{id: 1, attempts: tt.attempt - 1, created: start.Add(-3 * time.Second)},
				Handler: &Handler{ID: 1, Backoff: schedule, MaxAge: tt.maxAge},
			}
			a := x.newAttempt()
			a.Start, a.Duration, a.Permanent = start, 2*time.Second, handler.IsPermanent(tt.err)
			next, ok := x.retryAt(a, tt.err)
			got := next.Sub(start.Add(2 * time.Second))
			if !ok {
				got = -1
			}
			if got != tt.delay {
				t.Errorf("delay %v, want %v", got, tt.delay)
			}
		})
	}
}
