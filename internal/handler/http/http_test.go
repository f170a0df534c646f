package http_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/http"
)

var payload = []byte(`{"event":{"events_id":"clients.balance_zero"}}`)

// handle makes one attempt with a new handler.
func handle(t *testing.T, o http.Options) (handler.Result, error) {
	t.Helper()
	h := newHandler(t, o)
	defer h.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return h.Handle(ctx, handlertest.Delivery(payload))
}

// serve starts a server of one function.
func serve(t *testing.T, f nethttp.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return srv
}

// answer starts a server that answers every call alike.
func answer(t *testing.T, code int, header nethttp.Header, body string) *httptest.Server {
	return serve(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		for name, values := range header {
			w.Header()[name] = values
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	})
}

// raw starts a TCP server that does f with each connection and then closes it.
func raw(t *testing.T, f func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

func TestRequest(t *testing.T) {
	type seen struct {
		method, uri string
		header      nethttp.Header
		body        []byte
		length      int64
	}
	calls := make(chan seen, 1)
	srv := serve(t, func(_ nethttp.ResponseWriter, r *nethttp.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- seen{r.Method, r.RequestURI, r.Header, body, r.ContentLength}
	})
	res, err := handle(t, http.Options{
		URL: srv.URL + "/hook?a=1", Version: "1.2.3", Username: "ann", Password: "pass:word",
		Headers: []http.Header{{Name: "x-tenant", Value: "7"}, {Name: "X-Object", Value: "client {{.data.id}}"}, {Name: "X-Name", Value: "{{.data.name}}"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := <-calls
	if got.method != "POST" || got.uri != "/hook?a=1" || !bytes.Equal(got.body, payload) || got.length != int64(len(payload)) {
		t.Errorf("request %s %s, %d bytes: %s", got.method, got.uri, got.length, got.body)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "billhook/1.2.3", "Idempotency-Key": "1-16/B374D848-3",
		"Billhook-Attempt": "3", "Billhook-Handler": "7", "X-Tenant": "7", "X-Object": "client 4711",
		"X-Name":        "a'b\"c`id`$(id);|&<>\\   X-Evil: 1\u202e é",
		"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:pass:word")),
		"X-Evil":        "", "Webhook-Signature": "",
	} {
		if v := got.header.Get(name); v != want {
			t.Errorf("header %s = %q, want %q", name, v, want)
		}
	}
	if want := "POST " + srv.URL + "/hook?a=***"; res.Request.Head[0] != want {
		t.Errorf("logged as %q, want %q", res.Request.Head[0], want)
	}
	if !slices.Contains(res.Request.Head, "Authorization: ***") {
		t.Errorf("authorization is not masked in %q", res.Request.Head)
	}

	if _, err = handle(t, http.Options{URL: srv.URL, Method: "get"}); err != nil {
		t.Fatal(err)
	}
	if got := <-calls; got.method != "GET" || len(got.body) != 0 || got.header.Get("Content-Type") != "" {
		t.Errorf("GET sent %q as %s", got.body, got.header)
	}
}

func TestSignature(t *testing.T) {
	secrets := []string{"whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("new"), 10)), base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("old"), 10))}
	var signatures []string
	srv := serve(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		body, _ := io.ReadAll(r.Body)
		for _, s := range secrets {
			verifier, err := standardwebhooks.NewWebhook(s)
			if err == nil {
				err = verifier.Verify(body, r.Header)
			}
			if err != nil {
				t.Error(err)
			}
			if verifier.Verify(append(body, ' '), r.Header) == nil {
				t.Error("another body passes")
			}
		}
		other, _ := standardwebhooks.NewWebhook(base64.StdEncoding.EncodeToString(make([]byte, 32)))
		if other.Verify(body, r.Header) == nil {
			t.Error("another secret passes")
		}
		if id := r.Header.Get("webhook-id"); id != "1-16/B374D848-3" || strings.Contains(id, ".") {
			t.Errorf("webhook-id %q", id)
		}
		signatures = strings.Split(r.Header.Get("webhook-signature"), " ")
	})
	res, err := handle(t, http.Options{URL: srv.URL, SigningSecrets: secrets})
	if err != nil {
		t.Fatal(err)
	}
	if len(signatures) != 2 || !strings.HasPrefix(signatures[0], "v1,") || !strings.HasPrefix(signatures[1], "v1,") {
		t.Errorf("signatures %q", signatures)
	}
	if !slices.ContainsFunc(res.Request.Head, func(l string) bool { return strings.HasPrefix(l, "Webhook-Signature: v1,") }) {
		t.Errorf("no signature in the log: %q", res.Request.Head)
	}
}

func TestStatus(t *testing.T) {
	for _, tc := range []struct {
		code   int
		o      http.Options
		class  string
		reason handler.Reason
	}{
		{200, http.Options{}, "success", ""},
		{202, http.Options{}, "success", ""},
		{204, http.Options{}, "success", ""},
		{304, http.Options{}, "permanent", handler.ReasonRedirect},
		{400, http.Options{}, "permanent", handler.ReasonClientError},
		{401, http.Options{}, "permanent", handler.ReasonClientError},
		{404, http.Options{}, "permanent", handler.ReasonClientError},
		{408, http.Options{}, "retry", handler.ReasonClientError},
		{409, http.Options{}, "retry", handler.ReasonClientError},
		{410, http.Options{}, "permanent", handler.ReasonClientError},
		{425, http.Options{}, "retry", handler.ReasonClientError},
		{429, http.Options{}, "retry", handler.ReasonRateLimited},
		{500, http.Options{}, "retry", handler.ReasonServerError},
		{501, http.Options{}, "retry", handler.ReasonServerError},
		{599, http.Options{}, "retry", handler.ReasonServerError},
		{666, http.Options{}, "retry", handler.ReasonOther},
		{404, http.Options{Retry: []string{"4xx"}}, "retry", handler.ReasonClientError},
		{409, http.Options{Success: []string{"409"}}, "success", ""},
		{501, http.Options{Permanent: []string{"501", "505-510"}}, "permanent", handler.ReasonServerError},
		{204, http.Options{Retry: []string{"204"}}, "retry", handler.ReasonOther},
	} {
		t.Run(fmt.Sprintf("%d %v%v%v", tc.code, tc.o.Success, tc.o.Retry, tc.o.Permanent), func(t *testing.T) {
			tc.o.URL = answer(t, tc.code, nil, "").URL
			res, err := handle(t, tc.o)
			class := "success"
			if err != nil {
				class = "retry"
			}
			if handler.IsPermanent(err) {
				class = "permanent"
			}
			if class != tc.class || res.Reason != tc.reason || res.Code != tc.code {
				t.Errorf("%s, reason %q, code %d, want %s, %q: %v", class, res.Reason, res.Code, tc.class, tc.reason, err)
			}
		})
	}
}

func TestErrorTexts(t *testing.T) {
	for _, tc := range []struct {
		code         int
		header       nethttp.Header
		body, secret string
		want         string
	}{
		{404, nil, "no such\nclient", "", "POST %s/x?k=***: 404 Not Found: no such client"},
		{422, nethttp.Header{"Content-Type": {"application/json"}}, `{"reason":"bad vat number"}`, "", "POST %s/x?k=***: 422 Unprocessable Entity: bad vat number"},
		{500, nethttp.Header{"Content-Type": {"text/html"}}, "<html>", "", "POST %s/x?k=***: 500 Internal Server Error"},
		{410, nil, "moved out", "", "POST %s/x?k=***: 410 Gone: the receiver says that this endpoint is gone for good; disable the handler or change its url (moved out)"},
		{
			301,
			nethttp.Header{"Location": {"/new?sig=topsecret"}},
			"", "",
			"POST %s/x?k=***: 301 Moved Permanently to %[1]s/new?sig=***: redirects are never followed; put the final address in the handler's url",
		},
	} {
		srv := answer(t, tc.code, tc.header, tc.body)
		_, err := handle(t, http.Options{URL: srv.URL + "/x?k=v"})
		if want := fmt.Sprintf(tc.want, srv.URL); err == nil || err.Error() != want {
			t.Errorf("error %v\nwant  %s", err, want)
		}
	}
	// Of a secret URL only the host is told.
	srv := answer(t, 404, nil, "")
	_, err := handle(t, http.Options{URL: srv.URL + "/services/T000/B000", SecretURL: true})
	if want := "POST " + srv.URL + "/***: 404 Not Found"; err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var followed atomic.Int32
	target := serve(t, func(nethttp.ResponseWriter, *nethttp.Request) { followed.Add(1) })
	for _, code := range []int{300, 301, 302, 303, 307, 308} {
		srv := answer(t, code, nethttp.Header{"Location": {target.URL + "/new"}}, "")
		res, err := handle(t, http.Options{URL: srv.URL})
		if !handler.IsPermanent(err) || res.Reason != handler.ReasonRedirect || !strings.Contains(err.Error(), target.URL+"/new") {
			t.Errorf("%d: %v, reason %s", code, err, res.Reason)
		}
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

func TestRetryAfterIsClamped(t *testing.T) {
	for _, tc := range []struct {
		value string
		body  string // a JSON answer
		want  time.Duration
	}{
		{"30", "", 30 * time.Second},
		{"30", `{"retry_after": 20}`, 30 * time.Second},
		{"", `{"retry_after": "20s"}`, 20 * time.Second},
		{"", `{"retry_after": "2h"}`, time.Minute},
		{"86400", "", time.Minute},
		{time.Now().Add(24 * time.Hour).UTC().Format(nethttp.TimeFormat), "", time.Minute},
	} {
		headers := nethttp.Header{"Content-Type": {"application/json"}}
		if tc.value != "" {
			headers.Set("Retry-After", tc.value)
		}
		srv := answer(t, 503, headers, tc.body)
		res, err := handle(t, http.Options{URL: srv.URL, RetryAfterMax: time.Minute})
		if d, ok := handler.RetryDelay(err); !ok || d != tc.want {
			t.Errorf("Retry-After %s gives %s, %t, want %s", tc.value, d, ok, tc.want)
		}
		noted := slices.ContainsFunc(res.Response.Head, func(l string) bool { return strings.Contains(l, "which is cut to 1m0s") })
		if noted != (tc.want == time.Minute) {
			t.Errorf("Retry-After %s: %q", tc.value, res.Response.Head)
		}
	}
	// A permanent failure has no delay.
	srv := answer(t, 404, nethttp.Header{"Retry-After": {"30"}}, "")
	if _, err := handle(t, http.Options{URL: srv.URL}); !handler.IsPermanent(err) {
		t.Error(err)
	}
}

func TestResponseBody(t *testing.T) {
	gz := func(n int) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = io.CopyN(w, zeros{}, int64(n))
		_ = w.Close()
		return b.String()
	}
	zip := nethttp.Header{"Content-Encoding": {"gzip"}}
	for _, tc := range []struct {
		name      string
		header    nethttp.Header
		body      string
		kept      int
		truncated int64
	}{
		{"empty", nil, "", 0, 0},
		{"at the limit", nil, strings.Repeat("x", 100), 100, 0},
		{"over the limit", nil, strings.Repeat("x", 101), 100, 1},
		{"long, of known length", nethttp.Header{"Content-Length": {"1000000"}}, strings.Repeat("x", 1e6), 100, 1e6 - 100},
		{"gzip", zip, gz(100), 100, 0},
		{"gzip, over the limit", zip, gz(5000), 100, 4900},
		// 4 MB in 4 kB: no more is unpacked than is kept and drained.
		{"gzip bomb", zip, gz(4 << 20), 100, 128<<10 - 100},
		{"broken gzip", zip, gz(5000)[:20], -1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := answer(t, 200, tc.header, tc.body)
			res, err := handle(t, http.Options{URL: srv.URL, CaptureLimit: 100})
			if err != nil {
				t.Error(err)
			}
			if tc.kept < 0 {
				if !slices.ContainsFunc(res.Response.Head, func(l string) bool { return strings.Contains(l, "the body broke off") }) {
					t.Errorf("no note in %q", res.Response.Head)
				}
				return
			}
			if len(res.Response.Body) != tc.kept || res.Response.Truncated != tc.truncated {
				t.Errorf("kept %d, truncated %d, want %d, %d", len(res.Response.Body), res.Response.Truncated, tc.kept, tc.truncated)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAnswer(t *testing.T) {
	const stop = `{"stop":true,"reason":"vip"}`
	for _, tc := range []struct {
		name, contentType, body string
		stop                    bool
		note                    string
	}{
		{"json", "application/json", stop, true, ""},
		{"json with charset", "application/json; charset=utf-8", stop, true, ""},
		{"json by suffix", "application/problem+json", stop, true, ""},
		{"text is no answer", "text/plain", stop, false, ""},
		{"no type is no answer", "", stop, false, ""},
		{"empty", "application/json", "", false, ""},
		{"a list", "application/json", `[{"stop":true}]`, false, ""},
		{"broken", "application/json", stop[:10], false, "ignored: it is not valid JSON"},
		{"too long", "application/json", `{"stop":true,"x":"` + strings.Repeat("x", 70000) + `"}`, false, "ignored: it is longer than 65536 bytes"},
		{"still within", "application/json", `{"stop":true,"x":"` + strings.Repeat("x", 60000) + `"}`, true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := answer(t, 200, nethttp.Header{"Content-Type": {tc.contentType}}, tc.body)
			res, err := handle(t, http.Options{URL: srv.URL})
			if err != nil || res.Answer.Stop != tc.stop {
				t.Errorf("answer %+v, %v", res.Answer, err)
			}
			noted := strings.Contains(strings.Join(res.Response.Head, "\n"), "billhook-note: ")
			if noted != (tc.note != "") || !strings.Contains(strings.Join(res.Response.Head, "\n"), tc.note) {
				t.Errorf("want a note %q in %q", tc.note, res.Response.Head)
			}
		})
	}
}

// TestBrokenConnections speaks to servers that are no good.
func TestBrokenConnections(t *testing.T) {
	readRequest := func(c net.Conn) {
		if r, err := nethttp.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}
	send := func(text string) func(net.Conn) {
		return func(c net.Conn) { readRequest(c); _, _ = io.WriteString(c, text) }
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for _, tc := range []struct {
		name   string
		url    string
		o      http.Options
		reason handler.Reason
		text   string // "" is success
	}{
		{"refused", "http://" + closed.Addr().String(), http.Options{}, handler.ReasonConnect, "connection refused; is the receiver running?"},
		{"no such host", "http://nosuch.invalid", http.Options{}, handler.ReasonConnect, "nosuch.invalid"},
		{"closes at once", "http://" + raw(t, func(net.Conn) {}), http.Options{}, handler.ReasonNetwork, ""},
		{"closes after the request", "http://" + raw(t, readRequest), http.Options{}, handler.ReasonNetwork, "closed the connection without an answer"},
		{"resets", "http://" + raw(t, func(c net.Conn) { readRequest(c); _ = c.(*net.TCPConn).SetLinger(0) }), http.Options{}, handler.ReasonNetwork, "connection reset by peer"},
		{"garbage", "http://" + raw(t, send("SSH-2.0-OpenSSH_9.2\r\n")), http.Options{}, handler.ReasonNetwork, "malformed HTTP"},
		{"endless header", "http://" + raw(t, send("HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 100<<10))), http.Options{}, handler.ReasonNetwork, ""},
		{"half a header", "http://" + raw(t, send("HTTP/1.1 200 OK\r\nContent-")), http.Options{}, handler.ReasonNetwork, "the header of the response is broken"},
		{"plain http on the https port", "https://" + raw(t, func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }), http.Options{}, handler.ReasonConnect, "does the server speak plain http on this port?"},
		{
			"silent before the header", "http://" + raw(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }),
			http.Options{Timeout: 100 * time.Millisecond},
			handler.ReasonTimeout, "connected, but no answer within",
		},
		{
			"silent TLS", "https://" + raw(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }),
			http.Options{ConnectTimeout: 100 * time.Millisecond},
			handler.ReasonConnect, "TLS handshake timeout",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.URL = tc.url
			res, err := handle(t, tc.o)
			if err == nil || handler.IsPermanent(err) || res.Reason != tc.reason || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("reason %q: %v\nwant %q with %q", res.Reason, err, tc.reason, tc.text)
			}
			if res.Code != -1 {
				t.Errorf("code %d without a response", res.Code)
			}
		})
	}
}

// TestBrokenBodies breaks off after the status, which decides unless the body
// that was lost may have been an answer.
func TestBrokenBodies(t *testing.T) {
	for _, tc := range []struct {
		name, head string
		hang       bool
		ok         bool
		reason     handler.Reason
	}{
		{"text broken off", "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nhalf", false, true, ""},
		{"text that hangs", "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nhalf", true, true, ""},
		{"answer broken off", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"stop\"", false, false, handler.ReasonNetwork},
		{"answer that hangs", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"stop\"", true, false, handler.ReasonTimeout},
		{"refusal broken off", "HTTP/1.1 503 No\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", false, false, handler.ReasonServerError},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", false, true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := raw(t, func(c net.Conn) {
				r := bufio.NewReader(c)
				if req, err := nethttp.ReadRequest(r); err == nil {
					_, _ = io.Copy(io.Discard, req.Body)
				}
				_, _ = io.WriteString(c, tc.head)
				if tc.hang {
					_, _ = io.Copy(io.Discard, r) // until the handler hangs up
				}
			})
			res, err := handle(t, http.Options{URL: "http://" + addr, Timeout: 300 * time.Millisecond})
			if (err == nil) != tc.ok || res.Reason != tc.reason || handler.IsPermanent(err) {
				t.Errorf("reason %q: %v", res.Reason, err)
			}
			if !strings.Contains(strings.Join(res.Response.Head, "\n"), "billhook-note: the body broke off") {
				t.Errorf("no note in %q", res.Response.Head)
			}
		})
	}
}

// TestConnectionsAreReused makes many calls, some of them failing and some with
// long bodies, over one connection.
func TestConnectionsAreReused(t *testing.T) {
	var opened atomic.Int32
	var n int
	srv := httptest.NewUnstartedServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		n++
		w.WriteHeader([]int{200, 503, 404, 301}[n%4])
		_, _ = io.CopyN(w, zeros{}, int64(n%5)*20<<10)
	}))
	srv.Config.ConnState = func(_ net.Conn, s nethttp.ConnState) {
		if s == nethttp.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	h := newHandler(t, http.Options{URL: srv.URL})
	defer h.Close()
	for range 40 {
		_, _ = h.Handle(context.Background(), handlertest.Delivery(payload))
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("40 calls opened %d connections, want 1", n)
	}
}

// TestStaleConnection calls a server that closes each connection right after its
// answer, without saying so: the call that meets it closed is repeated underway.
func TestStaleConnection(t *testing.T) {
	var calls atomic.Int32
	closed := make(chan struct{}, 100)
	addr := raw(t, func(c net.Conn) {
		req, err := nethttp.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		calls.Add(1)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_ = c.Close()
		closed <- struct{}{}
	})
	h := newHandler(t, http.Options{URL: "http://" + addr})
	defer h.Close()
	const n = 20
	for range n {
		if _, err := h.Handle(context.Background(), handlertest.Delivery(payload)); err != nil {
			t.Fatal(err)
		}
		<-closed
	}
	if got := calls.Load(); got != n {
		t.Errorf("%d calls arrived, want %d", got, n)
	}
}

func TestAddressGuard(t *testing.T) {
	var called atomic.Int32
	srv := serve(t, func(nethttp.ResponseWriter, *nethttp.Request) { called.Add(1) })
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	byName := "http://localhost:" + port

	res, err := handle(t, http.Options{URL: byName, Addresses: http.Addresses{DenyPrivate: true}})
	if !handler.IsPermanent(err) || res.Reason != handler.ReasonBlocked || !strings.Contains(err.Error(), "is blocked: loopback; if it is the receiver's, add it to the handler's allow list") {
		t.Errorf("reason %q: %v", res.Reason, err)
	}
	if called.Load() != 0 {
		t.Error("the receiver was called")
	}
	if _, err := handle(t, http.Options{URL: byName, Addresses: http.Addresses{DenyPrivate: true, Allow: []string{"127.0.0.0/8", "::1"}}}); err != nil {
		t.Error(err)
	}
	// What is written in the URL is judged at once, in whatever notation.
	for _, host := range []string{"169.254.169.254", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]"} {
		if _, err := http.New(http.Options{URL: "http://" + host + "/latest/meta-data"}); err == nil || !strings.Contains(err.Error(), "is blocked") {
			t.Errorf("%s: %v", host, err)
		}
	}
	// Notations that only a resolver takes for an address are judged when dialled.
	for _, host := range []string{"0xa9fea9fe", "2852039166", "169.254.43518", "0251.0376.0251.0376"} {
		res, err := handle(t, http.Options{URL: "http://" + host + "/", ConnectTimeout: time.Second})
		if err == nil || res.Code != -1 {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestProxy(t *testing.T) {
	receiver := httptest.NewTLSServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the proxy's credentials reached the receiver")
		}
		_, _ = io.WriteString(w, "from afar")
	}))
	defer receiver.Close()
	plain := answer(t, 200, nil, "from afar")
	var connects, forwards atomic.Int32
	var tunnels sync.WaitGroup
	proxy := serve(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("joe:pr0xypass")) {
			w.WriteHeader(nethttp.StatusProxyAuthRequired)
			return
		}
		if r.Method != nethttp.MethodConnect {
			forwards.Add(1)
			_, _ = io.WriteString(w, "from afar")
			return
		}
		connects.Add(1)
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(nethttp.StatusBadGateway)
			return
		}
		c, rw, err := w.(nethttp.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		tunnels.Go(func() { _, _ = io.Copy(to, rw); _ = to.Close() })
		tunnels.Go(func() { _, _ = io.Copy(c, to); _ = c.Close() })
	})
	defer tunnels.Wait()
	through := strings.Replace(proxy.URL, "http://", "http://joe:pr0xypass@", 1)
	o := http.Options{
		URL: receiver.URL, Proxy: through, TLS: http.TLS{CAFile: writePEM(t, "CERTIFICATE", receiver.Certificate().Raw)},
		Addresses: http.Addresses{Allow: []string{"127.0.0.1"}},
	}
	if res, err := handle(t, o); err != nil || string(res.Response.Body) != "from afar" || connects.Load() != 1 {
		t.Errorf("through the proxy: %q, %v, %d connects", res.Response.Body, err, connects.Load())
	}
	if res, err := handle(t, http.Options{URL: plain.URL, Proxy: through}); err != nil || string(res.Response.Body) != "from afar" || forwards.Load() != 1 {
		t.Errorf("through the proxy: %q, %v, %d forwards", res.Response.Body, err, forwards.Load())
	}
	// The proxy's own address is not judged.
	byName := strings.Replace(plain.URL, "127.0.0.1", "localhost", 1)
	if _, err := handle(t, http.Options{URL: byName, Proxy: through, Addresses: http.Addresses{DenyPrivate: true}}); err != nil {
		t.Error(err)
	}
	// An address in the URL is judged even behind a proxy.
	if _, err := http.New(http.Options{URL: "http://10.1.2.3/", Proxy: through, Addresses: http.Addresses{DenyPrivate: true}}); err == nil {
		t.Error("a private address behind a proxy was taken")
	}
	o.Proxy = strings.Replace(proxy.URL, "http://", "http://joe:wr0ngpass@", 1)
	res, err := handle(t, o)
	if err == nil || res.Reason != handler.ReasonConnect || strings.Contains(err.Error(), "wr0ngpass") || !strings.Contains(err.Error(), "Proxy Authentication Required") {
		t.Errorf("reason %q: %v", res.Reason, err)
	}
}

// TestSecrets looks for secrets in all that can be shown, from receivers that
// echo them and from servers that are not there.
func TestSecrets(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("k3y"), 10))
	const pass, token, header, cookie = "us3rpassw0rd", "qu3rytok3n", "h3adervalue", "c00kievalue"
	secrets := []string{pass, token, header, cookie, key, base64.StdEncoding.EncodeToString([]byte("ann:" + pass))}
	echo := serve(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		w.Header().Set("Location", "http://ann:"+pass+"@elsewhere.example/?token="+token)
		w.Header().Set("Set-Cookie", cookie)
		w.WriteHeader(302)
		_ = r.Header.Write(w)
		_, _ = fmt.Fprintf(w, "%s %s %s", r.URL, key, pass)
	})
	dead := raw(t, func(net.Conn) {})
	notHTTP := raw(t, func(c net.Conn) { _, _ = io.WriteString(c, "ann:"+pass+" "+token+"\r\n") })
	for _, base := range []string{strings.TrimPrefix(echo.URL, "http://"), dead, notHTTP, "nosuch.invalid"} {
		res, err := handle(t, http.Options{
			URL:     "http://ann:" + pass + "@" + base + "/?access_token=" + token,
			Headers: []http.Header{{Name: "X-Own", Value: header, Secret: true}, {Name: "Cookie", Value: cookie}}, SigningSecrets: []string{"whsec_" + key},
		})
		if err == nil {
			t.Errorf("%s: no error", base)
			continue
		}
		js, _ := json.Marshal(res)
		text := fmt.Sprintf("%s %s %+v %s", js, err, err, res.Response.Body)
		for e := err; e != nil; e = errors.Unwrap(e) {
			if ue := new(url.Error); errors.As(e, &ue) {
				t.Errorf("%s: the cause quotes the URL: %v", base, ue)
			}
		}
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s: %q is shown in\n%s", base, s, text)
			}
		}
	}
}

func TestNewErrors(t *testing.T) {
	const good = "https://crm.example/hook"
	for _, tc := range []struct {
		o    http.Options
		want string
	}{
		{http.Options{}, "url: it is missing"},
		{http.Options{URL: "crm.example/hook"}, `url: scheme ""`},
		{http.Options{URL: "ftp://crm.example"}, `url: scheme "ftp": want http or https`},
		{http.Options{URL: "https:///hook"}, "url: no host"},
		{http.Options{URL: "https://ann:s3cretpw@crm.example:port/hook"}, "url: "},
		{http.Options{URL: "https://crm.example/%zz?s3cretpw"}, "url: invalid URL escape"},
		{http.Options{URL: good + "#x"}, "url: what follows # is never sent"},
		{http.Options{URL: good, Method: "BREW"}, `method "BREW"`},
		{http.Options{URL: good, Headers: []http.Header{{Name: "Bad Name"}}}, `header "Bad Name": not a header name`},
		{http.Options{URL: good, Headers: []http.Header{{Name: "X-A", Value: "s3cretpw\n"}}}, "header X-A: its value holds control characters"},
		{http.Options{URL: good, Headers: []http.Header{{Name: "X-A"}, {Name: "x-a"}}}, "header X-A: given twice"},
		{http.Options{URL: good, Headers: []http.Header{{Name: "webhook-id"}}}, "header Webhook-Id: it is set by Billhook itself"},
		{http.Options{URL: good, Headers: []http.Header{{Name: "host"}}}, "header Host: it is set by Billhook itself"},
		{http.Options{URL: good, Headers: []http.Header{{Name: "X-A", Value: "{{.x"}}}, "header X-A: "},
		{http.Options{URL: good, BearerToken: "s3cretpw\n"}, "is there a line break at its end?"},
		{http.Options{URL: good, BearerToken: "a", Username: "b"}, "bearer token and user are both given"},
		{http.Options{URL: "https://ann:s3cretpw@crm.example", BearerToken: "a"}, "the url holds a user"},
		{http.Options{URL: good, BearerToken: "a", Headers: []http.Header{{Name: "Authorization", Value: "b"}}}, "header Authorization: a bearer token"},
		{http.Options{URL: good, SigningSecrets: []string{"s3cretpw"}}, "signing secret 1: it decodes to 6 bytes"},
		{http.Options{URL: good, Retry: []string{"teapot"}}, `retry: code "teapot"`},
		{http.Options{URL: good, Proxy: "ftp://s3cretpw@x"}, `proxy: scheme "ftp"`},
		{http.Options{URL: good, Proxy: "s3cretpw"}, "proxy: want http://host:port"},
		{http.Options{URL: good, Addresses: http.Addresses{Deny: []string{"10.0.0.0/99"}}}, `deny "10.0.0.0/99"`},
		{http.Options{URL: good, TLS: http.TLS{CAFile: "/nonexistent"}}, "read the CA file: open /nonexistent"},
		{http.Options{URL: good, TLS: http.TLS{CAFile: "http_test.go"}}, "holds no certificate in PEM form"},
		{http.Options{URL: good, TLS: http.TLS{CertFile: "x"}}, "needs both"},
		{http.Options{URL: good, TLS: http.TLS{CertFile: "x", KeyFile: "y"}}, "load the client certificate x with key y"},
		{http.Options{URL: good, TLS: http.TLS{MinVersion: "1.0"}}, `tls version "1.0"`},
	} {
		_, err := http.New(tc.o)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("New(%+v) = %v, want an error with %q", tc.o, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "s3cretpw") {
			t.Errorf("the error quotes a secret: %v", err)
		}
	}
}

// TestPayloadErrors meets an event that a template cannot take.
func TestPayloadErrors(t *testing.T) {
	srv := answer(t, 200, nil, "")
	res, err := handle(t, http.Options{URL: srv.URL + "/{{.data.phone}}"})
	if !handler.IsPermanent(err) || res.Reason != handler.ReasonPayload || !strings.Contains(err.Error(), "phone") {
		t.Errorf("reason %q: %v", res.Reason, err)
	}
}

// BenchmarkHandle compares with BenchmarkBare: what the handler costs beside the
// bare client, with a signature.
func BenchmarkHandle(b *testing.B) {
	srv := httptest.NewServer(nethttp.HandlerFunc(func(_ nethttp.ResponseWriter, r *nethttp.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	h, err := http.New(http.Options{URL: srv.URL, SigningSecrets: []string{base64.StdEncoding.EncodeToString(make([]byte, 32))}})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	d := handlertest.Delivery([]byte(strings.Repeat("x", 1000)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Handle(context.Background(), d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBare(b *testing.B) {
	srv := httptest.NewServer(nethttp.HandlerFunc(func(_ nethttp.ResponseWriter, r *nethttp.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	c := &nethttp.Client{Transport: &nethttp.Transport{}}
	defer c.CloseIdleConnections()
	body := strings.Repeat("x", 1000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		req, _ := nethttp.NewRequest("POST", srv.URL, strings.NewReader(body))
		req.Header.Set("Idempotency-Key", strconv.Itoa(i))
		resp, err := c.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}
