package ruletest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/billhook/billhook/internal/event"
)

// memory is what is remembered, in RAM.
type memory map[string][]byte

func (m memory) Memory(key []byte) ([]byte, bool, error) {
	v, ok := m[string(key)]
	return v, ok, nil
}

func (m memory) SetMemory(key, value []byte) { m[string(key)] = bytes.Clone(value) }

func (m memory) DeleteMemory(key []byte) { delete(m, string(key)) }

func (m memory) DeleteMemoryPrefix(prefix []byte) {
	maps.DeleteFunc(m, func(k string, _ []byte) bool { return strings.HasPrefix(k, string(prefix)) })
}

func (m memory) ScanMemory(from, prefix []byte, f func(key, value []byte) (bool, error)) error {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k < string(from) || !strings.HasPrefix(k, string(prefix)) {
			continue
		}
		if more, err := f([]byte(k), m[k]); err != nil || !more {
			return err
		}
	}
	return nil
}

// compare says how the events that came differ from those that are wanted. A
// transaction without the key events is not looked at.
func (p *play) compare(s *step) error {
	looked := false
	for i := 0; i+1 < len(s.node.Content); i += 2 {
		looked = looked || s.node.Content[i].Value == "events"
	}
	if !looked {
		return nil
	}
	fail := func(line int, format string, args ...any) {
		p.r.Failures = append(p.r.Failures, p.at(line, format, args...).Error())
	}
	var came []string
	for _, e := range p.came {
		came = append(came, fmt.Sprintf("%s of %s", e.Type, e.Object))
	}
	for i := range s.Events {
		w := &s.Events[i]
		if w.Event == "" {
			return p.at(w.line, "event is missing: the type")
		}
		typ, ok := p.o.Resolve(w.Event)
		if !ok {
			return p.at(w.line, "there is no event type %q", w.Event)
		}
		if i >= len(p.came) {
			fail(w.line, "%s did not come; what came: %s", typ, orNothing(came))
			continue
		}
		e := p.came[i]
		if e.Type != typ || !w.Object.IsZero() && w.Object.Value != e.Object {
			fail(w.line, "want %s%s, got %s; what came: %s", typ, of(w.Object), came[i], orNothing(came))
			continue
		}
		if err := p.compareEvent(w, e, fail); err != nil {
			return err
		}
	}
	for _, extra := range came[min(len(s.Events), len(came)):] {
		fail(s.node.Line, "%s came, too", extra)
	}
	return nil
}

func of(object yaml.Node) string {
	if object.IsZero() {
		return ""
	}
	return " of " + object.Value
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

func (p *play) compareEvent(w *want, e *event.Event, fail func(int, string, ...any)) error {
	if !w.Lane.IsZero() && w.Lane.Value != e.Lane {
		fail(w.line, "%s: lane is %s, want %s", e.Type, e.Lane, w.Lane.Value)
	}
	if w.Handlers != nil {
		got, err := p.o.Plan(e)
		if err != nil {
			return p.at(w.line, "%s: %v", e.Type, err)
		}
		if !slices.Equal(got, w.Handlers) {
			fail(w.line, "%s: handlers are %v, want %v", e.Type, got, w.Handlers)
		}
	}
	if err := subset(e.Data, w.Data, func(column, got, want string) {
		fail(w.line, "%s: data.%s is %s, want %s", e.Type, column, got, want)
	}); err != nil {
		return p.at(w.line, "%s: %v", e.Type, err)
	}
	var changed map[string]json.RawMessage
	if len(e.Changed) > 0 {
		if err := json.Unmarshal(e.Changed, &changed); err != nil {
			return p.at(w.line, "%s: %v", e.Type, err)
		}
	}
	for _, column := range slices.Sorted(maps.Keys(w.Changed)) {
		if changed[column] == nil {
			fail(w.line, "%s: %s has not changed; what has: %s", e.Type, column, orNothing(slices.Sorted(maps.Keys(changed))))
			continue
		}
		if err := subset(changed[column], w.Changed[column], func(side, got, want string) {
			fail(w.line, "%s: changed.%s.%s is %s, want %s", e.Type, column, side, got, want)
		}); err != nil {
			return p.at(w.line, "%s: %v", e.Type, err)
		}
	}
	return nil
}

// subset compares what is wanted of a JSON object with what it has, as text: what is a
// number in the file may be a text in the payload, and keeps its digits in both.
func subset(object []byte, want map[string]yaml.Node, differs func(name, got, want string)) error {
	if len(want) == 0 {
		return nil
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal(object, &got); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		n := want[name]
		wanted, err := written(&n)
		if err != nil {
			return err
		}
		g, ok := got[name]
		text := "absent"
		if ok {
			if text, err = told(g); err != nil {
				return err
			}
		}
		if text != wanted {
			differs(name, text, wanted)
		}
	}
	return nil
}

// written is a value of the file as text; mappings and lists are JSON.
func written(n *yaml.Node) (string, error) {
	n = meant(n)
	switch n.ShortTag() {
	case "!!null":
		return "null", nil
	case "!!map", "!!seq":
		var v any
		if err := n.Decode(&v); err != nil {
			return "", err
		}
		b, err := json.Marshal(v)
		return string(b), err
	}
	return n.Value, nil
}

// told is a value of a payload as text, written as the file's are.
func told(raw json.RawMessage) (string, error) {
	switch raw[0] {
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	case '{', '[':
		var v any
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return "", err
		}
		b, err := json.Marshal(v)
		return string(b), err
	}
	return string(raw), nil
}
