// Package backoff says how long to wait before an attempt is repeated.
//
// A Schedule is a value, and its Delay is a pure function of the attempt and a
// seed: the same execution at the same attempt always waits the same time, so
// that a restart changes no plan and a test needs no clock. A schedule is either
// grown (an initial delay, multiplied until a maximum) or a list that the
// operator wrote.
//
// It promises that a delay is never negative and never overflows. It keeps no
// time, counts nothing and starts nothing: that is the dispatcher's.
//
// Start with Schedule and Parse.
package backoff

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// What a Schedule's zero fields mean.
const (
	DefaultInitial  = time.Second
	DefaultMax      = 15 * time.Minute
	DefaultFactor   = 2.0
	DefaultAttempts = 10
)

// Limits of what a schedule may hold.
const (
	maxDelay    = 365 * 24 * time.Hour
	maxFactor   = 1000
	maxAttempts = 1_000_000
	maxList     = 1000
)

// Schedule is a plan of retries. The zero value waits 1s, 2s, 4s and so on up to
// 15m, without jitter, for 10 attempts in all.
type Schedule struct {
	// Initial is the delay before attempt 2; each later delay is Factor times
	// the one before, up to Max.
	Initial, Max time.Duration
	Factor       float64 // at least 1
	// List, when not empty, replaces the three above: List[0] is the delay before
	// attempt 2. Its last delay serves all later attempts.
	List []time.Duration
	// Jitter spreads every delay evenly over [1-Jitter, 1+Jitter] of itself. It is
	// between 0 and 1.
	Jitter float64
	// Attempts is how many attempts there are in all, the first included. Zero
	// means one more than List is long, or DefaultAttempts without a List.
	Attempts int
}

// Limit returns how many attempts there are in all, at least 1.
func (s Schedule) Limit() int {
	switch {
	case s.Attempts > 0:
		return s.Attempts
	case len(s.List) > 0:
		return len(s.List) + 1
	}
	return DefaultAttempts
}

// Base returns the delay before the given attempt without jitter. Attempts 1 and
// below do not wait.
func (s Schedule) Base(attempt int) time.Duration {
	if attempt < 2 {
		return 0
	}
	if len(s.List) > 0 {
		return clamp(s.List[min(attempt-2, len(s.List)-1)])
	}
	initial, limit, factor := s.Initial, s.Max, s.Factor
	if initial <= 0 {
		initial = DefaultInitial
	}
	if limit <= 0 {
		limit = max(DefaultMax, initial)
	}
	if !(factor >= 1) { // also NaN
		factor = DefaultFactor
	}
	d := float64(initial) * math.Pow(factor, float64(attempt-2))
	if !(d < float64(limit)) {
		return clamp(limit)
	}
	return clamp(time.Duration(d))
}

// Delay returns the delay before the given attempt, jitter included. The seed is
// what tells this execution from others, such as its id: the same seed and
// attempt always give the same delay.
func (s Schedule) Delay(attempt int, seed uint64) time.Duration {
	base := s.Base(attempt)
	if base == 0 || !(s.Jitter > 0) {
		return base
	}
	j := min(s.Jitter, 1)
	// 53 bits of the mixed seed are a fraction in [0, 1).
	u := float64(mix(mix(seed)+uint64(attempt))>>11) / (1 << 53)
	return clamp(time.Duration(float64(base) * (1 - j + 2*j*u)))
}

// Total returns how long a schedule lasts from its first attempt to its last,
// without jitter and without the time the attempts themselves take.
func (s Schedule) Total() time.Duration {
	var sum time.Duration
	for n := 2; n <= s.Limit(); n++ {
		d := s.Base(n)
		if d == s.Base(n+1) && n >= len(s.List)+2 {
			// Every later delay is the same.
			rest := float64(d) * float64(s.Limit()-n+1)
			return time.Duration(min(float64(sum)+rest, math.MaxInt64/2))
		}
		if sum += d; sum > math.MaxInt64/4 {
			return math.MaxInt64 / 2
		}
	}
	return sum
}

// Validate reports what makes s senseless.
func (s Schedule) Validate() error {
	duration := func(name string, d time.Duration) error {
		if d < 0 || d > maxDelay {
			return fmt.Errorf("%s %s: want 0 to 365d", name, FormatDuration(d))
		}
		return nil
	}
	if err := errors.Join(duration("initial", s.Initial), duration("max", s.Max)); err != nil {
		return err
	}
	for _, d := range s.List {
		if err := duration("delay", d); err != nil {
			return err
		}
	}
	switch {
	case len(s.List) > maxList:
		return fmt.Errorf("a list of %d delays: want at most %d", len(s.List), maxList)
	case len(s.List) > 0 && (s.Initial != 0 || s.Max != 0 || s.Factor != 0):
		return errors.New("a list of delays leaves no room for initial, max or factor: give one or the other")
	case s.Max != 0 && s.Initial > s.Max:
		return fmt.Errorf("initial %s is above max %s", FormatDuration(s.Initial), FormatDuration(s.Max))
	case s.Factor != 0 && !(s.Factor >= 1 && s.Factor <= maxFactor):
		return fmt.Errorf("factor %v: want 1 to %d", s.Factor, maxFactor)
	case !(s.Jitter >= 0 && s.Jitter <= 1):
		return fmt.Errorf("jitter %v: want 0 to 1", s.Jitter)
	case s.Attempts < 0 || s.Attempts > maxAttempts:
		return fmt.Errorf("attempts %d: want 1 to %d", s.Attempts, maxAttempts)
	}
	return nil
}

// String returns the text that Parse reads back: "15s, 1m, 10m" for a list,
// "initial=1s factor=2 max=15m" for a grown schedule, followed by "jitter=0.2"
// and "attempts=10" where they are set. The zero Schedule is "".
func (s Schedule) String() string {
	var parts []string
	if len(s.List) > 0 {
		list := make([]string, len(s.List))
		for i, d := range s.List {
			list[i] = FormatDuration(d)
		}
		parts = append(parts, strings.Join(list, ", "))
	}
	if s.Initial != 0 {
		parts = append(parts, "initial="+FormatDuration(s.Initial))
	}
	if s.Factor != 0 {
		parts = append(parts, "factor="+strconv.FormatFloat(s.Factor, 'g', -1, 64))
	}
	if s.Max != 0 {
		parts = append(parts, "max="+FormatDuration(s.Max))
	}
	if s.Jitter != 0 {
		parts = append(parts, "jitter="+strconv.FormatFloat(s.Jitter, 'g', -1, 64))
	}
	if s.Attempts != 0 {
		parts = append(parts, "attempts="+strconv.Itoa(s.Attempts))
	}
	return strings.Join(parts, " ")
}

// Describe returns the schedule as a person wants to see it before trusting it:
// "10 attempts in 17m3s: 1s, 2s, 4s, 8s, 16s, ... 5m, each ±20%".
func (s Schedule) Describe() string {
	n := s.Limit()
	if n == 1 {
		return "1 attempt, no retries"
	}
	const shown = 8
	var list []string
	for a := 2; a <= n; a++ {
		if len(list) == shown-1 && a < n {
			list = append(list, "...", FormatDuration(round(s.Base(n))))
			break
		}
		list = append(list, FormatDuration(round(s.Base(a))))
	}
	text := fmt.Sprintf("%d attempts in %s: %s", n, FormatDuration(round(s.Total())), strings.Join(list, ", "))
	if s.Jitter > 0 {
		text += fmt.Sprintf(", each ±%s%%", strconv.FormatFloat(math.Round(s.Jitter*1000)/10, 'f', -1, 64))
	}
	return text
}

// Parse reads what String prints. Delays of a list are parted by commas or
// spaces; settings may come in any order, each once.
func Parse(text string) (Schedule, error) {
	var s Schedule
	seen := map[string]bool{}
	for field := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }) {
		name, value, isSetting := strings.Cut(field, "=")
		if !isSetting {
			d, err := ParseDuration(field)
			if err != nil {
				return Schedule{}, fmt.Errorf("parse schedule %q: %w", text, err)
			}
			s.List = append(s.List, d)
			continue
		}
		if seen[name] {
			return Schedule{}, fmt.Errorf("parse schedule %q: %s is given twice", text, name)
		}
		seen[name] = true
		var err error
		switch name {
		case "initial":
			s.Initial, err = ParseDuration(value)
		case "max":
			s.Max, err = ParseDuration(value)
		case "factor":
			s.Factor, err = strconv.ParseFloat(value, 64)
		case "jitter":
			s.Jitter, err = strconv.ParseFloat(value, 64)
		case "attempts":
			s.Attempts, err = strconv.Atoi(value)
		default:
			err = errors.New("no such setting; there are initial, factor, max, jitter, attempts")
		}
		if err != nil {
			return Schedule{}, fmt.Errorf("parse schedule %q: %s: %w", text, name, err)
		}
	}
	if err := s.Validate(); err != nil {
		return Schedule{}, fmt.Errorf("parse schedule %q: %w", text, err)
	}
	return s, nil
}

// clamp keeps what a caller put in a Schedule without Validate from doing harm.
func clamp(d time.Duration) time.Duration { return min(max(d, 0), 2*maxDelay) }

// mix is the finaliser of splitmix64: neighbouring seeds give unrelated numbers.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// round drops digits nobody reads.
func round(d time.Duration) time.Duration {
	switch {
	case d >= time.Hour:
		return d.Round(time.Minute)
	case d >= time.Minute:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(100 * time.Millisecond)
	}
	return d
}
