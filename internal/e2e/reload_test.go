package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// TestReload changes handlers.yaml under a running instance, as an operator does.
func TestReload(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 50)
	r := newReceiver(t)
	file := func(handlers ...string) string {
		return "version: 1\ndefaults: {retry: {initial: 20ms, max: 100ms}}\nhandlers:\n" + strings.Join(handlers, "")
	}
	handler := func(id int, status string) string {
		return fmt.Sprintf("  - {id: %d, name: Tell %d, event: \"clients.*\", priority: %d, status: %s, http: {url: %q, secret: whsec_ZW5kIHRvIGVuZCBlbmQgdG8gZW5kIGVuZA==}}\n", id, id, id, status, r.url)
	}
	in := install(t, b.role(), benchYAML(b.db.Name), file(handler(1, "enabled")))
	in.start()
	in.waitReady()

	// cross makes one event.
	cross := func() {
		t.Helper()
		b.db.Exec(t, "UPDATE pgbench_accounts SET abalance = CASE WHEN abalance > 0 THEN -1 ELSE 1 END WHERE aid = 7")
	}
	// told waits until each handler has accepted so many events.
	told := func(want map[int]int) {
		t.Helper()
		eventually(t, 20*time.Second, func() string {
			in.alive()
			got := map[int]int{}
			for _, a := range r.all(t) {
				got[a.handler]++
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Sprintf("handlers got %v events, want %v", got, want)
			}
			return ""
		})
	}
	inStatus := func(status string, want int) {
		t.Helper()
		eventually(t, 20*time.Second, func() string {
			if n := in.executions()[status]; n != want {
				return fmt.Sprintf("%d executions are %s, want %d", n, status, want)
			}
			return ""
		})
	}
	const successful = "billhook_config_last_reload_successful"
	const reloaded = "billhook_config_last_reload_success_timestamp_seconds"
	became := func(metric, what string, ok func(float64) bool) {
		t.Helper()
		eventually(t, 20*time.Second, func() string {
			if v := in.metric(metric); !ok(v) {
				return fmt.Sprintf("%s is %v: %s", metric, v, what)
			}
			return ""
		})
	}
	is := func(want float64) func(float64) bool { return func(v float64) bool { return v == want } }

	cross()
	told(map[int]int{1: 1})
	became(successful, "from the start", is(1))

	// A new handler gets what comes from now on.
	write(t, in.handlers, file(handler(1, "enabled"), handler(2, "enabled")))
	in.inForce("1 enabled, 2 enabled")
	cross()
	told(map[int]int{1: 2, 2: 1})

	// What comes for a disabled one is held until it is enabled again.
	write(t, in.handlers, file(handler(1, "disabled"), handler(2, "enabled")))
	in.inForce("1 disabled, 2 enabled")
	cross()
	told(map[int]int{1: 2, 2: 2})
	inStatus("held", 1)
	write(t, in.handlers, file(handler(1, "enabled"), handler(2, "enabled")))
	in.inForce("1 enabled, 2 enabled")
	told(map[int]int{1: 3, 2: 2})
	inStatus("held", 0)

	// A file with a mistake is refused, and says so; the last good one is in force.
	write(t, in.handlers, file(handler(1, "enabled"), "  - {id: 3, name: Typo, event: clients.balance_nil, http: {url: \"http://127.0.0.1:1/\"}}\n"))
	became(successful, "after a bad file", is(0))
	in.inForce("1 enabled, 2 enabled")
	if log := tail(in.log, 5); !strings.Contains(log, "handlers.yaml:5:") || !strings.Contains(log, "clients.balance_nil") {
		t.Errorf("the log does not name the mistake:\n%s", log)
	}
	in.waitReady()
	cross()
	told(map[int]int{1: 4, 2: 3})

	// A restart with it ends with the mistake, and touches nothing.
	in.stop()
	out, err := in.command("run", "--config", in.config, "--handlers", in.handlers).CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "billhook: "+in.handlers+":5:") || strings.Count(string(out), "\n") != 1 {
		t.Errorf("a start with a bad file: %v\n%s", err, out)
	}
	write(t, in.handlers, file(handler(1, "enabled"), handler(2, "enabled")))
	in.start()
	in.waitReady()
	told(map[int]int{1: 4, 2: 3})

	// SIGHUP reads the file again, also when it is the same.
	before := in.metric(reloaded)
	in.signal(syscall.SIGHUP)
	became(reloaded, "after SIGHUP", func(v float64) bool { return v > before })
	cross()
	told(map[int]int{1: 5, 2: 4})

	// One that is archived, or gone from the file, gets nothing more, not even what
	// it was to get; the others do.
	write(t, in.handlers, file(handler(1, "disabled"), handler(2, "enabled")))
	in.inForce("1 disabled, 2 enabled")
	cross()
	told(map[int]int{1: 5, 2: 5})
	inStatus("held", 1)
	write(t, in.handlers, file(handler(1, "archived"), handler(2, "enabled")))
	in.inForce("1 archived, 2 enabled")
	inStatus("cancelled", 1)
	cross()
	told(map[int]int{1: 5, 2: 6})
	write(t, in.handlers, file(handler(1, "enabled")))
	in.inForce("1 enabled")
	cross()
	told(map[int]int{1: 6, 2: 6})

	// What waits for one that is gone holds nobody up.
	r.failing.Store(100)
	write(t, in.handlers, file(handler(1, "enabled"), handler(2, "enabled")))
	in.inForce("1 enabled, 2 enabled")
	cross()
	inStatus("pending", 2)
	write(t, in.handlers, file(handler(2, "enabled")))
	in.inForce("2 enabled")
	r.failing.Store(0)
	inStatus("pending", 0)
	in.stop()
}

// inForce waits until the handlers are those wanted, such as "1 enabled, 2 disabled".
func (in *instance) inForce(want string) {
	in.t.Helper()
	eventually(in.t, 20*time.Second, func() string {
		in.alive()
		var page struct {
			Handlers []struct {
				ID     int
				Status string
			}
		}
		in.getJSON("/api/v1/handlers", &page)
		var got []string
		for _, h := range page.Handlers {
			got = append(got, fmt.Sprintf("%d %s", h.ID, h.Status))
		}
		if s := strings.Join(got, ", "); s != want {
			return fmt.Sprintf("in force: %s; want %s", s, want)
		}
		return ""
	})
}

// TestReloadIncluded changes files that handlers.yaml includes: they come, have a mistake
// that is then corrected, are changed by the program, and go.
func TestReloadIncluded(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 5)
	r := newReceiver(t)
	in := install(t, b.role(), benchYAML(b.db.Name), "version: 1\ninclude: [\"handlers.d/*.yaml\"]\n")
	in.start()
	in.waitReady()
	dir := filepath.Join(filepath.Dir(in.handlers), "handlers.d")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	handler := func(id int, event string) string {
		return fmt.Sprintf("version: 1\nhandlers:\n  - {id: %d, name: Tell %d, event: %q, http: {url: %q}} # team %d\n", id, id, event, r.url, id)
	}
	in.inForce("")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write("a.yaml", handler(1, "clients.*"))
	in.inForce("1 enabled")
	write("b.yaml", handler(2, "clients.update"))
	in.inForce("1 enabled, 2 enabled")

	write("c.yaml", handler(3, "clients.updat"))
	eventually(t, 20*time.Second, func() string {
		if text, err := os.ReadFile(in.log); err != nil || !strings.Contains(string(text), "c.yaml:3:34: handlers[0].event: there is no event type") {
			return "the log does not say what is wrong in c.yaml"
		}
		return ""
	})
	in.inForce("1 enabled, 2 enabled")
	write("c.yaml", handler(3, "clients.update"))
	in.inForce("1 enabled, 2 enabled, 3 enabled")

	in.says(0, "handler 2, Tell 2, is disabled", "handlers", "disable", "2")
	in.inForce("1 enabled, 2 disabled, 3 enabled")
	if text, err := os.ReadFile(filepath.Join(dir, "b.yaml")); err != nil || !strings.Contains(string(text), "id: 2, status: disabled, name: Tell 2") || !strings.Contains(string(text), "# team 2") {
		t.Fatalf("b.yaml is %s (%v)", text, err)
	}
	if text, err := os.ReadFile(in.handlers); err != nil || strings.Contains(string(text), "disabled") {
		t.Fatalf("handlers.yaml is %s (%v)", text, err)
	}
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	in.inForce("2 disabled, 3 enabled")
	in.stop()
}

// TestReloadMounted: a folder as Kubernetes mounts a ConfigMap is one of links, and a new
// version is another link below them.
func TestReloadMounted(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 5)
	r := newReceiver(t)
	in := install(t, b.role(), benchYAML(b.db.Name), "version: 1\nhandlers: []\n")
	dir := filepath.Join(filepath.Dir(in.handlers), "mounted")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	link := func(to, name string) {
		t.Helper()
		if err := errors.Join(os.Symlink(to, filepath.Join(dir, "new")), os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
	}
	old := ""
	mount := func(version, handlers string) {
		t.Helper()
		data := filepath.Join(dir, ".."+version)
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, "handlers.yaml"), []byte("version: 1\nhandlers:\n"+handlers), 0o400); err != nil {
			t.Fatal(err)
		}
		link(".."+version, "..data")
		if old != "" {
			if err := os.RemoveAll(old); err != nil {
				t.Fatal(err)
			}
		}
		old = data
	}
	handler := func(id int) string {
		return fmt.Sprintf("  - {id: %d, name: Tell %d, event: clients.update, http: {url: %q}}\n", id, id, r.url)
	}
	mount("1", handler(1))
	link("..data/handlers.yaml", "handlers.yaml")
	in.handlers = filepath.Join(dir, "handlers.yaml")
	in.start()
	in.waitReady()
	in.inForce("1 enabled")
	for v := 2; v <= 4; v++ {
		mount(strconv.Itoa(v), handler(1)+handler(v))
		in.inForce(fmt.Sprintf("1 enabled, %d enabled", v))
	}
	in.stop()
}
