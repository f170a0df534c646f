package web

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

const hostile = `<script>alert(1)</script>`

// serve starts the face over a real journal with one succeeded, one dead and one
// pending execution.
func serve(t *testing.T, change func(*Options)) *httptest.Server {
	t.Helper()
	j, err := journal.Open(journal.Options{Path: t.TempDir() + "/j"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	b := j.NewBatch()
	for i := range 3 {
		e := &event.Event{
			ID: event.ID{Generation: 1, CommitLSN: 0x100, Ordinal: uint32(i + 1)}, Type: "clients.create", Entity: "clients",
			Object: "4711", Lane: "4711", ObjectJSON: []byte("4711"), Data: []byte(`{"name":"` + hostile + `"}`), Source: "billing", CommitTime: time.Now(),
		}
		if err := b.AddEvent(e, []journal.Planned{{Handler: 7, Priority: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	wait, err := j.Commit(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	record := func(id uint64, s journal.Status, a *journal.Attempt) {
		if _, err := j.Record(t.Context(), journal.Outcome{Execution: id, Status: s, Attempt: a}); err != nil {
			t.Fatal(err)
		}
	}
	record(1, journal.Succeeded, &journal.Attempt{Number: 1, Start: time.Now(), OK: true, Code: 200, Response: handler.Exchange{Body: []byte{0xff, 'x'}, Truncated: 3}})
	record(2, journal.Dead, &journal.Attempt{Number: 1, Start: time.Now(), Permanent: true, Code: 422, Error: "the receiver says " + hostile, Reason: handler.ReasonClientError})

	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_test", Help: "A test."}))
	o := Options{
		Journal: j,
		Handlers: func() []Handler {
			return []Handler{{ID: 7, Name: hostile, Events: []string{"clients.create"}, Priority: 1, Status: "enabled", Kind: "http", Target: "https://crm.example.net/"}}
		},
		Ready:    func() []Check { return []Check{{Name: "replication", OK: true, Text: "streaming"}} },
		Gatherer: registry, Version: "1.2.3",
	}
	if change != nil {
		change(&o)
	}
	s := httptest.NewServer(New(o))
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, s *httptest.Server, path string, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func TestAPI(t *testing.T) {
	s := serve(t, nil)
	tests := []struct {
		path string
		code int
		want string
	}{
		{"/healthz", 200, `"version":"1.2.3"`},
		{"/readyz", 200, `"status":"ready"`},
		{"/metrics", 200, "billhook_test 0"},
		{"/api/v1/status", 200, `"executions":{"cancelled":0,"dead":1,"held":0,"pending":1,"skipped":0,"succeeded":1}`},
		{"/api/v1/handlers", 200, `"target":"https://crm.example.net/"`},
		{"/api/v1/handlers", 200, `"dead":1`},
		{"/api/v1/executions", 200, `"executions":[{"id":3,`},
		{"/api/v1/executions?status=dead", 200, `"executions":[{"id":2,`},
		{"/api/v1/executions?status=dead&handler=8", 200, `"executions":[]`},
		{"/api/v1/executions?limit=1", 200, `"next":3`},
		{"/api/v1/executions?before=2", 200, `"executions":[{"id":1,`},
		{"/api/v1/executions?text=RECEIVER", 200, `"executions":[{"id":2,`},
		{"/api/v1/executions/1", 200, `"outcome":"success"`},
		{"/api/v1/executions/1", 200, `"binary":true`},
		{"/api/v1/executions/1", 200, `"truncated_bytes":3`},
		{"/api/v1/executions/2", 200, `"outcome":"permanent"`},
		{"/api/v1/executions/2", 200, `"payload":{"event":{`},
		{"/api/v1/executions/99", 404, `no longer kept`},
		{"/api/v1/executions/x", 400, `want a number`},
		{"/api/v1/executions?statuss=dead", 400, `statuss is no filter`},
		{"/api/v1/executions?status=gone", 400, `want pending, held`},
		{"/api/v1/executions?status=dead&status=held", 400, `given twice`},
		{"/api/v1/executions?limit=0", 400, `want 1 to 500`},
		{"/api/v1/executions?since=yesterday", 400, `since=yesterday`},
		{"/api/v1/nosuch", 404, `no such resource`},
		{"/nosuch", 404, ``},
	}
	for _, tt := range tests {
		code, body, _ := get(t, s, tt.path)
		if code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("GET %s: %d %s; want %d with %s", tt.path, code, body, tt.code, tt.want)
		}
		if strings.HasPrefix(tt.path, "/api/") && !json.Valid([]byte(body)) {
			t.Errorf("GET %s is no JSON: %s", tt.path, body)
		}
	}
}

// TestFailing: who is failing, since when and why, stands on the page and in the API.
func TestFailing(t *testing.T) {
	since := time.Date(2026, 11, 23, 3, 4, 5, 0, time.UTC)
	s := serve(t, func(o *Options) {
		o.Handlers = func() []Handler {
			return []Handler{
				{ID: 1, Name: "down", Status: "enabled", Health: &Health{Failing: true, FailingSince: &since, LastFailure: &since, LastError: hostile, RestingUntil: &since}},
				{ID: 2, Name: "well", Status: "enabled", Health: &Health{LastSuccess: &since}},
				{ID: 3, Name: "a while", Status: "enabled", Health: &Health{FailingSince: &since, LastError: "once"}},
			}
		}
	})
	_, body, _ := get(t, s, "/")
	if strings.Count(body, "is failing since 2026-11-23 03:04:05") != 1 || strings.Count(body, "rests until 2026-11-23 03:04:05") != 1 || strings.Contains(body, hostile) {
		t.Error(body)
	}
	_, body, _ = get(t, s, "/api/v1/handlers")
	var list struct {
		Handlers []struct {
			Health Health `json:"health"`
		} `json:"handlers"`
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Handlers) != 3 {
		t.Fatal(err, body)
	}
	if h := list.Handlers[0].Health; !h.Failing || !h.FailingSince.Equal(since) || !h.RestingUntil.Equal(since) || h.LastError != hostile || h.LastSuccess != nil {
		t.Errorf("%+v", h)
	}
	if h := list.Handlers[1].Health; h.Failing || !h.LastSuccess.Equal(since) || h.RestingUntil != nil {
		t.Errorf("%+v", h)
	}
}

func TestNotReady(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.Ready = func() []Check {
			return []Check{{Name: "journal", OK: true}, {Name: "replication", Text: "slot is lost"}}
		}
		o.Live = func() error { return errors.New("the journal has stopped") }
	})
	if code, body, _ := get(t, s, "/readyz"); code != 503 || !strings.Contains(body, "slot is lost") {
		t.Errorf("readyz: %d %s", code, body)
	}
	if code, body, _ := get(t, s, "/healthz"); code != 503 || !strings.Contains(body, "the journal has stopped") {
		t.Errorf("healthz: %d %s", code, body)
	}
}

func TestAccess(t *testing.T) {
	s := serve(t, func(o *Options) {
		o.Access = []Credential{{Name: "grafana", Token: "a-token-of-grafana"}, {Name: "ada", Password: "correct horse"}}
	})
	for _, path := range []string{"/", "/metrics", "/api/v1/handlers", "/api/v1/executions/1"} {
		for _, header := range [][]string{nil, {"Authorization", "Bearer wrong"}, {"Authorization", "Bearer "}, {"Authorization", "Basic YWRhOndyb25n"}, {"Authorization", "Basic Og=="}} {
			if code, body, _ := get(t, s, path, header...); code != 401 || strings.Contains(body, "4711") {
				t.Errorf("GET %s with %v: %d %s", path, header, code, body)
			}
		}
		for _, header := range [][]string{{"Authorization", "Bearer a-token-of-grafana"}, {"Authorization", "Basic YWRhOmNvcnJlY3QgaG9yc2U="}} {
			if code, _, _ := get(t, s, path, header...); code != 200 {
				t.Errorf("GET %s with %v: %d", path, header, code)
			}
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, _, _ := get(t, s, path); code != 200 {
			t.Errorf("GET %s without a token: %d", path, code)
		}
	}
}

func TestListen(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0"} {
		if l, err := Listen(address, nil); err == nil {
			_ = l.Close()
			t.Errorf("listens on %s without access control", address)
		} else if !strings.Contains(err.Error(), "http.tokens") {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := Listen("8321", nil); err == nil || !strings.Contains(err.Error(), "want host:port") {
		t.Errorf("8321: %v", err)
	}
	l, err := Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(l.Addr().String(), nil); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("taken: %v", err)
	}
	_ = l.Close()
}

// Run finishes requests at hand and closes the listener.
func TestRunStops(t *testing.T) {
	entered := make(chan struct{})
	release := make(chan struct{})
	s := New(Options{
		Handlers: func() []Handler { return nil }, Gatherer: prometheus.NewRegistry(),
		Ready: func() []Check { close(entered); <-release; return nil },
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	answered := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String() + "/readyz")
		if err == nil {
			err = resp.Body.Close()
		}
		answered <- err
	}()
	<-entered
	stop()
	close(release)
	if err := <-answered; err != nil {
		t.Errorf("the request at hand: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("still listening")
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add("status", "dead", "limit", "10")
	f.Add("since", "2026-11-23T10:15:00Z", "before", "18446744073709551615")
	f.Fuzz(func(t *testing.T, a, av, b, bv string) {
		q, err := parseQuery(map[string][]string{a: {av}, b: {bv}})
		if err == nil && (q.Limit < 1 || q.Limit > maxPage) {
			t.Errorf("limit %d", q.Limit)
		}
	})
}

// TestStandby: one that waits is measured by whoever may look, and does nothing else.
func TestStandby(t *testing.T) {
	registry := prometheus.NewRegistry()
	waiting := prometheus.NewGauge(prometheus.GaugeOpts{Name: "billhook_waiting", Help: "x"})
	registry.MustRegister(waiting)
	s := httptest.NewServer(Standby(Options{
		Ready:    func() []Check { return []Check{{Name: "standby", Text: "process 7 has the journal"}} },
		Gatherer: registry, Version: "1.2.3", Access: []Credential{{Name: "prometheus", Token: "a-token-of-some-length"}},
	}))
	t.Cleanup(s.Close)
	for _, c := range []struct {
		path, token string
		code        int
		want        string
	}{
		{"/healthz", "", 200, "1.2.3"},
		{"/readyz", "", 503, "process 7 has the journal"},
		{"/metrics", "", 401, "a token"},
		{"/metrics", "a-token-of-some-length", 200, "billhook_waiting 0"},
		{"/api/v1/status", "", 401, "a token"},
		{"/api/v1/status", "a-token-of-some-length", 503, "process 7 has the journal"},
		{"/", "a-token-of-some-length", 503, "process 7 has the journal"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || !strings.Contains(string(body), c.want) || resp.Header.Get("X-Content-Type-Options") == "" {
			t.Errorf("%s with %q: %d %s %v, want %d with %q", c.path, c.token, resp.StatusCode, body, err, c.code, c.want)
		}
	}
}
