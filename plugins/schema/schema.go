// Package schema judges a plugin's configuration by the plugin's JSON Schema: it
// names each field that is wrong, and never a value, since values may be secrets.
// Billhook judges plugin.config of handlers.yaml with it, and package plugins what
// DecodeConfig is given, so that both say the same.
//
// It loads no schema from elsewhere: all references must lead into the schema
// itself. Start with Parse and Judge.
package schema

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// Schema is a JSON Schema of a configuration. It is safe for use by many goroutines.
type Schema struct{ schema *jsonschema.Schema }

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Field string // such as servers[0].port; empty: the whole
	Text  string // one line, without values
}

// location is where the schema is for the library, which wants it to be somewhere.
const location = "config.schema.json"

// Parse reads a schema: draft 2020-12 unless its "$schema" names another.
func Parse(text string) (*Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("the schema is not JSON: %w", err)
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(nowhere{})
	if err := c.AddResource(location, doc); err != nil {
		return nil, fmt.Errorf("the schema cannot be read: %w", err)
	}
	s, err := c.Compile(location)
	if err != nil {
		return nil, fmt.Errorf("the schema is not a JSON Schema: %w", err)
	}
	return &Schema{s}, nil
}

type nowhere struct{}

func (nowhere) Load(string) (any, error) { return nil, errors.New("other documents are not loaded") }

// Judge returns what is wrong with a configuration, given as JSON; nothing if it is
// right.
func (s *Schema) Judge(config []byte) []Problem {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(config))
	if err != nil {
		return []Problem{{Text: "it is not JSON"}}
	}
	err = s.schema.Validate(v)
	var failed *jsonschema.ValidationError
	if err == nil {
		return nil
	}
	if !errors.As(err, &failed) {
		return []Problem{{Text: "it cannot be judged by the plugin's schema"}}
	}
	var all []Problem
	collect(v, failed, &all)
	var out []Problem
	for _, p := range all {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// collect adds the problems of e, the innermost ones.
func collect(config any, e *jsonschema.ValidationError, to *[]Problem) {
	at := field(config, e.InstanceLocation)
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			*to = append(*to, Problem{join(at, name), "there is no such key here"})
		}
		return
	case *kind.Required:
		for _, name := range k.Missing {
			*to = append(*to, Problem{at, "the key " + name + " is missing"})
		}
		return
	case *kind.AnyOf:
		if names := alternatives(e); len(names) > 0 {
			*to = append(*to, Problem{at, "it needs one of the keys " + strings.Join(names, ", ")})
			return
		}
	}
	if len(e.Causes) == 0 {
		*to = append(*to, Problem{at, text(e.ErrorKind)})
		return
	}
	if _, ok := e.ErrorKind.(*kind.OneOf); ok {
		*to = append(*to, Problem{at, "it is none of what it may be"})
		return
	}
	for _, c := range e.Causes {
		collect(config, c, to)
	}
}

// alternatives are the keys of which an anyOf wants one: when each of its parts fails
// for nothing but one key that is missing at the same place.
func alternatives(e *jsonschema.ValidationError) (names []string) {
	for _, c := range e.Causes {
		for len(c.Causes) == 1 {
			c = c.Causes[0]
		}
		r, ok := c.ErrorKind.(*kind.Required)
		if !ok || len(r.Missing) != 1 || !slices.Equal(c.InstanceLocation, e.InstanceLocation) {
			return nil
		}
		names = append(names, r.Missing[0])
	}
	return names
}

// text says what is wrong without saying what is there.
func text(k jsonschema.ErrorKind) string {
	switch k := k.(type) {
	case *kind.Type:
		return "it is " + article(k.Got) + ", want " + articles(k.Want)
	case *kind.Enum:
		return "it is not one of " + values(k.Want)
	case *kind.Const:
		return "it is not " + values([]any{k.Want})
	case *kind.Format:
		return "it is not of the form " + k.Want
	case *kind.Pattern:
		return "it does not match the pattern " + k.Want
	case *kind.MinLength:
		if k.Want == 1 {
			return "it is empty"
		}
		return fmt.Sprintf("it is %d characters long, want at least %d", k.Got, k.Want)
	case *kind.MaxLength:
		return fmt.Sprintf("it is %d characters long, want at most %d", k.Got, k.Want)
	case *kind.Minimum:
		return "it is too small, want at least " + k.Want.RatString()
	case *kind.Maximum:
		return "it is too large, want at most " + k.Want.RatString()
	case *kind.ExclusiveMinimum:
		return "it is too small, want more than " + k.Want.RatString()
	case *kind.ExclusiveMaximum:
		return "it is too large, want less than " + k.Want.RatString()
	case *kind.MultipleOf:
		return "it is not a multiple of " + k.Want.RatString()
	case *kind.MinItems:
		return fmt.Sprintf("it has %d values, want at least %d", k.Got, k.Want)
	case *kind.MaxItems:
		return fmt.Sprintf("it has %d values, want at most %d", k.Got, k.Want)
	case *kind.UniqueItems:
		return fmt.Sprintf("its values %d and %d are the same", k.Duplicates[0]+1, k.Duplicates[1]+1)
	case *kind.MinProperties:
		return fmt.Sprintf("it has %d keys, want at least %d", k.Got, k.Want)
	case *kind.MaxProperties:
		return fmt.Sprintf("it has %d keys, want at most %d", k.Got, k.Want)
	case *kind.DependentRequired:
		return "beside " + k.Prop + " it needs " + strings.Join(k.Missing, ", ")
	case *kind.Not:
		return "it is what it must not be"
	case *kind.FalseSchema:
		return "it must not be given"
	}
	if path := k.KeywordPath(); len(path) > 0 {
		return "it is not what the plugin's schema wants: " + path[0]
	}
	return "it is not what the plugin's schema wants"
}

func article(of string) string {
	switch of {
	case "string":
		return "text"
	case "number":
		return "a number"
	case "integer":
		return "a whole number"
	case "boolean":
		return "true or false"
	case "array":
		return "a list"
	case "object":
		return "a mapping"
	}
	return "null"
}

func articles(types []string) string {
	var out []string
	for _, t := range types {
		out = append(out, article(t))
	}
	return strings.Join(out, " or ")
}

// values prints values of the schema, which are no secrets.
func values(list []any) string {
	var out []string
	for _, v := range list {
		out = append(out, fmt.Sprint(v))
	}
	return strings.Join(out, ", ")
}

// field names a place as Billhook names places: servers[0].port. The configuration
// tells lists from mappings.
func field(config any, place []string) string {
	at := ""
	for _, part := range place {
		if list, ok := config.([]any); ok {
			at += "[" + part + "]"
			config = nil
			if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(list) {
				config = list[i]
			}
			continue
		}
		at = join(at, part)
		m, _ := config.(map[string]any)
		config = m[part]
	}
	return at
}

// join puts a key behind a field; one with dots or brackets stands in brackets.
func join(at, key string) string {
	switch {
	case strings.ContainsAny(key, ".[]"):
		return at + "[" + key + "]"
	case at == "":
		return key
	}
	return at + "." + key
}

// Secrets returns the texts in a configuration that are secrets: those that the
// schema calls writeOnly. Nil Schema: all of them, since nobody said that one is
// none.
func (s *Schema) Secrets(config []byte) []string {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(config))
	if err != nil {
		return nil
	}
	var out []string
	if s == nil {
		texts(v, &out)
		return out
	}
	secrets(v, s.schema, 0, &out)
	return out
}

// texts collects the texts in v.
func texts(v any, to *[]string) {
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			texts(x, to)
		}
	case []any:
		for _, x := range v {
			texts(x, to)
		}
	case nil, bool:
	default:
		*to = append(*to, fmt.Sprint(v))
	}
}

// deepest bounds how deep references lead into each other.
const deepest = 100

// secrets collects the texts in v below which s says writeOnly. What s says nothing of
// at all may be one, too.
func secrets(v any, s *jsonschema.Schema, depth int, to *[]string) {
	if s == nil || depth > deepest || s.WriteOnly {
		texts(v, to)
		return
	}
	for _, group := range [][]*jsonschema.Schema{{s.Ref}, s.AllOf, s.AnyOf, s.OneOf, {s.If}, {s.Then}, {s.Else}} {
		for _, x := range group {
			if x != nil {
				secrets(v, x, depth+1, to)
			}
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for name, x := range v {
			if p, ok := s.Properties[name]; ok {
				secrets(x, p, depth+1, to)
			} else if more, ok := s.AdditionalProperties.(*jsonschema.Schema); ok {
				secrets(x, more, depth+1, to)
			} else if !describes(s) {
				texts(x, to)
			}
		}
	case []any:
		for i, x := range v {
			switch {
			case i < len(s.PrefixItems):
				secrets(x, s.PrefixItems[i], depth+1, to)
			case s.Items2020 != nil:
				secrets(x, s.Items2020, depth+1, to)
			default:
				if each, ok := s.Items.(*jsonschema.Schema); ok {
					secrets(x, each, depth+1, to)
				}
			}
		}
	}
}

// describes reports whether a schema leaves keys that it does not name to others that
// it is made of, or is of no concern because it only tells what must be there.
func describes(s *jsonschema.Schema) bool {
	return s.Ref != nil || len(s.AllOf)+len(s.AnyOf)+len(s.OneOf) > 0 || len(s.Properties) == 0 && s.AdditionalProperties == nil && len(s.Required) > 0
}
