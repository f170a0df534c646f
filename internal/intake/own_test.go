package intake

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/writeback"
)

// TestOwn: what a Writer writes makes no event and is remembered; what others write
// makes events, in the middle of it too, whatever marks they put on it.
func TestOwn(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, "CREATE TABLE clients (id int PRIMARY KEY, name text, balance numeric)",
		"INSERT INTO clients SELECT i, 'Client ' || i, 10 FROM generate_series(1, 9) i")
	dir := t.TempDir() + "/j"
	var key []byte
	withKey := func(o *Options) {
		k, err := WriteKey(o.Journal)
		if err != nil || len(k) != 32 || key != nil && !slices.Equal(k, key) {
			t.Fatalf("the key is %x, %v; it was %x", k, err, key)
		}
		key, o.WriteKey = k, k
	}
	f := start(t, db, dir, clients(t), withKey)
	if err := f.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "SELECT pg_create_logical_replication_slot('spy_' || current_database(), 'pgoutput')")
	defer db.Exec(t, "SELECT pg_drop_replication_slot('spy_' || current_database())")

	w, err := writeback.New(writeback.Options{
		DSN: db.DSN, Slot: db.Name, Key: key, Render: func(oid uint32, text []byte) []byte { return billing.AppendValue(nil, oid, text) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	write := func(id int, column, value, was string) {
		t.Helper()
		out, err := w.Apply(t.Context(), writeback.Row{
			Table: catalog.Name{Schema: "public", Table: "clients"}, Key: []string{"id"}, Texts: []string{fmt.Sprint(id)},
			Values: []writeback.Value{{Column: column, JSON: json.RawMessage(value), Was: json.RawMessage(was)}},
		})
		if err != nil || out.Result != writeback.Applied {
			t.Fatalf("client %d: %+v, %v", id, out, err)
		}
	}
	want := func(what string, want ...string) {
		t.Helper()
		if got := f.settle(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}

	write(1, "name", `"blocked"`, `"Client 1"`)
	want("an own write")
	db.Exec(t, "UPDATE clients SET name = name WHERE id = 1")
	want("the application's of what was written")
	db.Exec(t, "UPDATE clients SET name = 'Client 1' WHERE id = 1")
	want("the application's back", "clients.update 1")

	write(1, "balance", `-5`, `"10"`)
	want("an own write over the threshold")
	db.Exec(t, "UPDATE clients SET balance = -6 WHERE id = 1")
	want("the application's on that side")
	db.Exec(t, "UPDATE clients SET balance = 6 WHERE id = 1")
	want("the application's back", "clients.balance_notzero 1")

	// A transaction of the application that is open meanwhile.
	tx, err := db.Connect(t).Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "UPDATE clients SET balance = -1 WHERE id = 2")
	}
	if err != nil {
		t.Fatal(err)
	}
	write(3, "name", `"blocked"`, `"Client 3"`)
	if _, err = tx.Exec(t.Context(), "UPDATE clients SET name = 'told' WHERE id = 3"); err == nil {
		err = tx.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	want("the application's, begun before and ended after", "clients.balance_zero 2", "clients.update 3")

	// Marks of others: made up, of another slot, or read in the log and used again.
	log := pgtest.Value[string](t, db, `SELECT string_agg(encode(data, 'escape'), ' ') FROM pg_logical_slot_peek_binary_changes('spy_' || current_database(), NULL, NULL, 'proto_version', '1', 'publication_names', 'p', 'messages', 'true')`)
	seen := regexp.MustCompile(db.Name+` \d+ [0-9a-f]{64}`).FindAllString(log, -1)
	if len(seen) != 3 {
		t.Fatalf("the log shows the marks %q", seen)
	}
	forged := []string{
		"", "true", db.Name, seen[0], seen[2],
		db.Name + " $xid " + strings.Repeat("0", 64), strings.Split(seen[2], " ")[0] + " $xid " + strings.Split(seen[2], " ")[2],
	}
	for i, content := range forged {
		tx, err := db.Connect(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var xid string
		if err = tx.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text").Scan(&xid); err == nil {
			_, err = tx.Exec(t.Context(), "SELECT pg_logical_emit_message(true, $1::text, $2::text), pg_logical_emit_message(false, $1::text, $2::text)", writeback.Prefix, strings.ReplaceAll(content, "$xid", xid))
		}
		if err == nil {
			_, err = tx.Exec(t.Context(), "UPDATE clients SET name = $1 WHERE id = 4", fmt.Sprint("forged ", i))
		}
		if err == nil {
			err = tx.Commit(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		want(fmt.Sprintf("a forged mark %q", content), "clients.update 4")
	}
	// One of ours that stands between transactions concerns none.
	db.Exec(t, "SELECT pg_logical_emit_message(false, $1::text, $2::text)", writeback.Prefix, seen[2])
	db.Exec(t, "UPDATE clients SET name = 'after' WHERE id = 4")
	want("after a mark that stands alone", "clients.update 4")

	// What was written while nobody listened is known after a restart.
	f.stop()
	write(5, "name", `"blocked"`, `"Client 5"`)
	db.Exec(t, "UPDATE clients SET name = 'told' WHERE id = 6")
	f = start(t, db, dir, clients(t), withKey)
	want("after a restart", "clients.update 6")
	// Without the key nothing is taken for ours.
	f.stop()
	write(7, "name", `"blocked"`, `"Client 7"`)
	f = start(t, db, dir, clients(t))
	want("without the key", "clients.update 7")
}
