package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/billhook/billhook/internal/demo"
	"github.com/billhook/billhook/internal/pgtest"
)

// TestDeploySQL runs the DBA's way in and way out on the demo's schema, and wants
// nothing of it left.
func TestDeploySQL(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil) // the roles and slots of these files have fixed names
	db := pgtest.NewDatabaseOn(t, c, demo.Schema())
	psql := func(name string, args ...string) {
		t.Helper()
		file, err := filepath.Abs(filepath.Join("..", "..", "deploy", "sql", name))
		if err != nil {
			t.Fatal(err)
		}
		script, err := os.Open(file) // the server's user may not read our folder
		if err != nil {
			t.Fatal(err)
		}
		defer script.Close()
		cmd := c.Command(t.Context(), "psql", append(args, "-X", "-q", "-f", "-", db.Name)...)
		cmd.Stdin = script
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	left := func() int {
		return pgtest.Value[int](t, db, `SELECT (SELECT count(*) FROM pg_roles WHERE rolname = 'billhook')
			+ (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)`)
	}
	psql("attach.sql", "-v", "password='secret'")
	if n := left(); n != 3 {
		t.Errorf("attach.sql made %d of role, publication and slot", n)
	}
	psql("detach.sql")
	if n := left(); n != 0 {
		t.Errorf("detach.sql left %d of role, publication and slot", n)
	}
}
