package demo

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// subscriber is a handler as handlers.yaml describes it, read by the demo itself.
type subscriber struct {
	id       int
	name     string
	kind     string // http, script or plugin
	patterns []string
	ordered  bool // events of a client come in order; not so for blocking: false
	some     bool // it has a condition: it may get fewer events than it asks for
	enabled  bool
	signs    bool // its requests are signed
}

// wants reports whether the handler asks for events of a type.
func (s subscriber) wants(typ string) bool {
	return s.enabled && slices.ContainsFunc(s.patterns, func(p string) bool { return matches(p, typ) })
}

func matches(pattern, typ string) bool {
	if pattern == "*" || pattern == typ {
		return true
	}
	prefix, ok := strings.CutSuffix(pattern, "*")
	return ok && strings.HasSuffix(prefix, ".") && strings.HasPrefix(typ, prefix)
}

// transaction is what one transaction means to one client, as a sorted list of
// "type object".
type transaction struct {
	xid    uint32 // 0: not known
	lsn    uint64 // of arrivals
	events []string
}

// compare returns how what arrived differs from what the ledger expects, one
// line per difference, nothing when they agree: for each handler and client the
// same transactions in the same order with the same events; under one id never
// two payloads.
func compare(ledger []entry, subscribers []subscriber, came []arrival) []string {
	var diffs []string
	say := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }

	// Who an object belongs to, for payloads that do not say.
	owner := map[string]string{}
	for _, e := range ledger {
		owner[entityOf(e.typ)+" "+e.object] = strconv.FormatInt(e.client, 10)
	}

	type key struct {
		handler int
		client  string
	}
	expected := map[key][]transaction{}
	for _, s := range subscribers {
		for _, e := range ledger {
			if !s.wants(e.typ) {
				continue
			}
			k := key{s.id, strconv.FormatInt(e.client, 10)}
			txs := expected[k]
			if n := len(txs); n == 0 || txs[n-1].xid != e.xid {
				txs = append(txs, transaction{xid: e.xid})
			}
			last := &txs[len(txs)-1]
			last.events = append(last.events, e.typ+" "+e.object)
			expected[k] = txs
		}
	}

	known := map[int]subscriber{}
	for _, s := range subscribers {
		known[s.id] = s
	}
	type seenID struct {
		handler int
		id      string
	}
	first := map[seenID]arrival{}   // the first attempt's payload
	accepted := map[seenID]bool{}   // an arrival of it is in got
	meaning := map[string]arrival{} // by id alone
	got := map[key][]arrival{}      // accepted ones, each id once, as they came
	for _, a := range came {
		s, ok := known[a.handler]
		if !ok {
			say("handler %d is not in handlers.yaml but got %s of event %s", a.handler, a.typ, a.id)
			continue
		}
		if s.signs && !a.signed {
			say("handler %d (%s) got event %s without a signature", s.id, s.name, a.id)
		}
		if m, ok := meaning[a.id]; !ok {
			meaning[a.id] = a
		} else if m.typ != a.typ || m.object != a.object {
			say("event id %s stands for two events: %s of %s, and %s of %s", a.id, m.typ, m.object, a.typ, a.object)
		}
		id := seenID{a.handler, a.id}
		if f, ok := first[id]; !ok {
			first[id] = a
		} else if f.digest != a.digest {
			say("handler %d (%s) got two different payloads under event id %s", s.id, s.name, a.id)
		}
		if !a.accepted || accepted[id] {
			continue
		}
		accepted[id] = true
		lane := a.client
		if o, ok := owner[entityOf(a.typ)+" "+a.object]; ok {
			if lane != "" && lane != o {
				say("event %s (%s of %s) came in lane %s, it belongs to client %s", a.id, a.typ, a.object, lane, o)
			}
			lane = o
		}
		got[key{a.handler, lane}] = append(got[key{a.handler, lane}], a)
	}

	all := map[key]bool{}
	for k := range expected {
		all[k] = true
	}
	for k := range got {
		all[k] = true
	}
	keys := slices.SortedFunc(maps.Keys(all), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.handler, b.handler), cmp.Compare(len(a.client), len(b.client)), cmp.Compare(a.client, b.client))
	})
	for _, k := range keys {
		s := known[k.handler]
		if d := compareLane(expected[k], got[k], s); d != "" {
			say("handler %d (%s), client %s: %s", s.id, s.name, k.client, d)
		}
	}
	return diffs
}

// compareLane compares one handler's view of one client and describes the first
// difference, or returns "".
func compareLane(want []transaction, came []arrival, s subscriber) string {
	if !s.ordered {
		came = slices.Clone(came)
		slices.SortStableFunc(came, func(a, b arrival) int {
			return cmp.Or(cmp.Compare(a.lsn, b.lsn), cmp.Compare(a.ordinal, b.ordinal))
		})
	}
	var got []transaction
	for i, a := range came {
		if i > 0 {
			p := came[i-1]
			if a.lsn < p.lsn || a.lsn == p.lsn && a.ordinal < p.ordinal {
				return fmt.Sprintf("event %s (%s of %s) came after event %s (%s of %s)", a.id, a.typ, a.object, p.id, p.typ, p.object)
			}
		}
		if n := len(got); n == 0 || got[n-1].lsn != a.lsn {
			got = append(got, transaction{lsn: a.lsn, xid: a.xid})
		}
		last := &got[len(got)-1]
		if n := len(last.events); n > 0 && strings.HasPrefix(last.events[n-1], "clients.delete ") {
			return fmt.Sprintf("event %s (%s of %s) came after the delete of its client", a.id, a.typ, a.object)
		}
		last.events = append(last.events, a.typ+" "+a.object)
	}
	next := 0
	for _, g := range got {
		for s.some && next < len(want) && !sameTransaction(want[next], g, true) {
			next++ // the handler's condition said no
		}
		if next == len(want) {
			return fmt.Sprintf("got %s (transaction %d), which the ledger does not expect", strings.Join(g.events, ", "), g.xid)
		}
		if !sameTransaction(want[next], g, s.some) {
			return fmt.Sprintf("the ledger expects %s (transaction %d) next, but %s (transaction %d) came",
				strings.Join(want[next].events, ", "), want[next].xid, strings.Join(g.events, ", "), g.xid)
		}
		next++
	}
	if next < len(want) && !s.some {
		var missed int
		for _, w := range want[next:] {
			missed += len(w.events)
		}
		return fmt.Sprintf("%d events never came, the first %s (transaction %d)", missed, want[next].events[0], want[next].xid)
	}
	return ""
}

// sameTransaction reports whether got is want, or with some, a part of it.
func sameTransaction(want, got transaction, some bool) bool {
	if got.xid != 0 && got.xid != want.xid {
		return false
	}
	w, g := slices.Sorted(slices.Values(want.events)), slices.Sorted(slices.Values(got.events))
	if !some {
		return slices.Equal(w, g)
	}
	for _, e := range g {
		i := slices.Index(w, e)
		if i < 0 {
			return false
		}
		w = slices.Delete(w, i, i+1)
	}
	return true
}

// entityOf returns what kind of thing the object of an event type is.
func entityOf(typ string) string {
	for _, prefix := range []string{"clients.accounts.", "clients.packages."} {
		if strings.HasPrefix(typ, prefix) {
			return prefix
		}
	}
	return "clients."
}
