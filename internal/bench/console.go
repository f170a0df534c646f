package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/web"
)

// console fills a journal with twice as many executions as there are changes and asks for
// every page of the console: what the server takes for each, and what it weighs.
func (b *bench) console(ctx context.Context, table *tabwriter.Writer) (err error) {
	const handlers, asked = 20, 300
	count := 2 * b.changes
	j, err := journal.Open(journal.Options{Path: filepath.Join(b.dir, "console")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	err = fillOld(ctx, j, count, handlers, func(x uint64) journal.Outcome {
		o := succeeded(x)
		switch {
		case x%100 == 0:
			o.Status, o.Attempt.OK, o.Attempt.Permanent, o.Attempt.Code = journal.Dead, false, true, 422
			o.Attempt.Error = fmt.Sprintf("POST http://127.0.0.1:8080/provisioning: 422 Unprocessable Entity: client %d has no tariff", x)
			o.Attempt.Response = handler.Exchange{Head: []string{"HTTP/1.1 422 Unprocessable Entity"}, Body: fmt.Appendf(nil, `{"error":"client %d has no tariff"}`, x)}
		case x%1000 == 1:
			o.Status = journal.Pending
			o.NextAt, o.Attempt.OK, o.Attempt.Code = time.Now().Add(time.Hour), false, 503
		}
		return o
	})
	if err != nil {
		return err
	}
	list := make([]web.Handler, handlers)
	for i := range list {
		list[i] = web.Handler{ID: i + 1, Name: fmt.Sprintf("Handler number %d", i+1), Events: []string{"clients.update"}, Priority: i, Status: "enabled", Kind: "http", Target: "http://127.0.0.1:8080/provisioning"}
	}
	server := httptest.NewServer(web.New(web.Options{
		Journal: j, Handlers: func() []web.Handler { return list }, Ready: func() []web.Check { return nil }, Gatherer: prometheus.NewRegistry(),
	}))
	defer server.Close()
	first, _, err := page(ctx, server.URL+"/")
	if err != nil {
		return err
	}
	once := 0 // what all pages load, and keep
	for _, path := range regexp.MustCompile(`/static/[^"]+`).FindAllString(string(first), -1) {
		body, _, err := page(ctx, server.URL+path)
		if err != nil {
			return err
		}
		once += len(body)
	}
	fmt.Printf("The console with %d executions, %d handlers; each page %d times\n", count, handlers, asked)
	fmt.Fprintf(table, "page\tp50\tp99\tlongest\tKiB\t\n")
	r := rand.New(rand.NewPCG(1, 1))
	for _, p := range []struct {
		name string
		path func() string
	}{
		{"overview", func() string { return "/" }},
		{"handlers", func() string { return "/handlers" }},
		{"executions", func() string { return "/executions" }},
		{"executions, far back", func() string { return fmt.Sprintf("/executions?before=%d", 1+r.IntN(count)) }},
		{"executions, dead", func() string { return "/executions?status=dead" }},
		{"executions, of a handler and a client", func() string {
			return fmt.Sprintf("/executions?handler=%d&lane=%d", 1+r.IntN(handlers), 1+r.IntN(10_000))
		}},
		{"executions, in a minute", func() string { return "/executions?since=" + time.Now().Add(-time.Minute).UTC().Format(time.RFC3339) }},
		{"executions, text in the error", func() string { return fmt.Sprintf("/executions?text=client+%d+", 100*(1+r.IntN(count/100))) }},
		{"executions, text in the response", func() string { return "/executions?response=no+tariff" }},
		{"executions, text in no request", func() string { return "/executions?request=nothing+like+it" }},
		{"an execution", func() string { return fmt.Sprintf("/executions/%d", 1+r.IntN(count)) }},
		{"a client", func() string { return fmt.Sprintf("/clients/%d", 1+r.IntN(10_000)) }},
		{"audit", func() string { return "/audit" }},
	} {
		var took []time.Duration
		size := 0
		for range asked {
			body, d, err := page(ctx, server.URL+p.path())
			if err != nil {
				return err
			}
			took, size = append(took, d), max(size, len(body))
		}
		slices.Sort(took)
		at := func(share float64) time.Duration {
			return took[int(share*float64(len(took)-1))].Round(10 * time.Microsecond)
		}
		fmt.Fprintf(table, "%s\t%v\t%v\t%v\t%d\t\n", p.name, at(.5), at(.99), at(1), size>>10)
	}
	fmt.Fprintf(table, "what all pages load once\t\t\t\t%d\t\n", once>>10)
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// page asks for a page as a browser does.
func page(ctx context.Context, url string) (body []byte, took time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", "text/html")
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return body, time.Since(start), err
}
