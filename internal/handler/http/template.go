package http

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	texttemplate "text/template"
	"text/template/parse"
	"unicode"
	"unicode/utf8"

	"github.com/billhook/billhook/internal/event"
)

// maxRendered bounds what a template may make, in bytes.
const maxRendered = 16 << 10

// template is text with actions over the payload document, such as
// {{.event.object_id}} or {{.data.name}}. Every value that an action prints goes
// through one escaper, whether the author thought of it or not.
type template struct{ t *texttemplate.Template }

type headerTemplate struct {
	name string
	*template
}

// escaper turns a value into text that is safe where it stands.
type escaper func(v any) (string, error)

func parseTemplate(text string, escape escaper) (*template, error) {
	t, err := texttemplate.New("").
		Option("missingkey=error").
		Funcs(texttemplate.FuncMap{"_escape": func(v any) (string, error) { return escape(v) }}).
		Parse(text)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "template: :"))
	}
	if len(t.Templates()) != 1 {
		return nil, errors.New("a template inside a template is not supported")
	}
	if err := escapeActions(t.Root); err != nil {
		return nil, err
	}
	return &template{t}, nil
}

// escapeActions appends the escaper to every pipeline that prints, as
// html/template does with its own.
func escapeActions(n parse.Node) error {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := escapeActions(c); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		if len(n.Pipe.Decl) == 0 {
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{
				NodeType: parse.NodeCommand,
				Pos:      n.Pos,
				Args:     []parse.Node{parse.NewIdentifier("_escape").SetTree(nil).SetPos(n.Pos)},
			})
		}
	case *parse.IfNode:
		return errors.Join(escapeActions(n.List), escapeActions(n.ElseList))
	case *parse.WithNode:
		return errors.Join(escapeActions(n.List), escapeActions(n.ElseList))
	case *parse.TextNode, *parse.CommentNode:
	default:
		return fmt.Errorf("%s is not supported here: use {{.event...}}, {{.data...}}, if and with", n)
	}
	return nil
}

// render runs the template over doc.
func (t *template) render(doc map[string]any) (string, error) {
	var b bytes.Buffer
	if err := t.t.Execute(&b, doc); err != nil {
		var ee texttemplate.ExecError
		if errors.As(err, &ee) {
			err = ee.Err
		}
		return "", errors.New(strings.TrimPrefix(err.Error(), "template: :"))
	}
	if b.Len() > maxRendered {
		return "", fmt.Errorf("the template makes %d bytes: at most %d", b.Len(), maxRendered)
	}
	return b.String(), nil
}

// document returns the payload of e as templates see it. Numbers keep their
// digits.
func document(e *event.Event) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(e.AppendPayload(nil)))
	dec.UseNumber()
	var doc map[string]any
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("read the event's payload: %w", err)
	}
	return doc, nil
}

func plain(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	case int:
		return strconv.Itoa(v), nil
	case nil:
		return "", errors.New("the value is null: guard it with {{with}}")
	}
	return "", errors.New("the value is neither text nor a number")
}

// urlValue escapes all but unreserved characters, which is right in a path as
// well as in a query.
func urlValue(v any) (string, error) {
	s, err := plain(v)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String(), nil
}

// headerValue puts a space in place of whatever would end or break a header line.
func headerValue(v any) (string, error) {
	s, err := plain(v)
	if err != nil {
		return "", err
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s), nil
}
