package billing

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/wal"
)

var seeds = flag.Int("seeds", 40, "random histories that TestSpill plays")

// same holds what a spilling Deriver did against what s did.
func (s *script) same(o *script) {
	s.t.Helper()
	if a, b := s.out.String(), o.out.String(); a != b {
		x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
		n := 0
		for n < min(len(x), len(y)) && x[n] == y[n] {
			n++
		}
		s.t.Errorf("spilling every %d changes, identity %c, from line %d on:\n%s\nnot:\n%s", o.every, s.identity, n+1,
			strings.Join(y[n:min(n+6, len(y))], "\n"), strings.Join(x[n:min(n+6, len(x))], "\n"))
	}
	a, b := s.mem.(memoryMap), o.mem.(memoryMap)
	if !maps.EqualFunc(a, b, slices.Equal[[]byte]) {
		s.t.Errorf("spilling every %d changes leaves in memory\n%q\nnot\n%q", o.every, b, a)
	}
	for key := range b {
		if strings.HasPrefix(key, scratch) {
			s.t.Errorf("%q is left in memory", key)
		}
	}
}

// agrees says how the events under another identity differ, beside what only one of
// them can know.
func (s *script) agrees(o *script) string {
	for i := range min(len(s.events), len(o.events)) {
		if diff := s.events[i].differs(o.events[i]); diff != "" {
			return diff
		}
	}
	if len(s.events) != len(o.events) {
		return fmt.Sprintf("%d events, not %d", len(o.events), len(s.events))
	}
	return ""
}

// history makes up transactions as a server could send them.
type history struct {
	r    *rand.Rand
	keys map[string]map[int]bool
	b    strings.Builder

	fields int
	apart  bool // no client and no balance gets another key without the other
	calm   bool // a custom field stays whose and what it is, and has an id of its own
}

func (h *history) say(format string, args ...any) { fmt.Fprintf(&h.b, format+"\n", args...) }

func (h *history) any(table string) (int, bool) {
	keys := slices.Sorted(maps.Keys(h.keys[table]))
	if len(keys) == 0 {
		return 0, false
	}
	return keys[h.r.IntN(len(keys))], true
}

func (h *history) free(table string) (int, bool) {
	if h.calm && table == "clients_custom_fields" {
		return 100 + h.fields, true
	}
	k := 1 + h.r.IntN(9)
	return k, !h.keys[table][k]
}

func (h *history) one(of ...string) string { return of[h.r.IntN(len(of))] }

func (h *history) columns(table string) string {
	text := func() string { return h.one("null", "a", "b", "longer_than_eight_bytes", "another_long_text") }
	number := func() string { return h.one("-3", "-0.5", "0", "0.00", "4", "7.5", "12", "NaN", "null") }
	client := func() int { return 1 + h.r.IntN(9) }
	switch table {
	case "clients":
		return fmt.Sprintf("name=%s tax_id=%s status=%s phone=%s balance=%s credit=%s", text(), h.one("null", "taxsecret1", "taxsecret2"), h.one("active", "archive"), h.one("1", "null"), number(), number())
	case "clients_balances":
		return "balance=" + number()
	case "clients_custom_fields":
		h.fields++ // a client has each field once
		return fmt.Sprintf("clients_id=%d field_key=k%d value=%s", client(), h.fields, text())
	case "accounts":
		return fmt.Sprintf("clients_id=%d name=%s amount=%s", client(), text(), number())
	}
	return fmt.Sprintf("clients_id=%d condition=%s status=%s period_start_dt=%s", client(), h.one("new", "activated", "deactivated"), h.one("active", "archive"), h.one("2026-10-01", "2026-11-01", "2026-12-01"))
}

// statement makes one up. Sometimes a part of an update is unchanged TOAST.
func (h *history) statement(tables []string) {
	table := h.one(tables...)
	key := map[string]string{"clients_balances": "clients_id"}[table]
	if key == "" {
		key = "id"
	}
	switch n := h.r.IntN(20); {
	case n < 6:
		if k, ok := h.free(table); ok {
			h.keys[table][k] = true
			h.say("insert %s %s=%d %s", table, key, k, h.columns(table))
		}
	case n < 13:
		if k, ok := h.any(table); ok {
			columns := h.columns(table)
			if table == "clients_custom_fields" && (h.calm || h.r.IntN(3) > 0) {
				columns = "value=" + h.one("null", "a", "b", "longer_than_eight_bytes")
			}
			h.say("update %s %d %s", table, k, columns)
		}
	case n < 14 && slices.Contains([]string{"clients", "accounts"}, table):
		if k, ok := h.any(table); ok {
			h.say("update %s %d name=~", table, k)
		}
	case n < 16 && h.apart && slices.Contains([]string{"clients", "clients_balances"}, table):
	case n < 16:
		k, ok := h.any(table)
		if to, free := h.free(table); ok && free && (!h.calm || table != "clients_custom_fields") {
			delete(h.keys[table], k)
			h.keys[table][to] = true
			h.say("update %s %d %s=%d", table, k, key, to)
		}
	case n < 19:
		if k, ok := h.any(table); ok {
			delete(h.keys[table], k)
			h.say("delete %s %d", table, k)
		}
	case h.r.IntN(4) == 0:
		clear(h.keys[table])
		h.say("truncate %s", table)
	}
}

// TestSpill derives random histories with transactions folded at once and with
// transactions spilled every few changes. Events and memory must be the same.
func TestSpill(t *testing.T) {
	all := mappings(t)
	for seed := range *seeds {
		for _, name := range []string{"side", "rules", "timed"} {
			h := &history{r: rand.New(rand.NewPCG(uint64(seed), 7)), keys: map[string]map[int]bool{}, calm: seed%2 == 0, apart: name == "timed"}
			tables := []string{"clients", "accounts"}
			h.say("table public.clients id:int* name:text tax_id:text status:text phone:text balance:numeric credit:numeric")
			h.say("table public.accounts id:int* clients_id:int name:text amount:numeric")
			if name != "rules" {
				tables = append(tables, "clients_balances", "clients_custom_fields", "clients_packages")
				h.say("table public.clients_balances clients_id:int* balance:numeric")
				h.say("table public.clients_custom_fields id:int* clients_id:int field_key:text value:text")
				h.say("table public.clients_packages id:int* clients_id:int condition:text status:text period_start_dt:date")
			}
			for _, table := range tables {
				h.keys[table] = map[int]bool{}
			}
			h.say("filled")
			for n := range 6 {
				h.say("begin")
				for range 1 + h.r.IntN(25) {
					h.statement(tables)
				}
				h.say("commit")
				h.say("clock %s", time.Date(2026, 10, 20+12*n, 0, 0, 0, 0, time.UTC).Format(time.DateTime))
				h.say("pending")
			}
			steps := h.b.String()
			var first *script
			for _, identity := range []wal.Identity{wal.IdentityDefault, wal.IdentityFull, wal.IdentityIndex} {
				want := play(t, all[name], identity, nil, 0, steps)
				for _, every := range []int{1, 2, 5, 11} {
					want.same(play(t, all[name], identity, want, every, steps))
				}
				if first == nil {
					first = want
				} else if diff := first.agrees(want); h.calm && diff != "" {
					t.Errorf("identity %c: %s", identity, diff)
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d, mapping %s:\n%s", seed, name, steps)
			}
		}
	}
}
