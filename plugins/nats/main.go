// Command nats is a plugin of Billhook's that publishes events to a stream of NATS
// JetStream, each under its event id, so that the stream drops what comes twice.
// docs/plugins-shipped.md says how to set up both sides.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"text/template"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/internal/fill"
)

// Config is what the operator writes under plugin.config.
type Config struct {
	Servers []string `json:"servers" jsonschema:"required,minItems=1,description=Such as nats://10.0.0.1:4222 or tls://...: those of one cluster."`

	User            string         `json:"user,omitempty" jsonschema:"minLength=1"`
	Password        plugins.Secret `json:"password,omitempty"`
	Token           plugins.Secret `json:"token,omitempty" jsonschema:"description=Instead of user and password."`
	CredentialsFile string         `json:"credentials_file,omitempty" jsonschema:"minLength=1,description=File of a user's JWT and seed; instead of the above."`
	CAFile          string         `json:"ca_file,omitempty" jsonschema:"minLength=1,description=File of certificates that those of the servers are judged by instead of the system's."`
	CertFile        string         `json:"cert_file,omitempty" jsonschema:"minLength=1,description=File of the client's certificate."`
	KeyFile         string         `json:"key_file,omitempty" jsonschema:"minLength=1,description=File of its key."`

	Subject  string            `json:"subject,omitempty" jsonschema:"minLength=1,description=Template of the subject. Default billhook.{{.event.events_id}}."`
	Headers  map[string]string `json:"headers,omitempty" jsonschema:"description=Templates of further headers."`
	Stream   string            `json:"stream,omitempty" jsonschema:"minLength=1,description=The stream that must take it."`
	Domain   string            `json:"domain,omitempty" jsonschema:"minLength=1,description=The JetStream domain."`
	IDSuffix string            `json:"id_suffix,omitempty" jsonschema:"minLength=1,description=Put after the event id to make the message id: for a second handler that publishes the same events to the same stream."`
}

const defaultSubject = "billhook.{{.event.events_id}}"

// Validate reads what is written in a language of its own.
func (c Config) Validate() error {
	_, err := newPlan(c)
	return err
}

// plan is a configuration that was read.
type plan struct {
	subject *fill.Template
	headers []header
}

type header struct {
	name  string
	value *fill.Template
}

func newPlan(c Config) (*plan, error) {
	p := &plan{}
	var errs []error
	fail := func(field, text string) { errs = append(errs, plugins.Field(field, errors.New(text))) }
	for i, text := range c.Servers {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			fail(fmt.Sprintf("servers[%d]", i), "it is not a URL such as nats://10.0.0.1:4222")
		} else if u.User != nil {
			fail(fmt.Sprintf("servers[%d]", i), "there is a user in it: give user and password, or token")
		}
	}
	ways := 0
	for _, given := range []bool{c.User != "", !c.Token.IsZero(), c.CredentialsFile != ""} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		fail("", "user, token and credentials_file exclude each other")
	}
	if c.User == "" && !c.Password.IsZero() {
		fail("password", "it stands without user")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		fail("cert_file", "it goes with key_file: give both or neither")
	}
	for _, f := range []struct{ field, path string }{
		{"credentials_file", c.CredentialsFile}, {"ca_file", c.CAFile}, {"cert_file", c.CertFile}, {"key_file", c.KeyFile},
	} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			fail(f.field, "it must begin with /")
		}
	}
	subject := c.Subject
	if subject == "" {
		subject = defaultSubject
	}
	var err error
	if p.subject, err = fill.Parse(subject, template.FuncMap{"token": token}); err != nil {
		errs = append(errs, plugins.Field("subject", err))
	}
	for name, text := range c.Headers {
		at := "headers." + name
		t, err := fill.Parse(text)
		switch {
		case err != nil:
			errs = append(errs, plugins.Field(at, err))
		case !headerName(name):
			fail(at, "it is no name of a header: letters, digits and -")
		case strings.HasPrefix(textproto.CanonicalMIMEHeaderKey(name), "Nats-"):
			fail(at, "names that begin with Nats- are the server's: use stream and id_suffix")
		}
		p.headers = append(p.headers, header{name, t})
	}
	slices.SortFunc(p.headers, func(a, b header) int { return strings.Compare(a.name, b.name) })
	return p, errors.Join(errs...)
}

func headerName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	})
}

// token makes one token of a subject of any value: what may not stand in one becomes _.
func token(v any) (string, error) {
	text := fmt.Sprint(v)
	if v == nil || text == "" {
		return "_", nil
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(".*>\u00a0\u2028\u2029", r) {
			return '_'
		}
		return r
	}, text), nil
}

// checkSubject says what is wrong with a subject to publish to.
func checkSubject(s string) error {
	for part := range strings.SplitSeq(s, ".") {
		switch {
		case part == "":
			return fmt.Errorf("subject %q has an empty token", s)
		case part == "*" || part == ">":
			return fmt.Errorf("subject %q has a wildcard", s)
		case strings.ContainsFunc(part, func(r rune) bool { return r <= ' ' || r == 0x7f }):
			return fmt.Errorf("subject %q has a blank: write {{token ...}} around the value", s)
		}
	}
	if strings.HasPrefix(s, "$") {
		return fmt.Errorf("subject %q is the server's own", s)
	}
	return nil
}

func main() {
	plugins.Serve(plugins.Plugin[Config]{Name: "nats", Version: "1.0.0", New: newPublisher})
}

// publisher publishes over one connection, which comes back by itself.
type publisher struct {
	plan   *plan
	config Config
	conn   *nats.Conn
	js     jetstream.JetStream
	closed chan struct{}         // when the connection has ended for good
	why    atomic.Pointer[error] // why it was not there the last time
}

// newPublisher connects. Servers that are not there yet are no error: they are waited
// for in the background, and attempts say so.
func newPublisher(_ context.Context, c Config, env plugins.Env) (plugins.Handler, error) {
	p, err := newPlan(c)
	if err != nil {
		return nil, err
	}
	pub := &publisher{plan: p, config: c}
	options, err := pub.options(env.Logger)
	if err != nil {
		return nil, err
	}
	connect := func(more ...nats.Option) (conn *nats.Conn, err error) {
		pub.closed = make(chan struct{})
		more = append(more, nats.ClosedHandler(func(*nats.Conn) { close(pub.closed) }))
		return nats.Connect(strings.Join(c.Servers, ","), append(options, more...)...)
	}
	conn, first := connect()
	if first != nil { // the library keeps the first error to itself when it is to try again
		env.Logger.Warn("not connected yet", "err", first)
		pub.why.Store(&first)
		if conn, err = connect(nats.RetryOnFailedConnect(true)); err != nil {
			return nil, fmt.Errorf("connect to NATS: %w", err)
		}
	}
	js, err := jetstream.New(conn)
	if c.Domain != "" {
		js, err = jetstream.NewWithDomain(conn, c.Domain)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("speak with JetStream: %w", err)
	}
	env.Logger.Info("ready", "connected", conn.IsConnected())
	pub.conn, pub.js = conn, js
	return pub, nil
}

func (p *publisher) options(log *slog.Logger) ([]nats.Option, error) {
	c := p.config
	lost := func(_ *nats.Conn, err error) {
		if err != nil {
			p.why.Store(&err)
			log.Warn("not connected", "err", err)
		}
	}
	out := []nats.Option{
		nats.Name("billhook"),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(500 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, time.Second),
		nats.Timeout(5 * time.Second), nats.PingInterval(20 * time.Second),
		// What cannot be sent is to fail, and not to be sent later on its own.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(lost),
		nats.ReconnectErrHandler(lost),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("connected", "server", nc.ConnectedAddr()) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("the server says", "err", err) }),
	}
	switch {
	case c.User != "":
		out = append(out, nats.UserInfo(c.User, c.Password.Reveal()))
	case !c.Token.IsZero():
		out = append(out, nats.Token(c.Token.Reveal()))
	case c.CredentialsFile != "":
		out = append(out, nats.UserCredentials(c.CredentialsFile))
	}
	if c.CAFile == "" && c.CertFile == "" {
		return out, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, plugins.Field("ca_file", errors.New("the file holds no certificate in PEM"))
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read cert_file and key_file: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return append(out, nats.Secure(t)), nil
}

// Close ends the connection.
func (p *publisher) Close() error {
	p.conn.Close()
	<-p.closed
	return nil
}

// Handle publishes the payload as it is and waits until the stream has it.
func (p *publisher) Handle(ctx context.Context, d *plugins.Delivery) (plugins.Result, error) {
	var res plugins.Result
	m, err := p.outgoing(d)
	if err != nil {
		return res, err
	}
	res.Sent.Head = []string{"Subject: " + m.Subject}
	for _, name := range sortedNames(m.Header) {
		res.Sent.Head = append(res.Sent.Head, name+": "+m.Header.Get(name))
	}
	if !p.conn.IsConnected() {
		text := "no server is connected"
		if err := p.why.Load(); err != nil {
			text += ": " + (*err).Error()
		}
		return res, plugins.Because(plugins.CauseConnect, errors.New(text))
	}
	publish := []jetstream.PublishOpt{jetstream.WithRetryAttempts(0)}
	if p.config.Stream != "" {
		publish = append(publish, jetstream.WithExpectStream(p.config.Stream))
	}
	ack, err := p.js.PublishMsg(ctx, m, publish...)
	if err != nil {
		return res, classify(m.Subject, err)
	}
	res.Received.Head = []string{"Server: " + p.conn.ConnectedAddr(), "Stream: " + ack.Stream, fmt.Sprintf("Sequence: %d", ack.Sequence)}
	if ack.Duplicate {
		res.Received.Head = append(res.Received.Head, "the stream had it already")
	}
	return res, nil
}

// outgoing is what is published of a delivery.
func (p *publisher) outgoing(d *plugins.Delivery) (*nats.Msg, error) {
	doc, err := fill.Document(d)
	if err != nil {
		return nil, err
	}
	subject, err := p.plan.subject.Line(doc)
	if err != nil {
		return nil, err
	}
	if err := checkSubject(subject); err != nil {
		return nil, plugins.Permanent(plugins.Because(plugins.CausePayload, err))
	}
	m := nats.NewMsg(subject)
	m.Data = d.Payload
	m.Header.Set(nats.MsgIdHdr, d.EventID+p.config.IDSuffix)
	m.Header.Set("Content-Type", d.ContentType)
	m.Header.Set("Billhook-Id", d.EventID)
	m.Header.Set("Billhook-Event", d.EventType)
	for _, h := range p.plan.headers {
		value, err := h.value.Line(doc)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", h.name, err)
		}
		m.Header[h.name] = []string{value}
	}
	return m, nil
}

func sortedNames(h nats.Header) []string {
	var names []string
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// classify says what an error means. What an operator can put right on the server is
// tried again; what no stream will ever take is not.
func classify(subject string, err error) error {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum):
		return plugins.Permanent(plugins.Because(plugins.CausePayload, fmt.Errorf("publish to %s: %w", subject, err)))
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		return plugins.Because(plugins.CauseServerError, fmt.Errorf("no stream takes subject %s: nats stream add --subjects makes one", subject))
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionReconnecting), errors.Is(err, nats.ErrDisconnected):
		return plugins.Because(plugins.CauseNetwork, fmt.Errorf("publish to %s: %w", subject, err))
	case errors.As(err, &api):
		return plugins.Because(plugins.CauseServerError, fmt.Errorf("publish to %s: %s (%d)", subject, api.Description, api.ErrorCode))
	}
	return fmt.Errorf("publish to %s: %w", subject, err)
}
