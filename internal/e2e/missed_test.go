package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// TestMissed has the publication send less for a while: what was changed meanwhile is
// in no stream. That is remembered, over a restart too and when it happened while
// Billhook was away, until reconcile has found it.
func TestMissed(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, plainSchema)
	r := newReceiver(t)
	name := "billhook_" + db.Name
	in := install(t, db.DSN, strings.NewReplacer("${SLOT}", name).Replace(plainBillhook),
		fmt.Sprintf("version: 1\nhandlers: [{id: 1, name: All, event: \"*\", http: {url: %q}}]\n", r.url))
	type missed struct {
		Since time.Time
		From  string
		What  []string
	}
	remembered := func(what string) {
		t.Helper()
		eventually(t, time.Minute, func() string { // it looks every 15 s
			in.alive()
			code, body, err := in.get("/readyz")
			if err != nil || code != http.StatusOK {
				return fmt.Sprintf("/readyz says %d %s %v", code, body, err)
			}
			var status struct{ Missed *missed }
			in.getJSON("/api/v1/status", &status)
			value := in.metric("billhook_replication_changes_missed")
			m := status.Missed
			switch {
			case what == "" && m == nil && value == 0:
				return ""
			case what != "" && m != nil && value == 1 && strings.Contains(string(body), "billhook reconcile --apply") &&
				strings.Contains(strings.Join(m.What, ", "), what) && m.From != "" && time.Since(m.Since) < time.Hour:
				return ""
			}
			return fmt.Sprintf("%+v is told, the metric is %v, want %q", m, value, what)
		})
	}
	reconcile := func(want string) {
		t.Helper()
		(&bench{t, db}).caughtUp(in, 30*time.Second)
		if came := r.all(t); slices.ContainsFunc(came, func(a arrival) bool { return a.typ+" "+a.object == want }) {
			t.Fatalf("%s came by the stream: this proves nothing", want)
		}
		in.stop()
		out, err := in.command("reconcile", "--config", in.config, "--handlers", in.handlers, "--apply").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "may have been missed") {
			t.Fatalf("%v\n%s", err, out)
		}
		in.start()
		in.waitReady()
		eventually(t, 30*time.Second, func() string {
			for _, a := range r.all(t) {
				if a.typ+" "+a.object == want {
					return ""
				}
			}
			return want + " did not come"
		})
		remembered("")
	}
	in.start()
	in.waitReady()
	remembered("")

	// Under a running Billhook, which is stopped before it is reconciled.
	for _, sql := range []string{
		"ALTER PUBLICATION " + name + " SET (publish = 'insert, delete, truncate')",
		"UPDATE clients SET status = 'archive' WHERE id = 7",
		"ALTER PUBLICATION " + name + " SET (publish = 'insert, update, delete, truncate')",
	} {
		db.Exec(t, sql)
	}
	remembered("was altered and put back")
	in.stop()
	in.start()
	in.waitReady()
	remembered("was altered and put back")
	reconcile("clients.archive 7")

	// While it is away: it puts the table back itself when it starts.
	in.stop()
	db.Exec(t, "ALTER PUBLICATION "+name+" DROP TABLE clients")
	db.Exec(t, "UPDATE clients SET status = 'archive' WHERE id = 8")
	in.start()
	in.waitReady()
	remembered("no longer holds table public.clients")
	reconcile("clients.archive 8")

	// What a restart finds as it was left is nothing new.
	in.stop()
	in.start()
	in.waitReady()
	remembered("")
	in.stop()
}
