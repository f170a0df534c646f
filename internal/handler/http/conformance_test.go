package http_test

import (
	"encoding/pem"
	"fmt"
	"io"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/http"
)

const (
	secret = "s3cr3t-t0ken-0123456789"
	limit  = 16 << 10
)

func TestConformance(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/1.1 with TLS", "HTTP/2"} {
		t.Run(proto, func(t *testing.T) {
			handlertest.Run(t, handlertest.Kind{
				New:    func(t *testing.T, b handlertest.Behaviour) *handlertest.Subject { return subject(t, proto, b) },
				Limit:  limit,
				Secret: secret,
				Grace:  2 * time.Second,
			})
		})
	}
}

// subject is a handler with a real server that behaves as b says.
func subject(t *testing.T, proto string, b handlertest.Behaviour) *handlertest.Subject {
	t.Helper()
	r := &receiver{b: b, proto: proto, arrived: make(chan struct{}, 1000), gate: make(chan struct{}), stop: make(chan struct{})}
	srv := httptest.NewUnstartedServer(r)
	o := http.Options{BearerToken: secret, CaptureLimit: limit}
	switch proto {
	case "HTTP/1.1":
		srv.Start()
	case "HTTP/2":
		srv.EnableHTTP2 = true
		fallthrough
	default:
		srv.StartTLS()
		o.TLS.CAFile = writePEM(t, "CERTIFICATE", srv.Certificate().Raw)
	}
	o.URL = srv.URL + "/hook?access_token=" + secret
	h := newHandler(t, o)
	return &handlertest.Subject{
		Handler: h,
		Entered: func(n int) error {
			for range n {
				select {
				case <-r.arrived:
				case <-time.After(30 * time.Second):
					return fmt.Errorf("%d calls did not arrive", n)
				}
			}
			return nil
		},
		Release: sync.OnceFunc(func() { close(r.gate) }),
		Stop:    func() { close(r.stop); srv.Close() },
	}
}

func newHandler(t *testing.T, o http.Options) *http.Handler {
	t.Helper()
	h, err := http.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func writePEM(t *testing.T, kind string, der []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

type receiver struct {
	b                   handlertest.Behaviour
	proto               string
	arrived, gate, stop chan struct{}
}

func (r *receiver) ServeHTTP(w nethttp.ResponseWriter, req *nethttp.Request) {
	if !strings.HasPrefix(r.proto, req.Proto[:len("HTTP/2")]) {
		w.WriteHeader(nethttp.StatusHTTPVersionNotSupported)
		return
	}
	var payload []byte
	if !r.b.Deaf {
		var err error
		if payload, err = io.ReadAll(req.Body); err != nil {
			return
		}
	}
	r.arrived <- struct{}{}
	if r.b.Gate {
		select {
		case <-r.gate:
		case <-r.stop:
		}
	}
	switch {
	case r.b.Outcome == handlertest.Crash:
		if _, err := w.Write([]byte("half an ans")); err != nil {
			return
		}
		panic(nethttp.ErrAbortHandler)
	case r.b.Outcome == handlertest.Hang:
		if !r.b.Stubborn {
			select {
			case <-req.Context().Done():
			case <-r.stop:
			}
		} else {
			<-r.stop
		}
		// To return would answer 200, which a caller that is just giving up, and
		// has said so, may still read.
		panic(nethttp.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "text/plain")
	if r.b.Answer != "" {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
	}
	if r.b.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(r.b.RetryAfter/time.Second)))
	}
	if r.b.Bad {
		w.Header().Set("X-Bad", "\xff\xfe\x80")
	}
	if r.b.Leak {
		w.Header().Set("X-Echo", req.Header.Get("Authorization"))
		w.Header().Set("Content-Location", req.URL.String())
		w.Header().Set("Set-Cookie", "session="+secret)
	}
	switch r.b.Outcome {
	case handlertest.Retry:
		w.WriteHeader(nethttp.StatusServiceUnavailable)
	case handlertest.Permanent:
		w.WriteHeader(nethttp.StatusUnprocessableEntity)
	}
	for n := r.b.Output; n > 0; n -= 1 << 16 {
		_, _ = w.Write([]byte(strings.Repeat("o", min(n, 1<<16))))
	}
	if r.b.Bad {
		_, _ = w.Write([]byte("\xff\xfe\x00\x1b[2J\r\n\u202e bad \x80"))
	}
	if r.b.Leak {
		_, _ = fmt.Fprintf(w, "you are %s and asked for %s\n", req.Header.Get("Authorization"), req.URL)
	}
	if r.b.Echo {
		_, _ = w.Write(payload)
	}
	if r.b.Report {
		_, _ = fmt.Fprintf(w, "id=%s\nattempt=%s\nhandler=%s\n", req.Header.Get("Idempotency-Key"), req.Header.Get("Billhook-Attempt"), req.Header.Get("Billhook-Handler"))
	}
	_, _ = io.WriteString(w, r.b.Answer)
}
