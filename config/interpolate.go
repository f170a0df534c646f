package config

import (
	"bytes"
	"encoding/json"
	"strings"
)

// interpolate replaces each ${NAME} in text by the variable's value, and $${ by
// ${. It is called for scalar values only, after the file has been parsed, so a
// value cannot change the file's structure. On a mistake problem is not empty; it
// names variables, never their values.
func interpolate(text string, env Lookup) (out, problem, remedy string) {
	var b strings.Builder
	for {
		i := strings.Index(text, "${")
		if i < 0 {
			b.WriteString(text)
			return b.String(), "", ""
		}
		if i > 0 && text[i-1] == '$' {
			b.WriteString(text[:i-1] + "${")
			text = text[i+2:]
			continue
		}
		b.WriteString(text[:i])
		text = text[i+2:]
		end := strings.IndexByte(text, '}')
		if end < 0 {
			return "", "${ is not closed by }", "write ${NAME}, or $${ for the characters ${ themselves"
		}
		name := text[:end]
		text = text[end+1:]
		if !variableName(name) {
			return "", "${" + name + "} does not name an environment variable", "write ${NAME} with letters, digits and _ (there are no defaults), or $${ for the characters ${ themselves"
		}
		value, ok := env(name)
		switch {
		case !ok:
			return "", "the environment variable " + name + " is not set", "set it, or write $${" + name + "} for the text itself"
		case strings.ContainsAny(value, "\n\r\x00"):
			return "", "the environment variable " + name + " holds a line break or a NUL", "set it to one line; longer secrets belong into a file, with the *_file key"
		}
		b.WriteString(value)
	}
}

func variableName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// writeJSON writes s as a JSON string, without escaping <, > and &.
func writeJSON(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string into a buffer: cannot fail
	b.Truncate(b.Len() - 1)
}
