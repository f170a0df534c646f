//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/plugin/plugintest"
	"github.com/billhook/billhook/internal/servertest"
	"github.com/billhook/billhook/plugins"
)

const password = "s3cr3t-p4ssword"

// exim is one that runs.
type exim struct {
	dir           string
	port, tlsPort int
}

func startExim(t *testing.T) *exim {
	t.Helper()
	path := servertest.Program(t, "exim4", "exim4-daemon-light")
	conf, err := os.ReadFile(filepath.Join("testdata", "exim.conf"))
	if err != nil {
		t.Fatal(err)
	}
	x := &exim{dir: servertest.Dir(t), port: servertest.Port(t), tlsPort: servertest.Port(t)}
	if err := os.Chmod(x.dir, 0o755); err != nil { // the plugin reads the certificate
		t.Fatal(err)
	}
	cert, key := servertest.Certificate(t)
	servertest.Write(t, x.dir, "cert.pem", cert)
	servertest.Write(t, x.dir, "key.pem", key)
	user := servertest.User(t)
	file := servertest.Write(t, x.dir, "exim.conf", strings.NewReplacer(
		"DIR", x.dir, "TLSPORT", fmt.Sprint(x.tlsPort), "PORT", fmt.Sprint(x.port), "USER", user.Uid, "GROUP", user.Gid, "PASSWORD", password,
	).Replace(string(conf)))
	servertest.Start(t, servertest.Options{
		Path: path, Dir: x.dir,
		Args:  []string{"-C", file, "-bdf", "-q1h", "-oX", fmt.Sprintf("<; 127.0.0.1.%d ; 127.0.0.1.%d", x.port, x.tlsPort)},
		Ready: servertest.Listening(x.port),
	})
	return x
}

// mails returns what a user has got so far, waiting for n.
func (x *exim) mails(t *testing.T, user string, n int) []*mail.Message {
	t.Helper()
	var out []*mail.Message
	servertest.Until(t, func() string {
		out = nil
		files, _ := filepath.Glob(filepath.Join(x.dir, "mail", "q*"))
		for _, file := range files {
			f, err := os.Open(file)
			if err != nil {
				return err.Error()
			}
			defer f.Close()
			m, err := mail.ReadMessage(f)
			if err != nil {
				return err.Error()
			}
			body, err := io.ReadAll(m.Body)
			if err != nil {
				return err.Error()
			}
			m.Body = strings.NewReader(string(body))
			if m.Header.Get("Envelope-To") != user+"@example.test" {
				continue
			}
			out = append(out, m)
		}
		if len(out) < n {
			return fmt.Sprintf("%s has %d mails, want %d", user, len(out), n)
		}
		return ""
	})
	return out
}

func (x *exim) config(more map[string]any) map[string]any {
	c := map[string]any{
		"server": fmt.Sprintf("127.0.0.1:%d", x.port), "ca_file": filepath.Join(x.dir, "cert.pem"),
		"user": "billhook", "password": password, "hello": "billhook.example.test",
		"from":    map[string]string{"name": "Billing", "address": "billing@example.test"},
		"to":      []map[string]string{{"name": "{{.data.name}}", "address": "{{.data.email}}"}},
		"subject": "{{.data.name}}, your balance is {{.data.balance}}",
		"text":    "Dear {{.data.name}},\n\nyour balance is {{.data.balance}}.\n.\nBilling\n",
	}
	for k, v := range more {
		if v == nil {
			delete(c, k)
			continue
		}
		c[k] = v
	}
	return c
}

// hostile tries to add headers, a body, and addresses.
const hostile = "Zoë \"O'Neil\" <script>\r\nBcc: open@example.test\r\n\r\n<b>, x@example.test;\u2028é"

func TestMail(t *testing.T) {
	x := startExim(t)
	bin := servertest.Build(t, "smtp")
	for name, more := range map[string]map[string]any{
		"starttls": nil,
		"tls":      {"tls": "tls", "server": fmt.Sprintf("127.0.0.1:%d", x.tlsPort)},
		"none":     {"tls": "none", "user": nil, "password": nil},
	} {
		t.Run(name, func(t *testing.T) {
			to, cc, bcc := "ann-"+name, "cc-"+name, "bcc-"+name
			if name == "none" {
				to, cc, bcc = "open", "open", "open"
			}
			config := x.config(more)
			config["cc"] = []map[string]string{{"address": cc + "@example.test"}}
			config["bcc"] = []map[string]string{{"address": bcc + "@example.test, " + to + "@example.test"}}
			config["html"] = `<p title="{{.data.name}}">{{.data.name}}</p>`
			h := plugintest.Start(t, bin, config)
			e := plugintest.Event(t, 5, "clients.balance_zero", "4711", map[string]any{"name": hostile, "email": to + "@example.test", "balance": "-0.50"})
			res, err := h.Handle(t.Context(), plugintest.Attempt(e, 1))
			if err != nil {
				t.Fatal(err)
			}
			if text := fmt.Sprintf("%+v", res); strings.Contains(text, password) || !strings.Contains(text, "OK id=") {
				t.Errorf("shown is %s", text)
			}
			m := x.mails(t, to, 1)[0]
			if got, want := m.Header.Get("Message-ID"), fmt.Sprintf("<%s.7@example.test>", e.ID); got != want {
				t.Errorf("id %s, want %s", got, want)
			}
			subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
			const line = "Zoë \"O'Neil\" <script> Bcc: open@example.test <b>, x@example.test; é"
			if want := line + ", your balance is -0.50"; err != nil || subject != want {
				t.Errorf("subject %q (%v), want %q", subject, err, want)
			}
			list, err := m.Header.AddressList("To")
			if err != nil || len(list) != 1 || list[0].Address != to+"@example.test" || list[0].Name != line {
				t.Errorf("to %q: %v, %v", m.Header.Get("To"), list, err)
			}
			if got := m.Header["Bcc"]; got != nil {
				t.Errorf("bcc %q is shown", got)
			}
			for header, want := range map[string]string{"From": `"Billing" <billing@example.test>`, "Auto-Submitted": "auto-generated"} {
				if got := m.Header.Get(header); got != want {
					t.Errorf("%s: %q, want %q", header, got, want)
				}
			}
			kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
			if err != nil || kind != "multipart/alternative" {
				t.Fatalf("%s, %v", kind, err)
			}
			parts := multipart.NewReader(m.Body, params["boundary"])
			for _, want := range []string{
				"Dear " + hostile + ",\n\nyour balance is -0.50.\n.\nBilling\n",
				`<p title="Zoë &#34;O&#39;Neil&#34; &lt;script&gt;`,
			} {
				p, err := parts.NextRawPart()
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(quotedprintable.NewReader(p))
				if err != nil {
					t.Fatal(err)
				}
				plain := func(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") }
				if !strings.HasPrefix(plain(string(body)), plain(want)) {
					t.Errorf("body %q\nwant %q", body, want)
				}
			}
			if name != "none" {
				x.mails(t, cc, 1)
				x.mails(t, bcc, 1)
			}
		})
	}
	if got := x.mails(t, "x", 0); len(got) > 0 {
		t.Error("an address out of a name got mail")
	}
}

// TestRepetition: who gets a mail twice can see that it is the same.
func TestRepetition(t *testing.T) {
	x := startExim(t)
	h := plugintest.Start(t, servertest.Build(t, "smtp"), x.config(nil))
	for i, n := range []int{1, 1, 2} {
		e := plugintest.Event(t, n, "clients.balance_zero", "4711", map[string]any{"name": "Ann", "email": "ann@example.test", "balance": "1"})
		if _, err := h.Handle(t.Context(), plugintest.Attempt(e, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	ids := map[string]int{}
	for _, m := range x.mails(t, "ann", 3) {
		ids[m.Header.Get("Message-ID")]++
	}
	if len(ids) != 2 {
		t.Errorf("ids %v", ids)
	}
}

func TestFaults(t *testing.T) {
	x := startExim(t)
	bin := servertest.Build(t, "smtp")
	to := func(list ...string) []map[string]string {
		var out []map[string]string
		for _, a := range list {
			out = append(out, map[string]string{"address": a})
		}
		return out
	}
	for _, test := range []struct {
		name      string
		config    map[string]any
		email     any
		want      string
		reason    handler.Reason
		permanent bool
	}{
		{name: "no such user", email: "unknown@example.test", want: `550 "no such user here"`, reason: handler.ReasonClientError, permanent: true},
		{name: "a full mailbox", email: "full@example.test", want: `451 "try again later"`, reason: handler.ReasonServerError},
		{name: "spam", config: map[string]any{"subject": "spam"}, email: "ann@example.test", want: `550 "we do not take that"`, reason: handler.ReasonClientError, permanent: true},
		{name: "too large", config: map[string]any{"text": strings.Repeat("x", 70<<10)}, email: "ann@example.test", want: "552 ", reason: handler.ReasonClientError, permanent: true},
		{name: "one of two refused", config: map[string]any{"to": to("{{.data.email}}", "unknown@example.test")}, email: "second@example.test", want: "550 ", reason: handler.ReasonClientError, permanent: true},
		{name: "password", config: map[string]any{"password": "another"}, email: "ann@example.test", want: "535 ", reason: handler.ReasonOther},
		{name: "certificate", config: map[string]any{"ca_file": nil}, email: "ann@example.test", want: "certificate signed by unknown authority", reason: handler.ReasonConnect},
		{name: "nobody listens", config: map[string]any{"server": fmt.Sprintf("127.0.0.1:%d", servertest.Port(t))}, email: "ann@example.test", want: "connection refused", reason: handler.ReasonConnect},
		{name: "no address", email: nil, want: "no address comes out of to", reason: handler.ReasonPayload, permanent: true},
		{name: "bad address", email: "ann@example.test\r\nRCPT TO:<x@example.test>", want: "is no address", reason: handler.ReasonPayload, permanent: true},
		{name: "a name in the address", email: "Ann <ann@example.test>", want: "is no address", reason: handler.ReasonPayload, permanent: true},
		{name: "no column", config: map[string]any{"text": "{{.data.nosuch}}"}, email: "ann@example.test", want: `no entry for key "nosuch"`, reason: handler.ReasonPayload, permanent: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := plugintest.Start(t, bin, x.config(test.config))
			e := plugintest.Event(t, 1, "clients.balance_zero", "4711", map[string]any{"name": "Ann", "email": test.email, "balance": "1"})
			res, err := h.Handle(t.Context(), plugintest.Attempt(e, 1))
			if err == nil || !strings.Contains(err.Error(), test.want) || res.Reason != test.reason || handler.IsPermanent(err) != test.permanent {
				t.Errorf("%v, permanent: %t, reason %s; want %s, %t, %s", err, handler.IsPermanent(err), res.Reason, test.want, test.permanent, test.reason)
			}
			if strings.Contains(fmt.Sprintf("%v %+v", err, res), password) {
				t.Error("the password is shown")
			}
		})
	}
	for _, user := range []string{"ann", "second", "x"} {
		if len(x.mails(t, user, 0)) > 0 {
			t.Errorf("%s got mail", user)
		}
	}
	t.Run("nobody is right", func(t *testing.T) {
		h := plugintest.Start(t, bin, x.config(map[string]any{"skip_nobody": true}))
		e := plugintest.Event(t, 1, "clients.balance_zero", "4711", map[string]any{"name": "Ann", "email": nil, "balance": "1"})
		if res, err := h.Handle(t.Context(), plugintest.Attempt(e, 1)); err != nil || !strings.Contains(fmt.Sprint(res), "skipped") {
			t.Errorf("%+v, %v", res, err)
		}
	})
	t.Run("no TLS offered", func(t *testing.T) { // a server that speaks none is not given the password
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				got <- err.Error()
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "220 mx\r\n")
			buf := make([]byte, 4096)
			n, _ := c.Read(buf)
			_, _ = io.WriteString(c, "250-mx\r\n250 AUTH PLAIN LOGIN\r\n")
			rest, _ := io.ReadAll(c)
			got <- string(buf[:n]) + string(rest)
		}()
		h := plugintest.Start(t, bin, x.config(map[string]any{"server": l.Addr().String()}))
		e := plugintest.Event(t, 1, "clients.balance_zero", "4711", map[string]any{"name": "Ann", "email": "ann@example.test", "balance": "1"})
		if _, err := h.Handle(t.Context(), plugintest.Attempt(e, 1)); err == nil || !strings.Contains(err.Error(), "STARTTLS") {
			t.Error(err)
		}
		if said := <-got; strings.Contains(said, "AUTH") || strings.Contains(said, "MAIL") {
			t.Errorf("the server was told %q", said)
		}
		_ = l.Close()
	})
	t.Run("deadline", func(t *testing.T) { // a server that says nothing
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		h := plugintest.Start(t, bin, x.config(map[string]any{"server": l.Addr().String()}))
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		e := plugintest.Event(t, 1, "clients.balance_zero", "4711", map[string]any{"name": "Ann", "email": "ann@example.test", "balance": "1"})
		if res, err := h.Handle(ctx, plugintest.Attempt(e, 1)); err == nil || res.Reason != handler.ReasonTimeout {
			t.Errorf("%v, reason %s", err, res.Reason)
		}
	})
}

// TestSuite: a bad network between the plugin and the server.
func TestSuite(t *testing.T) {
	x := startExim(t)
	bin := servertest.Build(t, "smtp")
	data := func(email string) map[string]any {
		return map[string]any{"name": "Ann", "email": email, "balance": "1"}
	}
	handlertest.RunClient(t, handlertest.Client{
		New: func(t *testing.T, address string) handler.Handler {
			return plugintest.Start(t, bin, x.config(map[string]any{"server": address}))
		},
		Network: "tcp", Server: fmt.Sprintf("127.0.0.1:%d", x.port), Many: 8, Limit: plugintest.CaptureLimit, Secret: password, Grace: 2 * time.Second,
		Good: func(n int) *handler.Delivery {
			return plugintest.Attempt(plugintest.Event(t, n, "clients.balance_zero", "4711", data("ann@example.test")), 1)
		},
		Bad: func() *handler.Delivery {
			return plugintest.Attempt(plugintest.Event(t, 1, "clients.balance_zero", "4711", data("unknown@example.test")), 1)
		},
	})
}

// TestNothingStays: after attempts of all kinds no goroutine and no descriptor is left.
func TestNothingStays(t *testing.T) {
	x := startExim(t)
	before := handlertest.Snapshot()
	for _, more := range []map[string]any{
		nil,
		{"password": "another"},
		{"ca_file": nil},
		{"tls": "tls", "server": fmt.Sprintf("127.0.0.1:%d", x.tlsPort)},
		{"tls": "tls"},
		{"server": fmt.Sprintf("127.0.0.1:%d", x.tlsPort)},
	} {
		b, err := json.Marshal(x.config(more))
		if err != nil {
			t.Fatal(err)
		}
		c, err := plugins.DecodeConfig[Config](b, "")
		if err != nil {
			t.Fatal(err)
		}
		h, err := newMailer(t.Context(), c, plugintest.Env(t))
		if err != nil {
			t.Fatal(err)
		}
		for i, email := range []string{"ann@example.test", "unknown@example.test", "full@example.test"} {
			for _, timeout := range []time.Duration{2 * time.Second, 3 * time.Millisecond} {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				e := plugintest.Event(t, i, "clients.balance_zero", "4711", map[string]any{"name": "Ann", "email": email, "balance": "1"})
				_, err := h.Handle(ctx, plugintest.Delivery(e, 1))
				if right := more == nil || len(more) == 2; timeout > time.Second && (err == nil) != (right && i == 0) {
					t.Errorf("%v, %s: %v", more, email, err)
				}
				cancel()
			}
		}
	}
	before.Check(t)
}

func TestConfig(t *testing.T) {
	with := func(more string) string {
		return `{"server": "mx", "from": {"address": "a@b.c"}, "to": [{"address": "{{.data.email}}"}], "subject": "s"` + more + "}"
	}
	for _, good := range []string{
		with(`, "text": "t"`), with(`, "html": "<p>{{.data.name}}</p>"`),
		with(`, "text": "t", "reply_to": {"name": "x", "address": "x@y.z"}, "user": "u", "password": "p"`),
	} {
		if _, err := plugins.DecodeConfig[Config]([]byte(good), ""); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		`{}`:                                "server",
		with(``):                            "text: there is neither text nor html",
		with(`, "text": "{{"`):              "text: ",
		with(`, "html": "<a href='{{.x}}"`): "html: ",
		with(`, "text": "t", "tls": "ssl"`): "tls",
		with(`, "text": "t", "tls": "none", "user": "u", "password": "p"`): "tls: a password is not sent in clear",
		with(`, "text": "t", "user": "u"`):                                 "user: it goes with password",
		with(`, "text": "t", "ca_file": "x"`):                              "ca_file: it must begin with /",
		with(`, "text": "t", "reply_to": {"address": "a@b.c, d@e.f"}`):     "reply_to.address: it is not one address",
		with(`, "text": "t", "cc": [{"address": "{{"}]`):                   "cc[0].address: ",
		strings.Replace(with(`, "text": "t"`), `"mx"`, `"mx:port"`, 1):     "server: it is not host",
		strings.Replace(with(`, "text": "t"`), `"a@b.c"`, `"a"`, 1):        "from.address: it is not one address",
	} {
		if _, err := plugins.DecodeConfig[Config]([]byte(bad), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", bad, err, want)
		}
	}
}

// FuzzAddresses: an address that comes out of a payload cannot be more than one.
func FuzzAddresses(f *testing.F) {
	for _, s := range []string{"a@b.c", "a@b.c, d@e.f;g@h.i", "a@b.c\r\nBcc: x@y.z", `"a b"@c.d`, "<a@b.c>", "a@b.c>", "é@ü.x", "a@[127.0.0.1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := addresses(s)
		if err != nil {
			return
		}
		for _, a := range list {
			if strings.ContainsAny(a, "\r\n\x00 <>,;") || strings.Count(a, "@") != 1 {
				t.Errorf("%q has %q", s, a)
			}
		}
	})
}
