package expr

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/apd/v3"
)

// Number is a compiled arithmetic expression over columns, such as
// "balance + credit". It knows columns, with their table or without, decimal literals, + - * / and brackets,
// and counts exactly: it is what thresholds judge, for every change, so it is not
// CEL. It is safe for concurrent use.
type Number struct {
	text    string
	columns []string
	places  []place // where each column first stands
	steps   []step
}

// step is one step of a stack machine.
type step struct {
	op      byte // 'c' push column, 'n' push literal, '+', '-', '*', '/', '~' negate
	column  int
	literal *apd.Decimal
}

// maxDepth bounds nesting in a Number's text.
const maxDepth = 100

// CompileNumber compiles an arithmetic expression. Errors are *Error.
func CompileNumber(text string) (*Number, error) {
	p := numberParser{text: text, n: &Number{text: text}}
	if err := p.sum(0); err != nil {
		return nil, err
	}
	if p.blank(); p.at < len(p.text) {
		return nil, p.fail("unexpected %q", p.text[p.at:p.at+1])
	}
	return p.n, nil
}

// String returns the expression's text.
func (n *Number) String() string { return n.text }

// Columns returns the columns the expression looks at, in the order in which they
// first stand in it.
func (n *Number) Columns() []string { return n.columns }

// Place returns where Columns()[i] first stands, counted as in Error.
func (n *Number) Place(i int) (line, column int) { return n.places[i].line, n.places[i].column }

// Rename returns the expression over columns of other names. The text stays.
func (n *Number) Rename(name func(string) string) *Number {
	r := *n
	r.columns = make([]string, len(n.columns))
	for i, c := range n.columns {
		r.columns[i] = name(c)
	}
	return &r
}

// Eval computes the expression. column gives the value of Columns()[i]; when it
// returns false, and when the result is not exact (a division by zero), so does
// Eval.
func (n *Number) Eval(column func(i int) (*apd.Decimal, bool)) (*apd.Decimal, bool) {
	var stack []*apd.Decimal
	for _, s := range n.steps {
		switch s.op {
		case 'n':
			stack = append(stack, s.literal)
			continue
		case 'c':
			v, ok := column(s.column)
			if !ok {
				return nil, false
			}
			stack = append(stack, v)
			continue
		case '~':
			stack[len(stack)-1] = new(apd.Decimal).Neg(stack[len(stack)-1])
			continue
		}
		x, y := stack[len(stack)-2], stack[len(stack)-1]
		z := new(apd.Decimal)
		var err error
		var cond apd.Condition
		switch s.op {
		case '+':
			cond, err = context.Add(z, x, y)
		case '-':
			cond, err = context.Sub(z, x, y)
		case '*':
			cond, err = context.Mul(z, x, y)
		case '/':
			cond, err = context.Quo(z, x, y)
		}
		if err != nil || cond.DivisionByZero() {
			return nil, false
		}
		stack = append(stack[:len(stack)-2], z)
	}
	return stack[0], true
}

type numberParser struct {
	text string
	at   int
	n    *Number
}

func (p *numberParser) place(at int) place {
	before := p.text[:at]
	return place{1 + strings.Count(before, "\n"), at - strings.LastIndex(before, "\n")}
}

func (p *numberParser) fail(format string, args ...any) error {
	at := p.place(p.at)
	return &Error{
		Line: at.line, Column: at.column,
		Text: fmt.Sprintf(format, args...) + "; want columns, numbers, + - * / and brackets, as in balance + credit",
	}
}

func (p *numberParser) blank() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// peek returns the next byte that is not blank, 0 at the end.
func (p *numberParser) peek() byte {
	if p.blank(); p.at == len(p.text) {
		return 0
	}
	return p.text[p.at]
}

func (p *numberParser) sum(depth int) error {
	if err := p.product(depth); err != nil {
		return err
	}
	for op := p.peek(); op == '+' || op == '-'; op = p.peek() {
		p.at++
		if err := p.product(depth); err != nil {
			return err
		}
		p.n.steps = append(p.n.steps, step{op: op})
	}
	return nil
}

func (p *numberParser) product(depth int) error {
	if err := p.factor(depth); err != nil {
		return err
	}
	for op := p.peek(); op == '*' || op == '/'; op = p.peek() {
		p.at++
		if err := p.factor(depth); err != nil {
			return err
		}
		p.n.steps = append(p.n.steps, step{op: op})
	}
	return nil
}

func (p *numberParser) factor(depth int) error {
	if depth > maxDepth {
		return p.fail("too deeply nested")
	}
	c := p.peek()
	switch {
	case c == 0:
		return p.fail("the expression ends too early")
	case c == '-':
		p.at++
		if err := p.factor(depth + 1); err != nil {
			return err
		}
		p.n.steps = append(p.n.steps, step{op: '~'})
		return nil
	case c == '(':
		p.at++
		if err := p.sum(depth + 1); err != nil {
			return err
		}
		if p.peek() != ')' {
			return p.fail("a bracket is not closed")
		}
		p.at++
		return nil
	case c >= '0' && c <= '9' || c == '.':
		start := p.at
		for p.at < len(p.text) && (p.text[p.at] >= '0' && p.text[p.at] <= '9' || p.text[p.at] == '.') {
			p.at++
		}
		d, _, err := apd.NewFromString(p.text[start:p.at])
		if err != nil {
			p.at = start
			return p.fail("bad number")
		}
		p.n.steps = append(p.n.steps, step{op: 'n', literal: d})
		return nil
	case isNameByte(c):
		start := p.at
		for p.at < len(p.text) && (isNameByte(p.text[p.at]) || p.text[p.at] >= '0' && p.text[p.at] <= '9' || p.dotted()) {
			p.at++
		}
		name := p.text[start:p.at]
		i := slices.Index(p.n.columns, name)
		if i < 0 {
			i = len(p.n.columns)
			p.n.columns = append(p.n.columns, name)
			p.n.places = append(p.n.places, p.place(start))
		}
		p.n.steps = append(p.n.steps, step{op: 'c', column: i})
		return nil
	}
	return p.fail("unexpected %q", string(rune(c)))
}

// dotted reports a dot between two parts of a name.
func (p *numberParser) dotted() bool {
	return p.text[p.at] == '.' && p.at+1 < len(p.text) && isNameByte(p.text[p.at+1])
}

func isNameByte(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
