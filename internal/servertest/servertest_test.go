//go:build unix

package servertest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestServer: a server runs as an ordinary user, ends with its children, and comes
// back.
func TestServer(t *testing.T) {
	dir := Dir(t)
	script := Write(t, dir, "server.sh", "id -u; sleep 1000 & echo $!; wait")
	s := Start(t, Options{Path: "/bin/sh", Args: []string{script}, Dir: dir, Ready: func() error {
		if b, err := os.ReadFile(filepath.Join(dir, "server.log")); err != nil || strings.Count(string(b), "\n") < 2 {
			return errors.New("it has not said enough")
		}
		return nil
	}})
	lines := strings.Fields(s.Log(t))
	if lines[0] != User(t).Uid || lines[0] == "0" {
		t.Errorf("it runs as %s", lines[0])
	}
	group := s.cmd.Process.Pid
	s.Stop(t)
	Until(t, func() string {
		if err := syscall.Kill(-group, 0); !errors.Is(err, syscall.ESRCH) {
			return "something of it is still there"
		}
		return ""
	})
	s.Stop(t) // again
	s.Start(t)
	s.Kill(t)
}

// TestMissing: without its server a test fails and says how to get it, or skips.
func TestMissing(t *testing.T) {
	if os.Getenv("SERVERTEST_MISSING") != "" {
		Program(t, "no-such-server", "no-such-package")
		t.Log("it went on")
		return
	}
	for skip, want := range map[string]string{"": "--- FAIL", "1": "--- SKIP"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMissing$", "-test.v")
		cmd.Env = append(os.Environ(), "SERVERTEST_MISSING=1", SkipVariable+"="+skip)
		out, _ := cmd.CombinedOutput()
		if text := string(out); !strings.Contains(text, want) || !strings.Contains(text, "apt-get install no-such-package") || strings.Contains(text, "it went on") {
			t.Errorf("skip %q:\n%s", skip, out)
		}
	}
}
