package replication

import (
	"crypto/tls"
	"net"
	"time"
)

// Gathering. A walsender sends each message as soon as it has it. A reader that
// keeps up is woken for each, and the walsender pays a send, a segment and an
// acknowledgement for each: that, not decoding, is what bounds a drain. Under
// backlog the reader therefore sets SO_RCVLOWAT, so that the kernel wakes it
// when half the receive buffer is full, and the walsender appends to a queue
// meanwhile. It waits 20 ms at most, and a small read ends it, so that a trickle
// never waits.
//
//	               a large read, or commits older than 100 ms
//	first byte  ───────────────────────────────────────────────►  gather
//	            ◄───────────────────────────────────────────────
//	               20 ms passed and little came
const (
	receiveBuffer = 1 << 20 // asked of the kernel
	gatherWait    = 20 * time.Millisecond
	gatherLag     = 100 * time.Millisecond // well above gatherWait, so that gathering does not keep itself going
	largeRead     = 64 << 10
	smallRead     = 16 << 10
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
