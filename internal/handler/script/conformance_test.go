//go:build unix

package script_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/script"
	"github.com/billhook/billhook/internal/servertest"
)

const (
	secret = "s3cr3t-t0ken-0123456789"
	limit  = 16 << 10
)

func TestConformance(t *testing.T) {
	t.Run("sh", func(t *testing.T) { conform(t, "receiver.sh") })
	t.Run("python", func(t *testing.T) {
		if _, err := os.Stat("/usr/bin/python3"); err != nil {
			servertest.Missing(t, "/usr/bin/python3", "python3")
		}
		conform(t, "receiver.py")
	})
}

func conform(t *testing.T, receiver string) {
	handlertest.Run(t, handlertest.Kind{
		New:    func(t *testing.T, b handlertest.Behaviour) *handlertest.Subject { return subject(t, receiver, b) },
		Limit:  limit,
		Secret: secret,
		Grace:  5 * time.Second,
	})
}

// install copies a file of testdata to a folder that passes the handler's checks
// whatever the umask was when this repository was cloned.
func install(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return write(t, name, string(content))
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func newHandler(t *testing.T, o script.Options) *script.Handler {
	t.Helper()
	h, err := script.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// fifo makes a named pipe in dir and holds it open, so that its readers wait.
func fifo(t *testing.T, dir, name string) *os.File {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// subject is a handler with a real script that behaves as b says.
func subject(t *testing.T, receiver string, b handlertest.Behaviour) *handlertest.Subject {
	t.Helper()
	dir := t.TempDir()
	gate, never := fifo(t, dir, "gate"), fifo(t, dir, "never")
	args := []string{dir}
	add := func(when bool, arg string) {
		if when {
			args = append(args, arg)
		}
	}
	add(b.Stubborn, "stubborn")
	add(!b.Deaf, "read")
	add(true, "enter")
	add(b.Gate, "gate")
	add(b.Output > 0, fmt.Sprintf("output=%d", b.Output))
	add(b.Bad, "bad")
	add(b.Leak, "leak")
	add(b.Echo, "echo")
	add(b.Report, "report")
	add(b.Answer != "", "print="+b.Answer)
	add(b.RetryAfter > 0, fmt.Sprintf(`print={"retry_after":%d}`, b.RetryAfter/time.Second))
	add(true, string(b.Outcome))
	return &handlertest.Subject{
		Handler: newHandler(t, script.Options{
			Path: install(t, receiver), Args: args, Env: []script.Var{{Name: "RECEIVER_TOKEN", Value: secret}},
			CaptureLimit: limit, KillGrace: 100 * time.Millisecond,
		}),
		Entered: func(n int) error {
			return handlertest.Poll(fmt.Sprintf("%d calls", n), func() bool {
				seen, _ := os.ReadFile(filepath.Join(dir, "entered"))
				return len(seen) >= 2*n
			})
		},
		Release: func() { _, _ = gate.WriteString(strings.Repeat("\n", 1000)) },
		Stop:    func() { _, _ = gate.Close(), never.Close() },
	}
}

// alive returns the processes whose environment has the text.
func alive(text string) []string {
	out, _ := exec.Command("grep", "-lsa", text, "-r", "/proc", "--include=environ").Output()
	return strings.Fields(string(out))
}

// TestMain offers the test itself as launcher of programs with limits.
func TestMain(m *testing.M) {
	if os.Args[0] == script.LaunchName {
		os.Exit(script.Launch(os.Args))
	}
	os.Exit(m.Run())
}
