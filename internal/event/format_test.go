package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestProvisioning holds the envelope to what the vendor documents, byte for byte:
// the names of its events, second resolution, and {} where it sends {}.
func TestProvisioning(t *testing.T) {
	const client = `{"id":4711,"companies_id":1,"name":"Acme <b> & \"co\"","balance":"-0.500000","city":null}`
	const account = `{"id":7,"clients_id":4711,"name":"gw1","port":5060}`
	columns := map[string]Columns{
		"clients": {Key: []string{"id"}}, "accounts": {Key: []string{"id"}, Client: []string{"clients_id"}},
		"packages": {Key: []string{"id"}, Client: []string{"clients_id"}},
	}
	one := map[string]Columns{"clients": {Key: []string{"id"}, CustomFields: []string{"meta"}}}
	two := map[string]Columns{"clients": {Key: []string{"id"}, CustomFields: []string{"a", "b"}}}
	tests := []struct {
		typ           Type
		columns       map[string]Columns
		data, changed string
		name, want    string // events_id and data
	}{
		{"clients.create", columns, client, "", "clients.create", client},
		{"clients.update", columns, client, `{"name":{"new":"x"},"city":{"old":"Bonn","new":null}}`, "clients.update", `{"id":4711,"name":"Acme <b> & \"co\"","city":null}`},
		{"clients.update", nil, client, `{"city":{"new":null}}`, "clients.update", `{"city":null}`},
		{"clients.delete", columns, client, "", "clients.delete", `{}`},
		{"clients.archive", columns, client, `{"status":{"new":"archive"}}`, "clients.archive", `{}`},
		{"clients.balance_zero", columns, client, "", "clients.balance_zero", `{}`},
		{"clients.balance_notzero", columns, client, "", "clients.balance_notzero", `{}`},
		{"clients.custom_fields.update", columns, `{"id":4711,"custom_fields":{"crm":"18","sales":null}}`, `{"crm":{"old":"17","new":"18"}}`, "clients.custom_fields.update", `{"crm":"18","sales":null}`},
		{"clients.custom_fields.update", one, `{"id":4711,"meta":{"crm": 18},"name":"x"}`, `{"meta":{}}`, "clients.custom_fields.update", `{"crm": 18}`},
		{"clients.custom_fields.update", one, `{"id":4711,"meta":"***","name":"x"}`, `{"meta":{}}`, "clients.custom_fields.update", `{"meta":"***"}`},
		{"clients.custom_fields.update", two, `{"id":4711,"b":"2","name":"x","a":null}`, `{"b":{}}`, "clients.custom_fields.update", `{"b":"2","a":null}`},
		{"clients.accounts.create", columns, account, "", "clients.accounts.create", account},
		{"clients.accounts.update", columns, account, `{"port":{"old":null,"new":5060}}`, "clients.accounts.update", `{"id":7,"clients_id":4711,"port":5060}`},
		{"clients.accounts.delete", columns, account, "", "clients.accounts.delete", `{}`},
		{"clients.packages.assign", columns, account, "", "clients.subscriptions.assign", account},
		{"clients.packages.activate", columns, account, "", "clients.subscriptions.activate", account},
		{"clients.packages.deactivate", columns, account, "", "clients.subscriptions.deactivate", account},
		{"clients.packages.renew", columns, account, "", "clients.subscriptions.renew", account},
		{"clients.packages.close", columns, account, "", "clients.subscriptions.close", account},
		{"clients.low_balance", columns, client, "", "clients.low_balance", client},
		{"clients.truncate", columns, "", "", "clients.truncate", `{}`},
	}
	for _, tt := range tests {
		e := sample(tt.typ, tt.data, tt.changed)
		switch {
		case strings.HasPrefix(string(tt.typ), "clients.accounts."):
			e.Entity = "accounts"
		case strings.HasPrefix(string(tt.typ), "clients.packages."):
			e.Entity = "packages"
		}
		want := `{"event":{"dt":"2026-11-23T10:15:00+00:00","events_id":"` + tt.name + `","object_id":4711},"data":` + tt.want + `}`
		got, contentType, err := Provisioning(tt.columns)(e)
		if err != nil || string(got) != want || contentType != "application/json" {
			t.Errorf("%s:\n%s, %s, %v\nwant\n%s", tt.typ, got, contentType, err, want)
		}
	}
	for _, e := range []*Event{sample("clients.update", "[]", ""), sample("clients.update", "{}", "[]"), sample("clients.custom_fields.update", `{"a"}`, "")} {
		if _, _, err := Provisioning(columns)(e); err == nil || !strings.Contains(err.Error(), "write event 1-16/B374D848-3: ") {
			t.Errorf("a damaged event: %v", err)
		}
	}
}

// TestBillhookAndCloudEvents compares the two formats that say everything. That the
// CloudEvents SDK takes the latter is shown in internal/e2e.
func TestBillhookAndCloudEvents(t *testing.T) {
	e := sample("clients.balance_zero", `{"id":4711,"name":"Acme","balance":"-0.500000"}`, `{"balance":{"old":"3.200000","new":"-0.500000"}}`)
	e.Unchanged = []string{"notes", `a "column"`}
	e.Source = "billing & co/é%"
	const payload = `{"event":{"dt":"2026-11-23T10:15:00.123456+00:00","events_id":"clients.balance_zero","object_id":4711,"id":"1-16/B374D848-3","lane":"4711","lsn":"16/B374D848","xid":7731,"source":"billing & co/é%"},"data":{"id":4711,"name":"Acme","balance":"-0.500000"},"changed":{"balance":{"old":"3.200000","new":"-0.500000"}},"unchanged":["notes","a \"column\""]}`
	const envelope = `{"specversion":"1.0","id":"1-16/B374D848-3","source":"/billhook/billing%20%26%20co%2F%C3%A9%25","type":"clients.balance_zero","subject":"4711","time":"2026-11-23T10:15:00.123456Z","datacontenttype":"application/json","data":`
	if got := e.AppendPayload(nil); string(got) != payload {
		t.Errorf("billhook: %s", got)
	}
	if got, contentType, err := CloudEvents(e); err != nil || contentType != "application/cloudevents+json" || string(got) != envelope+payload+"}" {
		t.Errorf("cloudevents: %s, %s, %v", got, contentType, err)
	}
	// An event of no row.
	e = &Event{ID: e.ID, Type: "clients.truncate", Entity: "clients", Lane: "clients:", CommitTime: e.CommitTime, Source: "billing"}
	if got, _, err := CloudEvents(e); err != nil || strings.Contains(string(got), "subject") || !json.Valid(got) {
		t.Errorf("an event of no row: %s, %v", got, err)
	}
}

// nasty is a row with what breaks naive templates.
const nasty = `{"id":4711,"name":"A\"B\\C <&>\u2028\n\t\u0001,\"x\":\"y","balance":"-0.500000","big":123456789012345678901234567890.5,"city":null,"vip":true,"tags":["a","b\"c"],"meta":{"k":{"z":1e400}},"inject":"\",\"admin\":true,\"z\":\""}`

func TestTemplate(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"json of anything", `{"n":{{json .data.name}},"b":{{json .data.big}},"c":{{json .data.city}},"t":{{json .data.tags}},"m":{{json .data.meta}}}`, `{"n":"A\"B\\C <&>` + "\u2028" + `\n\t\u0001,\"x\":\"y","b":123456789012345678901234567890.5,"c":null,"t":["a","b\"c"],"m":{"k":{"z":1e400}}}`},
		{"bare actions outside of quotes", `{"n":{{.data.name}},"b":{{.data.big}},"c":{{.data.city}},"v":{{.data.vip}},"t":{{.data.tags}}}`, `{"n":"A\"B\\C <&>` + "\u2028" + `\n\t\u0001,\"x\":\"y","b":123456789012345678901234567890.5,"c":null,"v":true,"t":["a","b\"c"]}`},
		{"inside of quotes", `{"t":"client {{.data.name}} ({{.event.object_id}}, {{.data.city}}) has {{.data.balance}}, {{.data.vip}} {{.data.tags}}"}`, `{"t":"client A\"B\\C <&>` + "\u2028" + `\n\t\u0001,\"x\":\"y (4711, ) has -0.500000, true [\"a\",\"b\\\"c\"]"}`},
		{"nothing can be added", `{"x":"{{.data.inject}}"}`, `{"x":"\",\"admin\":true,\"z\":\""}`},
		{"quotes of the template's own", `{"x":"a \"{{.data.id}}\" \\","y":{{.data.id}}}`, `{"x":"a \"4711\" \\","y":4711}`},
		{"printf with numbers", `{"x":{{printf "%08d/%.1f/%s" .event.object_id .data.big .data.id}}}`, `{"x":"00004711/123456789012345677877719597056.0/4711"}`},
		{"what is not there", `{"x":{{index .data "nosuch"}},"y":{{or .data.city "nowhere"}},"z":"{{with .data.city}}in {{.}}{{else}}homeless{{end}}"}`, `{"x":null,"y":"nowhere","z":"homeless"}`},
		{"range", `{"cols":[{{range $i, $c := .unchanged}}{{if $i}},{{end}}{{$c}}{{end}}],"changed":{ {{- range $k, $v := .changed}}{{$k}}:{{$v.new}}{{end -}} }}`, `{"cols":[],"changed":{"balance":"-0.500000"}}`},
		{"templates in it", `{{define "who"}}{"id":{{.id}},"name":"{{.name}}"}{{end}}[{{template "who" .data}}]`, `[{"id":4711,"name":"A\"B\\C <&>` + "\u2028" + `\n\t\u0001,\"x\":\"y"}]`},
		{"variables and comments", `{{/* none */}}{{$n := .data.id}}{"x":{{$n}},"y":{{len .data.tags}},"z":{{eq .data.vip true}}}`, `{"x":4711,"y":2,"z":true}`},
	}
	e := sample("clients.update", nasty, `{"balance":{"old":"3.200000","new":"-0.500000"}}`)
	for _, tt := range tests {
		f, err := Template(tt.text, "", nil)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got, contentType, err := f(e)
		if err != nil || string(got) != tt.want || contentType != "application/json" {
			t.Errorf("%s:\n%s, %s, %v\nwant\n%s", tt.name, got, contentType, err, tt.want)
		}
		again, _, _ := f(e)
		if string(again) != string(got) {
			t.Errorf("%s: not the same again", tt.name)
		}
	}

	// Other than JSON it is Go's.
	f, err := Template("{{.event.events_id}} {{.data.name}} {{json .data.name}} {{.data.id | urlquery}}{{index .data \"nosuch\"}} {{.data}}", "text/plain; charset=utf-8", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, contentType, err := f(sample("clients.create", `{"id":7,"name":"A & \"B\""}`, "")); err != nil || string(got) != `clients.create A & "B" "A & \"B\"" 7 {"id":7,"name":"A & \"B\""}` || contentType != "text/plain; charset=utf-8" {
		t.Errorf("text: %s, %s, %v", got, contentType, err)
	}
}

func TestTemplateErrors(t *testing.T) {
	for text, want := range map[string]string{
		"{\n  {{.data.":                    `2:0 unexpected "." in operand`,
		"{{nosuch .data}}":                 `1:0 function "nosuch" not defined`,
		"{}\n\x00":                         "2:0 there is a NUL byte",
		"{{template \"nosuch\" .}}{{end}}": "1:0 unexpected {{end}}",
		"{{range .data}}":                  "1:0 unexpected EOF",
	} {
		_, err := Template(text, "", nil)
		var at *TemplateError
		if !errors.As(err, &at) || fmt.Sprintf("%d:%d %s", at.Line, at.Column, at.Text) != want {
			t.Errorf("%q: %v (%+v), want %s", text, err, at, want)
		}
	}
	place := func(line, column int) string { return fmt.Sprintf("handlers.yaml:%d:%d", 30+line, 8+column) }
	for text, want := range map[string]string{
		`{"a": {{.data.nosuch}}}`:           `handlers.yaml:31:22: <.data.nosuch>: map has no entry for key "nosuch"`,
		"{\n\"a\":\n {{.nosuch.x}}}":        `handlers.yaml:33:`,
		`{"a": "{{json .data.name}}"}`:      `{{json ...}} stands inside of quotes, after "{\"a\": \"": remove the quotes, or json`,
		`{"a": {{.data.name}}{{.data.id}}}`: `what it makes is no JSON, at its line 1: invalid character '4'`,
		"{\n\"a\": 1,\n}":                   `what it makes is no JSON, at its line 3: invalid character '}'`,
		`{{.data.id}} {{.data.id}}`:         `no JSON`,
		``:                                  `no JSON, at its line 1: unexpected end of JSON input`,
		`{"a":{{index .data.tags 7}}}`:      `error calling index: index out of range: 7`,
	} {
		f, err := Template(text, "application/vnd.example+json; charset=utf-8", place)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if body, _, err := f(sample("clients.create", nasty, "")); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "write event 1-16/B374D848-3 by template") {
			t.Errorf("%q: %s, %v, want %s", text, body, err, want)
		}
	}
}

// FuzzTemplate: whatever the template and the values, what comes out of a JSON
// template is JSON, and a value inside of quotes stays one string.
func FuzzTemplate(f *testing.F) {
	f.Add(`{"a":{{.data.v}},"b":"{{.data.v}}","c":{{json .data.v}}}`, "x\",\"y\":\"")
	f.Add(`{{range $k, $v := .data}}{{$k}}{{end}}`, "\x00\\")
	f.Add(`["{{.data.v}}\\","{{.changed}}"]`, "\\")
	f.Fuzz(func(t *testing.T, text, value string) {
		e := sample("clients.create", `{"id":1,"v":`+string(AppendJSONString(nil, value))+`}`, "")
		if strings.Contains(text, "range") && strings.ContainsAny(text, "0123456789") || strings.Contains(text, "template") || strings.Contains(text, "block") {
			return // a range over a number, or a template that uses itself, may take for ever
		}
		if format, err := Template(text, "", nil); err == nil {
			if body, _, err := format(e); err == nil && !json.Valid(body) {
				t.Fatalf("%q with %q makes %s", text, value, body)
			}
		}
		format, err := Template(`{"first":"a {{.data.v}} b","second":{{.data.v}},"third":{{json .data.v}}}`, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _, err := format(e)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		clean := got["third"]
		if len(got) != 3 || got["second"] != clean || got["first"] != "a "+clean+" b" {
			t.Fatalf("%q makes %s", value, body)
		}
	})
}
