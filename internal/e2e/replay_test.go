package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// ask runs the program against the instance and returns what it prints.
func (in *instance) ask(args ...string) (out, errs string, code int) {
	in.t.Helper()
	cmd := in.command(args...)
	cmd.Env = append(cmd.Env, "BILLHOOK_URL=http://"+in.address)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		in.t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// says runs the program and wants its exit code and some of what it prints.
func (in *instance) says(code int, want string, args ...string) string {
	in.t.Helper()
	out, errs, got := in.ask(args...)
	if got != code || !strings.Contains(out+errs, want) {
		in.t.Fatalf("billhook %s: exit code %d, want %d with %q\n%s%s", strings.Join(args, " "), got, code, want, out, errs)
	}
	return out
}

// ordered fails the test unless a handler got the events of each lane in order, those
// it took; one that came again is looked at where it came first.
func ordered(t *testing.T, came []arrival, handler int) (ids []string) {
	t.Helper()
	seen := map[string]bool{}
	last := map[string]int{} // by lane: what the balance was set to
	for _, a := range came {
		if a.handler != handler || !a.accepted || seen[a.id] {
			continue
		}
		seen[a.id] = true
		ids = append(ids, a.id)
		var p struct {
			Data struct {
				Note string `json:"note"`
			} `json:"data"`
		}
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(p.Data.Note)
		if err != nil {
			t.Fatalf("%s: %v", a.body, err)
		}
		if n <= last[a.lane] {
			t.Fatalf("lane %s: %d came after %d", a.lane, n, last[a.lane])
		}
		last[a.lane] = n
	}
	return ids
}

// TestReplay: a receiver refuses everything until it is mended. What is dead by then is
// replayed on the command line, by a filter and at a rate, while Billhook is killed in
// the middle: each event comes with the id it had, in order within its lane, and to
// nobody else.
func TestReplay(t *testing.T) {
	t.Parallel()
	const clients, rounds = 20, 15
	db := pgtest.NewDatabaseOn(t, pgtest.Start(t, nil), `CREATE TABLE clients (id int PRIMARY KEY, note text NOT NULL)`,
		fmt.Sprintf("INSERT INTO clients SELECT i, 0 FROM generate_series(1, %d) i", clients))
	bad, good := newReceiver(t), newReceiver(t)
	handlers := func(status string) string {
		return fmt.Sprintf(`version: 1
defaults: {retry: {attempts: 1}, breaker: {failures: 0}}
handlers:
  - {id: 1, name: CRM, event: clients.update, status: %s, http: {url: %q}}
  - {id: 2, name: Switch, event: clients.update, priority: 2, http: {url: %q}}
`, status, bad.url, good.url)
	}
	in := install(t, db.DSN, fmt.Sprintf(`version: 1
source: {dsn: "${DSN}", slot: billhook_%[1]s, publication: billhook_%[1]s}
entities: {clients: {table: clients, key: [id]}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`, db.Name), handlers("enabled"))
	bad.failing.Store(100)
	in.start()
	in.waitReady()
	conn := db.Connect(t)
	for n := range rounds {
		if _, err := conn.Exec(t.Context(), "UPDATE clients SET note = $1", strconv.Itoa(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	settled := func(pending int, dead, succeeded int) {
		t.Helper()
		eventually(t, time.Minute, func() string {
			if x := in.executions(); x["pending"] > pending || x["dead"] != dead || x["succeeded"] < succeeded {
				return fmt.Sprint(x)
			}
			return ""
		})
	}
	const all = clients * rounds
	settled(0, all, all)
	refused := map[string]bool{}
	for _, a := range bad.all(t) {
		refused[a.id] = true
	}

	// What there is, and what would be done.
	if out := in.says(0, "clients.update", "executions", "list", "--status", "dead", "--handler", "1", "--limit", "3"); strings.Count(out, "\n") != 4 {
		t.Errorf("three of the dead letters:\n%s", out)
	}
	in.says(0, "\"next\":", "executions", "list", "--status", "dead", "--output", "json")
	in.says(0, "executions:\n  - id:", "executions", "list", "--output", "yaml")
	in.says(0, fmt.Sprintf("%d executions would be replayed\n", all), "executions", "replay", "--handler", "1", "--dry-run")
	in.says(0, fmt.Sprintf("%d executions would be replayed\nleft out: %d older than another one", clients, all-clients), "executions", "replay", "--all", "--latest", "--dry-run")
	in.says(0, "0 executions would be replayed\n", "executions", "replay", "--handler", "2", "--dry-run")
	in.says(0, "0 executions would be replayed\n", "executions", "replay", "--until", "1h", "--dry-run")
	in.says(2, "say which", "executions", "replay")
	in.says(2, "not both", "executions", "replay", "7", "--handler", "1")
	in.says(2, "want a number", "executions", "replay", "x")
	in.says(2, "--since \"soon\"", "executions", "replay", "--since", "soon")
	in.says(1, "one that is final", "executions", "replay", "--status", "pending")
	in.says(1, "want pending, held", "executions", "list", "--status", "gone")
	in.says(1, "there is no replay 99", "replays", "show", "99")
	in.says(1, "no longer kept", "executions", "show", "99999")
	in.says(1, "in use by process "+strconv.Itoa(in.proc.cmd.Process.Pid), "journal", "verify", "--config", in.config)

	// The receiver is well again. A replay begins, and Billhook is killed in the middle.
	bad.failing.Store(0)
	in.says(0, "waiting", "executions", "replay", "--handler", "1", "--text", "5", "--detach", "--rate", "1", "--until", "1h") // nothing matches
	in.says(0, "--status dead --handler 1", "executions", "replay", "--handler", "1", "--rate", "150", "--detach")
	type replay struct {
		ID       int
		State    string
		Replayed int
		Matching int
		By       string
	}
	show := func(id int) (r replay) {
		t.Helper()
		in.getJSON(fmt.Sprintf("/api/v1/replays/%d", id), &r)
		return r
	}
	eventually(t, time.Minute, func() string {
		if r := show(2); r.Replayed < all/4 {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
	in.kill()
	in.start()
	in.waitReady()
	if r := show(2); r.State == "done" {
		t.Error("it was done before it was killed")
	}
	eventually(t, time.Minute, func() string {
		if r := show(2); r.State != "done" || r.Replayed != all || r.Matching != all {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
	settled(0, all, 2*all)

	// Each once in the journal, in order at the receiver, under the id it had.
	ids := ordered(t, bad.all(t), 1)
	if len(ids) != all {
		t.Errorf("%d events came to the receiver that is mended, want %d", len(ids), all)
	}
	for _, id := range ids {
		if !refused[id] {
			t.Errorf("event %s was not refused before", id)
		}
	}
	if n := len(ordered(t, good.all(t), 2)); n != all {
		t.Errorf("%d events came to the other, want %d", n, all)
	}
	replays := 0
	file := filepath.Join(in.dir, "all.ndjson")
	in.says(0, fmt.Sprintf("%d executions are in %s", 3*all, file), "executions", "export", "--full", "--file", file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	of := map[int]bool{}
	for line := range bytes.Lines(b) {
		var x struct {
			Execution struct {
				ReplayOf int `json:"replay_of"`
				Handler  int
			}
			Attempts []struct{ Outcome string }
			Payload  struct{ Event struct{ ID string } }
		}
		if err := json.Unmarshal(line, &x); err != nil {
			t.Fatal(err)
		}
		if len(x.Attempts) == 0 || !strings.HasPrefix(x.Payload.Event.ID, "1-") {
			t.Errorf("%s", line)
		}
		if n := x.Execution.ReplayOf; n != 0 {
			replays++
			of[n] = true
		}
	}
	if replays != all || len(of) != all {
		t.Errorf("%d replays of %d executions, want %d", replays, len(of), all)
	}
	if out := in.says(0, "", "executions", "list", "--status", "dead", "--unreplayed"); strings.Count(out, "\n") != 1 {
		t.Errorf("dead letters that were not replayed:\n%s", out)
	}
	if out := in.says(0, "", "executions", "export", "--status", "dead"); strings.Count(out, "\n") != all {
		t.Errorf("%d dead letters on standard output", strings.Count(out, "\n"))
	}

	// One more, by its id, and once more on purpose.
	var list struct{ Executions []struct{ ID int } }
	in.getJSON("/api/v1/executions?status=dead&order=oldest&limit=3", &list)
	first := strconv.Itoa(list.Executions[0].ID)
	in.says(1, "execution "+first+" was replayed already, as execution ", "executions", "replay", first)
	if out := in.says(0, "replayed  1", "executions", "replay", first, "--again"); !strings.Contains(out, "state     done") {
		t.Error(out)
	}
	in.says(0, "left out  2 replayed before", "executions", "replay", first, first, strconv.Itoa(list.Executions[1].ID), "99999", "--rate", "1000", "--output", "table")
	if out := in.says(0, "replayed as", "executions", "show", first); !strings.Contains(out, "attempt 1, ") || !strings.Contains(out, `"events_id": "clients.update"`) {
		t.Error(out)
	}
	settled(0, all, 2*all+1)
	if out := in.says(0, "done", "replays", "list"); strings.Count(out, "\n") != 5 {
		t.Errorf("four replays:\n%s", out)
	}
	in.says(0, `"matching": `+strconv.Itoa(all), "replays", "show", "2", "--output", "json")
	in.says(0, "state: done", "replays", "cancel", "2", "--output", "yaml") // it has ended already

	// For a handler that is disabled it is held, for one that is archived refused.
	put := func(status string) {
		t.Helper()
		write(t, in.handlers, handlers(status))
		eventually(t, 30*time.Second, func() string {
			var list struct{ Handlers []struct{ Status string } }
			if in.getJSON("/api/v1/handlers", &list); list.Handlers[0].Status != status {
				return list.Handlers[0].Status
			}
			return ""
		})
	}
	put("disabled")
	in.says(0, "replayed  1", "executions", "replay", first, "--again")
	eventually(t, 30*time.Second, func() string {
		if x := in.executions(); x["held"] != 1 {
			return fmt.Sprint(x)
		}
		return ""
	})
	put("enabled")
	settled(0, all, 2*all+2)
	put("archived")
	in.says(1, "was for handler 1, which is archived", "executions", "replay", first, "--again")
	in.says(0, fmt.Sprintf("0 executions would be replayed\nleft out: %d of handlers that are archived", all), "executions", "replay", "--handler", "1", "--again", "--dry-run")
	put("enabled")

	// One that is cancelled makes no more.
	in.says(0, "waiting", "executions", "replay", "--all", "--again", "--rate", "2", "--detach")
	in.says(0, "cancelled", "replays", "cancel", "6")
	in.kill()
	in.start()
	in.waitReady()
	if r := show(6); r.State != "cancelled" || r.Replayed > 20 {
		t.Errorf("%+v", r)
	}

	// A journal of one that was killed is sound as it is, and looking changes nothing.
	settled(0, all, 2*all+1)
	in.kill()
	before := folder(t, in.journal)
	if out := in.says(0, "OK: journal "+in.journal+" holds together: ", "journal", "verify", "--config", in.config); !strings.Contains(out, " 0 of them pending or held") {
		t.Error(out)
	}
	in.says(0, `"ok": true`, "journal", "verify", "--path", in.journal, "--output", "json")
	if after := folder(t, in.journal); !slices.Equal(before, after) {
		t.Errorf("before %v\nafter  %v", before, after)
	}
	in.says(1, "there is no journal in", "journal", "verify", "--path", in.dir)
	damage(t, in.journal)
	in.says(1, "DAMAGED: ", "journal", "verify", "--path", in.journal)
	in.says(1, `"ok": false`, "journal", "verify", "--path", in.journal, "--output", "json")
}

// folder is what stands in a folder, with sizes and times.
func folder(t *testing.T, path string) (all []string) {
	t.Helper()
	err := filepath.Walk(path, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			at := info.ModTime()
			if info.Name() == "LOCK" {
				at = time.Time{} // holding a lock touches it
			}
			all = append(all, fmt.Sprint(path, info.Size(), at))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// damage turns bytes about in the middle of each table of a store.
func damage(t *testing.T, path string) {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(path, "store", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("%d tables, %v", len(tables), err)
	}
	for _, name := range tables {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(64, len(b)/2) {
			b[len(b)/2-32+i] ^= 0xff
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
