package e2e

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// TestStop stops Billhook in good order three times under load, with attempts
// under way all the time, and some times while it starts. Nothing comes twice, and
// nothing is missed.
func TestStop(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 50)
	r, s := newReceiver(t), newScript(t)
	r.slow.Store(int64(100 * time.Millisecond))
	in := b.attach(b.role(), r, s)
	in.start()
	in.waitReady()
	tr := b.traffic(150)
	for i := range scaled(t, 3) {
		pause(t, time.Duration(700+100*i)*time.Millisecond)
		before := len(r.all(t))
		eventually(t, 20*time.Second, func() string {
			if len(r.all(t)) == before {
				return "no traffic"
			}
			return ""
		})
		in.stop()
		in.start()
	}
	for range scaled(t, 6) {
		pause(t, rand.N(200*time.Millisecond))
		in.stop()
		in.start()
	}
	pause(t, 500*time.Millisecond)
	tr.stop()
	b.settled()
	in.waitReady()
	b.caughtUp(in, time.Minute)

	expected, n := b.expected()
	if n < 100 {
		t.Fatalf("only %d events are expected: this proves little", n)
	}
	t.Logf("%d events", n)
	toReceiver, toScript := r.all(t), s.all(t)
	check(t, "receiver", expected, toReceiver, once)
	check(t, "script", expected, toScript, once)
	for _, a := range append(toReceiver, toScript...) {
		if a.attempt != 1 {
			t.Errorf("event %s took attempt %d at handler %d: a stop costs none", a.id, a.attempt, a.handler)
		}
	}
	in.stop()
}
