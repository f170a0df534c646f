package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/billhook/billhook/config"
)

// TestEffective loads every good case, writes what is in force, and loads that: it must
// be the same.
func TestEffective(t *testing.T) {
	cases, err := filepath.Glob("../testdata/config/good-*.txtar")
	if err != nil || len(cases) < 5 {
		t.Fatal(err, len(cases))
	}
	for i := range cases {
		if cases[i], err = filepath.Abs(cases[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lookup := unpack(t, archive)
			b, err := config.LoadBillhook("billhook.yaml", lookup)
			if _, missing := os.Stat("billhook.yaml"); missing != nil {
				b, err = nil, nil
			}
			if err != nil {
				t.Fatal(err)
			}
			if b != nil {
				text, err := b.Effective()
				if err != nil {
					t.Fatal(err)
				}
				again, err := config.ParseBillhook("billhook.yaml", revealed(text), lookup)
				if err != nil {
					t.Fatalf("%v in\n%s", err, text)
				}
				if second, err := again.Effective(); err != nil || string(second) != string(text) {
					t.Errorf("%v\n%s\nis then\n%s", err, text, second)
				}
			}
			h, err := config.LoadHandlers("handlers.yaml", lookup, b)
			if _, missing := os.Stat("handlers.yaml"); missing != nil {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text, err := h.Effective()
			if err != nil {
				t.Fatal(err)
			}
			again, err := config.ParseHandlers("handlers.yaml", revealed(text), lookup, b)
			if err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			for i := range h.Handlers {
				was, is := h.Handlers[i].WithoutPlaces(), again.Handlers[i].WithoutPlaces()
				if !strings.Contains(string(text), "***") && !reflect.DeepEqual(was, is) {
					t.Errorf("handler %d is then\n%+v, was\n%+v", was.ID, is, was)
				}
			}
			if second, err := again.Effective(); err != nil || string(second) != string(text) {
				t.Errorf("%v\n%s\nis then\n%s", err, text, second)
			}
		})
	}
}

// revealed puts something in the place of secrets that stand in the file itself.
func revealed(text []byte) []byte {
	s := strings.ReplaceAll(string(text), "config: '***'", "config: {a: b}")
	s = strings.ReplaceAll(s, "proxy: '***'", "proxy: http://a.example.net:1")
	s = strings.ReplaceAll(s, "dsn: '***'", "dsn: postgres://a@b/c")
	return []byte(strings.ReplaceAll(s, "'***'", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="))
}

func TestCompare(t *testing.T) {
	load := func(text string) *config.Handlers {
		t.Helper()
		h, err := config.ParseHandlers("handlers.yaml", []byte("version: 1\nhandlers:\n"+text), func(name string) (string, bool) { return name + "-value", true }, nil)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	const one = "  - {id: 1, name: One, event: clients.create, http: {url: 'https://a.example.net', bearer: x}}\n"
	for _, c := range []struct{ name, before, after, want string }{
		{"nothing", one, "  # moved\n" + one, ""},
		{"added and removed", one, "  - {id: 2, name: Two, event: clients.create, script: {path: ./x}}\n", "handler 2, Two: added\nhandler 1, One: removed"},
		{
			"fields", one, "  - {id: 1, name: Uno, events: [clients.create, clients.delete], priority: 5, retry: {schedule: [1s, 2s]}, breaker: {failures: 0}, http: {url: 'https://b.example.net', bearer: x, headers: {X-A: b}}}\n",
			`handler 1, Uno: name: One -> Uno
handler 1, Uno: events: [clients.create] -> [clients.create, clients.delete]
handler 1, Uno: priority: 1 -> 5
handler 1, Uno: retry.attempts: 10 -> 3
handler 1, Uno: retry.initial: 1s -> nothing
handler 1, Uno: retry.max: 15m0s -> nothing
handler 1, Uno: retry.factor: 2 -> nothing
handler 1, Uno: breaker.failures: 5 -> 0
handler 1, Uno: breaker.pause: 10s -> nothing
handler 1, Uno: breaker.max: 5m0s -> nothing
handler 1, Uno: http.url: https://a.example.net -> https://b.example.net
handler 1, Uno: retry.schedule: nothing -> [1s, 2s]
handler 1, Uno: http.headers.X-A: nothing -> ***`,
		},
		{"a secret", one, strings.Replace(one, "bearer: x", "bearer: z", 1), "handler 1, One: http.bearer: *** -> ***"},
		{
			"a secret and more", one, strings.NewReplacer("bearer: x", "bearer: z", "clients.create", "clients.delete").Replace(one),
			"handler 1, One: events: [clients.create] -> [clients.delete]\nhandler 1, One: http.bearer: *** -> ***",
		},
		{
			"secrets of a script, named alike",
			"  - {id: 1, name: One, event: clients.create, script: {path: /x, env: {TOKEN: a, TOKEN_FILE: b}}}\n",
			"  - {id: 1, name: One, event: clients.create, script: {path: /x, env: {TOKEN: c, TOKEN_FILE: b, MORE: d}}}\n",
			"handler 1, One: script.env.MORE: nothing -> ***\nhandler 1, One: script.env.TOKEN: *** -> ***",
		},
		{"another kind", one, "  - {id: 1, name: One, event: clients.create, concurrency: 16, script: {path: /x, kill_grace: 1s}}\n", `handler 1, One: http.url: https://a.example.net -> nothing
handler 1, One: http.method: POST -> nothing
handler 1, One: http.bearer: *** -> nothing
handler 1, One: http.connect_timeout: 5s -> nothing
handler 1, One: script.path: nothing -> /x
handler 1, One: script.kill_grace: nothing -> 1s`},
		{"where a secret is", one, strings.Replace(one, "bearer: x", "bearer_env: X", 1), `handler 1, One: http.bearer: *** -> nothing
handler 1, One: http.bearer_env: nothing -> X`},
	} {
		t.Run(c.name, func(t *testing.T) {
			changes, err := config.Compare(load(c.before), load(c.after))
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, c := range changes {
				lines = append(lines, c.String())
			}
			if got := strings.Join(lines, "\n"); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}
