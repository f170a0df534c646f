package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Draft is a handler as a form holds it: its fields as the file writes them, by their
// names such as "http.url". A field that the file has not is "" or missing. A list has an
// item on each line; a mapping of texts has "name: value" on each. The event types are all
// in "events". A secret that stands in the file itself is "***", and so is what a plugin
// is configured with, which may hold some.
type Draft map[string]string

// Kind returns "http", "script" or "plugin", whichever has a field; "" when none has.
func (d Draft) Kind() string {
	for _, kind := range []string{"http", "script", "plugin"} {
		for name, value := range d {
			if strings.HasPrefix(name, kind+".") && value != "" {
				return kind
			}
		}
	}
	return ""
}

// DraftField is a field that a Draft may have.
type DraftField struct {
	Name string
	Type DraftType
	// Choices are the values that are allowed; nil: any.
	Choices []string
	// Doc is what the JSON Schema says about it, Default what holds without it.
	Doc, Default string

	in string // the type that has it
}

// DraftType says how a field of a Draft is written.
type DraftType string

// The types of fields.
const (
	DraftText    DraftType = "text"
	DraftLines   DraftType = "lines" // a text that may have several lines
	DraftNumber  DraftType = "number"
	DraftFlag    DraftType = "flag" // "true" or "false"
	DraftList    DraftType = "list"
	DraftMap     DraftType = "map"
	DraftSecret  DraftType = "secret"
	DraftSecrets DraftType = "secrets" // a mapping of texts that are secret
	DraftYAML    DraftType = "yaml"    // a mapping of any shape, secret
)

// DraftFields returns the fields of a Draft in the order in which files have them.
func DraftFields() []DraftField {
	var schema struct {
		Defs map[string]struct {
			Properties map[string]schemaProperty `json:"properties"`
		} `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(handlersSchema), &schema); err != nil {
		panic(err) // it is embedded, and tested
	}
	fields := draftFields()
	for i := range fields {
		f := &fields[i]
		key := f.Name[strings.LastIndexByte(f.Name, '.')+1:]
		p := schema.Defs[f.in].Properties[key]
		f.Doc, f.Choices = p.Description, p.choices()
		if len(p.Default) > 0 {
			f.Default = strings.Trim(string(p.Default), `"`)
		}
	}
	return fields
}

// draftFields are they without what the schema says.
func draftFields() []DraftField {
	var fields []DraftField
	var walk func(t reflect.Type, at string)
	walk = func(t reflect.Type, at string) {
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if name == "" || name == "-" || at == "" && (name == "id" || name == "event") || name == "secrets" {
				continue
			}
			typ := f.Type
			if typ.Kind() == reflect.Pointer {
				typ = typ.Elem()
			}
			d := DraftField{Name: join(at, name), in: t.Name()}
			switch reflect.New(typ).Interface().(type) {
			case *Object:
				d.Type = DraftYAML
			case *Secret:
				d.Type = DraftSecret
			case *map[string]Secret:
				d.Type = DraftSecrets
			case *Expr:
				d.Type = DraftLines
			case *bool:
				d.Type = DraftFlag
			case *int, *float64:
				d.Type = DraftNumber
			case *time.Duration, *ByteSize, *Rate:
				d.Type = DraftText
			default:
				switch typ.Kind() {
				case reflect.Struct:
					walk(typ, d.Name)
					continue
				case reflect.Slice:
					d.Type = DraftList
				case reflect.Map:
					d.Type = DraftMap
				default:
					d.Type = DraftText
				}
			}
			fields = append(fields, d)
		}
	}
	walk(reflect.TypeFor[Handler](), "")
	return fields
}

// schemaProperty is what is taken from the JSON Schema of a field.
type schemaProperty struct {
	Description string          `json:"description"`
	Default     json.RawMessage `json:"default"`
	Enum        []string        `json:"enum"`
	AnyOf       []struct {
		Enum []string `json:"enum"`
	} `json:"anyOf"`
}

func (p schemaProperty) choices() []string {
	for _, one := range p.AnyOf {
		if len(one.Enum) > 0 {
			return one.Enum
		}
	}
	return p.Enum
}

func draftField(name string) (DraftField, bool) {
	all := draftFields()
	if i := slices.IndexFunc(all, func(f DraftField) bool { return f.Name == name }); i >= 0 {
		return all[i], true
	}
	return DraftField{}, false
}

// ReadDraft returns a handler of a handlers.yaml as a form holds it. Fields that stand in
// the file in a way that no form can show are in fixed.
func ReadDraft(name string, text []byte, id int) (d Draft, fixed []string, err error) {
	f, err := openEdit(name, text)
	if err != nil {
		return nil, nil, err
	}
	item, err := handlerNode(name, &f.doc, id)
	if err != nil {
		return nil, nil, err
	}
	d, fixed = readDraft(item)
	return d, fixed, nil
}

func readDraft(item *yaml.Node) (d Draft, fixed []string) {
	d = Draft{}
	for _, f := range draftFields() {
		n := lookup(item, f.Name)
		if f.Name == "events" && n == nil {
			n = lookup(item, "event")
		}
		if n == nil || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
			continue
		}
		if text, ok := draftText(f.Type, n); ok {
			d[f.Name] = text
		} else {
			fixed = append(fixed, f.Name)
		}
	}
	return d, fixed
}

// lookup finds the value of a field such as http.url.
func lookup(n *yaml.Node, name string) *yaml.Node {
	for part := range strings.SplitSeq(name, ".") {
		if _, n = field(n, part); n == nil {
			return nil
		}
	}
	return n
}

// draftText is a value as a Draft has it; false when a Draft cannot.
func draftText(t DraftType, n *yaml.Node) (string, bool) {
	scalar := func(n *yaml.Node) (string, bool) {
		return n.Value, n.Kind == yaml.ScalarNode && !strings.Contains(n.Value, "\n")
	}
	hide := func(text string) string {
		if openSecret(text) {
			return text
		}
		return masked
	}
	switch t {
	case DraftYAML:
		return masked, n.Kind == yaml.MappingNode
	case DraftLines:
		return n.Value, n.Kind == yaml.ScalarNode
	case DraftSecret:
		text, ok := scalar(n)
		return hide(text), ok
	case DraftList:
		if n.Kind == yaml.ScalarNode {
			return scalar(n)
		}
		if n.Kind != yaml.SequenceNode {
			return "", false
		}
		var lines []string
		for _, c := range n.Content {
			text, ok := scalar(c)
			if !ok || text == "" || text != strings.TrimSpace(text) {
				return "", false
			}
			lines = append(lines, text)
		}
		return strings.Join(lines, "\n"), len(lines) > 0
	case DraftMap, DraftSecrets:
		if n.Kind != yaml.MappingNode {
			return "", false
		}
		var lines []string
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, kok := scalar(n.Content[i])
			v, vok := scalar(n.Content[i+1])
			if !kok || !vok || k == "" || strings.Contains(k, ":") || v != strings.TrimSpace(v) {
				return "", false
			}
			if t == DraftSecrets {
				v = hide(v)
			}
			lines = append(lines, k+": "+v)
		}
		return strings.Join(lines, "\n"), true
	}
	return scalar(n)
}

// openSecret reports whether a text holds no secret itself: it is empty, or names a
// variable that does.
func openSecret(text string) bool {
	rest := text
	for {
		i := strings.Index(rest, "${")
		if i < 0 || i > 0 && rest[i-1] == '$' {
			break
		}
		end := strings.IndexByte(rest[i:], '}')
		if end < 0 || !variableName(rest[i+2:i+end]) {
			break
		}
		rest = rest[:i] + rest[i+end+1:]
	}
	return strings.TrimSpace(rest) == "" || rest != text && slices.Contains([]string{"Bearer", "Basic", "Token"}, strings.TrimSpace(rest))
}

// A DraftError says what is wrong with a field of a Draft.
type DraftError struct{ Field, Problem, Remedy string }

func (e *DraftError) Error() string { return e.Field + ": " + e.Problem + "; " + e.Remedy }

// draftNode is a value that a form gave, as the file shall have it; nil when it is empty.
// old is what the file has, nil if nothing.
func draftNode(f DraftField, text string, old *yaml.Node) (*yaml.Node, error) {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if f.Type != DraftLines {
		text = strings.TrimSpace(text)
	} else if strings.TrimSpace(text) == "" {
		text = ""
	}
	if text == "" {
		return nil, nil
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == '\ufffd' }) {
		return nil, &DraftError{f.Name, "it has characters that cannot be written", "remove them"}
	}
	lines := slices.DeleteFunc(strings.Split(text, "\n"), func(l string) bool { return strings.TrimSpace(l) == "" })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	switch f.Type {
	case DraftLines:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}, nil
	case DraftList:
		n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, l := range lines {
			n.Content = append(n.Content, scalarNode(l, strings.Contains(f.Name, ".statuses.") || strings.Contains(f.Name, ".exit_codes.")))
		}
		return n, nil
	case DraftMap, DraftSecrets:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, l := range lines {
			name, value, ok := strings.Cut(l, ":")
			name, value = strings.TrimSpace(name), strings.TrimSpace(value)
			if !ok || name == "" {
				return nil, &DraftError{f.Name, fmt.Sprintf("%q is not a name and a value", l), "write name: value, each on a line of its own"}
			}
			v := scalarNode(value, false)
			if _, kept := field(old, name); f.Type == DraftSecrets && value == masked {
				if kept == nil {
					return nil, &DraftError{f.Name, name + " has no value", "write it: *** stands for one that is there already"}
				}
				v = kept
			} else if kept != nil && kept.Kind == yaml.ScalarNode && kept.Value == value {
				v = kept
			}
			n.Content = append(n.Content, scalarNode(name, false), v)
		}
		return n, nil
	case DraftYAML:
		var doc yaml.Node
		if err := safely(func() error { return yaml.Unmarshal([]byte(text), &doc) }); err != nil {
			return nil, &DraftError{f.Name, strings.TrimPrefix(err.Error(), "yaml: "), "write it as it would stand in the file, name: value"}
		}
		if doc.Kind != yaml.DocumentNode || doc.Content[0].Kind != yaml.MappingNode {
			return nil, &DraftError{f.Name, "it is not a mapping", "write name: value, each on a line of its own"}
		}
		return doc.Content[0], nil
	}
	if strings.Contains(text, "\n") {
		return nil, &DraftError{f.Name, "it has several lines", "write one"}
	}
	if f.Type == DraftSecret && text == masked {
		return nil, &DraftError{f.Name, "it has no value", "write it: *** stands for one that is there already"}
	}
	return scalarNode(text, f.Type == DraftNumber || f.Type == DraftFlag), nil
}

// scalarNode is a text, or with plain what YAML takes it for.
func scalarNode(text string, plain bool) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
	if !plain {
		return n
	}
	if _, err := strconv.ParseInt(text, 10, 64); err == nil {
		n.Tag = "!!int"
	} else if _, err := strconv.ParseFloat(text, 64); err == nil {
		n.Tag = "!!float"
	} else if text == "true" || text == "false" {
		n.Tag = "!!bool"
	}
	return n
}

// draftEdit is a field that shall have another value, or none.
type draftEdit struct {
	path  []string
	value *yaml.Node
}

// edits are what must be done to a handler for it to be as a draft wants it.
func (d Draft) edits(item *yaml.Node) ([]draftEdit, error) {
	have, fixed := readDraft(item)
	var list []draftEdit
	kind, was := d.Kind(), have.Kind()
	for name := range d {
		if _, ok := draftField(name); !ok {
			return nil, &DraftError{name, "there is no such field", "leave it out"}
		}
	}
	for _, f := range draftFields() {
		want, given := d[f.Name]
		head, _, _ := strings.Cut(f.Name, ".")
		if kind != "" && was != kind && head == was {
			continue // it goes as a whole
		}
		if !given || sameDraft(f, want, have[f.Name]) {
			continue
		}
		if slices.Contains(fixed, f.Name) {
			if strings.TrimSpace(want) == "" {
				continue
			}
			return nil, &DraftError{f.Name, "it is written in the file in a way that cannot be changed here", "change it in the file"}
		}
		n, err := draftNode(f, want, lookup(item, f.Name))
		if err != nil {
			return nil, err
		}
		if f.Name == "events" {
			list = append(list, eventEdits(item, n)...)
			continue
		}
		list = append(list, draftEdit{strings.Split(f.Name, "."), n})
	}
	if kind != "" && was != "" && was != kind {
		list = append(list, draftEdit{[]string{was}, nil})
	}
	return list, nil
}

func sameDraft(f DraftField, a, b string) bool {
	norm := func(s string) string {
		s = strings.ReplaceAll(s, "\r\n", "\n")
		if f.Type == DraftLines {
			return strings.TrimRight(s, "\n") // a browser's field does not show the last one
		}
		var lines []string
		for l := range strings.SplitSeq(s, "\n") {
			if l = strings.TrimSpace(l); l != "" {
				lines = append(lines, l)
			}
		}
		return strings.Join(lines, "\n")
	}
	return norm(a) == norm(b)
}

// eventEdits writes one type as event and several as events, unless the file does
// otherwise.
func eventEdits(item, list *yaml.Node) []draftEdit {
	_, one := field(item, "event")
	_, many := field(item, "events")
	switch {
	case list == nil:
		return []draftEdit{{[]string{"event"}, nil}, {[]string{"events"}, nil}}
	case many != nil:
		return []draftEdit{{[]string{"events"}, list}}
	case len(list.Content) == 1:
		return []draftEdit{{[]string{"event"}, list.Content[0]}}
	case one != nil:
		return []draftEdit{{[]string{"events"}, list}, {[]string{"event"}, nil}}
	}
	return []draftEdit{{[]string{"events"}, list}}
}
