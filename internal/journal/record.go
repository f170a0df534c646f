package journal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// maxGroup is how many outcomes one commit takes, so that intake gets its turn.
	maxGroup = 256
	// Where outcomes come so fast that more than fewOutcomes shared a commit, the next
	// one waits for enoughOutcomes, at most patience.
	fewOutcomes    = 2
	enoughOutcomes = 32
	patience       = 2 * time.Millisecond
)

// recorder makes outcomes durable. One goroutine commits, in one edit, all that came
// while the commit before was on its way to the disk: so a busy dispatcher pays for
// one write of the store, one of the counts and one sync with many outcomes, and a
// quiet one waits for nobody. A busy one waits a moment for more, unless an outcome in
// the queue keeps something waiting.
type recorder struct {
	mu    sync.Mutex
	queue []*recording
	hurry bool          // an outcome in queue is not Patient
	spare []*recording  // the slice of the group before
	wake  chan struct{} // there is something in queue, or enough, or something that hurries
	stop  chan struct{}
	ended chan struct{}
}

// recording is one outcome on its way to the disk.
type recording struct {
	o     Outcome
	start time.Time
	done  func([]Queued, error)

	from, to int // its part of edit.queued
	told     []Queued
	err      error
}

func newRecorder() *recorder {
	return &recorder{wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{})}
}

// Record stores an attempt and the new state of its execution, and of the others
// in o.Also, in one durable commit. It blocks until that is durable; concurrent
// calls share the commit and the wait for the disk. A ctx that has ended is an error;
// one that ends later is not, because the commit cannot be taken back.
//
// A person or a change of the handlers may have held or cancelled the execution
// while the attempt ran. Then the attempt is stored all the same; Succeeded and
// Dead count, and Pending leaves it held or cancelled. An execution that is
// final otherwise is an error that wraps ErrFinal, and nothing is stored.
// ErrDiskFull means that nothing was stored and that no more attempts should be
// made before there is space again: their outcomes could not be stored either.
//
// What o.OnDead has brought is returned: it is durable and not known to dispatch.
func (j *Journal) Record(ctx context.Context, o Outcome) (told []Queued, err error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	done := make(chan struct{})
	j.RecordThen(o, func(q []Queued, e error) {
		told, err = q, e
		close(done)
	})
	<-done
	return told, err
}

// RecordThen is Record for a caller that does not wait: done is called once, when the
// outcome is durable or cannot be stored, from a goroutine that all outcomes share, so
// it must be quick and must not wait for another outcome.
func (j *Journal) RecordThen(o Outcome, done func(told []Queued, err error)) {
	if !o.Status.Valid() {
		done(nil, fmt.Errorf("record execution %d: %v", o.Execution, o.Status))
		return
	}
	if err := j.enter(); err != nil {
		done(nil, err)
		return
	}
	r := j.recorder
	r.mu.Lock()
	r.queue = append(r.queue, &recording{o: o, start: time.Now(), done: done})
	wake := len(r.queue) == 1 || len(r.queue) == enoughOutcomes
	if !o.Patient && !r.hurry {
		r.hurry, wake = true, true
	}
	r.mu.Unlock()
	if wake {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// gather waits until there is enough for a commit, or something that hurries, or until
// patience is at its end. last is how many the commit before took.
func (r *recorder) gather(last int) {
	if last <= fewOutcomes {
		return
	}
	var end <-chan time.Time
	for {
		r.mu.Lock()
		n, hurry := len(r.queue), r.hurry
		r.mu.Unlock()
		if n == 0 || n >= enoughOutcomes || hurry {
			return
		}
		if end == nil {
			t := time.NewTimer(patience)
			defer t.Stop()
			end = t.C
		}
		select {
		case <-r.wake:
		case <-end:
			return
		}
	}
}

// take returns what is to be committed next.
func (r *recorder) take() []*recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	group := r.queue
	if len(group) > maxGroup {
		r.queue = append(r.spare[:0], group[maxGroup:]...)
		group = group[:maxGroup]
	} else {
		r.queue, r.hurry = r.spare[:0], false
	}
	r.spare = nil
	return group
}

func (r *recorder) giveBack(group []*recording) {
	clear(group)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.spare == nil {
		r.spare = group[:0]
	}
}

// record runs until the journal closes, when nothing is on its way any more.
func (j *Journal) record() {
	r := j.recorder
	defer close(r.ended)
	last := 0
	for {
		select {
		case <-r.wake:
		case <-r.stop:
			return
		}
		for {
			r.gather(last)
			group := r.take()
			if len(group) == 0 {
				break
			}
			last = len(group)
			j.recordGroup(group)
			for _, x := range group {
				j.leave()
				x.done(x.told, x.err)
			}
			r.giveBack(group)
		}
	}
}

// errAlone says that an outcome of a group failed when something of it was in the edit
// already, or that none of them has anything to store.
var errAlone = errors.New("not in a group")

// recordGroup stores outcomes in one commit. One that cannot be stored fails alone.
func (j *Journal) recordGroup(group []*recording) {
	size := 0
	for _, r := range group {
		size += r.o.size()
	}
	e, err := j.applied(size, func(e *edit) error {
		if err := j.room(size, j.o.MinFree/4); err != nil {
			return err
		}
		e.rows = make([]Execution, 0, len(group))
		for _, r := range group {
			before := e.b.Count()
			r.from = len(e.queued)
			if r.err = e.record(&r.o); r.err != nil && e.b.Count() != before {
				return errAlone
			}
			r.to = len(e.queued)
		}
		if e.b.Empty() {
			return errAlone
		}
		return nil
	})
	if errors.Is(err, errAlone) && len(group) > 1 {
		for i := range group {
			j.recordGroup(group[i : i+1])
		}
		return
	}
	if err == nil {
		err = e.wait()
	}
	if err == nil && len(e.queued) > 0 {
		j.raise(e.next - 1)
	}
	now := time.Now()
	for _, r := range group {
		if r.err == nil && err != nil {
			r.err = err
		}
		if r.err != nil {
			r.err = fmt.Errorf("record execution %d: %w", r.o.Execution, r.err)
			continue
		}
		r.told = e.queued[r.from:r.to:r.to]
		j.metrics.commit.WithLabelValues("record").Observe(now.Sub(r.start).Seconds())
	}
}

func (o *Outcome) size() int {
	n := 512
	if o.Attempt != nil {
		n += len(o.Attempt.Request.Body) + len(o.Attempt.Response.Body)
	}
	return n
}

// record writes what o changes.
func (e *edit) record(o *Outcome) error {
	bk, x, err := e.execution(o.Execution)
	if err != nil {
		return err
	}
	was := x.Status
	if !was.Open() && was != Cancelled || was == Cancelled && o.Attempt == nil {
		return fmt.Errorf("%w: %v", ErrFinal, was)
	}
	now := e.j.now()
	x.LastError, x.LastReason = o.Error, o.Reason
	if a := o.Attempt; a != nil {
		if a.Number != x.Attempts+1 {
			return fmt.Errorf("attempt %d after %d attempts", a.Number, x.Attempts)
		}
		x.Attempts, x.LastCode, x.LastDuration = a.Number, a.Code, a.Duration
		if a.Uncounted {
			x.Uncounted++
		}
		if x.LastError == "" {
			x.LastError = a.Error
		}
		if x.LastReason == "" {
			x.LastReason = a.Reason
		}
		e.key = appendAttemptKey(e.key[:0], bk.number, x.ID, a.Number)
		e.val = appendAttempt(e.val[:0], a)
		if err := e.set(e.val); err != nil {
			return err
		}
	}
	// What is to be tried again stays held or cancelled.
	if !o.Status.Open() || was == Pending {
		x.Status = o.Status
	}
	x.NextAt = time.Time{}
	if x.Status.Open() {
		x.NextAt = o.NextAt
	} else if was != Cancelled || x.Status != Cancelled {
		x.Finished = now
	}
	if err := e.change(bk, was, &x); err != nil {
		return err
	}
	if t := e.tally(x.Handler); o.Attempt != nil || was != x.Status {
		if o.Attempt != nil && !o.Attempt.OK {
			t.Failed++
		}
		switch {
		case was == x.Status:
		case x.Status == Succeeded:
			t.Succeeded++
		case x.Status == Dead:
			t.Dead++
		}
	}
	if p := o.OnDead; p != nil && x.Status == Dead {
		if err := e.again(&x, Execution{Handler: p.Handler, Priority: p.Priority, DeadOf: x.ID, Status: p.status()}); err != nil {
			return err
		}
	}
	for _, c := range o.Also {
		if c.Execution == o.Execution || !c.Status.Valid() {
			return fmt.Errorf("change of execution %d to %v beside its own outcome", c.Execution, c.Status)
		}
		bk, x, err := e.execution(c.Execution)
		if err != nil {
			return err
		}
		if !x.Status.Open() {
			continue
		}
		was := x.Status
		x.Status, x.LastError = c.Status, c.Error
		if !x.Status.Open() {
			x.Finished, x.NextAt = now, time.Time{}
		}
		if err := e.change(bk, was, &x); err != nil {
			return err
		}
	}
	return nil
}
