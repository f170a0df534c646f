package web

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replay"
	"github.com/billhook/billhook/internal/wal"
)

// withReplays has replays made on the journal of o while the test lasts.
func withReplays(t *testing.T, o *Options) *journal.Journal {
	t.Helper()
	j := o.Journal.(*journal.Journal)
	r, err := replay.New(replay.Options{
		Journal: j, Enqueue: func([]journal.Queued) {},
		Handlers: func() []replay.Handler { return []replay.Handler{{ID: 7}, {ID: 8}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	o.Replays = r
	return j
}

func ask(t *testing.T, method, url, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// What is asked of replays, by whom, and what is refused, in this order. Of the
// executions of handler 7 the first succeeded, the second is dead, the third pending.
func TestReplays(t *testing.T) {
	open := serve(t, func(o *Options) { withReplays(t, o) })
	closed := serve(t, func(o *Options) {
		withReplays(t, o)
		o.Access = []Credential{{Name: "grafana", Token: "looks"}, {Name: "cron", Token: "acts", Operator: true}, {Name: "ann", Password: "x", Operator: true}}
	})
	for _, c := range []struct {
		name, base, method, path, body string
		header                         []string
		code                           int
		want                           string
	}{
		{"none yet", open.URL, "GET", "/replays", "", nil, 200, `{"replays":[]}`},
		{"counted", open.URL, "POST", "/replays", `{"filter":{},"dry_run":true}`, nil, 200, `{"dry_run":true,"matching":1,"complete":true}`},
		{"counted with what is left out", open.URL, "POST", "/replays", `{"ids":[2,3,99],"dry_run":true}`, nil, 200, `{"dry_run":true,"matching":1,"left_out":{"gone":1,"open":1},"complete":true}`},
		{"still none", open.URL, "GET", "/replays", "", nil, 200, `{"replays":[]}`},
		{"by a filter", open.URL, "POST", "/replays", `{"filter":{"handler":7,"text":"RECEIVER","since":"2020-01-01T00:00:00Z"}}`, nil, 201, `"filter":{"handler":7,"status":"dead","text":"RECEIVER","since":"2020-01-01T00:00:00Z"},"rate":50,`},
		{"one", open.URL, "GET", "/replays/1", "", nil, 200, `{"id":1,`},
		{"none such", open.URL, "GET", "/replays/99", "", nil, 404, "there is no replay 99, or it is no longer kept"},
		{"no number", open.URL, "DELETE", "/replays/x", "", nil, 400, "want a number"},
		{"cancel none", open.URL, "DELETE", "/replays/99", "", nil, 404, "there is no replay 99"},
		{"an execution", open.URL, "POST", "/executions/1/replay", "", nil, 201, `"state":"done"`},
		{"twice", open.URL, "POST", "/executions/1/replay", "{}", nil, 409, "execution 1 was replayed already, as execution "},
		{"twice on purpose", open.URL, "POST", "/executions/1/replay", `{"again":true}`, nil, 201, `"replayed":1`},
		{"one that is pending", open.URL, "POST", "/executions/3/replay", "", nil, 409, "execution 3 is pending; only a final one"},
		{"one that is not there", open.URL, "POST", "/executions/99/replay", "", nil, 404, "there is no execution 99"},
		{"no execution", open.URL, "POST", "/executions/x/replay", "", nil, 400, "want a number"},
		{"looked at", open.URL, "GET", "/executions/1", "", nil, 200, `"replayed_as":`},
		{"nothing", open.URL, "POST", "/replays", "{}", nil, 422, "say what is to be replayed"},
		{"both", open.URL, "POST", "/replays", `{"ids":[1],"filter":{}}`, nil, 422, "not both"},
		{"an open status", open.URL, "POST", "/replays", `{"filter":{"status":"held"}}`, nil, 422, "one that is final"},
		{"a bad one, counted", open.URL, "POST", "/replays", `{"filter":{"status":"held"},"dry_run":true}`, nil, 422, "one that is final"},
		{"no rate", open.URL, "POST", "/replays", `{"ids":[1],"rate":-5}`, nil, 422, "rate: want 0"},
		{"misspelt", open.URL, "POST", "/replays", `{"filter":{"statuss":"dead"}}`, nil, 400, `unknown field \"statuss\"`},
		{"no time", open.URL, "POST", "/replays", `{"filter":{"since":"yesterday"}}`, nil, 400, "yesterday"},
		{"no body", open.URL, "POST", "/replays", "", nil, 400, "the body is empty"},
		{"misspelt for one", open.URL, "POST", "/executions/1/replay", `{"agin":true}`, nil, 400, "unknown field"},
		{"another site's page", open.URL, "POST", "/executions/1/replay", "", []string{"Sec-Fetch-Site", "cross-site"}, 403, "cross-origin"},
		{"nobody", closed.URL, "POST", "/replays", `{"filter":{}}`, nil, 401, "a token"},
		{"nobody, for one", closed.URL, "POST", "/executions/2/replay", "", nil, 401, "a token"},
		{"a viewer acts", closed.URL, "POST", "/replays", `{"filter":{}}`, []string{"Authorization", "Bearer looks"}, 403, "role: operator"},
		{"a viewer counts", closed.URL, "POST", "/replays", `{"filter":{},"dry_run":true}`, []string{"Authorization", "Bearer looks"}, 403, "role: operator"},
		{"a viewer replays one", closed.URL, "POST", "/executions/2/replay", "", []string{"Authorization", "Bearer looks"}, 403, "role: operator"},
		{"a viewer cancels", closed.URL, "DELETE", "/replays/1", "", []string{"Authorization", "Bearer looks"}, 403, "role: operator"},
		{"a viewer looks", closed.URL, "GET", "/replays", "", []string{"Authorization", "Bearer looks"}, 200, `{"replays":[]}`},
		{"an operator's token acts", closed.URL, "POST", "/executions/2/replay", "", []string{"Authorization", "Bearer acts"}, 201, `"by":"cron","role":"operator"`},
		{"an operator acts", closed.URL, "POST", "/replays", `{"ids":[1],"rate":0.001}`, []string{"Authorization", "Basic YW5uOng="}, 201, `"by":"ann","role":"operator"`},
		{"and cancels", closed.URL, "DELETE", "/replays/2", "", []string{"Authorization", "Basic YW5uOng="}, 200, `"state":"cancelled"`},
		{"all", closed.URL, "GET", "/replays", "", []string{"Authorization", "Bearer looks"}, 200, `{"replays":[{"id":2,"ids":[1],"rate":0.001,"by":"ann","role":"operator","state":"cancelled",`},
	} {
		code, body, header := ask(t, c.method, c.base+"/api/v1"+c.path, c.body, c.header...)
		if code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s", c.name, code, body)
		}
		if at := header.Get("Location"); (code == 201) != strings.HasPrefix(at, "/api/v1/replays/") {
			t.Errorf("%s: Location %q", c.name, at)
		}
	}
}

// many commits n executions for handler 8, the odd ones dead, and returns the ID of the
// first.
func many(t *testing.T, j *journal.Journal, n int) uint64 {
	t.Helper()
	b := j.NewBatch()
	for i := range n {
		e := &event.Event{
			ID: event.ID{Generation: 1, CommitLSN: 0x200, Ordinal: uint32(i + 1)}, Type: "clients.update", Entity: "clients",
			Object: fmt.Sprint(i), Lane: fmt.Sprint(i % 7), ObjectJSON: fmt.Append(nil, i), Data: fmt.Appendf(nil, `{"n":%d}`, i), CommitTime: time.Now(),
		}
		if err := b.AddEvent(e, []journal.Planned{{Handler: 8}}); err != nil {
			t.Fatal(err)
		}
	}
	b.SetPosition(journal.Position{SystemID: "1", Timeline: 1, Generation: 1, CommitLSN: wal.LSN(0x200)})
	wait, err := j.Commit(b)
	if err == nil {
		err = wait()
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if i%2 == 1 {
			a := &journal.Attempt{Number: 1, Start: time.Now(), Error: "no", Permanent: true, SentPayload: true}
			if _, err := j.Record(t.Context(), journal.Outcome{Execution: uint64(4 + i), Status: journal.Dead, Attempt: a}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return 4
}

type exported struct {
	ID        uint64 `json:"id"`
	Status    string `json:"status"`
	Execution struct {
		ID uint64 `json:"id"`
	} `json:"execution"`
	Payload struct {
		Data struct {
			N int `json:"n"`
		} `json:"data"`
	} `json:"payload"`
	Attempts json.RawMessage `json:"attempts"` // how many, or in full
}

func lines(t *testing.T, body string) (list []exported) {
	t.Helper()
	for line := range strings.Lines(body) {
		var x exported
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, x)
	}
	return list
}

func TestExport(t *testing.T) {
	const n = 3*exportPage + 7
	s := serve(t, func(o *Options) { many(t, withReplays(t, o), n) })
	code, body, header := get(t, s, "/api/v1/executions.ndjson")
	if code != 200 || header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d %v", code, header)
	}
	all := lines(t, body)
	if len(all) != n+3 {
		t.Fatalf("%d lines", len(all))
	}
	for i, x := range all {
		if x.ID != uint64(i+1) {
			t.Fatalf("line %d is execution %d", i+1, x.ID)
		}
	}
	_, body, _ = get(t, s, "/api/v1/executions.ndjson?status=dead&handler=8&full=true&after=10")
	dead := lines(t, body)
	for i, x := range dead {
		if want := 11 + 2*i; x.Execution.ID != uint64(want) || x.Payload.Data.N != want-4 || !strings.HasPrefix(string(x.Attempts), `[{"number":1,`) || !strings.Contains(string(x.Attempts), fmt.Sprintf(`{\"n\":%d}`, want-4)) {
			t.Fatalf("line %d: %+v", i+1, x)
		}
	}
	if len(dead) != n/2-3 {
		t.Fatalf("%d lines", len(dead))
	}
	for path, want := range map[string]string{
		"?statuss=dead": "statuss is no filter", "?full=yes": "want true or false", "?limit=5": "limit and order are of the list", "?order=newest": "limit and order", "?replayed=true": "want false",
	} {
		if code, body, _ := get(t, s, "/api/v1/executions.ndjson"+path); code != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, body, _ := get(t, s, "/api/v1/executions.ndjson?object=nosuch"); code != 200 || body != "" {
		t.Errorf("nothing: %d %q", code, body)
	}
	if _, body, _ = get(t, s, "/api/v1/executions?order=oldest&after=4&limit=2&handler=8"); !strings.Contains(body, `{"executions":[{"id":5,`) || !strings.Contains(body, `"next":6`) {
		t.Errorf("a list from the oldest: %s", body)
	}
	if code, body, _ := ask(t, "POST", s.URL+"/api/v1/executions/5/replay", ""); code != 201 {
		t.Fatal(code, body)
	}
	if _, body, _ = get(t, s, "/api/v1/executions?order=oldest&limit=1&handler=8&status=dead&replayed=false"); !strings.Contains(body, `{"executions":[{"id":7,`) {
		t.Errorf("what was not replayed: %s", body)
	}
}

// broken is a journal that cannot go on after a page, or waits.
type broken struct {
	*journal.Journal
	pages int // that can be read
	wait  chan struct{}
	ended chan error
}

func (b *broken) Executions(ctx context.Context, q journal.Query) ([]journal.Execution, uint64, error) {
	if b.pages--; b.pages < 0 {
		select {
		case <-ctx.Done():
			b.ended <- context.Cause(ctx)
			return nil, 0, context.Cause(ctx)
		case <-b.wait:
			return nil, 0, fmt.Errorf("a bad block")
		}
	}
	return b.Journal.Executions(ctx, q)
}

// breaking serves a journal that is broken after so many pages.
func breaking(t *testing.T, pages int) (*httptest.Server, *broken) {
	b := &broken{pages: pages, wait: make(chan struct{}), ended: make(chan error, 1)}
	return serve(t, func(o *Options) {
		b.Journal = withReplays(t, o)
		many(t, b.Journal, 3*exportPage)
		o.Journal = b
	}), b
}

// An export that cannot go on does not look like a whole one.
func TestExportBreaks(t *testing.T) {
	s, b := breaking(t, 3)
	close(b.wait)
	resp, err := http.Get(s.URL + "/api/v1/executions.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil || strings.Count(string(body), "\n") != 2*exportPage {
		t.Errorf("%d lines, %v", strings.Count(string(body), "\n"), err)
	}
}

// One that nobody reads any more ends.
func TestExportLeft(t *testing.T) {
	s, b := breaking(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/api/v1/executions.ndjson", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	for range exportPage {
		if !in.Scan() {
			t.Fatal(in.Err())
		}
	}
	cancel()
	if err := <-b.ended; err == nil {
		t.Error("no reason")
	}
}
