package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/billhook/billhook/config"
	"github.com/billhook/billhook/internal/billing"
	"github.com/billhook/billhook/internal/replication"
	"github.com/billhook/billhook/internal/replication/catalog"
	"github.com/billhook/billhook/internal/replication/snapshot"
)

// SQLOptions of SQL.
type SQLOptions struct {
	ConfigPath   string
	HandlersPath string // for write_back; empty: there is none
	// DSN is of somebody who may look at the catalogs; empty: source.dsn is tried.
	DSN  string
	Role string // that Billhook will connect as; empty: the one in source.dsn
	Env  config.Lookup
}

// Statements is SQL for psql.
type Statements struct {
	Text string
	// Unseen says why the database was not looked at: then what depends on it is left to
	// comments.
	Unseen error
}

// SQL returns what a DBA runs before Billhook is attached: each statement that is still
// needed, with what it costs. It changes nothing.
func SQL(ctx context.Context, o SQLOptions) (Statements, error) {
	b, m, err := o.load()
	if err != nil {
		return Statements{}, err
	}
	var writes []need
	if o.HandlersPath != "" {
		h, err := config.LoadHandlers(o.HandlersPath, o.Env, b)
		if err != nil {
			return Statements{}, err
		}
		writes = newWriteBack(m, b.EventTypes()).needs(h)
	}
	a := attachment{config: b, mapping: m, writes: writes, role: o.Role}
	if a.role == "" {
		a.role = roleOf(b.Source.DSN.Reveal())
	}
	unseen := a.look(ctx, o.DSN)
	return Statements{Text: a.sql(), Unseen: unseen}, nil
}

func (o *SQLOptions) load() (*config.Billhook, billing.Mapping, error) {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	b, err := config.LoadBillhook(o.ConfigPath, o.Env)
	if err != nil {
		return nil, billing.Mapping{}, err
	}
	m, err := mapping(b)
	return b, m, err
}

// roleOf returns the user of a DSN, "billhook" if it names none.
func roleOf(dsn string) string {
	if role := replication.User(dsn); role != "" {
		return role
	}
	return "billhook"
}

// attachment is what is to be made in a database.
type attachment struct {
	config  *config.Billhook
	mapping billing.Mapping
	writes  []need
	role    string
	// What the database says; seen is false when it was not asked.
	seen   bool
	source snapshot.Source
	server catalog.Server
	exists bool // the role
}

func (a *attachment) look(ctx context.Context, dsn string) error {
	if dsn == "" {
		dsn = a.config.Source.DSN.Reveal()
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	r, err := snapshot.Open(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = r.Close(closing) // nothing is pending on it
	}()
	var names []catalog.Name
	for _, t := range billing.Tables(a.mapping) {
		names = append(names, catalog.Name{Schema: t.Schema, Table: t.Name})
	}
	if a.source, err = r.Look(ctx, names, a.config.Source.Slot, a.config.Source.Publication); err != nil {
		return err
	}
	if a.server, err = r.Server(ctx); err != nil {
		return err
	}
	if a.exists, err = r.RoleExists(ctx, a.role); err != nil {
		return err
	}
	a.seen = true
	return nil
}

// sql writes the statements.
func (a *attachment) sql() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	role := sqlName(a.role)
	where := "the billing database"
	if a.seen {
		where = "database " + a.source.Database + ", Postgres " + a.server.Version
	}
	p("-- What billhook needs in %s. Run it as a superuser, or as the owner of the tables\n-- who may make roles:", where)
	p("--\n--   psql -v password=\"$(openssl rand -hex 16)\" -f attach.sql ...\n--")
	p("-- billhook sql makes it from billhook.yaml; billhook check says what is still amiss.\n\\set ON_ERROR_STOP on\n")
	restart := false
	if a.seen && a.server.WALLevel != "logical" {
		restart = true
		p("-- What is needed in the WAL. Cost: a restart of the server, and a little more WAL for each\n-- UPDATE and DELETE from then on.\nALTER SYSTEM SET wal_level = 'logical';\n")
	}
	if a.seen && a.source.Slot == nil && a.server.UsedSlots >= a.server.MaxSlots {
		restart = true
		p("-- All slots are taken. Cost: a restart of the server.\nALTER SYSTEM SET max_replication_slots = %d;\n", a.server.MaxSlots+4)
	}
	if a.exists {
		p("-- The role is there; it must be let in and may follow the log. Cost: none.\nALTER ROLE %s LOGIN REPLICATION;", role)
	} else {
		p("-- A role that may follow the log and read the mapped tables, and nothing else. Cost: none.\nCREATE ROLE %s LOGIN REPLICATION PASSWORD :'password';", role)
	}
	p("-- It must be let in, too: a line for pg_hba.conf, then SELECT pg_reload_conf():\n--   host %s %s <address of billhook's machine>/32 scram-sha-256", hbaName(a.database()), hbaName(a.role))
	a.grants(p, role)
	a.publication(p)
	a.bound(p)
	if restart {
		p("\n-- Now restart the server.")
	}
	p("\n-- The way out: billhook uninstall, then DROP OWNED BY %[1]s; DROP ROLE %[1]s;", role)
	return b.String()
}

func (a *attachment) database() string {
	if a.seen {
		return a.source.Database
	}
	return "<database>"
}

func hbaName(s string) string {
	if strings.ContainsAny(s, " ,\"#") {
		return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
	}
	return s
}

// grants lets the role read the mapped tables, but for excluded columns, and update what
// answers are written into.
func (a *attachment) grants(p func(string, ...any), role string) {
	var schemas, whole []string
	type columns struct{ table, list, note string }
	var partly []columns
	for _, t := range tables(a.mapping) {
		if s := sqlName(t.Schema); !slices.Contains(schemas, s) {
			schemas = append(schemas, s)
		}
		found, ok := findTable(a.source, billing.Table{Schema: t.Schema, Name: t.Name.Table})
		switch {
		case len(t.Exclude) == 0:
			whole = append(whole, t.SQL())
		case !ok:
			partly = append(partly, columns{t.SQL(), "", "all columns but " + strings.Join(t.Exclude, ", ")})
		default:
			var list []string
			for _, c := range found.Columns {
				if !slices.Contains(t.Exclude, c.Name) {
					list = append(list, sqlName(c.Name))
				}
			}
			partly = append(partly, columns{t.SQL(), strings.Join(list, ", "), ""})
		}
	}
	p("\n-- Reading, which fills billhook's memory once and again when rules change. Cost: none.")
	for _, s := range schemas {
		p("GRANT USAGE ON SCHEMA %s TO %s;", s, role)
	}
	if len(whole) > 0 {
		p("GRANT SELECT ON %s TO %s;", strings.Join(whole, ", "), role)
	}
	for _, c := range partly {
		if c.list == "" {
			p("-- GRANT SELECT (%s) ON %s TO %s;", c.note, c.table, role)
			continue
		}
		p("GRANT SELECT (%s) ON %s TO %s;", c.list, c.table, role)
	}
	written := map[string][]string{}
	var order []string
	for _, n := range a.writes {
		name := catalog.Name{Schema: n.tables[0].Schema, Table: n.tables[0].Name}.SQL()
		if written[name] == nil {
			order = append(order, name)
		}
		if c := sqlName(n.column); !slices.Contains(written[name], c) {
			written[name] = append(written[name], c)
		}
	}
	if len(order) > 0 {
		p("\n-- What answers of handlers are written into (write_back). Cost: none.")
	}
	for _, name := range order {
		p("GRANT UPDATE (%s) ON %s TO %s;", strings.Join(written[name], ", "), name, role)
	}
}

// publication names the tables whose changes are sent, and the slot where the DBA makes
// it.
func (a *attachment) publication(p func(string, ...any)) {
	s := a.config.Source
	p("\n-- The tables whose changes are sent. Cost: a SHARE UPDATE EXCLUSIVE lock on each for a moment,\n-- which waits for VACUUM and DDL but not for reads and writes; the timeout keeps it from\n-- standing in a queue. Replica identities stay as they are, and no table is rewritten.")
	if a.seen {
		for _, t := range a.source.Tables {
			if why := t.Unpublishable(); why != "" {
				p("-- MUST BE RIGHT FIRST: table %s %s.", t.Name, why)
			}
		}
		for _, n := range a.source.Missing {
			p("-- MUST BE RIGHT FIRST: there is no table %s.", n)
		}
	}
	sql, notes := a.publish()
	for _, n := range notes {
		p("-- %s.", n)
	}
	if a.source.Publication != nil {
		p("-- Publication %q is there; billhook check says whether it holds all it must.", s.Publication)
	} else {
		p("BEGIN;\nSET LOCAL lock_timeout = '2s';\n%s;\nCOMMIT;", sql)
	}
	switch {
	case a.source.Slot != nil:
		p("\n-- Slot %q is there.", s.Slot)
	case s.Create:
		p("\n-- The slot is made by billhook when it first runs. Cost then: it waits for transactions that have\n-- written and are still open; from then on WAL is kept until billhook has confirmed it.")
	default:
		p("\n-- Where the reader stands; after the publication, never before. Cost: it waits for transactions\n-- that have written and are still open; from then on WAL is kept until billhook has confirmed it.")
		p("SELECT pg_create_logical_replication_slot(%s, 'pgoutput');", sqlText(s.Slot))
	}
}

// publish is the statement that makes the publication.
func (a *attachment) publish() (sql string, notes []string) {
	wanted := tables(a.mapping)
	if a.seen && len(a.source.Missing) == 0 {
		sql, notes, err := replication.PublicationSQL(a.config.Source.Publication, a.source.Tables, wanted, a.server.VersionNum)
		if err == nil {
			return sql, notes
		}
	}
	var list []string
	for _, t := range wanted {
		list = append(list, t.SQL())
		if len(t.Exclude) > 0 {
			notes = append(notes, fmt.Sprintf("%s: from Postgres 15, and unless it has REPLICA IDENTITY FULL, name the columns after it, without %s", t.Name, strings.Join(t.Exclude, ", ")))
		}
	}
	return "CREATE PUBLICATION " + sqlName(a.config.Source.Publication) + " FOR TABLE " + strings.Join(list, ", ") + " WITH (publish_via_partition_root = true)", notes
}

// bound keeps the primary well whatever becomes of billhook.
func (a *attachment) bound(p func(string, ...any)) {
	if a.seen && a.server.MaxSlotKeep >= 0 {
		p("\n-- max_slot_wal_keep_size is set: beyond it the slot is given up and the primary stays well.")
		return
	}
	p("\n-- The bound on the WAL that a slot keeps: beyond it the slot is given up and the primary stays\n-- well. As much as the disk can spare. Cost: none; it holds for all slots of the server.")
	p("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';\nSELECT pg_reload_conf();")
}

func sqlText(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// ErrRunning says that the slot is in use.
var ErrRunning = errors.New("billhook is running")

// Uninstalled is what was taken out of a database, and what is left to do.
type Uninstalled struct {
	Database string
	// Dropped is what was dropped, or with a dry run what would be.
	Dropped []string
	// Left is SQL for what billhook's role may not do itself.
	Left    string
	Journal string // the folder that is left
}

// Uninstall drops the slot and the publication that billhook.yaml names. With dry it
// looks only. An error that wraps ErrRunning says that the slot is in use; then nothing
// is dropped.
func Uninstall(ctx context.Context, o SQLOptions, dry bool) (u Uninstalled, err error) {
	b, m, err := o.load()
	if err != nil {
		return u, err
	}
	a := attachment{config: b, mapping: m, role: o.Role}
	if a.role == "" {
		a.role = roleOf(b.Source.DSN.Reveal())
	}
	if err := a.look(ctx, o.DSN); err != nil {
		return u, err
	}
	u.Database, u.Journal = a.source.Database, b.Journal.Path
	slot, publication := a.source.Slot, a.source.Publication
	if slot != nil && slot.Active {
		return u, fmt.Errorf("%w: slot %q is in use by %s; stop it first", ErrRunning, slot.Name, slot.Holder)
	}
	may := publication != nil && (publication.Owned || a.server.Superuser)
	if slot != nil {
		u.Dropped = append(u.Dropped, fmt.Sprintf("slot %q, which keeps %s of WAL", slot.Name, megabytes(slot.RetainedBytes)))
	}
	if may {
		u.Dropped = append(u.Dropped, fmt.Sprintf("publication %q", publication.Name))
	}
	if publication != nil && !may {
		u.Left += "DROP PUBLICATION " + sqlName(publication.Name) + ";\n"
	}
	if a.exists {
		u.Left += fmt.Sprintf("DROP OWNED BY %[1]s;\nDROP ROLE %[1]s;\n", sqlName(a.role))
	}
	if dry || len(u.Dropped) == 0 {
		return u, nil
	}
	dsn := o.DSN
	if dsn == "" {
		dsn = b.Source.DSN.Reveal()
	}
	c, err := replication.New(replication.Options{DSN: dsn, Slot: b.Source.Slot, Publication: b.Source.Publication, Tables: tables(m)})
	if err != nil {
		return u, err
	}
	_, err = c.Detach(ctx, may)
	return u, err
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(max(n, 0))/(1<<20)) }

// withUser returns a DSN's address for another user, without a password, as a URL.
func withUser(dsn, user string) string {
	host, port, database := replication.Address(dsn)
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, "PASSWORD"), Host: net.JoinHostPort(host, port), Path: "/" + database}
	return u.String()
}
