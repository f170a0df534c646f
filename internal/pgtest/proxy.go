package pgtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// Verdict is what a Proxy does with what the server sends.
type Verdict uint8

// The verdicts.
const (
	Pass Verdict = iota // pass it on
	Drop                // swallow it
	Cut                 // pass it on and close both connections
)

// Proxy stands between a client and a server and can break in several ways. It
// ends with its test.
type Proxy struct {
	Address string // where it listens
	target  string

	mu     sync.Mutex
	conns  []net.Conn
	holed  chan struct{} // closed while connections of before carry nothing any more
	filter func(kind byte, body []byte) Verdict
	closed bool
}

// NewProxy makes a Proxy for a server's port on 127.0.0.1.
func NewProxy(t testing.TB, port int) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Address: l.Addr().String(), target: fmt.Sprintf("127.0.0.1:%d", port), holed: make(chan struct{})}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", p.target)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, c, s)
			hole, filter := p.holed, p.filter
			if p.closed {
				c.Close()
				s.Close()
			}
			p.mu.Unlock()
			all.Go(func() { pipe(s, c, hole) })
			if filter != nil {
				all.Go(func() { sift(c, s, filter) })
			} else {
				all.Go(func() { pipe(c, s, hole) })
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.Cut()
		all.Wait()
	})
	return p
}

// Filter makes new connections ask f about each protocol message that the server
// sends: its kind, and its body, which f may change. Connections ask from
// goroutines of their own. A nil f passes all.
func (p *Proxy) Filter(f func(kind byte, body []byte) Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filter = f
}

// Cut closes all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// Hole makes the present connections swallow everything, even their end.
func (p *Proxy) Hole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.holed)
}

// Heal lets new connections through.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holed = make(chan struct{})
}

// pipe copies until an end closes. Once the hole is open it swallows all, and says
// nothing even of an end.
func pipe(to, from net.Conn, hole <-chan struct{}) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		select {
		case <-hole:
			if err == nil {
				continue
			}
			return
		default:
		}
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			if err == io.EOF {
				to.Close()
			}
			return
		}
	}
}

// sift passes a server's messages on as the filter has it.
func sift(to, from net.Conn, filter func(byte, []byte) Verdict) {
	defer to.Close()
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(from, body); err != nil {
			return
		}
		v := filter(head[0], body)
		if v == Drop {
			continue
		}
		if _, err := to.Write(append(append([]byte(nil), head...), body...)); err != nil {
			return
		}
		if v == Cut {
			from.Close()
			return
		}
	}
}
