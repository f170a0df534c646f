package event

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func sample(t Type, data, changed string) *Event {
	return &Event{
		ID:   ID{Timeline: 1, CommitLSN: 0x16B374D848, Ordinal: 3},
		Type: t, Entity: "clients", Object: "4711", Lane: "4711", XID: 7731, Source: "billing",
		CommitTime: time.Date(2026, 11, 23, 10, 15, 0, 123456000, time.UTC),
		ObjectJSON: json.RawMessage("4711"), Data: json.RawMessage(data), Changed: json.RawMessage(changed),
	}
}

func TestFormats(t *testing.T) {
	zero := sample("clients.balance_zero", `{"id":4711,"name":"Acme","balance":"-0.500000"}`, `{"balance":{"old":"3.200000","new":"-0.500000"}}`)
	upd := sample("clients.update", `{"id":4711,"name":"Acme <b> & \"co\"","balance":"-0.500000","city":null}`, `{"name":{"new":"x"},"city":{"old":"Bonn","new":null}}`)
	fields := sample("clients.custom_fields.update", `{"id":4711,"custom_fields":{"crm":"18"}}`, `{"crm":{"old":"17","new":"18"}}`)
	assign := sample("clients.packages.assign", `{"id":100,"clients_id":4711}`, "")
	template, err := Template(`{"text":{{json (printf "client %s has %s" .data.name .data.balance)}},"id":{{json .event.id}}}`, "")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		format Format
		event  *Event
		want   string
	}{
		{"billhook", Billhook, zero, `{"event":{"dt":"2026-11-23T10:15:00.123456+00:00","events_id":"clients.balance_zero","object_id":4711,"id":"1-16/B374D848-3","lane":"4711","lsn":"16/B374D848","xid":7731,"source":"billing"},"data":{"id":4711,"name":"Acme","balance":"-0.500000"},"changed":{"balance":{"old":"3.200000","new":"-0.500000"}}}`},
		{"provisioning zero", Provisioning, zero, `{"event":{"dt":"2026-11-23T10:15:00+00:00","events_id":"clients.balance_zero","object_id":4711},"data":{}}`},
		{"provisioning update", Provisioning, upd, `{"event":{"dt":"2026-11-23T10:15:00+00:00","events_id":"clients.update","object_id":4711},"data":{"id":4711,"name":"Acme <b> & \"co\"","city":null}}`},
		{"provisioning fields", Provisioning, fields, `{"event":{"dt":"2026-11-23T10:15:00+00:00","events_id":"clients.custom_fields.update","object_id":4711},"data":{"crm":"18"}}`},
		{"provisioning packages", Provisioning, assign, `{"event":{"dt":"2026-11-23T10:15:00+00:00","events_id":"clients.subscriptions.assign","object_id":4711},"data":{"id":100,"clients_id":4711}}`},
		{"template", template, zero, `{"text":"client Acme has -0.500000","id":"1-16/B374D848-3"}`},
	}
	for _, tt := range tests {
		got, _, err := tt.format(tt.event)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s:\n%s, %v\nwant\n%s", tt.name, got, err, tt.want)
		}
	}
	got, contentType, err := CloudEvents(zero)
	if err != nil || contentType != "application/cloudevents+json" || !json.Valid(got) ||
		!strings.HasPrefix(string(got), `{"specversion":"1.0","id":"1-16/B374D848-3","source":"/billhook/billing","type":"clients.balance_zero","subject":"4711","time":"2026-11-23T10:15:00.123456Z"`) {
		t.Errorf("cloudevents: %s, %s, %v", got, contentType, err)
	}
}

func TestTemplateErrors(t *testing.T) {
	if _, err := Template(`{{.data.`, ""); err == nil {
		t.Error("a broken template compiled")
	}
	for _, text := range []string{`{"a": {{.data.name}}}`, `{{.data.nosuch}}`} {
		f, err := Template(text, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := f(sample("clients.create", `{"name":"Acme"}`, "")); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("1-16/B374D848-3")
	f.Add("0-0/0-0")
	f.Add("1-16/B374D848")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		again, err := ParseID(id.String())
		if err != nil || again != id {
			t.Errorf("ParseID(%q) = %v, and again %v, %v", s, id, again, err)
		}
	})
}

func FuzzAppendJSONString(f *testing.F) {
	f.Add([]byte("plain"))
	f.Add([]byte("\x00\x1f\"\\\n\xff\xc3\x28é\u2028"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out := AppendJSONString(nil, in)
		var s string
		if err := json.Unmarshal(out, &s); err != nil {
			t.Fatalf("%q became %s: %v", in, out, err)
		}
		if want := strings.ToValidUTF8(string(in), "\x00"); strings.ReplaceAll(strings.ReplaceAll(s, "\ufffd", ""), "\x00", "") != strings.ReplaceAll(strings.ReplaceAll(want, "\ufffd", ""), "\x00", "") {
			t.Fatalf("%q became %q", in, s)
		}
	})
}
