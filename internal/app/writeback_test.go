package app

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/replication/writeback"
)

func writesOf(t *testing.T, entities string) *writeBack {
	t.Helper()
	path := filepath.Join(t.TempDir(), "billhook.yaml")
	text := "version: 1\nsource: {dsn: \"host=h user=u dbname=d\"}\n" + entities + "\njournal: {path: " + filepath.Join(t.TempDir(), "j") + "}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := config.LoadBillhook(path, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	m, err := mapping(b)
	if err != nil {
		t.Fatal(err)
	}
	return newWriteBack(m, b.EventTypes())
}

const writeSide = `entities:
  clients:
    table: public.clients
    key: [id]
    balance: {table: public.clients_balances, key: [clients_id], column: balance}
    custom_fields: {table: public.fields, client: [clients_id], name: name, value: value}
    truncate: true
  accounts: {table: public.accounts, key: [id], client: clients_id, balance: {column: amount}}
events:
  clients.low: {entity: clients, threshold: {expression: balance, value: 10}}
  clients.in_debt: {entity: clients, threshold: {expression: "balance + clients.credit", value: 0, back: clients.out_of_debt}}
  clients.credit_gone: {entity: clients, threshold: {expression: clients.credit, value: 0}}
  clients.renamed: {entity: clients, changes: name}`

const writeSingle = `entities:
  clients: {table: public.clients, key: [tenant, code], balance: {column: balance}, custom_fields: {column: fields}}`

// TestWriteBackRow: which events have the row that an answer is written into, and what
// is written where.
func TestWriteBackRow(t *testing.T) {
	side, single := writesOf(t, writeSide), writesOf(t, writeSingle)
	for _, c := range []struct {
		writes *writeBack
		typ    string
		entity string
		object string
		answer string
		want   string // of the row, or the refusal after a "!"
	}{
		{side, "clients.update", "clients", "7", `{"status": "blocked", "n": 1.50}`, `public.clients id=7 status="blocked"/"active" n=1.50/null`},
		{side, "clients.delete", "clients", "7", `{"status": null}`, `public.clients id=7 status=null/"active"`},
		{side, "clients.renamed", "clients", "7", `{"status": true}`, `public.clients id=7 status=true/"active"`},
		{side, "clients.credit_gone", "clients", "7", `{"status": "b"}`, `public.clients id=7 status="b"/"active"`},
		{side, "clients.accounts.balance_zero", "accounts", "9", `{"status": "b"}`, `public.accounts id=9 status="b"/"active"`},
		{side, "clients.update", "clients", "7", `{}`, ""},
		{side, "clients.update", "clients", "7", `{"status": 1, "status": 2}`, `!column "status" is in it twice`},
		{side, "clients.update", "clients", "7", `{"status": 1, "name": 2}`, `!column "name" is not in the handler's write_back`},
		{side, "clients.update", "clients", "7", `{"large": "x"}`, `!does not have column "large"`},
		{side, "clients.balance_zero", "clients", "7", `{"status": "b"}`, "!does not have the row"},
		{side, "clients.balance_notzero", "clients", "7", `{"status": "b"}`, "!does not have the row"},
		{side, "clients.custom_fields.update", "clients", "7", `{"status": "b"}`, "!does not have the row"},
		{side, "clients.low", "clients", "7", `{"status": "b"}`, "!does not have the row"},
		{side, "clients.in_debt", "clients", "7", `{"status": "b"}`, "!does not have the row"},
		{side, "clients.out_of_debt", "clients", "7", `{"status": "b"}`, "!does not have the row"},
		{side, "clients.truncate", "clients", "", `{"status": "b"}`, "!does not have the row"},
		{side, "clients.packages.assign", "packages", "7", `{"status": "b"}`, "!not mapped"},
		{single, "clients.balance_zero", "clients", `a\,b,c`, `{"status": "b"}`, `public.clients tenant=a,b code=c status="b"/"active"`},
		{single, "clients.custom_fields.update", "clients", "a,b", `{"status": "b"}`, `public.clients tenant=a code=b status="b"/"active"`},
		{single, "clients.update", "clients", "a", `{"status": "b"}`, "!not the 2 parts"},
	} {
		e := &event.Event{Type: event.Type(c.typ), Entity: c.entity, Object: c.object, Data: []byte(`{"id":7,"status":"active","n":null,"name":"x"}`)}
		row, out := c.writes.row([]string{"status", "n", "large"}, e, json.RawMessage(c.answer))
		got := ""
		if len(row.Values) > 0 {
			got = row.Table.String()
			for i, k := range row.Key {
				got += " " + k + "=" + row.Texts[i]
			}
			for _, v := range row.Values {
				got += fmt.Sprintf(" %s=%s/%s", v.Column, v.JSON, v.Was)
			}
		}
		if refusal, ok := strings.CutPrefix(c.want, "!"); ok {
			if out.Result != writeback.Refused || !strings.Contains(out.Text, refusal) || got != "" {
				t.Errorf("%s %s: %q, %+v; want it refused: %s", c.typ, c.answer, got, out, refusal)
			}
		} else if got != c.want || out.Result != "" {
			t.Errorf("%s %s: %q, %+v; want %q", c.typ, c.answer, got, out, c.want)
		}
	}
}

// TestWriteBackEntities: whose columns a handler's write_back is about.
func TestWriteBackEntities(t *testing.T) {
	w := writesOf(t, writeSide)
	for _, c := range []struct {
		events []string
		want   []string
	}{
		{[]string{"clients.update"}, []string{"clients"}},
		{[]string{"clients.*"}, []string{"accounts", "clients"}},
		{[]string{"*"}, []string{"accounts", "clients"}},
		{[]string{"clients.balance_zero", "clients.accounts.balance_zero"}, []string{"accounts"}},
		{[]string{"clients.balance_zero", "clients.low"}, nil},
		{nil, nil},
	} {
		var got []string
		for _, e := range w.entities(&config.Handler{Events: c.events}) {
			got = append(got, e.Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%v is about %v, want %v", c.events, got, c.want)
		}
	}
}
