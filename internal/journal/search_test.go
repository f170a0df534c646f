package journal

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
)

// model is what the journal should hold, kept the simple way.
type model struct {
	executions []Execution
}

// brute is Executions the simple way.
func (m *model) brute(q Query) []uint64 {
	q.Text = strings.ToLower(q.Text)
	var list []uint64
	for _, x := range slices.Backward(m.executions) {
		if x.ID > q.After && (q.Before == 0 || x.ID < q.Before) && q.matches(&x) {
			list = append(list, x.ID)
		}
	}
	if q.Oldest {
		slices.Reverse(list)
	}
	return list
}

// all pages through the journal.
func all(t testing.TB, j *Journal, q Query) []uint64 {
	t.Helper()
	list, _ := pages(t, j, q, 1<<30)
	return list
}

// pages asks for at most n pages, and tells whether there are more.
func pages(t testing.TB, j *Journal, q Query, n int) (list []uint64, more bool) {
	t.Helper()
	for ; n > 0; n-- {
		page, next, err := j.Executions(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if q.Limit > 0 && len(page) > q.Limit {
			t.Fatalf("page of %d, limit %d", len(page), q.Limit)
		}
		list = append(list, ids(page)...)
		if next == 0 {
			return list, false
		}
		if q.Oldest {
			if next <= q.After {
				t.Fatalf("cursor %d after %d", next, q.After)
			}
			q.After = next
			continue
		}
		if q.Before != 0 && next >= q.Before {
			t.Fatalf("cursor %d after %d", next, q.Before)
		}
		q.Before = next
	}
	return list, true
}

// TestSearch compares searches with a walk over everything, on random executions
// in random states, with a clock that jumps back.
func TestSearch(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	now := epoch
	j := open(t, func(o *Options) {
		o.bucketIDs = 1500
		o.Now = func() time.Time { return now }
	})
	m := &model{}
	long := strings.Repeat("x", 100)
	lane := func() string { return fmt.Sprint(r.IntN(30)) + long[:100*r.IntN(2)] }
	for n := 1; len(m.executions) < 6_000; n++ {
		now = now.Add(time.Duration(r.IntN(5000)-500) * time.Millisecond)
		if r.IntN(200) == 0 {
			now = now.Add(-time.Hour)
		}
		b := j.NewBatch()
		for o := range 1 + r.IntN(30) {
			e := sample(at(n, o+1), fmt.Sprintf("clients.t%d", r.IntN(6)), fmt.Sprint(r.IntN(200)))
			e.Lane = lane()
			var plan []Planned
			for range r.IntN(4) {
				plan = append(plan, Planned{Handler: 1 + r.IntN(8), Held: r.IntN(20) == 0})
			}
			if err := b.AddEvent(e, plan); err != nil {
				t.Fatal(err)
			}
			for _, p := range plan {
				s := Pending
				if p.Held {
					s = Held
				}
				m.executions = append(m.executions, Execution{
					ID: uint64(len(m.executions) + 1), Type: e.Type, Object: e.Object, Lane: e.Lane,
					Handler: p.Handler, Status: s, Created: now,
				})
			}
		}
		commit(t, j, b)
	}
	for range 1500 {
		x := &m.executions[r.IntN(len(m.executions))]
		if !x.Status.Open() {
			continue
		}
		x.Status = []Status{Succeeded, Succeeded, Succeeded, Dead, Skipped, Cancelled, Held}[r.IntN(7)]
		if x.Status == Dead {
			x.LastError = fmt.Sprintf("Error %d: refused", r.IntN(50))
		}
		record(t, j, Outcome{Execution: x.ID, Status: x.Status, Error: x.LastError})
	}
	for range 100 {
		x := &m.executions[r.IntN(len(m.executions))]
		if x.Status.Open() {
			continue
		}
		q, err := j.Requeue(t.Context(), []uint64{x.ID})
		if err != nil {
			t.Fatal(err)
		}
		x.Replay = q[0].Execution
		again := *x
		again.ID, again.ReplayOf, again.Replay, again.Status, again.LastError, again.Created = x.Replay, x.ID, 0, Pending, "", now
		m.executions = append(m.executions, again)
	}
	verify(t, j)
	span := now.Sub(epoch)
	queries := 300
	if testing.Short() {
		queries = 100
	}
	for range queries {
		q := Query{Limit: 1 + r.IntN(200)}
		if r.IntN(2) == 0 {
			q.Handler = 1 + r.IntN(9)
		}
		if r.IntN(3) == 0 {
			q.Type = event.Type(fmt.Sprintf("clients.t%d", r.IntN(7)))
		}
		if r.IntN(3) == 0 {
			q.Status = Statuses()[r.IntN(6)]
		}
		if r.IntN(4) == 0 {
			q.Object = fmt.Sprint(r.IntN(201))
		}
		if r.IntN(4) == 0 {
			q.Lane = lane()
		}
		if r.IntN(3) == 0 {
			q.Since = epoch.Add(time.Duration(r.Float64() * float64(span)))
		}
		if r.IntN(3) == 0 {
			q.Until = epoch.Add(time.Duration(r.Float64() * float64(span)))
		}
		if r.IntN(6) == 0 {
			q.Text = fmt.Sprintf("ERROR %d", r.IntN(6))
		}
		if r.IntN(4) == 0 {
			q.Before = uint64(r.IntN(len(m.executions)))
		}
		if r.IntN(4) == 0 {
			q.After = uint64(r.IntN(len(m.executions)))
		}
		q.Oldest, q.Unreplayed = r.IntN(2) == 0, r.IntN(4) == 0
		got, more := pages(t, j, q, 10)
		want := m.brute(q)
		if more && len(got) < len(want) {
			want = want[:len(got)]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%+v:\n got %d %v\nwant %d %v", q, len(got), got, len(want), want)
		}
	}
}

func TestRetention(t *testing.T) {
	now := epoch
	j := open(t, func(o *Options) {
		o.Retention = 16 * 24 * time.Hour
		o.Now = func() time.Time { return now }
	})
	ctx := t.Context()
	const days = 40
	for day := range days {
		for i := range 3 {
			transaction(t, j, day*10+i+1, "clients.update", []string{fmt.Sprint(day)}, 1)
		}
		now = now.Add(24*time.Hour + time.Second)
	}
	if n := len(*j.buckets.Load()); n != days {
		t.Fatalf("%d buckets for %d days", n, days)
	}
	// Nothing is final yet.
	if n, err := j.Expire(ctx); err != nil || n != 0 {
		t.Fatalf("expire: %d, %v", n, err)
	}
	// All but one execution of the third day end now, so all are kept as long again.
	for id := uint64(1); id <= 3*days; id++ {
		if id != 7 {
			record(t, j, Outcome{Execution: id, Attempt: &Attempt{Number: 1, OK: true}, Status: Succeeded})
		}
	}
	if n, err := j.Expire(ctx); err != nil || n != 0 {
		t.Fatalf("expire just after the end: %d, %v", n, err)
	}
	q, err := j.Requeue(ctx, []uint64{1})
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(20 * 24 * time.Hour)
	n, err := j.Expire(ctx)
	if err != nil || n != 3*(days-2) {
		t.Fatalf("expire: %d, %v", n, err)
	}
	verify(t, j)
	want(t, "left", all(t, j, Query{}), []uint64{121, 120, 119, 118, 9, 8, 7})
	want(t, "left by lane", all(t, j, Query{Lane: "2"}), []uint64{9, 8, 7})
	want(t, "counts", j.Counts()[HandlerStatus{1, Succeeded}], int64(5))
	if oldest, ok := j.OldestPending(); !ok || !oldest.Equal(execution(t, j, 7).Created) {
		t.Fatalf("oldest pending: %v %v", oldest, ok)
	}
	// The replay has its event still, though the event's own bucket has gone.
	if e, err := j.Event(execution(t, j, q[0].Execution).Event); err != nil || e.Object != "0" {
		t.Fatalf("event of a replay: %+v, %v", e, err)
	}
	if _, err := j.Event(at(11, 1)); err == nil {
		t.Fatal("the event of a dropped execution is still there")
	}
	for _, id := range []uint64{1, 6, 10, 117} {
		if _, err := j.Execution(id); err == nil {
			t.Fatalf("execution %d is still there", id)
		}
	}
	transaction(t, j, 1000, "clients.update", []string{"1"}, 1)
	want(t, "newest", all(t, j, Query{Limit: 1})[0], uint64(122))
	verify(t, j)
}

func TestRetentionBySize(t *testing.T) {
	j := open(t, func(o *Options) { o.MaxSize = 4 << 20 })
	r := rand.New(rand.NewPCG(1, 1))
	n := 0
	for round := range 12 {
		b := j.NewBatch()
		for range 400 {
			n++
			e := sample(at(n, 1), "clients.update", "1")
			noise := make([]byte, 2000)
			for i := range noise {
				noise[i] = byte(r.Uint32())
			}
			e.Data = noise
			if err := b.AddEvent(e, []Planned{{Handler: 1}}); err != nil {
				t.Fatal(err)
			}
		}
		commit(t, j, b)
		if _, err := j.Cancel(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if err := j.db.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := j.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		var kept uint64
		for _, bk := range *j.buckets.Load() {
			size, err := j.bucketSize(bk)
			if err != nil {
				t.Fatal(err)
			}
			kept += size
		}
		if kept > 5<<20 || round > 6 && kept < 2<<20 {
			t.Fatalf("round %d: %d KiB are kept of at most %d", round, kept>>10, j.o.MaxSize>>10)
		}
	}
	if left := len(all(t, j, Query{})); left == n || left == 0 {
		t.Fatalf("%d of %d executions are left", left, n)
	}
	verify(t, j)
}

// TestSearchExchanges: executions are found by what was sent and what came back, in any of
// their attempts, also where the request is the payload, which is not kept a second time.
func TestSearchExchanges(t *testing.T) {
	j := open(t, nil)
	transaction(t, j, 10, "clients.create", []string{"1", "2", "3"}, 1) // executions 1, 2, 3
	record(t, j, Outcome{Execution: 1, Status: Pending, Attempt: &Attempt{
		Number: 1, Duration: 3 * time.Second, SentPayload: true, Request: handler.Exchange{Head: []string{"POST http://crm/add"}},
		Response: handler.Exchange{Body: []byte("No Such TARIFF")},
	}})
	record(t, j, Outcome{Execution: 1, Status: Succeeded, Attempt: &Attempt{Number: 2, Duration: time.Millisecond, OK: true}})
	record(t, j, Outcome{Execution: 2, Status: Succeeded, Attempt: &Attempt{
		Number: 1, OK: true, Request: handler.Exchange{Body: []byte("<id>2</id>")}, Response: handler.Exchange{Head: []string{"HTTP/1.1 200 OK"}},
	}})
	payload := string(func() []byte {
		a, err := j.Attempts(1)
		if err != nil {
			t.Fatal(err)
		}
		return a[0].Request.Body
	}())
	for _, c := range []struct {
		name string
		q    Query
		want []uint64
	}{
		{"response of an earlier attempt", Query{Response: "such tariff"}, []uint64{1}},
		{"head of a response", Query{Response: "200 ok"}, []uint64{2}},
		{"head of a request", Query{Request: "CRM/ADD"}, []uint64{1}},
		{"body of a request", Query{Request: "<id>2"}, []uint64{2}},
		{"the payload", Query{Request: payload[:len(payload)/2]}, []uint64{1}},
		{"both", Query{Request: "crm", Response: "200"}, nil},
		{"with another", Query{Request: "crm", Status: Succeeded}, []uint64{1}},
		{"not there", Query{Response: "nothing like it"}, nil},
		{"attempts", Query{Attempts: 2}, []uint64{1}},
		{"an attempt", Query{Attempts: 1}, []uint64{2, 1}},
		{"duration of the last", Query{Duration: time.Microsecond}, []uint64{1}},
	} {
		want(t, c.name, all(t, j, c.q), c.want)
	}
}
