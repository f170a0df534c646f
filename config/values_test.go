package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/billhook/billhook/config"
)

func yamlOf(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSecretsStayHidden loads secrets by every way in and prints the values by
// every way out.
func TestSecretsStayHidden(t *testing.T) {
	const word = "hunter2hunter2hunter2hunter2hunt" // base64 of 24 bytes, too
	env := func(string) (string, bool) { return word, true }
	b, err := config.ParseBillhook("billhook.yaml", []byte(`version: 1
source: {dsn: "postgres://a:hunter2@db/b"}
preset: generic
http: {tokens: [{name: a, token_env: T}], users: [{name: b, password: "${P}"}]}
`), env)
	if err != nil {
		t.Fatal(err)
	}
	h, err := config.ParseHandlers("handlers.yaml", []byte(`version: 1
handlers:
  - id: 1
    name: a
    event: clients.create
    http: {url_env: U, headers: {X-Token: "${T}"}, bearer: "${T}", proxy: "http://a:hunter2@proxy", secrets: [{env: S}, hunter2hunter2hunter2hunter2hunt]}
  - {id: 2, name: b, event: clients.create, http: {url: "https://x", basic: {username: a, password: "${P}"}, secret_env: S}}
  - {id: 3, name: c, event: clients.create, script: {path: ./x, env: {TOKEN: "${T}"}}}
  - {id: 4, name: d, event: clients.create, plugin: {path: ./x, config: {secret: "${T}"}}}
`), func(name string) (string, bool) {
		if name == "U" {
			return "https://crm/" + word, true
		}
		return word, true
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := h.Handlers[0].HTTP.Secrets[0].Value.Reveal(); got != word {
		t.Fatalf("the secret is %q", got)
	}
	if got := string(h.Handlers[3].Plugin.Config.Reveal()); got != `{"secret":"`+word+`"}` {
		t.Fatalf("the plugin's config is %s", got)
	}
	values := []any{*b, *h, b.Source, b.HTTP.Tokens, b.HTTP.Users[0].Password, *h.Handlers[3].Plugin, h.Handlers[3].Plugin.Config}
	for i := range h.Handlers {
		if x := h.Handlers[i].HTTP; x != nil {
			values = append(values, *x, x.Headers, x.Secrets)
			if x.Basic != nil {
				values = append(values, *x.Basic)
			}
		}
		if x := h.Handlers[i].Script; x != nil {
			values = append(values, *x, x.Env)
		}
	}
	for _, v := range values {
		var out strings.Builder
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, v)
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(j)
		out.WriteString(yamlOf(t, v))
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		out.Write(log.Bytes())
		for _, bad := range []string{"hunter2", "68756e746572"} {
			if i := strings.Index(out.String(), bad); i >= 0 {
				t.Errorf("%T shows a secret: %.200s", v, out.String()[max(0, i-80):])
			}
		}
	}
}

// TestExprAt finds places inside expressions again in their file.
func TestExprAt(t *testing.T) {
	h, err := config.ParseHandlers("handlers.yaml", []byte(`version: 1
handlers:
  - id: 1
    name: a
    event: clients.create
    when: data.a == 1
    script: {path: ./x}
  - {id: 2, name: b, event: clients.create, when: 'data.b == 1', script: {path: ./x}}
  - id: 3
    name: c
    event: clients.create
    when: |
      data.a == 1 &&

        data.b == 2
    script: {path: ./x}
  - id: 4
    name: é
    event: clients.create
    when: "é\t== data.b"
    script: {path: ./x}
  - id: 5
    name: f
    event: clients.create
    when: >
      data.a ==
      1
    script: {path: ./x}
`), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		handler, line, column int
		want                  string
	}{
		{0, 1, 1, "handlers.yaml:6:11: handlers[0].when"},
		{0, 1, 6, "handlers.yaml:6:16: handlers[0].when"},
		{1, 1, 6, "handlers.yaml:8:57: handlers[1].when"},
		{2, 1, 1, "handlers.yaml:13:7: handlers[2].when"},
		{2, 3, 3, "handlers.yaml:15:9: handlers[2].when"},
		{3, 1, 5, "handlers.yaml:20:11: handlers[3].when"}, // escaped: the start
		{4, 1, 5, "handlers.yaml:25:11: handlers[4].when"}, // folded: the start
	} {
		if got := h.Handlers[c.handler].When.At(c.line, c.column).String(); got != c.want {
			t.Errorf("handler %d, %d:%d is at %s, want %s", c.handler+1, c.line, c.column, got, c.want)
		}
	}
	e := h.Handlers[0].When.At(1, 6).Problem("there is no x", "remove it")
	if got, want := e.Error(), "handlers.yaml:6:16: handlers[0].when: there is no x; remove it"; got != want {
		t.Errorf("the error reads %q, want %q", got, want)
	}
	if got, want := h.Handlers[0].At("script.user").String(), "handlers.yaml:7:5: handlers[0].script"; got != want {
		t.Errorf("a key that is not there is at %s, want %s", got, want)
	}
}

func TestErrorsUnwrap(t *testing.T) {
	_, err := config.ParseHandlers("h.yaml", []byte("version: 2\nhandler: []\n"), nil, nil)
	var all config.Errors
	var one *config.Error
	if !errors.As(err, &all) || len(all) != 2 || !errors.As(err, &one) || one.Line != 1 || one.Field != "version" {
		t.Errorf("errors %v, first %+v", err, one)
	}
}

func TestLoadMissingFile(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{dir + "/none.yaml": "there is no such file", dir: "it is a directory"} {
		if _, err := config.LoadBillhook(path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("loading %s: %v", path, err)
		}
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "1m30s": 90 * time.Second, "1.5h": 90 * time.Minute, "1d": 24 * time.Hour, "2w": 14 * 24 * time.Hour, "250ms": 250 * time.Millisecond, "0s": 0,
	} {
		if got, err := config.ParseDuration(text); got != want || err != nil {
			t.Errorf("ParseDuration(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "30", "s", "1y", "-1s", "1 s", "1..5s", "1s30", "9999999999w", "1e3s"} {
		if got, err := config.ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v", text, got)
		}
	}
	for _, text := range []string{"public.clients", `"my.schema"."a""b"`, "s.Übersicht"} {
		table, err := config.ParseTable(text)
		again, err2 := config.ParseTable(table.String())
		if err != nil || err2 != nil || table != again {
			t.Errorf("ParseTable(%q) = %v, %v; again %v, %v", text, table, err, again, err2)
		}
	}
	if table, err := config.ParseTable("clients"); err != nil || table.String() != "public.clients" {
		t.Errorf("a table without a schema is %v, %v", table, err)
	}
}

// TestResolveEvent reads event types as operators write them.
func TestResolveEvent(t *testing.T) {
	var b *config.Billhook
	types := b.EventTypes()
	for text, want := range map[string]string{
		"clients.create":                "clients.create",
		"Clients Create":                "clients.create",
		"Clients Balance Became <= 0":   "clients.balance_zero",
		"clients balance became <=0":    "clients.balance_zero",
		"Clients Balance Became >=0":    "clients.balance_notzero",
		"accounts.create":               "clients.accounts.create",
		"Accounts Create":               "clients.accounts.create",
		"clients.subscriptions.renew":   "clients.packages.renew",
		"clients_packages.close":        "clients.packages.close",
		"Clients Packages Assign":       "clients.packages.assign",
		"clients.custom_fields_update":  "clients.custom_fields.update",
		"Clients Custom Fields Update":  "clients.custom_fields.update",
		"*":                             "*",
		"clients.*":                     "clients.*",
		"accounts.*":                    "clients.accounts.*",
		"clients.subscriptions.*":       "clients.packages.*",
		"clients_packages.*":            "clients.packages.*",
		"clients.custom_fields.*":       "clients.custom_fields.*",
		"clients":                       "",
		"clients.":                      "",
		"":                              "",
		"client.*":                      "",
		"clients.*.create":              "",
		"email_rates_manager.import":    "",
		"clients.balance_zero_or_less ": "",
	} {
		if got, ok := config.ResolveEvent(types, text); got != want || ok != (want != "") {
			t.Errorf("ResolveEvent(%q) = %q, %v, want %q", text, got, ok, want)
		}
	}
	if config.MatchEvent("clients.*", "clientship.create") || config.MatchEvent("clients.*", "clients.") == false ||
		!config.MatchEvent("clients.*", "clients.accounts.create") || !config.MatchEvent("*", "x") || config.MatchEvent("clients.create", "clients.created") {
		t.Error("wildcards match what they should not, or not what they should")
	}
}

// TestHandlersMean loads a handler for each way to say what it wants, and compares
// the event types that it is then told of: names, aliases and titles in any case and
// spacing, and wildcards over names and aliases, with events of a preset's own.
func TestHandlersMean(t *testing.T) {
	env := func(string) (string, bool) { return "", false }
	means := func(preset, text string) (string, error) {
		b, err := config.ParseBillhook("billhook.yaml", []byte("version: 1\nsource: {dsn: \"host=localhost\"}\npreset: "+preset+"\n"), env)
		if err != nil {
			t.Fatal(err)
		}
		h, err := config.ParseHandlers("handlers.yaml", fmt.Appendf(nil, "version: 1\nhandlers: [{id: 1, name: a, event: %q, script: {path: ./x}}]\n", text), env, b)
		if err != nil {
			return "", err
		}
		var names []string
		for _, e := range b.EventTypes() {
			if h.Handlers[0].Matches(e.Name) {
				names = append(names, e.Name)
			}
		}
		return strings.Join(names, " "), nil
	}
	lacks := func(e config.EventType) bool {
		return strings.HasSuffix(e.Name, ".truncate") || e.Needs == "entities.accounts.balance"
	}
	for _, e := range config.Catalogue() {
		if lacks(e) {
			continue
		}
		for _, text := range append([]string{e.Name, e.Title}, e.Aliases...) {
			for _, as := range []string{text, strings.ToUpper(text), strings.ReplaceAll(strings.ToLower(text), " ", "  "), " " + strings.ReplaceAll(text, "= 0", "=0")} {
				if got, err := means("jerasoft", as); err != nil || got != e.Name {
					t.Errorf("%q means %q, %v, want %s", as, got, err, e.Name)
				}
			}
		}
	}
	const (
		clients  = "clients.archive clients.balance_notzero clients.balance_zero clients.create clients.custom_fields.update clients.delete clients.truncate clients.update"
		accounts = "clients.accounts.balance_notzero clients.accounts.balance_zero clients.accounts.create clients.accounts.delete clients.accounts.truncate clients.accounts.update"
		packages = "clients.packages.activate clients.packages.assign clients.packages.close clients.packages.deactivate clients.packages.renew clients.packages.truncate"
	)
	sorted := func(lists ...string) string {
		return strings.Join(slices.Sorted(slices.Values(strings.Fields(strings.Join(lists, " ")))), " ")
	}
	for _, tt := range []struct{ preset, text, want string }{
		{"jerasoft", "*", sorted(clients, accounts, packages)},
		{"jerasoft", "clients.*", sorted(clients, accounts, packages)},
		{"jerasoft", "accounts.*", accounts},
		{"jerasoft", "clients.accounts.*", accounts},
		{"jerasoft", "clients.packages.*", packages},
		{"jerasoft", "clients.subscriptions.*", packages},
		{"jerasoft", "clients_packages.*", packages},
		{"jerasoft", "Clients_Packages.*", packages},
		{"jerasoft", "clients.custom_fields.*", "clients.custom_fields.update"},
		{"lago", "accounts.*", sorted(accounts, "clients.accounts.terminate")},
		{"lago", "Wallet terminated", "clients.accounts.terminate"},
		{"yeti", "clients.*", sorted(clients, accounts, packages, "clients.enable clients.disable")},
		{"yeti", "Accounts Balance Became <= 0", "clients.accounts.balance_zero"},
		{"yeti", "Clients Disable", "clients.disable"},
		{"jerasoft\nevents: {accounts.blocked: {entity: accounts, changes: name}}", "accounts.*", sorted(accounts, "accounts.blocked")},
		{"jerasoft\nevents: {accounts.blocked: {entity: accounts, changes: name}}", "clients.accounts.*", accounts},
		{"jerasoft\nevents: {billing.blocked: {title: 'Blocked <= 5', entity: accounts, changes: name}}", "blocked<=5", "billing.blocked"},
	} {
		if got, err := means(tt.preset, tt.text); err != nil || got != tt.want {
			t.Errorf("%s, %q means\n%s, %v\nwant\n%s", tt.preset, tt.text, got, err, tt.want)
		}
	}
	for _, text := range []string{"subscription.*", "clients", "clients.*.create", "Clients Accounts *", "**", ".*"} {
		if got, err := means("jerasoft", text); err == nil {
			t.Errorf("%q means %s", text, got)
		}
	}
}

// TestCatalogueIsUnambiguous: no two event types share a name, an alias or a title.
func TestCatalogueIsUnambiguous(t *testing.T) {
	types := config.Catalogue()
	for _, e := range types {
		for _, text := range append([]string{e.Name, e.Title}, e.Aliases...) {
			if got, ok := config.ResolveEvent(types, text); !ok || got != e.Name {
				t.Errorf("%q of %s means %q", text, e.Name, got)
			}
		}
	}
}

// TestPresets loads every preset as the mapping of a file. It names the event types
// that a preset cannot make; internal/e2e makes all the others in a database.
func TestPresets(t *testing.T) {
	accounts := []string{"clients.accounts.balance_zero", "clients.accounts.balance_notzero"}
	clients := []string{"clients.balance_zero", "clients.balance_notzero"}
	lacks := map[string][]string{
		"jerasoft": accounts, "jerasoft-old": accounts, "generic": accounts,
		"lago": append([]string{"clients.packages.deactivate", "clients.packages.renew"}, clients...),
		"yeti": append([]string{"clients.archive", "clients.custom_fields.update"}, clients...),
	}
	if names := slices.Sorted(maps.Keys(lacks)); !slices.Equal(names, config.Presets()) {
		t.Errorf("presets are %v", config.Presets())
	}
	for _, name := range config.Presets() {
		b, err := config.ParseBillhook("billhook.yaml", []byte("version: 1\nsource: {dsn: \"host=localhost\"}\npreset: "+name+"\n"), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, e := range config.Catalogue() {
			_, err := config.ParseHandlers("handlers.yaml", []byte("version: 1\nhandlers: [{id: 1, name: a, event: "+e.Name+", script: {path: ./x}}]\n"), nil, b)
			lacking := slices.Contains(lacks[name], e.Name) || strings.HasSuffix(e.Name, ".truncate")
			if (err != nil) != lacking {
				t.Errorf("%s, %s: %v", name, e.Name, err)
			}
		}
		text, ok := config.PresetFile(name)
		if !ok || len(text) == 0 {
			t.Errorf("%s has no file", name)
		}
		// A preset is a part of a billhook.yaml that can be copied there.
		if _, err := config.ParseBillhook("billhook.yaml", append([]byte("version: 1\nsource: {dsn: \"host=localhost\"}\n"), text...), nil); err != nil {
			t.Errorf("%s cannot be copied into a file: %v", name, err)
		}
	}
}

// TestPresetEvents: a preset's own events stay unless the file has one of the name,
// or maps their entity itself.
func TestPresetEvents(t *testing.T) {
	for own, want := range map[string]string{
		"": "clients.disable clients.enable",
		"events: {clients.disable: {entity: clients, changes: name}}\n":                               "clients.disable clients.enable",
		"events: {clients.rename: {entity: clients, changes: name}}\n":                                "clients.disable clients.enable clients.rename",
		"entities: {clients: {table: c, key: id}}\n":                                                  "",
		"entities: {accounts: {table: billing.a, key: id, client: owner}}\n":                          "clients.disable clients.enable",
		"entities: {clients: {table: c, key: id}}\nevents: {a.b: {entity: clients, changes: name}}\n": "a.b",
	} {
		b, err := config.ParseBillhook("billhook.yaml", []byte("version: 1\nsource: {dsn: \"host=localhost\"}\npreset: yeti\n"+own), nil)
		if err != nil {
			t.Errorf("%s: %v", own, err)
			continue
		}
		if got := strings.Join(slices.Sorted(maps.Keys(b.Events)), " "); got != want {
			t.Errorf("%s: %s, want %s", own, got, want)
		}
		if e, ok := b.Events["clients.disable"]; ok && (e.Becomes == nil) != strings.Contains(own, "clients.disable") {
			t.Errorf("%s: whose clients.disable is it? %+v", own, e)
		}
	}
}
