package web

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/billhook/billhook/internal/replay"
)

const page = "text/html,application/xhtml+xml"

func pages() []string {
	return []string{
		"/", "/handlers", "/handlers?status=all", "/executions", "/executions/1", "/executions/2", "/executions/3", "/clients/4711",
		"/executions?status=dead", "/executions?text=says&since=2020-01-01T10%3A00&until=2040-01-01T10%3A00%3A00", "/nosuch", "/executions/99",
		"/clients/" + url.PathEscape(hostile), "/executions?status=" + url.QueryEscape(hostile), "/handlers?name=" + url.QueryEscape(hostile),
	}
}

// TestPages: every page is whole, asks for nothing from elsewhere, and shows the text of
// others as text.
func TestPages(t *testing.T) {
	s := serve(t, nil)
	reference := regexp.MustCompile(`(?:href|src|action|hx-get)="([^"]*)"`)
	for _, path := range pages() {
		code, body, header := get(t, s, path, "Accept", page)
		if want := map[string]int{"/nosuch": 404, "/executions/99": 404, "/executions?status=" + url.QueryEscape(hostile): 400}[path]; code != max(want, 200) {
			t.Errorf("GET %s: %d %s", path, code, body)
		}
		if !strings.HasSuffix(strings.TrimSpace(body), "</html>") || strings.Contains(body, "<no value>") {
			t.Errorf("GET %s: not a whole page:\n%s", path, body)
		}
		if strings.Contains(body, "<script>alert") || strings.Contains(body, "style=\"") || strings.Contains(body, "onclick") {
			t.Errorf("GET %s: text of others is not escaped, or the page has scripts or styles in it", path)
		}
		for _, m := range reference.FindAllStringSubmatch(body, -1) {
			if !strings.HasPrefix(m[1], "/") && !strings.HasPrefix(m[1], "#") || strings.HasPrefix(m[1], "//") {
				t.Errorf("GET %s: refers to %s", path, m[1])
			}
		}
		csp := header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("GET %s: Content-Security-Policy %s lacks %s", path, csp, want)
			}
		}
		if header.Get("Cache-Control") != "no-store" || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("GET %s: %v", path, header)
		}
		if len(body) > 150<<10 {
			t.Errorf("GET %s: %d bytes", path, len(body))
		}
	}
	// What pages are made of is there, and need never be asked for again.
	_, body, _ := get(t, s, "/", "Accept", page)
	assets := regexp.MustCompile(`/static/[^"]+`).FindAllString(body, -1)
	if len(assets) != 4 {
		t.Errorf("%v", assets)
	}
	weight := len(body)
	for _, a := range assets {
		code, content, header := get(t, s, a)
		if code != 200 || !strings.Contains(header.Get("Cache-Control"), "immutable") {
			t.Errorf("GET %s: %d %v", a, code, header)
		}
		weight += len(content)
	}
	if weight > 150<<10 {
		t.Errorf("a page weighs %d bytes", weight)
	}
	for _, path := range []string{"/static/nosuch.css", "/static/../web.go", "/static/%2e%2e/web.go", "/static/README.md", "/static/"} {
		if code, body, _ := get(t, s, path); code != 404 || strings.Contains(body, "package") {
			t.Errorf("GET %s: %d %s", path, code, body)
		}
	}
}

func TestContents(t *testing.T) {
	s := serve(t, nil)
	for path, want := range map[string][]string{
		"/":                        {"Executions have died in the last day: 1", "the newest is execution 2, of handler 7", "the receiver says", "Dead letters"},
		"/handlers":                {"https://crm.example.net/", "50 %", "clients.create", "Success rate", "Last success", "just now", "In the last hour: 1 succeeded, 1 attempts failed, 1 dead"},
		"/handlers?status=enabled": {"https://crm.example.net/"},
		"/handlers?event=clients.": {"https://crm.example.net/"},
		"/handlers?name=nosuch":    {"No handler is like that."},
		"/handlers?kind=script":    {"No handler is like that."},
		"/executions?status=dead":  {`href="/executions/2"`, "executions.ndjson?status=dead", "executions.csv?status=dead"},
		"/executions?status=held":  {"No execution is like that."},
		"/executions?nosuch=1":     {"nosuch is no filter"},
		"/executions?since=later":  {"since=later"},
		"/executions/1":            {"succeeded", "3 B more were not kept", "\ufffdx"},
		"/executions/2":            {"failed for good", "the receiver says", "What changed"},
		"/executions/3":            {"None yet."},
		"/clients/4711":            {"clients.create", `href="/executions/3"`},
		"/clients/none":            {"No handler was called about this client"},
	} {
		_, body, _ := get(t, s, path)
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("GET %s lacks %q:\n%s", path, w, body)
			}
		}
	}
	// The ID is one filter of several, and leads to the execution when it is the only one.
	if _, body, _ := get(t, s, "/executions?id=2&status=dead&since=2020-01-01"); !strings.Contains(body, `href="/executions/2"`) || strings.Contains(body, `href="/executions/3"`) || strings.Contains(body, "/replays/new") {
		t.Error(body)
	}
	if _, body, _ := get(t, s, "/executions?id=2&status=succeeded"); !strings.Contains(body, "No execution is like that.") {
		t.Error(body)
	}
	if _, body, _ := get(t, s, "/executions?id=2"); !strings.Contains(body, "<h1>Execution 2 ") {
		t.Error(body)
	}
	if code, body, _ := get(t, s, "/executions.csv?id=2"); code != 200 || strings.Count(body, "\n") != 2 {
		t.Errorf("%d %s", code, body)
	}
	if _, body, _ := get(t, s, "/executions?status=dead"); strings.Contains(body, `href="/executions/1"`) {
		t.Error("the page is not filtered")
	}
	code, body, header := get(t, s, "/executions.csv?status=dead")
	if want := "id,created,event,handler,object,client,status,attempts,duration_seconds,code,error,event_id\n2,"; code != 200 || !strings.HasPrefix(body, want) || strings.Count(body, "\n") != 2 ||
		!strings.HasPrefix(header.Get("Content-Type"), "text/csv") {
		t.Errorf("%d %s %v", code, body, header)
	}
	for text, want := range map[string]string{"=1+1": "'=1+1", "-5.20": "-5.20", "@x": "'@x", "+49 30": "'+49 30", "": "", "a=b": "a=b"} {
		if got := harmless(text); got != want {
			t.Errorf("harmless(%q): %q, want %q", text, got, want)
		}
	}
}

// person is a browser with its cookies.
type person struct {
	*http.Client
	at string
}

func newPerson(t *testing.T, s *httptest.Server) person {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return person{&http.Client{Jar: jar}, s.URL}
}

func (p person) do(t *testing.T, method, path string, form url.Values, header ...string) (code int, body string, at *url.URL) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.at+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if req.Header.Set("Accept", page); method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := p.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Request.URL
}

func (p person) session(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(p.at)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range p.Jar.Cookies(u) {
		if k.Name == sessionCookie {
			return k.Value
		}
	}
	return ""
}

func guarded(changed *[]string) func(*Options) {
	return func(o *Options) {
		o.Access = []Credential{{Name: "eve", Password: "eve's password", Operator: true}, {Name: "bob", Password: "bob's password"}, {Name: "ci", Token: "a token of sixteen", Operator: true}}
		o.SetStatus = func(_ context.Context, id int, status string) error {
			if status == "archived" {
				return &RefusedError{"the file is read-only"}
			}
			*changed = append(*changed, status)
			return nil
		}
	}
}

// TestSignIn: a page leads to the form and back, and a session does what its person may.
func TestSignIn(t *testing.T) {
	var changed []string
	s := serve(t, guarded(&changed))
	in := func(name, password string) url.Values {
		return url.Values{"name": {name}, "password": {password}, "back": {"/executions?status=dead"}}
	}
	eve := newPerson(t, s)
	code, body, at := eve.do(t, "GET", "/executions?status=dead", nil)
	if code != 200 || at.Path != "/login" || at.Query().Get("back") != "/executions?status=dead" || !strings.Contains(body, `value="/executions?status=dead"`) || strings.Contains(body, "crm.example.net") {
		t.Fatalf("%d %s\n%s", code, at, body)
	}
	if code, _, _ := get(t, s, "/api/v1/status", "Accept", page); code != 401 {
		t.Errorf("a program is answered %d", code)
	}
	for _, wrong := range []url.Values{in("eve", "wrong"), in("", ""), in("bob", "eve's password"), in("ci", "a token"), in("eve", "")} {
		if code, body, _ := eve.do(t, "POST", "/login", wrong); code != 401 || !strings.Contains(body, "is wrong") || eve.session(t) != "" {
			t.Errorf("%v: %d %s", wrong, code, body)
		}
	}
	if code, body, _ := eve.do(t, "POST", "/login", in("eve", "eve's password")); code != 429 || !strings.Contains(body, "wait a minute") {
		t.Errorf("after five wrong passwords: %d %s", code, body)
	}

	s = serve(t, guarded(&changed))
	eve = newPerson(t, s)
	// Somebody else's session in the cookie before signing in is not taken over.
	u, _ := url.Parse(s.URL)
	eve.Jar.SetCookies(u, []*http.Cookie{{Name: sessionCookie, Value: "fixed", Path: "/"}})
	code, body, at = eve.do(t, "POST", "/login", in("eve", "eve's password"))
	if code != 200 || at.RequestURI() != "/executions?status=dead" || !strings.Contains(body, "eve") || eve.session(t) == "fixed" || eve.session(t) == "" {
		t.Fatalf("%d %s %q\n%s", code, at, eve.session(t), body)
	}
	if code, _, at := eve.do(t, "POST", "/handlers/7/status", url.Values{"status": {"disabled"}, "back": {"/handlers"}}); code != 200 || at.Path != "/handlers" || len(changed) != 1 {
		t.Errorf("%d %s %v", code, at, changed)
	}
	if code, body, _ := eve.do(t, "POST", "/handlers/7/status", url.Values{"status": {"archived"}}); code != 409 || !strings.Contains(body, "the file is read-only") {
		t.Errorf("%d %s", code, body)
	}
	if code, _, _ := eve.do(t, "POST", "/handlers/7/status", url.Values{"status": {"gone"}}); code != 400 {
		t.Error(code)
	}
	// A page of another site may not act in her name.
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "", "Origin", "https://evil.example"}} {
		if code, _, _ := eve.do(t, "POST", "/handlers/7/status", url.Values{"status": {"disabled"}}, header...); code != 403 || len(changed) != 1 {
			t.Errorf("%v: %d %v", header, code, changed)
		}
	}
	old := eve.session(t)
	if _, _, at := eve.do(t, "POST", "/logout", nil); at.Path != "/login" {
		t.Errorf("signed out to %s", at)
	}
	eve.Jar.SetCookies(u, []*http.Cookie{{Name: sessionCookie, Value: old, Path: "/"}})
	if _, _, at := eve.do(t, "GET", "/", nil); at.Path != "/login" {
		t.Error("a session that ended is good")
	}

	bob := newPerson(t, s)
	if _, body, at := bob.do(t, "POST", "/login", url.Values{"name": {"bob"}, "password": {"bob's password"}, "back": {"//evil.example/x"}}); at.Host != u.Host || at.Path != "/" || strings.Contains(body, "<button>Look now") {
		t.Errorf("%s", at)
	}
	if _, body, _ := bob.do(t, "GET", "/handlers", nil); strings.Contains(body, "/status\"") {
		t.Error("a viewer is offered to act")
	}
	if code, _, _ := bob.do(t, "POST", "/handlers/7/status", url.Values{"status": {"disabled"}}); code != 403 || len(changed) != 1 {
		t.Errorf("a viewer acts: %d %v", code, changed)
	}
	ci := newPerson(t, s)
	if _, body, at := ci.do(t, "POST", "/login", in("ci", "a token of sixteen")); at.Path != "/executions" || !strings.Contains(body, "operator") {
		t.Errorf("%s\n%s", at, body)
	}
}

// TestCookies: the one of the session is for this host's pages alone, out of reach of
// scripts, and on TLS alone where there is TLS.
func TestCookies(t *testing.T) {
	var changed []string
	s := serve(t, guarded(&changed))
	for _, proto := range []string{"", "http", "https"} {
		eve := newPerson(t, s)
		eve.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/login", strings.NewReader(url.Values{"name": {"eve"}, "password": {"eve's password"}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("X-Forwarded-Proto", proto)
		resp, err := eve.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if len(resp.Cookies()) != 1 {
			t.Fatalf("%d %v", resp.StatusCode, resp.Cookies())
		}
		k := resp.Cookies()[0]
		if k.Name != sessionCookie || !k.HttpOnly || k.SameSite != http.SameSiteStrictMode || k.Domain != "" || k.Path != "/" || k.Secure != (proto == "https") || len(k.Value) < 26 {
			t.Errorf("%q: %v", proto, k)
		}
	}
}

// TestGuessing: a password is not found out by trying, with the form or without.
func TestGuessing(t *testing.T) {
	var changed []string
	s := serve(t, guarded(&changed))
	ask := func(name, password string) int {
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/api/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(name, password)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for i := range 3 * basicTries {
		if code := ask("eve", "eve's password"); code != 200 {
			t.Fatalf("the right password is refused the %d. time: %d", i+1, code)
		}
	}
	for i := range basicTries {
		if code := ask("eve", "guess"); code != 401 {
			t.Fatalf("guess %d: %d", i, code)
		}
	}
	for _, password := range []string{"guess", "eve's password"} {
		if code := ask("eve", password); code != 429 {
			t.Errorf("after %d guesses %q is answered %d", basicTries, password, code)
		}
	}
	// Others are not kept out, by whomever they are asked for.
	if code := ask("bob", "bob's password"); code != 200 {
		t.Errorf("bob: %d", code)
	}
	if code, _, _ := get(t, s, "/api/v1/status", "Authorization", "Bearer a token of sixteen"); code != 200 {
		t.Errorf("a token: %d", code)
	}
	for i := range basicTries + 1 {
		if code, want := ask("nobody"+strings.Repeat("x", i), "guess"), 401; i < basicTries && code != want || i == basicTries && code != 429 {
			t.Errorf("name %d of nobody: %d", i, code)
		}
	}
}

// TestSessions: they end after a while without a request, and in any case.
func TestSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSessions()
		who := replay.By{Name: "eve", Role: operatorRole}
		r := httptest.NewRequest("GET", "/", nil)
		r.AddCookie(&http.Cookie{Name: sessionCookie, Value: s.begin(who)})
		good := func() bool { got, ok := s.of(r); return ok && got == who }
		for range 13 {
			time.Sleep(11 * time.Hour)
			if !good() {
				t.Fatal("a session that is used has ended")
			}
		}
		for range 3 {
			time.Sleep(11 * time.Hour)
			good()
		}
		if good() {
			t.Error("a session lasts for ever")
		}
		idle := httptest.NewRequest("GET", "/", nil)
		idle.AddCookie(&http.Cookie{Name: sessionCookie, Value: s.begin(who)})
		time.Sleep(sessionIdle + time.Second)
		if _, ok := s.of(idle); ok {
			t.Error("a session without requests lasts")
		}
		for range maxSessions + 10 {
			s.begin(who)
		}
		if len(s.open) > maxSessions {
			t.Errorf("%d sessions", len(s.open))
		}
		for i := range loginTries + 2 {
			if s.mayTry("a", loginTries) != (i < loginTries) {
				t.Errorf("try %d", i)
			}
		}
		if !s.mayTry("b", loginTries) {
			t.Error("one address keeps another out")
		}
		time.Sleep(loginWindow + time.Second)
		if !s.mayTry("a", loginTries) {
			t.Error("it may never try again")
		}
	})
}

func TestLocal(t *testing.T) {
	for back, want := range map[string]string{
		"/executions?status=dead": "/executions?status=dead", "": "/", "https://evil.example/": "/", "//evil.example": "/", `/\evil.example`: "/",
		"javascript:alert(1)": "/", "/%2Fevil.example": "/", "executions": "/", "\t//evil": "/",
	} {
		if got := local(back); got != want {
			t.Errorf("local(%q): %q, want %q", back, got, want)
		}
	}
}

// TestThemes: the choice is kept, and anything else is none.
func TestThemes(t *testing.T) {
	s := serve(t, func(o *Options) { o.Logger = slog.New(slog.DiscardHandler) })
	p := newPerson(t, s)
	for _, tt := range []struct{ choose, shown string }{{"dark", "dark"}, {"light", "light"}, {"system", ""}, {`"><script>`, ""}} {
		if _, body, at := p.do(t, "POST", "/theme", url.Values{"theme": {tt.choose}, "back": {"/handlers"}}); at.Path != "/handlers" || !strings.Contains(body, `data-theme="`+tt.shown+`"`) {
			t.Errorf("%s: %s", tt.choose, at)
		}
	}
}
