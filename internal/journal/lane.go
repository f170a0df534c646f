package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Lanes calls f with every lane that has a pending execution, and the first one
// of it, in no particular order. What is not durable yet is left out: OnDurable
// will tell of it. An error of f ends the scan.
func (j *Journal) Lanes(ctx context.Context, f func(lane string, head Execution) error) error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	snap := j.db.NewSnapshot()
	defer snap.Close()
	lower, upper := bounds([]byte{spacePending})
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	return errors.Join(j.lanes(ctx, snap, it, f), it.Close())
}

func (j *Journal) lanes(ctx context.Context, r pebble.Reader, it *pebble.Iterator, f func(string, Execution) error) error {
	durable := j.durable.Load()
	var next []byte
	for ok := it.First(); ok; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		lane, id, valid := laneOf(it.Key())
		if !valid {
			return j.damaged(fmt.Errorf("pending key %x", it.Key()))
		}
		if id <= durable {
			_, x, err := j.execution(r, id)
			if err != nil {
				return fmt.Errorf("lane %q: %w", lane, err)
			}
			if err := f(lane, x); err != nil {
				return err
			}
		}
		// Most lanes are short: look at the next key before seeking.
		if ok = it.Next(); !ok {
			break
		}
		if l, _, _ := laneOf(it.Key()); l != lane {
			continue
		}
		next = after(appendLanePrefix(next[:0], lane))
		ok = it.SeekGE(next)
	}
	return it.Error()
}

// Pending returns the next pending executions of a lane with an ID above after,
// at most n, in order. What is not durable yet is left out.
func (j *Journal) Pending(lane string, after uint64, n int) ([]Execution, error) {
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	prefix := appendLanePrefix(make([]byte, 0, 32), lane)
	lower := appendID(prefix[:len(prefix):len(prefix)], after+1)
	upper := appendID(prefix[:len(prefix):len(prefix)], j.durable.Load()+1)
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	var list []Execution
	for ok := it.First(); ok && len(list) < n; ok = it.Next() {
		_, x, gerr := j.execution(nil, idOf(it.Key()))
		if errors.Is(gerr, ErrNotFound) {
			continue // final and dropped since the iterator was made
		}
		if gerr != nil {
			err = fmt.Errorf("lane %q: %w", lane, gerr)
			break
		}
		// It may have changed since the iterator was made.
		if x.Status == Pending {
			list = append(list, x)
		}
	}
	if err := errors.Join(err, it.Error(), it.Close()); err != nil {
		return nil, err
	}
	return list, nil
}

// OldestPending returns when the oldest pending execution was journaled, false
// if none is pending.
func (j *Journal) OldestPending() (time.Time, bool) {
	if j.enter() != nil {
		return time.Time{}, false
	}
	defer j.leave()
	return j.oldestPending()
}

func (j *Journal) oldestPending() (time.Time, bool) {
	j.mu.Lock()
	vs, snap := j.viewsLocked()
	hints, epoch := maps.Clone(j.hints), j.hintEpoch
	j.mu.Unlock()
	defer snap.Close()
	for i := range vs {
		v := &vs[i]
		oldest := uint64(0)
		for _, hs := range v.lists {
			if hs.Status != Pending {
				continue
			}
			// The front of the list is full of deletions: begin where it was last.
			id, err := firstID(snap, appendStatusList(nil, v.number, hs), max(hints[hs.Handler], v.first))
			if err != nil || id == 0 {
				return time.Time{}, false
			}
			if oldest == 0 || id < oldest {
				oldest = id
			}
			j.mu.Lock()
			if j.hintEpoch == epoch {
				j.hints[hs.Handler] = id
			}
			j.mu.Unlock()
		}
		if oldest != 0 {
			x, err := readRow(snap, v.number, oldest)
			return x.Created, err == nil
		}
	}
	return time.Time{}, false
}

// firstID returns the least ID in a posting list from id on, 0 if there is none.
func firstID(r pebble.Reader, prefix []byte, id uint64) (uint64, error) {
	lower := appendID(prefix[:len(prefix):len(prefix)], id)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: after(prefix)})
	if err != nil {
		return 0, err
	}
	id = 0
	if it.First() {
		id = idOf(it.Key())
	}
	return id, errors.Join(it.Error(), it.Close())
}
