package replication

import (
	"testing"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/wal"
)

func TestPartedAt(t *testing.T) {
	const history = "1\t0/3000148\tno recovery target specified\n\n2\t16/B374D848\tbefore 2026\n"
	for timeline, want := range map[uint32]wal.LSN{1: 0x3000148, 2: 0x16B374D848, 3: 0} {
		if got, err := partedAt(history, timeline); err != nil || got != want {
			t.Errorf("timeline %d parted at %s, %v; want %s", timeline, got, err, want)
		}
	}
	if _, err := partedAt("1\tnonsense", 1); err == nil {
		t.Error("nonsense is a position")
	}
}

// TestRestoredBackup: a database that was brought back to where it was before
// does not go on under a journal that knows more.
func TestRestoredBackup(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	db := pgtest.NewDatabaseOn(t, c, oneTable)
	o := options(t, db, "a")
	f := follow(t, o)
	f.stop()
	backup := pgtest.NewCopy(t, c)
	o.Resume = f.resume()
	f = follow(t, o)
	db.Exec(t, "INSERT INTO a VALUES (1); INSERT INTO a SELECT g FROM generate_series(2, 1000) g")
	f.wait("all rows", func() bool { return len(f.got()) == 1000 })
	f.stop()
	backup.Start(t)
	o.DSN, o.Resume = backup.Database(t, db.Name).DSN, f.resume()
	expectError(t, attachError(t, o), Fatal, ReasonAhead, "the journal is at *, but the server at 127.0.0.1:* only at *: the database was put back to an earlier state; *")
}

// TestFailover promotes a standby. What the journal holds beyond it is told; where
// the slot was kept in step (Postgres 17 and later), the stream goes on by itself,
// on a new timeline, without a row lost or repeated.
func TestFailover(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, nil)
	version := c.Version()
	db := pgtest.NewDatabaseOn(t, c, oneTable, "SELECT pg_create_physical_replication_slot('standby')")
	o := options(t, db, "a")
	o.Failover = true
	f := follow(t, o)
	f.stop()
	standby := pgtest.NewCopy(t, c)
	settings := map[string]string{"hot_standby_feedback": "on"}
	if version >= 17 {
		if err := c.Set(map[string]string{"synchronized_standby_slots": "standby"}); err != nil {
			t.Fatal(err)
		}
	}
	standby.Set(t, settings)
	standby.Follow(t, "standby", db.Name)
	standby.Start(t)
	there := standby.Database(t, db.Name)

	o.Resume = f.resume()
	f = follow(t, o)
	db.Exec(t, "INSERT INTO a VALUES (1)")
	f.expect("insert a (id=1 v null)")
	there.WaitFor(t, "SELECT EXISTS (SELECT FROM a WHERE id = 1)")
	if version >= 17 {
		f.wait("the slot's copy", func() bool {
			// By hand what a worker does every half minute; a slot is ready to be copied
			// once it has moved beyond where the standby began.
			db.Exec(t, "SELECT pg_log_standby_snapshot()")
			there.Exec(t, "SELECT pg_sync_replication_slots()")
			return pgtest.Value[bool](t, there, "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary AND invalidation_reason IS NULL", db.Name)
		})
	}
	f.stop()
	db.Exec(t, "INSERT INTO a VALUES (2)")
	there.WaitFor(t, "SELECT EXISTS (SELECT FROM a WHERE id = 2)")
	o.Resume = f.resume()
	if version >= 17 {
		o.DSN = there.DSN
		expectError(t, attachError(t, o), Fatal, ReasonSlotUnfit, "replication slot \"*\" on this standby is a copy that is kept in step with the primary; let source.dsn name the primary")
	}
	standby.Promote(t)
	there.Exec(t, "INSERT INTO a VALUES (3)")

	o.DSN = there.DSN
	ahead := o
	ahead.Resume.LSN = mustLSN(t, pgtest.Value[string](t, there, "SELECT pg_current_wal_lsn()::text"))
	expectError(t, attachError(t, ahead), Fatal, ReasonIdentityChanged, "the server at 127.0.0.1:* is on timeline 2, but the journal was filled on 1: there was a fail-over or a restore at *, and the journal is at *, so it holds events of transactions that the database has lost in between; *")
	if version < 17 {
		expectError(t, attachError(t, o), Fatal, ReasonSlotMissing, "replication slot \"*\" does not exist; *")
		return
	}
	g := follow(t, o)
	g.expect("insert a (id=2 v null)", "insert a (id=3 v null)")
	if s := g.session(); s.Timeline != 2 || s.SlotCreated {
		t.Errorf("session %+v", s)
	}
	if at := g.client.State(); at.ServerLSN > mustLSN(t, pgtest.Value[string](t, there, "SELECT pg_current_wal_lsn()::text")) {
		t.Errorf("the server is told to be at %s", at.ServerLSN)
	}
	// The old primary, back again, is not mistaken for the new one.
	g.stop()
	o.DSN, o.Resume = db.DSN, g.resume()
	expectError(t, attachError(t, o), Fatal, ReasonIdentityChanged, "the server at 127.0.0.1:* is on timeline 1, but the journal was filled on 2: *")
}
