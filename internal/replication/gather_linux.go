package replication

import (
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// control prepares a socket before it connects, when the size of its receive
// window can still be agreed on. Where the system caps SO_RCVBUF below what is
// wanted it is better left alone: the kernel then sizes the buffer by itself, and
// SO_RCVLOWAT raises it up to tcp_rmem.
func control(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	if b, err := os.ReadFile("/proc/sys/net/core/rmem_max"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n < receiveBuffer {
			return nil
		}
	}
	// Without it all works, only slower.
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	})
}

// gatherer holds reads back until much can be read.
type gatherer struct {
	tcp *net.TCPConn
	raw syscall.RawConn
	max int // the highest mark worth setting: half the room of a read buffer
	// mark is what the kernel granted while gathering, 0 while not.
	mark int
}

// newGatherer returns nil when the connection cannot gather.
func newGatherer(c net.Conn, bufferSize int) *gatherer {
	tcp := tcpOf(c)
	if tcp == nil {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return &gatherer{tcp: tcp, raw: raw, max: min(receiveBuffer, bufferSize) / 2}
}

// begin sets the low-water mark. It reports false when that cannot be done.
func (g *gatherer) begin() bool {
	if g.mark != 0 {
		return true
	}
	g.set(g.max)
	// The kernel caps the mark at half of what it gave as a buffer.
	_ = g.raw.Control(func(fd uintptr) {
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT); err == nil && n > 1 {
			g.mark = n
		}
	})
	return g.mark != 0
}

// end lets the first byte wake the reader again.
func (g *gatherer) end() {
	if g.mark != 0 {
		g.set(1)
		g.mark = 0
	}
}

func (g *gatherer) set(mark int) {
	_ = g.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, mark)
	})
}

// wait returns when the mark is reached or gatherWait has passed. It reads
// nothing; errors of the connection are left for the read that follows.
func (g *gatherer) wait() {
	if err := g.tcp.SetReadDeadline(time.Now().Add(gatherWait)); err != nil {
		return
	}
	// Readiness is edge-triggered, so what is there already is looked at first.
	_ = g.raw.Read(func(fd uintptr) bool {
		n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		return err != nil || n >= g.mark
	})
}

// queued returns how many bytes the kernel holds for the reader.
func (g *gatherer) queued() int {
	n := 0
	_ = g.raw.Control(func(fd uintptr) {
		n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	})
	return n
}
