package dispatch

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/event"
)

func TestPlan(t *testing.T) {
	usd := func(e *event.Event) (bool, error) { return strings.Contains(string(e.Data), "USD"), nil }
	broken := func(*event.Event) (bool, error) { return false, errors.New("no such key: currency") }
	panics := func(*event.Event) (bool, error) { panic("out of range") }
	tests := []struct {
		name string
		hs   []*Handler
		typ  event.Type
		plan string
		err  string
	}{
		{name: "none", typ: "clients.create"},
		{
			name: "exact", typ: "clients.create",
			hs: []*Handler{
				{ID: 1, Events: []string{"clients.create"}},
				{ID: 2, Events: []string{"clients.update"}},
				{ID: 3, Events: []string{"clients.creates", "clients.creat"}},
				{ID: 4, Events: []string{"clients.update", "clients.create"}},
			},
			plan: "1/0 4/0",
		},
		{
			name: "patterns", typ: "clients.accounts.create",
			hs: []*Handler{
				{ID: 1, Events: []string{"*"}},
				{ID: 2, Events: []string{"clients.*"}},
				{ID: 3, Events: []string{"clients.accounts.*"}},
				{ID: 4, Events: []string{"clients.packages.*"}},
				{ID: 5, Events: []string{"client.*"}},
				{ID: 6, Events: []string{"clients.accounts.create.*"}},
				{ID: 7, Events: nil},
				{ID: 8, Events: []string{"clients.*", "*"}},
			},
			plan: "1/0 2/0 3/0 8/0",
		},
		{
			name: "priority, then id", typ: "clients.create",
			hs: []*Handler{
				{ID: 9, Priority: 1, Events: []string{"*"}},
				{ID: 2, Priority: 2, Events: []string{"*"}},
				{ID: 7, Priority: -1, Events: []string{"*"}},
				{ID: 1, Priority: 2, Events: []string{"*"}},
				{ID: 3, Priority: 1, Events: []string{"*"}},
			},
			plan: "7/-1 3/1 9/1 1/2 2/2",
		},
		{
			name: "status", typ: "clients.create",
			hs: []*Handler{
				{ID: 1, Events: []string{"*"}},
				{ID: 2, Events: []string{"*"}, Status: Disabled},
				{ID: 3, Events: []string{"*"}, Status: Archived},
			},
			plan: "1/0 2/0held",
		},
		{
			name: "condition", typ: "clients.create",
			hs: []*Handler{
				{ID: 1, Events: []string{"*"}, When: usd},
				{ID: 2, Events: []string{"*"}, When: func(*event.Event) (bool, error) { return false, nil }},
				{ID: 3, Events: []string{"*"}, When: usd, Status: Disabled},
			},
			plan: "1/0 3/0held",
		},
		{
			name: "a condition that cannot be judged does not lose the event", typ: "clients.create",
			hs: []*Handler{
				{ID: 1, Name: "crm", Events: []string{"*"}, When: broken},
				{ID: 2, Name: "switch", Events: []string{"*"}, When: panics},
				{ID: 3, Events: []string{"*"}},
				{ID: 4, Events: []string{"clients.update"}, When: broken},
			},
			plan: "1/0 2/0 3/0",
			err: "condition of handler 1 (crm) on event 1-0/64-1: no such key: currency\n" +
				"condition of handler 2 (switch) on event 1-0/64-1: panic: out of range",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := testEvent(1, 1, tt.typ, "4711")
			e.Data = []byte(`{"currency":"USD"}`)
			plan, err := Plan(tt.hs, e)
			var got []string
			for _, p := range plan {
				s := fmt.Sprintf("%d/%d", p.Handler, p.Priority)
				if p.Held {
					s += "held"
				}
				got = append(got, s)
			}
			if s := strings.Join(got, " "); s != tt.plan {
				t.Errorf("plan %q, want %q", s, tt.plan)
			}
			if text := fmt.Sprint(err); err == nil && tt.err != "" || err != nil && text != tt.err {
				t.Errorf("error %v, want %s", err, tt.err)
			}
		})
	}
}

func BenchmarkPlan(b *testing.B) {
	var hs []*Handler
	for id := 1; id <= 20; id++ {
		hs = append(hs, &Handler{ID: id, Events: []string{"clients.packages.*", "clients.balance_zero"}, Priority: id % 3})
	}
	zero, create := testEvent(1, 1, "clients.balance_zero", "1"), testEvent(1, 1, "clients.create", "1")
	b.ReportAllocs()
	for b.Loop() {
		if p, _ := Plan(hs, zero); len(p) != 20 {
			b.Fatal(p)
		}
		if p, _ := Plan(hs, create); len(p) != 0 {
			b.Fatal(p)
		}
	}
}
