package config

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Expr is a piece of source text (a CEL condition, a threshold's expression, a
// template) with its place. The loader keeps it as written, without ${}
// interpolation; whoever compiles it reports mistakes with At.
type Expr struct {
	Text string
	Pos  Pos // where the value starts in the file

	origin origin
}

// IsZero reports whether there is no expression.
func (e Expr) IsZero() bool { return e.Text == "" }

// String returns the text.
func (e Expr) String() string { return e.Text }

// MarshalText returns the text.
func (e Expr) MarshalText() ([]byte, error) { return []byte(e.Text), nil }

// MarshalYAML returns the text.
func (e Expr) MarshalYAML() (any, error) { return e.Text, nil }

// At translates a line and a column inside Text, both from 1 and the column in
// characters, into a place in the file. Where YAML does not tell (a folded or an
// escaped value) it returns the place where the value starts.
func (e Expr) At(line, column int) Pos {
	p := e.Pos
	line, column = max(line, 1), max(column, 1)
	switch {
	case e.origin.block:
		p.Line += line
		p.Column = e.origin.indent + column
	case e.origin.exact && line == 1:
		p.Column += e.origin.indent + column - 1
	}
	return p
}

// origin says how a scalar lies in its file.
type origin struct {
	exact  bool // one line, character for character
	block  bool // a literal block: text starts on the next line
	indent int  // exact: characters before the text (a quote); block: the block's indentation
}

// Text is a value that is passed on as text: numbers and booleans may stand
// without quotes and keep their digits.
type Text string

// Decimal is an exact decimal number as it was written, such as "-0.5". It is
// never a float.
type Decimal string

// ParseDecimal reads an optional sign, digits and an optional fraction.
func ParseDecimal(s string) (Decimal, error) {
	digits := strings.TrimPrefix(s, "-")
	whole, fraction, dot := strings.Cut(digits, ".")
	if !allDigits(whole) || dot && !allDigits(fraction) {
		return "", fmt.Errorf("%q is not a decimal number", s)
	}
	if len(whole) > 1 && whole[0] == '0' {
		return "", fmt.Errorf("%q starts with a zero, which some YAML readers take for an octal number", s)
	}
	return Decimal(s), nil
}

// String returns the number as written.
func (d Decimal) String() string { return string(d) }

// IsZero reports whether no number was given; "0" is a number.
func (d Decimal) IsZero() bool { return d == "" }

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// ByteSize is a number of bytes.
type ByteSize int64

// ParseByteSize reads "512B", "64KiB", "1MiB", "2GiB", and "64KB" and the like in
// powers of 1000.
func ParseByteSize(s string) (ByteSize, error) {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.ParseInt(s[:i], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	var unit int64
	switch strings.TrimSpace(s[i:]) {
	case "B":
		unit = 1
	case "KB", "kB":
		unit = 1000
	case "KiB":
		unit = 1 << 10
	case "MB":
		unit = 1000 * 1000
	case "MiB":
		unit = 1 << 20
	case "GB":
		unit = 1000 * 1000 * 1000
	case "GiB":
		unit = 1 << 30
	case "":
		return 0, fmt.Errorf("%q has no unit", s)
	default:
		return 0, fmt.Errorf("%q has an unknown unit", s)
	}
	if n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return ByteSize(n * unit), nil
}

// String returns the size in the largest unit that divides it, such as "64KiB".
func (b ByteSize) String() string {
	for _, u := range []struct {
		size ByteSize
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// MarshalText returns String.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// ParseDuration reads a sum of whole or decimal numbers with a unit each: ms, s,
// m, h, d (24 hours), w (7 days), as in "1m30s" or "30d".
func ParseDuration(s string) (time.Duration, error) {
	if s == "" {
		return 0, fmt.Errorf("%q is not a duration", s)
	}
	if allDigits(s) {
		return 0, fmt.Errorf("%q has no unit", s)
	}
	var total float64
	for rest := s; rest != ""; {
		i := 0
		for i < len(rest) && (rest[i] >= '0' && rest[i] <= '9' || rest[i] == '.') {
			i++
		}
		n, err := strconv.ParseFloat(rest[:i], 64)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration", s)
		}
		rest = rest[i:]
		i = 0
		for i < len(rest) && rest[i] >= 'a' && rest[i] <= 'z' {
			i++
		}
		var unit time.Duration
		switch rest[:i] {
		case "ms":
			unit = time.Millisecond
		case "s":
			unit = time.Second
		case "m":
			unit = time.Minute
		case "h":
			unit = time.Hour
		case "d":
			unit = 24 * time.Hour
		case "w":
			unit = 7 * 24 * time.Hour
		case "":
			return 0, fmt.Errorf("%q ends without a unit", s)
		default:
			return 0, fmt.Errorf("%q has the unknown unit %q", s, rest[:i])
		}
		rest = rest[i:]
		total += n * float64(unit)
	}
	if total > float64(100*365*24*time.Hour) {
		return 0, fmt.Errorf("%q is longer than a hundred years", s)
	}
	return time.Duration(math.Round(total)), nil
}

// Rate is at most Count attempts in each Per; the zero Rate is no limit.
type Rate struct {
	Count int
	Per   time.Duration // a second, a minute or an hour
}

// ParseRate reads "50/s", "600/m" or "1000/h".
func ParseRate(s string) (Rate, error) {
	count, per, ok := strings.Cut(s, "/")
	n, err := strconv.Atoi(strings.TrimSpace(count))
	if !ok || err != nil || n < 1 {
		return Rate{}, fmt.Errorf("%q is not a rate", s)
	}
	switch strings.TrimSpace(per) {
	case "s":
		return Rate{n, time.Second}, nil
	case "m":
		return Rate{n, time.Minute}, nil
	case "h":
		return Rate{n, time.Hour}, nil
	}
	return Rate{}, fmt.Errorf("%q has an unknown unit of time", s)
}

// IsZero reports whether there is no limit.
func (r Rate) IsZero() bool { return r.Count == 0 }

// String returns "50/s", or "" when there is no limit.
func (r Rate) String() string {
	if r.IsZero() {
		return ""
	}
	per := "s"
	switch r.Per {
	case time.Minute:
		per = "m"
	case time.Hour:
		per = "h"
	}
	return strconv.Itoa(r.Count) + "/" + per
}

// MarshalText returns String.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Table is the name of a table, letter for letter as Postgres has it: nothing is
// folded to lower case.
type Table struct {
	Schema string // "public" when the file does not say
	Name   string
}

// ParseTable reads "clients", "public.clients" or, for names with a dot,
// `"my.schema"."my.table"` with double quotes as in SQL.
func ParseTable(s string) (Table, error) {
	bad := func(why string) (Table, error) { return Table{}, fmt.Errorf("%q is not a table name: %s", s, why) }
	var parts []string
	for rest := s; ; {
		var part string
		if strings.HasPrefix(rest, `"`) {
			rest = rest[1:]
			for {
				i := strings.IndexByte(rest, '"')
				if i < 0 {
					return bad("a quote is not closed")
				}
				part += rest[:i]
				rest = rest[i+1:]
				if !strings.HasPrefix(rest, `"`) {
					break
				}
				part += `"`
				rest = rest[1:]
			}
		} else {
			i := strings.IndexByte(rest, '.')
			if i < 0 {
				i = len(rest)
			}
			part, rest = rest[:i], rest[i:]
			if strings.ContainsAny(part, " \t\"'`;(),") {
				return bad("it holds a blank, a quote or punctuation")
			}
		}
		if part == "" {
			return bad("a part is empty")
		}
		if len(part) > 63 || !utf8.ValidString(part) || strings.ContainsRune(part, 0) {
			return bad("a part is longer than 63 bytes or not UTF-8")
		}
		parts = append(parts, part)
		if rest == "" {
			break
		}
		if rest[0] != '.' {
			return bad("want schema.table")
		}
		rest = rest[1:]
	}
	switch len(parts) {
	case 1:
		return Table{"public", parts[0]}, nil
	case 2:
		return Table{parts[0], parts[1]}, nil
	}
	return bad("want schema.table")
}

// IsZero reports whether there is no name.
func (t Table) IsZero() bool { return t == Table{} }

// String returns "schema.table", with double quotes around a part that has a dot
// or a quote in it; ParseTable reads it back.
func (t Table) String() string {
	if t.IsZero() {
		return ""
	}
	quote := func(s string) string {
		if strings.ContainsAny(s, ". \t\"'`;(),") {
			return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
		}
		return s
	}
	return quote(t.Schema) + "." + quote(t.Name)
}

// MarshalText returns String.
func (t Table) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// Columns is a list of column names. In YAML one column may stand without
// brackets.
type Columns []string

// Addresses is a set of networks. In YAML it is a list of addresses ("10.1.2.3"),
// networks ("10.0.0.0/8") and the words private, loopback and link_local.
type Addresses []netip.Prefix

// parseAddresses reads one item of the list.
func parseAddresses(s string) (Addresses, error) {
	var texts []string
	switch s {
	case "private":
		texts = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"}
	case "loopback":
		texts = []string{"127.0.0.0/8", "::1/128"}
	case "link_local":
		texts = []string{"169.254.0.0/16", "fe80::/10"}
	default:
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return Addresses{netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())}, nil
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a network", s)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%q has bits set after its prefix, write %s", s, p.Masked())
		}
		return Addresses{p}, nil
	}
	var as Addresses
	for _, t := range texts {
		as = append(as, netip.MustParsePrefix(t))
	}
	return as, nil
}

// StatusClass is an HTTP status such as "429", a class such as "5xx" or a range
// such as "500-504".
type StatusClass string

// ParseStatusClass reads statuses from 100 to 599.
func ParseStatusClass(s string) (StatusClass, error) {
	if len(s) == 3 && s[0] >= '1' && s[0] <= '5' && s[1:] == "xx" {
		return StatusClass(s), nil
	}
	if err := codes(s, 100, 599); err != nil {
		return "", fmt.Errorf("%q is neither an HTTP status nor a class", s)
	}
	return StatusClass(s), nil
}

// Range returns the first and the last status that are meant.
func (c StatusClass) Range() (from, to int) {
	if hundreds, ok := strings.CutSuffix(string(c), "xx"); ok {
		n, _ := strconv.Atoi(hundreds)
		return n * 100, n*100 + 99
	}
	return codeRange(string(c))
}

// ExitCode is an exit code such as "75", or a range such as "10-19".
type ExitCode string

// ParseExitCode reads codes from 0 to 255.
func ParseExitCode(s string) (ExitCode, error) {
	if err := codes(s, 0, 255); err != nil {
		return "", fmt.Errorf("%q is no exit code", s)
	}
	return ExitCode(s), nil
}

// Range returns the first and the last code that are meant.
func (c ExitCode) Range() (from, to int) { return codeRange(string(c)) }

// codes checks a code or a range of codes within bounds.
func codes(s string, lowest, highest int) error {
	for _, part := range strings.SplitN(s, "-", 2) {
		if !allDigits(part) || len(part) > 3 || len(part) > 1 && part[0] == '0' {
			return fmt.Errorf("%q is no code", s)
		}
	}
	if from, to := codeRange(s); from < lowest || to > highest || from > to {
		return fmt.Errorf("%q is out of range", s)
	}
	return nil
}

func codeRange(s string) (from, to int) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	from, _ = strconv.Atoi(first)
	to, _ = strconv.Atoi(last)
	return from, to
}
