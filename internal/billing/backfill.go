package billing

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/wal"
)

// Rows are rows of a table as they are at one moment, whole but for columns that are
// never read.
type Rows struct {
	Relation *wal.Relation
	Tuples   []wal.Tuple
}

// Standing are the rows of one entity at one moment: those of its own table, and
// those of the tables beside it that belong to them, in any order.
type Standing struct {
	Entity string
	Time   time.Time // stands for the commit's, and is the time by the clock
	Rows   []Rows
	// Types are the events that are wanted.
	Types []event.Type
	// Where, unless nil, must hold of a row of the entity's own table, as new.
	Where *expr.Condition
}

// Backfills reports whether the state of a row can have an event of a type told, and
// of which entity. The error says why not.
//
// A row stands for its create or assign and for its update, for the side of a
// threshold on which it is, for a predicate that became true when it is true now, for
// a time that has come, and for custom fields when it has some. What tells of a
// movement, or of a row that is gone, no row stands for.
func (d *Deriver) Backfills(t event.Type) (entity string, err error) {
	found := false
	for _, m := range d.tables {
		e := m.entity
		if m.role == fieldRow && t == event.Type(e.Name+".custom_fields.update") {
			return e.Name, nil
		}
		for _, r := range m.rules {
			if r.Event != t {
				continue
			}
			entity, found = e.Name, true
			switch {
			case r.On&(OnInsert|OnUpdate) == 0:
				err = fmt.Errorf("%s tells of a row that is gone", t)
			case r.Moves != nil:
				err = fmt.Errorf("%s tells of a value that moved, which no row shows", t)
			case r.When != nil && (looksAt(r.When, "old") || looksAt(r.When, "changed")):
				err = fmt.Errorf("%s has a condition over what a row was before, which no row shows", t)
			}
		}
	}
	if !found {
		return "", fmt.Errorf("%s does not happen with this mapping", t)
	}
	return entity, err
}

func looksAt(c *expr.Condition, variable string) bool {
	names, all := c.Columns(variable)
	return all || len(names) > 0
}

// EntityTables returns the tables of an entity, its own first, as Backfill wants their
// rows; nil for an entity that is not mapped.
func (d *Deriver) EntityTables(entity string) []Table {
	for i := range d.mapping.Entities {
		if d.mapping.Entities[i].Name == entity {
			return Tables(Mapping{Entities: d.mapping.Entities[i : i+1]})
		}
	}
	return nil
}

// RowColumns says which columns of a relation name the row of the entity it belongs
// to, in the order of the entity's key, and which may be read. ok is false when the
// relation is not mapped or lacks its key.
func (d *Deriver) RowColumns(rel *wal.Relation) (key, readable []int, ok bool) {
	p := d.plan(rel)
	if p == nil {
		return nil, nil, false
	}
	for i := range rel.Columns {
		if !p.hidden[i] {
			readable = append(readable, i)
		}
	}
	return p.object, readable, true
}

// rowKey names the row of the entity to which a row belongs, as the entity's own
// memory key does. ok is false when the columns that lead there are not known.
func (p *plan) rowKey(b []byte, text func(column int) ([]byte, bool)) (key []byte, ok bool) {
	b = append(append(b, p.entity.Name...), 0)
	for _, i := range p.object {
		t, ok := text(i)
		if !ok {
			return b, false
		}
		if len(p.object) > 1 {
			b = binary.AppendUvarint(b, uint64(len(t)))
		}
		b = append(b, t...)
	}
	return b, true
}

// Touches calls f with the name, as Backfill gives it, of every row of the entity that
// a change concerns, and with nil when that cannot be told. The slice is valid during
// the call.
func (d *Deriver) Touches(entity string, c *wal.Change, mem Memory, f func(row []byte)) error {
	p := d.plan(c.Relation)
	if p == nil || p.entity.Name != entity {
		return nil
	}
	var last []byte
	told := false
	for _, tuple := range []wal.Tuple{c.New, c.Old} {
		if tuple == nil {
			continue
		}
		key, ok := p.rowKey(nil, func(i int) ([]byte, bool) { return tuple[i].Text, tuple[i].Kind == wal.Text })
		if ok && !(told && string(key) == string(last)) {
			f(key)
			told, last = true, key
		}
	}
	if told {
		return nil
	}
	// A deleted row of a table beside the entity's may come with a key that does not
	// lead to it: memory knows.
	if c.Old != nil && p.usesMemory() {
		var ok bool
		if d.keyBuf, ok = p.memoryKey(d.keyBuf[:0], c.Old); ok {
			if err := d.settle(p, mem); err != nil {
				return err
			}
			if err := d.remember(mem, p, d.keyBuf, &d.rec, nil); err != nil {
				return err
			}
			key, ok := p.rowKey(nil, func(i int) ([]byte, bool) {
				if c.Old[i].Kind == wal.Text {
					return c.Old[i].Text, true
				}
				cell := &d.rec.cells[i]
				return cell.text, cell.tag == slotText
			})
			if ok {
				f(key)
				return nil
			}
		}
	}
	f(nil)
	return nil
}

// Backfill tells, row after row, the events that rows stand for, as if each had come
// to be what it is just now: its origin is event.OriginBackfill, and nothing is said to
// have changed. The events of a row are told in the order of the catalogue. They have no id.
// row names it: a row of the same name is the same row. Memory is neither read nor
// written. What emit gets is valid until it returns.
func (d *Deriver) Backfill(s Standing, emit func(row []byte, e *event.Event) error) error {
	var main Rows
	var mainPlan *plan
	beside := map[string][]besideRow{}
	for _, rows := range s.Rows {
		p := d.plan(rows.Relation)
		if p == nil || p.entity.Name != s.Entity {
			continue
		}
		if p.role == mainRow {
			main, mainPlan = rows, p
			continue
		}
		for _, t := range rows.Tuples {
			p.hide(t)
			if key, ok := p.rowKey(nil, func(i int) ([]byte, bool) { return t[i].Text, t[i].Kind == wal.Text }); ok {
				beside[string(key)] = append(beside[string(key)], besideRow{p, t})
			}
		}
	}
	if mainPlan == nil {
		return fmt.Errorf("the rows of %s cannot be read: the table lacks a column of its key", s.Entity)
	}
	d.clock.now = s.Time
	for _, t := range main.Tuples {
		mainPlan.hide(t)
		key, ok := mainPlan.rowKey(nil, func(i int) ([]byte, bool) { return t[i].Text, t[i].Kind == wal.Text })
		if !ok {
			continue
		}
		tell := func(e *event.Event) error { return emit(key, e) }
		if err := d.backfillRow(s, besideRow{mainPlan, t}, beside[string(key)], tell); err != nil {
			return err
		}
	}
	return nil
}

// besideRow is a row of a table with what is known of the table.
type besideRow struct {
	plan  *plan
	tuple wal.Tuple
}

func (d *Deriver) backfillRow(s Standing, own besideRow, beside []besideRow, emit emitter) error {
	d.Begin(0, wal.Begin{CommitTime: s.Time})
	defer d.tx.reset(wal.Begin{})
	d.origin = event.OriginBackfill
	for _, b := range append([]besideRow{own}, beside...) {
		var ok bool
		if d.keyBuf, ok = b.plan.memoryKey(d.keyBuf[:0], b.tuple); !ok {
			continue
		}
		d.tx.add(row{plan: b.plan, key: d.tx.copyText(d.keyBuf), new: d.tx.copyTuple(b.tuple)})
		if b.plan.joins != nil {
			d.joinChange(b.plan, &wal.Change{Op: wal.Update, Relation: b.plan.rel, New: b.tuple})
		}
	}
	fields := false
	for i := range d.tx.rows {
		r := &d.tx.rows[i]
		d.rec.reset(len(r.rel.Columns), len(r.gauges), len(r.plan.at))
		d.diffs = d.diffs[:0]
		if i == 0 && s.Where != nil {
			ok, err := s.Where.Row(d.vars(r, wal.Insert))
			if err != nil {
				if r.looksAtMasked(s.Where) {
					err = errMasked
				}
				d.opts.Broken("where", err)
			}
			if !ok {
				return nil
			}
		}
		if r.role == fieldRow {
			if fields {
				continue
			}
			fields = true
			if err := d.backfillFields(s, r, emit); err != nil {
				return err
			}
			continue
		}
		identified := false
		for n := range r.rules {
			b := &r.rules[n]
			if !slices.Contains(s.Types, b.Event) || !d.stands(r, b) {
				continue
			}
			if !identified {
				d.identify(r)
				identified = true
			}
			if err := d.tell(r, b.Event, wal.Insert, nil, emit); err != nil {
				return err
			}
		}
	}
	return nil
}

// backfillFields tells the custom fields of the client whose rows are in the open
// transaction, first being the first of them.
func (d *Deriver) backfillFields(s Standing, first *row, emit emitter) error {
	t := event.Type(first.entity.Name + ".custom_fields.update")
	if !slices.Contains(s.Types, t) {
		return nil
	}
	d.identify(first)
	d.data = append(d.data[:0], '{')
	d.data = append(appendName(d.data, "id"), d.objectJSON(first)...)
	d.data = append(appendName(d.data, "custom_fields"), '{')
	d.changed = append(d.changed[:0], '{')
	for i := range d.tx.rows {
		if f := &d.tx.rows[i]; f.role == fieldRow {
			d.rec.reset(len(f.rel.Columns), len(f.gauges), len(f.plan.at))
			d.appendField(f, wal.Insert)
		}
	}
	d.data = append(d.data, '}', '}')
	d.changed = append(d.changed[:0], '{', '}') // only that they are there is known
	if !d.next(t) {
		return nil
	}
	d.lane = append(d.lane[:0], d.object...)
	return d.emit(first, t, nil, emit)
}

// stands reports whether a row as it is stands for a rule's event.
func (d *Deriver) stands(r *row, b *bound) bool {
	if b.gauge >= 0 {
		switch to := d.standsAt(r, &r.gauges[b.gauge]); {
		case to == nowhere, b.Threshold.Below && to == above, !b.Threshold.Below && to != above:
			return false
		}
	}
	if b.becomes >= 0 && !b.Becomes.holds(r.new[b.becomes]) {
		return false
	}
	if b.at >= 0 {
		v := r.new[b.at]
		if v.Kind != wal.Text {
			return false
		}
		if due, ok := d.moment(b.Rule, v.Text); !ok || due > micros(d.clock.now) {
			return false
		}
	}
	if len(b.changes) > 0 && !slices.ContainsFunc(b.changes, func(i int) bool { return r.new[i].Kind == wal.Text }) {
		return false
	}
	if b.When == nil {
		return true
	}
	ok, err := b.When.Row(d.vars(r, wal.Insert))
	if err != nil {
		if r.looksAtMasked(b.When) {
			err = errMasked
		}
		d.opts.Broken(b.Event, err)
	}
	return ok && err == nil
}

// RowName is the name of an entity's row, as Backfill and Touches give it, of the texts
// of its key.
func (d *Deriver) RowName(entity string, key []string) string {
	b := append([]byte(entity), 0)
	for _, t := range key {
		if len(key) > 1 {
			b = binary.AppendUvarint(b, uint64(len(t)))
		}
		b = append(b, t...)
	}
	return string(b)
}
