package demo

import (
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// screen writes what happens, one line per thing, to a terminal that a person
// reads: when more happens than one can read, lines that matter less are left
// out and counted.
type screen struct {
	color bool

	mu      sync.Mutex
	w       io.Writer
	start   time.Time
	limit   *rate.Limiter
	skipped int
	err     error // the first failed write; there are no more after it
}

// tint is a colour, as a terminal's escape sequence.
type tint string

const (
	plain  tint = ""
	dim    tint = "\x1b[2m"
	bold   tint = "\x1b[1m"
	red    tint = "\x1b[31m"
	green  tint = "\x1b[32m"
	yellow tint = "\x1b[33m"
	cyan   tint = "\x1b[36m"
)

func newScreen(w io.Writer, color bool) *screen {
	return &screen{w: w, color: color, start: time.Now(), limit: rate.NewLimiter(12, 24)}
}

// happened writes a line with the time and who it happened to, or counts it when
// there are too many and it does not matter.
func (s *screen) happened(matters bool, c tint, who, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.limit.Allow() && !matters {
		s.skipped++
		return
	}
	s.write(fmt.Sprintf("%s %s %s\n", s.paint(dim, fmt.Sprintf("%6.2fs", time.Since(s.start).Seconds())), s.paint(c, fmt.Sprintf("%-8s", who)), text))
}

// print writes text as it is.
func (s *screen) print(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(fmt.Sprintf(format, args...))
}

// leftOut returns how many lines were not written since the last call.
func (s *screen) leftOut() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.skipped
	s.skipped = 0
	return n
}

// paint colours text, if this is a terminal. It is safe without the lock.
func (s *screen) paint(c tint, text string) string {
	if !s.color || c == plain {
		return text
	}
	return string(c) + text + "\x1b[0m"
}

func (s *screen) write(text string) {
	if s.err == nil {
		_, s.err = io.WriteString(s.w, text)
	}
}
