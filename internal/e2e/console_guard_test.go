//go:build unix

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/billhook/billhook/internal/pgtest"
)

const consoleUsers = `
  users:
  - {name: anna, role: operator, password: correct-horse}
  - {name: vera, role: viewer, password: only-looks-at}
  tokens:
  - {name: ci, role: operator, token: a-token-that-acts-0}
  - {name: grafana, role: viewer, token: a-token-that-looks}
`

// consoleInstance is one whose HTTP face has what is given beside its address, and whose
// handlers are in a folder of their own.
func consoleInstance(t *testing.T, http, handlers string) (*pgtest.Database, *instance) {
	t.Helper()
	db := pgtest.NewDatabase(t, peersSchema)
	_, dsn := db.Role(t, "REPLICATION", "GRANT SELECT ON clients TO $role")
	in := install(t, dsn, `version: 1
source: {dsn: "${DSN}", slot: `+db.Name+`, publication: p}
entities:
  clients: {table: public.clients, key: [id], balance: {column: balance}, archive: {column: status, value: archived}}
journal: {path: "${JOURNAL}"}
http:
  listen: "${LISTEN}"`+http, "")
	folder := filepath.Join(in.dir, "handlers")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	in.handlers = filepath.Join(folder, "handlers.yaml")
	write(t, in.handlers, handlers)
	if strings.Contains(http, "users:") {
		in.user, in.password = "anna", "correct-horse"
	}
	return db, in
}

// signIn does it with the form.
func (c *console) signIn(name, password string) {
	c.t.Helper()
	c.open("/login")
	c.fill("input[name=name]", name)
	c.fill("input[name=password]", password)
	c.keys(kb.Enter)
	c.sees("Overview", name)
}

// tabTo goes with Tab alone to what a selector means.
func (c *console) tabTo(selector string) {
	c.t.Helper()
	for range 200 {
		c.keys(kb.Tab)
		if eval[bool](c, fmt.Sprintf(`!!document.activeElement?.matches(%q)`, selector)) {
			return
		}
	}
	c.t.Fatalf("Tab does not lead to %s at\n%s", selector, c.text())
}

// TestConsoleByKeys goes through the console with a keyboard and nothing else.
func TestConsoleByKeys(t *testing.T) {
	t.Parallel()
	db, in := consoleInstance(t, consoleUsers, "version: 1\ndefaults: {retry: {attempts: 1}}\nhandlers:\n  - {id: 1, name: First, event: clients.create, script: {path: /bin/false}}\n")
	in.start()
	in.waitReady()
	db.Exec(t, "INSERT INTO clients (id, name) VALUES (1, 'One')")
	eventually(t, 20*time.Second, func() string {
		if n := in.executions(); n["dead"] != 1 {
			return fmt.Sprint(n)
		}
		return ""
	})
	has := func(text string) {
		t.Helper()
		b, err := os.ReadFile(in.handlers)
		if err != nil || !strings.Contains(string(b), text) {
			t.Errorf("handlers.yaml lacks %q: %v\n%s", text, err, b)
		}
	}
	c := openConsole(t, in)
	// The name has the focus already.
	c.open("/login")
	c.write("anna")
	c.keys(kb.Tab)
	c.write("correct-horse")
	c.keys(kb.Enter)
	c.sees("Overview", "anna")

	c.tabTo("nav a[href='/handlers']")
	c.keys(kb.Enter)
	c.tabTo("a[href='/handlers/new']")
	c.keys(kb.Enter)
	c.sees("New handler")
	c.tabTo("#f-name")
	c.write("By keys")
	c.tabTo("#f-priority")
	c.write("5")
	c.tabTo("input[value='clients.update']")
	c.keys(" ")
	c.tabTo("#kind-http")
	c.keys(kb.ArrowRight)
	c.tabTo("#f-script-path")
	c.write("/bin/true")
	c.tabTo("#f-when")
	c.write("data.id == 1")
	c.tabTo("details:has(#f-retry-attempts) summary")
	c.keys(kb.Enter)
	c.tabTo("#f-retry-attempts")
	c.write("3")
	c.sees("+    when: data.id == 1", "+    retry: {attempts: 3}")
	c.tabTo("button[value=test]")
	c.keys(kb.Enter)
	c.sees("The call", "success")
	c.open("/handlers/new") // what was called is not saved
	c.sees("New handler")
	c.tabTo("#f-name")
	c.write("By keys")
	c.tabTo("input[value='clients.update']")
	c.keys(" ")
	c.tabTo("#kind-http")
	c.keys(kb.ArrowRight)
	c.tabTo("#f-script-path")
	c.write("/bin/true")
	c.tabTo("button[value=save]")
	c.keys(kb.Enter)
	c.sees("Handler 2 is added")
	has("name: By keys\n    event: clients.update\n    script:\n      path: /bin/true")

	c.tabTo("#status-2")
	c.keys(" ")
	c.sees("Handler 2 is disabled.")
	has("status: disabled")
	c.tabTo("#up-2")
	c.keys(kb.Enter)
	c.sees("Moved: ")
	if order := eval[string](c, `[...document.querySelectorAll("table.handlers tbody tr")].map((r) => r.dataset.id).join(" ")`); order != "2 1" {
		t.Errorf("the order is %s", order)
	}
	c.tabTo("a[href='/handlers/2/edit']")
	c.keys(kb.Enter)
	c.sees("Handler 2, By keys")
	c.tabTo("button[value=archived]")
	c.keys(kb.Enter)
	c.sees("Handler 2 is archived.")
	c.tabTo("select[name=status]")
	c.write("") // the keys of a list, not of a field
	c.keys("a", "r", "c")
	c.tabTo("form.filter button")
	c.keys(kb.Enter)
	c.sees("status=archived", "By keys")
	c.tabTo("a[href='/handlers/2/edit']")
	c.keys(kb.Enter)
	c.sees("Handler 2, By keys")
	c.tabTo("a.danger")
	c.keys(kb.Enter)
	c.sees("Delete handler 2")
	c.tabTo("button.danger")
	c.keys(kb.Enter)
	c.sees("Handler 2 is deleted")

	c.tabTo("nav a[href='/executions']")
	c.keys(kb.Enter)
	c.sees("Request has")
	eventually(t, 10*time.Second, func() string { // the scripts are there
		return strings.TrimPrefix(eval[string](c, `document.readyState`), "complete")
	})
	c.keys("/")
	if name := eval[string](c, `document.activeElement.closest("form")?.className ?? ""`); name != "filter" {
		t.Errorf("/ leads to %q", name)
	}
	c.keys(kb.Backspace) // the browser's protocol types the slash, too
	c.tabTo("input[name=object]")
	c.write("1")
	c.keys(kb.Enter)
	c.sees("object=1", "clients.create")
	c.tabTo("a[href='/executions/1']")
	c.keys(kb.Enter)
	c.sees("Execution 1", "Came back")
	c.tabTo("main a[href='/clients/1']")
	c.keys(kb.Enter)
	c.sees("Client 1")
	c.tabTo(".timeline summary")
	c.keys(kb.Enter)
	c.sees("Came back")
	c.open("/executions?status=dead")
	c.tabTo("input[name=id][value='1']")
	c.keys(" ")
	c.tabTo("#found button")
	c.keys(kb.Enter)
	c.sees("Replay 1 has begun.")
	c.open("/executions?status=dead")
	c.tabTo("a.button[href^='/replays/new']")
	c.keys(kb.Enter)
	c.sees("Replay all that match")
	c.tabTo("button.danger")
	c.keys(kb.Enter)
	c.sees("Replay 2 has begun.")
	c.tabTo("nav a[href='/live']")
	c.keys(kb.Enter)
	c.sees("watching")
	c.tabTo("#live-pause")
	c.keys(" ")
	c.sees("paused")
	c.tabTo("button[name=theme]")
	c.keys(kb.Enter)
	eventually(t, 10*time.Second, func() string {
		if theme := eval[string](c, `document.documentElement?.dataset.theme ?? "none yet"`); theme != "dark" {
			return "the theme is " + theme
		}
		return ""
	})
	c.tabTo("form[action='/logout'] button")
	c.keys(kb.Enter)
	c.sees("Sign in")
}

// TestConsoleWithoutScripts: all but Live works in a browser that runs none.
func TestConsoleWithoutScripts(t *testing.T) {
	t.Parallel()
	db, in := consoleInstance(t, consoleUsers, "version: 1\ndefaults: {retry: {attempts: 1}}\nhandlers:\n  - {id: 1, name: First, event: clients.create, script: {path: /bin/false}}\n  - {id: 2, name: Second, event: clients.create, script: {path: /bin/true}}\n")
	in.start()
	in.waitReady()
	db.Exec(t, "INSERT INTO clients (id, name) VALUES (1, 'One')")
	eventually(t, 20*time.Second, func() string {
		if n := in.executions(); n["dead"] != 1 {
			return fmt.Sprint(n)
		}
		return ""
	})
	c := openConsole(t, in)
	send(c, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	c.signIn("anna", "correct-horse")
	c.open("/handlers")
	c.click("#status-1")
	c.sees("Handler 1 is disabled.")
	c.click("#down-1")
	c.sees("Moved: ")
	c.open("/handlers/2/edit")
	c.fill("#f-name", "Other")
	c.click("button[value=preview]")
	c.sees("+  - {id: 2, name: Other", `"name": "One"`)
	c.click("button[value=save]")
	c.sees("Handler 2 is changed")
	c.open("/executions?status=dead")
	c.click("a.button[href^='/replays/new']")
	c.sees("Replay all that match")
	c.click("button.danger")
	c.sees("Replay 1 has begun.")
	c.open("/live")
	c.sees("This page alone needs scripts.")
}

// TestConsoleOwned: nothing that others write, as a client's name, a handler's or an
// answer, runs or becomes a part of a page; no page of another site acts or frames one;
// and a session is not the one that somebody has put into the browser.
func TestConsoleOwned(t *testing.T) {
	t.Parallel()
	const (
		img  = `<img src=x onerror="window.owned=1">`
		svg  = `'"></script></textarea></pre><svg onload=window.owned=2>`
		link = `javascript:window.owned=3`
	)
	answer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("X-Reply", svg)
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, img+svg+`<script>window.owned=4</script>`)
	}))
	t.Cleanup(answer.Close)
	quoted := func(s string) string { b, _ := json.Marshal(s); return strings.ReplaceAll(string(b), "$", "$$") }
	db, in := consoleInstance(t, consoleUsers, `version: 1
defaults: {retry: {attempts: 1}}
handlers:
  - {id: 1, name: `+quoted(img)+`, events: [clients.create, clients.update], http: {url: "`+answer.URL+`/?a=<b>"}}
  - {id: 2, name: `+quoted(svg)+`, event: clients.create, script: {path: /bin/true, args: [`+quoted(svg)+`]}}
`)
	in.start()
	in.waitReady()
	db.Exec(t, "INSERT INTO clients (id, name) VALUES (1, '"+img+"'), (2, '"+strings.ReplaceAll(svg, "'", "''")+"'), (3, '"+link+"')")
	db.Exec(t, "UPDATE clients SET name = name || '<script>window.owned=5</script>'")
	eventually(t, 20*time.Second, func() string {
		if n := in.executions(); n["dead"] != 6 || n["succeeded"] != 3 {
			return fmt.Sprint(n)
		}
		return ""
	})
	c := openConsole(t, in)
	var dialogs int
	if err := chromedp.Listen(c.ctx, func(event any) {
		if _, ok := event.(*page.EventJavascriptDialogOpening); ok {
			c.mu.Lock()
			dialogs++
			c.mu.Unlock()
		}
	}); err != nil {
		t.Fatal(err)
	}
	send(c, page.Enable, page.EnableParams{})

	// Fixation: a session that somebody else has put there is neither good nor taken over.
	session := func() string {
		cookies, err := chromedp.Call(c.ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{c.url}})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range cookies.Cookies {
			if k.Name == "billhook_session" {
				if !k.HTTPOnly || k.SameSite != network.CookieSameSiteStrict || k.Domain != "127.0.0.1" {
					t.Errorf("the cookie of the session is %+v", k)
				}
				return k.Value
			}
		}
		return ""
	}
	send(c, network.SetCookie, network.SetCookieParams{Name: "billhook_session", Value: "FIXEDFIXEDFIXEDFIXEDFIXED1", URL: c.url, HTTPOnly: new(true), SameSite: network.CookieSameSiteStrict})
	c.open("/handlers")
	c.sees("Sign in")
	c.signIn("anna", "correct-horse")
	if s := session(); s == "" || strings.HasPrefix(s, "FIXED") {
		t.Errorf("the session is %q", s)
	}
	if seen := eval[string](c, `document.cookie`); strings.Contains(seen, "session") {
		t.Errorf("scripts see the cookie: %s", seen)
	}

	hostile := func(path string) string {
		return path + strings.NewReplacer("<", "%3C", ">", "%3E", `"`, "%22", "'", "%27", " ", "+", "#", "%23").Replace(svg+img)
	}
	for _, path := range []string{
		"/", "/handlers", "/handlers/1/edit", "/handlers/2/edit", "/handlers/2/delete", "/executions", "/executions/1", "/executions/4", "/executions/9", "/clients/1", "/clients/2", "/clients/3",
		"/replays", "/replays/new?status=dead", "/audit", "/live", "/nosuch",
		hostile("/handlers?name="), hostile("/executions?text="), hostile("/executions?event="), hostile("/executions?status="), hostile("/clients/x"), hostile("/live?event="), hostile("/replays/new?text="), hostile("/executions?id="), hostile("/nosuch"),
	} {
		c.open(path)
		if path == "/live" {
			c.sees("watching")
			db.Exec(t, "UPDATE clients SET name = name || '!'")
			c.sees("watching, 3 so far")
			eval[int](c, `(() => { document.querySelectorAll("#live details").forEach((d) => { d.open = true; }); return 0; })()`)
		}
		if path == "/handlers/1/edit" {
			c.click("button[value=test]")
			c.sees("The call")
		}
		if path == "/clients/1" {
			c.click(".timeline summary")
			c.sees("Came back")
		}
		if bad := eval[string](c, `(() => {
			const odd = [...document.querySelectorAll("script:not([src]), img, svg[onload], a[href^='javascript:' i], iframe, object, embed, [onerror], [onload], [onclick]")];
			return (window.owned ? "it ran " + window.owned + " " : "") + odd.map((e) => e.outerHTML.slice(0, 200)).join(" ");
		})()`); bad != "" {
			t.Errorf("%s: %s", path, bad)
		}
	}
	c.mu.Lock()
	if len(c.errors) > 0 || dialogs > 0 {
		// A script that the policy has kept from running was on a page all the same.
		t.Errorf("%d dialogs, and the browser says: %v", dialogs, c.errors)
	}
	c.errors = nil
	for _, url := range c.asked {
		if !strings.HasPrefix(url, c.url+"/") && !strings.HasPrefix(url, "about:") && !strings.HasPrefix(url, "data:") {
			t.Errorf("a page asks elsewhere: %s", url)
		}
	}
	c.mu.Unlock()

	// A page of another site, while the operator is signed in. At 127.0.0.1 with another
	// port it is of the same site to a browser, which then sends the cookie.
	before, err := os.ReadFile(in.handlers)
	if err != nil {
		t.Fatal(err)
	}
	var target string
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		switch r.URL.Path {
		case "/form":
			fmt.Fprintf(w, `<form method=post action="%s/handlers/1/status"><input name=status value=disabled></form><script>document.forms[0].submit()</script>`, target)
		case "/fetch":
			fmt.Fprintf(w, `<body>asking<script>
				const all = [
					fetch("%[1]s/api/v1/handlers/1", {method: "PATCH", credentials: "include", body: '{"status":"disabled"}'}),
					fetch("%[1]s/api/v1/replays", {method: "POST", mode: "no-cors", credentials: "include", headers: {"Content-Type": "text/plain"}, body: '{"filter":{}}'}),
					fetch("%[1]s/handlers/1/delete", {method: "POST", mode: "no-cors", credentials: "include", body: new URLSearchParams({base: ""})}),
					fetch("%[1]s/logout", {method: "POST", mode: "no-cors", credentials: "include"}),
					fetch("%[1]s/api/v1/executions", {credentials: "include"}).then((r) => r.text()).then((text) => { document.title = "read " + text; }),
				];
				Promise.allSettled(all).then((r) => { document.body.innerText = "done " + document.title; });
			</script>`, target)
		case "/frame":
			fmt.Fprintf(w, `framed<iframe src="%s/handlers" width=800 height=600></iframe>`, target)
		}
	}))
	t.Cleanup(evil.Close)
	target = c.url
	port := evil.URL[strings.LastIndexByte(evil.URL, ':'):]
	for _, site := range []string{"http://127.0.0.1" + port, "http://localhost" + port} {
		c.do(chromedp.Navigate(site + "/form"))
		c.sees("cross-origin request")
		c.do(chromedp.Navigate(site + "/fetch"))
		c.sees("done")
		if text := c.text(); strings.Contains(text, "executions") {
			t.Errorf("%s reads what is ours: %s", site, text)
		}
		c.do(chromedp.Navigate(site + "/frame"))
		c.sees("framed")
		tree, err := chromedp.Call(c.ctx, page.GetFrameTree, cdp.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range tree.FrameTree.ChildFrames {
			if !strings.HasPrefix(f.Frame.URL, "chrome-error:") {
				t.Errorf("%s frames %s", site, f.Frame.URL)
			}
		}
		c.mu.Lock()
		if said := strings.Join(c.errors, "\n"); !strings.Contains(said, "frame-ancestors") {
			t.Errorf("the browser does not say that a frame was refused: %s", said)
		}
		c.errors = nil
		c.mu.Unlock()
	}
	after, err := os.ReadFile(in.handlers)
	if err != nil || string(after) != string(before) {
		t.Errorf("somebody else has changed the file: %v\n%s", err, after)
	}
	var replays struct{ Replays []any }
	if in.getJSON("/api/v1/replays", &replays); len(replays.Replays) != 0 {
		t.Errorf("somebody else has replayed: %v", replays.Replays)
	}
	c.open("/handlers") // and she is still signed in
	c.sees("anna", "operator")
}

// TestConsoleAccess asks for everything there is without a token, and as one who may only
// look; and for what lies beside the pages.
func TestConsoleAccess(t *testing.T) {
	t.Parallel()
	_, in := consoleInstance(t, consoleUsers, "version: 1\nhandlers:\n  - {id: 1, name: First, event: clients.create, script: {path: /bin/true}}\n")
	in.start()
	in.waitReady()
	ask := func(method, path string, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+in.address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := (&http.Transport{}).RoundTrip(req) // follows nothing
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
			return resp.StatusCode, ""
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	in.getJSON("/api/v1/openapi.json", &doc)
	var routes []string
	for path, methods := range doc.Paths {
		for method := range methods {
			routes = append(routes, strings.ToUpper(method)+" "+strings.ReplaceAll(path, "{id}", "1"))
		}
	}
	if len(routes) < 25 {
		t.Fatalf("the document tells of %d routes", len(routes))
	}
	routes = append(routes, "GET /", "GET /handlers", "GET /handlers/new", "GET /executions", "GET /executions/1", "GET /executions.csv", "GET /clients/1", "GET /live", "GET /replays", "GET /replays/new", "GET /audit", "GET /metrics",
		"POST /handlers/1/status", "POST /handlers/new", "POST /handlers/1/edit", "GET /handlers/1/delete", "POST /handlers/1/delete", "POST /handlers/1/move", "POST /checks", "POST /executions/1/replay", "POST /replays", "POST /replays/1/cancel")
	form := map[string]bool{"GET /handlers/new": true, "GET /handlers/1/delete": true, "GET /api/v1/handlers/1/draft": true} // of those who act
	for _, r := range routes {
		method, path, _ := strings.Cut(r, " ")
		for _, credential := range []string{"", "Bearer ", "Bearer a-token-that-looks-", "Bearer a-token-that-acts", "Basic YW5uYTo=", "Basic OmNvcnJlY3QtaG9yc2U="} {
			if code, body := ask(method, path, "Authorization", credential); code != http.StatusUnauthorized && code != http.StatusTooManyRequests {
				t.Errorf("%s with %q: %d %s", r, credential, code, body)
			}
		}
		if code, body := ask(method, path, "Cookie", "billhook_session=; billhook_session=AAAAAAAAAAAAAAAAAAAAAAAAAA"); code != http.StatusUnauthorized {
			t.Errorf("%s with a session that nobody has: %d %s", r, code, body)
		}
		code, body := ask(method, path, "Authorization", "Bearer a-token-that-looks")
		if refused := method != http.MethodGet || form[r]; refused != (code == http.StatusForbidden) {
			t.Errorf("%s as a viewer: %d %s", r, code, body)
		}
		if code, body := ask(method, path, "Authorization", "Bearer a-token-that-acts-0", "Sec-Fetch-Site", "cross-site"); method != http.MethodGet && code != http.StatusForbidden {
			t.Errorf("%s from another site: %d %s", r, code, body)
		}
		if code, body := ask(method, path, "Authorization", "Bearer a-token-that-acts-0", "Origin", "https://evil.example"); method != http.MethodGet && code != http.StatusForbidden {
			t.Errorf("%s from another origin: %d %s", r, code, body)
		}
	}

	// What no client of Go sends, byte for byte.
	for _, path := range []string{
		"/static/../../../../etc/passwd", "/static/..%2f..%2f..%2fetc%2fpasswd", "/static/%2e%2e/%2e%2e/etc/passwd", "/static/....//....//etc/passwd", "/static//etc/passwd", "//etc/passwd", "/../handlers.yaml",
		"/handlers/../../handlers.yaml", "/handlers/..%2f..%2fhandlers.yaml/edit", "/executions/..%2f..%2fetc%2fpasswd", "/clients/..%2f..%2fetc%2fpasswd", "/clients/../../../etc/passwd", "/api/v1/executions/..%2f..%2fetc%2fpasswd",
		"/api/v1/../../etc/passwd", "/static/console.css%00.js", `/static/..\..\web.go`, "/templates/layout.html", "/static/README.md",
	} {
		conn, err := net.Dial("tcp", in.address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer a-token-that-acts-0\r\nConnection: close\r\n\r\n", path, in.address)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = conn.Close()
		if err != nil {
			t.Fatal(err)
		}
		if text := string(b); strings.Contains(text, "root:") || strings.Contains(text, "/bin/true") || strings.Contains(text, "{{define") || strings.Contains(text, "package web") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, text)
		}
		if resp.StatusCode == http.StatusOK && !strings.HasPrefix(path, "/clients/") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, b)
		}
	}
}

// TestConsoleReadOnly: where handlers.yaml cannot be written, or is not to be, it is said.
func TestConsoleReadOnly(t *testing.T) {
	t.Parallel()
	const handlers = "version: 1\nhandlers:\n  - {id: 1, name: First, event: clients.create, script: {path: /bin/true}}\n"
	t.Run("the folder", func(t *testing.T) {
		_, in := consoleInstance(t, consoleUsers, handlers)
		folder := filepath.Dir(in.handlers)
		if os.Geteuid() == 0 {
			// Root may write anything but what is mounted so that nobody may.
			if runtime.GOOS != "linux" {
				t.Skip("root may write anything here")
			}
			if err := mount(folder, 1<<20); err != nil {
				t.Skipf("this machine lets nobody mount: %v", err)
			}
			t.Cleanup(func() {
				if err := unmount(folder); err != nil {
					t.Error(err)
				}
			})
			write(t, in.handlers, handlers)
			if err := remountReadOnly(folder); err != nil {
				t.Fatal(err)
			}
		} else {
			if err := os.Chmod(folder, 0o555); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Chmod(folder, 0o755) })
		}
		in.start()
		in.waitReady()
		c := openConsole(t, in)
		c.signIn("anna", "correct-horse")
		c.open("/handlers/1/edit")
		c.sees("It can be looked at and not be saved: billhook may not write in "+folder, "let billhook's user write there")
		if n := eval[int](c, `document.querySelectorAll("button[value=save], button[value=archived], a.danger").length`); n != 0 {
			t.Errorf("%d things to write with are shown", n)
		}
		c.judge("handler-read-only")
		c.open("/handlers")
		c.click("#status-1")
		c.sees("Conflict", folder)
		if b, err := os.ReadFile(in.handlers); err != nil || string(b) != handlers {
			t.Errorf("%v\n%s", err, b)
		}
		c.open("/handlers")
		c.sees("First", "enabled")
	})
	for _, m := range []struct{ name, http, says string }{
		{"the mode", consoleUsers + "  edit_handlers: false\n", "http.edit_handlers in billhook.yaml is false."},
		{"nobody is asked who they are", "", "say who may: set http.users in billhook.yaml."},
	} {
		t.Run(m.name, func(t *testing.T) {
			_, in := consoleInstance(t, m.http, handlers)
			in.start()
			in.waitReady()
			for path, want := range map[string]int{"/handlers": 200, "/handlers/new": 403, "/handlers/1/edit": 403} {
				code, body, err := in.get(path)
				if err != nil || code != want || !strings.Contains(string(body), m.says) || strings.Contains(string(body), "/handlers/1/edit\"") && path == "/handlers" {
					t.Errorf("%s: %d %v\n%s", path, code, err, body)
				}
			}
		})
	}
}
