package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/billhook/billhook/internal/replication/catalog"
)

// lockTimeout bounds how long the DDL of a set-up may stand in the queue for a
// lock, since what comes after it would queue behind it.
const lockTimeout = 2 * time.Second

// preparePublication makes sure that the publication is there, is the one of
// before, and holds the mapped tables. On a first attach it may make or extend it.
func (c *Client) preparePublication(ctx context.Context, conn *pgx.Conn, session *Session, server catalog.Server, want Position) (catalog.Publication, error) {
	check, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	publication, found, err := catalog.ReadPublication(check, conn, c.options.Publication)
	if err != nil {
		return publication, err
	}
	_, slotFound, err := catalog.ReadSlot(check, conn, c.options.Slot)
	if err != nil {
		return publication, err
	}
	tables, missing, err := catalog.ReadTables(check, conn, names(c.options.Tables))
	if err != nil {
		return publication, err
	}
	if !want.IsZero() {
		switch {
		case !found:
			return publication, fatal(ReasonPublicationMissing, "publication %q is gone; what was changed since cannot be sent to slot %q any more: make the publication again, then `billhook reconcile` finds what was missed and makes a new slot", c.options.Publication, c.options.Slot)
		case want.PublicationOID != 0 && want.PublicationOID != publication.OID:
			return publication, c.target.publicationRemade()
		}
	}
	first := c.State().Session == nil
	if first && found && !want.IsZero() {
		// Before it is put right: what it has left out until now is in no stream.
		if err := c.looked(server.Current, publication, nil); err != nil {
			return publication, err
		}
	}
	if len(missing) > 0 && first {
		return publication, fatal(ReasonTable, "not in database %q, or not to be seen by role %q: %s; correct the mapping, or GRANT USAGE on the schema", server.Database, server.Role, joinNames(missing))
	}

	switch {
	case !found && slotFound:
		return publication, fatal(ReasonPublicationMissing, "slot %q exists but publication %q does not, and a slot cannot use a publication that is younger than its position; drop the slot (SELECT pg_drop_replication_slot('%s')) and start again, so that the publication is made first", c.options.Slot, c.options.Publication, c.options.Slot)
	case !found:
		sql, notes, err := PublicationSQL(c.options.Publication, tables, c.options.Tables, server.VersionNum)
		if err != nil {
			return publication, err
		}
		if !c.options.Create {
			return publication, fatal(ReasonPublicationMissing, "publication %q does not exist; let its owner run: %s", c.options.Publication, sql)
		}
		if err := c.ddl(check, conn, sql, server.Role); err != nil {
			return publication, err
		}
		for _, n := range notes {
			c.log.Warn("publication created without a column list", "publication", c.options.Publication, "why", n)
		}
		c.log.Info("publication created", "publication", c.options.Publication, "tables", joinNames(names(c.options.Tables)))
	case len(c.options.Tables) > 0 && first:
		if err := c.extendPublication(check, conn, server, publication, tables, want); err != nil {
			return publication, err
		}
	}
	if publication, found, err = catalog.ReadPublication(check, conn, c.options.Publication); err != nil {
		return publication, err
	}
	if !found {
		return publication, fatal(ReasonPublicationMissing, "publication %q was dropped a moment ago", c.options.Publication)
	}
	if first {
		c.warn(publication)
	}
	session.PublicationOID = publication.OID
	session.Doubted = doubted(tables, publication)
	session.leaves = leaves(tables)
	return publication, nil
}

// warn tells of what a publication leaves out by the will of whoever made it.
func (c *Client) warn(p catalog.Publication) {
	if omits := p.Omits(); omits != "" {
		c.log.Warn("the publication does not send all operations: events will be missing", "publication", p.Name, "omits", omits)
	}
	for _, n := range names(c.options.Tables) {
		if t, ok := p.Table(n); ok && t.RowFilter != "" {
			c.log.Warn("the publication filters rows: an update across the filter arrives as an insert or a delete", "publication", p.Name, "table", n.String(), "filter", t.RowFilter)
		}
	}
}

// extendPublication adds mapped tables that an existing publication lacks.
func (c *Client) extendPublication(ctx context.Context, conn *pgx.Conn, server catalog.Server, p catalog.Publication, tables []catalog.Table, want Position) error {
	var add []catalog.Table
	for _, t := range tables {
		if why := t.Unpublishable(); why != "" {
			return fatal(ReasonTable, "table %s %s", t.Name, why)
		}
		if !published(p, t) {
			add = append(add, t)
		}
	}
	if len(add) == 0 {
		return nil
	}
	list, _ := tableList(add, c.options.Tables, server.VersionNum)
	sql := "ALTER PUBLICATION " + quoteIdentifier(p.Name) + " ADD TABLE " + list
	if !c.options.Create {
		return fatal(ReasonTable, "publication %q lacks mapped tables; let its owner run: %s", p.Name, sql)
	}
	if err := c.ddl(ctx, conn, sql, server.Role); err != nil {
		return err
	}
	var added []catalog.Name
	for _, t := range add {
		added = append(added, t.Name)
	}
	// A journal that already knows other tables has no memory of these rows yet.
	c.log.Info("tables added to the publication", "publication", p.Name, "tables", joinNames(added), "first_attach", want.IsZero())
	return nil
}

// published reports whether a publication holds a table: by name, or for a
// partitioned one without via root, all its leaves.
func published(p catalog.Publication, t catalog.Table) bool {
	if _, ok := p.Table(t.Name); ok {
		return true
	}
	if t.Kind != 'p' || p.ViaRoot || len(t.Leaves) == 0 {
		return false
	}
	return !slices.ContainsFunc(t.Leaves, func(l catalog.Leaf) bool {
		_, ok := p.Table(l.Name)
		return !ok
	})
}

// PublicationSQL returns the statement that makes a publication for the tables,
// as the catalogs describe them, with the column lists wanted. Notes tell of
// column lists that had to be left out. It refuses a table whose publication would
// make the application's own UPDATE or DELETE fail.
func PublicationSQL(name string, tables []catalog.Table, wanted []Table, version int) (sql string, notes []string, err error) {
	if len(tables) == 0 {
		return "", nil, fatal(ReasonConfiguration, "publication %q cannot be made: no table is mapped", name)
	}
	for _, t := range tables {
		if why := t.Unpublishable(); why != "" {
			return "", nil, fatal(ReasonTable, "table %s %s", t.Name, why)
		}
	}
	list, notes := tableList(tables, wanted, version)
	return "CREATE PUBLICATION " + quoteIdentifier(name) + " FOR TABLE " + list + " WITH (publish_via_partition_root = true)", notes, nil
}

func tableList(tables []catalog.Table, wanted []Table, version int) (sql string, notes []string) {
	var parts []string
	for _, t := range tables {
		part := t.SQL()
		i := slices.IndexFunc(wanted, func(w Table) bool { return w.Name == t.Name })
		if i >= 0 && (wanted[i].Columns != nil || len(wanted[i].of(t)) < len(t.Columns)) {
			columns, why := t.ColumnList(wanted[i].of(t))
			if version < 150000 {
				columns, why = nil, "column lists came with Postgres 15"
			}
			if why != "" {
				notes = append(notes, fmt.Sprintf("%s: all columns leave the database, because %s", t.Name, why))
			} else if len(columns) > 0 {
				quoted := make([]string, len(columns))
				for i, c := range columns {
					quoted[i] = quoteIdentifier(c)
				}
				part += " (" + strings.Join(quoted, ", ") + ")"
			}
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", "), notes
}

// of returns the wanted columns of the table as it is.
func (w Table) of(t catalog.Table) []string {
	var columns []string
	for _, c := range t.Columns {
		if (w.Columns == nil || slices.Contains(w.Columns, c.Name)) && !slices.Contains(w.Exclude, c.Name) {
			columns = append(columns, c.Name)
		}
	}
	return columns
}

// ddl runs one statement that takes locks, and does not stand in the way for long.
func (c *Client) ddl(ctx context.Context, conn *pgx.Conn, sql, role string) error {
	_, err := conn.Exec(ctx, fmt.Sprintf("BEGIN; SET LOCAL lock_timeout = %d; %s; COMMIT", lockTimeout.Milliseconds(), sql))
	if err == nil {
		return nil
	}
	_, _ = conn.Exec(ctx, "ROLLBACK")
	pe, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case ok && pe.Code == "42501":
		return &Error{Class: Fatal, Reason: ReasonPrivilege, Err: err, Text: fmt.Sprintf("role %q may not do this (%s); let the tables' owner run: %s", role, oneLine(pe.Message), sql)}
	case ok && pe.Code == "55P03":
		return &Error{Class: Fatal, Reason: ReasonTable, Err: err, Text: fmt.Sprintf("another transaction holds a lock for longer than %s; try again later, or run by hand: %s", lockTimeout, sql)}
	}
	return err
}

// prepareSlot returns the slot, which it makes on a first attach when it may.
func (c *Client) prepareSlot(ctx context.Context, conn *pgx.Conn, session *Session, server catalog.Server, want Position) (catalog.Slot, error) {
	slot, err := c.checkSlot(ctx, conn, server, want)
	var e *Error
	if !errors.As(err, &e) || e.Reason != ReasonSlotMissing || !want.IsZero() {
		return slot, err
	}
	if !c.options.Create {
		return slot, fatal(ReasonSlotMissing, "replication slot %q does not exist; make it: SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", c.options.Slot, c.options.Slot)
	}
	if err := c.createSlot(ctx, conn, server); err != nil {
		return slot, err
	}
	session.SlotCreated = true
	c.log.Info("replication slot created", "slot", c.options.Slot)
	return c.checkSlot(ctx, conn, server, want)
}

// createSlot makes the slot. The server waits for every transaction that is older
// than the slot and has written; meanwhile a second connection looks which those
// are. When the context ends, the creation is cancelled and what it left removed.
func (c *Client) createSlot(ctx context.Context, conn *pgx.Conn, server catalog.Server) error {
	if server.UsedSlots >= server.MaxSlots {
		return fatal(ReasonServerUnfit, "all %d replication slots of the server are in use; raise max_replication_slots (needs a restart) or drop one that nobody uses", server.MaxSlots)
	}
	sql := "CREATE_REPLICATION_SLOT " + quoteIdentifier(c.options.Slot) + " LOGICAL pgoutput NOEXPORT_SNAPSHOT"
	if c.options.Failover && server.VersionNum >= 170000 {
		// A slot that a standby keeps a copy of survives a fail-over.
		sql = "CREATE_REPLICATION_SLOT " + quoteIdentifier(c.options.Slot) + " LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)"
	}

	// The connection is busy until the server answers: what watches it is beside it.
	created := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { c.watchCreation(ctx, conn.PgConn(), created) })
	_, err := conn.PgConn().Exec(context.WithoutCancel(ctx), sql).ReadAll()
	close(created)
	watching.Wait()
	if err == nil && ctx.Err() == nil {
		return nil
	}
	if ctx.Err() == nil {
		return err
	}
	if left := c.dropUnfinished(context.WithoutCancel(ctx), err == nil); left != nil {
		return errors.Join(ctx.Err(), left)
	}
	return ctx.Err()
}

// watchCreation tells what a slot's creation waits for, and cancels it when the
// context ends.
func (c *Client) watchCreation(ctx context.Context, creating *pgconn.PgConn, created <-chan struct{}) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			closeConn(conn)
		}
	}()
	began := time.Now()
	for delay := time.Second; ; delay = 5 * time.Second {
		select {
		case <-created:
			return
		case <-ctx.Done():
			// Again and again: a request that comes before the server is in the command
			// is lost.
			for {
				cancel, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
				_ = creating.CancelRequest(cancel)
				done()
				select {
				case <-created:
					return
				case <-time.After(500 * time.Millisecond):
				}
			}
		case <-time.After(delay):
		}
		if conn == nil {
			var err error
			if conn, err = c.connect(ctx, false); err != nil {
				c.log.Debug("look what the slot's creation waits for", "err", c.target.classify(err).Text)
				continue
			}
		}
		blockers, err := catalog.ReadBlockers(ctx, conn, creating.PID())
		if err != nil {
			c.log.Debug("look what the slot's creation waits for", "err", err)
			continue
		}
		c.phase(Connecting, waitText(c.options.Slot, time.Since(began), blockers))
		for _, b := range blockers {
			c.log.Warn("slot creation waits for an older transaction", "slot", c.options.Slot, "pid", b.PID, "application_name", b.ApplicationName,
				"role", b.Role, "state", b.State, "age", b.Age.Round(time.Second), "waiting", time.Since(began).Round(time.Second))
		}
	}
}

func waitText(slot string, waited time.Duration, blockers []catalog.Transaction) string {
	s := fmt.Sprintf("creating slot %q for %s", slot, waited.Round(time.Second))
	for i, b := range blockers {
		if i == 0 {
			s += ", waiting for the end of older transactions: "
		} else {
			s += "; "
		}
		if b.PID == 0 {
			s += "a prepared one"
		} else {
			s += fmt.Sprintf("pid %d", b.PID)
		}
		if b.ApplicationName != "" {
			s += " (" + b.ApplicationName + ")"
		}
		if b.Age > 0 {
			s += " open for " + b.Age.Round(time.Second).String()
		}
	}
	return s
}

// dropUnfinished removes the slot of a creation that was called off. Until the
// server has noticed, the slot is in use by the cancelled command.
func (c *Client) dropUnfinished(ctx context.Context, finished bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := c.connect(ctx, false)
	if err != nil {
		return fmt.Errorf("look whether slot %q is left behind: %w", c.options.Slot, err)
	}
	defer closeConn(conn)
	for {
		slot, found, err := catalog.ReadSlot(ctx, conn, c.options.Slot)
		switch {
		case err != nil:
			return fmt.Errorf("look whether slot %q is left behind: %w", c.options.Slot, err)
		case !found:
			return nil
		case !slot.Active && (finished || slot.ConfirmedFlush.IsZero()):
			if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot($1)", c.options.Slot); err != nil {
				return fmt.Errorf("drop slot %q: %w", c.options.Slot, err)
			}
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fatal(ReasonSlotUnfit, "slot %q is left behind; drop it: SELECT pg_drop_replication_slot('%s')", c.options.Slot, c.options.Slot)
		}
	}
}

// Detach drops the slot and then, if asked, the publication, as far as they are there,
// and returns what it dropped. A slot in use is an error, and then nothing is dropped.
func (c *Client) Detach(ctx context.Context, publication bool) (dropped []string, err error) {
	conn, err := c.connect(ctx, false)
	if err != nil {
		return nil, c.target.classify(err)
	}
	defer closeConn(conn)
	slot, found, err := catalog.ReadSlot(ctx, conn, c.options.Slot)
	if err != nil {
		return nil, c.target.classify(err)
	}
	if found && slot.Active {
		return nil, &Error{Class: Wait, Reason: ReasonSlotActive, Text: fmt.Sprintf("replication slot %q is in use by %s; stop it first", slot.Name, slot.Holder)}
	}
	if found {
		if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot($1)", c.options.Slot); err != nil {
			return nil, c.target.classify(err)
		}
		dropped = append(dropped, fmt.Sprintf("slot %q", c.options.Slot))
	}
	if !publication {
		return dropped, nil
	}
	p, found, err := catalog.ReadPublication(ctx, conn, c.options.Publication)
	if err != nil {
		return dropped, c.target.classify(err)
	}
	if found {
		if err := c.ddl(ctx, conn, "DROP PUBLICATION "+quoteIdentifier(p.Name), c.config.User); err != nil {
			return dropped, c.target.classify(err)
		}
		dropped = append(dropped, fmt.Sprintf("publication %q", p.Name))
	}
	return dropped, nil
}
