package billing

import (
	"fmt"
	"strings"

	"github.com/cockroachdb/apd/v3"
)

// Decimal is an exact decimal number. The zero value is 0.
type Decimal struct{ d *apd.Decimal }

// ParseDecimal reads a number such as "-0.50" or "1e3". NaN and infinities are
// no thresholds and are refused.
func ParseDecimal(s string) (Decimal, error) {
	d, _, err := apd.NewFromString(strings.TrimSpace(s))
	if err != nil || d.Form != apd.Finite {
		return Decimal{}, fmt.Errorf("parse number %q: want a decimal such as 10 or -0.5", s)
	}
	if d.IsZero() {
		return Decimal{}, nil
	}
	return Decimal{d}, nil
}

// String returns the number in plain notation.
func (d Decimal) String() string {
	if d.d == nil {
		return "0"
	}
	return d.d.Text('f')
}

// plus returns d + e.
func (d Decimal) plus(e Decimal) Decimal {
	if d.d == nil {
		return e
	}
	if e.d == nil {
		return d
	}
	var z apd.Decimal
	if _, err := apd.BaseContext.WithPrecision(200).Add(&z, d.d, e.d); err != nil || z.IsZero() {
		return Decimal{}
	}
	return Decimal{&z}
}

// standing is where a value is, seen from a threshold.
type standing uint8

const (
	nowhere standing = iota // NULL, NaN or not a number: no crossing to or from here
	below
	at
	above
)

// stand compares a number in Postgres' text form with the threshold.
func (d Decimal) stand(text []byte) standing {
	if d.d == nil {
		return sign(text)
	}
	var v apd.Decimal
	if _, _, err := v.SetString(string(text)); err != nil {
		return nowhere
	}
	return d.compare(&v)
}

// compare is stand for a number.
func (d Decimal) compare(v *apd.Decimal) standing {
	switch {
	case v.Form == apd.NaN || v.Form == apd.NaNSignaling:
		return nowhere
	case v.Form == apd.Infinite:
		if v.Negative {
			return below
		}
		return above
	}
	other := d.d
	if other == nil {
		other = new(apd.Decimal)
	}
	switch v.Cmp(other) {
	case -1:
		return below
	case 0:
		return at
	}
	return above
}

// sign is stand for a threshold of zero, by looking at the text alone: any digit
// but 0 makes it what its sign says. It takes every form numeric, integer, money
// and float columns print.
func sign(text []byte) standing {
	if len(text) == 0 {
		return nowhere
	}
	side := above
	switch text[0] {
	case '-':
		side = below
		text = text[1:]
	case '+':
		text = text[1:]
	}
	digits := false
	for i, c := range text {
		switch {
		case c >= '1' && c <= '9':
			return side
		case c == '0':
			digits = true
		case c == 'e' || c == 'E':
			if digits {
				return at
			}
			return nowhere
		case c == '.' || c == ',' || c == '$':
		case (c == 'I' || c == 'i') && i == 0:
			return side // Infinity
		default:
			return nowhere // NaN, or no number at all
		}
	}
	if digits {
		return at
	}
	return nowhere
}
