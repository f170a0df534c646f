package exchange

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Class is what a numeric outcome means.
type Class uint8

// The classes.
const (
	Unclassified Class = iota
	Success
	Retry     // failed, may pass by itself
	Permanent // failed, trying again will not cure it
)

// String returns the class as people write it.
func (c Class) String() string {
	return [...]string{"unclassified", "success", "retry", "permanent"}[min(c, Permanent)]
}

// Classes says which codes an operator put in which class.
type Classes struct{ ranges []codeRange }

type codeRange struct {
	from, to int
	class    Class
	text     string
}

// ParseClasses reads three lists of codes, each "75", "500-599" or, where hi is
// 599, "5xx"; lo and hi bound what a code may be. A code in two lists is an error.
func ParseClasses(success, retry, permanent []string, lo, hi int) (Classes, error) {
	var c Classes
	for _, list := range []struct {
		class Class
		codes []string
	}{{Success, success}, {Retry, retry}, {Permanent, permanent}} {
		for _, text := range list.codes {
			r, err := parseRange(text, lo, hi)
			if err != nil {
				return Classes{}, fmt.Errorf("%s: %w", list.class, err)
			}
			r.class = list.class
			for _, o := range c.ranges {
				if o.class != r.class && r.from <= o.to && o.from <= r.to {
					return Classes{}, fmt.Errorf("code %q is %s and %q is %s: a code has one class", o.text, o.class, r.text, r.class)
				}
			}
			c.ranges = append(c.ranges, r)
		}
	}
	return c, nil
}

// Of returns the class of code, Unclassified when no list has it.
func (c Classes) Of(code int) Class {
	i := slices.IndexFunc(c.ranges, func(r codeRange) bool { return r.from <= code && code <= r.to })
	if i < 0 {
		return Unclassified
	}
	return c.ranges[i].class
}

func parseRange(text string, lo, hi int) (codeRange, error) {
	r := codeRange{text: text}
	from, to, isRange := strings.Cut(strings.TrimSpace(text), "-")
	var err1, err2 error
	switch {
	case hi == 599 && len(from) == 3 && !isRange && strings.EqualFold(from[1:], "xx"):
		r.from, err1 = strconv.Atoi(from[:1])
		r.from *= 100
		r.to = r.from + 99
	case isRange:
		r.from, err1 = strconv.Atoi(strings.TrimSpace(from))
		r.to, err2 = strconv.Atoi(strings.TrimSpace(to))
	default:
		r.from, err1 = strconv.Atoi(from)
		r.to = r.from
	}
	if err1 != nil || err2 != nil || r.from < lo || r.to > hi || r.from > r.to {
		return codeRange{}, fmt.Errorf("code %q: want a number from %d to %d or a range such as %d-%d", text, lo, hi, hi-99, hi)
	}
	return r, nil
}
