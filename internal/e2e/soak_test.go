package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/demo/cluster"
	"github.com/billhook/billhook/internal/pgtest"
)

// TestSoak has traffic go on while everything around Billhook fails, one thing after
// another in random order: the receiver refuses, hangs, talks nonsense, breaks
// connections, is slow, is away; scripts fail; Billhook is killed and stopped, the
// server crashes, the network to either is cut, stalls, swallows, resets and is slow, the
// disk is full, the clock is set, a handler is disabled, its file is wrong. After each
// round handlers must have got what the ledger says, each account in order, and nothing
// but repetitions under an equal id.
//
// While the receiver is down, those who do not depend on it get theirs, and the
// database keeps no WAL for it.
//
// BILLHOOK_SOAK_FOR is how long that goes on; by default it is one round.
func TestSoak(t *testing.T) {
	t.Parallel()
	var lasts time.Duration
	if text := os.Getenv("BILLHOOK_SOAK_FOR"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	chance := rand.New(rand.NewPCG(newSeed(t), 3))
	between := func(low, high int) time.Duration {
		return time.Duration(low+chance.IntN(high-low)) * time.Millisecond
	}

	pg := pgtest.Start(t, nil)
	b := newBench(t, pgtest.NewDatabaseOn(t, pg), 50)
	r, o, s := newReceiver(t), newReceiver(t), newScript(t)
	toDatabase, toReceiver := newWire(t, local(pg.Port())), newWire(t, r.address)
	disk, isSmall := smallDisk(t)
	in := install(t, b.role()+"&port="+toDatabase.port(), benchYAML(b.db.Name), "")
	in.journal = filepath.Join(disk, "journal")
	for i, v := range in.env {
		if strings.HasPrefix(v, "JOURNAL=") {
			in.env[i] = "JOURNAL=" + in.journal
		}
	}
	file := func(status string) string {
		return fmt.Sprintf(`version: 1
defaults:
  timeout: 5s
  retry: {attempts: 12, initial: 20ms, max: 200ms, factor: 2, jitter: 0.5}
handlers:
  - {id: 1, name: Tell the CRM, event: "clients.*", priority: 2, blocking: false, status: %s, timeout: 300ms, breaker: {failures: 3, pause: 50ms, max: 200ms}, http: {url: %q}}
  - {id: 2, name: Tell the switch, event: "clients.*", priority: 1, retry: {attempts: 10000}, script: {path: %q}}
  - {id: 3, name: Tell the mailer, event: "clients.*", priority: 1, http: {url: %q}}
`, status, "http://"+toReceiver.address(), s.path, o.url)
	}
	clock := withClock(t, in)
	write(t, in.handlers, file("enabled"))
	in.start()
	in.waitReady()

	// The receiver is down: the others are not, and neither is the database.
	outage := func(begin, end func()) func() {
		return func() {
			in.alive()
			others := len(o.all(t))
			begin()
			pause(t, between(500, 1500))
			now := pgtest.Value[string](t, b.db, "SELECT pg_current_wal_lsn()::text")
			eventually(t, 30*time.Second, func() string {
				in.alive()
				if !pgtest.Value[bool](t, b.db, "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", now, "billhook_"+b.db.Name) {
					return "the slot waits at " + b.slot("confirmed_flush_lsn") + " for a receiver that is down, the server was at " + now
				}
				if n := len(o.all(t)); n <= others {
					return "another handler waits for the one that is down"
				}
				return ""
			})
			if in.executions()["pending"] == 0 {
				t.Error("nothing is pending: the outage was none")
			}
			end()
		}
	}
	back := func() { r.mode.Store(answering) }
	unwell := func(w *wire, how []toxic, low, high int) func() {
		return func() {
			w.ill(how...)
			pause(t, between(low, high))
			w.heal()
		}
	}
	faults := map[string]func(){
		"refuse":   outage(func() { r.failing.Store(100) }, func() { r.failing.Store(0) }),
		"hang":     outage(func() { r.mode.Store(hanging) }, back),
		"nonsense": outage(func() { r.mode.Store(nonsense) }, back),
		"away":     outage(func() { r.close(t) }, func() { r.comeBack(t) }),
		"flaky": func() {
			r.failing.Store(30)
			s.failing(t, true)
			r.slow.Store(int64(100 * time.Millisecond))
			pause(t, between(500, 2000))
			r.failing.Store(0)
			s.failing(t, false)
			r.slow.Store(0)
		},
		"kill": func() {
			in.alive()
			in.kill()
			pause(t, between(0, 300))
			in.start()
		},
		"stop": func() {
			in.alive()
			in.stop()
			pause(t, between(0, 300))
			in.start()
		},
		"crash": func() {
			if err := pg.Restart(t.Context(), cluster.Immediate); err != nil {
				t.Fatal(err)
			}
		},
		"cut": func() {
			toDatabase.down()
			pause(t, between(0, 500))
			toDatabase.up()
		},
		"stall":      unwell(toDatabase, stalled, 100, 1500),
		"hole":       unwell(toDatabase, swallowing, 50, 500),
		"slow":       unwell(toDatabase, slow, 1000, 3000),
		"http cut":   outage(toReceiver.down, toReceiver.up),
		"http hole":  outage(func() { toReceiver.ill(swallowing...) }, toReceiver.heal),
		"http reset": outage(func() { toReceiver.ill(resetting...) }, toReceiver.heal),
		"http slow":  unwell(toReceiver, slow, 500, 2000),
		// The clock is set while a receiver is down: what waits for it must not wait for
		// longer. Now and then between two lives.
		"clock": func() {
			outage(func() { r.failing.Store(100) }, func() {
				set := time.Duration(chance.IntN(96)-48) * time.Hour
				if chance.IntN(3) == 0 {
					in.kill()
					clock.wrong(set)
					in.start()
				} else {
					clock.wrong(set)
				}
				r.failing.Store(0)
			})()
		},
		"disable": func() {
			in.waitReady()
			write(t, in.handlers, file("disabled"))
			eventually(t, 15*time.Second, func() string {
				if in.executions()["held"] == 0 {
					return "nothing is held for the handler that was disabled"
				}
				return ""
			})
			write(t, in.handlers, "version: 1\nhandlers: [{id: 1}]\n")
			pause(t, between(100, 500))
			write(t, in.handlers, file("enabled"))
		},
	}
	if isSmall {
		faults["full"] = func() {
			in.waitReady()
			unfill := fill(t, disk)
			defer unfill()
			eventually(t, 20*time.Second, func() string {
				in.alive()
				if in.metric("billhook_intake_blocked") != 1 {
					return "intake goes on although there is no room"
				}
				return ""
			})
			if chance.IntN(2) == 0 {
				in.kill()
				unfill()
				in.start()
			}
		}
	} else {
		t.Log("no disk is filled: that needs a file system of our own, which only root may mount")
	}

	done := map[string]int{}
	names := make([]string, 0, len(faults))
	for name := range faults {
		names = append(names, name)
	}
	slices.Sort(names)
	var n int
	for end := time.Now().Add(lasts); len(done) == 0 || time.Now().Before(end); {
		tr := b.traffic(200)
		chance.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			pause(t, between(100, 700))
			if strings.Contains("refuse hang nonsense away clock", name) || strings.HasPrefix(name, "http") {
				in.waitReady()
			}
			faults[name]()
			done[name]++
		}
		tr.stop()
		b.settled()
		in.waitReady()
		eventually(t, 15*time.Second, func() string { // the file is read a moment after it was written
			if n := in.executions()["held"]; n > 0 {
				return fmt.Sprintf("%d executions are held although every handler is enabled", n)
			}
			return ""
		})
		b.caughtUp(in, time.Minute)
		for status, n := range in.executions() {
			if status != "succeeded" && n > 0 {
				t.Errorf("%d executions are %s", n, status)
			}
		}
		var expected map[int][]expectation
		expected, n = b.expected()
		check(t, "receiver", expected, r.all(t), mayRepeat)
		check(t, "mailer", expected, o.all(t), mayRepeat)
		check(t, "script", expected, s.all(t), mayRepeat)
		sameIDs(t, r.all(t), o.all(t))
		if t.Failed() {
			break
		}
	}
	in.stop()
	t.Logf("%s; %d events, over %d lives", counts(done), n, in.lives)
	if n < 200 {
		t.Errorf("only %d events are expected: this proves little", n)
	}
}

// smallDisk mounts a file system of its own, if we may. It is a little larger than the
// reserve at which intake stands still.
func smallDisk(t *testing.T) (path string, isSmall bool) {
	t.Helper()
	path = t.TempDir()
	if err := mount(path, 768<<20); err != nil {
		return path, false
	}
	t.Cleanup(func() {
		if err := unmount(path); err != nil {
			t.Error(err)
		}
	})
	return path, true
}

// fill leaves no byte free on a disk, until the function it returns is called.
func fill(t *testing.T, disk string) (undo func()) {
	t.Helper()
	path := filepath.Join(disk, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(zero)
	}
	if !isFull(err) {
		t.Fatal(errors.Join(err, io.ErrUnexpectedEOF))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() { _ = os.Remove(path) } // also twice
}
