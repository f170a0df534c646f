package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// delta is what commits have done to memory since it was last merged into its place.
// What a commit does is a few values in the space d, and stands in RAM too. Once enough
// has come together it is merged into m: sorted, and without what was overwritten
// meanwhile. The store writes the tables of m anew with each share of them that it gets,
// nearly all of them however small the share: so it gets few and large ones.
//
//	commit ──► d, cur ── large enough ──► old ──► m, and d is deleted
//
// Memory looks into cur, old, the cache and m. A kill in the middle of a merge repeats it:
// d goes with the last write of the merge, and what stands in m before is no newer than
// what d says.
type delta struct {
	mu    sync.RWMutex
	cur   *overlay
	old   *overlay // being merged; nil: none
	spare *overlay

	// Guarded by Journal.intake.
	next   uint64        // number of the next value of d
	merged chan struct{} // closed when old is merged, or never will be
}

const (
	// mergeAt is the size in bytes of what is merged at once, and mergeFactor how many
	// times that may wait while a merge is under way.
	mergeAt     = 4 << 20
	mergeFactor = 3
	// deltaValue is the length above which a value of d ends.
	deltaValue = 32 << 10
	// mergeKeys is how many keys of memory one write of a merge has.
	mergeKeys = 1000
)

func newDelta() delta {
	cur, spare := newOverlay(), newOverlay()
	merged := make(chan struct{})
	close(merged)
	return delta{cur: &cur, spare: &spare, next: 1, merged: merged}
}

func deltaKey(k []byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append(k, spaceDelta), n)
}

// The kinds of a change in a value of d.
const (
	deltaPrefix = iota // of keys that are deleted
	deltaDelete        // key
	deltaSet           // key, value
)

// delta writes what p does to memory, and returns how many values that took.
func (e *edit) delta(p portion) (n uint64, err error) {
	b := append(e.val[:0], deltaV1)
	flush := func() {
		if err == nil && len(b) > 1 {
			e.key = deltaKey(e.key[:0], e.j.delta.next+n)
			err = e.set(b)
			b, n = b[:1], n+1
		}
	}
	for _, prefix := range p.prefixes {
		b = appendString(append(b, deltaPrefix), prefix)
	}
	for c := range p.changes {
		if len(b) > deltaValue {
			flush()
		}
		if !c.ok {
			b = appendString(append(b, deltaDelete), c.key)
			continue
		}
		b = appendString(append(b, deltaSet), c.key)
		b = appendString(b, c.value)
	}
	flush()
	e.val = b
	return n, err
}

// readDelta does to o what a value of d says.
func readDelta(o *overlay, value []byte) error {
	c := newCut(value, deltaV1)
	for c.more() {
		kind, key := c.byte(), c.string()
		switch kind {
		case deltaPrefix:
			if c.err == nil {
				o.deletePrefix([]byte(key))
			}
		case deltaDelete:
			if c.err == nil {
				o.delete([]byte(key))
			}
		case deltaSet:
			if v := c.string(); c.err == nil {
				o.set([]byte(key), []byte(v))
			}
		default:
			c.fail()
		}
	}
	return c.done()
}

// load reads what a merge has not got to, or has not finished.
func (d *delta) load(r pebble.Reader) error {
	return scan(r, []byte{spaceDelta}, func(k, v []byte) error {
		if len(k) != 9 {
			return fmt.Errorf("key %x belongs to nothing", k)
		}
		d.next = binary.BigEndian.Uint64(k[1:]) + 1
		if err := readDelta(d.cur, v); err != nil {
			return fmt.Errorf("changes of memory %d: %w", d.next-1, err)
		}
		return nil
	})
}

// get appends what the delta says of key to b; known false: nothing.
func (d *delta) get(b, key []byte) (value []byte, ok, known bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, o := range [...]*overlay{d.cur, d.old} {
		if o == nil {
			continue
		}
		if v, ok, known := o.get(key); known {
			return append(b, v...), ok, true
		}
	}
	return nil, false, false
}

// add does what the store has taken.
func (d *delta) add(p portion) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, prefix := range p.prefixes {
		d.cur.deletePrefix(prefix)
	}
	for c := range p.changes {
		if c.ok {
			d.cur.set(c.key, c.value)
		} else {
			d.cur.delete(c.key)
		}
	}
}

// from are copies of the changes of keys that start with prefix and are not below from, in
// the order of keys, and the prefixes that were deleted before them. view is called
// while they are as the store is.
func (d *delta) from(from, prefix []byte, view func() error) (list []change, prefixes [][]byte, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, o := range [...]*overlay{d.old, d.cur} {
		if o == nil {
			continue
		}
		list = upon(list, o.from(from, prefix), o.prefixes)
		prefixes = append(prefixes, o.prefixes...)
	}
	for i := range list {
		list[i].key, list[i].value = bytes.Clone(list[i].key), bytes.Clone(list[i].value)
	}
	return list, prefixes, view()
}

// upon lays newer changes, which came after prefixes were deleted, upon older ones.
func upon(older, newer []change, prefixes [][]byte) []change {
	out := make([]change, 0, len(older)+len(newer))
	for len(older) > 0 || len(newer) > 0 {
		n := 1
		switch {
		case len(newer) == 0:
			n = -1
		case len(older) > 0:
			n = bytes.Compare(older[0].key, newer[0].key)
		}
		if n < 0 {
			if !covered(prefixes, older[0].key) {
				out = append(out, older[0])
			}
			older = older[1:]
			continue
		}
		if n == 0 {
			older = older[1:]
		}
		out, newer = append(out, newer[0]), newer[1:]
	}
	return out
}

// size is about how many bytes the changes take.
func (o *overlay) size() int { return len(o.arena) + 48*len(o.entries) }

// merging reports whether a merge is under way. Journal.intake is held.
func (d *delta) merging() bool {
	select {
	case <-d.merged:
		return false
	default:
		return true
	}
}

// makeRoom begins a merge when enough has come together, and waits for one that does not keep
// up. Journal.intake is held.
func (j *Journal) makeRoom() error {
	d := &j.delta
	size := d.cur.size()
	if size >= mergeFactor*j.o.mergeAt && d.merging() {
		if err := j.untilMerged(); err != nil {
			return err
		}
	}
	if size < j.o.mergeAt || d.merging() {
		return nil
	}
	if err := j.Err(); err != nil {
		return err // nor was the one before finished
	}
	j.beginMerge()
	return nil
}

// settle merges all there is. Journal.intake is held, or nobody else has the journal yet.
func (j *Journal) settle() error {
	d := &j.delta
	err := j.untilMerged()
	if err == nil && (len(d.cur.entries) > 0 || len(d.cur.prefixes) > 0) {
		j.beginMerge()
		err = j.untilMerged()
	}
	return err
}

// untilMerged waits for the merge under way, but not while that waits for space.
// Journal.intake is held.
func (j *Journal) untilMerged() error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-j.delta.merged:
			return j.Err()
		case <-j.failed:
			return j.Err()
		case <-tick.C:
			if j.disk.full() {
				return fmt.Errorf("%w: a write to %s is waiting for space", ErrDiskFull, j.o.Path)
			}
		}
	}
}

// beginMerge merges cur, beside what goes on. None is under way, and Journal.intake is held.
func (j *Journal) beginMerge() {
	d := &j.delta
	d.mu.Lock()
	d.old, d.cur, d.spare = d.cur, d.spare, nil
	d.mu.Unlock()
	merged := make(chan struct{})
	d.merged = merged
	go func(upTo uint64) {
		defer close(merged)
		if err := j.mergeDelta(d.old, upTo); err != nil {
			j.fail(fmt.Errorf("merge memory: %w", err))
			return // old stays, and what it says holds
		}
		o := d.old
		j.cache.merged(o)
		d.mu.Lock()
		defer d.mu.Unlock()
		o.reset()
		d.old, d.spare = nil, o
	}(d.next)
}

// mergeDelta puts what o says into its place, and deletes the values of d below upTo.
func (j *Journal) mergeDelta(o *overlay, upTo uint64) (err error) {
	defer func() {
		if r := recover(); r != nil {
			j.abandoned.Store(true)
			err = fmt.Errorf("the store panicked: %v", r)
		}
	}()
	b := j.db.NewBatch()
	defer func() { _ = b.Close() }() // what it holds is written, or will be by the next merge
	write := func() error {
		if err := j.Err(); err != nil {
			return err
		}
		// Later commits bring it to the disk: it says nothing that d does not.
		err := j.db.Apply(b, pebble.NoSync)
		err = errors.Join(err, b.Close())
		b = j.db.NewBatch()
		return err
	}
	for _, prefix := range o.prefixes {
		lower, upper := bounds(append([]byte{spaceMemory}, prefix...))
		if err := b.DeleteRange(lower, upper, nil); err != nil {
			return err
		}
	}
	var key []byte
	for c := range o.changes() {
		if b.Count() >= mergeKeys {
			if err := write(); err != nil {
				return err
			}
		}
		key = append(append(key[:0], spaceMemory), c.key...)
		if c.ok {
			err = b.Set(key, c.value, nil)
		} else {
			err = b.Delete(key, nil)
		}
		if err != nil {
			return err
		}
	}
	if err := b.DeleteRange(deltaKey(nil, 0), deltaKey(nil, upTo), nil); err != nil {
		return err
	}
	return write()
}

// merged takes what was merged into the store, a bit at a time, as others wait for the
// cache. Till the end the delta hides what is not so yet.
func (c *cache) merged(o *overlay) {
	if len(o.prefixes) > 0 {
		c.forget()
	}
	for part := range slices.Chunk(o.order, mergeKeys) {
		c.mu.Lock()
		c.epoch++
		for _, i := range part {
			e := &o.entries[i]
			v, ok := o.slice(e.val, e.valLen)
			c.set(o.keyOf(e), v, ok)
		}
		c.mu.Unlock()
	}
}
