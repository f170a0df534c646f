package web

import (
	_ "embed"
	"html/template"
	"net/http"
	"time"

	"github.com/billhook/billhook/internal/journal"
)

//go:embed page.html
var pageText string

//go:embed style.css
var styleText []byte

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"ago": func(at any) string {
		t, ok := at.(time.Time)
		if p, isPointer := at.(*time.Time); isPointer && p != nil {
			t, ok = *p, true
		}
		if !ok || t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02 15:04:05.000")
	},
	"ms": func(d time.Duration) string { return d.Round(100 * time.Microsecond).String() },
}).Parse(pageText))

func style(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "max-age=300")
	_, _ = w.Write(styleText) // the client has gone; nobody is left to tell
}

// overview is the page for people: is it well, what is configured, what was called
// last. It takes the filters of the executions API.
func (s *Server) overview(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuery(r.URL.Query())
	var view struct {
		Version    string
		Checks     []Check
		Handlers   []handlerJSON
		Executions []journal.Execution
		Names      map[int]string
		Next       uint64
		Statuses   []journal.Status
		Query      journal.Query
		Error      string
	}
	view.Version, view.Checks, view.Handlers, view.Query, view.Statuses = s.opts.Version, s.opts.Ready(), s.handlerRows(), q, journal.Statuses()
	view.Names = map[int]string{}
	for _, h := range view.Handlers {
		view.Names[h.ID] = h.Name
	}
	if err != nil {
		view.Error = err.Error()
	} else if view.Executions, view.Next, err = s.opts.Journal.Executions(r.Context(), q); err != nil {
		s.log.Error("cannot list executions", "err", err)
		view.Error = "the journal cannot be read: " + err.Error()
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if err := page.Execute(w, view); err != nil {
		s.log.Debug("cannot write the page", "err", err)
	}
}
