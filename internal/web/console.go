package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replay"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/*
var staticFiles embed.FS

// console is the pages for people. They are made here, work without scripts, and load
// nothing from elsewhere.
type console struct {
	*Server
	pages  map[string]*template.Template
	assets map[string]asset  // by the path under which they are asked for
	names  map[string]string // paths of the assets, by their names
	now    func() time.Time
}

type asset struct {
	content []byte
	typ     string
}

func newConsole(s *Server) *console {
	c := &console{Server: s, pages: map[string]*template.Template{}, assets: map[string]asset{}, names: map[string]string{}, now: time.Now}
	types := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	for _, name := range entries(staticFiles, "static") {
		typ, served := types[path.Ext(name)]
		if !served {
			continue
		}
		b := must(staticFiles.ReadFile("static/" + name))
		sum := sha256.Sum256(b)
		// The name tells the content, so that a browser need never ask for it again.
		at := "/static/" + strings.TrimSuffix(name, path.Ext(name)) + "." + hex.EncodeToString(sum[:6]) + path.Ext(name)
		c.assets[at], c.names[name] = asset{b, typ}, at
	}
	shared := template.Must(template.New("").Funcs(c.funcs()).ParseFS(templateFiles, "templates/layout.html", "templates/rows.html"))
	for _, name := range entries(templateFiles, "templates") {
		if name != "layout.html" && name != "rows.html" {
			c.pages[strings.TrimSuffix(name, ".html")] = template.Must(template.Must(shared.Clone()).ParseFS(templateFiles, "templates/"+name))
		}
	}
	return c
}

func entries(files fs.FS, dir string) (names []string) {
	for _, e := range must(fs.ReadDir(files, dir)) {
		names = append(names, e.Name())
	}
	return names
}

// must is for what is embedded: it is there, or the program was not built.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// routes adds the pages to a mux of those who may look.
func (c *console) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", c.overview)
	mux.HandleFunc("GET /handlers", c.handlersPage)
	mux.HandleFunc("GET /executions", c.executionsPage)
	mux.HandleFunc("GET /executions/{id}", c.executionPage)
	mux.HandleFunc("GET /executions.csv", c.exportCSV)
	mux.HandleFunc("GET /clients/{lane...}", c.clientPage)
	if c.opts.Tail != nil {
		mux.HandleFunc("GET /live", c.livePage)
	}
	mux.HandleFunc("GET /audit", c.auditPage)
	mux.HandleFunc("POST /theme", c.theme)
	if c.opts.SetStatus != nil {
		mux.HandleFunc("POST /handlers/{id}/status", c.setStatus)
	}
	mux.HandleFunc("GET /handlers/new", c.formPage)
	mux.HandleFunc("GET /handlers/{id}/edit", c.formPage)
	if c.opts.Editor != nil {
		mux.HandleFunc("POST /handlers/new", c.postForm)
		mux.HandleFunc("POST /handlers/{id}/edit", c.postForm)
		mux.HandleFunc("GET /handlers/{id}/delete", c.deletePage)
		mux.HandleFunc("POST /handlers/{id}/delete", c.deleteHandler)
		mux.HandleFunc("POST /handlers/{id}/move", c.moveHandler)
	}
	if c.opts.Diagnose != nil {
		mux.HandleFunc("POST /checks", c.lookNow)
	}
	if c.opts.Replays != nil {
		mux.HandleFunc("POST /executions/{id}/replay", c.replayOne)
		mux.HandleFunc("GET /replays", c.replaysPage)
		mux.HandleFunc("GET /replays/new", c.confirmReplay)
		mux.HandleFunc("POST /replays", c.replayMany)
		mux.HandleFunc("POST /replays/{id}/cancel", c.cancelReplayPage)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.trouble(w, r, http.StatusNotFound, "there is no page "+r.URL.Path)
	})
}

func (c *console) static(w http.ResponseWriter, r *http.Request) {
	a, ok := c.assets[r.URL.Path]
	if !ok {
		fail(w, http.StatusNotFound, "no such file: %s", r.URL.Path)
		return
	}
	w.Header().Set("Content-Type", a.typ)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	_, _ = w.Write(a.content) // the client has gone; nobody is left to tell
}

// view is what every page shows around its own.
type view struct {
	Title      string
	Pages      []pageLink
	Here       string // path of the page that this one belongs to
	Back       string // this very page, to come back to
	Theme      string // "", "light", "dark"
	OtherTheme string
	Who        replay.By
	Session    bool // signed in by the form
	SignedIn   bool // may look
	CanAct     bool
	Notice     string
	Version    string
	// CanDiagnose: the checks can be run.
	CanDiagnose bool
	Main        any
}

type pageLink struct {
	Path, Name string
	Count      *badge
}

// badge is a number beside the name of a page.
type badge struct{ Text, Class string }

const (
	themeCookie  = "billhook_theme"
	noticeCookie = "billhook_notice"
)

// show writes a page.
func (c *console) show(w http.ResponseWriter, r *http.Request, code int, name, title, here string, main any) {
	who := whoOf(r)
	v := view{
		Title: title, Here: here, Back: r.URL.RequestURI(), Who: who, Version: c.opts.Version, Main: main,
		SignedIn: name != "login", Session: sessionOf(r), CanDiagnose: c.opts.Diagnose != nil,
		CanAct: c.mayAct(r),
	}
	v.Theme, v.OtherTheme = "", "dark"
	if k, err := r.Cookie(themeCookie); err == nil {
		switch k.Value {
		case "dark":
			v.Theme, v.OtherTheme = "dark", "light"
		case "light":
			v.Theme, v.OtherTheme = "light", "system"
		}
	}
	// Of parts of a page only the table of handlers shows it, after it was changed.
	if k, err := r.Cookie(noticeCookie); err == nil && (r.Header.Get("HX-Request") == "" || r.Header.Get("HX-Target") == "handlers") {
		if text, err := url.QueryUnescape(k.Value); err == nil {
			v.Notice = text
		}
		http.SetCookie(w, &http.Cookie{Name: noticeCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	}
	if v.SignedIn {
		v.Pages = c.links()
	}
	var buf bytes.Buffer
	if err := c.pages[name].ExecuteTemplate(&buf, "layout", v); err != nil {
		c.log.Error("cannot make a page", "page", name, "err", err)
		fail(w, http.StatusInternalServerError, "the page cannot be made: %v", err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(buf.Bytes()) // the client has gone; nobody is left to tell
}

// mayAct reports whether who asks may change things.
func (s *Server) mayAct(r *http.Request) bool {
	return len(s.opts.Access) == 0 || whoOf(r).Role == operatorRole
}

// fragment writes a part of a page.
func (c *console) fragment(w http.ResponseWriter, name, part string, main any) {
	var buf bytes.Buffer
	if err := c.pages[name].ExecuteTemplate(&buf, part, main); err != nil {
		c.log.Error("cannot make a page", "page", name, "err", err)
		fail(w, http.StatusInternalServerError, "the page cannot be made: %v", err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(buf.Bytes()) // the client has gone; nobody is left to tell
}

func (c *console) links() []pageLink {
	failing := 0
	for _, h := range c.opts.Handlers() {
		if h.Health != nil && h.Health.Failing {
			failing++
		}
	}
	pages := []pageLink{{Path: "/", Name: "Overview"}, {Path: "/handlers", Name: "Handlers"}, {Path: "/executions", Name: "Executions"}}
	if failing > 0 {
		pages[1].Count = &badge{fmt.Sprintf("%d failing", failing), "bad"}
	}
	if dead := c.total(journal.Dead); dead > 0 {
		pages[2].Count = &badge{grouped(dead) + " dead", ""}
	}
	if c.opts.Tail != nil {
		pages = append(pages, pageLink{Path: "/live", Name: "Live"})
	}
	if c.opts.Replays != nil {
		pages = append(pages, pageLink{Path: "/replays", Name: "Replays"})
	}
	return append(pages, pageLink{Path: "/audit", Name: "Audit"})
}

func (c *console) total(s journal.Status) (n int64) {
	for k, count := range c.opts.Journal.Counts() {
		if k.Status == s {
			n += count
		}
	}
	return n
}

// trouble is the page that says why there is no other.
func (c *console) trouble(w http.ResponseWriter, r *http.Request, code int, text string) {
	c.show(w, r, code, "error", http.StatusText(code), "", map[string]string{"Title": http.StatusText(code), "Text": text, "Back": "/"})
}

// done answers a form: back to where it was, with a word of what was done.
func (c *console) done(w http.ResponseWriter, r *http.Request, back, notice string) {
	http.SetCookie(w, &http.Cookie{Name: noticeCookie, Value: url.QueryEscape(notice), Path: "/", MaxAge: 30, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, local(back), http.StatusSeeOther)
}

// local is a path of this server, whatever somebody else has made of it.
func local(back string) string {
	u, err := url.Parse(back)
	if err != nil || u.Scheme != "" || u.Host != "" || u.Opaque != "" || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(u.Path, "//") || strings.Contains(back, "\\") {
		return "/"
	}
	return u.RequestURI()
}

func (c *console) theme(w http.ResponseWriter, r *http.Request) {
	k := &http.Cookie{Name: themeCookie, Value: r.PostFormValue("theme"), Path: "/", MaxAge: 365 * 24 * 3600, HttpOnly: true, SameSite: http.SameSiteStrictMode}
	if k.Value != "dark" && k.Value != "light" {
		k.Value, k.MaxAge = "", -1
	}
	http.SetCookie(w, k)
	http.Redirect(w, r, local(r.PostFormValue("back")), http.StatusSeeOther)
}

// funcs are what templates call.
func (c *console) funcs() template.FuncMap {
	return template.FuncMap{
		"asset": func(name string) (string, error) {
			at, ok := c.names[name]
			if !ok {
				return "", fmt.Errorf("there is no %s", name)
			}
			return at, nil
		},
		"icon":     icon,
		"exact":    exact,
		"rfc3339":  func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
		"ago":      func(at any) *span { return c.ago(at) },
		"duration": shortDuration,
		"bytes":    sizeText,
		"number":   grouped,
		"lower":    strings.ToLower,
		"client":   func(lane string) string { return "/clients/" + url.PathEscape(lane) },
		"arrow": func(h handlerRow, way string, other int, back string) any {
			return struct {
				ID, Other       int
				Name, Way, Back string
			}{h.ID, other, h.Name, way, back}
		},
		"difflines": diffLines,
		"final":     func(s journal.Status) bool { return !s.Open() },
	}
}

// icon is a small picture of a state; the word stands beside it.
func icon(state string) template.HTML {
	paths := map[string]string{
		"ok": "M3 8.5 6.5 12 13 4.5", "succeeded": "M3 8.5 6.5 12 13 4.5", "enabled": "M3 8.5 6.5 12 13 4.5", "success": "M3 8.5 6.5 12 13 4.5",
		"fail": "M4 4l8 8M12 4l-8 8", "dead": "M4 4l8 8M12 4l-8 8", "failing": "M4 4l8 8M12 4l-8 8", "permanent": "M4 4l8 8M12 4l-8 8",
		"warn": "M8 2v8M8 13v.5", "retry": "M12.5 5A5.5 5.5 0 1 0 13.5 9M13 2v3.5H9.5",
		"pending": "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2M8 5v3.5l2.5 1.5", "held": "M5.5 3v10M10.5 3v10", "disabled": "M5.5 3v10M10.5 3v10",
		"skipped": "M3 4l5 4-5 4zM12 4v8", "cancelled": "M3 8h10", "archived": "M2.5 5h11M3.5 5v8h9V5M6.5 8h3", "skip": "M3 8h10",
	}
	d, ok := paths[state]
	if !ok {
		d = "M3 8h10"
	}
	return template.HTML(`<svg width="14" height="14" viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="` + d + `"/></svg>`) //nolint:gosec // all of it is ours
}

// diffLine is a line of a difference.
type diffLine struct{ Class, Text string }

func diffLines(text string) (list []diffLine) {
	for l := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		class := ""
		switch {
		case strings.HasPrefix(l, "+++"), strings.HasPrefix(l, "---"), strings.HasPrefix(l, "@@"):
			class = "soft"
		case strings.HasPrefix(l, "+"):
			class = "plus"
		case strings.HasPrefix(l, "-"):
			class = "minus"
		}
		list = append(list, diffLine{class, l})
	}
	return list
}

func exact(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

// span is a time and how long ago it was.
type span struct{ Text, Exact, RFC3339 string }

// ago takes a time.Time or a *time.Time; nil when there is none.
func (c *console) ago(at any) *span {
	var t time.Time
	switch v := at.(type) {
	case time.Time:
		t = v
	case *time.Time:
		if v != nil {
			t = *v
		}
	}
	if t.IsZero() {
		return nil
	}
	m := &span{Exact: exact(t), RFC3339: t.UTC().Format(time.RFC3339Nano)}
	d := c.now().Sub(t)
	text := func(n int, unit string) string {
		if n == 1 {
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	way := " ago"
	if d < 0 {
		d, way = -d, " from now"
	}
	switch {
	case d < time.Second:
		m.Text = "just now"
		return m
	case d < time.Minute:
		m.Text = text(int(d/time.Second), "second")
	case d < time.Hour:
		m.Text = text(int(d/time.Minute), "minute")
	case d < 48*time.Hour:
		m.Text = text(int(d/time.Hour), "hour")
	default:
		m.Text = text(int(d/(24*time.Hour)), "day")
	}
	m.Text += way
	return m
}

func shortDuration(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}

func sizeText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// grouped is a number with its digits in groups of three.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// indent is JSON for people, with all its digits.
func indent(raw []byte) string {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return string(raw)
	}
	return b.String()
}
