package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestMain builds the program once; its path is in BILLHOOK_E2E_BIN. The tests
// spend most of their time letting traffic flow, so more of them run at once than
// there are cores, unless -parallel says otherwise.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxiproxy tells every crumb that it carries
	os.Exit(buildAndRun(m))
}

// programs is the folder for what is built. It goes with the test run.
var programs string

func buildAndRun(m *testing.M) int {
	var err error
	if programs, err = os.MkdirTemp("", "billhook-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs)
	if os.Getenv("BILLHOOK_E2E_BIN") != "" {
		return m.Run()
	}
	bin := filepath.Join(programs, "billhook")
	if err := buildProgram(bin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Setenv("BILLHOOK_E2E_BIN", bin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// buildProgram builds the program, with flags of go build, at a path. It is built as make
// build does, so that what that has compiled is not compiled again.
func buildProgram(path string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-o", path}, flags...)
	cgo := "CGO_ENABLED=0"
	if os.Getenv("BILLHOOK_E2E_RACE") != "" {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	build := exec.Command("go", append(args, "./cmd/billhook")...)
	build.Dir = filepath.Join("..", "..")
	build.Env = append(os.Environ(), cgo)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// newSeed is the seed of a random test, another one each time unless
// BILLHOOK_E2E_SEED names it. It says which, so that it can be named.
func newSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("BILLHOOK_E2E_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BILLHOOK_E2E_SEED=%d", seed)
	return seed
}

// scaled multiplies by BILLHOOK_E2E_SCALE.
func scaled(t testing.TB, n int) int {
	t.Helper()
	text := os.Getenv("BILLHOOK_E2E_SCALE")
	if text == "" {
		return n
	}
	by, err := strconv.ParseFloat(text, 64)
	if err != nil || by <= 0 {
		t.Fatalf("BILLHOOK_E2E_SCALE=%q: want a number above 0", text)
	}
	return max(1, int(float64(n)*by))
}

// eventually waits until f returns "", which says what is still wrong.
func eventually(t testing.TB, within time.Duration, f func() (wrong string)) {
	t.Helper()
	if wrong := waitFor(t, within, f); wrong != "" {
		t.Fatalf("after %s: %s", within, wrong)
	}
}

// waitFor is eventually without the verdict: it returns what is wrong at the end.
func waitFor(t testing.TB, within time.Duration, f func() (wrong string)) string {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		wrong := f()
		if wrong == "" {
			return ""
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return wrong
		case <-t.Context().Done():
			return "the test was called off; " + wrong
		}
	}
}

// pause lets traffic flow for a while. It is no way to wait for anything.
func pause(t testing.TB, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
