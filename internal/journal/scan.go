package journal

import (
	"bytes"
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// ScanMemory calls f with the keys of memory that start with prefix and are not
// below from, in order, as Memory would show them: what b has set or deleted
// counts. It ends when f returns false or an error. The slices are valid only
// during the call, and f may not touch b. It may not be called while a
// transaction is staged.
func (b *Batch) ScanMemory(from, prefix []byte, f func(key, value []byte) (more bool, err error)) (err error) {
	j := b.j
	if err := j.enter(); err != nil {
		return err
	}
	defer j.leave()
	if j.staged.Load() {
		return errors.New("scan memory: a transaction is staged")
	}
	if bytes.Compare(from, prefix) < 0 {
		from = prefix
	}
	return j.scanMemory(from, prefix, &b.memory, f)
}

// scanMemory calls f with the keys of memory that start with prefix and are not below
// from, in order, as they are and with what own does to them.
func (j *Journal) scanMemory(from, prefix []byte, own *overlay, f func(key, value []byte) (more bool, err error)) (err error) {
	_, upper := bounds(append([]byte{spaceMemory}, prefix...))
	var it *pebble.Iterator
	hiding, prefixes, err := j.delta.from(from, prefix, func() (err error) {
		it, err = j.db.NewIter(&pebble.IterOptions{LowerBound: append([]byte{spaceMemory}, from...), UpperBound: upper})
		return err
	})
	if err != nil {
		return j.memoryError(prefix, err)
	}
	defer func() {
		if cerr := it.Close(); err == nil && cerr != nil {
			err = j.memoryError(prefix, cerr)
		}
	}()
	if own != nil {
		hiding = upon(hiding, own.from(from, prefix), own.prefixes)
		prefixes = append(prefixes, own.prefixes...)
	}
	stored := it.First()
	for stored || len(hiding) > 0 {
		if len(hiding) > 0 {
			n := -1
			if stored {
				n = bytes.Compare(hiding[0].key, it.Key()[1:])
			}
			if n <= 0 { // what is newer of a key hides what is stored
				c := hiding[0]
				hiding = hiding[1:]
				if n == 0 {
					stored = it.Next()
				}
				if !c.ok {
					continue
				}
				if more, err := f(c.key, c.value); err != nil || !more {
					return err
				}
				continue
			}
		}
		if key := it.Key()[1:]; !covered(prefixes, key) {
			v, err := it.ValueAndErr()
			if err != nil {
				return j.memoryError(key, err)
			}
			if more, err := f(key, v); err != nil || !more {
				return err
			}
		}
		stored = it.Next()
	}
	if err := it.Error(); err != nil {
		return j.memoryError(prefix, err)
	}
	return nil
}

// from are the overlay's entries that start with prefix and are not below from, in
// the order of keys.
func (o *overlay) from(from, prefix []byte) []change {
	var out []change
	for i := range o.entries {
		e := &o.entries[i]
		if k := o.keyOf(e); bytes.HasPrefix(k, prefix) && bytes.Compare(k, from) >= 0 {
			v, ok := o.slice(e.val, e.valLen)
			out = append(out, change{k, v, ok})
		}
	}
	slices.SortFunc(out, func(a, b change) int { return bytes.Compare(a.key, b.key) })
	return out
}
