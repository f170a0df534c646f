package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/billhook/billhook/internal/wal"
)

// Name is a table's name.
type Name struct{ Schema, Table string }

// String returns "public.clients".
func (n Name) String() string { return n.Schema + "." + n.Table }

// SQL returns the name quoted for SQL.
func (n Name) SQL() string { return pgx.Identifier{n.Schema, n.Table}.Sanitize() }

// Table is a table as the catalogs describe it.
type Table struct {
	Name
	OID         uint32
	Kind        byte // pg_class.relkind: 'r' table, 'p' partitioned, 'v' view, 'm' materialised view, 'f' foreign
	Persistence byte // 'p' permanent, 'u' unlogged, 't' temporary
	Owner       string
	Owned       bool  // the connected role is or can become the owner
	Select      bool  // it may read the whole table
	RowSecurity bool  // row level security applies to reads
	Estimate    int64 // rows as of the last ANALYZE, -1 for never; leaves are not added up

	Identity wal.Identity
	// IdentityColumns are what an old key tuple holds: the primary key's or the
	// index's columns, all for FULL, none when the identity has no index.
	IdentityColumns []string
	PrimaryKey      []string
	Columns         []Column
	// Leaves are the partitions that hold the rows, at any depth. What old values
	// the stream has is decided by each leaf's identity, not by this table's.
	Leaves []Leaf
}

// Leaf is one partition that holds rows.
type Leaf struct {
	Name
	OID             uint32
	Kind            byte
	Persistence     byte
	Identity        wal.Identity
	IdentityColumns []string
}

// Column is one column of a Table.
type Column struct {
	Name      string
	Type      string // as format_type writes it: numeric(20,6)
	TypeOID   uint32
	TypeKind  byte // pg_type.typtype: 'b' base, 'e' enum, 'd' domain, 'c' composite, ...
	NotNull   bool
	Generated string // "", "stored" or "virtual": absent from the stream before Postgres 18
	Select    bool   // the role may read it
	Update    bool   // the role may update it
}

// Number reports whether the column's values can be compared as amounts. Of a domain
// that is not known here, and taken to be so.
func (c Column) Number() bool {
	switch c.TypeOID {
	case 20, 21, 23, 700, 701, 1700: // int8, int2, int4, float4, float8, numeric
		return true
	}
	return c.TypeKind == 'd'
}

// Time reports whether the column can be read as a date and time. Of a domain that is
// not known, so it can.
func (c Column) Time() bool {
	switch c.TypeOID {
	case 1082, 1114, 1184: // date, timestamp, timestamptz
		return true
	}
	return c.TypeKind == 'd'
}

// Column finds a column by name.
func (t Table) Column(name string) (Column, bool) {
	i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name })
	if i < 0 {
		return Column{}, false
	}
	return t.Columns[i], true
}

// holders are the tables that hold rows: the leaves, or the table itself.
func (t Table) holders() []Leaf {
	if t.Kind == 'p' {
		return t.Leaves
	}
	return []Leaf{{t.Name, t.OID, t.Kind, t.Persistence, t.Identity, t.IdentityColumns}}
}

// MixedIdentity reports a partitioned table whose own identity is FULL while some
// leaf's is not: its stream claims full old rows that are none.
func (t Table) MixedIdentity() bool {
	return t.Kind == 'p' && t.Identity == wal.IdentityFull &&
		slices.ContainsFunc(t.Leaves, func(l Leaf) bool { return l.Identity != wal.IdentityFull })
}

// FullIdentity reports that every row's old version is in the stream whole.
func (t Table) FullIdentity() bool {
	return t.Identity == wal.IdentityFull && !t.MixedIdentity()
}

// Unpublishable says why the table must not be published, "" when it may. The
// worst reason is that the application's own UPDATE and DELETE would fail.
func (t Table) Unpublishable() string {
	switch t.Kind {
	case 'r', 'p':
	case 'v':
		return "is a view: map the table behind it"
	case 'm':
		return "is a materialised view: map the tables behind it"
	case 'f':
		return "is a foreign table: attach to the database it lives in"
	default:
		return fmt.Sprintf("is no table (relkind %q)", t.Kind)
	}
	if t.Schema == "pg_catalog" || t.Schema == "information_schema" {
		return "is a system table"
	}
	for _, l := range append(t.holders(), Leaf{t.Name, t.OID, t.Kind, t.Persistence, t.Identity, t.IdentityColumns}) {
		what := ""
		if l.Name != t.Name {
			what = "has a partition " + l.Name.String() + " that "
		}
		switch {
		case l.Kind == 'f':
			return what + "is a foreign table"
		case l.Persistence == 'u':
			return what + "is unlogged: its changes are not in the WAL"
		case l.Persistence == 't':
			return what + "is temporary"
		case l.Identity == wal.IdentityNothing && l.Kind != 'p':
			return what + "has REPLICA IDENTITY NOTHING: the application's UPDATE and DELETE would fail; give it a primary key and ALTER TABLE " + l.SQL() + " REPLICA IDENTITY DEFAULT"
		case len(l.IdentityColumns) == 0 && l.Identity != wal.IdentityFull && l.Kind != 'p':
			return what + "has no usable replica identity: the application's UPDATE and DELETE would fail; add a primary key, or ALTER TABLE " + l.SQL() + " REPLICA IDENTITY USING INDEX ... or FULL"
		}
	}
	return ""
}

// ColumnList returns which columns to publish when only the wanted ones should
// leave the database: those and all that any replica identity needs, in the
// table's order. It returns nil, and why, when the table takes no list: with a
// FULL identity the application's own UPDATE would fail.
func (t Table) ColumnList(wanted []string) (list []string, why string) {
	need := map[string]bool{}
	for _, c := range wanted {
		need[c] = true
	}
	for _, l := range append(t.holders(), Leaf{Name: t.Name, Identity: t.Identity, IdentityColumns: t.IdentityColumns}) {
		if l.Identity == wal.IdentityFull {
			return nil, l.Name.String() + " has REPLICA IDENTITY FULL"
		}
		for _, c := range l.IdentityColumns {
			need[c] = true
		}
	}
	for _, c := range t.Columns {
		if need[c.Name] && c.Generated == "" {
			list = append(list, c.Name)
		}
	}
	return list, ""
}

const identityColumns = `(SELECT coalesce(array_agg(a.attname::text ORDER BY k.n), '{}') FROM pg_catalog.pg_index i
	CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n)
	JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
	WHERE i.indrelid = c.oid AND k.n <= i.indnkeyatts AND i.indisvalid
		AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident))`

// ReadTables reads the named tables, in the order given; missing are those that
// do not exist or that the role may not know of.
func ReadTables(ctx context.Context, q Querier, names []Name) (tables []Table, missing []Name, err error) {
	for _, n := range names {
		t, err := readTable(ctx, q, n)
		if errors.Is(err, pgx.ErrNoRows) {
			missing = append(missing, n)
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read table %s: %w", n, err)
		}
		tables = append(tables, t)
	}
	return tables, missing, nil
}

func readTable(ctx context.Context, q Querier, n Name) (Table, error) {
	t := Table{Name: n}
	var kind, persistence, identity string
	rows, err := q.Query(ctx, `
		SELECT c.oid, c.relkind::text, c.relpersistence::text, pg_catalog.pg_get_userbyid(c.relowner)::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'),
			pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), pg_catalog.row_security_active(c.oid),
			c.reltuples::bigint, c.relreplident::text, `+identityColumns+`,
			(SELECT coalesce(array_agg(a.attname::text ORDER BY k.n), '{}') FROM pg_catalog.pg_index i
				CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n)
				JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
				WHERE i.indrelid = c.oid AND k.n <= i.indnkeyatts AND i.indisprimary)
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
		WHERE s.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')`, n.Schema, n.Table)
	if err != nil {
		return t, err
	}
	_, err = pgx.CollectExactlyOneRow(rows, func(r pgx.CollectableRow) (struct{}, error) {
		return struct{}{}, r.Scan(&t.OID, &kind, &persistence, &t.Owner, &t.Owned, &t.Select, &t.RowSecurity,
			&t.Estimate, &identity, &t.IdentityColumns, &t.PrimaryKey)
	})
	if err != nil {
		return t, err
	}
	t.Kind, t.Persistence, t.Identity = kind[0], persistence[0], wal.Identity(identity[0])

	rows, err = q.Query(ctx, `
		SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid, ty.typtype::text, a.attnotnull,
			CASE a.attgenerated WHEN 's' THEN 'stored' WHEN 'v' THEN 'virtual' ELSE '' END,
			pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT'), pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'UPDATE')
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type ty ON ty.oid = a.atttypid
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, t.OID)
	if err != nil {
		return t, err
	}
	t.Columns, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (Column, error) {
		var c Column
		var kind string
		err := r.Scan(&c.Name, &c.Type, &c.TypeOID, &kind, &c.NotNull, &c.Generated, &c.Select, &c.Update)
		if err == nil {
			c.TypeKind = kind[0]
		}
		return c, err
	})
	if err != nil {
		return t, err
	}
	if t.Identity == wal.IdentityFull {
		for _, c := range t.Columns {
			t.IdentityColumns = append(t.IdentityColumns, c.Name)
		}
	}
	if t.Kind == 'p' {
		t.Leaves, err = readLeaves(ctx, q, t.OID)
	}
	return t, err
}

func readLeaves(ctx context.Context, q Querier, root uint32) ([]Leaf, error) {
	rows, err := q.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, c.oid, c.relkind::text, c.relpersistence::text, c.relreplident::text, `+identityColumns+`
		FROM pg_catalog.pg_partition_tree($1::oid::regclass) p JOIN pg_catalog.pg_class c ON c.oid = p.relid
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE p.isleaf AND c.oid <> $1 ORDER BY 1, 2`, root)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (Leaf, error) {
		var l Leaf
		var kind, persistence, identity string
		err := r.Scan(&l.Schema, &l.Table, &l.OID, &kind, &persistence, &identity, &l.IdentityColumns)
		if err == nil {
			l.Kind, l.Persistence, l.Identity = kind[0], persistence[0], wal.Identity(identity[0])
		}
		return l, err
	})
}

// ListTables lists the tables and partitioned roots that a billing mapping could
// name: no partitions, no system tables.
func ListTables(ctx context.Context, q Querier) ([]Name, error) {
	rows, err := q.Query(ctx, `
		SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
		ORDER BY 1, 2`)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	names, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (n Name, err error) {
		return n, r.Scan(&n.Schema, &n.Table)
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return names, nil
}

// Publication is a publication with what it holds.
type Publication struct {
	OID       uint32
	Name      string
	Owner     string
	Owned     bool // the connected role is or can become the owner
	AllTables bool
	ViaRoot   bool
	Insert    bool
	Update    bool
	Delete    bool
	Truncate  bool
	Version   uint32           // another one once its row was written again, if only as it was
	Tables    []PublishedTable // roots with ViaRoot, else leaves
}

// PublishedTable is one table of a Publication.
type PublishedTable struct {
	Name
	OID       uint32
	Entry     uint32   // of the catalog: another one once the table was taken out and put back; 0: it comes by schema, root or FOR ALL TABLES
	Columns   []string // that are sent, all of them without a column list; nil before 15
	Listed    bool     // there is a column list
	RowFilter string   // turns updates into inserts and deletes
}

// Table finds a published table.
func (p Publication) Table(n Name) (PublishedTable, bool) {
	i := slices.IndexFunc(p.Tables, func(t PublishedTable) bool { return t.Name == n })
	if i < 0 {
		return PublishedTable{}, false
	}
	return p.Tables[i], true
}

// Omits lists the operations that are not published, such as "delete, truncate".
func (p Publication) Omits() string {
	var l []string
	for _, o := range []struct {
		name string
		on   bool
	}{{"insert", p.Insert}, {"update", p.Update}, {"delete", p.Delete}, {"truncate", p.Truncate}} {
		if !o.on {
			l = append(l, o.name)
		}
	}
	return strings.Join(l, ", ")
}

// ReadPublication reads a publication; found is false when there is none of that
// name.
func ReadPublication(ctx context.Context, q Querier, name string) (p Publication, found bool, err error) {
	p.Name = name
	var version int64
	err = row(ctx, q, fmt.Sprintf("publication %q", name), `
		SELECT p.oid, pg_catalog.pg_get_userbyid(p.pubowner)::text, pg_catalog.pg_has_role(p.pubowner, 'USAGE'),
			p.puballtables, p.pubviaroot, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.xmin::text::bigint
		FROM pg_catalog.pg_publication p WHERE p.pubname = $1`, []any{name},
		&p.OID, &p.Owner, &p.Owned, &p.AllTables, &p.ViaRoot, &p.Insert, &p.Update, &p.Delete, &p.Truncate, &version)
	p.Version = uint32(version)
	if errors.Is(err, pgx.ErrNoRows) {
		return Publication{}, false, nil
	}
	if err != nil {
		return Publication{}, false, err
	}
	// Columns and filters came with 15: by way of JSON one statement fits all. Before
	// 18 the view lists generated columns, which are not sent.
	rows, err := q.Query(ctx, `
		SELECT t.schemaname::text, t.tablename::text, coalesce(c.oid, 0::oid), coalesce(e.oid, 0::oid),
			coalesce(jsonb_typeof(to_jsonb(e)->'prattrs'), 'null') <> 'null',
			(SELECT array_agg(v.value) FROM jsonb_array_elements_text(CASE jsonb_typeof(to_jsonb(t)->'attnames') WHEN 'array' THEN to_jsonb(t)->'attnames' ELSE '[]' END) v
				WHERE current_setting('server_version_num')::int >= 180000 OR NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
					WHERE a.attrelid = c.oid AND a.attname = v.value AND a.attgenerated <> '')),
			coalesce(to_jsonb(t)->>'rowfilter', '')
		FROM pg_catalog.pg_publication_tables t
		LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
		LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
		LEFT JOIN pg_catalog.pg_publication_rel e ON e.prrelid = c.oid AND e.prpubid = (SELECT oid FROM pg_catalog.pg_publication WHERE pubname = $1)
		WHERE t.pubname = $1 ORDER BY 1, 2`, name)
	if err != nil {
		return Publication{}, false, fmt.Errorf("read tables of publication %q: %w", name, err)
	}
	p.Tables, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (t PublishedTable, err error) {
		return t, r.Scan(&t.Schema, &t.Name.Table, &t.OID, &t.Entry, &t.Listed, &t.Columns, &t.RowFilter)
	})
	if err != nil {
		return Publication{}, false, fmt.Errorf("read tables of publication %q: %w", name, err)
	}
	return p, true, nil
}

// ForeignKey is a reference of one table to another, or to itself.
type ForeignKey struct {
	From, To     Name
	Columns      []string // of From
	Referenced   []string // of To, in the order of Columns
	OnePerTarget bool     // Columns are unique in From
}

// ReadForeignKeys reads the references between the tables of the database, by table.
func ReadForeignKeys(ctx context.Context, q Querier) ([]ForeignKey, error) {
	rows, err := q.Query(ctx, `
		SELECT fn.nspname::text, f.relname::text, tn.nspname::text, t.relname::text,
			(SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(c.conkey) WITH ORDINALITY k(attnum, n)
				JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum),
			(SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(c.confkey) WITH ORDINALITY k(attnum, n)
				JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum),
			EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.conrelid AND i.indisunique AND i.indpred IS NULL
				AND (SELECT array_agg(k ORDER BY k) FROM unnest((i.indkey::int2[])[0:i.indnkeyatts-1]) k) = (SELECT array_agg(k ORDER BY k) FROM unnest(c.conkey) k))
		FROM pg_catalog.pg_constraint c
		JOIN pg_catalog.pg_class f ON f.oid = c.conrelid JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
		JOIN pg_catalog.pg_class t ON t.oid = c.confrelid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
		WHERE c.contype = 'f' AND c.conparentid = 0
		ORDER BY 1, 2, c.conname`)
	if err != nil {
		return nil, fmt.Errorf("read foreign keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (k ForeignKey, err error) {
		return k, r.Scan(&k.From.Schema, &k.From.Table, &k.To.Schema, &k.To.Table, &k.Columns, &k.Referenced, &k.OnePerTarget)
	})
	if err != nil {
		return nil, fmt.Errorf("read foreign keys: %w", err)
	}
	return keys, nil
}

// Values are what is known of a column's values without reading its table: the labels
// of an enum, or the most common values as of the last ANALYZE.
type Values struct {
	Table  Name
	Column string
	Values []string
}

// ReadValues reads the values that columns of text, enums and small integers with few of
// them are known to have, as far as the role may read the columns.
func ReadValues(ctx context.Context, q Querier) ([]Values, error) {
	rows, err := q.Query(ctx, `
		SELECT n.nspname::text, c.relname::text, a.attname::text, (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid)
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND EXISTS (SELECT FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid)
		UNION ALL
		SELECT s.schemaname::text, s.tablename::text, s.attname::text, s.most_common_vals::text::text[]
		FROM pg_catalog.pg_stats s JOIN pg_catalog.pg_class c ON c.relname = s.tablename
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = s.schemaname
		JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = s.attname
		WHERE s.n_distinct BETWEEN 0 AND 50 AND s.most_common_vals IS NOT NULL AND NOT s.inherited
			AND a.atttypid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'name'::regtype, 'int2'::regtype, 'int4'::regtype)
		ORDER BY 1, 2, 3`)
	if err != nil {
		return nil, fmt.Errorf("read common values: %w", err)
	}
	values, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (v Values, err error) {
		return v, r.Scan(&v.Table.Schema, &v.Table.Table, &v.Column, &v.Values)
	})
	if err != nil {
		return nil, fmt.Errorf("read common values: %w", err)
	}
	return values, nil
}
