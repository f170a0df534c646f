package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

// payloadHandlers tells every event in every format. The CloudEvents are told to a
// receiver of the official SDK as well.
const payloadHandlers = `version: 1
handlers:
  - {id: 1, name: All, event: "*", http: {url: "$URL"}}
  - {id: 2, name: The vendor's, event: "*", format: provisioning, http: {url: "$URL"}}
  - {id: 3, name: CloudEvents, event: "*", format: cloudevents, http: {url: "$URL"}}
  - id: 4
    name: Template
    event: "*"
    template: |
      {
        "what": "{{.event.events_id}} of {{.event.object_id}}",
        "who": {{.event.object_id}},
        "name": "<b>{{index .data "name"}}</b>",
        "data": {{.data}},
        "changed": [{{range $i, $c := .unchanged}}{{if $i}}, {{end}}{{$c}}{{end}}]
      }
    http: {url: "$URL"}
  - id: 5
    name: Text
    event: "*"
    template: "{{.event.events_id}} {{.event.object_id}}: {{index .data \"name\"}}"
    content_type: text/plain; charset=utf-8
    http: {url: "$URL"}
  - {id: 6, name: CloudEvents SDK, event: "*", format: cloudevents, http: {url: "$SDK"}}
`

// TestPayloads compares what receivers get, byte for byte but for times and ids,
// in each format: of rows with every kind of value that databases hold, and of
// every kind of key.
func TestPayloads(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../testdata/payloads/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			sdk := newSDKReceiver(t)
			s := readMappingScript(t, file)
			list := s.play(t, "DEFAULT", func(url string) string {
				return strings.NewReplacer("$URL", url, "$SDK", sdk.url).Replace(payloadHandlers)
			})
			const json = "application/json"
			for i, format := range []struct{ name, contentType string }{
				{"billhook", json},
				{"provisioning", json},
				{"cloudevents", "application/cloudevents+json"},
				{"template", json},
				{"text", "text/plain; charset=utf-8"},
			} {
				var b strings.Builder
				for step := range s.steps {
					fmt.Fprintf(&b, "# %s\n", s.steps[step].title)
					for _, d := range list {
						if d.handler != i+1 || d.step != step {
							continue
						}
						if d.contentType != format.contentType {
							t.Errorf("%s comes as %s", format.name, d.contentType)
						}
						fmt.Fprintf(&b, "%s\n", plain(format.name, d))
					}
				}
				s.compare(t, format.name, b.String())
			}
			sdk.compare(t, list)
		})
	}
}

// plain replaces what differs from run to run, where it has the form that it must
// have.
func plain(format string, d delivery) string {
	dt := `"dt":"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"`
	if format == "provisioning" {
		dt = `"dt":"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"`
	}
	body := d.body
	for _, r := range []struct{ pattern, with string }{
		{dt, `"dt":"(time)"`},
		{`"time":"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"`, `"time":"(time)"`},
		{regexp.QuoteMeta(`"id":"` + d.id.String() + `"`), `"id":"(id)"`},
		{regexp.QuoteMeta(`"lsn":"` + d.id.CommitLSN.String() + `"`), `"lsn":"(lsn)"`},
		{`"xid":\d+`, `"xid":(xid)`},
	} {
		body = regexp.MustCompile(r.pattern).ReplaceAllString(body, r.with)
	}
	return body
}

// sdkReceiver is a receiver made of the official SDK for CloudEvents.
type sdkReceiver struct {
	url string

	mu     sync.Mutex
	events map[string]cloudevents.Event
}

func newSDKReceiver(t *testing.T) *sdkReceiver {
	t.Helper()
	r := &sdkReceiver{events: map[string]cloudevents.Event{}}
	// The SDK's own receiver waits for ever after a caller has gone away.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		e, err := cloudevents.NewEventFromHTTPRequest(req)
		if err == nil {
			err = e.Validate()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events[e.ID()] = *e
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

// compare sees that the SDK has understood every event as it was told to the
// others.
func (r *sdkReceiver) compare(t *testing.T, list []delivery) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, d := range list {
		if d.handler != 3 {
			continue
		}
		n++
		var want struct {
			Subject string
			Data    json.RawMessage
		}
		if err := json.Unmarshal([]byte(d.body), &want); err != nil {
			t.Fatal(err)
		}
		e, ok := r.events[d.id.String()]
		if !ok {
			t.Errorf("the SDK has not received %s", d.body)
			continue
		}
		if err := e.Validate(); err != nil {
			t.Errorf("%s: %v", d.body, err)
		}
		if string(e.Data()) != string(want.Data) || e.Subject() != want.Subject || e.SpecVersion() != "1.0" || e.DataContentType() != "application/json" ||
			!strings.HasPrefix(e.Source(), "/billhook/") || time.Since(e.Time()) > time.Hour || time.Since(e.Time()) < -time.Minute {
			t.Errorf("the SDK has read %s\nas %s", d.body, e)
		}
	}
	if n == 0 || n != len(r.events) {
		t.Errorf("the SDK has received %d events, of %d", len(r.events), n)
	}
}
