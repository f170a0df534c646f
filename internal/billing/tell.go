package billing

import (
	"bytes"
	"slices"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// truncated tells the truncate event of an entity's own table. It belongs to no
// client, so its lane is the entity's.
func (d *Deriver) truncated(p *plan, emit emitter) error {
	e := p.entity
	if p.role != mainRow || !e.Truncate {
		return nil
	}
	t := event.Type("clients." + e.Name + ".truncate")
	if e.Name == Clients {
		t = "clients.truncate"
	}
	if !d.next(t) {
		return nil
	}
	d.ev = event.Event{
		ID:   event.ID{Generation: d.generation, CommitLSN: d.tx.begin.CommitLSN, Ordinal: d.base + d.ordinal},
		Type: t, Entity: e.Name, Lane: e.Name + ":", XID: d.tx.begin.XID, CommitTime: d.tx.begin.CommitTime, Source: d.mapping.Source,
	}
	return emit(&d.ev)
}

// tell makes one event of the row and hands it on.
func (d *Deriver) tell(r *row, t event.Type, op wal.Op, mem Memory, emit emitter) error {
	if !d.next(t) {
		return nil
	}
	d.data = append(d.data[:0], '{')
	unchanged, err := d.appendData(r, op, mem)
	if err != nil {
		return err
	}
	d.changed = append(d.changed[:0], '{')
	if op == wal.Update {
		d.appendChanged(r)
	}
	d.changed = append(d.changed, '}')
	return d.emit(r, t, unchanged, emit)
}

// next numbers an event and reports whether it is wanted.
func (d *Deriver) next(t event.Type) bool {
	if d.own {
		return false
	}
	d.ordinal++
	d.opts.Count(t)
	return d.opts.Wants(t)
}

func (d *Deriver) emit(r *row, t event.Type, unchanged []string, emit emitter) error {
	d.ev = event.Event{
		ID:         event.ID{Generation: d.generation, CommitLSN: d.tx.begin.CommitLSN, Ordinal: d.base + d.ordinal},
		Type:       t,
		Entity:     r.entity.Name,
		Object:     string(d.object),
		Lane:       string(d.lane),
		XID:        d.tx.begin.XID,
		CommitTime: d.tx.begin.CommitTime,
		Source:     d.mapping.Source,
		Origin:     d.origin,
		ObjectJSON: d.objectJSON(r),
		Data:       d.data,
		Changed:    d.changed,
		Unchanged:  unchanged,
	}
	return emit(&d.ev)
}

func (d *Deriver) objectJSON(r *row) []byte {
	if o := r.plan.object; len(o) == 1 && r.kinds[o[0]] == numberKind && isJSONNumber(d.object) {
		return bytes.Clone(d.object)
	}
	return event.AppendJSONString(nil, d.object)
}

// appendData writes the row as now known, and returns the columns whose values
// are there but did not come.
func (d *Deriver) appendData(r *row, op wal.Op, mem Memory) (unchanged []string, err error) {
	own := false
	if r.role == balanceRow {
		d.data = append(appendName(d.data, "id"), d.objectJSON(r)...)
		own = true
	}
	for i, c := range r.rel.Columns {
		if r.hidden[i] || own && c.Name == "id" {
			continue
		}
		v, ok := d.value(r, i)
		if !ok && r.masked[i] && d.rec.cells[i].tag == slotSealed {
			v, ok = wal.Value{Kind: wal.Text}, true // shown as *** alone
		}
		if !ok {
			if op != wal.Delete {
				unchanged = append(unchanged, c.Name)
			}
			continue
		}
		d.data = r.appendValue(appendName(d.data, c.Name), i, v)
	}
	if op == wal.Insert && r.role == mainRow && r.entity.Name == Clients && r.entity.CustomFields != nil && r.entity.CustomFields.Table != nil {
		if err := d.appendOwnFields(r, mem); err != nil {
			return nil, err
		}
	}
	d.data = append(d.data, '}')
	return unchanged, nil
}

// appendChanged writes the columns that differ, with what is known of both sides.
func (d *Deriver) appendChanged(r *row) {
	for i, c := range r.rel.Columns {
		if r.watch[i] == watchNot && !slices.Contains(r.plan.key, i) || r.hidden[i] || d.differs(r, i) != differs {
			continue
		}
		d.changed = append(appendName(d.changed, c.Name), '{')
		switch cell := &d.rec.cells[i]; cell.tag {
		case slotNull:
			d.changed = append(appendName(d.changed, "old"), jsonNil...)
		case slotSealed:
			if r.masked[i] {
				d.changed = append(appendName(d.changed, "old"), masked...)
			}
		case slotText:
			d.changed = r.appendValue(appendName(d.changed, "old"), i, wal.Value{Kind: wal.Text, Text: cell.text})
		}
		d.changed = r.appendValue(appendName(d.changed, "new"), i, r.new[i])
		d.changed = append(d.changed, '}')
	}
}
