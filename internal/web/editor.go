package web

import (
	"context"
	"fmt"
	"strings"
)

// Editor changes handlers.yaml for people. Errors that people are told are *RefusedError,
// ErrNoHandler, *ProblemsError and *ConflictError.
type Editor interface {
	// Fields are those that a handler may have.
	Fields() []Field
	// EventTypes are the event types that a handler may be for.
	EventTypes() []EventTitle
	// Draft is a handler as the file has it; of id 0 a new one.
	Draft(id int) (Draft, error)
	// Propose says what an edit would change in the file, and changes nothing.
	Propose(ctx context.Context, e Edit) (Proposal, error)
	// Save writes an edit and returns when it is in force.
	Save(ctx context.Context, e Edit) (Proposal, error)
	// Try is Options.Try for a handler as an edit would make it.
	Try(ctx context.Context, e Edit, t Trial) (Tried, error)
}

// Field is a field of a handler in handlers.yaml, such as "http.url".
type Field struct {
	Name string
	// Type is text, lines, number, flag, list, map, secret, secrets or yaml: what a Draft's
	// value of it looks like.
	Type    string
	Choices []string // that are allowed; nil: any
	Doc     string
	Default string
}

// EventTitle is an event type with its title.
type EventTitle struct{ Name, Title, Entity string }

// Draft is a handler as a form holds it: fields as the file writes them.
type Draft struct {
	ID     int               `json:"id"`
	Fields map[string]string `json:"fields"`
	Fixed  []string          `json:"fixed,omitempty"` // fields that only the file can change
	File   string            `json:"file"`
	Base   string            `json:"base"` // what tells this version of the file
	// ReadOnly is why the file cannot be written; "" when it can.
	ReadOnly string `json:"read_only,omitempty"`
}

// Edit is a change of handlers.yaml.
type Edit struct {
	// ID is the handler's; 0: a new one.
	ID     int
	Fields map[string]string
	Remove bool
	// Priorities, unless nil, are those of handlers, which is all that is changed.
	Priorities map[int]int
	// Base tells the version of the file that the edit was made for; "" is any.
	Base string
}

// Proposal is what an edit does to the file.
type Proposal struct {
	ID   int    `json:"id,omitempty"`
	File string `json:"file,omitempty"`
	Diff string `json:"diff,omitempty"` // without secrets; "" when nothing changes
	Base string `json:"base,omitempty"` // the version that it was made for
}

// ProblemsError says what is wrong with an edit.
type ProblemsError struct{ Problems []FieldProblem }

// FieldProblem is a mistake in a field; Field is "" when it is in none.
type FieldProblem struct {
	Field  string `json:"field,omitempty"`
	Text   string `json:"problem"`
	Remedy string `json:"remedy,omitempty"`
}

func (e *ProblemsError) Error() string {
	var lines []string
	for _, p := range e.Problems {
		line := p.Text
		if p.Field != "" {
			line = p.Field + ": " + line
		}
		if p.Remedy != "" {
			line += "; " + p.Remedy
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// ConflictError says that the file is another than the one that an edit was made for.
type ConflictError struct {
	// Since is how the file has changed meanwhile, "" when that is not known any more.
	Since string
	Proposal
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s has been changed by somebody else meanwhile", e.File)
}
