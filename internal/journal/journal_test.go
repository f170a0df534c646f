package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/wal"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// open opens a journal in memory, small enough to roll and flush, and closes it
// with the test.
func open(t testing.TB, set func(*Options)) *Journal {
	t.Helper()
	o := Options{Path: "j", FS: vfs.NewMem(), memTable: 256 << 10}
	if set != nil {
		set(&o)
	}
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return j
}

func verify(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

var epoch = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// at is the event of transaction n with an ordinal.
func at(n, ordinal int) event.ID {
	return event.ID{Generation: 1, CommitLSN: wal.LSN(n * 100), Ordinal: uint32(ordinal)}
}

func sample(id event.ID, typ, object string) *event.Event {
	return &event.Event{
		ID: id, Type: event.Type(typ), Entity: "clients", Object: object, Lane: object, XID: 77,
		CommitTime: epoch.Add(time.Duration(id.CommitLSN) * time.Millisecond), Source: "billing",
		ObjectJSON: []byte(object), Data: []byte(`{"id":` + object + `}`), Changed: []byte(`{"balance":{"old":"1","new":"0"}}`),
	}
}

func position(n int) Position {
	return Position{
		SystemID: "7", Timeline: 1, Generation: 1, Slot: "billhook", Publication: "billhook",
		CommitLSN: wal.LSN(n * 100), EndLSN: wal.LSN(n*100 + 50), CommitTime: epoch.Add(time.Duration(n*100) * time.Millisecond),
	}
}

// transaction commits one event for each object, planned for the handlers.
func transaction(t testing.TB, j *Journal, n int, typ string, objects []string, handlers ...int) {
	t.Helper()
	b := j.NewBatch()
	b.Begin()
	for i, o := range objects {
		var plan []Planned
		for _, h := range handlers {
			plan = append(plan, Planned{Handler: h, Priority: 1})
		}
		if err := b.AddEvent(sample(at(n, i+1), typ, o), plan); err != nil {
			t.Fatal(err)
		}
	}
	b.SetPosition(position(n))
	commit(t, j, b)
}

func commit(t testing.TB, j *Journal, b *Batch) {
	t.Helper()
	wait, err := j.Commit(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := wait(); err != nil {
		t.Fatal(err)
	}
}

func record(t testing.TB, j *Journal, o Outcome) {
	t.Helper()
	if _, err := j.Record(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func execution(t testing.TB, j *Journal, id uint64) Execution {
	t.Helper()
	x, err := j.Execution(id)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func ids(xs []Execution) []uint64 {
	var list []uint64
	for _, x := range xs {
		list = append(list, x.ID)
	}
	return list
}

func want[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

func TestCommitAndRead(t *testing.T) {
	fs := vfs.NewMem()
	var mu sync.Mutex
	var queued []Queued
	set := func(o *Options) {
		o.FS = fs
		o.Now = func() time.Time { return epoch }
		o.OnDurable = func(q []Queued) {
			mu.Lock()
			defer mu.Unlock()
			queued = append(queued, q...)
		}
	}
	j := open(t, set)
	if _, ok := j.Position(); ok {
		t.Fatal("a new journal has a position")
	}
	b := j.NewBatch()
	b.SetMemory([]byte("k"), []byte("v1"))
	e := sample(at(1, 1), "clients.update", "4711")
	if err := b.AddEvent(e, []Planned{{Handler: 3, Priority: -2}, {Handler: 5, Held: true}, {Handler: 4, Priority: 7}}); err != nil {
		t.Fatal(err)
	}
	b.SetPosition(position(1))
	commit(t, j, b)
	mu.Lock()
	want(t, "queued", queued, []Queued{{1, "4711", 3}, {3, "4711", 4}})
	mu.Unlock()

	for range 2 { // as it is, and reopened
		p, ok := j.Position()
		if !ok {
			t.Fatal("no position")
		}
		want(t, "position", p, position(1))
		got, err := j.Event(e.ID)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "event", got, e)
		want(t, "execution", execution(t, j, 1), Execution{
			ID: 1, Event: e.ID, Type: "clients.update", Object: "4711", Lane: "4711", Handler: 3, Priority: -2,
			Status: Pending, Created: epoch, CommitTime: e.CommitTime,
		})
		want(t, "counts", j.Counts(), map[HandlerStatus]int64{{3, Pending}: 1, {5, Held}: 1, {4, Pending}: 1})
		xs, err := j.Pending("4711", 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "pending", ids(xs), []uint64{1, 3})
		b := j.NewBatch()
		v, ok, err := b.Memory([]byte("k"))
		if err != nil || !ok || string(v) != "v1" {
			t.Fatalf("memory: %q %v %v", v, ok, err)
		}
		b.Discard()
		if _, err := j.Event(at(2, 1)); !errors.Is(err, ErrNotFound) {
			t.Fatalf("event that is not there: %v", err)
		}
		if _, err := j.Execution(99); !errors.Is(err, ErrNotFound) {
			t.Fatalf("execution that is not there: %v", err)
		}
		verify(t, j)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = open(t, set)
	}
}

func TestRecord(t *testing.T) {
	now := epoch
	j := open(t, func(o *Options) { o.Now = func() time.Time { return now } })
	transaction(t, j, 1, "clients.update", []string{"1"}, 1, 2, 3)
	now = now.Add(time.Minute)
	first := Attempt{
		Number: 1, Start: now, Duration: time.Second, Error: "no answer", Reason: handler.ReasonTimeout, Code: -1,
		Request: handler.Exchange{Head: []string{"a: b", ""}, Body: []byte("{}")}, Response: handler.Exchange{Truncated: 7},
	}
	record(t, j, Outcome{Execution: 1, Attempt: &first, Status: Pending, NextAt: now.Add(time.Minute)})
	x := execution(t, j, 1)
	if x.Status != Pending || x.Attempts != 1 || !x.NextAt.Equal(now.Add(time.Minute)) || x.LastError != "no answer" ||
		x.LastReason != handler.ReasonTimeout || x.LastCode != -1 || x.LastDuration != time.Second || !x.Finished.IsZero() {
		t.Fatalf("after a retry: %+v", x)
	}
	second := Attempt{Number: 2, Start: now, OK: true, Code: 200}
	record(t, j, Outcome{
		Execution: 1, Attempt: &second, Status: Succeeded,
		Also: []StatusChange{{2, Skipped, "stopped by handler 1"}, {3, Skipped, "stopped by handler 1"}},
	})
	x = execution(t, j, 1)
	if x.Status != Succeeded || !x.Finished.Equal(now) || x.LastError != "" || !x.NextAt.IsZero() {
		t.Fatalf("after success: %+v", x)
	}
	if x := execution(t, j, 3); x.Status != Skipped || x.LastError != "stopped by handler 1" || !x.Finished.Equal(now) {
		t.Fatalf("skipped: %+v", x)
	}
	as, err := j.Attempts(1)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "attempts", as, []Attempt{first, second})
	for i, a := range as {
		got, err := j.Attempt(1, i+1)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "an attempt", got, a)
	}
	for _, no := range [][2]int{{1, 3}, {9, 1}} {
		if _, err := j.Attempt(uint64(no[0]), no[1]); !errors.Is(err, ErrNotFound) {
			t.Errorf("attempt %d of execution %d: %v", no[1], no[0], err)
		}
	}
	if _, err := j.Record(t.Context(), Outcome{Execution: 1, Status: Pending}); !errors.Is(err, ErrFinal) {
		t.Fatalf("record of a final execution: %v", err)
	}
	if _, err := j.Record(t.Context(), Outcome{Execution: 9, Status: Pending}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("record of no execution: %v", err)
	}
	verify(t, j)
}

func TestHoldUnholdCancelRequeue(t *testing.T) {
	j := open(t, func(o *Options) { o.bucketIDs = 400 })
	ctx := t.Context()
	const n = 700
	for i := range n {
		transaction(t, j, i+1, "clients.update", []string{fmt.Sprint(i % 10)}, 1, 2)
	}
	got, err := j.Hold(ctx, 1)
	if err != nil || got != n {
		t.Fatalf("hold: %d, %v", got, err)
	}
	want(t, "counts", j.Counts()[HandlerStatus{1, Held}], int64(n))
	verify(t, j)
	// An attempt was under way while its handler was held.
	xs, _, err := j.Executions(ctx, Query{Handler: 1, Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	record(t, j, Outcome{Execution: xs[0].ID, Attempt: &Attempt{Number: 1, Error: "x"}, Status: Pending, NextAt: epoch})
	if x := execution(t, j, xs[0].ID); x.Status != Held || x.Attempts != 1 {
		t.Fatalf("retry of a held execution: %+v", x)
	}
	q, err := j.Unhold(ctx, 1)
	if err != nil || len(q) != n || q[0].Execution != 1 || q[0].Lane != "0" {
		t.Fatalf("unhold: %d, %v", len(q), err)
	}
	if oldest, ok := j.OldestPending(); !ok || !oldest.Equal(execution(t, j, 1).Created) {
		t.Fatalf("oldest pending: %v %v", oldest, ok)
	}
	verify(t, j)
	if got, err := j.Cancel(ctx, 2); err != nil || got != n {
		t.Fatalf("cancel: %d, %v", got, err)
	}
	verify(t, j)
	if _, err := j.Requeue(ctx, []uint64{1}); err == nil {
		t.Fatal("replayed a pending execution")
	}
	old := make([]uint64, 0, n)
	for i := range n {
		old = append(old, uint64(2*i+2))
	}
	if q, err = j.Requeue(ctx, old); err != nil || len(q) != n {
		t.Fatalf("requeue: %d, %v", len(q), err)
	}
	want(t, "first replay", q[0], Queued{Execution: 2*n + 1, Lane: "0", Handler: 2})
	x := execution(t, j, q[0].Execution)
	if x.ReplayOf != 2 || x.Event != at(1, 1) || x.Status != Pending {
		t.Fatalf("replay: %+v", x)
	}
	verify(t, j)
}

func TestLanes(t *testing.T) {
	j := open(t, nil)
	for i := range 300 {
		transaction(t, j, i+1, "clients.update", []string{fmt.Sprint(i % 7)}, 1)
	}
	for id := uint64(1); id <= 7; id++ {
		record(t, j, Outcome{Execution: id, Attempt: &Attempt{Number: 1, OK: true}, Status: Succeeded})
	}
	got := make(map[string]uint64)
	if err := j.Lanes(t.Context(), func(lane string, head Execution) error {
		got[lane] = head.ID
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want(t, "heads", got, map[string]uint64{"0": 8, "1": 9, "2": 10, "3": 11, "4": 12, "5": 13, "6": 14})
	xs, err := j.Pending("3", 11, 3)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "pending", ids(xs), []uint64{18, 25, 32})
}

func TestEventOrder(t *testing.T) {
	j := open(t, nil)
	transaction(t, j, 5, "clients.update", []string{"1", "2"}, 1)
	b := j.NewBatch()
	if err := b.AddEvent(sample(at(5, 2), "clients.update", "1"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Commit(b); !errors.Is(err, ErrOrder) {
		t.Fatalf("the same event again: %v", err)
	}
	b.Discard()
	b = j.NewBatch()
	if err := b.AddEvent(sample(at(6, 2), "clients.update", "1"), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.AddEvent(sample(at(6, 1), "clients.update", "1"), nil); !errors.Is(err, ErrOrder) {
		t.Fatalf("a lower ordinal: %v", err)
	}
	b.Discard()
	verify(t, j)
}

func TestEvents(t *testing.T) {
	j := open(t, func(o *Options) { o.bucketIDs = 10 })
	for i := range 50 {
		transaction(t, j, i+1, "clients.update", []string{"1", "2"}, 1)
	}
	record(t, j, Outcome{Execution: 1, Status: Dead})
	if _, err := j.Requeue(t.Context(), []uint64{1}); err != nil {
		t.Fatal(err)
	}
	transaction(t, j, 51, "clients.update", []string{"1"}, 1)
	var got []event.ID
	for {
		var last event.ID
		if len(got) > 0 {
			last = got[len(got)-1]
		}
		es, err := j.Events(last, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			got = append(got, e.ID)
		}
	}
	var all []event.ID
	for i := range 50 {
		all = append(all, at(i+1, 1), at(i+1, 2))
	}
	want(t, "events", got, append(all, at(51, 1)))
}

func TestMemoryOverlay(t *testing.T) {
	j := open(t, nil)
	model := make(map[string]string)
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		b := j.NewBatch()
		for range 200 {
			k := fmt.Sprintf("%c/%d", 'a'+rune(r.IntN(3)), r.IntN(40))
			switch r.IntN(20) {
			case 0:
				b.DeleteMemory([]byte(k))
				delete(model, k)
			case 1:
				if r.IntN(10) == 0 {
					b.DeleteMemoryPrefix([]byte(k[:2]))
					for m := range model {
						if m[:2] == k[:2] {
							delete(model, m)
						}
					}
				}
			case 2, 3, 4, 5, 6, 7, 8:
				v := fmt.Sprint(r.Uint32N(1 << r.UintN(31)))
				b.SetMemory([]byte(k), []byte(v))
				model[k] = v
			default:
				v, ok, err := b.Memory([]byte(k))
				if err != nil {
					t.Fatal(err)
				}
				if w, wok := model[k]; ok != wok || string(v) != w {
					t.Fatalf("%s: got %q %v, want %q %v", k, v, ok, w, wok)
				}
			}
		}
		commit(t, j, b)
	}
	got := make(map[string]string)
	if err := j.ScanMemory(t.Context(), nil, func(k, v []byte) error {
		got[string(k)] = string(v)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want(t, "memory", got, model)
}

func TestGroupCommit(t *testing.T) {
	j := open(t, func(o *Options) { o.FS = nil; o.Path = t.TempDir() + "/j" })
	const lanes, per = 16, 20
	var objects []string
	for i := range lanes * per {
		objects = append(objects, fmt.Sprint(i%lanes))
	}
	transaction(t, j, 1, "clients.update", objects, 1)
	var wg sync.WaitGroup
	for l := range lanes {
		wg.Go(func() {
			for i := range per {
				_, err := j.Record(context.Background(), Outcome{Execution: uint64(i*lanes + l + 1), Attempt: &Attempt{Number: 1, OK: true}, Status: Succeeded})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	want(t, "succeeded", j.Counts()[HandlerStatus{1, Succeeded}], int64(lanes*per))
	verify(t, j)
}

// TestOnDead: the outcome that gives an execution up and the execution that tells of it
// are one commit; the event goes along when its own bucket may expire before.
func TestOnDead(t *testing.T) {
	j := open(t, func(o *Options) { o.bucketIDs = 2 })
	for n := 1; n <= 3; n++ {
		b := j.NewBatch()
		if err := b.AddEvent(sample(at(n, 1), "clients.update", "1"), []Planned{{Handler: 1}, {Handler: 2}}); err != nil {
			t.Fatal(err)
		}
		b.SetPosition(position(n))
		commit(t, j, b)
	}
	dead := func(id uint64, p *Planned) []Queued {
		t.Helper()
		q, err := j.Record(t.Context(), Outcome{Execution: id, Attempt: &Attempt{Number: 1, Uncounted: true}, Status: Dead, OnDead: p})
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	q := dead(1, &Planned{Handler: 7, Priority: 4})
	if len(q) != 1 || q[0].Handler != 7 || q[0].Execution != 7 {
		t.Fatalf("%+v", q)
	}
	x := execution(t, j, 7)
	if x.DeadOf != 1 || x.Event != at(1, 1) || x.Priority != 4 || x.Status != Pending || x.Lane != execution(t, j, 1).Lane || execution(t, j, 1).Uncounted != 1 {
		t.Errorf("%+v", x)
	}
	if q := dead(2, &Planned{Handler: 7, Held: true}); len(q) != 0 || execution(t, j, 8).Status != Held {
		t.Errorf("%+v", q)
	}
	if q := dead(3, nil); len(q) != 0 {
		t.Errorf("%+v", q)
	}
	if q, err := j.Record(t.Context(), Outcome{Execution: 4, Attempt: &Attempt{Number: 1, OK: true}, Status: Succeeded, OnDead: &Planned{Handler: 7}}); err != nil || len(q) > 0 {
		t.Errorf("%+v, %v", q, err)
	}
	if _, err := j.Event(x.Event); err != nil {
		t.Error(err)
	}
	if got, err := j.Attempts(1); err != nil || len(got) != 1 || !got[0].Uncounted {
		t.Errorf("%+v, %v", got, err)
	}
	verify(t, j)
}

// TestSentPayload: a body that is the event's payload is not kept twice, and reads as if
// it were.
func TestSentPayload(t *testing.T) {
	j := open(t, nil)
	b := j.NewBatch()
	e := sample(at(1, 1), "clients.update", "1")
	if err := b.AddEvent(e, []Planned{{Handler: 1}}); err != nil {
		t.Fatal(err)
	}
	b.SetPosition(position(1))
	commit(t, j, b)
	body := e.AppendPayload(nil)
	for n, a := range []Attempt{{SentPayload: true}, {}, {SentPayload: true, Uncounted: true}} {
		a.Number, a.Start, a.Request.Head, a.Request.Body = n+1, epoch, []string{"POST /"}, body
		if n == 1 {
			a.Request.Body = []byte("another")
		}
		record(t, j, Outcome{Execution: 1, Attempt: &a, Status: Pending})
	}
	list, err := j.Attempts(1)
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	for n, want := range []string{string(body), "another", string(body)} {
		if got := string(list[n].Request.Body); got != want || list[n].Request.Head[0] != "POST /" {
			t.Errorf("attempt %d: %q, want %q", n+1, got, want)
		}
	}
	found := 0
	if err := scan(j.db, []byte{'L'}, func(_, v []byte) error {
		if bytes.Contains(v, body) {
			found++
		}
		return nil
	}); err != nil || found > 0 {
		t.Errorf("the payload is kept in %d values, %v", found, err)
	}
	verify(t, j)
}
