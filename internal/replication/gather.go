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
//   - reads while much is left, which opens the window again and again and lets
//     the large segments through. To read to the last byte would be to keep up with
//     the sender, with the window open, and to be back at a segment per message.
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
	gatherTarget    = 1 << 20  // bytes of one pause and the reads after it
	gatherLeast     = 16 << 10 // bytes that are worth another read
	gatherWait      = 200 * time.Microsecond
	gatherMin       = time.Millisecond
	gatherMax       = 20 * time.Millisecond
	gatherBegin     = 100 * time.Millisecond // of lag
	gatherEnd       = 50 * time.Millisecond
	gatherRoundTrip = 500 * time.Microsecond
)

// least returns what queued must be to be worth another read. Below TLS the kernel
// does not tell: the connection holds records back that it has read already.
func least(c net.Conn) int {
	if _, ok := c.(*tls.Conn); ok {
		return 1
	}
	return gatherLeast
}

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

// more reports whether another read is worth it. When it is not yet it gives the
// sender the time to see that the window is open again.
func (g *gatherer) more() bool {
	if g.queued() >= g.least {
		return true
	}
	time.Sleep(max(2*g.trip, gatherWait))
	return g.queued() >= g.least
}
