package config

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// SetStatus returns the text of a handlers.yaml with the status of one handler changed
// and all else as it was: comments, order, quotes, line ends. The text must have been
// loaded without a mistake. An error says what about the text cannot be changed here.
func SetStatus(name string, text []byte, id int, status Status) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	item, err := handlerNode(name, &doc, id)
	if err != nil {
		return nil, err
	}
	by := func(n *yaml.Node, format string, args ...any) error {
		return fmt.Errorf("%s:%d:%d: %s; change it in the file", name, n.Line, n.Column, fmt.Sprintf(format, args...))
	}
	lines := splitLines(text)
	_, value := field(item, "status")
	switch {
	case value != nil && (value.Kind != yaml.ScalarNode || value.Anchor != "" || value.Style&(yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) != 0):
		return nil, by(value, "the status of handler %d is not written as a plain word", id)
	case value != nil:
		n, ok := token(lines, value)
		if !ok {
			return nil, by(value, "the status of handler %d stands over several lines", id)
		}
		replace(lines, value.Line, value.Column, n, string(status))
	default:
		key, value := field(item, "id")
		n, ok := token(lines, value)
		if !ok || value.Kind != yaml.ScalarNode {
			return nil, by(value, "the id of handler %d is not written as a number", id)
		}
		if item.Style&yaml.FlowStyle != 0 {
			replace(lines, value.Line, value.Column+n, 0, ", status: "+string(status))
			break
		}
		at := value.Line
		if k, v := field(item, "name"); v != nil && k.Line == at+1 && k.Column == key.Column && v.Line == k.Line && v.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 && oneLine(lines, item, v) {
			at = v.Line
		}
		line := lines[at-1]
		end := line[len(strings.TrimRight(line, "\r\n")):]
		added := strings.Repeat(" ", key.Column-1) + "status: " + string(status)
		if end == "" { // the last line of the file
			lines[at-1] += "\n" + added
		} else {
			lines[at-1] += added + end
		}
	}
	out := []byte(strings.Join(lines, ""))
	if err := onlyStatus(name, text, out, id, status); err != nil {
		return nil, fmt.Errorf("%w; change the status in the file", err)
	}
	return out, nil
}

// handlerNode finds the mapping of a handler.
func handlerNode(name string, doc *yaml.Node, id int) (*yaml.Node, error) {
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		if _, list := field(doc.Content[0], "handlers"); list != nil && list.Kind == yaml.SequenceNode {
			for _, item := range list.Content {
				_, v := field(item, "id")
				if v == nil && item.Kind == yaml.AliasNode {
					continue
				}
				if n, err := strconv.Atoi(scalarText(v)); err == nil && n == id {
					if k, _ := field(item, "<<"); k != nil {
						return nil, fmt.Errorf("%s:%d:%d: handler %d takes values from elsewhere (<<); change it in the file", name, k.Line, k.Column, id)
					}
					return item, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("%s: handler %d is not written there as it is; change it in the file", name, id)
}

func scalarText(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

// field finds a key of a mapping and its value.
func field(n *yaml.Node, name string) (key, value *yaml.Node) {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// oneLine reports that a plain or quoted scalar of a block mapping ends on its line:
// nothing of it is on the next.
func oneLine(lines []string, item, v *yaml.Node) bool {
	if v.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
		_, ok := token(lines, v)
		return ok
	}
	for _, n := range item.Content {
		if n.Line == v.Line+1 {
			return true // another key begins there
		}
	}
	_, ok := token(lines, v)
	return ok
}

// splitLines cuts text after each line end, which stays.
func splitLines(text []byte) []string {
	var lines []string
	for line := range bytes.Lines(text) {
		lines = append(lines, string(line))
	}
	return lines
}

// token returns how many characters a scalar takes in the text, false when it is not
// on one line as it is.
func token(lines []string, n *yaml.Node) (int, bool) {
	if n == nil || n.Line < 1 || n.Line > len(lines) {
		return 0, false
	}
	rest := []rune(lines[n.Line-1])
	if n.Column-1 > len(rest) {
		return 0, false
	}
	rest = rest[n.Column-1:]
	switch {
	case n.Style&yaml.DoubleQuotedStyle != 0:
		for i := 1; i < len(rest); i++ {
			switch rest[i] {
			case '\\':
				i++
			case '"':
				return i + 1, true
			}
		}
		return 0, false
	case n.Style&yaml.SingleQuotedStyle != 0:
		for i := 1; i < len(rest); i++ {
			if rest[i] == '\'' {
				if i+1 < len(rest) && rest[i+1] == '\'' {
					i++
					continue
				}
				return i + 1, true
			}
		}
		return 0, false
	}
	if !strings.HasPrefix(string(rest), n.Value) {
		return 0, false
	}
	return utf8.RuneCountInString(n.Value), true
}

// replace puts text in place of n characters.
func replace(lines []string, line, column, n int, text string) {
	r := []rune(lines[line-1])
	lines[line-1] = string(r[:column-1]) + text + string(r[column-1+n:])
}

// onlyStatus refuses a change that changed anything else.
func onlyStatus(name string, before, after []byte, id int, status Status) error {
	var was, is any
	if err := yaml.Unmarshal(before, &was); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := yaml.Unmarshal(after, &is); err != nil {
		return fmt.Errorf("%s: the status of handler %d cannot be written: %w", name, id, err)
	}
	if doc, ok := was.(map[string]any); ok {
		if list, ok := doc["handlers"].([]any); ok {
			for _, item := range list {
				if h, ok := item.(map[string]any); ok && fmt.Sprint(h["id"]) == strconv.Itoa(id) {
					h["status"] = string(status)
				}
			}
		}
	}
	if !reflect.DeepEqual(was, is) {
		return fmt.Errorf("%s: writing the status of handler %d would change more than that", name, id)
	}
	return nil
}
