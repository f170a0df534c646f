package event

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func sample(t Type, data, changed string) *Event {
	return &Event{
		ID:   ID{Generation: 1, CommitLSN: 0x16B374D848, Ordinal: 3},
		Type: t, Entity: "clients", Object: "4711", Lane: "4711", XID: 7731, Source: "billing",
		CommitTime: time.Date(2026, 11, 23, 10, 15, 0, 123456000, time.UTC),
		ObjectJSON: json.RawMessage("4711"), Data: json.RawMessage(data), Changed: json.RawMessage(changed),
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
