package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// TestReceiverAway lets the receiver be away under traffic, first refusing and
// then gone. Meanwhile the slot goes on and the server keeps no WAL for it; when
// the receiver is back, all comes, in order.
func TestReceiverAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 50)
	r, s := newReceiver(t), newScript(t)
	in := b.attach(b.role(), r, s)
	in.start()
	in.waitReady()
	b.run(scaled(t, 200), 200)
	b.caughtUp(in, 30*time.Second)

	r.failing.Store(100)
	b.run(scaled(t, 300), 300)
	r.close(t)
	b.run(scaled(t, 300), 300)

	// Everything is behind the receiver, and nothing is kept for us.
	now := pgtest.Value[string](t, b.db, "SELECT pg_current_wal_lsn()::text")
	for _, column := range []string{"confirmed_flush_lsn", "restart_lsn"} {
		eventually(t, 30*time.Second, func() string {
			in.alive()
			b.db.Exec(t, "CHECKPOINT") // lets the server find out what it may forget
			if !pgtest.Value[bool](t, b.db, "SELECT "+column+" >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", now, "billhook_"+b.db.Name) {
				return fmt.Sprintf("the slot's %s is %s, the server was at %s when traffic ended", column, b.slot(column), now)
			}
			return ""
		})
	}
	if n := in.executions()["pending"]; n < 100 {
		t.Errorf("%d executions are pending while the receiver is away: this proves little", n)
	}

	r.failing.Store(0)
	r.comeBack(t)
	b.caughtUp(in, time.Minute)
	expected, n := b.expected()
	t.Logf("%d events", n)
	check(t, "receiver", expected, r.all(t), once)
	check(t, "script", expected, s.all(t), once)
	in.stop()
}
