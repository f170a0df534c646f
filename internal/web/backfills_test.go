package web

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/backfill"
)

// shelf keeps the specs that it is given.
type shelf struct{ specs []backfill.Spec }

func (s *shelf) Start(_ context.Context, spec backfill.Spec) (backfill.Status, error) {
	if spec.Where == "bad" {
		return backfill.Status{}, &backfill.InvalidError{Text: "where: bad"}
	}
	s.specs = append(s.specs, spec)
	return backfill.Status{ID: len(s.specs), Spec: spec, State: backfill.Waiting}, nil
}

func (s *shelf) Get(id int) (backfill.Status, error) {
	if id < 1 || id > len(s.specs) {
		return backfill.Status{}, backfill.ErrNotFound
	}
	return backfill.Status{ID: id, Spec: s.specs[id-1]}, nil
}

func (s *shelf) Cancel(_ context.Context, id int) (backfill.Status, error) {
	st, err := s.Get(id)
	st.State = backfill.Cancelled
	return st, err
}

func (s *shelf) List() []backfill.Status { return []backfill.Status{} }

// What is asked of backfills, by whom, and what is refused. What they do is shown with
// a real database elsewhere.
func TestBackfills(t *testing.T) {
	open := serve(t, func(o *Options) { o.Backfills = &shelf{} })
	closed := serve(t, func(o *Options) {
		o.Backfills = &shelf{}
		o.Access = []Credential{{Token: "looks"}, {Token: "acts", Operator: true}, {Name: "ann", Password: "x", Operator: true}}
	})
	ask := func(base, method, path, body string, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			if header[i] == "Host" {
				req.Host = header[i+1]
			}
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
		return resp.StatusCode, string(b)
	}
	const good = `{"events":["clients.create"],"handlers":[1]}`
	for _, c := range []struct {
		name, base, method, path, body string
		header                         []string
		code                           int
		want                           string
	}{
		{"begun", open.URL, "POST", "", good, nil, 201, `"rate":100,"state":"waiting"`},
		{"with a rate", open.URL, "POST", "", `{"events":["clients.create"],"handlers":[1],"rate":0}`, nil, 201, `"id":2,"events":["clients.create"],"handlers":[1],"rate":0,`},
		{"no sense", open.URL, "POST", "", `{"where":"bad"}`, nil, 422, "where: bad"},
		{"no body", open.URL, "POST", "", "", nil, 400, "the body is empty"},
		{"no JSON", open.URL, "POST", "", "event=x", nil, 400, "read the body: invalid character"},
		{"misspelt", open.URL, "POST", "", `{"event":["clients.create"]}`, nil, 400, `unknown field \"event\"`},
		{"twice", open.URL, "POST", "", good + good, nil, 400, "something follows"},
		{"too large", open.URL, "POST", "", `{"where":"` + strings.Repeat("x", maxBody) + `"}`, nil, 400, "too large"},
		{"one", open.URL, "GET", "/1", "", nil, 200, `"id":1`},
		{"none", open.URL, "GET", "/77", "", nil, 404, "there is no backfill 77"},
		{"no number", open.URL, "DELETE", "/x", "", nil, 400, "want a number"},
		{"cancelled", open.URL, "DELETE", "/1", "", nil, 200, `"state":"cancelled"`},
		{"all", open.URL, "GET", "", "", nil, 200, `{"backfills":[]}`},
		{"another site's page", open.URL, "POST", "", good, []string{"Sec-Fetch-Site", "cross-site"}, 403, "cross-origin"},
		{"another name for us", open.URL, "GET", "", "", []string{"Host", "evil.example"}, 421, "there is no evil.example here"},
		{"localhost", open.URL, "GET", "", "", []string{"Host", "localhost:8321"}, 200, ""},
		{"IPv6", open.URL, "GET", "", "", []string{"Host", "[::1]:8321"}, 200, ""},
		{"nobody", closed.URL, "POST", "", good, nil, 401, "a token"},
		{"a viewer acts", closed.URL, "POST", "", good, []string{"Authorization", "Bearer looks"}, 403, "role: operator"},
		{"a viewer looks", closed.URL, "GET", "", "", []string{"Authorization", "Bearer looks"}, 200, ""},
		{"an operator acts", closed.URL, "POST", "", good, []string{"Authorization", "Bearer acts"}, 201, ""},
		{"any name, with a token", closed.URL, "GET", "", "", []string{"Host", "billing.example", "Authorization", "Bearer acts"}, 200, ""},
	} {
		code, body := ask(c.base, c.method, "/api/v1/backfills"+c.path, c.body, c.header...)
		if code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s", c.name, code, body)
		}
	}
}
