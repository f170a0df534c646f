package dispatch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

func names(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = "lane" + strconv.Itoa(i)
	}
	return list
}

func (r *rig) count(s journal.Status) int64 {
	var n int64
	for hs, c := range r.j.Counts() {
		if hs.Status == s {
			n += c
		}
	}
	return n
}

// A lane that waits, for a retry or for a slow handler, delays no other lane.
func TestLanesAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, func(ctx context.Context, d *handler.Delivery) (handler.Result, error) {
			switch d.Event.Lane {
			case "stuck":
				return handler.Result{}, errRefused
			case "slow":
				return taking(5*time.Second)(ctx, d)
			}
			return handler.Result{}, nil
		}))
		r.start()
		r.commit("clients.update", "stuck", "slow", "a", "stuck", "slow", "b")
		sleep(time.Millisecond)
		var got []string
		for _, c := range r.calls.take() {
			got = append(got, c.lane)
		}
		slices.Sort(got)
		want(t, "lanes that were called at once", got, "a", "b", "slow", "stuck")
		sleep(time.Hour)
		if n := r.count(journal.Pending); n != 0 {
			t.Errorf("%d pending", n)
		}
		r.quiet()
	})
}

// Thousands of lanes that wait for a retry hold neither goroutines nor much memory.
func TestWaitingIsCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lanes = 2000
		r := newRig(t, handlerFor(1, failing(1), func(h *Handler) {
			h.Backoff = backoff.Schedule{List: []time.Duration{time.Hour}, Attempts: 2}
			h.Concurrency = 64
		}))
		r.start()
		sleep(time.Second)
		goroutines := runtime.NumGoroutine()
		all := names(lanes)
		for _, part := range slices.Collect(slices.Chunk(all, 500)) {
			r.commit("clients.update", part...)
			r.commit("clients.update", part...)
		}
		sleep(time.Minute)
		if n := len(r.calls.take()); n != lanes {
			t.Fatalf("%d calls, want %d", n, lanes)
		}
		if n := runtime.NumGoroutine(); n > goroutines+4 {
			t.Errorf("%d goroutines while all wait, %d before", n, goroutines)
		}
		r.d.mu.Lock()
		if r.d.workers != 0 || len(r.d.lanes) != lanes || r.d.windows != 0 {
			t.Errorf("%d workers, %d lanes, %d windows", r.d.workers, len(r.d.lanes), r.d.windows)
		}
		r.d.mu.Unlock()
		sleep(3 * time.Hour)
		if n := r.count(journal.Succeeded); n != 2*lanes {
			t.Errorf("%d succeeded, want %d", n, 2*lanes)
		}
		r.quiet()
	})
}

func TestConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := handlerFor(1, taking(time.Second), func(h *Handler) { h.Events, h.Concurrency = []string{"clients.slow"}, 3 })
		fast := handlerFor(2, taking(10*time.Millisecond), func(h *Handler) { h.Events, h.Concurrency = []string{"clients.fast"}, 2 })
		r := newRig(t, slow, fast)
		r.opts.Workers = 4
		r.start()
		r.commit("clients.slow", names(12)...)
		sleep(time.Millisecond)
		// A backlog of the slow one leaves the fast one its share.
		r.commit("clients.fast", "x0", "x1", "x2", "x3", "x4")
		sleep(100 * time.Millisecond)
		var slowLanes, fastCalls []string
		for _, c := range r.calls.take() {
			if c.handler == 1 {
				slowLanes = append(slowLanes, c.lane)
			} else {
				fastCalls = append(fastCalls, c.lane)
			}
		}
		if len(slowLanes) != 3 || len(fastCalls) != 5 {
			t.Errorf("%d slow and %d fast calls, want 3 and 5", len(slowLanes), len(fastCalls))
		}
		sleep(time.Minute)
		for _, c := range r.calls.take() {
			slowLanes = append(slowLanes, c.lane)
		}
		// First come, first served: each group of three that ran together is the next three.
		for i, lane := range slowLanes {
			n, err := strconv.Atoi(strings.TrimPrefix(lane, "lane"))
			if err != nil || n/3 != i/3 {
				t.Errorf("call %d is for %s: not in turn", i, lane)
			}
		}
		if most := slow.Call.(*peer).most; most != 3 {
			t.Errorf("%d calls of the slow handler at a time, want 3", most)
		}
		if most := fast.Call.(*peer).most; most > 2 {
			t.Errorf("%d calls of the fast handler at a time, want at most 2", most)
		}
		r.quiet()
	})
}

func TestWorkersBoundAllHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := handlerFor(1, taking(time.Second), func(h *Handler) { h.Events, h.Concurrency = []string{"clients.a"}, 100 })
		b := handlerFor(2, taking(time.Second), func(h *Handler) { h.Events, h.Concurrency = []string{"clients.b"}, 100 })
		r := newRig(t, a, b)
		r.opts.Workers = 10
		r.start()
		r.commit("clients.a", names(100)...)
		r.commit("clients.b", "x", "y", "z")
		sleep(1500 * time.Millisecond)
		var inA, inB int
		for _, c := range r.calls.take() {
			if c.handler == 1 {
				inA++
			} else {
				inB++
			}
		}
		// Ten slots in the first second, ten in the second; b's three get theirs by turns.
		if inA+inB != 20 || inB != 3 {
			t.Errorf("%d calls of a, %d of b; want 17 and 3", inA, inB)
		}
		sleep(time.Minute)
		r.quiet()
	})
}

// A rate holds lanes at the gate, not workers, and no other handler.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limited := handlerFor(1, nil, func(h *Handler) { h.Events, h.Rate, h.Burst = []string{"clients.a"}, 2, 3 })
		free := handlerFor(2, nil, func(h *Handler) { h.Events = []string{"clients.b"} })
		r := newRig(t, limited, free)
		r.opts.Workers = 1
		r.start()
		r.commit("clients.a", names(7)...)
		r.commit("clients.b", "x")
		sleep(time.Minute)
		var at []string
		for _, c := range r.calls.take() {
			if c.handler == 1 {
				at = append(at, c.at.String())
			} else if c.at != 0 {
				t.Errorf("the free handler was called after %v", c.at)
			}
		}
		want(t, "times", at, "0s", "0s", "0s", "500ms", "1s", "1.5s", "2s")
		r.quiet()
	})
}

func TestStopLetsAttemptsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handlerFor(1, taking(5*time.Second))
		r := newRig(t, h, handlerFor(2, nil))
		r.start()
		r.commit("clients.update", "a")
		sleep(time.Second)
		start := time.Now()
		r.cancel()
		<-r.ended
		if took := time.Since(start); took != 4*time.Second {
			t.Errorf("the stop took %v, want the 4s that the attempt still needed", took)
		}
		want(t, "executions", r.table(), "1 h1 a succeeded 1", "2 h2 a pending 0")
		if n := h.Call.(*peer).closes(); n != 1 {
			t.Errorf("closed %d times", n)
		}
	})
}

// An attempt that a stop has interrupted costs nothing and is made again.
func TestStopInterrupts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handlerFor(1, func(ctx context.Context, d *handler.Delivery) (handler.Result, error) {
			if d.Attempt == 1 {
				return handler.Result{}, errRefused
			}
			return taking(10*time.Second)(ctx, d)
		}, func(h *Handler) { h.Timeout = time.Minute })
		r := newRig(t, h)
		r.opts.Grace = 3 * time.Second
		r.start()
		r.commit("clients.update", "a", "a")
		sleep(2 * time.Second)
		start := time.Now()
		r.stop()
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("the stop took %v, want the grace of 3s", took)
		}
		want(t, "calls", r.calls.lines(), "0s h1 a@1 #1", "1s h1 a@1 #2")

		r.next(handlerFor(1, nil))
		r.open()
		want(t, "executions", r.table(), "1 h1 a pending 1", "2 h1 a pending 0")
		r.run()
		sleep(time.Second)
		want(t, "calls after the restart", r.calls.lines(), "5s h1 a@1 #2", "5s h1 a@1 #1")
		want(t, "executions", r.table(), "1 h1 a succeeded 2", "2 h1 a succeeded 1")
	})
}

// An attempt that ends when it is told to, with an outcome, counts.
func TestStopRecordsWhatEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, func(ctx context.Context, d *handler.Delivery) (handler.Result, error) {
			<-ctx.Done()
			return handler.Result{Code: 200}, nil
		}, func(h *Handler) { h.Timeout = time.Hour }))
		r.start()
		r.commit("clients.update", "a", "a")
		sleep(time.Second)
		r.cancel()
		<-r.ended
		want(t, "executions", r.table(), "1 h1 a succeeded 1", "2 h1 a pending 0")
	})
}

// A retry is made when it is due, also across restarts, for days.
func TestRestartKeepsSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := func() []*Handler {
			h := handlerFor(1, failing(3), func(h *Handler) {
				h.Backoff = backoff.Schedule{List: []time.Duration{time.Hour, 6 * time.Hour, 24 * time.Hour}}
			})
			a := handlerFor(2, failing(2), aside, func(h *Handler) {
				h.Backoff = backoff.Schedule{List: []time.Duration{2 * time.Hour}, Attempts: 3}
			})
			return []*Handler{h, a}
		}
		r := newRig(t, hs()...)
		r.start()
		r.commit("clients.update", "a")
		r.commit("clients.update", "a")
		restart := func() {
			r.stop()
			r.open()
			r.set(hs()...)
			r.run()
			synctest.Wait()
		}
		sleep(30 * time.Minute)
		restart()
		sleep(time.Hour) // 1h30m
		want(t, "first", r.calls.lines(), "0s h1 a@1 #1", "1h0m0s h1 a@1 #2")
		restart()
		sleep(30 * time.Hour) // 31h30m
		// At 31h the first succeeds, and the second handler begins.
		want(t, "second", r.calls.lines(),
			"7h0m0s h1 a@1 #3", "31h0m0s h1 a@1 #4", "31h0m0s h2 a@1 #1", "31h0m0s h1 a@2 #1")
		restart()
		sleep(4 * time.Hour) // 35h30m
		want(t, "third", r.calls.lines(), "32h0m0s h1 a@2 #2", "33h0m0s h2 a@1 #2", "35h0m0s h2 a@1 #3")
	})
}

// TestClockSetBack: what was written by a clock that was set back between two lives
// makes nobody wait for longer than was meant when it was written.
func TestClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := func() []*Handler {
			return []*Handler{handlerFor(1, failing(2), func(h *Handler) {
				h.Backoff = backoff.Schedule{List: []time.Duration{time.Hour, 2 * time.Hour}}
			})}
		}
		r := newRig(t, hs()...)
		r.start()
		r.commit("clients.update", "a")
		sleep(30 * time.Minute)
		r.stop()
		r.open()
		r.store.ahead = 5 * time.Hour
		r.set(hs()...)
		r.run()
		sleep(59 * time.Minute) // 1h29m
		want(t, "before", r.calls.lines(), "0s h1 a@1 #1")
		// It is read again when it is due, and its time by the journal is still to come.
		sleep(3 * time.Hour) // 4h29m
		want(t, "after", r.calls.lines(), "1h30m0s h1 a@1 #2", "3h30m0s h1 a@1 #3")
	})
}

// What is appended while the lanes of an earlier run are being found is neither
// missed nor made twice, nor before what is older.
func TestScanWhileIntakeGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, nil), handlerFor(2, nil))
		r.open()
		const n = 50
		for range 3 {
			r.commit("clients.update", names(n)...)
		}
		r.stop()
		r.next(handlerFor(1, nil), handlerFor(2, nil))
		r.open()
		r.commit("clients.update", names(2*n)...) // before Run
		r.run()
		for range 3 {
			r.commit("clients.update", names(2*n)...)
		}
		sleep(time.Minute)
		seen := map[string]int64{}
		total := 0
		for _, c := range r.calls.take() {
			at := int64(c.event.CommitLSN)*10 + int64(c.handler)
			if at <= seen[c.lane] {
				t.Errorf("lane %s: %d after %d", c.lane, at, seen[c.lane])
			}
			seen[c.lane] = at
			total++
		}
		if total != 2*(3*n+4*2*n) {
			t.Errorf("%d calls, want %d", total, 2*(3*n+4*2*n))
		}
		r.quiet()
	})
}

func TestDisabledIsHeldAndReleasedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, failing(1)), handlerFor(2, nil))
		r.start()
		r.commit("clients.update", "a") // 1, 2: fails, waits for a second
		r.commit("clients.update", "a") // 3, 4
		sleep(100 * time.Millisecond)
		r.change(1, func(h *Handler) { h.Status = Disabled })
		sleep(100 * time.Millisecond)
		want(t, "while disabled", r.table(),
			"1 h1 a held 1", "2 h2 a succeeded 1", "3 h1 a held 0", "4 h2 a succeeded 1")
		r.commit("clients.update", "a") // 5, 6: planned as held
		sleep(time.Hour)
		want(t, "an hour later", r.table(),
			"1 h1 a held 1", "2 h2 a succeeded 1", "3 h1 a held 0", "4 h2 a succeeded 1", "5 h1 a held 0", "6 h2 a succeeded 1")
		r.calls.take()

		r.change(1, func(h *Handler) { h.Status = Enabled })
		r.commit("clients.update", "a") // 7, 8: must wait for the older ones
		sleep(time.Minute)
		base := "1h0m0.2s "
		want(t, "released", r.calls.lines(),
			base+"h1 a@1 #2", base+"h1 a@2 #1", "1h0m1.2s h1 a@2 #2",
			"1h0m1.2s h1 a@3 #1", "1h0m2.2s h1 a@3 #2", "1h0m2.2s h1 a@4 #1", "1h0m3.2s h1 a@4 #2", "1h0m3.2s h2 a@4 #1")
		r.quiet()
	})
}

// A plan made while the handler was disabled, but committed after it was enabled,
// and the other way round.
func TestLatePlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, taking(time.Millisecond)))
		r.start()
		sleep(time.Second)
		enabled := r.hs
		r.change(1, func(h *Handler) { h.Status = Disabled })
		disabled := r.hs
		r.commitPlanned(enabled, "clients.update", "a", "b")
		sleep(time.Second)
		want(t, "pending for a disabled handler", r.table(), "1 h1 a held 0", "2 h1 b held 0")

		r.change(1, func(h *Handler) { h.Status = Enabled })
		sleep(time.Second)
		r.calls.take()
		r.commitPlanned(disabled, "clients.update", "a", "b")
		r.commit("clients.update", "a", "b")
		sleep(time.Second)
		var inA []string
		for _, s := range r.calls.lines() {
			if strings.Contains(s, " a@") {
				inA = append(inA, s)
			}
		}
		want(t, "held for an enabled handler", inA, "3s h1 a@2 #1", "3.001s h1 a@3 #1")

		archived := r.hs
		r.change(1, func(h *Handler) { h.Status = Archived })
		sleep(time.Second)
		r.commitPlanned(disabled, "clients.update", "a")
		r.commitPlanned(archived, "clients.update", "a")
		sleep(time.Second)
		want(t, "for an archived handler", r.table()[6:], "7 h1 a cancelled 0", "8 h1 a cancelled 0")
		r.quiet()
	})
}

func TestArchivedIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := handlerFor(1, taking(5*time.Second))
		r := newRig(t, first, handlerFor(2, nil))
		r.start()
		r.commit("clients.update", "a")
		r.commit("clients.update", "a")
		sleep(time.Second)
		r.change(1, func(h *Handler) { h.Status, h.Call = Archived, nil })
		sleep(time.Second)
		if n := first.Call.(*peer).closes(); n != 0 {
			t.Errorf("closed %d times while an attempt runs", n)
		}
		want(t, "while an attempt runs", r.table(),
			"1 h1 a pending 0", "2 h2 a pending 0", "3 h1 a pending 0", "4 h2 a pending 0")
		sleep(10 * time.Second)
		want(t, "then", r.table(),
			"1 h1 a succeeded 1", "2 h2 a succeeded 1", "3 h1 a cancelled 0", "4 h2 a succeeded 1")
		if n := first.Call.(*peer).closes(); n != 1 {
			t.Errorf("closed %d times, want once", n)
		}
		if got := testutil.ToFloat64(r.d.metrics.finished.WithLabelValues("1", "cancelled")); got != 1 {
			t.Errorf("%v cancelled in the metric, want 1", got)
		}
		r.quiet()
	})
}

func TestRemovedIsHeldUntilItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, failing(1)), handlerFor(2, nil))
		r.start()
		r.commit("clients.update", "a")
		sleep(10 * time.Millisecond)
		one, two := r.hs[0], r.hs[1]
		r.set(two)
		sleep(time.Minute)
		want(t, "removed", r.table(), "1 h1 a held 1", "2 h2 a succeeded 1")
		if n := one.Call.(*peer).closes(); n != 1 {
			t.Errorf("closed %d times, want once", n)
		}
		if n := two.Call.(*peer).closes(); n != 0 {
			t.Errorf("the one that stayed was closed %d times", n)
		}

		// Also when it goes while billhook is stopped.
		r.stop()
		r.next(handlerFor(2, nil))
		r.start()
		sleep(time.Minute)
		want(t, "after a restart", r.table(), "1 h1 a held 1", "2 h2 a succeeded 1")
		r.set(handlerFor(1, nil), r.hs[0])
		sleep(time.Minute)
		want(t, "back", r.table(), "1 h1 a succeeded 2", "2 h2 a succeeded 1")
		r.quiet()
	})
}

// Handlers whose status was changed in the file while billhook was stopped.
func TestStatusChangedWhileStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, nil), handlerFor(2, nil, func(h *Handler) { h.Status = Disabled }),
			handlerFor(3, nil), handlerFor(4, nil))
		r.open()
		r.commit("clients.update", "a", "b")
		r.stop()
		r.next(
			handlerFor(1, nil, func(h *Handler) { h.Status = Disabled }), handlerFor(2, nil),
			handlerFor(3, nil, func(h *Handler) { h.Status = Archived }),
		)
		r.start()
		sleep(time.Minute)
		want(t, "executions", r.table(),
			"1 h1 a held 0", "2 h2 a succeeded 1", "3 h3 a cancelled 0", "4 h4 a held 0",
			"5 h1 b held 0", "6 h2 b succeeded 1", "7 h3 b cancelled 0", "8 h4 b held 0")
		r.quiet()
	})
}

// A changed definition holds for what is pending; its condition, too.
func TestChangedDefinition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := handlerFor(1, failing(99))
		r := newRig(t, old)
		r.start()
		r.commit("clients.update", "a")
		r.commit("clients.update", "b")
		r.commit("clients.update", "b")
		sleep(500 * time.Millisecond)
		fresh := handlerFor(1, nil, func(h *Handler) {
			h.When = func(e *event.Event) (bool, error) { return string(e.Data) != `{"n":3}`, nil }
		})
		r.set(fresh)
		if n := old.Call.(*peer).closes(); n != 1 {
			t.Errorf("closed %d times, want once", n)
		}
		sleep(time.Minute)
		want(t, "executions", r.table(), "1 h1 a succeeded 2", "2 h1 b succeeded 2", "3 h1 b skipped 0")
		if x := r.execution(3); !strings.Contains(x.LastError, "condition") {
			t.Errorf("last error %q", x.LastError)
		}
		r.stop()
		if n := fresh.Call.(*peer).closes(); n != 1 {
			t.Errorf("closed %d times at the end, want once", n)
		}
		// Too late to be used: closed at once.
		late := handlerFor(1, nil)
		r.d.SetHandlers([]*Handler{late})
		if n := late.Call.(*peer).closes(); n != 1 {
			t.Errorf("closed %d times after the end, want once", n)
		}
	})
}

// A store that cannot write pauses dispatch; no outcome is lost, and nothing new is
// started meanwhile.
func TestStoreFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, nil), handlerFor(2, nil))
		r.start()
		sleep(time.Second)
		full := func(journal.Outcome) error { return fmt.Errorf("record: %w", journal.ErrDiskFull) }
		r.store.set(func() { r.store.record = full })
		r.commit("clients.update", "a", "b", "c", "d", "e", "f")
		sleep(time.Minute)
		n := len(r.calls.take())
		if n == 0 || n > DefaultConcurrency {
			t.Errorf("%d calls while nothing can be recorded, want 1 to %d", n, DefaultConcurrency)
		}
		r.commit("clients.update", "g")
		sleep(time.Minute)
		if more := r.calls.take(); len(more) > 0 {
			t.Errorf("calls during the pause: %v", more)
		}
		if n := r.count(journal.Pending); n != 14 {
			t.Errorf("%d pending, want 14", n)
		}
		if got := r.gauge("billhook_dispatch_paused"); got != 1 {
			t.Errorf("paused %v", got)
		}
		r.store.set(func() { r.store.record = nil })
		sleep(time.Minute)
		if m := len(r.calls.take()); n+m != 14 {
			t.Errorf("%d calls in all, want 14: each once", n+m)
		}
		if n := r.count(journal.Succeeded); n != 14 {
			t.Errorf("%d succeeded, want 14", n)
		}
		if got := r.gauge("billhook_dispatch_paused"); got != 0 {
			t.Errorf("paused %v", got)
		}
		r.quiet()
	})
}

// An outcome that cannot be recorded before the stop is given up, and the attempt
// made again.
func TestOutcomeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, nil))
		r.start()
		r.store.set(func() { r.store.record = func(journal.Outcome) error { return journal.ErrStopped } })
		r.commit("clients.update", "a")
		sleep(time.Second)
		start := time.Now()
		r.stop()
		if took := time.Since(start); took > DefaultGrace {
			t.Errorf("the stop took %v", took)
		}
		want(t, "calls", r.calls.lines(), "0s h1 a@1 #1")
		r.store.set(func() { r.store.record = nil })
		r.next(handlerFor(1, nil))
		r.start()
		sleep(time.Second)
		if n := len(r.calls.take()); n != 1 {
			t.Errorf("%d calls after the restart, want 1", n)
		}
		want(t, "executions", r.table(), "1 h1 a succeeded 1")
	})
}

func TestReadFailure(t *testing.T) {
	for _, n := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, handlerFor(1, nil))
			r.store = &brittle{}
			r.start()
			r.store.set(func() { r.store.read = func() error { return errors.New("input/output error") } })
			var table []string
			for i := range n {
				r.commit("clients.update", "a")
				table = append(table, fmt.Sprintf("%d h1 a succeeded 1", i+1))
			}
			sleep(time.Minute)
			if n := len(r.calls.take()); n != 0 {
				t.Errorf("%d calls", n)
			}
			r.store.set(func() { r.store.read = nil })
			sleep(time.Minute)
			want(t, "executions", r.table(), table...)
			r.quiet()
		})
	}
}

func TestHoldFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, failing(99)), handlerFor(2, nil))
		r.start()
		r.commit("clients.update", "a")
		r.store.set(func() { r.store.hold = func() error { return journal.ErrDiskFull } })
		sleep(100 * time.Millisecond)
		r.change(1, func(h *Handler) { h.Status = Disabled })
		sleep(time.Minute)
		want(t, "while it cannot be held", r.table(), "1 h1 a pending 1", "2 h2 a pending 0")
		r.store.set(func() { r.store.hold = nil })
		sleep(time.Minute)
		want(t, "then", r.table(), "1 h1 a held 1", "2 h2 a succeeded 1")
		r.quiet()
	})
}

// One execution whose event is gone or cannot be read does not hold up its lane for
// ever.
func TestEventGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, nil))
		r.start()
		bad := map[event.ID]error{
			testEvent(1, 1, "", "").ID: journal.ErrNotFound,
			testEvent(2, 1, "", "").ID: errors.New("checksum mismatch"),
		}
		r.store.set(func() { r.store.event = func(id event.ID) error { return bad[id] } })
		for range 3 {
			r.commit("clients.update", "a")
		}
		sleep(time.Hour)
		want(t, "executions", r.table(), "1 h1 a dead 1", "2 h1 a dead 3", "3 h1 a succeeded 1")
		if x := r.execution(2); !strings.Contains(x.LastError, "checksum") {
			t.Errorf("last error %q", x.LastError)
		}
		r.quiet()
	})
}

// An execution that someone else has ended is left alone.
func TestEndedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, taking(time.Second)))
		r.start()
		r.commit("clients.update", "a", "a")
		sleep(500 * time.Millisecond)
		o := journal.Outcome{Execution: 1, Status: journal.Skipped, Error: "by hand"}
		if _, err := r.j.Record(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		want(t, "executions", r.table(), "1 h1 a skipped 0", "2 h1 a succeeded 1")
		r.quiet()
	})
}

func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, permanent, stopOn), handlerFor(2, nil))
		r.start()
		r.commit("clients.update", "a")
		sleep(time.Second)
		want(t, "before", r.table(), "1 h1 a dead 1", "2 h2 a skipped 0")
		q, err := r.d.Replay(t.Context(), []uint64{1, 2})
		if err != nil || len(q) != 2 {
			t.Fatal(q, err)
		}
		sleep(time.Second)
		// It fails again, and stops nothing: each replay stands for itself.
		want(t, "after", r.table(), "1 h1 a dead 1", "2 h2 a skipped 0", "3 h1 a dead 1", "4 h2 a succeeded 1")
		calls := r.calls.take()
		if calls[0].event != calls[1].event || calls[0].body != calls[1].body {
			t.Errorf("the replay is another event: %v", calls)
		}
		r.quiet()
	})
}

func TestLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, failing(2)), handlerFor(2, failing(99)))
		r.start()
		sleep(time.Second)
		r.logs.take()
		r.commit("clients.update", "a")
		sleep(time.Minute)
		const e = " event=1-0/64-1 "
		want(t, "logs", r.logs.take(),
			"WARN attempt failed attempt=1 err=refused"+e+"execution=1 handler=1",
			"INFO attempt failed attempt=2 err=refused"+e+"execution=1 handler=1",
			"DEBUG execution succeeded attempt=3"+e+"execution=1 handler=1",
			"WARN attempt failed attempt=1 err=refused"+e+"execution=2 handler=2",
			"INFO attempt failed attempt=2 err=refused"+e+"execution=2 handler=2",
			"ERROR execution given up attempt=3 err=refused"+e+"execution=2 handler=2",
		)
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, failing(1)), handlerFor(2, nil))
		r.start()
		sleep(time.Second)
		problems, err := testutil.GatherAndLint(r.reg)
		if err != nil || len(problems) > 0 {
			t.Fatal(problems, err)
		}
		// 3 outcomes, 14 reasons of failure; 4 final statuses.
		if n, err := testutil.GatherAndCount(r.reg, "billhook_attempts_total"); n != 2*(2+len(handler.Reasons())) || err != nil {
			t.Errorf("%d series of attempts at the start, %v", n, err)
		}
		if n, err := testutil.GatherAndCount(r.reg, "billhook_executions_finished_total"); n != 2*4 || err != nil {
			t.Errorf("%d series of executions at the start, %v", n, err)
		}
		r.commit("clients.update", "a", "b")
		sleep(100 * time.Millisecond)
		for name, v := range map[string]float64{
			"billhook_lanes_pending": 2, "billhook_retries_scheduled": 2, "billhook_attempts_in_flight": 0,
		} {
			if got := r.gauge(name); got != v {
				t.Errorf("%s %v, want %v", name, got, v)
			}
		}
		sleep(time.Minute)
		m := r.d.metrics
		for _, c := range []struct {
			name string
			got  float64
			want float64
		}{
			{"failed", testutil.ToFloat64(m.attempts.WithLabelValues("1", "failed", "server_error")), 2},
			{"succeeded", testutil.ToFloat64(m.attempts.WithLabelValues("1", "succeeded", "")), 2},
			{"finished", testutil.ToFloat64(m.finished.WithLabelValues("1", "succeeded")), 2},
			{"finished 2", testutil.ToFloat64(m.finished.WithLabelValues("2", "succeeded")), 2},
		} {
			if c.got != c.want {
				t.Errorf("%s %v, want %v", c.name, c.got, c.want)
			}
		}
		r.set(r.hs[1])
		sleep(time.Second)
		families, err := r.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, series := range f.Metric {
				for _, l := range series.Label {
					if l.GetName() == "handler" && l.GetValue() != "2" {
						t.Errorf("%s has a series of a removed handler: %v", f.GetName(), series)
					}
				}
			}
		}
	})
}

func TestSetHandlersPanics(t *testing.T) {
	for name, hs := range map[string][]*Handler{
		"id 0":    {{ID: 0, Call: &peer{}}},
		"twice":   {{ID: 1, Call: &peer{}}, {ID: 1, Call: &peer{}}},
		"no call": {{ID: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.open()
				defer func() {
					if recover() == nil {
						t.Error("no panic")
					}
				}()
				r.d.SetHandlers(hs)
			})
		})
	}
}
