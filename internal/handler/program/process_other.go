//go:build unix && !linux

package program

import (
	"os"
	"syscall"
)

func platformAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// AwaitExit blocks until p has ended. Waiting without reaping has no common form
// outside Linux, so it reaps; the group is then killed an instant later, within
// which its id could in theory be given away.
func AwaitExit(p *os.Process) { _, _ = p.Wait() }

// Adopts reports false: that orphans become ours is a matter of Linux.
func Adopts() bool { return false }

// Bury does nothing.
func Bury(int) {}

// MaxRSS is the most memory that a process had, in bytes; 0 if unknown.
func MaxRSS(*syscall.Rusage) int64 { return 0 }

// NoCoreDump does nothing.
func NoCoreDump(int) {}
