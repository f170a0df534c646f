package demo

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/billhook/billhook/internal/pgtest"
)

const testHandlers = `
version: 1
defaults: {timeout: 10s}
handlers:
  - {id: 1, name: Switch, events: [clients.balance_zero, clients.balance_notzero], script: {path: "${SWITCH_SCRIPT}"}}
  - {id: 2, name: CRM, event: "clients.*", http: {url: "${RECEIVER_URL}/crm", secret_env: CRM_SECRET}}
  - {id: 3, name: Vip, event: clients.update, when: data.vip, blocking: false, http: {url: "${RECEIVER_URL}/vip"}}
  - {id: 4, name: Off, status: disabled, event: "*", http: {url: "${RECEIVER_URL}/off"}}
`

// standIn plays Billhook: it reads the ledger itself and delivers what stands
// there, so that the demo's own parts can be tested, and that it finds fault.
type standIn struct {
	// forge, if any, delivers in deliver's place.
	forge func(s *standIn, e entry, body string) error

	// unsigned leaves some requests without a signature.
	unsigned bool

	env   map[string]string
	owner string

	done chan error
}

func (s *standIn) attach(ctx context.Context, c AttachConfig) (*Attached, error) {
	for _, path := range []string{c.Config, c.Handlers, c.Env["SWITCH_SCRIPT"]} {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	// The least-privilege role must do for what Billhook does.
	role, err := pgx.Connect(ctx, c.Env["BILLHOOK_DSN"])
	if err != nil {
		return nil, err
	}
	defer role.Close(ctx)
	for _, sql := range []string{
		"SELECT id, name FROM clients", "SELECT * FROM clients_balances", "SELECT * FROM accounts",
		"SELECT * FROM pg_create_logical_replication_slot('billhook', 'pgoutput')",
		"SELECT pg_logical_emit_message(false, 'billhook', 'here')",
	} {
		if _, err := role.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("%s: %w", sql, err)
		}
	}
	for _, sql := range []string{"SELECT notes FROM clients", "DELETE FROM accounts", "SELECT * FROM transactions"} {
		if _, err := role.Exec(ctx, sql); err == nil {
			return nil, fmt.Errorf("the role may %s", sql)
		}
	}
	s.env, s.owner = c.Env, c.OwnerDSN
	s.done = make(chan error, 1)
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	failed := make(chan error, 1)
	go func() {
		err := s.run(run)
		if err != nil {
			failed <- err
		}
		s.done <- err
	}()
	return &Attached{
		Console: "http://" + c.Listen, Failed: failed,
		Executions: func(context.Context) ([]ExecutionCount, error) {
			return []ExecutionCount{{1, "succeeded", 5}, {2, "dead", 1}, {2, "pending", 0}}, nil
		},
		Stop: func(context.Context) error { cancel(); return <-s.done },
	}, nil
}

func (s *standIn) run(ctx context.Context) error {
	work := context.WithoutCancel(ctx)
	conn, err := pgx.Connect(work, s.owner)
	if err != nil {
		return err
	}
	defer conn.Close(work)
	type numbered struct {
		entry
		seq int64
	}
	sent := map[int64]int64{} // the last number of each client
	transaction, ordinal := 0, 0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var end string
		if err := conn.QueryRow(work, "SELECT pg_current_wal_lsn()::text").Scan(&end); err != nil {
			return err
		}
		// A deleted client comes after its children.
		rows, err := conn.Query(work, `SELECT client, xid, type, object, seq FROM ledger.events
			ORDER BY client, max(seq) OVER (PARTITION BY client, xid), type = 'clients.delete', seq`)
		if err != nil {
			return err
		}
		entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e numbered, err error) {
			var xid int64
			err = row.Scan(&e.client, &xid, &e.typ, &e.object, &e.seq)
			e.xid = uint32(xid)
			return e, err
		})
		if err != nil {
			return err
		}
		entries = slices.DeleteFunc(entries, func(e numbered) bool { return e.seq <= sent[e.client] })
		var last entry
		for _, e := range entries {
			if e.xid != last.xid || e.client != last.client {
				transaction, ordinal = transaction+1, 0
			}
			ordinal++
			last = e.entry
			sent[e.client] = max(sent[e.client], e.seq)
			body := fmt.Sprintf(`{"event":{"dt":%q,"events_id":%q,"object_id":%s,"id":"1-0/%X-%d","lane":"%d","xid":%d},"data":{},"changed":{}}`,
				time.Now().UTC().Format("2006-01-02T15:04:05.000000-07:00"), e.typ, e.object, transaction, ordinal, e.client, e.xid)
			if s.forge != nil {
				err = s.forge(s, e.entry, body)
			} else {
				err = s.deliver(e.entry, body)
			}
			if err != nil {
				return err
			}
		}
		if _, err := conn.Exec(work, "SELECT pg_replication_slot_advance('billhook', $1::pg_lsn)", end); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// deliver calls the handlers that testHandlers gives an event to.
func (s *standIn) deliver(e entry, body string) error {
	if strings.HasPrefix(e.typ, "clients.balance_") {
		cmd := exec.Command(s.env["SWITCH_SCRIPT"], s.env["SWITCH_DIR"])
		cmd.Env = []string{"BILLHOOK_EVENT=" + e.typ, "BILLHOOK_OBJECT_ID=" + e.object, "BILLHOOK_HANDLER=1", "BILLHOOK_ATTEMPT=1"}
		cmd.Stdin = strings.NewReader(body)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("the switch: %w: %s", err, out)
		}
	}
	if err := s.post(2, e, body); err != nil {
		return err
	}
	if e.typ == "clients.update" && e.client%2 == 0 {
		return s.post(3, e, body)
	}
	return nil
}

func (s *standIn) post(handler int, e entry, body string) error {
	for attempt := 1; attempt <= 2; attempt++ {
		req, err := http.NewRequest(http.MethodPost, s.env["RECEIVER_URL"]+"/crm", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Billhook-Handler", fmt.Sprint(handler))
		req.Header.Set("Billhook-Attempt", fmt.Sprint(attempt))
		if handler == 2 && !(s.unsigned && e.typ == "clients.create") {
			w, err := webhooks.NewWebhook(s.env["CRM_SECRET"])
			if err != nil {
				return err
			}
			a, err := readArrival([]byte(body), "")
			if err != nil {
				return err
			}
			now := time.Now()
			signature, err := w.Sign(a.id, now, []byte(body))
			if err != nil {
				return err
			}
			req.Header.Set("webhook-id", a.id)
			req.Header.Set("webhook-timestamp", fmt.Sprint(now.Unix()))
			req.Header.Set("webhook-signature", signature)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
	}
	return errors.New("refused twice")
}

func TestRun(t *testing.T) {
	var out bytes.Buffer
	s := &standIn{}
	err := Run(t.Context(), Options{
		Config: []byte("version: 1\n"), Handlers: []byte(testHandlers), Attach: s.attach,
		For: 3 * time.Second, Clients: 40, Rate: 60, Refuse: 200, Out: &out,
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{
		"Postgres", "Console: http://127.0.0.1:", "EVENTS", "HANDLERS", "EXECUTIONS", "succeeded",
		"blocks client", "answers 503", "attempt 2", "OK The ledger",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if strings.Contains(out.String(), "\x1b[") {
		t.Error("there are colours in what is no terminal")
	}
	// Its own folder: another demo may run on this machine.
	if _, err := os.Stat(filepath.Dir(s.env["SWITCH_DIR"])); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %s, %v", filepath.Dir(s.env["SWITCH_DIR"]), err)
	}
	if t.Failed() || testing.Verbose() {
		t.Log(out.String())
	}
}

// TestRunFindsFault sees that a Billhook that loses, doubles, swaps or makes up
// events does not get away with it.
func TestRunFindsFault(t *testing.T) {
	for name, c := range map[string]struct {
		forge func(s *standIn, e entry, body string) error
		want  string
	}{
		"does not sign": {func(s *standIn, e entry, body string) error {
			s.unsigned = true
			return s.deliver(e, body)
		}, "without a signature"},
		"loses": {func(s *standIn, e entry, body string) error {
			if e.typ == "clients.create" {
				return nil
			}
			return s.deliver(e, body)
		}, "never came"},
		"makes up": {func(s *standIn, e entry, body string) error {
			if err := s.deliver(e, body); err != nil {
				return err
			}
			if e.typ != "clients.create" {
				return nil
			}
			return s.post(2, e, strings.Replace(body, "clients.create", "clients.archive", 1))
		}, "stands for two events"},
		"changes its mind": {func(s *standIn, e entry, body string) error {
			if err := s.deliver(e, body); err != nil {
				return err
			}
			return s.post(2, e, strings.Replace(body, `"changed":{}`, `"changed":{"a":1}`, 1))
		}, "two different payloads"},
		"blocks the wrong one": {func(s *standIn, e entry, body string) error {
			if e.typ == "clients.balance_zero" {
				if err := os.WriteFile(filepath.Join(s.env["SWITCH_DIR"], "blocked", "4711000"), nil, 0o644); err != nil {
					return err
				}
			}
			return s.deliver(e, body)
		}, "the switch blocks client 4711000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &standIn{forge: c.forge}
			err := Run(t.Context(), Options{
				Config: []byte("version: 1\n"), Handlers: []byte(testHandlers), Attach: s.attach,
				For: 2 * time.Second, Drain: 2 * time.Second, Clients: 40, Rate: 60,
			})
			var diff *DifferenceError
			if !errors.As(err, &diff) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want a difference with %q", err, c.want)
			}
		})
	}
}

// TestRunInterrupted ends a run without a time limit, as Ctrl-C does.
func TestRunInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := &standIn{}
	seen := 0
	s.forge = func(s *standIn, e entry, body string) error {
		if seen++; seen == 20 {
			cancel()
		}
		return s.deliver(e, body)
	}
	err := Run(ctx, Options{Config: []byte("version: 1\n"), Handlers: []byte(testHandlers), Attach: s.attach, Clients: 40, Rate: 60})
	if err != nil {
		t.Error(err)
	}
}

// TestRunBillhookFails sees that the run ends when Billhook does.
func TestRunBillhookFails(t *testing.T) {
	s := &standIn{}
	s.forge = func(*standIn, entry, string) error { return errors.New("out of memory") }
	err := Run(t.Context(), Options{Config: []byte("version: 1\n"), Handlers: []byte(testHandlers), Attach: s.attach, Clients: 40, Rate: 60})
	if err == nil || !strings.Contains(err.Error(), "billhook ended by itself: out of memory") {
		t.Errorf("err = %v", err)
	}
}

func TestSeedIsQuiet(t *testing.T) {
	// What was there before is not told: the ledger starts after the seed.
	db := pgtest.NewDatabase(t, Schema(), Seed(20), ledgerSQL)
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM ledger.events"); n != 0 {
		t.Errorf("%d events before anything happened", n)
	}
	if n := pgtest.Value[int](t, db, "SELECT count(*)::int FROM clients"); n != 20 {
		t.Errorf("%d clients, want 20", n)
	}
}

var update = flag.Bool("update", false, "renew the copies of the example files")

// TestExampleFiles holds the copies of the example files against the files.
func TestExampleFiles(t *testing.T) {
	for name, copied := range map[string][]byte{"config/billhook.example.yaml": configExample, "handlers.example.yaml": handlersExample} {
		got, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(got, copied) {
			continue
		}
		if !*update {
			t.Errorf("the demo's copy of %s is not the file: go test ./internal/demo -run TestExampleFiles -update", name)
			continue
		}
		if err := os.WriteFile(strings.Replace(filepath.Base(name), ".example", "", 1), got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readSubscribers(handlersExample); err != nil {
		t.Error(err)
	}
}

// TestSchemaFiles sees that the files of testdata are the ones the demo runs.
func TestSchemaFiles(t *testing.T) {
	for name, want := range map[string]string{"jerasoft.sql": schemaSQL, "role.sql": roleSQL} {
		got, err := os.ReadFile(filepath.Join("..", "..", "testdata", "schema", name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("testdata/schema/%s is not the demo's", name)
		}
	}
	old, err := os.ReadFile(filepath.Join("..", "..", "testdata", "schema", "jerasoft-old.sql"))
	if err != nil {
		t.Fatal(err)
	}
	db := pgtest.NewDatabase(t, string(old), `
		INSERT INTO currencies VALUES (1, 'USD', 1), (2, 'JPY', 2);
		INSERT INTO companies (name) VALUES ('Main');
		INSERT INTO clients (id_companies, name, id_currencies, credit) VALUES (1, 'Acme', 1, 10);
		INSERT INTO clients_balances VALUES (1, -5);
		UPDATE clients SET id_currencies = 2`)
	if got := pgtest.Value[string](t, db, "SELECT credit || ' ' || balance FROM clients, clients_balances"); got != "20.00000 -10.00000" {
		t.Errorf("after the change of currency: %s", got)
	}
}
