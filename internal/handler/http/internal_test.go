package http

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	nethttp "net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/exchange"
	"github.com/billhook/billhook/internal/wal"
)

// TestKnownAnswer is the vector that the Standard Webhooks libraries share.
func TestKnownAnswer(t *testing.T) {
	s, err := newSigner("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	h := nethttp.Header{}
	if err := sign(h, []signer{s}, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"webhook-id":        "msg_p5jXN8AQM9LWM0D4loKWxJek",
		"webhook-timestamp": "1614265330",
		"webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestNewSignerErrors(t *testing.T) {
	for text, want := range map[string]string{
		"hunter2 is my secret!!": "not base64",
		"whsec_changeme":         "decodes to 6 bytes",
		"whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65)): "decodes to 65 bytes",
	} {
		_, err := newSigner(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("newSigner(%q) = %v, want an error with %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), strings.TrimPrefix(text, "whsec_")) {
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
}

func TestGuard(t *testing.T) {
	for _, tc := range []struct {
		addr             string
		standard, strict string // part of the refusal; empty if let through
	}{
		{"169.254.169.254", "link-local", "link-local"},
		{"169.254.0.1", "link-local", "link-local"},
		{"fe80::1%eth0", "link-local", "link-local"},
		{"fd00:ec2::254", "metadata", "metadata"},
		{"fd20:ce::254", "metadata", "metadata"},
		{"100.100.100.200", "metadata", "metadata"},
		{"168.63.129.16", "metadata", "metadata"},
		{"224.0.0.1", "not the address of one host", "not the address of one host"},
		{"255.255.255.255", "not the address of one host", "not the address of one host"},
		{"ff02::1", "not the address of one host", "not the address of one host"},

		// Ways to write an IPv4 address in an IPv6 one.
		{"::ffff:169.254.169.254", "link-local", "link-local"},
		{"::ffff:0:169.254.169.254", "leads to 169.254.169.254", "leads to"},
		{"::169.254.169.254", "leads to 169.254.169.254", "leads to"},
		{"64:ff9b::169.254.169.254", "leads to 169.254.169.254", "leads to"},
		{"64:ff9b:1:a9fe:a9:fe00::", "leads to 169.254.169.254", "leads to"},
		{"64:ff9b:1::169.254.169.254", "leads to 169.254.169.254", "leads to"},
		{"2002:a9fe:a9fe::1", "leads to 169.254.169.254", "leads to"},
		{"2001:0:a9fe:a9fe::1", "leads to 169.254.169.254", "leads to"},
		{"2001:0:808:808:0:0:5601:5601", "leads to 169.254.169.254", "leads to"},
		{"2a00::5efe:169.254.169.254", "leads to 169.254.169.254", "leads to"},
		{"2a00::200:5efe:169.254.169.254", "leads to 169.254.169.254", "leads to"},

		{"127.0.0.1", "", "loopback"},
		{"::1", "", "loopback"},
		{"10.1.2.3", "", "private"},
		{"172.16.0.1", "", "private"},
		{"192.168.1.1", "", "private"},
		{"fd12:3456::1", "", "private"},
		{"::ffff:10.0.0.1", "", "private"},
		{"64:ff9b::10.0.0.1", "", "leads to 10.0.0.1"},
		{"2002:7f00:1::", "", "leads to 127.0.0.1"},
		{"0.0.0.0", "", "reserved"},
		{"::", "", "reserved"},
		{"0.1.2.3", "", "reserved"},
		{"100.64.0.1", "", "reserved"},
		{"192.0.0.8", "", "reserved"},
		{"192.0.2.1", "", "reserved"},
		{"198.19.0.1", "", "reserved"},
		{"240.0.0.1", "", "reserved"},
		{"2001:db8::1", "", "reserved"},
		{"fec0::1", "", "reserved"},

		{"8.8.8.8", "", ""},
		{"100.128.0.1", "", ""},
		{"172.32.0.1", "", ""},
		{"2606:4700::1111", "", ""},
		{"64:ff9b::8.8.8.8", "", ""},
	} {
		addr := netip.MustParseAddr(tc.addr)
		for _, strict := range []bool{false, true} {
			g, err := newGuard(Addresses{DenyPrivate: strict})
			if err != nil {
				t.Fatal(err)
			}
			want := tc.standard
			if strict {
				want = tc.strict
			}
			err = g.check(addr)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s, strict %t: %v, want %q", tc.addr, strict, err, want)
			}
		}
	}
}

func TestGuardLists(t *testing.T) {
	g, err := newGuard(Addresses{
		DenyPrivate: true,
		Deny:        []string{"8.8.8.0/24", "2606:4700::1111"},
		Allow:       []string{"10.1.0.0/16", "8.8.8.8", "::ffff:192.168.7.0/120", "169.254.7.7"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for addr, ok := range map[string]bool{
		"10.1.2.3": true, "10.2.0.1": false, "8.8.8.8": true, "8.8.8.9": false, "192.168.7.9": true, "192.168.8.9": false,
		"::ffff:10.1.2.3": true, "64:ff9b::10.1.2.3": false, "2606:4700::1111": false, "169.254.7.7": true, "169.254.169.254": false,
		"1.1.1.1": false, "2606:4700::1112": false, // nothing against them, but they are not listed
	} {
		if err := g.check(netip.MustParseAddr(addr)); (err == nil) != ok {
			t.Errorf("%s: %v, want let through: %t", addr, err, ok)
		}
	}
	for _, bad := range []string{"10.0.0.0/33", "example.com", "fe80::1%eth0", "::ffff:0.0.0.0/90", ""} {
		if _, err := newGuard(Addresses{Deny: []string{bad}}); err == nil {
			t.Errorf("deny %q was taken", bad)
		}
	}
}

// FuzzGuard looks for a way to write a forbidden IPv4 address that gets through.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{"::ffff:169.254.1.2", "2002:a9fe:102::", "fe80::1%x", "::", "1.2.3.4"} {
		f.Add(s)
	}
	g, err := newGuard(Addresses{DenyPrivate: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return
		}
		a, b := g.check(addr), g.check(addr.Unmap().WithZone(""))
		if (a == nil) != (b == nil) {
			t.Fatalf("%s: %v, and unmapped %v", addr, a, b)
		}
		if a == nil && (addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast()) {
			t.Fatalf("%s got through", addr)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		value, date string
		want        time.Duration
		ok          bool
	}{
		{"", "", 0, false},
		{"120", "", 2 * time.Minute, true},
		{" 5 ", "", 5 * time.Second, true},
		{"0", "", 0, false},
		{"-1", "", 0, false},
		{"1.5", "", 0, false},
		{"99999999999999999999999", "", 1e9 * time.Second, true},
		{"Mon, 23 Nov 2026 10:01:00 GMT", "", time.Minute, true},
		{"Monday, 23-Nov-26 10:01:00 GMT", "", time.Minute, true},
		{"Mon Nov 23 10:01:00 2026", "", time.Minute, true},
		{"Mon, 23 Nov 2026 09:59:00 GMT", "", -time.Minute, false},
		{"Mon, 23 Nov 2026 12:01:00 GMT", "Mon, 23 Nov 2026 12:00:30 GMT", 30 * time.Second, true}, // a fast clock
		{"soon", "", 0, false},
	} {
		h := nethttp.Header{"Retry-After": {tc.value}}
		if tc.date != "" {
			h.Set("Date", tc.date)
		}
		if got, ok := retryAfter(h, now); ok != tc.ok || ok && got != tc.want {
			t.Errorf("Retry-After %q with Date %q: %s, %t, want %s, %t", tc.value, tc.date, got, ok, tc.want, tc.ok)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"120", "Mon, 23 Nov 2026 10:01:00 GMT", "-1", "9e9", "99999999999999999999", "Mon Nov 23 10:01:00 0000"} {
		f.Add(s, "Mon, 23 Nov 2026 10:00:00 GMT")
	}
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value, date string) {
		if d, ok := retryAfter(nethttp.Header{"Retry-After": {value}, "Date": {date}}, now); ok && d <= 0 {
			t.Fatalf("%q, %q: %s", value, date, d)
		}
	})
}

func testEvent(name string) *event.Event {
	return &event.Event{
		ID: event.ID{Generation: 1, CommitLSN: wal.LSN(0x16B374D848), Ordinal: 3}, Type: "clients.update", Entity: "clients",
		Object: "4711", Lane: "4711", Source: "billing", ObjectJSON: []byte("4711"),
		Data: append(event.AppendJSONString([]byte(`{"big":12345678901234567890.10,"none":null,"list":[1],"name":`), name), '}'),
	}
}

func TestURLTemplate(t *testing.T) {
	for _, tc := range []struct{ url, name, want, err string }{
		{"https://h/c/{{.event.object_id}}/up?n={{.data.name}}", "a b&c=d/é?#", "https://h/c/4711/up?n=a%20b%26c%3Dd%2F%C3%A9%3F%23", ""},
		{"https://h/{{.data.name}}/x", "a/b", "https://h/a%2Fb/x", ""},
		{"https://h/?b={{.data.big}}", "", "https://h/?b=12345678901234567890.10", ""},
		{"https://h/{{if .data.none}}x{{else}}{{.event.id}}{{end}}", "", "https://h/1-16%2FB374D848-3", ""},
		{"https://h/{{with .data.none}}{{.}}{{end}}", "", "https://h/", ""},
		{"https://h/{{.data.name}}/x", "..", "", `makes a path with ".." in it`},
		{"https://h/.{{.data.name}}/x", ".", "", `makes a path with ".." in it`},
		{"https://h/?n={{.data.name}}", "..", "https://h/?n=..", ""},
		{"https://h/{{.data.none}}", "", "", "the value is null"},
		{"https://h/{{.data.list}}", "", "", "neither text nor a number"},
		{"https://h/{{.data.nmae}}", "", "", "nmae"},
	} {
		target, err := parseTarget(tc.url, false)
		if err != nil {
			t.Errorf("%s: %v", tc.url, err)
			continue
		}
		doc, err := document(testEvent(tc.name))
		if err != nil {
			t.Fatal(err)
		}
		u, err := target.resolve(doc)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s with %q: %v, want an error with %q", tc.url, tc.name, err, tc.err)
			}
		case err != nil:
			t.Errorf("%s with %q: %v", tc.url, tc.name, err)
		case u.String() != tc.want:
			t.Errorf("%s with %q = %s, want %s", tc.url, tc.name, u, tc.want)
		}
	}
	for text, want := range map[string]string{
		"https://{{.data.name}}/x":              "scheme and host must be fixed",
		"https://h{{.data.name}}/x":             "scheme and host must be fixed",
		"{{.data.name}}":                        "scheme",
		"https://h/{{.data.name":                "unclosed action",
		"https://h/{{range .data}}{{.}}{{end}}": "not supported",
		"https://h/{{define \"x\"}}{{end}}":     "not supported",
		"https://h/{{nosuch .data}}":            "nosuch",
	} {
		if _, err := parseTarget(text, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseTarget(%s) = %v, want an error with %q", text, err, want)
		}
	}
}

// FuzzURLTemplate looks for a value that leaves its place in the URL, and for one
// that breaks a header line.
func FuzzURLTemplate(f *testing.F) {
	for _, s := range []string{"a", "..", "/../", "?x=1#", "%2e%2e", "a\r\nX: y", "\x00", "é\xff", "@evil.example/", "{{.x}}"} {
		f.Add(s)
	}
	target, err := parseTarget("https://h.example/a/{{.data.name}}/b?q={{.data.name}}&r=1", false)
	if err != nil {
		f.Fatal(err)
	}
	header, err := parseTemplate("name {{.data.name}}", headerValue)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		doc, err := document(testEvent(name))
		if err != nil {
			t.Fatal(err)
		}
		if u, err := target.resolve(doc); err == nil {
			escaped := u.EscapedPath()
			if u.Host != "h.example" || strings.Count(escaped, "/") != 3 || !strings.HasPrefix(escaped, "/a/") || !strings.HasSuffix(escaped, "/b") ||
				len(u.Query()) != 2 || u.Query().Get("r") != "1" || u.Fragment != "" {
				t.Fatalf("%q makes %s", name, u)
			}
			if utf8.ValidString(name) && u.Query().Get("q") != name {
				t.Fatalf("%q arrives as %q", name, u.Query().Get("q"))
			}
		}
		if v, err := header.render(doc); err == nil && strings.ContainsAny(v, "\r\n\x00") {
			t.Fatalf("%q makes the header %q", name, v)
		}
	})
}

// FuzzResponse judges whatever a server may send.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"stop\":true}",
		"HTTP/1.1 301 Moved\r\nLocation: //user:hunter22@%zz/?a&b=c\r\n\r\n",
		"HTTP/1.1 503 Busy\r\nRetry-After: 99999999999\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HTTP/1.0 999 \xff\xfe\r\nX: \x1b[2J\r\nContent-Type: text/plain\r\n\r\n\xff hunter22",
		"HTTP/1.1 410 Gone\r\nContent-Type: application/json\r\n\r\n{\"reason\":\"hunter22\"}",
	} {
		f.Add([]byte(s))
	}
	h, err := New(Options{URL: "https://h.example/x", BearerToken: "hunter22", CaptureLimit: 50})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		req, err := nethttp.NewRequest("POST", "https://h.example/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := nethttp.ReadResponse(bufio.NewReader(bytes.NewReader(in)), req)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		a := attempt{h: h, parent: context.Background(), ctx: context.Background(), shown: "https://h.example/x"}
		res, err := a.judge(handler.Result{}, resp)
		if (err == nil) != (res.Reason == "") || err != nil && !slices.Contains(handler.Reasons(), res.Reason) {
			t.Fatalf("reason %q with error %v", res.Reason, err)
		}
		text := fmt.Sprint(err)
		for _, l := range append(res.Response.Head, text) {
			if !utf8.ValidString(l) || strings.ContainsFunc(l, unicode.IsControl) {
				t.Fatalf("not fit to be shown: %q", l)
			}
			text += l
		}
		if strings.Contains(text+string(res.Response.Body)+res.Answer.Reason, "hunter22") {
			t.Fatalf("the secret is shown: %q %q", text, res.Response.Body)
		}
		if len(res.Response.Body) > 50+len(exchange.Masked) || res.Response.Truncated < 0 || len(res.Response.Head) > maxHeadLines+10 {
			t.Fatalf("%d bytes kept, %d truncated, %d lines", len(res.Response.Body), res.Response.Truncated, len(res.Response.Head))
		}
		if d, ok := handler.RetryDelay(err); ok && (d <= 0 || d > DefaultRetryAfterMax || handler.IsPermanent(err)) {
			t.Fatalf("delay %s with %v", d, err)
		}
	})
}
