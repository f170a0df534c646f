//go:build unix

package script_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/script"
)

var payload = []byte(`{"event":{"events_id":"clients.balance_zero"}}`)

func handle(t *testing.T, o script.Options) (handler.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return newHandler(t, o).Handle(ctx, handlertest.Delivery(payload))
}

// sh writes a shell script with this body.
func sh(t *testing.T, body string) string {
	t.Helper()
	return write(t, "script", "#!/bin/sh\n"+body+"\n")
}

func TestEnvironment(t *testing.T) {
	t.Setenv("BILLHOOK_TEST_INHERITED", "no")
	t.Setenv("PGPASSWORD", "no")
	path := sh(t, `env -0; printf 'args:'; printf '<%s>' "$@"; printf '\0cwd:'; pwd; printf '\0fds:'; ls /proc/self/fd 2>/dev/null | tr '\n' ' '; printf '\0umask:'; umask`)
	ctx, cancel := context.WithDeadline(context.Background(), time.Unix(4000000000, 500))
	defer cancel()
	h := newHandler(t, script.Options{
		Path: path, Args: []string{"", "a b", "$(id)", "*", "-n"}, Dir: "/usr",
		Env: []script.Var{{Name: "SWITCH", Value: "10.0.0.1 'x'"}, {Name: "PATH", Value: "/bin:/usr/bin"}, {Name: "API_TOKEN", Value: "t0ken-value"}},
	})
	res, err := h.Handle(ctx, handlertest.Delivery(payload))
	if err != nil {
		t.Fatal(err, res.Response)
	}
	got := map[string]string{}
	for _, v := range strings.Split(string(res.Response.Body), "\x00") {
		name, value, _ := strings.Cut(v, "=")
		got[name] = value
	}
	d := handlertest.Delivery(nil)
	want := map[string]string{
		"BILLHOOK_EVENT": "clients.balance_zero", "BILLHOOK_EVENT_ID": "1-16/B374D848-3", "BILLHOOK_OBJECT_ID": d.Event.Object,
		"BILLHOOK_LANE": d.Event.Lane, "BILLHOOK_ATTEMPT": "3", "BILLHOOK_HANDLER": "7", "BILLHOOK_HANDLER_NAME": d.Name,
		"BILLHOOK_DEADLINE": "4000000000", "LANG": "C.UTF-8", "SWITCH": "10.0.0.1 'x'", "PATH": "/bin:/usr/bin", "API_TOKEN": "***",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s = %q, want %q", name, got[name], value)
		}
	}
	for name := range got {
		// PWD and the like are the shell's.
		if _, ok := want[name]; !ok && !slices.Contains([]string{"HOME", "PWD", "OLDPWD", "SHLVL", "_"}, name) && !strings.Contains(name, ":") && name != "" {
			t.Errorf("the script sees %s=%s", name, got[name])
		}
	}
	for _, want := range []string{"args:<><a b><$(id)><*><-n>\x00", "cwd:/usr\n"} {
		if !strings.Contains(string(res.Response.Body), want) {
			t.Errorf("no %q in %q", want, res.Response.Body)
		}
	}
	if runtime.GOOS == "linux" {
		_, fds, _ := strings.Cut(string(res.Response.Body), "fds:")
		fds, _, _ = strings.Cut(fds, "\x00")
		for fd := range strings.FieldsSeq(fds) {
			n, _ := strconv.Atoi(fd)
			flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
			inherited := err == nil && flags&unix.FD_CLOEXEC == 0 // by this test from whoever runs it
			if n > 3 && n != 10 && !inherited {                   // 3 is ls's own, 10 where a shell has its script
				t.Errorf("the script has descriptor %d", n)
			}
		}
	}
	for _, line := range []string{"path: " + path, "argument: $(id)", "SWITCH: 10.0.0.1 'x'", "API_TOKEN: ***", "BILLHOOK_ATTEMPT: 3"} {
		if !slices.Contains(res.Request.Head, line) {
			t.Errorf("no %q in the log: %q", line, res.Request.Head)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		code   int
		o      script.Options
		class  string
		detail string
	}{
		{0, script.Options{}, "success", ""},
		{1, script.Options{}, "retry", "exit code 1: why"},
		{75, script.Options{}, "retry", "exit code 75 (EX_TEMPFAIL): why"},
		{64, script.Options{}, "permanent", "exit code 64 (EX_USAGE): why"},
		{65, script.Options{}, "permanent", "exit code 65 (EX_DATAERR): why"},
		{77, script.Options{}, "permanent", "exit code 77 (EX_NOPERM): why"},
		{78, script.Options{}, "permanent", "exit code 78 (EX_CONFIG): why"},
		{127, script.Options{}, "retry", "exit code 127 (command not found): why"},
		{137, script.Options{}, "retry", "exit code 137 (as shells report signal 9 (SIGKILL)): why"},
		{255, script.Options{}, "retry", "exit code 255: why"},
		{3, script.Options{Success: []string{"3"}}, "success", ""},
		{1, script.Options{Permanent: []string{"1-63"}}, "permanent", "exit code 1: why"},
		{65, script.Options{Retry: []string{"65"}}, "retry", "exit code 65 (EX_DATAERR): why"},
		{0, script.Options{Permanent: []string{"0"}}, "permanent", "exit code 0: why"},
	} {
		t.Run(fmt.Sprintf("%d %v%v%v", tc.code, tc.o.Success, tc.o.Retry, tc.o.Permanent), func(t *testing.T) {
			tc.o.Path = sh(t, "echo first >&2; echo why >&2; exit "+strconv.Itoa(tc.code))
			res, err := handle(t, tc.o)
			class, reason := "success", handler.Reason("")
			if err != nil {
				class, reason = "retry", handler.ReasonExit
			}
			if handler.IsPermanent(err) {
				class = "permanent"
			}
			if class != tc.class || res.Reason != reason || res.Code != tc.code {
				t.Errorf("%s, reason %q, code %d: %v, want %s", class, res.Reason, res.Code, err, tc.class)
			}
			if want := "run " + tc.o.Path + ": " + tc.detail; err != nil && err.Error() != want {
				t.Errorf("error %q, want %q", err, want)
			}
			if !slices.Contains(res.Response.Head, "stderr: first") || !slices.Contains(res.Response.Head, "exit: "+strconv.Itoa(tc.code)) {
				t.Errorf("logged %q", res.Response.Head)
			}
		})
	}
}

func TestSignal(t *testing.T) {
	res, err := handle(t, script.Options{Path: sh(t, "echo so far; kill -SEGV $$")})
	if err == nil || handler.IsPermanent(err) || res.Reason != handler.ReasonSignal || res.Code != -1 || !strings.Contains(err.Error(), "killed by signal 11 (SIGSEGV)") {
		t.Errorf("reason %q, code %d: %v", res.Reason, res.Code, err)
	}
	if string(res.Response.Body) != "so far\n" {
		t.Errorf("output %q", res.Response.Body)
	}
}

func TestAnswer(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		stop       bool
		after      time.Duration
		text       string // in the error or the note
	}{
		{"last line", `echo working; echo '{"stop":true,"reason":"vip"}'`, true, 0, ""},
		{"not the last line", `echo '{"stop":true}'; echo done`, false, 0, ""},
		{"blank lines after it", `printf '{"stop":true}\r\n\n \n'`, true, 0, ""},
		{"without line end", `printf '{"stop":true}'`, true, 0, ""},
		{"on stderr it is none", `echo '{"stop":true}' >&2`, false, 0, ""},
		{"broken", `echo '{"stop":true'`, false, 0, "billhook-note: the JSON answer in the last line was ignored: it is not valid JSON"},
		{"after huge output", `head -c 1000000 /dev/zero; echo; echo '{"stop":true}'`, true, 0, ""},
		{"cut off", `printf '{"stop":true,"x":"'; head -c 1000000 /dev/zero | tr '\0' x; echo '"}'`, false, 0, ""},
		{"retry after", `echo '{"retry_after":"90s","reason":"busy"}'; exit 75`, false, 90 * time.Second, "exit code 75 (EX_TEMPFAIL): busy"},
		{"retry after, cut", `echo '{"retry_after":86400}'; exit 1`, false, time.Hour, "billhook-note: retry_after asks for 24h0m0s, which is cut to 1h0m0s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, err := handle(t, script.Options{Path: sh(t, tc.body)})
			if res.Answer.Stop != tc.stop {
				t.Errorf("answer %+v, output %.100q", res.Answer, res.Response.Body)
			}
			if d, _ := handler.RetryDelay(err); d != tc.after {
				t.Errorf("delay %s, want %s", d, tc.after)
			}
			text := fmt.Sprint(err, res.Response.Head)
			if !strings.Contains(text, tc.text) || strings.Contains(text, "billhook-note") != strings.Contains(tc.text, "billhook-note") {
				t.Errorf("want %q in %s", tc.text, text)
			}
		})
	}
}

func TestOutputs(t *testing.T) {
	res, err := handle(t, script.Options{Path: sh(t, `for i in $(seq 2000); do echo "out $i"; echo "err $i" >&2; done`), CaptureLimit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	out := string(res.Response.Body)
	if !strings.HasPrefix(out, "out 1\n") || !strings.HasSuffix(out, "out 2000\n") || strings.Contains(out, "err") || len(out) > 1100 {
		t.Errorf("output %q", out)
	}
	if res.Response.Truncated < 10000 {
		t.Errorf("truncated %d", res.Response.Truncated)
	}
	errs := strings.Join(res.Response.Head, "\n")
	if !strings.Contains(errs, "stderr: err 1\n") || !strings.HasSuffix(errs, "stderr: err 2000") || strings.Contains(errs, "out") || !strings.Contains(errs, "bytes dropped ...]") {
		t.Errorf("errors %q", errs)
	}
	res, err = handle(t, script.Options{Path: sh(t, `seq 10000 >&2`)})
	if n := len(res.Response.Head); err != nil || n > 500 || !slices.Contains(res.Response.Head, "stderr: 10000") {
		t.Errorf("%v, %d lines: %q", err, n, res.Response.Head)
	}
	res, err = handle(t, script.Options{Path: sh(t, `echo x; echo y >&2`), CaptureLimit: -1})
	if err != nil || strings.Contains(fmt.Sprint(res.Response), "y\n") || res.Response.Truncated != 2 {
		t.Errorf("%v: %+v", err, res.Response)
	}
}

// TestNothingStays has scripts leave processes behind in all the ways there are
// within a process group.
func TestNothingStays(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	for _, tc := range []struct {
		name, body string
		ends       bool // by itself, with exit code 0
	}{
		{"background child that holds the output", `sleep 1000 & exit 0`, true},
		{"background child of a child", `(sh -c 'sleep 1000 & sleep 1000' & ) ; exit 0`, true},
		{"background child without output", `sleep 1000 >/dev/null 2>&1 </dev/null & exit 0`, true},
		{"child that ignores TERM, at exit", `sh -c 'trap "" TERM HUP; while :; do sleep 1; done' & exit 0`, true},
		{"foreground child", `sleep 1000`, false},
		{"child that ignores TERM", `sh -c 'trap "" TERM; while :; do sleep 1; done'`, false},
		{"all ignore TERM", `trap "" TERM; sh -c 'while :; do sleep 1; done' & while :; do sleep 1; done`, false},
		{"leader dies of TERM, child does not", `sh -c 'trap "" TERM; while :; do sleep 1; done' & wait`, false},
		{"stopped itself", `kill -STOP $$`, false},
		{"pipeline", `yes | cat | cat >/dev/null`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := handlertest.Snapshot()
			marker := fmt.Sprintf("marker-%d-%d", os.Getpid(), time.Now().UnixNano())
			h := newHandler(t, script.Options{
				Path: sh(t, tc.body), Env: []script.Var{{Name: "MARKER", Value: marker}}, KillGrace: 50 * time.Millisecond,
			})
			timeout := 30 * time.Second
			if !tc.ends {
				timeout = 200 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			defer cancel()
			start := time.Now()
			res, err := h.Handle(ctx, handlertest.Delivery(payload))
			if tc.ends && err != nil || !tc.ends && res.Reason != handler.ReasonTimeout {
				t.Errorf("reason %q: %v", res.Reason, err)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("it took %s", took)
			}
			// The killed are dead for us when Handle returns; init may take a moment
			// to bury those that are not ours.
			if err := handlertest.Poll("processes to be gone", func() bool { return len(alive(marker)) == 0 }); err != nil {
				t.Errorf("%v: %v", err, alive(marker))
			}
			before.Check(t)
		})
	}
}

// TestEscaped has a script put a process out of reach: Handle does not wait for
// it, although it holds the output.
func TestEscaped(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("no setsid")
	}
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	start := time.Now()
	res, err := handle(t, script.Options{Path: sh(t, `setsid sh -c 'echo $$ >"$1"; exec sleep 1000' sh "$1" & while ! [ -s "$1" ]; do :; done; echo said`), Args: []string{pids}})
	defer func() {
		text, _ := os.ReadFile(pids)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	if err != nil || string(res.Response.Body) != "said\n" {
		t.Errorf("%v, output %q", err, res.Response.Body)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if !slices.Contains(res.Response.Head, "billhook-note: a process that left the program's group still held its output") {
		t.Errorf("no note in %q", res.Response.Head)
	}
}

// TestTerm gives a script the time to clean up, and keeps what it says.
func TestTerm(t *testing.T) {
	dir := t.TempDir()
	never := fifo(t, dir, "never")
	defer never.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h := newHandler(t, script.Options{
		Path: sh(t, `trap 'echo cleaned up; exit 0' TERM; echo ready >"$1/ready"; read _ <"$1/never"`), Args: []string{dir},
	})
	var polled error
	var polling sync.WaitGroup
	polling.Go(func() {
		polled = handlertest.Poll("the script", func() bool { _, err := os.Stat(filepath.Join(dir, "ready")); return err == nil })
		cancel()
	})
	res, err := h.Handle(ctx, handlertest.Delivery(payload))
	polling.Wait()
	if polled != nil {
		t.Fatal(polled)
	}
	if !errors.Is(err, context.Canceled) || !strings.Contains(string(res.Response.Body), "cleaned up") {
		t.Errorf("%v, output %q", err, res.Response.Body)
	}
}

// TestManyRuns leaves nothing after many runs with faults, eight at a time. The
// environment may ask for more of them: BILLHOOK_TEST_RUNS=10000.
func TestManyRuns(t *testing.T) {
	before := handlertest.Snapshot()
	path := sh(t, `case $(($1 % 6)) in
0) exit 0 ;;
1) exit 75 ;;
2) kill -KILL $$ ;;
3) sleep 1000 & exit 1 ;;
4) head -c 300000 /dev/zero ;;
5) exec sleep 1000 ;;
esac`)
	n := 240
	if more, err := strconv.Atoi(os.Getenv("BILLHOOK_TEST_RUNS")); err == nil {
		n = more
	}
	var running sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range n {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			h := newHandler(t, script.Options{Path: path, Args: []string{strconv.Itoa(i)}, KillGrace: 10 * time.Millisecond, Timeout: map[bool]time.Duration{true: 50 * time.Millisecond, false: 20 * time.Second}[i%6 == 5]})
			res, err := h.Handle(context.Background(), handlertest.Delivery(bytes.Repeat([]byte("x"), i%240*1000)))
			want := []handler.Reason{"", handler.ReasonExit, handler.ReasonSignal, handler.ReasonExit, "", handler.ReasonTimeout}[i%6]
			if res.Reason != want {
				t.Errorf("run %d: reason %q, want %q: %v", i, res.Reason, want, err)
			}
		})
	}
	running.Wait()
	before.Check(t)
}

// TestFileErrors are the texts an operator gets to read.
func TestFileErrors(t *testing.T) {
	dir := func(mode os.FileMode) string {
		d := filepath.Join(t.TempDir(), "d")
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, mode); err != nil {
			t.Fatal(err)
		}
		return d
	}
	file := func(dirMode, mode os.FileMode, text string) string {
		p := filepath.Join(dir(dirMode), "s")
		if err := os.WriteFile(p, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	link := func(to string, dirMode os.FileMode) string {
		p := filepath.Join(dir(dirMode), "link")
		if err := os.Symlink(to, p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const good = "#!/bin/sh\n"
	withDirs := func(mode os.FileMode) string { // a parent that anybody may change
		p := file(0o755, 0o755, good)
		if err := os.Chmod(filepath.Dir(filepath.Dir(p)), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tc := range []struct{ name, path, want string }{
		{"good", file(0o755, 0o755, good), ""},
		{"good, private", file(0o700, 0o700, good), ""},
		{"relative", "scripts/block", `script "scripts/block": want an absolute path`},
		{"empty", "", `script "": want an absolute path`},
		{"missing", "/nonexistent/block", "script /nonexistent/block does not exist: put it there or correct its path"},
		{"directory", "/usr/bin", "is a directory"},
		{"device", "/dev/null", "is not a regular file"},
		{"not executable", file(0o755, 0o644, good), "is not executable: chmod +x "},
		{"group may write", file(0o755, 0o775, good), "can be changed by others (mode 0775): chmod go-w "},
		{"all may write", file(0o755, 0o757, good), "can be changed by others (mode 0757): chmod go-w "},
		{"all may write the directory", file(0o777, 0o755, good), "its directory"},
		{"sticky directory", file(0o777|os.ModeSticky, 0o755, good), "its directory"},
		{"directory above", withDirs(0o777), "above it can be changed by anybody (mode 0777): chmod o-w "},
		{"sticky directory above", withDirs(0o777 | os.ModeSticky), ""},
		{"link to a good one", link(file(0o755, 0o755, good), 0o755), ""},
		{"link that all may change", link(file(0o755, 0o755, good), 0o777), "its directory"},
		{"link to what all may change", link(file(0o777, 0o755, good), 0o755), "its directory"},
		{"link to nothing", link("/nonexistent", 0o755), "does not exist"},
		{"from Windows", file(0o755, 0o755, "#!/bin/sh\r\necho\r\n"), `ends with a carriage return`},
		{"no interpreter", file(0o755, 0o755, "#!/opt/nosuch/perl -w\n"), "the interpreter /opt/nosuch/perl of its first line does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := script.New(script.Options{Path: tc.path})
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if err != nil && !strings.Contains(err.Error(), tc.path) {
				t.Errorf("the error does not name the path: %v", err)
			}
		})
	}
}

// TestCheckedAtEachRun changes the file between New and Handle.
func TestCheckedAtEachRun(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(path string) error
		want   string
	}{
		{"gone", os.Remove, "does not exist"},
		{"writable", func(p string) error { return os.Chmod(p, 0o777) }, "can be changed by others"},
		{"not executable", func(p string) error { return os.Chmod(p, 0o644) }, "chmod +x"},
		{"no program", func(p string) error { return os.WriteFile(p, []byte("hello"), 0o755) }, "begin it with a line such as #!/bin/sh"},
		{"no interpreter", func(p string) error { return os.WriteFile(p, []byte("#!/opt/nosuch/perl\n"), 0o755) }, "the interpreter /opt/nosuch/perl"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := handlertest.Snapshot()
			path := sh(t, "exit 0")
			h := newHandler(t, script.Options{Path: path})
			if err := tc.change(path); err != nil {
				t.Fatal(err)
			}
			res, err := h.Handle(context.Background(), handlertest.Delivery(payload))
			if err == nil || handler.IsPermanent(err) || res.Reason != handler.ReasonStart || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("reason %q: %v, want %q", res.Reason, err, tc.want)
			}
			before.Check(t)
		})
	}
}

// TestBusyFile runs a program while it is still open for writing, for a moment.
func TestBusyFile(t *testing.T) {
	truth, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no true")
	}
	program, err := os.ReadFile(truth)
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, "program", string(program))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	res, err := handle(t, script.Options{Path: path})
	if runtime.GOOS == "linux" && (err == nil || res.Reason != handler.ReasonStart || handler.IsPermanent(err)) {
		t.Errorf("reason %q: %v", res.Reason, err)
	}
	_ = f.Close()
	if _, err := handle(t, script.Options{Path: path}); err != nil {
		t.Error(err)
	}
}

// TestHugeIdentity has an event whose key is too long for an environment.
func TestHugeIdentity(t *testing.T) {
	h := newHandler(t, script.Options{Path: sh(t, "exit 0")})
	d := handlertest.Delivery(payload)
	d.Event.Object = strings.Repeat("x", 4<<20)
	res, err := h.Handle(context.Background(), d)
	if !handler.IsPermanent(err) || res.Reason != handler.ReasonPayload {
		t.Errorf("reason %q: %v", res.Reason, err)
	}
	d.Event.Object = "a\x00b"
	if _, err := h.Handle(context.Background(), d); err != nil {
		t.Error(err)
	}
}

func TestUser(t *testing.T) {
	if os.Getuid() != 0 {
		me, err := user.Current()
		if err != nil {
			t.Fatal(err)
		}
		path := sh(t, "id -u")
		if _, err := script.New(script.Options{Path: path, User: "root"}); err == nil || !strings.Contains(err.Error(), "only root may change to another user") {
			t.Errorf("error %v", err)
		}
		if res, err := handle(t, script.Options{Path: path, User: me.Username}); err != nil {
			t.Errorf("as oneself: %v: %+v", err, res)
		}
		t.Skip("the rest needs root")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	// t.TempDir is closed to others.
	dir, err := os.MkdirTemp("", "billhook-script-test")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho $(id -u) $(id -g) $(id -G) $HOME\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ user, group, want string }{
		{"nobody", "", fmt.Sprintf("%s %s %[2]s %s\n", nobody.Uid, nobody.Gid, nobody.HomeDir)},
		{nobody.Uid, "daemon", ""},
		{"31337", "31338", "31337 31338 31338 /\n"},
	} {
		res, err := handle(t, script.Options{Path: path, User: tc.user, Group: tc.group})
		if err != nil {
			t.Errorf("%+v: %v: %+v", tc, err, res)
		}
		if tc.want != "" && string(res.Response.Body) != tc.want {
			t.Errorf("ran as %q, want %q", res.Response.Body, tc.want)
		}
	}
	if _, err := script.New(script.Options{Path: path, User: "no such user"}); err == nil || !strings.Contains(err.Error(), `user "no such user": there is no such user`) {
		t.Errorf("error %v", err)
	}
	if _, err := script.New(script.Options{Path: path, Group: "no such group"}); err == nil || !strings.Contains(err.Error(), "there is no such group") {
		t.Errorf("error %v", err)
	}

	// A script that belongs to somebody else is not run; one that belongs to the
	// user it runs as is.
	uid, _ := strconv.Atoi(nobody.Uid)
	if err := os.Chown(path, uid, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := script.New(script.Options{Path: path}); err == nil || !strings.Contains(err.Error(), "belongs to nobody, who is neither root nor root: chown root "+path) {
		t.Errorf("error %v", err)
	}
	if _, err := handle(t, script.Options{Path: path, User: "nobody"}); err != nil {
		t.Error(err)
	}
	// A user who may not enter the directory is told so.
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	res, err := handle(t, script.Options{Path: path, User: "nobody"})
	if err == nil || res.Reason != handler.ReasonStart || !strings.Contains(err.Error(), "user nobody must be able to enter its directory") {
		t.Errorf("reason %q: %v", res.Reason, err)
	}
}

func TestLimits(t *testing.T) {
	self := "/proc/self/exe"
	if runtime.GOOS != "linux" {
		self, _ = os.Executable()
	}
	limits := script.Limits{OpenFiles: 77, FileSize: 10 << 10, CPU: 1500 * time.Millisecond}
	o := script.Options{Path: sh(t, `ulimit -n; ulimit -f; ulimit -t; [ -e /proc/$$/fd/3 ] && echo leak; echo "$0 $*"`), Args: []string{"a b", "c"}, Limits: limits, Launcher: self}
	for range 5 {
		res, err := handle(t, o)
		if want := "77\n20\n2\n" + o.Path + " a b c\n"; err != nil || string(res.Response.Body) != want {
			t.Errorf("%v, output %q, want %q", err, res.Response.Body, want)
		}
	}
	if os.Getuid() == 0 {
		// As another user, who may not go above the hard limit.
		dir, err := os.MkdirTemp("", "billhook-script-test") // t.TempDir is closed to others
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		o := o
		o.Path = filepath.Join(dir, "script")
		if err := os.WriteFile(o.Path, []byte("#!/bin/sh\nulimit -n; id -u\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		o.User, o.Limits = "31337", script.Limits{OpenFiles: 1 << 40, Processes: 500}
		var most unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &most); err != nil {
			t.Fatal(err)
		}
		res, err := handle(t, o)
		if want := fmt.Sprintf("%d\n31337\n", most.Max); err != nil || string(res.Response.Body) != want {
			t.Errorf("%v, output %q, want %q", err, res.Response.Body, want)
		}
	}

	// What keeps the program from starting is told as without limits.
	gone := o
	gone.Path = sh(t, "")
	h := newHandler(t, gone)
	if err := os.Remove(gone.Path); err != nil {
		t.Fatal(err)
	}
	res, err := h.Handle(t.Context(), handlertest.Delivery(payload))
	if !errors.Is(err, os.ErrNotExist) || res.Reason != handler.ReasonStart {
		t.Errorf("reason %q, error %v", res.Reason, err)
	}

	o.Launcher = ""
	if _, err := script.New(o); err == nil || !strings.Contains(err.Error(), "launcher") {
		t.Errorf("limits without a launcher: %v", err)
	}
	o.Launcher, o.Limits.OpenFiles = self, -1
	if _, err := script.New(o); err == nil {
		t.Error("a negative limit was taken")
	}
}

func TestNewErrors(t *testing.T) {
	path := sh(t, "")
	for _, tc := range []struct {
		o    script.Options
		want string
	}{
		{script.Options{Args: []string{"a\x00"}}, "argument 1 holds a NUL byte"},
		{script.Options{Env: []script.Var{{Name: "A=B"}}}, `variable "A=B": not a name`},
		{script.Options{Env: []script.Var{{Name: "BILLHOOK_EVENT"}}}, "names that begin with BILLHOOK_ are set by Billhook"},
		{script.Options{Env: []script.Var{{Name: "A"}, {Name: "A"}}}, "variable A: given twice"},
		{script.Options{Env: []script.Var{{Name: "A", Value: "s3cretpw\x00"}}}, "variable A: its value holds a NUL byte"},
		{script.Options{Dir: "/nonexistent"}, "working directory /nonexistent: want the absolute path"},
		{script.Options{Dir: "."}, "working directory .: want the absolute path"},
		{script.Options{Retry: []string{"256"}}, `retry: code "256": want a number from 0 to 255`},
		{script.Options{Retry: []string{"1"}, Success: []string{"0-2"}}, "a code has one class"},
	} {
		tc.o.Path = path
		if _, err := script.New(tc.o); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cretpw") {
			t.Errorf("New(%+v) = %v, want an error with %q", tc.o, err, tc.want)
		}
	}
}

// BenchmarkHandle compares with BenchmarkBare, a loop of fork and exec with its
// output collected.
func BenchmarkHandle(b *testing.B) {
	path := filepath.Join(b.TempDir(), "script")
	if err := errors.Join(os.Chmod(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("#!/bin/sh\nexit 0\n"), 0o755), os.Chmod(path, 0o755)); err != nil {
		b.Fatal(err)
	}
	h, err := script.New(script.Options{Path: path})
	if err != nil {
		b.Fatal(err)
	}
	d := handlertest.Delivery(bytes.Repeat([]byte("x"), 1000))
	for b.Loop() {
		if _, err := h.Handle(context.Background(), d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBare(b *testing.B) {
	path := filepath.Join(b.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := exec.Command(path).Run(); err != nil {
			b.Fatal(err)
		}
	}
}
