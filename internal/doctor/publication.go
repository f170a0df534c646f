package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
)

func (r *report) publication(f *facts) {
	if f.publication == nil {
		r.unpublished(f)
		return
	}
	p := f.publication
	began := len(r.list)
	var adding []string
	unfit := len(f.missing) > 0
	for _, t := range f.tables {
		pt, ok := p.Table(t.Name)
		switch {
		case !ok && t.Unpublishable() != "":
			unfit = true // said with the table
		case !ok && t.Kind == 'p' && !p.ViaRoot && slices.ContainsFunc(t.Leaves, func(l catalog.Leaf) bool { _, ok := p.Table(l.Name); return ok }):
			r.add(checkPublication, Fail, "ALTER PUBLICATION "+quote(p.Name)+" SET (publish_via_partition_root = true);", "%q sends changes of %s under the names of its partitions, which are not mapped", p.Name, t.Name)
		case !ok && r.o.Create && p.Owned && t.Owned:
			adding = append(adding, t.Name.String())
		case !ok:
			r.add(checkPublication, Fail, "ALTER PUBLICATION "+quote(p.Name)+" ADD TABLE "+r.entry(f, t)+";", "%q does not hold table %s", p.Name, t.Name)
		default:
			r.published(f, t, pt)
		}
	}
	if omits := p.Omits(); omits != "" {
		r.add(checkPublication, Fail, "ALTER PUBLICATION "+quote(p.Name)+" SET (publish = 'insert, update, delete, truncate');", "%q does not publish %s", p.Name, omits)
	}
	if p.AllTables {
		sql, _, err := replication.PublicationSQL(p.Name, f.tables, r.wanted(), f.server.VersionNum)
		if err != nil {
			sql = "CREATE PUBLICATION " + quote(p.Name) + " FOR TABLE ..."
		}
		remedy := "DROP PUBLICATION " + quote(p.Name) + ";\n" + sql + ";"
		if f.slot != nil { // it cannot use a publication that is younger
			remedy = "make another publication, and another slot after it, and start with an empty journal folder; while slot " + r.o.Slot + " is in use, do not drop this one"
		}
		r.add(checkPublication, Warn, remedy,
			"%q is FOR ALL TABLES: every change in the database is sent, and a table without a replica identity cannot be updated", p.Name)
	}
	r.broken(f)
	if r.failed(began) {
		return
	}
	switch {
	case len(adding) > 0:
		r.add(checkPublication, OK, "", "%q is there; %s will be added", p.Name, strings.Join(adding, ", "))
	case unfit:
		r.add(checkPublication, Skip, "", "%q holds the mapped tables that are there and can be published; the others must be right first", p.Name)
	default:
		r.add(checkPublication, OK, "", "%q holds every mapped table", p.Name)
	}
}

// published judges how a publication holds a table.
func (r *report) published(f *facts, t catalog.Table, pt catalog.PublishedTable) {
	p := f.publication
	if pt.RowFilter != "" {
		r.add(checkPublication, Warn, r.renew(f, t), "%q filters rows of %s by %s: an update across the filter arrives as an insert or a delete, so events will tell of what did not happen", p.Name, t.Name, pt.RowFilter)
	}
	if pt.Columns == nil || !p.Update && !p.Delete {
		return
	}
	for _, l := range leaves(t) {
		i := slices.IndexFunc(l.IdentityColumns, func(name string) bool {
			c, ok := t.Column(name)
			return ok && c.Generated == "" && !slices.Contains(pt.Columns, name)
		})
		if i >= 0 {
			r.add(checkPublication, Fail, r.renew(f, t), "%q leaves column %q of %s out, which its replica identity needs: the application's own UPDATE and DELETE fail", p.Name, l.IdentityColumns[i], t.Name)
			return
		}
	}
}

// broken tells of tables, mapped or not, that the publication keeps from being
// updated.
func (r *report) broken(f *facts) {
	p := f.publication
	var names, lines []string
	for _, n := range f.broken {
		if slices.Contains(r.names(), n) {
			continue // said with the table
		}
		names = append(names, n.String())
		lines = append(lines, "ALTER TABLE "+n.SQL()+" REPLICA IDENTITY FULL;")
		if !p.AllTables {
			lines[len(lines)-1] = "ALTER PUBLICATION " + quote(p.Name) + " DROP TABLE " + n.SQL() + ";"
		}
	}
	if len(names) > 0 {
		r.add(checkPublication, Fail, few(lines), "%q holds tables without a usable replica identity, where the application's own UPDATE and DELETE fail: %s", p.Name, short(names))
	}
}

// unpublished judges whether a publication can be made.
func (r *report) unpublished(f *facts) {
	s := f.server
	if len(f.missing) > 0 || len(f.tables) == 0 {
		r.add(checkPublication, Skip, "", "%q is not there; the tables must be there first", r.o.Publication)
		return
	}
	sql, _, err := replication.PublicationSQL(r.o.Publication, f.tables, r.wanted(), s.VersionNum)
	var foreign []string
	for _, t := range f.tables {
		if !t.Owned {
			foreign = append(foreign, t.Name.String())
		}
	}
	switch {
	case err != nil:
		r.add(checkPublication, Skip, "", "%q is not there; the tables must be fit to be published first", r.o.Publication)
	case f.slot != nil && f.slot.Plugin == "pgoutput" && f.slot.Database == s.Database:
		r.add(checkPublication, Fail, "SELECT pg_drop_replication_slot("+literal(r.o.Slot)+");\n"+sql+";\n-- what was committed in between makes no events; an old journal must go with the slot", "%q is not there, but slot %q is, and a slot cannot use a publication that is younger", r.o.Publication, r.o.Slot)
	case !r.o.Create:
		r.add(checkPublication, Fail, sql+";", "%q is not there, and source.create is false", r.o.Publication)
	case len(foreign) > 0:
		r.add(checkPublication, Fail, sql+";\n-- run by the tables' owner", "%q is not there, and role %s may not make it: it does not own %s", r.o.Publication, s.Role, short(foreign))
	case !s.CreateInDB && !s.Superuser:
		r.add(checkPublication, Fail, "GRANT CREATE ON DATABASE "+quote(s.Database)+" TO "+quote(s.Role)+";\n-- or, run by the tables' owner: "+sql+";", "%q is not there, and role %s may not make it: it lacks CREATE on the database", r.o.Publication, s.Role)
	default:
		r.add(checkPublication, OK, "", "%q will be made: %s", r.o.Publication, sql)
	}
}

// entry is a table as a publication's list has it, with its column list.
func (r *report) entry(f *facts, t catalog.Table) string {
	sql, _, err := replication.PublicationSQL(r.o.Publication, []catalog.Table{t}, r.wanted(), f.server.VersionNum)
	_, list, found := strings.Cut(sql, " FOR TABLE ")
	i := strings.LastIndex(list, " WITH (")
	if err != nil || !found || i < 0 {
		return t.SQL()
	}
	return list[:i]
}

// renew takes a table out of the publication and puts it back as it shall be.
func (r *report) renew(f *facts, t catalog.Table) string {
	p := quote(f.publication.Name)
	return fmt.Sprintf("BEGIN;\nALTER PUBLICATION %s DROP TABLE %s;\nALTER PUBLICATION %s ADD TABLE %s;\nCOMMIT;", p, t.SQL(), p, r.entry(f, t))
}
