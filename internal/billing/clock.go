package billing

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/wal"
)

// Timers stand in Memory, under keys that no row has.
//
//	\x00clock\x00 row         the timers of a row, and the row as now known
//	\x00due\x00 due(8) row    a moment at which at least one of them falls due
//	\x00timers                how many of those moments there are
//	\x00clock forms           what the columns of the rows are
//	\x00since schema.table    from when each rule by the clock is in force
//
//	clock = version(1) form(uvarint) cell* count(uvarint) timer*
//	timer = kind(1) told(1) due(8) set(8) name old
//	old   = 0 | 1 cell*
//
// row is the row's memory key, name a length (uvarint) and a text, cell a slot as in
// Layout, one for each column of the form. Moments are microseconds since 1970,
// big-endian, with the sign bit turned over so that they sort. A row without timers
// has no key here. Of a masked column that no rule needs the image says only that
// there was a text (a digest of zero).
//
// A moment whose row has no such timer any more is possible, after a TRUNCATE: it is
// dropped when it comes.
const (
	clockPrefix = "\x00clock\x00"
	duePrefix   = "\x00due\x00"
	timersKey   = "\x00timers"
	formsKey    = "\x00clock forms"
	sinceKey    = "\x00since "
)

const clockVersion = 1

// Timers is Memory that can be looked through in order.
type Timers interface {
	Memory
	// ScanMemory calls f with the keys that start with prefix and are not below from,
	// in order, until f returns false or an error. f does not touch the memory.
	ScanMemory(from, prefix []byte, f func(key, value []byte) (more bool, err error)) error
}

// atRule is a rule of a plan that fires when the time in a column has come.
type atRule struct {
	name   string // the event type and the column
	rule   *Rule
	column int
}

// clock is what a Deriver knows of its timers.
type clock struct {
	now   time.Time // see SetNow
	known bool      // next is
	next  int64     // no timer falls due before; never: there is none
	forms []clockForm
	plans map[uint32]*plan // of forms, for rows whose relation need not have come yet
	since map[string]*sinceTable
	turns []turn

	entry  clockEntry
	text   []byte // what entry aliases
	buf    []byte
	key    []byte
	due    []byte
	before []int64 // the entry's moments in memory
	after  []int64

	columns []int // of a form, in the plan at hand
}

const never = math.MaxInt64

// clockForm is what the columns of an image are.
type clockForm struct {
	ID      uint32       `json:"id"`
	Table   Table        `json:"table"`
	Columns []formColumn `json:"columns"`
}

type formColumn struct {
	Name string `json:"name"`
	Type uint32 `json:"type"`
}

func sameColumns(f []formColumn, rel *wal.Relation) bool {
	return slices.EqualFunc(f, rel.Columns, func(a formColumn, b wal.Column) bool { return a.Name == b.Name && a.Type == b.Type })
}

// sinceTable says from when the rules by the clock of a table are in force: rows
// that were there before are not told of times that were past by then.
type sinceTable struct {
	raw   string
	rules map[string]sinceRule
}

type sinceRule struct {
	Since int64 `json:"since"`
	Done  bool  `json:"done"` // every row has been looked at
}

// The kinds of timer.
const (
	timerAt   byte = 'a' // the time in a column
	timerDown byte = 'd' // a gauge went down, and is to settle
	timerUp   byte = 'u'
)

// timer is what happens to a row at a moment, unless the row changes before.
type timer struct {
	kind byte
	told slotTag // of a gauge: the side that was told last, if that is known
	due  int64
	set  int64  // when it was set
	name string // of the rule or of the gauge
	old  []cell // of a gauge: the row before it crossed
}

// clockEntry is what stands under clockPrefix for a row. image has a cell for each
// column of the plan it was read under.
type clockEntry struct {
	image  []cell
	timers []timer
}

// turn is a crossing of a gauge that has to settle.
type turn struct {
	gauge int
	c     crossing
	told  slotTag
	old   []cell
}

// toldSide is the side that was told before a crossing.
func toldSide(from standing, seen slotTag) slotTag {
	switch from {
	case above:
		return slotAbove
	case below:
		return slotBelow
	}
	return seen
}

// turn takes a crossing of a gauge that has to settle off the rules, and notes it for
// setTimers. Any other crossing it returns.
func (d *Deriver) turn(r *row, gauge int, c crossing, told slotTag) crossing {
	if r.gauges[gauge].settle == 0 || c == stayed {
		return c
	}
	if c == startedBelow {
		if !r.gauges[gauge].onCreate {
			return stayed
		}
		// Whoever has not been told of a new row takes it to be above.
		c, told = wentDown, slotAbove
	}
	d.clock.turns = append(d.clock.turns, turn{gauge, c, told, slices.Clone(d.rec.cells)})
	return stayed
}

// farthest is the last year that timers reach, either way.
const farthest = 250_000

// micros is a moment as timers have it.
func micros(t time.Time) int64 {
	if t.Year() < -farthest {
		return math.MinInt64
	}
	return t.UnixMicro()
}

// moment reads the text of a column that a rule by the clock looks at. ok is false
// when its time never comes.
func (d *Deriver) moment(r *Rule, text []byte) (due int64, ok bool) {
	zone := d.mapping.Zone
	if zone == nil {
		zone = time.UTC
	}
	i, ok := parseTimeIn(text, zone)
	switch {
	case !ok:
		d.opts.Broken(r.Event, fmt.Errorf("column %s holds no date and no time", r.At))
		return 0, false
	case i.infinity > 0, i.infinity == 0 && i.t.Year() > farthest:
		return 0, false
	case i.infinity < 0:
		return math.MinInt64, true
	}
	return micros(i.t), true
}

// setTimers brings the row's timers up to date with its change.
func (d *Deriver) setTimers(r *row, op wal.Op, mem Memory) error {
	c := &d.clock
	aside := d.aside && r.leaves()
	found, err := d.loadRowTimers(r, mem)
	if err != nil {
		return err
	}
	if aside {
		c.before = c.before[:0] // they are gone already
	} else if found && r.leaves() {
		timers := c.entry.timers
		c.entry.timers = nil
		if err := d.storeTimers(r.plan, r.firstKey(), mem); err != nil {
			return err
		}
		c.entry.timers = timers
	}
	if op == wal.Delete {
		if !found || r.leaves() {
			return nil
		}
		c.entry.timers = nil // of a row that no table has, and now neither of the two
		return d.storeTimers(r.plan, r.key, mem)
	}

	commit := micros(d.tx.begin.CommitTime)
	for i := range r.plan.at {
		if err := d.setAt(r, op, i, commit, mem); err != nil {
			return err
		}
	}
	for i := range c.turns {
		d.setTurn(r, &c.turns[i], commit)
	}
	if !found && len(c.entry.timers) == 0 {
		return nil
	}
	if len(c.entry.image) == 0 {
		c.entry.image = slices.Grow(c.entry.image, len(r.rel.Columns))[:len(r.rel.Columns)]
		clear(c.entry.image)
	}
	for i, v := range r.new {
		if v.Kind == wal.Unchanged && c.entry.image[i].tag == slotUnknown {
			c.entry.image[i] = d.rec.cells[i] // an exact text, or nothing that helps
		}
		if v.Known() {
			c.entry.image[i] = cellOf(v)
		}
	}
	return d.storeTimers(r.plan, r.key, mem)
}

// loadRowTimers is loadTimers for a row of the open transaction.
func (d *Deriver) loadRowTimers(r *row, mem Memory) (found bool, err error) {
	if !r.existed {
		d.clock.entry, d.clock.before = clockEntry{image: d.clock.entry.image[:0]}, d.clock.before[:0]
		return false, nil
	}
	key := d.clockKey(r.firstKey())
	if d.aside && r.leaves() {
		key = d.tx.spilled.at(scratchTimers, uint64(r.ordinal))
	}
	return d.loadTimers(r.plan, key, mem)
}

// endedBy asks a rule by the clock of a row that is deleted, and whose timers have been
// loaded: what was to end later ends now.
func (d *Deriver) endedBy(r *row, b *bound) bool {
	if b.On&OnDelete == 0 {
		return false // by the clock alone
	}
	pending := slices.ContainsFunc(d.clock.entry.timers, func(t timer) bool {
		return t.kind == timerAt && t.name == string(b.Event)+" "+b.At
	})
	if c := &d.rec.cells[b.at]; !pending && c.tag == slotText {
		if due, ok := d.moment(b.Rule, c.text); ok && due <= micros(d.tx.begin.CommitTime) {
			return false // it has ended before
		}
	}
	return true
}

// setTimersAside takes away the timers of a row that gives up its key, and keeps them
// for setTimers.
func (d *Deriver) setTimersAside(r *row, mem Memory) error {
	key := d.clockKey(r.firstKey())
	found, err := d.loadTimers(r.plan, key, mem)
	if err != nil || !found {
		return err
	}
	mem.SetMemory(d.tx.spilled.at(scratchTimers, uint64(r.ordinal)), d.clock.text)
	d.clock.entry.timers = nil
	return d.storeTimers(r.plan, r.firstKey(), mem)
}

// setAt sets, moves or takes away the timer of the n-th rule by the clock.
func (d *Deriver) setAt(r *row, op wal.Op, n int, commit int64, mem Memory) error {
	a := &r.plan.at[n]
	v := r.new[a.column]
	if !v.Known() {
		return nil
	}
	always, earliest := true, int64(0)
	if op == wal.Update {
		seen := d.rec.marks[n] != slotUnknown || r.plan.full && d.filled
		diff := d.differs(r, a.column)
		if diff == same && seen {
			return nil
		}
		if diff != differs {
			// It may have been so for long: only a time that is yet to come counts, or one
			// that came while rows were being filled in.
			always, earliest = false, commit
			since, err := d.sinceOf(r.plan, mem)
			if err != nil {
				return err
			}
			if s, ok := since.rules[a.name]; ok && !s.Done {
				earliest = min(s.Since, commit)
			}
		}
	}
	if d.own {
		always, earliest = false, commit // a time that is past already would be told of now
	}
	d.drop(timerAt, a.name)
	if v.Kind != wal.Text {
		return nil
	}
	if due, ok := d.moment(a.rule, v.Text); ok && (always || due > earliest) {
		d.clock.entry.timers = append(d.clock.entry.timers, timer{kind: timerAt, due: due, set: commit, name: a.name})
	}
	return nil
}

// setTurn sets a timer for a gauge that has crossed, or takes the one away that was
// set when it crossed the other way: then the side is again the one told last.
func (d *Deriver) setTurn(r *row, t *turn, commit int64) {
	g := &r.gauges[t.gauge]
	kind := timerDown
	if t.c == wentUp {
		kind = timerUp
	}
	entry := &d.clock.entry
	next := timer{kind: kind, told: t.told, due: commit + g.settle.Microseconds(), set: commit, name: g.name, old: t.old}
	i := slices.IndexFunc(entry.timers, func(t timer) bool { return t.kind != timerAt && t.name == g.name })
	switch {
	case d.own: // this side is not told of, and the other no longer holds
		if i >= 0 && entry.timers[i].kind != kind {
			entry.timers = slices.Delete(entry.timers, i, i+1)
		}
	case i < 0:
		entry.timers = append(entry.timers, next)
	case entry.timers[i].kind == kind:
	case entry.timers[i].told == slotUnknown:
		// Nothing was told yet, so this side is news as the other would have been.
		next.told, next.old = slotUnknown, entry.timers[i].old
		entry.timers[i] = next
	default:
		entry.timers = slices.Delete(entry.timers, i, i+1)
	}
}

func (d *Deriver) drop(kind byte, name string) {
	d.clock.entry.timers = slices.DeleteFunc(d.clock.entry.timers, func(t timer) bool { return t.kind == kind && t.name == name })
}

// fillTimers sets the timers of a row that a fill has found, where the stream has not
// told of it. d.rec is what memory holds of the row.
func (d *Deriver) fillTimers(p *plan, tuple wal.Tuple, mem Memory) error {
	c := &d.clock
	since, err := d.sinceOf(p, mem)
	if err != nil {
		return err
	}
	changed := false
	for _, a := range p.at {
		if _, ok := since.rules[a.name]; !ok {
			since.rules[a.name] = sinceRule{Since: micros(c.now)}
			changed = true
		}
	}
	if changed {
		if err := d.setSince(p, since, mem); err != nil {
			return err
		}
	}
	loaded, found := false, false
	for i, a := range p.at {
		s := since.rules[a.name]
		v := tuple[a.column]
		due, ok := int64(0), false
		if d.rec.marks[i] == slotUnknown && !s.Done && v.Kind == wal.Text {
			due, ok = d.moment(a.rule, v.Text)
			ok = ok && due > s.Since
		}
		if !ok && d.rec.marks[i] == slotUnknown {
			continue
		}
		if !loaded {
			loaded = true
			if found, err = d.loadTimers(p, d.clockKey(d.keyBuf), mem); err != nil {
				return err
			}
		}
		if ok {
			d.drop(timerAt, a.name)
			c.entry.timers = append(c.entry.timers, timer{kind: timerAt, due: due, set: s.Since, name: a.name})
		}
	}
	if len(c.entry.timers) == 0 || !loaded {
		return nil
	}
	if !found {
		c.entry.image = slices.Grow(c.entry.image[:0], len(tuple))[:len(tuple)]
		clear(c.entry.image)
	}
	for i, v := range tuple { // what the stream has told is as new or newer
		if c.entry.image[i].tag == slotUnknown {
			c.entry.image[i] = cellOf(v)
		}
	}
	return d.storeTimers(p, d.keyBuf, mem)
}

// Filled notes that every row of a table has been given to Fill.
func (d *Deriver) Filled(rel *wal.Relation, mem Memory) error {
	p := d.plan(rel)
	if p == nil || len(p.at) == 0 {
		return nil
	}
	since, err := d.sinceOf(p, mem)
	if err != nil {
		return err
	}
	for _, a := range p.at {
		s, ok := since.rules[a.name]
		if !ok {
			s.Since = micros(d.clock.now)
		}
		s.Done = true
		since.rules[a.name] = s
	}
	return d.setSince(p, since, mem)
}

// Attend forgets from when rules by the clock were in force that the mapping no
// longer has for a table, so that they start anew should they come back.
func (d *Deriver) Attend(rel *wal.Relation, mem Memory) error {
	p := d.plan(rel)
	if p == nil {
		return nil
	}
	since, err := d.sinceOf(p, mem)
	if err != nil {
		return err
	}
	before := len(since.rules)
	for name := range since.rules {
		if !slices.ContainsFunc(p.at, func(a atRule) bool { return a.name == name }) {
			delete(since.rules, name)
		}
	}
	if len(since.rules) == before {
		return nil
	}
	return d.setSince(p, since, mem)
}

// sinceOf reads from when the rules of a table are in force.
func (d *Deriver) sinceOf(p *plan, mem Memory) (*sinceTable, error) {
	b, ok, err := mem.Memory([]byte(sinceKey + p.layout.Table))
	if err != nil {
		return nil, fmt.Errorf("read from when rules by the clock are in force: %w", err)
	}
	t := d.clock.since[p.layout.Table]
	if t != nil && ok && t.raw == string(b) {
		return t, nil
	}
	t = &sinceTable{rules: map[string]sinceRule{}}
	if ok {
		t.raw = string(b)
		if err := json.Unmarshal(b, &t.rules); err != nil {
			return nil, fmt.Errorf("read from when rules by the clock are in force: %w", err)
		}
	}
	if d.clock.since == nil {
		d.clock.since = map[string]*sinceTable{}
	}
	d.clock.since[p.layout.Table] = t
	return t, nil
}

func (d *Deriver) setSince(p *plan, t *sinceTable, mem Memory) error {
	if len(t.rules) == 0 {
		mem.DeleteMemory([]byte(sinceKey + p.layout.Table))
		return nil
	}
	b, err := json.Marshal(t.rules)
	if err != nil {
		return fmt.Errorf("write from when rules by the clock are in force: %w", err)
	}
	t.raw = string(b)
	mem.SetMemory([]byte(sinceKey+p.layout.Table), b)
	return nil
}

// clockKey is where a row's timers stand.
func (d *Deriver) clockKey(row []byte) []byte {
	d.clock.key = append(append(d.clock.key[:0], clockPrefix...), row...)
	return d.clock.key
}

// dueKey is where a moment of a row stands.
func (d *Deriver) dueKey(due int64, row []byte) []byte {
	d.clock.due = binary.BigEndian.AppendUint64(append(d.clock.due[:0], duePrefix...), uint64(due)^1<<63)
	d.clock.due = append(d.clock.due, row...)
	return d.clock.due
}

// loadTimers reads the timers that stand under a key into d.clock.entry, and their
// moments into d.clock.before.
func (d *Deriver) loadTimers(p *plan, key []byte, mem Memory) (found bool, err error) {
	c := &d.clock
	c.before = c.before[:0]
	c.entry = clockEntry{image: c.entry.image[:0]}
	b, found, err := mem.Memory(key)
	if err != nil {
		return false, fmt.Errorf("read the timers of a row of %s: %w", p.rel.Name, err)
	}
	if !found {
		return false, nil
	}
	c.text = append(c.text[:0], b...)
	if err := d.decodeTimers(p, c.text, mem); err != nil {
		return false, fmt.Errorf("read the timers of a row of %s: %w", p.rel.Name, err)
	}
	c.before = c.entry.moments(c.before)
	return true, nil
}

// moments appends the moments of an entry, each once, in order.
func (e *clockEntry) moments(b []int64) []int64 {
	for _, t := range e.timers {
		b = append(b, t.due)
	}
	slices.Sort(b)
	return slices.Compact(b)
}

// storeTimers writes d.clock.entry under a row, with its moments, of which
// d.clock.before are there.
func (d *Deriver) storeTimers(p *plan, row []byte, mem Memory) error {
	c := &d.clock
	c.after = c.entry.moments(c.after[:0])
	count := 0
	for _, due := range c.before {
		if _, ok := slices.BinarySearch(c.after, due); !ok {
			mem.DeleteMemory(d.dueKey(due, row))
			count--
		}
	}
	for _, due := range c.after {
		if _, ok := slices.BinarySearch(c.before, due); ok {
			continue
		}
		key := d.dueKey(due, row)
		_, ok, err := mem.Memory(key)
		if err != nil {
			return fmt.Errorf("read the moments of timers: %w", err)
		}
		if !ok { // else it is left of a row that a TRUNCATE took
			count++
		}
		mem.SetMemory(key, nil)
		c.next = min(c.next, due)
	}
	c.before = append(c.before[:0], c.after...)
	if err := d.count(count, mem); err != nil {
		return err
	}
	if len(c.entry.timers) == 0 {
		mem.DeleteMemory(d.clockKey(row))
		return nil
	}
	form, err := d.formOf(p, mem)
	if err != nil {
		return err
	}
	b := binary.AppendUvarint(append(c.buf[:0], clockVersion), uint64(form))
	for i := range c.entry.image {
		b = p.appendImage(b, i, c.entry.image[i])
	}
	b = binary.AppendUvarint(b, uint64(len(c.entry.timers)))
	for i := range c.entry.timers {
		t := &c.entry.timers[i]
		b = append(b, t.kind, byte(t.told))
		b = binary.BigEndian.AppendUint64(b, uint64(t.due))
		b = binary.BigEndian.AppendUint64(b, uint64(t.set))
		b = append(binary.AppendUvarint(b, uint64(len(t.name))), t.name...)
		if t.old == nil {
			b = append(b, 0)
			continue
		}
		b = append(b, 1)
		for i := range t.old {
			b = p.appendImage(b, i, t.old[i])
		}
	}
	c.buf = b
	mem.SetMemory(d.clockKey(row), b)
	return nil
}

// appendImage appends the cell of a column, without what must not be kept.
func (p *plan) appendImage(b []byte, column int, c cell) []byte {
	switch {
	case p.hidden[column] && !slices.Contains(p.key, column):
		c = cell{}
	case c.tag == slotText && p.masked[column] && !p.kept[column]:
		c = cell{tag: slotDigest}
	}
	return appendCell(b, c, true)
}

// errTimers says that what stands under clockPrefix is damaged.
var errTimers = errors.New("damaged")

// decodeTimers reads b into d.clock.entry under a plan. What the image has of columns
// that the plan lacks is dropped; what it lacks is unknown.
func (d *Deriver) decodeTimers(p *plan, b []byte, mem Memory) error {
	c := &d.clock
	if len(b) == 0 || b[0] != clockVersion {
		return errors.New("written by another version of billhook")
	}
	id, n := binary.Uvarint(b[1:])
	if n <= 0 {
		return errTimers
	}
	b = b[1+n:]
	form, err := d.form(uint32(id), mem)
	if err != nil {
		return err
	}
	c.columns = c.columns[:0]
	for i, f := range form.Columns {
		if i < len(p.rel.Columns) && p.rel.Columns[i].Name == f.Name {
			c.columns = append(c.columns, i)
			continue
		}
		c.columns = append(c.columns, slices.IndexFunc(p.rel.Columns, func(c wal.Column) bool { return c.Name == f.Name }))
	}
	image := func(into []cell) ([]cell, error) {
		into = slices.Grow(into, len(p.rel.Columns))[:len(p.rel.Columns)]
		clear(into)
		for _, i := range c.columns {
			cell, rest, ok := readCell(b)
			if !ok {
				return nil, errTimers
			}
			if b = rest; i >= 0 {
				into[i] = cell
			}
		}
		return into, nil
	}
	if c.entry.image, err = image(c.entry.image[:0]); err != nil {
		return err
	}
	count, n := binary.Uvarint(b)
	if n <= 0 {
		return errTimers
	}
	b = b[n:]
	for range count {
		if len(b) < 18 {
			return errTimers
		}
		t := timer{kind: b[0], told: slotTag(b[1]), due: int64(binary.BigEndian.Uint64(b[2:])), set: int64(binary.BigEndian.Uint64(b[10:]))}
		size, n := binary.Uvarint(b[18:])
		if n <= 0 || uint64(len(b)-18-n) < size+1 {
			return errTimers
		}
		b = b[18+n:]
		t.name = string(b[:size])
		old := b[size] == 1
		b = b[size+1:]
		if old {
			if t.old, err = image(nil); err != nil {
				return err
			}
		}
		c.entry.timers = append(c.entry.timers, t)
	}
	return nil
}

// loadForms reads the known forms once.
func (d *Deriver) loadForms(mem Memory) error {
	if d.clock.forms != nil {
		return nil
	}
	b, ok, err := mem.Memory([]byte(formsKey))
	if err != nil {
		return fmt.Errorf("read the forms of timers: %w", err)
	}
	d.clock.forms = []clockForm{}
	if ok {
		if err := json.Unmarshal(b, &d.clock.forms); err != nil {
			return fmt.Errorf("read the forms of timers: %w", err)
		}
	}
	return nil
}

func (d *Deriver) form(id uint32, mem Memory) (clockForm, error) {
	if err := d.loadForms(mem); err != nil {
		return clockForm{}, err
	}
	for _, f := range d.clock.forms {
		if f.ID == id {
			return f, nil
		}
	}
	return clockForm{}, fmt.Errorf("there is no form %d", id)
}

// formOf returns the form of a plan's images, a new one if need be.
func (d *Deriver) formOf(p *plan, mem Memory) (uint32, error) {
	if p.form != 0 {
		return p.form, nil
	}
	if err := d.loadForms(mem); err != nil {
		return 0, err
	}
	table := Table{p.rel.Schema, p.rel.Name}
	var last uint32
	for _, f := range d.clock.forms {
		if f.Table == table && sameColumns(f.Columns, p.rel) {
			p.form = f.ID
			return p.form, nil
		}
		last = max(last, f.ID)
	}
	f := clockForm{ID: last + 1, Table: table}
	for _, c := range p.rel.Columns {
		f.Columns = append(f.Columns, formColumn{c.Name, c.Type})
	}
	d.clock.forms = append(d.clock.forms, f)
	b, err := json.Marshal(d.clock.forms)
	if err != nil {
		return 0, fmt.Errorf("write the forms of timers: %w", err)
	}
	mem.SetMemory([]byte(formsKey), b)
	p.form = f.ID
	return p.form, nil
}

// planOf returns a plan for the rows of a form, or nil when the mapping has no use
// for them any more.
func (d *Deriver) planOf(f *clockForm) *plan {
	p, ok := d.clock.plans[f.ID]
	if ok {
		return p
	}
	if m := d.tables[f.Table]; m != nil {
		rel := &wal.Relation{Schema: f.Table.Schema, Name: f.Table.Name, Identity: wal.IdentityDefault}
		for _, c := range f.Columns {
			rel.Columns = append(rel.Columns, wal.Column{Name: c.Name, Type: c.Type, Modifier: -1})
		}
		p, _ = newPlan(m, rel, false) // what is missing is said when the relation itself comes
		if p != nil {
			p.seal = d.opts.Seal
		}
	}
	if d.clock.plans == nil {
		d.clock.plans = map[uint32]*plan{}
	}
	d.clock.plans[f.ID] = p
	return p
}

// count changes the number of moments.
func (d *Deriver) count(by int, mem Memory) error {
	if by == 0 {
		return nil
	}
	n, err := d.Pending(mem)
	if err != nil {
		return err
	}
	mem.SetMemory([]byte(timersKey), binary.BigEndian.AppendUint64(nil, uint64(max(n+by, 0))))
	return nil
}

// Clocked reports whether the mapping has rules that set timers.
func (d *Deriver) Clocked() bool {
	for _, m := range d.tables {
		for _, r := range m.rules {
			if r.At != "" || r.Threshold != nil && r.Threshold.Settle > 0 {
				return true
			}
		}
	}
	return false
}

// Pending is how many timers wait; several of one row that fall due at once count as
// one.
func (d *Deriver) Pending(mem Memory) (int, error) {
	b, ok, err := mem.Memory([]byte(timersKey))
	if err != nil {
		return 0, fmt.Errorf("read the number of timers: %w", err)
	}
	if !ok || len(b) < 8 {
		return 0, nil
	}
	return int(binary.BigEndian.Uint64(b)), nil
}

// Due returns a moment before which no timer falls due. ok is false when there is no
// timer.
func (d *Deriver) Due(mem Timers) (next time.Time, ok bool, err error) {
	if !d.clock.known {
		d.clock.next = never
		err := mem.ScanMemory(nil, []byte(duePrefix), func(key, _ []byte) (bool, error) {
			d.clock.next = dueOf(key)
			return false, nil
		})
		if err != nil {
			return time.Time{}, false, fmt.Errorf("look for the next timer: %w", err)
		}
		d.clock.known = true
	}
	if d.clock.next == never {
		return time.Time{}, false, nil
	}
	return time.UnixMicro(d.clock.next), true, nil
}

// dueOf is the moment in a key under duePrefix, never for one that is damaged.
func dueOf(key []byte) int64 {
	key = key[len(duePrefix):]
	if len(key) < 8 {
		return never
	}
	return int64(binary.BigEndian.Uint64(key) ^ 1<<63)
}

// Fire tells the events of timers that have fallen due by now, at most limit of
// them, the earliest first, and takes the timers out of mem. nextID gives each event
// its id; its time is the moment at which the timer fell due, or that at which it was
// set when that is later. It returns how many timers it took: as many as limit when
// there may be more. It may be called only between two transactions.
func (d *Deriver) Fire(mem Timers, now time.Time, limit int, nextID func() event.ID, emit func(*event.Event) error) (n int, err error) {
	c := &d.clock
	var keys [][]byte
	from, until := []byte(nil), micros(now)
	if c.known && c.next != never {
		from = d.dueKey(c.next, nil)
	}
	next := int64(never)
	err = mem.ScanMemory(from, []byte(duePrefix), func(key, _ []byte) (bool, error) {
		if due := dueOf(key); due > until || len(keys) == limit {
			next = due
			return false, nil
		}
		keys = append(keys, slices.Clone(key))
		return true, nil
	})
	if err != nil {
		return 0, fmt.Errorf("look for timers that are due: %w", err)
	}
	c.next, c.known = next, true
	for _, key := range keys {
		if err := d.fireRow(key, mem, nextID, emit); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// fireRow fires the timers of a row that fall due at the moment of key.
func (d *Deriver) fireRow(key []byte, mem Memory, nextID func() event.ID, emit func(*event.Event) error) error {
	due, rowKey := dueOf(key), key[min(len(duePrefix)+8, len(key)):]
	b, ok, err := mem.Memory(d.clockKey(rowKey))
	if err != nil {
		return fmt.Errorf("read the timers of a row: %w", err)
	}
	gone := func() error {
		mem.DeleteMemory(key)
		return d.count(-1, mem)
	}
	if !ok || len(b) < 2 {
		return gone()
	}
	id, _ := binary.Uvarint(b[1:])
	form, err := d.form(uint32(id), mem)
	if err != nil {
		return fmt.Errorf("read the timers of a row: %w", err)
	}
	p := d.planOf(&form)
	if p == nil {
		// The table is no longer mapped. Other moments of the row are dropped as theirs
		// come.
		mem.DeleteMemory(d.clockKey(rowKey))
		return gone()
	}
	if _, err := d.loadTimers(p, d.clockKey(rowKey), mem); err != nil {
		return err
	}
	c := &d.clock
	if _, ok := slices.BinarySearch(c.before, due); !ok {
		return gone()
	}
	var fired []timer
	c.entry.timers = slices.DeleteFunc(c.entry.timers, func(t timer) bool {
		if t.due == due {
			fired = append(fired, t)
		}
		return t.due == due
	})
	r := &row{plan: p, key: rowKey, existed: true, new: p.tupleOf(c.entry.image)}
	for i := range fired {
		if err := d.fireTimer(r, &fired[i], mem, nextID, emit); err != nil {
			return err
		}
	}
	return d.storeTimers(p, rowKey, mem)
}

// tupleOf makes a tuple of an image.
func (p *plan) tupleOf(image []cell) []wal.Value {
	tuple := make([]wal.Value, len(p.rel.Columns))
	for i := range image {
		switch c := &image[i]; {
		case c.tag == slotNull:
			tuple[i] = wal.Value{Kind: wal.Null}
		case c.tag == slotText:
			tuple[i] = wal.Value{Kind: wal.Text, Text: c.text}
		case c.tag == slotDigest && p.masked[i]:
			tuple[i] = wal.Value{Kind: wal.Text} // shown as *** alone
		default:
			tuple[i] = wal.Value{Kind: wal.Unchanged}
		}
	}
	return tuple
}

// fireTimer tells the events of one timer. The row is as it is now, and before a
// gauge crossed.
func (d *Deriver) fireTimer(r *row, t *timer, mem Memory, nextID func() event.ID, emit func(*event.Event) error) error {
	at := time.UnixMicro(max(t.due, t.set)).UTC()
	d.tx.begin = wal.Begin{CommitTime: at}
	d.base, d.origin = 0, ""
	d.rec.reset(len(r.rel.Columns), len(r.gauges), len(r.plan.at))
	for i, c := range t.old {
		if d.clock.entry.image[i].tag != slotDigest { // else it cannot be compared
			d.rec.cells[i] = c
		}
	}
	d.diffs = d.diffs[:0]
	d.identify(r)
	tell := func(rule *Rule) error {
		return d.tell(r, rule.Event, wal.Update, mem, func(e *event.Event) error {
			e.ID = nextID()
			return emit(e)
		})
	}
	for i := range r.rules {
		b := &r.rules[i]
		switch {
		case t.kind == timerAt && b.at >= 0 && string(b.Event)+" "+b.At == t.name:
			if b.When != nil {
				v := d.vars(r, wal.Update)
				v.Op = "clock"
				ok, err := b.When.Row(v)
				if err != nil {
					d.opts.Broken(b.Event, err)
				}
				if !ok || err != nil {
					continue
				}
			}
		case t.kind != timerAt && b.gauge >= 0 && r.gauges[b.gauge].name == t.name:
			d.crossed = slices.Grow(d.crossed[:0], len(r.gauges))[:len(r.gauges)]
			clear(d.crossed)
			d.crossed[b.gauge] = wentDown
			if t.kind == timerUp {
				d.crossed[b.gauge] = wentUp
			}
			if !d.fires(r, b, wal.Update) {
				continue
			}
		default:
			continue
		}
		if err := tell(b.Rule); err != nil {
			return err
		}
	}
	return nil
}
