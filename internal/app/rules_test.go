package app

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRuleTests runs files of tests, good and bad, as the command does, on a machine that
// has neither the scripts nor the secrets.
func TestRuleTests(t *testing.T) {
	dir := "../../testdata/ruletest"
	o := Options{ConfigPath: filepath.Join(dir, "billhook.yaml"), HandlersPath: filepath.Join(dir, "handlers.yaml"), Env: func(string) (string, bool) { return "", false }}
	for _, name := range []string{"good", "bad"} {
		path := filepath.Join(dir, name+".test.yaml")
		results, err := TestRules(o, []string{path}, "")
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, r := range results {
			fmt.Fprintf(&b, "%s %s, %d events\n", r.At, r.Name, r.Events)
			for _, f := range r.Failures {
				fmt.Fprintf(&b, "\t%s\n", f)
			}
		}
		golden(t, filepath.Join(dir, name+".out"), strings.ReplaceAll(b.String(), dir+"/", ""))
	}
	if only, err := TestRules(o, []string{filepath.Join(dir, "good.test.yaml")}, "runs out"); err != nil || len(only) != 1 {
		t.Errorf("%+v %v", only, err)
	}

	for _, c := range []struct{ text, want string }{
		{"", "the file is empty"},
		{"version: 2\ntests: [{name: x}]", "version is 2, want 1"},
		{"version: 1", "there are no tests in it"},
		{"version: 1\nnosuch: 1", "line 2: field nosuch not found"},
		{"version: 1\ntests:\n  - nam: x", `line 3: there is no key "nam" here; there are name, start, identity, rows, transactions`},
		{"version: 1\ntests:\n  - transactions:\n    - chnages: []", `line 4: there is no key "chnages" here`},
		{"version: 1\ntypes: {public.clients: {id: int9}}\ntests: [{name: x}]", `types: public.clients.id: "int9" is none of bigint`},
		{"version: 1\ntests: [1]", "line 2: want a mapping"},
		{"\t", "yaml:"},
	} {
		path := filepath.Join(t.TempDir(), "x.test.yaml")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := TestRules(o, []string{path}, ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.text, err, c.want)
		}
	}
	for _, c := range []struct{ text, want string }{
		{"{start: noon, transactions: []}", "x.test.yaml:2: start: want a time"},
		{"{identity: nothing}", "identity: \"nothing\" is none of default, full"},
		{"{transactions: [{after: soon}]}", "after: want a duration"},
		{"{transactions: [{}]}", "a transaction has changes, or time that passes"},
		{"{transactions: [{changes: [{insert: public.clients}]}]}", "row is missing: the new row's columns"},
		{"{transactions: [{changes: [{delete: public.clients, row: {id: 1}, set: {id: 2}}]}]}", "set belongs to update"},
		{"{transactions: [{changes: [{insert: public.clients, row: 7}]}]}", "want a mapping of columns to values"},
		{"{rows: {public.clients: [{id: 1, name: a}, {id: 2, name: a}]}, transactions: [{changes: [{delete: public.clients, row: {name: a}}]}]}", "there are several such rows in public.clients"},
	} {
		path := filepath.Join(t.TempDir(), "x.test.yaml")
		if err := os.WriteFile(path, []byte("version: 1\ntests: ["+c.text+"]"), 0o600); err != nil {
			t.Fatal(err)
		}
		results, err := TestRules(o, []string{path}, "")
		if err != nil || len(results[0].Failures) != 1 || !strings.Contains(results[0].Failures[0], c.want) {
			t.Errorf("%s: %+v %v, want %s", c.text, results, err, c.want)
		}
	}
}
