package e2e

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/pgtest"
)

// TestKill kills Billhook ten times under traffic, at random moments, also while
// it starts; once it is stopped in good order, and once the server crashes. Then
// what handlers got must be what the ledger expects: nothing missed, each
// account's events in order, and nothing but repetitions under an equal id.
func TestKill(t *testing.T) {
	t.Parallel()
	seed := newSeed(t)
	chance := rand.New(rand.NewPCG(seed, 0))

	pg := pgtest.Start(t, nil)
	b := newBench(t, pgtest.NewDatabaseOn(t, pg), 50)
	r, s := newReceiver(t), newScript(t)
	r.failing.Store(15)
	r.slow.Store(int64(20 * time.Millisecond))
	s.failing(t, true)
	in := b.attach(b.role(), r, s)
	in.start()
	in.waitReady()
	tr := b.traffic(300)

	kills := scaled(t, 10)
	for i := range kills {
		pause(t, time.Duration(chance.IntN(900))*time.Millisecond)
		in.alive()
		switch i {
		case kills / 3:
			if err := pg.Restart(t.Context(), cluster.Immediate); err != nil {
				t.Fatal(err)
			}
			pause(t, time.Duration(chance.IntN(900))*time.Millisecond)
			in.alive()
		case kills * 2 / 3:
			in.stop()
			in.start()
			pause(t, time.Duration(chance.IntN(900))*time.Millisecond)
			in.alive()
		}
		in.kill()
		in.start()
	}
	in.waitReady()
	pause(t, 300*time.Millisecond)
	tr.stop()
	b.settled()
	r.failing.Store(0)
	s.failing(t, false)
	b.caughtUp(in, time.Minute)
	if tr.runs < 2 {
		t.Error("pgbench did not notice that the server was restarted")
	}

	expected, n := b.expected()
	if n < 200 {
		t.Fatalf("only %d events are expected: this proves little", n)
	}
	toReceiver, toScript := r.all(t), s.all(t)
	t.Logf("%d events; %d requests and %d runs, over %d lives", n, len(toReceiver), len(toScript), in.lives)
	check(t, "receiver", expected, toReceiver, mayRepeat)
	check(t, "script", expected, toScript, mayRepeat)
	sameIDs(t, toReceiver, toScript)

	// Each execution has ended once, whatever it took.
	if done := in.executions()["succeeded"]; done != 2*n {
		t.Errorf("%d executions have succeeded, want %d", done, 2*n)
	}
	in.stop()
}

// TestKillWhileAttaching kills Billhook again and again while it attaches for the
// first time: while it makes publication, slot and journal, and while it fills its
// memory. Nothing has to be put right by hand, and then nothing is missed.
func TestKillWhileAttaching(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 0)
	r, s := newReceiver(t), newScript(t)
	in := b.attach(b.db.DSN, r, s) // as superuser, who may make the publication
	for range scaled(t, 12) {
		in.start()
		select {
		case <-in.proc.ended:
			// The server may not have noticed yet that the one before is dead.
			if log := tail(in.log, 1); !strings.Contains(log, "is in use by") {
				t.Fatalf("%v: %s", in.proc.err, log)
			}
		case <-time.After(rand.N(600 * time.Millisecond)):
		}
		in.kill()
	}
	eventually(t, 30*time.Second, func() string {
		in.start()
		select {
		case <-in.proc.ended:
			in.kill()
			return tail(in.log, 1)
		case <-time.After(time.Second):
			return ""
		}
	})
	in.waitReady()
	b.run(scaled(t, 200), 200)
	b.caughtUp(in, 30*time.Second)
	expected, n := b.expected()
	t.Logf("%d events after %d lives", n, in.lives)
	check(t, "receiver", expected, r.all(t), once)
	check(t, "script", expected, s.all(t), once)
	in.stop()
}

// sameIDs fails the test unless both handlers know the same events by the same
// ids and bodies.
func sameIDs(t testing.TB, a, b []arrival) {
	t.Helper()
	bodies := map[string]string{}
	for _, x := range a {
		bodies[x.id] = x.body
	}
	seen := map[string]bool{}
	for _, x := range b {
		seen[x.id] = true
		if bodies[x.id] != x.body {
			t.Errorf("event %s is\n\t%s\nto one handler and\n\t%s\nto the other", x.id, bodies[x.id], x.body)
		}
	}
	if len(seen) != len(bodies) {
		t.Errorf("%d ids at one handler, %d at the other", len(bodies), len(seen))
	}
}
