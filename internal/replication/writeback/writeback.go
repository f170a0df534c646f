// Package writeback writes what a handler answers into the row that its event was
// about, over plain connections.
//
// It promises to write only where the row still holds what the handler was told, all
// of an answer's columns or none; to know what it has written before when it is asked
// again; to mark its transaction, so that intake derives no events from it; and to
// hold or wait for a lock on the source for moments only.
//
// It does not know which columns a handler may write, nor what becomes of the
// execution.
//
// Start with New and Writer.Apply; Marks is for whoever reads the stream.
package writeback

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/billhook/billhook/internal/replication/catalog"
)

// Options of New. All are required.
type Options struct {
	DSN  string
	Slot string // names this Billhook to others at the same database
	Key  []byte // makes marks that nobody else can make
	// Render writes the text of a value as payloads have it, as JSON. It is called with
	// the type of the column.
	Render func(typeOID uint32, text []byte) []byte
}

const (
	// maxConns is how many connections there are at most.
	maxConns = 2
	// limit bounds one Apply, with the waiting for a connection.
	limit = 5 * time.Second
	// maxIdle is how long an unused connection is trusted.
	maxIdle = time.Minute
)

// Writer writes to rows. It connects when it is first asked to. Apply may be called
// from many goroutines.
type Writer struct {
	o      Options
	config *pgx.ConnConfig
	free   chan struct{} // holds one for each connection that may be used beside those in use

	mu     sync.Mutex
	idle   []idle
	closed bool
}

type idle struct {
	conn  *pgx.Conn
	since time.Time
}

// New makes a Writer.
func New(o Options) (*Writer, error) {
	config, err := pgx.ParseConfig(o.DSN)
	if err != nil {
		return nil, fmt.Errorf("parse source.dsn: %w", err)
	}
	settings := catalog.Settings()
	// The application's own triggers and defaults run in these sessions: they find the
	// path and the time zone of the role, the database or the server.
	delete(settings, "search_path")
	delete(settings, "TimeZone")
	maps.Copy(config.RuntimeParams, settings)
	maps.Copy(config.RuntimeParams, map[string]string{
		"application_name": "billhook write-back", "default_transaction_read_only": "off",
		"lock_timeout": "500", "statement_timeout": "2000", "idle_in_transaction_session_timeout": "2000",
	})
	config.ConnectTimeout = limit
	w := &Writer{o: o, config: config, free: make(chan struct{}, maxConns)}
	for range maxConns {
		w.free <- struct{}{}
	}
	return w, nil
}

// Row is what to write, and where.
type Row struct {
	Table catalog.Name
	Key   []string // columns
	Texts []string // of the key, in Postgres' own text
	// Values are what to write; Was of each must be known.
	Values []Value
}

// Result is what became of a write.
type Result string

// The results.
const (
	Applied   Result = "applied"
	Unchanged Result = "unchanged" // the row holds it already
	Conflict  Result = "conflict"  // the row has changed since, or is gone
	Refused   Result = "refused"   // it may not be written, whatever the row holds
	Failed    Result = "error"     // Postgres refused the values
)

// Results is every Result, for metrics that start at zero.
func Results() []Result { return []Result{Applied, Unchanged, Conflict, Refused, Failed} }

// Outcome is a Result, and in words what stood in the way.
type Outcome struct {
	Result Result
	Text   string // empty for Applied and Unchanged
}

// Apply writes to one row in a transaction of its own, or finds that it is not to be
// written. An error means that the source could not do it now, or that it is not
// known whether it has: asking again is right, and safe. It takes 5 s at most.
func (w *Writer) Apply(ctx context.Context, r Row) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-w.free:
		defer func() { w.free <- struct{}{} }()
	case <-ctx.Done():
		return Outcome{}, fmt.Errorf("write to %s: wait for a connection: %w", r.Table, context.Cause(ctx))
	}
	out, err := w.apply(ctx, r)
	if text, ok := valuesAtFault(err); ok {
		return Outcome{Failed, text}, nil
	}
	if err != nil {
		return Outcome{}, fmt.Errorf("write to %s: %w", r.Table, err)
	}
	return out, nil
}

func (w *Writer) apply(ctx context.Context, r Row) (Outcome, error) {
	conn, used, err := w.take(ctx)
	if err != nil {
		return Outcome{}, err
	}
	columns, err := describe(ctx, conn.PgConn(), r)
	if err != nil && used && conn.IsClosed() {
		// It has died while nobody used it.
		if conn, err = pgx.ConnectConfig(ctx, w.config); err != nil {
			return Outcome{}, err
		}
		columns, err = describe(ctx, conn.PgConn(), r)
	}
	defer func() { w.put(conn) }()
	if err != nil {
		return Outcome{}, err
	}
	t := transaction{Writer: w, conn: conn.PgConn(), row: r}
	if text := t.prepare(columns); text != "" {
		return Outcome{Refused, text}, nil
	}
	out, err := t.write(ctx)
	if err == nil && out.Result == Applied {
		return out, t.exec(ctx, "COMMIT", "COMMIT")
	}
	if !conn.IsClosed() {
		// If it cannot, put closes the connection, which does it as well.
		_ = t.exec(ctx, "ROLLBACK", "ROLLBACK")
	}
	return out, err
}

// take returns a connection, and whether it was used before.
func (w *Writer) take(ctx context.Context) (conn *pgx.Conn, used bool, err error) {
	w.mu.Lock()
	var old []idle
	for len(w.idle) > 0 && conn == nil {
		last := w.idle[len(w.idle)-1]
		w.idle = w.idle[:len(w.idle)-1]
		if time.Since(last.since) > maxIdle {
			old = append(old, last)
			continue
		}
		conn = last.conn
	}
	w.mu.Unlock()
	for _, o := range old {
		closeConn(o.conn)
	}
	if conn != nil {
		return conn, true, nil
	}
	conn, err = pgx.ConnectConfig(ctx, w.config)
	return conn, false, err
}

// put takes a connection back, or ends it when it is not fit to be used again.
func (w *Writer) put(conn *pgx.Conn) {
	if conn.IsClosed() || conn.PgConn().TxStatus() != 'I' {
		closeConn(conn)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		closeConn(conn)
		return
	}
	w.idle = append(w.idle, idle{conn, time.Now()})
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing is pending on it
}

// Close ends the connections that nobody uses; those in use end with their use.
func (w *Writer) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, i := range w.idle {
		closeConn(i.conn)
	}
	w.idle = nil
}

// column is a column as the catalogs describe it.
type column struct {
	oid       uint32
	cast      string // its type without a length: an assignment then refuses what is too long, a cast would cut it
	shape     shape
	generated bool
}

const describeQuery = `
	SELECT a.attname, a.atttypid, pg_catalog.format_type(a.atttypid, -1), a.attgenerated <> '',
		b.oid IN (114, 3802), b.typcategory = 'A', b.typelem IN (114, 3802)
	FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
	JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
	JOIN pg_catalog.pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
	WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped`

// describe reads the columns of the row's table.
func describe(ctx context.Context, conn *pgconn.PgConn, r Row) (map[string]column, error) {
	res := conn.ExecParams(ctx, describeQuery, [][]byte{[]byte(r.Table.Schema), []byte(r.Table.Table)}, nil, nil, nil).Read()
	if res.Err != nil {
		return nil, res.Err
	}
	columns := map[string]column{}
	for _, v := range res.Rows {
		is := func(i int) bool { return string(v[i]) == "t" }
		oid, err := strconv.ParseUint(string(v[1]), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read the type of column %s: %w", v[0], err)
		}
		c := column{oid: uint32(oid), cast: string(v[2]), generated: is(3)}
		switch {
		case is(4):
			c.shape = document
		case is(5) && is(6):
			c.shape = documents
		case is(5):
			c.shape = list
		}
		columns[string(v[0])] = c
	}
	return columns, nil
}

// transaction is one write.
type transaction struct {
	*Writer
	conn *pgconn.PgConn
	row  Row

	columns []column // of row.Values
	args    [][]byte // of the key, then of the values
	where   string
	read    string // SELECT of the values
	update  string
}

// prepare makes the statements. It returns what is wrong with the values, "" when
// nothing is.
func (t *transaction) prepare(columns map[string]column) (wrong string) {
	if len(columns) == 0 {
		return fmt.Sprintf("there is no table %s", t.row.Table)
	}
	var where, names, set []string
	for i, name := range t.row.Key {
		c, ok := columns[name]
		if !ok {
			return fmt.Sprintf("table %s has no column %q", t.row.Table, name)
		}
		t.args = append(t.args, []byte(t.row.Texts[i]))
		where = append(where, fmt.Sprintf("%s = $%d::%s", quote(name), len(t.args), c.cast))
	}
	for i := range t.row.Values {
		v := &t.row.Values[i]
		c, ok := columns[v.Column]
		switch {
		case !ok:
			return fmt.Sprintf("table %s has no column %q", t.row.Table, v.Column)
		case c.generated:
			return fmt.Sprintf("column %q is generated", v.Column)
		}
		text, err := v.text(c.shape)
		if err != nil {
			return err.Error()
		}
		t.args = append(t.args, text)
		t.columns = append(t.columns, c)
		names = append(names, quote(v.Column))
		set = append(set, fmt.Sprintf("%s = $%d::%s", quote(v.Column), len(t.args), c.cast))
	}
	t.where = " WHERE " + strings.Join(where, " AND ")
	t.read = "SELECT " + strings.Join(names, ", ") + " FROM " + t.row.Table.SQL() + t.where
	t.update = "UPDATE " + t.row.Table.SQL() + " SET " + strings.Join(set, ", ") + t.where
	return ""
}

// write does all but the commit:
//
//	BEGIN, and the transaction's id  ──► mark; lock and read the row ──► write, read again
//
// The row is written even where it turns out that it need not be or must not be: how
// Postgres stores a value (rounded, trimmed, changed by a trigger) is known only then,
// and a rollback leaves nothing. Values are read in UTC, as the stream has them, and
// written in the time zone of the database.
func (t *transaction) write(ctx context.Context) (Outcome, error) {
	began, err := t.conn.Exec(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL TimeZone TO 'UTC'; SELECT pg_catalog.pg_current_xact_id()::text").ReadAll()
	if err != nil {
		return Outcome{}, err
	}
	xid, err := strconv.ParseUint(string(began[len(began)-1].Rows[0][0]), 10, 64)
	if err != nil {
		return Outcome{}, fmt.Errorf("read the transaction's id: %w", err)
	}
	keys := t.args[:len(t.row.Key)]
	found, err := t.send(ctx,
		statement{"SELECT pg_catalog.pg_logical_emit_message(true, $1::text, $2::text)", [][]byte{[]byte(Prefix), []byte(mark(t.o.Key, t.o.Slot, xid))}},
		statement{t.read + " FOR NO KEY UPDATE", keys})
	if err != nil {
		return Outcome{}, err
	}
	switch n := len(found[1].Rows); {
	case n == 0:
		return Outcome{Conflict, "the row is not there any more"}, nil
	case n > 1:
		return Outcome{Refused, fmt.Sprintf("%d rows of %s have this key", n, t.row.Table)}, nil
	}
	before := found[1].Rows[0]
	wrote, err := t.send(ctx,
		statement{"SET LOCAL TimeZone TO DEFAULT", nil}, statement{t.update, t.args},
		statement{"SET LOCAL TimeZone TO 'UTC'", nil}, statement{t.read, keys})
	if err != nil {
		return Outcome{}, err
	}
	if wrote[1].CommandTag.RowsAffected() != 1 || len(wrote[3].Rows) != 1 {
		return Outcome{Refused, "a trigger or a policy of the table does not let the row be written"}, nil
	}
	after := wrote[3].Rows[0]

	var others []string // columns that hold neither what was told nor what is to be
	writes := false
	for i := range t.row.Values {
		v := &t.row.Values[i]
		if same(before[i], after[i]) {
			continue
		}
		writes = true
		if now := t.render(i, before[i]); !bytes.Equal(now, v.Was) {
			others = append(others, strconv.Quote(v.Column))
		}
	}
	switch {
	case !writes:
		return Outcome{Result: Unchanged}, nil
	case len(others) > 0:
		return Outcome{Conflict, "since the event the row has got another value of " + strings.Join(others, ", ")}, nil
	}
	return Outcome{Result: Applied}, nil
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func (t *transaction) render(i int, text []byte) json.RawMessage {
	if text == nil {
		return json.RawMessage("null")
	}
	return t.o.Render(t.columns[i].oid, text)
}

// statement is one of several that go to the server together.
type statement struct {
	sql  string
	args [][]byte
}

// send has statements done in one round trip, and returns what each gave. Arguments are
// text of the type that the statement says, results are text.
func (t *transaction) send(ctx context.Context, list ...statement) (results []*pgconn.Result, err error) {
	p := t.conn.StartPipeline(ctx)
	defer func() { err = errors.Join(err, p.Close()) }()
	for _, s := range list {
		p.SendQueryParams(s.sql, s.args, nil, nil, nil)
	}
	if err := p.Sync(); err != nil {
		return nil, err
	}
	for range list {
		got, err := p.GetResults()
		if err != nil {
			return nil, err
		}
		r, ok := got.(*pgconn.ResultReader)
		if !ok {
			return nil, fmt.Errorf("unexpected answer %T", got)
		}
		res := r.Read()
		if res.Err != nil {
			return nil, res.Err
		}
		results = append(results, res)
	}
	return results, nil
}

// exec runs a statement that must end with a tag: COMMIT of a transaction that has
// failed says ROLLBACK.
func (t *transaction) exec(ctx context.Context, sql, tag string) error {
	res, err := t.conn.Exec(ctx, sql).ReadAll()
	if err == nil && res[0].CommandTag.String() != tag {
		err = fmt.Errorf("%s ended with %s", sql, res[0].CommandTag)
	}
	return err
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// valuesAtFault returns what Postgres says when it is for the values that it refuses,
// so that it would refuse them again: they are out of range or no such type's, break a
// constraint, or a trigger refuses them.
func valuesAtFault(err error) (text string, ok bool) {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || len(pe.Code) != 5 {
		return "", false
	}
	// A missing privilege, table or column is for a DBA to mend.
	mendable := slices.Contains([]string{"42501", "42P01", "42703"}, pe.Code)
	if mendable || !slices.Contains([]string{"22", "23", "27", "42", "44", "P0"}, pe.Code[:2]) {
		return "", false
	}
	// Never the detail: it quotes the row.
	return fmt.Sprintf("%s (SQLSTATE %s)", strings.Join(strings.Fields(pe.Message), " "), pe.Code), true
}
