package demo

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// came makes accepted arrivals of the handlers from lines such as
// "1 1-0/A-1 clients.update 7": handler, id, event type, object. A fifth word
// "refused" makes it one that was not accepted, another one other payload.
func cameFrom(t *testing.T, lines ...string) []arrival {
	t.Helper()
	var all []arrival
	for _, line := range lines {
		f := strings.Fields(line)
		a := arrival{id: f[1], typ: f[2], object: f[3], accepted: true, digest: sha256.Sum256([]byte(f[1])), attempt: 1}
		fmt.Sscan(f[0], &a.handler)
		var err error
		if a.lsn, a.ordinal, err = splitID(a.id); err != nil {
			t.Fatal(err)
		}
		if len(f) > 4 {
			a.accepted = f[4] != "refused"
			if a.accepted {
				a.digest = sha256.Sum256([]byte(f[4]))
			}
		}
		all = append(all, a)
	}
	return all
}

func TestCompare(t *testing.T) {
	ledger := []entry{
		{1, 100, "clients.create", "1"},
		{1, 100, "clients.accounts.create", "9"},
		{1, 101, "clients.update", "1"},
		{1, 103, "clients.update", "1"},
		{2, 102, "clients.update", "2"},
	}
	good := []string{
		"1 1-0/A-1 clients.create 1", "1 1-0/A-2 clients.accounts.create 9",
		"1 1-0/B-1 clients.update 1", "1 1-0/C-1 clients.update 2", "1 1-0/D-1 clients.update 1",
	}
	all := subscriber{id: 1, name: "all", patterns: []string{"*"}, ordered: true, enabled: true}
	with := func(change func(s *subscriber)) subscriber { s := all; change(&s); return s }
	replace := func(i int, line string) []string { l := slices.Clone(good); l[i] = line; return l }

	for _, c := range []struct {
		name  string
		who   subscriber
		lines []string
		want  string // part of the only difference; empty: none
	}{
		{"agrees", all, good, ""},
		{"clients come in any order among each other", all, []string{good[3], good[0], good[1], good[2], good[4]}, ""},
		{"a duplicate is none", all, append(slices.Clone(good), good[2]), ""},
		{"a refused attempt is none", all, append([]string{good[2] + " refused"}, good...), ""},
		{"the last one is missed", all, good[:4], "1 events never came, the first clients.update 1 (transaction 103)"},
		{"one in the middle is missed", all, slices.Delete(slices.Clone(good), 1, 2), "the ledger expects clients.create 1, clients.accounts.create 9"},
		{"all of a client are missed", all, slices.Delete(slices.Clone(good), 3, 4), "client 2: 1 events never came"},
		{"one too many", all, append(slices.Clone(good), "1 1-0/E-1 clients.update 1"), "does not expect"},
		{"one of a stranger", all, append(slices.Clone(good), "1 1-0/E-1 clients.update 3"), "does not expect"},
		{"another type", all, replace(2, "1 1-0/B-1 clients.archive 1"), "the ledger expects clients.update 1 (transaction 101) next, but clients.archive 1"},
		{"out of order", all, []string{good[0], good[1], good[4], good[2], good[3]}, "came after event 1-0/D-1"},
		{"out of order within a transaction", all, []string{good[1], good[0], good[2], good[3], good[4]}, "came after event 1-0/A-2"},
		{"two payloads under one id", all, append(slices.Clone(good), good[2]+" other"), "two different payloads under event id 1-0/B-1"},
		{"two events under one id", all, append(slices.Clone(good), "1 1-0/B-1 clients.update 2"), "stands for two events"},
		{"an unknown handler", all, append(slices.Clone(good), "2 1-0/B-1 clients.update 1"), "handler 2 is not in handlers.yaml"},
		{"no order asked for", with(func(s *subscriber) { s.ordered = false }), []string{good[4], good[3], good[2], good[1], good[0]}, ""},
		{"only updates", with(func(s *subscriber) { s.patterns = []string{"clients.update"} }), good[2:], ""},
		{"a pattern", with(func(s *subscriber) { s.patterns = []string{"clients.accounts.*"} }), good[1:2], ""},
		{"a condition may say no", with(func(s *subscriber) { s.some = true }), []string{good[0], good[4]}, ""},
		{"a condition makes nothing up", with(func(s *subscriber) { s.some = true }), []string{"1 1-0/E-1 clients.delete 1"}, "does not expect"},
		{"disabled", with(func(s *subscriber) { s.enabled = false }), nil, ""},
		{"disabled and called", with(func(s *subscriber) { s.enabled = false }), good[3:4], "does not expect"},
		{
			"deleted before its children", all,
			append(slices.Clone(good), "1 1-0/E-1 clients.delete 1", "1 1-0/E-2 clients.accounts.delete 9"), "after the delete of its client",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			diffs := compare(ledger, []subscriber{c.who}, cameFrom(t, c.lines...))
			switch {
			case c.want == "" && len(diffs) > 0:
				t.Errorf("differences: %q", diffs)
			case c.want != "" && !slices.ContainsFunc(diffs, func(d string) bool { return strings.Contains(d, c.want) }):
				t.Errorf("differences %q lack %q", diffs, c.want)
			}
		})
	}
}

func TestReadArrival(t *testing.T) {
	const event = `"dt":"2026-11-23T10:15:00.123456+00:00","events_id":"clients.update","object_id":4711`
	a, err := readArrival([]byte(`{"event":{`+event+`,"id":"1-16/B374D848-3","lane":"4711","xid":7731},"data":{}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if a.lsn != 0x16_B374D848 || a.ordinal != 3 || a.object != "4711" || a.client != "4711" || a.xid != 7731 ||
		!a.committed.Equal(time.Date(2026, 11, 23, 10, 15, 0, 123456000, time.UTC)) {
		t.Errorf("read %+v", a)
	}
	if a, err := readArrival([]byte(`{"event":{`+event+`},"data":{}}`), "1-0/1-1"); err != nil || a.id != "1-0/1-1" {
		t.Errorf("the header's id: %+v, %v", a, err)
	}
	cloud := `{"specversion":"1.0","id":"1-0/1-1","type":"clients.update","subject":"4711","data":{"event":{` + event + `,"id":"1-0/1-1","lane":"4711"}}}`
	if a, err := readArrival([]byte(cloud), "1-0/1-1"); err != nil || a.id != "1-0/1-1" || a.object != "4711" || a.client != "4711" {
		t.Errorf("a CloudEvent: %+v, %v", a, err)
	}
	for _, bad := range []struct{ body, id string }{
		{strings.Replace(cloud, `"subject":"4711"`, `"subject":"4712"`, 1), ""},
		{`{`, ""},
		{`{"event":{` + event + `}}`, ""},
		{`{"event":{` + event + `}}`, "1-zz-1"},
		{`{"event":{` + event + `,"id":"1-0/1-1"}}`, "1-0/2-1"},
		{`{"event":{"events_id":"clients.update","object_id":1,"id":"1-0/1-1"}}`, ""},
	} {
		if a, err := readArrival([]byte(bad.body), bad.id); err == nil {
			t.Errorf("%s with id %q was read as %+v", bad.body, bad.id, a)
		}
	}
}
