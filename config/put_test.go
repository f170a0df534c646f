package config

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestPut runs testdata/put: an archive with the file before, what is to be done, and the
// file after or the error. What is to be done is a line "put 3", "add 4" or "remove 5" and
// for a draft "field=value" lines; \n in a value is a line end.
func TestPut(t *testing.T) {
	files, err := filepath.Glob("testdata/put/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]string{}
			for _, f := range a.Files {
				parts[f.Name] = string(f.Data)
			}
			before := parts["before"]
			if strings.Contains(string(a.Comment), "(CRLF)") {
				before = strings.ReplaceAll(before, "\n", "\r\n")
			}
			got, err := do(before, parts["do"])
			name, want := "after", string(got)
			if err != nil {
				name, want = "error", err.Error()+"\n"
			}
			if strings.Contains(string(a.Comment), "(CRLF)") {
				if strings.Count(want, "\n") != strings.Count(want, "\r\n") {
					t.Errorf("line ends are mixed: %q", want)
				}
				want = strings.ReplaceAll(want, "\r\n", "\n")
			}
			if flag.Lookup("update").Value.String() == "true" {
				a.Files = append(a.Files[:2:2], txtar.File{Name: name, Data: []byte(want)})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if parts[name] != want {
				t.Errorf("%s:\n%s\nwant\n%s", name, want, parts[name])
			}
		})
	}
}

func do(before, todo string) ([]byte, error) {
	head, rest, _ := strings.Cut(todo, "\n")
	verb, number, _ := strings.Cut(head, " ")
	id, err := strconv.Atoi(number)
	if err != nil {
		return nil, err
	}
	d := Draft{}
	for line := range strings.Lines(rest) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		d[name] = strings.ReplaceAll(value, `\n`, "\n")
	}
	switch verb {
	case "put":
		return PutHandler("handlers.yaml", []byte(before), id, d)
	case "add":
		return AddHandler("handlers.yaml", []byte(before), id, d)
	case "remove":
		return RemoveHandler("handlers.yaml", []byte(before), id)
	case "hide":
		return HideSecrets("handlers.yaml", []byte(before))
	case "read":
		d, fixed, err := ReadDraft("handlers.yaml", []byte(before), id)
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(d)) {
			fmt.Fprintf(&b, "%s=%s\n", name, strings.ReplaceAll(d[name], "\n", `\n`))
		}
		fmt.Fprintln(&b, "fixed:", fixed)
		return []byte(b.String()), err
	}
	return nil, errors.New("no such verb: " + verb)
}

// TestDraftFields holds the form's fields to the type and the schema: each is explained.
func TestDraftFields(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range DraftFields() {
		if f.Doc == "" || seen[f.Name] {
			t.Errorf("%s: explained %q, seen %v", f.Name, f.Doc, seen[f.Name])
		}
		seen[f.Name] = true
	}
	for name, typ := range map[string]DraftType{
		"name": DraftText, "events": DraftList, "priority": DraftNumber, "status": DraftText, "when": DraftLines, "retry.schedule": DraftList,
		"blocking": DraftFlag, "http.headers": DraftSecrets, "http.bearer": DraftSecret, "http.allow": DraftList, "script.env": DraftSecrets,
		"plugin.config": DraftYAML, "write_back": DraftList, "http.statuses.retry": DraftList, "script.limits.cpu": DraftText, "breaker.pause": DraftText,
	} {
		if f, ok := draftField(name); !ok || f.Type != typ {
			t.Errorf("%s is %q, want %q", name, f.Type, typ)
		}
	}
	f := DraftFields()[slices.IndexFunc(DraftFields(), func(f DraftField) bool { return f.Name == "status" })]
	if !slices.Equal(f.Choices, []string{"enabled", "disabled", "archived"}) || f.Default != "enabled" {
		t.Errorf("status: %+v", f)
	}
}

// values that fields are set to at random; some are wrong, which is the loader's to say.
func someValue(r *rand.Rand, f DraftField) string {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	switch {
	case r.IntN(4) == 0:
		return ""
	case len(f.Choices) > 0:
		return pick(f.Choices...)
	}
	switch f.Type {
	case DraftNumber:
		return strconv.Itoa(r.IntN(100))
	case DraftFlag:
		return pick("true", "false")
	case DraftList:
		return pick("a", "clients.*\nclients.create", "5xx\n404", "- x", "#1", "1", "${X}\n{a}")
	case DraftMap, DraftSecrets:
		return pick("A: b", "X-One: 1\nX-Two: ${TWO}", "N: yes")
	case DraftYAML:
		return pick("a: 1", "servers: [{address: x}]\nb: |\n  # no comment\n  c")
	case DraftLines:
		return pick("a", "x == \"#\"", "{{.a}}\n# no comment\n\nb", "  deep\nshallow\n", "'\"")
	}
	return pick("a", "a: b # c", "é", "yes", "12", "${NAME}/x", "'", "- a", "*", "&a", "10s", "50/s", strings.Repeat("long ", 40)+"end", "a\tb")
}

// TestPutAnything changes handlers of the example at random: what a draft says is what the
// file then holds, and nothing else of it has changed.
func TestPutAnything(t *testing.T) {
	base, err := os.ReadFile("../handlers.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rounds := 60
	fields := DraftFields()
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 0))
		text := base
		for range 5 {
			id := 1 + r.IntN(11)
			want := Draft{}
			kind := []string{"http", "script", "plugin"}[r.IntN(3)]
			for _, f := range fields {
				head, _, nested := strings.Cut(f.Name, ".")
				if nested && head != kind && slices.Contains([]string{"http", "script", "plugin"}, head) || r.IntN(3) > 0 {
					continue
				}
				want[f.Name] = someValue(r, f)
			}
			if want["name"] == "" {
				want["name"] = "n"
			}
			after, err := PutHandler("handlers.yaml", text, id, want)
			if err != nil {
				t.Fatalf("seed %d: handler %d, %q: %v\n%s", seed, id, want, err, text)
			}
			have, fixed, err := ReadDraft("handlers.yaml", after, id)
			if err != nil || len(fixed) > 0 {
				t.Fatalf("seed %d: %v, fixed %q\n%s", seed, err, fixed, after)
			}
			for name, value := range want {
				f, _ := draftField(name)
				if value != "" && (f.Type == DraftSecret || f.Type == DraftYAML) && have[name] == masked || f.Type == DraftSecrets {
					continue
				}
				if !sameDraft(f, value, have[name]) {
					t.Fatalf("seed %d: handler %d has %s = %q, want %q\n%s", seed, id, name, have[name], value, after)
				}
			}
			if again, err := PutHandler("handlers.yaml", after, id, have); err != nil || string(again) != string(after) {
				t.Fatalf("seed %d: what was read and is written as it is changes the file: %v\n%s\n%s", seed, err, after, again)
			}
			text = after
		}
	}
}

// FuzzPut changes files of any shape: there is no panic, and what is written has just what
// was asked for.
func FuzzPut(f *testing.F) {
	files, err := filepath.Glob("testdata/put/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Data, uint64(1))
	}
	fields := DraftFields()
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		if len(text) > 1<<14 {
			return
		}
		r := rand.New(rand.NewPCG(seed, 0))
		d := Draft{}
		for _, field := range fields {
			if r.IntN(8) == 0 {
				d[field.Name] = someValue(r, field)
			}
		}
		if after, err := PutHandler("handlers.yaml", text, 1, d); err == nil {
			have, _, err := ReadDraft("handlers.yaml", after, 1)
			if err != nil {
				t.Fatalf("%v\n%s", err, after)
			}
			if again, err := PutHandler("handlers.yaml", after, 1, have); err != nil || string(again) != string(after) {
				t.Fatalf("what was read and is written as it is changes the file: %v\n%q\n%q", err, after, again)
			}
		}
		if after, err := AddHandler("handlers.yaml", text, 7654, d); err == nil {
			_, _ = RemoveHandler("handlers.yaml", after, 7654) // it may be refused, for comments
		}
		_, _ = HideSecrets("handlers.yaml", text) // it need only not break down
	})
}
