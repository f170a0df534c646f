// Package snapshot reads tables beside the stream: in chunks in the order of
// their key, each in a statement of its own, and with a mark that the stream
// shows behind everything that the chunk saw.
//
// It promises that no transaction stays open between chunks, that nothing is
// locked, and that values are in the text that the stream would send.
//
// It does not know when a mark has come by (package intake does), nor what the
// rows are for.
//
// Start with Open, Reader.Read and Reader.Mark.
package snapshot

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

// Prefix is the prefix of the logical messages that Mark writes.
const Prefix = "billhook"

// Reader reads tables over one plain connection. It is for one goroutine.
type Reader struct {
	conn *pgx.Conn
}

// Open connects with the session settings that the stream has, so that both send
// the same text.
func Open(ctx context.Context, dsn string) (*Reader, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("parse source.dsn: %w", err)
	}
	maps.Copy(config.RuntimeParams, catalog.Settings())
	config.RuntimeParams["application_name"] = "billhook fill"
	config.RuntimeParams["default_transaction_read_only"] = "off"
	config.RuntimeParams["jit"] = "off" // compiling costs more than a chunk
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to read tables: %w", err)
	}
	return &Reader{conn: conn}, nil
}

// OpenAt is Open for a snapshot that a replication slot's creation has exported: all
// that is read is what the slot will not send. It is one transaction until Close.
func OpenAt(ctx context.Context, dsn, name string) (*Reader, error) {
	r, err := Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	for _, sql := range []string{
		"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
		"SET TRANSACTION SNAPSHOT '" + strings.ReplaceAll(name, "'", "''") + "'",
	} {
		if _, err := r.conn.Exec(ctx, sql); err != nil {
			_ = r.Close(ctx) // nothing is pending on it
			return nil, fmt.Errorf("take on the snapshot: %w", err)
		}
	}
	return r, nil
}

// Close ends the connection.
func (r *Reader) Close(ctx context.Context) error { return r.conn.Close(ctx) }

// Table is a table to be read.
type Table struct {
	Relation *wal.Relation // as the stream describes it
	Estimate int64         // rows as of the last ANALYZE, -1 for never
	casts    []string      // SQL type per column
}

// Tables describes tables as the stream would: their columns are those that the
// publication holds. A table that is missing or not published is an error.
func (r *Reader) Tables(ctx context.Context, names []catalog.Name, publication string) ([]Table, error) {
	tables, missing, err := catalog.ReadTables(ctx, r.conn, names)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("table %s is missing, or may not be read", missing[0])
	}
	pub, found, err := catalog.ReadPublication(ctx, r.conn, publication)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("publication %s is missing", publication)
	}
	var out []Table
	for _, t := range tables {
		published, ok := pub.Table(t.Name)
		if !ok {
			return nil, fmt.Errorf("publication %s does not hold table %s", publication, t.Name)
		}
		rel := &wal.Relation{ID: t.OID, Schema: t.Schema, Name: t.Table, Identity: t.Identity}
		var casts []string
		for _, c := range t.Columns {
			switch {
			case published.Columns != nil && !slices.Contains(published.Columns, c.Name),
				published.Columns == nil && c.Generated != "":
				continue
			}
			rel.Columns = append(rel.Columns, wal.Column{
				Name: c.Name, Type: c.TypeOID, Modifier: -1,
				Key: slices.Contains(t.IdentityColumns, c.Name) || t.Identity == wal.IdentityFull,
			})
			casts = append(casts, c.Type)
		}
		out = append(out, Table{Relation: rel, Estimate: t.Estimate, casts: casts})
	}
	return out, nil
}

// Source is what a database has of what a mapping names.
type Source struct {
	Database, Role string
	Tables         []catalog.Table
	Missing        []catalog.Name
	Closed         []string             // schemas of those tables that the role may not use
	Publication    *catalog.Publication // nil: there is none of that name
	Slot           *catalog.Slot        // nil: there is none of that name
}

// Look reads the catalogs. It changes nothing.
func (r *Reader) Look(ctx context.Context, names []catalog.Name, slot, publication string) (s Source, err error) {
	if err := r.conn.QueryRow(ctx, "SELECT current_database()::text, current_user::text").Scan(&s.Database, &s.Role); err != nil {
		return s, fmt.Errorf("read the session: %w", err)
	}
	if s.Tables, s.Missing, err = catalog.ReadTables(ctx, r.conn, names); err != nil {
		return s, err
	}
	schemas := make([]string, len(names))
	for i, n := range names {
		schemas[i] = n.Schema
	}
	rows, err := r.conn.Query(ctx, "SELECT nspname::text FROM pg_catalog.pg_namespace WHERE nspname = ANY($1) AND NOT pg_catalog.has_schema_privilege(oid, 'USAGE')", schemas)
	if err == nil {
		s.Closed, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return s, fmt.Errorf("read the schemas' privileges: %w", err)
	}
	p, found, err := catalog.ReadPublication(ctx, r.conn, publication)
	if err != nil {
		return s, err
	}
	if found {
		s.Publication = &p
	}
	sl, found, err := catalog.ReadSlot(ctx, r.conn, slot)
	if err != nil {
		return s, err
	}
	if found {
		s.Slot = &sl
	}
	return s, nil
}

// Schema is all of a database's tables that a mapping could name, and how they hang
// together.
type Schema struct {
	Server catalog.Server
	Tables []catalog.Table
	Keys   []catalog.ForeignKey
	Values []catalog.Values
}

// Schema reads the catalogs whole. It changes nothing and reads no table.
func (r *Reader) Schema(ctx context.Context) (s Schema, err error) {
	if s.Server, err = catalog.ReadServer(ctx, r.conn); err != nil {
		return s, err
	}
	names, err := catalog.ListTables(ctx, r.conn)
	if err != nil {
		return s, err
	}
	if s.Tables, _, err = catalog.ReadTables(ctx, r.conn, names); err != nil {
		return s, err
	}
	if s.Keys, err = catalog.ReadForeignKeys(ctx, r.conn); err != nil {
		return s, err
	}
	s.Values, err = catalog.ReadValues(ctx, r.conn)
	return s, err
}

// RoleExists reports whether there is a role of that name.
func (r *Reader) RoleExists(ctx context.Context, name string) (ok bool, err error) {
	if err := r.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)", name).Scan(&ok); err != nil {
		return false, fmt.Errorf("read the roles: %w", err)
	}
	return ok, nil
}

// Server reads the server's side.
func (r *Reader) Server(ctx context.Context) (catalog.Server, error) {
	return catalog.ReadServer(ctx, r.conn)
}

// Read returns at most limit rows whose key is above after, in the order of the
// key columns; a nil after starts at the first. Only the wanted columns are read,
// the others are Unknown. Fewer rows than limit are the table's last.
func (r *Reader) Read(ctx context.Context, t Table, key, wanted []int, after []string, limit int) ([]wal.Tuple, error) {
	var q strings.Builder
	q.WriteString("SELECT ")
	for n, i := range wanted {
		if n > 0 {
			q.WriteString(", ")
		}
		q.WriteString(quote(t.Relation.Columns[i].Name))
	}
	fmt.Fprintf(&q, " FROM %s.%s", quote(t.Relation.Schema), quote(t.Relation.Name))
	var keys, params []string
	for n, i := range key {
		keys = append(keys, quote(t.Relation.Columns[i].Name))
		params = append(params, fmt.Sprintf("$%d::%s", n+1, t.casts[i]))
	}
	order := strings.Join(keys, ", ")
	var args [][]byte
	if after != nil {
		fmt.Fprintf(&q, " WHERE (%s) > (%s)", order, strings.Join(params, ", "))
		for _, v := range after {
			args = append(args, []byte(v))
		}
	}
	fmt.Fprintf(&q, " ORDER BY %s LIMIT %d", order, limit)

	// Text parameters of unknown type and text results: the values are Postgres' own.
	return r.tuples(ctx, t, wanted, q.String(), args, nil)
}

// tuples runs a query for wanted columns of t.
func (r *Reader) tuples(ctx context.Context, t Table, wanted []int, sql string, args [][]byte, types []uint32) ([]wal.Tuple, error) {
	result := r.conn.PgConn().ExecParams(ctx, sql, args, types, nil, nil)
	var rows []wal.Tuple
	for result.NextRow() {
		row := make(wal.Tuple, len(t.Relation.Columns))
		for n, v := range result.Values() {
			if v == nil {
				row[wanted[n]] = wal.Value{Kind: wal.Null}
				continue
			}
			row[wanted[n]] = wal.Value{Kind: wal.Text, Text: append([]byte{}, v...)}
		}
		rows = append(rows, row)
	}
	if _, err := result.Close(); err != nil {
		return nil, fmt.Errorf("read table %s.%s: %w", t.Relation.Schema, t.Relation.Name, err)
	}
	return rows, nil
}

// ReadKeys returns the rows whose key columns have the texts of one of keys, in no
// order; only the wanted columns are read. A table needs an index on the key columns
// for this to be quick.
func (r *Reader) ReadKeys(ctx context.Context, t Table, key, wanted []int, keys [][]string) ([]wal.Tuple, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	columns := make([]string, len(wanted))
	for n, i := range wanted {
		columns[n] = "t." + quote(t.Relation.Columns[i].Name)
	}
	args := make([][]byte, len(key))
	types := make([]uint32, len(key))
	var lists, names, on []string
	for n, i := range key {
		texts := make([]string, len(keys))
		for k := range keys {
			texts[k] = keys[k][n]
		}
		buf, err := r.conn.TypeMap().Encode(pgtype.TextArrayOID, pgtype.TextFormatCode, texts, nil)
		if err != nil {
			return nil, fmt.Errorf("read table %s.%s: keys: %w", t.Relation.Schema, t.Relation.Name, err)
		}
		args[n], types[n] = buf, pgtype.TextArrayOID
		lists = append(lists, fmt.Sprintf("$%d", n+1))
		names = append(names, fmt.Sprintf("k%d", n))
		on = append(on, fmt.Sprintf("t.%s = k.k%d::%s", quote(t.Relation.Columns[i].Name), n, t.casts[i]))
	}
	sql := fmt.Sprintf("SELECT %s FROM unnest(%s) AS k(%s) JOIN %s.%s t ON %s", strings.Join(columns, ", "),
		strings.Join(lists, ", "), strings.Join(names, ", "), quote(t.Relation.Schema), quote(t.Relation.Name), strings.Join(on, " AND "))
	return r.tuples(ctx, t, wanted, sql, args, types)
}

// Begin has all that is read until End be of one moment, and says which transactions
// that moment sees. It holds vacuum back as long as it lasts.
func (r *Reader) Begin(ctx context.Context) (Sight, error) {
	if _, err := r.conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
		return Sight{}, fmt.Errorf("begin to read: %w", err)
	}
	var text string
	if err := r.conn.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
		return Sight{}, fmt.Errorf("begin to read: %w", err)
	}
	return parseSight(text)
}

// End ends what Begin began.
func (r *Reader) End(ctx context.Context) error {
	if _, err := r.conn.Exec(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("end reading: %w", err)
	}
	return nil
}

// Sight says which transactions a snapshot sees.
type Sight struct {
	xmin   uint64   // all below are seen
	xmax   uint64   // none from here on is seen
	active []uint64 // nor these
}

// parseSight reads Postgres' text of a snapshot, xmin:xmax:xip,xip...
func parseSight(text string) (s Sight, err error) {
	parts := strings.Split(text, ":")
	bad := func() (Sight, error) {
		return Sight{}, fmt.Errorf("read the snapshot %q: want xmin:xmax:xip_list", text)
	}
	if len(parts) != 3 {
		return bad()
	}
	if s.xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return bad()
	}
	if s.xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return bad()
	}
	for x := range strings.SplitSeq(parts[2], ",") {
		if x == "" {
			continue
		}
		n, err := strconv.ParseUint(x, 10, 64)
		if err != nil {
			return bad()
		}
		s.active = append(s.active, n)
	}
	return s, nil
}

// Sees reports whether the snapshot sees a transaction that has committed. xid is its
// id as the stream has it, without the epoch.
func (s Sight) Sees(xid uint32) bool {
	switch {
	case int32(xid-uint32(s.xmin)) < 0:
		return true
	case int32(xid-uint32(s.xmax)) >= 0:
		return false
	}
	return !slices.ContainsFunc(s.active, func(a uint64) bool { return uint32(a) == xid })
}

// Present reports of each key whether the table has a row with it. Keys are texts of
// the key columns.
func (r *Reader) Present(ctx context.Context, t Table, key []int, keys [][]string) ([]bool, error) {
	var lists, names []string
	args := make([]any, len(key))
	for n, i := range key {
		texts := make([]string, len(keys))
		for k := range keys {
			texts[k] = keys[k][n]
		}
		args[n] = texts
		lists = append(lists, fmt.Sprintf("$%d::text[]", n+1))
		names = append(names, fmt.Sprintf("t.%s = k.k%d::%s", quote(t.Relation.Columns[i].Name), n, t.casts[i]))
	}
	columns := make([]string, len(key))
	for n := range key {
		columns[n] = fmt.Sprintf("k%d", n)
	}
	// Ordered, so that the answers stand beside their questions.
	sql := fmt.Sprintf("SELECT EXISTS (SELECT FROM %s.%s t WHERE %s) FROM unnest(%s) WITH ORDINALITY AS k(%s, n) ORDER BY k.n",
		quote(t.Relation.Schema), quote(t.Relation.Name), strings.Join(names, " AND "), strings.Join(lists, ", "), strings.Join(columns, ", "))
	rows, err := r.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("look for rows of %s.%s: %w", t.Relation.Schema, t.Relation.Name, err)
	}
	present, err := pgx.CollectRows(rows, pgx.RowTo[bool])
	if err != nil {
		return nil, fmt.Errorf("look for rows of %s.%s: %w", t.Relation.Schema, t.Relation.Name, err)
	}
	return present, nil
}

// Mark writes a logical message into the source's log. Whatever a chunk that was
// read before saw as committed stands before it in the stream. It leaves
// nothing in any table.
func (r *Reader) Mark(ctx context.Context, content string) error {
	// Transactional, so that its commit is flushed and sent at once.
	if _, err := r.conn.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", Prefix, content); err != nil {
		return fmt.Errorf("mark the log: %w", err)
	}
	return nil
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
