package expr

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cockroachdb/apd/v3"
)

func dec(t *testing.T, s string) any {
	t.Helper()
	d, ok := Decimal(s)
	if !ok {
		t.Fatalf("Decimal(%q): not a number", s)
	}
	return d
}

func TestRow(t *testing.T) {
	row := Row{
		Old:     map[string]any{"companies_id": int64(1), "status": "active", "balance": dec(t, "10.00"), "note": nil},
		New:     map[string]any{"companies_id": int64(2), "status": "active", "balance": dec(t, "0.30"), "credit": dec(t, "0.10"), "note": nil},
		Changed: []string{"companies_id", "balance"},
		Op:      "update",
		TX:      map[string]any{"xid": int64(7)},
	}
	tests := []struct {
		text string
		want bool
		err  string
	}{
		{`old.companies_id != new.companies_id`, true, ""},
		{`old.status != new.status`, false, ""},
		{`new.balance < 1`, true, ""},
		{`new.balance < 0.3`, false, ""},
		{`new.balance == decimal("0.3")`, true, ""},
		{`new.balance + new.credit == decimal("0.4")`, true, ""},
		{`old.balance - new.balance > decimal("9.69")`, true, ""},
		{`"balance" in changed && op == "update"`, true, ""},
		{`new.companies_id in [1, 2, 3]`, true, ""},
		{`new.note == null`, true, ""},
		{`1 > new.balance`, true, ""},
		{`0.3 >= new.balance && 0.3 <= new.balance`, true, ""},
		{`1u < old.balance`, true, ""},
		{`10 == old.balance && 10.0 == old.balance && !(10 != old.balance)`, true, ""},
		{`old.balance in [5, 10]`, true, ""},
		{`10 - new.balance == decimal("9.7") && 2 * new.credit == decimal("0.2")`, true, ""},
		{`new.companies_id * new.balance + 1 > 1.59`, true, ""},
		{`3 / new.credit == 30`, true, ""},
		{`2 + (1 - (1 - (1 - new.credit))) < 3`, true, ""},
		{`"a" + new.status == "aactive" && [1] + [2] == [1, 2]`, true, ""},
		{`"a" > new.balance`, false, "no such overload"},
		{`null > new.balance`, false, "no such overload"},
		{`has(old.credit)`, false, ""},
		{`old.credit == decimal("1")`, false, "no such key: credit"},
		{`tx.xid == 7`, true, ""},
		{`new.status < 1`, false, "no such overload"},
	}
	for _, tt := range tests {
		c, err := CompileRow(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		got, err := c.Row(row)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want one with %q", tt.text, err, tt.err)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%s = %v, %v; want %v", tt.text, got, err, tt.want)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	tests := []struct {
		text         string
		line, column int
		want         string
	}{
		{`old.a ==`, 1, 9, "Syntax error"},
		{`olde.a == 1`, 1, 1, "undeclared reference to 'olde'"},
		{"op == 'update' &&\n  op + 1 == 2", 2, 6, "no matching overload"},
		{`"text"`, 1, 1, "want true or false"},
		{``, 1, 1, "Syntax error"},
		{"op ==\n  1", 1, 4, "no matching overload"},
		{`changed == "x"`, 1, 9, "no matching overload"},
		{`nosuch(old.a)`, 1, 7, "undeclared reference to 'nosuch'"},
		{`size(op, 1) > 1`, 1, 5, "no matching overload"},
		{`old.a > 1 && tx.id == 1`, 1, 14, "tx has no id; it has xid and commit_time"},
		{`old.a ? op : changed`, 1, 7, "no matching overload"},
		{`changed`, 1, 1, "the condition is of type list(string), want true or false"},
		{`old.x.startsWith(1)`, 1, 17, "no matching overload"},
	}
	for _, tt := range tests {
		_, err := CompileRow(tt.text)
		if err == nil {
			t.Errorf("%q: no error", tt.text)
			continue
		}
		line, column, ok := Pos(err)
		if !ok || line != tt.line || column != tt.column || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %d:%d %v; want %d:%d %s", tt.text, line, column, err, tt.line, tt.column, tt.want)
		}
	}
}

func TestEvent(t *testing.T) {
	payload := `{"event":{"events_id":"clients.update","object_id":4711},"data":{"currency":"USD","balance":"-0.500000","tags":["a"],"rate":1.5},"changed":{"name":{"old":"a","new":"b"}}}`
	var doc struct{ Event, Data, Changed map[string]any }
	d := json.NewDecoder(strings.NewReader(payload))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		`data.currency == "USD"`:                       true,
		`event.object_id == 4711`:                      true,
		`decimal(data.balance) < 0`:                    true,
		`data.rate > 1`:                                true,
		`"a" in data.tags`:                             true,
		`"name" in changed && changed.name.old == "a"`: true,
		`event.events_id.startsWith("clients.p")`:      false,
	} {
		c, err := CompileEvent(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := c.Event(doc.Event, doc.Data, doc.Changed); err != nil || got != want {
			t.Errorf("%s = %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestColumns(t *testing.T) {
	c, err := CompileRow(`old.a != new["b"] && changed.exists(x, x == "c") && has(old.d)`)
	if err != nil {
		t.Fatal(err)
	}
	if names, all := c.Columns("old"); all || strings.Join(names, " ") != "a d" {
		t.Errorf("old: %v, all %v", names, all)
	}
	if names, all := c.Columns("new"); all || strings.Join(names, " ") != "b" {
		t.Errorf("new: %v, all %v", names, all)
	}
	if _, all := c.Columns("changed"); !all {
		t.Error("changed: want all")
	}
	if names, all := c.Columns("tx"); all || names != nil {
		t.Errorf("tx: %v, all %v", names, all)
	}
}

func TestPlace(t *testing.T) {
	c, err := CompileRow("new.a == 1 &&\n  has(old.b) && old.c > 1")
	if err != nil {
		t.Fatal(err)
	}
	for variable, want := range map[string]place{"new": {1, 1}, "old": {2, 7}, "changed": {}} {
		line, column, ok := c.Place(variable)
		if got := (place{line, column}); got != want || ok != (want != place{}) {
			t.Errorf("%s at %v, %v; want %v", variable, got, ok, want)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(`old.a != new.b`)
	f.Add(`changed.exists(c, c == "x")`)
	f.Add(`decimal("1") / 0 == 1`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := CompileRow(text)
		if err != nil {
			return
		}
		_, _ = c.Row(Row{Old: map[string]any{}, New: map[string]any{"a": int64(1)}})
	})
}

func TestNumber(t *testing.T) {
	columns := map[string]string{"balance": "0.10", "credit": "0.20", "x": "-3"}
	tests := []struct{ text, want string }{
		{"balance + credit", "0.30"},
		{"balance+credit*2", "0.50"},
		{"(balance + credit) * 2", "0.60"},
		{"-x - -1", "4"},
		{"10 - x / 2", "11.5"},
		{"  credit  ", "0.20"},
		{"balance / (credit - 0.2)", ""},
		{"balance + nosuch", ""},
	}
	for _, tt := range tests {
		n, err := CompileNumber(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		d, ok := n.Eval(func(i int) (*apd.Decimal, bool) {
			d, _, err := apd.NewFromString(columns[n.Columns()[i]])
			return d, err == nil
		})
		want, _, _ := apd.NewFromString(tt.want)
		if ok != (tt.want != "") || ok && d.Cmp(want) != 0 {
			t.Errorf("%s = %v, %v; want %q", tt.text, d, ok, tt.want)
		}
	}
	for text, column := range map[string]int{"": 1, "a +": 4, "(a": 3, "a b": 3, "a ! b": 3, "1.2.3": 1, strings.Repeat("(", 200) + "a": 102} {
		if _, err := CompileNumber(text); err == nil {
			t.Errorf("%q compiled", text)
		} else if _, c, ok := Pos(err); !ok || c != column {
			t.Errorf("%q: %v at column %d, want %d", text, err, c, column)
		}
	}
}

func FuzzCompileNumber(f *testing.F) {
	f.Add("balance + credit")
	f.Add("-(a*2.5)/b-1")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := CompileNumber(text)
		if err != nil {
			return
		}
		n.Eval(func(int) (*apd.Decimal, bool) { return apd.New(1, 0), true })
	})
}
