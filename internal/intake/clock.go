package intake

import (
	"context"
	"fmt"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/steady"
	"github.com/billhook/billhook/internal/wal"
)

// Clock says how far the source's own time has come. Read returns a moment by the
// source's clock, and a position in its log: whoever has taken in all below it has
// taken in every transaction that was committed by that moment. It may take some
// seconds. Close lets go of what Read holds; Read may follow. Both are called by one
// goroutine at a time.
type Clock interface {
	Read(ctx context.Context) (upTo wal.LSN, at time.Time, err error)
	Close()
}

// What falls due by the clock must not be told before everything is known that was
// committed by then: a package that was extended in time must not end because the
// change that extended it is still on its way. Neither our clock nor the time in the
// stream's frames tells that; keepalives come in the middle of a backlog too. So when
// a timer falls due the source is asked for the time and the end of its log, and the
// timer fires when that time is past the timer's and the stream has come to that end:
//
//	timer due ──► ask the source ──► stream has come that far ──► fire, in one commit
//	    ▲              │ too early by its clock
//	    └──────────────┘
//
// So it is the source's clock that counts, a timer fires some 0.6 s after its moment
// (see replication.Clock), and while the source cannot be asked none does. Nothing is
// asked while no timer is due, nor before the stream has begun: a database that the
// stream refuses, such as one that was restored, is not asked either.
//
// When to ask is guessed by our clock and by how far it was from the source's the last
// time. Either may be set meanwhile. To ask too early costs a question, to ask too late
// makes the event late, so a guess errs on the early side: steps of our clock back are
// none (see steady.Clock), and frames that tell of a source which is further than it was
// are believed.
const (
	fireLimit   = 1000                   // timers at once
	askInterval = 250 * time.Millisecond // at least, between two questions
	askMargin   = 10 * time.Millisecond  // for the way to the source, which may be shorter than the last time
	askRetry    = time.Second            // after the first failure, then doubled
	maxAskRetry = 30 * time.Second
	clockIdle   = time.Minute // when nothing falls due for so long, the connection is closed
	clockGuess  = time.Minute // a guess is made anew after so long
	clockStep   = time.Second // how much further the source must be to be believed
)

// timers is what Run keeps of the above. It belongs to Run's goroutine.
type timers struct {
	clocked bool // the mapping has rules that set timers
	clock   *steady.Clock

	busy    bool // a question, or the closing, is under way
	answers chan answer
	cancel  context.CancelFunc // of the question
	open    bool               // the Clock may hold a connection
	asked   answer             // the last one whose position has not been reached; zero: none
	seen    time.Time          // by the source's clock, timers due by then may fire
	lag     time.Duration      // from a moment of the source's until it can be asked for, by clock
	lagSkew time.Duration      // what skew was then
	rest    time.Time          // no question before, by clock
	retry   time.Duration
	wake    *time.Timer
	fired   int // in batch

	skew time.Duration // source's clock minus clock, as frames tell it
}

// answer is an answer of the Clock. A closed one tells that the Clock was closed.
type answer struct {
	upTo   wal.LSN
	at     time.Time
	began  time.Time // of asking, by timers.clock
	err    error
	closed bool
}

// fire tells what may fire now, up to a limit. more is true when there is more.
func (in *Intake) fire() (more bool, err error) {
	t := &in.timers
	if !t.clocked || in.session == nil || in.open || in.full() {
		return false, nil
	}
	if !t.asked.at.IsZero() && in.position.EndLSN >= t.asked.upTo {
		t.seen, t.asked = t.asked.at, answer{}
	}
	next, ok, err := in.deriver.Due(in.batch)
	if err != nil || !ok || next.After(t.seen) {
		return false, err
	}
	n, err := in.deriver.Fire(in.batch, t.seen, fireLimit, in.outsideID, func(e *event.Event) error {
		plan := in.o.Plan(e)
		if len(plan) == 0 {
			return nil
		}
		return in.batch.AddEvent(e, plan)
	})
	if err != nil {
		return false, fmt.Errorf("fire what has fallen due: %w", err)
	}
	if n > 0 {
		t.fired += n
		in.dirty = true
		in.metrics.fired.Add(float64(n))
	}
	return n == fireLimit && !in.full(), nil
}

// untilDue returns a channel that tells when the source is to be asked, nil when that
// is not known.
func (in *Intake) untilDue(ctx context.Context) (<-chan time.Time, error) {
	t := &in.timers
	if !t.clocked || in.session == nil || t.busy || in.open || !t.asked.at.IsZero() {
		return nil, nil
	}
	next, ok, err := in.deriver.Due(in.batch)
	if err != nil {
		return nil, err
	}
	now := t.clock.Now()
	var wait time.Duration
	if ok {
		wait = max(next.Add(t.guess()).Sub(now), t.rest.Sub(now), 0)
	}
	if t.open && (!ok || wait > clockIdle) {
		t.busy, t.open = true, false
		go func() {
			in.o.Clock.Close()
			t.answers <- answer{closed: true}
		}()
		return nil, nil
	}
	if !ok {
		return nil, nil
	}
	if wait == 0 {
		t.busy, t.open = true, true
		ctx, cancel := context.WithCancel(ctx)
		t.cancel = cancel
		go func() {
			defer cancel()
			upTo, at, err := in.o.Clock.Read(ctx)
			t.answers <- answer{upTo: upTo, at: at, began: now, err: err}
		}()
		return nil, nil
	}
	wait = min(wait, clockGuess)
	if t.wake == nil {
		t.wake = time.NewTimer(wait)
	} else {
		t.wake.Reset(wait)
	}
	return t.wake.C, nil
}

// answered takes an answer of the Clock.
func (in *Intake) answered(a answer) {
	t := &in.timers
	t.busy = false
	if a.closed {
		return
	}
	now := t.clock.Now()
	if a.err != nil {
		if t.retry == 0 {
			in.log.Warn("events by the clock wait: the database cannot be asked what time it is", "err", a.err)
			t.retry = askRetry
		}
		t.rest = now.Add(t.retry)
		t.retry = min(2*t.retry, maxAskRetry)
		return
	}
	t.asked, t.retry, t.rest = a, 0, now.Add(askInterval)
	t.lag, t.lagSkew = a.began.Sub(a.at)+askMargin, t.skew
}

// guess is how long after a moment of the source's it can be asked for, as we know by
// now.
func (t *timers) guess() time.Duration {
	if further := t.skew - t.lagSkew; further >= clockStep {
		return t.lag - further
	}
	return t.lag
}

// countTimers shows how many timers wait.
func (in *Intake) countTimers() error {
	if !in.timers.clocked {
		return nil
	}
	n, err := in.deriver.Pending(in.batch)
	in.metrics.timers.Set(float64(n))
	return err
}

// endClock waits for what is under way, and lets go of the Clock.
func (in *Intake) endClock() {
	t := &in.timers
	if t.busy {
		if t.cancel != nil {
			t.cancel()
		}
		<-t.answers
		t.busy = false
	}
	if t.open {
		in.o.Clock.Close()
		t.open = false
	}
	if t.wake != nil {
		t.wake.Stop()
	}
}
