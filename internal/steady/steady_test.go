package steady

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestClock(t *testing.T) {
	t.Parallel()
	const s, ms, h = time.Second, time.Millisecond, time.Hour
	type reading struct{ monotonic, wall, want time.Duration }
	for name, readings := range map[string][]reading{
		"nothing happens":     {{0, 0, 0}, {s, s, s}, {h, h, h}},
		"set back":            {{s, s, s}, {2 * s, 2*s - h, 2 * s}, {3 * s, 3*s - h, 3 * s}},
		"set forward":         {{s, s, s}, {2 * s, 2*s + h, 2*s + h}, {3 * s, 3*s + h, 3*s + h}},
		"forward, then right": {{s, s + h, s + h}, {2 * s, 2 * s, 2*s + h}, {3 * s, 3 * s, 3*s + h}},
		"back, then right":    {{s, s - h, s}, {2 * s, 2 * s, 2*s + h}},
		"twice forward":       {{s, s + h, s + h}, {2 * s, 2*s + 3*h, 2*s + 3*h}},
		"slept":               {{s, s, s}, {s, 2 * h, 2 * h}},
		"disciplined":         {{s, s + 99*ms, s}, {2 * s, 2*s + 100*ms, 2*s + 100*ms}, {3 * s, 3*s + 150*ms, 3*s + 100*ms}},
		"disciplined back":    {{s, s - 99*ms, s}, {2 * s, 2*s - 150*ms, 2 * s}, {3 * s, 3 * s, 3*s + 150*ms}},
	} {
		c := New()
		last := time.Duration(0)
		for i, r := range readings {
			got := c.at(r.monotonic, r.wall).Sub(c.begin.Round(0))
			if got != r.want {
				t.Errorf("%s: reading %d is %s, want %s", name, i, got, r.want)
			}
			if got < last {
				t.Errorf("%s: reading %d has gone back to %s from %s", name, i, got, last)
			}
			last = got
		}
	}
}

func TestNow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := New()
		time.Sleep(time.Hour)
		if got := c.Now(); !got.Equal(time.Now()) {
			t.Errorf("%s, want %s", got, time.Now())
		}
	})
}
