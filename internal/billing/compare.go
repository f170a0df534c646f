package billing

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// Difference is what a table has that memory does not know of.
type Difference struct {
	Relation *wal.Relation
	// Rows are rows as they are now, whole; Gone the keys, as Remembered gives them,
	// of rows that are there no more.
	Rows []wal.Tuple
	Gone [][]string

	ID     event.ID // of the first event
	Origin string
	Time   time.Time // stands for the commit's
}

// Comparable says what to read of a relation so that its rows can be compared with
// memory: the columns that order it. It returns false when memory does not hold
// what rows were: with whole old rows in the stream it need not.
func (d *Deriver) Comparable(rel *wal.Relation) (key []int, ok bool) {
	p := d.plan(rel)
	if p == nil || p.full || !p.usesMemory() {
		return nil, false
	}
	return p.key, true
}

// Compare derives the net events between what memory knows of rows and what they
// are now, as if one transaction had made the difference, and brings mem up to date.
// It returns the id after that of the last event.
func (d *Deriver) Compare(c Difference, mem Memory, emit emitter) (event.ID, error) {
	p := d.plan(c.Relation)
	if p == nil || p.full || !p.usesMemory() {
		return c.ID, fmt.Errorf("table %s.%s cannot be compared: memory does not hold its rows", c.Relation.Schema, c.Relation.Name)
	}
	d.Begin(c.ID.Generation, wal.Begin{CommitLSN: c.ID.CommitLSN, CommitTime: c.Time})
	d.base, d.origin = c.ID.Ordinal-1, c.Origin
	if err := d.settle(p, mem); err != nil {
		return c.ID, err
	}
	for _, tuple := range c.Rows {
		p.hide(tuple)
		var ok bool
		if d.keyBuf, ok = p.memoryKey(d.keyBuf[:0], tuple); !ok {
			continue
		}
		if err := d.remember(mem, p, d.keyBuf, &d.rec, tuple); err != nil {
			return c.ID, err
		}
		existed := d.rec.found && !d.rec.gone
		if existed && d.asRemembered(p, tuple) {
			continue
		}
		d.tx.add(row{plan: p, key: d.tx.copyText(d.keyBuf), existed: existed, new: d.tx.copyTuple(tuple)})
		if p.joins != nil {
			d.joinChange(p, &wal.Change{Op: wal.Update, Relation: c.Relation, New: tuple})
		}
	}
	for _, texts := range c.Gone {
		if len(texts) != len(p.key) {
			return c.ID, fmt.Errorf("table %s.%s: a key of %d columns, not %d", c.Relation.Schema, c.Relation.Name, len(texts), len(p.key))
		}
		old := make(wal.Tuple, len(c.Relation.Columns))
		for n, i := range p.key {
			old[i] = wal.Value{Kind: wal.Text, Text: []byte(texts[n])}
		}
		var ok bool
		if d.keyBuf, ok = p.memoryKey(d.keyBuf[:0], old); ok {
			d.tx.add(row{plan: p, key: d.tx.copyText(d.keyBuf), existed: true, old: old})
			if p.joins != nil {
				d.joinChange(p, &wal.Change{Op: wal.Delete, Relation: c.Relation, Old: old})
			}
		}
	}
	err := d.Commit(mem, emit)
	next := c.ID
	next.Ordinal += d.ordinal
	d.tx.reset(wal.Begin{})
	return next, err
}

// asRemembered reports whether a row is as d.rec knows it in all that is watched.
func (d *Deriver) asRemembered(p *plan, tuple wal.Tuple) bool {
	for i := range p.rel.Columns {
		if p.watch[i] != watchNot && p.compare(&d.rec.cells[i], tuple[i]) != same {
			return false
		}
	}
	return true
}

// RememberedPrefix is where the memory of a relation's rows stands, and Remembered
// the texts of a row's key, read from the key of its memory.
func (d *Deriver) RememberedPrefix(rel *wal.Relation) []byte {
	if p := d.plan(rel); p != nil {
		return []byte(p.prefix)
	}
	return nil
}

// Remembered reads the key of a row's memory and its value. ok is false for what
// only says that a row is gone.
func (d *Deriver) Remembered(rel *wal.Relation, key, value []byte) (texts []string, ok bool, err error) {
	p := d.plan(rel)
	rest, found := strings.CutPrefix(string(key), p.prefix)
	if !found {
		return nil, false, fmt.Errorf("memory key %q is not of table %s", key, rel.Name)
	}
	if len(value) >= 2 && value[1] == 0 {
		return nil, false, nil
	}
	if len(p.key) == 1 {
		return []string{rest}, true, nil
	}
	for b := []byte(rest); len(b) > 0; {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return nil, false, fmt.Errorf("memory key %q of table %s is damaged", key, rel.Name)
		}
		texts = append(texts, string(b[size:size+int(n)]))
		b = b[size+int(n):]
	}
	return slices.Clip(texts), true, nil
}
