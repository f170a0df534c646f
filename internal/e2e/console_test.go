//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/servertest"
)

// axeScript is axe-core, which judges whether everybody can use a page.
func axeScript(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(filepath.Join("..", "..", ".ci", "axe"))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		if os.Getenv(servertest.SkipVariable) != "" {
			t.Skipf(".ci/axe: %s", said.String())
		}
		t.Fatalf(".ci/axe: %v\n%s", err, said.String())
	}
	script, err := os.ReadFile(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return string(script)
}

// console is a browser that looks at an instance.
type console struct {
	t   *testing.T
	ctx context.Context
	in  *instance
	url string
	axe string

	mu     sync.Mutex
	asked  []string // addresses that any page asked for
	errors []string // what the browser's console says of mistakes
}

// openConsole starts a browser with nothing in it.
func openConsole(t *testing.T, in *instance) *console {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		servertest.Missing(t, "Chromium", "chromium")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1400, 1000))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, stop := chromedp.NewContext(allocator)
	t.Cleanup(stop)
	c := &console{t: t, ctx: ctx, in: in, url: "http://" + in.address, axe: axeScript(t)}
	err := chromedp.Listen(ctx, func(event any) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			c.asked = append(c.asked, e.Request.URL)
		case *runtime.EventExceptionThrown:
			c.errors = append(c.errors, fmt.Sprint(e.ExceptionDetails.Text, " ", e.ExceptionDetails.URL, ":", e.ExceptionDetails.LineNumber))
		case *log.EventEntryAdded:
			// A page that says no, with a status above 399, is told of there as well.
			if e.Entry.Level == log.EntryLevelError && e.Entry.Source != log.EntrySourceNetwork {
				c.errors = append(c.errors, e.Entry.Text)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	send(c, network.Enable, network.EnableParams{})
	send(c, log.Enable, cdp.Empty{})
	send(c, runtime.Enable, cdp.Empty{})
	return c
}

// send gives the browser a command of its own protocol.
func send[P, R any](c *console, command cdp.Command[P, R], params P) {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.ctx, 20*time.Second)
	defer stop()
	if _, err := chromedp.Call(ctx, command, params); err != nil {
		c.t.Fatal(err)
	}
}

// find does something with what a selector finds. A page that has just come may take the
// place of the one in which it was found; then it is looked for again. Nothing was done
// with it in that case.
func (c *console) find(steps ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.ctx, 20*time.Second)
	defer stop()
	for {
		err := chromedp.Do(ctx, steps...)
		var told *cdproto.Error
		if errors.As(err, &told) && strings.Contains(told.Message, "node with given id") {
			continue
		}
		if err != nil {
			c.t.Fatalf("%v, at\n%s", err, c.text())
		}
		return
	}
}

func (c *console) do(steps ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.ctx, 20*time.Second)
	defer stop()
	if err := chromedp.Do(ctx, steps...); err != nil {
		c.t.Fatalf("%v, at\n%s", err, c.text())
	}
}

// text is what the page shows, and its address.
func (c *console) text() string {
	text, err := chromedp.Run(c.ctx, chromedp.Evaluate[string](`document.location.pathname + document.location.search + "\n" + document.body.innerText`))
	if err != nil {
		return err.Error()
	}
	return text
}

// eval returns what a script says.
func eval[T any](c *console, script string, options ...chromedp.EvaluateOption) T {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.ctx, 20*time.Second)
	defer stop()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, options...))
	if err != nil {
		c.t.Fatalf("%s: %v, at\n%s", script[:min(len(script), 100)], err, c.text())
	}
	return v
}

// open goes to a page.
func (c *console) open(path string) { c.t.Helper(); c.do(chromedp.Navigate(c.url + path)) }

func (c *console) click(selector string) {
	c.t.Helper()
	c.find(chromedp.ScrollIntoView(chromedp.CSS(selector)), chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
}

func (c *console) focus(selector string) {
	c.t.Helper()
	c.find(chromedp.Focus(chromedp.CSS(selector), chromedp.NodeVisible))
}

// choose takes one of a list, as who uses it does.
func (c *console) choose(selector, value string) {
	c.t.Helper()
	c.find(chromedp.SetValue(chromedp.CSS(selector), value))
	eval[bool](c, fmt.Sprintf(`document.querySelector(%q).dispatchEvent(new Event("change", {bubbles: true}))`, selector))
}

// press clicks the button that says something.
func (c *console) press(text string) {
	c.t.Helper()
	eval[bool](c, fmt.Sprintf(`(() => { [...document.querySelectorAll("button")].find((b) => b.innerText.trim() == %q).click(); return true; })()`, text))
}

func (c *console) write(text string) {
	c.t.Helper()
	send(c, input.InsertText, input.InsertTextParams{Text: text})
}

// fill puts text in the place of what a field holds.
func (c *console) fill(selector, text string) {
	c.t.Helper()
	c.focus(selector)
	eval[bool](c, `(() => { document.activeElement.select(); return true; })()`)
	c.keys(kb.Delete)
	if text != "" {
		c.write(text)
	}
}

func (c *console) keys(keys ...string) {
	c.t.Helper()
	for _, k := range keys {
		c.do(chromedp.KeyEvent(k))
	}
}

// sees waits until the page shows all of the texts.
func (c *console) sees(texts ...string) {
	c.t.Helper()
	eventually(c.t, 20*time.Second, func() string {
		body := c.text()
		for _, text := range texts {
			if !strings.Contains(body, text) {
				return fmt.Sprintf("the page does not show %q but\n%s", text, body)
			}
		}
		return ""
	})
}

// judge looks at the page as it is: whether all can use it, in each theme and width, and
// keeps a picture of each.
func (c *console) judge(name string) {
	c.t.Helper()
	for _, theme := range []string{"light", "dark"} {
		for _, width := range []int64{1400, 390} {
			send(c, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"},
			}})
			send(c, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 900, DeviceScaleFactor: 1, Mobile: width < 500})
			picture := fmt.Sprintf("%s-%s-%d", name, theme, width)
			if over := eval[int](c, `document.documentElement.scrollWidth - window.innerWidth`); over > 0 {
				c.t.Errorf("%s: the page is %d pixels wider than the screen", picture, over)
			}
			c.usable(picture)
			if dir := os.Getenv("BILLHOOK_SCREENSHOTS"); dir != "" {
				png, err := chromedp.Run(c.ctx, chromedp.FullScreenshot(100))
				if err != nil {
					c.t.Fatal(err)
				}
				if err := os.MkdirAll(dir, 0o755); err != nil {
					c.t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, picture+".png"), png, 0o644); err != nil {
					c.t.Fatal(err)
				}
			}
		}
	}
	send(c, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 1400, Height: 1000, DeviceScaleFactor: 1})
	send(c, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{})
	c.reachable(name)
	c.light(name)
}

// focused is what has the focus, and what shows it.
type focused struct {
	Last    bool   // nothing is left
	Name    string // of the element
	Visible bool   // it has an outline
	Inside  bool   // it is on the screen
}

// reachable fails the test for what the keys do not lead to, or lead to and do not show.
func (c *console) reachable(name string) {
	c.t.Helper()
	n := eval[int](c, `(() => {
		document.activeElement.blur();
		window.getSelection().removeAllRanges();
		const all = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']")];
		// Of radio buttons only the chosen one is on the way of Tab.
		window.untouched = new Set(all.filter((e) => e.checkVisibility() && !e.disabled && !(e.type == "radio" && !e.checked)));
		// Nothing is exchanged meanwhile, nor what was asked for before.
		window.still = (e) => { e.type == "htmx:beforeSwap" ? e.detail.shouldSwap = false : e.preventDefault(); };
		document.addEventListener("htmx:beforeRequest", window.still);
		document.addEventListener("htmx:beforeSwap", window.still);
		return window.untouched.size;
	})()`)
	for range n + 20 {
		c.keys(kb.Tab)
		f := eval[focused](c, `(() => {
			const e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();
			window.untouched.delete(e);
			return {last: window.untouched.size == 0, name: e.outerHTML.slice(0, 120),
				visible: e == document.body || s.outlineStyle != "none" && parseFloat(s.outlineWidth) >= 1, inside: b.bottom > 0 && b.top < innerHeight && b.right > 0 && b.left < innerWidth};
		})()`)
		if !f.Visible || !f.Inside {
			c.t.Errorf("%s: the focus is not seen at %s (%+v)", name, f.Name, f)
		}
		if f.Last {
			break
		}
	}
	if left := eval[string](c, `(() => {
		document.removeEventListener("htmx:beforeRequest", window.still);
		document.removeEventListener("htmx:beforeSwap", window.still);
		document.activeElement.blur();
		return [...window.untouched].map((e) => e.outerHTML.slice(0, 120)).join("\n");
	})()`); left != "" {
		c.t.Errorf("%s: Tab does not lead to\n%s", name, left)
	}
}

// light fails the test for a page that is heavy, or shows nothing before its scripts are there.
func (c *console) light(name string) {
	c.t.Helper()
	// The form may be shown in answer to what was posted; what it is made of is the same.
	w := eval[struct {
		Bytes    int
		Blocking string
		Scripts  int
		Painted  bool
	}](c, `(() => {
		const page = performance.getEntriesByType("navigation")[0], rest = performance.getEntriesByType("resource");
		const scripts = rest.filter((r) => r.initiatorType == "script");
		return {
			bytes: page.decodedBodySize + rest.filter((r) => ["script", "link", "img"].includes(r.initiatorType)).reduce((sum, r) => sum + r.decodedBodySize, 0),
			blocking: scripts.filter((r) => r.renderBlockingStatus != "non-blocking").map((r) => r.name).join(" "),
			scripts: scripts.length, painted: performance.getEntriesByName("first-contentful-paint").length == 1,
		};
	})()`)
	if w.Blocking != "" || w.Scripts != 2 || !w.Painted {
		c.t.Errorf("%s: scripts that are waited for: %q; of %d; painted: %v", name, w.Blocking, w.Scripts, w.Painted)
	}
	if w.Bytes == 0 || w.Bytes > 150<<10 {
		c.t.Errorf("%s: the page weighs %d bytes", name, w.Bytes)
	}
	c.t.Logf("%s: %d KiB", name, w.Bytes>>10)
}

// usable fails the test for what keeps people from using the page.
func (c *console) usable(name string) {
	c.t.Helper()
	eval[int](c, c.axe+";0")
	found := eval[string](c, `axe.run(document, {resultTypes: ["violations"]}).then((r) => JSON.stringify(r.violations))`, chromedp.EvalAwaitPromise)
	var violations []struct {
		ID, Impact, Help string
		Nodes            []struct {
			HTML           string `json:"html"`
			FailureSummary string `json:"failureSummary"`
		}
	}
	if err := json.Unmarshal([]byte(found), &violations); err != nil {
		c.t.Fatal(err)
	}
	for _, v := range violations {
		if v.Impact == "minor" || v.Impact == "moderate" {
			c.t.Logf("%s: %s %s: %s", name, v.Impact, v.ID, v.Help)
			continue
		}
		for i, n := range v.Nodes {
			if i < 5 {
				c.t.Errorf("%s: %s %s: %s\n%s\n%s", name, v.Impact, v.ID, v.Help, n.HTML, n.FailureSummary)
			}
		}
	}
}

const consoleHandlers = `version: 1
# who is told
defaults: {timeout: 5s, retry: {attempts: 2, initial: 10ms, max: 20ms, jitter: 0}, breaker: {failures: 0}}

handlers:
  # ---- the CRM
  - id: 1   # for ever
    name: Tell the CRM # that is
    event: clients.create
    http:
      url: $URL/crm # inside
      headers: {X-Key: verysecretkey}

  - id: 2
    name: Refused
    events: [clients.create, clients.update]
    http: {url: $URL/bad}

  # the switch
  - id: 3
    name: Block
    event: clients.balance_zero
    script: {path: /bin/true}
`

// TestConsole does in a real browser what people do in the console.
func TestConsole(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	got := map[string][]string{}
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		got[r.URL.Path] = append(got[r.URL.Path], string(body))
		mu.Unlock()
		if r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, `{"error":"no such tariff <script>alert(1)</script>"}`)
		}
	}))
	t.Cleanup(receiver.Close)
	db := pgtest.NewDatabase(t, peersSchema)
	role, dsn := db.Role(t, "REPLICATION", "GRANT SELECT ON clients TO $role")
	in := install(t, dsn, `version: 1
source: {dsn: "${DSN}", slot: `+db.Name+`, publication: p}
entities:
  clients: {table: public.clients, key: [id], balance: {column: balance}, archive: {column: status, value: archived}}
journal: {path: "${JOURNAL}"}
http:
  listen: "${LISTEN}"
  users:
  - {name: anna, role: operator, password: correct-horse}
  - {name: vera, role: viewer, password: only-looks-at}
`, strings.ReplaceAll(consoleHandlers, "$URL", receiver.URL))
	in.user, in.password = "anna", "correct-horse"
	in.start()
	in.waitReady()
	file := func() string {
		b, err := os.ReadFile(in.handlers)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	has := func(texts ...string) {
		t.Helper()
		for _, text := range texts {
			if !strings.Contains(file(), text) {
				t.Errorf("handlers.yaml lacks %q:\n%s", text, file())
			}
		}
	}
	// keeps sees that all comments are still there.
	keeps := func() {
		t.Helper()
		has("# who is told", "# ---- the CRM", "- id: 1   # for ever", "# that is", "# inside", "X-Key: verysecretkey", "\n  # the switch\n")
	}
	db.Exec(t, `INSERT INTO clients (id, name) VALUES (1, 'Acme <script>alert(2)</script>'), (2, 'Other')`)
	db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 1")
	eventually(t, 20*time.Second, func() string {
		if n := in.executions(); n["succeeded"] < 3 || n["dead"] < 2 {
			return fmt.Sprint(n)
		}
		return ""
	})

	c := openConsole(t, in)
	steps := []struct {
		name string
		do   func(t *testing.T)
	}{
		{"sign in with keys alone", func(t *testing.T) {
			c.open("/handlers")
			c.sees("Sign in")
			c.judge("sign-in")
			c.open("/handlers")
			c.focus("input[name=name]")
			c.write("anna")
			c.keys(kb.Tab)
			c.write("wrong")
			c.keys(kb.Enter)
			c.sees("The name or the password is wrong.")
			c.fill("input[name=password]", "correct-horse")
			c.keys(kb.Enter)
			c.sees("Tell the CRM", "anna", "operator")
		}},
		{"the first key leads past the menu", func(t *testing.T) {
			c.open("/handlers")
			c.keys(kb.Tab, kb.Enter, kb.Tab)
			if inside := eval[bool](c, `document.getElementById("main").contains(document.activeElement)`); !inside {
				t.Error("after the first link, which skips the menu, Tab does not lead into the content")
			}
			// The slash leads to the search.
			c.keys("/")
			if name := eval[string](c, `document.activeElement.name`); name != "name" {
				t.Errorf("/ leads to %q", name)
			}
			c.fill("input[name=name]", "block") // the browser's protocol types the slash, too
			c.keys(kb.Enter)
			c.sees("name=block", "Block")
			if n := eval[int](c, `document.querySelectorAll("table.handlers tbody tr").length`); n != 1 {
				t.Errorf("%d handlers are found", n)
			}
		}},
		{"overview", func(t *testing.T) {
			c.open("/")
			c.sees("Overview", "streaming", "slot "+db.Name, "Behind", "Slot keeps", "Throughput", "nothing waits", "Journal", "Dead letters", "no such tariff", "The last hour", "The last day", "3 succeeded",
				"Executions have died in the last day: 2")
			c.judge("overview")
		}},
		{"what is wrong is told with what to do", func(t *testing.T) {
			good := file()
			write(t, in.handlers, strings.Replace(good, "event: clients.balance_zero", "event: clients.balance_nought", 1))
			db.Exec(t, "REVOKE SELECT ON clients FROM "+role)
			c.open("/")
			c.press("Look now")
			c.sees("things are not well", "handlers.yaml is refused, the last good one stays in force", "clients.balance_nought", "GRANT SELECT ON", "The database and this machine")
			c.judge("overview-trouble")
			write(t, in.handlers, good)
			db.Exec(t, "GRANT SELECT ON clients TO "+role)
			c.press("Look now")
			eventually(t, 20*time.Second, func() string {
				body := c.text()
				for _, gone := range []string{"handlers.yaml is refused", "GRANT SELECT ON"} {
					if strings.Contains(body, gone) {
						return "still there: " + gone + "\n" + body
					}
				}
				if n := eval[int](c, `document.querySelectorAll("section[aria-labelledby=checks] details li").length`); n < 10 {
					return fmt.Sprintf("%d findings are shown", n)
				}
				return ""
			})
		}},
		{"switch a handler off and on", func(t *testing.T) {
			c.open("/handlers")
			c.judge("handlers")
			c.click("#handler-1 button.switch")
			c.sees("Handler 1 is disabled.")
			has("status: disabled")
			keeps()
			c.focus("#handler-1 button.switch")
			c.keys(" ")
			c.sees("Handler 1 is enabled.")
			has("status: enabled")
			// The focus stays where it was.
			eventually(t, 5*time.Second, func() string {
				if id := eval[string](c, `document.activeElement.id`); id != "status-1" {
					return "the focus is at " + id
				}
				return ""
			})
			for head, want := range map[string]string{"ID": "1", "Priority": "1", "Name": "Tell the CRM", "Event": "clients.create", "Handler": "http " + receiver.URL + "/crm", "Status": "enabled", "Success rate": "100 % of", "Last success": "ago", "Pending": "0", "Dead": "0"} {
				cell := eval[string](c, fmt.Sprintf(`(() => {
					const at = [...document.querySelectorAll("table.handlers thead th")].findIndex((h) => h.innerText == %q);
					return document.querySelector("#handler-1").cells[at].innerText;
				})()`, head))
				if !strings.Contains(cell, want) {
					t.Errorf("in the column %s stands %q, want %q", head, cell, want)
				}
			}
			if label := eval[string](c, `document.querySelector("#handler-1 svg.spark").getAttribute("aria-label")`); !strings.Contains(label, "In the last hour: ") {
				t.Errorf("the line of the last hour says %q", label)
			}
		}},
		{"handlers are found", func(t *testing.T) {
			for query, want := range map[string]string{
				"name=crm": "1", "event=create": "1 2", "event=clients.balance_zero": "3", "kind=script": "3", "kind=http": "1 2", "kind=plugin": "",
				"status=enabled": "1 2 3", "status=disabled": "", "name=refused&event=update&kind=http&status=enabled": "2", "name=refused&kind=script": "",
			} {
				c.open("/handlers?" + query)
				if got := eval[string](c, `[...document.querySelectorAll("table.handlers tbody tr")].map((r) => r.dataset.id).join(" ")`); got != want {
					t.Errorf("%s: %q, want %q", query, got, want)
				}
			}
		}},
		{"a new handler", func(t *testing.T) {
			c.open("/handlers")
			c.click("a[href='/handlers/new']")
			c.sees("New handler")
			c.fill("#f-name", "Welcome: mail")
			c.click("input[value='clients.create']")
			c.fill("#f-http-url", "no url")
			c.click("button[value=save]")
			c.sees("\"no url\" is not a URL")
			c.judge("handler-mistake")
			if v := eval[string](c, `document.getElementById("f-name").value`); v != "Welcome: mail" {
				t.Errorf("what was written is gone: %q", v)
			}
			c.fill("#f-http-url", receiver.URL+"/mail/{{.event.object_id}}")
			c.fill("#f-template", "{\"to\": {{json .data.name}}}\n{{- /* # the end */ -}}")
			c.click("button[value=save]")
			c.sees("Handler 4 is added")
			has("  - id: 4\n    name: 'Welcome: mail'\n    event: clients.create\n", "url: "+receiver.URL+"/mail/{{.event.object_id}}\n", "# the end")
			keeps()
			db.Exec(t, `INSERT INTO clients (id, name) VALUES (3, 'Third')`)
			eventually(t, 20*time.Second, func() string {
				mu.Lock()
				defer mu.Unlock()
				if list := got["/mail/3"]; len(list) != 1 || !strings.Contains(list[0], `{"to": "Third"}`) {
					return fmt.Sprint(got)
				}
				return ""
			})
		}},
		{"change one, with a preview as it is written", func(t *testing.T) {
			c.open("/handlers/1/edit")
			c.sees("Nothing changes.", `"name": "Third"`)
			if text := eval[string](c, `document.documentElement.outerHTML`); strings.Contains(text, "verysecretkey") {
				t.Error("the form shows a secret")
			}
			c.judge("handler-edit")
			c.fill("#f-name", "Tell the CRM at once")
			c.sees("+    name: Tell the CRM at once # that is")
			c.choose("#f-format", "cloudevents")
			c.sees(`"specversion": "1.0"`)
			c.fill("#f-when", "data.nosuch ==")
			c.sees("when: ", "Syntax error")
			c.fill("#f-when", "data.id < 100")
			c.sees("+    when: data.id < 100")
			c.click("button[value=save]")
			c.sees("Handler 1 is changed")
			has("name: Tell the CRM at once # that is\n", "    format: cloudevents\n", "    when: data.id < 100\n")
			keeps()
		}},
		{"call it once", func(t *testing.T) {
			c.open("/handlers/2/edit")
			c.sees("Nothing changes.")
			before := in.executions()
			c.click("button[value=test]")
			c.sees("The call", "permanent", "no such tariff <script>alert(1)</script>", "POST "+receiver.URL+"/bad")
			c.judge("handler-called")
			if now := in.executions(); fmt.Sprint(now) != fmt.Sprint(before) {
				t.Errorf("a call to see is recorded: %v, %v", before, now)
			}
		}},
		{"somebody else changes the file meanwhile", func(t *testing.T) {
			c.open("/handlers/2/edit")
			c.sees("Nothing changes.")
			write(t, in.handlers, strings.Replace(file(), "name: Block", "name: Block it", 1))
			c.fill("#f-priority", "7")
			c.click("button[value=save]")
			c.sees("Not saved", "changed by somebody else", "-    name: Block\n", "+    name: Block it", "+    priority: 7", "Save onto the file as it is now")
			c.judge("handler-conflict")
			if strings.Contains(file(), "priority: 7") {
				t.Error("it was saved all the same")
			}
			c.click("button[value=save]")
			c.sees("Handler 2 is changed")
			has("name: Block it", "priority: 7")
			keeps()
		}},
		{"another kind", func(t *testing.T) {
			c.open("/handlers/4/edit")
			c.click("#kind-script")
			if visible := eval[bool](c, `document.getElementById("f-http-url").checkVisibility()`); visible {
				t.Error("the fields of another kind are shown")
			}
			c.fill("#f-script-path", "/bin/true")
			c.click("button[value=save]")
			c.sees("Handler 4 is changed", "/bin/true")
			has("    script:\n      path: /bin/true\n")
		}},
		{"order by keys", func(t *testing.T) {
			c.open("/handlers")
			order := func() string {
				return eval[string](c, `[...document.querySelectorAll("table.handlers tbody tr")].map((r) => r.dataset.id).join(" ")`)
			}
			if o := order(); o != "1 3 4 2" {
				t.Errorf("before: %s", o)
			}
			c.focus("#up-4")
			c.keys(kb.Enter)
			eventually(t, 10*time.Second, func() string {
				if o := order(); o != "1 4 3 2" {
					return o
				}
				return ""
			})
			// The focus stays, so that the next key moves it on.
			eventually(t, 5*time.Second, func() string {
				if id := eval[string](c, `document.activeElement.id`); id != "up-4" {
					return "the focus is at " + id
				}
				return ""
			})
			c.keys(kb.Enter)
			eventually(t, 10*time.Second, func() string {
				if o := order(); o != "4 1 3 2" {
					return o
				}
				return ""
			})
			keeps()
		}},
		{"order by dragging", func(t *testing.T) {
			c.open("/handlers")
			c.do(chromedp.DragAndDrop(chromedp.CSS("#handler-2 .grip"), chromedp.CSS("#handler-4 td")))
			eventually(t, 10*time.Second, func() string {
				if o := eval[string](c, `[...document.querySelectorAll("table.handlers tbody tr")].map((r) => r.dataset.id).join(" ")`); o != "2 4 1 3" {
					return o
				}
				return ""
			})
			keeps()
		}},
		{"archive and delete", func(t *testing.T) {
			c.open("/handlers/4/edit")
			c.click("button[value=archived]")
			c.sees("Handler 4 is archived.")
			if eval[bool](c, `!!document.getElementById("handler-4")`) {
				t.Error("an archived handler is shown")
			}
			c.open("/handlers?status=all")
			c.sees("archived")
			c.open("/handlers/4/edit")
			c.click("a.danger")
			c.sees("Delete handler 4", "-  - id: 4")
			c.judge("handler-delete")
			has("id: 4")
			c.click("button.danger")
			c.sees("Handler 4 is deleted")
			if strings.Contains(file(), "id: 4") {
				t.Error(file())
			}
			keeps()
		}},
		{"executions", func(t *testing.T) {
			c.open("/executions")
			c.judge("executions")
			heads := eval[string](c, `[...document.querySelectorAll("table.rows thead th")].map((h) => h.innerText).join()`)
			if heads != "Choose,ID,Date,Event,Handler,Object ID,Status,Attempts,Duration,Error / response" {
				t.Errorf("the columns are %s", heads)
			}
			shown := func() string {
				return eval[string](c, `[...document.querySelectorAll("table.rows tbody td[data-l=ID]")].map((r) => r.innerText).join(" ")`)
			}
			every := "/executions?id=2&status=dead&event=clients.create&handler=2&object=1&lane=1&text=tariff&request=Acme&response=no+such&attempts=1&duration=1us&since=2020-01-01T10%3A00&until=2040-01-01T10%3A00&replayed=false"
			c.open(every)
			if got := shown(); got != "2" {
				t.Errorf("with every filter: %q", got)
			}
			if values := eval[string](c, `[...new FormData(document.querySelector("form.filter"))].map(([k, v]) => k + "=" + v).sort().join()`); values != "attempts=1,duration=1us,event=clients.create,handler=2,id=2,lane=1,object=1,replayed=false,request=Acme,response=no such,since=2020-01-01T10:00,status=dead,text=tariff,until=2040-01-01T10:00" {
				t.Errorf("the fields hold %s", values)
			}
			for name, other := range map[string]string{
				"id": "4", "status": "succeeded", "event": "clients.update", "handler": "1", "object": "2", "lane": "2", "text": "nothing like it", "request": "nothing like it", "response": "nothing like it",
				"attempts": "2", "duration": "1h", "since": "2039-01-01T00:00", "until": "2021-01-01T00:00",
			} {
				c.open(regexp.MustCompile(`\b`+name+`=[^&]*`).ReplaceAllString(every, name+"="+neturl.QueryEscape(other)))
				if got := shown(); got != "" {
					t.Errorf("with %s=%s: %q", name, other, got)
				}
			}
			// What is exported is what is filtered.
			c.open("/executions?status=dead&handler=2")
			want := eval[int](c, `document.querySelectorAll("table.rows tbody tr").length`)
			for _, link := range []string{"/executions.csv", "/api/v1/executions.ndjson"} {
				text := eval[string](c, fmt.Sprintf(`fetch(document.querySelector("a[href^='%s']").href).then((r) => r.text())`, link), chromedp.EvalAwaitPromise)
				lines := strings.Split(strings.TrimSpace(text), "\n")
				if link == "/executions.csv" {
					lines = lines[1:]
				}
				if len(lines) != want || want == 0 || strings.Count(text, "no such tariff") != want || strings.Contains(text, "succeeded") {
					t.Errorf("%s: %d lines, want %d:\n%s", link, len(lines), want, text)
				}
			}
			c.open("/executions")
			c.choose("select[name=status]", "dead")
			c.fill("input[name=response]", "TARIFF")
			c.fill("input[name=request]", "/bad")
			c.keys(kb.Enter)
			c.sees("status=dead", "response=TARIFF")
			if n := eval[int](c, `[...document.querySelectorAll("table.rows tbody tr")].filter((r) => !/dead/.test(r.innerText)).length`); n != 0 {
				t.Errorf("%d others are shown", n)
			}
			c.click("table.rows tbody td a[href^='/executions/']")
			c.sees("What changed", "The row then", "Attempts", "POST "+receiver.URL+"/bad", "no such tariff <script>alert(1)</script>", "after the commit", "all events of this client")
			c.judge("execution")
			// A secret of a handler is not in what was sent.
			c.open("/executions?handler=1")
			c.click("table.rows tbody td a[href^='/executions/']")
			c.sees("POST " + receiver.URL + "/crm")
			if text := eval[string](c, `document.documentElement.outerHTML`); strings.Contains(text, "verysecretkey") {
				t.Error("the request is shown with a secret")
			}
			c.open("/executions?status=dead")
			c.click("table.rows tbody td a[href^='/executions/']")
			c.sees("What changed")
			c.press("Replay")
			c.sees("replayed", "Repeats")
		}},
		{"replay what is chosen, and all that match", func(t *testing.T) {
			c.open("/executions?status=dead")
			c.focus("table.rows input[type=checkbox]")
			c.keys(" ")
			c.press("Replay chosen")
			c.sees("Replays", "has begun")
			c.judge("replays")
			c.open("/executions?status=dead&handler=2")
			c.click("a.button[href^='/replays/new']")
			c.sees("Replay all that match", "at the end of its client")
			c.judge("replay-confirm")
			c.click("button.danger")
			c.sees("has begun", "status dead, handler 2", "left out")
		}},
		{"all of one client", func(t *testing.T) {
			c.open("/executions/1")
			c.click("a[href='/clients/1']")
			c.sees("Client 1", "clients.create", "clients.balance_zero", "10.000000 → -1.000000", "<script>alert(1)</script>")
			// The newest first, also when an older one was replayed since.
			if order := eval[string](c, `[...document.querySelectorAll(".timeline .moment > b")].map((b) => b.innerText).join()`); order != "clients.balance_zero,clients.create" {
				t.Errorf("it happened in the order %s", order)
			}
			c.focus(".timeline summary")
			c.keys(kb.Enter)
			c.sees("Came back", "BILLHOOK_EVENT_ID")
			c.judge("client")
		}},
		{"what comes is shown as it comes", func(t *testing.T) {
			c.open("/live?event=clients.*")
			c.sees("watching, 0 so far")
			db.Exec(t, "UPDATE clients SET name = '<b>Live</b>' WHERE id = 2")
			c.sees("clients.update", "watching, 1 so far", "Refused")
			c.press("Pause")
			db.Exec(t, "UPDATE clients SET name = 'Later' WHERE id = 2")
			c.sees("paused, 1 wait, 2 so far")
			c.press("Go on")
			c.sees("watching, 2 so far")
			if n := eval[int](c, `document.querySelectorAll("#live tr").length`); n != 2 {
				t.Errorf("%d events are shown", n)
			}
			eval[bool](c, `(() => { document.querySelectorAll("#live details")[1].open = true; return true; })()`)
			c.sees(`"name": "<b>Live</b>"`)
			c.judge("live")
		}},
		{"executions are followed, and the overview is up to date", func(t *testing.T) {
			c.open("/executions?handler=2")
			c.click("form.filter a.button")
			c.sees("Stop following", "follow=true")
			before := eval[int](c, `document.querySelectorAll("table.rows tbody tr").length`)
			db.Exec(t, "UPDATE clients SET name = 'Followed' WHERE id = 2")
			eventually(t, 20*time.Second, func() string {
				if n := eval[int](c, `document.querySelectorAll("table.rows tbody tr").length`); n != before+1 {
					return fmt.Sprintf("%d executions, before %d", n, before)
				}
				return ""
			})
			c.open("/")
			c.sees("Overview")
			dead := eval[string](c, `document.querySelector(".tiles a[href^='/executions?status=dead']").innerText`)
			db.Exec(t, "UPDATE clients SET name = 'Seen' WHERE id = 2")
			eventually(t, 20*time.Second, func() string {
				if now := eval[string](c, `document.querySelector("#overview .tiles a[href^='/executions?status=dead']").innerText`); now == dead {
					return "still " + now
				}
				return ""
			})
		}},
		{"who did what", func(t *testing.T) {
			c.open("/audit")
			c.sees("Who did what", "anna, operator", "signed in", "handler written", "handler deleted", "handlers reordered", "handler's status changed", "replay begun", "handler tried", "checks run", "127.0.0.1")
			c.judge("audit")
		}},
		{"a handler that fails", func(t *testing.T) {
			// Nobody listens there any more.
			receiver := httptest.NewServer(http.NotFoundHandler())
			receiver.Close()
			good := file()
			write(t, in.handlers, good+"  - {id: 9, name: Away, event: clients.archive, failing_after: 1ms, retry: {attempts: 1000, initial: 500ms, max: 1s}, http: {url: \""+receiver.URL+"\"}}\n")
			c.open("/handlers")
			eventually(t, 20*time.Second, func() string {
				c.open("/handlers")
				if text := c.text(); !strings.Contains(text, "Away") {
					return text
				}
				return ""
			})
			db.Exec(t, "INSERT INTO clients (id, name) VALUES (90, 'Ninety')")
			db.Exec(t, "UPDATE clients SET status = 'archived' WHERE id = 90")
			c.open("/")
			c.sees("Handler 9, Away, is failing since", "connection refused", "the oldest")
			c.open("/handlers?name=away")
			c.sees("1 failing", "failing since", "connection refused", "none yet", "never")
			c.judge("handlers-failing")
			write(t, in.handlers, good)
			eventually(t, 20*time.Second, func() string {
				c.open("/handlers?status=all")
				if text := c.text(); strings.Contains(text, "Away") {
					return text
				}
				return ""
			})
		}},
		{"themes", func(t *testing.T) {
			c.open("/")
			// In a system that is light: dark, light, as the system.
			for i, want := range []string{"", "dark", "light", ""} {
				eventually(t, 10*time.Second, func() string {
					is := eval[string](c, `document.readyState != "complete" ? "loading" : [document.readyState, document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor == "rgb(255, 255, 255)"].join()`)
					if is != fmt.Sprintf("complete,%s,%v", want, want != "dark") {
						return is
					}
					return ""
				})
				if i < 3 {
					c.click("button[name=theme]")
				}
			}
		}},
		{"who only looks cannot act", func(t *testing.T) {
			c.open("/")
			c.press("Sign out")
			c.sees("Sign in")
			c.fill("input[name=name]", "vera")
			c.fill("input[name=password]", "only-looks-at")
			c.keys(kb.Enter)
			c.sees("vera", "viewer")
			c.open("/handlers")
			if n := eval[int](c, `document.querySelectorAll("main button:not(form.filter button), main a[href$='/edit'], main .grip").length`); n != 0 {
				t.Errorf("%d things to act with are shown", n)
			}
			c.judge("handlers-viewer")
			c.open("/handlers/1/edit")
			c.sees("A viewer may only look")
		}},
	}
	for _, s := range steps {
		ok := t.Run(s.name, func(t *testing.T) {
			c.t, in.t = t, t
			s.do(t)
		})
		c.t, in.t = t, t
		if !ok {
			return // what follows stands on it
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	for _, url := range c.asked {
		if !strings.HasPrefix(url, c.url+"/") && !strings.HasPrefix(url, "about:") && !strings.HasPrefix(url, "data:") { // data: is of the browser itself, for its fields
			t.Errorf("a page asks elsewhere: %s", url)
		}
	}
	if len(c.asked) < 50 {
		t.Errorf("only %d requests were seen", len(c.asked))
	}
	for _, text := range c.errors {
		t.Errorf("the browser says: %s", text)
	}
	// Who did what is in the log.
	b, err := os.ReadFile(in.log)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"handler's status changed", "handler written", "handlers reordered", "handler deleted", "handler tried"} {
		if !regexp.MustCompile(regexp.QuoteMeta(what) + `.* by=anna`).Match(b) {
			t.Errorf("the log does not say who did: %s", what)
		}
	}
	if strings.Contains(string(b), "verysecretkey") {
		t.Error("the log holds a secret")
	}
}
