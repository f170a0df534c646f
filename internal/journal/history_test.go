package journal

import (
	"maps"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestHistory: what happens is counted in its minute, outlives a restart, and is forgotten
// after a day.
func TestHistory(t *testing.T) {
	now := epoch.Truncate(time.Hour)
	disk := vfs.NewMem()
	options := func(o *Options) { o.FS, o.Now = disk, func() time.Time { return now } }
	j := open(t, options)
	transaction(t, j, 10, "clients.create", []string{"1", "2"}, 1, 2) // executions 1 to 4
	now = now.Add(time.Minute)
	record(t, j, Outcome{Execution: 1, Status: Succeeded, Attempt: &Attempt{Number: 1, OK: true}})
	record(t, j, Outcome{Execution: 2, Status: Pending, Attempt: &Attempt{Number: 1}})
	now = now.Add(time.Minute)
	record(t, j, Outcome{Execution: 2, Status: Dead, Attempt: &Attempt{Number: 2}})
	if _, err := j.Cancel(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		h := j.History(now, time.Minute, 3)
		want(t, when+": all", h[0], []Tally{{Made: 4}, {Succeeded: 1, Failed: 1}, {Failed: 1, Dead: 1}})
		want(t, when+": handler 2", h[2], []Tally{{Made: 2}, {Failed: 1}, {Failed: 1, Dead: 1}})
		want(t, when+": the hour", j.History(now, 15*time.Minute, 4)[0], []Tally{{}, {}, {}, {Made: 4, Succeeded: 1, Failed: 2, Dead: 1}})
	}
	check("at once")
	for range 2 { // the second has nothing new
		if err := j.SaveHistory(); err != nil {
			t.Fatal(err)
		}
	}
	verify(t, j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, options)
	check("after a restart")
	record(t, j, Outcome{Execution: 4, Status: Succeeded, Attempt: &Attempt{Number: 1, OK: true}})
	if err := j.SaveHistory(); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, options)
	want(t, "a minute that goes on", j.History(now, time.Minute, 1)[2], []Tally{{Succeeded: 1, Failed: 1, Dead: 1}})

	// A clock that goes back, and a day later.
	now = now.Add(-time.Hour)
	transaction(t, j, 20, "clients.create", []string{"1"}, 1)
	want(t, "an hour before", j.History(now, time.Minute, 1)[0], []Tally{{Made: 1}})
	now = now.Add(26 * time.Hour)
	want(t, "a day later, all", j.History(now, time.Hour, 24)[0], make([]Tally, 24))
	transaction(t, j, 30, "clients.create", []string{"1"}, 1)
	if err := j.SaveHistory(); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := scan(j.db, []byte{spaceHistory}, func(_, _ []byte) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d minutes are kept, want 1 (%v)", n, err)
	}
	verify(t, j)
}

// FuzzHistory: no value of a store makes reading it break down.
func FuzzHistory(f *testing.F) {
	f.Add(appendHistoryKey(nil, 7), appendHistory(nil, map[int]Tally{1: {1, 2, 3, 4}, 900: {Dead: 1 << 40}}))
	f.Fuzz(func(t *testing.T, k, v []byte) {
		if number, handlers, err := decodeHistory(k, v); err == nil {
			again := appendHistory(nil, handlers)
			if n, h, err := decodeHistory(appendHistoryKey(nil, number), again); err != nil || n != number || !maps.Equal(h, handlers) {
				t.Fatalf("%d %v %v", n, h, err)
			}
		}
	})
}
