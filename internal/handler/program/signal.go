//go:build unix

package program

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// SignalName returns "signal 9 (SIGKILL)".
func SignalName(s syscall.Signal) string {
	name := unix.SignalName(s)
	if name == "" {
		name = s.String()
	}
	return "signal " + strconv.Itoa(int(s)) + " (" + name + ")"
}
