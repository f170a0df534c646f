package billing

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/billhook/billhook/internal/event"
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
	// Seal is the key of the digests by which masked columns are remembered. It stays
	// the same as long as the memory does.
	Seal []byte
	// Broken is called when a condition cannot be evaluated for a row; its event
	// does not fire for this row.
	Broken func(t event.Type, err error)
	// Limit is how many bytes of an open transaction are folded before Full says
	// so; 0: 8 MiB.
	Limit int
	// Scratch keeps what Spill moves; nil: RAM does.
	Scratch Scratch
	// Between is called by Spill, and by Commit of a transaction that was spilled,
	// between two rows.
	Between func() error
}

const defaultLimit = 8 << 20

// emitter takes an event. It is valid until the function returns.
type emitter = func(*event.Event) error

// Deriver turns transactions into events. It belongs to one goroutine.
type Deriver struct {
	mapping    Mapping
	tables     map[Table]*mapped
	generation uint32 // of the open transaction's ids
	opts       Options

	plans    map[*wal.Relation]*plan
	lastRel  *wal.Relation
	lastPlan *plan
	doubted  []uint32

	layouts       []Layout
	layoutsLoaded bool

	tx      transaction
	keyBuf  []byte
	ordinal uint32           // of the last event of the transaction
	base    uint32           // is added to it
	origin  string           // of the transaction's events
	groups  map[string][]int // custom field rows of the open transaction by client; nil until asked for
	filling bool
	filled  bool // SetFilling has said that nothing is to be filled
	clock   clock
	rec     record
	order   []int
	aside   bool      // memory of rows whose key has changed was set aside
	own     bool      // the open transaction is Billhook's own, see Own
	loaded  [4]loaded // the row at hand, one that is told with it, a client, and one that is looked for

	recordText []byte
	recordBuf  []byte
	digestText []byte
	digestKey  []byte
	groupBuf   []byte
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
	if o.Limit <= 0 {
		o.Limit = defaultLimit
	}
	if o.Between == nil {
		o.Between = func() error { return nil }
	}
	if o.Scratch == nil {
		o.Scratch = &heap{}
	}
	d := &Deriver{mapping: m, tables: map[Table]*mapped{}, plans: map[*wal.Relation]*plan{}, opts: o}
	d.tx.spilled.scratch, d.tx.spilled.limit = o.Scratch, inRAM
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
			side = &mapped{entity: e, role: balanceRow, prefix: e.Name + ".balance\x00"}
			if err := add(*e.Balance.Table, side); err != nil {
				return nil, err
			}
		}
		if e.CustomFields != nil && e.CustomFields.Table != nil {
			if err := add(*e.CustomFields.Table, &mapped{entity: e, role: fieldRow, prefix: e.Name + ".field\x00"}); err != nil {
				return nil, err
			}
		}
		both := &joint{mapped: &mapped{entity: e, role: jointRow, prefix: e.Name + ".joint\x00"}}
		if side != nil {
			for _, r := range balanceRules(e) {
				if err := e.place(*r, main, side, both); err != nil {
					return nil, err
				}
			}
			// The balance alone makes no update event, wherever it stands.
			if h, column, _ := e.qualified(e.Balance.Amount.Columns()[0]); h != sideTable && e.homeOf(e.Balance.Amount) != sideTable {
				main.quiet = append(main.quiet, column)
			}
		}
		for j := range m.Rules {
			r := &m.Rules[j]
			switch {
			case r.Entity != e.Name:
			case r.Threshold == nil:
				main.rules = append(main.rules, r)
			default:
				if err := e.place(*r, main, side, both); err != nil {
					return nil, err
				}
			}
		}
		if len(both.rules) > 0 {
			main.joint, side.joint = both, both
			if err := add(both.table(), both.mapped); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// Begin opens a transaction, whose events have ids of a generation. An open one is forgotten: the server
// sends it again from its start.
func (d *Deriver) Begin(generation uint32, b wal.Begin) {
	d.generation, d.base, d.origin, d.own = generation, 0, "", false
	d.tx.reset(b)
}

// Own says that Billhook itself has made the open transaction: its events are not
// derived, whatever made its changes, and memory is brought up to date all the same.
// So the next change is judged from the row as this transaction left it: from that
// side of a threshold, too.
func (d *Deriver) Own() { d.own = true }

// Reset forgets the open transaction and what an earlier connection said of
// relations. doubted are the relations whose full old rows cannot be trusted, see
// wal.Decoder.Doubt: their rows are remembered as if they had no old rows.
func (d *Deriver) Reset(doubted ...uint32) {
	d.doubted, d.own = doubted, false
	d.tx.reset(wal.Begin{})
	clear(d.plans)
	for _, m := range d.tables {
		if m.joint != nil {
			m.joint.plan = nil
		}
	}
	// What a transaction that is forgotten has written is gone from memory.
	d.layouts, d.layoutsLoaded = nil, false
	d.clock.known, d.clock.forms = false, nil
	clear(d.clock.plans)
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
			p, notices = newPlan(m, rel, rel.Identity == wal.IdentityFull && !slices.Contains(d.doubted, rel.ID) && !m.entity.Remember)
			for _, n := range notices {
				d.opts.Notice(n)
			}
			if p != nil {
				p.seal = d.opts.Seal
				d.join(p)
			}
		}
		d.plans[rel] = p
	}
	d.lastRel, d.lastPlan = rel, p
	return p
}

// Change takes one change into the open transaction. It reports false for a
// change that can make no event: of a table that is not mapped, or of a row whose
// key did not come with it. It takes excluded values out of c.
func (d *Deriver) Change(c *wal.Change) bool {
	p := d.plan(c.Relation)
	if p == nil {
		return false
	}
	p.hide(c.New)
	p.hide(c.Old)
	var ok bool
	if d.keyBuf, ok = d.tx.change(p, c, d.keyBuf); ok && p.joins != nil {
		d.joinChange(p, c)
	}
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
	if p.joins != nil {
		d.tx.truncate(p.joins.plan)
	}
	return true
}

// Commit derives the open transaction's events in order, hands each that is
// wanted to emit, and brings mem up to date. The event that emit gets is valid
// until emit returns.
func (d *Deriver) Commit(mem Memory, emit emitter) error {
	defer func() { d.own = false }() // what is told between transactions is nobody's own
	d.ordinal = 0
	d.groups = nil
	for _, p := range d.tx.truncated {
		mem.DeleteMemoryPrefix([]byte(p.prefix))
		mem.DeleteMemoryPrefix([]byte(digests + p.prefix))
		if p.clocked {
			mem.DeleteMemoryPrefix([]byte(clockPrefix + p.prefix))
		}
		if err := d.truncated(p, emit); err != nil {
			return err
		}
	}
	d.aside = false
	if d.tx.spilled.next > 0 {
		return d.commitSpilled(mem, emit)
	}
	if len(d.tx.rows) == 1 {
		return d.row(&d.tx.rows[0], mem, emit)
	}
	if err := d.setAllAside(mem); err != nil {
		return err
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
	if d.aside {
		mem.DeleteMemoryPrefix([]byte(scratch))
	}
	return nil
}

// setAllAside makes way for rows whose keys have changed: one may have the key that
// another had, or a deleted row that is told later. So all that is remembered of
// rows that give up their key is set aside before the first of them is told.
func (d *Deriver) setAllAside(mem Memory) error {
	d.aside = slices.ContainsFunc(d.tx.rows, func(r row) bool { return r.wasKey != nil && !r.void })
	if !d.aside {
		return nil
	}
	for i := range d.tx.rows {
		if err := d.setAside(&d.tx.rows[i], mem); err != nil {
			return err
		}
	}
	for i := range d.tx.rows {
		d.vacate(&d.tx.rows[i], mem)
	}
	return nil
}

// setAside copies what is remembered of a row that gives up its key.
func (d *Deriver) setAside(r *row, mem Memory) error {
	if !r.leaves() || !r.usesMemory() {
		return nil
	}
	if r.clocked {
		if err := d.setTimersAside(r, mem); err != nil {
			return err
		}
	}
	from, to := r.firstKey(), slices.Clone(d.tx.spilled.at(scratchMoved, uint64(r.ordinal)))
	for range 2 {
		v, ok, err := mem.Memory(from)
		if err != nil {
			return fmt.Errorf("read memory of %s: %w", r.rel.Name, err)
		}
		if ok {
			d.recordBuf = append(d.recordBuf[:0], v...)
			mem.SetMemory(to, d.recordBuf)
		}
		// Also of a row whose old values come with the stream: its memory may be older.
		from, to = digestsKey(nil, from), digestsKey(nil, to)
	}
	return nil
}

// vacate forgets what is remembered of a row under the key that it gives up.
func (d *Deriver) vacate(r *row, mem Memory) {
	if r.leaves() && r.usesMemory() {
		d.forget(r.plan, r.firstKey(), mem)
	}
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
		parents = parents || r.isClient() && r.op() == wal.Delete
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
		if r.isClient() && r.op() == wal.Delete {
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
		rec.reset(columns, len(r.gauges), len(r.plan.at))
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
	read = read || !d.filled && len(r.plan.at) > 0
	if r.plan.full && !read {
		// What was remembered before the old rows came with the stream must not be taken
		// for what is when they no longer do.
		outlived, err := d.outlived(r.plan, mem)
		if err != nil {
			return err
		}
		read = outlived
	}
	if read {
		if err := d.settle(r.plan, mem); err != nil {
			return err
		}
		key := r.firstKey()
		if d.aside && r.leaves() {
			key = d.tx.spilled.at(scratchMoved, uint64(r.ordinal))
		}
		if err := d.remember(mem, r.plan, key, rec, r.new); err != nil {
			return err
		}
	} else {
		rec.reset(columns, len(r.gauges), len(r.plan.at))
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

// JoinKey is the object or lane that a key's parts make. With several parts a comma or
// a backslash in one of them has a backslash before it, so that no two keys are alike.
func JoinKey(parts []string) string {
	var b []byte
	for n, part := range parts {
		b = appendPart(b, n, len(parts), part)
	}
	return string(b)
}

// SplitKey takes apart what JoinKey made of n parts. It reports false for a text that
// cannot be of so many.
func SplitKey(key string, n int) ([]string, bool) {
	if n == 1 {
		return []string{key}, true
	}
	parts := []string{""}
	for i := 0; i < len(key); i++ {
		c := key[i]
		switch {
		case c == ',':
			parts = append(parts, "")
			continue
		case c == '\\':
			if i++; i == len(key) {
				return nil, false
			}
			c = key[i]
		}
		parts[len(parts)-1] += string([]byte{c})
	}
	return parts, len(parts) == n
}

// appendPart appends the n-th of a key's parts.
func appendPart[T string | []byte](b []byte, n, of int, part T) []byte {
	if n > 0 {
		b = append(b, ',')
	}
	if of == 1 {
		return append(b, part...)
	}
	for i := range len(part) {
		if part[i] == ',' || part[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, part[i])
	}
	return b
}

// identify sets the object and the lane of the row's events.
func (d *Deriver) identify(r *row) {
	d.object = d.object[:0]
	for n, i := range r.plan.object {
		v, _ := d.value(r, i)
		d.object = appendPart(d.object, n, len(r.plan.object), v.Text)
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
		d.lane = appendPart(d.lane, n, len(r.plan.lane), v.Text)
	}
	if len(d.lane) == 0 {
		d.lane = append(append(append(d.lane, r.entity.Name...), ':'), d.object...)
	}
}

// row derives the events of one row and updates its memory.
func (d *Deriver) row(r *row, mem Memory, emit emitter) error {
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
	if r.role == jointRow {
		op = d.joined(r)
	}

	// Where do the thresholds stand?
	d.crossed = slices.Grow(d.crossed[:0], len(r.gauges))[:len(r.gauges)]
	d.sides = slices.Grow(d.sides[:0], len(r.gauges))[:len(r.gauges)]
	keepSides := false
	d.clock.turns = d.clock.turns[:0]
	for i := range r.gauges {
		g := &r.gauges[i]
		from, to := d.stoodAt(g), nowhere
		if op != wal.Delete {
			to = d.standsAt(r, g)
		}
		var next slotTag
		if g.perChange && r.versions() > 0 {
			d.crossed[i] = stayed // followed below, change by change
			continue
		}
		d.crossed[i], next = judge(op, from, rec.sides[i], to, g.onCreate)
		d.crossed[i] = d.turn(r, i, d.crossed[i], toldSide(from, rec.sides[i]))
		if to == above || to == below {
			next = slotUnknown
		}
		d.sides[i] = next
		keepSides = keepSides || next != slotUnknown
	}

	if op == wal.Delete && len(r.plan.at) > 0 {
		if _, err := d.loadRowTimers(r, mem); err != nil {
			return err
		}
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
			if err := d.tell(r, r.rules[i].Event, op, mem, emit); err != nil {
				return err
			}
		}
	}
	if r.versions() > 0 && op != wal.Delete {
		for i := range r.gauges {
			if !r.gauges[i].perChange {
				continue
			}
			if err := d.follow(r, i, mem, emit); err != nil {
				return err
			}
			keepSides = keepSides || d.sides[i] != slotUnknown
		}
	}
	if r.clocked {
		if err := d.setTimers(r, op, mem); err != nil {
			return err
		}
	}
	return d.keep(r, op, keepSides, mem)
}

// keep brings the row's memory up to date.
func (d *Deriver) keep(r *row, op wal.Op, keepSides bool, mem Memory) error {
	if !r.usesMemory() {
		if d.rec.found { // from before the old rows came with the stream
			d.erase(r.plan, r.firstKey(), mem)
		}
		return nil
	}
	if r.role == jointRow {
		return d.keepJoint(r, op, mem)
	}
	if !d.aside && (!r.plan.full || d.rec.found || r.wasKey != nil || len(r.plan.at) > 0) {
		d.vacate(r, mem)
	}
	if op == wal.Delete {
		return nil
	}
	// While rows are filled in, those that the stream has told of are marked.
	if r.plan.full && !keepSides && (d.filled || len(r.plan.at) == 0) {
		if d.rec.found {
			d.erase(r.plan, r.key, mem)
		}
		return nil
	}
	return d.remind(r, mem)
}

// remind writes what is known of a row that is there.
func (d *Deriver) remind(r *row, mem Memory) error {
	if err := d.settle(r.plan, mem); err != nil {
		return err
	}
	d.write(r.plan, mem, r.key, &d.rec, func(column int) cell {
		if v := r.new[column]; v.Known() {
			return cellOf(v)
		}
		return d.rec.cells[column]
	}, d.sides, func(column int) bool {
		return !r.new[column].Known() || d.differs(r, column) == same
	})
	return nil
}
