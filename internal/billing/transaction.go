package billing

import (
	"encoding/binary"

	"github.com/billhook/billhook/internal/wal"
)

// row is what the open transaction has done to one row so far.
type row struct {
	*plan
	key     []byte // memory key now
	wasKey  []byte // memory key before the transaction, when it has changed; else nil
	existed bool   // before the transaction
	oldFull bool   // old is the whole row before the transaction
	old     []wal.Value
	new     []wal.Value // nil: gone
	told    bool        // its event was told with another row's (custom fields)
	void    bool        // its table was truncated since

	// path is what new was before, where a gauge judges every change.
	path []image
}

// image is a row version inside the transaction.
type image []wal.Value

// op is the row's net operation, or 0 if it came and went.
func (r *row) op() wal.Op {
	switch {
	case r.void:
		return 0
	case r.existed && r.new != nil:
		return wal.Update
	case r.existed:
		return wal.Delete
	case r.new != nil:
		return wal.Insert
	}
	return 0
}

// transaction folds changes per row. Everything it holds is copied from the
// decoder's buffers and forgotten at reset.
type transaction struct {
	begin wal.Begin
	rows  []row
	// truncated are the plans of tables that were truncated, in order.
	truncated []*plan
	// index finds a row by its present key. It is built at the second change, so
	// that the many transactions of one change never pay for it.
	index   map[string]int
	indexed bool

	text   []byte
	values []wal.Value
}

func (t *transaction) reset(b wal.Begin) {
	t.begin = b
	clear(t.rows)
	t.rows = t.rows[:0]
	t.truncated = t.truncated[:0]
	if t.indexed {
		if len(t.index) > 4096 {
			t.index = nil // a huge map would make every later reset slow
		} else {
			clear(t.index)
		}
		t.indexed = false
	}
	t.text = resetBuffer(t.text, 1<<20)
	t.values = resetBuffer(t.values, 1<<14)
}

// resetBuffer empties b for reuse, or lets it go when a large transaction made it
// larger than the limit.
func resetBuffer[T any](b []T, limit int) []T {
	if cap(b) > limit {
		return nil
	}
	return b[:0]
}

// copyText keeps b until reset. When the buffer must grow, what was handed out
// before stays valid in the old one.
func (t *transaction) copyText(b []byte) []byte {
	if len(b) == 0 {
		return []byte{}
	}
	if cap(t.text)-len(t.text) < len(b) {
		t.text = make([]byte, 0, max(2*cap(t.text), len(b), 1<<14))
	}
	start := len(t.text)
	t.text = append(t.text, b...)
	return t.text[start:len(t.text):len(t.text)]
}

func (t *transaction) copyTuple(tuple wal.Tuple) []wal.Value {
	if cap(t.values)-len(t.values) < len(tuple) {
		t.values = make([]wal.Value, 0, max(2*cap(t.values), len(tuple), 1<<8))
	}
	start := len(t.values)
	t.values = t.values[:start+len(tuple)]
	out := t.values[start:len(t.values):len(t.values)]
	for i, v := range tuple {
		if v.Kind == wal.Text {
			v.Text = t.copyText(v.Text)
		}
		out[i] = v
	}
	return out
}

// memoryKey appends the memory key of a row: the prefix and the key's texts, each
// with its length when there are several. ok is false when a part is not known.
func (p *plan) memoryKey(b []byte, values []wal.Value) (key []byte, ok bool) {
	b = append(b, p.prefix...)
	for _, i := range p.key {
		v := values[i]
		if v.Kind != wal.Text {
			return b, false
		}
		if len(p.key) > 1 {
			b = binary.AppendUvarint(b, uint64(len(v.Text)))
		}
		b = append(b, v.Text...)
	}
	return b, true
}

// find returns the row with the present key, or nil.
func (t *transaction) find(key []byte) *row {
	if len(t.rows) == 0 {
		return nil
	}
	if !t.indexed {
		t.indexed = true
		if t.index == nil {
			t.index = map[string]int{}
		}
		for i := range t.rows {
			if !t.rows[i].void {
				t.index[string(t.rows[i].key)] = i
			}
		}
	}
	if i, ok := t.index[string(key)]; ok {
		return &t.rows[i]
	}
	return nil
}

func (t *transaction) add(r row) {
	if t.indexed {
		t.index[string(r.key)] = len(t.rows)
	}
	t.rows = append(t.rows, r)
}

// merge lays a newer tuple over the row's; an unchanged TOAST value stays what it was.
func (t *transaction) merge(r *row, tuple wal.Tuple) {
	next := t.copyTuple(tuple)
	if r.perChange {
		r.path = append(r.path, r.new)
	}
	if len(r.new) == len(next) {
		for i := range next {
			if next[i].Kind == wal.Unchanged {
				next[i] = r.new[i]
			}
		}
	}
	r.new = next
}

// change folds one change in. It reports false when the row's key is not known,
// so that the change cannot be told to any row.
func (t *transaction) change(p *plan, c *wal.Change, scratch []byte) (scratchOut []byte, ok bool) {
	var key, oldKey []byte
	if c.New != nil {
		if scratch, ok = p.memoryKey(scratch[:0], c.New); !ok {
			return scratch, false
		}
		key = scratch
	}
	if c.Old != nil {
		start := len(scratch)
		if c.New == nil {
			start = 0
		}
		if scratch, ok = p.memoryKey(scratch[:start], c.Old); ok {
			oldKey = scratch[start:]
			key = scratch[:start:start]
		} else if c.Op == wal.Delete {
			return scratch, false
		}
	}
	if oldKey == nil {
		oldKey = key
	}
	full := c.OldKind == wal.OldFull && p.full

	switch c.Op {
	case wal.Insert:
		if r := t.find(key); r != nil {
			r.plan = p
			r.new = t.copyTuple(c.New)
			return scratch, true
		}
		t.add(row{plan: p, key: t.copyText(key), new: t.copyTuple(c.New)})

	case wal.Update:
		moved := string(oldKey) != string(key)
		if r := t.find(oldKey); r != nil && r.new != nil {
			r.plan = p
			t.merge(r, c.New)
			if moved {
				if r.existed && r.wasKey == nil {
					r.wasKey = r.key
				}
				delete(t.index, string(r.key))
				r.key = t.copyText(key)
				for i := range t.rows {
					if &t.rows[i] == r {
						t.index[string(r.key)] = i
					}
				}
			}
			return scratch, true
		}
		r := row{plan: p, key: t.copyText(key), existed: true, oldFull: full}
		if c.Old != nil {
			r.old = t.copyTuple(c.Old)
		}
		if moved {
			r.wasKey = t.copyText(oldKey)
		}
		r.new = t.copyTuple(c.New)
		if full {
			for i := range r.new {
				if r.new[i].Kind == wal.Unchanged {
					r.new[i] = r.old[i]
				}
			}
		}
		t.add(r)

	case wal.Delete:
		if r := t.find(oldKey); r != nil {
			r.new = nil
			return scratch, true
		}
		t.add(row{plan: p, key: t.copyText(oldKey), existed: true, oldFull: full, old: t.copyTuple(c.Old)})
	}
	return scratch, true
}

// truncate voids what the transaction has done to a table so far.
func (t *transaction) truncate(p *plan) {
	t.truncated = append(t.truncated, p)
	for i := range t.rows {
		if r := &t.rows[i]; r.mapped == p.mapped {
			r.void = true
			if t.indexed {
				delete(t.index, string(r.key))
			}
		}
	}
}
