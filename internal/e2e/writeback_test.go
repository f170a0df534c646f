package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// replier is a receiver that answers by the object, and keeps what it was told.
type replier struct {
	url string

	mu      sync.Mutex
	answers map[string]func() string // by object; none: an empty answer
	told    []string                 // "handler event object"
}

func newReplier(t *testing.T) *replier {
	r := &replier{answers: map[string]func() string{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var p struct {
			Event struct {
				Type   string          `json:"events_id"`
				Object json.RawMessage `json:"object_id"`
			}
		}
		if err != nil || json.Unmarshal(body, &p) != nil {
			return
		}
		id := req.Header.Get("Billhook-Handler")
		r.mu.Lock()
		r.told = append(r.told, fmt.Sprintf("%s %s %s", id, p.Event.Type, p.Event.Object))
		f := r.answers[string(p.Event.Object)]
		r.mu.Unlock()
		if f == nil || id == "3" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		answer := f()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer) // billhook may be gone
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *replier) answer(object string, f func() string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[object] = f
}

// take returns what was told of an object, and forgets it.
func (r *replier) take(object string) (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = slices.DeleteFunc(r.told, func(s string) bool {
		ours := strings.HasSuffix(s, " "+object)
		if ours {
			list = append(list, strings.TrimSuffix(s, " "+object))
		}
		return ours
	})
	return list
}

// TestWriteBack: handlers of both kinds answer with columns; what becomes of that in
// the row, on the attempt, and in what is told afterwards.
func TestWriteBack(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, nil)
	db := pgtest.NewDatabaseOn(t, pg, `
		CREATE TABLE clients (id int PRIMARY KEY, name text, status varchar(10) NOT NULL DEFAULT 'active', balance numeric(20,6) NOT NULL DEFAULT 10, meta jsonb, large text);
		ALTER TABLE clients ALTER large SET STORAGE EXTERNAL;
		INSERT INTO clients (id, name, large) SELECT i, 'Client ' || i, repeat('x', 5000) FROM generate_series(1, 20) i;
		CREATE PUBLICATION p FOR TABLE clients`)
	_, dsn := db.Role(t, "REPLICATION", "GRANT SELECT, UPDATE (status, balance, meta, large) ON clients TO $role")
	r := newReplier(t)
	script := filepath.Join(t.TempDir(), "unblock")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat >/dev/null\necho 'unblocking'\necho '{\"data\": {\"status\": \"active\", \"meta\": {\"by\": \"'$BILLHOOK_OBJECT_ID'\"}}}'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	in := install(t, dsn, `version: 1
source: {dsn: "${DSN}", slot: write, publication: p}
entities:
  clients: {table: public.clients, key: [id], balance: {column: balance}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`, fmt.Sprintf(`version: 1
handlers:
  - {id: 1, name: Block, event: clients.balance_zero, write_back: [status, balance, meta, large], timeout: 20s, retry: {initial: 100ms}, http: {url: %[1]q}}
  - {id: 2, name: Unblock, event: clients.balance_notzero, write_back: [status, meta], script: {path: %[2]q}}
  - {id: 3, name: Observe, event: "clients.*", priority: 9, http: {url: %[1]q}}
  - {id: 4, name: No write-back, event: clients.delete, http: {url: %[1]q}}
`, r.url, script))
	in.start()
	in.waitReady()

	row := func(id int, want string) {
		t.Helper()
		got := pgtest.Value[string](t, db, "SELECT concat_ws(' ', status, trim_scale(balance), meta) FROM clients WHERE id = $1", id)
		if got != want {
			t.Errorf("client %d is %q, want %q", id, got, want)
		}
	}
	settled := func() {
		t.Helper()
		position := pgtest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text")
		db.WaitFor(t, "SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots", position)
		eventually(t, 20*time.Second, func() string {
			if x := in.executions(); x["pending"] > 0 {
				return fmt.Sprintf("executions: %v", x)
			}
			return ""
		})
	}
	told := func(id int, want ...string) {
		t.Helper()
		if got := r.take(fmt.Sprint(id)); !slices.Equal(got, want) {
			t.Errorf("of client %d was told %q, want %q", id, got, want)
		}
	}
	results := map[string]float64{}
	counted := func(handler int, result string) {
		t.Helper()
		name := fmt.Sprintf(`billhook_writeback_total{handler="%d",result=%q}`, handler, result)
		results[name]++
		if got := in.metric(name); got != results[name] {
			t.Errorf("%s is %v, want %v", name, got, results[name])
		}
	}
	// last returns the last attempt of a handler at an object.
	type attempt struct {
		Number         int
		Outcome, Error string
		Response       struct{ Head []string }
	}
	last := func(handler, object int) attempt {
		t.Helper()
		var page struct {
			Executions []struct {
				ID     uint64
				Object string
			}
		}
		in.getJSON(fmt.Sprintf("/api/v1/executions?handler=%d", handler), &page)
		i := slices.IndexFunc(page.Executions, func(x struct {
			ID     uint64
			Object string
		},
		) bool {
			return x.Object == fmt.Sprint(object)
		})
		if i < 0 {
			t.Fatalf("handler %d was never called for %d", handler, object)
		}
		var x struct{ Attempts []attempt }
		in.getJSON(fmt.Sprintf("/api/v1/executions/%d", page.Executions[i].ID), &x)
		return x.Attempts[len(x.Attempts)-1]
	}
	noted := func(handler, object int, want string) {
		t.Helper()
		a := last(handler, object)
		for _, line := range a.Response.Head {
			if text, ok := strings.CutPrefix(line, "billhook-note: "); ok && text == want && a.Outcome == "success" {
				return
			}
		}
		t.Errorf("the attempt for %d is %+v, want the note %q", object, a, want)
	}
	always := func(text string) func() string { return func() string { return text } }

	t.Log("written over HTTP and by a script; nothing is told of it")
	r.answer("1", always(`{"data": {"status": "blocked", "meta": {"limit": 12345678901234567890.10}}}`))
	db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 1")
	settled()
	row(1, `blocked -1 {"limit": 12345678901234567890.10}`)
	noted(1, 1, "write-back applied: status, meta")
	counted(1, "applied")
	told(1, "1 clients.balance_zero", "3 clients.balance_zero")
	db.Exec(t, "UPDATE clients SET balance = 1 WHERE id = 1")
	settled()
	row(1, `active 1 {"by": "1"}`)
	noted(2, 1, "write-back applied: status, meta")
	counted(2, "applied")
	told(1, "3 clients.balance_notzero")
	db.Exec(t, "UPDATE clients SET status = 'held' WHERE id = 1")
	settled()
	told(1, "3 clients.update")

	t.Log("over the threshold by a write-back: not told, and the next way down is")
	r.answer("2", always(`{"data": {"balance": "100"}}`))
	for range 2 {
		db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 2")
		settled()
		row(2, "active 100")
		told(2, "1 clients.balance_zero", "3 clients.balance_zero")
		counted(1, "applied")
	}

	t.Log("a conflict, values that will not do, and columns that may not be written")
	r.answer("3", func() string {
		db.Exec(t, "UPDATE clients SET status = 'vip' WHERE id = 3")
		return `{"data": {"status": "blocked", "balance": 5}}`
	})
	db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 3")
	settled()
	row(3, "vip -1")
	noted(1, 3, `write-back conflict, nothing was written: since the event the row has got another value of "status"`)
	counted(1, "conflict")
	told(3, "1 clients.balance_zero", "3 clients.balance_zero", "3 clients.update")
	for id, c := range map[int]struct{ answer, result, note string }{
		4: {`{"data": {"status": "much too long"}}`, "error", `write-back error, nothing was written: value too long for type character varying(10) (SQLSTATE 22001)`},
		5: {`{"data": {"status": null}}`, "error", `write-back error, nothing was written: null value in column "status" of relation "clients" violates not-null constraint (SQLSTATE 23502)`},
		6: {`{"data": {"status": "blocked", "name": "x"}}`, "refused", `write-back refused, nothing was written: column "name" is not in the handler's write_back`},
		7: {`{"data": {"large": "x"}}`, "refused", `write-back refused, nothing was written: the event does not have column "large", so that nobody can tell whether it has changed since`},
		8: {`{"data": {"status": "active"}}`, "unchanged", `write-back: the row holds it already`},
		9: {`{"data": {"status": "a", "status": "b"}}`, "refused", `write-back refused, nothing was written: the answer's "data": column "status" is in it twice`},
	} {
		r.answer(fmt.Sprint(id), always(c.answer))
		db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = $1", id)
		settled()
		row(id, "active -1")
		noted(1, id, c.note)
		counted(1, c.result)
		told(id, "1 clients.balance_zero", "3 clients.balance_zero")
	}
	r.answer("10", always(`{"data": {"status": "blocked"}}`))
	db.Exec(t, "DELETE FROM clients WHERE id = 10")
	settled()
	if a := last(4, 10); a.Outcome != "success" || strings.Contains(strings.Join(a.Response.Head, "\n"), "billhook-note") {
		t.Errorf("a handler without write_back: %+v", a)
	}
	r.answer("11", func() string {
		db.Exec(t, "DELETE FROM clients WHERE id = 11")
		return `{"data": {"status": "blocked"}}`
	})
	db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 11")
	settled()
	noted(1, 11, "write-back conflict, nothing was written: the row is not there any more")
	counted(1, "conflict")

	t.Log("a row that is locked is waited for")
	tx, err := db.Connect(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	locked := make(chan struct{})
	lock := sync.OnceFunc(func() {
		defer close(locked)
		if _, err := tx.Exec(t.Context(), "UPDATE clients SET meta = '1' WHERE id = 12"); err != nil {
			t.Error(err)
		}
	})
	r.answer("12", func() string {
		lock()
		return `{"data": {"status": "blocked"}}`
	})
	db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 12")
	eventually(t, 20*time.Second, func() string {
		if r.count("12") < 2 {
			return "the handler was not called again"
		}
		return ""
	})
	<-locked
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.answer("12", always(`{"data": {"status": "blocked"}}`))
	settled()
	row(12, "blocked -1 1")
	noted(1, 12, "write-back applied: status")

	t.Log("a reload that names columns which may not be written, and one that does not")
	good, err := os.ReadFile(in.handlers)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ columns, log string }{
		{"status, name", `may not update column \"name\"`}, {"status, nosuch", `has no column \"nosuch\"`}, {"status", `msg="handlers reloaded"`},
	} {
		write(t, in.handlers, strings.Replace(string(good), "[status, meta]", "["+c.columns+"]", 1))
		eventually(t, 20*time.Second, func() string {
			if b, err := os.ReadFile(in.log); err != nil || !strings.Contains(string(b), c.log) {
				return fmt.Sprintf("with %s the log does not say %s, %v", c.columns, c.log, err)
			}
			return ""
		})
	}

	t.Log("killed after the commit and before the outcome is recorded")
	const id = 13
	began, release := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(began) })
	r.answer(fmt.Sprint(id), func() string {
		once()
		<-release
		return `{"data": {"status": "blocked"}}`
	})
	db.Exec(t, "UPDATE clients SET balance = -1 WHERE id = $1", id)
	<-began
	// A commit waits for a standby that does not exist, and comes true all the same.
	db.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	db.Exec(t, "SELECT pg_reload_conf()")
	db.WaitFor(t, "SELECT current_setting('synchronous_standby_names') = 'nobody'")
	close(release)
	db.WaitFor(t, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'billhook write-back'")
	in.kill()
	db.Exec(t, "ALTER SYSTEM RESET synchronous_standby_names")
	db.Exec(t, "SELECT pg_reload_conf()")
	db.WaitFor(t, "SELECT status = 'blocked' FROM clients WHERE id = $1", id)
	in.start()
	in.waitReady()
	settled()
	row(id, "blocked -1")
	told(id, "1 clients.balance_zero", "1 clients.balance_zero", "3 clients.balance_zero")
	noted(1, id, "write-back: the row holds it already")
	if a := last(1, id); a.Number != 1 {
		t.Errorf("the attempt that was broken off counts: %+v", a)
	}
}

func (r *replier) count(object string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.told {
		if strings.HasPrefix(s, "1 ") && strings.HasSuffix(s, " "+object) {
			n++
		}
	}
	return n
}
