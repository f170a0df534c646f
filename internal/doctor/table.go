package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

// table says whether a mapped table can be followed, and what it costs.
func (r *report) table(f *facts, name catalog.Name) {
	check := "table " + name.String()
	var uses []Table
	for _, m := range r.o.Tables {
		if m.Name == name {
			uses = append(uses, m)
		}
	}
	t, ok := f.table(name)
	if !ok {
		remedy := "let source.dsn name the database that has it"
		if others := f.elsewhere[name.Table]; len(others) > 0 {
			remedy = "table: " + others[0].String()
		}
		r.add(check, Fail, remedy, "%sdatabase %s has no such table", place(uses[0].Use), f.server.Database)
		return
	}
	began := len(r.list)
	r.readable(f, t, uses, check)
	why := t.Unpublishable()
	if why != "" {
		why, _, _ = strings.Cut(why, "; ") // ours has the key's columns
		r.add(check, Fail, publishable(t, uses), "it %s", why)
	}
	r.columns(f, t, check)
	if why != "" {
		return
	}
	if !r.key(f, t, uses, check) {
		return
	}
	if t.MixedIdentity() {
		var set []string
		for _, l := range t.Leaves {
			if l.Identity != wal.IdentityFull {
				set = append(set, "ALTER TABLE "+l.SQL()+" REPLICA IDENTITY FULL;")
			}
		}
		r.add(check, Warn, "-- either all of them, which makes more WAL:\n"+few(set)+"\n-- or none:\n-- ALTER TABLE "+t.SQL()+" REPLICA IDENTITY DEFAULT;",
			"it has REPLICA IDENTITY FULL, but %d of its %d partitions have not: old rows are not taken from the stream but from memory", len(set), len(t.Leaves))
	}
	r.excluded(f, t, uses, check)
	if !r.failed(began) {
		r.add(check, OK, "", "%s", identity(t))
	}
}

// place is a place in a file as a text begins with it.
func place(use string) string {
	if use == "" {
		return ""
	}
	return use + ": "
}

// few joins lines, and leaves out what is more than can be read.
func few(lines []string) string {
	const most = 8
	if more := len(lines) - most; more > 0 {
		lines = append(slices.Clone(lines[:most]), fmt.Sprintf("-- and so on, for %d more", more))
	}
	return strings.Join(lines, "\n")
}

// readable looks at what the role may read: all that is not excluded.
func (r *report) readable(f *facts, t catalog.Table, uses []Table, check string) {
	role := quote(f.server.Role)
	if slices.Contains(f.closed, t.Schema) {
		r.add(check, Fail, "GRANT USAGE ON SCHEMA "+quote(t.Schema)+" TO "+role+";", "role %s may not use schema %s", f.server.Role, t.Schema)
	}
	var exclude, want, lack []string
	for _, u := range uses {
		exclude = append(exclude, u.Exclude...)
	}
	for _, c := range t.Columns {
		if slices.Contains(exclude, c.Name) {
			continue
		}
		want = append(want, quote(c.Name))
		if !c.Select {
			lack = append(lack, c.Name)
		}
	}
	if len(lack) > 0 {
		columns, what := "", ""
		if len(want) < len(t.Columns) {
			columns = " (" + strings.Join(want, ", ") + ")"
		}
		if len(lack) < len(want) {
			what = " all of it: not " + strings.Join(lack, ", ")
		}
		r.add(check, Fail, "GRANT SELECT"+columns+" ON "+t.SQL()+" TO "+role+";", "role %s may not read%s", f.server.Role, orElse(what, " it"))
	}
	if t.RowSecurity && len(lack) == 0 {
		r.add(check, Warn, "ALTER ROLE "+role+" BYPASSRLS;", "row level security applies to role %s: rows that it may not see are missing when memory is filled", f.server.Role)
	}
}

// publishable is the remedy for a table that is not fit to be published.
func publishable(t catalog.Table, uses []Table) string {
	var unique []string
	for _, u := range uses {
		if unique = u.Key; len(unique) == 0 {
			unique = u.Unique
		}
		if len(unique) > 0 {
			break
		}
	}
	unique = slices.Clone(unique)
	for i := range unique {
		unique[i] = quote(unique[i])
	}
	switch {
	case t.Kind != 'r' && t.Kind != 'p':
		return "table: schema.name # of the table that the rows are in"
	case t.Persistence == 'u':
		return "ALTER TABLE " + t.SQL() + " SET LOGGED; -- writes it anew, and locks it meanwhile"
	case t.Persistence == 't':
		return "table: schema.name # of one that is not temporary"
	}
	var lines []string
	for _, l := range leaves(t) {
		switch {
		case l.Kind == 'f':
			return "ALTER TABLE " + t.SQL() + " DETACH PARTITION " + l.SQL() + "; -- changes in a foreign table are not in the WAL"
		case l.Persistence == 'u':
			lines = append(lines, "ALTER TABLE "+l.SQL()+" SET LOGGED; -- writes it anew, and locks it meanwhile")
		case len(l.IdentityColumns) == 0 && len(t.PrimaryKey) > 0:
			lines = append(lines, "ALTER TABLE "+l.SQL()+" REPLICA IDENTITY DEFAULT;")
		}
	}
	if len(lines) > 0 {
		return few(lines)
	}
	if len(unique) == 0 {
		return "ALTER TABLE " + t.SQL() + " REPLICA IDENTITY FULL; -- makes more WAL"
	}
	add := "ALTER TABLE " + t.SQL() + " ADD PRIMARY KEY (" + strings.Join(unique, ", ") + ");"
	if t.Identity == wal.IdentityNothing || t.Identity == wal.IdentityIndex {
		add += "\nALTER TABLE " + t.SQL() + " REPLICA IDENTITY DEFAULT;"
	}
	return add + "\n-- or, where there can be no key: ALTER TABLE " + t.SQL() + " REPLICA IDENTITY FULL;"
}

// columns looks for the columns that the mapping names.
func (r *report) columns(f *facts, t catalog.Table, check string) {
	for _, c := range r.o.Columns {
		var here []catalog.Table
		for _, n := range c.Tables {
			if found, ok := f.table(n); ok {
				here = append(here, found)
			}
		}
		// The first table answers for a column that several may have.
		if len(here) < len(c.Tables) || here[0].Name != t.Name {
			continue
		}
		i := slices.IndexFunc(here, func(t catalog.Table) bool { _, ok := t.Column(c.Name); return ok })
		if i < 0 {
			remedy := "# the table has: " + columnList(t)
			if name := nearest(t, c.Name); name != "" {
				remedy = name + " " + remedy
			}
			r.add(check, Fail, remedy, "%sthere is no column %q", place(c.Use), c.Name)
			continue
		}
		if c.Idle {
			continue
		}
		column, _ := here[i].Column(c.Name)
		if c.Write && column.Generated == "" && !column.Update {
			r.add(check, Fail, "GRANT UPDATE ("+quote(c.Name)+") ON "+here[i].SQL()+" TO "+quote(f.server.Role)+";", "%srole %s may not update column %q, which answers are to be written into", place(c.Use), f.server.Role, c.Name)
		}
		if c.Write && column.Generated != "" {
			r.add(check, Fail, "# remove it from write_back", "%scolumn %q is generated: nobody can write it", place(c.Use), c.Name)
			continue
		}
		if c.Number && !column.Number() {
			r.add(check, Fail, "# map a column of type numeric or of integers", "%scolumn %q is of type %s, which cannot be compared as an amount: its event would never fire", place(c.Use), c.Name, column.Type)
		}
		if c.Time && !column.Time() {
			r.add(check, Fail, "# map a column of type date, timestamp or timestamp with time zone", "%scolumn %q is of type %s, which is no time: its event would never fire", place(c.Use), c.Name, column.Type)
		}
		if c.One && slices.ContainsFunc(here[i+1:], func(t catalog.Table) bool { _, ok := t.Column(c.Name); return ok }) {
			r.add(check, Fail, "# write it with its table, such as "+here[i].Table+"."+c.Name, "%scolumn %q is in more than one of the tables of the expression", place(c.Use), c.Name)
		}
		published, listed := false, false
		if f.publication != nil {
			p, ok := f.publication.Table(here[i].Name)
			listed = ok && p.Columns != nil
			published = listed && slices.Contains(p.Columns, c.Name)
		}
		owner := check
		if here[i].Name != t.Name {
			owner = "table " + here[i].Name.String()
		}
		switch {
		case published:
		case column.Generated == "stored" && f.server.VersionNum >= 180000 && f.publication != nil:
			r.add(owner, Fail, "ALTER PUBLICATION "+quote(f.publication.Name)+" SET (publish_generated_columns = stored);", "%scolumn %q is generated, and publication %q does not send generated columns", place(c.Use), c.Name, f.publication.Name)
		case column.Generated != "":
			r.add(owner, Fail, "# map a column that is stored: "+short(stored(here[i])), "%scolumn %q is generated, and generated columns are not sent", place(c.Use), c.Name)
		case listed:
			r.add(owner, Fail, r.renew(f, here[i]), "%spublication %q does not publish column %q", place(c.Use), f.publication.Name, c.Name)
		}
	}
}

func columnList(t catalog.Table) string {
	var names []string
	for _, c := range t.Columns {
		names = append(names, c.Name)
	}
	return short(names)
}

func short(names []string) string {
	const most = 30
	if more := len(names) - most; more > 0 {
		names = append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// nearest returns the column that was likely meant, "" when none is near.
func nearest(t catalog.Table, name string) string {
	found, least := "", len(name)/2+1
	for _, c := range t.Columns {
		if d := distance(strings.ToLower(c.Name), strings.ToLower(name)); d < least {
			found, least = c.Name, d
		}
	}
	return found
}

// distance is how many letters must be changed, added or taken away to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// key looks whether a deleted row can be told from others.
func (r *report) key(f *facts, t catalog.Table, uses []Table, check string) bool {
	for _, u := range uses {
		for _, name := range u.Key {
			if c, ok := t.Column(name); !ok || c.Generated != "" {
				return false // said with the columns
			}
			for _, l := range leaves(t) {
				if l.Identity == wal.IdentityFull || slices.Contains(l.IdentityColumns, name) {
					continue
				}
				what := "the replica identity"
				if l.Name != t.Name {
					what += " of partition " + l.Name.String()
				}
				remedy := rekey(f, t, l)
				if u.Beside {
					remedy = severalRows
				}
				r.add(check, Fail, remedy, "key column %q is not part of %s (%s): a deleted row could not be told from others", name, what, strings.Join(l.IdentityColumns, ", "))
				return false
			}
		}
	}
	for _, u := range uses {
		if extra := without(t.PrimaryKey, u.Key); u.Beside && len(extra) > 0 {
			r.add(check, Warn, severalRows, "rows are told apart by %s, not by %s alone: several rows of one client would be taken for one", strings.Join(t.PrimaryKey, ", "), strings.Join(u.Key, ", "))
		}
	}
	return true
}

const severalRows = "# where a client can have several rows here, map them as entities.accounts with a balance"

// without returns the names of a that b lacks.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(name string) bool { return slices.Contains(b, name) })
}

// rekey is the remedy for a replica identity that lacks key columns.
func rekey(f *facts, t catalog.Table, l catalog.Leaf) string {
	other := "key: [" + strings.Join(l.IdentityColumns, ", ") + "]"
	if f.publication != nil {
		if p, ok := f.publication.Table(t.Name); ok && p.Columns != nil && len(p.Columns) < len(stored(t)) {
			return other // with a column list, FULL would break the application's updates
		}
	}
	return "ALTER TABLE " + l.SQL() + " REPLICA IDENTITY FULL; -- makes more WAL\n-- or map another key: " + other
}

// excluded looks whether excluded columns leave the database all the same.
func (r *report) excluded(f *facts, t catalog.Table, uses []Table, check string) {
	var exclude []string
	for _, u := range uses {
		for _, name := range u.Exclude {
			if _, ok := t.Column(name); ok && !slices.Contains(exclude, name) {
				exclude = append(exclude, name)
			}
		}
	}
	if len(exclude) == 0 {
		return
	}
	text := "the excluded " + plural(exclude) + " " + strings.Join(exclude, ", ") + " cannot be kept in the database, "
	switch {
	case f.server.VersionNum < 150000:
		r.add(check, Warn, "", "%sbecause Postgres has column lists from 15 on; billhook drops what it gets of them", text)
	case slices.ContainsFunc(append(leaves(t), catalog.Leaf{Identity: t.Identity}), func(l catalog.Leaf) bool { return l.Identity == wal.IdentityFull }):
		r.add(check, Warn, "ALTER TABLE "+t.SQL()+" REPLICA IDENTITY DEFAULT;", "%sbecause of REPLICA IDENTITY FULL; billhook drops what it gets of them", text)
	case f.publication != nil:
		p, ok := f.publication.Table(t.Name)
		if leaked := both(exclude, p.Columns); ok && len(leaked) > 0 {
			identity := both(leaked, t.IdentityColumns)
			if len(identity) < len(leaked) {
				r.add(check, Warn, r.renew(f, t), "publication %q sends the excluded %s %s; billhook drops what it gets of them", f.publication.Name, plural(leaked), strings.Join(leaked, ", "))
			}
		}
	}
}

func plural(columns []string) string {
	if len(columns) == 1 {
		return "column"
	}
	return "columns"
}

// both returns what is in both.
func both(a, b []string) []string {
	var out []string
	for _, v := range a {
		if slices.Contains(b, v) {
			out = append(out, v)
		}
	}
	return out
}

// identity says what a table's replica identity means for memory.
func identity(t catalog.Table) string {
	partitions := ""
	if t.Kind == 'p' {
		partitions = fmt.Sprintf("%d partitions, ", len(t.Leaves))
	}
	if t.FullIdentity() {
		return partitions + "REPLICA IDENTITY FULL: old rows come with the stream"
	}
	rows := ""
	if t.Estimate >= 0 {
		rows = fmt.Sprintf("; about %d rows are read once", t.Estimate)
	}
	columns := t.IdentityColumns
	if len(t.Leaves) > 0 {
		columns = t.Leaves[0].IdentityColumns
	}
	return partitions + "identity by " + strings.Join(columns, ", ") + ": what rules need of old rows is remembered" + rows
}

// leaves are the tables that hold the rows.
func leaves(t catalog.Table) []catalog.Leaf {
	if t.Kind == 'p' {
		return slices.Clone(t.Leaves)
	}
	return []catalog.Leaf{{Name: t.Name, OID: t.OID, Kind: t.Kind, Persistence: t.Persistence, Identity: t.Identity, IdentityColumns: t.IdentityColumns}}
}

// stored are the columns that the stream can have.
func stored(t catalog.Table) []string {
	var names []string
	for _, c := range t.Columns {
		if c.Generated == "" {
			names = append(names, c.Name)
		}
	}
	return names
}

func orElse(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
