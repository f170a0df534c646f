package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
)

const (
	checkConnection  = "database: connection"
	checkLogin       = "database: login"
	checkPooler      = "database: pooler"
	checkServer      = "server"
	checkRole        = "role: privileges"
	checkTables      = "tables"
	checkPublication = "publication"
	checkSlot        = "slot"
	checkReplication = "replication connection"
)

// afterConnection are the checks that take a connection, told as a whole where
// there is none.
func afterConnection() []string {
	return []string{checkServer, checkRole, checkTables, checkPublication, checkSlot, checkReplication}
}

// facts are what the database says, read before any of it is judged.
type facts struct {
	server      catalog.Server
	tables      []catalog.Table
	missing     []catalog.Name
	closed      []string                  // schemas that the role may not use
	elsewhere   map[string][]catalog.Name // by name: tables of other schemas, for those that are missing
	publication *catalog.Publication      // nil: there is none of that name
	broken      []catalog.Name            // published tables that cannot be updated any more
	slot        *catalog.Slot             // nil: there is none of that name
}

func (f *facts) table(n catalog.Name) (catalog.Table, bool) {
	i := slices.IndexFunc(f.tables, func(t catalog.Table) bool { return t.Name == n })
	if i < 0 {
		return catalog.Table{}, false
	}
	return f.tables[i], true
}

func (r *report) database(ctx context.Context) {
	conn, err := connect(ctx, r.o.DSN)
	if err != nil {
		r.unconnected(ctx, err)
		return
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = conn.Close(closing) // nothing is pending on it
	}()
	c := conn.Config()
	r.add(checkConnection, OK, "", "%s", net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))))
	r.add(checkLogin, OK, "", "role %s, database %s", c.User, c.Database)

	f, what, err := read(ctx, conn, r)
	if err != nil {
		remedy := "let source.dsn name a Postgres server itself"
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok && (pe.Code == "55P03" || pe.Code == "57014") {
			remedy = "SELECT pid, usename, query FROM pg_stat_activity WHERE pid IN (SELECT pid FROM pg_locks WHERE mode = 'AccessExclusiveLock');\n-- shows who holds a lock; try again when it has ended"
		}
		r.add(what, Fail, remedy, "it cannot be looked at: %s", oneLine(err))
		for _, check := range afterConnection() {
			if check != what {
				r.add(check, Skip, "", "the database could not be read")
			}
		}
		return
	}
	r.pooler(ctx, conn)
	r.server(f)
	r.clock(ctx, conn)
	r.role(f)
	for _, n := range r.names() {
		r.table(f, n)
	}
	r.publication(f)
	r.slot(f)
	r.writers(ctx, conn, f)
	r.replication(ctx, f)
}

// connect opens a session that cannot write and that waits for no lock for long.
func connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"application_name": "billhook check", "default_transaction_read_only": "on",
		"lock_timeout": "3000", "statement_timeout": "10000", "search_path": "pg_catalog", "jit": "off",
	} {
		config.RuntimeParams[name] = value
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // nothing is prepared, nothing is cached
	config.ConnectTimeout = 10 * time.Second
	return pgx.ConnectConfig(ctx, config)
}

// read reads all facts. On an error, what is the check that it stands in the way of.
func read(ctx context.Context, conn *pgx.Conn, r *report) (f *facts, what string, err error) {
	f = &facts{elsewhere: map[string][]catalog.Name{}}
	if f.server, err = catalog.ReadServer(ctx, conn); err != nil {
		return nil, checkServer, err
	}
	if f.tables, f.missing, err = catalog.ReadTables(ctx, conn, r.names()); err != nil {
		return nil, checkTables, err
	}
	var schemas []string
	for _, n := range r.names() {
		schemas = append(schemas, n.Schema)
	}
	if f.closed, err = collect[string](ctx, conn, `SELECT nspname::text FROM pg_catalog.pg_namespace
		WHERE nspname = ANY($1) AND NOT pg_catalog.has_schema_privilege(oid, 'USAGE')`, schemas); err != nil {
		return nil, checkTables, err
	}
	for _, m := range f.missing {
		others, err := collect[string](ctx, conn, `SELECT n.nspname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relname = $1 AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' ORDER BY 1 LIMIT 5`, m.Table)
		if err != nil {
			return nil, checkTables, err
		}
		for _, schema := range others {
			f.elsewhere[m.Table] = append(f.elsewhere[m.Table], catalog.Name{Schema: schema, Table: m.Table})
		}
	}
	p, found, err := catalog.ReadPublication(ctx, conn, r.o.Publication)
	if err != nil {
		return nil, checkPublication, err
	}
	if found {
		f.publication = &p
		if f.broken, err = readBroken(ctx, conn, p); err != nil {
			return nil, checkPublication, err
		}
	}
	s, found, err := catalog.ReadSlot(ctx, conn, r.o.Slot)
	if err != nil {
		return nil, checkSlot, err
	}
	if found {
		f.slot = &s
	}
	return f, "", nil
}

// readBroken reads which published tables, mapped or not, the application cannot
// update: they have no usable replica identity.
func readBroken(ctx context.Context, conn *pgx.Conn, p catalog.Publication) ([]catalog.Name, error) {
	if !p.Update && !p.Delete {
		return nil, nil
	}
	rows, err := conn.Query(ctx, `
		SELECT DISTINCT n.nspname::text, c.relname::text
		FROM pg_catalog.pg_publication_tables t
		JOIN pg_catalog.pg_namespace tn ON tn.nspname = t.schemaname
		JOIN pg_catalog.pg_class tc ON tc.relnamespace = tn.oid AND tc.relname = t.tablename
		CROSS JOIN LATERAL (SELECT tc.oid WHERE tc.relkind <> 'p' UNION ALL
			SELECT p.relid FROM pg_catalog.pg_partition_tree(tc.oid) p WHERE tc.relkind = 'p' AND p.isleaf AND p.relid <> tc.oid) l
		JOIN pg_catalog.pg_class c ON c.oid = l.oid
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE t.pubname = $1 AND (c.relreplident = 'n' OR c.relreplident IN ('d', 'i') AND NOT EXISTS (
			SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisvalid
				AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)))
		ORDER BY 1, 2`, p.Name)
	if err != nil {
		return nil, fmt.Errorf("read replica identities of publication %q: %w", p.Name, err)
	}
	names, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (n catalog.Name, err error) {
		return n, r.Scan(&n.Schema, &n.Table)
	})
	if err != nil {
		return nil, fmt.Errorf("read replica identities of publication %q: %w", p.Name, err)
	}
	return names, nil
}

func collect[T any](ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]T, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

// unconnected words a failure to connect. The replication client knows the causes;
// it may not make anything.
func (r *report) unconnected(ctx context.Context, err error) {
	client, cause := replication.New(r.client())
	if cause == nil {
		_, cause = client.Attach(ctx)
	}
	if cause == nil {
		cause = err // it was let in now, or as another kind of session
	}
	text, remedy := split(cause)
	check, reached := checkConnection, true
	var e *replication.Error
	if errors.As(cause, &e) {
		switch e.Reason {
		case replication.ReasonAuthentication:
			check = checkLogin
			text, remedy = r.refused(e, text)
		case replication.ReasonDatabaseMissing:
			check = checkLogin
		case replication.ReasonPooler:
			check = checkPooler
		case replication.ReasonConfiguration:
			reached = false
			if remedy == "" {
				remedy = `source: {dsn: "postgres://billhook:password@host:5432/database"}`
			}
		default:
			reached = e.Reason != replication.ReasonUnreachable
		}
	}
	if reached && check != checkConnection {
		r.add(checkConnection, OK, "", "somebody answers there")
	}
	r.add(check, Fail, remedy, "%s", text)
	if check == checkConnection {
		r.add(checkLogin, Skip, "", "there is no connection")
	}
	for _, c := range afterConnection() {
		r.add(c, Skip, "", "there is no connection")
	}
}

// refused finds the remedy for a role that was not let in.
func (r *report) refused(e *replication.Error, text string) (string, string) {
	config, err := pgx.ParseConfig(r.o.DSN)
	pe, ok := errors.AsType[*pgconn.PgError](e)
	switch {
	case err != nil || !ok:
		return text, "correct source.dsn"
	case pe.Code == "28P01":
		return text, "ALTER ROLE " + quote(config.User) + " LOGIN PASSWORD '...'; -- and the same in source.dsn\n-- or, when there is no such role: CREATE ROLE " + quote(config.User) + " LOGIN REPLICATION PASSWORD '...';"
	case strings.Contains(pe.Message, "pg_hba.conf"):
		return text, fmt.Sprintf("host %s %s <address of this machine>/32 scram-sha-256 # a line for pg_hba.conf; then SELECT pg_reload_conf();", config.Database, config.User)
	}
	if strings.Contains(pe.Message, "not permitted to log in") {
		return text, "ALTER ROLE " + quote(config.User) + " LOGIN;"
	}
	return text, "CREATE ROLE " + quote(config.User) + " LOGIN REPLICATION PASSWORD '...'; -- or, when it is there: ALTER ROLE " + quote(config.User) + " LOGIN;"
}

// split takes the remedy off an error of the replication client.
func split(err error) (text, remedy string) {
	text, remedy, _ = strings.Cut(oneLine(err), "; ")
	return text, remedy
}

// client is for attaching in a way that makes nothing.
func (r *report) client() replication.Options {
	return replication.Options{DSN: r.o.DSN, Slot: r.o.Slot, Publication: r.o.Publication, Tables: r.wanted()}
}

// pooler asks the backend for its process id: a pooler tells its clients another.
func (r *report) pooler(ctx context.Context, conn *pgx.Conn) {
	pids, err := collect[int64](ctx, conn, "SELECT pg_backend_pid()::int8")
	switch {
	case err != nil || len(pids) != 1:
		r.add(checkPooler, Skip, "", "%v", err)
	case pids[0] != int64(conn.PgConn().PID()):
		r.add(checkPooler, Warn, "let source.dsn name the database server itself: its own host and port", "a connection pooler answers at %s: replication needs a session of its own, which few poolers give", net.JoinHostPort(conn.Config().Host, strconv.Itoa(int(conn.Config().Port))))
	default:
		r.add(checkPooler, OK, "", "none in between")
	}
}

func (r *report) server(f *facts) {
	s := f.server
	switch major := s.VersionNum / 10000; {
	case major < 14:
		r.add("server: version", Fail, "upgrade the server to Postgres 14 or later", "Postgres %s is too old", s.Version)
	case major > 18:
		r.add("server: version", Warn, "", "Postgres %s is newer than what this version of billhook was tested with (14 to 18)", s.Version)
	default:
		r.add("server: version", OK, "", "Postgres %s", s.Version)
	}
	if s.InRecovery {
		r.add("server: primary", Fail, "let source.dsn name the primary", "this server is a standby")
	} else {
		r.add("server: primary", OK, "", "it is no standby")
	}
	if s.WALLevel == "logical" {
		r.add("server: wal_level", OK, "", "logical")
	} else {
		r.add("server: wal_level", Fail, "ALTER SYSTEM SET wal_level = 'logical';\n-- then restart the server", "%s: too little is kept in the WAL", s.WALLevel)
	}

	text := fmt.Sprintf("%d of %d are taken", s.UsedSlots, s.MaxSlots)
	if s.UsedSlots >= s.MaxSlots && f.slot == nil {
		r.add("server: slots", Fail, fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d;\n-- then restart the server; or drop a slot that nobody uses", s.MaxSlots+4), "%s, and slot %q is still to be made", text, r.o.Slot)
	} else {
		r.add("server: slots", OK, "", "%s", text)
	}
	text = fmt.Sprintf("%d of %d are in use", s.UsedSenders, s.MaxSenders)
	if s.UsedSenders >= s.MaxSenders && (f.slot == nil || !f.slot.Active) {
		r.add("server: walsenders", Fail, fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d;\n-- then restart the server", s.MaxSenders+4), "%s, and billhook needs one", text)
	} else {
		r.add("server: walsenders", OK, "", "%s", text)
	}
	if s.MaxSlotKeep < 0 {
		r.add("server: max_slot_wal_keep_size", Warn, "-- as much as the disk can spare:\nALTER SYSTEM SET max_slot_wal_keep_size = '50GB';\nSELECT pg_reload_conf();",
			"no limit: while billhook is away, its slot keeps WAL until the disk is full")
	} else {
		r.add("server: max_slot_wal_keep_size", OK, "", "%s", bytes(s.MaxSlotKeep))
	}
	if s.IdleSlotTimeout > 0 {
		r.add("server: idle_replication_slot_timeout", Warn, "ALTER SYSTEM SET idle_replication_slot_timeout = 0;\nSELECT pg_reload_conf();",
			"a slot that nobody reads for %s is given up, and what is committed after that makes no events", s.IdleSlotTimeout)
	}
}

func (r *report) clock(ctx context.Context, conn *pgx.Conn) {
	before := time.Now()
	var there time.Time
	if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&there); err != nil {
		r.add("server: clock", Skip, "", "%s", oneLine(err))
		return
	}
	r.skew(there.Sub(before.Add(time.Since(before) / 2)))
}

func (r *report) skew(d time.Duration) {
	const check = "server: clock"
	switch {
	case d.Abs() <= maxSkew:
		r.add(check, OK, "", "within %s of the clock here", maxSkew)
	case d > 0:
		r.add(check, Warn, "sudo apt-get install chrony # on both machines", "it is %s ahead of the clock here; lag and latency are shown wrong by that", d.Round(time.Millisecond))
	default:
		r.add(check, Warn, "sudo apt-get install chrony # on both machines", "it is %s behind the clock here; lag and latency are shown wrong by that", -d.Round(time.Millisecond))
	}
}

func (r *report) role(f *facts) {
	s := f.server
	if s.Replication {
		r.add(checkRole, OK, "", "role %s has REPLICATION", s.Role)
	} else {
		r.add(checkRole, Fail, "ALTER ROLE "+quote(s.Role)+" REPLICATION;", "role %s may not replicate", s.Role)
	}
	if s.Superuser {
		r.add("role: least privilege", Warn, "CREATE ROLE billhook LOGIN REPLICATION PASSWORD '...';\n-- with SELECT on the mapped tables, and nothing else",
			"role %s is a superuser; REPLICATION and SELECT are enough", s.Role)
	}
}

// replication tries what a start does, as far as it makes nothing.
func (r *report) replication(ctx context.Context, f *facts) {
	const first = "what failed above must be right first"
	if r.failed(0) {
		r.add(checkReplication, Skip, "", first)
		return
	}
	c, err := replication.New(r.client())
	if err == nil {
		_, err = c.Attach(ctx)
	}
	var e *replication.Error
	switch {
	case err == nil:
		r.add(checkReplication, OK, "", "replication can start")
	case !errors.As(err, &e):
		r.add(checkReplication, Skip, "", "%s", oneLine(err))
	case e.Reason == replication.ReasonSlotActive,
		f.slot == nil && e.Reason == replication.ReasonSlotMissing,
		f.publication == nil && e.Reason == replication.ReasonPublicationMissing,
		f.publication != nil && e.Reason == replication.ReasonTable: // those that will be added
		r.add(checkReplication, OK, "", "it can be made")
	default:
		text, remedy := split(err)
		r.add(checkReplication, Fail, remedy, "%s", text)
	}
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
