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
	"strings"

	"github.com/jackc/pgx/v5"

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
	result := r.conn.PgConn().ExecParams(ctx, q.String(), args, nil, nil, nil)
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
// read before saw as committed stands before it in the stream. It is the only
// thing Billhook writes there, and it leaves nothing in any table.
func (r *Reader) Mark(ctx context.Context, content string) error {
	// Transactional, so that its commit is flushed and sent at once.
	if _, err := r.conn.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", Prefix, content); err != nil {
		return fmt.Errorf("mark the log: %w", err)
	}
	return nil
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
