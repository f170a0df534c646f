package app

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
)

// problems collects what is wrong with a loaded file, in the loader's own form.
type problems struct{ list config.Errors }

func (p *problems) add(pos config.Pos, problem, remedy string) {
	p.list = append(p.list, pos.Problem(problem, remedy))
}

func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	slices.SortStableFunc(p.list, func(a, b *config.Error) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return p.list
}

// expression reports a compile error of e at its place in the file.
func (p *problems) expression(e config.Expr, err error) {
	pos := e.Pos
	if line, column, ok := expr.Pos(err); ok {
		pos = e.At(line, column)
	}
	p.add(pos, err.Error(), "correct the expression")
}

// condition compiles a condition. At the time that a column holds there is but the
// row as it is: byClock refuses what tells of a change.
func (p *problems) condition(e config.Expr, byClock bool) *expr.Condition {
	if e.IsZero() {
		return nil
	}
	c, err := expr.CompileRow(e.Text)
	if err != nil {
		p.expression(e, err)
		return nil
	}
	if byClock {
		for _, variable := range []string{"old", "changed", "tx"} {
			if line, column, ok := c.Place(variable); ok {
				p.add(e.At(line, column), variable+" tells of a change, and with at nothing changes when the time comes", "use new, the row as it is then")
			}
		}
	}
	return c
}

// mapping translates billhook.yaml's entities and events.
func mapping(b *config.Billhook) (billing.Mapping, error) {
	p := &problems{}
	m := billing.Mapping{Source: b.Source.Name}
	m.Zone, _ = time.LoadLocation(b.Source.TimeZone) // the loader allows only good ones
	if c := b.Entities.Clients; c != nil {
		const at = "entities.clients"
		e := p.entity(billing.Clients, c.Mapping, nil)
		e.Archive = p.test(c.Archive)
		if c.Balance != nil {
			e.Balance = p.balance(b, at+".balance", c.Balance)
		}
		if f := c.CustomFields; f != nil {
			e.CustomFields = &billing.CustomFields{Columns: slices.Clone(f.Columns), Client: slices.Clone(f.Client), Name: f.Name, Value: f.Value}
			if f.Column != "" {
				e.CustomFields.Columns = []string{f.Column}
			}
			if f.Table != (config.Table{}) {
				e.CustomFields.Table = &billing.Table{Schema: f.Table.Schema, Name: f.Table.Name}
			}
		}
		m.Entities = append(m.Entities, e)
	}
	if a := b.Entities.Accounts; a != nil {
		e := p.entity(billing.Accounts, a.Mapping, a.Client)
		if a.Balance != nil {
			e.Balance = p.balance(b, "entities.accounts.balance", a.Balance)
		}
		m.Entities = append(m.Entities, e)
	}
	if s := b.Entities.Packages; s != nil {
		e := p.entity(billing.Packages, s.Mapping, s.Client)
		e.Activate = p.test(s.Activate)
		e.Deactivate = p.test(s.Deactivate)
		e.Renew = p.test(s.Renew)
		e.Close = p.test(s.Close)
		m.Entities = append(m.Entities, e)
	}
	names := make([]string, 0, len(b.Events))
	for name := range b.Events {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		m.Rules = append(m.Rules, p.rules(b, name, b.Events[name])...)
	}
	if p.err() == nil {
		p.amounts(b, m)
	}
	if p.err() == nil {
		p.excluded(b, m)
	}
	return m, p.err()
}

// amounts refuses columns that are written with a table that the entity does not
// have, and conditions beside an amount over two tables that look further.
func (p *problems) amounts(b *config.Billhook, m billing.Mapping) {
	known := func(e *billing.Entity, source config.Expr, pos config.Pos, n *expr.Number) {
		for i, name := range n.Columns() {
			if _, _, ok := e.ColumnTables(n, name); ok {
				continue
			}
			if !source.IsZero() {
				pos = source.At(n.Place(i))
			}
			tables := []string{e.Table.String()}
			if e.Balance != nil && e.Balance.Table != nil {
				tables = append(tables, e.Balance.Table.String())
			}
			p.add(pos, fmt.Sprintf("%s is not a column of the tables of %s", name, e.Name), "write the column alone, or with one of "+strings.Join(tables, ", "))
		}
	}
	for i := range m.Entities {
		e := &m.Entities[i]
		at := "entities." + e.Name + ".balance"
		if c := balanceOf(b, e.Name); c != nil && e.Balance != nil {
			known(e, c.Expression, b.At(at), e.Balance.Amount)
		}
		for j := range m.Rules {
			r := &m.Rules[j]
			c, own := b.Events[string(r.Event)]
			if r.Entity != e.Name || r.Threshold == nil || !own {
				continue
			}
			at := "events[" + string(r.Event) + "]"
			known(e, c.Threshold.Expression, b.At(at+".threshold"), r.Threshold.Amount)
			if r.When == nil || !e.TwoTables(r.Threshold.Amount) {
				continue
			}
			seen := slices.Clone(e.Key)
			for _, name := range r.Threshold.Amount.Columns() {
				_, plain, _ := e.ColumnTables(r.Threshold.Amount, name)
				seen = append(seen, plain)
			}
			for _, variable := range []string{"old", "new"} {
				names, _ := r.When.Columns(variable)
				for _, name := range names {
					if slices.Contains(seen, name) || slices.Contains(r.Threshold.Amount.Columns(), name) {
						continue
					}
					line, column, _ := r.When.Place(variable)
					p.add(c.When.At(line, column), fmt.Sprintf("the condition looks at column %q, and where an amount is over two tables only the expression's columns are known", name),
						"use "+strings.Join(seen, ", ")+", or a condition of the handler")
				}
			}
		}
	}
}

func balanceOf(b *config.Billhook, entity string) *config.Balance {
	switch {
	case entity == billing.Clients && b.Entities.Clients != nil:
		return b.Entities.Clients.Balance
	case entity == billing.Accounts && b.Entities.Accounts != nil:
		return b.Entities.Accounts.Balance
	}
	return nil
}

// excluded refuses expressions that look at columns that are not read.
func (p *problems) excluded(b *config.Billhook, m billing.Mapping) {
	for _, n := range needs(b, m) {
		for _, e := range m.Entities {
			if !n.idle && slices.Contains(n.tables, e.Table) && (n.tables[0] == e.Table || n.one) && slices.Contains(e.Exclude, n.column) {
				p.add(n.at, fmt.Sprintf("the column %q is needed here but excluded", n.column), "remove it from exclude, or put it into mask")
			}
		}
	}
}

func (p *problems) entity(name string, c config.Mapping, client config.Columns) billing.Entity {
	return billing.Entity{
		Name: name, Table: billing.Table{Schema: c.Table.Schema, Name: c.Table.Name},
		Key: slices.Clone(c.Key), Client: slices.Clone(client),
		Ignore: slices.Clone(c.Ignore), Mask: slices.Clone(c.Mask), Exclude: slices.Clone(c.Exclude), Truncate: c.Truncate, Remember: c.Remember,
	}
}

// test translates a transition; nil stays nil.
func (p *problems) test(t *config.Transition) *billing.Test {
	if t == nil {
		return nil
	}
	out := &billing.Test{When: p.condition(t.When, t.At != "")}
	switch {
	case t.Deleted:
		out.Deleted = true
	case t.At != "":
		out.At = t.At
	case t.Moves != "":
		out.Moves = &billing.Move{Column: t.Column, Backward: t.Moves == config.Backward}
	default:
		out.Becomes = predicate(t.Column, t.Value, t.In, t.Set)
	}
	return out
}

func predicate(column string, value *config.Text, in []config.Text, set *bool) *billing.Predicate {
	p := &billing.Predicate{Column: column}
	if value != nil {
		p.Values = append(p.Values, string(*value))
	}
	for _, v := range in {
		p.Values = append(p.Values, string(v))
	}
	if set != nil {
		p.Set, p.Unset = *set, !*set
	}
	return p
}

// amount translates the column or the expression of a threshold.
func (p *problems) amount(pos config.Pos, column string, e config.Expr) *expr.Number {
	text := column
	if text == "" {
		text = e.Text
	}
	n, err := expr.CompileNumber(text)
	switch {
	case err != nil && column == "":
		p.expression(e, err)
	case err != nil:
		p.add(pos, err.Error(), "give the name of a column")
	case len(n.Columns()) == 0:
		p.add(pos, "the expression names no column", "write one over columns, such as balance + credit")
	}
	return n
}

func (p *problems) decimal(pos config.Pos, d config.Decimal) billing.Decimal {
	if d.IsZero() {
		return billing.Decimal{}
	}
	v, err := billing.ParseDecimal(d.String())
	if err != nil {
		p.add(pos, err.Error(), "give a decimal number")
	}
	return v
}

func (p *problems) balance(b *config.Billhook, at string, c *config.Balance) *billing.Balance {
	out := &billing.Balance{
		Key: slices.Clone(c.Key), Amount: p.amount(b.At(at), c.Column, c.Expression),
		Value: p.decimal(b.At(at+".value"), c.Value), Hysteresis: p.decimal(b.At(at+".hysteresis"), c.Hysteresis),
		OnCreate: c.OnCreate, PerChange: c.PerChange, Settle: c.Settle,
	}
	if c.Table != (config.Table{}) {
		out.Table = &billing.Table{Schema: c.Table.Schema, Name: c.Table.Name}
	}
	return out
}

// rules translates one of the user's own events. A threshold with a way back is
// two rules.
func (p *problems) rules(b *config.Billhook, name string, e config.Event) []billing.Rule {
	at := "events[" + name + "]"
	r := billing.Rule{Event: event.Type(name), Entity: e.Entity, Test: billing.Test{When: p.condition(e.When, e.At != ""), Changes: slices.Clone(e.Changes), At: e.At}}
	for _, op := range e.On {
		switch op {
		case config.Insert:
			r.On |= billing.OnInsert
		case config.Update:
			r.On |= billing.OnUpdate
		case config.Delete:
			r.On |= billing.OnDelete
		}
	}
	if e.Becomes != nil {
		r.Becomes = predicate(e.Becomes.Column, e.Becomes.Value, e.Becomes.In, e.Becomes.Set)
	}
	if e.Moves != nil {
		r.Moves = &billing.Move{Column: e.Moves.Column, Backward: e.Moves.Direction == config.Backward}
	}
	if r.On == 0 {
		r.On = billing.OnUpdate
		if e.Becomes != nil {
			r.On |= billing.OnInsert
		}
	}
	if e.Threshold == nil {
		return []billing.Rule{r}
	}
	at += ".threshold"
	t := billing.Threshold{
		Amount: p.amount(b.At(at), e.Threshold.Column, e.Threshold.Expression),
		Value:  p.decimal(b.At(at+".value"), e.Threshold.Value), Hysteresis: p.decimal(b.At(at+".hysteresis"), e.Threshold.Hysteresis),
		Below: true, OnCreate: e.Threshold.OnCreate, PerChange: e.Threshold.PerChange, Settle: e.Threshold.Settle,
	}
	r.On, r.Threshold = billing.OnInsert|billing.OnUpdate, &t
	if e.Threshold.Back == "" {
		return []billing.Rule{r}
	}
	back, up := r, t
	up.Below = false
	back.Event, back.On, back.Threshold = event.Type(e.Threshold.Back), billing.OnUpdate, &up
	return []billing.Rule{r, back}
}

// columnsOf names the columns of each entity that formats of others treat in a way
// of their own.
func columnsOf(m billing.Mapping) map[string]event.Columns {
	out := map[string]event.Columns{}
	for _, e := range m.Entities {
		c := event.Columns{Key: e.Key, Client: e.Client}
		if e.CustomFields != nil && e.CustomFields.Table == nil {
			c.CustomFields = e.CustomFields.Columns
		}
		out[e.Name] = c
	}
	return out
}

// tables are what the publication must hold: every mapped table, without the
// columns that must not leave the database.
func tables(m billing.Mapping) []replication.Table {
	var out []replication.Table
	for _, e := range m.Entities {
		for _, t := range billing.Tables(billing.Mapping{Entities: []billing.Entity{e}}) {
			out = append(out, replication.Table{Name: catalog.Name{Schema: t.Schema, Table: t.Name}, Exclude: e.Exclude})
		}
	}
	return out
}
