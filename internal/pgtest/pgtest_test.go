package pgtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/pgtest"
)

func TestDatabase(t *testing.T) {
	var name string
	t.Run("in use", func(t *testing.T) {
		db := pgtest.NewDatabase(t, "CREATE TABLE a (n int); INSERT INTO a VALUES (1), (2)")
		name = db.Name
		if got := pgtest.Value[int](t, db, "SELECT sum(n)::int FROM a WHERE n > $1", 1); got != 2 {
			t.Errorf("sum = %d, want 2", got)
		}
		db.Exec(t, "SELECT pg_create_logical_replication_slot('left_' || current_database(), 'pgoutput')")
		db.WaitFor(t, "SELECT count(*) = 1 FROM pg_replication_slots WHERE database = $1", name)

		role, dsn := db.Role(t, "REPLICATION", "GRANT SELECT ON a TO $role")
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		var user string
		if err := conn.QueryRow(t.Context(), "SELECT current_user FROM a LIMIT 1").Scan(&user); err != nil {
			t.Fatal(err)
		}
		if user != role {
			t.Errorf("connected as %s, want %s", user, role)
		}
		if _, err := conn.Exec(t.Context(), "INSERT INTO a VALUES (3)"); err == nil {
			t.Error("the role may write")
		}
		// conn and the slot are left behind on purpose.
	})
	db := pgtest.NewDatabase(t)
	if db.Name == name {
		t.Error("a database was given twice")
	}
	if pgtest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name) {
		t.Errorf("database %s is still there", name)
	}
	if pgtest.Value[int](t, db, "SELECT count(*)::int FROM pg_roles WHERE rolname LIKE 'role\\_%'") != 0 {
		t.Error("a role is still there")
	}
}

func TestStart(t *testing.T) {
	c := pgtest.Start(t, map[string]string{"wal_level": "replica"})
	db := pgtest.NewDatabaseOn(t, c)
	if got := pgtest.Value[string](t, db, "SHOW wal_level"); got != "replica" {
		t.Errorf("wal_level = %s, want replica", got)
	}
	if c == pgtest.Shared(t) {
		t.Error("Start gave the shared server")
	}
}
