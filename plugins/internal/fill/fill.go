// Package fill has the templates that the configuration of the plugins shipped here
// may hold: Go's text/template over the payload, as in handlers.yaml itself, such as
// {{.event.object_id}} or {{.data.name}}.
//
// It promises that a column which is not there is an error and not "<no value>", that
// NULL is nothing and numbers keep their digits, and that what is made is bounded. It
// escapes nothing: where a line end could do harm the caller uses Line. Start with
// Parse and Document.
package fill

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io"
	"strings"
	"text/template"
	"text/template/parse"
	"unicode"

	"github.com/billhook/billhook/plugins"
)

// max is how many bytes a template may make.
const max = 1 << 20

// Document returns a delivery's payload as templates see it. A payload that is no JSON
// object is an error that is permanent.
func Document(d *plugins.Delivery) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(d.Payload))
	dec.UseNumber()
	var doc map[string]any
	if err := dec.Decode(&doc); err != nil || doc == nil {
		return nil, plugins.Permanent(plugins.Because(plugins.CausePayload,
			errors.New("the payload is no JSON object: let the handler's format be billhook or provisioning")))
	}
	return doc, nil
}

// Template is a text with actions. It is safe for use by many goroutines.
type Template struct {
	t interface {
		Execute(w io.Writer, doc any) error
	}
	text string // for errors
}

// Parse reads a template, which may call the functions of more as well. Its error is
// fit for the operator.
func Parse(text string, more ...template.FuncMap) (*Template, error) {
	t := template.New("").Option("missingkey=error").Funcs(Funcs())
	for _, m := range more {
		t.Funcs(m)
	}
	t, err := t.Parse(text)
	if err != nil {
		return nil, plain(err)
	}
	for _, one := range t.Templates() {
		if one.Tree != nil {
			wrap(one.Root)
		}
	}
	return &Template{t, text}, nil
}

// ParseHTML reads a template of HTML. Values that its actions print are escaped for
// where they stand, by html/template.
func ParseHTML(text string) (*Template, error) {
	t, err := htmltemplate.New("").Option("missingkey=error").Funcs(Funcs()).Parse(text)
	if err != nil {
		return nil, plain(err)
	}
	for _, one := range t.Templates() {
		if one.Tree != nil {
			wrap(one.Tree.Root)
		}
	}
	// It looks for the contexts of its actions when it is first executed.
	if err := t.Execute(io.Discard, map[string]any{}); err != nil {
		if e := (*htmltemplate.Error)(nil); errors.As(err, &e) {
			return nil, errors.New(e.Description)
		}
	}
	return &Template{t, "of HTML"}, nil
}

// Funcs is what templates may call beside Go's own functions.
func Funcs() template.FuncMap {
	return template.FuncMap{"json": toJSON, "_print": show}
}

// Text returns what the template makes of a document. An error is permanent: another
// attempt would make the same.
func (t *Template) Text(doc map[string]any) (string, error) {
	b := bounded{left: max}
	if err := t.t.Execute(&b, doc); err != nil {
		return "", t.fail(plain(err))
	}
	return string(b.b), nil
}

// Line is Text for what must be one line, not empty: anything else is an error.
func (t *Template) Line(doc map[string]any) (string, error) {
	text, err := t.Text(doc)
	if err != nil {
		return "", err
	}
	switch {
	case strings.TrimSpace(text) == "":
		return "", t.fail(errors.New("it makes nothing of this payload"))
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }):
		return "", t.fail(errors.New("what it makes has a line end or another control character"))
	}
	return text, nil
}

func (t *Template) fail(err error) error {
	return plugins.Permanent(plugins.Because(plugins.CausePayload, fmt.Errorf("template %s: %w", t.text, err)))
}

// plain is a template's error without what only its author cares for.
func plain(err error) error {
	if e := (template.ExecError{}); errors.As(err, &e) {
		err = e.Err
	}
	text := strings.TrimPrefix(err.Error(), "html/")
	return errors.New(strings.TrimPrefix(text, "template: :"))
}

// wrap has each action that prints print with show.
func wrap(n parse.Node) {
	list := func(l *parse.ListNode) {
		if l == nil {
			return
		}
		for _, c := range l.Nodes {
			wrap(c)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		list(n)
	case *parse.ActionNode:
		if len(n.Pipe.Decl) == 0 {
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{
				NodeType: parse.NodeCommand, Pos: n.Pos, Args: []parse.Node{parse.NewIdentifier("_print").SetTree(nil).SetPos(n.Pos)},
			})
		}
	case *parse.IfNode:
		list(n.List)
		list(n.ElseList)
	case *parse.WithNode:
		list(n.List)
		list(n.ElseList)
	case *parse.RangeNode:
		list(n.List)
		list(n.ElseList)
	}
}

// show is a value as text: NULL is nothing, objects and arrays are JSON.
func show(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case map[string]any, []any:
		return toJSON(v)
	}
	return fmt.Sprint(v), nil
}

func toJSON(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

type bounded struct {
	b    []byte
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > b.left {
		return 0, fmt.Errorf("it makes more than %d bytes", max)
	}
	b.left -= len(p)
	b.b = append(b.b, p...)
	return len(p), nil
}
