package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// notes is what the plugin of testdata/plugin has noted so far.
type notes struct {
	pids        []int
	begun, done map[string][]string // event ids, by object
}

func readNotes(t testing.TB, dir string) notes {
	t.Helper()
	n := notes{begun: map[string][]string{}, done: map[string][]string{}}
	b, err := os.ReadFile(filepath.Join(dir, "notes"))
	if err != nil {
		return n
	}
	for line := range strings.Lines(string(b)) {
		switch f := strings.Fields(line); {
		case len(f) == 2 && f[0] == "pid":
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			n.pids = append(n.pids, pid)
		case len(f) == 3 && f[0] == "begin":
			n.begun[f[2]] = append(n.begun[f[2]], f[1])
		case len(f) == 3 && f[0] == "done":
			n.done[f[2]] = append(n.done[f[2]], f[1])
		default:
			t.Fatalf("note %q", line)
		}
	}
	return n
}

// running reports whether a process is there and no zombie.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return syscall.Kill(pid, 0) == nil
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

// TestPlugin: a plugin and Billhook are killed in the middle of calls. Each event is
// delivered to the end, under the same id each time, and no process stays.
func TestPlugin(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `
		CREATE TABLE clients (id int PRIMARY KEY, name text, balance numeric(20,6) NOT NULL DEFAULT 10);
		INSERT INTO clients (id) SELECT generate_series(1, 30);
		CREATE PUBLICATION `+"p"+` FOR TABLE clients`)
	_, dsn := db.Role(t, "REPLICATION", "GRANT SELECT ON clients TO $role")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "noting")
	if out, err := exec.Command("go", "build", "-o", bin, "./testdata/plugin").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := func(config string) string {
		return fmt.Sprintf(`version: 1
defaults: {timeout: 30s, retry: {initial: 100ms, max: 1s}, breaker: {failures: 0}}
handlers:
  - {id: 1, name: Block, event: clients.balance_zero, plugin: {path: %q, config: {dir: %q, %s}}}
`, bin, dir, config)
	}
	in := install(t, dsn, `version: 1
source: {dsn: "${DSN}", slot: `+db.Name+`, publication: p}
entities:
  clients: {table: public.clients, key: [id], balance: {column: balance}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`, file("take: 300ms, token: hunter2hunter2"))
	in.start()
	in.waitReady()

	// midway changes ten clients and waits until some of their calls have begun.
	midway := func(from int) {
		t.Helper()
		db.Exec(t, "UPDATE clients SET balance = -1 WHERE id >= $1 AND id < $1 + 10", from)
		eventually(t, 20*time.Second, func() string {
			in.alive()
			n := readNotes(t, dir)
			for i := from; i < from+10; i++ {
				if len(n.begun[fmt.Sprint(i)]) > 0 {
					return ""
				}
			}
			return "no call has begun"
		})
	}
	settled := func(upTo int) {
		t.Helper()
		eventually(t, 30*time.Second, func() string {
			in.alive()
			n := readNotes(t, dir)
			for i := 1; i <= upTo; i++ {
				if len(n.done[fmt.Sprint(i)]) == 0 {
					return fmt.Sprintf("client %d is not done", i)
				}
			}
			if x := in.executions(); x["succeeded"] != upTo {
				return fmt.Sprintf("executions: %v, want %d that succeeded", x, upTo)
			}
			return ""
		})
	}
	metric := func(name string, want float64) {
		t.Helper()
		eventually(t, 20*time.Second, func() string {
			if got := in.metric(name); got != want {
				return fmt.Sprintf("%s is %v, want %v", name, got, want)
			}
			return ""
		})
	}
	last := func() int {
		t.Helper()
		pids := readNotes(t, dir).pids
		if len(pids) == 0 {
			t.Fatal("no process")
		}
		return pids[len(pids)-1]
	}

	var list struct {
		Handlers []struct {
			Plugin struct {
				Up            bool
				Name, Version string
			}
		}
	}
	if in.getJSON("/api/v1/handlers", &list); len(list.Handlers) != 1 || fmt.Sprint(list.Handlers[0].Plugin) != "{true noting 1}" {
		t.Errorf("of the plugin is said %+v", list)
	}
	t.Log("the plugin is killed in the middle")
	metric(`billhook_plugin_up{handler="1"}`, 1)
	metric(`billhook_plugin_info{handler="1",name="noting",version="1"}`, 1)
	midway(1)
	first := last()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	settled(10)
	if last() == first {
		t.Error("it is the same process")
	}
	metric(`billhook_plugin_restarts_total{handler="1",reason="crash"}`, 1)
	metric(`billhook_plugin_up{handler="1"}`, 1)

	t.Log("billhook is killed in the middle")
	midway(11)
	second := last()
	in.kill()
	eventually(t, 10*time.Second, func() string {
		if running(second) {
			return "the plugin is still there"
		}
		return ""
	})
	in.start()
	in.waitReady()
	settled(20)

	t.Log("handlers.yaml is refused, and the plugin serves on")
	third := last()
	write(t, in.handlers, file("takes: 1s, token: hunter2hunter2"))
	metric("billhook_config_last_reload_successful", 0)
	log, err := os.ReadFile(in.log)
	if want := "handlers.yaml:4:"; err != nil || !strings.Contains(string(log), want) || !strings.Contains(string(log), "handlers[0].plugin.config.takes: the plugin noting says: there is no such key here") {
		t.Errorf("the log does not name the place: %v", err)
	}
	midway(21)
	if last() != third && running(last()) {
		t.Error("another process was made ready")
	}
	settled(30)

	t.Log("another configuration, and then another file, are another process")
	write(t, in.handlers, file("take: 10ms, child: true"))
	metric("billhook_config_last_reload_successful", 1)
	eventually(t, 20*time.Second, func() string {
		if running(third) {
			return "the process before is still there"
		}
		return ""
	})
	fourth := last()
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin+".new", b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(bin+".new", bin); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() string {
		if last() == fourth || running(fourth) {
			return "the file was replaced and the process was not"
		}
		return ""
	})

	t.Log("the end")
	in.stop()
	n := readNotes(t, dir)
	for _, pid := range n.pids {
		if running(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
	repeated := 0
	ids := map[string]string{}
	for object, begun := range n.begun {
		for _, id := range begun {
			if id != begun[0] || ids[id] != "" && ids[id] != object {
				t.Errorf("client %s was told of events %v", object, begun)
			}
			ids[id] = object
		}
		if len(begun) > 1 {
			repeated++
		}
		if len(n.done[object]) != 1 {
			t.Errorf("client %s was done %d times", object, len(n.done[object]))
		}
	}
	if len(n.begun) != 30 || repeated == 0 {
		t.Errorf("%d clients, %d of them with repetitions", len(n.begun), repeated)
	}
	in.start()
	in.waitReady()
	for _, page := range []string{"/", "/metrics", "/api/v1/handlers", "/api/v1/executions.ndjson?full=true"} {
		_, body, err := in.get(page)
		if err != nil || strings.Contains(string(body), "hunter2") {
			t.Errorf("%s: %v, or the secret is in it", page, err)
		}
		if strings.HasPrefix(page, "/api/v1/executions") && strings.Count(string(body), "a leak: ***") < 4 {
			t.Errorf("%s: what the plugin says is not there", page)
		}
	}
	in.stop()
	log, err = os.ReadFile(in.log)
	if strings.Contains(string(log), "hunter2") || strings.Count(string(log), "a leak: ***") < 3 {
		t.Error("the secret is in the log, or what was said with it is not")
	}
	if err != nil || !strings.Contains(string(log), "msg=hello handler=1 plugin=noting") {
		t.Errorf("what the plugin logs is not there: %v", err)
	}
}
