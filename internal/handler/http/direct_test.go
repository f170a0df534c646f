package http

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// scripted is a server that answers each request of a connection with the next of its
// answers, byte by byte as they stand, and closes the connection after the last one.
type scripted struct {
	address     string
	connections atomic.Int64
	requests    atomic.Int64
	closed      chan struct{} // gets one for each connection that it has closed
}

func newScripted(t *testing.T, answers func(connection int64) []string) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{address: l.Addr().String(), closed: make(chan struct{}, 100)}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := s.connections.Add(1)
			serving.Go(func() {
				defer func() {
					_ = c.Close()
					s.closed <- struct{}{}
				}()
				r := bufio.NewReader(c)
				for _, answer := range answers(n) {
					req, err := nethttp.ReadRequest(r)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					s.requests.Add(1)
					if answer == "hang" {
						_, _ = r.Peek(1) // until the client gives up
						return
					}
					_, _ = io.WriteString(c, answer)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return s
}

// get makes one request and reads its answer to the end.
func (s *scripted) get(ctx context.Context, d *direct) (code int, body string, err error) {
	u := &url.URL{Scheme: "http", Host: s.address, Path: "/x"}
	req := (&nethttp.Request{Method: "POST", URL: u, Host: u.Host, Header: nethttp.Header{}}).WithContext(ctx)
	resp, err := d.roundTrip(req, []byte("hello"), func() {})
	if err != nil {
		return 0, "", err
	}
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), errors.Join(err, resp.Body.Close())
}

func (s *scripted) client(t *testing.T, keep int) *direct {
	d := newDirect(&url.URL{Scheme: "http", Host: s.address}, (&net.Dialer{}).DialContext, keep)
	t.Cleanup(d.close)
	return d
}

const fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// TestDirect is the client of the plain case against what servers do to it.
func TestDirect(t *testing.T) {
	many := func(answer string) func(int64) []string {
		return func(int64) []string { return []string{answer, answer, answer} }
	}
	for _, tc := range []struct {
		name        string
		answers     func(connection int64) []string
		want        []string // of three requests: the body or part of the error
		connections int64
		requests    int64
	}{
		{"kept open", many(fine), []string{"ok", "ok", "ok"}, 1, 3},
		{"chunked", many("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), []string{"ok", "ok", "ok"}, 1, 3},
		{"no content", many("HTTP/1.1 204 No Content\r\n\r\n"), []string{"", "", ""}, 1, 3},
		{"interim answers", many("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + fine), []string{"ok", "ok", "ok"}, 1, 3},
		{"interim answers without end", many(strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 9)), []string{"interim", "interim", "interim"}, 3, 3},
		{"closes after each", many("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"), []string{"ok", "ok", "ok"}, 3, 3},
		{"HTTP/1.0", func(int64) []string { return []string{"HTTP/1.0 200 OK\r\n\r\nok"} }, []string{"ok", "ok", "ok"}, 3, 3},
		// What is sent beyond the answer would be taken for the next one.
		{"more than was asked for", many(fine + "HTTP/1.1 500 Oops\r\n\r\n"), []string{"ok", "ok", "ok"}, 3, 3},
		// The second request finds the connection closed, and is sent again on a new one.
		{"closed while idle", func(int64) []string { return []string{fine} }, []string{"ok", "ok", "ok"}, 3, 3},
		{"closes without an answer", func(int64) []string { return []string{""} }, []string{"EOF", "EOF", "EOF"}, 3, 3},
		// On a connection that was kept open it may be the server's idle timeout; on the new one it is not.
		{"closes without an answer later", func(n int64) []string {
			if n == 1 {
				return []string{fine, ""}
			}
			return []string{""}
		}, []string{"ok", "EOF", "EOF"}, 3, 4},
		{"breaks off in its head", func(int64) []string { return []string{"HTTP/1.1 200 OK\r\nContent-"} }, []string{"header of the response", "header of the response", "header of the response"}, 3, 3},
		{"breaks off in its body", func(int64) []string { return []string{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"} }, []string{"unexpected EOF", "unexpected EOF", "unexpected EOF"}, 3, 3},
		{"no HTTP", func(int64) []string { return []string{"SSH-2.0-OpenSSH_9.2\r\n"} }, []string{"malformed", "malformed", "malformed"}, 3, 3},
		{"a head without end", func(int64) []string {
			return []string{"HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Filler: "+strings.Repeat("x", 1000)+"\r\n", 100)}
		}, []string{"64 KiB", "64 KiB", "64 KiB"}, 3, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScripted(t, tc.answers)
			d := s.client(t, 2)
			for i, want := range tc.want {
				if strings.HasPrefix(tc.name, "closed while idle") && i > 0 {
					<-s.closed
				}
				_, body, err := s.get(t.Context(), d)
				switch {
				case err != nil && !strings.Contains(err.Error(), want):
					t.Errorf("request %d: %v, want %q", i+1, err, want)
				case err == nil && body != want:
					t.Errorf("request %d: %q, want %q", i+1, body, want)
				}
			}
			if c, r := s.connections.Load(), s.requests.Load(); c != tc.connections || r != tc.requests {
				t.Errorf("%d connections with %d requests, want %d with %d", c, r, tc.connections, tc.requests)
			}
		})
	}
}

// TestDirectEnds: a context that ends breaks off what waits, and what it broke off is
// not used again.
func TestDirectEnds(t *testing.T) {
	s := newScripted(t, func(n int64) []string {
		if n == 1 {
			return []string{fine, "hang"}
		}
		return []string{fine}
	})
	d := s.client(t, 2)
	if _, _, err := s.get(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, _, err := s.get(ctx, d)
		ended <- err
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for s.requests.Load() < 2 {
		<-tick.C
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("no error")
	}
	<-s.closed
	if _, body, err := s.get(t.Context(), d); err != nil || body != "ok" {
		t.Errorf("after it: %q, %v", body, err)
	}
	if c := s.connections.Load(); c != 2 {
		t.Errorf("%d connections, want 2", c)
	}

	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.get(ctx, d); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// TestDirectKeeps: no more connections stay open than there should.
func TestDirectKeeps(t *testing.T) {
	const at, keep = 10, 3
	arrived, answer := make(chan struct{}, at), make(chan struct{})
	server := &nethttp.Server{ReadHeaderTimeout: time.Minute, Handler: nethttp.HandlerFunc(func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		arrived <- struct{}{}
		<-answer
		fmt.Fprint(w, "ok")
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open atomic.Int64
	closed := make(chan struct{}, at)
	server.ConnState = func(_ net.Conn, state nethttp.ConnState) {
		switch state {
		case nethttp.StateNew:
			open.Add(1)
		case nethttp.StateClosed:
			open.Add(-1)
			closed <- struct{}{}
		default:
		}
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	s := &scripted{address: l.Addr().String()}
	d := s.client(t, keep)
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			if _, body, err := s.get(t.Context(), d); err != nil || body != "ok" {
				t.Errorf("%q, %v", body, err)
			}
		})
	}
	for range at {
		<-arrived
	}
	close(answer)
	wg.Wait()
	for range at - keep {
		<-closed
	}
	if n := open.Load(); n != keep {
		t.Errorf("%d connections stay open, want %d", n, keep)
	}
	d.close()
	for range keep {
		<-closed
	}
}
