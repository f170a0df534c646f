package handlertest

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// Count is how much of the process's resources is in use: goroutines, open
// descriptors and child processes, zombies included. The latter two are known on
// Linux only.
type Count struct{ Goroutines, Descriptors, Children int }

// Snapshot counts. It must not run beside other tests.
func Snapshot() Count {
	// The first pipe of a process starts the runtime's poller, which stays.
	if r, w, err := os.Pipe(); err == nil {
		_, _ = r.Close(), w.Close()
	}
	return count()
}

// Check waits until no more is in use than at the Snapshot, and fails the test
// if that does not come.
func (c Count) Check(t *testing.T) {
	t.Helper()
	var now Count
	err := Poll("goroutines, descriptors and children to go", func() bool {
		now = count()
		return now.Goroutines <= c.Goroutines && now.Descriptors <= c.Descriptors && now.Children <= c.Children
	})
	if err != nil {
		t.Errorf("%v: %+v, were %+v\n%s\n%s", err, now, c, descriptors(), stacks())
	}
}

func count() Count {
	c := Count{Goroutines: runtime.NumGoroutine()}
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		c.Descriptors = len(entries)
	}
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + p.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (comm) state ppid, where comm may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			c.Children++
		}
	}
	return c
}

func descriptors() string {
	var b strings.Builder
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		fmt.Fprintf(&b, "%s -> %s\n", e.Name(), to)
	}
	return b.String()
}

func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}
