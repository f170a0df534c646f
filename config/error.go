package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Pos is a place in a file.
type Pos struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`   // from 1; 0 means the file as a whole
	Column int    `json:"column,omitempty"` // from 1, in characters
	Field  string `json:"field,omitempty"`  // such as handlers[1].http.url; empty means the file as a whole
}

// String returns "file:line:column: field", without the parts that are not known.
func (p Pos) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
		if p.Column > 0 {
			fmt.Fprintf(&b, ":%d", p.Column)
		}
	}
	if p.Field != "" {
		b.WriteString(": " + p.Field)
	}
	return b.String()
}

// Problem makes an error at p: what is wrong, and what to do about it. Packages
// that judge a value after it was loaded (an expression that does not compile, a
// column that does not exist) use it to report in the same form as the loader.
func (p Pos) Problem(problem, remedy string) *Error {
	return &Error{Pos: p, Problem: problem, Remedy: remedy}
}

// Error is one mistake in a file. It never holds a secret.
type Error struct {
	Pos
	Problem string `json:"problem"`
	Remedy  string `json:"remedy,omitempty"`
}

// Error returns one line: file:line:column: field: problem; remedy.
func (e *Error) Error() string {
	s := e.Pos.String() + ": " + e.Problem
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Errors is every mistake found in a file, in the order of the file. It is never
// empty when it is returned as an error.
type Errors []*Error

// Error returns one line for each mistake.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.As and errors.Is each mistake.
func (es Errors) Unwrap() []error {
	errs := make([]error, len(es))
	for i, e := range es {
		errs[i] = e
	}
	return errs
}

func (es Errors) sort() {
	slices.SortStableFunc(es, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}
