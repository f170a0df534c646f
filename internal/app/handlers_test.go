package app

import (
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/event"
)

// TestTemplatePlace: an error that shows when a template is used names its place in
// the file as it is now, also when the handler stayed the same through a reload; and
// the vendor's envelope knows the key's columns from the mapping.
func TestTemplatePlace(t *testing.T) {
	load := func(text string) *config.Handlers {
		t.Helper()
		h, err := config.ParseHandlers("handlers.yaml", []byte("version: 1\n"+text), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	const rest = `handlers:
  - id: 1
    name: a
    event: "*"
    template: |
      {
        "x": {{.data.nosuch}}
      }
    http: {url: "http://127.0.0.1:1/"}
  - {id: 2, name: b, event: "*", format: provisioning, http: {url: "http://127.0.0.1:1/"}}
`
	columns := map[string]event.Columns{"clients": {Key: []string{"code"}}}
	before, first, err := build(load(rest), nil, columns, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := build(load("# a comment\n\n"+rest), before, columns, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, h := range second {
			if err := h.Call.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	if first[0] != second[0] || first[1] != second[1] {
		t.Fatal("handlers that stayed the same were made anew")
	}
	e := &event.Event{Type: "clients.update", Entity: "clients", CommitTime: time.Unix(0, 0), ObjectJSON: []byte(`"a"`), Data: []byte(`{"id":7,"code":"a","name":"b"}`), Changed: []byte(`{"name":{"new":"b"}}`)}
	if _, _, err := second[0].Format(e); err == nil || !strings.Contains(err.Error(), "handlers.yaml:10:21: handlers[0].template: <.data.nosuch>: map has no entry") {
		t.Errorf("the error is %v", err)
	}
	if body, _, err := second[1].Format(e); err != nil || !strings.HasSuffix(string(body), `"data":{"code":"a","name":"b"}}`) {
		t.Errorf("%s, %v", body, err)
	}
}
