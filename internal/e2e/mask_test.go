package e2e

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
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

// What stands in masked and excluded columns, long and short, and what may be seen.
// The parenthesis makes the long one a bad regular expression, whose error quotes it.
const (
	secretLong  = "SECRET7f3(value"
	secretShort = "s7f3Q9z"
	plainMark   = "Visible5d1"
)

const maskSchema = `
CREATE TABLE clients (id bigint PRIMARY KEY, name text, status text DEFAULT 'active', tax_id text, pin text, meta jsonb, notes text, large text, m_dt timestamptz DEFAULT now());
ALTER TABLE clients ALTER large SET STORAGE EXTERNAL;
CREATE TABLE clients_balances (clients_id bigint PRIMARY KEY, balance numeric, iban text, history text);
CREATE TABLE clients_custom_fields (clients_id bigint, field_key text, value text, PRIMARY KEY (clients_id, field_key));
CREATE TABLE accounts (id bigint PRIMARY KEY, clients_id bigint, name text, password text, notes text, extra jsonb);
CREATE TABLE clients_packages (id bigint PRIMARY KEY, clients_id bigint, condition text, status text, period_start_dt timestamptz, pin text, notes text);
INSERT INTO clients SELECT i, 'Visible5d1', 'active', 'SECRET7f3(value', 's7f3Q9z', '{"k": "SECRET7f3(value"}', 'SECRET7f3(value', repeat('SECRET7f3(value', 1000) FROM generate_series(1, 3) i;
INSERT INTO clients_balances SELECT i, 5, 's7f3Q9z', 'SECRET7f3(value' FROM generate_series(1, 3) i;
INSERT INTO clients_custom_fields SELECT i, 'crm', 'SECRET7f3(value' FROM generate_series(1, 3) i;
INSERT INTO accounts SELECT i, i, 'Visible5d1', 's7f3Q9z', 'SECRET7f3(value', '{"k": "SECRET7f3(value"}' FROM generate_series(1, 3) i;
INSERT INTO clients_packages SELECT i, i, 'new', 'pending', NULL, 's7f3Q9z', 'SECRET7f3(value' FROM generate_series(1, 3) i;
`

const maskMapping = `
entities:
  clients:
    table: clients
    key: id
    ignore: m_dt
    mask: [tax_id, pin, meta, large, iban, value]
    exclude: [notes, history]
    truncate: true
    archive: {column: status, value: archive}
    balance: {table: clients_balances, key: clients_id, column: balance}
    custom_fields: {table: clients_custom_fields, client: clients_id, name: field_key, value: value}
  accounts: {table: accounts, key: id, client: clients_id, mask: [password, extra], exclude: notes}
  packages:
    table: clients_packages
    key: id
    client: clients_id
    mask: [pin]
    exclude: [notes]
    activate: {column: condition, value: activated}
    deactivate: {column: condition, value: deactivated}
    renew: {column: period_start_dt, moves: forward}
    close: {column: status, value: archive}
events:
  clients.pin_changed: {entity: clients, changes: pin}
  clients.pin_gone: {entity: clients, becomes: {column: pin, set: false}}
  clients.odd: {entity: clients, on: [insert, update], when: '"x".matches(new.tax_id)'}
`

// maskSteps make every event type, and touch every masked and excluded column.
func maskSteps() []string {
	return []string{
		`INSERT INTO clients VALUES (9, 'Visible5d1', 'active', 'SECRET7f3(value', 's7f3Q9z', '{"k": "SECRET7f3(value"}', 'SECRET7f3(value', repeat('SECRET7f3(value', 1000));
		 INSERT INTO clients_balances VALUES (9, 1, 's7f3Q9z', 'SECRET7f3(value');
		 INSERT INTO clients_custom_fields VALUES (9, 'crm', 's7f3Q9z')`,
		`UPDATE clients SET name = name || '!', tax_id = tax_id || 'x', notes = notes || 'x', meta = meta || '{"l": "s7f3Q9z"}'`,
		`UPDATE clients SET pin = 'x' || left(pin, 6), large = large || 'x'`,
		`UPDATE clients SET pin = NULL`,
		`UPDATE clients SET pin = 's7f3Q9z'`,
		`UPDATE clients_balances SET balance = -balance, iban = iban || 'x', history = history || 'x'`,
		`UPDATE clients_balances SET balance = -balance`,
		`UPDATE clients_custom_fields SET value = value || 'x'`,
		`INSERT INTO clients_custom_fields VALUES (1, 'other', 'SECRET7f3(value'); DELETE FROM clients_custom_fields WHERE clients_id = 2`,
		`INSERT INTO accounts VALUES (9, 9, 'Visible5d1', 's7f3Q9z', 'SECRET7f3(value', '["SECRET7f3(value"]')`,
		`UPDATE accounts SET password = password || 'SECRET7f3(value', extra = '{"z": "s7f3Q9z"}', notes = 's7f3Q9z'`,
		`UPDATE accounts SET id = id + 100`,
		`DELETE FROM accounts WHERE id > 101`,
		`INSERT INTO clients_packages VALUES (9, 9, 'new', 'pending', NULL, 's7f3Q9z', 'SECRET7f3(value')`,
		`UPDATE clients_packages SET condition = 'activated', period_start_dt = '2026-01-01', pin = 'x'`,
		`UPDATE clients_packages SET period_start_dt = '2026-02-01', pin = 's7f3Q9z'`,
		`UPDATE clients_packages SET condition = 'deactivated', notes = 's7f3Q9z'`,
		`UPDATE clients_packages SET status = 'archive'`,
		`UPDATE clients SET status = 'archive'`,
		`DELETE FROM clients WHERE id = 2`,
		`TRUNCATE clients, clients_balances, clients_custom_fields, accounts, clients_packages`,
	}
}

// echoHandlers tells every event in every format to those who fail and echo what
// they got, by HTTP and by script.
const echoHandlers = `version: 1
defaults: {retry: {attempts: 2, initial: 10ms, max: 20ms}, breaker: {failures: 0}}
handlers:
  - {id: 1, name: a, event: "*", http: {url: "$URL/500"}}
  - {id: 2, name: b, event: "*", format: provisioning, http: {url: "$URL/400"}}
  - {id: 3, name: c, event: "*", format: cloudevents, http: {url: "$URL/200"}}
  - {id: 4, name: d, event: "*", template: '{"d": {{.data}}, "t": "{{.changed}}"}', http: {url: "$URL/200"}}
  - {id: 5, name: e, event: "*", template: '{{.data}} {{.data.nosuch}}', content_type: text/plain, http: {url: "$URL/200"}}
  - {id: 6, name: f, event: "*", template: '{{.data}} and more', http: {url: "$URL/200"}}
  - {id: 7, name: g, event: "*", when: 'int(string(data.tax_id)) > 1', http: {url: "$URL/200"}}
  - {id: 8, name: h, event: "*", script: {path: "$SCRIPT"}}
`

// TestMasks puts secrets into every masked and excluded column, lets everything
// happen to them, and then looks for the secrets wherever Billhook could have left
// them: with receivers, in the journal's files, in the log at its most talkative,
// in what check prints, and on every page.
func TestMasks(t *testing.T) {
	t.Parallel()
	for _, identity := range []string{"DEFAULT", "FULL"} {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			testMasks(t, identity)
		})
	}
}

func testMasks(t *testing.T, identity string) {
	db := pgtest.NewDatabase(t, maskSchema)
	for _, table := range []string{"clients", "clients_balances", "clients_custom_fields", "accounts", "clients_packages"} {
		db.Exec(t, "ALTER TABLE "+table+" REPLICA IDENTITY "+identity)
	}
	var received bodies
	server := httptest.NewServer(&received)
	defer server.Close()
	echo := filepath.Join(t.TempDir(), "echo")
	if err := os.WriteFile(echo, []byte("#!/bin/sh\ncat\nenv >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	in := install(t, db.DSN, "version: 1\nsource: {dsn: \"${DSN}\", slot: "+db.Name+", publication: "+db.Name+"}\njournal: {path: \"${JOURNAL}\"}\nhttp: {listen: \"${LISTEN}\"}\nlog: {level: debug}\n"+maskMapping,
		strings.NewReplacer("$URL", server.URL, "$SCRIPT", echo).Replace(echoHandlers))
	found := map[string][]byte{} // where -> what stood there
	out, err := in.command("check", "--config", in.config, "--handlers", in.handlers).CombinedOutput()
	if err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	found["check before"] = out
	in.start()
	in.waitReady()
	for _, sql := range maskSteps() {
		db.Exec(t, sql)
	}
	seen := map[string]bool{}
	eventually(t, time.Minute, func() string {
		in.alive()
		var last struct{ Executions []struct{ ID uint64 } }
		if in.getJSON("/api/v1/executions?event=clients.truncate", &last); len(last.Executions) == 0 {
			return "the last event has not come"
		}
		pending := 0
		for status, n := range in.executions() {
			if status != "succeeded" && status != "dead" && status != "skipped" {
				pending += n
			}
		}
		if pending > 0 {
			return fmt.Sprintf("%d executions are pending", pending)
		}
		return ""
	})
	for _, page := range []string{"/", "/metrics", "/readyz", "/healthz", "/api/v1/status", "/api/v1/handlers", "/api/v1/executions.ndjson", "/api/v1/executions.ndjson?full=true"} {
		_, body, err := in.get(page)
		if err != nil {
			t.Fatal(err)
		}
		found[page] = body
	}
	// Every execution with its event and its attempts.
	for before := uint64(0); ; {
		var page struct {
			Executions []struct {
				ID    uint64
				Event string
			}
		}
		path := "/api/v1/executions?limit=500"
		if before > 0 {
			path += fmt.Sprintf("&before=%d", before)
		}
		in.getJSON(path, &page)
		if len(page.Executions) == 0 {
			break
		}
		_, body, err := in.get(path)
		if err != nil {
			t.Fatal(err)
		}
		found[path] = body
		for _, x := range page.Executions {
			seen[x.Event] = true
			before = x.ID
			one := fmt.Sprintf("/api/v1/executions/%d", x.ID)
			if _, found[one], err = in.get(one); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err = in.command("check", "--config", in.config, "--handlers", in.handlers).CombinedOutput(); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	found["check"] = out
	in.stop()
	err = filepath.WalkDir(in.journal, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		found["journal/"+filepath.Base(path)] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found["the log"], err = os.ReadFile(in.log); err != nil {
		t.Fatal(err)
	}
	for i, b := range received.all() {
		found[fmt.Sprintf("body %d", i)] = b
	}

	visible := map[string]bool{}
	for _, where := range slices.Sorted(maps.Keys(found)) {
		what := found[where]
		kind, _, _ := strings.Cut(where, "/")
		kind, _, _ = strings.Cut(kind, " ")
		if bytes.Contains(what, []byte(plainMark)) {
			visible[kind] = true
		}
		for _, secret := range []string{secretLong, secretShort, "SECRET7f3", "s7f3"} {
			if i := bytes.Index(what, []byte(secret)); i >= 0 {
				t.Errorf("%s stands in %s: %q", secret, where, what[max(0, i-100):min(len(what), i+60)])
				break
			}
		}
	}
	// Were nothing to be seen at all, not seeing the secrets would prove nothing.
	for _, kind := range []string{"journal", "body", ""} {
		if !visible[kind] {
			t.Errorf("what may be seen is not to be found either: %q", kind)
		}
	}
	if log := string(found["the log"]); !strings.Contains(log, "clients.odd") || !strings.Contains(log, "level=DEBUG") {
		t.Error("the log does not tell of the condition that cannot be evaluated, or is not at debug level")
	}
	var lacking []string
	for _, typ := range strings.Fields(`clients.create clients.update clients.archive clients.delete clients.truncate clients.custom_fields.update clients.balance_zero
		clients.balance_notzero clients.pin_changed clients.pin_gone clients.accounts.create clients.accounts.update clients.accounts.delete clients.packages.assign
		clients.packages.activate clients.packages.renew clients.packages.deactivate clients.packages.close`) {
		if !seen[typ] {
			lacking = append(lacking, typ)
		}
	}
	if len(lacking) > 0 {
		t.Errorf("the steps have not made %s", strings.Join(lacking, ", "))
	}
}

// bodies is an HTTP server that echoes what it gets, with the status that the path
// names, and keeps it.
type bodies struct {
	mu   sync.Mutex
	list [][]byte
}

func (b *bodies) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b.mu.Lock()
	b.list = append(b.list, []byte(fmt.Sprint(r.URL, r.Header)), body)
	b.mu.Unlock()
	switch r.URL.Path {
	case "/500":
		w.WriteHeader(http.StatusInternalServerError)
	case "/400":
		w.WriteHeader(http.StatusBadRequest)
	}
	_, _ = w.Write(body) // whoever asked may be gone
}

func (b *bodies) all() [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.list)
}
