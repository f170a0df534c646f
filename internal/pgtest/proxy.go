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
	Ask                 // pass it on, then ask a client that replicates for a status update
)

// Proxy stands between a client and a server, knows what they say to each other, and
// can break at what it hears. It ends with its test.
type Proxy struct {
	Address string // where it listens

	mu      sync.Mutex
	target  string
	conns   []net.Conn
	holed   chan struct{} // closed while connections of before carry nothing any more
	filter  func(kind byte, body []byte) Verdict
	observe func(kind byte, body []byte)
	closed  bool
}

// NewProxy makes a Proxy for a server's port on 127.0.0.1.
func NewProxy(t testing.TB, port int) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Address: l.Addr().String(), holed: make(chan struct{})}
	p.Point(port)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			target := p.target
			p.mu.Unlock()
			s, err := net.Dial("tcp", target)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, c, s)
			hole, filter, observe := p.holed, p.filter, p.observe
			if p.closed {
				c.Close()
				s.Close()
			}
			p.mu.Unlock()
			all.Go(func() {
				if observe != nil {
					overhear(s, c, hole, observe)
				} else {
					pipe(s, c, hole)
				}
			})
			all.Go(func() {
				if filter != nil {
					sift(c, s, hole, filter)
				} else {
					pipe(c, s, hole)
				}
			})
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

// Point makes new connections go to another port on 127.0.0.1.
func (p *Proxy) Point(port int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = fmt.Sprintf("127.0.0.1:%d", port)
}

// Filter makes new connections ask f about each protocol message that the server
// sends: its kind, and its body, which f may change. Connections ask from
// goroutines of their own. A nil f passes all.
func (p *Proxy) Filter(f func(kind byte, body []byte) Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filter = f
}

// Observe makes new connections tell f of each protocol message that the client
// sends, before it is passed on. Connections call f from goroutines of their own,
// and wait for it.
func (p *Proxy) Observe(f func(kind byte, body []byte)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.observe = f
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

// swallowed reports whether the hole has opened.
func swallowed(hole <-chan struct{}) bool {
	select {
	case <-hole:
		return true
	default:
		return false
	}
}

// pipe copies until an end closes. Once the hole is open it swallows all, and says
// nothing even of an end.
func pipe(to, from net.Conn, hole <-chan struct{}) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if swallowed(hole) {
			if err == nil {
				continue
			}
			return
		}
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil && err == nil {
				err = werr
			}
		}
		if err != nil { // nobody closes but one way
			to.Close()
			from.Close()
			return
		}
	}
}

// sift is pipe for a server's messages, which pass as the filter has it.
func sift(to, from net.Conn, hole <-chan struct{}, filter func(byte, []byte) Verdict) {
	ask := []byte{0: 'd', 4: 4 + 18, 5: 'k', 22: 1} // a keepalive that wants a reply
	for {
		whole, err := readWhole(from, 5)
		if swallowed(hole) {
			if err == nil {
				continue
			}
			return
		}
		if err != nil {
			to.Close()
			from.Close()
			return
		}
		kind, body := whole[0], whole[5:]
		if kind == 'd' && len(body) == 18 && body[0] == 'k' {
			copy(ask[6:22], body[1:17]) // it repeats the last true one
		}
		v := filter(kind, body)
		switch v {
		case Drop:
			continue
		case Ask:
			whole = append(whole, ask...)
		}
		if _, err := to.Write(whole); err != nil {
			return
		}
		if v == Cut {
			to.Close()
			from.Close()
			return
		}
	}
}

// overhear is pipe for a client's messages, of which f is told.
func overhear(to, from net.Conn, hole <-chan struct{}, f func(byte, []byte)) {
	for head := 4; ; head = 5 { // the first has no kind
		whole, err := readWhole(from, head)
		if swallowed(hole) {
			if err == nil {
				continue
			}
			return
		}
		if err != nil {
			to.Close()
			from.Close()
			return
		}
		if head == 5 {
			f(whole[0], whole[5:])
		}
		if _, err := to.Write(whole); err != nil {
			return
		}
	}
}

// readWhole reads one message whose kind and length take so many bytes.
func readWhole(from io.Reader, head int) ([]byte, error) {
	whole := make([]byte, head)
	if _, err := io.ReadFull(from, whole); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(whole[head-4:])) + head - 4
	if n < head {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	whole = append(whole, make([]byte, n-head)...)
	_, err := io.ReadFull(from, whole[head:])
	return whole, err
}
