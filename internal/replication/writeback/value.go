package writeback

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Value is what one column is to hold.
type Value struct {
	Column string
	JSON   json.RawMessage
	// Was is what it holds as far as is known, as payloads have it.
	Was json.RawMessage
}

// ParseValues reads the columns of an answer's data, in its order. Was is left out.
func ParseValues(data json.RawMessage) ([]Value, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not an object")
	}
	var list []Value
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("it is not valid JSON")
		}
		v := Value{Column: name}
		if err := d.Decode(&v.JSON); err != nil {
			return nil, errors.New("it is not valid JSON")
		}
		for _, other := range list {
			if other.Column == name {
				return nil, fmt.Errorf("column %q is in it twice", name)
			}
		}
		list = append(list, v)
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("it is not valid JSON")
	}
	return list, nil
}

// shape is how a column takes JSON.
type shape uint8

const (
	scalar shape = iota
	document
	list      // of scalars
	documents // a list of documents
)

// text is the value as Postgres takes it; nil is NULL.
func (v *Value) text(s shape) (text []byte, err error) {
	switch raw := bytes.TrimSpace(v.JSON); {
	case len(raw) == 0 || string(raw) == "null":
		return nil, nil
	case s == document:
		return raw, nil
	case raw[0] == '[' && (s == list || s == documents):
		return appendList(nil, raw, s == documents, 0)
	case raw[0] == '[' || raw[0] == '{':
		return nil, fmt.Errorf("column %q takes no list and no object", v.Column)
	default:
		return scalarText(raw)
	}
}

// scalarText is the text of a string, a number or a boolean. A number keeps its digits.
func scalarText(raw []byte) ([]byte, error) {
	if raw[0] != '"' {
		return raw, nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	return []byte(s), nil
}

// maxDepth is above Postgres' own limit of 6 dimensions.
const maxDepth = 8

// appendList appends a JSON list as Postgres writes arrays.
func appendList(b, raw []byte, documents bool, depth int) ([]byte, error) {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, errors.New("a list is too deep")
	}
	b = append(b, '{')
	for i, item := range items {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		switch {
		case string(item) == "null":
			b = append(b, "NULL"...)
		case documents:
			b = appendQuoted(b, string(item))
		case item[0] == '[':
			b, err = appendList(b, item, documents, depth+1)
		case item[0] == '{':
			err = errors.New("a list holds an object")
		default:
			var text []byte
			text, err = scalarText(item)
			b = appendQuoted(b, string(text))
		}
		if err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendQuoted(b []byte, text string) []byte {
	b = append(b, '"')
	b = append(b, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)...)
	return append(b, '"')
}
