package journal

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/billhook/billhook/internal/event"
)

// TestRecordGroup: outcomes that come while one is on its way to the disk are stored
// together, and each has the end that it would have alone.
func TestRecordGroup(t *testing.T) {
	j := open(t, nil)
	transaction(t, j, 1, "clients.update", []string{"1", "2", "3", "4", "5", "6", "7"}, 1, 2)
	ok := func(number int) *Attempt { return &Attempt{Number: number, OK: true, Code: 200} }
	record(t, j, Outcome{Execution: 3, Status: Skipped})

	first := make(chan struct{})
	hold := make(chan struct{})
	// Its end is told by the goroutine that stores outcomes, so the others wait.
	j.RecordThen(Outcome{Execution: 1, Attempt: ok(1), Status: Succeeded}, func([]Queued, error) {
		close(first)
		<-hold
	})
	<-first
	cases := []struct {
		o    Outcome
		want error  // nil: none, or text
		text string // of an error that is no other
		told int
	}{
		{o: Outcome{Execution: 2, Attempt: ok(1), Status: Succeeded}},
		{o: Outcome{Execution: 99, Attempt: ok(1), Status: Succeeded}, want: ErrNotFound},
		{o: Outcome{Execution: 3, Attempt: ok(1), Status: Succeeded}, want: ErrFinal},
		// Two of one execution.
		{o: Outcome{Execution: 4, Attempt: &Attempt{Number: 1, Code: 500}, Status: Pending, NextAt: epoch}},
		{o: Outcome{Execution: 4, Attempt: ok(2), Status: Succeeded}},
		{o: Outcome{Execution: 5, Attempt: ok(2), Status: Succeeded}, text: "attempt 2 after 0 attempts"},
		{o: Outcome{Execution: 5, Attempt: &Attempt{Number: 1}, Status: Dead, OnDead: &Planned{Handler: 7}}, told: 1},
		{o: Outcome{Execution: 7, Attempt: ok(1), Status: Succeeded, Also: []StatusChange{{Execution: 8, Status: Skipped, Error: "stopped"}}}},
		{o: Outcome{Execution: 8, Attempt: ok(1), Status: Succeeded}, want: ErrFinal},
		{o: Outcome{Execution: 9, Attempt: ok(1), Status: Succeeded}},
	}
	var wg sync.WaitGroup
	run := func(cases []struct {
		o    Outcome
		want error
		text string
		told int
	},
	) {
		for _, tc := range cases {
			wg.Add(1)
			j.RecordThen(tc.o, func(told []Queued, err error) {
				defer wg.Done()
				switch {
				case tc.text != "":
					if err == nil || !strings.Contains(err.Error(), tc.text) {
						t.Errorf("execution %d: %v, want %q", tc.o.Execution, err, tc.text)
					}
				case !errors.Is(err, tc.want):
					t.Errorf("execution %d: %v, want %v", tc.o.Execution, err, tc.want)
				}
				if len(told) != tc.told {
					t.Errorf("execution %d: told of %v, want %d", tc.o.Execution, told, tc.told)
				}
			})
		}
	}
	run(cases)
	close(hold)
	wg.Wait()
	for id, want := range map[uint64]Status{1: Succeeded, 2: Succeeded, 3: Skipped, 4: Succeeded, 5: Dead, 6: Pending, 7: Succeeded, 8: Skipped, 9: Succeeded, 15: Pending} {
		if x := execution(t, j, id); x.Status != want {
			t.Errorf("execution %d is %v, want %v", id, x.Status, want)
		}
	}
	if x := execution(t, j, 4); x.Attempts != 2 {
		t.Errorf("execution 4 has %d attempts, want 2", x.Attempts)
	}
	verify(t, j)

	// One of a group that fails with something written already: the others are stored all the same.
	first, hold = make(chan struct{}), make(chan struct{})
	j.RecordThen(Outcome{Execution: 10, Attempt: ok(1), Status: Succeeded}, func([]Queued, error) {
		close(first)
		<-hold
	})
	<-first
	cases = cases[:0]
	for _, id := range []uint64{11, 12, 13} {
		o := Outcome{Execution: id, Attempt: ok(1), Status: Succeeded}
		text := ""
		if id == 12 {
			o.Also, text = []StatusChange{{Execution: 12, Status: Skipped}}, "beside its own outcome"
		}
		cases = append(cases, struct {
			o    Outcome
			want error
			text string
			told int
		}{o: o, text: text})
	}
	run(cases)
	close(hold)
	wg.Wait()
	for id, want := range map[uint64]Status{10: Succeeded, 11: Succeeded, 12: Pending, 13: Succeeded} {
		if x := execution(t, j, id); x.Status != want {
			t.Errorf("execution %d is %v, want %v", id, x.Status, want)
		}
	}
	verify(t, j)
}

// TestRecordCloses: what was handed over before Close is stored or refused, never
// forgotten.
func TestRecordCloses(t *testing.T) {
	for range 20 {
		j := open(t, nil)
		transaction(t, j, 1, "clients.update", make100(), 1)
		ends := make(chan error, 200)
		go func() {
			for id := range uint64(100) {
				j.RecordThen(Outcome{Execution: id + 1, Attempt: &Attempt{Number: 1, OK: true}, Status: Succeeded}, func(_ []Queued, err error) { ends <- err })
			}
		}()
		if err := <-ends; err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		for range 99 {
			if err := <-ends; err != nil && !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		}
	}
}

func make100() []string {
	objects := make([]string, 100)
	for i := range objects {
		objects[i] = strconv.Itoa(i)
	}
	return objects
}

// TestRecent: executions and events that are kept in memory are those of the store,
// whatever happens to them while others read.
func TestRecent(t *testing.T) {
	now := epoch
	var mu sync.Mutex
	j := open(t, func(o *Options) {
		o.Retention, o.bucketIDs = time.Hour, 700
		o.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return now
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	for n := range 4 {
		r := rand.New(rand.NewPCG(7, uint64(n)))
		reading.Go(func() {
			from := uint64(1)
			for ctx.Err() == nil {
				if from++; r.IntN(50) == 0 {
					from = 1 + r.Uint64N(6000)
				}
				x, err := j.Execution(from)
				if err == nil {
					_, err = j.Event(x.Event)
				}
				if err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
					return
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(5, 5))
	last := uint64(0)
	compare := func(id uint64) {
		got, gotErr := j.Execution(id)
		bk := j.buckets.Load().of(id)
		if bk == nil {
			if !errors.Is(gotErr, ErrNotFound) {
				t.Fatalf("execution %d, whose bucket is gone: %v", id, gotErr)
			}
			return
		}
		want, err := readRow(j.db, bk.number, id)
		if (err == nil) != (gotErr == nil) || got != want {
			t.Fatalf("execution %d: %+v, %v\nin the store: %+v, %v", id, got, gotErr, want, err)
		}
		if err != nil {
			return
		}
		e, err := j.Event(got.Event)
		if err != nil || e.ID != got.Event || e.Object != got.Object {
			t.Fatalf("event %v of execution %d: %+v, %v", got.Event, id, e, err)
		}
	}
	for step := range 800 {
		id := 1 + r.Uint64N(last+1)
		switch n := r.IntN(20); {
		case n < 6:
			objects := make([]string, 1+r.IntN(5))
			for i := range objects {
				objects[i] = strconv.Itoa(r.IntN(50))
			}
			transaction(t, j, step+1, "clients.update", objects, 1, 2)
			last += 2 * uint64(len(objects))
		case n < 15:
			x, err := j.Execution(id)
			if err != nil || !x.Status.Open() {
				break
			}
			s := []Status{Pending, Succeeded, Dead}[r.IntN(3)]
			record(t, j, Outcome{Execution: id, Attempt: &Attempt{Number: x.Attempts + 1, OK: s == Succeeded}, Status: s})
		case n == 15:
			if _, err := j.Hold(ctx, 1+r.IntN(2)); err != nil {
				t.Fatal(err)
			}
		case n == 16:
			if _, err := j.Unhold(ctx, 1+r.IntN(2)); err != nil {
				t.Fatal(err)
			}
		case n == 17:
			if x, err := j.Execution(id); err == nil && !x.Status.Open() {
				if _, err := j.Requeue(ctx, []uint64{id}); err != nil {
					t.Fatal(err)
				}
				last++
			}
		case n == 18 && r.IntN(10) == 0:
			if _, err := j.Cancel(ctx, 1+r.IntN(2)); err != nil {
				t.Fatal(err)
			}
		case n == 19 && r.IntN(3) == 0:
			mu.Lock()
			now = now.Add(20 * time.Minute)
			mu.Unlock()
			if _, err := j.Expire(ctx); err != nil {
				t.Fatal(err)
			}
		}
		compare(id)
		compare(max(last, 1))
		compare(1 + r.Uint64N(last+1))
	}
	cancel()
	reading.Wait()
	for id := range last {
		compare(id + 1)
	}
	if list := *j.buckets.Load(); list[0].first == 1 {
		t.Error("nothing has expired: the test does not test that")
	}
	verify(t, j)
}

// TestGather: where outcomes come fast, one that nobody waits for waits a moment for
// others, and one that something waits for does not.
func TestGather(t *testing.T) {
	later := func(after time.Duration, n int, patient bool) func(*Journal) {
		return func(j *Journal) {
			time.AfterFunc(after, func() {
				for range n {
					j.RecordThen(Outcome{Execution: 1, Status: Succeeded, Patient: patient}, nil)
				}
			})
		}
	}
	for _, tc := range []struct {
		name  string
		last  int // of the commit before
		after func(*Journal)
		first bool // one is there at once, and is patient
		want  time.Duration
	}{
		{name: "few came before", last: fewOutcomes, first: true, want: 0},
		{name: "nothing is there", last: 10, want: 0},
		{name: "nobody else comes", last: 10, first: true, want: patience},
		{name: "too few others come", last: 10, first: true, after: later(patience/2, enoughOutcomes-2, true), want: patience},
		{name: "enough others come", last: 10, first: true, after: later(patience/2, enoughOutcomes-1, true), want: patience / 2},
		{name: "one comes that hurries", last: 10, first: true, after: later(patience/4, 1, false), want: patience / 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := &Journal{recorder: newRecorder()}
				if tc.first {
					later(0, 1, true)(j)
					synctest.Wait()
				}
				if tc.after != nil {
					tc.after(j)
				}
				start := time.Now()
				j.recorder.gather(tc.last)
				if took := time.Since(start); took != tc.want {
					t.Errorf("it waited %v, want %v", took, tc.want)
				}
				if j.recorder.take(); j.recorder.hurry {
					t.Error("still in a hurry with nothing in the queue")
				}
			})
		})
	}
}

// TestReadAheadOnce: one reads ahead at a time, and those who look for what that brings
// are told to wait for it.
func TestReadAheadOnce(t *testing.T) {
	ended := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	c := newRecent()
	if _, ok, to, _, landed := c.row(1); ok || to != readAhead-1 || landed != nil {
		t.Fatalf("the first miss reads up to %d (waits: %v), want %d", to, landed != nil, readAhead-1)
	}
	_, _, to, _, landed := c.row(2)
	if to != 2 || landed == nil || ended(landed) {
		t.Fatalf("a miss in what is being read reads up to %d, waits: %v", to, landed != nil)
	}
	if _, _, to, _, other := c.row(readAhead); to != readAhead || other != nil {
		t.Fatalf("a miss beyond it reads up to %d, waits: %v, want it alone", to, other != nil)
	}
	c.ahead([]Execution{{ID: 1}, {ID: 2}}, 0)
	if !ended(landed) {
		t.Fatal("what was read is in, and those who waited were not told")
	}
	if x, ok, _, _, _ := c.row(2); !ok || x.ID != 2 {
		t.Fatalf("execution 2 is not known after it was read: %+v", x)
	}

	if _, follow, landed := c.event(at(1, 1)); !follow || landed != nil {
		t.Fatalf("the first miss reads what follows: %v, waits: %v", follow, landed != nil)
	}
	e, follow, landed := c.event(at(2, 1))
	if e != nil || follow || landed == nil || ended(landed) {
		t.Fatalf("a miss above what is being read: event %v, reads what follows: %v, waits: %v", e, follow, landed != nil)
	}
	if _, follow, below := c.event(at(0, 1)); follow || below != nil {
		t.Fatal("a miss below what is being read does not read it alone")
	}
	c.eventsAhead(nil) // it could not be read
	if !ended(landed) {
		t.Fatal("nothing was read, and those who waited were not told")
	}
	if _, follow, landed := c.event(at(2, 1)); !follow || landed != nil {
		t.Fatal("after that the next miss does not read ahead")
	}
	c.eventsAhead([]*event.Event{sample(at(2, 1), "clients.update", "5")})
	if e, _, _ := c.event(at(2, 1)); e == nil || e.Object != "5" {
		t.Fatalf("the event is not known after it was read: %v", e)
	}
}
