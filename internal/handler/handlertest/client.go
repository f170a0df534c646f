package handlertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/handler"
)

// Client is a handler that speaks with a server of somebody else's, such as a plugin
// that comes along. The suite puts a bad network between the two.
type Client struct {
	// New makes a handler that takes address for its server's, and ends it with the test.
	New     func(t *testing.T, address string) handler.Handler
	Network string // "tcp" or "udp"
	Server  string // host:port of the real server
	// Good is a delivery that the server takes; n tells them apart. Bad is one with which
	// trying again is no use.
	Good func(n int) *handler.Delivery
	Bad  func() *handler.Delivery
	// Many is how many attempts the server takes at a time.
	Many int
	// Limit is how many bytes of each body the handler captures.
	Limit int
	// Secret is a secret that each handler is configured with.
	Secret string
	// Grace is how long after its context Handle may still take.
	Grace time.Duration
}

// RunClient puts the suite for clients of servers to one.
func RunClient(t *testing.T, c Client) {
	run := func(name string, way way, f func(t *testing.T, h handler.Handler, r *relay)) {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, c.Network, c.Server)
			r.set(way)
			f(t, c.New(t, r.address()), r)
		})
	}
	s := suite{Kind{Limit: c.Limit, Secret: c.Secret, Grace: c.Grace}}
	call := func(t *testing.T, h handler.Handler, timeout time.Duration, d *handler.Delivery) (handler.Result, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		end := time.Now().Add(timeout)
		res, err := h.Handle(ctx, d)
		s.inTime(t, end)
		s.judge(t, res, err)
		return res, err
	}

	run("success", pass, func(t *testing.T, h handler.Handler, _ *relay) {
		res, err := call(t, h, patience, c.Good(1))
		s.succeeded(t, res, err)
	})
	run("slowly", slow, func(t *testing.T, h handler.Handler, _ *relay) {
		res, err := call(t, h, patience, c.Good(1))
		s.succeeded(t, res, err)
	})
	run("many at a time", pass, func(t *testing.T, h handler.Handler, _ *relay) {
		var wg sync.WaitGroup
		for n := range c.Many {
			wg.Go(func() {
				res, err := call(t, h, patience, c.Good(n))
				s.succeeded(t, res, err)
			})
		}
		wg.Wait()
	})
	run("permanent", pass, func(t *testing.T, h handler.Handler, _ *relay) {
		res, err := call(t, h, patience, c.Bad())
		s.failed(t, res, err)
		if !handler.IsPermanent(err) {
			t.Errorf("%v is not permanent", err)
		}
	})
	for _, bad := range []struct {
		name string
		way
	}{
		{"nobody listens", closed}, {"broken off in the middle", cut}, {"bad bytes", garbage}, {"huge output", flood},
	} {
		run(bad.name, bad.way, func(t *testing.T, h handler.Handler, r *relay) {
			for n := range 3 {
				res, err := call(t, h, 1500*time.Millisecond, c.Good(n))
				s.retryable(t, res, err)
			}
			// What was in the way is gone: the next attempt, or one soon after, does it.
			r.set(pass)
			var err error
			for end := time.Now().Add(patience); time.Now().Before(end); {
				if _, err = call(t, h, 5*time.Second, c.Good(9)); err == nil {
					return
				}
				<-time.After(100 * time.Millisecond)
			}
			t.Errorf("it does not recover: %v", err)
		})
	}
	run("timeout", silent, func(t *testing.T, h handler.Handler, _ *relay) {
		res, err := call(t, h, 500*time.Millisecond, c.Good(1))
		s.retryable(t, res, err)
	})
	run("cancel", silent, func(t *testing.T, h handler.Handler, _ *relay) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		end := time.Now().Add(200 * time.Millisecond)
		if _, err := h.Handle(ctx, c.Good(1)); err == nil {
			t.Error("no error")
		}
		s.inTime(t, end)
	})
}

// way is what a relay does with what passes through.
type way int

const (
	pass    way = iota
	slow        // everything comes late
	closed      // nobody listens
	silent      // nothing comes back
	cut         // the first that comes back is broken off in the middle
	garbage     // what comes back is neither text nor the protocol
	flood       // and there is very much of it
)

// relay stands between a client and a server.
type relay struct {
	t       *testing.T
	network string
	server  string

	mu     sync.Mutex
	at     string // host:port, the same all the time
	way    way
	listen io.Closer
	conns  map[net.Conn]bool
	wg     sync.WaitGroup
	ended  bool
}

func newRelay(t *testing.T, network, server string) *relay {
	t.Helper()
	r := &relay{t: t, network: network, server: server, at: "127.0.0.1:0", way: closed, conns: map[net.Conn]bool{}}
	r.set(pass) // finds an address
	t.Cleanup(func() {
		r.mu.Lock()
		r.ended = true
		r.mu.Unlock()
		r.set(closed)
		r.wg.Wait()
	})
	return r
}

func (r *relay) address() string { return r.at }

// set changes the way. Connections that there are end.
func (r *relay) set(w way) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listen != nil {
		_ = r.listen.Close() // it is made anew
		r.listen = nil
	}
	for c := range r.conns {
		_ = c.Close() // its end does not matter
	}
	r.way = w
	if w == closed {
		return
	}
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if err = r.open(w); err == nil {
			return
		}
	}
	r.t.Errorf("relay: %v", err)
}

// open listens; mu is held.
func (r *relay) open(w way) error {
	if r.network == "udp" {
		p, err := net.ListenPacket("udp", r.at)
		if err != nil {
			return err
		}
		r.at, r.listen = p.LocalAddr().String(), p
		r.wg.Go(func() { r.packets(p, w) })
		return nil
	}
	l, err := net.Listen("tcp", r.at)
	if err != nil {
		return err
	}
	r.at, r.listen = l.Addr().String(), l
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.connection(c, w) })
		}
	})
	return nil
}

// know keeps a connection, to end it; false: it is too late.
func (r *relay) know(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	r.conns[c] = true
	return true
}

func (r *relay) done(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	_ = c.Close() // it may have ended
}

// connection serves one connection of TCP.
func (r *relay) connection(c net.Conn, w way) {
	defer r.done(c)
	if !r.know(c) {
		return
	}
	switch w {
	case silent:
		_, _ = io.Copy(io.Discard, c) // until it ends
		return
	case garbage, flood:
		r.wg.Go(func() { _, _ = io.Copy(io.Discard, c) }) // it may talk
		n := 4 << 10
		if w == flood {
			n = 8 << 20
		}
		_, _ = c.Write(noise(n)) // it may have had enough
		return
	}
	s, err := net.Dial("tcp", r.server)
	if err != nil {
		return
	}
	defer r.done(s)
	if !r.know(s) {
		return
	}
	r.wg.Go(func() {
		_, _ = io.Copy(s, c) // ends with either
		_ = s.Close()
	})
	buf := make([]byte, 32<<10)
	for {
		n, err := s.Read(buf)
		switch {
		case n > 0 && w == cut:
			_, _ = c.Write(buf[:min(n, 3)]) // and no more
			return
		case n > 0 && w == slow:
			<-time.After(50 * time.Millisecond)
		}
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// packets serves UDP.
func (r *relay) packets(p net.PacketConn, w way) {
	onward := map[string]net.Conn{}
	defer func() {
		for _, s := range onward {
			r.done(s)
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		switch w {
		case silent:
			continue
		case garbage:
			_, _ = p.WriteTo(noise(300), from) // it may have gone
			continue
		case flood:
			for range 200 {
				_, _ = p.WriteTo(noise(4<<10), from) // it may have gone
			}
			continue
		}
		s := onward[from.String()]
		if s == nil {
			if s, err = net.Dial("udp", r.server); err != nil || !r.know(s) {
				return
			}
			onward[from.String()] = s
			r.wg.Go(func() {
				back := make([]byte, 64<<10)
				for {
					n, err := s.Read(back)
					if err != nil {
						return
					}
					switch w {
					case cut:
						n = min(n, 3)
					case slow:
						<-time.After(50 * time.Millisecond)
					}
					if _, err := p.WriteTo(back[:n], from); err != nil {
						return
					}
				}
			})
		}
		if _, err := s.Write(buf[:n]); err != nil {
			return
		}
	}
}

// noise is what no protocol has, and no terminal should.
func noise(n int) []byte {
	const bad = "\xff\xfe\x00\x1b[31m\x80garbage \xf0\x28\x8c\x28\u202e\r\n"
	return bytes.Repeat([]byte(bad), n/len(bad)+1)[:n]
}

// judge checks what holds for every result.
func (s suite) judge(t *testing.T, res handler.Result, err error) {
	t.Helper()
	text := fmt.Sprintf("%v %+v", err, res)
	if s.Secret != "" && strings.Contains(text, s.Secret) {
		t.Error("the secret is shown")
	}
	s.shown(t, res, err)
	for _, x := range []handler.Exchange{res.Request, res.Response} {
		if len(x.Body) > s.Limit+100 { // and a note that it was cut
			t.Errorf("%d bytes were captured, the limit is %d", len(x.Body), s.Limit)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) && res.Reason != handler.ReasonTimeout {
		t.Errorf("reason %q when time was up", res.Reason)
	}
}
