package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
)

// TestWriteBack: what a successful answer wants written is written before the outcome
// is recorded; while that cannot be done the handler is called again.
func TestWriteBack(t *testing.T) {
	answering := func(a handler.Answer, err error) answer {
		return func(context.Context, *handler.Delivery) (handler.Result, error) {
			return handler.Result{Code: 200, Response: handler.Exchange{Head: []string{"200 OK"}}, Answer: a}, err
		}
	}
	data := handler.Answer{Data: json.RawMessage(`{"status":"blocked"}`)}
	for _, test := range []struct {
		name   string
		answer answer
		write  []error // of each time; the last one for all that follow
		times  int
		table  []string
		head   []string // of the first execution's last attempt
		reason handler.Reason
	}{
		{"written", answering(data, nil), []error{nil}, 1, []string{"1 h1 a succeeded 1", "2 h2 a succeeded 1"}, []string{"200 OK", "billhook-note: write-back applied"}, ""},
		{"nothing to write", answering(handler.Answer{}, nil), []error{nil}, 0, []string{"1 h1 a succeeded 1", "2 h2 a succeeded 1"}, []string{"200 OK"}, ""},
		{"of a failure", answering(data, handler.Permanent(errRefused)), []error{nil}, 0, []string{"1 h1 a dead 1", "2 h2 a succeeded 1"}, []string{"200 OK"}, handler.ReasonOther},
		{"the source is away for a while", answering(data, nil), []error{errRefused, errRefused, nil}, 3, []string{"1 h1 a succeeded 3", "2 h2 a succeeded 1"}, []string{"200 OK", "billhook-note: write-back applied"}, ""},
		{"the source is away", answering(data, nil), []error{errRefused}, 3, []string{"1 h1 a dead 3", "2 h2 a succeeded 1"}, []string{"200 OK"}, handler.ReasonWriteBack},
		{"a stop counts when it is written", answering(handler.Answer{Stop: true, Data: data.Data}, nil), []error{errRefused, nil}, 2, []string{"1 h1 a succeeded 2", "2 h2 a skipped 0"}, []string{"200 OK", "billhook-note: write-back applied"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				times := 0
				h := handlerFor(1, test.answer, func(h *Handler) {
					h.WriteBack = func(_ context.Context, e *event.Event, d json.RawMessage) (string, error) {
						if e.Object != "a" || string(d) != `{"status":"blocked"}` {
							t.Errorf("%s of %s is to be written", d, e.Object)
						}
						err := test.write[min(times, len(test.write)-1)]
						times++
						if err != nil {
							return "", err
						}
						return "write-back applied", nil
					}
				})
				r := newRig(t, h, handlerFor(2, nil))
				r.start()
				r.commit("clients.update", "a")
				sleep(time.Hour)
				want(t, "table", r.table(), test.table...)
				if times != test.times {
					t.Errorf("it was written %d times, want %d", times, test.times)
				}
				attempts, err := r.j.Attempts(1)
				if err != nil {
					t.Fatal(err)
				}
				last := attempts[len(attempts)-1]
				if !slices.Equal(last.Response.Head, test.head) || last.Reason != test.reason || last.Code != 200 {
					t.Errorf("the attempt shows %q, reason %q, code %d", last.Response.Head, last.Reason, last.Code)
				}
				r.quiet()
			})
		})
	}

	// One that a stop of the process breaks off costs nothing.
	t.Run("interrupted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, handlerFor(1, answering(data, nil), func(h *Handler) {
				h.WriteBack = func(ctx context.Context, _ *event.Event, _ json.RawMessage) (string, error) {
					<-ctx.Done()
					return "", errors.New("broken off")
				}
			}))
			r.opts.Grace = time.Second
			r.start()
			r.commit("clients.update", "a")
			sleep(time.Second)
			r.cancel()
			<-r.ended
			want(t, "table", r.table(), "1 h1 a pending 0")
		})
	})
}
