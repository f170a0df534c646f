package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// backfillYAML maps clients with custom fields whose deleted rows come with an id that
// does not lead to the client.
const (
	backfillSQL = `CREATE TABLE clients (id int PRIMARY KEY, name text, status text NOT NULL DEFAULT 'active', balance numeric(12,2));
		CREATE TABLE clients_custom_fields (id serial PRIMARY KEY, clients_id int NOT NULL REFERENCES clients ON DELETE CASCADE, field text NOT NULL, value text, UNIQUE (clients_id, field))`
	backfillYAML = `version: 1
source: {dsn: "${DSN}", slot: billhook_%[1]s, publication: billhook_%[1]s}
entities:
  clients:
    table: clients
    key: [id]
    archive: {column: status, value: archive}
    balance: {column: balance}
    custom_fields: {table: clients_custom_fields, client: [clients_id], name: field, value: value}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`
)

// known is what a handler knows of a client that does as it is told.
type known struct {
	Name, Status string
	Fields       map[string]string
}

func (k known) String() string { return fmt.Sprintf("%s %s %v", k.Name, k.Status, k.Fields) }

// heed does with each arrival of a handler what it tells, the first time it comes.
func heed(t *testing.T, came []arrival, handler int) map[string]known {
	t.Helper()
	clients := map[string]known{}
	seen := map[string]bool{}
	for _, a := range came {
		if a.handler != handler || !a.accepted || seen[a.id] {
			continue
		}
		seen[a.id] = true
		var p struct {
			Data map[string]json.RawMessage
		}
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			t.Fatal(err)
		}
		k := clients[a.object]
		text := func(column string) string {
			var s *string
			if err := json.Unmarshal(p.Data[column], &s); err != nil || s == nil {
				return "<null>"
			}
			return *s
		}
		if a.typ == "clients.delete" {
			delete(clients, a.object)
			continue
		}
		if a.typ == "clients.create" {
			k.Fields = map[string]string{}
		}
		if a.typ != "clients.custom_fields.update" {
			k.Name, k.Status = text("name"), text("status")
		}
		var fields map[string]*string
		if raw, ok := p.Data["custom_fields"]; ok {
			if err := json.Unmarshal(raw, &fields); err != nil {
				t.Fatal(err)
			}
		}
		k.Fields = maps.Clone(k.Fields)
		if k.Fields == nil {
			k.Fields = map[string]string{}
		}
		for name, value := range fields {
			if value == nil {
				delete(k.Fields, name)
			} else {
				k.Fields[name] = *value
			}
		}
		clients[a.object] = k
	}
	return clients
}

// TestBackfill tells two new handlers of all clients while these live on and Billhook is
// killed in the middle. A handler that does what it is told must then know each client
// as the tables have it: a backfill that told what a row was some moments ago, after the
// stream had told of its change, would spoil that.
func TestBackfill(t *testing.T) {
	t.Parallel()
	for _, identity := range []string{"DEFAULT", "FULL"} {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			testBackfill(t, identity)
		})
	}
}

func testBackfill(t *testing.T, identity string) {
	const clients = 4000
	db := pgtest.NewDatabaseOn(t, pgtest.Start(t, nil), backfillSQL,
		"ALTER TABLE clients REPLICA IDENTITY "+identity+"; ALTER TABLE clients_custom_fields REPLICA IDENTITY "+identity,
		fmt.Sprintf("INSERT INTO clients SELECT i, 'client ' || i, 'active', i %% 7 - 3 FROM generate_series(1, %d) i", clients),
		"INSERT INTO clients_custom_fields (clients_id, field, value) SELECT i, 'tariff', 't' || i FROM generate_series(1, 4000, 2) i")
	r := newReceiver(t)
	in := install(t, db.DSN, fmt.Sprintf(backfillYAML, db.Name), fmt.Sprintf(`version: 1
handlers:
  - {id: 1, name: All, event: "*", http: {url: %q}}
  - {id: 2, name: CRM, event: clients.create, http: {url: %q}}
`, r.url, r.url))
	in.start()
	in.waitReady()

	// Sessions change clients all the time, a few of them often.
	seed := newSeed(t)
	ctx, stop := context.WithCancel(t.Context())
	var changes atomic.Int64
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer stop()
	for n := range 2 {
		sessions.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(n)))
			conn := db.Connect(t)
			for i := 0; ctx.Err() == nil; i++ {
				id := r.IntN(clients) + 1
				if r.IntN(3) == 0 {
					id = r.IntN(20) + 1
				}
				var sql string
				switch r.IntN(8) {
				case 0:
					sql = fmt.Sprintf("INSERT INTO clients VALUES (%d, 'new', 'active', 1); INSERT INTO clients_custom_fields (clients_id, field, value) VALUES (%[1]d, 'tariff', 'n')", 10_000+10_000*n+i)
				case 1:
					sql = fmt.Sprintf("DELETE FROM clients WHERE id = %d", 700+r.IntN(200))
				case 2, 3:
					sql = fmt.Sprintf("INSERT INTO clients_custom_fields (clients_id, field, value) SELECT id, 'f%d', 'v%d' FROM clients WHERE id = %d ON CONFLICT (clients_id, field) DO UPDATE SET value = excluded.value", r.IntN(3), i, id)
				case 4:
					sql = fmt.Sprintf("DELETE FROM clients_custom_fields WHERE clients_id = %d", id)
				case 5:
					sql = fmt.Sprintf("UPDATE clients SET balance = %d WHERE id = %d", r.IntN(9)-4, id)
				default:
					sql = fmt.Sprintf("UPDATE clients SET name = 'name %d.%d' WHERE id = %d", n, i, id)
				}
				if _, err := conn.Exec(ctx, sql); err != nil {
					if ctx.Err() == nil && !strings.Contains(err.Error(), "deadlock") && !strings.Contains(err.Error(), "foreign key") {
						t.Errorf("%s: %v", sql, err)
					}
					continue
				}
				changes.Add(1)
			}
		})
	}

	command := func(args ...string) (string, error) {
		cmd := in.command(append([]string{"backfill"}, args...)...)
		cmd.Env = append(cmd.Env, "BILLHOOK_URL=http://"+in.address)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		return out.String() + errs.String(), err
	}
	show := func() (s struct {
		State, Why string
		Rows       int64
		Executions int64
		Told       map[string]int64
	},
	) {
		t.Helper()
		in.getJSON("/api/v1/backfills/1", &s)
		return s
	}
	if out, err := command("--event", "Clients create", "--handler", "1", "--handler", "2", "--rate", "2000", "--detach"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, 30*time.Second, func() string {
		if s := show(); s.Rows < clients/4 {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	in.kill()
	in.start()
	in.waitReady()
	eventually(t, time.Minute, func() string {
		if s := show(); s.State != "done" {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	stop()
	sessions.Wait()
	(&bench{t, db}).caughtUp(in, time.Minute)
	eventually(t, time.Minute, func() string {
		if x := in.executions(); x["pending"] > 0 {
			return fmt.Sprint(x)
		}
		return ""
	})

	// What the tables have.
	var want map[string]known
	text := pgtest.Value[string](t, db, `SELECT coalesce(jsonb_object_agg(id, jsonb_build_object('Name', coalesce(name, '<null>'), 'Status', status,
		'Fields', (SELECT coalesce(jsonb_object_agg(field, value), '{}') FROM clients_custom_fields f WHERE f.clients_id = clients.id))), '{}')::text FROM clients`)
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Fatal(err)
	}
	came := r.all(t)
	knows := heed(t, came, 1)
	wrong := 0
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if k := knows[id]; k.String() != want[id].String() && wrong < 10 {
			wrong++
			t.Errorf("client %s is\n%s\nand the handler knows\n%s", id, want[id], k)
		}
	}
	for id := range knows {
		if _, ok := want[id]; !ok {
			t.Errorf("client %s is gone and the handler knows it still", id)
		}
	}
	// Each is told once.
	told := map[string]map[string]bool{} // handler and client -> events
	for _, a := range came {
		if strings.Contains(a.body, `"origin":"backfill"`) {
			key := fmt.Sprint(a.handler, " ", a.object)
			if told[key] == nil {
				told[key] = map[string]bool{}
			}
			told[key][a.id] = true
			if a.typ != "clients.create" {
				t.Errorf("told %s", a.typ)
			}
		}
	}
	for id := range clients {
		object := fmt.Sprint(id + 1)
		for _, handler := range []int{1, 2} {
			n := len(told[fmt.Sprint(handler, " ", object)])
			if _, there := want[object]; there && n != 1 || n > 1 {
				t.Errorf("client %s was told to handler %d by %d events", object, handler, n)
			}
		}
	}
	again := in.metric("billhook_backfill_rows_again_total")
	t.Logf("%d changes, %v rows read again after the restart", changes.Load(), again)
	if s := show(); s.Executions != 2*s.Told["clients.create"] || s.Told["clients.create"] < int64(len(want))/2 {
		t.Errorf("%+v", s)
	}
	in.stop()
}

// TestBackfillUnseen: a transaction has committed, the stream has told of it, and nobody
// else sees it yet, as it is for a moment with any and for longer where a standby must
// confirm. A backfill that reads what was there before must not tell that after it.
func TestBackfillUnseen(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, map[string]string{"synchronous_standby_names": "nobody", "synchronous_commit": "local"})
	db := pgtest.NewDatabaseOn(t, pg, backfillSQL, "ALTER TABLE clients REPLICA IDENTITY FULL",
		"INSERT INTO clients SELECT i, 'old', 'active', 0 FROM generate_series(1, 3) i")
	r := newReceiver(t)
	in := install(t, db.DSN, fmt.Sprintf(backfillYAML, db.Name), fmt.Sprintf(`version: 1
handlers:
  - {id: 1, name: All, event: "*", http: {url: %q}}
`, r.url))
	in.start()
	in.waitReady()
	ctx, stop := context.WithCancel(t.Context())
	var commits sync.WaitGroup
	defer commits.Wait()
	defer stop()
	conn := db.Connect(t)
	commits.Go(func() {
		if _, err := conn.Exec(ctx, "SET synchronous_commit = on; UPDATE clients SET name = 'new' WHERE id = 2"); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 20*time.Second, func() string {
		if n := len(r.all(t)); n != 1 {
			return fmt.Sprintf("%d came", n)
		}
		return ""
	})
	if name := pgtest.Value[string](t, db, "SELECT name FROM clients WHERE id = 2"); name != "old" {
		t.Errorf("others see %q already: this proves nothing", name)
	}
	in.says(0, "", "backfill", "--event", "clients.create", "--handler", "1", "--rate", "0", "--detach")
	eventually(t, 20*time.Second, func() string {
		if out, _, _ := in.ask("backfill", "show", "1"); !strings.Contains(out, "do not see yet") {
			return out
		}
		return ""
	})
	if err := pg.Set(map[string]string{"synchronous_standby_names": ""}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() string {
		if out, _, _ := in.ask("backfill", "show", "1"); !strings.Contains(out, "done") || strings.Contains(out, "do not see yet") {
			return out
		}
		return ""
	})
	(&bench{t, db}).caughtUp(in, time.Minute)
	var came []string
	for _, a := range r.all(t) {
		var p struct{ Data struct{ Name string } }
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			t.Fatal(err)
		}
		came = append(came, a.typ+" "+a.object+" "+p.Data.Name)
	}
	slices.Sort(came)
	if want := []string{"clients.create 1 old", "clients.create 2 new", "clients.create 3 old", "clients.update 2 new"}; !slices.Equal(came, want) {
		t.Errorf("%q, want %q", came, want)
	}
	in.stop()
}

// TestBackfillCommand is what an operator sees of it.
func TestBackfillCommand(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, backfillSQL, "INSERT INTO clients VALUES (1, 'one', 'active', 0), (2, 'two', 'archive', 5), (3, 'three', 'active', -1), (4, 'four', 'active', NULL)",
		"INSERT INTO clients_custom_fields (clients_id, field, value) VALUES (2, 'tariff', 'gold'), (2, 'vip', NULL)")
	r := newReceiver(t)
	in := install(t, db.DSN, fmt.Sprintf(backfillYAML, db.Name), fmt.Sprintf(`version: 1
handlers:
  - {id: 1, name: All, event: "*", http: {url: %q}}
  - {id: 2, name: Switch, event: clients.balance_zero, http: {url: %q}}
  - {id: 3, name: Old, event: "*", status: archived, http: {url: %q}}
`, r.url, r.url, r.url))
	command := func(args ...string) (string, int) {
		cmd := in.command(append([]string{"backfill"}, args...)...)
		cmd.Env = append(cmd.Env, "BILLHOOK_URL=http://"+in.address)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, code := command("list"); code != 1 || !strings.Contains(out, "is it running?") {
		t.Errorf("nobody there: %d %s", code, out)
	}
	in.start()
	in.waitReady()

	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"nothing named", nil, 2, []string{"--event and --handler are needed"}},
		{"no such event", []string{"--event", "clients.crate", "--handler", "1"}, 1, []string{"clients.crate is no event type"}},
		{"delete", []string{"--event", "clients.delete", "--handler", "1"}, 1, []string{"clients.delete tells of a row that is gone"}},
		{"not mapped", []string{"--event", "clients.packages.assign", "--handler", "1"}, 1, []string{"does not happen with this mapping"}},
		{"no such handler", []string{"--event", "clients.create", "--handler", "9"}, 1, []string{"there is no handler 9"}},
		{"archived", []string{"--event", "clients.create", "--handler", "3"}, 1, []string{"handler 3 is archived"}},
		{"does not listen", []string{"--event", "clients.create", "--handler", "2"}, 1, []string{"handler 2 does not listen to clients.create; add the event to it in handlers.yaml"}},
		{"bad condition", []string{"--event", "clients.create", "--handler", "1", "--where", "new.id >"}, 1, []string{"where: ", "Syntax error"}},
		{"condition over old", []string{"--event", "clients.create", "--handler", "1", "--where", "old.id > 1"}, 1, []string{"where: old tells of a change"}},
		{"condition over no column", []string{"--event", "clients.create", "--handler", "1", "--where", "new.nome == 'x'"}, 1, []string{"failed", `where: table public.clients has no column "nome"`}},
		{"dry run", []string{"--event", "clients.*", "--handler", "1", "--dry-run"}, 0, []string{
			"done (dry run)", "would be told  4 clients.create", "1 clients.archive", "2 clients.balance_zero", "1 clients.balance_notzero", "4 clients.update", "1 clients.custom_fields.update", "such as        1, 2, 3, 4",
		}},
		{"with a condition", []string{"--event", "clients.balance_zero", "--handler", "2", "--handler", "1", "--where", "new.id > 1", "--rate", "0"}, 0, []string{"1 clients.balance_zero", "executions  2", "such as     3"}},
		{"fields", []string{"--event", "clients.custom_fields.update", "--handler", "1"}, 0, []string{"1 clients.custom_fields.update"}},
		{"list", []string{"list"}, 0, []string{"done (dry run)", "failed", "clients.balance_zero", "1, 2"}},
		{"none to show", []string{"show", "77"}, 1, []string{"there is no backfill 77"}},
		{"to show", []string{"show", "3"}, 0, []string{"new.id > 1"}},
	} {
		out, code := command(c.args...)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d\n%s", c.name, code, c.code, out)
		}
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q is not in\n%s", c.name, want, out)
			}
		}
	}
	eventually(t, 10*time.Second, func() string {
		if n := len(r.all(t)); n != 3 {
			return fmt.Sprintf("%d came, not 3", n)
		}
		return ""
	})
	for _, a := range r.all(t) {
		want := `"data":{"id":3,"name":"three","status":"active","balance":"-1.00"}`
		if a.typ == "clients.custom_fields.update" {
			want = `"data":{"id":2,"custom_fields":{"tariff":"gold","vip":null}}`
		}
		if !strings.Contains(a.body, want) || !strings.Contains(a.body, `"origin":"backfill"`) {
			t.Errorf("want %s in %s", want, a.body)
		}
	}

	// One that is cancelled says so, and those behind it begin.
	if out, code := command("--event", "clients.create", "--handler", "1", "--rate", "0.5", "--detach"); code != 0 {
		t.Fatal(out)
	}
	if out, code := command("--event", "clients.update", "--handler", "1", "--detach"); code != 0 || !strings.Contains(out, "waiting") {
		t.Errorf("%d %s", code, out)
	}
	if out, code := command("cancel", "5"); code != 0 || !strings.Contains(out, "cancelled") {
		t.Errorf("%d %s", code, out)
	}
	eventually(t, 10*time.Second, func() string {
		out, _ := command("show", "6")
		if !strings.Contains(out, "done") {
			return out
		}
		return ""
	})
	in.stop()
}
