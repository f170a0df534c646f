package backoff_test

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/billhook/billhook/internal/backoff"
)

func delays(s backoff.Schedule, n int) string {
	var out []string
	for a := 1; a <= n; a++ {
		out = append(out, backoff.FormatDuration(s.Delay(a, 1)))
	}
	return strings.Join(out, " ")
}

func TestDelay(t *testing.T) {
	for _, tc := range []struct {
		name string
		s    backoff.Schedule
		want string
	}{
		{"zero value", backoff.Schedule{}, "0s 1s 2s 4s 8s 16s"},
		{"capped", backoff.Schedule{Initial: time.Second, Max: 5 * time.Second}, "0s 1s 2s 4s 5s 5s"},
		{"factor", backoff.Schedule{Initial: time.Second, Factor: 10, Max: time.Hour}, "0s 1s 10s 1m40s 16m40s 1h"},
		{"constant", backoff.Schedule{Initial: time.Minute, Factor: 1}, "0s 1m 1m 1m 1m 1m"},
		{"initial above the default maximum", backoff.Schedule{Initial: time.Hour}, "0s 1h 1h 1h 1h 1h"},
		{"list repeats its last", backoff.Schedule{List: []time.Duration{time.Second, time.Hour}}, "0s 1s 1h 1h 1h 1h"},
		{"nonsense does no harm", backoff.Schedule{Initial: -1, Factor: math.NaN(), Jitter: math.NaN()}, "0s 1s 2s 4s 8s 16s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := delays(tc.s, 6); got != tc.want {
				t.Errorf("delays = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestDelayFarAttempts(t *testing.T) {
	s := backoff.Schedule{Initial: time.Second, Max: time.Hour, Factor: 1000}
	for _, a := range []int{math.MinInt, -1, 0, 1, 1000, math.MaxInt} {
		if d := s.Delay(a, 0); d < 0 || d > time.Hour {
			t.Errorf("Delay(%d) = %s, want 0 to 1h", a, d)
		}
	}
}

func TestJitter(t *testing.T) {
	s := backoff.Schedule{Initial: 100 * time.Second, Factor: 1, Jitter: 0.2}
	const n = 10_000
	var sum, lowest, highest time.Duration
	lowest = math.MaxInt64
	for seed := range uint64(n) {
		d := s.Delay(2, seed)
		if d != s.Delay(2, seed) {
			t.Fatal("the same seed and attempt gave two delays")
		}
		sum, lowest, highest = sum+d, min(lowest, d), max(highest, d)
	}
	if lowest < 80*time.Second || highest > 120*time.Second {
		t.Errorf("delays from %s to %s, want 80s to 120s", lowest, highest)
	}
	if lowest > 81*time.Second || highest < 119*time.Second {
		t.Errorf("delays from %s to %s do not fill 80s to 120s", lowest, highest)
	}
	if mean := sum / n; mean < 99*time.Second || mean > 101*time.Second {
		t.Errorf("mean delay %s, want about 100s", mean)
	}
	// Neighbouring attempts of one execution differ too.
	if s.Delay(2, 7) == s.Delay(3, 7) {
		t.Error("attempts 2 and 3 have the same jitter")
	}
}

// TestJitterIsStable pins the numbers: they are part of what a restart repeats.
func TestJitterIsStable(t *testing.T) {
	s := backoff.Schedule{Initial: time.Second, Factor: 1, Jitter: 0.5}
	var got []time.Duration
	for seed := range uint64(3) {
		got = append(got, s.Delay(2, seed).Round(time.Millisecond))
	}
	want := []time.Duration{1010 * time.Millisecond, 1238 * time.Millisecond, 1080 * time.Millisecond}
	if !slices.Equal(got, want) {
		t.Errorf("delays %v, want %v", got, want)
	}
}

func TestLimitTotalDescribe(t *testing.T) {
	for _, tc := range []struct {
		text     string
		limit    int
		total    time.Duration
		describe string
	}{
		{"", 10, 511 * time.Second, "10 attempts in 8m31s: 1s, 2s, 4s, 8s, 16s, 32s, 1m4s, ..., 4m16s"},
		{"attempts=1", 1, 0, "1 attempt, no retries"},
		{"15s, 1m, 10m, 1h, 6h, 1d", 7, 31*time.Hour + 11*time.Minute + 15*time.Second, "7 attempts in 1d7h11m: 15s, 1m, 10m, 1h, 6h, 1d"},
		{"1s 2s attempts=5 jitter=0.125", 5, 7 * time.Second, "5 attempts in 7s: 1s, 2s, 2s, 2s, each ±12.5%"},
		{"initial=1h factor=1 max=1h attempts=1000000", 1_000_000, 999_999 * time.Hour, "1000000 attempts in 41666d15h: 1h, 1h, 1h, 1h, 1h, 1h, 1h, ..., 1h"},
	} {
		t.Run(tc.text, func(t *testing.T) {
			s, err := backoff.Parse(tc.text)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Limit(); got != tc.limit {
				t.Errorf("Limit = %d, want %d", got, tc.limit)
			}
			if got := s.Total(); got != tc.total {
				t.Errorf("Total = %s, want %s", got, tc.total)
			}
			if got := s.Describe(); got != tc.describe {
				t.Errorf("Describe = %s, want %s", got, tc.describe)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "",
		"15s,1m,  10m":                     "15s, 1m, 10m",
		"max=15m initial=1s":               "initial=1s max=15m",
		"1d12h, 1d, 0s":                    "1d12h, 1d, 0s",
		"24h jitter=0.2":                   "1d jitter=0.2",
		"initial=1s factor=1.5 attempts=3": "initial=1s factor=1.5 attempts=3",
	} {
		s, err := backoff.Parse(text)
		if err != nil {
			t.Errorf("Parse(%q): %v", text, err)
			continue
		}
		if got := s.String(); got != want {
			t.Errorf("Parse(%q).String() = %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"5":                     "want a number and a unit",
		"-5s":                   "want no sign",
		"+5s":                   "want no sign",
		"1.5d":                  "whole number of days",
		"1d-2h":                 "want no sign",
		"jitter=2":              "want 0 to 1",
		"jitter=NaN":            "want 0 to 1",
		"factor=0.5":            "want 1 to 1000",
		"attempts=-1":           "want 1 to",
		"initial=1h max=1m":     "initial 1h is above max 1m",
		"1s factor=2":           "leaves no room",
		"fudge=1":               "there are initial, factor, max, jitter, attempts",
		"max=1s max=2s":         "max is given twice",
		"400d":                  "want 0 to 365d",
		"99999999999999999999d": "whole number of days",
	} {
		if _, err := backoff.Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %v, want an error with %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "15s, 1m, 10m, 1h, 6h, 1d", "initial=1s factor=2 max=15m jitter=0.2 attempts=10", "1d12h30m1.5s",
		"jitter=1e-300", "factor=1e2", "1ns", "9223372036s", "36500d", "\x00", "=", "1s,,,2s", "365d365d",
	} {
		f.Add(s, 3, uint64(1))
	}
	f.Fuzz(func(t *testing.T, text string, attempt int, seed uint64) {
		s, err := backoff.Parse(text)
		if err != nil {
			return
		}
		again, err := backoff.Parse(s.String())
		if err != nil {
			t.Fatalf("Parse(%q) gives %q, which does not parse: %v", text, s, err)
		}
		if again.String() != s.String() || again.Limit() != s.Limit() {
			t.Fatalf("%q reads back as %q", s, again)
		}
		if d := s.Delay(attempt, seed); d != again.Delay(attempt, seed) || d < 0 || d > 2*365*24*time.Hour {
			t.Fatalf("Delay(%d, %d) of %q = %s", attempt, seed, s, d)
		}
		if s.Total() < 0 {
			t.Fatalf("Total of %q = %s", s, s.Total())
		}
		_ = s.Describe()
	})
}
