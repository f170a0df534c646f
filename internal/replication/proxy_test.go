package replication

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// proxy stands between a client and a server and can break in two ways.
type proxy struct {
	address string
	target  string

	mu     sync.Mutex
	conns  []net.Conn
	holed  chan struct{} // closed while connections of before carry nothing any more
	closed bool
}

func newProxy(t testing.TB, port int) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), target: fmt.Sprintf("127.0.0.1:%d", port), holed: make(chan struct{})}
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
			hole := p.holed
			if p.closed {
				c.Close()
				s.Close()
			}
			p.mu.Unlock()
			all.Go(func() { p.pipe(c, s, hole) })
			all.Go(func() { p.pipe(s, c, hole) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.cut()
		all.Wait()
	})
	return p
}

// pipe copies until an end closes. Once the hole is open it swallows all, and says
// nothing even of an end.
func (p *proxy) pipe(to, from net.Conn, hole <-chan struct{}) {
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

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// hole makes the present connections swallow everything.
func (p *proxy) hole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.holed)
}

// heal lets new connections through.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holed = make(chan struct{})
}
