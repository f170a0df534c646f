package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
	"github.com/billhook/billhook/internal/servertest"
)

// second makes another instance of the same files and journal, with an address of its
// own: a second machine with the same disk.
func (in *instance) second() *instance {
	in.t.Helper()
	other := *in
	other.lives, other.proc = 0, nil
	other.log = in.log + ".second"
	other.address = fmt.Sprintf("127.0.0.1:%d", servertest.Port(in.t))
	other.env = []string{"BILLHOOK_STANDBY=true"}
	for _, v := range in.env {
		if !strings.HasPrefix(v, "LISTEN=") {
			other.env = append(other.env, v)
		}
	}
	other.env = append(other.env, "LISTEN="+other.address)
	in.env = append(in.env, "BILLHOOK_STANDBY=true")
	in.t.Cleanup(func() {
		other.kill()
		if in.t.Failed() {
			in.t.Logf("the second's log (%d lives):\n%s", other.lives, tail(other.log, 60))
		}
	})
	return &other
}

// TestStandby has a second instance wait with the first's journal, and kills whichever is
// at work, under traffic: the other takes over each time, and handlers get what the ledger
// expects, each account's events in order, nothing but repetitions under an equal id.
func TestStandby(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.NewDatabase(t), 50)
	r, s := newReceiver(t), newScript(t)
	r.failing.Store(15)
	active := b.attach(b.role(), r, s)
	waiting := active.second()
	active.start()
	active.waitReady()
	tr := b.traffic(300)

	for round := range scaled(t, 6) {
		waiting.start()
		eventually(t, 20*time.Second, func() string {
			waiting.alive()
			code, body, err := waiting.get("/readyz")
			if err != nil || code != http.StatusServiceUnavailable || !strings.Contains(string(body), "has the journal in "+active.journal) {
				return fmt.Sprintf("%d %s %v", code, body, err)
			}
			return ""
		})
		if code, _, err := waiting.get("/healthz"); err != nil || code != http.StatusOK {
			t.Fatal(code, err)
		}
		if code, body, err := waiting.get("/api/v1/status"); err != nil || code != http.StatusServiceUnavailable {
			t.Fatal(code, string(body), err)
		}
		// Prometheus sees one that stands by, and nobody is woken.
		if up, phase := waiting.metric("billhook_replication_up"), waiting.metric(`billhook_replication_phase{phase="standby"}`); up != 0 || phase != 1 {
			t.Fatalf("up %v, phase standby %v", up, phase)
		}
		if round == 1 {
			waiting.stop() // in good order, while it waits
			waiting.start()
		}
		pause(t, 300*time.Millisecond)
		if round == 2 {
			active.stop()
		} else {
			active.kill()
		}
		waiting.waitReady()
		active, waiting = waiting, active
	}
	// It has said it once for each wait, not at every look.
	text, err := os.ReadFile(waiting.log)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "standby: waiting for the journal"); n == 0 || n > 2*waiting.lives {
		t.Errorf("it has said %d times in %d lives that it waits", n, waiting.lives)
	}
	pause(t, 300*time.Millisecond)
	tr.stop()
	b.settled()
	r.failing.Store(0)
	b.caughtUp(active, time.Minute)
	expected, n := b.expected()
	if n < 200 {
		t.Fatalf("only %d events are expected: this proves little", n)
	}
	check(t, "receiver", expected, r.all(t), mayRepeat)
	check(t, "script", expected, s.all(t), mayRepeat)
	active.stop()
}
