package http

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// direct speaks HTTP/1.1 over connections of its own, from the goroutine that makes the
// attempt: net/http's transport has two more for each connection, and waking them costs
// more than all else of a small request on a fast network. It is for the plain case:
// http without a proxy, to one host, with a body that fits the buffers of a socket.
// Everything else goes through the transport.
//
// Like the transport it unpacks an answer that comes in gzip. It sends a request a
// second time only when a connection that was kept open brought not one byte of an
// answer, and then on a new connection.
type direct struct {
	address string // host:port
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	keep    int // idle connections

	mu     sync.Mutex
	idle   []*directConn // the last used one last
	closed bool
}

const (
	maxDirectBody = 32 << 10
	maxHeadBytes  = 64 << 10 // of a response
	idleTimeout   = 90 * time.Second
	// freshFor is how long a connection is trusted after its last answer without
	// looking whether the server has closed it.
	freshFor = time.Second
	// maxInterim is how many responses of the 1xx class may precede the answer.
	maxInterim = 5
)

// newDirect returns nil for a target that is not the plain case.
func newDirect(base *url.URL, dial func(ctx context.Context, network, address string) (net.Conn, error), keep int) *direct {
	if base.Scheme != "http" || strings.ContainsFunc(base.Host, func(r rune) bool { return r <= ' ' || r > '~' || r == '%' }) {
		return nil
	}
	port := base.Port()
	if port == "" {
		port = "80"
	}
	return &direct{address: net.JoinHostPort(base.Hostname(), port), dial: dial, keep: keep}
}

// directConn is one connection. It belongs to one request at a time.
type directConn struct {
	net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	left int64 // bytes that may yet be read of a response's head
	used time.Time
}

var errLongHead = errors.New("the header of the response is longer than 64 KiB")

// Read is for r.
func (c *directConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errLongHead
	}
	n, err := c.Conn.Read(p)
	c.left -= int64(n)
	return n, err
}

// roundTrip sends req with its body and returns the response, whose body must be
// closed. connected is called when there is a connection.
func (d *direct) roundTrip(req *nethttp.Request, body []byte, connected func()) (*nethttp.Response, error) {
	ctx := req.Context()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c := d.take(); c != nil {
		connected()
		resp, answered, err := d.exchange(ctx, c, req, body)
		if err == nil || answered || ctx.Err() != nil {
			return resp, err
		}
		// The server closed it while it was idle, or is gone.
	}
	conn, err := d.dial(ctx, "tcp", d.address)
	if err != nil {
		return nil, err
	}
	connected()
	c := &directConn{Conn: conn}
	c.r, c.w = bufio.NewReaderSize(c, 4<<10), bufio.NewWriterSize(conn, 4<<10)
	resp, _, err := d.exchange(ctx, c, req, body)
	return resp, err
}

// exchange makes one request on c, which it keeps or closes. answered tells that
// something came back.
func (d *direct) exchange(ctx context.Context, c *directConn, req *nethttp.Request, body []byte) (resp *nethttp.Response, answered bool, err error) {
	// A deadline in the past ends what is under way when the context ends.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	resp, answered, err = c.exchange(req, body)
	if err != nil {
		stop()
		_ = c.Close()
		if ctx.Err() != nil {
			err = ctx.Err() // which broke it off
		}
		return nil, answered, err
	}
	b := &directBody{
		d: d, c: c, body: resp.Body, stop: stop, ended: resp.Body == nethttp.NoBody,
		again: !resp.Close && resp.StatusCode != nethttp.StatusSwitchingProtocols,
	}
	if req.Header["Accept-Encoding"] == nil && strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		// It was not the operator who asked for it, so it is not shown either.
		b.packed = true
		resp.Header.Del("Content-Encoding")
		resp.Header.Del("Content-Length")
		resp.ContentLength, resp.Uncompressed = -1, true
	}
	resp.Body = b
	return resp, true, nil
}

func (c *directConn) exchange(req *nethttp.Request, body []byte) (resp *nethttp.Response, answered bool, err error) {
	w := c.w
	w.WriteString(req.Method)
	w.WriteByte(' ')
	w.WriteString(req.URL.RequestURI())
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(req.Host)
	w.WriteString("\r\n")
	if len(body) > 0 || req.Method != nethttp.MethodGet {
		w.WriteString("Content-Length: ")
		w.WriteString(strconv.Itoa(len(body)))
		w.WriteString("\r\n")
	}
	if req.Header["Accept-Encoding"] == nil {
		w.WriteString("Accept-Encoding: gzip\r\n")
	}
	_ = req.Header.Write(w) // w keeps its first error for Flush
	w.WriteString("\r\n")
	w.Write(body)
	if err := w.Flush(); err != nil {
		return nil, false, err
	}
	c.left = maxHeadBytes
	if _, err := c.r.Peek(1); err != nil {
		return nil, false, err
	}
	for range maxInterim + 1 {
		resp, err = nethttp.ReadResponse(c.r, req)
		if err != nil {
			return nil, true, fmt.Errorf("the header of the response is broken: %w", err)
		}
		if resp.StatusCode >= 200 || resp.StatusCode == nethttp.StatusSwitchingProtocols {
			c.left = 1 << 62
			return resp, true, nil
		}
	}
	return nil, true, errors.New("the receiver sends interim answers and no other")
}

// directBody is the body of a response. When it was read to its end and closed, the
// connection can be used again.
type directBody struct {
	d      *direct
	c      *directConn
	body   io.ReadCloser // as it comes
	packed bool
	gzip   *gzip.Reader // of body; nil: not read yet
	stop   func() bool
	again  bool
	ended  bool
	once   sync.Once
}

func (b *directBody) Read(p []byte) (int, error) {
	if !b.packed {
		return b.raw(p)
	}
	if b.gzip == nil {
		z, err := gzip.NewReader(reader(b.raw))
		if err != nil {
			return 0, err
		}
		b.gzip = z
	}
	return b.gzip.Read(p)
}

func (b *directBody) raw(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.ended = b.ended || err == io.EOF
	return n, err
}

// reader makes a function an io.Reader.
type reader func([]byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

func (b *directBody) Close() error {
	b.once.Do(func() {
		if !b.ended && b.again {
			// One read more tells whether it was the end.
			if n, _ := b.raw(make([]byte, 1)); n > 0 {
				b.ended = false
			}
		}
		// Who was too late to stop the deadline has set it, or will.
		if !b.stop() || !b.ended || !b.again || b.c.r.Buffered() > 0 || !b.d.put(b.c) {
			_ = b.c.Close()
		}
	})
	return nil
}

// take returns a connection that was kept open, nil if there is none.
func (d *direct) take() *directConn {
	for {
		d.mu.Lock()
		n := len(d.idle)
		if n == 0 {
			d.mu.Unlock()
			return nil
		}
		c := d.idle[n-1]
		d.idle[n-1] = nil
		d.idle = d.idle[:n-1]
		d.mu.Unlock()
		age := time.Since(c.used)
		if age < freshFor || age < idleTimeout && c.silent() {
			return c
		}
		_ = c.Close()
	}
}

// put keeps a connection, unless there are enough.
func (d *direct) put(c *directConn) bool {
	c.used = time.Now()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return false
	}
	// The first one was used longest ago.
	var drop *directConn
	if len(d.idle) > 0 && (len(d.idle) >= d.keep || c.used.Sub(d.idle[0].used) > idleTimeout) {
		drop = d.idle[0]
		d.idle = slices.Delete(d.idle, 0, 1)
	}
	d.idle = append(d.idle, c)
	d.mu.Unlock()
	if drop != nil {
		_ = drop.Close()
	}
	return true
}

// close closes the connections that are kept open, and those in use when they end.
func (d *direct) close() {
	d.mu.Lock()
	idle := d.idle
	d.idle, d.closed = nil, true
	d.mu.Unlock()
	for _, c := range idle {
		_ = c.Close()
	}
}

// silent reports whether the server has neither closed the connection nor sent
// something that nobody asked for.
func (c *directConn) silent() bool {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	silent := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		silent = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && silent
}
