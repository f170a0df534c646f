package replication

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gatherer holds reads back until much can be read.
type gatherer struct {
	raw   syscall.RawConn
	least int           // bytes that are worth another read
	trip  time.Duration // shortest round trip
	on    bool
	pause time.Duration
	cycle int // bytes read since the last pause
}

// newGatherer returns nil when the connection cannot gather.
func newGatherer(c net.Conn) *gatherer {
	tcp := tcpOf(c)
	if tcp == nil {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return &gatherer{raw: raw, least: least(c)}
}

// roundTrip returns the shortest that the kernel has measured, 0 when it does not say.
func (g *gatherer) roundTrip() time.Duration {
	var rtt time.Duration
	_ = g.raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			rtt = time.Duration(info.Min_rtt) * time.Microsecond
		}
	})
	return rtt
}

// begin narrows the window, unless the way is too long. That is asked each time: the
// first round trips of a connection, on a busy machine, may not tell how short it is.
func (g *gatherer) begin() {
	if g.on {
		return
	}
	if g.trip = g.roundTrip(); g.trip == 0 || g.trip > gatherRoundTrip {
		return
	}
	g.on, g.pause, g.cycle = true, gatherMin, 0
	_ = g.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, gatherWindow)
	})
}

// end goes back to plain reads. The window stays narrow; at a round trip this
// short it is wide enough.
func (g *gatherer) end() { g.on = false }

// lowWater sets how many bytes must be there to wake the reader.
func (g *gatherer) lowWater(bytes int) {
	_ = g.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes)
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
