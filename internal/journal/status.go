package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// moveSize is the number of executions that one commit of Hold, Unhold, Cancel or a
// replay changes, so that attempts and intake get their turn.
const moveSize = 500

// Hold turns the pending executions of a disabled handler into held ones and
// returns how many. Like Unhold and Cancel it works in several commits; an error
// leaves those done so far, and calling again does the rest.
func (j *Journal) Hold(ctx context.Context, handler int) (int, error) {
	n := 0
	err := j.move(ctx, handler, Pending, Held, func(Execution) { n++ })
	return n, err
}

// Unhold turns the held executions of a handler that is enabled again into
// pending ones and returns them, in order. Those whose next attempt was put off
// keep their NextAt.
func (j *Journal) Unhold(ctx context.Context, handler int) ([]Queued, error) {
	var q []Queued
	err := j.move(ctx, handler, Held, Pending, func(x Execution) {
		q = append(q, Queued{Execution: x.ID, Lane: x.Lane, Handler: x.Handler})
	})
	return q, err
}

// Cancel turns the pending and held executions of an archived handler into
// cancelled ones and returns how many.
func (j *Journal) Cancel(ctx context.Context, handler int) (int, error) {
	n := 0
	for _, from := range []Status{Pending, Held} {
		if err := j.move(ctx, handler, from, Cancelled, func(Execution) { n++ }); err != nil {
			return n, err
		}
	}
	return n, nil
}

// move changes every execution of a handler from one status to another and calls
// done for each one that is durable.
func (j *Journal) move(ctx context.Context, handler int, from, to Status, done func(Execution)) error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	for _, bk := range *j.buckets.Load() {
		for next := bk.first; next != 0; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var moved []Execution
			start := time.Now()
			e, err := j.applied(0, func(e *edit) (err error) {
				if err := j.room(moveSize*512, j.o.MinFree/4); err != nil {
					return err
				}
				next, moved, err = e.move(bk, handler, from, to, next)
				return err
			})
			if err == nil {
				err = e.wait()
			}
			if err != nil {
				return fmt.Errorf("change executions of handler %d from %v to %v: %w", handler, from, to, err)
			}
			j.metrics.commit.WithLabelValues("status").Observe(time.Since(start).Seconds())
			for _, x := range moved {
				done(x)
			}
		}
	}
	return nil
}

// move changes up to moveSize executions of one bucket from the ID next on. It
// returns where to go on, 0 when the bucket is done.
func (e *edit) move(bk *bucket, handler int, from, to Status, next uint64) (uint64, []Execution, error) {
	hs := HandlerStatus{handler, from}
	if bk.counts[hs] == 0 {
		return 0, nil, nil
	}
	prefix := appendStatusList(nil, bk.number, hs)
	it, err := e.j.db.NewIter(&pebble.IterOptions{
		LowerBound: appendID(prefix[:len(prefix):len(prefix)], next),
		UpperBound: after(append([]byte(nil), prefix...)),
	})
	if err != nil {
		return 0, nil, err
	}
	var moved []Execution
	now := e.j.now()
	last := uint64(0)
	for ok := it.First(); ok && len(moved) < moveSize; ok = it.Next() {
		last = idOf(it.Key())
		x, rerr := readRow(e.j.db, bk.number, last)
		if rerr != nil {
			err = rerr
			break
		}
		x.Status = to
		if !to.Open() {
			x.Finished, x.NextAt = now, time.Time{}
		}
		if err = e.change(bk, from, &x); err != nil {
			break
		}
		moved = append(moved, x)
	}
	if err := errors.Join(err, it.Error(), it.Close()); err != nil {
		return 0, nil, err
	}
	if len(moved) < moveSize {
		return 0, moved, nil
	}
	return last + 1, moved, nil
}
