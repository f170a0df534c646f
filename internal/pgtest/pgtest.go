// Package pgtest gives tests real Postgres servers and databases.
//
// It promises each test a database of its own, dropped at the end together with
// its replication slots, on one server per test binary; and that no server
// outlives the test binary. BILLHOOK_PG_BIN names the folder of the server
// programs to test against, so that one suite runs on every version. A machine
// without a server fails the test, with the remedy.
//
// It is imported by tests only.
//
// Start with NewDatabase; Start is for tests that stop or reconfigure a server,
// NewProxy for a bad network, NewCopy for standbys and restored backups.
package pgtest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/demo/cluster"
)

// shared is the server of this test binary. A package-level variable, because a
// test binary is what it belongs to; the cluster's own guard ends it with the
// binary.
var shared struct {
	sync.Mutex
	c       *cluster.Cluster
	err     error
	started bool
	serial  int // numbers databases and roles
}

// Shared returns the server that all tests of the binary share, and starts it at
// the first call. A test must not stop or reconfigure it.
func Shared(t testing.TB) *cluster.Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if !shared.started {
		shared.started = true
		shared.c, shared.err = cluster.Start(context.Background(), cluster.Options{
			Settings: map[string]string{
				"max_replication_slots": "60", "max_wal_senders": "60", "max_prepared_transactions": "10",
				"logical_decoding_work_mem": "64kB", // so that large transactions spill
			},
		})
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.c
}

// Start starts a server for this test alone, with the given settings, and removes
// it when the test ends.
func Start(t testing.TB, settings map[string]string) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Start(t.Context(), cluster.Options{Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server's log:\n%s", c.LogTail(30))
		}
		if err := c.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
	})
	return c
}

// Database is a fresh database of one test.
type Database struct {
	Cluster *cluster.Cluster
	Name    string
	DSN     string // as superuser
}

// NewDatabase makes a database on the shared server and runs the given SQL
// scripts in it.
func NewDatabase(t testing.TB, scripts ...string) *Database {
	t.Helper()
	db := create(t, Shared(t))
	t.Cleanup(func() { db.drop(t) })
	db.run(t, scripts)
	return db
}

// NewDatabaseOn is NewDatabase on a server that the test started and with which
// the database goes.
func NewDatabaseOn(t testing.TB, c *cluster.Cluster, scripts ...string) *Database {
	t.Helper()
	db := create(t, c)
	db.run(t, scripts)
	return db
}

func create(t testing.TB, c *cluster.Cluster) *Database {
	t.Helper()
	name := fmt.Sprintf("test_%d", nextSerial())
	admin(t, c, "CREATE DATABASE "+name)
	return &Database{Cluster: c, Name: name, DSN: c.SuperuserURL(name)}
}

func (db *Database) run(t testing.TB, scripts []string) {
	t.Helper()
	for _, sql := range scripts {
		db.Exec(t, sql)
	}
}

func nextSerial() int {
	shared.Lock()
	defer shared.Unlock()
	shared.serial++
	return shared.serial
}

// admin runs one statement in the server's postgres database.
func admin(t testing.TB, c *cluster.Cluster, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.SuperuserURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// drop removes the slots of the database, whoever uses them, and the database.
func (db *Database) drop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.Cluster.SuperuserURL("postgres"))
	if err != nil {
		t.Errorf("drop database %s: %v", db.Name, err)
		return
	}
	defer conn.Close(ctx)
	// A slot frees a moment after its walsender got the signal.
	const dropSlots = `
		DO $$
		DECLARE
			s record;
			deadline timestamptz := clock_timestamp() + interval '20 s';
		BEGIN
			LOOP
				PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots
					WHERE database = '%[1]s' AND active_pid IS NOT NULL;
				FOR s IN SELECT slot_name FROM pg_replication_slots WHERE database = '%[1]s' AND NOT active LOOP
					BEGIN
						PERFORM pg_drop_replication_slot(s.slot_name);
					EXCEPTION WHEN object_in_use OR undefined_object THEN
						NULL;
					END;
				END LOOP;
				EXIT WHEN NOT EXISTS (SELECT FROM pg_replication_slots WHERE database = '%[1]s')
					OR clock_timestamp() > deadline;
				PERFORM pg_sleep(0.01);
			END LOOP;
		END $$`
	for _, sql := range []string{
		fmt.Sprintf(dropSlots, db.Name),
		"DROP DATABASE " + db.Name + " WITH (FORCE)",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Errorf("drop database %s: %v", db.Name, err)
			return
		}
	}
}

// Role makes a role that may log in and returns its connection URL for this
// database. Attributes are Postgres' words, such as "REPLICATION"; grants are
// statements in which $role stands for its name. The role goes with the test.
func (db *Database) Role(t testing.TB, attributes string, grants ...string) (name, dsn string) {
	t.Helper()
	name = fmt.Sprintf("role_%d", nextSerial())
	admin(t, db.Cluster, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'secret of %[1]s' %s", name, attributes))
	t.Cleanup(func() {
		// Cleanups run in reverse order: the database is still there.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		conn, err := pgx.Connect(ctx, db.DSN)
		if err != nil {
			return // a stopped server; its roles go with it
		}
		defer conn.Close(ctx)
		for _, sql := range []string{
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '" + name + "'",
			"REASSIGN OWNED BY " + name + " TO CURRENT_USER",
			"DROP OWNED BY " + name,
			"DROP ROLE " + name,
		} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				t.Errorf("drop role %s: %v", name, err)
				return
			}
		}
	})
	for _, sql := range grants {
		db.Exec(t, strings.ReplaceAll(sql, "$role", name))
	}
	return name, db.Cluster.URL(name, "secret of "+name, db.Name)
}

// Connect opens a connection as superuser that is closed when the test ends.
func (db *Database) Connect(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Exec runs SQL as superuser on a connection of its own: one statement with
// arguments, or a script of many without.
func (db *Database) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if len(args) == 0 {
		// The simple protocol takes a script; a transaction is the script's own affair.
		_, err = conn.PgConn().Exec(t.Context(), sql).ReadAll()
	} else {
		_, err = conn.Exec(t.Context(), sql, args...)
	}
	if err != nil {
		t.Fatalf("%s: %v", firstLine(sql), err)
	}
}

// Value returns the one value that a query gives.
func Value[T any](t testing.TB, db *Database, sql string, args ...any) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", firstLine(sql), err)
	}
	return v
}

// WaitFor runs a query, which gives one boolean, until it gives true.
func (db *Database) WaitFor(t testing.TB, sql string, args ...any) {
	t.Helper()
	conn := db.Connect(t)
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var ok bool
		if err := conn.QueryRow(t.Context(), sql, args...).Scan(&ok); err != nil {
			t.Fatalf("%s: %v", firstLine(sql), err)
		}
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still false after 30 s: %s", sql)
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(context.Cause(t.Context()))
		}
	}
}

func firstLine(sql string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(sql), "\n")
	return line
}
