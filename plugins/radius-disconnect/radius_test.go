//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"layeh.com/radius"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/plugin/plugintest"
	"github.com/billhook/billhook/internal/servertest"
	"github.com/billhook/billhook/plugins"
)

const secret = "s3cr3t-0f-the-nas"

// freeradius is one that runs.
type freeradius struct {
	*servertest.Server
	dir  string
	port int
}

func (f *freeradius) address() string { return fmt.Sprintf("127.0.0.1:%d", f.port) }

// seen returns the requests that the server has taken so far, as its policy logs them.
func (f *freeradius) seen(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "seen"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func startFreeradius(t *testing.T) *freeradius {
	t.Helper()
	path := servertest.Program(t, "freeradius", "freeradius")
	conf, err := os.ReadFile(filepath.Join("testdata", "radiusd.conf"))
	if err != nil {
		t.Fatal(err)
	}
	f := &freeradius{dir: servertest.Dir(t), port: servertest.Port(t)}
	servertest.Write(t, f.dir, "radiusd.conf", strings.NewReplacer("DIR", f.dir, "PORT", fmt.Sprint(f.port), "SECRET", secret).Replace(string(conf)))
	servertest.Write(t, f.dir, "dictionary", "")
	f.Server = servertest.Start(t, servertest.Options{
		Path: path, Dir: f.dir, Args: []string{"-f", "-l", "stdout", "-d", f.dir, "-n", "radiusd"},
		Ready: servertest.ListeningUDP(f.port),
	})
	return f
}

// identification is what the tests' requests have.
func identification() []map[string]any {
	return []map[string]any{
		{"name": "User-Name", "value": "{{.data.login}}"},
		{"name": "Acct-Session-Id", "value": `{{with index .data "session"}}{{.}}{{end}}`, "optional": true},
	}
}

func TestAnswers(t *testing.T) {
	f := startFreeradius(t)
	bin := servertest.Build(t, "radius-disconnect")
	down := fmt.Sprintf("127.0.0.1:%d", servertest.Port(t))
	type list = []map[string]any
	good := map[string]any{"address": f.address(), "secret": secret}
	for _, test := range []struct {
		name      string
		login     any
		config    map[string]any
		want      string // of the error; empty: success
		reason    handler.Reason
		permanent bool
		shown     string // of the answer
	}{
		{name: "ack", login: "bob", shown: "Disconnect-ACK"},
		{name: "coa ack", login: "bob", config: map[string]any{"request": "coa"}, shown: "CoA-ACK"},
		{name: "no such session", login: "nak-503", shown: "Disconnect-NAK, Error-Cause 503 Session-Context-Not-Found"},
		{
			name: "no such session is a failure", login: "nak-503", config: map[string]any{"success_causes": []int{}},
			want: "Disconnect-NAK, Error-Cause 503 Session-Context-Not-Found", reason: handler.ReasonServerError,
		},
		{name: "what was left is removed", login: "nak-201", shown: "Error-Cause 201"},
		{name: "missing attribute", login: "nak-402", want: "Error-Cause 402 Missing-Attribute", reason: handler.ReasonClientError, permanent: true},
		{name: "prohibited", login: "nak-501", config: map[string]any{"request": "coa"}, want: "CoA-NAK, Error-Cause 501", reason: handler.ReasonClientError, permanent: true},
		{name: "no resources", login: "nak-506", want: "Error-Cause 506 Resources-Unavailable", reason: handler.ReasonServerError},
		{
			name: "by configuration", login: "nak-506", config: map[string]any{"permanent_causes": []int{506}},
			want: "Error-Cause 506", reason: handler.ReasonClientError, permanent: true,
		},
		{name: "nak that says nothing", login: "nak", want: "Disconnect-NAK without an Error-Cause", reason: handler.ReasonServerError},
		{
			name: "another secret", login: "bob", config: map[string]any{"servers": list{{"address": f.address(), "secret": "another"}}},
			want: "no answer to a request that was sent 3 times", reason: handler.ReasonTimeout,
		},
		{name: "nobody listens", login: "bob", config: map[string]any{"servers": list{{"address": down, "secret": secret}}}, want: "connection refused", reason: handler.ReasonConnect},
		{name: "one of two is down", login: "both", config: map[string]any{"servers": list{{"address": down, "secret": secret}, good}}, want: "connection refused", reason: handler.ReasonConnect},
		{name: "no login", login: nil, want: "template {{.data.login}}: it makes nothing of this payload", reason: handler.ReasonPayload, permanent: true},
		{name: "login of two lines", login: "a\nb", want: "control character", reason: handler.ReasonPayload, permanent: true},
		{name: "long login", login: strings.Repeat("x", 254), want: "User-Name: 254 bytes", reason: handler.ReasonPayload, permanent: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := map[string]any{"servers": list{good}, "attributes": identification(), "retransmit": "200ms"}
			for k, v := range test.config {
				config[k] = v
			}
			h := plugintest.Start(t, bin, config)
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			res, err := h.Handle(ctx, plugintest.Attempt(plugintest.Event(t, 1, "clients.balance_zero", "4711", map[string]any{"login": test.login}), 1))
			text := fmt.Sprintf("%v %+v", err, res)
			if strings.Contains(text, secret) {
				t.Errorf("the secret is shown: %s", text)
			}
			if test.want == "" {
				if err != nil || !strings.Contains(text, test.shown) {
					t.Errorf("%v\n%+v, want %s", err, res.Response, test.shown)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || res.Reason != test.reason || handler.IsPermanent(err) != test.permanent {
				t.Errorf("%v, permanent: %t, reason %s; want %s, %t, %s", err, handler.IsPermanent(err), res.Reason, test.want, test.permanent, test.reason)
			}
		})
	}
	if last := strings.Join(f.seen(t), "\n"); !strings.Contains(last, "Disconnect-Request user=both") {
		t.Errorf("the one of two that was up was not told:\n%s", last)
	}
}

// TestAttributes: what the server reads is what the configuration and the payload say,
// and the request is signed and has a time.
func TestAttributes(t *testing.T) {
	f := startFreeradius(t)
	config := fmt.Appendf(nil, `{"servers": [{"address": %q, "secret": %q}], "request": "coa", "attributes": [
		{"name": "User-Name", "value": "{{.data.login}}@example.net"},
		{"name": "Acct-Session-Id", "value": "{{.data.session}}", "optional": true},
		{"name": "NAS-IP-Address", "value": "{{.data.nas}}"},
		{"name": "NAS-Port", "value": "{{.data.port}}"},
		{"name": "Filter-Id", "value": "blocked-{{.event.events_id}}"},
		{"name": "Class", "value": "{{.data.class}}"},
		{"vendor": 14988, "type": 8, "value": "64k/64k"}]}`, f.address(), secret)
	c, err := plugins.DecodeConfig[Config](config, "")
	if err != nil {
		t.Fatal(err)
	}
	h, err := newSender(t.Context(), c, plugintest.Env(t))
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now().Unix()
	send := func(data map[string]any) error {
		_, err := h.Handle(t.Context(), plugintest.Delivery(plugintest.Event(t, 1, "clients.balance_zero", "4711", data), 1))
		return err
	}
	if err := send(map[string]any{"login": "bö\"b", "session": "5f-01", "nas": "10.1.2.3/32", "port": 4294967295, "class": "0x00ff"}); err != nil {
		t.Fatal(err)
	}
	seen := f.seen(t)
	var at int64
	var auth string
	last := seen[len(seen)-1]
	head, tail, _ := strings.Cut(last, " time=")
	if want := `CoA-Request user=b\303\266\"b@example.net session=5f-01 nas=10.1.2.3 port=4294967295 rate=64k/64k filter=blocked-clients.balance_zero class=0x00ff`; head != want && head != strings.ReplaceAll(want, `\303\266\"`, `ö"`) {
		t.Errorf("seen %s\nwant %s", head, want)
	}
	if _, err := fmt.Sscanf(tail, "%d auth=0x%s", &at, &auth); err != nil || at < before || at > time.Now().Unix() || len(auth) != 32 {
		t.Errorf("time and signature: %s (%v)", tail, err)
	}
	for name, bad := range map[string]map[string]any{
		"NAS-IP-Address": {"nas": "10.0.0.0/8"}, "NAS-Port": {"port": "4294967296"}, "Class": {"class": "0xf"},
	} {
		data := map[string]any{"login": "x", "session": nil, "nas": "10.0.0.1", "port": 1, "class": "00"}
		for k, v := range bad {
			data[k] = v
		}
		if err := send(data); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// relay passes packets on to a server and back, and drops the first ones.
type relay struct {
	conn net.PacketConn
	done chan struct{}

	mu   sync.Mutex
	seen [][]byte
}

func startRelay(t *testing.T, to string, drop int) *relay {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	onward, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		buf := make([]byte, radius.MaxPacketLength)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			r.mu.Lock()
			r.seen = append(r.seen, bytes.Clone(buf[:n]))
			count := len(r.seen)
			r.mu.Unlock()
			if count <= drop {
				continue
			}
			if _, err := onward.Write(buf[:n]); err != nil {
				return
			}
			if n, err = onward.Read(buf); err != nil {
				return
			}
			// Somebody else's answers come first, which are to be ignored.
			forged := bytes.Clone(buf[:n])
			forged[4] ^= 1
			for _, b := range [][]byte{nil, []byte("no"), forged, {forged[0], forged[1] + 1, 0, 20, 19: 0}, buf[:n]} {
				if _, err := conn.WriteTo(b, from); err != nil {
					return
				}
			}
		}
	}()
	t.Cleanup(func() {
		_, _ = conn.Close(), onward.Close()
		<-r.done
	})
	return r
}

// TestRetransmission: requests that get lost are sent again as they were, and answers
// that were not made with the secret are ignored.
func TestRetransmission(t *testing.T) {
	f := startFreeradius(t)
	r := startRelay(t, f.address(), 3)
	c := Config{
		Servers:    []Server{{Address: r.conn.LocalAddr().String(), Secret: plugins.NewSecret(secret)}},
		Attributes: []Attribute{{Name: "User-Name", Value: "{{.event.object_id}}"}},
		Retransmit: plugins.Duration(50 * time.Millisecond),
	}
	h, err := newSender(t.Context(), c, plugintest.Env(t))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	res, err := h.Handle(t.Context(), plugintest.Delivery(plugintest.Event(t, 1, "clients.balance_zero", "4711", nil), 1))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < (50+100+200)*9/10*time.Millisecond {
		t.Errorf("it took %s: the time between requests did not grow", took)
	}
	if got := fmt.Sprint(res.Received.Head); !strings.Contains(got, "Disconnect-ACK (sent 4 times)") {
		t.Error(got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) != 4 {
		t.Fatalf("%d requests", len(r.seen))
	}
	for _, b := range r.seen {
		if !bytes.Equal(b, r.seen[0]) {
			t.Errorf("another request:\n%x\n%x", b, r.seen[0])
		}
	}
	if n := len(f.seen(t)); n != 1 {
		t.Errorf("the server took %d requests", n)
	}
}

// TestSignature: FreeRADIUS drops a request whose Message-Authenticator is wrong, so
// that it takes ours says something.
func TestSignature(t *testing.T) {
	f := startFreeradius(t)
	p, err := newPlan(Config{Attributes: []Attribute{{Name: "User-Name", Value: "bob"}}, Retransmit: plugins.Duration(100 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{address: f.address(), secret: []byte(secret), retransmit: p.retransmit}
	packet := func() []byte {
		b, err := p.packet(radius.Attributes{{Type: 1, Attribute: radius.Attribute("bob")}}, s.secret, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	exchange := func(b []byte) error {
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		_, err := s.exchange(ctx, b)
		return err
	}
	if err := exchange(packet()); err != nil {
		t.Error(err)
	}
	b := packet()
	b[len(b)-1] ^= 1 // of the signature, and the authenticator is right
	q, err := radius.Parse(b, s.secret)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = q.Encode(); err != nil {
		t.Fatal(err)
	}
	if err := exchange(b); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("a wrong signature: %v", err)
	}
}

// TestSuite: a bad network between the plugin and the server.
func TestSuite(t *testing.T) {
	f := startFreeradius(t)
	bin := servertest.Build(t, "radius-disconnect")
	handlertest.RunClient(t, handlertest.Client{
		New: func(t *testing.T, address string) handler.Handler {
			return plugintest.Start(t, bin, map[string]any{
				"servers": []map[string]any{{"address": address, "secret": secret}}, "attributes": identification(), "retransmit": "200ms",
			})
		},
		Network: "udp", Server: f.address(), Many: 32, Limit: plugintest.CaptureLimit, Secret: secret, Grace: 2 * time.Second,
		Good: func(n int) *handler.Delivery {
			return plugintest.Attempt(plugintest.Event(t, n, "clients.balance_zero", "4711", map[string]any{"login": "bob"}), 1)
		},
		Bad: func() *handler.Delivery {
			return plugintest.Attempt(plugintest.Event(t, 1, "clients.balance_zero", "4711", map[string]any{"login": nil}), 1)
		},
	})
}

// TestNothingStays: after attempts of all kinds no goroutine and no descriptor is left.
func TestNothingStays(t *testing.T) {
	f := startFreeradius(t)
	before := handlertest.Snapshot()
	c := Config{
		Servers:    []Server{{Address: f.address(), Secret: plugins.NewSecret(secret)}, {Address: f.address(), Secret: plugins.NewSecret(secret)}},
		Attributes: []Attribute{{Name: "User-Name", Value: "{{.data.login}}"}},
		Retransmit: plugins.Duration(50 * time.Millisecond),
	}
	h, err := newSender(t.Context(), c, plugintest.Env(t))
	if err != nil {
		t.Fatal(err)
	}
	wrong := c
	wrong.Servers = []Server{c.Servers[0], {Address: f.address(), Secret: plugins.NewSecret("wrong")}}
	bad, err := newSender(t.Context(), wrong, plugintest.Env(t))
	if err != nil {
		t.Fatal(err)
	}
	for i, login := range []string{"bob", "nak-503", "nak-506", "nak"} {
		e := plugintest.Event(t, i, "clients.balance_zero", "4711", map[string]string{"login": login})
		if _, err := h.Handle(t.Context(), plugintest.Delivery(e, 1)); (err == nil) != (i < 2) {
			t.Errorf("%s: %v", login, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if _, err := bad.Handle(ctx, plugintest.Delivery(e, 1)); err == nil {
			t.Errorf("%s: a wrong secret did", login)
		}
		cancel()
		if _, err := h.Handle(ctx, plugintest.Delivery(e, 1)); err == nil {
			t.Errorf("%s: no error with a context that had ended", login)
		}
	}
	before.Check(t)
}

func TestConfig(t *testing.T) {
	const (
		servers    = `"servers": [{"address": "10.0.0.1", "secret": "x"}]`
		attributes = `"attributes": [{"name": "User-Name", "value": "{{.data.login}}"}]`
		both       = servers + ", " + attributes
	)
	for _, good := range []string{
		both, both + `, "request": "coa", "retransmit": "2s"`,
		`"servers": [{"address": "nas.example.net:1700", "secret": "x"}, {"address": "[::1]:3799", "secret": "y"}, {"address": "::1", "secret": "y"}], ` + attributes,
		servers + `, "attributes": [{"type": 200, "value": "x"}]`,
	} {
		if _, err := plugins.DecodeConfig[Config]([]byte("{"+good+"}"), ""); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		``:         "servers",
		attributes: "servers",
		servers:    "attributes",
		`"servers": [{"address": "10.0.0.1:0", "secret": "x"}], ` + attributes:                            "servers[0].address: it is not host",
		`"servers": [{"address": "a:b:c", "secret": "x"}], ` + attributes:                                 "servers[0].address: it is not host",
		`"servers": [{"address": "10.0.0.1"}], ` + attributes:                                             "servers[0]",
		`"servers": [{"address": "10.0.0.1", "secret": ""}], ` + attributes:                               "servers[0].secret: it is empty",
		both + `, "request": "kill"`:                                                                      "request",
		both + `, "retransmit": "1ms"`:                                                                    "retransmit: it is less than 50ms",
		servers + `, "attributes": [{"name": "User-Nam", "value": "x"}]`:                                  "attributes[0].name: there is no attribute of that name",
		servers + `, "attributes": [{"value": "x"}]`:                                                      "attributes[0]: it has neither",
		servers + `, "attributes": [{"name": "User-Name", "type": 1, "value": "x"}]`:                      "attributes[0].name: it stands beside",
		servers + `, "attributes": [{"type": 80, "value": "x"}]`:                                          "attributes[0].type: this one cannot be given",
		servers + `, "attributes": [{"name": "User-Name", "value": "{{"}]`:                                "attributes[0].value",
		servers + `, "attributes": [{"name": "NAS-IP-Address", "value": "10.0.0.1"}]`:                     "attributes: none of them says which session",
		servers + `, "attributes": [{"name": "User-Name", "value": "{{.data.login}}", "optional": true}]`: "attributes: none of them says which session",
	} {
		if _, err := plugins.DecodeConfig[Config]([]byte("{"+bad+"}"), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", bad, err, want)
		}
	}
}

// FuzzAnswer: whatever comes back is refused, unless it was made with the secret.
func FuzzAnswer(f *testing.F) {
	p, err := newPlan(Config{Attributes: []Attribute{{Name: "User-Name", Value: "bob"}}})
	if err != nil {
		f.Fatal(err)
	}
	s := &server{secret: []byte(secret)}
	request, err := p.packet(nil, s.secret, time.Unix(1700000000, 0))
	if err != nil {
		f.Fatal(err)
	}
	q, err := radius.Parse(request, s.secret)
	if err != nil {
		f.Fatal(err)
	}
	nak := q.Response(radius.CodeDisconnectNAK)
	nak.Add(typeErrorCause, radius.NewInteger(503))
	good, err := nak.Encode()
	if err != nil {
		f.Fatal(err)
	}
	var a answer
	if ok, why := s.accept(&a, good, request); !ok || a.cause != 503 {
		f.Fatal(why)
	}
	f.Add(good)
	f.Add(append(bytes.Clone(good), 0))
	f.Add(good[:20])
	f.Add([]byte{42, request[1], 0, 20})
	f.Fuzz(func(t *testing.T, b []byte) {
		var a answer
		if ok, _ := s.accept(&a, b, request); ok && !bytes.HasPrefix(b, good) && !bytes.Equal(b, good) {
			t.Errorf("%x was taken", b)
		}
	})
}

// FuzzEncode: a value is refused or fits into an attribute.
func FuzzEncode(f *testing.F) {
	for _, format := range []string{formatString, formatInteger, formatIPAddr, formatIPv6Addr, formatOctets} {
		f.Add(format, "10.0.0.1/32")
		f.Add(format, "::1")
		f.Add(format, "0xff")
	}
	f.Fuzz(func(t *testing.T, format, text string) {
		v, err := encode(format, text)
		if err == nil && len(v) > 253 {
			t.Errorf("%d bytes", len(v))
		}
	})
}
