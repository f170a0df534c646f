//go:build unix

package script

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/billhook/billhook/internal/handler/exchange"
	"github.com/billhook/billhook/internal/handler/program"
)

const (
	// drainTime is how long output is still read after everything that the program
	// started is dead. Only a process out of reach can hold it open that long.
	drainTime = 300 * time.Millisecond
	// busyTries is how often a start is tried while the file is being written, as
	// it is for an instant when another thread forks while the file is installed.
	busyTries = 6
)

// run is one run of a program.
type run struct {
	path, dir      string
	argv, env      []string
	identity       program.Identity
	limits         []rlimit
	launcher       string
	stdin          []byte
	stdout, stderr *exchange.Buffer
	killGrace      time.Duration
	adopts         bool // orphans of the program become ours to reap
}

// exit is how a run ended.
type exit struct {
	code   int            // -1 after a signal
	signal syscall.Signal // that killed it; 0 if it exited
	told   bool           // it ended after it was told to
	held   bool           // its output was still open after all its processes were dead
	user   time.Duration
	system time.Duration
	maxRSS int64 // bytes, 0 if unknown
}

// do starts the program and blocks until it and all that is left of its process
// group are dead and its pipes are closed. It returns an error only if the program
// did not start.
//
// The order is what makes it safe. The end of the program is first learned
// without reaping it: while it is a zombie its process id, which is also the id
// of the group, belongs to nobody else. Then the whole group is killed, then the
// program is reaped.
func (r *run) do(ctx context.Context) (exit, error) {
	p, err := r.start(ctx)
	if err != nil {
		return exit{}, err
	}
	var copying sync.WaitGroup
	var held [2]bool
	for i, c := range []struct {
		from *os.File
		to   *exchange.Buffer
	}{{p.stdout, r.stdout}, {p.stderr, r.stderr}} {
		copying.Go(func() {
			_, err := io.Copy(c.to, c.from)
			held[i] = errors.Is(err, os.ErrDeadlineExceeded)
			_ = c.from.Close()
		})
	}

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		program.AwaitExit(p.process)
	}()
	var e exit
	select {
	case <-ended:
	case <-ctx.Done():
		select {
		case <-ended:
		default:
			e.told = true
			_ = unix.Kill(-p.process.Pid, unix.SIGTERM)
			grace := time.NewTimer(r.killGrace)
			select {
			case <-ended:
			case <-grace.C:
			}
			grace.Stop()
		}
	}
	_ = unix.Kill(-p.process.Pid, unix.SIGKILL)
	<-ended
	state, err := p.process.Wait()
	if r.adopts {
		program.Bury(p.process.Pid)
	}

	// Everything within reach is dead, so the pipes end by themselves.
	limit := time.Now().Add(drainTime)
	_ = p.stdout.SetReadDeadline(limit)
	_ = p.stderr.SetReadDeadline(limit)
	copying.Wait()
	e.held = held[0] || held[1]

	e.code = -1
	if err != nil {
		return e, nil // somebody else reaped it: how it ended is not known
	}
	e.user, e.system = state.UserTime(), state.SystemTime()
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
		e.maxRSS = program.MaxRSS(usage)
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		e.signal = status.Signal()
	} else {
		e.code = state.ExitCode()
	}
	return e, nil
}

// started is a program that runs, with our ends of its pipes.
type started struct {
	process        *os.Process
	stdout, stderr *os.File
}

// start starts the program.
func (r *run) start(ctx context.Context) (_ started, err error) {
	var ends []*os.File
	defer func() {
		if err != nil {
			for _, f := range ends {
				_ = f.Close()
			}
		}
	}()
	pipe := func() (reader, writer *os.File) {
		if err != nil {
			return nil, nil
		}
		if reader, writer, err = os.Pipe(); err == nil {
			ends = append(ends, reader, writer)
		}
		return reader, writer
	}
	// The payload is whole before the program starts: if Billhook dies at any moment,
	// the program never takes a part of it, or none, for all.
	childIn, err := payloadFile(r.stdin)
	if err != nil {
		return started{}, err
	}
	ends = append(ends, childIn)
	stdout, childOut := pipe()
	stderr, childErr := pipe()
	if err != nil {
		return started{}, err
	}
	attr := &os.ProcAttr{
		Dir:   r.dir,
		Env:   r.env,
		Files: []*os.File{childIn, childOut, childErr},
		Sys:   r.identity.Attr(),
	}
	var p *os.Process
	pause := time.Millisecond
	for try := 1; ; try++ {
		p, err = r.startProcess(attr)
		if !errors.Is(err, syscall.ETXTBSY) || try == busyTries {
			break
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return started{}, ctx.Err()
		case <-timer.C:
		}
		pause *= 3
	}
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return started{}, err
	}
	program.NoCoreDump(p.Pid)
	for _, f := range attr.Files {
		_ = f.Close()
	}
	return started{p, stdout, stderr}, nil
}

// startProcess starts the program, by way of the launcher if it has limits.
func (r *run) startProcess(attr *os.ProcAttr) (*os.Process, error) {
	if len(r.limits) == 0 {
		return os.StartProcess(r.path, r.argv, attr)
	}
	report, childReport, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = report.Close() }()
	launch := *attr
	launch.Files = append(slices.Clip(attr.Files), childReport) // becomes reportFD
	argv := append([]string{LaunchName, formatLimits(r.limits), r.path}, r.argv[1:]...)
	p, err := os.StartProcess(r.launcher, argv, &launch)
	_ = childReport.Close()
	if err != nil {
		// Not wrapped: it is not the program that is at fault.
		return nil, fmt.Errorf("start the launcher %s: %v", r.launcher, err)
	}
	if err := launched(report); err != nil {
		_, _ = p.Wait()
		return nil, err
	}
	return p, nil
}
