package schema_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/billhook/billhook/plugins/schema"
)

const text = `{
	"type": "object", "required": ["server"], "additionalProperties": false,
	"$defs": {"user": {"type": "object", "properties": {"name": {"type": "string"}, "password": {"type": "string", "writeOnly": true}}}},
	"properties": {
		"server": {"type": "string", "minLength": 1, "maxLength": 20, "pattern": "^[a-z0-9.:]+$"},
		"port": {"type": "integer", "minimum": 1, "exclusiveMaximum": 65536},
		"mode": {"enum": ["block", "slow"]},
		"kind": {"const": "x"},
		"users": {"type": "array", "maxItems": 3, "uniqueItems": true, "items": {"$ref": "#/$defs/user"}},
		"keys": {"type": "object", "writeOnly": true},
		"labels": {"type": "object", "additionalProperties": {"type": "string"}},
		"either": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
		"free": {"type": "object"}
	}}`

func parse(t testing.TB) *schema.Schema {
	t.Helper()
	s, err := schema.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJudge(t *testing.T) {
	s := parse(t)
	for config, want := range map[string]string{
		`{"server": "a"}`:                     "",
		`{"server": "hunter2 "}`:              "server: it does not match the pattern ^[a-z0-9.:]+$",
		`{"server": ""}`:                      "server: it is empty",
		`{"server": "hunter2hunter2hunter2"}`: "server: it is 21 characters long, want at most 20",
		`{}`:                                  ": the key server is missing",
		`[]`:                                  ": it is a list, want a mapping",
		`hunter2`:                             ": it is not JSON",
		`{"server": "a", "port": 0}`:          "port: it is too small, want at least 1",
		`{"server": "a", "port": 65536}`:      "port: it is too large, want less than 65536",
		`{"server": "a", "port": 1.5}`:        "port: it is a number, want a whole number",
		`{"server": "a", "mode": "hunter2"}`:  "mode: it is not one of block, slow",
		`{"server": "a", "kind": "hunter2"}`:  "kind: it is not x",
		`{"server": "a", "users": [{"name": "a"}, {"name": 12345}]}`:            "users[1].name: it is a number, want text",
		`{"server": "a", "users": [1, 2]}`:                                      "users[0]: it is a number, want a mapping",
		`{"server": "a", "users": [{}, {}]}`:                                    "users: its values 1 and 2 are the same",
		`{"server": "a", "users": [{"name":"a"},{"name":"b"},{"name":"c"},{}]}`: "users: it has 4 values, want at most 3",
		`{"server": "a", "labels": {"a.b": 5}}`:                                 "labels[a.b]: it is a number, want text",
		`{"server": "a", "either": []}`:                                         "either: it is none of what it may be",
		`{"server": "a", "servr": "hunter2"}`:                                   "servr: there is no such key here",
		`{"server": null}`:                                                      "server: it is null, want text",
	} {
		problems := s.Judge([]byte(config))
		got := ""
		if len(problems) > 0 {
			got = problems[0].Field + ": " + problems[0].Text
		}
		if got != want {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
		if strings.Contains(fmt.Sprint(problems), "hunter2") {
			t.Errorf("%s: a value is shown: %v", config, problems)
		}
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"", "x", `{"type": 5}`, `{"$ref": "https://example.net/other.json"}`, `{"$ref": "file:///etc/passwd"}`} {
		if _, err := schema.Parse(bad); err == nil {
			t.Errorf("%s was taken for a schema", bad)
		}
	}
}

func TestSecrets(t *testing.T) {
	const config = `{"server": "a.example", "users": [{"name": "ann", "password": "one"}, {"password": "two", "extra": "five"}],
		"keys": {"a": "three", "b": ["four", 12345, true]}, "labels": {"x": "y"}, "free": {"z": "six"}}`
	got := parse(t).Secrets([]byte(config))
	slices.Sort(got)
	// What the schema does not speak of may be one, too.
	if want := []string{"12345", "five", "four", "one", "six", "three", "two"}; !slices.Equal(got, want) {
		t.Errorf("secrets %q, want %q", got, want)
	}
	all := (*schema.Schema)(nil).Secrets([]byte(config))
	for _, want := range []string{"a.example", "ann", "one", "y"} {
		if !slices.Contains(all, want) {
			t.Errorf("without a schema %q is no secret", want)
		}
	}
}

func FuzzJudge(f *testing.F) {
	for _, seed := range []string{`{"server": "a"}`, `{"users": [{"password": "x"}]}`, `{"either": 1e999}`, "[[]]", "{", `{"a":{"b":[{"c":null}]}}`} {
		f.Add([]byte(seed))
	}
	s := parse(f)
	f.Fuzz(func(t *testing.T, config []byte) {
		for _, p := range s.Judge(config) {
			if p.Text == "" {
				t.Errorf("%s: a problem without words at %q", config, p.Field)
			}
		}
		_ = s.Secrets(config)
	})
}
