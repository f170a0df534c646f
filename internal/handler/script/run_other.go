//go:build unix && !linux

package script

import (
	"os"
	"syscall"
)

func platformAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// awaitExit blocks until p has ended. Waiting without reaping has no common form
// outside Linux, so it reaps; the group is then killed an instant later, within
// which its id could in theory be given away.
func awaitExit(p *os.Process) { _, _ = p.Wait() }

func adopts() bool { return false }

func bury(int) {}

func maxRSS(*syscall.Rusage) int64 { return 0 }

func dumpNoCore(int) {}
