package billing

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/apd/v3"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/wal"
)

// Options of a Deriver. All are optional.
type Options struct {
	// Wants reports whether anybody is told about events of a type. Events that
	// nobody wants are numbered and counted, but not made.
	Wants func(event.Type) bool
	// Count is called for every derived event, wanted or not.
	Count func(event.Type)
	// Notice is called when the mapping and a relation contradict each other, once
	// per relation description.
	Notice func(Notice)
	// Broken is called when a condition cannot be evaluated for a row; its event
	// does not fire for this row.
	Broken func(t event.Type, err error)
}

// Deriver turns transactions into events. It belongs to one goroutine.
type Deriver struct {
	mapping  Mapping
	tables   map[Table]*mapped
	timeline uint32
	opts     Options

	plans    map[*wal.Relation]*plan
	lastRel  *wal.Relation
	lastPlan *plan
	doubted  []uint32

	layouts       []Layout
	layoutsLoaded bool

	tx      transaction
	keyBuf  []byte
	ordinal uint32
	groups  map[string][]int // custom field rows of the open transaction by client; nil until asked for
	filling bool
	rec     record
	order   []int

	recordText []byte
	recordBuf  []byte
	fired      []bool
	crossed    []crossing
	sides      []slotTag
	diffs      []difference
	ev         event.Event
	data       []byte
	changed    []byte
	object     []byte
	lane       []byte
}

// New makes a Deriver for a mapping. It fails on a mapping that contradicts
// itself; whether the database agrees shows when its relations come.
func New(m Mapping, o Options) (*Deriver, error) {
	if o.Wants == nil {
		o.Wants = func(event.Type) bool { return true }
	}
	if o.Count == nil {
		o.Count = func(event.Type) {}
	}
	if o.Notice == nil {
		o.Notice = func(Notice) {}
	}
	if o.Broken == nil {
		o.Broken = func(event.Type, error) {}
	}
	d := &Deriver{mapping: m, tables: map[Table]*mapped{}, plans: map[*wal.Relation]*plan{}, opts: o}
	add := func(t Table, mt *mapped) error {
		if other, ok := d.tables[t]; ok {
			return fmt.Errorf("table %s is mapped twice, for %s and for %s: each table can serve one purpose", t, other.entity.Name, mt.entity.Name)
		}
		d.tables[t] = mt
		return nil
	}
	for i := range m.Entities {
		e := &m.Entities[i]
		if len(e.Key) == 0 {
			return nil, fmt.Errorf("entity %s has no key", e.Name)
		}
		main := &mapped{entity: e, role: mainRow, rules: catalogue(e, mainRow), prefix: e.Name + "\x00"}
		if err := add(e.Table, main); err != nil {
			return nil, err
		}
		var side *mapped
		if e.Balance != nil && e.Balance.Table != nil {
			side = &mapped{entity: e, role: balanceRow, rules: catalogue(e, balanceRow), prefix: e.Name + ".balance\x00"}
			if err := add(*e.Balance.Table, side); err != nil {
				return nil, err
			}
		}
		if e.CustomFields != nil && e.CustomFields.Table != nil {
			if err := add(*e.CustomFields.Table, &mapped{entity: e, role: fieldRow, prefix: e.Name + ".field\x00"}); err != nil {
				return nil, err
			}
		}
		for j := range m.Rules {
			r := &m.Rules[j]
			if r.Entity != e.Name {
				continue
			}
			if side != nil && r.Threshold != nil && slices.Contains(r.Threshold.Amount.Columns(), e.Balance.Amount.Columns()[0]) {
				side.rules = append(side.rules, r)
				continue
			}
			main.rules = append(main.rules, r)
		}
	}
	return d, nil
}

// Begin opens a transaction on a timeline. An open one is forgotten: the server
// sends it again from its start.
func (d *Deriver) Begin(timeline uint32, b wal.Begin) {
	d.timeline = timeline
	d.tx.reset(b)
}

// Reset forgets the open transaction and what an earlier connection said of
// relations. doubted are the relations whose full old rows cannot be trusted, see
// wal.Decoder.Doubt: their rows are remembered as if they had no old rows.
func (d *Deriver) Reset(doubted ...uint32) {
	d.doubted = doubted
	d.tx.reset(wal.Begin{})
	clear(d.plans)
	d.lastRel, d.lastPlan = nil, nil
}

// Mapped reports whether changes of the relation can make events.
func (d *Deriver) Mapped(rel *wal.Relation) bool { return d.plan(rel) != nil }

func (d *Deriver) plan(rel *wal.Relation) *plan {
	if rel == d.lastRel {
		return d.lastPlan
	}
	p, ok := d.plans[rel]
	if !ok {
		if m := d.tables[Table{rel.Schema, rel.Name}]; m != nil {
			var notices []Notice
			p, notices = newPlan(m, rel, rel.Identity == wal.IdentityFull && !slices.Contains(d.doubted, rel.ID))
			for _, n := range notices {
				d.opts.Notice(n)
			}
		}
		d.plans[rel] = p
	}
	d.lastRel, d.lastPlan = rel, p
	return p
}

// Change takes one change into the open transaction. It reports false for a
// change that can make no event: of a table that is not mapped, or of a row whose
// key did not come with it.
func (d *Deriver) Change(c *wal.Change) bool {
	p := d.plan(c.Relation)
	if p == nil {
		return false
	}
	var ok bool
	d.keyBuf, ok = d.tx.change(p, c, d.keyBuf)
	return ok
}

// Truncate takes a TRUNCATE of a table into the open transaction. There are no
// changes for the rows that were in it, so there are no delete events: what was
// remembered of them goes, and the entity's truncate event fires if it is mapped.
func (d *Deriver) Truncate(rel *wal.Relation) bool {
	p := d.plan(rel)
	if p == nil {
		return false
	}
	d.tx.truncate(p)
	return true
}

// Rows returns how many rows the open transaction has changed so far.
func (d *Deriver) Rows() int { return len(d.tx.rows) }

// Commit derives the open transaction's events in order, hands each that is
// wanted to emit, and brings mem up to date. The event that emit gets is valid
// until emit returns.
func (d *Deriver) Commit(mem Memory, emit func(*event.Event) error) error {
	d.ordinal = 0
	d.groups = nil
	for _, p := range d.tx.truncated {
		if p.usesMemory() {
			mem.DeleteMemoryPrefix([]byte(p.prefix))
		}
		if err := d.truncated(p, emit); err != nil {
			return err
		}
	}
	if len(d.tx.rows) == 1 {
		return d.row(&d.tx.rows[0], mem, emit)
	}
	order, err := d.ordered(mem)
	if err != nil {
		return err
	}
	for _, i := range order {
		if err := d.row(&d.tx.rows[i], mem, emit); err != nil {
			return err
		}
	}
	return nil
}

// truncated tells the truncate event of an entity's own table. It belongs to no
// client, so its lane is the entity's.
func (d *Deriver) truncated(p *plan, emit func(*event.Event) error) error {
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
		ID:   event.ID{Timeline: d.timeline, CommitLSN: d.tx.begin.CommitLSN, Ordinal: d.ordinal},
		Type: t, Entity: e.Name, Lane: e.Name + ":", XID: d.tx.begin.XID, CommitTime: d.tx.begin.CommitTime, Source: d.mapping.Source,
	}
	return emit(&d.ev)
}

// ordered returns the order in which the transaction's rows are told: that of
// their first change, but that a deleted client comes after the last deleted row
// of its lane, since a cascade deletes children after their parent.
func (d *Deriver) ordered(mem Memory) ([]int, error) {
	d.order = d.order[:0]
	parents := false
	for i := range d.tx.rows {
		d.order = append(d.order, i)
		r := &d.tx.rows[i]
		parents = parents || r.role == mainRow && r.entity.Name == Clients && r.op() == wal.Delete
	}
	if !parents {
		return d.order, nil
	}
	last := map[string]int{} // lane -> last deleted row of it
	for i := range d.tx.rows {
		if r := &d.tx.rows[i]; r.op() == wal.Delete {
			lane, err := d.laneOf(r, mem)
			if err != nil {
				return nil, err
			}
			last[string(lane)] = i
		}
	}
	at := make([]int, len(d.tx.rows))
	for i := range d.tx.rows {
		at[i] = 2 * i
		r := &d.tx.rows[i]
		if r.role == mainRow && r.entity.Name == Clients && r.op() == wal.Delete {
			lane, err := d.laneOf(r, mem)
			if err != nil {
				return nil, err
			}
			at[i] = 2*last[string(lane)] + 1
		}
	}
	slices.SortStableFunc(d.order, func(a, b int) int { return cmp.Compare(at[a], at[b]) })
	return d.order, nil
}

// laneOf is the lane of a row outside of row, into the Deriver's lane buffer.
func (d *Deriver) laneOf(r *row, mem Memory) ([]byte, error) {
	if err := d.recall(r, mem, &d.rec); err != nil {
		return nil, err
	}
	d.identify(r)
	return d.lane, nil
}

// recall fills rec with what is known of the row before the transaction: the
// cells of the old tuple, and the rest from memory. For a row whose old values
// came with the stream, memory is read only when they do not tell on which side of
// a threshold the row stood.
func (d *Deriver) recall(r *row, mem Memory, rec *record) error {
	columns := len(r.rel.Columns)
	if !r.existed {
		rec.reset(columns, len(r.gauges))
		return nil
	}
	read := !r.oldFull && r.usesMemory()
	for i := range r.gauges {
		if !r.oldFull || read {
			break
		}
		from := r.gauges[i].stand(func(column int) ([]byte, bool) {
			v := r.old[column]
			return v.Text, v.Kind == wal.Text
		})
		read = from == at || from == nowhere
	}
	if read {
		if err := d.settle(r.plan, mem); err != nil {
			return err
		}
		key := r.key
		if r.wasKey != nil {
			key = r.wasKey
		}
		if err := d.remember(mem, r.plan, key, rec); err != nil {
			return err
		}
	} else {
		rec.reset(columns, len(r.gauges))
	}
	for i, v := range r.old {
		if r.oldFull || v.Known() && r.rel.Columns[i].Key {
			rec.cells[i] = cellOf(v)
		}
	}
	if r.new != nil && r.wasKey == nil {
		for _, i := range r.plan.key {
			if rec.cells[i].tag == slotUnknown {
				rec.cells[i] = cellOf(r.new[i])
			}
		}
	}
	return nil
}

// value is the best known value of a column: now if the row is there, else before.
func (d *Deriver) value(r *row, column int) (wal.Value, bool) {
	if r.new != nil {
		if v := r.new[column]; v.Known() {
			return v, true
		}
	}
	switch c := &d.rec.cells[column]; c.tag {
	case slotNull:
		return wal.Value{Kind: wal.Null}, true
	case slotText:
		return wal.Value{Kind: wal.Text, Text: c.text}, true
	}
	return wal.Value{}, false
}

// identify sets the object and the lane of the row's events.
func (d *Deriver) identify(r *row) {
	d.object = d.object[:0]
	for n, i := range r.plan.object {
		if n > 0 {
			d.object = append(d.object, ',')
		}
		if v, ok := d.value(r, i); ok {
			d.object = append(d.object, v.Text...)
		}
	}
	d.lane = d.lane[:0]
	if r.entity.Name == Clients {
		d.lane = append(d.lane, d.object...)
		return
	}
	for n, i := range r.plan.lane {
		v, ok := d.value(r, i)
		if !ok || v.Kind != wal.Text {
			d.lane = d.lane[:0]
			break
		}
		if n > 0 {
			d.lane = append(d.lane, ',')
		}
		d.lane = append(d.lane, v.Text...)
	}
	if len(d.lane) == 0 {
		d.lane = append(append(append(d.lane, r.entity.Name...), ':'), d.object...)
	}
}

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
// value itself does not tell it, being exactly at the threshold, NULL or NaN.
func judge(op wal.Op, from standing, seen slotTag, to standing) (c crossing, next slotTag) {
	side := seen
	switch from {
	case above:
		side = slotAbove
	case below:
		side = slotBelow
	}
	if op == wal.Insert {
		if to == below || to == at {
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

// row derives the events of one row and updates its memory.
func (d *Deriver) row(r *row, mem Memory, emit func(*event.Event) error) error {
	op := r.op()
	if op == 0 || r.told {
		return nil
	}
	if r.role == fieldRow {
		return d.fields(r, mem, emit)
	}
	if err := d.recall(r, mem, &d.rec); err != nil {
		return err
	}
	rec := &d.rec

	// Where do the thresholds stand?
	d.crossed = slices.Grow(d.crossed[:0], len(r.gauges))[:len(r.gauges)]
	d.sides = slices.Grow(d.sides[:0], len(r.gauges))[:len(r.gauges)]
	keepSides := false
	for i := range r.gauges {
		g := &r.gauges[i]
		from, to := d.stoodAt(g), nowhere
		if op != wal.Delete {
			to = d.standsAt(r, g)
		}
		var next slotTag
		if g.perChange && len(r.path) > 0 {
			d.crossed[i] = stayed // followed below, change by change
			continue
		}
		d.crossed[i], next = judge(op, from, rec.sides[i], to)
		if to == above || to == below {
			next = slotUnknown
		}
		d.sides[i] = next
		keepSides = keepSides || next != slotUnknown
	}

	// Which rules fire? They are asked first and told after, since an archive
	// decides whether there is an update.
	d.diffs = d.diffs[:0]
	d.fired = slices.Grow(d.fired[:0], len(r.rules))[:len(r.rules)]
	any := false
	for i := range r.rules {
		b := &r.rules[i]
		d.fired[i] = !b.anyChange && d.fires(r, b, op)
		any = any || d.fired[i]
	}
	for i := range r.rules {
		if b := &r.rules[i]; b.anyChange && op == wal.Update {
			d.fired[i] = d.updated(r)
			any = any || d.fired[i]
		}
	}
	if any {
		d.identify(r)
		for i := range r.rules {
			if !d.fired[i] {
				continue
			}
			if err := d.tell(r, r.rules[i].Event, op, emit); err != nil {
				return err
			}
		}
	}
	if len(r.path) > 0 && op != wal.Delete {
		for i := range r.gauges {
			if !r.gauges[i].perChange {
				continue
			}
			if err := d.follow(r, i, emit); err != nil {
				return err
			}
			keepSides = keepSides || d.sides[i] != slotUnknown
		}
	}
	return d.keep(r, op, keepSides, mem)
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
func (d *Deriver) follow(r *row, i int, emit func(*event.Event) error) error {
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
	for n := range len(r.path) + 1 {
		r.new = last
		if n < len(r.path) {
			r.new = r.path[n]
		}
		to := d.standsAt(r, g)
		c, next := judge(op, from, seen, to)
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
			if err := d.tell(r, b.Event, op, emit); err != nil {
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

// differs compares a column before and after. For an insert nothing was before.
func (d *Deriver) differs(r *row, column int) difference {
	if len(d.diffs) == 0 {
		d.diffs = slices.Grow(d.diffs, len(r.rel.Columns))[:len(r.rel.Columns)]
		for i := range d.diffs {
			d.diffs[i] = d.rec.cells[i].against(r.new[i])
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
		ok, err := b.When.Row(d.vars(r, op))
		if err != nil {
			d.opts.Broken(b.Event, err)
			return false
		}
		return ok
	}
	return true
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
	case slotDigest: // a longer text than any short one
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
func parseTime(text []byte) (instant, bool) {
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
	dash := bytes.IndexByte([]byte(s), '-')
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
	for _, layout := range []string{"2006-01-02", "2006-01-02 15:04:05", "2006-01-02 15:04:05-07", "2006-01-02 15:04:05-07:00", "2006-01-02 15:04:05-07:00:00"} {
		// 2000 is a leap year, so that any day of any year parses.
		if t, err := time.Parse(layout, "2000"+s[dash:]); err == nil {
			return instant{t: t.AddDate(year-2000, 0, 0)}, true
		}
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

// tell makes one event of the row and hands it on.
func (d *Deriver) tell(r *row, t event.Type, op wal.Op, emit func(*event.Event) error) error {
	if !d.next(t) {
		return nil
	}
	d.data = append(d.data[:0], '{')
	unchanged := d.appendData(r, op)
	d.changed = append(d.changed[:0], '{')
	if op == wal.Update {
		d.appendChanged(r)
	}
	d.changed = append(d.changed, '}')
	return d.emit(r, t, unchanged, emit)
}

// next numbers an event and reports whether it is wanted.
func (d *Deriver) next(t event.Type) bool {
	d.ordinal++
	d.opts.Count(t)
	return d.opts.Wants(t)
}

func (d *Deriver) emit(r *row, t event.Type, unchanged []string, emit func(*event.Event) error) error {
	d.ev = event.Event{
		ID:         event.ID{Timeline: d.timeline, CommitLSN: d.tx.begin.CommitLSN, Ordinal: d.ordinal},
		Type:       t,
		Entity:     r.entity.Name,
		Object:     string(d.object),
		Lane:       string(d.lane),
		XID:        d.tx.begin.XID,
		CommitTime: d.tx.begin.CommitTime,
		Source:     d.mapping.Source,
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
func (d *Deriver) appendData(r *row, op wal.Op) (unchanged []string) {
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
		if !ok {
			if op != wal.Delete {
				unchanged = append(unchanged, c.Name)
			}
			continue
		}
		d.data = r.appendValue(appendName(d.data, c.Name), i, v)
	}
	if op == wal.Insert && r.role == mainRow && r.entity.Name == Clients && r.entity.CustomFields != nil && r.entity.CustomFields.Table != nil {
		d.appendOwnFields(r)
	}
	d.data = append(d.data, '}')
	return unchanged
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
		case slotText:
			d.changed = r.appendValue(appendName(d.changed, "old"), i, wal.Value{Kind: wal.Text, Text: cell.text})
		}
		d.changed = r.appendValue(appendName(d.changed, "new"), i, r.new[i])
		d.changed = append(d.changed, '}')
	}
}

// keep brings the row's memory up to date.
func (d *Deriver) keep(r *row, op wal.Op, keepSides bool, mem Memory) error {
	if !r.usesMemory() {
		return nil
	}
	if r.wasKey != nil && r.existed {
		d.forget(r.plan, r.wasKey, mem)
	}
	if op == wal.Delete {
		key := r.key
		if r.wasKey != nil {
			key = r.wasKey
		}
		if !r.plan.full || d.rec.found {
			d.forget(r.plan, key, mem)
		}
		return nil
	}
	if r.plan.full && !keepSides {
		if d.rec.found {
			mem.DeleteMemory(r.key)
		}
		return nil
	}
	if err := d.settle(r.plan, mem); err != nil {
		return err
	}
	d.recordBuf = r.plan.appendRecord(d.recordBuf[:0], func(column int) cell {
		if v := r.new[column]; v.Known() {
			return cellOf(v)
		}
		return d.rec.cells[column]
	}, d.sides)
	mem.SetMemory(r.key, d.recordBuf)
	return nil
}
