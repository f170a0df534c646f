// Package expr compiles and runs the conditions that operators write in YAML:
// CEL expressions that are true or false of a row change or of an event.
//
// It promises that a mistake is found when the condition is compiled, with its
// line and column inside the expression; that evaluation ends, whatever the
// expression; and that decimals are compared exactly.
//
// It knows no tables: which columns exist is the caller's to check, with Columns.
//
// Variables of a row condition: old and new (maps of column to value; a value
// that is not known is absent, so has(old.x) tells), changed (list of column
// names), op ("insert", "update", "delete", "clock") and tx (map with xid and
// commit_time); in a rule by the clock only new and op tell something. Of an event
// condition: event (the payload's event object), data and changed (maps). Integers
// are CEL ints, numerics are decimals, NULL is null; decimal("0.5") makes a decimal,
// also from a payload's string. A decimal and a number may stand on either side of an
// operator.
package expr

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// costLimit bounds one evaluation. It is far above any honest condition.
const costLimit = 1_000_000

// Error is a mistake in an expression. Line and Column count from 1 inside the
// expression's text.
type Error struct {
	Line, Column int
	Text         string
}

func (e *Error) Error() string { return e.Text }

// Condition is a compiled expression. It is safe for concurrent use.
type Condition struct {
	text    string
	program cel.Program
	columns map[string][]string // variable -> fields it selects; nil means all
	places  map[string]place    // variable -> where it first stands
}

type place struct{ line, column int }

// String returns the expression's text.
func (c *Condition) String() string { return c.text }

// Columns returns which fields of the variable (such as "old") the condition
// selects. all is true when it uses the variable as a whole.
func (c *Condition) Columns(variable string) (names []string, all bool) {
	names, used := c.columns[variable]
	return names, used && names == nil
}

// Place returns where the condition first names a variable, counted as in Error. ok
// is false when it does not.
func (c *Condition) Place(variable string) (line, column int, ok bool) {
	p, ok := c.places[variable]
	return p.line, p.column, ok
}

// CompileRow compiles a condition over a row change.
func CompileRow(text string) (*Condition, error) {
	row := cel.MapType(cel.StringType, cel.DynType)
	return compile(text,
		cel.Variable("old", row),
		cel.Variable("new", row),
		cel.Variable("changed", cel.ListType(cel.StringType)),
		cel.Variable("op", cel.StringType),
		cel.Variable("tx", row),
	)
}

// CompileEvent compiles a condition over an event.
func CompileEvent(text string) (*Condition, error) {
	object := cel.MapType(cel.StringType, cel.DynType)
	return compile(text,
		cel.Variable("event", object),
		cel.Variable("data", object),
		cel.Variable("changed", object),
	)
}

func compile(text string, vars ...cel.EnvOption) (*Condition, error) {
	env, err := cel.NewEnv(append(vars, cel.CustomTypeAdapter(adapter{}), cel.CrossTypeNumericComparisons(true), decimalFunction())...)
	if err != nil {
		return nil, fmt.Errorf("make expression environment: %w", err)
	}
	checked, issues := env.Compile(text)
	if issues != nil && issues.Err() != nil {
		first := issues.Errors()[0]
		text, _, _ := strings.Cut(first.Message, " expecting ") // every token of the language follows
		text = strings.Replace(text, "'<EOF>'", "the end of the expression", 1)
		return nil, &Error{Line: first.Location.Line(), Column: max(first.Location.Column()+1, 1), Text: text}
	}
	if out := checked.OutputType(); !out.IsExactType(cel.BoolType) && !out.IsExactType(cel.DynType) {
		return nil, &Error{Line: 1, Column: 1, Text: fmt.Sprintf("the condition is of type %s, want true or false", out)}
	}
	program, err := env.Program(checked, cel.CustomDecoratorV2(mix), cel.CostLimit(costLimit))
	if err != nil {
		return nil, &Error{Line: 1, Column: 1, Text: err.Error()}
	}
	c := &Condition{text: text, program: program, places: map[string]place{}}
	c.columns = selections(checked.NativeRep().Expr(), func(ident ast.Expr) {
		at := checked.NativeRep().SourceInfo().GetStartLocation(ident.ID())
		p := place{at.Line(), at.Column() + 1}
		if was, ok := c.places[ident.AsIdent()]; !ok || p.line < was.line || p.line == was.line && p.column < was.column {
			c.places[ident.AsIdent()] = p
		}
	})
	for _, name := range c.columns["tx"] {
		if name != "xid" && name != "commit_time" {
			p := c.places["tx"]
			return nil, &Error{Line: p.line, Column: p.column, Text: fmt.Sprintf("tx has no %s; it has xid and commit_time", name)}
		}
	}
	return c, nil
}

// selections finds, for each variable, the fields that the expression selects
// from it with a dot or a constant index. met is called for each variable met.
func selections(root ast.Expr, met func(ident ast.Expr)) map[string][]string {
	found := map[string][]string{}
	var walk func(e ast.Expr)
	note := func(variable ast.Expr, field string) bool {
		if variable.Kind() != ast.IdentKind {
			return false
		}
		met(variable)
		name := variable.AsIdent()
		if names, used := found[name]; used && names == nil {
			return true
		}
		if !slices.Contains(found[name], field) {
			found[name] = append(found[name], field)
		}
		return true
	}
	walk = func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			met(e)
			found[e.AsIdent()] = nil
		case ast.SelectKind:
			if s := e.AsSelect(); !note(s.Operand(), s.FieldName()) {
				walk(s.Operand())
			}
		case ast.CallKind:
			c := e.AsCall()
			args := c.Args()
			if c.FunctionName() == operators.Index && len(args) == 2 && args[1].Kind() == ast.LiteralKind {
				if field, ok := args[1].AsLiteral().(types.String); ok && note(args[0], string(field)) {
					return
				}
			}
			if c.IsMemberFunction() {
				walk(c.Target())
			}
			for _, a := range args {
				walk(a)
			}
		case ast.ListKind:
			for _, el := range e.AsList().Elements() {
				walk(el)
			}
		case ast.MapKind:
			for _, en := range e.AsMap().Entries() {
				walk(en.AsMapEntry().Key())
				walk(en.AsMapEntry().Value())
			}
		case ast.ComprehensionKind:
			c := e.AsComprehension()
			for _, part := range []ast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()} {
				walk(part)
			}
		}
	}
	walk(root)
	return found
}

// Row is what a row condition sees. Values are made by Value or nil for NULL.
type Row struct {
	Old, New map[string]any
	Changed  []string
	Op       string
	TX       map[string]any
}

// Row reports whether the condition is true of a row change.
func (c *Condition) Row(r Row) (bool, error) {
	return c.eval(map[string]any{"old": r.Old, "new": r.New, "changed": r.Changed, "op": r.Op, "tx": r.TX})
}

// Event reports whether the condition is true of an event's payload, decoded with
// json.Number kept.
func (c *Condition) Event(event, data, changed map[string]any) (bool, error) {
	return c.eval(map[string]any{"event": event, "data": data, "changed": changed})
}

func (c *Condition) eval(vars map[string]any) (bool, error) {
	out, _, err := c.program.Eval(vars)
	if err != nil {
		return false, fmt.Errorf("evaluate %q: %w", c.text, err)
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, fmt.Errorf("evaluate %q: the result is %s, want true or false", c.text, typeName(out))
	}
	return bool(b), nil
}

func typeName(v ref.Val) string {
	if v == nil {
		return "nothing"
	}
	return v.Type().TypeName()
}

// Pos returns where in the expression err lies, if it is an *Error.
func Pos(err error) (line, column int, ok bool) {
	var e *Error
	if errors.As(err, &e) {
		return e.Line, e.Column, true
	}
	return 0, 0, false
}
