package ruletest

import (
	"os"
	"testing"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
)

// FuzzLoad: whatever a file says, it is run or refused.
func FuzzLoad(f *testing.F) {
	for _, name := range []string{"good", "bad"} {
		b, err := os.ReadFile("../../testdata/ruletest/" + name + ".test.yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("version: 1\ntests: [{rows: {public.clients: [&a {id: *a}]}}]")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Load("x.yaml", []byte(text))
		if err != nil {
			return
		}
		file.Run(Options{
			Mapping: billing.Mapping{Entities: []billing.Entity{{Name: billing.Clients, Table: billing.Table{Schema: "public", Name: "clients"}, Key: []string{"id"}}}},
			Plan:    func(*event.Event) ([]int, error) { return []int{1}, nil },
			Resolve: func(name string) (event.Type, bool) { return event.Type(name), true },
		})
	})
}
