package billing

import (
	"fmt"
	"slices"
	"strings"

	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/wal"
)

// An amount may stand partly in the entity's own table and partly in the table of
// balances beside it: balance + credit. Such a threshold is judged on a row that no
// table has: the key, and the columns of the expression from both tables. A change of
// either row is folded into it as an update that leaves the other's columns as they
// were, so both in one transaction are one change, and what is remembered of it is
// remembered for either identity.
//
//	clients 1 (credit 5)           ─┐
//	                                ├─► clients 1 (balance -3, credit 5)
//	clients_balances 1 (balance -3) ─┘
//
// Whether the row of a table is there stands in a column of its own. A row that is
// not there has NULL in all columns, so that there is no crossing; when both have come
// for the first time it is created.
//
// It has the entity's key and follows it; a balance whose key changes by itself leaves
// one and joins another. After a TRUNCATE of one of the tables nothing is known of the
// other's columns until its row changes.
type joint struct {
	*mapped // of the row that no table has
	columns []jointColumn
	rel     *wal.Relation // with the types of the key as last seen
	plan    *plan
}

// jointColumn is a column of the expressions.
type jointColumn struct {
	name   string // in the row that no table has
	home   home
	column string // in its table
}

// home is where a column or an amount stands.
type home uint8

const (
	anyTable home = iota // whichever of the two tables has it
	mainTable
	sideTable
	bothTables
)

// The columns that say whether a table's row is there. No column of a table is called
// so.
const (
	mainThere = "\x00main"
	sideThere = "\x00side"
)

// qualified splits a column's name as written in an expression.
func (e *Entity) qualified(name string) (h home, column string, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return anyTable, name, true
	}
	table, column := name[:i], name[i+1:]
	is := func(t Table) bool { return table == t.Name || table == t.String() }
	switch {
	case is(e.Table):
		return mainTable, column, true
	case e.Balance != nil && e.Balance.Table != nil && is(*e.Balance.Table):
		return sideTable, column, true
	}
	return anyTable, column, false
}

// ColumnTables returns the tables in which a column of an amount may stand, and its
// name there. ok is false when the name has a table that is not the entity's.
func (e *Entity) ColumnTables(amount *expr.Number, name string) (tables []Table, column string, ok bool) {
	h, column, ok := e.qualified(name)
	if !ok {
		return nil, "", false
	}
	if h == anyTable {
		h = e.homeOf(amount)
	}
	side := func() Table { return *e.Balance.Table }
	switch {
	case e.Balance == nil || e.Balance.Table == nil || h == mainTable:
		return []Table{e.Table}, column, true
	case h == sideTable:
		return []Table{side()}, column, true
	}
	return []Table{side(), e.Table}, column, true
}

// homeOf says where an amount stands. One column alone, without its table, stands in
// the table of balances when it is the balance; several are looked for in both
// tables, unless all of them are written with the same.
func (e *Entity) homeOf(amount *expr.Number) home {
	if e.Balance == nil || e.Balance.Table == nil {
		return mainTable
	}
	names := amount.Columns()
	h, column, _ := e.qualified(names[0])
	if len(names) == 1 && h == anyTable {
		if amount == e.Balance.Amount {
			return sideTable
		}
		if bh, balance, _ := e.qualified(e.Balance.Amount.Columns()[0]); bh != mainTable && balance == column {
			return sideTable
		}
		return mainTable
	}
	for _, name := range names {
		if other, _, _ := e.qualified(name); other != h || other == anyTable {
			return bothTables
		}
	}
	return h
}

// TwoTables reports whether an amount is judged over the rows of two tables.
func (e *Entity) TwoTables(amount *expr.Number) bool { return e.homeOf(amount) == bothTables }

// plainly returns the amount without tables in its columns' names.
func (e *Entity) plainly(amount *expr.Number) *expr.Number {
	return amount.Rename(func(name string) string {
		_, column, _ := e.qualified(name)
		return column
	})
}

// place puts a rule with a threshold where its amount stands.
func (e *Entity) place(r Rule, main, side *mapped, j *joint) error {
	amount := r.Threshold.Amount
	for _, name := range amount.Columns() {
		if _, _, ok := e.qualified(name); !ok {
			return fmt.Errorf("event %s: column %s is of a table that %s do not have", r.Event, name, e.Name)
		}
	}
	t := *r.Threshold
	r.Threshold = &t
	switch e.homeOf(amount) {
	case mainTable:
		t.Amount = e.plainly(amount)
		main.rules = append(main.rules, &r)
	case sideTable:
		t.Amount = e.plainly(amount)
		side.rules = append(side.rules, &r)
	default:
		t.Amount = amount.Rename(j.add)
		j.rules = append(j.rules, &r)
	}
	return nil
}

// add takes a column of an expression in, and returns its name in the row.
func (j *joint) add(name string) string {
	h, column, _ := j.entity.qualified(name)
	for _, c := range j.columns {
		if c.home == h && c.column == column {
			return c.name
		}
	}
	as := column
	if slices.Contains(j.entity.Key, as) || slices.ContainsFunc(j.columns, func(c jointColumn) bool { return c.name == as }) {
		as = name
	}
	j.columns = append(j.columns, jointColumn{name: as, home: h, column: column})
	return as
}

// table is the name under which plans and timers know the row.
func (j *joint) table() Table { return Table{Name: j.entity.Name} }

// gives reports whether a column of an expression can stand in the table.
func (m *mapped) gives(c jointColumn) bool {
	switch m.role {
	case mainRow:
		return c.home != sideTable
	case balanceRow:
		return c.home != mainTable
	}
	return false
}

// joins says which columns of a table's rows go where in the row that no table has.
type joins struct {
	*joint
	plan  *plan
	there int      // column that says that the table's row is there
	pairs [][2]int // column here, column there
}

// join finds in a plan what its rows give to the row that no table has.
func (d *Deriver) join(p *plan) {
	j := p.mapped.joint
	if j == nil || p.role == fieldRow {
		return
	}
	there := mainThere
	if p.role == balanceRow {
		there = sideThere
	}
	rel := &wal.Relation{Name: j.entity.Name, Identity: wal.IdentityDefault}
	for n, i := range p.object {
		rel.Columns = append(rel.Columns, wal.Column{Name: j.entity.Key[n], Type: p.rel.Columns[i].Type, Modifier: -1, Key: true})
	}
	for _, name := range []string{mainThere, sideThere} {
		rel.Columns = append(rel.Columns, wal.Column{Name: name, Type: 25, Modifier: -1})
	}
	for _, c := range j.columns {
		rel.Columns = append(rel.Columns, wal.Column{Name: c.name, Type: 1700, Modifier: -1})
	}
	if j.plan == nil || !slices.Equal(j.rel.Columns, rel.Columns) {
		j.rel = rel
		j.plan, _ = newPlan(j.mapped, rel, false)
		j.plan.seal = d.opts.Seal
	}
	out := &joins{joint: j, plan: j.plan}
	out.there = slices.IndexFunc(rel.Columns, func(c wal.Column) bool { return c.Name == there })
	for n, c := range j.columns {
		if !p.gives(c) {
			continue
		}
		if i := slices.IndexFunc(p.rel.Columns, func(rc wal.Column) bool { return rc.Name == c.column }); i >= 0 {
			out.pairs = append(out.pairs, [2]int{i, len(p.object) + 2 + n})
		}
	}
	p.joins = out
}

// tuple makes what a row of p gives to the row that no table has. values nil: the row
// is not there. What is not p's to say is unchanged.
func (j *joins) tuple(p *plan, key, values []wal.Value) wal.Tuple {
	out := make(wal.Tuple, len(j.rel.Columns))
	for i := range out {
		out[i].Kind = wal.Unchanged
	}
	for n, i := range p.object {
		out[n] = key[i]
	}
	out[j.there] = wal.Value{Kind: wal.Null}
	if values != nil {
		out[j.there] = wal.Value{Kind: wal.Text, Text: []byte("t")}
	}
	for _, pair := range j.pairs {
		out[pair[1]] = wal.Value{Kind: wal.Null}
		if values != nil {
			out[pair[1]] = values[pair[0]]
		}
	}
	return out
}

// joinChange folds a change of a table's row into the row that no table has.
func (d *Deriver) joinChange(p *plan, c *wal.Change) {
	j := p.joins
	update := func(old, tuple wal.Tuple) {
		v := wal.Change{Op: wal.Update, Relation: j.rel, New: tuple}
		if old != nil {
			v.Old, v.OldKind = old, wal.OldKey
		}
		d.keyBuf, _ = d.tx.change(j.plan, &v, d.keyBuf)
	}
	if c.Op == wal.Delete {
		update(nil, j.tuple(p, c.Old, nil))
		return
	}
	values := slices.Clone(c.New)
	moved := false
	if c.Old != nil {
		for _, i := range p.object {
			moved = moved || c.Old[i].Kind == wal.Text && string(c.Old[i].Text) != string(c.New[i].Text)
		}
		if c.OldKind == wal.OldFull && p.full {
			alike := !moved && c.Op == wal.Update && d.filled
			for _, pair := range j.pairs {
				if v := &values[pair[0]]; v.Kind == wal.Unchanged {
					*v = c.Old[pair[0]]
				}
				was, now := c.Old[pair[0]], values[pair[0]]
				alike = alike && was.Kind == now.Kind && string(was.Text) == string(now.Text)
			}
			if alike {
				return
			}
		}
	}
	tuple := j.tuple(p, c.New, values)
	if !moved {
		update(nil, tuple)
		return
	}
	// The row goes with the entity's own. The balance's follows it, as a cascade does,
	// or has moved to another.
	gone := j.tuple(p, c.Old, nil)
	from, okFrom := j.plan.memoryKey(nil, gone)
	to, okTo := j.plan.memoryKey(nil, tuple)
	if !okFrom || !okTo {
		return
	}
	at := d.tx.find(to)
	switch {
	case p.role == mainRow && at == nil:
		if d.tx.joined == nil {
			d.tx.joined = map[string]string{}
		}
		d.tx.joined[string(to)] = string(from)
		for i := range gone {
			if !j.rel.Columns[i].Key {
				gone[i] = wal.Value{}
			}
		}
		update(gone, tuple)
	case d.tx.joined[string(to)] == string(from):
		update(nil, tuple)
	default:
		update(nil, gone)
		update(nil, tuple)
	}
}

// joined says what has become of the row that no table has: it is there when one of
// the two rows is, and new when the second has come.
func (d *Deriver) joined(r *row) wal.Op {
	n := len(r.plan.object)
	before, after := 0, 0
	for i := n; i < n+2; i++ {
		if d.rec.cells[i].tag == slotText {
			before++
		}
		if v, ok := d.value(r, i); ok && v.Kind == wal.Text {
			after++
		}
	}
	switch {
	case after == 0:
		return wal.Delete
	case before < 2 && after == 2 && d.filled && !slices.ContainsFunc(d.rec.sides, func(s slotTag) bool { return s != slotUnknown }):
		return wal.Insert // where a side was told before, it goes on from there
	}
	return wal.Update
}

// keepJoint is keep for the row that no table has. As long as rows are filled in, it
// keeps what it knows of rows that are gone, so that a fill does not bring them back.
func (d *Deriver) keepJoint(r *row, op wal.Op, mem Memory) error {
	if r.wasKey != nil && !d.aside {
		d.erase(r.plan, r.wasKey, mem)
	}
	if op == wal.Delete && d.filled {
		d.erase(r.plan, r.key, mem)
		return nil
	}
	return d.remind(r, mem)
}

// fillJoint is Fill for the row that no table has.
func (d *Deriver) fillJoint(p *plan, tuple wal.Tuple, mem Memory) error {
	j := p.joins
	if err := d.settle(j.plan, mem); err != nil {
		return err
	}
	part := j.tuple(p, tuple, tuple)
	key, ok := j.plan.memoryKey(nil, part)
	if !ok {
		return nil
	}
	if err := d.remember(mem, j.plan, key, &d.rec, nil); err != nil {
		return err
	}
	if d.rec.cells[j.there].tag == slotNull {
		return nil // deleted since
	}
	missing := false
	for i, v := range part {
		if !j.rel.Columns[i].Key && v.Known() && d.rec.cells[i].tag == slotUnknown {
			d.rec.cells[i] = cellOf(v)
			missing = true
		}
	}
	if missing {
		d.write(j.plan, mem, key, &d.rec, func(column int) cell { return d.rec.cells[column] }, d.rec.sides, nil)
	}
	return nil
}
