package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/expr"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
)

// lookTimeout bounds the look at the catalogs before the first attach.
const lookTimeout = 30 * time.Second

// attach checks the database before anything runs. On the first attach every
// failure ends the start, so that whoever attaches sees it, and what was made of
// publication and slot is taken back. Later a database that is away, or a slot
// that another instance has, is waited for: handlers go on.
func (a *App) attach(ctx context.Context, attached bool) error {
	source, err := a.look(ctx)
	switch {
	case err == nil:
		// Later, what the mapping misses rests until it is there again, so that a
		// column that was dropped does not keep the rest from going on.
		err := disagreements(a.loaded.Config, a.loaded.Mapping, source, a.writes.needs(a.loaded.Handlers)...)
		if err != nil && !attached {
			return err
		}
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				a.log.Error("mapping and database disagree", "err", strings.TrimSuffix(line, "\n"))
			}
		}
	case !attached:
		// The client words it better, if it cannot do it either; this one makes nothing.
		if clientErr := a.probe(ctx); clientErr != nil {
			return clientErr
		}
		return err
	}

	session, err := a.client.Attach(ctx)
	if err == nil {
		a.log.Info("attached", "database", session.Database, "server", session.ServerVersion, "slot", session.Slot, "slot_created", session.SlotCreated, "lsn", session.Start)
		return nil
	}
	if attached && ctx.Err() != nil {
		return nil // asked to stop: Run does it in good order
	}
	var e *replication.Error
	if errors.As(err, &e) && (e.Class == replication.Wait && (a.loaded.Options.Standby || attached) || e.Class == replication.Transient && attached) {
		a.log.Warn("cannot attach yet, waiting", "err", err)
		return nil
	}
	if attached {
		return err
	}
	if ctx.Err() != nil {
		err = errors.New("stopped before the first attach was done; start it again to attach")
	}
	if source.Slot == nil && source.Publication == nil && a.loaded.Config.Source.Create {
		// Neither was there, so what is there now is ours.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
		defer cancel()
		if _, undoErr := a.client.Detach(undo, true); undoErr != nil {
			err = fmt.Errorf("%w\nwhat was made in the database could not be taken back: %w", err, undoErr)
		}
	}
	return err
}

// look reads what the database has of what the mapping names.
func (a *App) look(ctx context.Context) (snapshot.Source, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s := a.loaded.Config.Source
	reader, err := snapshot.Open(ctx, s.DSN.Reveal())
	if err != nil {
		return snapshot.Source{}, err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = reader.Close(closing) // nothing is pending on it
	}()
	var names []catalog.Name
	for _, t := range billing.Tables(a.loaded.Mapping) {
		names = append(names, catalog.Name{Schema: t.Schema, Table: t.Name})
	}
	return reader.Look(ctx, names, s.Slot, s.Publication)
}

// probe attaches in a way that makes nothing.
func (a *App) probe(ctx context.Context) error {
	s := a.loaded.Config.Source
	c, err := replication.New(replication.Options{
		DSN: s.DSN.Reveal(), Slot: s.Slot, Publication: s.Publication, Tables: tables(a.loaded.Mapping),
	})
	if err == nil {
		_, err = c.Attach(ctx)
	}
	return err
}

// need is a column that the mapping names.
type need struct {
	tables []billing.Table // one of them must have it
	column string
	at     config.Pos
	idle   bool // it need not be published, nor be readable: it is ignored, masked or excluded
	number bool // it is compared as an amount
	one    bool // only one of the tables may have it
	time   bool // it must hold a date or time
	write  bool // answers of handlers are written into it
}

// needs lists every column that the mapping names, with its place in the file.
func needs(b *config.Billhook, m billing.Mapping) []need {
	var list []need
	columns := func(tables []billing.Table, idle bool, at string, names []string) {
		for i, name := range names {
			list = append(list, need{tables: tables, column: name, at: b.At(fmt.Sprintf("%s[%d]", at, i)), idle: idle})
		}
	}
	column := func(tables []billing.Table, at, name string) {
		list = append(list, need{tables: tables, column: name, at: b.At(at)})
	}
	condition := func(tables []billing.Table, at string, c *expr.Condition) {
		if c == nil {
			return
		}
		before, _ := c.Columns("old")
		after, _ := c.Columns("new")
		for _, name := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(before, after)))) {
			column(tables, at, name)
		}
	}
	test := func(tables []billing.Table, at, becomes, moves string, t *billing.Test) {
		if t == nil {
			return
		}
		if t.Becomes != nil {
			column(tables, at+becomes, t.Becomes.Column)
		}
		if t.Moves != nil {
			column(tables, at+moves, t.Moves.Column)
		}
		if t.At != "" {
			list = append(list, need{tables: tables, column: t.At, at: b.At(at + ".at"), time: true})
		}
		columns(tables, false, at+".changes", t.Changes)
		condition(tables, at+".when", t.When)
	}
	amount := func(e *billing.Entity, at string, n *expr.Number) {
		if b.At(at+".expression").Field == at+".expression" {
			at += ".expression"
		} else {
			at += ".column"
		}
		for _, name := range n.Columns() {
			tables, plain, ok := e.ColumnTables(n, name)
			if !ok {
				continue // refused already
			}
			column(tables, at, plain)
			list[len(list)-1].number = true
			list[len(list)-1].one = len(tables) > 1
		}
	}
	for i := range m.Entities {
		e := &m.Entities[i]
		at, main := "entities."+e.Name, []billing.Table{e.Table}
		columns(main, false, at+".key", e.Key)
		columns(main, false, at+".client", e.Client)
		columns(main, true, at+".ignore", e.Ignore)
		// What is masked or excluded may stand in any table of the entity.
		all := billing.Tables(billing.Mapping{Entities: []billing.Entity{*e}})
		columns(all, true, at+".mask", e.Mask)
		columns(all, true, at+".exclude", e.Exclude)
		for _, t := range []struct {
			name string
			test *billing.Test
		}{{"archive", e.Archive}, {"activate", e.Activate}, {"deactivate", e.Deactivate}, {"renew", e.Renew}, {"close", e.Close}} {
			test(main, at+"."+t.name, ".column", ".column", t.test)
		}
		if e.Balance != nil {
			if e.Balance.Table != nil {
				side := []billing.Table{*e.Balance.Table}
				columns(side, false, at+".balance.key", e.Balance.Key)
			}
			amount(e, at+".balance", e.Balance.Amount)
		}
		if f := e.CustomFields; f != nil {
			at += ".custom_fields"
			if f.Table == nil {
				for i, name := range f.Columns {
					field := fmt.Sprintf("%s.columns[%d]", at, i)
					if b.At(at+".column").Field == at+".column" {
						field = at + ".column"
					}
					column(main, field, name)
				}
				continue
			}
			side := []billing.Table{*f.Table}
			columns(side, false, at+".client", f.Client)
			column(side, at+".name", f.Name)
			column(side, at+".value", f.Value)
		}
	}
	for i := range m.Rules {
		r := &m.Rules[i]
		at := "events[" + string(r.Event) + "]"
		if _, own := b.Events[string(r.Event)]; !own {
			continue // the way back of another one
		}
		e := &m.Entities[slices.IndexFunc(m.Entities, func(e billing.Entity) bool { return e.Name == r.Entity })]
		rows := []billing.Table{e.Table} // where the rule looks
		if r.Threshold != nil {
			amount(e, at+".threshold", r.Threshold.Amount)
			if tables, _, ok := e.ColumnTables(r.Threshold.Amount, r.Threshold.Amount.Columns()[0]); ok {
				rows = tables
			}
			if e.TwoTables(r.Threshold.Amount) {
				continue // its condition knows the expression's columns alone
			}
		}
		test(rows, at, ".becomes.column", ".moves.column", &r.Test)
	}
	return list
}

// disagreements compares the mapping with the database: tables and columns that
// are not there, that are not published, or that the role may not read. more are needs
// of handlers.
func disagreements(b *config.Billhook, m billing.Mapping, s snapshot.Source, more ...need) error {
	p := &problems{}
	table := func(at string, t *billing.Table, exclude []string) {
		if t == nil {
			return
		}
		found, ok := findTable(s, *t)
		if !ok {
			p.add(b.At(at), fmt.Sprintf("there is no table %s in database %q", t, s.Database), "correct the name, or let source.dsn name the right database")
			return
		}
		if slices.Contains(s.Closed, t.Schema) {
			p.add(b.At(at), fmt.Sprintf("role %q may not use schema %s", s.Role, t.Schema), "run: GRANT USAGE ON SCHEMA "+sqlName(t.Schema)+" TO "+sqlName(s.Role))
		}
		if !readable(found, exclude) {
			p.add(b.At(at), fmt.Sprintf("role %q may not read table %s", s.Role, t), "run: GRANT SELECT ON "+found.SQL()+" TO "+sqlName(s.Role))
		}
	}
	for _, e := range m.Entities {
		at := "entities." + e.Name
		table(at+".table", &e.Table, e.Exclude)
		if e.Balance != nil {
			table(at+".balance.table", e.Balance.Table, nil)
		}
		if e.CustomFields != nil {
			table(at+".custom_fields.table", e.CustomFields.Table, nil)
		}
	}
	p.lacking(append(needs(b, m), more...), s)
	return p.err()
}

func findTable(s snapshot.Source, t billing.Table) (catalog.Table, bool) {
	i := slices.IndexFunc(s.Tables, func(c catalog.Table) bool { return c.Schema == t.Schema && c.Table == t.Name })
	if i < 0 {
		return catalog.Table{}, false
	}
	return s.Tables[i], true
}

// lacking reports the needs that a database does not meet. It is silent about those
// whose tables are not there.
func (p *problems) lacking(list []need, s snapshot.Source) {
	for _, n := range list {
		var here []catalog.Table
		for _, t := range n.tables {
			if found, ok := findTable(s, t); ok {
				here = append(here, found)
			}
		}
		if len(here) < len(n.tables) {
			continue // that is said already
		}
		has := func(t catalog.Table) bool { _, ok := t.Column(n.column); return ok }
		i := slices.IndexFunc(here, has)
		if i >= 0 && n.number {
			if c, _ := here[i].Column(n.column); !c.Number() {
				p.add(n.at, fmt.Sprintf("column %q of table %s is of type %s, which cannot be compared as an amount", n.column, here[i].Name, c.Type), "map a column of type numeric or of integers")
			}
		}
		if i >= 0 && n.time {
			if c, _ := here[i].Column(n.column); !c.Time() {
				p.add(n.at, fmt.Sprintf("column %q of table %s is of type %s, which is no time", n.column, here[i].Name, c.Type), "name a column of type date, timestamp or timestamp with time zone")
			}
		}
		if i >= 0 && n.write {
			switch c, _ := here[i].Column(n.column); {
			case c.Generated != "":
				p.add(n.at, fmt.Sprintf("column %q of table %s is generated: nobody can write it", n.column, here[i].Name), "remove it")
			case !c.Update:
				p.add(n.at, fmt.Sprintf("role %q may not update column %q of table %s", s.Role, n.column, here[i].Name),
					fmt.Sprintf("run: GRANT UPDATE (%s) ON %s TO %s", sqlName(n.column), here[i].SQL(), sqlName(s.Role)))
			}
		}
		switch {
		case i < 0:
			p.add(n.at, fmt.Sprintf("table %s has no column %q", here[0].Name, n.column), "correct the name; it has "+columnList(here[0]))
		case n.one && len(here) > 1 && slices.IndexFunc(here[i+1:], has) >= 0:
			p.add(n.at, fmt.Sprintf("column %q is in both %s and %s", n.column, here[0].Name, here[1].Name),
				fmt.Sprintf("write it with its table: %s.%s or %s.%s", here[0].Table, n.column, here[1].Table, n.column))
		case !n.idle && unpublished(s.Publication, here[i], n.column):
			p.add(n.at, fmt.Sprintf("publication %q does not publish column %q of table %s", s.Publication.Name, n.column, here[i].Name),
				"let its owner add the column to the publication's column list")
		}
	}
}

// readable reports whether the role may read every column that is not excluded.
func readable(t catalog.Table, exclude []string) bool {
	return !slices.ContainsFunc(t.Columns, func(c catalog.Column) bool { return !c.Select && !slices.Contains(exclude, c.Name) })
}

// unpublished reports a column that a publication's column list leaves out.
func unpublished(p *catalog.Publication, t catalog.Table, column string) bool {
	if p == nil {
		return false
	}
	published, ok := p.Table(t.Name)
	return ok && published.Columns != nil && !slices.Contains(published.Columns, column)
}

func columnList(t catalog.Table) string {
	const most = 30
	var names []string
	for _, c := range t.Columns {
		names = append(names, c.Name)
	}
	if more := len(names) - most; more > 0 {
		names = append(names[:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

func sqlName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// journalUndo looks at path before a journal is made there, and returns what takes
// that back. It leaves alone what was there before.
func journalUndo(path string) func() {
	before, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		var missing []string // folders, the journal's own first
		for dir := path; ; dir = filepath.Dir(dir) {
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
				break
			}
			missing = append(missing, dir)
		}
		if len(missing) == 0 {
			return func() {} // a link to nowhere
		}
		return func() {
			_ = os.RemoveAll(path) // what stays is a journal that was never attached, which the next start takes over
			for _, dir := range missing[1:] {
				_ = os.Remove(dir) // only if nobody else has put something there
			}
		}
	case err != nil || slices.ContainsFunc(before, mayRemove):
		return func() {}
	}
	return func() {
		after, err := os.ReadDir(path)
		if err != nil {
			return
		}
		for _, e := range after {
			if mayRemove(e) {
				_ = os.RemoveAll(filepath.Join(path, e.Name()))
			}
		}
	}
}

// mayRemove is true of all but what a fresh file system holds.
func mayRemove(e fs.DirEntry) bool { return e.Name() != "lost+found" }
