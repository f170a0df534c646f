//go:build unix

package main

import (
	"cmp"
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
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

const token = "s3cr3t-t0ken"

// kamailio is one that runs.
type kamailio struct {
	*servertest.Server
	port int
}

func (k *kamailio) url() string { return fmt.Sprintf("http://127.0.0.1:%d/RPC", k.port) }

func startKamailio(t *testing.T) *kamailio {
	t.Helper()
	path := servertest.Program(t, "kamailio", "kamailio")
	cfg, err := os.ReadFile(filepath.Join("testdata", "kamailio.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	dir, port := servertest.Dir(t), servertest.Port(t)
	file := servertest.Write(t, dir, "kamailio.cfg", strings.NewReplacer("PORT", fmt.Sprint(port), "TOKEN", token).Replace(string(cfg)))
	k := &kamailio{port: port}
	k.Server = servertest.Start(t, servertest.Options{
		Path: path, Dir: dir,
		Args:  []string{"-f", file, "-DD", "-E", "-Y", dir, "-w", dir, "-m", "32", "-M", "4"},
		Ready: servertest.Listening(port),
	})
	return k
}

// ask sends a SIP request of a user's with sipsak and returns the first line of the
// answer.
func (k *kamailio) ask(t *testing.T, method, user string) string {
	t.Helper()
	request := fmt.Sprintf("%[1]s sip:100@127.0.0.1 SIP/2.0\r\nFrom: <sip:%[2]s@127.0.0.1>;tag=%[3]d\r\nTo: <sip:100@127.0.0.1>\r\n"+
		"Call-ID: %[3]d@127.0.0.1\r\nCSeq: 1 %[1]s\r\nContact: <sip:%[2]s@127.0.0.1:5062>\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
		method, user, time.Now().UnixNano())
	cmd := exec.Command(servertest.Program(t, "sipsak", "sipsak"), "-L", "-vvv", "-f", "-", "-s", fmt.Sprintf("sip:100@127.0.0.1:%d", k.port))
	cmd.Stdin = strings.NewReader(request)
	out, _ := cmd.CombinedOutput() // it fails when the answer is not 200
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "SIP/2.0 ") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatalf("no answer:\n%s", out)
	return ""
}

func TestBlockAndUnblock(t *testing.T) {
	k := startKamailio(t)
	bin := servertest.Build(t, "kamailio")
	h := plugintest.Start(t, bin, map[string]any{"servers": []string{k.url()}, "token": token})
	n := 0
	deliver := func(eventType, client string) {
		t.Helper()
		n++
		e := plugintest.Event(t, n, eventType, client, map[string]any{"id": client, "balance": "-0.50"})
		for attempt := range 2 { // a repetition changes nothing
			res, err := h.Handle(t.Context(), plugintest.Attempt(e, attempt+1))
			if err != nil {
				t.Fatalf("%s: %v", eventType, err)
			}
			if shown := fmt.Sprintf("%+v%s%s", res, res.Request.Body, res.Response.Body); strings.Contains(shown, token) {
				t.Errorf("the token is shown: %s", shown)
			}
		}
	}
	expect := func(user, want string) {
		t.Helper()
		for _, method := range []string{"INVITE", "REGISTER"} {
			if got := k.ask(t, method, user); got != want {
				t.Errorf("%s of %s: %q, want %q", method, user, got, want)
			}
		}
	}
	const ok = "SIP/2.0 200 OK"
	expect("acme", ok)
	deliver("clients.balance_notzero", "4711") // it was not blocked
	expect("acme", ok)
	deliver("clients.balance_zero", "4711")
	expect("acme", "SIP/2.0 403 Blocked: clients.balance_zero")
	expect("acme-fax", "SIP/2.0 403 Blocked: clients.balance_zero")
	expect("other", ok)
	deliver("clients.balance_zero", "4712")
	deliver("clients.balance_notzero", "4711")
	expect("acme", ok)
	expect("acme-fax", ok)
	expect("other", "SIP/2.0 403 Blocked: clients.balance_zero")

	// A client that is archived stays out, whatever its balance does.
	deliver("clients.archive", "4711")
	deliver("clients.balance_notzero", "4711")
	deliver("clients.balance_zero", "4711")
	deliver("clients.balance_notzero", "4711")
	expect("acme", "SIP/2.0 403 Blocked: clients.archive")
	deliver("clients.delete", "4711")
	expect("acme", "SIP/2.0 403 Blocked: clients.delete")
}

func TestFaults(t *testing.T) {
	k := startKamailio(t)
	bin := servertest.Build(t, "kamailio")
	down := fmt.Sprintf("http://127.0.0.1:%d/RPC", servertest.Port(t))
	web := httptest.NewServer(http.RedirectHandler(k.url(), http.StatusFound)) // a server that is no Kamailio
	defer web.Close()
	login := []string{"{{.data.login}}"}
	for _, test := range []struct {
		name      string
		key       string // of the configuration, and what it is
		value     any
		event     string
		data      map[string]any
		want      string // of the error
		reason    handler.Reason
		permanent bool
	}{
		{name: "no such table", key: "table", value: "nosuch", want: "htable.sets: No such htable (500)", reason: handler.ReasonServerError},
		{
			name: "a wrong token", key: "token", value: "wrong", reason: handler.ReasonClientError,
			want: "the answer to htable.get is no JSON-RPC but HTTP status 403: is the path right, and does Kamailio let Billhook in?",
		},
		{name: "nobody listens", key: "servers", value: []string{down}, want: "connection refused", reason: handler.ReasonConnect},
		{name: "one of two is down", key: "servers", value: []string{down, k.url()}, want: "connection refused", reason: handler.ReasonConnect},
		{name: "no Kamailio", key: "servers", value: []string{web.URL}, want: "HTTP status 302", reason: handler.ReasonClientError},
		{
			name: "a method that is not there", key: "after_block", value: []Call{{Method: "dialog.nosuch"}},
			want: "dialog.nosuch: Method Not Found (500)", reason: handler.ReasonServerError,
		},
		{name: "another event", event: "clients.create", want: "nothing is to be done at clients.create", reason: handler.ReasonClientError, permanent: true},
		{
			name: "no key", key: "keys", value: login, data: map[string]any{"login": nil},
			want: "template {{.data.login}}: it makes nothing of this payload", reason: handler.ReasonPayload, permanent: true,
		},
		{
			name: "two lines", key: "keys", value: login, data: map[string]any{"login": "a\r\nb"},
			want: "control character", reason: handler.ReasonPayload, permanent: true,
		},
		{
			name: "no column", key: "keys", value: login, data: map[string]any{"name": "Acme"},
			want: "login", reason: handler.ReasonPayload, permanent: true,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := map[string]any{"servers": []string{k.url()}, "token": token}
			if test.key != "" {
				config[test.key] = test.value
			}
			h := plugintest.Start(t, bin, config)
			e := plugintest.Event(t, 1, cmp.Or(test.event, "clients.balance_zero"), "4711", test.data)
			res, err := h.Handle(t.Context(), plugintest.Attempt(e, 1))
			if err == nil || !strings.Contains(err.Error(), test.want) || handler.IsPermanent(err) != test.permanent || res.Reason != test.reason {
				t.Errorf("%v, permanent: %t, reason %s; want %s, %t, %s", err, handler.IsPermanent(err), res.Reason, test.want, test.permanent, test.reason)
			}
		})
		if test.name == "one of two is down" {
			if got := k.ask(t, "INVITE", "acme"); !strings.HasPrefix(got, "SIP/2.0 403") {
				t.Errorf("%q: the one of two that is up did not block", got)
			}
		}
	}
}

// TestRestart: a Kamailio that is away is told when it is back, over a new connection.
func TestRestart(t *testing.T) {
	k := startKamailio(t)
	bin := servertest.Build(t, "kamailio")
	h := plugintest.Start(t, bin, map[string]any{
		"servers": []string{k.url()}, "token": token, "keys": []string{"{{.event.object_id}}", "{{.data.login}}"},
	})
	event := func(n int, eventType string) *handler.Delivery {
		return plugintest.Attempt(plugintest.Event(t, n, eventType, "4711", map[string]string{"login": `a "b" é:%00`}), 1)
	}
	if _, err := h.Handle(t.Context(), event(1, "clients.balance_zero")); err != nil {
		t.Fatal(err)
	}
	k.Stop(t)
	if _, err := h.Handle(t.Context(), event(2, "clients.balance_notzero")); err == nil || handler.IsPermanent(err) {
		t.Fatalf("without a switch: %v", err)
	}
	k.Start(t)
	if _, err := h.Handle(t.Context(), event(2, "clients.balance_notzero")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Handle(t.Context(), event(3, "clients.balance_zero")); err != nil {
		t.Fatal(err)
	}
	if got := k.ask(t, "REGISTER", "acme"); !strings.HasPrefix(got, "SIP/2.0 403") {
		t.Error(got)
	}
}

func TestFurtherCalls(t *testing.T) {
	k := startKamailio(t)
	c := Config{
		Servers: []string{k.url()}, Token: plugins.NewSecret(token), Reopen: []string{"clients.update"},
		AfterBlock:   []Call{{Method: "htable.sets", Params: []any{"account", "{{.data.login}}", "0"}}},
		AfterUnblock: []Call{{Method: "htable.sets", Params: []any{"account", "{{.data.login}}", "{{.event.object_id}}"}}},
	}
	h, err := newSwitch(t.Context(), c, plugintest.Env(t))
	if err != nil {
		t.Fatal(err)
	}
	defer h.(*sipSwitch).Close()
	for i, step := range []struct{ event, want string }{
		{"clients.balance_zero", "SIP/2.0 200 OK"}, // no longer an account of the client's
		{"clients.archive", "SIP/2.0 200 OK"},
		{"clients.balance_notzero", "SIP/2.0 403 Blocked: clients.archive"}, // an account, and closed
		{"clients.update", "SIP/2.0 200 OK"},
	} {
		e := plugintest.Event(t, i, step.event, "4711", map[string]string{"login": "acme"})
		if _, err := h.Handle(t.Context(), plugintest.Delivery(e, 1)); err != nil {
			t.Fatalf("%s: %v", step.event, err)
		}
		if got := k.ask(t, "INVITE", "acme"); got != step.want {
			t.Errorf("after %s: %q, want %q", step.event, got, step.want)
		}
	}
}

// TestTLS: Kamailio behind a proxy that speaks TLS.
func TestTLS(t *testing.T) {
	k := startKamailio(t)
	target, err := url.Parse(k.url())
	if err != nil {
		t.Fatal(err)
	}
	target.Path = ""
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }})
	defer proxy.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{ca, ""} {
		h, err := newSwitch(t.Context(), Config{Servers: []string{proxy.URL + "/RPC"}, Token: plugins.NewSecret(token), CAFile: file}, plugintest.Env(t))
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Handle(t.Context(), plugintest.Delivery(plugintest.Event(t, 1, "clients.balance_zero", "4711", nil), 1))
		if file != "" && err != nil || file == "" && (err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority")) {
			t.Errorf("with %q: %v", file, err)
		}
		if err := h.(*sipSwitch).Close(); err != nil {
			t.Error(err)
		}
	}
	if got := k.ask(t, "INVITE", "acme"); !strings.HasPrefix(got, "SIP/2.0 403") {
		t.Error(got)
	}
}

// TestSuite: a bad network between the plugin and Kamailio.
func TestSuite(t *testing.T) {
	k := startKamailio(t)
	bin := servertest.Build(t, "kamailio")
	handlertest.RunClient(t, handlertest.Client{
		New: func(t *testing.T, address string) handler.Handler {
			return plugintest.Start(t, bin, map[string]any{"servers": []string{"http://" + address + "/RPC"}, "token": token})
		},
		Network: "tcp", Server: fmt.Sprintf("127.0.0.1:%d", k.port), Many: 32, Limit: plugintest.CaptureLimit, Secret: token, Grace: 2 * time.Second,
		Good: func(n int) *handler.Delivery {
			return plugintest.Attempt(plugintest.Event(t, n, "clients.balance_zero", fmt.Sprint(n), nil), 1)
		},
		Bad: func() *handler.Delivery {
			return plugintest.Attempt(plugintest.Event(t, 1, "clients.create", "4711", nil), 1)
		},
	})
}

// TestNothingStays: after attempts of all kinds no goroutine and no descriptor is left.
func TestNothingStays(t *testing.T) {
	k := startKamailio(t)
	before := handlertest.Snapshot()
	for _, table := range []string{"blocked", "nosuch"} {
		h, err := newSwitch(t.Context(), Config{Servers: []string{k.url()}, Token: plugins.NewSecret(token), Table: table}, plugintest.Env(t))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if i%5 == 4 {
				cancel()
			}
			_, err := h.Handle(ctx, plugintest.Delivery(plugintest.Event(t, i, "clients.balance_zero", "4711", nil), 1))
			if want := i%5 != 4 && table == "blocked"; (err == nil) != want {
				t.Errorf("attempt %d: %v", i, err)
			}
			cancel()
		}
		if err := h.(*sipSwitch).Close(); err != nil {
			t.Error(err)
		}
	}
	before.Check(t)
}

func TestConfig(t *testing.T) {
	const server = `"servers": ["http://127.0.0.1:5060/RPC"]`
	for _, good := range []string{server, server + `, "block": [], "close": []`, server + `, "keys": ["{{.data.login}}", "x:{{.event.object_id}}"]`} {
		if _, err := plugins.DecodeConfig[Config]([]byte("{"+good+"}"), ""); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		``:                                      "servers",
		`"servers": []`:                         "servers",
		`"servers": ["kamailio"]`:               "servers[0]: it is not a URL such as",
		`"servers": ["ftp://x/y"]`:              "servers[0]",
		`"servers": ["http://user:secret@x/y"]`: "servers[0]",
		server + `, "keys": ["{{.data.x"]`:      "keys[0]: ",
		server + `, "unblock": ["clients.balance_zero"]`:                "unblock[0]: the event stands under block already",
		server + `, "ca_file": "ca.pem"`:                                "ca_file: it must begin with /",
		server + `, "after_block": [{"params": ["x"]}]`:                 "after_block[0]",
		server + `, "after_block": [{"method": "a", "params": [null]}]`: "after_block[0].params[0]",
		server + `, "after_block": [{"method": "a", "params": ["{{"]}]`: "after_block[0].params[0]",
		server + `, "after_unblock": [{"method": "a", "params": [[]]}]`: "after_unblock[0].params[0]",
		server + `, "colour": 1`:                                        "colour",
	} {
		if _, err := plugins.DecodeConfig[Config]([]byte("{"+bad+"}"), ""); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%s: %v, want %s", bad, err, want)
		}
	}
}
