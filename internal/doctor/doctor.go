// Package doctor looks at a database, and at the machine, before Billhook is
// attached: what must be so, what had better be so, and what to do where it is
// not.
//
// It promises to look at everything rather than to stop at the first fault, to
// name the remedy as something to copy, and to write nothing: not in the database,
// where it takes no lock but a SELECT's, and not on the disk.
//
// It does not read configuration files; internal/app brings their values.
//
// Start with Options and Run.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/wal"
)

// Level is how grave a Finding is.
type Level string

// The levels.
const (
	OK   Level = "OK"
	Warn Level = "WARN" // it works, but somebody may regret it
	Fail Level = "FAIL" // it does not work
	Skip Level = "SKIP" // it could not be looked at
)

// Finding is what one check found.
type Finding struct {
	Check  string `json:"check"` // what was looked at, such as "server: wal_level"
	Level  Level  `json:"level"`
	Text   string `json:"text"`             // what it stands at
	Remedy string `json:"remedy,omitempty"` // what to do, to copy
}

// Table is a mapped table.
type Table struct {
	catalog.Name
	Key     []string // columns that name a row
	Exclude []string // columns that must not leave the database
}

// Options of Run. DSN, Slot and Publication are required.
type Options struct {
	DSN         string
	Slot        string
	Publication string
	Create      bool // publication and slot are made when they are missing
	Tables      []Table
	JournalPath string
	MinFree     uint64 // free bytes below which intake stands still
	Listen      string // host:port
}

// timeout bounds all questions to the database together.
const timeout = 30 * time.Second

// report collects findings.
type report struct {
	o    Options
	list []Finding
}

func (r *report) add(check string, l Level, remedy, format string, args ...any) {
	r.list = append(r.list, Finding{Check: check, Level: l, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

// Run looks at everything.
func Run(ctx context.Context, o Options) []Finding {
	r := &report{o: o}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r.database(ctx)
	r.journal()
	r.listen()
	return r.list
}

func (r *report) database(ctx context.Context) {
	conn, err := connect(ctx, r.o.DSN)
	if err != nil {
		r.add("database: connection", Fail, "", "%s", r.worded(ctx, err))
		for _, c := range []string{"server: version", "server: wal_level", "role: privileges", "tables", "publication", "slot"} {
			r.add(c, Skip, "", "there is no connection")
		}
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	r.add("database: connection", OK, "", "%s@%s:%d/%s", conn.Config().User, conn.Config().Host, conn.Config().Port, conn.Config().Database)

	server, err := catalog.ReadServer(ctx, conn)
	if err != nil {
		r.add("server", Fail, "let source.dsn name a Postgres server itself, not a pooler", "its settings cannot be read: %v", err)
		return
	}
	r.server(server)
	r.clock(ctx, conn)

	tables, missing, err := catalog.ReadTables(ctx, conn, r.names())
	if err != nil {
		r.add("tables", Fail, "", "the catalogs cannot be read: %v", err)
		return
	}
	for _, m := range missing {
		r.add("table "+m.String(), Fail, "correct the mapping, or GRANT USAGE on the schema", "it does not exist in database %s, or role %s may not know of it", server.Database, server.Role)
	}
	for _, t := range tables {
		r.table(t)
	}
	publication, found, err := catalog.ReadPublication(ctx, conn, r.o.Publication)
	if err != nil {
		r.add("publication", Fail, "", "it cannot be read: %v", err)
		return
	}
	slot, slotFound, err := catalog.ReadSlot(ctx, conn, r.o.Slot)
	if err != nil {
		r.add("slot", Fail, "", "it cannot be read: %v", err)
		return
	}
	if len(missing) > 0 {
		r.add("publication", Skip, "", "the tables must be there first")
	} else {
		r.publication(server, tables, publication, found, slotFound)
	}
	r.slot(ctx, conn, server, slot, slotFound)
	r.replication(ctx, slotFound && found)
}

func connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = "billhook check"
	config.RuntimeParams["default_transaction_read_only"] = "on"
	config.ConnectTimeout = 10 * time.Second
	return pgx.ConnectConfig(ctx, config)
}

// worded lets the replication client, which knows the remedies, word a failure to
// connect. It may not make anything.
func (r *report) worded(ctx context.Context, err error) string {
	c, clientErr := replication.New(replication.Options{DSN: r.o.DSN, Slot: r.o.Slot, Publication: r.o.Publication, Tables: r.wanted()})
	if clientErr == nil {
		_, clientErr = c.Attach(ctx)
	}
	if clientErr != nil {
		return clientErr.Error()
	}
	return err.Error()
}

func (r *report) names() []catalog.Name {
	var names []catalog.Name
	for _, t := range r.o.Tables {
		names = append(names, t.Name)
	}
	return names
}

func (r *report) server(s catalog.Server) {
	switch major := s.VersionNum / 10000; {
	case major < 14:
		r.add("server: version", Fail, "upgrade to Postgres 14 or later", "Postgres %s", s.Version)
	case major > 18:
		r.add("server: version", Warn, "", "Postgres %s is newer than what this version of billhook was tested with (14 to 18)", s.Version)
	default:
		r.add("server: version", OK, "", "Postgres %s", s.Version)
	}
	if s.InRecovery {
		r.add("server: primary", Fail, "let source.dsn name the primary", "this server is a standby")
	}
	if s.WALLevel == "logical" {
		r.add("server: wal_level", OK, "", "logical")
	} else {
		r.add("server: wal_level", Fail, "ALTER SYSTEM SET wal_level = 'logical'; -- and restart the server", "%s", s.WALLevel)
	}
	if s.UsedSlots >= s.MaxSlots {
		r.add("server: slots", Warn, fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d; -- and restart the server", s.MaxSlots+4), "all %d are taken; a new one cannot be made", s.MaxSlots)
	} else {
		r.add("server: slots", OK, "", "%d of %d are taken", s.UsedSlots, s.MaxSlots)
	}
	if s.UsedSenders >= s.MaxSenders {
		r.add("server: walsenders", Warn, fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d; -- and restart the server", s.MaxSenders+4), "all %d are in use", s.MaxSenders)
	} else {
		r.add("server: walsenders", OK, "", "%d of %d are in use", s.UsedSenders, s.MaxSenders)
	}
	if s.MaxSlotKeep < 0 {
		r.add("server: max_slot_wal_keep_size", Warn, "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; -- what the disk can spare; no restart is needed: SELECT pg_reload_conf();",
			"without a limit: while billhook is away, its slot keeps WAL until the disk is full")
	} else {
		r.add("server: max_slot_wal_keep_size", OK, "", "%s", bytes(s.MaxSlotKeep))
	}
	if s.IdleSlotTimeout > 0 {
		r.add("server: idle_replication_slot_timeout", Warn, "", "a slot that nobody reads for %s is given up, and what was committed after that makes no events", s.IdleSlotTimeout)
	}
	if s.Replication {
		r.add("role: privileges", OK, "", "role %s has REPLICATION", s.Role)
	} else {
		r.add("role: privileges", Fail, "ALTER ROLE "+quote(s.Role)+" REPLICATION;", "role %s may not replicate", s.Role)
	}
	if s.Superuser {
		r.add("role: least privilege", Warn, "CREATE ROLE billhook LOGIN REPLICATION PASSWORD '...'; -- and GRANT SELECT on the mapped tables", "role %s is a superuser; billhook needs REPLICATION and SELECT alone", s.Role)
	}
}

func (r *report) clock(ctx context.Context, conn *pgx.Conn) {
	before := time.Now()
	var there time.Time
	if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&there); err != nil {
		r.add("server: clock", Skip, "", "%v", err)
		return
	}
	skew := there.Sub(before.Add(time.Since(before) / 2)).Round(time.Millisecond)
	if skew.Abs() > 2*time.Second {
		r.add("server: clock", Warn, "synchronise both clocks, with chrony or the like", "it differs from the clock here by %s; lag and latency will be shown wrong by that", skew)
		return
	}
	r.add("server: clock", OK, "", "within %s of the clock here", max(skew.Abs(), time.Millisecond))
}

// table says whether a table can be followed, and what it costs.
func (r *report) table(t catalog.Table) {
	check := "table " + t.Name.String()
	mapped := r.o.Tables[slices.IndexFunc(r.o.Tables, func(m Table) bool { return m.Name == t.Name })]
	if why := t.Unpublishable(); why != "" {
		remedy := ""
		if strings.Contains(why, "identity") {
			remedy = "ALTER TABLE " + t.SQL() + " ADD PRIMARY KEY (" + strings.Join(mapped.Key, ", ") + ");"
		}
		r.add(check, Fail, remedy, "it %s", why)
		return
	}
	for _, name := range mapped.Key {
		c, ok := t.Column(name)
		switch {
		case !ok:
			continue // said with the mapping
		case c.Generated != "":
			r.add(check, Fail, "", "column %s is generated, and generated columns are not sent", name)
			return
		}
		for _, l := range leaves(t) {
			if l.Identity != wal.IdentityFull && !slices.Contains(l.IdentityColumns, name) {
				r.add(check, Fail, "map the columns of its replica identity as key: ["+strings.Join(l.IdentityColumns, ", ")+"]",
					"key column %s is not part of the replica identity of %s, so a deleted row could not be told from others", name, l.Name)
				return
			}
		}
	}
	if t.MixedIdentity() {
		r.add(check, Warn, "", "its partitions have different replica identities: old rows are taken from memory")
		return
	}
	if t.RowSecurity {
		r.add(check, Warn, "", "row level security applies: rows that role may not see are missing when memory is filled")
		return
	}
	if t.FullIdentity() {
		text := "REPLICA IDENTITY FULL: old rows come with the stream"
		if len(mapped.Exclude) > 0 && slices.ContainsFunc(mapped.Exclude, func(name string) bool { _, ok := t.Column(name); return ok }) {
			r.add(check, Warn, "", "%s, but so do the excluded columns %s: they cannot be kept in the database, and billhook drops them", text, strings.Join(mapped.Exclude, ", "))
			return
		}
		r.add(check, OK, "", "%s", text)
		return
	}
	r.add(check, OK, "", "identity by %s: what rules need of old rows is remembered%s", strings.Join(t.IdentityColumns, ", "), rows(t.Estimate))
}

func rows(estimate int64) string {
	if estimate < 0 {
		return ""
	}
	return fmt.Sprintf(" (about %d rows to be read once)", estimate)
}

func leaves(t catalog.Table) []catalog.Leaf {
	if len(t.Leaves) > 0 {
		return t.Leaves
	}
	return []catalog.Leaf{{Name: t.Name, Identity: t.Identity, IdentityColumns: t.IdentityColumns}}
}

func (r *report) wanted() []replication.Table {
	var out []replication.Table
	for _, t := range r.o.Tables {
		out = append(out, replication.Table{Name: t.Name, Exclude: t.Exclude})
	}
	return out
}

func (r *report) publication(s catalog.Server, tables []catalog.Table, p catalog.Publication, found, slotFound bool) {
	const check = "publication"
	if !found {
		sql, _, err := replication.PublicationSQL(r.o.Publication, tables, r.wanted(), s.VersionNum)
		switch foreign := slices.IndexFunc(tables, func(t catalog.Table) bool { return !t.Owned }); {
		case err != nil:
			r.add(check, Fail, "", "%q is not there and cannot be made: %v", r.o.Publication, err)
		case slotFound:
			r.add(check, Fail, fmt.Sprintf("SELECT pg_drop_replication_slot('%s'); -- then start again, so that the publication is made first", r.o.Slot), "%q is not there, but slot %q is, and a slot cannot use a publication that is younger", r.o.Publication, r.o.Slot)
		case !r.o.Create:
			r.add(check, Fail, sql+";", "%q is not there, and source.create is false", r.o.Publication)
		case !s.CreateInDB || foreign >= 0:
			r.add(check, Fail, sql+"; -- as the tables' owner", "%q is not there, and role %s may not make it", r.o.Publication, s.Role)
		default:
			r.add(check, OK, "", "%q will be made: %s", r.o.Publication, sql)
		}
		return
	}
	grave := false
	for _, t := range tables {
		pt, ok := p.Table(t.Name)
		switch {
		case !ok && (!r.o.Create || !p.Owned || !t.Owned):
			grave = true
			r.add(check, Fail, fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s;", quote(p.Name), t.SQL()), "%q does not hold table %s", p.Name, t.Name)
		case ok && pt.RowFilter != "":
			grave = true
			r.add(check, Warn, fmt.Sprintf("ALTER PUBLICATION %s SET TABLE ...; -- without WHERE", quote(p.Name)), "%q filters rows of %s by %s: updates across the filter arrive as inserts and deletes, so creates and deletes will be told that did not happen", p.Name, t.Name, pt.RowFilter)
		}
	}
	if omits := p.Omits(); omits != "" {
		grave = true
		r.add(check, Fail, fmt.Sprintf("ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate');", quote(p.Name)), "%q does not publish %s", p.Name, omits)
	}
	if p.AllTables {
		grave = true
		r.add(check, Warn, "", "%q is FOR ALL TABLES: every change in the database is sent, and tables without a replica identity cannot be updated", p.Name)
	}
	if !grave {
		r.add(check, OK, "", "%q holds every mapped table", p.Name)
	}
}

func (r *report) slot(ctx context.Context, conn *pgx.Conn, server catalog.Server, s catalog.Slot, found bool) {
	const check = "slot"
	if !found {
		if !r.o.Create {
			r.add(check, Fail, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput');", r.o.Slot), "%q is not there, and source.create is false", r.o.Slot)
		} else {
			r.add(check, OK, "", "%q will be made", r.o.Slot)
		}
		if server.WALLevel != "logical" {
			return
		}
		writers, err := catalog.ReadWriters(ctx, conn)
		if err != nil || len(writers) == 0 || writers[0].Age < 10*time.Second && writers[0].Prepared == "" {
			return // what has just begun will have ended by then
		}
		w := writers[0]
		who := fmt.Sprintf("pid %d (%s), open for %s", w.PID, cmp(w.ApplicationName, "without a name"), w.Age.Round(time.Second))
		if w.Prepared != "" {
			who = fmt.Sprintf("the prepared transaction %q", w.Prepared)
		}
		r.add("slot: open transactions", Warn, "wait for it, or end it if it was forgotten", "to make a slot takes as long as the oldest transaction that has written: %s", who)
		return
	}
	drop := fmt.Sprintf("SELECT pg_drop_replication_slot('%s');", r.o.Slot)
	switch {
	case s.Plugin != "pgoutput":
		r.add(check, Fail, "choose another source.slot", "%q belongs to another plugin: %s", s.Name, s.Plugin)
		return
	case s.Database != server.Database:
		r.add(check, Fail, "choose another source.slot", "%q belongs to another database: %s", s.Name, s.Database)
		return
	case s.Lost():
		r.add(check, Fail, drop+" -- then start again with an empty journal folder", "%q is lost (%s): WAL it needed is gone", s.Name, cmp(s.InvalidationReason, "max_slot_wal_keep_size was exceeded"))
		return
	case s.Active:
		r.add(check, Warn, "fine if that is this billhook; else end it, or choose another source.slot", "%q is in use by %s", s.Name, s.Holder)
	default:
		r.add(check, OK, "", "%q is there and free", s.Name)
	}
	switch {
	case s.WALStatus == "unreserved" || s.SafeBytes < 1<<30:
		r.add("slot: retained WAL", Warn, "start billhook, or raise max_slot_wal_keep_size", "%s are kept, %s more and the slot is lost", bytes(s.RetainedBytes), bytes(int64(min(s.SafeBytes, math.MaxInt64/2))))
	default:
		r.add("slot: retained WAL", OK, "", "%s are kept for it", bytes(s.RetainedBytes))
	}
}

// replication tries what a start does, as far as it makes nothing.
func (r *report) replication(ctx context.Context, there bool) {
	const check = "replication connection"
	c, err := replication.New(replication.Options{DSN: r.o.DSN, Slot: r.o.Slot, Publication: r.o.Publication, Tables: r.wanted()})
	if err == nil {
		_, err = c.Attach(ctx)
	}
	var e *replication.Error
	switch {
	case err == nil:
		r.add(check, OK, "", "replication can start")
	case !errors.As(err, &e):
		r.add(check, Fail, "", "%v", err)
	case e.Reason == replication.ReasonSlotActive:
		r.add(check, OK, "", "it can be made")
	case !there && (e.Reason == replication.ReasonSlotMissing || e.Reason == replication.ReasonPublicationMissing):
		r.add(check, OK, "", "it can be made")
	default:
		r.add(check, Fail, "", "%s", e.Text)
	}
}

// journal looks at the folder without touching it.
func (r *report) journal() {
	const check = "journal: folder"
	path := r.o.JournalPath
	info, err := os.Stat(path)
	at := path
	switch {
	case errors.Is(err, fs.ErrNotExist):
		for at = filepath.Dir(path); ; at = filepath.Dir(at) {
			if info, err = os.Stat(at); err == nil || at == filepath.Dir(at) {
				break
			}
		}
		if err == nil && !info.IsDir() {
			r.add(check, Fail, "choose another journal.path", "%s cannot be made: %s is no folder", path, at)
			return
		}
	case err == nil && !info.IsDir():
		r.add(check, Fail, "choose another journal.path", "%s is no folder", path)
		return
	}
	if err != nil {
		r.add(check, Fail, "let the user that runs billhook read it", "%v", err)
		return
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		r.add(check, Fail, fmt.Sprintf("install -d -o %d -m 700 %s # as root", os.Getuid(), path), "uid %d may not write to %s", os.Getuid(), at)
		return
	}
	if at == path {
		r.add(check, OK, "", "%s", path)
	} else {
		r.add(check, OK, "", "%s will be made", path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		r.add("journal: disk", Skip, "", "%v", err)
		return
	}
	free := uint64(st.Bavail) * uint64(st.Bsize)
	switch {
	case free < r.o.MinFree:
		r.add("journal: disk", Fail, "make room, or choose another journal.path", "%s are free, and intake stands still below %s", bytes(int64(free)), bytes(int64(r.o.MinFree)))
	case free < 4*r.o.MinFree:
		r.add("journal: disk", Warn, "make room, or choose another journal.path", "only %s are free", bytes(int64(free)))
	default:
		r.add("journal: disk", OK, "", "%s are free", bytes(int64(free)))
	}
}

func (r *report) listen() {
	const check = "http: address"
	if r.o.Listen == "" {
		return
	}
	l, err := net.Listen("tcp", r.o.Listen)
	if err != nil {
		r.add(check, Warn, "fine if that is this billhook; else choose another http.listen", "cannot listen on %s: %v", r.o.Listen, err)
		return
	}
	_ = l.Close()
	r.add(check, OK, "", "%s is free", r.o.Listen)
}

func bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

func cmp(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
