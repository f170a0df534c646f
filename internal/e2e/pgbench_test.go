package e2e

import (
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// TestPgbench maps pgbench's own tables as billing, with the replica identity
// that they come with and with FULL, lets pgbench work, and compares every
// crossing of zero with what an HTTP receiver and a script were told.
func TestPgbench(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, identity string }{
		{"default identity", "DEFAULT"},
		{"full identity", "FULL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pgtest.NewDatabase(t), 0, "ALTER TABLE pgbench_accounts REPLICA IDENTITY "+c.identity)
			r, s := newReceiver(t), newScript(t)
			in := b.attach(b.role(), r, s)
			in.start()
			in.waitReady()
			b.run(scaled(t, 3000), 500)
			b.caughtUp(in, time.Minute)
			in.stop()

			expected, n := b.expected()
			if n < scaled(t, 1000) {
				t.Fatalf("only %d events are expected: this proves little", n)
			}
			t.Logf("%d events of %d accounts", n, len(expected))
			check(t, "receiver", expected, r.all(t), once)
			check(t, "script", expected, s.all(t), once)
		})
	}
}
