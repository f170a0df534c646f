package backoff

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseDuration reads a duration as time.ParseDuration does, with days in front:
// "1d", "1d12h", "90s". A negative or a bare number other than 0 is refused.
func ParseDuration(text string) (time.Duration, error) {
	bad := func(why string) (time.Duration, error) {
		return 0, fmt.Errorf("duration %q: %s", text, why)
	}
	rest := text
	var days time.Duration
	if number, after, ok := strings.Cut(text, "d"); ok {
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n > uint64(100*365) {
			return bad("want a whole number of days before d, as in 1d12h")
		}
		days, rest = time.Duration(n)*day, after
		if rest == "" {
			return days, nil
		}
	}
	if strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") {
		return bad("want no sign")
	}
	d, err := time.ParseDuration(rest)
	switch {
	case err != nil:
		return bad("want a number and a unit: ms, s, m, h or d, as in 90s, 1h30m, 1d")
	case days > 0 && d > 100*365*day:
		return bad("too long")
	}
	return days + d, nil
}

// FormatDuration returns the shortest text that ParseDuration reads back to d:
// "1d12h", "1m", "1.5s". Only a negative d, which ParseDuration refuses, does not
// come back.
func FormatDuration(d time.Duration) string {
	if d < 0 {
		return d.String()
	}
	var b []byte
	if d >= day {
		b = strconv.AppendInt(b, int64(d/day), 10)
		b = append(b, 'd')
		if d %= day; d == 0 {
			return string(b)
		}
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return string(b) + text
}
