package billing

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/apd/v3"

	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/wal"
)

// differs compares a column before and after. For an insert nothing was before.
func (d *Deriver) differs(r *row, column int) difference {
	if len(d.diffs) == 0 {
		d.diffs = slices.Grow(d.diffs, len(r.rel.Columns))[:len(r.rel.Columns)]
		for i := range d.diffs {
			d.diffs[i] = r.compare(&d.rec.cells[i], r.new[i])
		}
	}
	return d.diffs[column]
}

// updated reports whether a column differs that no other event tells.
func (d *Deriver) updated(r *row) bool {
	for i := range r.rel.Columns {
		if r.quiet[i] || d.differs(r, i) != differs {
			continue
		}
		told := false
		for j := range r.rules {
			b := &r.rules[j]
			// Custom fields are told by their event alone; the column of an archive
			// only when the archive has happened.
			told = told || slices.Contains(b.told, i) && (d.fired[j] || !b.toldIfFired)
		}
		if !told {
			return true
		}
	}
	return false
}

// fires asks one rule.
func (d *Deriver) fires(r *row, b *bound, op wal.Op) bool {
	if b.at >= 0 && (op != wal.Delete || !d.endedBy(r, b)) {
		return false
	}
	switch op {
	case wal.Insert:
		if b.On&OnInsert == 0 {
			return false
		}
	case wal.Update:
		if b.On&OnUpdate == 0 {
			return false
		}
	case wal.Delete:
		if b.On&OnDelete == 0 {
			return false
		}
	}
	if b.gauge >= 0 {
		switch d.crossed[b.gauge] {
		case stayed:
			return false
		case startedBelow:
			if !b.Threshold.Below || !b.Threshold.OnCreate {
				return false
			}
		case wentDown:
			if !b.Threshold.Below {
				return false
			}
		case wentUp:
			if b.Threshold.Below {
				return false
			}
		}
	}
	if b.becomes >= 0 && !d.became(r, b, op) {
		return false
	}
	if b.moves >= 0 && !d.moved(r, b) {
		return false
	}
	if len(b.changes) > 0 {
		hit := false
		for _, i := range b.changes {
			hit = hit || op != wal.Update || d.differs(r, i) == differs
		}
		if !hit {
			return false
		}
	}
	if b.When != nil {
		v := d.vars(r, op)
		if b.at >= 0 {
			v.New, v.Old = v.Old, v.New // the row as it was last
		}
		ok, err := b.When.Row(v)
		if err != nil {
			if r.looksAtMasked(b.When) {
				err = errMasked // the reason may quote the value
			}
			d.opts.Broken(b.Event, err)
			return false
		}
		return ok
	}
	return true
}

var errMasked = errors.New("it cannot be evaluated for this row; why is not shown, since it looks at a masked column")

// looksAtMasked reports whether a condition can see a masked column.
func (p *plan) looksAtMasked(c *expr.Condition) bool {
	for _, variable := range []string{"old", "new"} {
		names, all := c.Columns(variable)
		for i, column := range p.rel.Columns {
			if p.masked[i] && (all || slices.Contains(names, column.Name)) {
				return true
			}
		}
	}
	return false
}

// became reports whether the predicate did not hold before and holds now. Of a
// deleted row it reports whether the predicate did not hold before: what was not
// closed is closed by its deletion. A value before that is not known is no start.
func (d *Deriver) became(r *row, b *bound, op wal.Op) bool {
	c := &d.rec.cells[b.becomes]
	var before, known bool
	switch c.tag {
	case slotText:
		known, before = true, b.Becomes.holds(wal.Value{Kind: wal.Text, Text: c.text})
	case slotNull:
		known, before = true, b.Becomes.holds(wal.Value{Kind: wal.Null})
	case slotDigest, slotSealed: // some text
		known, before = b.Becomes.Set || b.Becomes.Unset, b.Becomes.Set
	}
	switch op {
	case wal.Insert:
		return b.Becomes.holds(r.new[b.becomes])
	case wal.Delete:
		return !known || !before
	}
	return known && !before && b.Becomes.holds(r.new[b.becomes])
}

// moved reports whether the column went the rule's way. Dates and times in ISO
// form of one length sort as text; numbers are compared as numbers.
func (d *Deriver) moved(r *row, b *bound) bool {
	c, v := &d.rec.cells[b.moves], r.new[b.moves]
	if c.tag != slotText || v.Kind != wal.Text {
		return false
	}
	n, ok := compareValues(r.rel.Columns[b.moves].Type, c.text, v.Text)
	if !ok {
		return false
	}
	if b.Moves.Backward {
		return n > 0
	}
	return n < 0
}

// compareValues orders two texts of one Postgres type. ok is false when they have
// no order, as NaN has none.
func compareValues(oid uint32, a, b []byte) (n int, ok bool) {
	switch oid {
	case 20, 21, 23, 26, 700, 701, 1700:
		var x, y apd.Decimal
		if _, _, err := x.SetString(string(a)); err != nil || x.Form == apd.NaN {
			return 0, false
		}
		if _, _, err := y.SetString(string(b)); err != nil || y.Form == apd.NaN {
			return 0, false
		}
		return x.Cmp(&y), true
	}
	x, okX := parseTime(a)
	y, okY := parseTime(b)
	if okX && okY {
		return x.compare(y), true
	}
	return bytes.Compare(a, b), true
}

// instant is a Postgres date or timestamp, with its infinities.
type instant struct {
	infinity int // -1, 0, 1
	t        time.Time
}

func (i instant) compare(j instant) int {
	if i.infinity != 0 || j.infinity != 0 {
		return cmp.Compare(i.infinity, j.infinity)
	}
	return i.t.Compare(j.t)
}

// parseTime reads the text of date, timestamp and timestamptz in ISO DateStyle.
// What has no zone of its own is taken to be UTC.
func parseTime(text []byte) (instant, bool) { return parseTimeIn(text, time.UTC) }

// parseTimeIn is parseTime with another zone for what has none.
func parseTimeIn(text []byte, zone *time.Location) (instant, bool) {
	s := string(text)
	switch s {
	case "infinity":
		return instant{infinity: 1}, true
	case "-infinity":
		return instant{infinity: -1}, true
	}
	bc := false
	if len(s) > 3 && s[len(s)-3:] == " BC" {
		bc, s = true, s[:len(s)-3]
	}
	// Years beyond 9999 have more digits than Go's layouts: set them apart.
	dash := strings.IndexByte(s, '-')
	if dash < 4 {
		return instant{}, false
	}
	year := 0
	for _, c := range s[:dash] {
		if c < '0' || c > '9' || year > 1_000_000 {
			return instant{}, false
		}
		year = 10*year + int(c-'0')
	}
	if bc {
		year = 1 - year
	}
	for i, layout := range []string{"2006-01-02", "2006-01-02 15:04:05", "2006-01-02 15:04:05-07", "2006-01-02 15:04:05-07:00", "2006-01-02 15:04:05-07:00:00"} {
		// 2000 is a leap year, so that any day of any year parses.
		t, err := time.ParseInLocation(layout, "2000"+s[dash:], time.UTC)
		if err != nil {
			continue
		}
		if i > 1 {
			zone = t.Location() // the text's own
		}
		return instant{t: time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), zone)}, true
	}
	return instant{}, false
}

// vars makes what a condition sees of the row.
func (d *Deriver) vars(r *row, op wal.Op) expr.Row {
	v := expr.Row{Old: map[string]any{}, New: map[string]any{}, Changed: []string{}, Op: op.String(), TX: map[string]any{
		"xid": int64(d.tx.begin.XID), "commit_time": d.tx.begin.CommitTime,
	}}
	for i, c := range r.rel.Columns {
		if r.hidden[i] {
			continue
		}
		switch cell := &d.rec.cells[i]; cell.tag {
		case slotNull:
			v.Old[c.Name] = nil
		case slotText:
			v.Old[c.Name] = r.kinds[i].conditionValue(cell.text)
		}
		if r.new != nil {
			if nv, ok := d.value(r, i); ok {
				if nv.Kind == wal.Null {
					v.New[c.Name] = nil
				} else {
					v.New[c.Name] = r.kinds[i].conditionValue(nv.Text)
				}
			}
		}
		if op == wal.Update && d.differs(r, i) == differs {
			v.Changed = append(v.Changed, c.Name)
		}
	}
	return v
}

// conditionValue makes a CEL value of a column's text.
func (k kind) conditionValue(text []byte) any {
	switch k {
	case numberKind, decimalKind:
		n := json.Number(text)
		if k == numberKind {
			if i, err := n.Int64(); err == nil {
				return i
			}
		}
		if v, ok := expr.Decimal(string(text)); ok {
			return v
		}
	case boolKind:
		return string(text) == "t"
	case jsonKind:
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.UseNumber()
		var v any
		if dec.Decode(&v) == nil {
			return v
		}
	}
	return string(text)
}
