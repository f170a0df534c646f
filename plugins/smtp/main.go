// Command smtp is a plugin of Billhook's that writes mail: to a client that runs out
// of money, to the people who should know. docs/plugins-shipped.md says how to set it
// up.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	gomail "github.com/wneessen/go-mail"

	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/internal/fill"
)

// The ways to have a connection encrypted.
const (
	tlsStart    = "starttls" // on a connection that begins in clear, which must be offered
	tlsImplicit = "tls"
	tlsNone     = "none"
)

// Config is what the operator writes under plugin.config.
type Config struct {
	Server   string         `json:"server" jsonschema:"required,minLength=1,description=host or host:port. Default port 587; 465 with tls; 25 with none."`
	TLS      string         `json:"tls,omitempty" jsonschema:"enum=starttls,enum=tls,enum=none,default=starttls,description=starttls demands it; tls begins with it; none is for a server on this machine."`
	CAFile   string         `json:"ca_file,omitempty" jsonschema:"minLength=1,description=File of certificates that the server's is judged by instead of the system's."`
	Hello    string         `json:"hello,omitempty" jsonschema:"minLength=1,description=Name to greet with. Default the machine's."`
	User     string         `json:"user,omitempty" jsonschema:"minLength=1"`
	Password plugins.Secret `json:"password,omitempty"`

	From    Address   `json:"from" jsonschema:"required"`
	ReplyTo *Address  `json:"reply_to,omitempty"`
	To      []Address `json:"to" jsonschema:"required,minItems=1"`
	Cc      []Address `json:"cc,omitempty"`
	Bcc     []Address `json:"bcc,omitempty"`
	// SkipNobody is for clients that have left no address.
	SkipNobody bool `json:"skip_nobody,omitempty" jsonschema:"description=When no address comes out of to that is success instead of a failure."`

	Subject string `json:"subject" jsonschema:"required,minLength=1,description=Template of the subject."`
	Text    string `json:"text,omitempty" jsonschema:"minLength=1,description=Template of the text."`
	HTML    string `json:"html,omitempty" jsonschema:"minLength=1,description=Template of the same as HTML."`
}

// Address is one that is written from or to. In from and reply_to it is no template.
type Address struct {
	Name    string `json:"name,omitempty" jsonschema:"description=Template of the name."`
	Address string `json:"address" jsonschema:"required,minLength=1,description=Template of the address. Several may come out of it with commas between."`
}

// Validate reads what is written in a language of its own.
func (c Config) Validate() error {
	_, err := newPlan(c)
	return err
}

// recipient is an Address that was read.
type recipient struct{ name, address *fill.Template }

// plan is a configuration that was read.
type plan struct {
	host    string
	port    int
	from    *mail.Address
	replyTo *mail.Address
	to      []recipient
	cc, bcc []recipient
	subject *fill.Template
	text    *fill.Template
	html    *fill.Template
}

func newPlan(c Config) (*plan, error) {
	p := &plan{}
	var errs []error
	fail := func(field string, err error) { errs = append(errs, plugins.Field(field, err)) }
	var err error
	if p.host, p.port, err = hostPort(c.Server, c.TLS); err != nil {
		fail("server", err)
	}
	if c.CAFile != "" && !filepath.IsAbs(c.CAFile) {
		fail("ca_file", errors.New("it must begin with /"))
	}
	if (c.User == "") != c.Password.IsZero() {
		fail("user", errors.New("it goes with password: give both or neither"))
	}
	if c.User != "" && c.TLS == tlsNone {
		fail("tls", errors.New("a password is not sent in clear: use starttls or tls"))
	}
	own := func(field string, a *Address) *mail.Address {
		if a == nil {
			return nil
		}
		list, err := addresses(a.Address)
		if err != nil || len(list) != 1 {
			fail(field+".address", errors.New("it is not one address such as billing@example.net"))
			return nil
		}
		return &mail.Address{Name: oneLine(a.Name), Address: list[0]}
	}
	p.from = own("from", &c.From)
	p.replyTo = own("reply_to", c.ReplyTo)
	read := func(field string, list []Address) (out []recipient) {
		for i, a := range list {
			var r recipient
			for _, part := range []struct {
				field string
				text  string
				to    **fill.Template
			}{{"name", a.Name, &r.name}, {"address", a.Address, &r.address}} {
				t, err := fill.Parse(part.text)
				if err != nil {
					fail(fmt.Sprintf("%s[%d].%s", field, i, part.field), err)
				}
				*part.to = t
			}
			out = append(out, r)
		}
		return out
	}
	p.to, p.cc, p.bcc = read("to", c.To), read("cc", c.Cc), read("bcc", c.Bcc)
	if p.subject, err = fill.Parse(c.Subject); err != nil {
		fail("subject", err)
	}
	if c.Text != "" {
		if p.text, err = fill.Parse(c.Text); err != nil {
			fail("text", err)
		}
	}
	if c.HTML != "" {
		if p.html, err = fill.ParseHTML(c.HTML); err != nil {
			fail("html", err)
		}
	}
	if c.Text == "" && c.HTML == "" {
		fail("text", errors.New("there is neither text nor html"))
	}
	return p, errors.Join(errs...)
}

func hostPort(server, way string) (string, int, error) {
	host, text, err := net.SplitHostPort(server)
	if err != nil {
		host, text = server, map[string]string{tlsImplicit: "465", tlsNone: "25"}[way]
		if text == "" {
			text = "587"
		}
	}
	port, err := strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 || host == "" || strings.ContainsAny(host, " /@") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return "", 0, errors.New("it is not host or host:port")
	}
	return host, port, nil
}

// addresses takes a list of bare addresses apart, with commas or semicolons between.
func addresses(text string) ([]string, error) {
	var out []string
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == ';' }) {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		a, err := mail.ParseAddress(part)
		if err != nil || a.Name != "" || a.Address != part || strings.ContainsFunc(part, func(r rune) bool {
			return unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune("<>\"", r)
		}) {
			return nil, fmt.Errorf("%q is no address such as user@example.net", part)
		}
		out = append(out, part)
	}
	return out, nil
}

// oneLine is text as a header may have it: what separates lines or words is one blank.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '\ufffd' }), " ")
}

func main() {
	plugins.Serve(plugins.Plugin[Config]{Name: "smtp", Version: "1.0.0", New: newMailer})
}

// mailer writes mail. It makes a connection for each: servers do not like those that
// stay open and say nothing.
type mailer struct {
	plan    *plan
	config  Config
	tls     *tls.Config
	handler int
}

func newMailer(_ context.Context, c Config, env plugins.Env) (plugins.Handler, error) {
	p, err := newPlan(c)
	if err != nil {
		return nil, err
	}
	m := &mailer{plan: p, config: c, tls: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: p.host}, handler: env.HandlerID}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		m.tls.RootCAs = x509.NewCertPool()
		if !m.tls.RootCAs.AppendCertsFromPEM(pem) {
			return nil, plugins.Field("ca_file", errors.New("the file holds no certificate in PEM"))
		}
	}
	env.Logger.Info("ready", "server", net.JoinHostPort(p.host, strconv.Itoa(p.port)))
	return m, nil
}

// Handle writes one mail to all. A server that refuses one of the addresses gets none:
// a repetition does not reach the others twice.
func (m *mailer) Handle(ctx context.Context, d *plugins.Delivery) (plugins.Result, error) {
	var res plugins.Result
	letter, err := m.compose(d)
	if err != nil {
		return res, err
	}
	if letter == nil {
		res.Received.Head = []string{"skipped: there is no address to write to"}
		return res, nil
	}
	res.Sent.Head = []string{"Message-ID: " + letter.GetMessageID()}
	for _, h := range []struct {
		name string
		list []string
	}{{"From", letter.GetFromString()}, {"To", letter.GetToString()}, {"Cc", letter.GetCcString()}, {"Bcc", letter.GetBccString()}} {
		if len(h.list) > 0 {
			res.Sent.Head = append(res.Sent.Head, h.name+": "+strings.Join(h.list, ", "))
		}
	}
	response, err := m.send(ctx, letter)
	if err != nil {
		return res, classify(err)
	}
	res.Received.Head = []string{oneLine(response)}
	return res, nil
}

// send makes a connection, which ends when ctx does, and returns what the server says.
func (m *mailer) send(ctx context.Context, letter *gomail.Msg) (string, error) {
	patience := time.Minute
	if deadline, ok := ctx.Deadline(); ok {
		patience = max(time.Until(deadline), time.Millisecond)
	}
	var conn net.Conn // the library leaves it open when the greetings fail
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	stop := func() bool { return true }
	defer func() { stop() }()
	attempt := ctx // dial's own ends when the greetings do
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		conn = c
		stop = context.AfterFunc(attempt, func() { _ = c.Close() })
		if m.config.TLS == tlsImplicit {
			t := tls.Client(c, m.tls)
			if err := t.HandshakeContext(ctx); err != nil {
				return nil, err
			}
			return t, nil
		}
		return c, nil
	}
	options := []gomail.Option{
		gomail.WithPort(m.plan.port), gomail.WithTLSConfig(m.tls), gomail.WithTimeout(patience),
		gomail.WithoutNoop(), gomail.WithDialContextFunc(dial),
	}
	switch m.config.TLS {
	case tlsNone:
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	case tlsImplicit:
		options = append(options, gomail.WithSSL())
	default:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	}
	if m.config.Hello != "" {
		options = append(options, gomail.WithHELO(m.config.Hello))
	}
	if m.config.User != "" {
		options = append(options,
			gomail.WithOpportunisticSMTPAuth(
				gomail.SMTPAuthSCRAMSHA256PLUS, gomail.SMTPAuthSCRAMSHA256, gomail.SMTPAuthSCRAMSHA1PLUS,
				gomail.SMTPAuthSCRAMSHA1, gomail.SMTPAuthPlain, gomail.SMTPAuthLogin, gomail.SMTPAuthCramMD5,
			),
			gomail.WithUsername(m.config.User), gomail.WithPassword(m.config.Password.Reveal()))
	}
	client, err := gomail.NewClient(m.plan.host, options...)
	if err != nil {
		return "", fmt.Errorf("speak SMTP: %w", err)
	}
	session, err := client.DialToSMTPClientWithContext(ctx)
	if err != nil {
		err = fmt.Errorf("connect to %s: %w", client.ServerAddr(), ended(ctx, err))
		if bad := (*tls.CertificateVerificationError)(nil); errors.As(err, &bad) {
			err = plugins.Because(plugins.CauseConnect, err)
		}
		return "", err
	}
	err = client.SendWithSMTPClient(session, letter)
	if err != nil && !letter.IsDelivered() { // afterwards nothing that is said changes it
		return "", ended(ctx, err)
	}
	_ = client.CloseWithSMTPClient(session)
	return letter.ServerResponse(), nil
}

// ended is err, or that of a context which is why there is one.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// classify says what an error means. A server that refuses the mail itself for good
// (5xx) is believed. A connection, a certificate or a password that it does not like
// can be put right, and is tried again.
func classify(err error) error {
	var refused *gomail.SendError
	if !errors.As(err, &refused) {
		return err
	}
	switch code := refused.ErrorCode(); {
	case code >= 500 && code != 530 && code != 535: // these want another log-in
		return plugins.Permanent(plugins.Because(plugins.CauseClientError, err))
	case code >= 400:
		return plugins.Because(plugins.CauseServerError, err)
	}
	return err
}

// compose makes the mail; nil when there is nobody to write to and that is right.
func (m *mailer) compose(d *plugins.Delivery) (*gomail.Msg, error) {
	doc, err := fill.Document(d)
	if err != nil {
		return nil, err
	}
	p := m.plan
	letter := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	letter.FromMailAddress(p.from)
	if p.replyTo != nil {
		letter.ReplyToMailAddress(p.replyTo)
	}
	seen := map[string]bool{}
	for _, part := range []struct {
		field string
		list  []recipient
		set   func(...*mail.Address)
	}{{"to", p.to, letter.ToMailAddress}, {"cc", p.cc, letter.CcMailAddress}, {"bcc", p.bcc, letter.BccMailAddress}} {
		var list []*mail.Address
		for i, r := range part.list {
			more, err := r.resolve(doc)
			if err != nil {
				return nil, plugins.Permanent(plugins.Because(plugins.CausePayload, fmt.Errorf("%s[%d]: %w", part.field, i, err)))
			}
			for _, a := range more {
				if !seen[a.Address] {
					seen[a.Address] = true
					list = append(list, a)
				}
			}
		}
		switch {
		case len(list) > 0:
			part.set(list...)
		case part.field != "to":
		case m.config.SkipNobody:
			return nil, nil
		default:
			return nil, plugins.Permanent(plugins.Because(plugins.CausePayload, errors.New("no address comes out of to: skip_nobody makes that a success")))
		}
	}
	subject, err := p.subject.Text(doc)
	if err != nil {
		return nil, err
	}
	letter.Subject(oneLine(subject))
	letter.SetDate()
	// The same for each attempt: who gets it twice can see that.
	_, domain, _ := strings.Cut(p.from.Address, "@")
	letter.SetMessageIDWithValue(fmt.Sprintf("%s.%d@%s", d.EventID, m.handler, domain))
	letter.SetGenHeader("Auto-Submitted", "auto-generated") // no answers from machines

	body := letter.SetBodyString
	for _, part := range []struct {
		kind gomail.ContentType
		t    *fill.Template
	}{{gomail.TypeTextPlain, p.text}, {gomail.TypeTextHTML, p.html}} {
		if part.t == nil {
			continue
		}
		text, err := part.t.Text(doc)
		if err != nil {
			return nil, err
		}
		body(part.kind, text)
		body = letter.AddAlternativeString
	}
	return letter, nil
}

// resolve returns the addresses that come out of a payload.
func (r recipient) resolve(doc map[string]any) ([]*mail.Address, error) {
	name, err := r.name.Text(doc)
	if err != nil {
		return nil, err
	}
	text, err := r.address.Text(doc)
	if err != nil {
		return nil, err
	}
	list, err := addresses(text)
	if err != nil {
		return nil, err
	}
	var out []*mail.Address
	for _, a := range list {
		out = append(out, &mail.Address{Name: oneLine(name), Address: a})
	}
	return out, nil
}
