package config

import (
	"strings"
	"testing"
)

func TestSetStatus(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{
			"a word", `handlers:
  - id: 1
    status: enabled # for now
    name: a
`, `handlers:
  - id: 1
    status: disabled # for now
    name: a
`,
		},
		{
			"in quotes", `handlers:
- {name: "é", status: 'enabled', id: 1}
`, `handlers:
- {name: "é", status: disabled, id: 1}
`,
		},
		{
			"in double quotes", `handlers: [{id: 1, status: "en\u0061bled", name: a}]`,
			`handlers: [{id: 1, status: disabled, name: a}]`,
		},
		{
			"added after the name", `# who
version: 1
handlers:
  # the first

  - id: 1   # its id
    name: "Block: the client" # its name

    event: clients.create
  - id: 2
    name: b
`, `# who
version: 1
handlers:
  # the first

  - id: 1   # its id
    name: "Block: the client" # its name
    status: disabled

    event: clients.create
  - id: 2
    name: b
`,
		},
		{
			"added after the id", `handlers:
  - name: >
      a long
      name
    id: 1
    event: x
`, `handlers:
  - name: >
      a long
      name
    id: 1
    status: disabled
    event: x
`,
		},
		{
			"a name over two lines", `handlers:
  - id: 1
    name: a
      b
    event: x
`, `handlers:
  - id: 1
    status: disabled
    name: a
      b
    event: x
`,
		},
		{"no line end", "handlers:\n  - name: a\n    id: 1", "handlers:\n  - name: a\n    id: 1\n    status: disabled"},
		{"of Windows", "handlers:\r\n  - id: 1\r\n    name: a\r\n", "handlers:\r\n  - id: 1\r\n    name: a\r\n    status: disabled\r\n"},
		{"in one line", "handlers: [{id: 1, name: a}, {id: 2, name: b}]\n", "handlers: [{id: 1, status: disabled, name: a}, {id: 2, name: b}]\n"},
		{"a dash alone", "handlers:\n  -\n    id: 1\n    name: a\n", "handlers:\n  -\n    id: 1\n    name: a\n    status: disabled\n"},
		{"it is so already", "handlers:\n  - id: 1\n    status: disabled\n", "handlers:\n  - id: 1\n    status: disabled\n"},
		{"not there", "handlers: [{id: 2}]", "!h.yaml: handler 1 is not written there as it is; change it in the file"},
		{"merged", "a: &a {name: b}\nhandlers:\n  - <<: *a\n    id: 1\n", "!h.yaml:3:5: handler 1 takes values from elsewhere (<<); change it in the file"},
		{"an alias", "a: &a enabled\nhandlers:\n  - id: 1\n    status: *a\n", "!h.yaml:4:13: the status of handler 1 is not written as a plain word; change it in the file"},
		{"an anchor", "handlers:\n  - id: 1\n    status: &a enabled\n", "!h.yaml:3:13: the status of handler 1 is not written as a plain word; change it in the file"},
		{"a folded word", "handlers:\n  - id: 1\n    status: >-\n      enabled\n", "!h.yaml:3:13: the status of handler 1 is not written as a plain word; change it in the file"},
		{"no YAML", "handlers: [", "!h.yaml: yaml: line 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := SetStatus("h.yaml", []byte(c.in), 1, Disabled)
			text := string(got)
			if err != nil {
				text = "!" + err.Error()
			}
			if text != c.want && !(strings.HasPrefix(c.want, "!") && strings.HasPrefix(text, c.want)) {
				t.Errorf("got\n%s\nwant\n%s", text, c.want)
			}
		})
	}
}

// FuzzSetStatus: what is returned has the status and nothing else changed, whatever the
// text.
func FuzzSetStatus(f *testing.F) {
	for _, s := range []string{
		"handlers:\n  - id: 1\n    name: a\n", "handlers: [{id: 1, status: enabled}]", "handlers:\n- id: 1\n  status: 'x'\n- {id: 2}\n",
		"handlers:\n  - id: 1 \n    name: a\n     b\n    event: c\n", "? handlers\n: - ? id\n    : 1\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, err := SetStatus("h.yaml", []byte(text), 1, Archived)
		if err != nil {
			return
		}
		if err := onlyStatus("h.yaml", []byte(text), out, 1, Archived); err != nil {
			t.Errorf("%q became %q: %v", text, out, err)
		}
		again, err := SetStatus("h.yaml", out, 1, Archived)
		if err != nil || string(again) != string(out) {
			t.Errorf("%q became %q, and then %q, %v", text, out, again, err)
		}
	})
}
