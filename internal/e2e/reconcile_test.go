package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// modelState is what the tables say of a client, for the net of what was missed.
type modelState struct {
	name, status, balance string
	fields                string
}

// TestReconcile loses the slot while clients live on, and has the difference found:
// first looked at, which changes nothing, then applied, after which Billhook goes on
// and nothing is missed any more.
func TestReconcile(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabaseOn(t, pgtest.Start(t, nil))
	db.Exec(t, modelSQL)
	r := newReceiver(t)
	in := install(t, db.DSN, fmt.Sprintf(modelYAML, db.Name), fmt.Sprintf("version: 1\nhandlers: [{id: 1, name: All, event: \"*\", http: {url: %q}}]\n", r.url))
	in.start()
	in.waitReady()
	b := &bench{t, db}
	live := func(seed uint64, n int64) {
		t.Helper()
		left := new(atomic.Int64)
		left.Store(n)
		if err := modelSession(t.Context(), db, rand.New(rand.NewPCG(seed, 1)), left, time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	live(1, 150)
	b.caughtUp(in, 30*time.Second)
	in.stop()

	command := func(args ...string) (string, error) {
		out, err := in.command(append([]string{"reconcile", "--config", in.config, "--handlers", in.handlers}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := command("--apply"); err == nil || !strings.Contains(out, "nothing was missed") {
		t.Errorf("with a slot that can go on: %v\n%s", err, out)
	}

	state := func() map[string]modelState {
		t.Helper()
		list := map[string]modelState{}
		rows, err := db.Connect(t).Query(t.Context(), `
			SELECT id::text, coalesce(name, '<null>'), status, coalesce((SELECT coalesce(balance::text, '<null>') FROM clients_balances b WHERE b.clients_id = id), '<none>'),
				coalesce((SELECT string_agg(field_key || '=' || coalesce(value, '<null>'), ',' ORDER BY field_key) FROM clients_custom_fields f WHERE f.clients_id = id), '')
			FROM clients`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var id string
			var s modelState
			if err := rows.Scan(&id, &s.name, &s.status, &s.balance, &s.fields); err != nil {
				t.Fatal(err)
			}
			list[id] = s
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return list
	}
	accounts := func() map[string]string {
		t.Helper()
		var m map[string]string
		text := pgtest.Value[string](t, db, "SELECT coalesce(jsonb_object_agg(id, concat_ws('|', clients_id, coalesce(name, '<null>'))), '{}')::text FROM accounts")
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	before, accountsBefore := state(), accounts()
	db.Exec(t, "SELECT pg_drop_replication_slot('billhook_"+db.Name+"')")
	live(2, 400)
	after, accountsAfter := state(), accounts()

	// It does not go on by itself, and says what to do.
	in.start()
	<-in.proc.ended
	if in.proc.err == nil || !strings.Contains(tail(in.log, 3), "billhook reconcile") {
		t.Errorf("after the slot was lost: %v\n%s", in.proc.err, tail(in.log, 3))
	}
	in.kill()

	// The net of it, for what is easily said.
	want := map[string]int{}
	for id, s := range after {
		was, there := before[id]
		switch {
		case !there:
			want["clients.create "+id]++
		case was.status != "archive" && s.status == "archive":
			want["clients.archive "+id]++
		}
		if there && was.fields != s.fields || !there && s.fields != "" {
			want["clients.custom_fields.update "+id]++
		}
		if there && strings.HasPrefix(was.balance, "-") && s.balance != "<none>" && s.balance != "<null>" && !strings.HasPrefix(s.balance, "-") {
			want["clients.balance_notzero "+id]++
		}
	}
	for id := range before {
		if _, there := after[id]; !there {
			want["clients.delete "+id]++
		}
	}
	for id, a := range accountsAfter {
		if was, there := accountsBefore[id]; !there {
			want["clients.accounts.create "+id]++
		} else if was != a {
			want["clients.accounts.update "+id]++
		}
	}
	for id := range accountsBefore {
		if _, there := accountsAfter[id]; !there {
			want["clients.accounts.delete "+id]++
		}
	}

	var looked struct {
		Why    string
		Total  int
		Tables []struct{ Table, Skipped string }
	}
	out, err := command("--output", "json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{\n"):]), &looked); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if looked.Total < len(want) || !strings.Contains(looked.Why, "does not exist") {
		t.Errorf("looked: %+v", looked)
	}
	if n := len(r.all(t)); n == 0 {
		t.Fatal("nothing came before")
	}
	seen := len(r.all(t))
	if objects(t, db) != "publication billhook_"+db.Name {
		t.Errorf("looking has made %s", objects(t, db))
	}

	// Killed in the middle, it repeats nothing when it is begun again.
	for i := range 6 {
		cmd := in.command("reconcile", "--config", in.config, "--handlers", in.handlers, "--apply")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pause(t, time.Duration(40*i)*time.Millisecond)
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
	eventually(t, 20*time.Second, func() string {
		out, err = command("--apply")
		if strings.Contains(out, "in use by") {
			return out // the server has not noticed yet that the one before is dead
		}
		return ""
	})
	if err != nil && !strings.Contains(out, "nothing was missed") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(out)
	in.start()
	in.waitReady()
	live(3, 100)
	b.caughtUp(in, 30*time.Second)

	got := map[string]int{}
	n := 0
	ids := map[string]bool{}
	for i, a := range r.all(t) {
		if ids[a.id] {
			t.Errorf("id %s came twice", a.id)
		}
		ids[a.id] = true
		if i < seen || !strings.Contains(a.body, `"origin":"reconcile"`) {
			continue
		}
		n++
		got[a.typ+" "+strings.Trim(a.object, `"`)]++
	}
	if n != looked.Total {
		t.Errorf("%d events of reconciling came, want %d", n, looked.Total)
	}
	for e := range want {
		// Fields that changed and fields that went are found one after the other.
		if most := 1 + strings.Count(e, "custom_fields"); got[e] < 1 || got[e] > most {
			t.Errorf("%s came %d times", e, got[e])
		}
	}
	easy := []string{"clients.create", "clients.delete", "clients.archive", "clients.custom_fields.update", "clients.accounts.create", "clients.accounts.update", "clients.accounts.delete"}
	for e := range got {
		if typ, _, _ := strings.Cut(e, " "); slices.Contains(easy, typ) && want[e] == 0 {
			t.Errorf("%s came and must not", e)
		}
	}
	// And memory is right: what is written again as it was tells nothing.
	told := len(r.all(t))
	for table := range modelTables {
		db.Exec(t, "UPDATE "+table+" SET ref = ref")
	}
	b.caughtUp(in, 30*time.Second)
	for _, a := range r.all(t)[told:] {
		t.Errorf("writing rows as they were told %s", a.body)
	}
	in.stop()
}
