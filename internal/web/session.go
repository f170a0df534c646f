package web

import (
	"crypto/rand"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/billhook/billhook/internal/replay"
)

const (
	sessionCookie = "billhook_session"
	// sessionIdle and sessionLong are how long a session lasts without a request, and at
	// all.
	sessionIdle = 12 * time.Hour
	sessionLong = 7 * 24 * time.Hour
	maxSessions = 1000
	// loginTries are how many wrong passwords an address has in loginWindow with the form,
	// basicTries how many for each name without it: programs ask several things at once.
	loginTries  = 5
	basicTries  = 20
	loginWindow = time.Minute
)

// sessions are those who have signed in with the form. They end with the process.
type sessions struct {
	mu    sync.Mutex
	open  map[string]*session
	tries map[string]*tries // by address, or address and name
	now   func() time.Time
}

type session struct {
	who         replay.By
	begun, seen time.Time
}

type tries struct {
	n     int
	since time.Time
}

func newSessions() *sessions {
	return &sessions{open: map[string]*session{}, tries: map[string]*tries{}, now: time.Now}
}

// begin opens a session and returns its secret, which is always a new one.
func (s *sessions) begin(who replay.By) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	oldest := ""
	for token, o := range s.open {
		if s.ended(o, now) {
			delete(s.open, token)
		} else if oldest == "" || o.seen.Before(s.open[oldest].seen) {
			oldest = token
		}
	}
	if len(s.open) >= maxSessions {
		delete(s.open, oldest)
	}
	token := rand.Text()
	s.open[token] = &session{who, now, now}
	return token
}

func (s *sessions) ended(o *session, now time.Time) bool {
	return now.Sub(o.seen) > sessionIdle || now.Sub(o.begun) > sessionLong
}

// of returns who has the session of a request.
func (s *sessions) of(r *http.Request) (replay.By, bool) {
	k, err := r.Cookie(sessionCookie)
	if err != nil {
		return replay.By{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.open[k.Value]
	now := s.now()
	if !ok || s.ended(o, now) {
		delete(s.open, k.Value)
		return replay.By{}, false
	}
	o.seen = now
	return o.who, true
}

func (s *sessions) end(r *http.Request) {
	if k, err := r.Cookie(sessionCookie); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, k.Value)
	}
}

// mayTry counts a try of somebody, and says whether it may be made.
func (s *sessions) mayTry(from string, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for a, t := range s.tries {
		if now.Sub(t.since) > loginWindow {
			delete(s.tries, a)
		}
	}
	t := s.tries[from]
	if t == nil {
		t = &tries{since: now}
		s.tries[from] = t
	}
	t.n++
	return t.n <= most
}

// forgive forgets the tries of an address that has signed in.
func (s *sessions) forgive(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tries, address)
}

// right takes back one try, which was none.
func (s *sessions) right(from string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tries[from]; t != nil {
		if t.n--; t.n == 0 {
			delete(s.tries, from)
		}
	}
}

// addressOf is from where somebody asks, without the port.
func addressOf(r *http.Request) string {
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return address
}

type sessionKey struct{}

// sessionOf reports whether a request came with a session.
func sessionOf(r *http.Request) bool {
	_, ok := r.Context().Value(sessionKey{}).(bool)
	return ok
}

// loginPage is the form.
func (c *console) loginPage(w http.ResponseWriter, r *http.Request) {
	c.askToSignIn(w, r, http.StatusOK, "", "", r.URL.Query().Get("back"))
}

func (c *console) askToSignIn(w http.ResponseWriter, r *http.Request, code int, name, problem, back string) {
	c.show(w, r, code, "login", "Sign in", "", map[string]string{"Name": name, "Error": problem, "Back": local(back)})
}

func (c *console) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
	name, password, back := r.PostFormValue("name"), r.PostFormValue("password"), r.PostFormValue("back")
	address := addressOf(r)
	if !c.sessions.mayTry(address, loginTries) {
		c.log.Warn("too many tries to sign in", "address", address, "name", name)
		w.Header().Set("Retry-After", "60")
		c.askToSignIn(w, r, http.StatusTooManyRequests, name, "Too many tries: wait a minute.", back)
		return
	}
	who, ok := c.credential(name, password)
	if !ok {
		c.log.Warn("wrong name or password", "address", address, "name", name)
		c.askToSignIn(w, r, http.StatusUnauthorized, name, "The name or the password is wrong.", back)
		return
	}
	c.sessions.forgive(address)
	c.sessions.end(r) // whoever had the browser before
	token := c.sessions.begin(who)
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie, Value: token, Path: "/", MaxAge: int(sessionLong / time.Second), HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https"),
	})
	c.actAs(r, who, "signed in", "role", who.Role)
	http.Redirect(w, r, local(back), http.StatusSeeOther)
}

func (c *console) logout(w http.ResponseWriter, r *http.Request) {
	if who, ok := c.sessions.of(r); ok {
		c.actAs(r, who, "signed out")
	}
	c.sessions.end(r)
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// credential finds who has a name with a password, or with a token in its place.
func (s *Server) credential(name, password string) (who replay.By, known bool) {
	for _, c := range s.opts.Access {
		for _, secret := range []string{c.Password, c.Token} {
			if secret == "" || same(name, c.Name)&same(password, secret) == 0 {
				continue
			}
			role := viewerRole
			if c.Operator {
				role = operatorRole
			}
			if !known || role == operatorRole {
				who, known = replay.By{Name: c.Name, Role: role}, true
			}
		}
	}
	return who, known
}

// wantsPage reports whether a person in a browser asks.
func wantsPage(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html") && !strings.HasPrefix(r.URL.Path, "/api/") && r.URL.Path != "/metrics"
}
