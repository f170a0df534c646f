package exchange_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/billhook/billhook/internal/handler/exchange"
)

func TestBuffer(t *testing.T) {
	const limit = 40 // 10 and 30
	for _, size := range []int{0, 1, 10, 11, 39, 40, 41, 70, 71, 1000, 12345} {
		for _, chunk := range []int{1, 7, 30, 31, 4096} {
			t.Run(fmt.Sprintf("%d in %ds", size, chunk), func(t *testing.T) {
				var in []byte
				for i := range size {
					in = append(in, 'a'+byte(i%26))
				}
				b := exchange.NewBuffer(limit)
				for p := in; len(p) > 0; p = p[min(chunk, len(p)):] {
					if n, err := b.Write(p[:min(chunk, len(p))]); n != min(chunk, len(p)) || err != nil {
						t.Fatalf("Write = %d, %v", n, err)
					}
				}
				want := string(in)
				if size > limit {
					want = fmt.Sprintf("%s\n[... %d bytes dropped ...]\n%s", in[:10], size-limit, in[size-30:])
				}
				if got := string(b.Bytes(nil)); got != want {
					t.Errorf("Bytes = %q\nwant    %q", got, want)
				}
				if got := b.Dropped(); got != int64(max(size-limit, 0)) {
					t.Errorf("Dropped = %d", got)
				}
			})
		}
	}
}

func TestBufferLastLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"\n\n":                             "",
		"one":                              "one",
		"one\n":                            "one",
		"one\ntwo":                         "two",
		"one\r\ntwo\r\n \n":                "two",
		strings.Repeat("x", 100):           "", // its beginning is gone
		strings.Repeat("x", 100) + "\nend": "end",
		"\n" + strings.Repeat("x", 25):     strings.Repeat("x", 25),
	} {
		b := exchange.NewBuffer(40)
		_, _ = b.Write([]byte(in))
		if got := string(b.LastLine()); got != want {
			t.Errorf("LastLine of %q = %q, want %q", in, got, want)
		}
	}
}

func TestMask(t *testing.T) {
	const secret = `s3cr+t/"w&rd`
	m := exchange.NewMask(secret, "abc", "", "s3cr+t")
	for _, form := range []string{
		secret, url.QueryEscape(secret), url.PathEscape(secret), `s3cr+t/\"w\u0026rd`,
		base64.StdEncoding.EncodeToString([]byte(secret)), "s3cr+t",
	} {
		got := string(m.Bytes([]byte("<" + form + "> abc")))
		if !strings.HasPrefix(got, "<***") || !strings.HasSuffix(got, "> abc") || strings.Contains(got, "s3cr") {
			t.Errorf("masking %q gives %q", form, got)
		}
	}
	clean := []byte("nothing to hide")
	if got := m.Bytes(clean); &got[0] != &clean[0] {
		t.Error("a text without secrets was copied")
	}
}

// TestMaskAtCuts cuts at every place around a secret: no part of it stays.
func TestMaskAtCuts(t *testing.T) {
	const secret = "QWERTYUIOPASDF"
	m := exchange.NewMask(secret)
	text := "........" + secret + "........"
	for n := range len(text) {
		if got := string(m.Prefix([]byte(text), n)); strings.ContainsAny(got, secret) {
			t.Errorf("prefix of %d: %q", n, got)
		}
	}
	for limit := 1; limit < 2*len(text); limit++ {
		b := exchange.NewBuffer(limit)
		_, _ = b.Write([]byte(text + text))
		got := strings.ReplaceAll(string(b.Bytes(m)), "bytes dropped", "")
		if strings.ContainsAny(got, secret) {
			t.Errorf("limit %d: %q", limit, got)
		}
	}
}

func TestLine(t *testing.T) {
	m := exchange.NewMask("hunter22")
	for _, tc := range []struct{ in, want string }{
		{"plain", "plain"},
		{" two\r\n\tlines \x00\x1b[31m", "two lines [31m"},
		{"bad \xff\xfe bytes", "bad � bytes"},
		{"reversed \u202e text", "reversed text"},
		{"pass hunter22", "pass ***"},
		{strings.Repeat("é", 40), strings.Repeat("é", 18) + "…"},
	} {
		got := m.Line(tc.in, 40)
		if got != tc.want {
			t.Errorf("Line(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestClasses(t *testing.T) {
	c, err := exchange.ParseClasses([]string{"2xx", "304"}, []string{"404", "500-503"}, []string{"504"}, 100, 599)
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[int]exchange.Class{
		199: exchange.Unclassified, 200: exchange.Success, 299: exchange.Success, 300: exchange.Unclassified, 304: exchange.Success,
		404: exchange.Retry, 503: exchange.Retry, 504: exchange.Permanent, 599: exchange.Unclassified,
	} {
		if got := c.Of(code); got != want {
			t.Errorf("class of %d is %s, want %s", code, got, want)
		}
	}
	for _, tc := range []struct {
		success, retry []string
		want           string
	}{
		{[]string{"600"}, nil, `success: code "600": want a number from 100 to 599 or a range such as 500-599`},
		{[]string{"ok"}, nil, `success: code "ok"`},
		{[]string{"300-200"}, nil, `success: code "300-200"`},
		{[]string{"2xx"}, []string{"204"}, `code "2xx" is success and "204" is retry: a code has one class`},
	} {
		if _, err := exchange.ParseClasses(tc.success, tc.retry, nil, 100, 599); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("error %v, want %s", err, tc.want)
		}
	}
}

func TestParseAnswer(t *testing.T) {
	for _, tc := range []struct {
		in, want, err string
	}{
		{`{}`, `{false  "" 0s}`, ""},
		{`{"stop":true,"reason":"vip\nclient","data":{"limit":1.10},"id":7}`, `{true vip client "{\"limit\":1.10}" 0s}`, ""},
		{`{"STOP":true,"Reason":"x"}`, `{false  "" 0s}`, ""},
		{`{"retry_after":1.5}`, `{false  "" 1.5s}`, ""},
		{`{"retry_after":"90s","stop":null,"data":null}`, `{false  "" 1m30s}`, ""},
		{`[1,2]`, `{false  "" 0s}`, ""},
		{`"ok"`, `{false  "" 0s}`, ""},
		{`null`, `{false  "" 0s}`, ""},
		{``, "", "it is not valid JSON"},
		{`{"stop":true`, "", "it is not valid JSON"},
		{`{"stop":"yes"}`, "", `its "stop" is not true or false`},
		{`{"reason":1}`, "", `its "reason" is not text`},
		{`{"data":[1]}`, "", `its "data" is not an object`},
		{`{"retry_after":"soon"}`, "", `its "retry_after" is neither`},
		{`{"retry_after":"-5s"}`, "", `its "retry_after" is neither`},
		{"{\"reason\":\"\xff\"}", "", "it is not UTF-8"},
		{`{"x":"` + strings.Repeat("x", exchange.MaxAnswer) + `"}`, "", "it is longer than 65536 bytes"},
		{`{"reason":"key is hunter22"}`, `{false key is *** "" 0s}`, ""},
	} {
		a, err := exchange.ParseAnswer([]byte(tc.in), exchange.NewMask("hunter22"))
		if tc.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), tc.err) {
				t.Errorf("ParseAnswer(%.60q): %v, want error %q", tc.in, err, tc.err)
			}
			continue
		}
		if got := fmt.Sprintf("{%t %s %q %s}", a.Stop, a.Reason, a.Data, a.RetryAfter); err != nil || got != tc.want {
			t.Errorf("ParseAnswer(%s) = %s, %v, want %s", tc.in, got, err, tc.want)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	for _, s := range []string{
		`{"stop":true,"reason":"vip","data":{"a":1}}`, `{ "data" : { } }`, `{"retry_after":1e400}`, `{"retry_after":"1h"}`,
		`{"stop":1}`, `[]`, `null`, `{"a":`, strings.Repeat("[", 100), `{"reason":"\u0000\ud800"}`,
	} {
		f.Add([]byte(s))
	}
	m := exchange.NewMask("hunter22")
	f.Fuzz(func(t *testing.T, in []byte) {
		a, err := exchange.ParseAnswer(in, m)
		if err != nil && (a.Stop || a.Reason != "" || a.Data != nil || a.RetryAfter != 0) {
			t.Fatalf("error %v, and yet an answer %+v", err, a)
		}
		if !utf8.ValidString(a.Reason) || strings.ContainsAny(a.Reason, "\r\n\x00") || strings.Contains(a.Reason, "hunter22") {
			t.Fatalf("reason %q is not fit to be shown", a.Reason)
		}
		if a.Data != nil && a.Data[0] != '{' {
			t.Fatalf("data %q is no object", a.Data)
		}
		if a.RetryAfter < 0 {
			t.Fatalf("retry after %s", a.RetryAfter)
		}
	})
}

func FuzzBuffer(f *testing.F) {
	f.Add([]byte("some text with hunter22 in it"), 10, 3)
	f.Add(bytes.Repeat([]byte("hunter22"), 20), 33, 5)
	f.Fuzz(func(t *testing.T, in []byte, limit, chunk int) {
		limit, chunk = min(max(limit, 0), 1<<12), min(max(chunk, 1), 1<<12)
		b := exchange.NewBuffer(limit)
		for p := in; len(p) > 0; p = p[min(chunk, len(p)):] {
			_, _ = b.Write(p[:min(chunk, len(p))])
		}
		if got, want := b.Dropped(), int64(max(len(in)-limit, 0)); got != want {
			t.Fatalf("dropped %d, want %d", got, want)
		}
		if len(in) <= limit && !bytes.Equal(b.Bytes(nil), in) {
			t.Fatalf("%q came back as %q", in, b.Bytes(nil))
		}
		if bytes.Contains(b.Bytes(exchange.NewMask("hunter22")), []byte("hunter22")) {
			t.Fatalf("secret in %q", b.Bytes(exchange.NewMask("hunter22")))
		}
		_ = b.LastLine()
	})
}
