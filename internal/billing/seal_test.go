package billing

import (
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// play runs steps under a mapping on a memory, as another start of Billhook would,
// and returns the events.
func playOn(t *testing.T, mem Timers, m Mapping, seal string, lsn *wal.LSN, rows map[string]map[string]wal.Tuple, steps string) string {
	t.Helper()
	s := &script{t: t, identity: wal.IdentityDefault, mem: mem, rels: map[string]*wal.Relation{}, primary: map[string]bool{}, rows: rows, lsn: *lsn}
	var err error
	s.d, err = New(m, Options{Seal: []byte(seal), Broken: func(typ event.Type, err error) { s.out.WriteString("broken: " + err.Error() + "\n") }})
	if err != nil {
		t.Fatal(err)
	}
	s.line("table public.clients id:int* name:text tax_id:text pin:text vip:text")
	for line := range strings.Lines(steps) {
		if line = strings.TrimSpace(line); line != "" {
			s.line(line)
		}
	}
	*lsn = s.lsn
	var types []string
	for _, e := range s.events {
		types = append(types, e.Event.Type)
	}
	return strings.Join(types, " ")
}

// TestSealedMemory: of masked columns memory holds a keyed digest, of short texts
// too, and what it held before they were masked tells no false update. Filling
// replaces it.
func TestSealedMemory(t *testing.T) {
	m := Mapping{Source: "billing", Entities: []Entity{{
		Name: Clients, Table: Table{"public", "clients"}, Key: []string{"id"},
		Archive: &Test{Becomes: &Predicate{Column: "vip", Set: true}},
	}}}
	masked := m
	masked.Entities = []Entity{m.Entities[0]}
	masked.Entities[0].Mask = []string{"tax_id", "pin", "vip"}

	var lsn wal.LSN
	mem, rows := memoryMap{}, map[string]map[string]wal.Tuple{}
	holds := func(text string) bool {
		for _, v := range mem {
			if strings.Contains(string(v), text) {
				return true
			}
		}
		return false
	}
	expect := func(m Mapping, seal, steps, want string) {
		t.Helper()
		if got := playOn(t, mem, m, seal, &lsn, rows, "begin\n"+steps+"\ncommit"); got != want {
			t.Errorf("%s: %s, want %s", steps, got, want)
		}
	}
	expect(m, "k", "insert clients id=1 name=Acme tax_id=DE123456789 pin=1234", "clients.create")
	if !holds("1234") {
		t.Fatal("a short text is not kept as it is: this test proves nothing")
	}
	// Masked from now on: what was remembered tells nothing.
	expect(masked, "k", "update clients 1 pin=1234", "")
	if holds("1234") {
		t.Error("a masked text is in memory")
	}
	expect(masked, "k", "update clients 1 pin=1234", "")
	expect(masked, "k", "update clients 1 pin=4321", "clients.update")
	expect(masked, "k", "update clients 1 tax_id=DE987654321", "clients.update")
	expect(masked, "k", "update clients 1 pin=null", "clients.update")
	expect(masked, "k", "update clients 1 vip=very", "clients.archive")
	expect(masked, "k", "update clients 1 vip=more", "clients.update")
	expect(masked, "k", "update clients 1 vip=null", "clients.update")
	expect(masked, "k", "update clients 1 vip=again", "clients.archive")
	for _, text := range []string{"1234", "4321", "DE", "very", "more", "again"} {
		if holds(text) {
			t.Errorf("memory holds %s", text)
		}
	}
	// Under another key nothing is the same; so the key is kept with the memory.
	expect(masked, "other", "update clients 1 name=Acme", "clients.update")
	expect(masked, "other", "update clients 1 name=Acme", "")
	// No longer masked: the keyed digest still tells.
	expect(m, "other", "update clients 1 name=Acme", "")
	expect(m, "other", "update clients 1 tax_id=DE1", "clients.update")

	// Filling replaces what stands there from before the mask.
	expect(m, "k", "insert clients id=2 name=Old pin=7777", "clients.create")
	playOn(t, mem, masked, "k", &lsn, rows, "fill clients")
	if holds("7777") {
		t.Error("after filling a masked text is in memory still")
	}
	expect(masked, "k", "update clients 2 pin=7777", "")
	expect(masked, "k", "update clients 2 pin=7778", "clients.update")
}

// TestMaskedConditions: why a condition failed is not told when the text may quote
// a masked value.
func TestMaskedConditions(t *testing.T) {
	for _, tt := range []struct{ when, want string }{
		{`"x".matches(new.pin)`, ""},
		{`"x".matches(new.name)`, "secret"},
		{`new.all(c, c == "id" || "x".matches(new[c]))`, ""},
	} {
		var broken string
		m := Mapping{Source: "billing", Entities: []Entity{{Name: Clients, Table: Table{"public", "clients"}, Key: []string{"id"}, Mask: []string{"pin"}}}, Rules: []Rule{
			{Event: "clients.x", Entity: Clients, On: OnInsert, Test: Test{When: mustCondition(t, tt.when)}},
		}}
		d, err := New(m, Options{Broken: func(_ event.Type, err error) { broken = err.Error() }})
		if err != nil {
			t.Fatal(err)
		}
		s := &script{t: t, identity: wal.IdentityDefault, mem: memoryMap{}, rels: map[string]*wal.Relation{}, primary: map[string]bool{}, rows: map[string]map[string]wal.Tuple{}, d: d}
		for _, line := range []string{"table public.clients id:int* name:text pin:text", "begin", "insert clients id=1 name=secret( pin=secret(", "commit"} {
			s.line(line)
		}
		if broken == "" || strings.Contains(broken, "secret") != (tt.want == "secret") {
			t.Errorf("%s: %s", tt.when, broken)
		}
	}
}

// TestExcludedLeaves: nothing of the open transaction holds an excluded value, also
// when the server sends it.
func TestExcludedLeaves(t *testing.T) {
	d, err := New(Mapping{Source: "billing", Entities: []Entity{{Name: Clients, Table: Table{"public", "clients"}, Key: []string{"id"}, Exclude: []string{"notes"}}}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	rel := &wal.Relation{ID: 1, Schema: "public", Name: "clients", Identity: wal.IdentityFull, Columns: []wal.Column{{Name: "id", Type: 20, Key: true}, {Name: "notes", Type: 25, Key: true}}}
	c := &wal.Change{Op: wal.Update, Relation: rel, OldKind: wal.OldFull, Old: wal.Tuple{value("1"), value("secret")}, New: wal.Tuple{value("1"), value("secret_too")}}
	d.Begin(1, wal.Begin{CommitLSN: 1})
	if !d.Change(c) {
		t.Fatal("the change was not taken")
	}
	for _, r := range d.tx.rows {
		for _, tuple := range [][]wal.Value{r.old, r.new, c.Old, c.New} {
			if tuple[1].Kind != wal.Unknown || len(tuple[1].Text) > 0 || string(tuple[0].Text) != "1" {
				t.Errorf("%v", tuple)
			}
		}
	}
}
