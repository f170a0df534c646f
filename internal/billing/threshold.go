package billing

import (
	"fmt"

	"github.com/billhook/billhook/internal/wal"
)

// crossing is what a gauge saw.
type crossing uint8

const (
	stayed crossing = iota
	wentDown
	wentUp
	startedBelow // a new row that is at or below the threshold
)

// judge decides for a gauge from where the value stood, the side last seen, and
// where it stands now. next is the side to remember: it matters only while the
// value itself does not tell it, being exactly at the threshold, NULL or NaN. onCreate
// says that a new row at or below the threshold is told.
func judge(op wal.Op, from standing, seen slotTag, to standing, onCreate bool) (c crossing, next slotTag) {
	side := seen
	switch from {
	case above:
		side = slotAbove
	case below:
		side = slotBelow
	}
	if op == wal.Insert {
		switch {
		case to == at && onCreate:
			return startedBelow, slotBelow
		case to == below || to == at:
			return startedBelow, slotUnknown
		}
		return stayed, slotUnknown
	}
	switch to {
	case nowhere:
		return stayed, side
	case at:
		switch {
		case from == at:
			return stayed, seen
		case side == slotAbove:
			return wentDown, slotBelow
		case side == slotBelow:
			return wentUp, slotAbove
		}
		return stayed, side
	case below:
		if side == slotAbove || side == slotUnknown && from == at {
			return wentDown, slotBelow
		}
		return stayed, slotBelow
	}
	if side == slotBelow || side == slotUnknown && from == at {
		return wentUp, slotAbove
	}
	return stayed, slotAbove
}

// stoodAt is where a gauge's amount was before.
func (d *Deriver) stoodAt(g *gauge) standing {
	return g.stand(func(column int) ([]byte, bool) {
		c := &d.rec.cells[column]
		return c.text, c.tag == slotText
	})
}

// standsAt is where a gauge's amount is now.
func (d *Deriver) standsAt(r *row, g *gauge) standing {
	return g.stand(func(column int) ([]byte, bool) {
		v, _ := d.value(r, column)
		return v.Text, v.Kind == wal.Text && r.new[column].Kind != wal.Null
	})
}

// follow judges a gauge along every version the row had in the transaction, tells
// each crossing, and leaves the side at the end in d.sides.
func (d *Deriver) follow(r *row, i int, mem Memory, emit emitter) error {
	g := &r.gauges[i]
	from, seen := d.stoodAt(g), d.rec.sides[i]
	last := r.new
	op := wal.Update
	if !r.existed {
		op = wal.Insert
	}
	before := make([]cell, len(g.columns))
	for n, column := range g.columns {
		before[n] = d.rec.cells[column]
	}
	for n := range r.versions() + 1 {
		r.new = last
		if n < r.versions() {
			v, err := d.version(r, n, mem)
			if err != nil {
				return fmt.Errorf("read back a version of a row: %w", err)
			}
			r.new = v
		}
		to := d.standsAt(r, g)
		c, next := judge(op, from, seen, to, g.onCreate)
		c = d.turn(r, i, c, toldSide(from, seen))
		d.diffs = d.diffs[:0]
		for j := range r.rules {
			b := &r.rules[j]
			if b.gauge != i {
				continue
			}
			d.crossed[i] = c
			if !d.fires(r, b, op) {
				continue
			}
			d.identify(r)
			if err := d.tell(r, b.Event, op, mem, emit); err != nil {
				return err
			}
		}
		for _, column := range g.columns {
			d.rec.cells[column] = cellOf(r.new[column])
		}
		from, seen, op = to, next, wal.Update
	}
	for n, column := range g.columns {
		d.rec.cells[column] = before[n]
	}
	if from == above || from == below {
		seen = slotUnknown
	}
	d.sides[i] = seen
	return nil
}
