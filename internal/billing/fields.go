package billing

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// group returns the custom field rows of the open transaction by client. A row
// that changed hands belongs to its new client.
func (d *Deriver) group(mem Memory) (map[string][]int, error) {
	if d.groups != nil {
		return d.groups, nil
	}
	d.groups = map[string][]int{}
	for i := range d.tx.rows {
		r := &d.tx.rows[i]
		if r.role != fieldRow || r.op() == 0 {
			continue
		}
		if err := d.recall(r, mem, &d.rec); err != nil {
			return nil, err
		}
		if d.identify(r); len(d.object) > 0 {
			d.groups[string(d.object)] = append(d.groups[string(d.object)], i)
		}
	}
	return d.groups, nil
}

// fields tells the one custom fields event of a client, made of all of the
// client's field rows in the transaction. A client that came or went in the same
// transaction has none: its create carries the fields, its delete ends them.
func (d *Deriver) fields(r *row, mem Memory, emit emitter) error {
	if !r.spilled {
		if _, err := d.group(mem); err != nil {
			return err
		}
	}
	if err := d.recall(r, mem, &d.rec); err != nil {
		return err
	}
	d.identify(r)
	client := string(d.object)
	rows, err := d.fieldsOf(client, mem)
	if err != nil {
		return err
	}
	if !slices.Contains(rows, r.ordinal) {
		return d.keep(r, r.op(), false, mem) // of no known client
	}
	if rows[0] != r.ordinal {
		return nil // told with the first
	}
	op, err := d.clientOp(r, mem)
	if err != nil {
		return err
	}
	silent := op == wal.Insert || op == wal.Delete
	d.data = append(d.data[:0], '{')
	d.data = append(appendName(d.data, "id"), d.objectJSON(r)...)
	d.data = append(appendName(d.data, "custom_fields"), '{')
	d.changed = append(d.changed[:0], '{')
	changes := 0
	for _, i := range rows {
		f, err := d.fieldRow(i, mem)
		if err != nil {
			return err
		}
		f.told = true
		if err := d.recall(f, mem, &d.rec); err != nil {
			return err
		}
		op := f.op()
		d.diffs = d.diffs[:0]
		if op != wal.Update || d.differs(f, f.field.value) == differs || d.differs(f, f.field.name) == differs {
			changes++
			d.appendField(f, op)
		}
		if err := d.keep(f, op, false, mem); err != nil {
			return err
		}
	}
	d.data = append(d.data, '}', '}')
	d.changed = append(d.changed, '}')
	t := event.Type(r.entity.Name + ".custom_fields.update")
	if silent || changes == 0 || !d.next(t) {
		return nil
	}
	d.object = append(d.object[:0], client...)
	d.lane = append(d.lane[:0], client...)
	return d.emit(r, t, nil, emit)
}

// appendField writes one field to data and to changed.
func (d *Deriver) appendField(f *row, op wal.Op) {
	name, ok := d.value(f, f.field.name)
	if !ok || name.Kind != wal.Text {
		return
	}
	now := wal.Value{Kind: wal.Null}
	if op != wal.Delete {
		if now, ok = d.value(f, f.field.value); !ok {
			return
		}
	}
	d.data = f.appendValue(appendName(d.data, string(name.Text)), f.field.value, now)
	d.changed = append(appendName(d.changed, string(name.Text)), '{')
	switch c := &d.rec.cells[f.field.value]; {
	case op == wal.Insert || c.tag == slotNull:
		d.changed = append(appendName(d.changed, "old"), jsonNil...)
	case c.tag == slotSealed && f.masked[f.field.value]:
		d.changed = append(appendName(d.changed, "old"), masked...)
	case c.tag == slotText:
		d.changed = f.appendValue(appendName(d.changed, "old"), f.field.value, wal.Value{Kind: wal.Text, Text: c.text})
	}
	d.changed = f.appendValue(appendName(d.changed, "new"), f.field.value, now)
	d.changed = append(d.changed, '}')
}

// appendOwnFields writes the custom fields that came with a new client into its data.
func (d *Deriver) appendOwnFields(r *row, mem Memory) error {
	var rows []int
	if r.spilled {
		var err error
		if rows, err = d.spilledFields(string(d.object), mem); err != nil {
			return err
		}
	} else {
		for i := range d.tx.rows {
			rows = append(rows, i)
		}
	}
	open := false
	for _, i := range rows {
		f, err := d.fieldRow(i, mem)
		if err != nil {
			return err
		}
		if f.role != fieldRow || f.op() == 0 || f.new == nil || f.entity != r.entity || !f.isOf(d.object) {
			continue
		}
		name, value := f.new[f.field.name], f.new[f.field.value]
		if name.Kind != wal.Text || !value.Known() {
			continue
		}
		if !open {
			d.data = append(appendName(d.data, "custom_fields"), '{')
			open = true
		}
		d.data = f.appendValue(appendName(d.data, string(name.Text)), f.field.value, value)
	}
	if open {
		d.data = append(d.data, '}')
	}
	return nil
}

// fieldsOf returns the places of a client's custom field rows, in order.
func (d *Deriver) fieldsOf(client string, mem Memory) ([]int, error) {
	if d.tx.spilled.next > 0 {
		return d.spilledFields(client, mem)
	}
	return d.groups[client], nil
}

// fieldRow returns the row at a place, until it is called again.
func (d *Deriver) fieldRow(i int, mem Memory) (*row, error) {
	if d.tx.spilled.next == 0 {
		return &d.tx.rows[i], nil
	}
	l := &d.loaded[2]
	if ok, err := d.load(mem, uint64(i), l); err != nil || !ok {
		return nil, errors.Join(err, errDamaged)
	}
	return &l.row, nil
}

// isOf reports whether a custom field row as it is now belongs to a client.
func (r *row) isOf(client []byte) bool {
	var b []byte
	for n, i := range r.object {
		b = appendPart(b, n, len(r.object), r.new[i].Text)
	}
	return string(b) == string(client)
}

// clientOp is what the open transaction does to the client of a custom field row,
// which has been recalled, 0 for nothing.
func (d *Deriver) clientOp(f *row, mem Memory) (wal.Op, error) {
	key := append([]byte(f.entity.Name), 0)
	for _, i := range f.plan.object {
		v, _ := d.value(f, i)
		if len(f.plan.object) > 1 {
			key = binary.AppendUvarint(key, uint64(len(v.Text)))
		}
		key = append(key, v.Text...)
	}
	if d.tx.spilled.next > 0 {
		for _, space := range []byte{scratchAlive, scratchDead} {
			n, ok, err := d.spilledUnder(mem, space, key)
			if err != nil {
				return 0, err
			}
			if !ok {
				continue
			}
			l := &d.loaded[2]
			if ok, err := d.load(mem, n, l); err != nil || !ok {
				return 0, errors.Join(err, errDamaged)
			}
			return l.op(), nil
		}
		return 0, nil
	}
	r := d.tx.find(key)
	if r == nil {
		r = d.tx.findDead(key)
	}
	if r == nil {
		return 0, nil
	}
	return r.op(), nil
}

// forget drops the memory of a row. While memory is being filled it leaves a mark
// instead, so that a chunk read before the deletion does not bring the row back.
func (d *Deriver) forget(p *plan, key []byte, mem Memory) {
	if d.filling && p.role != jointRow && (!p.full || len(p.at) > 0) {
		mem.SetMemory(key, []byte{recordVersion, 0})
		d.eraseDigests(p, key, mem)
		return
	}
	d.erase(p, key, mem)
}

// SetFilling says whether rows are being filled in at present, see Fill.
func (d *Deriver) SetFilling(filling bool) { d.filling, d.filled = filling, !filling }

// SetNow says what time it is by the source's clock. Rows that a fill finds from then
// on have, where a rule by the clock looks, either a time before the first such
// moment, and are left alone, or a later one.
func (d *Deriver) SetNow(now time.Time) { d.clock.now = now }

// FillPlan is what to read of a table so that memory holds what it must.
type FillPlan struct {
	// Form names what memory must hold of a row. It changes when the rules or the
	// columns do; then the table is to be read again.
	Form    string
	Key     []int // columns that order the table
	Columns []int // columns to read, the key's among them
}

// FillPlan returns what to read of a relation. ok is false when memory needs
// nothing that the stream does not bring.
func (d *Deriver) FillPlan(rel *wal.Relation) (f FillPlan, ok bool) {
	p := d.plan(rel)
	if p == nil || !p.fills() && p.joins == nil {
		return f, false
	}
	f.Form = p.layout.Table
	if p.fills() {
		f.Form += " " + strings.Join(p.layout.Slots, " ")
	}
	joined := make([]bool, len(rel.Columns))
	if p.joins != nil {
		for _, pair := range p.joins.pairs {
			joined[pair[0]] = true
			f.Form += " +" + rel.Columns[pair[0]].Name
		}
	}
	f.Key = p.key
	for i := range rel.Columns {
		if p.watch[i] != watchNot || joined[i] || slices.Contains(p.key, i) || len(p.at) > 0 && !p.hidden[i] {
			f.Columns = append(f.Columns, i)
		}
	}
	return f, true
}

// Fill puts a row that is in the table already into memory, silently. It adds only
// what memory does not hold: what the stream has said of a row is newer than any
// chunk read beside it.
func (d *Deriver) Fill(rel *wal.Relation, tuple wal.Tuple, mem Memory) error {
	p := d.plan(rel)
	if p == nil {
		return nil
	}
	if p.joins != nil {
		if err := d.fillJoint(p, tuple, mem); err != nil {
			return err
		}
	}
	if !p.fills() {
		return nil
	}
	var ok bool
	if d.keyBuf, ok = p.memoryKey(d.keyBuf[:0], tuple); !ok {
		return nil
	}
	if err := d.settle(p, mem); err != nil {
		return err
	}
	if err := d.remember(mem, p, d.keyBuf, &d.rec, nil); err != nil {
		return err
	}
	if d.rec.gone {
		return nil
	}
	missing := !d.rec.found
	if len(p.at) > 0 {
		if err := d.fillTimers(p, tuple, mem); err != nil {
			return err
		}
		missing = missing || slices.Contains(d.rec.marks, slotUnknown)
	}
	for i := range rel.Columns {
		if !p.full && p.watch[i] != watchNot && d.rec.cells[i].tag == slotUnknown && tuple[i].Known() {
			d.rec.cells[i] = cellOf(tuple[i])
			missing = true
		}
	}
	if !missing {
		return nil
	}
	d.write(p, mem, d.keyBuf, &d.rec, func(column int) cell { return d.rec.cells[column] }, d.rec.sides, nil)
	return nil
}
