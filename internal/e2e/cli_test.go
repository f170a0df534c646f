package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// TestOperator has an operator look at a running Billhook, switch a handler off and on,
// try one, and watch events, on the command line.
func TestOperator(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabaseOn(t, pgtest.Start(t, nil), `CREATE TABLE clients (id int PRIMARY KEY, name text, balance numeric NOT NULL, secret text)`,
		"INSERT INTO clients VALUES (1, 'Acme', 10, 'sesame'), (2, 'Umbrella', 10, 'sesame')")
	crm := newReceiver(t)
	const handlers = `version: 1
handlers:
  # Tells the CRM, see the wiki.
  - id: 1   # never changes
    name: "CRM: blocked"

    event: clients.balance_zero   # and no other
    http: {url: %q, secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw}
  - {id: 2, name: Never, event: clients.delete, when: 'data.id == 99', http: {url: %q}}
  - {id: 3, name: Gone, event: clients.update, status: disabled, script: {path: /nonexistent}}
`
	in := install(t, db.DSN, fmt.Sprintf(`version: 1
source: {dsn: "${DSN}", slot: billhook_%[1]s, publication: billhook_%[1]s}
entities: {clients: {table: clients, key: [id], balance: {column: balance}, mask: [secret]}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`, db.Name), fmt.Sprintf(handlers, crm.url, crm.url))
	in.says(1, "is it running?", "status")
	in.start()
	in.waitReady()

	in.says(0, "ready\n", "status")
	if out := in.says(0, "CRM: blocked", "handlers", "list"); strings.Count(out, "\n") != 4 {
		t.Error(out)
	}

	// Watching.
	tail := in.command("events", "tail", "--lane", "1", "--output", "json")
	tail.Env = append(tail.Env, "BILLHOOK_URL=http://"+in.address)
	pipe, err := tail.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	tail.Stderr = os.Stderr
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = tail.Process.Kill() // it may have ended
		_ = tail.Wait()
	})
	lines := bufio.NewReader(pipe)
	type live struct {
		Event, Object string
		Handlers      []int
		Payload       struct{ Data struct{ Secret string } }
	}
	var seen live
	// It may not watch yet when the first event comes.
	came := make(chan string, 1)
	go func() {
		line, _ := lines.ReadString('\n') // an early end shows as an empty line
		came <- line
	}()
	n := 0
	var line string
	for deadline := time.After(20 * time.Second); line == ""; {
		n++
		db.Exec(t, "UPDATE clients SET name = $1 WHERE id = 2", fmt.Sprint("other ", n)) // of another lane
		db.Exec(t, "UPDATE clients SET name = $1 WHERE id = 1", fmt.Sprint("Acme ", n))
		select {
		case line = <-came:
			if line == "" {
				t.Fatal("it does not watch")
			}
		case <-time.After(100 * time.Millisecond):
		case <-deadline:
			t.Fatal("no event was shown")
		}
	}
	if err := json.Unmarshal([]byte(line), &seen); err != nil || seen.Event != "clients.update" || seen.Object != "1" || len(seen.Handlers) != 1 || seen.Handlers[0] != 3 || seen.Payload.Data.Secret != "***" {
		t.Errorf("%v %s", err, line)
	}

	// Trying: before there is an event, with one that was made up.
	out := in.says(0, "made up: there is none in the journal", "handlers", "test", "1")
	if !strings.Contains(out, "Webhook-Signature: v1,") || !strings.Contains(out, `"balance":"-0.50"`) || strings.Contains(out, "whsec_") {
		t.Error(out)
	}
	if a := crm.all(t); len(a) != 1 || !strings.Contains(a[0].body, `"events_id":"clients.balance_zero"`) {
		t.Errorf("%+v", a)
	}
	in.says(0, "would be sent", "handlers", "test", "1", "--dry-run")
	in.says(0, "the handler's condition excludes this event", "handlers", "test", "2")
	in.says(1, `there is no event type "clients.nosuch"`, "handlers", "test", "1", "--event", "clients.nosuch")
	in.says(1, "could not be made", "handlers", "test", "3")
	in.says(1, "there is no handler 9", "handlers", "test", "9")
	in.says(2, "want its id", "handlers", "test", "x")
	crm.failing.Store(100)
	in.says(1, "called, ", "handlers", "test", "1")
	crm.failing.Store(0)

	// Off: in the file, with all that is written around it, and in force at once.
	before := len(crm.all(t))
	in.says(0, "handler 1, CRM: blocked, is disabled", "handlers", "disable", "1")
	text, err := os.ReadFile(in.handlers)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(fmt.Sprintf(handlers, crm.url, crm.url), "    name: \"CRM: blocked\"\n", "    name: \"CRM: blocked\"\n    status: disabled\n", 1)
	if string(text) != want {
		t.Errorf("handlers.yaml is\n%s", text)
	}
	db.Exec(t, "UPDATE clients SET balance = -5 WHERE id = 1")
	eventually(t, 20*time.Second, func() string {
		if x := in.executions(); x["held"] < 1 {
			return fmt.Sprint(x)
		}
		return ""
	})
	in.says(0, "disabled", "handlers", "list", "--status", "disabled")
	in.says(0, "handler 1, CRM: blocked, is enabled", "handlers", "enable", "1")
	eventually(t, 20*time.Second, func() string {
		if n := len(crm.all(t)); n != before+1 {
			return fmt.Sprintf("%d came after it was enabled", n-before)
		}
		return ""
	})
	in.says(0, "the latest in the journal", "handlers", "test", "1", "--object", "1")

	// What cannot be done is said, and nothing is half done.
	in.says(1, "handler 3 cannot be enabled: "+in.handlers, "handlers", "enable", "3")
	good, err := os.ReadFile(in.handlers)
	if err != nil {
		t.Fatal(err)
	}
	write(t, in.handlers, string(good)+"nonsense: 1\n")
	in.says(1, "has a mistake, which must be corrected first", "handlers", "archive", "2")
	write(t, in.handlers, string(good))
	in.says(0, "is archived", "handlers", "archive", "2", "--output", "table")
	in.says(0, `"status": "archived"`, "handlers", "list", "--all", "--output", "json")
	if left, err := filepath.Glob(filepath.Join(in.dir, ".handlers-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}

	// Who watches does not keep Billhook from ending.
	in.stop()
	if _, err := io.Copy(io.Discard, lines); err != nil {
		t.Error(err)
	}
	if err := tail.Wait(); err == nil {
		t.Error("events tail ended well, although billhook has ended")
	}
}

// TestTailInterrupted: to be interrupted is how watching ends.
func TestTailInterrupted(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabaseOn(t, pgtest.Start(t, nil), `CREATE TABLE clients (id int PRIMARY KEY)`)
	in := install(t, db.DSN, fmt.Sprintf(`version: 1
source: {dsn: "${DSN}", slot: billhook_%[1]s, publication: billhook_%[1]s}
entities: {clients: {table: clients, key: [id]}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`, db.Name), "version: 1\nhandlers: []\n")
	in.start()
	in.waitReady()
	start := func(args ...string) *exec.Cmd {
		cmd := in.command(append([]string{"events", "tail"}, args...)...)
		cmd.Env = append(cmd.Env, "BILLHOOK_URL=http://"+in.address)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	one := start("--count", "1")
	ended := make(chan error, 1)
	go func() { ended <- one.Wait() }()
	for n, done := 0, false; !done; n++ {
		db.Exec(t, "INSERT INTO clients VALUES ($1)", n)
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			done = true
		case <-time.After(100 * time.Millisecond):
			if n > 200 {
				t.Fatal("--count 1 shows none")
			}
		}
	}
	other := start()
	<-time.After(200 * time.Millisecond)
	if err := other.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := other.Wait(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	in.stop()
}

// TestConfigCommands judges, shows and compares files, and changes what is logged.
func TestConfigCommands(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 5)
	crm := newReceiver(t)
	const one = `version: 1
handlers:
  # who wants it
  - id: 1
    name: CRM
    event: clients.*
    http: {url: %q, bearer_env: CRM_TOKEN}
`
	in := install(t, b.role(), benchYAML(b.db.Name), fmt.Sprintf(one, crm.url))
	files := []string{"--config", in.config, "--handlers", in.handlers}

	// Without the variable lint is content, run is not.
	in.says(0, "OK  "+in.handlers+": 1 handler in 1 file", append([]string{"config", "lint"}, files...)...)
	in.says(1, "the environment variable CRM_TOKEN is not set", append([]string{"config", "show"}, files...)...)
	in.env = append(in.env, "CRM_TOKEN=hunter2hunter2")
	shown := in.says(0, "bearer_env: CRM_TOKEN", append([]string{"config", "show"}, files...)...)
	if !strings.Contains(shown, "timeout: 10s") || strings.Contains(shown, "hunter2") {
		t.Error(shown)
	}
	in.says(0, `"bearer_env": "CRM_TOKEN"`, append([]string{"config", "show", "--output", "json"}, files...)...)

	bad := filepath.Join(in.dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte(strings.Replace(fmt.Sprintf(one, crm.url), "clients.*", "clients.*\n    when: event.nosuch(", 1)+"  - {id: 1, name: b, evnt: x, script: {path: ./nosuch}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in.says(1, "bad.yaml:9:22: handlers[1].evnt", "config", "lint", "--config", in.config, "--handlers", bad)
	in.says(1, `"line": 9`, "config", "lint", "--config", in.config, "--handlers", bad, "--output", "json")
	// A condition is judged once the rest is right.
	if err := os.WriteFile(bad, []byte(strings.Replace(fmt.Sprintf(one, crm.url), "clients.*", "clients.*\n    when: event.nosuch(", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	in.says(1, "bad.yaml:7:", "config", "lint", "--config", in.config, "--handlers", bad)

	next := filepath.Join(in.dir, "next.yaml")
	if err := os.WriteFile(next, []byte(strings.Replace(fmt.Sprintf(one, crm.url), "name: CRM", "name: CRM\n    timeout: 3s", 1)+"  - {id: 2, name: Two, event: clients.create, script: {path: ./nosuch}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in.says(0, "timeout: 10s -> 3s", "config", "diff", "--from", in.handlers, "--config", in.config, "--handlers", next)
	in.says(1, "added", "config", "diff", "--exit-code", "--from", in.handlers, "--config", in.config, "--handlers", next)

	in.start()
	in.waitReady()
	in.says(0, "no difference", "config", "diff", "--exit-code")
	if err := os.WriteFile(in.handlers, []byte("version: 1\nhandlers: [{id: x}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in.says(1, "handlers.yaml:2:17: handlers[0].id", "config", "diff")
	if err := os.WriteFile(in.handlers, []byte(strings.Replace(fmt.Sprintf(one, crm.url), "name: CRM", "name: CRM\n    timeout: 3s", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() string {
		text, err := os.ReadFile(in.log)
		if err != nil || !strings.Contains(string(text), `msg="handler changed" handler=1 field=timeout before=10s after=3s`) || strings.Contains(string(text), "hunter2") {
			return fmt.Sprintf("the log says %s (%v)", text, err)
		}
		return ""
	})
	in.says(0, "no difference", "config", "diff", "--exit-code")

	in.says(0, "the level is info", "log-level")
	in.says(0, "the level is debug until ", "log-level", "debug", "--for", "1h")
	in.says(0, `"until"`, "log-level", "--output", "json")
	in.says(0, "the level is warn\n", "log-level", "warn")
	in.says(1, `level "loud"`, "log-level", "loud")
	in.says(1, "want a duration", "log-level", "debug", "--for", "1000h")
	in.says(2, "say which level", "log-level", "--for", "1h")
	in.says(0, "the level is debug until ", "log-level", "debug", "--for", "200ms")
	eventually(t, 20*time.Second, func() string {
		if out := in.says(0, "the level is", "log-level"); out != "the level is info\n" {
			return out
		}
		return ""
	})
}
