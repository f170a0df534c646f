// Package steady tells a time for those who wait, which no change of the machine's clock
// can make them wait longer for.
//
// Most waits need none of this: a time.Timer does not care for the clock. It is for
// those that keep moments instead of delays, in a heap or beside the moments of another
// machine.
//
// It promises that a Clock never goes back. It promises nothing about what time it is:
// moments of one Clock are for that Clock alone, and are neither shown nor kept.
//
// Start with New.
package steady

import (
	"sync/atomic"
	"time"
)

// least is the smallest change of the machine's clock that counts as a step. Smaller ones
// are how a clock is disciplined, and add up until they are one.
const least = 100 * time.Millisecond

// Clock goes on as the machine's monotonic clock does, which nobody sets:
//
//   - A step of the wall clock back is none: a retry that is due in a second is due in a
//     second, although its moment is an hour away now.
//   - A step forward is one. That is also what the end of a sleep looks like, which the
//     monotonic clock slept through: what fell due meanwhile is due.
//
// Its methods may be called from any goroutine.
type Clock struct {
	begin time.Time
	// drift is how much further than the monotonic clock the wall clock has come since
	// begin, when a step was last noticed; ahead is the sum of the steps forward. In
	// nanoseconds.
	drift, ahead atomic.Int64
}

// New returns a Clock that agrees with the wall clock now.
func New() *Clock { return &Clock{begin: time.Now()} }

// Now returns the time.
func (c *Clock) Now() time.Time {
	now := time.Now()
	return c.at(now.Sub(c.begin), now.Round(0).Sub(c.begin.Round(0)))
}

// at returns the time when the two clocks have come that far since begin.
func (c *Clock) at(monotonic, wall time.Duration) time.Time {
	drift := int64(wall - monotonic)
	for {
		last := c.drift.Load()
		step := drift - last
		if -int64(least) < step && step < int64(least) {
			break
		}
		if c.drift.CompareAndSwap(last, drift) {
			c.ahead.Add(max(step, 0))
			break
		}
	}
	return c.begin.Round(0).Add(monotonic + time.Duration(c.ahead.Load()))
}
