//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/plugin/plugintest"
	"github.com/billhook/billhook/internal/servertest"
	"github.com/billhook/billhook/plugins"
)

const password = "s3cr3t-p4ssword"

// natsServer is one that runs.
type natsServer struct {
	*servertest.Server
	port    int
	dir     string
	options []nats.Option // how the tests connect
}

func (n *natsServer) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", n.port) }

func startNATS(t *testing.T) *natsServer { return startNATSWith(t, "", nil) }

// startNATSWith adds to the server's configuration, where DIR is its folder, and to
// how the tests connect. The folder has cert.pem and key.pem.
func startNATSWith(t *testing.T, more string, options func(dir string) nats.Option) *natsServer {
	t.Helper()
	path := servertest.Program(t, "nats-server", "nats-server")
	conf, err := os.ReadFile(filepath.Join("testdata", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	dir, port := servertest.Dir(t), servertest.Port(t)
	file := servertest.Write(t, dir, "nats.conf", strings.NewReplacer("DIR", dir, "PORT", fmt.Sprint(port), "PASSWORD", password).Replace(string(conf)+strings.ReplaceAll(more, "DIR", dir)))
	n := &natsServer{port: port, dir: dir, options: []nats.Option{nats.UserInfo("billhook", password)}}
	if options != nil {
		n.options = append(n.options, options(dir))
	}
	cert, key := servertest.Certificate(t)
	servertest.Write(t, dir, "cert.pem", cert)
	servertest.Write(t, dir, "key.pem", key)
	n.Server = servertest.Start(t, servertest.Options{Path: path, Args: []string{"-c", file}, Dir: dir, Ready: func() error {
		nc, err := nats.Connect(n.url(), n.options...)
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = js.AccountInfo(ctx)
		return err
	}})
	return n
}

// js connects as somebody who looks at streams.
func (n *natsServer) js(t *testing.T) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(n.url(), n.options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func (n *natsServer) stream(t *testing.T, c jetstream.StreamConfig) jetstream.Stream {
	t.Helper()
	s, err := n.js(t).CreateStream(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *natsServer) config(more map[string]any) map[string]any {
	c := map[string]any{"servers": []string{n.url()}, "user": "billhook", "password": password}
	for k, v := range more {
		c[k] = v
	}
	return c
}

func TestPublish(t *testing.T) {
	n := startNATS(t)
	s := n.stream(t, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"billing.>"}})
	h := plugintest.Start(t, servertest.Build(t, "nats"), n.config(map[string]any{
		"subject": `billing.{{.event.events_id}}.{{token .data.name}}`, "stream": "EVENTS",
		"headers": map[string]string{"Client": "{{.event.object_id}}", "Name": "{{.data.name}}"},
	}))
	const name = "Ac.me > *\u00e9"
	e := plugintest.Event(t, 1, "clients.balance_zero", "4711", map[string]any{"name": name, "balance": "-0.50"})
	for attempt, want := range []string{"Sequence: 1", "the stream had it already"} {
		res, err := h.Handle(t.Context(), plugintest.Attempt(e, attempt+1))
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%+v", res)
		if !strings.Contains(text, want) || strings.Contains(text, password) {
			t.Errorf("%s is shown, want %s", text, want)
		}
	}
	m, err := s.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if want := "billing.clients.balance_zero.Ac_me____\u00e9"; m.Subject != want {
		t.Errorf("subject %s, want %s", m.Subject, want)
	}
	if string(m.Data) != string(e.AppendPayload(nil)) {
		t.Errorf("data %s", m.Data)
	}
	for header, want := range map[string]string{
		"Nats-Msg-Id": e.ID.String(), "Billhook-Id": e.ID.String(), "Billhook-Event": "clients.balance_zero",
		"Content-Type": "application/json", "Client": "4711", "Name": name,
	} {
		if got := m.Header[header]; len(got) != 1 || got[0] != want {
			t.Errorf("header %s: %q, want %q", header, got, want)
		}
	}
	if info, err := s.Info(t.Context()); err != nil || info.State.Msgs != 1 {
		t.Errorf("%d in the stream (%v), want 1", info.State.Msgs, err)
	}
}

// TestRestarts: the server dies and comes back in the middle, again and again. The
// stream has each event once, in the order in which they were delivered.
func TestRestarts(t *testing.T) {
	n := startNATS(t)
	n.stream(t, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"billhook.>"}})
	h := plugintest.Start(t, servertest.Build(t, "nats"), n.config(nil))
	const events = 300
	var failed, repeated int
	restarted := make(chan struct{})
	kills := make(chan struct{})
	go func() {
		defer close(restarted)
		for kill := range kills {
			_ = kill
			n.Kill(t)
			n.Start(t)
		}
	}()
	for i := range events {
		e := plugintest.Event(t, i, "clients.update", "4711", map[string]int{"n": i})
		if i%100 == 50 {
			kills <- struct{}{}
		}
		err := errors.New("not yet")
		for attempt := 1; err != nil; attempt++ {
			if attempt > 1 {
				failed++
			}
			if attempt > 10000 {
				t.Fatalf("event %d: %v", i, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			if _, err = h.Handle(ctx, plugintest.Attempt(e, attempt)); handler.IsPermanent(err) {
				t.Fatalf("event %d: %v", i, err)
			}
			if err != nil {
				<-ctx.Done() // as the dispatcher waits before it tries again
			}
			cancel()
		}
		if i%7 == 0 { // an attempt whose end was not seen
			if _, err := h.Handle(t.Context(), plugintest.Attempt(e, 2)); err == nil {
				repeated++
			}
		}
	}
	close(kills)
	<-restarted
	if failed == 0 || repeated == 0 {
		t.Errorf("%d attempts failed and %d were repeated: the test has not tried it", failed, repeated)
	}
	s, err := n.js(t).Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != events {
		t.Errorf("%d in the stream, want %d", info.State.Msgs, events)
	}
	for i := range events {
		m, err := s.GetMsg(t.Context(), info.State.FirstSeq+uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(m.Data), fmt.Sprintf(`{"n":%d}`, i)) {
			t.Fatalf("at %d: %s", i, m.Data)
		}
	}
	t.Logf("%d attempts failed, %d were repeated", failed, repeated)
}

func TestFaults(t *testing.T) {
	n := startNATS(t)
	n.stream(t, jetstream.StreamConfig{Name: "SMALL", Subjects: []string{"small.>"}, MaxMsgSize: 512})
	n.stream(t, jetstream.StreamConfig{Name: "FULL", Subjects: []string{"full.>"}, MaxMsgs: 1, Discard: jetstream.DiscardNew})
	n.stream(t, jetstream.StreamConfig{Name: "CLIENTS", Subjects: []string{"clients.>"}})
	if _, err := n.js(t).Publish(t.Context(), "full.x", nil); err != nil {
		t.Fatal(err)
	}
	bin := servertest.Build(t, "nats")
	for _, test := range []struct {
		name      string
		config    map[string]any
		pad       int
		want      string
		reason    handler.Reason
		permanent bool
	}{
		{name: "no stream", config: map[string]any{"subject": "nobody.x"}, want: "no stream takes subject nobody.x", reason: handler.ReasonServerError},
		{name: "another stream", config: map[string]any{"subject": "small.x", "stream": "FULL"}, want: "expected stream does not match", reason: handler.ReasonServerError},
		{name: "a full stream", config: map[string]any{"subject": "full.x"}, want: "maximum messages exceeded", reason: handler.ReasonServerError},
		{name: "too large for the stream", config: map[string]any{"subject": "small.x"}, pad: 600, want: "message size exceeds maximum allowed", reason: handler.ReasonPayload, permanent: true},
		{name: "too large for the server", config: map[string]any{"subject": "clients.x"}, pad: 70 << 10, want: "maximum payload exceeded", reason: handler.ReasonPayload, permanent: true},
		{name: "wildcard", config: map[string]any{"subject": "clients.{{.data.star}}"}, want: `subject "clients.*" has a wildcard`, reason: handler.ReasonPayload, permanent: true},
		{name: "blank", config: map[string]any{"subject": "clients.{{.data.blank}}"}, want: "has a blank", reason: handler.ReasonPayload, permanent: true},
		{name: "empty token", config: map[string]any{"subject": "clients..x"}, want: "has an empty token", reason: handler.ReasonPayload, permanent: true},
		{name: "the server's own", config: map[string]any{"subject": "$JS.API.INFO"}, want: "is the server's own", reason: handler.ReasonPayload, permanent: true},
		{name: "header of two lines", config: map[string]any{"subject": "clients.x", "headers": map[string]string{"X": "{{.data.lines}}"}}, want: "control character", reason: handler.ReasonPayload, permanent: true},
		{name: "password", config: map[string]any{"password": "another"}, want: "no server is connected: nats: Authorization Violation", reason: handler.ReasonConnect},
		{name: "nobody listens", config: map[string]any{"servers": []string{fmt.Sprintf("nats://127.0.0.1:%d", servertest.Port(t))}}, want: "no server is connected", reason: handler.ReasonConnect},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := plugintest.Start(t, bin, n.config(test.config))
			e := plugintest.Event(t, 1, "clients.balance_zero", "4711", map[string]string{
				"star": "*", "blank": "a b", "lines": "a\r\nNats-Msg-Id: x", "pad": strings.Repeat("x", test.pad),
			})
			res, err := h.Handle(t.Context(), plugintest.Attempt(e, 1))
			if err == nil || !strings.Contains(err.Error(), test.want) || res.Reason != test.reason || handler.IsPermanent(err) != test.permanent {
				t.Errorf("%v, permanent: %t, reason %s; want %s, %t, %s", err, handler.IsPermanent(err), res.Reason, test.want, test.permanent, test.reason)
			}
			if strings.Contains(fmt.Sprintf("%v %+v", err, res), password) {
				t.Error("the password is shown")
			}
		})
	}
}

// TestTLS: the server and the plugin show each other their certificates.
func TestTLS(t *testing.T) {
	n := startNATSWith(t, `
tls {
	cert_file: "DIR/cert.pem"
	key_file: "DIR/key.pem"
	ca_file: "DIR/cert.pem"
	verify: true
}
`, func(dir string) nats.Option {
		return func(o *nats.Options) error {
			ca, cert := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
			return errors.Join(nats.RootCAs(ca)(o), nats.ClientCert(ca, cert)(o))
		}
	})
	n.stream(t, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"billhook.>"}})
	bin := servertest.Build(t, "nats")
	cert, key := filepath.Join(n.dir, "cert.pem"), filepath.Join(n.dir, "key.pem")
	for name, test := range map[string]struct {
		config map[string]any
		want   string
	}{
		"both":           {map[string]any{"ca_file": cert, "cert_file": cert, "key_file": key}, ""},
		"nobody's":       {map[string]any{"cert_file": cert, "key_file": key}, "certificate signed by unknown authority"},
		"no certificate": {map[string]any{"ca_file": cert}, "no server is connected: "},
	} {
		t.Run(name, func(t *testing.T) {
			h := plugintest.Start(t, bin, n.config(test.config))
			_, err := h.Handle(t.Context(), plugintest.Attempt(plugintest.Event(t, 1, "clients.update", "4711", nil), 1))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestSuite: a bad network between the plugin and the server.
func TestSuite(t *testing.T) {
	n := startNATS(t)
	n.stream(t, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"billhook.>"}})
	bin := servertest.Build(t, "nats")
	handlertest.RunClient(t, handlertest.Client{
		New: func(t *testing.T, address string) handler.Handler {
			return plugintest.Start(t, bin, n.config(map[string]any{"servers": []string{"nats://" + address}, "subject": "billhook.{{.data.login}}"}))
		},
		Network: "tcp", Server: fmt.Sprintf("127.0.0.1:%d", n.port), Many: 32, Limit: plugintest.CaptureLimit, Secret: password, Grace: 2 * time.Second,
		Good: func(n int) *handler.Delivery {
			return plugintest.Attempt(plugintest.Event(t, n, "clients.update", "4711", map[string]string{"login": "acme"}), 1)
		},
		Bad: func() *handler.Delivery {
			return plugintest.Attempt(plugintest.Event(t, 1, "clients.update", "4711", map[string]string{"login": "a b"}), 1)
		},
	})
}

// TestNothingStays: after a connection that worked, and one that did not, no goroutine
// and no descriptor is left.
func TestNothingStays(t *testing.T) {
	n := startNATS(t)
	n.stream(t, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"billhook.>"}})
	before := handlertest.Snapshot()
	for _, secret := range []string{password, "another"} {
		c := Config{Servers: []string{n.url()}, User: "billhook", Password: plugins.NewSecret(secret)}
		h, err := newPublisher(t.Context(), c, plugintest.Env(t))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			_, err := h.Handle(t.Context(), plugintest.Delivery(plugintest.Event(t, i, "clients.update", "4711", nil), 1))
			if (err == nil) != (secret == password) {
				t.Error(err)
			}
		}
		if err := h.(*publisher).Close(); err != nil {
			t.Error(err)
		}
	}
	before.Check(t)
}

func TestConfig(t *testing.T) {
	const servers = `"servers": ["nats://127.0.0.1:4222"]`
	for _, good := range []string{
		servers, servers + `, "user": "x", "password": "y"`, servers + `, "token": "x", "subject": "a.{{token .data.name}}"`,
		`"servers": ["tls://a:1", "wss://b"], "ca_file": "/x", "cert_file": "/y", "key_file": "/z", "credentials_file": "/c"`,
	} {
		if _, err := plugins.DecodeConfig[Config]([]byte("{"+good+"}"), ""); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		``:                                            "servers",
		`"servers": ["127.0.0.1"]`:                    "servers[0]: it is not a URL",
		`"servers": ["nats://u:secret@h"]`:            "servers[0]: there is a user in it",
		servers + `, "password": "y"`:                 "password: it stands without user",
		servers + `, "user": "x", "token":"y"`:        "exclude each other",
		servers + `, "cert_file": "/x"`:               "cert_file: it goes with key_file",
		servers + `, "ca_file": "x"`:                  "ca_file: it must begin with /",
		servers + `, "subject": "{{nosuch}}"`:         "subject: ",
		servers + `, "headers": {"a b": "x"}`:         "headers.a b: it is no name",
		servers + `, "headers": {"nats-msg-id": "x"}`: "are the server's",
		servers + `, "headers": {"X": "{{"}`:          "headers.X: ",
	} {
		if _, err := plugins.DecodeConfig[Config]([]byte("{"+bad+"}"), ""); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %s", bad, err, want)
		}
	}
}

// FuzzToken: what token makes is one token of a subject that can be published to.
func FuzzToken(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "*", ">", " ", "a\r\nb", "\x00", "$JS", "é\u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := token(s)
		if err != nil || strings.Contains(got, ".") || checkSubject("x."+got) != nil {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	})
}
