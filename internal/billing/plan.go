package billing

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/apd/v3"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/wal"
)

// role is what a table means to its entity.
type role uint8

const (
	mainRow    role = iota // the entity's own table
	balanceRow             // the table beside clients that holds the balance
	fieldRow               // the table beside clients that holds custom fields, one row each
	jointRow               // columns of the entity's row and of the balance's, see joint
)

// mapped is one table of the mapping: which entity it serves and how.
type mapped struct {
	entity *Entity
	role   role
	rules  []*Rule  // in catalogue order
	prefix string   // of memory keys
	quiet  []string // columns whose change alone is no update, beside those that rules name
	joint  *joint   // to which the table's rows give columns, or nil
}

// catalogue returns the built-in rules of an entity that stand on its table with
// the given role, in the order in which their events of one row are told.
func catalogue(e *Entity, r role) []*Rule {
	if r != mainRow {
		return nil
	}
	var rules []*Rule
	add := func(r Rule) { r.Entity = e.Name; rules = append(rules, &r) }
	prefix := "clients." + e.Name
	if e.Name == Clients {
		prefix = Clients
	}
	name := func(verb string) event.Type { return event.Type(prefix + "." + verb) }
	switch e.Name {
	case Packages:
		add(Rule{Event: name("assign"), On: OnInsert})
		if e.Activate != nil {
			add(Rule{Event: name("activate"), On: OnInsert | OnUpdate, Test: *e.Activate})
		}
		if e.Renew != nil {
			add(Rule{Event: name("renew"), On: OnUpdate, Test: *e.Renew})
		}
		if e.Deactivate != nil {
			add(Rule{Event: name("deactivate"), On: OnUpdate, Test: *e.Deactivate})
		}
		if e.Close != nil {
			on := OnUpdate | OnDelete
			if e.Close.Deleted {
				on = OnDelete
			}
			add(Rule{Event: name("close"), On: on, Test: *e.Close})
		}
		return rules
	default:
		add(Rule{Event: name("create"), On: OnInsert})
		add(Rule{Event: name("update"), On: OnUpdate, anyChange: true})
	}
	if e.CustomFields != nil && e.CustomFields.Table == nil {
		add(Rule{Event: name("custom_fields.update"), On: OnUpdate, Test: Test{Changes: e.CustomFields.Columns}, told: e.CustomFields.Columns})
	}
	if e.Balance != nil && e.Balance.Table == nil {
		rules = append(rules, balanceRules(e)...)
	}
	if e.Archive != nil {
		archive := Rule{Event: name("archive"), On: OnUpdate, Test: *e.Archive, toldIfFired: true}
		if e.Archive.Becomes != nil {
			archive.told = []string{e.Archive.Becomes.Column}
		}
		add(archive)
	}
	add(Rule{Event: name("delete"), On: OnDelete})
	return rules
}

func balanceRules(e *Entity) []*Rule {
	t := Threshold{
		Amount: e.Balance.Amount, Value: e.Balance.Value, Hysteresis: e.Balance.Hysteresis,
		OnCreate: e.Balance.OnCreate, PerChange: e.Balance.PerChange, Settle: e.Balance.Settle,
	}
	down, up := t, t
	down.Below = true
	told := e.Balance.Amount.Columns()[:1]
	prefix := "clients." + e.Name
	if e.Name == Clients {
		prefix = Clients
	}
	return []*Rule{
		{Event: event.Type(prefix + ".balance_zero"), Entity: e.Name, On: OnInsert | OnUpdate, Threshold: &down, told: told},
		{Event: event.Type(prefix + ".balance_notzero"), Entity: e.Name, On: OnUpdate, Threshold: &up, told: told},
	}
}

// gauge is one threshold of a table: the pair of rules on either side share it,
// and it is where the side last seen is remembered.
type gauge struct {
	name      string
	columns   []int
	amount    *expr.Number // nil when it is the one column itself
	value     Decimal
	back      Decimal // value with hysteresis
	hysteric  bool
	perChange bool
	settle    time.Duration
	onCreate  bool // a rule tells of new rows at or below the value
}

// stand says where the amount is. text gives a column's value; it returns false
// for one that is NULL or not known.
func (g *gauge) stand(text func(column int) ([]byte, bool)) standing {
	if g.amount == nil {
		t, ok := text(g.columns[0])
		switch {
		case !ok:
			return nowhere
		case !g.hysteric:
			return g.value.stand(t)
		}
		return g.between(g.value.stand(t), g.back.stand(t))
	}
	v, ok := g.amount.Eval(func(i int) (*apd.Decimal, bool) {
		t, ok := text(g.columns[i])
		if !ok {
			return nil, false
		}
		d, _, err := apd.NewFromString(string(t))
		return d, err == nil
	})
	switch {
	case !ok:
		return nowhere
	case !g.hysteric:
		return g.value.compare(v)
	}
	return g.between(g.value.compare(v), g.back.compare(v))
}

// between joins the two thresholds of a gauge with hysteresis: at or below the
// lower is below, at or above the upper is above, and what is in between tells
// nothing, so that the side last seen stays.
func (g *gauge) between(lower, upper standing) standing {
	switch {
	case lower == below || lower == at:
		return below
	case upper == above || upper == at:
		return above
	}
	return nowhere
}

// bound is a rule with its columns found in a relation.
type bound struct {
	*Rule
	gauge   int   // index into plan.gauges, or -1
	becomes int   // column of Becomes, or -1
	moves   int   // column of Moves, or -1
	at      int   // column of At, or -1
	changes []int // columns of Changes
	told    []int // columns of told
	seen    []int // columns whose old value the condition looks at
}

// watch is how a column is remembered.
type watch uint8

const (
	watchNot watch = iota
	watchDigest
	watchText
)

// plan is what to do with the rows of one relation, with every column found.
type plan struct {
	*mapped
	rel    *wal.Relation
	kinds  []kind // how each column is written as JSON
	key    []int  // columns that name the row in memory
	object []int  // columns that name the event's object
	lane   []int  // columns that lead to the client; none: the row is a lane of its own

	field struct{ name, value int } // of a fieldRow

	rules     []bound
	gauges    []gauge
	perChange bool // one of the gauges judges every change
	at        []atRule
	clocked   bool   // rows of it may have timers
	kept      []bool // masked columns whose text the image beside a timer must hold
	watch     []watch
	quiet     []bool // columns whose change is no update: ignored, or told elsewhere
	hidden    []bool // excluded columns
	masked    []bool

	seal    []byte // Options.Seal
	full    bool   // old rows come with the stream: memory holds sides alone
	layout  Layout
	targets []target
	apart   bool // digests are among them
	// outlived says, of a plan that is full, whether memory may hold rows from before it
	// was; nil: not looked at.
	outlived *bool
	foreign  map[uint32][]target
	joins    *joins // what the rows give to the row that no table has, or nil
	form     uint32 // of images beside timers; 0: not known yet
}

// newPlan finds the columns of m in rel. What it cannot find is said in notices;
// the rules that need it are left out. A plan without its key is nil. full says
// that whole old rows come with the stream.
func newPlan(m *mapped, rel *wal.Relation, full bool) (p *plan, notices []Notice) {
	note := func(format string, args ...any) {
		notices = append(notices, Notice{Relation: rel, Text: fmt.Sprintf(format, args...)})
	}
	column := func(name string) int {
		return slices.IndexFunc(rel.Columns, func(c wal.Column) bool { return c.Name == name })
	}
	find := func(name, use string) int {
		i := column(name)
		if i < 0 {
			note("column %s of table %s.%s is mapped as %s but the table does not publish it; %s rests until it does", name, rel.Schema, rel.Name, use, use)
		}
		return i
	}
	n := len(rel.Columns)
	p = &plan{
		mapped: m, rel: rel,
		kinds: make([]kind, n), watch: make([]watch, n), quiet: make([]bool, n), hidden: make([]bool, n), masked: make([]bool, n), kept: make([]bool, n),
		full:    full,
		foreign: map[uint32][]target{},
	}
	for i, c := range rel.Columns {
		p.kinds[i] = kindOf(c.Type)
		p.hidden[i] = slices.Contains(m.entity.Exclude, c.Name)
		p.masked[i] = slices.Contains(m.entity.Mask, c.Name)
		p.quiet[i] = p.hidden[i] || slices.Contains(m.entity.Ignore, c.Name) || slices.Contains(m.quiet, c.Name)
		if m.role == jointRow {
			p.hidden[i] = c.Name == mainThere || c.Name == sideThere
		}
	}

	key := m.entity.Key
	switch m.role {
	case balanceRow:
		key = m.entity.Balance.Key
	case fieldRow:
		cf := m.entity.CustomFields
		key = cf.Client
		p.field.name, p.field.value = find(cf.Name, "the custom field's name"), find(cf.Value, "the custom field's value")
		if p.field.name < 0 || p.field.value < 0 {
			return nil, notices
		}
	}
	for _, name := range key {
		i := find(name, "a key")
		if i < 0 {
			return nil, notices
		}
		p.object = append(p.object, i)
	}
	p.key = p.object
	if m.role == fieldRow {
		// A deleted row comes with its replica identity only, which need not be
		// the client and the name.
		p.key = append(slices.Clone(p.object), p.field.name)
		if rel.Identity != wal.IdentityFull {
			p.key = p.key[:0:0]
			for i, c := range rel.Columns {
				if c.Key {
					p.key = append(p.key, i)
				}
			}
			if len(p.key) == 0 {
				note("table %s.%s has no replica identity: updates and deletes of custom fields cannot be told", rel.Schema, rel.Name)
				return nil, notices
			}
		}
	}
	if m.role == mainRow {
		for _, name := range m.entity.Client {
			i := find(name, "the client")
			if i < 0 {
				p.lane = nil // every row is its own lane then
				break
			}
			p.lane = append(p.lane, i)
		}
	}

	if m.role == mainRow && slices.ContainsFunc(m.rules, func(r *Rule) bool { return r.anyChange }) {
		for i := range rel.Columns {
			if !p.quiet[i] {
				p.watch[i] = watchDigest
			}
		}
	}
	for _, i := range p.lane {
		p.watch[i] = watchText
	}
	if m.role == fieldRow {
		for _, i := range p.object {
			p.watch[i] = watchText
		}
		p.watch[p.field.name], p.watch[p.field.value] = watchText, watchText
		if p.masked[p.field.value] {
			p.watch[p.field.value] = watchDigest
		}
	}
	for _, r := range m.rules {
		b, ok := p.bind(r, column, find)
		if ok {
			p.rules = append(p.rules, b)
		}
	}
	for _, i := range p.key {
		p.watch[i] = watchNot // the key of the memory already says it
	}
	if m.joint != nil {
		// They are remembered here too, so that the table can be compared by itself.
		for _, c := range m.joint.columns {
			if i := column(c.column); i >= 0 && m.gives(c) {
				p.watch[i] = watchText
			}
		}
	}
	if m.role == jointRow {
		for _, name := range []string{mainThere, sideThere} {
			p.watch[column(name)] = watchText
		}
	}
	p.plot()
	return p, notices
}

// bind finds the rule's columns and notes how they must be remembered.
func (p *plan) bind(r *Rule, column func(string) int, find func(name, use string) int) (bound, bool) {
	b := bound{Rule: r, gauge: -1, becomes: -1, moves: -1, at: -1}
	text := func(i int) int {
		p.watch[i] = watchText
		return i
	}
	use := "the event " + string(r.Event)
	if t := r.Threshold; t != nil {
		g := gauge{
			name: "<" + t.Amount.String() + " " + t.Value.String() + " " + t.Hysteresis.String(), value: t.Value, back: t.Value.plus(t.Hysteresis),
			hysteric: t.Hysteresis.d != nil, perChange: t.PerChange, settle: t.Settle,
		}
		if g.perChange {
			g.name += " per change"
		}
		if g.settle > 0 {
			g.name += " settle " + g.settle.String()
			p.clocked = true
		}
		for _, name := range t.Amount.Columns() {
			i := find(name, use)
			if i < 0 {
				return b, false
			}
			g.columns = append(g.columns, text(i))
		}
		if len(g.columns) != 1 || t.Amount.String() != t.Amount.Columns()[0] {
			g.amount = t.Amount
		}
		if b.gauge = slices.IndexFunc(p.gauges, func(o gauge) bool { return o.name == g.name }); b.gauge < 0 {
			b.gauge = len(p.gauges)
			p.gauges = append(p.gauges, g)
			p.perChange = p.perChange || g.perChange
		}
		p.gauges[b.gauge].onCreate = p.gauges[b.gauge].onCreate || t.Below && t.OnCreate
	}
	if r.Becomes != nil {
		i := find(r.Becomes.Column, use)
		if i < 0 {
			return b, false
		}
		b.becomes = text(i)
		if p.kinds[i] == boolKind {
			b.Rule = r.ofBool()
		}
	}
	if r.Moves != nil {
		i := find(r.Moves.Column, use)
		if i < 0 {
			return b, false
		}
		b.moves = text(i)
	}
	if r.At != "" {
		if b.at = find(r.At, use); b.at < 0 {
			return b, false
		}
		p.at = append(p.at, atRule{name: string(r.Event) + " " + r.At, rule: r, column: text(b.at)})
		p.clocked = true
	}
	for _, name := range r.Changes {
		i := find(name, use)
		if i < 0 {
			continue
		}
		b.changes = append(b.changes, i)
		if p.watch[i] == watchNot {
			p.watch[i] = watchDigest
		}
	}
	if len(r.Changes) > 0 && len(b.changes) == 0 {
		return b, false
	}
	for _, name := range r.told {
		if i := column(name); i >= 0 {
			b.told = append(b.told, i)
		}
	}
	if r.When != nil {
		names, all := r.When.Columns("old")
		for i, c := range p.rel.Columns {
			if (all || slices.Contains(names, c.Name)) && !p.hidden[i] {
				b.seen = append(b.seen, text(i))
			}
		}
		if r.At != "" || b.gauge >= 0 && p.gauges[b.gauge].settle > 0 {
			names, all := r.When.Columns("new")
			for i, c := range p.rel.Columns {
				p.kept[i] = p.kept[i] || all || slices.Contains(names, c.Name)
				if p.kept[i] && r.At != "" && r.On&OnDelete != 0 && !p.hidden[i] {
					b.seen = append(b.seen, text(i)) // of a deleted row as it was last
				}
			}
		}
		if _, all := r.When.Columns("changed"); all {
			for i := range p.rel.Columns {
				if p.watch[i] == watchNot && !p.hidden[i] {
					p.watch[i] = watchDigest
				}
			}
		}
	}
	return b, true
}

// ofBool returns the rule with its predicate's values as Postgres prints booleans.
func (r *Rule) ofBool() *Rule {
	own, becomes := *r, *r.Becomes
	becomes.Values = slices.Clone(becomes.Values)
	for i, v := range becomes.Values {
		switch v {
		case "true":
			becomes.Values[i] = "t"
		case "false":
			becomes.Values[i] = "f"
		}
	}
	own.Becomes = &becomes
	return &own
}

// plot lays out the memory of the relation's rows.
func (p *plan) plot() {
	p.layout.Table = p.rel.Schema + "." + p.rel.Name
	if !p.full {
		for i, c := range p.rel.Columns {
			if p.masked[i] && p.watch[i] == watchText && !p.needsText(i) {
				p.watch[i] = watchDigest
			}
			switch p.watch[i] {
			case watchText:
				p.layout.Slots = append(p.layout.Slots, "="+c.Name)
			case watchDigest:
				mark := "#"
				if p.masked[i] {
					mark = "*"
				}
				p.layout.Slots = append(p.layout.Slots, mark+c.Name)
			}
		}
	}
	for _, g := range p.gauges {
		p.layout.Slots = append(p.layout.Slots, g.name)
	}
	for _, i := range slices.Concat(p.object, p.lane) {
		p.kept[i] = true
	}
	for _, a := range p.at {
		p.layout.Slots = append(p.layout.Slots, "@"+a.name)
		p.kept[a.column] = true
	}
	for _, b := range p.rules {
		if b.gauge < 0 || p.gauges[b.gauge].settle == 0 {
			continue
		}
		for _, i := range p.gauges[b.gauge].columns {
			p.kept[i] = true
		}
	}
	for _, s := range p.layout.Slots {
		t := p.target(s)
		p.targets = append(p.targets, t)
		p.apart = p.apart || t.digest
	}
}

// needsText reports whether a rule cannot judge the column by a digest.
func (p *plan) needsText(column int) bool {
	if slices.Contains(p.lane, column) || p.role == fieldRow && (slices.Contains(p.object, column) || column == p.field.name) {
		return true
	}
	return slices.ContainsFunc(p.rules, func(b bound) bool {
		return slices.Contains(b.seen, column) || b.at == column || b.becomes == column && len(b.Becomes.Values) > 0 || b.moves == column || b.gauge >= 0 && slices.Contains(p.gauges[b.gauge].columns, column)
	})
}

// target finds where a slot goes in this plan.
func (p *plan) target(slot string) target {
	t := target{column: -1, gauge: -1, at: -1, digest: slot[0] == '#'}
	if strings.HasPrefix(slot, "@") {
		t.at = slices.IndexFunc(p.at, func(a atRule) bool { return a.name == slot[1:] })
		return t
	}
	if strings.HasPrefix(slot, "<") {
		t.gauge = slices.IndexFunc(p.gauges, func(g gauge) bool { return g.name == slot })
		return t
	}
	t.column = slices.IndexFunc(p.rel.Columns, func(c wal.Column) bool { return c.Name == slot[1:] })
	if t.column >= 0 && p.masked[t.column] && !slices.Contains(p.layout.Slots, slot) {
		t.column = -1 // from before it was masked
	}
	return t
}

// hide takes out the values of excluded columns, which come where the publication
// cannot leave them out, so that nothing of the open transaction holds them.
func (p *plan) hide(tuple wal.Tuple) {
	if tuple == nil || len(p.entity.Exclude) == 0 {
		return
	}
	for i := range tuple {
		if p.hidden[i] && !slices.Contains(p.key, i) {
			tuple[i] = wal.Value{}
		}
	}
}

// fills reports whether memory needs of the table's rows what the stream does not
// bring.
func (p *plan) fills() bool { return p.usesMemory() && (!p.full || len(p.at) > 0) }

// usesMemory reports whether rows of the plan are remembered at all.
func (p *plan) usesMemory() bool { return len(p.layout.Slots) > 0 }
