package journal

import (
	"context"
	"fmt"
	"slices"
)

// Expire drops what retention no longer keeps: whole buckets, of which every
// execution is final and the last became so Options.Retention ago, and while what
// is left is larger than Options.MaxSize, the oldest ones whose executions are
// final. It returns the number of executions it dropped. Call it now and then;
// each bucket costs one range deletion, and the disk gets its space back by and
// by.
func (j *Journal) Expire(ctx context.Context) (int64, error) {
	if err := j.enter(); err != nil {
		return 0, err
	}
	defer j.leave()
	excess, err := j.excess()
	if err != nil {
		return 0, err
	}
	var dropped int64
	for _, bk := range *j.buckets.Load() {
		if ctx.Err() != nil {
			return dropped, context.Cause(ctx)
		}
		n, size, err := j.expire(bk, excess > 0)
		if err != nil {
			return dropped, fmt.Errorf("drop bucket %d: %w", bk.number, err)
		}
		dropped += n
		excess -= min(size, excess)
	}
	return dropped, nil
}

// excess returns by how many bytes the store is larger than it may be. It counts
// what is kept, not what is dropped and still to be compacted away: else the next
// call would drop more on account of it.
func (j *Journal) excess() (uint64, error) {
	if j.o.MaxSize == 0 {
		return 0, nil
	}
	var total uint64
	for _, space := range [...]byte{spaceMemory, spaceDelta} {
		size, err := j.db.EstimateDiskUsage([]byte{space}, []byte{space + 1})
		if err != nil {
			return 0, err
		}
		total += size
	}
	var size uint64
	for _, bk := range *j.buckets.Load() {
		var err error
		if size, err = j.bucketSize(bk); err != nil {
			return 0, err
		}
		total += size
	}
	// A bucket can only go when the next one has begun.
	if size > j.o.MaxSize/16 {
		j.rollNext.Store(true)
	}
	return total - min(total, j.o.MaxSize), nil
}

// expire drops one bucket if it may go, and returns how many executions it held
// and about how many bytes.
func (j *Journal) expire(bk *bucket, excess bool) (n int64, size uint64, err error) {
	e, err := j.applied(0, func(e *edit) (err error) {
		if bk == e.current() || bk.open() > 0 {
			return nil
		}
		if !excess && (j.o.Retention <= 0 || j.now().Sub(bk.last()) < j.o.Retention) {
			return nil
		}
		if size, err = j.bucketSize(bk); err != nil {
			return err
		}
		n = bk.executions()
		return e.drop(bk)
	})
	if err != nil {
		return 0, 0, err
	}
	if err := e.wait(); err != nil {
		return 0, 0, err
	}
	j.metrics.dropped.Add(float64(n))
	return n, size, nil
}

func (j *Journal) bucketSize(bk *bucket) (uint64, error) {
	lower, upper := bounds(appendLog(nil, bk.number, 0)[:5])
	return j.db.EstimateDiskUsage(lower, upper)
}

// drop deletes a bucket. It was checked to be whole and final.
func (e *edit) drop(bk *bucket) error {
	lower, upper := bounds(appendLog(nil, bk.number, 0)[:5])
	if err := e.b.DeleteRange(lower, upper, nil); err != nil {
		return err
	}
	e.key = appendBucketKey(e.key[:0], bk.number)
	e.dropped = bk
	return e.del()
}

// forget takes a dropped bucket out of the journal's own state.
func (e *edit) forget(bk *bucket) {
	list := slices.Clone(*e.j.buckets.Load())
	list = slices.DeleteFunc(list, func(b *bucket) bool { return b == bk })
	e.j.buckets.Store(&list)
	e.j.recent.forget()
	for hs, n := range bk.counts {
		e.j.totals[hs] -= n
	}
}
