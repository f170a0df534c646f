package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	neturl "net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/journal"
)

// console fills the journal of an instance with twice as many executions as there are
// changes, runs it, and asks for every page of its console: what the server takes for
// each, and what it weighs.
func (b *bench) console(ctx context.Context, table *tabwriter.Writer) (err error) {
	const handlers, asked = 20, 300
	count := 2 * b.changes
	path := filepath.Join(b.dir, "console")
	var yaml strings.Builder
	yaml.WriteString("version: 1\nhandlers:\n")
	for id := 1; id <= handlers; id++ {
		fmt.Fprintf(&yaml, "  - id: %d\n    name: Handler number %[1]d # of the bench\n    event: clients.update\n    priority: %[1]d\n    http: {url: \"http://127.0.0.1:9/provisioning\"}\n", id)
	}
	b.handlers = "handlers-console.yaml"
	if err := os.WriteFile(filepath.Join(b.dir, b.handlers), []byte(yaml.String()), 0o600); err != nil {
		return err
	}
	p, err := b.start(ctx, path, false) // attaches
	if err == nil {
		err = errors.Join(p.ready(ctx), p.stop())
	}
	if err == nil {
		err = fillConsole(ctx, path, count, handlers)
	}
	if err != nil {
		return err
	}
	if p, err = b.start(ctx, path, true); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, p.stop(), b.sql(context.WithoutCancel(ctx), "SELECT pg_drop_replication_slot('billhook')"))
	}()
	if err := p.ready(ctx); err != nil {
		return err
	}
	url := "http://" + p.listen
	first, _, err := page(ctx, url+"/", nil)
	if err != nil {
		return err
	}
	once := 0 // what all pages load, and keep
	for _, path := range regexp.MustCompile(`/static/[^"]+`).FindAllString(string(first), -1) {
		body, _, err := page(ctx, url+path, nil)
		if err != nil {
			return err
		}
		once += len(body)
	}
	fmt.Printf("The console with %d executions, %d handlers; each page %d times\n", count, handlers, asked)
	fmt.Fprintf(table, "page\tp50\tp99\tlongest\tKiB\tand what all load\t\n")
	r := rand.New(rand.NewPCG(1, 1))
	for _, p := range []struct {
		name string
		path func() string
	}{
		{"a new handler", func() string { return "/handlers/new" }},
		{"a handler", func() string { return fmt.Sprintf("/handlers/%d/edit", 1+r.IntN(handlers)) }},
		{"a handler, previewed", func() string { return fmt.Sprintf("/handlers/%d/edit?post", 1+r.IntN(handlers)) }},
		{"a handler, deleted?", func() string { return fmt.Sprintf("/handlers/%d/delete", 1+r.IntN(handlers)) }},
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
		{"live", func() string { return "/live" }},
		{"replays", func() string { return "/replays" }},
		{"replay of all that are dead?", func() string { return "/replays/new?status=dead" }},
		{"replay of all that succeeded?", func() string { return "/replays/new?status=succeeded" }},
		{"audit", func() string { return "/audit" }},
	} {
		var took []time.Duration
		size := 0
		for range asked {
			var form neturl.Values
			path, post := strings.CutSuffix(p.path(), "?post")
			if post {
				form = neturl.Values{"do": {"preview"}, "kind": {"http"}, "f.events": {"clients.update"}, "f.name": {"Other"}, "f.when": {"data.id > 7"}}
			}
			body, d, err := page(ctx, url+path, form)
			if err != nil {
				return err
			}
			took, size = append(took, d), max(size, len(body))
		}
		slices.Sort(took)
		at := func(share float64) time.Duration {
			return took[int(share*float64(len(took)-1))].Round(10 * time.Microsecond)
		}
		fmt.Fprintf(table, "%s\t%v\t%v\t%v\t%d\t%d\t\n", p.name, at(.5), at(.99), at(1), size>>10, (size+once)>>10)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// fillConsole fills an attached journal: most of the executions succeeded, some are
// dead, some wait.
func fillConsole(ctx context.Context, path string, count, handlers int) (err error) {
	j, err := journal.Open(journal.Options{Path: path})
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
	return j.SaveHistory()
}

// page asks for a page as a browser does, or sends it a form.
func page(ctx context.Context, url string, form neturl.Values) (body []byte, took time.Duration, err error) {
	method := http.MethodGet
	if form != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, 0, err
	}
	if req.Header.Set("Accept", "text/html"); form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
		req.Header.Set("HX-Request", "true")
	}
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
