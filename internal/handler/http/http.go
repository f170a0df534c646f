// Package http is the handler kind that sends an event to an HTTP endpoint.
//
// One attempt is one request: by default a POST of the payload, signed by the
// Standard Webhooks specification when there is a secret. A status of 2xx is
// success; 408, 409, 425, 429, 5xx and whatever goes wrong underway is tried
// again, after the receiver's Retry-After if it names one; everything else is
// permanent. The operator may class codes otherwise.
//
// It promises that a redirect is never followed (a redirected POST would arrive
// as a GET without its body, and be taken for success), that no address which the
// guard forbids is ever connected to, whatever a name resolves to, and that no
// secret appears in a Result or an error. A connection that the receiver closed
// while it was idle is replaced once underway without costing an attempt, as the
// Idempotency-Key allows; so one attempt may reach a receiver twice, like any
// delivery that is made at least once.
//
// Behind a proxy it is the proxy that resolves names: then the guard judges only
// addresses that are written in the URL.
//
// It does not decide when an attempt is made, and it makes no payloads: see
// package dispatch. Start with Options and New.
package http

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	nethttp "net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/exchange"
)

// What zero fields of Options mean.
const (
	DefaultConnectTimeout  = 5 * time.Second
	DefaultRetryAfterMax   = time.Hour
	DefaultCaptureLimit    = 16 << 10
	DefaultIdleConnections = 16
)

// Options says where and how to send. Only URL is required.
type Options struct {
	// URL is where to send, http or https. Its path and query may hold template
	// actions over the event's payload, such as {{.event.object_id}}; values are
	// escaped. User and password in it are sent as basic authentication.
	URL string
	// SecretURL tells that the URL itself is a secret (it came from a file or
	// the environment): only its host is ever shown.
	SecretURL bool
	Method    string // POST if empty; else PUT, PATCH, DELETE or GET (which has no body)
	Headers   []Header

	// At most one of BearerToken and Username (with Password).
	BearerToken        string
	Username, Password string

	// SigningSecrets sign every request by Standard Webhooks: whsec_ and the
	// base64 of 24 to 64 bytes. With several, while a secret is being replaced,
	// all sign, the current one first.
	SigningSecrets []string

	TLS TLS
	// Proxy is the http, https or socks5 URL of a proxy; empty is none. The
	// environment is not asked.
	Proxy string

	ConnectTimeout time.Duration // for TCP and for TLS each; 0 is DefaultConnectTimeout
	Timeout        time.Duration // for the whole attempt; 0 leaves it to the context

	// RetryAfterMax bounds what a receiver's Retry-After may ask for; 0 is
	// DefaultRetryAfterMax.
	RetryAfterMax time.Duration

	// Status codes that the operator classes, as "404", "5xx" or "500-504".
	// Others are judged as the package says.
	Success, Retry, Permanent []string

	Addresses Addresses

	CaptureLimit    int  // bytes of each body kept for the log; 0 is DefaultCaptureLimit, negative none
	IdleConnections int  // kept open per handler; 0 is DefaultIdleConnections
	DisableHTTP2    bool // for servers that speak it badly

	Version string // of Billhook, for User-Agent
}

// Header is a header that the operator adds. Its value may hold template actions
// like the URL; line breaks and control characters in values become spaces.
type Header struct {
	Name, Value string
	// Secret masks the value wherever it would be shown. It is implied by names
	// such as Authorization or X-Api-Key.
	Secret bool
}

// Handler sends events to one endpoint. It is made by New and safe for use by
// many goroutines.
type Handler struct {
	method    string
	blank     *nethttp.Request // what all requests have in common
	url       target
	header    nethttp.Header // fixed headers, canonical names
	templates []headerTemplate
	hidden    map[string]bool // canonical names of headers whose value is masked
	signers   []signer
	classes   exchange.Classes
	guard     *guard // nil if a proxy makes the connections
	literal   *guard // judges addresses written in the URL
	mask      *exchange.Mask
	transport *nethttp.Transport
	direct    *direct // nil: not the plain case

	timeout       time.Duration
	retryAfterMax time.Duration
	capture       int
}

var _ handler.Handler = (*Handler)(nil)

// New checks o and returns its Handler, which has not connected to anything yet.
// The caller must Close it.
func New(o Options) (*Handler, error) {
	h := &Handler{
		method:        strings.ToUpper(o.Method),
		header:        nethttp.Header{},
		hidden:        map[string]bool{"Authorization": true, "Proxy-Authorization": true, "Cookie": true, "Set-Cookie": true},
		timeout:       max(o.Timeout, 0),
		retryAfterMax: o.RetryAfterMax,
		capture:       o.CaptureLimit,
	}
	if h.method == "" {
		h.method = nethttp.MethodPost
	}
	if !slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE", "GET"}, h.method) {
		return nil, fmt.Errorf("method %q: want POST, PUT, PATCH, DELETE or GET", o.Method)
	}
	h.blank = &nethttp.Request{Method: h.method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if h.retryAfterMax <= 0 {
		h.retryAfterMax = DefaultRetryAfterMax
	}
	if h.capture == 0 {
		h.capture = DefaultCaptureLimit
	}
	h.capture = max(h.capture, 0)

	var err error
	if h.url, err = parseTarget(o.URL, o.SecretURL); err != nil {
		return nil, err
	}
	if h.classes, err = exchange.ParseClasses(o.Success, o.Retry, o.Permanent, 100, 599); err != nil {
		return nil, err
	}
	for i, text := range o.SigningSecrets {
		s, err := newSigner(text)
		if err != nil {
			return nil, fmt.Errorf("signing secret %d: %w", i+1, err)
		}
		h.signers = append(h.signers, s)
	}
	version := o.Version
	if version == "" {
		version = "dev"
	}
	h.header.Set("User-Agent", "billhook/"+version)
	if err := h.setHeaders(o); err != nil {
		return nil, err
	}
	if h.literal, err = newGuard(o.Addresses); err != nil {
		return nil, err
	}
	if addr, ok := h.url.literal(); ok {
		if err := h.literal.check(addr); err != nil {
			return nil, fmt.Errorf("url %s: %w", h.url.shown, err)
		}
	}
	tlsConfig, err := o.TLS.config()
	if err != nil {
		return nil, err
	}
	proxy, err := parseProxy(o.Proxy)
	if err != nil {
		return nil, err
	}
	if proxy == nil {
		h.guard = h.literal
	}
	h.mask = exchange.NewMask(o.secrets(h.url.base, proxy)...)
	h.transport = h.newTransport(o, tlsConfig, proxy)
	return h, nil
}

// Close closes the connections that are kept open.
func (h *Handler) Close() error {
	h.transport.CloseIdleConnections()
	if h.direct != nil {
		h.direct.close()
	}
	return nil
}

func (h *Handler) newTransport(o Options, tlsConfig *tls.Config, proxy *url.URL) *nethttp.Transport {
	connect := o.ConnectTimeout
	if connect <= 0 {
		connect = DefaultConnectTimeout
	}
	idle := o.IdleConnections
	if idle <= 0 {
		idle = DefaultIdleConnections
	}
	dialer := &net.Dialer{Timeout: connect, KeepAlive: 30 * time.Second}
	if h.guard != nil {
		dialer.ControlContext = h.guard.control
	}
	t := &nethttp.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    connect,
		MaxIdleConns:           idle,
		MaxIdleConnsPerHost:    idle,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		Protocols:              new(nethttp.Protocols),
		// A connection that went silent is found out by a ping, not by the
		// attempts that time out on it one after another.
		HTTP2: &nethttp.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
	t.Protocols.SetHTTP1(true)
	t.Protocols.SetHTTP2(!o.DisableHTTP2)
	if proxy != nil {
		t.Proxy = nethttp.ProxyURL(proxy)
	} else {
		h.direct = newDirect(h.url.base, dialer.DialContext, idle)
	}
	return t
}

// reserved are headers that Billhook or the protocol sets.
func reserved(name string) bool {
	switch name {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Upgrade", "Trailer", "Te",
		"Expect", "Proxy-Connection", "Proxy-Authorization", "Idempotency-Key":
		return true
	}
	return strings.HasPrefix(name, "Webhook-") || strings.HasPrefix(name, "Billhook-")
}

func (h *Handler) setHeaders(o Options) error {
	username, password := o.Username, o.Password
	if u := h.url.base.User; u != nil {
		if username != "" || o.BearerToken != "" {
			return errors.New("the url holds a user, and there is a bearer token or a user beside it: give one of them")
		}
		username = u.Username()
		password, _ = u.Password()
	}
	switch {
	case o.BearerToken != "" && (username != "" || password != ""):
		return errors.New("bearer token and user are both given: give one of them")
	case strings.Contains(username, ":"):
		return errors.New("the user of basic authentication holds a colon, which its form cannot carry")
	case o.BearerToken != "":
		if !httpguts.ValidHeaderFieldValue(o.BearerToken) || strings.ContainsAny(o.BearerToken, " \t") {
			return errors.New("the bearer token holds white space or control characters: is there a line break at its end?")
		}
		h.header.Set("Authorization", "Bearer "+o.BearerToken)
	case username != "" || password != "":
		r := nethttp.Request{Header: h.header}
		r.SetBasicAuth(username, password)
	}
	seen := map[string]bool{}
	for _, a := range o.Headers {
		name := textproto.CanonicalMIMEHeaderKey(a.Name)
		switch {
		case !httpguts.ValidHeaderFieldName(a.Name):
			return fmt.Errorf("header %q: not a header name", a.Name)
		case reserved(name):
			return fmt.Errorf("header %s: it is set by Billhook itself: leave it out", name)
		case seen[name]:
			return fmt.Errorf("header %s: given twice", name)
		case name == "Authorization" && h.header.Get(name) != "":
			return errors.New("header Authorization: a bearer token or a user is given too: give one of them")
		}
		seen[name] = true
		if a.Secret || exchange.Sensitive(name) {
			h.hidden[name] = true
		}
		if strings.Contains(a.Value, "{{") {
			t, err := parseTemplate(a.Value, headerValue)
			if err != nil {
				return fmt.Errorf("header %s: %w", name, err)
			}
			h.header.Del(name)
			h.templates = append(h.templates, headerTemplate{name, t})
			continue
		}
		if !httpguts.ValidHeaderFieldValue(a.Value) {
			return fmt.Errorf("header %s: its value holds control characters: is there a line break at its end?", name)
		}
		h.header.Set(name, a.Value)
	}
	return nil
}

// secrets lists what must never be shown.
func (o *Options) secrets(urls ...*url.URL) []string {
	s := []string{o.BearerToken, o.Password}
	if o.Username != "" || o.Password != "" {
		s = append(s, o.Username+":"+o.Password)
	}
	for _, text := range o.SigningSecrets {
		s = append(s, text, strings.TrimPrefix(text, signingPrefix))
	}
	for _, a := range o.Headers {
		if (a.Secret || exchange.Sensitive(a.Name)) && !strings.Contains(a.Value, "{{") {
			s = append(s, a.Value)
			if _, credentials, ok := strings.Cut(a.Value, " "); ok { // "Bearer abc"
				s = append(s, credentials)
			}
		}
	}
	for _, u := range urls {
		if u == nil {
			continue
		}
		if u.User != nil {
			if p, ok := u.User.Password(); ok {
				s = append(s, p, u.User.Username()+":"+p)
			}
		}
		for name, values := range u.Query() {
			if exchange.Sensitive(name) {
				s = append(s, values...)
			}
		}
		if o.SecretURL && u.Path != "/" {
			s = append(s, u.EscapedPath(), u.RawQuery)
		}
	}
	return s
}

// carry gives req a body that can be sent again.
func carry(req *nethttp.Request, body []byte) {
	if len(body) == 0 {
		req.Body = nethttp.NoBody
		return
	}
	req.ContentLength = int64(len(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, _ = req.GetBody()
}

// request builds the attempt's request, without the body, which it returns beside it. An
// error is the payload's fault.
func (h *Handler) request(ctx context.Context, d *handler.Delivery) (*nethttp.Request, []byte, error) {
	var doc map[string]any
	if h.url.template != nil || len(h.templates) > 0 {
		var err error
		if doc, err = document(d.Event); err != nil {
			return nil, nil, err
		}
	}
	u, err := h.url.resolve(doc)
	if err != nil {
		return nil, nil, err
	}
	body := d.Body
	if h.method == nethttp.MethodGet {
		body = nil
	}
	req := h.blank.WithContext(ctx)
	req.URL, req.Host = u, u.Host
	req.Header = maps.Clone(h.header)
	for _, t := range h.templates {
		v, err := t.render(doc)
		if err != nil {
			return nil, nil, fmt.Errorf("header %s: %w", t.name, err)
		}
		req.Header[t.name] = []string{strings.TrimSpace(v)}
	}
	if _, ok := req.Header["Content-Type"]; !ok && len(body) > 0 {
		contentType := d.ContentType
		if contentType == "" {
			contentType = "application/json"
		}
		req.Header["Content-Type"] = []string{contentType}
	}
	id := d.Event.ID.String()
	req.Header["Idempotency-Key"] = []string{id}
	req.Header["Webhook-Id"] = []string{id} // with a signature or without: receivers know repeats by it
	req.Header["Billhook-Attempt"] = []string{strconv.Itoa(d.Attempt)}
	req.Header["Billhook-Handler"] = []string{strconv.Itoa(d.HandlerID)}
	if len(h.signers) > 0 {
		if err := sign(req.Header, h.signers, id, time.Now(), body); err != nil {
			return nil, nil, err
		}
	}
	return req, body, nil
}

// Handle makes one attempt, as handler.Handler says.
func (h *Handler) Handle(parent context.Context, d *handler.Delivery) (handler.Result, error) {
	res := handler.Result{Code: -1}
	ctx, cancel := parent, context.CancelFunc(func() {})
	if h.timeout > 0 {
		ctx, cancel = context.WithTimeout(parent, h.timeout)
	}
	defer cancel()

	a := attempt{h: h, parent: parent, ctx: ctx, start: time.Now()}
	direct := h.direct != nil && len(d.Body) <= maxDirectBody
	if !direct {
		ctx = a.trace()
	}
	req, body, err := h.request(ctx, d)
	if err != nil {
		res.Reason = handler.ReasonPayload
		return res, handler.Permanent(h.failure(fmt.Errorf("build the request: %w", err)))
	}
	a.shown = h.url.show(req.URL)
	if h.url.template != nil && h.guard == nil {
		// New has judged the address of a fixed URL.
		if addr, ok := literalAddr(req.URL); ok {
			if err := h.literal.check(addr); err != nil {
				res.Request = h.sent(req, a.shown, body)
				res.Reason = handler.ReasonBlocked
				return res, handler.Permanent(h.failure(err))
			}
		}
	}

	// The transport rather than a client: it follows no redirect, keeps no
	// cookies, and its errors do not quote the URL.
	var resp *nethttp.Response
	if direct {
		resp, err = h.direct.roundTrip(req, body, func() { a.connected.Store(true) })
	} else {
		carry(req, body)
		resp, err = h.transport.RoundTrip(req)
	}
	res.Request = h.sent(req, a.shown, body) // not before: the receiver waits
	if err != nil {
		return a.broken(res, err)
	}
	defer resp.Body.Close()
	return a.judge(res, resp)
}
