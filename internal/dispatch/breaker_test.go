package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

// downUntil fails until the time that has passed since the start of the rig.
func downUntil(r **rig, until time.Duration) answer {
	return func(context.Context, *handler.Delivery) (handler.Result, error) {
		if time.Since((*r).calls.start) < until {
			return handler.Result{Code: -1, Reason: handler.ReasonConnect}, errRefused
		}
		return handler.Result{Code: 200}, nil
	}
}

func withBreaker(h *Handler) {
	h.Breaker = Breaker{Failures: 5, Pause: 10 * time.Second, Max: time.Minute}
	h.Concurrency = 2
}

func lanes(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("lane%02d", i))
	}
	return all
}

// TestBreakerOutage: however long a handler is down, its executions outlive it, with few
// attempts, of which those made meanwhile are not counted; then all are made in order.
func TestBreakerOutage(t *testing.T) {
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var r *rig
			r = newRig(t, handlerFor(1, downUntil(&r, 12*time.Hour), withBreaker))
			r.start()
			r.commit("clients.update", lanes(20)...)
			r.commit("clients.archive", lanes(20)...)
			sleep(6 * time.Hour)
			if h := r.d.Health()[1]; !h.Open || !h.Failing || time.Until(h.OpenUntil) > time.Minute || h.LastError != "refused" {
				t.Errorf("after six hours: %+v", h)
			}
			if r.gauge("billhook_breaker_open") != 1 || r.gauge("billhook_handler_failing") != 1 {
				t.Error("the metrics say that all is well")
			}
			if restart {
				r.stop()
				r.next(handlerFor(1, downUntil(&r, 12*time.Hour), withBreaker))
				r.start()
			}
			sleep(7 * time.Hour)
			calls := r.calls.take()
			if n := len(calls) - 40; n > 12*60+10+10 {
				t.Errorf("%d attempts while it was down", n)
			}
			for _, x := range r.executions() {
				if x.Status != journal.Succeeded || x.Attempts-x.Uncounted > 3 || x.Attempts > 1 && x.Uncounted == 0 && x.Attempts > 3 {
					t.Errorf("execution %d is %v after %d attempts, %d not counted", x.ID, x.Status, x.Attempts, x.Uncounted)
				}
			}
			seen := map[string]int{}
			for _, c := range calls {
				n := int(c.event.CommitLSN / 100)
				if n < seen[c.lane] {
					t.Errorf("lane %s: transaction %d after %d", c.lane, n, seen[c.lane])
				}
				seen[c.lane] = n
			}
			if h := r.d.Health()[1]; h.Open || h.Failing || !h.FailingSince.IsZero() || h.LastSuccess.IsZero() {
				t.Errorf("at the end: %+v", h)
			}
			if r.gauge("billhook_breaker_open") != 0 || r.gauge("billhook_handler_failing") != 0 {
				t.Error("the metrics say that it is still down")
			}
			if !restart {
				said := strings.Join(r.logs.take(), "\n")
				for _, text := range []string{"ERROR breaker open", "INFO breaker closed", "ERROR handler is failing", "INFO handler succeeds again"} {
					if strings.Count(said, text) != 1 {
						t.Errorf("the log says %q %d times", text, strings.Count(said, text))
					}
				}
			}
			r.quiet()
		})
	}
}

// TestBreaker goes through each arrow of the breaker.
func TestBreaker(t *testing.T) {
	status := func(code int, reason handler.Reason, err error) answer {
		return func(context.Context, *handler.Delivery) (handler.Result, error) {
			return handler.Result{Code: code, Reason: reason}, err
		}
	}
	tests := []struct {
		name string
		f    answer
		n    int // events, each in a lane of its own
		open bool
		when time.Duration // it opens until then
	}{
		{"one that fails for ever uses up its attempts", failing(99), 1, false, 0},
		{"four are not enough", failing(99), 4, false, 0},
		{"five are", failing(1e6), 5, true, 10 * time.Second},
		{"a receiver that asks for more time gets it", status(429, handler.ReasonRateLimited, handler.RetryAfter(errRefused, 10*time.Minute)), 5, true, 10 * time.Minute},
		{"a receiver that refuses is there", status(400, handler.ReasonClientError, handler.Permanent(errRefused)), 9, false, 0},
		{"one that wants a request again is there", status(409, handler.ReasonClientError, errRefused), 9, false, 0},
		{"what fails for good here says nothing of the receiver", status(-1, handler.ReasonBlocked, handler.Permanent(errRefused)), 9, false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, handlerFor(1, tt.f, withBreaker, func(h *Handler) { h.Concurrency = 100 }))
				r.start()
				r.commit("clients.update", lanes(tt.n)...)
				synctest.Wait()
				h := r.d.Health()[1]
				if h.Open != tt.open || tt.open && time.Until(h.OpenUntil) != tt.when {
					t.Errorf("%+v", h)
				}
				sleep(24 * time.Hour)
				if tt.open {
					if n := len(r.calls.take()); n < 24*5 {
						t.Errorf("%d attempts in a day: nobody looks whether it is back", n)
					}
					for _, x := range r.executions() {
						if !x.Status.Open() {
							t.Errorf("execution %d is %v", x.ID, x.Status)
						}
					}
				}
				// The operator has mended the definition: it is tried at once.
				r.change(1, func(h *Handler) { h.Call = &peer{calls: r.calls, id: 1} })
				synctest.Wait()
				if h := r.d.Health()[1]; h.Open {
					t.Errorf("changed, and still %+v", h)
				}
				sleep(2 * time.Hour)
				r.quiet()
			})
		})
	}
}

// TestBreakerPoison: an event that no receiver will ever take does not keep the others
// from one that is there again.
func TestBreakerPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *rig
		r = newRig(t, handlerFor(1, func(ctx context.Context, d *handler.Delivery) (handler.Result, error) {
			if d.Event.Lane == "lane00" {
				return handler.Result{Code: 500, Reason: handler.ReasonServerError}, errors.New("poison")
			}
			return downUntil(&r, time.Hour)(ctx, d)
		}, withBreaker))
		r.start()
		r.commit("clients.update", lanes(12)...)
		sleep(3 * time.Hour)
		for _, x := range r.executions() {
			want := journal.Succeeded
			if x.Lane == "lane00" {
				want = journal.Dead
			}
			if x.Status != want {
				t.Errorf("lane %s is %v", x.Lane, x.Status)
			}
		}
		r.quiet()
	})
}

// TestFailing: only what goes on for a while is an alarm.
func TestFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, permanent), handlerFor(2, failing(99)))
		r.start()
		r.commit("clients.update", "a")
		sleep(time.Hour)
		if h := r.d.Health(); h[1].Failing || h[2].Failing || h[1].FailingSince.IsZero() || h[1].LastError != "bad request" {
			t.Errorf("one dead letter in a quiet hour: %+v", h)
		}
		r.commit("clients.update", "b")
		sleep(time.Hour)
		if h := r.d.Health(); !h[1].Failing || !h[2].Failing {
			t.Errorf("two, an hour apart: %+v", h)
		}
		r.change(1, func(h *Handler) { h.Call = &peer{calls: r.calls, id: 1} })
		r.commit("clients.update", "c")
		sleep(time.Minute)
		if h := r.d.Health()[1]; h.Failing || h.LastSuccess.IsZero() || h.LastFailure.IsZero() {
			t.Errorf("mended: %+v", h)
		}
		sleep(time.Hour)
	})
}

// TestLatest: of what waits for one object only the newest is made.
func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *rig
		latest := func(h *Handler) { h.Latest = true }
		r = newRig(t, handlerFor(1, downUntil(&r, time.Minute), latest, func(h *Handler) { h.Backoff.Initial = 2 * time.Minute }), handlerFor(2, nil))
		r.start()
		r.commit("clients.update", "a")
		synctest.Wait()
		for range 3 {
			r.commit("clients.update", "a", "b")
		}
		synctest.Wait()
		r.calls.take() // of lane b
		sleep(time.Hour)
		want(t, "calls", slices.DeleteFunc(r.calls.lines(), func(s string) bool { return strings.Contains(s, " b@") }),
			"2m0s h2 a@1 #1", "2m0s h2 a@2 #1", "2m0s h2 a@3 #1", "2m0s h1 a@4 #1", "2m0s h2 a@4 #1")
		skipped := 0
		for _, x := range r.executions() {
			switch {
			case x.Handler == 1 && x.Status == journal.Skipped && strings.Contains(x.LastError, "is newer and of the same object"):
				skipped++
			case x.Status != journal.Succeeded:
				t.Errorf("execution %d is %v: %s", x.ID, x.Status, x.LastError)
			}
		}
		if skipped != 5 {
			t.Errorf("%d are skipped", skipped)
		}
		// Who asks for a replay gets it.
		if _, err := r.d.Replay(t.Context(), []uint64{1, 3}); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		want(t, "replays", r.calls.lines(), "1h0m0s h1 a@1 #1", "1h0m0s h1 a@2 #1")
		r.quiet()
	})
}

// TestOnDead: who is named in on_dead is called with the event and with what became of
// it, once, at the end of the lane, also after a restart.
func TestOnDead(t *testing.T) {
	tells := func(id int) func(h *Handler) { return func(h *Handler) { h.OnDead = id } }
	silent := func(h *Handler) { h.Events = nil }
	t.Run("told", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, handlerFor(1, failing(99), tells(3)), handlerFor(2, nil), handlerFor(3, failing(1), silent, tells(1)))
			r.start()
			r.commit("clients.update", "a")
			sleep(5 * time.Second)
			r.commit("clients.archive", "a")
			sleep(time.Hour)
			calls := r.calls.take()
			i := slices.IndexFunc(calls, func(c call) bool { return c.handler == 3 })
			if i < 0 || calls[i].at != 22*time.Second || calls[i].event.CommitLSN != 100 {
				t.Fatalf("%+v", calls)
			}
			if body, want := calls[i].body, `"dead":{"execution":1,"handler":1,"name":"handler 1","attempts":3,"reason":"server_error","error":"refused"}}`; !strings.HasSuffix(body, want) {
				t.Errorf("%s\nwants %s", body, want)
			}
			want(t, "table", r.table(), "1 h1 a dead 3", "2 h2 a succeeded 1", "3 h1 a dead 3", "4 h2 a succeeded 1", "5 h3 a succeeded 2", "6 h3 a succeeded 2")
			if x := r.execution(6); x.DeadOf != 3 {
				t.Errorf("%+v", x)
			}
			r.quiet()
		})
	})
	t.Run("held, and of no death of its own", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, handlerFor(1, permanent, tells(3)), handlerFor(3, failing(99), silent, tells(1), func(h *Handler) { h.Status = Disabled }))
			r.start()
			r.commit("clients.update", "a")
			sleep(time.Hour)
			want(t, "table", r.table(), "1 h1 a dead 1", "2 h3 a held 0")
			r.stop()
			r.next(handlerFor(1, permanent, tells(3)), handlerFor(3, failing(99), silent, tells(1)))
			r.start()
			sleep(time.Hour)
			want(t, "table", r.table(), "1 h1 a dead 1", "2 h3 a dead 3")
			r.quiet()
		})
	})
	t.Run("archived or gone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, handlerFor(1, permanent, tells(3)), handlerFor(2, permanent, tells(9)), handlerFor(3, nil, silent, func(h *Handler) { h.Status = Archived }))
			r.start()
			r.commit("clients.update", "a")
			sleep(time.Hour)
			want(t, "table", r.table(), "1 h1 a dead 1", "2 h2 a dead 1")
			r.quiet()
		})
	})
}
