package replication

import (
	"crypto/tls"
	"net"
	"time"
)

// Gathering. A walsender sends each message as soon as it has it. Through an open
// window each costs it a send, a segment, an acknowledgement and often the
// reader's wake-up: that, not decoding, bounds a drain. Behind a closed window the
// same message is only appended to the socket's send queue, which later leaves in
// large segments. So under backlog, and only then, the reader
//
//   - narrows its window (SO_RCVBUF), so that it closes soon;
//   - pauses, long enough for about a megabyte to gather on the sender's side, with
//     the low-water mark (SO_RCVLOWAT) raised, so that nothing wakes it meanwhile;
//   - reads until nothing is left, which opens the window again and again and
//     lets the large segments through.
//
// To wake when the window is full and read at once does not do: the sender's queue
// is then still empty, and all goes through the open window.
//
// Backlog means that what comes was committed a while before it was sent, by the
// server's own clock. The sender's stamp is made before a message is queued, so
// pauses do not count as lag and gathering cannot keep itself going. A trickle
// never pauses. Over a longer way than gatherRoundTrip a narrow window would be
// the bound, so there reads stay plain.
//
//	       lag of 100 ms
//	plain ───────────────► pause, read all ─┐
//	      ◄───────────────        ▲        │
//	       lag below 50 ms,       └─────────┘
//	       or nothing came
const (
	gatherWindow    = 64 << 10
	gatherTarget    = 1 << 20 // bytes of one pause and the reads after it
	gatherMin       = time.Millisecond
	gatherMax       = 20 * time.Millisecond
	gatherBegin     = 100 * time.Millisecond // of lag
	gatherEnd       = 50 * time.Millisecond
	gatherRoundTrip = 500 * time.Microsecond
)

// tcpOf returns the TCP connection below TLS or nothing, nil if there is none: a
// unix socket.
func tcpOf(c net.Conn) *net.TCPConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	t, _ := c.(*net.TCPConn)
	return t
}

// rest pauses and starts a new cycle, with the length of the pause corrected by
// what the last one brought.
func (g *gatherer) rest() {
	if g.cycle > 0 {
		factor := min(max(float64(gatherTarget)/float64(g.cycle), 0.5), 2)
		g.pause = min(max(time.Duration(float64(g.pause)*factor), gatherMin), gatherMax)
	}
	g.cycle = 0
	g.lowWater(gatherWindow)
	time.Sleep(g.pause)
	g.lowWater(1)
}

// more reports whether there is more to read. When there is nothing it gives the
// sender the time to see that the window is open again.
func (g *gatherer) more() bool {
	if g.queued() > 0 {
		return true
	}
	time.Sleep(2 * g.trip)
	return g.queued() > 0
}
