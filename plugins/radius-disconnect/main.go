// Command radius-disconnect is a plugin of Billhook's that ends sessions on access
// servers, or changes them, by RADIUS: Disconnect-Request and CoA-Request of RFC 5176.
// docs/plugins-shipped.md says how to set up both sides.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"layeh.com/radius"

	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/internal/fill"
)

// Config is what the operator writes under plugin.config.
type Config struct {
	Servers []Server `json:"servers" jsonschema:"required,minItems=1,description=The access servers or their proxies; all of them are told."`

	Request    string      `json:"request,omitempty" jsonschema:"enum=disconnect,enum=coa,default=disconnect,description=disconnect ends sessions; coa changes them."`
	Attributes []Attribute `json:"attributes" jsonschema:"required,minItems=1,description=Which sessions are meant and with coa what is to be changed."`

	// NoMessageAuthenticator is for access servers that do not know the attribute.
	NoMessageAuthenticator bool `json:"no_message_authenticator,omitempty" jsonschema:"description=Leave Message-Authenticator out."`
	NoEventTimestamp       bool `json:"no_event_timestamp,omitempty" jsonschema:"description=Leave Event-Timestamp out."`

	Retransmit plugins.Duration `json:"retransmit,omitempty" jsonschema:"description=Time until a request is sent again when no answer comes; doubled each time up to 16s. Default 1s."`

	SuccessCauses   []int `json:"success_causes,omitempty" jsonschema:"description=Values of Error-Cause that are success. Default 503: there is no such session."`
	PermanentCauses []int `json:"permanent_causes,omitempty" jsonschema:"description=Values that trying again will not cure. Default 401 to 407 and 501 and 508."`
}

// Server is an access server.
type Server struct {
	Address string         `json:"address" jsonschema:"required,minLength=1,description=host or host:port. Default port 3799."`
	Secret  plugins.Secret `json:"secret" jsonschema:"required,description=Shared secret."`
}

// Attribute is an attribute of the request.
type Attribute struct {
	Name     string `json:"name,omitempty" jsonschema:"description=Such as User-Name. Or give type or vendor and type."`
	Vendor   uint32 `json:"vendor,omitempty" jsonschema:"minimum=1,maximum=16777215,description=Number of the vendor such as 14988."`
	Type     int    `json:"type,omitempty" jsonschema:"minimum=1,maximum=255,description=Number of the attribute."`
	Format   string `json:"format,omitempty" jsonschema:"enum=string,enum=integer,enum=ipaddr,enum=ipv6addr,enum=octets,description=How the value is written. Default string. octets is hexadecimal."`
	Value    string `json:"value" jsonschema:"required,minLength=1,description=Template of the value."`
	Optional bool   `json:"optional,omitempty" jsonschema:"description=Leave the attribute out when the value is empty."`
}

// Validate reads what is written in a language of its own.
func (c Config) Validate() error {
	_, err := newPlan(c)
	return err
}

const (
	defaultRetransmit = time.Second
	maxRetransmit     = 16 * time.Second
	// defaultPatience is how long an attempt takes that has no deadline.
	defaultPatience = 15 * time.Second
)

// plan is a configuration that was read.
type plan struct {
	code       radius.Code
	attributes []attribute
	success    []int
	permanent  []int
	retransmit time.Duration
	sign       bool
	stamp      bool
}

func newPlan(c Config) (*plan, error) {
	p := &plan{
		code: radius.CodeDisconnectRequest, success: c.SuccessCauses, permanent: c.PermanentCauses,
		retransmit: c.Retransmit.Std(), sign: !c.NoMessageAuthenticator, stamp: !c.NoEventTimestamp,
	}
	var errs []error
	if c.Request == "coa" {
		p.code = radius.CodeCoARequest
	}
	if p.retransmit == 0 {
		p.retransmit = defaultRetransmit
	}
	if p.retransmit < 50*time.Millisecond {
		errs = append(errs, plugins.Field("retransmit", errors.New("it is less than 50ms")))
	}
	if p.success == nil {
		p.success = []int{503}
	}
	if p.permanent == nil {
		p.permanent = []int{401, 402, 403, 404, 405, 406, 407, 501, 508}
	}
	for i, s := range c.Servers {
		if _, err := withPort(s.Address); err != nil {
			errs = append(errs, plugins.Field(fmt.Sprintf("servers[%d].address", i), err))
		}
		if s.Secret.IsZero() {
			errs = append(errs, plugins.Field(fmt.Sprintf("servers[%d].secret", i), errors.New("it is empty")))
		}
	}
	identified := false
	for i, a := range c.Attributes {
		at := fmt.Sprintf("attributes[%d]", i)
		x, field, err := readAttribute(a)
		if err != nil {
			if field != "" {
				at += "." + field
			}
			errs = append(errs, plugins.Field(at, err))
			continue
		}
		identified = identified || x.identifies()
		p.attributes = append(p.attributes, x)
	}
	if !identified && len(errs) == 0 {
		errs = append(errs, plugins.Field("attributes", errors.New("none of them says which session is meant, without optional: User-Name, Acct-Session-Id, Framed-IP-Address, Calling-Station-Id or the like")))
	}
	return p, errors.Join(errs...)
}

func main() {
	plugins.Serve(plugins.Plugin[Config]{Name: "radius-disconnect", Version: "1.0.0", New: newSender})
}

// sender sends requests.
type sender struct {
	plan    *plan
	servers []*server
	log     *slog.Logger
}

func newSender(_ context.Context, c Config, env plugins.Env) (plugins.Handler, error) {
	p, err := newPlan(c)
	if err != nil {
		return nil, err
	}
	s := &sender{plan: p, log: env.Logger}
	for _, one := range c.Servers {
		address, err := withPort(one.Address)
		if err != nil {
			return nil, err
		}
		s.servers = append(s.servers, &server{address: address, secret: []byte(one.Secret.Reveal()), retransmit: p.retransmit})
	}
	env.Logger.Info("ready", "servers", len(s.servers), "request", p.code.String())
	return s, nil
}

// Handle tells every server. One that has no such session is content, so an attempt
// that reached only some of them is simply repeated.
func (s *sender) Handle(ctx context.Context, d *plugins.Delivery) (plugins.Result, error) {
	doc, err := fill.Document(d)
	if err != nil {
		return plugins.Result{}, err
	}
	var res plugins.Result
	res.Sent.Head = []string{"request: " + s.plan.code.String()}
	var attributes radius.Attributes
	for _, a := range s.plan.attributes {
		value, shown, err := a.make(doc)
		if err != nil {
			return res, err
		}
		if value == nil {
			continue
		}
		attributes.Add(a.wireType(), value)
		res.Sent.Head = append(res.Sent.Head, a.name+": "+shown)
	}
	now := time.Now()

	ctx, cancel := beforeDeadline(ctx)
	defer cancel()
	verdicts := make([]verdict, len(s.servers))
	done := make(chan struct{})
	for i, one := range s.servers {
		go func() {
			defer func() { done <- struct{}{} }()
			packet, err := s.plan.packet(attributes, one.secret, now)
			if err != nil {
				verdicts[i] = verdict{err: plugins.Because(plugins.CausePayload, err), permanent: true}
				return
			}
			verdicts[i] = s.plan.judge(one.exchange(ctx, packet))
		}()
	}
	for range s.servers {
		<-done
	}
	var retry, permanent []error
	for i, v := range verdicts {
		address := s.servers[i].address
		res.Received.Head = append(res.Received.Head, address+": "+v.shown())
		switch err := fmt.Errorf("%s: %w", address, v.err); {
		case v.err == nil:
		case v.permanent:
			permanent = append(permanent, err)
		default:
			retry = append(retry, err)
		}
	}
	// As long as one of them may be cured by another attempt, so may all.
	if len(retry) > 0 {
		return res, errors.Join(append(retry, permanent...)...)
	}
	return res, plugins.Permanent(errors.Join(permanent...))
}

// beforeDeadline ends a little before ctx does, so that what was seen can still be
// told.
func beforeDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, defaultPatience)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(200*time.Millisecond, time.Until(deadline)/5)))
}

// verdict is what an answer means.
type verdict struct {
	text      string
	err       error
	permanent bool
}

func (v verdict) shown() string {
	if v.err != nil {
		return v.err.Error()
	}
	return v.text
}

// judge says what an answer means.
func (p *plan) judge(a answer, err error) verdict {
	if err != nil {
		return verdict{err: err}
	}
	text := a.code.String()
	if a.sent > 1 {
		text += fmt.Sprintf(" (sent %d times)", a.sent)
	}
	if a.code == radius.CodeDisconnectACK || a.code == radius.CodeCoAACK {
		return verdict{text: text}
	}
	if a.cause != 0 {
		text += fmt.Sprintf(", Error-Cause %d %s", a.cause, causeName(a.cause))
	} else {
		text += " without an Error-Cause"
	}
	if a.text != "" {
		text += ": " + a.text
	}
	switch {
	case slices.Contains(p.success, a.cause), a.cause >= 200 && a.cause < 300: // 2xx tells of success
		return verdict{text: text}
	case slices.Contains(p.permanent, a.cause):
		return verdict{err: plugins.Because(plugins.CauseClientError, errors.New(text)), permanent: true}
	}
	return verdict{err: plugins.Because(plugins.CauseServerError, errors.New(text))}
}

func causeName(cause int) string {
	names := map[int]string{
		201: "Residual-Session-Context-Removed", 202: "Invalid-EAP-Packet", 401: "Unsupported-Attribute", 402: "Missing-Attribute",
		403: "NAS-Identification-Mismatch", 404: "Invalid-Request", 405: "Unsupported-Service", 406: "Unsupported-Extension",
		407: "Invalid-Attribute-Value", 501: "Administratively-Prohibited", 502: "Request-Not-Routable", 503: "Session-Context-Not-Found",
		504: "Session-Context-Not-Removable", 505: "Other-Proxy-Processing-Error", 506: "Resources-Unavailable",
		507: "Request-Initiated", 508: "Multiple-Session-Selection-Unsupported",
	}
	if name, ok := names[cause]; ok {
		return name
	}
	return "unknown"
}
