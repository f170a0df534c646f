package billing

import (
	"encoding/binary"

	"github.com/billhook/billhook/internal/wal"
)

// row is what the open transaction has done to one row so far.
type row struct {
	*plan
	key     []byte // memory key now
	wasKey  []byte // memory key that it had first, when that has changed; else nil
	existed bool   // before the transaction
	oldFull bool   // old is the whole row before the transaction
	old     []wal.Value
	new     []wal.Value // nil: gone
	updated bool        // the first change was an update
	told    bool        // its event was told with another row's (custom fields)
	void    bool        // its table was truncated since
	ordinal int         // place in the order of first changes

	// path is what new was before, where a gauge judges every change. Of a spilled
	// row only the number of these versions is here, see Deriver.version.
	path            []image
	spilled         bool
	spilledVersions int
}

// firstKey is the memory key under which the transaction met the row.
func (r *row) firstKey() []byte {
	if r.wasKey != nil {
		return r.wasKey
	}
	return r.key
}

// leaves reports whether the row gives up the key that it had before the transaction.
func (r *row) leaves() bool { return r.existed && !r.void && (r.wasKey != nil || r.new == nil) }

// versions is how many versions the row had in the transaction before the last.
func (r *row) versions() int {
	if r.spilled {
		return r.spilledVersions
	}
	return len(r.path)
}

// isClient reports whether the row is a client's own.
func (r *row) isClient() bool { return r.role == mainRow && r.entity.Name == Clients }

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
	joined map[string]string // keys that clients of two tables got, see joint, and those they had
	begin  wal.Begin
	rows   []row
	// truncated are the plans of tables that were truncated, in order.
	truncated []*plan
	// alive finds a row by its present key, dead the last that was deleted under a
	// key: an insert there makes it the same row again. They are built at the second
	// change, so that the many transactions of one change never pay for them.
	alive, dead map[string]int
	indexed     bool

	text   []byte
	values []wal.Value
	size   int // about how many bytes the rows take

	spilled spilled
}

// rowSize is about what a row takes beside its texts and values, valueSize what a
// value does.
const (
	rowSize   = 400
	valueSize = 40
)

func (t *transaction) reset(b wal.Begin) {
	t.begin, t.joined = b, nil
	t.truncated = t.truncated[:0]
	t.empty()
	if t.spilled.next > 0 || t.spilled.voids != nil {
		t.spilled.reset()
	}
}

// empty forgets the rows.
func (t *transaction) empty() {
	clear(t.rows)
	t.rows = t.rows[:0]
	if t.indexed {
		for _, index := range []*map[string]int{&t.alive, &t.dead} {
			if len(*index) > 4096 {
				*index = nil // a huge map would make every later reset slow
			} else {
				clear(*index)
			}
		}
		t.indexed = false
	}
	t.text = resetBuffer(t.text, 1<<20)
	t.values = resetBuffer(t.values, 1<<14)
	t.size = 0
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
		t.text = make([]byte, 0, max(min(2*cap(t.text), 1<<20), len(b), 1<<14))
	}
	t.size += len(b)
	start := len(t.text)
	t.text = append(t.text, b...)
	return t.text[start:len(t.text):len(t.text)]
}

func (t *transaction) copyTuple(tuple wal.Tuple) []wal.Value {
	if cap(t.values)-len(t.values) < len(tuple) {
		t.values = make([]wal.Value, 0, max(min(2*cap(t.values), 1<<14), len(tuple), 1<<8))
	}
	t.size += valueSize * len(tuple)
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

// buildIndex makes alive and dead.
func (t *transaction) buildIndex() {
	if t.indexed {
		return
	}
	t.indexed = true
	if t.alive == nil {
		t.alive = map[string]int{}
	}
	if t.dead == nil {
		t.dead = map[string]int{}
	}
	for i := range t.rows {
		if !t.rows[i].void {
			t.enter(i)
		}
	}
}

// enter puts a row into the index that it belongs to.
func (t *transaction) enter(i int) {
	r := &t.rows[i]
	if r.new != nil {
		t.alive[string(r.key)] = i
	} else {
		t.dead[string(r.key)] = i
	}
}

// find returns the row that has the key now, or nil.
func (t *transaction) find(key []byte) *row {
	if len(t.rows) == 0 {
		return nil
	}
	t.buildIndex()
	if i, ok := t.alive[string(key)]; ok {
		return &t.rows[i]
	}
	return nil
}

// findDead returns the row that was the last to be deleted under the key, or nil.
func (t *transaction) findDead(key []byte) *row {
	if len(t.rows) == 0 {
		return nil
	}
	t.buildIndex()
	if i, ok := t.dead[string(key)]; ok {
		return &t.rows[i]
	}
	return nil
}

func (t *transaction) add(r row) {
	r.ordinal = len(t.rows)
	t.rows = append(t.rows, r)
	t.size += rowSize
	if t.indexed {
		t.enter(r.ordinal)
	}
}

// learnKey keeps an old tuple that comes with a later change of a row, as long as
// the row has the key that it had before the transaction: an update alone need not
// have brought that.
func (t *transaction) learnKey(r *row, old wal.Tuple) {
	if r.existed && r.old == nil && r.wasKey == nil && old != nil {
		r.old = t.copyTuple(old)
	}
}

// merge lays a newer tuple over the row's; an unchanged TOAST value stays what it was.
func (t *transaction) merge(r *row, tuple wal.Tuple) {
	next := t.copyTuple(tuple)
	if r.perChange {
		r.path = append(r.path, r.new)
	}
	if len(r.new) == len(next) {
		fillUnchanged(next, r.new)
	}
	r.new = next
}

// fillUnchanged takes values that were not sent from the version before.
func fillUnchanged(values, before []wal.Value) {
	for i := range values {
		if values[i].Kind == wal.Unchanged {
			values[i] = before[i]
		}
	}
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
		r := t.find(key)
		if r == nil {
			if r = t.findDead(key); r != nil {
				delete(t.dead, string(key))
				t.alive[string(key)] = r.ordinal
			}
		}
		if r != nil {
			r.plan = p
			r.new = t.copyTuple(c.New)
			return scratch, true
		}
		t.add(row{plan: p, key: t.copyText(key), new: t.copyTuple(c.New)})

	case wal.Update:
		moved := string(oldKey) != string(key)
		if r := t.find(oldKey); r != nil {
			r.plan = p
			t.learnKey(r, c.Old)
			t.merge(r, c.New)
			if moved {
				if r.wasKey == nil {
					r.wasKey = r.key
				}
				delete(t.alive, string(r.key))
				r.key = t.copyText(key)
				t.alive[string(key)] = r.ordinal
			}
			return scratch, true
		}
		r := row{plan: p, key: t.copyText(key), existed: true, updated: true, oldFull: full}
		if c.Old != nil {
			r.old = t.copyTuple(c.Old)
		}
		if moved {
			r.wasKey = t.copyText(oldKey)
		}
		r.new = t.copyTuple(c.New)
		if full {
			fillUnchanged(r.new, r.old)
		}
		t.add(r)

	case wal.Delete:
		if r := t.find(oldKey); r != nil {
			t.learnKey(r, c.Old)
			r.new = nil
			delete(t.alive, string(oldKey))
			t.dead[string(oldKey)] = r.ordinal
			return scratch, true
		}
		t.add(row{plan: p, key: t.copyText(oldKey), existed: true, oldFull: full, old: t.copyTuple(c.Old)})
	}
	return scratch, true
}

// truncate voids what the transaction has done to a table so far.
func (t *transaction) truncate(p *plan) {
	t.truncated = append(t.truncated, p)
	if t.spilled.next > 0 {
		t.spilled.voids = append(t.spilled.voids, void{p.mapped, t.spilled.next})
	}
	for i := range t.rows {
		r := &t.rows[i]
		if r.mapped != p.mapped {
			continue
		}
		r.void = true
		if !t.indexed {
			continue
		}
		for _, index := range []map[string]int{t.alive, t.dead} {
			if index[string(r.key)] == i {
				delete(index, string(r.key))
			}
		}
	}
}
