package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/cockroachdb/pebble/v2"
)

// stage is the beginning of a transaction that is too large for one commit. Its
// pieces are durable before the position moves past it, and nobody sees them:
//
//	        CommitPiece            CommitPiece                Commit
//	none ───────────────► open ─────────────────► open ───────────────► merging ──► none
//	                       │                                                ▲
//	                       └── DiscardPieces, or Open after a kill ──► none │
//	                                                       Open after a kill┘
//
// Open: memory lies in the space s/m, what executions there shall be in s/x, and
// the events stand already where they belong, above the last one that counts.
// Merging: the commit that moved the position has said that the stage counts.
// From then on s/x is turned into executions and s/m into memory, a bounded
// commit at a time, each of which takes out of the stage what it puts in place;
// so a kill in between repeats nothing, and Open goes on where it was. Memory is
// read through the stage until it is gone. Commit returns when it is.
type stage struct {
	merging  bool
	after    event.ID // the last event before the stage
	last     event.ID // the last staged event
	plans    uint64   // how many s/x were written
	deletes  uint64   // how many s/d were written
	prefixes [][]byte // what s/d holds
}

// mergeSize is the number of executions or keys of memory in one commit of a merge.
const mergeSize = 2000

func (s *stage) row(b []byte) []byte {
	b = append(b, stageV1)
	b = appendBool(b, s.merging)
	b = appendEventID(b, s.after)
	return appendEventID(b, s.last)
}

func decodeStage(value []byte) (*stage, error) {
	c := newCut(value, stageV1)
	s := &stage{merging: c.bool(), after: c.eventID(), last: c.eventID()}
	if err := c.done(); err != nil {
		return nil, fmt.Errorf("stage: %w", err)
	}
	return s, nil
}

// CommitPiece stages what b holds of a transaction whose end has not come yet.
// What b held before Begin is committed as by Commit. The pieces count when a
// Commit follows, whose batch holds the rest of the transaction and moves the
// position past it. They are forgotten by DiscardPieces, and by Open.
//
// Memory reads through the pieces. The returned wait, the errors and what
// becomes of b are as for Commit.
func (j *Journal) CommitPiece(b *Batch) (wait func() error, err error) {
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.leave()
	j.intake.Lock()
	defer j.intake.Unlock()
	if b.err != nil {
		return nil, b.err
	}
	if j.stage == nil && (b.memory.mark.entries > 0 || b.memory.mark.prefixes > 0 || b.mark.events > 0 || b.mark.position) {
		if _, err := j.commit(b, b.before()); err != nil {
			return nil, err
		}
		// Should the piece be refused now and tried again, this must not be.
		b.forgetBefore()
	}
	a, err := j.commitPiece(b, b.since(), nil)
	if err != nil {
		return nil, err
	}
	b.recycle()
	return a.wait, nil
}

// forgetBefore leaves in b what came since Begin.
func (b *Batch) forgetBefore() {
	kept := overlay{seed: b.memory.seed}
	for c := range b.memory.since() {
		if c.ok {
			kept.set(c.key, c.value)
		} else {
			kept.delete(c.key)
		}
	}
	kept.prefixes = slices.Clone(b.memory.prefixes[b.memory.mark.prefixes:])
	b.memory = kept
	b.events = slices.Delete(b.events, 0, b.mark.events)
	b.position = nil
	b.mark.rows, b.mark.events, b.mark.plans, b.mark.position = 0, 0, 0, false
}

// commitPiece stages p. With a position the stage counts from here on.
func (j *Journal) commitPiece(b *Batch, p portion, position *Position) (*ack, error) {
	start := time.Now()
	var s stage
	e, err := j.applied(b.Bytes()+64*len(b.memory.entries), func(e *edit) error {
		// What is staged is written twice.
		if err := j.room(2*b.Bytes(), j.o.MinFree); err != nil {
			return err
		}
		s = stage{after: j.lastEvent, last: j.lastEvent}
		if j.stage != nil {
			s = *j.stage
		}
		if len(p.events) > 0 && p.events[0].id.Compare(s.last) <= 0 {
			return fmt.Errorf("%w: %v, the last is %v", ErrOrder, p.events[0].id, s.last)
		}
		s.merging = position != nil
		if err := e.stage(b, p, &s); err != nil {
			return err
		}
		return e.position(position)
	})
	if err != nil {
		return nil, err
	}
	j.setStage(&s)
	return j.push(e, nil, start), nil // the position is told when the merge is done
}

func (j *Journal) setStage(s *stage) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stage = s
	j.staged.Store(s != nil)
}

// DiscardPieces forgets what CommitPiece has staged: the source sends the
// transaction again.
func (j *Journal) DiscardPieces() error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	j.intake.Lock()
	defer j.intake.Unlock()
	s := j.stage
	if s == nil {
		return j.Err()
	}
	e, err := j.applied(0, func(e *edit) error { return e.discardStage(s) })
	if err != nil {
		return err
	}
	j.setStage(nil)
	return e.wait()
}

// discardStage deletes the stage and its events.
func (e *edit) discardStage(s *stage) error {
	bucket := e.current().number
	from := append(appendEventKey(nil, bucket, s.after), 0)
	to := append(appendEventKey(nil, bucket, s.last), 0)
	if err := e.b.DeleteRange(from, to, nil); err != nil {
		return err
	}
	return e.endStage()
}

// loadStage reads the stage that a kill left and discards it if it does not
// count.
func (j *Journal) loadStage() error {
	v, closer, err := j.db.Get(keyStage)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s, err := decodeStage(v)
	if err = errors.Join(err, closer.Close()); err != nil {
		return err
	}
	if !s.merging && j.o.ReadOnly {
		j.setStage(s)
		return nil
	}
	if !s.merging {
		e, err := j.applied(0, func(e *edit) error { return e.discardStage(s) })
		if err != nil {
			return err
		}
		return e.wait()
	}
	err = scan(j.db, appendStage(nil, stagePrefix), func(_, v []byte) error {
		s.prefixes = append(s.prefixes, bytes.Clone(v))
		return nil
	})
	j.setStage(s)
	return err
}

// finishStage goes on with a merge that a kill interrupted.
func (j *Journal) finishStage() error {
	if j.stage == nil {
		return nil
	}
	if err := j.settle(); err != nil {
		return err
	}
	return j.merge(func(e *edit, _ time.Time, _ bool) error { return e.wait() })
}

func appendStage(k []byte, part byte) []byte { return append(k, spaceStage, part) }

func (e *edit) stage(b *Batch, p portion, s *stage) error {
	for _, prefix := range p.prefixes {
		lower, upper := bounds(append(appendStage(nil, stageMemory), prefix...))
		if err := e.b.DeleteRange(lower, upper, nil); err != nil {
			return err
		}
		e.key = binary.BigEndian.AppendUint64(appendStage(e.key[:0], stagePrefix), s.deletes)
		if err := e.set(prefix); err != nil {
			return err
		}
		s.deletes++
		s.prefixes = append(slices.Clone(s.prefixes), prefix)
	}
	for c := range p.changes {
		e.key = append(appendStage(e.key[:0], stageMemory), c.key...)
		e.val = append(appendBool(e.val[:0], c.ok), c.value...)
		if err := e.set(e.val); err != nil {
			return err
		}
	}
	now := e.j.now()
	for i := range p.events {
		ev := &p.events[i]
		e.key = appendEventKey(e.key[:0], e.current().number, ev.id)
		if err := e.set(b.rows[ev.rowFrom:ev.rowTo]); err != nil {
			return err
		}
		for _, pl := range b.plans[ev.plansFrom:ev.plansTo] {
			x := ev.execution(pl, now)
			e.key = binary.BigEndian.AppendUint64(appendStage(e.key[:0], stagePlan), s.plans)
			e.val = appendRow(e.val[:0], &x)
			if err := e.set(e.val); err != nil {
				return err
			}
			s.plans++
		}
		s.last = ev.id
	}
	return e.b.Set(keyStage, s.row(nil), nil)
}

// stagedMemory is Memory's look into the stage.
func (b *Batch) stagedMemory(key []byte) (value []byte, ok, known bool, err error) {
	b.key = append(appendStage(b.key[:0], stageMemory), key...)
	value, ok, err = b.read(b.key)
	if ok && err == nil && len(value) == 0 {
		err = errShort
	}
	if err != nil {
		return nil, false, false, b.j.memoryError(key, err)
	}
	if ok {
		return value[1:], value[0] != 0, true, nil
	}
	b.j.mu.Lock()
	s := b.j.stage
	b.j.mu.Unlock()
	return nil, false, s != nil && covered(s.prefixes, key), nil
}

// commitStage ends the transaction: b is its last piece. Journal.intake is held.
func (j *Journal) commitStage(b *Batch) (*ack, error) {
	if b.position == nil {
		return nil, errors.New("commit of a staged transaction without a position")
	}
	// What is merged goes into its place past the delta.
	if err := j.settle(); err != nil {
		return nil, err
	}
	a, err := j.commitPiece(b, b.whole(), b.position)
	if err != nil {
		return nil, err
	}
	// b is in the journal now, whatever becomes of the merge: should that fail,
	// the journal stops, and merges when it is opened again.
	position := *b.position
	err = j.merge(func(e *edit, start time.Time, last bool) error {
		if last {
			a = j.push(e, &position, start)
		} else {
			j.push(e, nil, start)
		}
		return nil
	})
	if err != nil {
		j.fail(fmt.Errorf("merge a large transaction: %w", err))
	}
	return a, nil
}

// merge puts a stage that counts in its place, handing each edit to done, with
// whether it is the last.
// Journal.intake is held, or nobody else has the journal yet.
func (j *Journal) merge(done func(e *edit, start time.Time, last bool) error) error {
	plans := true
	part := func(fill func(*edit) (bool, error)) (more bool, err error) {
		start := time.Now()
		e, err := j.applied(0, func(e *edit) (err error) {
			more, err = fill(e)
			return err
		})
		if err != nil {
			return false, err
		}
		return more, done(e, start, !plans && !more)
	}
	for more := true; more; {
		var err error
		if more, err = part((*edit).mergePlans); err != nil {
			return err
		}
	}
	plans = false
	var from []byte
	for more := true; more; {
		var err error
		more, err = part(func(e *edit) (bool, error) {
			from, err = e.mergeMemory(from)
			return from != nil, err
		})
		if err != nil {
			return err
		}
		if more {
			// The prefixes are deleted; what comes after must be seen.
			s := *j.stage
			s.prefixes = nil
			j.setStage(&s)
		}
	}
	j.cache.forget()
	j.setStage(nil)
	return nil
}

// mergePlans turns the next staged plans into executions.
func (e *edit) mergePlans() (more bool, err error) {
	lower, upper := bounds(appendStage(nil, stagePlan))
	it, err := e.j.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n == mergeSize {
			return true, nil
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return false, err
		}
		x, err := decodeRow(0, v)
		if err != nil {
			return false, err
		}
		if err := e.create(&x); err != nil {
			return false, err
		}
		if err := e.b.Delete(it.Key(), nil); err != nil {
			return false, err
		}
		n++
	}
	e.last = e.j.stage.last
	return false, it.Error()
}

// mergeMemory puts the staged memory from the key from on in its place. It
// returns where to go on, nil when the stage is no more.
func (e *edit) mergeMemory(from []byte) (next []byte, err error) {
	s := e.j.stage
	if from == nil {
		for _, prefix := range s.prefixes {
			lower, upper := bounds(append([]byte{spaceMemory}, prefix...))
			if err := e.b.DeleteRange(lower, upper, nil); err != nil {
				return nil, err
			}
		}
		lower, upper := bounds(appendStage(nil, stagePrefix))
		if err := e.b.DeleteRange(lower, upper, nil); err != nil {
			return nil, err
		}
		from = appendStage(nil, stageMemory)
	}
	_, upper := bounds(appendStage(nil, stageMemory))
	it, err := e.j.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n == mergeSize {
			next = bytes.Clone(it.Key())
			return next, e.b.DeleteRange(from, next, nil)
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		if len(v) == 0 {
			return nil, fmt.Errorf("staged memory %q: %w", it.Key()[2:], errShort)
		}
		e.key = append(append(e.key[:0], spaceMemory), it.Key()[2:]...)
		if v[0] != 0 {
			err = e.set(v[1:])
		} else {
			err = e.del()
		}
		if err != nil {
			return nil, err
		}
		n++
	}
	if err := it.Error(); err != nil {
		return nil, err
	}
	return nil, e.endStage()
}

// endStage takes out what is left of the stage.
func (e *edit) endStage() error {
	lower, upper := bounds([]byte{spaceStage})
	if err := e.b.DeleteRange(lower, upper, nil); err != nil {
		return err
	}
	return e.b.Delete(keyStage, nil)
}
