package fill

import (
	"strings"
	"testing"

	"github.com/billhook/billhook/plugins"
)

func document(t testing.TB, payload string) map[string]any {
	t.Helper()
	doc, err := Document(&plugins.Delivery{Payload: []byte(payload)})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestText(t *testing.T) {
	doc := document(t, `{"event":{"object_id":12345678901234567890},"data":{"name":"A<b>&\"c\"\r\nX: y","balance":"-0.50","note":null,"tags":["a",1],"on":true,"":1}}`)
	for _, test := range []struct{ template, want, err string }{
		{"plain", "plain", ""},
		{"{{.event.object_id}}", "12345678901234567890", ""},
		{"{{.data.name}}", "A<b>&\"c\"\r\nX: y", ""},
		{"[{{.data.note}}]", "[]", ""},
		{"{{.data.tags}} {{json .data.name}}", `["a",1] "A<b>&\"c\"\r\nX: y"`, ""},
		{"{{range .data.tags}}<{{.}}>{{end}}", "<a><1>", ""},
		{"{{if .data.on}}yes{{else}}{{.data.x}}{{end}} {{with .data.note}}{{.}}{{else}}none{{end}}", "yes none", ""},
		{`{{define "x"}}{{.data.note}}!{{end}}{{template "x" .}}`, "!", ""},
		{`{{$n := .data.balance}}{{printf "%s EUR" $n}}`, "-0.50 EUR", ""},
		{"{{.data.nosuch}}", "", `at <.data.nosuch>: map has no entry for key "nosuch"`},
		{`{{printf "%1048577s" "x"}}`, "", "it makes more than 1048576 bytes"},
	} {
		x, err := Parse(test.template)
		if err != nil {
			t.Fatal(err)
		}
		got, err := x.Text(doc)
		if test.err == "" {
			if err != nil || got != test.want {
				t.Errorf("%s: %q, %v", test.template, got, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: %q, %v, want %s", test.template, got, err, test.err)
		}
	}
	for _, bad := range []string{"{{", "{{.data.x", "{{nosuch .data}}", "{{end}}"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestLine(t *testing.T) {
	for payload, ok := range map[string]bool{
		`{"data":{"x":"Acme"}}`: true, `{"data":{"x":"é ü"}}`: true,
		`{"data":{"x":""}}`: false, `{"data":{"x":"  "}}`: false, `{"data":{"x":null}}`: false,
		`{"data":{"x":"a\nb"}}`: false, `{"data":{"x":"a\rb"}}`: false, `{"data":{"x":"a\u0000"}}`: false, `{"data":{"x":"a\u2028b"}}`: false,
	} {
		x, err := Parse("{{.data.x}}")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := x.Line(document(t, payload)); (err == nil) != ok {
			t.Errorf("%s: %q, %v", payload, got, err)
		}
	}
}

func TestHTML(t *testing.T) {
	doc := document(t, `{"data":{"name":"<script>alert('x')</script>","url":"javascript:alert(1)","note":null,"n":1.50}}`)
	for text, want := range map[string]string{
		"<p>{{.data.name}}</p>":             "<p>&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</p>",
		`<a href="{{.data.url}}">x</a>`:     `<a href="#ZgotmplZ">x</a>`,
		"<b>{{.data.note}}|{{.data.n}}</b>": "<b>|1.50</b>",
		`<a title="{{.data.name}}">`:        `<a title="&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;">`,
	} {
		x, err := ParseHTML(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := x.Text(doc); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", text, got, err, want)
		}
	}
	for _, bad := range []string{"{{", "{{nosuch}}", `<a href="{{.data.x}}`} {
		if _, err := ParseHTML(bad); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	x, err := ParseHTML("{{.data.nosuch}}")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := x.Text(doc); err == nil {
		t.Errorf("a column that is not there made %s", got)
	}
}

func TestDocument(t *testing.T) {
	for _, bad := range []string{"", "no", "[]", "null", `"x"`, "{"} {
		if doc, err := Document(&plugins.Delivery{Payload: []byte(bad)}); err == nil {
			t.Errorf("%s: %v", bad, doc)
		}
	}
}

// FuzzText: whatever a payload holds, a template that is made for it never makes a
// second line of it, nor breaks off.
func FuzzText(f *testing.F) {
	f.Add(`{"data":{"x":"a"}}`)
	f.Add(`{"data":{"x":"a\r\nBcc: x"}}`)
	f.Add(`{"data":{"x":{"y":[1e999,null]}}}`)
	x, err := Parse(`{{with .data}}{{with index . "x"}}{{.}}{{end}}{{end}}`)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		doc, err := Document(&plugins.Delivery{Payload: []byte(payload)})
		if err != nil {
			return
		}
		if line, err := x.Line(doc); err == nil && strings.ContainsAny(line, "\r\n\x00") {
			t.Errorf("%q", line)
		}
	})
}
