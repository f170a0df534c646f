package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/pgtest"
)

// clockVariable names the file in which a program that buildClocked has made finds by how
// many seconds its wall clock is wrong.
const clockVariable = "BILLHOOK_E2E_CLOCK"

// wrongClock is what such a program has besides in its package time.
const wrongClock = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var wrongBy = readWrong()

func readWrong() *int64 {
	path, ok := syscall.Getenv("` + clockVariable + `")
	if !ok {
		return new(int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("open " + path + ": " + err.Error())
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("map " + path + ": " + err.Error())
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}

func wrongNow() (sec int64, nsec int32, mono int64) {
	sec, nsec, mono = runtimeNow()
	return sec + atomic.LoadInt64(wrongBy), nsec, mono
}
`

// buildClocked makes the program once more, of the same sources, with a wall clock that can
// be set while it runs, and returns its path. The monotonic clock stays right, as it does
// where somebody sets the clock of a machine. The machine's own is not ours to set, and
// nothing can be put between a static program and it: so package time is another one.
var buildClocked = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(programs, "clock")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return "", err
	}
	const asks = "\tsec, nsec, mono := runtimeNow()\n"
	before, now, ok := strings.Cut(string(source), "\nfunc Now() Time {\n"+asks)
	if !ok || strings.Contains(now, asks) {
		return "", errors.New("package time asks for the time in another way than this test knows")
	}
	now = before + "\nfunc Now() Time {\n\tsec, nsec, mono := wrongNow()\n" + now
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": now, "wrong_clock.go": wrongClock} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(std, name)] = path
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "billhook")
	return path, buildProgram(path, "-overlay", filepath.Join(dir, "overlay.json"))
})

// wallClock is the clock of an instance.
type wallClock struct {
	t    testing.TB
	file *os.File
}

// withClock gives an instance that does not run a clock that can be set.
func withClock(t testing.TB, in *instance) *wallClock {
	t.Helper()
	bin, err := buildClocked()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(in.dir, "clock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	in.bin = bin
	in.env = append(in.env, clockVariable+"="+f.Name())
	c := &wallClock{t, f}
	c.wrong(0)
	return c
}

// wrong sets the clock to be wrong by so much, now and in later lives.
func (c *wallClock) wrong(by time.Duration) {
	c.t.Helper()
	if _, err := c.file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(by/time.Second))), 0); err != nil {
		c.t.Fatal(err)
	}
}

// TestClock sets the clock of the machine on which Billhook runs, back and forward, while
// everything that can wait for a time does: a retry, a breaker, a rate limit, an event by
// the database's clock, and again between two lives. Nothing waits for longer than it
// would have, and no event by the database's clock is told before its time.
func TestClock(t *testing.T) {
	t.Parallel()
	db := pgtest.NewDatabase(t, `CREATE TABLE clients (id int PRIMARY KEY, note text NOT NULL, ends timestamptz)`)
	refuses, breaks, limited := newReceiver(t), newReceiver(t), newReceiver(t)
	in := install(t, db.DSN, strings.ReplaceAll(`version: 1
source: {dsn: "${DSN}", slot: NAME, publication: NAME}
entities: {clients: {table: clients, key: [id]}}
events: {clients.ended: {title: Ended, entity: clients, at: ends}}
journal: {path: "${JOURNAL}"}
http: {listen: "${LISTEN}"}
`, "NAME", "billhook_"+db.Name), fmt.Sprintf(`version: 1
defaults: {retry: {attempts: 1000, initial: 2s, max: 2s, jitter: 0}, breaker: {failures: 0}}
handlers:
  - {id: 1, name: Refuses, event: "clients.*", blocking: false, http: {url: %q}}
  - {id: 2, name: Breaks, event: "clients.*", blocking: false, breaker: {failures: 1, pause: 2s, max: 2s}, http: {url: %q}}
  - {id: 3, name: Limited, event: "clients.*", blocking: false, rate: 4/s, http: {url: %q}}
`, refuses.url, breaks.url, limited.url))
	clock := withClock(t, in)
	clock.wrong(3 * time.Hour) // as the clock of a machine may be that has just been started
	in.start()
	in.waitReady()

	n := 0
	write := func(count int) {
		t.Helper()
		for range count {
			n++
			db.Exec(t, "INSERT INTO clients (id, note) VALUES ("+strconv.Itoa(n)+", "+strconv.Itoa(n)+")")
		}
	}
	// Everything waits, then the clock is set.
	waits := func(set func()) {
		t.Helper()
		refuses.failing.Store(100)
		breaks.failing.Store(100)
		write(10)
		eventually(t, 20*time.Second, func() string {
			if len(refuses.all(t)) == 0 || in.metric(`billhook_breaker_open{handler="2"}`) != 1 {
				return "nothing has failed yet"
			}
			return ""
		})
		set()
		refuses.failing.Store(0)
		breaks.failing.Store(0)
	}
	// Then everything is done, soon, and nothing is left out.
	done := func(name string, events int) {
		t.Helper()
		if wrong := waitFor(t, 20*time.Second, func() string {
			in.alive()
			if x := in.executions(); x["pending"] > 0 || x["succeeded"] != 3*events || x["dead"] > 0 {
				return fmt.Sprintf("%v, want %d succeeded", x, 3*events)
			}
			return ""
		}); wrong != "" {
			t.Fatalf("%s: %s", name, wrong)
		}
		for handler, r := range map[int]*receiver{1: refuses, 2: breaks, 3: limited} {
			accepted := map[string]int{}
			for _, a := range r.all(t) {
				if a.accepted {
					accepted[a.id]++
				}
			}
			if len(accepted) != events {
				t.Errorf("%s: handler %d was told of %d events, want %d", name, handler, len(accepted), events)
			}
		}
	}

	waits(func() { clock.wrong(-3 * time.Hour) })
	done("set back by six hours", n)
	waits(func() { clock.wrong(27 * time.Hour) })
	done("set forward by thirty hours", n)
	waits(func() {
		in.kill()
		clock.wrong(0)
		in.start()
		in.waitReady()
	})
	done("set back between two lives", n)

	// By the database's clock, whatever ours does. The first such event finds out how far
	// the two are apart.
	events := n
	ends := func(name string, set time.Duration) {
		t.Helper()
		events += 2 // it is changed, and it ends
		due := pgtest.Value[time.Time](t, db, "UPDATE clients SET ends = clock_timestamp() + '2s' WHERE id = 1 RETURNING ends")
		clock.wrong(set)
		done(name, events)
		if late := pgtest.Value[time.Time](t, db, "SELECT clock_timestamp()").Sub(due); late < 0 {
			t.Errorf("%s: it was told that the client has ended %s before", name, -late)
		}
	}
	ends("ends with a clock that is right", 0)
	ends("ends when it was set back", -6*time.Hour)
	ends("ends with a clock that is wrong", -6*time.Hour)
	ends("ends when it was set forward", 48*time.Hour)
	in.stop()
}
