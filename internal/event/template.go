package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
)

// maxTemplate bounds what a template may make, in bytes.
const maxTemplate = 64 << 20

// TemplateError is a mistake in a template's text. Line and Column count from 1;
// Column is 0 where it is not known.
type TemplateError struct {
	Line, Column int
	Text         string
}

func (e *TemplateError) Error() string { return e.Text }

// Template makes a Format of a Go text/template. It sees .event, .data, .changed
// and .unchanged of the Billhook payload, decoded, with numbers as they were
// written; a key that is not there is an error. {{json x}} writes any value as JSON.
//
// Of a template for JSON no value can break the result or add to it. What an action
// prints inside of quotes is escaped, and NULL is nothing there; outside of quotes
// it is written as JSON. And what comes out is judged: no JSON is an error. For any
// other content type an action prints a value's plain text: NULL is nothing, and an
// object or an array is JSON.
//
// place names a place in the template for people, for errors that show only when an
// event is written; nil counts from the template's own start.
func Template(text, contentType string, place func(line, column int) string) (Format, error) {
	if contentType == "" {
		contentType = contentJSON
	}
	if place == nil {
		place = func(line, column int) string { return fmt.Sprintf("line %d, column %d", line, column) }
	}
	isJSON := jsonType(contentType)
	if i := strings.IndexByte(text, segmentMark); i >= 0 {
		return nil, &TemplateError{Line: 1 + strings.Count(text[:i], "\n"), Text: "there is a NUL byte"}
	}
	show := plainText
	if isJSON {
		show = segment
	}
	t, err := template.New("body").Option("missingkey=error").Funcs(template.FuncMap{
		"json": toJSON, "printf": printf, "_print": show,
	}).Parse(text)
	if err != nil {
		return nil, templateError(err)
	}
	for _, one := range t.Templates() {
		if one.Tree != nil {
			wrapActions(one.Root)
		}
	}
	return func(e *Event) ([]byte, string, error) {
		fail := func(err error) ([]byte, string, error) {
			var at *TemplateError
			if errors.As(err, &at) {
				return nil, "", fmt.Errorf("write event %s by template, %s: %w", e.ID, place(at.Line, at.Column), err)
			}
			return nil, "", fmt.Errorf("write event %s by template, %s: %w", e.ID, place(1, 1), err)
		}
		var doc map[string]any
		dec := json.NewDecoder(bytes.NewReader(e.AppendPayload(nil)))
		dec.UseNumber()
		if err := dec.Decode(&doc); err != nil {
			return fail(err)
		}
		if doc["unchanged"] == nil {
			doc["unchanged"] = []any{}
		}
		if doc["dead"] == nil {
			doc["dead"] = nil // it may be asked for
		}
		out := bounded{left: maxTemplate}
		if err := t.Execute(&out, doc); err != nil {
			return fail(templateError(err))
		}
		if !isJSON {
			return out.b, contentType, nil
		}
		body, err := assemble(out.b)
		if err != nil {
			return fail(err)
		}
		if err := json.Unmarshal(body, &skipJSON{}); err != nil {
			var syntax *json.SyntaxError
			line := 1
			if errors.As(err, &syntax) {
				line += bytes.Count(body[:min(int(syntax.Offset), len(body))], []byte("\n"))
			}
			return fail(fmt.Errorf("what it makes is no JSON, at its line %d: %w", line, err))
		}
		return body, contentType, nil
	}, nil
}

// skipJSON takes any JSON value and keeps nothing of it.
type skipJSON struct{}

func (*skipJSON) UnmarshalJSON([]byte) error { return nil }

// jsonType reports whether a media type is JSON.
func jsonType(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		t, _, _ = strings.Cut(strings.ToLower(contentType), ";")
		t = strings.TrimSpace(t)
	}
	return t == "application/json" || t == "text/json" || strings.HasSuffix(t, "+json")
}

// templateError takes line, column and the plain text out of an error of
// text/template, "template: body:3:14: executing "body" at <.data.x>: text".
func templateError(err error) error {
	text, ok := strings.CutPrefix(err.Error(), "template: body:")
	if !ok {
		return err
	}
	e := &TemplateError{Line: 1}
	line, rest, _ := strings.Cut(text, ":")
	if n, err := strconv.Atoi(line); err == nil {
		e.Line, text = n, rest
	}
	if column, rest, ok := strings.Cut(text, ":"); ok {
		if n, err := strconv.Atoi(column); err == nil {
			e.Column, text = n+1, rest
		}
	}
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "executing ") {
		if _, at, ok := strings.Cut(text, " at <"); ok {
			text = "<" + at
		}
	}
	e.Text = text
	return e
}

// encoded is a value that {{json x}} has written.
type encoded string

func toJSON(v any) (encoded, error) {
	switch v := v.(type) {
	case string:
		return encoded(AppendJSONString(nil, v)), nil
	case encoded:
		return v, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return encoded(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), nil
}

// printf is Go's, but that numbers of the payload can be written with %d, %f and %s.
func printf(format string, args ...any) string {
	for i, a := range args {
		if n, ok := a.(json.Number); ok {
			args[i] = number(n)
		}
	}
	return fmt.Sprintf(format, args...)
}

type number json.Number

// Format writes the number by what the verb wants.
func (n number) Format(f fmt.State, verb rune) {
	format := fmt.FormatString(f, verb)
	switch verb {
	case 'd', 'x', 'X', 'o', 'b', 'c', 'U':
		if i, err := strconv.ParseInt(string(n), 10, 64); err == nil {
			_, _ = fmt.Fprintf(f, format, i) // a buffer takes all
			return
		}
	case 'e', 'E', 'f', 'F', 'g', 'G':
		if x, err := strconv.ParseFloat(string(n), 64); err == nil {
			_, _ = fmt.Fprintf(f, format, x)
			return
		}
	}
	_, _ = fmt.Fprintf(f, format, string(n))
}

// What an action of a JSON template prints is marked in the output, so that it can
// be told from the template's own text and be written as its place demands:
//
//	NUL kind text NUL
//
// The text of each kind has no NUL in it.
const (
	segmentMark = 0

	segmentText  = 's' // a string, as JSON
	segmentPlain = 'n' // a number or a boolean
	segmentNull  = '0'
	segmentTree  = 't' // an object or an array, as JSON
	segmentJSON  = 'j' // written by {{json x}}
)

func segment(v any) (string, error) {
	kind, text := byte(segmentTree), encoded("")
	var err error
	switch v := v.(type) {
	case nil:
		kind = segmentNull
	case encoded:
		kind, text = segmentJSON, v
	case string:
		kind = segmentText
		text, err = toJSON(v)
	case json.Number, bool, int, int64, float64:
		kind = segmentPlain
		text, err = toJSON(v)
	default:
		text, err = toJSON(v)
	}
	return string(rune(segmentMark)) + string(rune(kind)) + string(text) + string(rune(segmentMark)), err
}

// plainText is what an action prints where nothing has to be escaped.
func plainText(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	text, err := toJSON(v)
	return string(text), err
}

// assemble puts the segments in, each as its place demands.
func assemble(out []byte) ([]byte, error) {
	b := make([]byte, 0, len(out))
	quoted := false
	for i := 0; i < len(out); i++ {
		c := out[i]
		if c != segmentMark {
			b = append(b, c)
			switch {
			case c == '"':
				quoted = !quoted
			case c == '\\' && quoted && i+1 < len(out) && out[i+1] != segmentMark:
				i++
				b = append(b, out[i])
			}
			continue
		}
		n := bytes.IndexByte(out[i+2:], segmentMark)
		kind, text := out[i+1], out[i+2:i+2+n]
		i += n + 2
		switch {
		case quoted && kind == segmentNull:
		case quoted && kind == segmentText:
			b = append(b, text[1:len(text)-1]...)
		case quoted && kind == segmentTree:
			escaped := AppendJSONString(nil, text)
			b = append(b, escaped[1:len(escaped)-1]...)
		case quoted && kind == segmentJSON:
			return nil, fmt.Errorf("{{json ...}} stands inside of quotes, after %q: remove the quotes, or json", tailOf(b))
		case kind == segmentNull:
			b = append(b, "null"...)
		default:
			b = append(b, text...)
		}
	}
	return b, nil
}

// tailOf is the last few bytes of the line that b ends with.
func tailOf(b []byte) []byte {
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	return b[max(0, len(b)-30):]
}

// wrapActions lets _print write what every action below n prints.
func wrapActions(n parse.Node) {
	branch := func(b *parse.BranchNode) {
		wrapActions(b.List)
		wrapActions(b.ElseList)
	}
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return
		}
		for _, c := range n.Nodes {
			wrapActions(c)
		}
	case *parse.ActionNode:
		if len(n.Pipe.Decl) == 0 {
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{
				NodeType: parse.NodeCommand, Pos: n.Pos,
				Args: []parse.Node{parse.NewIdentifier("_print").SetTree(nil).SetPos(n.Pos)},
			})
		}
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	}
}

// bounded is a buffer that takes so much and no more.
type bounded struct {
	b    []byte
	left int
}

func (w *bounded) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, fmt.Errorf("it makes more than %d bytes", maxTemplate)
	}
	w.b = append(w.b, p...)
	return len(p), nil
}
