//go:build unix

// Package servertest runs other people's servers for tests: a Kamailio, a FreeRADIUS,
// a NATS server, as the distribution has them.
//
// It promises that a server runs as an ordinary user also when the test does not, has
// a folder of its own, and ends with its test, by its process id. It installs nothing:
// a test whose server is missing fails and says how to get it, unless
// BILLHOOK_SKIP_SERVERS is set, which makes it skip. Which ports a server listens on
// is the test's affair; Port finds free ones. Start with Program and Start.
package servertest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/demo/cluster"
)

// SkipVariable is the environment variable that makes tests skip whose server is not
// installed.
const SkipVariable = "BILLHOOK_SKIP_SERVERS"

// patience is how long a server may take to start.
const patience = 30 * time.Second

// Program returns the path of a program, which stands in PATH or where Debian has
// servers. Without it the test fails, or skips, and names the package to install.
func Program(t testing.TB, name, debian string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	Missing(t, name, debian)
	return ""
}

// Missing ends a test that needs what is not installed.
func Missing(t testing.TB, what, debian string) {
	t.Helper()
	const format = "%s is not installed on this machine: make test-deps, or apt-get install %s; %s=1 skips what needs it"
	if os.Getenv(SkipVariable) != "" {
		t.Skipf(format, what, debian, SkipVariable)
	}
	t.Fatalf(format, what, debian, SkipVariable)
}

// Port returns a port of 127.0.0.1 on which nothing listens, neither by TCP nor by
// UDP. It is one that the system gives to nobody who does not ask for it by number, so
// that it is free still when a server that was stopped starts again.
func Port(t testing.TB) int {
	t.Helper()
	for range 100 {
		port, err := cluster.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		p, err := net.ListenPacket("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			_ = p.Close()
			return port
		}
	}
	t.Fatal("no port is free by TCP and UDP")
	return 0
}

// Dir returns a new folder that belongs to the user that servers run as. It goes with
// the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "server-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	own(t, dir)
	return dir
}

// Write writes a file that the user may read and change that servers run as, and
// returns its path.
func Write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, path)
	return path
}

func own(t testing.TB, path string) {
	t.Helper()
	if c := credential(t); c != nil {
		if err := os.Chown(path, int(c.Uid), int(c.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}

// credential is whom servers run as; nil: as the test.
func credential(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// User is whom servers run as.
func User(t testing.TB) *user.User {
	t.Helper()
	c := credential(t)
	if c == nil {
		c = &syscall.Credential{Uid: uint32(os.Getuid())}
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(c.Uid), 10))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Options says what to start.
type Options struct {
	Path string
	Args []string
	Dir  string   // working folder, see Dir; its file server.log gets what the server prints
	Env  []string // beside PATH and HOME
	// Ready reports nil once the server can be used; it is asked again and again.
	Ready func() error
}

// Server is a server that runs, until Stop or the end of the test.
type Server struct {
	o     Options
	cmd   *exec.Cmd
	ended chan error
}

// Start starts a server and waits until it is ready.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{o: o}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of %s:\n%s", filepath.Base(o.Path), s.tail())
		}
		s.Stop(t)
	})
	s.Start(t)
	return s
}

// Start starts a server again that was stopped.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.o.Path, s.o.Args...)
	cmd.Dir = s.o.Dir
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.o.Dir}, s.o.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes()
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Credential = credential(t)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", s.o.Path, err)
	}
	s.cmd, s.ended = cmd, make(chan error, 1)
	go func() { s.ended <- cmd.Wait() }()

	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.o.Ready()
		if err == nil {
			return
		}
		select {
		case end := <-s.ended:
			s.ended <- end
			t.Fatalf("%s has ended: %v\n%s", s.o.Path, end, s.tail())
		case <-deadline:
			t.Fatalf("%s is not ready: %v\n%s", s.o.Path, err, s.tail())
		case <-tick.C:
		}
	}
}

// Stop ends the server, in five seconds at most. It may be stopped already.
func (s *Server) Stop(t testing.TB) { s.end(t, syscall.SIGTERM) }

// Kill ends the server at once.
func (s *Server) Kill(t testing.TB) { s.end(t, syscall.SIGKILL) }

func (s *Server) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	group := -s.cmd.Process.Pid
	signal := func(sig syscall.Signal) {
		if err := syscall.Kill(group, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Errorf("end %s: %v", s.o.Path, err)
		}
	}
	if sig == syscall.SIGTERM {
		// Its own children are its own affair, as long as it is there.
		if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("end %s: %v", s.o.Path, err)
		}
		select {
		case <-s.ended:
			s.ended <- nil
		case <-time.After(5 * time.Second):
		}
	}
	signal(syscall.SIGKILL)
	<-s.ended
	s.cmd = nil
}

func (s *Server) log() string { return filepath.Join(s.o.Dir, "server.log") }

// Log returns what the server has printed so far.
func (s *Server) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(s.log())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (s *Server) tail() []byte {
	b, _ := os.ReadFile(s.log())
	return b[max(0, len(b)-6000):]
}

// Listening is a Ready that connects by TCP.
func Listening(port int) func() error {
	return func() error {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// ListeningUDP is a Ready that sends a datagram of one byte, which the server must
// put up with, and takes it for ready unless the system refuses the datagram. It does
// not try to bind the port: the server may be about to.
func ListeningUDP(port int) func() error {
	return func() error {
		c, err := net.DialTimeout("udp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte{0}); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		return nil
	}
}

// Until asks again and again, and fails the test when what it asks for does not come.
// What ok returns is empty, or says what is missing.
func Until(t testing.TB, ok func() string) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := ok()
		if missing == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatal(missing)
		case <-tick.C:
		}
	}
}

// Build compiles the package in the working folder into a program, as it is shipped,
// and returns its path.
func Build(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, bytes.TrimSpace(out))
	}
	return bin
}
