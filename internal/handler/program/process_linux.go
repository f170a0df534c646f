package program

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// platformAttr asks the kernel to kill the program if Billhook is killed, since a
// run that outlives it would go on beside its own repetition. The kernel ties
// this to the thread that started the program; the runtime keeps its threads
// except those that a goroutine locked and never unlocked.
func platformAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// AwaitExit blocks until p has ended, and leaves it to be reaped.
func AwaitExit(p *os.Process) {
	for {
		err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Adopts reports whether orphans become children of this process, as they do
// where it is the first one of a container.
func Adopts() bool {
	if os.Getpid() == 1 {
		return true
	}
	var on int32
	err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&on)), 0, 0, 0)
	return err == nil && on != 0
}

// Bury reaps what became ours of a group that was killed.
func Bury(group int) {
	for {
		_, err := unix.Wait4(-group, nil, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// MaxRSS is the most memory that a process had, in bytes; 0 if unknown.
func MaxRSS(u *syscall.Rusage) int64 { return u.Maxrss << 10 }

// NoCoreDump turns core dumps off for a program that was just started: they would
// hold payloads and secrets.
func NoCoreDump(pid int) { _ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil) }
