package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Superuser is the role that owns a cluster.
const Superuser = "postgres"

// Options says what to start. The zero value is a small server of the newest
// version found, with logical decoding on.
type Options struct {
	Bin string // folder of the server's programs; empty: Find decides
	Dir string // parent of the cluster's folder; empty: the temporary folder
	// Settings are server settings, over the package's own small ones.
	Settings map[string]string
	// Durable keeps fsync on. Without it a crash of the server loses nothing, but
	// a crash of the machine may.
	Durable bool
}

// Mode says how a server stops.
type Mode string

// The modes, in Postgres' words.
const (
	Fast      Mode = "fast"      // ends sessions, writes a checkpoint
	Immediate Mode = "immediate" // as a crash would: the next start recovers
)

// Cluster is one server and its folder. Its methods may be called from one
// goroutine at a time, except URL, Port, Version, Program and LogTail, which may
// be called from any.
type Cluster struct {
	dir      string // holds data, the log and the password file
	bin      string
	version  int
	port     int
	password string
	user     *user // who the server runs as; nil: who we are

	guard     io.Closer // our end of the guard's pipe: closing it makes the guard clean up
	guardDone <-chan error

	proc *process // the running server; nil when stopped

	close sync.Once
	err   error
}

// process is a running postgres. Its goroutine waits for it and closes done.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; read after done
}

// Start makes a cluster and starts its server. It returns when the server takes
// connections. Whoever calls it must call Close.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{bin: o.Bin, password: rand.Text()}
	var err error
	if c.bin == "" {
		c.bin, c.version, err = Find()
	} else {
		c.version, err = serverVersion(c.bin)
	}
	if err != nil {
		return nil, err
	}
	if c.user, err = serverUser(); err != nil {
		return nil, err
	}
	parent := o.Dir
	if parent == "" {
		parent = tempDir(c.user)
	}
	if c.dir, err = os.MkdirTemp(parent, "billhook-pg-"); err != nil {
		return nil, fmt.Errorf("make a folder for the cluster: %w", err)
	}
	if err = c.init(ctx, o); err == nil {
		err = c.startOnFreePort(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) init(ctx context.Context, o Options) error {
	pwfile := filepath.Join(c.dir, "password")
	if err := os.WriteFile(pwfile, []byte(c.password+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the password file: %w", err)
	}
	if c.user != nil {
		for _, path := range []string{c.dir, pwfile} {
			if err := os.Chown(path, c.user.uid, c.user.gid); err != nil {
				return fmt.Errorf("give the cluster to user %s: %w", c.user.name, err)
			}
		}
	}
	if err := c.startGuard(); err != nil {
		return err
	}
	initdb := c.Command(ctx, "initdb",
		"--pgdata", c.data(), "--username", Superuser, "--pwfile", pwfile,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, bytes.TrimSpace(out))
	}

	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "",
		"wal_level":               "logical",
		"max_wal_senders":         "20",
		"max_replication_slots":   "20",
		"max_connections":         "100",
		"shared_buffers":          "32MB",
		"max_wal_size":            "512MB",
		"log_min_messages":        "warning",
		"log_line_prefix":         "%m [%p] %q%u@%d ",
		"log_checkpoints":         "off",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
	}
	if !o.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	maps.Copy(settings, o.Settings)
	return c.write("billhook.conf", settings, "postgresql.conf")
}

// Set changes settings, as ALTER SYSTEM would, and makes the server read them.
// Those that need a restart take effect with the next one. An empty value is an
// empty setting.
func (c *Cluster) Set(settings map[string]string) error {
	if err := c.write("billhook-set.conf", settings, "billhook.conf"); err != nil {
		return err
	}
	if c.proc == nil {
		return nil
	}
	if err := c.proc.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return fmt.Errorf("reload the server: %w", err)
	}
	return nil
}

// write appends settings to a file of the data folder, the last of a name being
// the one that counts, and makes sure that parent includes that file.
func (c *Cluster) write(name string, settings map[string]string, parent string) error {
	path := filepath.Join(c.data(), name)
	_, err := os.Stat(path)
	isNew := errors.Is(err, os.ErrNotExist)
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = '%s'\n", key, strings.ReplaceAll(settings[key], "'", "''"))
	}
	if err := c.append(path, b.String()); err != nil {
		return err
	}
	if isNew {
		return c.append(filepath.Join(c.data(), parent), "include '"+name+"'\n")
	}
	return nil
}

func (c *Cluster) append(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	_, err = f.WriteString(text)
	if err == nil && c.user != nil {
		err = f.Chown(c.user.uid, c.user.gid)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// startOnFreePort chooses a port and starts the server on it, again with another
// one when somebody took the port in between.
func (c *Cluster) startOnFreePort(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		port, err := FreePort()
		if err != nil {
			return err
		}
		c.port = port
		if err := c.Set(map[string]string{"port": strconv.Itoa(port)}); err != nil {
			return err
		}
		err = c.start(ctx)
		if err == nil || attempt == 5 || !strings.Contains(c.LogTail(20), "Address already in use") {
			return err
		}
	}
}

// start runs the server and waits until it takes connections.
func (c *Cluster) start(ctx context.Context) error {
	log, err := os.OpenFile(c.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the server's log: %w", err)
	}
	defer log.Close()
	// Not bound to ctx: the server lives until Stop.
	cmd := c.Command(context.WithoutCancel(ctx), "postgres", "-D", c.data())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	c.proc = p
	if err := c.waitReady(ctx, p); err != nil {
		return errors.Join(err, c.Stop(Immediate))
	}
	return nil
}

func (c *Cluster) waitReady(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, c.URL(Superuser, c.password, "postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-p.done:
			return fmt.Errorf("the server ended while starting: %w\n%s", p.err, c.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("wait for the server to take connections: %w (last: %w)\n%s", context.Cause(ctx), err, c.LogTail(20))
		case <-tick.C:
		}
	}
}

// Stop stops the server and waits until it is gone; its folder stays. It does
// nothing when the server is not running.
func (c *Cluster) Stop(m Mode) error {
	if c.proc == nil {
		return nil
	}
	sig := syscall.SIGINT
	if m == Immediate {
		sig = syscall.SIGQUIT
	}
	if err := c.proc.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the server: %w", err)
	}
	// A fast stop waits for walsenders, and those for their receivers: bounded.
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	select {
	case <-c.proc.done:
	case <-timeout.C:
		tail := c.LogTail(10)
		if err := c.proc.cmd.Process.Signal(syscall.SIGQUIT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop the server: %w", err)
		}
		<-c.proc.done
		c.proc = nil
		return fmt.Errorf("the server did not stop (%s) within a minute and was stopped at once\n%s", m, tail)
	}
	c.proc = nil
	return nil
}

// Restart stops the server, if it runs, and starts it on the same port and data.
// It returns when the server takes connections.
func (c *Cluster) Restart(ctx context.Context, m Mode) error {
	if err := c.Stop(m); err != nil {
		return err
	}
	return c.start(ctx)
}

// Close stops the server and removes its folder. Calling it again returns what
// the first call returned.
func (c *Cluster) Close() error {
	c.close.Do(func() {
		err := c.Stop(Immediate) // nothing is kept, so nothing needs a checkpoint
		if c.guard != nil {
			err = errors.Join(err, c.guard.Close(), <-c.guardDone)
		}
		if rmErr := os.RemoveAll(c.dir); rmErr != nil {
			err = errors.Join(err, fmt.Errorf("remove the cluster: %w", rmErr))
		}
		c.err = err
	})
	return c.err
}

// startGuard starts the shell that cleans up when we die: it reads a pipe that
// only we hold, and at its end, which comes with our own whatever the signal,
// stops the server and removes the folder.
func (c *Cluster) startGuard() error {
	const script = `cat >/dev/null
"$1/pg_ctl" -D "$2/data" -m immediate -w stop
rm -rf "$2"`
	cmd := exec.Command("/bin/sh", "-c", script, "billhook-pg-guard", c.bin, c.dir)
	c.runAs(cmd)
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start the cluster's guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the cluster's guard: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		// Its exit code says nothing: rm cannot remove the folder itself from a
		// parent that is not its own, which is why Close removes it too.
		var exit *exec.ExitError
		err := cmd.Wait()
		if errors.As(err, &exit) {
			err = nil
		}
		done <- err
	}()
	c.guard, c.guardDone = in, done
	return nil
}

// Command returns a command for one of the server's programs (pgbench,
// pg_recvlogical, ...), run as the server's user in a process group of its own,
// with the environment set so that it reaches this server as superuser. Its
// context kills it.
func (c *Cluster) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Program(program), args...)
	c.runAs(cmd)
	if c.port != 0 {
		cmd.Env = append(cmd.Env,
			"PGHOST=127.0.0.1", "PGPORT="+strconv.Itoa(c.port), "PGUSER="+Superuser,
			"PGPASSWORD="+c.password, "PGDATABASE=postgres", "PGSSLMODE=disable")
	}
	return cmd
}

// runAs makes cmd run as the server's user, away from our terminal's signals and
// without our environment: PG* variables and LC_* would change the server.
func (c *Cluster) runAs(cmd *exec.Cmd) {
	cmd.Dir = c.dir
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=" + c.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.user != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.user.uid), Gid: uint32(c.user.gid)}
	}
}

// Program returns the path of one of the server's programs. A client that is not
// beside the server, such as psql, is looked for where Find looks: a newer or
// older one does.
func (c *Cluster) Program(name string) string {
	own := filepath.Join(c.bin, name)
	if _, err := os.Stat(own); err == nil {
		return own
	}
	found, _ := installed()
	slices.Reverse(found) // the newest first
	for _, dir := range found {
		if other := filepath.Join(dir, name); isFile(other) {
			return other
		}
	}
	return own
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// URL returns a connection URL for a role, such as
// postgres://billhook:secret@127.0.0.1:40123/billing?sslmode=disable.
func (c *Cluster) URL(role, password, database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)), Path: "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// SuperuserURL returns a connection URL for the role that owns the cluster.
func (c *Cluster) SuperuserURL(database string) string {
	return c.URL(Superuser, c.password, database)
}

// Port returns the TCP port on 127.0.0.1. It stays the same over a Restart.
func (c *Cluster) Port() int { return c.port }

// Version returns the server's major version, such as 15.
func (c *Cluster) Version() int { return c.version }

// LogTail returns the last n lines of the server's log, or why they cannot be
// read.
func (c *Cluster) LogTail(n int) string {
	b, err := os.ReadFile(c.logPath())
	if err != nil {
		return fmt.Sprintf("(no server log: %v)", err)
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (c *Cluster) data() string    { return filepath.Join(c.dir, "data") }
func (c *Cluster) logPath() string { return filepath.Join(c.dir, "server.log") }

// FreePort returns a port on 127.0.0.1 that nobody listens on. It is below those
// that systems give to outgoing connections, so that it is free still when a server
// is stopped and started again.
func FreePort() (int, error) {
	for range 50 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+mathrand.IntN(17000))))
		if err == nil {
			return l.Addr().(*net.TCPAddr).Port, l.Close()
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
