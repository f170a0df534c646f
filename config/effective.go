package config

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Effective returns billhook.yaml as it is in force: presets merged, every default
// written out. What is secret is named as the file names it, or masked.
func (b *Billhook) Effective() ([]byte, error) { return effective(*b) }

// Effective returns handlers.yaml as it is in force, with what it includes, as one file.
func (h *Handlers) Effective() ([]byte, error) {
	all := *h
	all.Include = nil
	all.Defaults.Retry.scheduled()
	all.Handlers = slices.Clone(h.Handlers)
	if all.Handlers == nil {
		all.Handlers = []Handler{}
	}
	for i := range all.Handlers {
		all.Handlers[i] = all.Handlers[i].plain()
	}
	return effective(all)
}

// plain is the handler as a file may have it.
func (h Handler) plain() Handler {
	h.Retry.scheduled()
	if h.Breaker == nil {
		h.Breaker = new(Breaker)
	}
	if h.Format != FormatTemplate {
		h.ContentType = ""
	}
	if h.TemplateFile != "" {
		h.Template = Expr{} // it came from there
	}
	if h.HTTP != nil && (!h.HTTP.Secret.IsZero()) {
		c := *h.HTTP
		c.Secrets = nil // they came from there
		h.HTTP = &c
	}
	return h
}

// scheduled leaves out what stands beside a schedule only because it is the default.
func (r *Retry) scheduled() {
	if len(r.Schedule) > 0 {
		r.Initial, r.Max, r.Factor = 0, 0, 0
	}
}

func effective(v any) ([]byte, error) {
	n, err := node(v)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, fmt.Errorf("write the configuration: %w", err)
	}
	return b.Bytes(), nil
}

func node(v any) (*yaml.Node, error) {
	var n yaml.Node
	if err := n.Encode(v); err != nil {
		return nil, fmt.Errorf("write the configuration: %w", err)
	}
	named(&n)
	return &n, nil
}

// named takes masked values out that the keys beside them name: where there is
// bearer_env, bearer is what that variable holds.
func named(n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); {
			key, value := n.Content[i], n.Content[i+1]
			from := func(suffix string) bool {
				k, _ := field(n, key.Value+suffix)
				return k != nil
			}
			alone := func(name string) bool { k, _ := field(n, name); return k != nil && key.Value == "value" }
			if value.Kind == yaml.ScalarNode && value.Value == masked && (from("_env") || from("_file") || alone("env") || alone("file")) {
				n.Content = slices.Delete(n.Content, i, i+2)
				continue
			}
			i += 2
		}
	}
	for i, below := range n.Content {
		// What a script's environment and a request's headers are called means nothing here.
		if i%2 == 1 && n.Kind == yaml.MappingNode && (n.Content[i-1].Value == "env" || n.Content[i-1].Value == "headers") {
			continue
		}
		named(below)
	}
}

// Change is a difference between two sets of handlers.
type Change struct {
	Handler int    `json:"handler"`
	Name    string `json:"name"`
	// Kind is "added", "removed" or "changed".
	Kind string `json:"kind"`
	// Field of a change, such as http.url, with what it held and holds; empty where it
	// is not written. What is secret is "***" in both.
	Field  string `json:"field,omitempty"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// The kinds of changes.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// String returns one line.
func (c Change) String() string {
	return fmt.Sprintf("handler %d, %s: %s", c.Handler, c.Name, c.What())
}

// What returns what has changed: "added", "removed", or a field with what it held and
// holds.
func (c Change) What() string {
	if c.Kind != Changed {
		return c.Kind
	}
	shown := func(text string) string {
		if text == "" {
			return "nothing"
		}
		return text
	}
	return c.Field + ": " + shown(c.Before) + " -> " + shown(c.After)
}

// Compare returns what differs between two sets of handlers, in the order of the second;
// those that it has no more come last.
func Compare(before, after *Handlers) ([]Change, error) {
	changes := []Change{}
	find := func(hs *Handlers, id int) *Handler {
		if i := slices.IndexFunc(hs.Handlers, func(h Handler) bool { return h.ID == id }); i >= 0 {
			return &hs.Handlers[i]
		}
		return nil
	}
	for i := range after.Handlers {
		h := &after.Handlers[i]
		old := find(before, h.ID)
		if old == nil {
			changes = append(changes, Change{Handler: h.ID, Name: h.Name, Kind: Added})
			continue
		}
		was, is := old.WithoutPlaces(), h.WithoutPlaces()
		if reflect.DeepEqual(was, is) {
			continue
		}
		found, err := compareHandler(was, is)
		if err != nil {
			return nil, err
		}
		changes = append(changes, found...)
	}
	for i := range before.Handlers {
		if h := &before.Handlers[i]; find(after, h.ID) == nil {
			changes = append(changes, Change{Handler: h.ID, Name: h.Name, Kind: Removed})
		}
	}
	return changes, nil
}

func compareHandler(was, is Handler) ([]Change, error) {
	values := [2]map[string]string{}
	var order []string
	for i, h := range []Handler{was, is} {
		h = h.plain()
		h.TemplateFile = "" // what is in it counts
		h.Template = [2]Handler{was, is}[i].Template
		n, err := node(h)
		if err != nil {
			return nil, err
		}
		values[i] = map[string]string{}
		leaves(n, "", func(field, value string) {
			if !slices.Contains(order, field) {
				order = append(order, field)
			}
			values[i][field] = value
		})
	}
	changes := []Change{}
	for _, f := range order {
		if b, a := values[0][f], values[1][f]; b != a {
			changes = append(changes, Change{Handler: is.ID, Name: is.Name, Kind: Changed, Field: f, Before: b, After: a})
		}
	}
	// What is masked looks the same whatever it is.
	hidden := map[string]string{}
	was, is = was.plain(), is.plain()
	secrets(reflect.ValueOf(was), "", func(field, text string) { hidden[field] = text })
	secrets(reflect.ValueOf(is), "", func(field, text string) {
		told := slices.ContainsFunc(changes, func(c Change) bool { return c.Field == field })
		if before, ok := hidden[field]; ok && before != text && !told {
			changes = append(changes, Change{Handler: is.ID, Name: is.Name, Kind: Changed, Field: field, Before: masked, After: masked})
		}
	})
	return changes, nil
}

// secrets calls f for every secret that is set in v.
func secrets(v reflect.Value, at string, f func(field, text string)) {
	switch s := v.Interface().(type) {
	case Secret:
		if !s.IsZero() {
			f(at, s.Reveal())
		}
		return
	case Object:
		if !s.IsZero() {
			f(at, string(s.Reveal()))
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			secrets(v.Elem(), at, f)
		}
	case reflect.Struct:
		for _, field := range fieldsOf(v.Type()) {
			secrets(v.FieldByIndex(field.index), join(at, field.name), f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			secrets(v.Index(i), item(at, i), f)
		}
	case reflect.Map:
		for _, key := range slices.SortedFunc(slices.Values(v.MapKeys()), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) }) {
			secrets(v.MapIndex(key), join(at, key.String()), f)
		}
	}
}

// leaves calls f for every value below n; a list of scalars is one value.
func leaves(n *yaml.Node, at string, f func(field, value string)) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			leaves(n.Content[i+1], join(at, n.Content[i].Value), f)
		}
	case yaml.SequenceNode:
		var texts []string
		for i, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				leaves(item, fmt.Sprintf("%s[%d]", at, i), f)
				continue
			}
			texts = append(texts, item.Value)
		}
		if len(texts) > 0 {
			f(at, "["+strings.Join(texts, ", ")+"]")
		}
	case yaml.ScalarNode:
		f(at, n.Value)
	}
}
