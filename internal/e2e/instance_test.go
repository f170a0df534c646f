package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/servertest"
)

// instance is one installation of Billhook: its folder, its files, its address,
// and the process, when it runs.
type instance struct {
	t        testing.TB
	dir      string
	config   string // path of billhook.yaml
	handlers string // path of handlers.yaml
	journal  string
	log      string // path of what it wrote to standard error, over all its lives
	address  string
	env      []string
	// user and password are who asks over HTTP; empty: nobody.
	user, password string
	bin            string // the program; empty: the one of BILLHOOK_E2E_BIN

	lives int
	proc  *proc // nil when it does not run
}

// proc is one life. Its goroutine waits for the end.
type proc struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // after ended
}

// install writes the files of an instance into a new folder. $DSN, $JOURNAL and
// $LISTEN stand in billhook.yaml for what only we know.
func install(t testing.TB, dsn, billhookYAML, handlersYAML string) *instance {
	t.Helper()
	dir := t.TempDir()
	in := &instance{
		t: t, dir: dir,
		config: filepath.Join(dir, "billhook.yaml"), handlers: filepath.Join(dir, "handlers.yaml"),
		journal: filepath.Join(dir, "journal"), log: filepath.Join(dir, "billhook.log"),
		address: "127.0.0.1:" + strconv.Itoa(servertest.Port(t)),
	}
	in.env = []string{"PATH=" + os.Getenv("PATH"), "DSN=" + dsn, "JOURNAL=" + in.journal, "LISTEN=" + in.address}
	write(t, in.config, billhookYAML)
	write(t, in.handlers, handlersYAML)
	t.Cleanup(func() {
		in.kill()
		in.sound()
		if t.Failed() {
			t.Logf("billhook's log (%d lives):\n%s", in.lives, tail(in.log, 60))
		}
	})
	return in
}

// write puts a file in place as editors do: whole.
func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// command is the program with arguments and nothing of our environment.
func (in *instance) command(args ...string) *exec.Cmd {
	cmd := exec.Command(cmp.Or(in.bin, os.Getenv("BILLHOOK_E2E_BIN")), args...)
	cmd.Env = in.env
	cmd.Dir = in.dir
	cmd.SysProcAttr = dieWithUs()
	return cmd
}

// start begins a life.
func (in *instance) start() {
	in.t.Helper()
	if in.proc != nil {
		in.t.Fatal("it runs already")
	}
	log, err := os.OpenFile(in.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		in.t.Fatal(err)
	}
	defer log.Close()
	cmd := in.command("run", "--config", in.config, "--handlers", in.handlers)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		in.t.Fatal(err)
	}
	in.lives++
	p := &proc{cmd: cmd, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	in.proc = p
}

// kill ends it with SIGKILL, if it runs, and waits until it is gone.
func (in *instance) kill() {
	if in.proc == nil {
		return
	}
	_ = in.proc.cmd.Process.Kill() // it may have ended
	<-in.proc.ended
	in.proc = nil
}

func (in *instance) signal(s syscall.Signal) {
	in.t.Helper()
	if err := in.proc.cmd.Process.Signal(s); err != nil {
		in.t.Fatalf("signal %s: %v\n%s", s, err, tail(in.log, 10))
	}
}

// stop ends it with SIGTERM; it must end soon and with exit code 0, or at once if
// it has not even begun.
func (in *instance) stop() {
	in.t.Helper()
	in.signal(syscall.SIGTERM)
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	select {
	case <-in.proc.ended:
	case <-timeout.C:
		in.signal(syscall.SIGQUIT) // shows where it stands
		<-in.proc.ended
		in.proc = nil
		in.t.Fatal("it did not end within 30 s of SIGTERM")
	}
	err := in.proc.err
	in.proc = nil
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return // before it could ask for the signal
	}
	if err != nil {
		in.t.Fatalf("after SIGTERM: %v", err)
	}
}

// alive fails the test when the process has ended by itself.
func (in *instance) alive() {
	in.t.Helper()
	select {
	case <-in.proc.ended:
		in.t.Fatalf("billhook has ended: %v\n%s", in.proc.err, tail(in.log, 10))
	default:
	}
}

// waitReady waits until /readyz says yes: attached, streaming, memory filled.
func (in *instance) waitReady() {
	in.t.Helper()
	eventually(in.t, time.Minute, func() string {
		in.alive()
		code, body, err := in.get("/readyz")
		switch {
		case err != nil:
			return err.Error()
		case code != http.StatusOK:
			return string(body)
		}
		return ""
	})
}

// sound fails the test if a life ended in a panic, or the race detector found
// something.
func (in *instance) sound() {
	in.t.Helper()
	b, err := os.ReadFile(in.log)
	if err != nil {
		return // it never ran
	}
	for _, sign := range []string{"panic: ", "fatal error: ", "WARNING: DATA RACE"} {
		if i := bytes.Index(b, []byte(sign)); i >= 0 {
			in.t.Errorf("in billhook's log:\n%s", b[i:min(len(b), i+4000)])
		}
	}
}

func (in *instance) get(path string) (code int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(in.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+in.address+path, nil)
	if err != nil {
		return 0, nil, err
	}
	if in.user != "" {
		req.SetBasicAuth(in.user, in.password)
	}
	req.Close = true // what is kept open would belong to an earlier life
	resp, err := new(http.Client).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// getJSON reads a page of the API.
func (in *instance) getJSON(path string, v any) {
	in.t.Helper()
	code, body, err := in.get(path)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%d: %s", code, body)
	}
	if err == nil {
		err = json.Unmarshal(body, v)
	}
	if err != nil {
		in.t.Fatalf("GET %s: %v", path, err)
	}
}

// executions returns how many executions are in each status, over all handlers.
func (in *instance) executions() map[string]int {
	in.t.Helper()
	var status struct{ Executions map[string]int }
	in.getJSON("/api/v1/status", &status)
	return status.Executions
}

// metric returns the value of a metric that is named with its labels as it stands
// in the exposition.
func (in *instance) metric(name string) float64 {
	in.t.Helper()
	v, err := in.readMetric(name)
	if err != nil {
		in.t.Fatal(err)
	}
	return v
}

// readMetric is metric for one who does not know whether it runs.
func (in *instance) readMetric(name string) (float64, error) {
	code, body, err := in.get("/metrics")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%d", code)
	}
	if err != nil {
		return 0, fmt.Errorf("GET /metrics: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(text, 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// tail returns the last n lines of a file, or why they cannot be read.
func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "(nothing)"
	} else if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
