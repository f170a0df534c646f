package replay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/wal"
)

// rig is replays on a real journal. It lives inside a synctest bubble.
type rig struct {
	*Replays
	t        testing.TB
	fs       *vfs.MemFS
	j        *journal.Journal
	handlers []Handler
	part     int
	mu       sync.Mutex       // held over each call of Enqueue
	told     []journal.Queued // to dispatch
	each     func()           // after each commit

	n     int // transactions
	stop  context.CancelFunc
	ended chan struct{}
}

func newRig(t testing.TB, fs *vfs.MemFS) *rig {
	r := &rig{t: t, fs: fs, handlers: []Handler{{ID: 1}, {ID: 2}, {ID: 3, Gone: true}}}
	r.open()
	t.Cleanup(func() { r.close() })
	return r
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.j, err = journal.Open(journal.Options{Path: "j", FS: r.fs, Cache: 1 << 20}); err != nil {
		r.t.Fatal(err)
	}
	r.Replays, err = New(Options{
		Journal: r.j, part: r.part,
		Handlers: func() []Handler { return r.handlers },
		Resolve: func(name string) []event.Type {
			switch name {
			case "Clients create":
				return []event.Type{"clients.create"}
			case "clients.*":
				return []event.Type{"clients.create", "clients.update"}
			}
			return nil
		},
		Enqueue: func(q []journal.Queued) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, q...)
			if r.each != nil {
				r.each()
			}
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// run works until halt.
func (r *rig) run() {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	r.stop, r.ended = stop, ended
	go func() {
		defer close(ended)
		if err := r.Run(ctx); err != nil {
			r.t.Error(err)
		}
	}()
}

func (r *rig) halt() {
	if r.stop != nil {
		r.stop()
		<-r.ended
		r.stop = nil
	}
}

func (r *rig) close() {
	r.t.Helper()
	r.halt()
	if err := r.j.Verify(context.Background(), nil); err != nil {
		r.t.Error(err)
	}
	if err := r.j.Close(); err != nil {
		r.t.Error(err)
	}
}

// plan is an event for one handler, and how it ends.
type plan struct {
	typ     event.Type
	object  string
	lane    string
	handler int
	status  journal.Status
	err     string
}

func (r *rig) commit(plans ...plan) {
	r.t.Helper()
	r.n++
	b := r.j.NewBatch()
	for i, p := range plans {
		e := &event.Event{
			ID: event.ID{Generation: 1, CommitLSN: wal.LSN(r.n * 100), Ordinal: uint32(i + 1)}, Type: p.typ, Entity: "clients",
			Object: p.object, Lane: p.lane, ObjectJSON: []byte(`"` + p.object + `"`), Data: []byte(`{}`), CommitTime: time.Now(),
		}
		if err := b.AddEvent(e, []journal.Planned{{Handler: p.handler}}); err != nil {
			r.t.Fatal(err)
		}
	}
	b.SetPosition(journal.Position{SystemID: "1", Timeline: 1, Generation: 1, CommitLSN: wal.LSN(r.n * 100)})
	wait, err := r.j.Commit(b)
	if err == nil {
		err = wait()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	last, _, err := r.j.Executions(r.t.Context(), journal.Query{Limit: len(plans)})
	if err != nil {
		r.t.Fatal(err)
	}
	for i, p := range plans {
		if !p.status.Open() {
			r.end(last[len(last)-1-i].ID, p.status, p.err)
		}
	}
}

func (r *rig) end(id uint64, s journal.Status, text string) {
	r.t.Helper()
	if _, err := r.j.Record(context.Background(), journal.Outcome{Execution: id, Status: s, Error: text}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) begin(spec Spec) Status {
	r.t.Helper()
	st, err := r.Start(r.t.Context(), spec, By{"ann", "operator"})
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// whole runs a replay to its end.
func (r *rig) whole(spec Spec) Status {
	r.t.Helper()
	st := r.begin(spec)
	r.run()
	defer r.halt()
	return r.await(st.ID)
}

func (r *rig) await(id uint64) Status {
	r.t.Helper()
	for range 10_000 {
		st, err := r.Get(id)
		if err != nil {
			r.t.Fatal(err)
		}
		if st.State.Ended() {
			return st
		}
		r.wait(time.Second)
	}
	r.t.Fatal("it does not end")
	return Status{}
}

// wait lets time go by, in the bubble's clock.
func (r *rig) wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// replays are the executions that repeat others, and what they repeat.
func (r *rig) replays() (of []uint64) {
	r.t.Helper()
	for q := (journal.Query{Oldest: true, Limit: 1000}); ; {
		page, next, err := r.j.Executions(context.Background(), q)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, x := range page {
			if x.ReplayOf != 0 {
				of = append(of, x.ReplayOf)
			}
		}
		if next == 0 {
			return of
		}
		q.After = next
	}
}

func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// scene is executions 1 to 10. Between the first five and the others lies an hour.
func scene(t testing.TB) (r *rig, between time.Time) {
	r = newRig(t, vfs.NewMem())
	r.commit(
		plan{"clients.create", "1", "1", 1, journal.Dead, "503 Service Unavailable"},
		plan{"clients.update", "1", "1", 1, journal.Dead, "503 Service Unavailable"},
		plan{"clients.update", "2", "1", 1, journal.Dead, "422: no such Tariff"},
		plan{"clients.update", "3", "3", 2, journal.Dead, "connection refused"},
		plan{"clients.update", "4", "4", 1, journal.Succeeded, ""},
	)
	between = time.Now().Add(30 * time.Minute)
	r.wait(time.Hour)
	r.commit(
		plan{"clients.update", "1", "1", 1, journal.Dead, "503 Service Unavailable"},
		plan{"clients.update", "3", "3", 2, journal.Skipped, "stopped by handler 1"},
		plan{"clients.create", "5", "5", 3, journal.Dead, "gone"},
		plan{"clients.update", "6", "6", 2, journal.Cancelled, ""},
		plan{"clients.update", "7", "7", 1, journal.Pending, ""},
	)
	return r, between
}

func TestSelection(t *testing.T) {
	type left = map[journal.Refusal]int64
	for _, c := range []struct {
		name string
		spec Spec
		want []uint64
		left left
	}{
		{"all dead letters", Spec{Filter: &Filter{}}, []uint64{1, 2, 3, 4, 6}, left{LeftHandler: 1}},
		{"of a handler", Spec{Filter: &Filter{Handler: 2}}, []uint64{4}, nil},
		{"of one that is archived", Spec{Filter: &Filter{Handler: 3}}, nil, left{LeftHandler: 1}},
		{"of one that never was", Spec{Filter: &Filter{Handler: 77}}, nil, nil},
		{"of an event type", Spec{Filter: &Filter{Event: "clients.update"}}, []uint64{2, 3, 4, 6}, nil},
		{"by its title", Spec{Filter: &Filter{Event: "Clients create"}}, []uint64{1}, left{LeftHandler: 1}},
		{"that is defined no longer", Spec{Filter: &Filter{Event: "clients.gone"}}, nil, nil},
		{"of an object", Spec{Filter: &Filter{Object: "1"}}, []uint64{1, 2, 6}, nil},
		{"of a lane", Spec{Filter: &Filter{Lane: "1"}}, []uint64{1, 2, 3, 6}, nil},
		{"by its error", Spec{Filter: &Filter{Text: "no such tariff"}}, []uint64{3}, nil},
		{"succeeded", Spec{Filter: &Filter{Status: "succeeded"}}, []uint64{5}, nil},
		{"skipped", Spec{Filter: &Filter{Status: "skipped"}}, []uint64{7}, nil},
		{"cancelled", Spec{Filter: &Filter{Status: "cancelled"}}, []uint64{9}, nil},
		{"before", Spec{Filter: &Filter{Until: time.Unix(0, 0)}}, []uint64{1, 2, 3, 4}, nil},
		{"after", Spec{Filter: &Filter{Since: time.Unix(0, 0)}}, []uint64{6}, left{LeftHandler: 1}},
		{"several at once", Spec{Filter: &Filter{Handler: 1, Event: "clients.update", Text: "503", Lane: "1"}}, []uint64{2, 6}, nil},
		{"the latest", Spec{Filter: &Filter{}, Latest: true}, []uint64{3, 4, 6}, left{LeftHandler: 1, LeftOlder: 2}},
		{"the latest of what is selected", Spec{Filter: &Filter{Until: time.Unix(0, 0)}, Latest: true}, []uint64{2, 3, 4}, left{LeftOlder: 1}},
		{"ids", Spec{IDs: []uint64{6, 1, 1, 5, 10, 99, 8}}, []uint64{1, 5, 6}, left{journal.RefusedOpen: 1, journal.RefusedGone: 1, LeftHandler: 1}},
		{"the latest of ids", Spec{IDs: []uint64{1, 2, 3, 99}, Latest: true}, []uint64{2, 3}, left{LeftOlder: 1, journal.RefusedGone: 1}},
	} {
		for _, rate := range []float64{0, 50} {
			bubble(t, fmt.Sprintf("%s, %v per second", c.name, rate), func(t *testing.T) {
				r, between := scene(t)
				spec := c.spec
				spec.Rate = rate
				if spec.Filter != nil {
					f := *spec.Filter
					if !f.Until.IsZero() {
						f.Until = between
					}
					if !f.Since.IsZero() {
						f.Since = between
					}
					spec.Filter = &f
				}
				count, err := r.Count(t.Context(), spec)
				if err != nil || !count.Complete || count.Matching != int64(len(c.want)) || !maps.Equal(count.LeftOut, c.left) {
					t.Errorf("counted before: %+v, %v", count, err)
				}
				if got := r.replays(); got != nil {
					t.Fatalf("counting has replayed %v", got)
				}
				st := r.whole(spec)
				if got := r.replays(); !slices.Equal(got, c.want) {
					t.Errorf("replayed %v, want %v", got, c.want)
				}
				if st.State != Done || st.Replayed != int64(len(c.want)) || st.Matching != st.Replayed || !maps.Equal(st.LeftOut, c.left) || st.UpTo != 10 || st.Finished == nil {
					t.Errorf("%+v", st)
				}
				var told []uint64
				for _, q := range r.told {
					told = append(told, q.Execution)
				}
				if !slices.Equal(told, st.Executions) || len(told) != len(c.want) {
					t.Errorf("dispatch was told of %v, made %v", told, st.Executions)
				}
				if by := (By{"ann", "operator"}); st.By != by {
					t.Errorf("by %+v", st.By)
				}
				// The same again finds nothing but what is new.
				spec.Rate = 0
				if st = r.whole(spec); st.Replayed != 0 {
					t.Errorf("a second time: %+v", st)
				}
				spec.Again = true
				if st = r.whole(spec); st.Replayed != int64(len(c.want)) {
					t.Errorf("again: %+v", st)
				}
			})
		}
	}
}

// TestCountInTime: one that has no time left says how far it came, and that there is more.
func TestCountInTime(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		r, _ := scene(t)
		ctx, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		if c, err := r.Count(ctx, Spec{Filter: &Filter{}}); err != nil || c.Complete || c.Matching != 0 {
			t.Errorf("%+v, %v", c, err)
		}
		gone, stop := context.WithCancel(t.Context())
		stop()
		if c, err := r.Count(gone, Spec{Filter: &Filter{}}); err == nil {
			t.Errorf("who has gone is counted for: %+v", c)
		}
	})
}

func TestInvalid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := scene(t)
		for _, c := range []struct {
			spec Spec
			want string
		}{
			{Spec{}, "say what is to be replayed"},
			{Spec{IDs: []uint64{1}, Filter: &Filter{}}, "not both"},
			{Spec{IDs: []uint64{0}}, "numbered from 1"},
			{Spec{IDs: make([]uint64, MaxIDs+1)}, "at most 1000"},
			{Spec{IDs: []uint64{1}, Rate: -1}, "rate"},
			{Spec{Filter: &Filter{Status: "pending"}}, "one that is final"},
			{Spec{Filter: &Filter{Status: "died"}}, "one that is final"},
			{Spec{Filter: &Filter{Handler: -1}}, "id of a handler"},
			{Spec{Filter: &Filter{Event: "clients.*"}}, "names 2 event types"},
			{Spec{Filter: &Filter{Text: strings.Repeat("x", 2000)}}, "longer than"},
			{Spec{Filter: &Filter{Since: time.Unix(7, 0), Until: time.Unix(7, 0)}}, "since is not before until"},
		} {
			for name, ask := range map[string]func() error{
				"start": func() error { _, err := r.Start(t.Context(), c.spec, By{}); return err },
				"count": func() error { _, err := r.Count(t.Context(), c.spec); return err },
			} {
				var invalid *InvalidError
				if err := ask(); !errors.As(err, &invalid) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s %+v: %v, want %q", name, c.spec, err, c.want)
				}
			}
		}
		if list := r.List(); len(list) != 0 {
			t.Errorf("%+v", list)
		}
		for range maxOpen {
			r.begin(Spec{IDs: []uint64{1}})
		}
		if _, err := r.Start(t.Context(), Spec{IDs: []uint64{1}}, By{}); err == nil || !strings.Contains(err.Error(), "16 replays have not ended") {
			t.Errorf("any number at a time: %v", err)
		}
	})
}

func TestOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := scene(t)
		st, err := r.One(t.Context(), 6, false, By{"ann", "operator"})
		if err != nil || st.State != Done || !slices.Equal(st.Executions, []uint64{11}) || st.Replayed != 1 || !slices.Equal(st.IDs, []uint64{6}) {
			t.Fatalf("%+v, %v", st, err)
		}
		if len(r.told) != 1 || r.told[0] != (journal.Queued{Execution: 11, Lane: "1", Handler: 1}) {
			t.Errorf("dispatch was told of %+v", r.told)
		}
		for _, c := range []struct {
			id   uint64
			want string
		}{
			{6, "execution 6 was replayed already, as execution 11;"},
			{10, "execution 10 is pending; only a final one"},
			{8, "execution 8 was for handler 3, which is archived"},
		} {
			var refused *RefusedError
			if _, err := r.One(t.Context(), c.id, false, By{}); !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d: %v", c.id, err)
			}
		}
		if _, err := r.One(t.Context(), 99, false, By{}); !errors.Is(err, journal.ErrNotFound) {
			t.Errorf("%v", err)
		}
		if st, err = r.One(t.Context(), 6, true, By{}); err != nil || !slices.Equal(st.Executions, []uint64{12}) {
			t.Errorf("again: %+v, %v", st, err)
		}
		if n := len(r.List()); n != 2 {
			t.Errorf("%d are kept", n)
		}
	})
}

// dead makes n dead letters of four lanes and two handlers.
func (r *rig) dead(n int) {
	for i := range n {
		r.commit(plan{"clients.update", fmt.Sprint(i % 9), fmt.Sprint(i % 4), 1 + i%2, journal.Dead, "x"})
	}
}

// TestRate: so many per second, from the first on, and no burst after a rest.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, vfs.NewMem())
		r.dead(200)
		st := r.begin(Spec{Filter: &Filter{}, Rate: 10})
		start := time.Now()
		var at []time.Duration
		n := 0
		r.each = func() {
			for ; n < len(r.told); n++ {
				at = append(at, time.Since(start))
			}
		}
		r.run()
		if st = r.await(st.ID); st.Replayed != 200 {
			t.Fatalf("%+v", st)
		}
		r.halt()
		for i, d := range at {
			if due := time.Duration(i+1) * 100 * time.Millisecond; d < due-300*time.Millisecond || d > due+300*time.Millisecond {
				t.Fatalf("number %d came after %s", i+1, d)
			}
		}
	})
}

// TestRests: what waits for a handler does not grow without bound, also when it is
// disabled, and the replay says so.
func TestRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, vfs.NewMem())
		r.dead(4)
		many := make([]plan, maxPending+1)
		for i := range many {
			many[i] = plan{"clients.update", "1", "1", 1, journal.Pending, ""}
		}
		r.commit(many...)
		st := r.begin(Spec{Filter: &Filter{}, Rate: 0})
		r.run()
		defer r.halt()
		r.wait(time.Hour)
		if st, _ = r.Get(st.ID); st.Replayed != 0 || !strings.Contains(st.Why, "10000 executions of handler 1 wait") {
			t.Fatalf("%+v", st)
		}
		r.end(5, journal.Succeeded, "")
		r.wait(time.Second)
		if st, _ = r.Get(st.ID); st.State != Done || st.Replayed != 4 || st.Why != "" {
			t.Fatalf("%+v", st)
		}
	})
}

// TestCancel: what was made stays made, and nothing more comes, also after a restart.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, vfs.NewMem())
		r.dead(100)
		st := r.begin(Spec{Filter: &Filter{}, Rate: 10})
		later := r.begin(Spec{Filter: &Filter{Handler: 2}, Rate: 1})
		r.run()
		r.wait(3 * time.Second)
		st, err := r.Cancel(t.Context(), st.ID)
		if err != nil || st.State != Cancelled || st.Replayed < 20 || st.Replayed > 40 {
			t.Fatalf("%+v, %v", st, err)
		}
		if later, err = r.Cancel(t.Context(), later.ID); err != nil {
			t.Fatal(err)
		}
		n := len(r.replays())
		if int64(n) != st.Replayed+later.Replayed {
			t.Fatalf("%d were made, %d and %d are told of", n, st.Replayed, later.Replayed)
		}
		r.halt()
		r.close()
		r.open()
		r.run()
		r.wait(time.Minute)
		if len(r.replays()) != n {
			t.Fatal("it goes on")
		}
		if got, err := r.Get(st.ID); err != nil || got.State != Cancelled || got.Replayed != st.Replayed {
			t.Fatalf("%+v, %v", got, err)
		}
		if again, err := r.Cancel(t.Context(), st.ID); err != nil || again.State != Cancelled {
			t.Fatalf("%+v, %v", again, err)
		}
		if _, err := r.Cancel(t.Context(), 99); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	})
}

// TestKept: so many that have ended are kept, and of those that go the oldest go.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, vfs.NewMem())
		r.dead(1)
		open := r.begin(Spec{IDs: []uint64{1}, Rate: 1})
		for range maxEnded + 20 {
			if _, err := r.One(t.Context(), 1, true, By{}); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			list := r.List()
			if len(list) != maxEnded || list[0].ID != maxEnded+21 || list[len(list)-1].ID != open.ID {
				t.Fatalf("%d are kept, from %d to %d", len(list), list[0].ID, list[len(list)-1].ID)
			}
			r.close()
			r.open()
		}
		if st, err := r.One(t.Context(), 1, true, By{}); err != nil || st.ID != maxEnded+22 {
			t.Fatalf("%+v, %v", st, err)
		}
	})
}

// TestKilled cuts the power right after each commit of a replay, and with part of what
// is on its way to the disk, and has another process go on: each dead letter is replayed
// once, in its order, and the replay's own count agrees.
func TestKilled(t *testing.T) {
	const n = 60
	for _, latest := range []bool{false, true} {
		t.Run(fmt.Sprint("latest ", latest), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := vfs.NewCrashableMem()
				r := newRig(t, fs)
				r.halt()
				r.dead(n)
				r.Replays.o.part = 4
				var clones []*vfs.MemFS
				clone := func(per int) {
					clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: per, RNG: rand.New(rand.NewPCG(uint64(len(clones)), 1))}))
				}
				r.each = func() { clone(0); clone(50) }
				st := r.begin(Spec{Filter: &Filter{}, Latest: latest, Rate: 0})
				clone(0)
				r.run()
				whole := r.await(st.ID)
				r.halt()
				want := r.replays()
				if !latest && len(want) != n || len(clones) < 2*len(want)/4 {
					t.Fatalf("%d replays, %d places to cut at", len(want), len(clones))
				}
				for i, fs := range clones {
					func() {
						r := &rig{t: t, fs: fs, handlers: r.handlers, part: 3}
						r.open()
						defer r.close()
						before := r.replays()
						if got, err := r.Get(st.ID); err != nil || got.Replayed != int64(len(before)) {
							t.Fatalf("cut %d: %+v, %v; there are %d", i, got, err, len(before))
						}
						r.run()
						got := r.await(st.ID)
						if made := r.replays(); !slices.Equal(made, want) {
							t.Fatalf("cut %d after %d: replayed %v\nwant %v", i, len(before), made, want)
						}
						if got.Replayed != whole.Replayed || !maps.Equal(got.LeftOut, whole.LeftOut) || got.By != whole.By || len(r.told) != len(want)-len(before) {
							t.Fatalf("cut %d: %+v, %d told", i, got, len(r.told))
						}
					}()
				}
				t.Logf("%d cuts", len(clones))
			})
		})
	}
}

// TestBeside: executions go on dying while a replay runs, also those it makes. None of
// those is replayed, and two replays that overlap make none twice.
func TestBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, vfs.NewMem())
		r.dead(100)
		n := 0
		r.each = func() {
			for ; n < len(r.told); n++ {
				r.end(r.told[n].Execution, journal.Dead, "again")
			}
		}
		a := r.begin(Spec{Filter: &Filter{}, Rate: 40})
		r.wait(time.Millisecond)
		r.run()
		r.wait(time.Second)
		b := r.begin(Spec{Filter: &Filter{Handler: 1}, Rate: 40})
		for _, id := range []uint64{a.ID, b.ID} {
			r.await(id)
		}
		r.halt()
		of := r.replays()
		slices.Sort(of)
		of = slices.DeleteFunc(of, func(id uint64) bool { return id > 100 })
		if len(of) != 100 || len(slices.Compact(of)) != 100 {
			t.Fatalf("%d of 100: %v", len(of), of)
		}
		// The second may have replayed what the first had made before the second began,
		// and nothing that came after.
		b, _ = r.Get(b.ID)
		for _, id := range r.replays() {
			if id > b.UpTo {
				t.Errorf("%d was replayed, %d was the newest", id, b.UpTo)
			}
		}
	})
}
