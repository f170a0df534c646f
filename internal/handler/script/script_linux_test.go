package script_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/script"
)

// TestBuriesAsInit makes orphans ours, as they are of the first process of a
// container: they do not stay as zombies.
func TestBuriesAsInit(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	before := handlertest.Snapshot()
	h := newHandler(t, script.Options{Path: sh(t, `sleep 1000 & (sh -c 'sleep 1000 & sleep 1000' &); exit 0`)})
	for range 10 {
		if _, err := h.Handle(context.Background(), handlertest.Delivery(payload)); err != nil {
			t.Fatal(err)
		}
	}
	before.Check(t)
}

// TestDiesWithBillhook kills the process that runs a script: the script does not
// outlive it, to go on beside its own repetition.
func TestDiesWithBillhook(t *testing.T) {
	if dir := os.Getenv("SCRIPT_TEST_DIR"); dir != "" { // what is killed
		h := newHandler(t, script.Options{Path: filepath.Join(dir, "script"), Args: []string{dir}})
		res, err := h.Handle(context.Background(), handlertest.Delivery(payload))
		t.Fatalf("the script ended: %v: %+v", err, res)
	}
	path := sh(t, `trap "" TERM HUP PIPE; echo $$ >"$1/pid"; while :; do read _ <"$1/never"; done`)
	dir := filepath.Dir(path)
	never := fifo(t, dir, "never")
	defer never.Close()
	// Orphans become ours, so that nobody else buries this one.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiesWithBillhook$")
	cmd.Env = append(os.Environ(), "SCRIPT_TEST_DIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	err := handlertest.Poll("the script", func() bool {
		text, _ := os.ReadFile(filepath.Join(dir, "pid"))
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		pid = n
		return err == nil && strings.HasSuffix(string(text), "\n")
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if err := handlertest.Poll("the script to die", func() bool {
		n, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		return n == pid || err != nil
	}); err != nil {
		t.Error(err)
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	} else if status.Signal() != unix.SIGKILL {
		t.Errorf("the script ended with status %#x, want SIGKILL", status)
	}
}
