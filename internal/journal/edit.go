package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/cockroachdb/pebble/v2"
)

// edit is one atomic commit in the making: the store's batch, and what it will
// do to the journal's counts, which are changed only when the store has taken
// it. It is made, filled and applied while Journal.mu is held, so that what it
// read is still so when it is applied.
type edit struct {
	j       *Journal
	b       *pebble.Batch
	key     []byte // scratch
	val     []byte // scratch
	counts  []countChange
	spans   []spanChange
	begun   *bucket // a bucket that this edit begins
	next    uint64  // the next execution ID
	last    event.ID
	queued  []Queued
	finish  []finishChange
	size    int // of b, once applied
	dropped *bucket
	tallies []handlerTally
	rows    []Execution // as they will be: all that change, and the first ones that are made
}

// maxRows is how many new executions an edit hands to Journal.recent: more come only
// when there is a backlog, and are not next.
const maxRows = 64

type countChange struct {
	bk *bucket
	hs HandlerStatus
	n  int64
}

type spanChange struct {
	bk  *bucket
	run uint32
	s   span
}

type finishChange struct {
	bk *bucket
	t  time.Time
}

func (j *Journal) newEdit(size int) *edit {
	e := &edit{j: j, next: j.nextID, last: j.lastEvent}
	select {
	case e.b = <-j.spare:
	default:
		e.b = j.db.NewBatchWithSize(max(size, 1024))
	}
	return e
}

// applied makes an edit, has it filled, and applies it.
func (j *Journal) applied(size int, fill func(*edit) error) (*edit, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.o.ReadOnly {
		return nil, fmt.Errorf("journal %s is open for reading only", j.o.Path)
	}
	e := j.newEdit(size)
	err := fill(e)
	if err == nil {
		err = e.apply()
	}
	if err != nil {
		if j.Err() == nil { // else the store may hold it
			_ = e.b.Close()
		}
		return nil, err
	}
	return e, nil
}

// current is the bucket that new executions go to.
func (e *edit) current() *bucket {
	if e.begun != nil {
		return e.begun
	}
	return e.j.buckets.Load().current()
}

// begin starts a new bucket for what follows.
func (e *edit) begin(now time.Time) error {
	bk := &bucket{
		number:  e.current().number + 1,
		first:   e.next,
		after:   e.last,
		created: now,
		counts:  make(map[HandlerStatus]int64),
	}
	e.begun = bk
	e.key = appendBucketKey(e.key[:0], bk.number)
	e.val = appendBucketRow(e.val[:0], bk, time.Time{})
	return e.b.Set(e.key, e.val, nil)
}

func (e *edit) count(bk *bucket, h int, s Status, n int64) {
	hs := HandlerStatus{h, s}
	for i := range e.counts {
		if c := &e.counts[i]; c.hs == hs && c.bk == bk {
			c.n += n
			return
		}
	}
	e.counts = append(e.counts, countChange{bk, hs, n})
}

func (e *edit) set(value []byte) error { return e.b.Set(e.key, value, nil) }
func (e *edit) del() error             { return e.b.Delete(e.key, nil) }

// delOnce is del of a key that was set once since it was last deleted: the store lets
// both go as soon as they meet, and not only at its bottom.
func (e *edit) delOnce() error { return e.b.SingleDelete(e.key, nil) }

// row writes x, whose bucket is bk.
func (e *edit) row(bk *bucket, x *Execution) error {
	e.key = appendRowKey(e.key[:0], bk.number, x.ID)
	e.val = appendRow(e.val[:0], x)
	return e.set(e.val)
}

// status writes (or deletes) what says that x has status s.
func (e *edit) status(bk *bucket, x *Execution, s Status, put bool) error {
	write := e.delOnce
	n := int64(-1)
	if put {
		write = func() error { return e.set(nil) }
		n = 1
	}
	e.count(bk, x.Handler, s, n)
	e.key = appendID(appendStatusList(e.key[:0], bk.number, HandlerStatus{x.Handler, s}), x.ID)
	if err := write(); err != nil {
		return err
	}
	if s != Pending {
		return nil
	}
	e.key = appendID(appendLanePrefix(e.key[:0], x.Lane), x.ID)
	return write()
}

// create gives x the next ID and writes it.
func (e *edit) create(x *Execution) error {
	x.ID = e.next
	e.next++
	bk := e.current()
	if err := e.row(bk, x); err != nil {
		return err
	}
	if len(e.rows) < maxRows {
		e.rows = append(e.rows, *x)
	}
	if err := e.status(bk, x, x.Status, true); err != nil {
		return err
	}
	for _, p := range [...]struct {
		kind  byte
		value string
	}{{postingType, string(x.Type)}, {postingObject, x.Object}, {postingLane, x.Lane}} {
		e.key = appendID(appendTextList(e.key[:0], bk.number, p.kind, p.value), x.ID)
		if err := e.set(nil); err != nil {
			return err
		}
	}
	e.created(bk, x)
	e.tally(x.Handler).Made++
	if x.Status == Pending {
		e.queued = append(e.queued, Queued{Execution: x.ID, Lane: x.Lane, Handler: x.Handler})
	}
	return nil
}

// created widens the span of x's run.
func (e *edit) created(bk *bucket, x *Execution) {
	run, us := bk.run(x.ID), micros(x.Created)
	if n := len(e.spans); n > 0 && e.spans[n-1].bk == bk && e.spans[n-1].run == run {
		e.spans[n-1].s = e.spans[n-1].s.with(us)
		return
	}
	s := span{us, us}
	if int(run) < len(bk.spans) {
		s = bk.spans[run].with(us)
	}
	e.spans = append(e.spans, spanChange{bk, run, s})
}

// change writes x, which was was.
func (e *edit) change(bk *bucket, was Status, x *Execution) error {
	if err := e.row(bk, x); err != nil {
		return err
	}
	e.rows = append(e.rows, *x)
	if was == x.Status {
		return nil
	}
	if err := e.status(bk, x, was, false); err != nil {
		return err
	}
	if err := e.status(bk, x, x.Status, true); err != nil {
		return err
	}
	if x.Status == Pending {
		e.j.hintEpoch++
		clear(e.j.hints)
	}
	// Retention counts from the last finish. The current bucket is young anyway.
	if !x.Status.Open() && bk != e.current() && x.Finished.Sub(bk.finished) >= finishedGrain {
		for _, f := range e.finish {
			if f.bk == bk {
				return nil
			}
		}
		e.finish = append(e.finish, finishChange{bk, x.Finished})
	}
	return nil
}

// apply commits e: on return it is visible and will be durable after wait.
func (e *edit) apply() error {
	for _, c := range e.counts {
		n := c.bk.counts[c.hs] + c.n
		if n < 0 {
			return e.j.damaged(fmt.Errorf("count of handler %d %v in bucket %d would be %d", c.hs.Handler, c.hs.Status, c.bk.number, n))
		}
		e.key = appendCountKey(e.key[:0], c.bk.number, c.hs)
		e.val = binary.AppendUvarint(e.val[:0], uint64(n))
		if err := e.set(e.val); err != nil {
			return err
		}
	}
	for _, s := range e.spans {
		e.key = appendSpanKey(e.key[:0], s.bk.number, s.run)
		e.val = binary.BigEndian.AppendUint64(e.val[:0], uint64(s.s.min))
		e.val = binary.BigEndian.AppendUint64(e.val, uint64(s.s.max))
		if err := e.set(e.val); err != nil {
			return err
		}
	}
	for _, f := range e.finish {
		e.key = appendBucketKey(e.key[:0], f.bk.number)
		e.val = appendBucketRow(e.val[:0], f.bk, f.t)
		if err := e.set(e.val); err != nil {
			return err
		}
	}
	e.size = e.b.Len()
	if err := e.j.applyBatch(e.b); err != nil {
		return err
	}
	for _, c := range e.counts {
		c.bk.counts[c.hs] += c.n
		e.j.totals[c.hs] += c.n
	}
	e.j.history.add(e.j.now(), e.tallies)
	for _, s := range e.spans {
		if int(s.run) == len(s.bk.spans) {
			s.bk.spans = append(s.bk.spans, s.s)
		} else {
			s.bk.spans[s.run] = s.s
		}
	}
	for _, f := range e.finish {
		f.bk.finished = f.t
	}
	if e.begun != nil {
		list := append(slices.Clone(*e.j.buckets.Load()), e.begun)
		e.j.buckets.Store(&list)
	}
	if e.dropped != nil {
		e.forget(e.dropped)
	}
	e.j.recent.changed(e.rows)
	e.rows = nil
	e.j.nextID, e.j.lastEvent = e.next, e.last
	return nil
}

// applyBatch hands b to the store. A panic of the store stops the journal: its
// locks may be held for ever.
func (j *Journal) applyBatch(b *pebble.Batch) (err error) {
	if err := j.Err(); err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			j.abandoned.Store(true)
			j.fail(fmt.Errorf("the store panicked: %v", r))
			err = j.Err()
		}
	}()
	if err := j.db.ApplyNoSyncWait(b, pebble.Sync); err != nil {
		j.fail(err)
		return j.Err()
	}
	return nil
}

// wait returns when the edit is durable. It is called without Journal.mu, once.
func (e *edit) wait() error {
	err := e.b.SyncWait()
	if e.j.disk.frozen.Load() {
		return e.j.Err() // the store was told that all is well
	}
	if err != nil {
		e.j.fail(err)
		return e.j.Err()
	}
	e.j.metrics.bytes.Add(float64(e.size))
	e.b.Reset()
	select {
	case e.j.spare <- e.b:
	default:
		err = e.b.Close()
	}
	e.b = nil
	return err
}

// execution reads the row of id, nil r: as the store has it now.
func (j *Journal) execution(r pebble.Reader, id uint64) (bk *bucket, x Execution, err error) {
	if bk = j.buckets.Load().of(id); bk == nil || id == 0 {
		return nil, Execution{}, fmt.Errorf("execution %d: %w", id, ErrNotFound)
	}
	if r == nil {
		x, err = j.recently(bk.number, id)
	} else {
		x, err = readRow(r, bk.number, id)
	}
	return bk, x, err
}

// execution is the row of id as the edit leaves it so far.
func (e *edit) execution(id uint64) (*bucket, Execution, error) {
	for i := len(e.rows) - 1; i >= 0; i-- {
		if e.rows[i].ID == id {
			return e.j.buckets.Load().of(id), e.rows[i], nil
		}
	}
	return e.j.execution(nil, id)
}

func readRow(r pebble.Reader, bucket uint32, id uint64) (Execution, error) {
	var buf [32]byte
	v, closer, err := r.Get(appendRowKey(buf[:0], bucket, id))
	if err != nil {
		if errors.Is(err, pebble.ErrNotFound) {
			err = ErrNotFound
		}
		return Execution{}, fmt.Errorf("execution %d: %w", id, err)
	}
	x, err := decodeRow(id, v)
	return x, errors.Join(err, closer.Close())
}
