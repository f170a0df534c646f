package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// again says which events may come more than once.
type again bool

const (
	once       again = false // none that was accepted
	mayRepeat  again = true  // any, with the same id and body: billhook was killed
	maxReasons       = 15
)

// compare returns how what one handler got differs from what it must have got,
// one line for each difference.
//
// Each account's events must come in order, each after the one before it was
// accepted. Under one id there is one body. What was refused comes again, under
// the same id.
func compare(expected map[int][]expectation, came []arrival, may again) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	type progress struct {
		ids      map[string]int // how far an id is: index in expected
		next     int
		accepted bool // the last one
	}
	lanes := map[int]*progress{}
	bodies := map[string]string{}
	done := map[string]bool{}
	for i, a := range came {
		if body, ok := bodies[a.id]; !ok {
			bodies[a.id] = a.body
		} else if body != a.body {
			say("two bodies under id %s:\n\t%s\n\t%s", a.id, body, a.body)
		}
		aid, err := strconv.Atoi(a.object)
		if err != nil || a.lane != a.object {
			say("arrival %d is of object %q in lane %q", i, a.object, a.lane)
			continue
		}
		l := lanes[aid]
		if l == nil {
			l = &progress{ids: map[string]int{}, accepted: true}
			lanes[aid] = l
		}
		if at, seen := l.ids[a.id]; seen {
			if done[a.id] && may == once {
				say("account %d: event %s came again although it was accepted (attempt %d)", aid, a.id, a.attempt)
			}
			done[a.id] = done[a.id] || a.accepted
			if at == l.next-1 {
				l.accepted = l.accepted || a.accepted
			}
			continue
		}
		if !l.accepted {
			say("account %d: event %s came while the one before it was not accepted", aid, a.id)
		}
		got := fmt.Sprintf("%s (%s to %s, transaction %d)", a.typ, a.old, a.new, a.xid)
		list := expected[aid]
		switch {
		case l.next >= len(list):
			say("account %d: got %s under id %s, nothing more is expected", aid, got, a.id)
		case list[l.next].String() != got:
			say("account %d: got %s under id %s, expected is %s", aid, got, a.id, list[l.next])
		}
		l.ids[a.id] = l.next
		l.next++
		l.accepted = a.accepted
		done[a.id] = a.accepted
	}
	for _, aid := range slices.Sorted(maps.Keys(expected)) {
		list, next := expected[aid], 0
		if l := lanes[aid]; l != nil {
			next = l.next
			if !l.accepted {
				say("account %d: the last event was never accepted", aid)
			}
		}
		if next < len(list) {
			say("account %d: %d events never came, the first %s", aid, len(list)-next, list[next])
		}
	}
	return wrong
}

// check compares and fails the test.
func check(t testing.TB, who string, expected map[int][]expectation, came []arrival, may again) {
	t.Helper()
	wrong := compare(expected, came, may)
	if len(wrong) == 0 {
		return
	}
	for _, w := range wrong[:min(len(wrong), maxReasons)] {
		t.Errorf("%s: %s", who, w)
	}
	if more := len(wrong) - maxReasons; more > 0 {
		t.Errorf("%s: and %d more differences", who, more)
	}
}

// TestCompare proves that each kind of damage is seen.
func TestCompare(t *testing.T) {
	t.Parallel()
	expected := map[int][]expectation{
		1: {{10, "clients.balance_zero", 5, 0}, {11, "clients.balance_notzero", 0, 5}},
		2: {{10, "clients.balance_zero", 5, -1}},
	}
	come := func(id string, aid int, n int) arrival {
		e := expected[aid][n]
		return arrival{
			handler: 1, attempt: 1, accepted: true, id: id, typ: e.typ, object: strconv.Itoa(aid), lane: strconv.Itoa(aid),
			xid: e.xid, old: strconv.Itoa(e.old), new: strconv.Itoa(e.new), body: "body of " + id,
		}
	}
	a, b, c := come("a", 1, 0), come("b", 1, 1), come("c", 2, 0)
	refused := func(a arrival) arrival { a.accepted = false; return a }
	other := func(a arrival) arrival { a.body = "another"; return a }
	moved := func(a arrival) arrival { a.old = "4"; return a }
	for _, tc := range []struct {
		name string
		came []arrival
		may  again
		want string // part of the first difference, "" for none
	}{
		{"as expected", []arrival{a, c, b}, once, ""},
		{"lanes mixed", []arrival{c, a, b}, once, ""},
		{"a retry", []arrival{refused(a), c, a, b}, once, ""},
		{"again after a kill", []arrival{a, b, a, c}, mayRepeat, ""},
		{"again without a kill", []arrival{a, a, b, c}, once, "came again"},
		{"one lost", []arrival{a, c}, once, "never came"},
		{"a whole account lost", []arrival{a, b}, once, "never came"},
		{"order", []arrival{b, a, c}, once, "expected is clients.balance_zero"},
		{"one too many", []arrival{a, b, c, come("d", 2, 0)}, once, "nothing more is expected"},
		{"two ids for one event", []arrival{a, come("d", 1, 0), b, c}, mayRepeat, "expected is clients.balance_notzero"},
		{"two bodies", []arrival{a, b, c, other(a)}, mayRepeat, "two bodies"},
		{"one id for two events", []arrival{a, b, other(come("a", 2, 0))}, mayRepeat, "two bodies"},
		{"not waited for", []arrival{refused(a), b, a, c}, once, "was not accepted"},
		{"never accepted", []arrival{a, refused(b), c}, once, "never accepted"},
		{"a wrong old value", []arrival{moved(a), b, c}, once, "got clients.balance_zero (4 to 0"},
		{"another lane", []arrival{func() arrival { x := a; x.lane = "9"; return x }(), b, c}, once, `in lane "9"`},
	} {
		wrong := compare(expected, tc.came, tc.may)
		switch {
		case tc.want == "" && len(wrong) > 0:
			t.Errorf("%s: %s", tc.name, strings.Join(wrong, "\n"))
		case tc.want != "" && (len(wrong) == 0 || !strings.Contains(wrong[0], tc.want)):
			t.Errorf("%s: %q, want something with %q", tc.name, wrong, tc.want)
		}
	}
}
