package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/pgtest"
)

// TestReconcileElsewhere moves a database to another cluster, as an upgrade does, and
// then puts that one back to an earlier state: both times positions come again that
// the journal has had. What differs is found and told, ids go on ascending, and what is
// changed afterwards is told as ever. Old values come with the stream here (FULL), and
// the entity is remembered all the same.
func TestReconcileElsewhere(t *testing.T) {
	t.Parallel()
	const schema = `CREATE TABLE clients (id int PRIMARY KEY, name text, balance numeric(12,2)); ALTER TABLE clients REPLICA IDENTITY FULL`
	a := pgtest.NewDatabaseOn(t, pgtest.Start(t, nil), schema, "INSERT INTO clients SELECT i, 'client ' || i, 10 FROM generate_series(1, 20) i")
	r := newReceiver(t)
	in := install(t, a.DSN, `version: 1
source: {dsn: "${DSN}", slot: elsewhere, publication: elsewhere}
entities: {clients: {table: clients, key: [id], balance: {column: balance}, remember: true}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`, fmt.Sprintf("version: 1\nhandlers: [{id: 1, name: All, event: \"*\", http: {url: %q}}]\n", r.url))
	seen := 0
	// came waits for events, by type and object, and sees that their ids ascend.
	last := event.ID{}
	came := func(origin string, want ...string) {
		t.Helper()
		eventually(t, 30*time.Second, func() string {
			if n := len(r.all(t)) - seen; n < len(want) {
				return fmt.Sprintf("%d of %d came\n%s", n, len(want), tail(in.log, 5))
			}
			return ""
		})
		var got []string
		first := last
		for _, e := range r.all(t)[seen:] {
			got = append(got, e.typ+" "+e.object)
			if strings.Contains(e.body, `"origin":"`) != (origin != "") || origin != "" && !strings.Contains(e.body, `"origin":"`+origin+`"`) {
				t.Errorf("want origin %q in %s", origin, e.body)
			}
			id, err := event.ParseID(e.id)
			if err != nil || id.Compare(first) <= 0 {
				t.Errorf("id %s after %s, %v", e.id, first, err)
			}
			if id.Compare(last) > 0 {
				last = id
			}
		}
		slices.Sort(got) // lanes are told at once
		slices.Sort(want)
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("came %q, want %q", got, want)
		}
		seen += len(got)
	}
	reconcile := func(args ...string) (string, error) {
		out, err := in.command(append([]string{"reconcile", "--config", in.config, "--handlers", in.handlers}, args...)...).CombinedOutput()
		return string(out), err
	}
	// moves has the instance go on in another database, after it refused to.
	moves := func(to *pgtest.Database, why string) {
		t.Helper()
		in.env[1] = "DSN=" + to.DSN
		in.start()
		<-in.proc.ended
		if log := tail(in.log, 3); in.proc.err == nil || !strings.Contains(log, why) {
			t.Errorf("it goes on in another cluster: %v\n%s", in.proc.err, log)
		}
		in.kill()
		if out, err := reconcile(); err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), why) || !strings.Contains(out, "--apply --adopt") {
			t.Errorf("looking: %v\n%s", err, out)
		}
		if out, err := reconcile("--apply"); err == nil || !strings.Contains(out, "--adopt") {
			t.Errorf("it was applied without being told twice: %v\n%s", err, out)
		}
		out, err := reconcile("--apply", "--adopt")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		in.start()
		in.waitReady()
	}

	in.start()
	in.waitReady()
	a.Exec(t, "UPDATE clients SET balance = -1 WHERE id = 1")
	came("", "clients.balance_zero 1")
	in.stop()

	b := pgtest.NewDatabaseOn(t, pgtest.Start(t, nil), schema,
		"INSERT INTO clients SELECT i, 'client ' || i, CASE WHEN i = 1 THEN -1 ELSE 10 END FROM generate_series(1, 20) i",
		"UPDATE clients SET balance = 5 WHERE id = 1; UPDATE clients SET name = 'other' WHERE id = 2; DELETE FROM clients WHERE id = 3; INSERT INTO clients VALUES (30, 'new', 0)",
		"CREATE PUBLICATION elsewhere FOR TABLE clients WITH (publish_via_partition_root = true)") // a dump has it
	moves(b, "is another database cluster")
	came("reconcile", "clients.balance_notzero 1", "clients.update 2", "clients.create 30", "clients.delete 3")
	b.Exec(t, "UPDATE clients SET balance = -7 WHERE id = 2")
	came("", "clients.balance_zero 2")
	in.stop()

	back := pgtest.NewCopy(t, b.Cluster)
	in.start()
	in.waitReady()
	b.Exec(t, "INSERT INTO clients VALUES (40, 'lost', 1)")
	came("", "clients.create 40")
	b.Exec(t, "SELECT pg_switch_wal()") // further than the copy will be
	in.stop()
	back.Start(t)
	c := back.Database(t, b.Name)
	moves(c, "the database was put back to an earlier state")
	came("reconcile", "clients.delete 40")
	c.Exec(t, "UPDATE clients SET balance = 7 WHERE id = 2")
	came("", "clients.balance_notzero 2")

	var status struct {
		Reconciled []struct {
			From, To    string
			Generations [2]uint32
			Events      map[string]int
		}
	}
	in.getJSON("/api/v1/status", &status)
	if len(status.Reconciled) != 2 || status.Reconciled[0].Generations != [2]uint32{1, 2} || status.Reconciled[1].Generations != [2]uint32{2, 3} || status.Reconciled[1].Events["clients.delete"] != 1 {
		t.Errorf("reconciled: %+v", status.Reconciled)
	}
	in.stop()
}
