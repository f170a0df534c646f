//go:build unix

package plugin_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/billhook/billhook/internal/backoff"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/plugin"
	"github.com/billhook/billhook/plugins"
)

// start makes a handler that is closed with the test, and checks that nothing stays.
func start(t *testing.T, o plugin.Options) *plugin.Handler {
	t.Helper()
	before := handlertest.Snapshot()
	h, err := plugin.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		before.Check(t)
	})
	return h
}

// receiver is a handler with the receiver of package plugins.
func receiver(t *testing.T, config map[string]any, change func(*plugin.Options)) (*plugin.Handler, string) {
	t.Helper()
	dir := t.TempDir()
	config["dir"] = dir
	o := options(t, "receiver", config)
	if change != nil {
		change(&o)
	}
	return start(t, o), dir
}

func call(t *testing.T, h *plugin.Handler) (handler.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return h.Handle(ctx, handlertest.Delivery([]byte("{}")))
}

// calls until an attempt succeeds, or fails as want says.
func until(t *testing.T, h *plugin.Handler, want func(handler.Result, error) bool) (handler.Result, error) {
	t.Helper()
	var res handler.Result
	var err error
	if perr := handlertest.Poll("an attempt that ends as it should", func() bool {
		res, err = call(t, h)
		return want(res, err)
	}); perr != nil {
		t.Fatalf("%v: last %+v, %v", perr, res, err)
	}
	return res, err
}

func pid(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		o    plugin.Options
		want string
	}{
		{plugin.Options{Path: "receiver"}, `plugin "receiver": want an absolute path, such as /usr/local/plugin/`},
		{plugin.Options{Path: filepath.Join(dir, "nowhere")}, "does not exist: put it there"},
		{plugin.Options{Path: dir}, "is a directory"},
		{plugin.Options{Path: put("plain", "#!/bin/sh\n", 0o644)}, "is not executable: chmod +x"},
		{plugin.Options{Path: put("open", "#!/bin/sh\n", 0o777)}, "can be changed by others (mode 0777): chmod go-w"},
		{plugin.Options{Path: put("interpreter", "#!/no/such\n", 0o755)}, "the interpreter /no/such of its first line does not exist"},
		{plugin.Options{Path: bin("receiver"), Checksum: "abc"}, "want the 64 digits"},
		{plugin.Options{Path: bin("receiver"), Args: []string{"a\x00"}}, "argument 1 holds a NUL"},
	} {
		if h, err := plugin.New(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.o.Path, err, c.want)
			if err == nil {
				_ = h.Close()
			}
		}
	}
}

// TestStarts: what keeps a plugin from being started is said in words that help, and
// attempts fail with it.
func TestStarts(t *testing.T) {
	content, err := os.ReadFile(bin("receiver"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	right := hex.EncodeToString(sum[:])
	for _, c := range []struct {
		name, bin string
		args      []string
		config    map[string]any
		change    func(*plugin.Options)
		want      string
	}{
		{name: "another version", bin: "raw", want: "speaks version 7 of the plugin protocol, this Billhook version 1: get a plugin, or a Billhook, that fits"},
		{name: "chatter", bin: "raw", want: `printed "starting up" where the handshake belongs`},
		{name: "no certificate", bin: "raw", want: "gives no certificate in its handshake"},
		{name: "silence", bin: "raw", change: func(o *plugin.Options) { o.StartTimeout = 300 * time.Millisecond }, want: "it was not ready within 300ms"},
		{name: "dies", bin: "raw", want: "ended with exit code 1: ERROR: no licence"},
		{name: "slow", bin: "receiver", config: map[string]any{"slow_start": "1h"}, change: func(o *plugin.Options) { o.StartTimeout = time.Second }, want: "it was not ready within 1s"},
		{name: "not ready", bin: "receiver", config: map[string]any{"not_ready": "no switch at ***"}, want: "/receiver: given its configuration: no switch at ***"},
		{name: "refused", bin: "receiver", config: map[string]any{"refuse": "token", "say": "x"}, want: "it is refused: x"},
		{name: "by its schema", bin: "receiver", config: map[string]any{"tokken": secret}, want: "plugin receiver refuses its configuration: tokken: there is no such key here"},
		{name: "another file", bin: "receiver", change: func(o *plugin.Options) { o.Checksum = strings.Repeat("0", 64) }, want: "has the checksum sha256:" + right + ", not sha256:000000"},
		{name: "this file", bin: "receiver", change: func(o *plugin.Options) { o.Checksum = right }},
		{name: "tcp", bin: "raw"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := map[string]any{"dir": t.TempDir()}
			for name, v := range c.config {
				config[name] = v
			}
			o := options(t, c.bin, config)
			if c.bin == "raw" {
				o.Args = strings.Fields(c.name)
			}
			if c.change != nil {
				c.change(&o)
			}
			h := start(t, o)
			err := h.Ready(t.Context())
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if s := h.Status(); !s.Up || s.Name != c.bin || s.Err != nil {
					t.Errorf("status %+v", s)
				}
				if _, err := call(t, h); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %s", err, c.want)
			}
			res, err := call(t, h)
			if err == nil || res.Reason != handler.ReasonStart || handler.IsPermanent(err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "; it is started again in ") {
				t.Errorf("attempt: reason %q, error %v", res.Reason, err)
			}
			if s := h.Status(); s.Up || s.Err == nil || !strings.Contains(s.Err.Error(), c.want) {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// TestRestart: a plugin that dies is started again, at once and then later; what it
// said last is told; metrics count.
func TestRestart(t *testing.T) {
	registry := prometheus.NewRegistry()
	metrics := plugin.NewMetrics(registry)
	h, dir := receiver(t, map[string]any{"behaviour": map[string]any{"Outcome": "crash"}}, func(o *plugin.Options) {
		o.Metrics = metrics
		o.Restart = backoff.Schedule{Initial: 50 * time.Millisecond, Max: 100 * time.Millisecond}
	})
	if err := h.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := pid(t, dir)
	res, err := call(t, h)
	if err == nil || res.Reason != handler.ReasonCrash || !strings.Contains(err.Error(), "ended with exit code 3") {
		t.Errorf("reason %q, error %v", res.Reason, err)
	}
	res, err = call(t, h) // is held up by the start, and then crashes it
	if err == nil || res.Reason != handler.ReasonCrash {
		t.Errorf("reason %q, error %v", res.Reason, err)
	}
	if second := pid(t, dir); second == first {
		t.Error("it was not started again")
	}
	until(t, h, func(res handler.Result, err error) bool {
		return res.Reason == handler.ReasonStart && strings.Contains(err.Error(), "it is started again in")
	})
	until(t, h, func(res handler.Result, err error) bool { return res.Reason == handler.ReasonCrash })
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	if err := handlertest.Poll("three restarts to be counted", func() bool {
		return gathered(t, registry, "billhook_plugin_restarts_total", "crash") >= 3
	}); err != nil {
		t.Error(err)
	}
}

// gathered is the value of a metric of handler 7, with this reason if not empty.
func gathered(t *testing.T, g prometheus.Gatherer, name, reason string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if f.GetName() == name && labels["handler"] == "7" && labels["reason"] == reason {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

// TestPanic: a panic costs the attempt and nothing else.
func TestPanic(t *testing.T) {
	h, dir := receiver(t, map[string]any{"behaviour": map[string]any{"Outcome": "panic"}}, nil)
	for range 2 {
		res, err := call(t, h)
		if err == nil || handler.IsPermanent(err) || res.Reason != handler.ReasonOther || !strings.Contains(err.Error(), "plugin receiver: panic: no") {
			t.Errorf("reason %q, error %v", res.Reason, err)
		}
	}
	if err := syscall.Kill(pid(t, dir), 0); err != nil {
		t.Error("the process is gone:", err)
	}
}

// TestHang: a process that stands still is killed, when a call was given up and also
// when there is none.
func TestHang(t *testing.T) {
	t.Run("in a call", func(t *testing.T) {
		registry := prometheus.NewRegistry()
		h, dir := receiver(t, map[string]any{"behaviour": map[string]any{"Outcome": "stop"}}, func(o *plugin.Options) {
			o.Metrics = plugin.NewMetrics(registry)
			o.Timeout, o.KillGrace = time.Second, 300*time.Millisecond
		})
		if err := h.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := pid(t, dir)
		res, err := call(t, h)
		if err == nil || res.Reason != handler.ReasonTimeout {
			t.Errorf("reason %q, error %v", res.Reason, err)
		}
		if err := syscall.Kill(first, 0); err == nil {
			t.Error("it is still there")
		}
		if err := handlertest.Poll("another process", func() bool { return pid(t, dir) != first }); err != nil {
			t.Error(err)
		}
		if n := gathered(t, registry, "billhook_plugin_restarts_total", "hang"); n != 1 {
			t.Errorf("%v restarts counted", n)
		}
		if res, err := call(t, h); err == nil || res.Reason != handler.ReasonTimeout {
			t.Errorf("reason %q, error %v", res.Reason, err)
		}
	})
	t.Run("while idle", func(t *testing.T) {
		h, dir := receiver(t, map[string]any{}, func(o *plugin.Options) {
			o.HealthEvery, o.HealthTimeout = 50*time.Millisecond, 50*time.Millisecond
		})
		if err := h.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := pid(t, dir)
		if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := handlertest.Poll("another process", func() bool { return pid(t, dir) != first }); err != nil {
			t.Error(err)
		}
		until(t, h, func(_ handler.Result, err error) bool { return err == nil })
	})
	t.Run("by its own word", func(t *testing.T) {
		log, written := recorder(t)
		o := options(t, "raw", map[string]any{"dir": t.TempDir()})
		o.Args, o.Logger = []string{"unwell"}, log
		o.HealthEvery, o.HealthTimeout = 20*time.Millisecond, 10*time.Second
		h := start(t, o)
		if err := h.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := handlertest.Poll("the log", func() bool {
			return strings.Contains(written.String(), "was killed since it did not say that it is well")
		}); err != nil {
			t.Error(err)
		}
	})
}

// TestClose: a plugin is told to end and given time; one that takes too long is killed.
func TestClose(t *testing.T) {
	for _, c := range []struct {
		slow   string
		grace  time.Duration
		closed bool
	}{{"0s", 10 * time.Second, true}, {"3s", 10 * time.Second, true}, {"1h", 200 * time.Millisecond, false}} {
		t.Run(c.slow, func(t *testing.T) {
			before := handlertest.Snapshot()
			dir := t.TempDir()
			o := options(t, "receiver", map[string]any{"dir": dir, "slow_close": c.slow})
			o.KillGrace = c.grace
			h, err := plugin.New(o)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("it took %s", took)
			}
			if _, err := os.Stat(filepath.Join(dir, "closed")); (err == nil) != c.closed {
				t.Errorf("closed: %v, want %t", err, c.closed)
			}
			before.Check(t)
		})
	}
	t.Run("while it starts", func(t *testing.T) {
		began := time.Now()
		t.Run("", func(t *testing.T) { receiver(t, map[string]any{"slow_start": "1h"}, nil) })
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// TestLog: what a plugin logs and prints comes into the log, with levels and without
// secrets.
func TestLog(t *testing.T) {
	log, written := recorder(t)
	h, _ := receiver(t, map[string]any{"token": secret, "say": "about " + secret}, func(o *plugin.Options) { o.Logger = log })
	if err := h.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`level=WARN msg="a warning" handler=7 plugin=receiver plugin_said="about ***"`,
		`level=INFO msg="printed: about ***" handler=7 plugin=receiver`,
		`level=ERROR msg="[ERROR] printed as an error: about ***" handler=7 plugin=receiver`,
	} {
		if err := handlertest.Poll(want, func() bool { return strings.Contains(written.String(), want) }); err != nil {
			t.Error(err)
		}
	}
}

// TestSecretFile: what a plugin reads from a file is masked, too, though Billhook never
// saw it.
func TestSecretFile(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "token"), []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h, _ := receiver(t, map[string]any{"token_file": "token", "behaviour": map[string]any{"Leak": true, "Outcome": "retry"}}, func(o *plugin.Options) { o.ConfigDir = folder })
	res, err := call(t, h)
	shown, _ := json.Marshal(res)
	if err == nil || !strings.Contains(err.Error(), "no***") || strings.Contains(string(shown)+err.Error()+string(res.Response.Body), secret) {
		t.Errorf("%s\n%v", shown, err)
	}
}

// TestShared: handlers that want the same share a process, until the last is closed.
func TestShared(t *testing.T) {
	dir := t.TempDir()
	o := options(t, "receiver", map[string]any{"dir": dir})
	before := handlertest.Snapshot()
	a, err := plugin.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := o
	other.Config = []byte("{}")
	if _, ok := a.Again(other); ok {
		t.Error("another configuration is served by the same process")
	}
	timeout := o
	timeout.Timeout = time.Minute
	b, ok := a.Again(timeout)
	if !ok {
		t.Fatal("the same is not served by the same process")
	}
	process := pid(t, dir)
	for range 2 {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := call(t, b); err != nil || pid(t, dir) != process {
		t.Errorf("after one of two was closed: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, ok := b.Again(o); ok {
		t.Error("a process that has ended serves on")
	}
	if res, err := call(t, b); err == nil || res.Reason != handler.ReasonStart {
		t.Errorf("after Close: %v", err)
	}
	before.Check(t)
}

// TestLazy: a plugin that nobody calls is not started.
func TestLazy(t *testing.T) {
	t.Run("never", func(t *testing.T) {
		h, dir := receiver(t, map[string]any{}, func(o *plugin.Options) { o.Lazy = true })
		if s := h.Status(); s.Wanted || s.Up {
			t.Errorf("status %+v", s)
		}
		if _, err := os.Stat(filepath.Join(dir, "pid")); err == nil {
			t.Error("it was started")
		}
	})
	t.Run("when it is called", func(t *testing.T) {
		h, _ := receiver(t, map[string]any{}, func(o *plugin.Options) { o.Lazy = true })
		if _, err := call(t, h); err != nil {
			t.Error(err)
		}
	})
	t.Run("when it is wanted for good, and not afterwards", func(t *testing.T) {
		o := options(t, "receiver", map[string]any{"dir": t.TempDir()})
		o.Lazy = true
		lazy := start(t, o)
		o.Lazy = false
		h, ok := lazy.Again(o)
		if !ok {
			t.Fatal("the same is not served by the same process")
		}
		defer h.Close()
		if err := h.Ready(t.Context()); err != nil {
			t.Error(err)
		}
		o.Lazy = true
		if _, ok := h.Again(o); ok {
			t.Error("what nobody wants any more runs on")
		}
	})
}

// TestReattach: a plugin that was started by hand is used, and left alone at the end.
func TestReattach(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(bin("receiver"))
	cmd.Env = []string{plugins.DebugVariable + "=7", "TMPDIR=" + t.TempDir()}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Signal(os.Interrupt) }()
	var where map[string]plugins.Reattach
	for s := bufio.NewScanner(out); s.Scan(); {
		if text, ok := strings.CutPrefix(s.Text(), plugins.ReattachVariable+"='"); ok {
			if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "'")), &where); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	r, ok := where["7"]
	if !ok {
		t.Fatal("it does not say where it runs")
	}
	for range 2 {
		t.Run("", func(t *testing.T) {
			o := options(t, "receiver", map[string]any{"dir": dir, "behaviour": map[string]any{"Echo": true}})
			o.Path, o.Reattach = "/no/such/file", &r
			h := start(t, o)
			if res, err := call(t, h); err != nil || string(res.Response.Body) != "{}" {
				t.Errorf("%s, %v", res.Response.Body, err)
			}
			if pid(t, dir) != cmd.Process.Pid {
				t.Error("it is another process")
			}
		})
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Error("it is gone:", err)
	}
	old := r
	old.ProtocolVersion = 9
	o := options(t, "receiver", map[string]any{"dir": dir})
	o.Reattach = &old
	h := start(t, o)
	if err := h.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "version 9") {
		t.Errorf("error %v", err)
	}
}

// TestReadyGivesUp: whoever waits for a start need not wait to its end.
func TestReadyGivesUp(t *testing.T) {
	h, _ := receiver(t, map[string]any{"slow_start": "1h"}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := h.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	res, err := h.Handle(ctx, handlertest.Delivery(nil))
	if err == nil || res.Reason != handler.ReasonTimeout {
		t.Errorf("reason %q, error %v", res.Reason, err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	res, err = h.Handle(ctx, handlertest.Delivery(nil))
	if err == nil || res.Reason != handler.ReasonStart || !strings.Contains(err.Error(), "it is still being started") {
		t.Errorf("reason %q, error %v", res.Reason, err)
	}
}

// TestPayloadTooLarge: what gRPC would not carry is refused for good.
func TestPayloadTooLarge(t *testing.T) {
	h, _ := receiver(t, map[string]any{}, nil)
	res, err := h.Handle(t.Context(), handlertest.Delivery(make([]byte, plugins.MaxSize)))
	if !handler.IsPermanent(err) || res.Reason != handler.ReasonPayload {
		t.Errorf("reason %q, error %v", res.Reason, err)
	}
}

// TestOrphans: when Billhook is killed, nothing of a plugin stays, neither what package
// plugins made nor what is stopped.
func TestOrphans(t *testing.T) {
	for _, c := range []struct {
		bin     string
		stopped bool
	}{{"receiver", false}, {"raw", false}, {"receiver", true}} {
		t.Run(fmt.Sprintf("%s, stopped %t", c.bin, c.stopped), func(t *testing.T) {
			dir := t.TempDir()
			b, err := json.Marshal(map[string]any{"dir": dir, "behaviour": map[string]any{"Outcome": "hang", "Stubborn": true}})
			if err != nil {
				t.Fatal(err)
			}
			host := exec.Command(os.Args[0], "-test.run=^TestMain$")
			host.Env = append(os.Environ(), "PLUGIN_TEST_HOST="+bin(c.bin), "PLUGIN_TEST_CONFIG="+string(b))
			out, err := host.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := host.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n') // the plugin's process id
			if err != nil {
				t.Fatal(err)
			}
			child, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			if c.stopped {
				if err := syscall.Kill(child, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			if err := host.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = host.Wait()
			if err := handlertest.Poll("the plugin to end", func() bool { return gone(child) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// gone reports whether a process has ended; as a zombie it has.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return syscall.Kill(pid, 0) != nil
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z")
}

// hostMain is the process that TestOrphans kills: it has a plugin in the middle of a
// call, and prints its process id.
func hostMain(path string) int {
	h, err := plugin.New(plugin.Options{Path: path, Config: []byte(os.Getenv("PLUGIN_TEST_CONFIG"))})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var config struct{ Dir string }
	if err := json.Unmarshal([]byte(os.Getenv("PLUGIN_TEST_CONFIG")), &config); err != nil {
		return 1
	}
	go func() {
		_ = handlertest.Poll("a call", func() bool {
			_, err := os.Stat(filepath.Join(config.Dir, "entered"))
			return err == nil
		})
		entries, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, e := range entries {
			stat, _ := os.ReadFile(e)
			_, after, _ := strings.Cut(string(stat), ") ")
			if f := strings.Fields(after); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
				fmt.Println(filepath.Base(filepath.Dir(e)))
			}
		}
	}()
	_, _ = h.Handle(context.Background(), handlertest.Delivery([]byte("{}")))
	return 1
}

// TestManyRuns: after many calls with faults of every kind, and many processes,
// descriptors, goroutines and children are what they were after the first start; and
// after the end what they were before. BILLHOOK_TEST_RUNS=10000 asks for more calls.
func TestManyRuns(t *testing.T) {
	n := 1500
	if more, err := strconv.Atoi(os.Getenv("BILLHOOK_TEST_RUNS")); err == nil {
		n = more
	}
	temp := t.TempDir()
	h, dir := receiver(t, map[string]any{"behaviour": map[string]any{"Outcome": "payload"}}, func(o *plugin.Options) {
		o.TempDir = temp
		o.KillGrace = 50 * time.Millisecond
		o.Restart = backoff.Schedule{Initial: time.Millisecond, Max: 10 * time.Millisecond}
	})
	deliver := func(outcome string, within time.Duration) (handler.Result, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		return h.Handle(ctx, handlertest.Delivery([]byte(outcome)))
	}
	succeed := func() {
		t.Helper()
		if err := handlertest.Poll("a success", func() bool {
			_, err := deliver("succeed", time.Minute)
			return err == nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	succeed()
	before := handlertest.Snapshot()

	numbers := make(chan int)
	var mu sync.Mutex
	reasons := map[handler.Reason]int{}
	pids := map[int]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range numbers {
				outcome, within := "succeed", time.Minute
				switch {
				case i%150 == 7:
					outcome = "crash"
				case i%150 == 50:
					outcome, within = "stubborn", 20*time.Millisecond
				case i%150 == 100:
					outcome, within = "stop", 20*time.Millisecond
				case i%10 == 3:
					outcome, within = "hang", 5*time.Millisecond
				case i%10 == 4:
					outcome = "panic"
				case i%10 == 5:
					outcome = "permanent"
				}
				var res handler.Result
				var err error
				if perr := handlertest.Poll("a process", func() bool {
					res, err = deliver(outcome, within)
					return res.Reason != handler.ReasonStart
				}); perr != nil {
					t.Error(perr)
				}
				mu.Lock()
				reasons[res.Reason]++
				if b, perr := os.ReadFile(filepath.Join(dir, "pid")); perr == nil {
					if p, perr := strconv.Atoi(string(b)); perr == nil {
						pids[p] = true
					}
				}
				mu.Unlock()
				if outcome == "succeed" && err != nil && res.Reason != handler.ReasonCrash {
					t.Errorf("call %d: %v", i, err)
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	wg.Wait()
	succeed()
	t.Logf("%d calls, %d processes: %v", n, len(pids), reasons)
	if len(pids) < n/100 {
		t.Errorf("only %d processes were needed", len(pids))
	}
	before.Check(t)
	for p := range pids {
		if b, err := os.ReadFile(filepath.Join(dir, "pid")); err == nil && string(b) != strconv.Itoa(p) && !gone(p) {
			t.Errorf("process %d is still there", p)
		}
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left in the folder for sockets: %v, %v", left, err)
	}
}
