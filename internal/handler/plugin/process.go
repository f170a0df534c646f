//go:build unix

package plugin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"

	"github.com/billhook/billhook/internal/handler/program"
	"github.com/billhook/billhook/plugins"
)

const (
	// drainTime is how long output is still read after everything that the plugin started
	// is dead. Only a process out of reach can hold it open that long.
	drainTime = 300 * time.Millisecond
	// busyTries is how often a start is tried while the file is being written.
	busyTries = 6
	// maxHandshake bounds the handshake line, in bytes. Most of it is a certificate.
	maxHandshake = 16 << 10
)

// process is the process of a plugin. It is what go-plugin calls a runner: it starts
// the process in go-plugin's name, shows it the handshake line and nothing else, and
// ends it.
type process struct {
	opts     Options
	identity program.Identity
	out      *output
	env      []string // what go-plugin wants, set before Start

	handshake *io.PipeReader // for go-plugin
	found     *io.PipeWriter

	mu      sync.Mutex // guards what follows
	pid     int        // 0 before it runs and after it was reaped
	doomed  bool       // it was killed, perhaps before it ran
	refused error      // why its handshake is not accepted
	served  bool       // it has shaken hands, so it can be told to end
	failed  error      // why it could not be started
	state   *os.ProcessState

	exited chan struct{} // closed when the process and its group are gone
}

var _ runner.Runner = (*process)(nil)

func newProcess(o Options, id program.Identity, out *output) *process {
	p := &process{opts: o, identity: id, out: out, exited: make(chan struct{})}
	p.handshake, p.found = io.Pipe()
	return p
}

// Start starts the process, for go-plugin.
func (p *process) Start(ctx context.Context) error {
	begun := make(chan error, 1)
	// This goroutine keeps its thread, since it is with the end of that thread that the
	// kernel would kill the process. It owns the process until all of it is gone.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		p.run(ctx, begun)
	}()
	err := <-begun
	if err != nil {
		p.mu.Lock()
		p.failed = err
		p.mu.Unlock()
		_ = p.found.Close()
		close(p.exited)
	}
	return err
}

// run starts the process, reports that, and returns when the process, its group and
// its pipes are gone.
func (p *process) run(ctx context.Context, begun chan<- error) {
	var ends []*os.File
	closeAll := func() {
		for _, f := range ends {
			_ = f.Close()
		}
	}
	pipe := func() (r, w *os.File, err error) {
		if r, w, err = os.Pipe(); err == nil {
			ends = append(ends, r, w)
		}
		return r, w, err
	}
	childIn, stdin, err1 := pipe()
	stdout, childOut, err2 := pipe()
	stderr, childErr, err3 := pipe()
	if err := errors.Join(err1, err2, err3); err != nil {
		closeAll()
		begun <- err
		return
	}
	child, err := p.spawn(ctx, &os.ProcAttr{
		Dir: "/", Env: p.environment(), Files: []*os.File{childIn, childOut, childErr}, Sys: p.identity.Attr(),
	})
	if err != nil {
		closeAll()
		begun <- err
		return
	}
	program.NoCoreDump(child.Pid)
	for _, f := range []*os.File{childIn, childOut, childErr} {
		_ = f.Close()
	}
	p.mu.Lock()
	p.pid = child.Pid
	if p.doomed {
		_ = unix.Kill(-child.Pid, unix.SIGKILL)
	}
	p.mu.Unlock()
	begun <- nil

	var copying sync.WaitGroup
	copying.Go(func() { p.readStdout(stdout) })
	copying.Go(func() { p.out.copy(stderr, true) })

	// As long as the process is a zombie its id, which is also that of its group, is
	// nobody else's: first the group is killed, then the process is reaped.
	program.AwaitExit(child)
	p.mu.Lock()
	_ = unix.Kill(-child.Pid, unix.SIGKILL)
	p.pid = 0
	p.state, _ = child.Wait()
	p.mu.Unlock()
	if program.Adopts() {
		program.Bury(child.Pid)
	}
	limit := time.Now().Add(drainTime)
	_ = stdout.SetReadDeadline(limit)
	_ = stderr.SetReadDeadline(limit)
	copying.Wait()
	for _, f := range []*os.File{stdin, stdout, stderr} {
		_ = f.Close()
	}
	close(p.exited)
}

// spawn starts the child, from the very file whose checksum was taken if it has one.
func (p *process) spawn(ctx context.Context, attr *os.ProcAttr) (*os.Process, error) {
	path := p.opts.Path
	if p.opts.Checksum != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("plugin %s: take its checksum: %w", path, err)
		}
		defer f.Close()
		sum, err := fingerprint(f)
		switch {
		case err != nil:
			return nil, fmt.Errorf("plugin %s: take its checksum: %w", path, err)
		case sum != p.opts.Checksum:
			return nil, fmt.Errorf("plugin %s has the checksum sha256:%s, not sha256:%s: put the right file there, or correct its checksum", path, sum, p.opts.Checksum)
		}
		path = sameFile(path, f)
	}
	argv := append([]string{p.opts.Path}, p.opts.Args...)
	pause := time.Millisecond
	for try := 1; ; try++ {
		child, err := os.StartProcess(path, argv, attr)
		if err == nil {
			return child, nil
		}
		if !errors.Is(err, syscall.ETXTBSY) || try == busyTries {
			var pe *os.PathError
			if errors.As(err, &pe) {
				err = pe.Err
			}
			return nil, program.ExplainStart(kind, p.opts.Path, "/", p.identity, err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
		pause *= 3
	}
}

// sameFile is a path by which the open file f can be executed, whatever is put in its
// place meanwhile. A script cannot: its interpreter opens it by its name.
func sameFile(path string, f *os.File) string {
	magic := make([]byte, 4)
	if runtime.GOOS != "linux" {
		return path
	}
	if _, err := f.ReadAt(magic, 0); err != nil || !bytes.Equal(magic, []byte("\x7fELF")) {
		return path
	}
	same := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	if _, err := os.Stat(same); err != nil {
		return path
	}
	return same
}

// environment is what go-plugin wants there to be, and a little of what programs
// expect.
func (p *process) environment() []string {
	return append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=" + p.identity.Home,
	}, p.env...)
}

// readStdout judges the handshake line and gives it to go-plugin; what follows goes
// into the log.
func (p *process) readStdout(stdout io.Reader) {
	b := bufio.NewReaderSize(stdout, maxHandshake)
	line, err := b.ReadSlice('\n')
	if len(line) > 0 {
		refused := judgeHandshake(p.opts.Path, string(line), p.out)
		p.mu.Lock()
		p.refused, p.served = refused, refused == nil
		p.mu.Unlock()
		if refused == nil {
			_, _ = p.found.Write(append(bytes.TrimRight(line, "\r\n"), '\n'))
		}
	}
	_ = p.found.Close()
	if err == nil || errors.Is(err, bufio.ErrBufferFull) {
		p.out.copy(b, false)
	}
}

// judgeHandshake says what is wrong with a handshake line.
func judgeHandshake(path, line string, out *output) error {
	parts := strings.Split(strings.TrimSpace(line), "|")
	shown := out.mask.Load().Line(line, 80)
	if len(parts) < 5 {
		return fmt.Errorf("plugin %s printed %q where the handshake belongs: it is no plugin of Billhook, or prints before it serves", path, shown)
	}
	if parts[0] != strconv.Itoa(goplugin.CoreProtocolVersion) {
		return fmt.Errorf("plugin %s speaks version %s of go-plugin's protocol, this Billhook version %d: get a plugin that fits", path, out.mask.Load().Line(parts[0], 20), goplugin.CoreProtocolVersion)
	}
	if parts[1] != strconv.Itoa(plugins.ProtocolVersion) {
		return fmt.Errorf("plugin %s speaks version %s of the plugin protocol, this Billhook version %d: get a plugin, or a Billhook, that fits", path, out.mask.Load().Line(parts[1], 20), plugins.ProtocolVersion)
	}
	if parts[4] != string(goplugin.ProtocolGRPC) {
		return fmt.Errorf("plugin %s speaks %s, want grpc", path, out.mask.Load().Line(parts[4], 20))
	}
	const shortest = 50 // below, go-plugin takes it for something else
	if len(parts) < 6 || len(parts[5]) <= shortest {
		return fmt.Errorf("plugin %s gives no certificate in its handshake: it must make one, and accept only that of PLUGIN_CLIENT_CERT", path)
	}
	return nil
}

// Stdout is what go-plugin reads: the handshake line.
func (p *process) Stdout() io.ReadCloser { return p.handshake }

// Stderr has nothing for go-plugin, which trusts more in its form than is good.
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name is for go-plugin.
func (p *process) Name() string { return p.opts.Path }

// ID is for go-plugin, which does nothing for a process without one.
func (p *process) ID() string { return p.opts.Path }

// Diagnose has nothing to add, for go-plugin.
func (p *process) Diagnose(context.Context) string { return "" }

// PluginToHost is for go-plugin.
func (p *process) PluginToHost(network, address string) (string, string, error) {
	return network, address, nil
}

// HostToPlugin is for go-plugin.
func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// Wait blocks until all of the process is gone.
func (p *process) Wait(context.Context) error {
	<-p.exited
	return nil
}

// Kill is called by go-plugin when a start has failed, or when the plugin was told to
// end and is still there. The latter gets a last word, and time until kill is called.
func (p *process) Kill(context.Context) error {
	p.mu.Lock()
	served := p.served
	p.mu.Unlock()
	if served {
		p.signal(unix.SIGTERM)
	} else {
		p.kill()
	}
	<-p.exited
	return nil
}

// kill ends the process and its group at once, also if it has yet to be started.
func (p *process) kill() { p.signal(unix.SIGKILL) }

func (p *process) signal(s unix.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doomed = p.doomed || s == unix.SIGKILL
	if p.pid != 0 {
		_ = unix.Kill(-p.pid, s)
	}
}

// end says how the process ended, and what it said last.
func (p *process) end() string {
	p.mu.Lock()
	state := p.state
	p.mu.Unlock()
	how := "ended"
	if state != nil {
		how = "ended with exit code " + strconv.Itoa(state.ExitCode())
		if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			how = "was killed by " + program.SignalName(status.Signal())
		}
	}
	if last := p.out.lastWords(); last != "" {
		how += ": " + p.out.mask.Load().Line(last, 200)
	}
	return how
}
