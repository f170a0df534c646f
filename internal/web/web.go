// Package web is Billhook's HTTP face: metrics, health, the JSON API and a page
// for people.
//
// It promises to read the journal and to write it only through what it is given; that
// every page works without a request to anywhere else; that an address other than
// loopback asks for a token; and that no page of another site can ask in the name of
// the person who looks at it.
//
// It does not decide what is healthy: it reports the checks it is given.
//
// Start with Options and New.
package web

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/journal"
	"github.com/billhook/billhook/internal/replay"
)

// Journal is what the faces read. *journal.Journal is one; its methods may be
// called from any goroutine.
type Journal interface {
	Executions(ctx context.Context, q journal.Query) (page []journal.Execution, next uint64, err error)
	Execution(id uint64) (journal.Execution, error)
	Attempts(id uint64) ([]journal.Attempt, error)
	Event(id event.ID) (*event.Event, error)
	Counts() map[journal.HandlerStatus]int64
	Audit(value []byte) error
	Audits(before uint64, f func(number uint64, value []byte) bool) error
	History(now time.Time, step time.Duration, n int) map[int][]journal.Tally
}

// Handler is one configured handler as people see it. It holds no secret.
type Handler struct {
	ID       int      `json:"id"`
	Name     string   `json:"name"`
	Events   []string `json:"events"`
	Priority int      `json:"priority"`
	Status   string   `json:"status"` // "enabled", "disabled", "archived"
	Kind     string   `json:"kind"`   // "http", "script", "plugin"
	Target   string   `json:"target"` // URL without credentials, or path
	Health   *Health  `json:"health,omitempty"`
	Plugin   *Plugin  `json:"plugin,omitempty"` // of the kind plugin
}

// Plugin is how the process of a plugin is.
type Plugin struct {
	Up      bool       `json:"up"`
	Name    string     `json:"name,omitempty"`
	Version string     `json:"version,omitempty"`
	Since   *time.Time `json:"since,omitempty"` // when it was started
	Error   string     `json:"error,omitempty"` // why it is not up
}

// Health is how a handler fares since the start of the process.
type Health struct {
	Failing bool `json:"failing"` // for failing_after nothing has succeeded
	// FailingSince is when the first attempt failed after the last that succeeded.
	FailingSince *time.Time `json:"failing_since,omitempty"`
	LastSuccess  *time.Time `json:"last_success,omitempty"`
	LastFailure  *time.Time `json:"last_failure,omitempty"`
	LastError    string     `json:"last_error,omitempty"`
	// RestingUntil is when its open breaker lets the next attempt through; nil: it is
	// not open.
	RestingUntil *time.Time `json:"resting_until,omitempty"`
}

// Check is one condition of being ready.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"` // what it stands at, or what is wrong and what to do
	// Share is how much of long work is done, 0 to 1; nil: there is none.
	Share *float64 `json:"share,omitempty"`
}

// Options of New. Journal, Handlers, Ready and Gatherer are required.
type Options struct {
	Journal  Journal
	Handlers func() []Handler
	// Ready returns the checks behind /readyz. Live returns an error when the
	// process should be restarted.
	Ready    func() []Check
	Live     func() error
	Gatherer prometheus.Gatherer
	Version  string
	// Backfills, unless nil, are begun and looked at under /api/v1/backfills.
	Backfills Backfills
	// Replays, unless nil, are begun and looked at under /api/v1/replays.
	Replays Replays
	// SetStatus, unless nil, changes the status of a handler and returns when that is in
	// force. What cannot be done is a *RefusedError.
	SetStatus func(ctx context.Context, id int, status string) error
	// Editor, unless nil, changes handlers.yaml.
	Editor Editor
	// Diagnose, unless nil, looks at the database and the machine; Diagnosis returns what
	// was found last, nil before it was looked.
	Diagnose  func(ctx context.Context) (Diagnosis, error)
	Diagnosis func() *Diagnosis
	// Changes, unless nil, returns what loading handlers.yaml now would change, as a list
	// that is shown as JSON. What is wrong in the file is a *RefusedError.
	Changes func() (any, error)
	// LogLevel, unless nil, can be changed.
	LogLevel LogLevel
	// Try, unless nil, calls a handler to see what it does. Errors are ErrNoHandler or a
	// *RefusedError, as a rule.
	Try func(ctx context.Context, t Trial) (Tried, error)
	// Tail, unless nil, tells of each event as it is derived, until stop is called.
	Tail func() (events <-chan TailEvent, stop func())
	// Status returns more of what /api/v1/status shows, by name; nil: nothing.
	Status func() map[string]any
	// Access lists who may look, on everything but /healthz and /readyz. Empty:
	// anybody who can reach the address.
	Access []Credential
	Logger *slog.Logger
}

// Credential is a bearer token, or a name with a password.
type Credential struct {
	Name     string
	Token    string
	Password string
	Operator bool // may also change things
}

// Server is the HTTP face.
type Server struct {
	opts     Options
	handler  http.Handler
	log      *slog.Logger
	sessions *sessions
	routes   []string // of the API

	stopping chan struct{} // closed when Run ends
}

// New makes a Server.
func New(o Options) *Server {
	s := &Server{opts: o, log: o.Logger, stopping: make(chan struct{}), sessions: newSessions()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	open := http.NewServeMux()
	open.HandleFunc("GET /healthz", s.healthz)
	open.HandleFunc("GET /readyz", s.readyz)

	guarded := http.NewServeMux()
	// What the OpenAPI document tells of.
	api := func(pattern string, f http.HandlerFunc) {
		guarded.HandleFunc(pattern, f)
		s.routes = append(s.routes, pattern)
	}
	guarded.Handle("GET /metrics", metricsHandler(o.Gatherer))
	api("GET /api/v1/openapi.json", s.openAPI)
	api("GET /api/v1/status", s.status)
	api("GET /api/v1/handlers", s.handlers)
	api("GET /api/v1/handlers/{id}", s.oneHandler)
	if o.SetStatus != nil {
		api("PATCH /api/v1/handlers/{id}", s.changeHandler)
	}
	if o.Editor != nil {
		api("POST /api/v1/handlers", s.addHandler)
		api("DELETE /api/v1/handlers/{id}", s.removeHandler)
		api("GET /api/v1/handlers/{id}/draft", s.handlerDraft)
	}
	if o.Diagnose != nil {
		api("GET /api/v1/checks", s.checks)
		api("POST /api/v1/checks", s.checks)
	}
	if o.Changes != nil {
		api("GET /api/v1/handlers/changes", s.handlerChanges)
	}
	if o.LogLevel != nil {
		api("GET /api/v1/log", s.logLevel)
		api("PUT /api/v1/log", s.setLogLevel)
	}
	if o.Try != nil {
		api("POST /api/v1/handlers/{id}/test", s.tryHandler)
	}
	if o.Tail != nil {
		api("GET /api/v1/events/live", s.liveEvents)
	}
	api("GET /api/v1/history", s.history)
	api("GET /api/v1/audit", s.audit)
	api("GET /api/v1/executions", s.executions)
	api("GET /api/v1/executions.ndjson", s.export)
	api("GET /api/v1/executions/{id}", s.execution)
	if o.Replays != nil {
		api("POST /api/v1/executions/{id}/replay", s.replayExecution)
		api("GET /api/v1/replays", s.replays)
		api("POST /api/v1/replays", s.startReplay)
		api("GET /api/v1/replays/{id}", s.replay)
		api("DELETE /api/v1/replays/{id}", s.cancelReplay)
	}
	if o.Backfills != nil {
		api("GET /api/v1/backfills", s.backfills)
		api("POST /api/v1/backfills", s.startBackfill)
		api("GET /api/v1/backfills/{id}", s.backfill)
		api("DELETE /api/v1/backfills/{id}", s.cancelBackfill)
	}
	guarded.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, "no such resource: %s %s", r.Method, r.URL.Path)
	})
	pages := newConsole(s)
	pages.routes(guarded)
	open.HandleFunc("GET /static/", pages.static)
	if len(o.Access) > 0 {
		open.HandleFunc("GET /login", pages.loginPage)
		open.HandleFunc("POST /login", pages.login)
		open.HandleFunc("POST /logout", pages.logout)
	}
	open.Handle("/", s.authorise(guarded))

	var cross http.CrossOriginProtection
	s.handler = headers(cross.Handler(open))
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Listen opens the address. It refuses one that others can reach when access is
// free.
func Listen(address string, access []Credential) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: want host:port such as 127.0.0.1:8321", address)
	}
	if len(access) == 0 && !loopback(host) {
		return nil, fmt.Errorf("listen on %s: an address that others can reach needs http.tokens or http.users; or listen on 127.0.0.1", address)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// Run serves l until ctx ends, then finishes the requests at hand for at most five
// seconds. It closes l.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve http: %w", err)
	case <-ctx.Done():
	}
	close(s.stopping) // who watches events would do so for ever
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http: %w", err)
	}
	return nil
}

// headers sets what every answer carries: nothing of ours may be framed, sniffed
// or load anything from elsewhere.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

func (s *Server) authorise(next http.Handler) http.Handler {
	if len(s.opts.Access) == 0 {
		// Nobody but this machine can ask, but a browser on it asks for any site whose
		// name leads here.
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host := r.Host
			if h, _, err := net.SplitHostPort(host); err == nil {
				host = h
			}
			if !loopback(strings.Trim(host, "[]")) {
				fail(w, http.StatusMisdirectedRequest, "there is no %s here: ask for localhost or 127.0.0.1, or set http.tokens or http.users", host)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, name, guess := s.guess(r)
		if guess && !s.sessions.mayTry(from, basicTries) {
			s.log.Warn("too many wrong passwords", "address", addressOf(r), "name", name)
			w.Header().Set("Retry-After", "60")
			fail(w, http.StatusTooManyRequests, "too many wrong passwords: wait a minute")
			return
		}
		who, known := s.allowed(r)
		if guess && known {
			s.sessions.right(from)
		}
		if !known {
			if who, known = s.sessions.of(r); known {
				r = r.WithContext(context.WithValue(r.Context(), sessionKey{}, true))
			}
		}
		switch {
		case !known && wantsPage(r):
			http.Redirect(w, r, "/login?back="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
			return
		case !known:
			w.Header().Add("WWW-Authenticate", `Bearer realm="billhook"`)
			w.Header().Add("WWW-Authenticate", `Basic realm="billhook"`)
			fail(w, http.StatusUnauthorized, "a token, or a name and password, is needed")
			return
		case who.Role != operatorRole && r.Method != http.MethodGet && r.Method != http.MethodHead:
			fail(w, http.StatusForbidden, "a viewer may only look: use a token or a user with role: operator")
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), whoKey{}, who)))
	})
}

// The roles, as http.tokens and http.users name them.
const (
	operatorRole = "operator"
	viewerRole   = "viewer"
)

type whoKey struct{}

// whoOf is who asks, as far as they were asked who they are.
func whoOf(r *http.Request) replay.By {
	who, _ := r.Context().Value(whoKey{}).(replay.By)
	return who
}

// guess reports whether a request has a password, which may be tried as often as the
// form lets it be, and for whom it is counted. Tokens are too long to be guessed.
func (s *Server) guess(r *http.Request) (from, name string, ok bool) {
	name, _, ok = r.BasicAuth()
	from = addressOf(r) + " "
	if slices.ContainsFunc(s.opts.Access, func(c Credential) bool { return c.Name == name }) {
		from += name // names that are nobody's are counted together
	}
	return from, name, ok
}

// allowed compares with every credential, in a time that tells nothing.
func (s *Server) allowed(r *http.Request) (who replay.By, known bool) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	name, password, _ := r.BasicAuth()
	for _, c := range s.opts.Access {
		ok := 0
		if c.Token != "" {
			ok |= same(token, c.Token)
		}
		if c.Password != "" {
			ok |= same(name, c.Name) & same(password, c.Password)
		}
		switch {
		case ok == 0:
		case c.Operator:
			who, known = replay.By{Name: c.Name, Role: operatorRole}, true
		case who.Role != operatorRole:
			who, known = replay.By{Name: c.Name, Role: viewerRole}, true
		}
	}
	return who, known
}

func same(given, want string) int {
	g, w := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(g[:], w[:])
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	if s.opts.Live != nil {
		if err := s.opts.Live(); err != nil {
			fail(w, http.StatusServiceUnavailable, "%v", err)
			return
		}
	}
	answer(w, http.StatusOK, map[string]string{"status": "ok", "version": s.opts.Version})
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	checks := s.opts.Ready()
	code, text := http.StatusOK, "ready"
	for _, c := range checks {
		if !c.OK {
			code, text = http.StatusServiceUnavailable, "not ready"
		}
	}
	answer(w, code, map[string]any{"status": text, "checks": checks})
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // the client has gone; nobody is left to tell
}

func fail(w http.ResponseWriter, code int, format string, args ...any) {
	answer(w, code, map[string]string{"error": fmt.Sprintf(format, args...)})
}

// Standby is the HTTP face of a process that waits for another to end: alive, measured,
// and not ready for the reason that Options.Ready gives. Of the Options it takes Ready,
// Gatherer, Version, Access and Logger.
func Standby(o Options) http.Handler {
	s := &Server{opts: o, log: o.Logger, sessions: newSessions()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	open := http.NewServeMux()
	open.HandleFunc("GET /healthz", s.healthz)
	open.HandleFunc("GET /readyz", s.readyz)
	guarded := http.NewServeMux()
	guarded.Handle("GET /metrics", metricsHandler(o.Gatherer))
	guarded.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		var why []string
		for _, c := range o.Ready() {
			why = append(why, c.Text)
		}
		fail(w, http.StatusServiceUnavailable, "%s", strings.Join(why, "; "))
	})
	open.Handle("/", s.authorise(guarded))
	return headers(open)
}

func metricsHandler(g prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(g, promhttp.HandlerOpts{EnableOpenMetrics: true})
}
